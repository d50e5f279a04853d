"""How long a job waits on a system with nothing else to do."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from benchmarks import workload
from benchmarks.ground import Table, WrongResult
from benchmarks.workload import DEADLINE, Probe, probed
from pgjobs import Client, Job, WorkerPool

_LEAD = 1.5  # seconds between the enqueue of scheduled jobs and the first of their instants


@contextmanager
def _probed(dsn: str, table: Table, expected: int) -> Iterator[tuple[Client, list[tuple[float, datetime]]]]:
    """As `probed`, on an empty table; all jobs are completed at the end."""
    table.empty()
    table.settle()
    with probed(dsn, table.schema, expected) as (client, waits):
        yield client, waits
    table.check_probes(expected, len(waits))


def pickup(dsn: str, table: Table, probes: int) -> list[float]:
    """In ms, from just before the enqueue, which commits a transaction of its own, to the start of the handler."""
    table.empty()
    table.settle()
    waits = workload.pickup(dsn, table.schema, probes)
    table.check_probes(probes, len(waits))
    return waits


def scheduled(dsn: str, table: Table, probes: int) -> list[float]:
    """In ms, from the instant that a job is scheduled at to the start of its handler. The instants lie at random within
    some seconds."""
    with _probed(dsn, table, probes) as (client, waits):
        ahead = _ahead(table.conn)
        first = time.time() + _LEAD
        for _ in range(probes):
            at = first + random.uniform(0, probes / 25)
            instant = datetime.fromtimestamp(at, UTC) + timedelta(seconds=ahead)  # as the server's clock shows it
            client.enqueue(None, Probe(at), scheduled_at=instant)
    late = [1000 * wait for wait, _ in waits]
    if min(late) < -1:
        raise WrongResult(f"a job started {-min(late):.1f} ms before its time")
    return late


def same_instant(dsn: str, table: Table, threads: int, jobs: int) -> list[float]:
    """In ms, from the instant that all these jobs are scheduled at to the start of each."""
    late: list[float] = []
    over = threading.Event()
    at = 0.0

    def pick_up(tx: psycopg.Connection[Any], job: Job[Any]) -> None:
        late.append(1000 * (time.time() - at))
        if len(late) >= jobs:
            over.set()

    table.empty()
    table.settle()
    with Client(dsn, schema=table.schema) as client:
        pool = WorkerPool(client, {"noop": pick_up}, queues={"default": threads})
        at = time.time() + 5
        instant = datetime.fromtimestamp(at, UTC) + timedelta(seconds=_ahead(table.conn))
        table.fill(jobs, state="'scheduled'", scheduled_at=f"'{instant}'")
        with pool:
            over.wait(DEADLINE)
    if len(late) != jobs or min(late) < -1:
        raise WrongResult(
            f"{len(late)} starts for {jobs} jobs, the first {min(late, default=0):.1f} ms after the instant"
        )
    table.rate_of(jobs)
    return late


def _ahead(conn: psycopg.Connection[Any]) -> float:
    """By how many seconds the server's clock is ahead of ours: as the quickest of some answers says."""
    answers: list[tuple[float, float]] = []
    for _ in range(20):
        asked = time.time()
        theirs = conn.execute("SELECT EXTRACT(epoch FROM clock_timestamp())::float8").fetchall()[0][0]
        answered = time.time()
        answers.append((answered - asked, theirs - (asked + answered) / 2))
    return min(answers)[1]
