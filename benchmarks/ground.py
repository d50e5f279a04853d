"""What the benchmarks stand on: a database, the table of jobs seen from outside, and the checks of what a run did."""

from __future__ import annotations

import inspect
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from secrets import token_hex
from typing import Any

import psycopg
from psycopg import sql

from benchmarks.workload import DEADLINE, warmed
from pgjobs import Client, WorkerPool
from pgjobs.embedded import EmbeddedPostgres, database_url

BATCHES = "batch_size" in inspect.signature(WorkerPool).parameters  # whether this version has the batch mode
_LOOK = 0.05  # seconds between two looks at a table that other processes work


class WrongResult(Exception):
    """A run did not do what it was measured for."""


@dataclass(frozen=True)
class Size:
    """How much `make bench-growth` measures."""

    rows: int  # of a backlog
    jobs: int  # that one run works, one by one
    rounds: int

    @property
    def modes(self) -> list[tuple[str, int, dict[str, Any]]]:
        """The ways in which jobs are worked: the name, how many in one run, the options of the pool."""
        single = ("one by one", self.jobs, dict[str, Any]())
        return [single, ("in batches", 5 * self.jobs, {"batch_size": 100})] if BATCHES else [single]


# For a server with hundreds of connections, and with a checkpoint seldom enough for a load of a million rows.
LARGE = {"max_connections": "300", "max_wal_size": "8GB", "checkpoint_timeout": "30min"}


@dataclass
class Table:
    """The jobs of the benchmark, and the effects of their handlers, looked at from outside."""

    conn: psycopg.Connection[Any]
    schema: str
    jobs: int
    _began: datetime | None = None  # of the run, by the server's clock

    def sized(self, jobs: int) -> Table:
        """The same with more jobs or fewer."""
        return replace(self, jobs=jobs)

    def load(self) -> None:
        """Fill the queue, and see to it that every run begins with the same table."""
        self.empty()
        self.fill(self.jobs)
        self.settle()

    def empty(self) -> None:
        self.execute("TRUNCATE {job} RESTART IDENTITY")
        self.execute("CREATE TABLE IF NOT EXISTS {effect} (job bigint NOT NULL)")
        self.execute("TRUNCATE {effect}")

    def fill(self, rows: int, **columns: str) -> None:
        """So many rows more; each column that is not the default is an expression of `n`, which counts them."""
        given = {"kind": "'noop'", "args": "'{{}}'", **columns}
        names, values = ", ".join(given), ", ".join(given.values())
        self.execute(f"INSERT INTO {{job}} ({names}) SELECT {values} FROM generate_series(1, %s) AS n", rows)

    def settle(self) -> None:
        """Before a run: let vacuum and the disk finish what earlier runs have left to them."""
        self.execute("VACUUM (ANALYZE) {job}")
        self.execute("CHECKPOINT")
        self._began = self.value("SELECT clock_timestamp()")

    def wait_until_done(self) -> None:
        """Wait until one look finds no job waiting and none running: a batch may make jobs available again."""
        deadline = time.monotonic() + DEADLINE
        waiting = "EXISTS (SELECT FROM {job} WHERE queue = 'default' AND state = 'available')"
        running = "EXISTS (SELECT FROM {job} WHERE queue = 'default' AND state = 'running')"
        while self.value(f"SELECT {waiting} OR {running}"):
            if time.monotonic() > deadline:
                raise WrongResult(f"after {DEADLINE:g} s some of {self.jobs} jobs are not done")
            time.sleep(_LOOK)

    def rate(self) -> float:
        """Jobs a second; raises unless each job was done, and done once."""
        states = self.execute("SELECT state, attempt, count(*) FROM {job} GROUP BY 1, 2").fetchall()
        if states != [("completed", 1, self.jobs)]:
            raise WrongResult(f"{self.jobs} jobs should be completed at attempt 1, but there are {states}")
        return self.jobs / self._seconds()

    def rate_of(self, started: int) -> float:
        """The same where only some of the jobs were worked: those that were started are completed, the others wait."""
        states = self.execute(
            "SELECT state, attempt, count(*) FROM {job} WHERE attempted_at >= %s GROUP BY 1, 2", self._began
        ).fetchall()
        if states != [("completed", 1, started)]:
            raise WrongResult(f"{started} jobs should be completed at attempt 1, but there are {states}")
        return started / self._seconds()

    def check_effects(self, expected: int) -> None:
        """Raise unless every job has written its row, and written it once."""
        found = self.execute("SELECT count(*), count(DISTINCT job) FROM {effect}").fetchall()[0]
        if found != (expected, expected):
            raise WrongResult(f"{expected} effects should be there, but there are {found[0]} of {found[1]} jobs")

    def insert_rate(self) -> float:
        """Jobs enqueued a second; raises unless all are there and wait."""
        states = self.execute("SELECT state, attempt, count(*) FROM {job} GROUP BY 1, 2").fetchall()
        if states != [("available", 0, self.jobs)]:
            raise WrongResult(f"{self.jobs} jobs should be available, but there are {states}")
        query = "SELECT EXTRACT(epoch FROM max(created_at) - min(created_at)) FROM {job}"
        return self.jobs / float(self.value(query))

    def check_mails(self, made: int) -> None:
        """Raise unless every job of a bulk enqueue is there and waits, and the enqueue has counted it."""
        there = self.value("SELECT count(*) FROM {job} WHERE state = 'available' AND kind = 'mail'")
        if not there == made == self.jobs:
            raise WrongResult(f"{self.jobs} jobs were enqueued, {made} said so and {there} are there")

    def check_probes(self, expected: int, started: int) -> None:
        """Raise unless every probe was started, and all jobs are completed, also those that warmed the pool up."""
        done = self.value("SELECT count(*) FROM {job} WHERE state = 'completed' AND attempt = 1")
        wanted = warmed(expected)
        if (started, done) != (expected, wanted):
            raise WrongResult(f"{wanted} jobs should be completed, {done} are; {started} of {expected} probes started")

    def _seconds(self) -> float:
        query = "SELECT EXTRACT(epoch FROM max(finalized_at) - min(attempted_at)) FROM {job} WHERE attempted_at >= %s"
        return float(self.value(query, self._began))

    def value(self, query: str, *parameters: object) -> Any:
        return self.execute(query, *parameters).fetchall()[0][0]

    def execute(self, query: str, *parameters: object) -> psycopg.Cursor[Any]:
        names = {name: sql.Identifier(self.schema, name) for name in ("job", "effect", "queue")}
        return self.conn.execute(sql.SQL(query).format(**names), parameters or None)


def configuration(conn: psycopg.Connection[Any]) -> str:
    """The settings and versions on which the figures depend."""
    names = ("server_version", "fsync", "synchronous_commit", "full_page_writes")
    up = conn.execute("SELECT clock_timestamp() - pg_catalog.pg_postmaster_start_time()").fetchall()[0][0]
    shown = {name: conn.execute("SELECT current_setting(%s)", [name]).fetchall()[0][0] for name in names}
    server = f"Postgres {shown.pop('server_version')}, " + ", ".join(f"{name} {value}" for name, value in shown.items())
    if up < timedelta(minutes=5):
        server += ", just started: for five minutes claims wait for the disk"
    libpq = ".".join(map(str, divmod(psycopg.pq.version(), 10_000)))
    client = f"psycopg {psycopg.__version__} ({psycopg.pq.__impl__}, libpq {libpq})"
    return (
        f"{server}\n{platform.python_implementation()} {platform.python_version()}, {client}, {os.cpu_count()} CPUs, "
        "shared with the server unless that is elsewhere"
    )


def progress(text: str) -> None:
    """Show the progress on a terminal; output to a file has the table alone."""
    if sys.stderr.isatty():
        print(f"\r{text:<70}\r", end="", file=sys.stderr, flush=True)


@contextmanager
def own_server(settings: Mapping[str, str] | None = None) -> Iterator[EmbeddedPostgres]:
    """An embedded server on which pgjobs works as it does long after the start."""
    with EmbeddedPostgres(settings=settings) as server:
        look_long_up(server.dsn)
        yield server


def look_long_up(dsn: str) -> None:
    """Make a server of our own say that it started an hour earlier.

    For five minutes after the start of a server claims wait for the disk; the benchmarks measure the steady state.
    """
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("SET allow_system_table_mods = on")
        conn.execute("ALTER FUNCTION pg_catalog.pg_postmaster_start_time() RENAME TO pg_postmaster_true_start_time")
        conn.execute(
            """CREATE FUNCTION pg_catalog.pg_postmaster_start_time() RETURNS timestamptz LANGUAGE sql STABLE
                RETURN pg_catalog.pg_postmaster_true_start_time() - interval '1 hour'"""
        )


@contextmanager
def database() -> Iterator[tuple[str, str]]:
    """A dsn, and the schema to work in."""
    given = database_url()
    if given is None:
        with own_server() as server:
            yield server.dsn, "pgjobs"
        return
    schema = f"pgjobs_bench_{token_hex(4)}"
    try:
        yield given, schema
    finally:
        with psycopg.connect(given, autocommit=True) as conn:
            conn.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))


@contextmanager
def table(dsn: str, schema: str, jobs: int) -> Iterator[tuple[Client, Table]]:
    """A client with its tables made, and the look from outside."""
    with Client(dsn, schema=schema) as client, psycopg.connect(dsn, autocommit=True) as conn:
        client.migrate()
        yield client, Table(conn, schema, jobs)
