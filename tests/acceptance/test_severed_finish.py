"""An attempt whose connection was shut down is finished once, whichever of two threads does it: the one that ran its
handler, or the one that reports it while the handler may still run. The log tells it once, too."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
import pytest

from pgjobs import Client, Handler, Interrupted, Job, JobState, QueueSettings, WorkerPool, constant
from pgjobs.execution.attempt import GracePeriods
from tests.conftest import Connect
from tests.samples import HOUR, SECOND, Thing
from tests.waiting import wait_until

AT_LARGE = 60.0  # seconds: the thread of a handler is not given up during a test
JOBS = 6

End = Callable[[Any, Job[Any]], None]


def until(over: Callable[[], object]) -> None:
    """Wait as a handler does that resists its interrupt."""
    with suppress(Interrupted):
        wait_until(over, 30)
        return
    wait_until(over, 30)


@pytest.fixture(params=["returns", "raises"])
def end(request: pytest.FixtureRequest) -> End:
    def end(tx: Any, job: Job[Any]) -> None:
        if request.param == "raises":
            raise ValueError("no such account")

    return end


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "pgjobs")
    return caplog


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    grace = GracePeriods(interrupted=0.05, severed=0.15, stuck=AT_LARGE)
    monkeypatch.setattr("pgjobs.execution.attempt.AFTER_TIMEOUT", grace)
    monkeypatch.setattr("pgjobs.worker_pool.AT_STOP", GracePeriods(interrupted=0.05, severed=0.15, stuck=15))


def lines_of(log: pytest.LogCaptureFixture, job: Job[Any]) -> list[str]:
    """What the log says of this job at INFO and above."""
    return [
        record.getMessage()
        for record in log.records
        if record.levelno >= logging.INFO and getattr(record, "job_id", None) == job.id
    ]


@pytest.fixture(params=["transactional", "detached", "batch"])
def settings(request: pytest.FixtureRequest) -> tuple[bool, QueueSettings]:
    """Whether handlers are detached, and the settings of their queue."""
    batch = request.param == "batch"
    return request.param == "detached", QueueSettings(threads=JOBS, batch_size=2 if batch else 1)


@pytest.fixture
def reads(connect: Connect) -> Callable[[Client, Job[Any]], JobState]:
    """The state of a job, read by any thread, each time on a connection of its own: a handler is interrupted in the
    midst of it."""

    def read(client: Client, job: Job[Any]) -> JobState:
        with connect(autocommit=True) as conn:
            row = conn.execute(f'SELECT state FROM "{client.schema}".job WHERE id = %s', [job.id]).fetchone()
        assert row is not None
        return JobState(row[0])

    return read


@pytest.mark.parametrize("why", ["stop", "timeout"])
def test_a_handler_that_ends_after_its_outcome_was_written_is_told_of_once(
    *,
    client: Client,
    end: End,
    settings: tuple[bool, QueueSettings],
    why: str,
    reads: Callable[[Client, Job[Any]], JobState],
    log: pytest.LogCaptureFixture,
) -> None:
    detached, queue = settings
    entered = threading.Semaphore(0)

    def handler(tx: Any, job: Job[Any]) -> None:
        if tx is not None:
            tx.execute("SELECT 1")
        entered.release()
        until(lambda: reads(client, job) is not JobState.RUNNING)
        end(tx, job)

    pool = WorkerPool(
        client,
        {Thing: Handler(handler, detached=detached)},
        queues={"default": queue},
        backoff=constant(HOUR),
        timeout=None if why == "stop" else SECOND / 5,
        stop_timeout=30 * SECOND if why == "timeout" else SECOND / 5,
    )
    job = client.enqueue(None, Thing())
    with pool:
        assert entered.acquire(timeout=10)
        if why == "timeout":
            wait_until(lambda: reads(client, job) is JobState.RETRYABLE)
    now = client.get(job.id)
    assert now is not None
    if why == "stop":
        assert (now.state, now.attempt, now.errors) == (JobState.AVAILABLE, 0, ())
    else:
        assert (now.state, now.attempt, len(now.errors)) == (JobState.RETRYABLE, 1, 1)
    (line,) = lines_of(log, job)
    assert ("cut off, it does not count" if why == "stop" else "failed, next attempt") in line
    assert "is not written" not in log.text


@pytest.mark.one_by_one("the timeouts are those of single jobs")
def test_handlers_that_end_at_the_moment_when_they_are_severed_are_told_of_once(
    client: Client, end: End, log: pytest.LogCaptureFixture
) -> None:
    """Both threads write at the same time, and either may be the first."""
    entered = threading.Semaphore(0)

    def handler(tx: Any, job: Job[Any]) -> None:
        def is_severed() -> bool:
            try:
                tx.execute("SELECT 1")
            except psycopg.errors.QueryCanceled:
                tx.rollback()
            except psycopg.OperationalError:
                return True
            return False

        entered.release()
        until(is_severed)
        end(tx, job)

    pool = WorkerPool(
        client,
        {Thing: handler},
        queues={"default": JOBS},
        timeout=None,
        stop_timeout=SECOND / 5,
        backoff=constant(HOUR),
    )
    jobs = [client.enqueue(None, Thing()) for _ in range(JOBS)]
    with pool:
        assert all(entered.acquire(timeout=10) for _ in jobs)
    for job in jobs:
        now = client.get(job.id)
        assert now is not None
        assert (now.state, now.attempt, now.errors) == (JobState.AVAILABLE, 0, ())
        (line,) = lines_of(log, job)
        assert "cut off, it does not count" in line
    assert "is not written" not in log.text


@pytest.mark.one_by_one("the timeouts are those of single jobs")
def test_a_stop_waits_until_the_outcome_of_a_handler_that_it_leaves_behind_is_written(
    client: Client, connect: Connect, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    """The process may end next, and the thread that writes it with the process."""
    monkeypatch.setattr("pgjobs.worker_pool.AT_STOP", GracePeriods(interrupted=0.05, severed=0.15, stuck=0.3))
    monkeypatch.setattr("pgjobs.worker_pool._REPORTS_WITHIN", 30.0)
    entered, release = threading.Event(), threading.Event()

    def deaf(tx: Any, job: Job[Any]) -> None:
        entered.set()
        until(release.is_set)

    keeper = connect(autocommit=True)
    keeper.execute(f"""
        CREATE FUNCTION "{client.schema}".slow() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN PERFORM pg_catalog.pg_advisory_xact_lock(1600); RETURN new; END';
        CREATE TRIGGER slow AFTER UPDATE ON "{client.schema}".job FOR EACH ROW WHEN (new.state = 'available')
            EXECUTE FUNCTION "{client.schema}".slow()
    """)
    keeper.execute("SELECT pg_catalog.pg_advisory_lock(1600)")
    pool = WorkerPool(client, {Thing: deaf}, queues={"default": 1}, stop_timeout=SECOND / 10).start()
    job = client.enqueue(None, Thing())
    assert entered.wait(10)
    stop = threading.Thread(target=pool.stop)
    stop.start()
    wait_until(lambda: pool.any_stuck)
    keeper.execute("SELECT pg_catalog.pg_advisory_unlock(1600)")
    stop.join(10)
    now = client.get(job.id)
    release.set()
    assert now is not None
    assert (now.state, now.attempt) == (JobState.AVAILABLE, 0)
    wait_until(lambda: f"no longer stuck in job {job.id} (thing)" in log.text)
    assert "has taken its place" not in log.text, "a stop starts no other thread"
