"""How fast a full queue is drained: no-op jobs, one job per transaction, beside the floor that pgbench measures.

    python -m benchmarks.drain            # on an embedded Postgres with fsync on, or on DATABASE_URL

The floor (floor.sql) is the statements that one job needs, in one round trip, run by pgbench on the same table. The
runs of pgjobs and of the floor take turns, so that the ratio means something on a machine that others use too. A rate
is what the rows say: jobs over the time from the first claim to the last finish.

Work on a database that is given stays in a schema of its own, which is dropped at the end.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from threading import Event
from typing import Any

import psycopg
from psycopg import sql

from pgjobs import Client, Job, WorkerPool, WorkMap
from pgjobs.embedded import EmbeddedPostgres, EmbeddedPostgresError, database_url, find_bindir

FLOOR = Path(__file__).with_name("floor.sql")
PROTOCOLS = ("prepared", "simple")
_DEADLINE = 120.0  # seconds that one run may take


class WrongResult(Exception):
    """A run did not do what it was measured for."""


@dataclass
class Table:
    """The jobs of the benchmark, looked at from outside."""

    conn: psycopg.Connection[Any]
    schema: str
    jobs: int

    def load(self) -> None:
        """Fill the queue, and see to it that every run begins with the same table."""
        self._execute("TRUNCATE {job} RESTART IDENTITY")
        self._execute("INSERT INTO {job} (kind, args) SELECT 'noop', '{{}}' FROM generate_series(1, %s)", self.jobs)
        self._execute("VACUUM (ANALYZE) {job}")

    def rate(self) -> float:
        """Jobs a second, after it is clear that each was done, and done once."""
        states = self._execute("SELECT state, attempt, count(*) FROM {job} GROUP BY 1, 2").fetchall()
        if states != [("completed", 1, self.jobs)]:
            raise WrongResult(f"{self.jobs} jobs should be completed at attempt 1, but there are {states}")
        seconds = self._execute("SELECT EXTRACT(epoch FROM max(finalized_at) - min(attempted_at)) FROM {job}")
        return self.jobs / float(seconds.fetchall()[0][0])

    def _execute(self, query: str, *parameters: object) -> psycopg.Cursor[Any]:
        job = sql.Identifier(self.schema, "job")
        return self.conn.execute(sql.SQL(query).format(job=job), parameters or None)


# --- what is measured


class Drain:
    """A worker pool on a full queue."""

    def __init__(self, client: Client, table: Table, threads: int) -> None:
        self._table = table
        self._started: list[int] = []  # job ids; appending is one step under the interpreter's lock
        self._last = Event()
        self._pool = WorkerPool(client, WorkMap({"noop": self._handle}), queues={"default": threads})

    def _handle(self, tx: psycopg.Connection[Any], job: Job[Any]) -> None:
        self._started.append(job.id)
        if len(self._started) >= self._table.jobs:
            self._last.set()

    def __call__(self) -> float:
        self._table.load()
        self._started.clear()
        self._last.clear()
        # On a server that has just started, claims wait for the disk for some minutes. Here the steady state counts.
        self._pool._executor.claimer._cautious_until = 0.0
        with self._pool:
            self._last.wait(_DEADLINE)
        twice = [job for job, starts in Counter(self._started).items() if starts > 1]
        if len(self._started) != self._table.jobs or twice:
            raise WrongResult(f"{len(self._started)} starts for {self._table.jobs} jobs, more than one for {twice}")
        return self._table.rate()


class Floor:
    """The bare statements, run by pgbench."""

    def __init__(self, dsn: str, table: Table, clients: int, protocol: str, script: Path) -> None:
        self._table = table
        each, rest = divmod(table.jobs, clients)
        if rest:
            raise SystemExit(f"--jobs must be a multiple of every number of threads, so of {clients}")
        self._command = [_pgbench(), "--no-vacuum", f"--protocol={protocol}", f"--file={script}", f"--client={clients}"]
        self._command += [f"--jobs={min(clients, os.cpu_count() or 1)}", f"--transactions={each}", dsn]

    def __call__(self) -> float:
        self._table.load()
        done = subprocess.run(self._command, capture_output=True, text=True, timeout=_DEADLINE, check=False)
        if done.returncode != 0:
            raise WrongResult(f"pgbench failed:\n{done.stderr}")
        return self._table.rate()


def _pgbench() -> str:
    """The program beside the server's, if there is one, else that of the PATH."""
    try:
        beside = shutil.which(find_bindir() / "pgbench")
    except EmbeddedPostgresError:
        beside = None
    program = beside or shutil.which("pgbench")
    if program is None:
        raise SystemExit("no pgbench found: it comes with Postgres's client programs; put it on the PATH")
    return program


def floor_script(protocol: str, schema: str) -> str:
    """floor.sql for a protocol: a pipeline, or all statements in one message."""
    text = re.sub(r"\bpgjobs\.(?=[a-z])", f'"{schema}".', FLOOR.read_text())
    if protocol == "prepared":
        return text
    head, _, rest = text.partition("\\startpipeline\n")
    statements = rest.partition("\\endpipeline")[0].strip().removesuffix(";")
    return head + statements.replace(";", " \\;") + ";\n"


# --- the table


@dataclass
class Row:
    """One number of threads, and the rates of its runs."""

    threads: int
    drain: list[float] = field(default_factory=list)
    floor: dict[str, list[float]] = field(default_factory=lambda: {protocol: [] for protocol in PROTOCOLS})

    def __str__(self) -> str:
        floors = {protocol: statistics.median(rates) for protocol, rates in self.floor.items()}
        jobs, best = statistics.median(self.drain), max(floors.values())
        spread = f"{min(self.drain):,.0f}-{max(self.drain):,.0f}"
        columns = "".join(f"{floors[protocol]:>16,.0f}" for protocol in PROTOCOLS)
        return f"{self.threads:>7}{jobs:>9,.0f}{spread:>15}{columns}{jobs / best:>8.2f}"


HEAD = f"{'threads':>7}{'jobs/s':>9}{'min-max':>15}{'floor prepared':>16}{'floor simple':>16}{'ratio':>8}"


def configuration(conn: psycopg.Connection[Any], jobs: int, rounds: int) -> str:
    """What the figures depend on."""
    names = ("server_version", "fsync", "synchronous_commit", "full_page_writes")
    shown = {name: conn.execute("SELECT current_setting(%s)", [name]).fetchall()[0][0] for name in names}
    server = f"Postgres {shown.pop('server_version')}, " + ", ".join(f"{name} {value}" for name, value in shown.items())
    libpq = ".".join(map(str, divmod(psycopg.pq.version(), 10_000)))
    client = f"psycopg {psycopg.__version__} ({psycopg.pq.__impl__}, libpq {libpq})"
    return (
        f"{server}\n{platform.python_implementation()} {platform.python_version()}, {client}, {os.cpu_count()} CPUs, "
        f"shared with the server unless that is elsewhere\n{jobs:,} no-op jobs a run, medians of {rounds} runs"
    )


def measure(dsn: str, client: Client, jobs: int, rounds: int, threads: Sequence[int]) -> list[Row]:
    rows = [Row(number) for number in threads]
    with psycopg.connect(dsn, autocommit=True) as conn, tempfile.TemporaryDirectory() as directory:
        table = Table(conn, client.schema, jobs)
        print(configuration(conn, jobs, rounds), flush=True)
        arms: list[tuple[list[float], Callable[[], float]]] = []
        for row in rows:
            arms.append((row.drain, Drain(client, table, row.threads)))
            for protocol in PROTOCOLS:
                script = Path(directory, f"{protocol}.sql")
                script.write_text(floor_script(protocol, client.schema))
                arms.append((row.floor[protocol], Floor(dsn, table, row.threads, protocol, script)))
        for round in range(rounds):
            for number, (rates, run) in enumerate(arms):
                progress(f"run {round * len(arms) + number + 1} of {rounds * len(arms)}")
                rates.append(run())
        progress("")
    return rows


def progress(text: str) -> None:
    """Say how far it is, to who watches; a file gets the table alone."""
    if sys.stderr.isatty():
        print(f"\r{text:<20}\r", end="", file=sys.stderr, flush=True)


@contextmanager
def database() -> Iterator[tuple[str, str]]:
    """A dsn, and the schema to work in."""
    given = database_url()
    if given is None:
        with EmbeddedPostgres() as server:
            yield server.dsn, "pgjobs"
        return
    schema = f"pgjobs_bench_{token_hex(4)}"
    try:
        yield given, schema
    finally:
        with psycopg.connect(given, autocommit=True) as conn:
            conn.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=3_200, help="jobs of one run (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind (default: %(default)s)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 4, 8], help="default: 1 4 8")
    options = parser.parse_args()
    with database() as (dsn, schema), Client(dsn, schema=schema) as client:
        client.migrate()
        rows = measure(dsn, client, options.jobs, options.rounds, options.threads)
    print("", HEAD, *rows, sep="\n")
    print("\nratio: jobs/s over the better floor. Every job was started once and is completed at its first attempt.")


if __name__ == "__main__":
    main()
