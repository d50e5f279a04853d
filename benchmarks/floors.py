"""What Postgres alone could do, run by pgbench: two floors.

The claim chain is the bare statements of pgjobs on its own table; it moves when the statements or the table change.
The fixed floor (fixed_floor/) is the least that any queue does, on a copy of the table that never changes. Each is a
script, with a pipeline for one round trip.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql

from benchmarks.ground import Table, WrongResult
from benchmarks.workload import DEADLINE
from pgjobs.embedded import EmbeddedPostgresError, find_bindir

_HERE = Path(__file__).parent
CHAIN = _HERE / "floor.sql"  # finish, claim, lock
ENQUEUE = _HERE / "floor_enqueue.sql"  # a plain INSERT
FIXED = _HERE / "fixed_floor"
FIXED_DRAIN, FIXED_INSERT, FIXED_ENQUEUE = (FIXED / name for name in ("drain.sql", "insert.sql", "enqueue.sql"))
# Jobs of one run of the script: more would mean more statements to prepare, fewer more transactions without a claim.
_LONGEST_CHAIN = 10


class Pgbench:
    """A floor on the tables of pgjobs; called, it runs once and says how many a second.

    With an `effect`, the claim chain has an INSERT for each job. What a run does is checked here.
    """

    def __init__(self, dsn: str, table: Table, clients: int, path: Path = CHAIN, *, effect: bool = False) -> None:
        self._dsn, self._table, self._clients = dsn, table, clients
        self._effect, self._enqueues = effect, path == ENQUEUE
        text, self._length = path.read_text(), 1  # jobs of one run of the script
        if path == CHAIN:
            self._length = 1 if effect else _chain_length(table.jobs // clients)
            text = _chain(text, self._length, effect=effect)
        self._script = re.sub(r"\bpgjobs\.(?=[a-z])", f'"{table.schema}".', text)

    def __call__(self) -> float:
        if self._enqueues:
            self._table.empty()
        else:
            self._table.load()
        _run(self._dsn, self._script, self._clients, self._table.jobs, length=self._length)
        if self._enqueues:
            return self._table.insert_rate()
        if self._effect:
            self._table.check_effects(self._table.jobs)
        return self._table.rate()


class FixedFloor:
    """A fixed floor; called, it runs once and says how many a second. Its table knows nothing of those of pgjobs."""

    def __init__(self, conn: psycopg.Connection[object], dsn: str, schema: str) -> None:
        self._conn, self._dsn, self._schema = conn, dsn, schema

    def __call__(self, path: Path, clients: int, jobs: int) -> float:
        self._execute("TRUNCATE fixed_floor.job RESTART IDENTITY")
        self._execute("TRUNCATE fixed_floor.effect")
        if path != FIXED_ENQUEUE:
            self._execute(
                f"INSERT INTO fixed_floor.job (kind, args) SELECT 'noop', '{{}}' FROM generate_series(1, {jobs})"
            )
        self._execute("VACUUM (ANALYZE) fixed_floor.job")
        self._execute("CHECKPOINT")
        rate = _run(self._dsn, self._named(path.read_text()), clients, jobs)
        done = "SELECT count(*) FROM fixed_floor.job WHERE state = "
        self._check(jobs, done + ("'available'" if path == FIXED_ENQUEUE else "'completed'"))
        if path == FIXED_INSERT:
            self._check(jobs, "SELECT count(*) FROM fixed_floor.effect")
        self._execute("TRUNCATE fixed_floor.job")  # what autovacuum finds to do here would be a part of the next run
        return rate

    def _check(self, expected: int, query: str) -> None:
        found = self._execute(query).fetchall()
        if found != [(expected,)]:
            raise WrongResult(f"the fixed floor should have {expected} rows, but {query} says {found}")

    def _execute(self, statement: str) -> psycopg.Cursor[object]:
        return self._conn.execute(self._named(statement).encode())

    def _named(self, text: str) -> str:
        return _in_schema(text, self._schema)


@contextmanager
def fixed_floor(conn: psycopg.Connection[object], dsn: str, schema: str) -> Iterator[FixedFloor]:
    """Makes its table in this schema, which is dropped at the end."""
    conn.execute(_in_schema((FIXED / "table.sql").read_text(), schema).encode())
    try:
        yield FixedFloor(conn, dsn, schema)
    finally:
        conn.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))


def _in_schema(text: str, schema: str) -> str:
    return re.sub(r"\bfixed_floor\b(?=[.;])", f'"{schema}"', text)


def _chain_length(each: int) -> int:
    """How many jobs one run of the script has: a divisor of the number of jobs that each client works."""
    return max(length for length in range(1, _LONGEST_CHAIN + 1) if each % length == 0)


def _chain(text: str, length: int, *, effect: bool) -> str:
    """Put the parts of floor.sql together, for so many jobs."""
    parts = {
        name: part.strip() for name, part in re.findall(r"^-- name: (\w+)\n(.*?)(?=^-- name: |\Z)", text, re.M | re.S)
    }
    wanted = ["insert"] * length if effect else ["first", *(["next"] * (length - 1)), "last"]
    whole = "\n".join(f"{{{name}}}" for name in wanted)
    while placeholder := re.search(r"\{(\w+)\}", whole):
        whole = whole.replace(placeholder[0], parts[placeholder[1]])
    return whole + "\n"


def _run(dsn: str, script: str, clients: int, jobs: int, *, length: int = 1) -> float:
    """Runs of the script a second, as pgbench says, each for `length` jobs. The number of jobs is a multiple of that of
    the clients."""
    each, rest = divmod(jobs, clients)
    if rest:
        raise SystemExit(f"--jobs must be a multiple of every number of threads, so of {clients}")
    threads = min(clients, os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "floor.sql")
        path.write_text(script)
        command = [pgbench(), "--no-vacuum", "--protocol=prepared", f"--file={path}", f"--client={clients}"]
        command += [f"--jobs={threads}", f"--transactions={each // length}", dsn]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    found = re.search(r"^tps = ([\d.]+)", done.stdout, re.MULTILINE)
    if done.returncode != 0 or found is None:
        raise WrongResult(f"pgbench failed:\n{done.stderr}")
    return float(found[1])


def pgbench() -> str:
    """The program beside the server's, if there is one, else that of the PATH."""
    try:
        beside = shutil.which(find_bindir() / "pgbench")
    except EmbeddedPostgresError:
        beside = None
    program = beside or shutil.which("pgbench")
    if program is None:
        raise SystemExit("no pgbench found: it comes with Postgres's client programs; put it on the PATH")
    return program
