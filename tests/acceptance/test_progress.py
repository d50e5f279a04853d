"""Progress: seen while a job runs, and only then, whatever its transaction, its attempt or its process comes to."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql as composing

from pgjobs import Client, Handler, Job, JobFilter, JobState, NotRunning, Progress, QueueSettings, WorkerPool, constant
from pgjobs.maintenance.duties import Maintenance
from pgjobs.maintenance.queries import MaintenanceQueries
from tests.conftest import Connect
from tests.samples import Thing, Tx
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
RUNNING = JobFilter(states=["running"])
Rows = Callable[[], list[tuple[Any, ...]]]


@pytest.fixture
def let_go() -> Iterator[threading.Event]:
    """Lets the handlers end."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def rows(client: Client, connect: Connect) -> Rows:
    """The rows of the table, without their tokens and times."""
    conn = connect(autocommit=True)
    query = composing.SQL("SELECT job_id, done, total, note FROM {} ORDER BY job_id, done").format(
        composing.Identifier(client.schema, "job_progress")
    )
    return lambda: conn.execute(query).fetchall()


def progress(client: Client, job: Job[Any]) -> Progress | None:
    found = client.get(job.id)
    assert found is not None
    return found.progress


def said(client: Client, job: Job[Any]) -> tuple[float, float | None, str | None] | None:
    found = progress(client, job)
    return None if found is None else (found.done, found.total, found.note)


@pytest.mark.parametrize("detached", [False, True], ids=["transactional", "detached"])
def test_the_progress_of_a_job_is_seen_while_it_runs(
    client: Client, rows: Rows, let_go: threading.Event, *, detached: bool
) -> None:
    steps = threading.Semaphore(0)

    def handler(tx: Tx | None, job: Job[Thing]) -> None:
        for n in range(3):
            job.set_progress(n + 1, total=4, note=f"page {n + 1}")
            assert steps.acquire(timeout=20)
        job.set_progress(3.5)
        assert let_go.wait(20)
        job.set_progress(4, total=4)

    job = client.enqueue(None, Thing())
    with WorkerPool(client, {Thing: Handler(handler, detached=detached)}):
        for n in (1, 2, 3):
            wait_until(lambda n=n: said(client, job) == (n, 4, f"page {n}"))  # type: ignore[misc]
            steps.release()
        wait_until(lambda: said(client, job) == (3.5, None, None))
        found = progress(client, job)
        assert found is not None
        assert found.fraction is None
        assert abs(datetime.now(UTC) - found.updated_at) < timedelta(minutes=1)
        assert client.list_jobs(RUNNING, order="time").jobs[0].progress == found
        assert client.list_jobs().jobs[0].progress == found
        let_go.set()
        assert client.wait(job, timeout=timedelta(seconds=20)).progress is None
        assert progress(client, job) is None, "at once, with the end of the attempt"
        wait_until(lambda: rows() == [])


def test_each_of_many_jobs_has_its_own(client: Client, let_go: threading.Event) -> None:
    def handler(tx: Tx, job: Job[Thing]) -> None:
        teller = threading.Thread(target=lambda: job.set_progress(job.args.n, total=30))
        teller.start()
        teller.join()
        assert let_go.wait(20)

    jobs = client.enqueue_many(None, [Thing(n) for n in range(30)])
    with WorkerPool(client, {Thing: handler}, queues={"default": 30}, batch_size=1):
        wait_until(lambda: [said(client, job) for job in jobs] == [(n, 30, None) for n in range(30)], timeout=20)
        assert [job.progress and job.progress.done for job in client.list_jobs().jobs] == list(range(30))
        let_go.set()


def test_the_jobs_of_a_batch_are_told_apart(client: Client, rows: Rows, let_go: threading.Event) -> None:
    """They have one token."""
    first_may_end = threading.Event()

    def handler(tx: Tx, job: Job[Thing]) -> None:
        job.set_progress(job.args.n, note="of a batch")
        assert (first_may_end, let_go)[job.args.n - 1].wait(20)

    first, second = client.enqueue_many(None, [Thing(1), Thing(2)])
    queues = {"default": QueueSettings(1, batch_size=10, batch_time=timedelta(minutes=1))}
    with WorkerPool(client, {Thing: handler}, queues=queues):
        wait_until(lambda: said(client, first) == (1, None, "of a batch"))
        assert said(client, second) is None
        first_may_end.set()
        wait_until(lambda: said(client, second) == (2, None, "of a batch"))
        wait_until(lambda: rows() == [(second.id, 2, None, "of a batch")])
        assert progress(client, first) is None
        let_go.set()
    assert client.count().by_state[JobState.COMPLETED] == 2
    assert rows() == []


def test_it_does_not_depend_on_what_the_transaction_comes_to(
    client: Client, rows: Rows, let_go: threading.Event
) -> None:
    """It is the exception to the rule that what a handler leaves appears with the end of its attempt."""

    def handler(tx: Tx, job: Job[Thing]) -> None:
        if job.attempt == 2:
            assert let_go.wait(20)
            return
        try:
            with tx.transaction():
                job.set_progress(1, note="in a block that is rolled back")
                wait_until(lambda: said(client, job) == (1, None, "in a block that is rolled back"))
                raise KeyError("rolled back")
        except KeyError:
            job.set_progress(2)
        wait_until(lambda: said(client, job) == (2, None, None))
        tx.execute("SELECT 1 / 0")

    job = client.enqueue(None, Thing())
    with WorkerPool(client, {Thing: handler}, backoff=constant(timedelta(0))):
        wait_until(lambda: (found := client.get(job.id)) and (found.state, found.attempt) == (JobState.RUNNING, 2))
        assert progress(client, job) is None, "the second attempt has said nothing"
        wait_until(lambda: rows() == [])
        let_go.set()
        ended = client.wait(job, timeout=timedelta(seconds=20))
    assert [error.error for error in ended.errors] == ["division by zero [22012]"]


WORKER = """
import sys, threading
from pgjobs import Client, WorkerPool

def handler(tx, job):
    job.set_progress(5, total=10, note="half")
    threading.Event().wait(60)

WorkerPool(Client(sys.argv[1], schema=sys.argv[2]), {"thing": handler}).run()
"""


def test_a_killed_process_leaves_a_row_that_nobody_takes_for_the_next_attempt(
    client: Client, database: str, rows: Rows, let_go: threading.Event, connect: Connect
) -> None:
    seen: list[Progress | None] = []
    job: Job[Any] = client.enqueue(None, {}, kind="thing")
    with subprocess.Popen([sys.executable, "-c", WORKER, database, client.schema], cwd=ROOT) as process:
        try:
            wait_until(lambda: said(client, job) == (5, 10, "half"), timeout=20)
        finally:
            process.kill()

    def handler(tx: Tx, job: Job[Any]) -> None:
        assert job.attempt == 2
        seen.append(progress(client, job))
        job.set_progress(1)
        assert let_go.wait(20)

    with WorkerPool(client, {"thing": handler}):
        wait_until(lambda: said(client, job) == (1, None, None), timeout=30)
        assert seen == [None]
        assert rows() == [(job.id, 1, None, None), (job.id, 5, 10, "half")]
        prune(client, connect(autocommit=True))
        assert rows() == [(job.id, 1, None, None)], "the row of the attempt that runs stays"
        let_go.set()


def prune(client: Client, conn: psycopg.Connection[Any]) -> None:
    """Do the duty that removes the rows of vanished processes, which is due every 30 seconds."""
    conn.execute(composing.SQL("UPDATE {} SET next_run_at = now() WHERE duty = 'workers'").format(
        composing.Identifier(client.schema, "maintenance")))  # fmt: skip
    duties = Maintenance(client.schema, keep={})
    duties.do(conn, "workers")
    remaining = MaintenanceQueries(client.schema).begin_duty(conn, "workers")
    assert remaining is not None
    assert remaining > timedelta(seconds=20)


def test_a_pool_that_stops_removes_its_rows(client: Client, rows: Rows) -> None:
    def handler(tx: Tx, job: Job[Thing]) -> None:
        job.set_progress(1)
        wait_until(lambda: job.cancelled, timeout=20)

    job = client.enqueue(None, Thing())
    pool = WorkerPool(client, {Thing: handler}).start()
    wait_until(lambda: said(client, job) == (1, None, None))
    pool.stop(timedelta(0))
    assert rows() == []
    assert progress(client, job) is None


def test_without_threads_of_a_pool_nothing_is_written(client: Client, rows: Rows) -> None:
    kept: list[Job[Any]] = []

    def handler(tx: Tx, job: Job[Thing]) -> None:
        job.set_progress(1, total=2)
        kept.append(job)

    client.enqueue_many(None, [Thing(), Thing()])
    assert WorkerPool(client, {Thing: handler}).work_one()
    with client.lock_job() as (_, job):
        assert job is not None
        job.set_progress(1, total=2)
        assert progress(client, job) is None
    assert rows() == []
    with pytest.raises(NotRunning):
        kept[0].set_progress(2)
