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
CHAIN = _HERE / "floor.sql"  # claim, lock, savepoint, finish
ENQUEUE = _HERE / "floor_enqueue.sql"  # a plain INSERT
FIXED = _HERE / "fixed_floor"
FIXED_DRAIN, FIXED_INSERT, FIXED_ENQUEUE = (FIXED / name for name in ("drain.sql", "insert.sql", "enqueue.sql"))
_SAVEPOINT = "SAVEPOINT pgjobs;\n"
_EFFECT = "INSERT INTO pgjobs.effect (job) VALUES (:token);\n"


class Pgbench:
    """A floor on the tables of pgjobs; called, it runs once and says how many a second.

    With an `effect`, one more INSERT stands between savepoint and release. What a run does is checked by the caller.
    """

    def __init__(self, dsn: str, table: Table, clients: int, path: Path = CHAIN, *, effect: bool = False) -> None:
        self._dsn, self._table, self._clients = dsn, table, clients
        self._effect, self._enqueues = effect, path == ENQUEUE
        text = path.read_text()
        if effect:
            text = text.replace(_SAVEPOINT, _SAVEPOINT + _EFFECT, 1)
        self._script = re.sub(r"\bpgjobs\.(?=[a-z])", f'"{table.schema}".', text)

    def __call__(self) -> float:
        if self._enqueues:
            self._table.empty()
        else:
            self._table.load()
        _run(self._dsn, self._script, self._clients, self._table.jobs)
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


def _run(dsn: str, script: str, clients: int, jobs: int) -> float:
    """Transactions a second, as pgbench says. The number of jobs is a multiple of that of the clients."""
    each, rest = divmod(jobs, clients)
    if rest:
        raise SystemExit(f"--jobs must be a multiple of every number of threads, so of {clients}")
    threads = min(clients, os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "floor.sql")
        path.write_text(script)
        command = [pgbench(), "--no-vacuum", "--protocol=prepared", f"--file={path}", f"--client={clients}"]
        command += [f"--jobs={threads}", f"--transactions={each}", dsn]
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
