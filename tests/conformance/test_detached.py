"""Detached handlers: they hold neither transaction nor connection, a lease keeps their job, and `job.complete(tx)`
completes it in a transaction of theirs."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg_pool import ConnectionPool

from pgjobs import (
    AttemptLost,
    Cancel,
    Client,
    Discard,
    Handler,
    InvalidSetting,
    InvalidTransaction,
    Job,
    JobState,
    NotRunning,
    RetryAfter,
    Snooze,
    WorkerPool,
    constant,
)
from pgjobs.embedded import EmbeddedPostgres
from pgjobs.execution.attempt import GracePeriods
from pgjobs.maintenance.duties import Maintenance
from tests import inside
from tests.conformance.conftest import Rows, Stored
from tests.samples import SECOND, Tx
from tests.waiting import wait_until

Function = Callable[[None, Job[Any]], object]
ROOT = Path(__file__).parents[2]
LATER = constant(timedelta(hours=1))
QUICK = GracePeriods(interrupted=0.2, severed=0.4, stuck=0.6)  # the same steps as by default, sooner


def pool_of(client: Client, function: Function, **settings: Any) -> WorkerPool:
    handler = Handler(function, detached=True)
    return WorkerPool(client, {"long": handler}, **{"queues": {"default": 1}, "backoff": LATER, **settings})


def enqueue(client: Client, **options: Any) -> Job[Any]:
    args: dict[str, Any] = {}
    return client.enqueue(None, args, kind="long", **options)


@pytest.fixture
def run(client: Client, stored: Stored) -> Callable[..., Job[Any]]:
    """Runs one job with this detached handler; the job as it is then."""

    def work(function: Function, **options: Any) -> Job[Any]:
        job = enqueue(client, **options)
        assert pool_of(client, function).work_one()
        return stored(job)

    return work


Run = Callable[..., Job[Any]]


class Busy:
    """A detached handler at work, until it is let go."""

    def __init__(self) -> None:
        self.started, self.go, self.ended = threading.Event(), threading.Event(), threading.Event()
        self.job: Job[Any] | None = None

    def __call__(self, tx: None, job: Job[Any]) -> None:
        self.job = job
        self.started.set()
        assert self.go.wait(30)
        self.ended.set()


@pytest.fixture
def busy() -> Iterator[Busy]:
    busy = Busy()
    yield busy
    busy.go.set()


@contextmanager
def at_work(pool: WorkerPool, busy: Busy) -> Iterator[None]:
    """The pool runs, and its handler is in the middle of its work; let go on the way out."""
    with pool:
        assert busy.started.wait(10)
        try:
            yield
        finally:
            busy.go.set()


# --- what it holds


def test_a_detached_handler_is_given_no_transaction_and_its_job_completes_when_it_returns(
    client: Client, run: Run
) -> None:
    seen: list[object] = []
    job = run(lambda tx, job: seen.append(tx))
    assert seen == [None]
    assert (job.state, job.attempt, job.errors, job.leased_until) == (JobState.COMPLETED, 1, (), None)


def test_while_a_detached_handler_runs_no_transaction_is_open_and_its_row_is_not_locked(
    client: Client, busy: Busy, sql: Rows, stored: Stored
) -> None:
    job = enqueue(client)
    open_ones = (
        "SELECT pid, state, query FROM pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL"
        f" AND pid <> pg_backend_pid() AND query LIKE '%{client.schema}%'"
    )
    with at_work(pool_of(client, busy), busy):
        wait_until(lambda: sql(open_ones) == [])  # a duty may be under way
        assert sql("SELECT id FROM pgjobs.job WHERE state = 'running' FOR UPDATE NOWAIT") == [(job.id,)]
        assert stored(job).state == JobState.RUNNING
    assert stored(job).state == JobState.COMPLETED


def test_a_detached_handler_holds_no_connection(database: str, schema: str, client: Client, stored: Stored) -> None:
    """The only one that there is can be had in the handler, and the job is finished through it afterwards."""
    seen: list[tuple[Any, ...]] = []
    with ConnectionPool(database, min_size=1, max_size=1, open=True, timeout=5) as one:

        def handler(tx: None, job: Job[Any]) -> None:
            with one.connection() as conn:
                seen.extend(conn.execute("SELECT 1").fetchall())

        job = enqueue(client)
        assert pool_of(Client(one, schema=schema), handler).work_one()
        assert one.get_stats()["pool_available"] == 1
    assert seen == [(1,)]
    assert stored(job).state == JobState.COMPLETED


def test_detached_jobs_that_run_at_once_hold_no_connections(
    database: str, schema: str, client: Client, stored: Stored
) -> None:
    """A worker thread needs room for one, since the next job it takes may be transactional; used is none."""
    go = threading.Event()
    started = threading.Semaphore(0)

    def handler(tx: None, job: Job[Any]) -> None:
        started.release()
        assert go.wait(30)

    jobs = [enqueue(client) for _ in range(30)]
    with ConnectionPool(database, min_size=0, max_size=32, open=True) as pool:
        working = Client(pool, schema=schema)
        with pool_of(working, handler, queues={"default": 30}, listen=False):
            for _ in range(30):
                assert started.acquire(timeout=20)
            wait_until(lambda: pool.get_stats()["pool_available"] == pool.get_stats()["pool_size"])
            go.set()
    assert {stored(job).state for job in jobs} == {JobState.COMPLETED}


# --- its lease


def test_a_lease_shorter_than_can_be_extended_in_time_is_refused(client: Client) -> None:
    with pytest.raises(InvalidSetting, match="lease must be 5 seconds or more"):
        pool_of(client, lambda tx, job: None, lease=timedelta(seconds=4.9))


def test_the_lease_of_a_detached_job_is_extended_for_as_long_as_it_runs(
    client: Client, busy: Busy, stored: Stored
) -> None:
    job = enqueue(client)

    def lease() -> datetime:
        until = stored(job).leased_until
        assert until is not None
        return until

    with at_work(pool_of(client, busy, lease=5 * SECOND), busy):
        first = lease()
        wait_until(lambda: lease() > first)
        second = lease()
        wait_until(lambda: lease() > second)
        claimed = stored(job).attempted_at
        assert claimed is not None
        assert lease() - claimed > 5 * SECOND
    assert (stored(job).state, stored(job).leased_until) == (JobState.COMPLETED, None)


@pytest.mark.conformance(259)
def test_a_long_timeout_asks_for_no_longer_lease(
    *, client: Client, busy: Busy, stored: Stored, server: Tx, duties: Maintenance, sql: Rows
) -> None:
    """There is no age at which a job is rescued, so none has to be raised: the lease tells whether its worker lives,
    however long the handler may take. DESIGN 6."""
    job = enqueue(client)
    with at_work(pool_of(client, busy, timeout=timedelta(hours=23)), busy):
        lease = stored(job).leased_until
        claimed = stored(job).attempted_at
        assert lease is not None
        assert claimed is not None
        assert lease - claimed <= timedelta(minutes=1)
        sql("UPDATE pgjobs.job SET attempted_at = now() - interval '22 hours'")
        duties.rescue(server)
        assert stored(job).state == JobState.RUNNING
    assert stored(job).state == JobState.COMPLETED


WORKER = """
import sys, threading
from datetime import datetime, timedelta
from pgjobs import Client, Handler, WorkerPool

def long(tx, job):
    print("started", flush=True)
    threading.Event().wait(60)

client = Client(sys.argv[1], schema=sys.argv[2])
WorkerPool(client, {"long": Handler(long, detached=True)}, lease=timedelta(seconds=5), queues={"default": 1}).run()
"""


@pytest.mark.conformance(129, 141)
def test_the_job_of_a_killed_process_comes_back_when_its_lease_is_over_and_not_earlier(
    *, client: Client, database: str, sql: Rows, server: Tx, duties: Maintenance, stored: Stored
) -> None:
    job = enqueue(client)
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, database, client.schema], stdout=subprocess.PIPE, cwd=ROOT
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"started\n"
        finally:
            process.kill()
    leased_until = stored(job).leased_until
    assert leased_until is not None

    def rescued() -> bool:
        ((before,),) = sql("SELECT clock_timestamp()")
        duties.rescue(server)
        ((after,),) = sql("SELECT clock_timestamp()")
        found = stored(job)
        if found.state == JobState.RUNNING:
            assert before <= leased_until, "its lease was over already"
            return False
        assert after > leased_until, "its lease was not over yet"
        return True

    wait_until(rescued)
    found = stored(job)
    assert (found.state, found.attempt, found.leased_until) == (JobState.RETRYABLE, 1, None)
    assert [error.error.partition(":")[0] for error in found.errors] == ["worker vanished"]


def leave_a_lease(sql: Rows, seconds: float, **columns: Any) -> None:
    """A detached attempt whose lease ends in so many seconds."""
    given = {"attempt": 3, "max_attempts": 25, **columns}
    sql(
        "INSERT INTO pgjobs.job (kind, state, attempt, max_attempts, attempted_at, attempted_by, token, leased_until)"
        " VALUES ('long', 'running', %s, %s, now() - interval '61 minutes', '{the-host}', gen_random_uuid(),"
        " now() + %s * interval '1 second')",
        *(given["attempt"], given["max_attempts"], seconds),
    )


@pytest.mark.conformance(129, 130)
@pytest.mark.parametrize(
    ("seconds", "max_attempts", "state"),
    [(-1, 25, JobState.RETRYABLE), (-1, 3, JobState.DISCARDED), (60, 25, JobState.RUNNING)],
)
def test_what_the_rescue_makes_of_a_detached_job_goes_by_its_lease(
    client: Client, sql: Rows, server: Tx, duties: Maintenance, *, seconds: float, max_attempts: int, state: JobState
) -> None:
    """The age-based lines, read for detached jobs: not how long it has run counts, but whether its lease is over."""
    leave_a_lease(sql, seconds, max_attempts=max_attempts)
    duties.rescue(server)
    job = client.get(1)
    assert job is not None
    assert (job.state, job.attempt) == (state, 3)
    assert [(error.attempt, error.trace) for error in job.errors] == ([] if state == JobState.RUNNING else [(3, None)])
    assert (job.finalized_at is not None) == job.state.final


@pytest.mark.conformance(131)
def test_a_detached_job_that_somebody_wanted_cancelled_is_cancelled_when_its_lease_is_over(
    client: Client, sql: Rows, server: Tx, duties: Maintenance
) -> None:
    leave_a_lease(sql, -1)
    assert client.cancel(1, reason="no longer needed").state == JobState.RUNNING
    duties.rescue(server)
    job = client.get(1)
    assert job is not None
    assert (job.state, job.metadata["cancel_reason"]) == (JobState.CANCELLED, "no longer needed")


def test_a_handler_whose_lease_was_lost_is_told_and_its_result_changes_nothing(
    client: Client, busy: Busy, sql: Rows, stored: Stored, server: Tx
) -> None:
    """As after a process was suspended for longer than its lease."""
    told = threading.Event()

    def handler(tx: None, job: Job[Any]) -> None:
        busy.started.set()
        wait_until(lambda: job.cancelled)
        told.set()

    job = enqueue(client)
    pool = pool_of(client, handler)
    with at_work(pool, busy):
        # as the rescue leaves it
        sql("UPDATE pgjobs.job SET state = 'retryable', leased_until = NULL, scheduled_at = now() + interval '1 hour'")
        inside.extend_leases(pool, server)
        assert told.wait(10)
    found = stored(job)
    assert (found.state, found.attempt, found.errors) == (JobState.RETRYABLE, 1, ())


def test_a_running_detached_job_can_be_cancelled(client: Client, busy: Busy, stored: Stored) -> None:
    def handler(tx: None, job: Job[Any]) -> None:
        busy.started.set()
        wait_until(lambda: job.cancelled)
        raise RuntimeError("I was told to end")

    job = enqueue(client)
    with at_work(pool_of(client, handler), busy):
        client.cancel(job.id, reason="enough")
        wait_until(lambda: stored(job).state == JobState.CANCELLED)
    assert [error.error for error in stored(job).errors] == ["cancelled remotely: enough"]


# --- job.complete(tx)


@pytest.mark.conformance(43)
def test_a_job_completed_in_the_handlers_transaction_is_completed_with_its_writes_and_at_the_same_instant(
    client: Client, run: Run, effects: str, sql: Rows
) -> None:
    returned: list[Job[Any]] = []

    def handler(tx: None, job: Job[Any]) -> None:
        with client.pool.connection() as own:
            own.execute(f"INSERT INTO {effects} VALUES ('done')".encode())
            returned.append(job.complete(own))
            assert sql("SELECT state FROM pgjobs.job") == [("running",)], "not before the commit"
            assert sql("SELECT count(*) FROM pgjobs.effect") == [(0,)]
        assert sql("SELECT state FROM pgjobs.job") == [("completed",)], "not when the handler returns"

    job = run(handler)
    assert sql("SELECT note FROM pgjobs.effect") == [("done",)]
    assert (job.state, job.attempt, job.errors) == (JobState.COMPLETED, 1, ())
    assert job.finalized_at is not None
    assert returned == [job], "the job as the transaction leaves it, finalized_at to the microsecond"


class Rolled(Exception):
    """Rolls a transaction back."""


@pytest.mark.conformance(43)
@pytest.mark.parametrize("then", ["return", "raise"])
def test_a_job_whose_completing_transaction_is_rolled_back_has_failed(
    client: Client, run: Run, effects: str, sql: Rows, then: str
) -> None:
    def handler(tx: None, job: Job[Any]) -> None:
        try:
            with client.pool.connection() as own:
                own.execute(f"INSERT INTO {effects} VALUES ('lost')".encode())
                job.complete(own)
                raise Rolled("this is not to be")
        except Rolled:
            if then == "raise":
                raise

    job = run(handler)
    assert (job.state, job.attempt, job.finalized_at) == (JobState.RETRYABLE, 1, None)
    (error,) = job.errors
    expected = "this is not to be" if then == "raise" else "the transaction of job.complete(tx) was not committed"
    assert error.error == expected
    assert sql("SELECT count(*) FROM pgjobs.effect") == [(0,)]


def test_a_completing_transaction_that_was_rolled_back_can_be_tried_again(client: Client, run: Run) -> None:
    """As one does after a serialization failure."""

    def handler(tx: None, job: Job[Any]) -> None:
        with suppress(Rolled), client.pool.connection() as first:
            job.complete(first)
            raise Rolled
        with client.pool.connection() as second:
            job.complete(second)

    assert run(handler).state == JobState.COMPLETED


@pytest.mark.conformance(44)
@pytest.mark.parametrize("committed", [False, True])
def test_a_job_is_completed_once(client: Client, run: Run, effects: str, sql: Rows, committed: bool) -> None:
    def handler(tx: None, job: Job[Any]) -> None:
        with client.pool.connection() as own:
            job.complete(own)
            if committed:
                own.commit()
            with pytest.raises(NotRunning, match="completed already"):
                job.complete(own)
            own.execute(f"INSERT INTO {effects} VALUES ('the transaction is usable')".encode())

    job = run(handler)
    assert (job.state, job.errors) == (JobState.COMPLETED, ())
    assert sql("SELECT count(*) FROM pgjobs.effect") == [(1,)]


@pytest.mark.conformance(44)
@pytest.mark.parametrize("theft", ["rescued", "deleted", "taken"])
def test_a_job_that_is_no_longer_this_attempts_cannot_be_completed_and_the_transaction_is_aborted(
    *, client: Client, effects: str, sql: Rows, theft: str
) -> None:
    raised: list[BaseException] = []
    thefts = {
        "rescued": "UPDATE pgjobs.job SET state = 'retryable', leased_until = NULL",
        "deleted": "DELETE FROM pgjobs.job",
        "taken": "UPDATE pgjobs.job SET attempt = 2, token = gen_random_uuid()",
    }

    def handler(tx: None, job: Job[Any]) -> None:
        sql(thefts[theft])
        with client.pool.connection() as own:
            own.execute(f"INSERT INTO {effects} VALUES ('too late')".encode())
            try:
                job.complete(own)
            except AttemptLost as lost:
                raised.append(lost)
            with pytest.raises(psycopg.errors.InFailedSqlTransaction):
                own.execute("SELECT 1")

    enqueue(client)
    assert pool_of(client, handler).work_one()
    assert [type(error) for error in raised] == [AttemptLost]
    assert sql("SELECT count(*) FROM pgjobs.effect") == [(0,)]
    left = {"rescued": [("retryable", 1, 0)], "deleted": [], "taken": [("running", 2, 0)]}[theft]
    assert sql("SELECT state, attempt, jsonb_array_length(errors) FROM pgjobs.job") == left


@pytest.mark.conformance(44)
def test_a_job_that_nobody_runs_cannot_be_completed(client: Client, stored: Stored) -> None:
    job = enqueue(client)
    with client.pool.connection() as tx:
        for one in (job, stored(job)):
            with pytest.raises(NotRunning):
                one.complete(tx)
    assert stored(job).state == JobState.AVAILABLE


@pytest.mark.conformance(44)
def test_a_job_whose_attempt_is_over_cannot_be_completed(client: Client, stored: Stored) -> None:
    kept: list[Job[Any]] = []

    def handler(tx: None, job: Job[Any]) -> None:
        kept.append(job)
        raise Snooze(SECOND)

    job = enqueue(client)
    assert pool_of(client, handler).work_one()
    with client.pool.connection() as tx, pytest.raises(NotRunning):
        kept[0].complete(tx)
    assert stored(job).state == JobState.SCHEDULED


def test_what_a_handler_raises_after_its_job_was_completed_changes_nothing(
    client: Client, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    def handler(tx: None, job: Job[Any]) -> None:
        with client.pool.connection() as own:
            job.complete(own)
        raise RuntimeError("while cleaning up")

    with client.subscribe() as events:
        job = run(handler)
        assert [(event.kind, event.job) for event in events_in(events)] == [("job_completed", job)]
    assert (job.state, job.errors) == (JobState.COMPLETED, ())
    assert "while cleaning up" in caplog.text


def events_in(subscription: Any) -> list[Any]:
    return [subscription.get() for _ in range(len(subscription))]


def test_a_handler_that_goes_on_after_its_job_was_completed_is_left_alone(
    client: Client, busy: Busy, stored: Stored, server: Tx
) -> None:
    """Its lease is over with its job; that is no reason to end it."""
    saw: list[bool] = []

    def handler(tx: None, job: Job[Any]) -> None:
        with client.pool.connection() as own:
            job.complete(own)
        busy(tx, job)
        saw.append(job.cancelled)

    job = enqueue(client)
    pool = pool_of(client, handler)
    with at_work(pool, busy):
        inside.extend_leases(pool, server)
    assert saw == [False]
    assert stored(job).state == JobState.COMPLETED


def test_in_a_transactional_handler_complete_changes_nothing_and_takes_no_other_transaction(
    client: Client, effects: str, sql: Rows, stored: Stored
) -> None:
    def handler(tx: Tx, job: Job[Any]) -> None:
        tx.execute(f"INSERT INTO {effects} VALUES ('one')".encode())
        assert job.complete(tx).state == JobState.RUNNING
        assert job.complete(tx.cursor()).state == JobState.RUNNING
        with client.pool.connection() as other, pytest.raises(InvalidTransaction):
            job.complete(other)
        tx.execute(f"INSERT INTO {effects} VALUES ('two')".encode())

    job = enqueue(client)
    assert WorkerPool(client, {"long": handler}).work_one()
    assert stored(job).state == JobState.COMPLETED
    assert sql("SELECT count(*) FROM pgjobs.effect") == [(2,)]


# --- how it ends


@pytest.mark.parametrize(
    ("error", "state", "attempt", "text"),
    [
        (Snooze(SECOND), JobState.SCHEDULED, 0, None),
        (Discard("of no use"), JobState.DISCARDED, 1, "of no use"),
        (Cancel("not wanted"), JobState.CANCELLED, 1, "not wanted"),
        (RetryAfter(SECOND, "busy"), JobState.RETRYABLE, 1, "retry in 0:00:01 because busy"),
        (ValueError("failed"), JobState.RETRYABLE, 1, "failed"),
        (SystemExit(3), JobState.RETRYABLE, 1, "SystemExit: 3"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_a_detached_attempt_ends_as_any_other(
    run: Run, error: BaseException, state: JobState, attempt: int, text: str | None
) -> None:
    def handler(tx: None, job: Job[Any]) -> None:
        raise error

    job = run(handler)
    assert (job.state, job.attempt, job.leased_until) == (state, attempt, None)
    assert [error.error for error in job.errors] == ([] if text is None else [text])


def test_a_detached_job_that_fails_in_its_last_attempt_is_discarded(run: Run) -> None:
    job = run(lambda tx, job: 1 / 0, max_attempts=1)
    assert (job.state, job.error_count) == (JobState.DISCARDED, 1)


def flag(tx: None, job: Job[Any]) -> None:
    wait_until(lambda: job.cancelled)
    raise RuntimeError("I was told to end")


def loop(tx: None, job: Job[Any]) -> None:
    while True:
        sum(range(100))


@pytest.mark.parametrize("resist", [flag, loop])
def test_a_detached_handler_past_its_timeout_is_ended(
    client: Client, stored: Stored, monkeypatch: pytest.MonkeyPatch, resist: Function
) -> None:
    monkeypatch.setattr("pgjobs.execution.attempt.AFTER_TIMEOUT", QUICK)
    job = enqueue(client)
    with pool_of(client, resist, timeout=SECOND / 5):
        wait_until(lambda: stored(job).state == JobState.RETRYABLE)
    assert [error.error for error in stored(job).errors] == ["timed out after 0.2 s"]


def deaf(busy: Busy) -> Function:
    """Catches everything until it is let go, and returns then."""

    def handler(tx: None, job: Job[Any]) -> None:
        busy.started.set()
        while not busy.go.is_set():
            try:
                busy.go.wait(0.05)
            except BaseException:
                continue
        busy.ended.set()

    return handler


def test_a_detached_handler_that_cannot_be_ended_is_on_record_and_its_late_return_is_nothing(
    client: Client, busy: Busy, stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgjobs.execution.attempt.AFTER_TIMEOUT", QUICK)
    job = enqueue(client)
    with at_work(pool_of(client, deaf(busy), timeout=SECOND / 5), busy):
        wait_until(lambda: stored(job).state == JobState.RETRYABLE)
        other = enqueue(client)
        wait_until(lambda: stored(other).state != JobState.AVAILABLE)  # another thread has taken its place
        before = stored(job)
    assert busy.ended.is_set()
    assert stored(job) == before
    assert [error.error for error in before.errors] == ["timed out after 0.2 s"]


@pytest.mark.parametrize("resist", ["loop", "deaf"])
def test_a_stop_cuts_detached_handlers_off_and_gives_their_attempts_back(
    client: Client, busy: Busy, stored: Stored, resist: str
) -> None:
    def looping(tx: None, job: Job[Any]) -> None:
        busy.started.set()
        loop(tx, job)

    job = enqueue(client)
    pool = pool_of(client, deaf(busy) if resist == "deaf" else looping, timeout=None).start()
    assert busy.started.wait(10)
    assert pool.stop(SECOND / 10) is False
    found = stored(job)
    assert (found.state, found.attempt, found.errors, found.leased_until) == (JobState.AVAILABLE, 0, (), None)
    busy.go.set()


def test_a_stop_waits_for_a_detached_handler(client: Client, busy: Busy, stored: Stored) -> None:
    job = enqueue(client)
    pool = pool_of(client, busy).start()
    assert busy.started.wait(10)
    stopped = threading.Thread(target=pool.stop, daemon=True)
    stopped.start()
    wait_until(inside.stopping(pool).is_set)
    assert stored(job).state == JobState.RUNNING
    busy.go.set()
    stopped.join(10)
    assert stored(job).state == JobState.COMPLETED


# --- a server that crashes


@pytest.fixture(scope="module")
def own_server() -> Iterator[EmbeddedPostgres]:
    """A server to crash: what was not flushed is lost, as in production."""
    with EmbeddedPostgres(fsync=True, settings={"max_connections": "30"}) as server:
        yield server


@pytest.fixture
def crash_client(own_server: EmbeddedPostgres) -> Iterator[Client]:
    with Client(own_server.dsn, schema=f"detached_{uuid4().hex[:8]}") as client:
        client.migrate()
        yield client


def test_a_crash_of_the_server_loses_neither_the_claim_of_a_detached_job_nor_its_result(
    crash_client: Client, own_server: EmbeddedPostgres
) -> None:
    """Its handler outlives the crash, so a claim that did not wait for the disk would let the job start again."""
    left: list[Any] = []

    def handler(tx: None, job: Job[Any]) -> None:
        own_server.restart("immediate")
        with psycopg.connect(own_server.dsn) as conn:
            left.extend(conn.execute(f'SELECT state, attempt FROM "{crash_client.schema}".job'.encode()).fetchall())

    pool = pool_of(crash_client, handler)
    inside.forget_the_start_of_the_server(pool)
    job = enqueue(crash_client)
    assert pool.work_one()
    assert left == [("running", 1)]
    found = crash_client.get(job.id)
    assert found is not None
    assert (found.state, found.attempt, found.errors) == (JobState.COMPLETED, 1, ())


def test_a_detached_job_is_recorded_however_many_connections_have_died_meanwhile(
    own_server: EmbeddedPostgres, crash_client: Client
) -> None:
    """Each dead one is handed out once."""
    with ConnectionPool(own_server.dsn, min_size=8, max_size=8, open=True) as pool:
        pool.wait()

        def handler(tx: None, job: Job[Any]) -> None:
            own_server.restart("immediate")

        job = enqueue(crash_client)
        assert pool_of(Client(pool, schema=crash_client.schema), handler).work_one()
    with psycopg.connect(own_server.dsn) as conn:
        found = crash_client.get(job.id, conn)
    assert found is not None
    assert (found.state, found.attempt) == (JobState.COMPLETED, 1)
