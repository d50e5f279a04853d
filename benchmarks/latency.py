"""How long a job waits on a system with nothing else to do."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from benchmarks.ground import DEADLINE, Table, WrongResult, steady
from pgjobs import Client, Job, WorkerPool

_THREADS = 4
_LEAD = 1.5  # seconds between the enqueue of scheduled jobs and the first of their instants


@dataclass
class Probe:
    sent: float


@contextmanager
def _probed(dsn: str, table: Table, expected: int) -> Iterator[tuple[Client, list[tuple[float, datetime]]]]:
    """A client to enqueue with, beside a pool of a client of its own that works; and, once the block is over and all
    are done, the wait of each job, with its instant. A wait is from `Probe.sent`, on the clock of `time.time`."""
    waits: list[tuple[float, datetime]] = []
    over = threading.Event()

    def pick_up(tx: psycopg.Connection[Any], job: Job[Probe]) -> None:
        waits.append((time.time() - job.args.sent, job.scheduled_at))
        if len(waits) >= expected:
            over.set()

    table.empty()
    table.settle()
    with Client(dsn, schema=table.schema) as working, Client(dsn, schema=table.schema) as client:
        with steady(WorkerPool(working, {Probe: pick_up}, queues={"default": _THREADS})):
            for _ in range(3):  # the first need connections
                client.enqueue(None, Probe(time.time()))
                time.sleep(0.3)
            expected += len(waits)
            warm = len(waits)
            over.clear()
            yield client, waits
            over.wait(DEADLINE)
        done = table.value("SELECT count(*) FROM {job} WHERE state = 'completed' AND attempt = 1")
        if not len(waits) == done == expected or warm != 3:
            raise WrongResult(
                f"{expected} jobs should be completed, but {len(waits)} were started and {done} completed"
            )
        del waits[:warm]


def pickup(dsn: str, table: Table, probes: int) -> list[float]:
    """In ms, from just before the enqueue, which commits a transaction of its own, to the start of the handler."""
    with _probed(dsn, table, probes) as (client, waits):
        for _ in range(probes):
            time.sleep(random.uniform(0.02, 0.06))
            client.enqueue(None, Probe(time.time()))
    return [1000 * wait for wait, _ in waits]


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
        with steady(pool):
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
