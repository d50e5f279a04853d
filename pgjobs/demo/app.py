"""An application with a job queue: find the classes and functions that Python source files define.

Each file is one job. The handler parses the file and writes what it finds through `tx`, the transaction that also
completes the job: both are committed together, or neither is.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psycopg import Connection

from pgjobs import Client, Job, WorkerPool, WorkMap, job_options

SCHEMA = "pgjobs_demo"  # where pgjobs keeps its own tables; the default of Client is "pgjobs"

# No unique keys here, so that the demo would see a file that was indexed twice.
TABLES = """
    CREATE TABLE stdlib_index.file (path text, lines integer, job_id bigint);
    CREATE TABLE stdlib_index.definition (path text, name text, kind text, line integer);
"""


@job_options(max_attempts=3)
@dataclass(frozen=True)
class IndexFile:
    """What a job is given; stored as JSON in the job's row."""

    path: str


def enqueue(client: Client, paths: Iterable[str]) -> None:
    """Make one job for each path. The jobs exist when this transaction commits."""
    with client.pool.connection() as tx:
        client.enqueue_many(tx, [IndexFile(path) for path in paths])


def index_file(tx: Connection[Any], job: Job[IndexFile]) -> None:
    """The handler. It does not commit: pgjobs completes the job in the same transaction, and commits."""
    write_index(tx, job.args.path, job.id)


def write_index(tx: Connection[Any], path: str, job_id: int | None = None) -> None:
    """Write what one file defines. The demo calls this without a job as well, to compare."""
    source = Path(path).read_bytes()
    tx.execute(
        "INSERT INTO stdlib_index.file (path, lines, job_id) VALUES (%s, %s, %s)",
        [path, len(source.splitlines()), job_id],
    )
    with tx.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO stdlib_index.definition (path, name, kind, line) VALUES (%s, %s, %s, %s)",
            [(path, *definition) for definition in find_definitions(source)],
        )


def find_definitions(source: bytes) -> list[tuple[str, str, int]]:
    """Name, kind and line of each. A file that is no valid Python (some of Python's own tests are none) has none."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two: nested too deeply
        return []
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            found.append((node.name, "class", node.lineno))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.append((node.name, "function", node.lineno))
    return found


def work(client: Client) -> None:
    """The program of a worker process: run jobs until SIGTERM or Ctrl-C."""
    WorkerPool(client, WorkMap({IndexFile: index_file}), queues={"default": 1}).run()
