"""The figures of running worker pools: they agree with the table of jobs, over threads, batches, stops and kills."""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from psycopg import sql

from pgjobs import (
    Cancel,
    Client,
    Discard,
    Durations,
    Figures,
    Handler,
    Interrupted,
    Job,
    JobFilter,
    JobState,
    NewJob,
    QueueSettings,
    Snooze,
    WorkerPool,
    constant,
)
from pgjobs.execution.attempt import GracePeriods
from pgjobs.observe.figures import FigureKey
from tests.samples import Thing, Tx
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
NO_BACKOFF = constant(timedelta(0))
SOON = timedelta(seconds=60)

WORKER = """
import sys
from datetime import timedelta
from pgjobs import Client, WorkerPool, constant
from pgjobs.workers import figures_writer
from tests import modes

modes.install()
figures_writer.WRITE_EVERY = float(sys.argv[3])
client = Client(sys.argv[1], schema=sys.argv[2])
WorkerPool(client, {"job": lambda tx, job: None}, queues={"default": 4}).run()
"""


# Runs two jobs in the parent, and the others in a child that was forked from it.
FORKS = """
import os, sys
from datetime import timedelta
from pgjobs import Client, WorkerPool
from tests import modes

modes.install()
client = Client(sys.argv[1], schema=sys.argv[2])
pool = WorkerPool(client, {"job": lambda tx, job: None})
assert pool.work_one() and pool.work_one()
if os.fork() == 0:
    with pool:
        for job in client.list_jobs().jobs:
            client.wait(job, timeout=timedelta(seconds=60))
    counted = pool.figures.snapshot().values()
    os._exit(0 if [tally.attempts for tally in counted] == [3] else 1)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
assert [tally.attempts for tally in pool.figures.snapshot().values()] == [2]
"""

_NONE = Durations()
NOTHING = Figures(
    at=datetime.min,
    queue=None,
    kind=None,
    completed=0,
    failed=0,
    discarded=0,
    cancelled=0,
    snoozed=0,
    interrupted=0,
    run=_NONE,
    wait=_NONE,
)


def all_of(client: Client) -> Figures:
    """The figures of all queues and kinds."""
    return next(iter(client.stats(by=[])), NOTHING)


def handler(tx: Tx, job: Job[Thing]) -> None:
    """Most jobs complete; of a hundred, one fails first, one snoozes first, one is cancelled and one discarded."""
    match job.args.n % 100:
        case 0 if not job.errors:
            raise ValueError("it fails once")
        case 1 if "snoozes" not in job.metadata:
            raise Snooze(timedelta(0))
        case 2:
            raise Cancel("not wanted")
        case 3:
            raise Discard("hopeless")


@pytest.mark.parametrize(("jobs", "batch_size"), [(10_000, 50), (2000, 1)], ids=["batches", "one by one"])
def test_the_figures_agree_with_the_table(client: Client, jobs: int, batch_size: int) -> None:
    client.enqueue_many(None, [Thing(n) for n in range(jobs)], returning=False)
    pool = WorkerPool(client, {Thing: handler}, queues={"default": 4}, batch_size=batch_size, backoff=NO_BACKOFF)
    each, unfinished = jobs // 100, JobFilter(states=[state for state in JobState if not state.final])
    with pool:
        wait_until(lambda: client.count(unfinished).total == 0, timeout=90)
    figures = all_of(client)
    states = client.count().by_state
    assert figures.completed == states[JobState.COMPLETED] == jobs - 2 * each
    assert figures.cancelled == states[JobState.CANCELLED] == each
    assert figures.discarded == states[JobState.DISCARDED] == each
    assert (figures.failed, figures.snoozed, figures.interrupted) == (2 * each, each, 0)
    assert figures.run.count == figures.wait.count == jobs + 2 * each
    with client.pool.connection() as tx:
        query = "SELECT sum(jsonb_array_length(errors)) FROM {}"
        (errors,) = tx.execute(sql.SQL(query).format(sql.Identifier(client.schema, "job"))).fetchone() or (None,)
    assert errors == figures.failed + figures.cancelled
    snapshot = pool.figures.snapshot()
    assert sum(tally.attempts for tally in snapshot.values()) == jobs + 2 * each
    assert snapshot[FigureKey("default", "thing", "completed")].attempts == figures.completed


def test_a_job_that_waited_and_ran_long_is_seen_in_the_durations(client: Client) -> None:
    def slow(tx: Tx, job: Job[Thing]) -> None:
        tx.execute("SELECT pg_sleep(0.2)")

    job = client.enqueue(None, Thing())
    with client.pool.connection() as tx:
        query = "UPDATE {} SET scheduled_at = now() - interval '50 s'"
        tx.execute(sql.SQL(query).format(sql.Identifier(client.schema, "job")))
    with WorkerPool(client, {Thing: slow}):
        client.wait(job, timeout=SOON)
    figures = all_of(client)
    assert figures.wait.mean is not None
    assert figures.run.p99 is not None
    assert timedelta(seconds=50) <= figures.wait.mean < timedelta(seconds=110)
    assert timedelta(seconds=0.2 / 1.12) <= figures.run.p99 < timedelta(seconds=60)


def test_a_stop_that_cuts_a_handler_off_is_an_interruption(client: Client) -> None:
    def waits(tx: Tx, job: Job[Thing]) -> None:
        wait_until(lambda: job.cancelled, timeout=60)
        raise ValueError("it gives up")

    client.enqueue(None, Thing())
    running = JobFilter(states=["running"])
    with WorkerPool(client, {Thing: waits}, queues={"default": 1}, stop_timeout=timedelta(0)):
        wait_until(lambda: client.count(running).total == 1)
    figures = all_of(client)
    assert (figures.interrupted, figures.completed, figures.failed) == (1, 0, 0)


def test_a_pool_that_is_started_again_counts_on(client: Client) -> None:
    pool = WorkerPool(client, {Thing: handler}, queues={"default": 1})
    for n in (1, 2):
        job = client.enqueue(None, Thing(50))
        with pool:
            client.wait(job, timeout=SOON)
        assert all_of(client).completed == n


def test_a_forked_child_counts_from_zero(client: Client, database: str) -> None:
    client.enqueue_many(None, [NewJob({}, kind="job") for _ in range(5)])
    subprocess.run([sys.executable, "-c", FORKS, database, client.schema], cwd=ROOT, check=True, timeout=60)
    assert all_of(client).completed == 3


def test_jobs_of_unknown_kinds_are_counted_together_when_there_are_many(client: Client) -> None:
    for n in range(40):
        client.enqueue(None, {}, kind=f"made-up-{n}", max_attempts=1)
    with WorkerPool(client, {Thing: handler}):
        wait_until(lambda: client.count(JobFilter(states=["discarded"])).total == 40)
    assert all_of(client).discarded == 40
    found = {each.kind: each.discarded for each in client.stats(by=["kind"])}
    assert len(found) == 21
    assert found["(others)"] == 20


@pytest.mark.parametrize(("every", "lost"), [(0.2, False), (3600.0, True)], ids=["written", "not written yet"])
def test_a_killed_process_loses_what_it_has_not_written(
    client: Client, database: str, every: float, *, lost: bool
) -> None:
    jobs = client.enqueue_many(None, [NewJob({}, kind="job") for _ in range(50)])
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, database, client.schema, str(every)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    try:
        for job in jobs:
            client.wait(job, timeout=SOON)
        if not lost:
            wait_until(lambda: all_of(client).completed == 50, timeout=30)
    finally:
        process.kill()
        process.wait()
    assert all_of(client).completed == (0 if lost else 50)

    more = client.enqueue_many(None, [NewJob({}, kind="job") for _ in range(7)])
    with WorkerPool(client, {"job": lambda tx, job: None}):
        for job in more:
            client.wait(job, timeout=SOON)
    assert all_of(client).completed == (7 if lost else 57)


def test_the_attempt_of_a_vanished_worker_is_counted_by_the_process_that_rescues(client: Client) -> None:
    rescued = client.enqueue(None, Thing(50))
    with client.pool.connection() as tx:
        query = (
            "UPDATE {} SET state = 'running', attempt = 1, attempted_at = now() - interval '1 minute', "
            "token = gen_random_uuid()"
        )
        tx.execute(sql.SQL(query).format(sql.Identifier(client.schema, "job")))
    with WorkerPool(client, {Thing: handler}):
        client.wait(rescued, timeout=SOON)
    figures = all_of(client)
    assert (figures.completed, figures.failed, figures.discarded) == (1, 1, 0)
    assert figures.run.count == 1, "nobody knows how long it ran"


@pytest.mark.parametrize("how", ["transactional", "detached", "batch"])
def test_an_attempt_that_was_cut_off_has_run_until_then(
    client: Client, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """It had run for 0 ms, since its handler had not come back."""
    monkeypatch.setattr("pgjobs.execution.attempt.AFTER_TIMEOUT", GracePeriods(0.05, 0.15, 60.0))
    written = threading.Event()

    def resists(tx: Tx, job: Job[Thing]) -> None:
        while not written.is_set():
            with suppress(Interrupted):
                written.wait(60)

    pool = WorkerPool(
        client,
        {Thing: Handler(resists, detached=how == "detached")},
        queues={"default": QueueSettings(threads=1, batch_size=2 if how == "batch" else 1)},
        timeout=timedelta(seconds=0.3),
        backoff=constant(SOON),
    )
    client.enqueue(None, Thing())
    with pool:
        wait_until(lambda: client.count(JobFilter(states=["retryable"])).total == 1, 30)
        wait_until(pool.figures.snapshot)
        written.set()
    figures = all_of(client)
    assert (figures.failed, figures.run.count) == (1, 1)
    assert figures.run.mean is not None
    assert timedelta(seconds=0.45) <= figures.run.mean < SOON
