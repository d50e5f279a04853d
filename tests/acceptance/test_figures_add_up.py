"""Under load, over two processes, in batches and detached: the metrics of the health port, the figures of the database
and the table of jobs agree. What a killed process had not told yet is all that is lost."""

from __future__ import annotations

import os
import re
import signal
import urllib.request
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest

from pgjobs import JobFilter, JobState, NewJob
from tests.acceptance.work_command import SOON, Place, Work
from tests.scrape import scraped
from tests.waiting import wait_until

# Of 12 jobs two fail first, one snoozes first, one is discarded, one cancelled, one fails for good and one is cancelled
# while it waits to be retried. `started` has each start of a handler, whatever becomes of its transaction.
APP = """
import os, signal, threading
from datetime import timedelta
import psycopg
from pgjobs import Cancel, Client, Discard, Handler, QueueSettings, Snooze, WorkerPool, constant
from pgjobs.workers import figures_writer

figures_writer.WRITE_EVERY = 0.5
schema = os.environ["SCHEMA"]
client = Client(os.environ["DATABASE_URL"], schema=schema)
beside = threading.local()

def note(job):
    if not hasattr(beside, "conn"):
        beside.conn = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)
    beside.conn.execute(f"INSERT INTO {schema}.start VALUES (%s, %s, %s)", [job.id, job.attempt, os.getpid()])

def run(tx, job):
    note(job)
    match job.args["n"] % 12:
        case 0 | 1 if not job.errors:
            raise ValueError("it fails once")
        case 2 if "snoozes" not in job.metadata:
            raise Snooze(timedelta(0))
        case 3:
            raise Discard("hopeless")
        case 4:
            raise Cancel("not wanted")
        case 5:
            raise ValueError("it fails at each attempt")

def complete(tx, job):
    note(job)
    if job.args["n"] % 12 == 1 and not job.errors:
        raise ValueError("it fails once")
    with client.pool.connection() as tx:
        job.complete(tx)

def kill(tx, job):
    note(job)
    if job.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)

pool = WorkerPool(
    client,
    {"run": run, "complete": Handler(complete, detached=True), "kill": kill},
    queues={"default": 2, "batches": QueueSettings(threads=2, batch_size=20), "detached": 2},
    backoff=constant(timedelta(0)),
)
"""
OUTCOMES = ("completed", "failed", "discarded", "cancelled", "snoozed", "interrupted")


@pytest.fixture
def work_place(place: Place) -> Place:
    place.write(APP)
    return place


def of_the_table(place: Place) -> dict[str, int]:
    """What became of the attempts, by the rows of the jobs: their states, errors and snoozes."""
    states = place.client.count().by_state
    ((errors, snoozes, not_started),) = place.query(
        "SELECT sum(jsonb_array_length(errors)), COALESCE(sum((metadata ->> 'snoozes')::int), 0), "
        "count(*) FILTER (WHERE state = 'cancelled' AND attempt = 0) FROM {schema}.job"
    )
    cancelled = states[JobState.CANCELLED] - not_started
    return {
        "completed": states[JobState.COMPLETED],
        "failed": errors - cancelled,
        "discarded": states[JobState.DISCARDED],
        "cancelled": cancelled,
        "snoozed": snoozes,
        "interrupted": 0,
    }


def of_the_figures(place: Place) -> dict[str, int]:
    sums: Counter[str] = Counter({outcome: 0 for outcome in OUTCOMES})
    for each in place.client.stats(by=[]):
        sums.update({outcome: getattr(each, outcome) for outcome in OUTCOMES})
    return dict(sums)


def of_the_metrics(work: Work) -> dict[str, int]:
    sums: Counter[str] = Counter({outcome: 0 for outcome in OUTCOMES})
    for (name, labels), value in scrape(work).items():
        if name == "pgjobs_attempts_total":
            sums[dict(labels)["outcome"]] += int(value)
    sums["failed"] = sums["discarded"] + sums.pop("retried", 0)
    return dict(sums)


def scrape(work: Work) -> dict[Any, float]:
    work.wait_for("health: http://127.0.0.1:")
    (port,) = re.findall(r"health: http://127\.0\.0\.1:(\d+)/livez", work.log)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return scraped(answer.read().decode())


def enqueue(place: Place, kind: str, queue: str, jobs: int) -> None:
    some = [NewJob({"n": n}, kind=kind, queue=queue, max_attempts=3) for n in range(jobs)]
    place.client.enqueue_many(None, some, returning=False)


def all_ended(place: Place) -> bool:
    return place.client.count(JobFilter(states=[state for state in JobState if not state.final])).total == 0


def test_metrics_figures_and_the_table_agree(work_place: Place) -> None:
    place = work_place
    waiting = place.client.enqueue(None, {"n": 0}, kind="run", delay=timedelta(hours=1))
    place.client.cancel(waiting.id)
    for kind, queue, jobs in (("run", "default", 600), ("run", "batches", 1200), ("complete", "detached", 240)):
        enqueue(place, kind, queue, jobs)
    with place.work("--processes", "2", "--health", "127.0.0.1:0") as work:
        first, second = work.wait_ready(2)
        wait_until(lambda: all_ended(place), 120)
        wait_until(lambda: of_the_metrics(work) == of_the_table(place), SOON)
        wait_until(lambda: of_the_figures(place) == of_the_table(place), SOON)
        assert {pid for (pid,) in place.query("SELECT DISTINCT pid FROM {schema}.start")} == {first, second}
        assert all(of_the_table(place)[outcome] > 50 for outcome in OUTCOMES if outcome != "interrupted")

        place.client.enqueue(None, {"n": 6}, kind="kill")  # at a moment when all is told
        wait_until(lambda: all_ended(place), 60)
        wait_until(lambda: of_the_metrics(work) == of_the_table(place), SOON)
        wait_until(lambda: of_the_figures(place) == of_the_table(place), SOON)
        rescued = sum(value for (name, _), value in scrape(work).items() if name == "pgjobs_rescued_total")
        assert rescued == 1, "the attempt of the process that killed itself"

        work.wait_for(" is ready after ", times=3)
        killed = work.pids()[0]
        ((before,),) = place.query("SELECT max(id) FROM {schema}.job")
        started = "SELECT job FROM {schema}.start WHERE pid = %s AND job > %s"
        enqueue(place, "run", "default", 240)
        wait_until(lambda: len(place.query(started, killed, before)) > 20 or all_ended(place), 60)
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: all_ended(place), 60)
        assert work.stop() == 0
    table, figures = of_the_table(place), of_the_figures(place)
    figures["failed"] += figures.pop("interrupted")  # the kill was not held against a job, but left an error
    assert all(figures[outcome] <= table[outcome] for outcome in figures)
    missing = sum(table[outcome] - figures[outcome] for outcome in ("completed", "failed", "cancelled", "snoozed"))
    assert missing <= len(place.query(started, killed, before)), "what others have done is counted"
