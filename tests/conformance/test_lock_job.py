"""client.lock_job: one job, worked by hand, without a worker pool."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg_pool import ConnectionPool

from pgjobs import (
    Cancel,
    Client,
    Discard,
    EventKind,
    Handler,
    InvalidOption,
    JobNotFound,
    JobState,
    NotRunning,
    RetryAfter,
    Snooze,
    TransactionBroken,
    UndecodableArgs,
    WorkerPool,
    constant,
)
from pgjobs.maintenance.duties import Maintenance
from pgjobs.maintenance.queries import MaintenanceQueries
from tests.conformance.conftest import Rows, Stored
from tests.samples import HOUR, SAME_DATABASE, Thing, Tx, nothing
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]


def write(tx: Tx, effects: str, note: str = "written") -> None:
    tx.execute(f"INSERT INTO {effects} VALUES ('{note}')".encode())


@pytest.fixture
def open_transactions(client: Client, sql: Rows) -> Callable[[], list[Any]]:
    """What others are in the middle of, on the tables of this test."""

    def look() -> list[Any]:
        return sql(
            "SELECT state, query FROM pg_stat_activity WHERE datname = current_database()"
            f" AND xact_start IS NOT NULL AND pid <> pg_backend_pid() AND query LIKE '%{client.schema}%'"
        )

    return look


@pytest.fixture(autouse=True)
def _nothing_is_left_open(open_transactions: Callable[[], list[Any]]) -> Iterator[None]:
    """However a block was left, no transaction is held afterwards."""
    yield
    wait_until(lambda: open_transactions() == [])


# --- success


@pytest.mark.conformance(41)
def test_leaving_the_block_completes_the_job_with_what_it_wrote(
    client: Client, stored: Stored, effects: str, sql: Rows
) -> None:
    job = client.enqueue(None, Thing(7))
    with client.lock_job() as (tx, locked):
        assert locked is not None
        assert (locked.id, locked.state, locked.attempt) == (job.id, JobState.RUNNING, 1)
        assert (locked.args, locked.attempted_by) == ({"n": 7}, (client.id,))
        assert stored(job).state == JobState.RUNNING, "seen by others"
        write(tx, effects)
        assert sql("SELECT count(*) FROM pgjobs.effect") == [(0,)]
    found = stored(job)
    assert (found.state, found.attempt, found.errors) == (JobState.COMPLETED, 1, ())
    assert sql("SELECT count(*) FROM pgjobs.effect") == [(1,)]


def test_the_block_holds_the_lock_on_the_jobs_row(client: Client, sql: Rows) -> None:
    client.enqueue(None, Thing())
    skip = "SELECT id FROM pgjobs.job FOR NO KEY UPDATE SKIP LOCKED"
    with client.lock_job():
        assert sql(skip) == []
        with client.lock_job() as (_, other):
            assert other is None
        assert WorkerPool(client, {Thing: nothing}).work_one() is False
    assert sql(skip) == [(1,)]


def test_a_claim_by_id_reaches_its_job_on_a_connection_whose_pool_discards_what_was_prepared(
    client: Client, stored: Stored, database: str
) -> None:
    """The claim of a certain job is prepared there anew, and goes through; the lock that belongs to it is gone."""
    first, second = client.enqueue(None, Thing(1)), client.enqueue(None, Thing(2))
    settings = {"autocommit": True}

    def discard(conn: Tx) -> None:
        conn.execute("DISCARD ALL")

    with ConnectionPool(database, kwargs=settings, min_size=1, max_size=1, reset=discard, open=True) as pool:
        theirs = Client(pool, schema=client.schema)
        with theirs.lock_job() as (_, job):
            assert job is not None
        with theirs.lock_job(id=second.id) as (_, job):
            assert job is not None
            assert (job.id, job.attempt) == (second.id, 1)
    assert [stored(job).state for job in (first, second)] == [JobState.COMPLETED] * 2


def test_the_next_job_is_the_one_that_a_worker_would_take(client: Client) -> None:
    client.enqueue(None, Thing(1), priority=5)
    client.enqueue(None, Thing(2), queue="mail")
    client.enqueue(None, Thing(3), delay=HOUR)
    urgent = client.enqueue(None, Thing(4), priority=-5)
    with client.lock_job() as (_, job):
        assert job is not None
        assert job.id == urgent.id
    with client.lock_job(queue="mail") as (_, job):
        assert job is not None
        assert job.args == {"n": 2}


def test_args_are_decoded_as_the_work_map_of_the_client_says(client: Client) -> None:
    knowing = Client(client.pool, schema=client.schema, work_map={Thing: nothing})
    client.enqueue(None, Thing(7))
    with knowing.lock_job() as (_, job):
        assert job is not None
        assert job.args == Thing(7)


def test_what_a_handler_may_leave_in_its_job_the_block_may_too(client: Client, stored: Stored) -> None:
    versioned = Client(client.pool, schema=client.schema, code_version="v2")
    job = client.enqueue(None, Thing(), context={"user": 7})
    with versioned.lock_job() as (_, locked):
        assert locked is not None
        assert (locked.context, locked.cancelled, locked.deadline) == ({"user": 7}, False, None)
        locked.set_metadata(rows=3)
        locked.record_output("done")
    found = stored(job)
    assert (found.output, found.metadata["rows"], found.metadata["code_version_processed"]) == ("done", 3, "v2")
    with pytest.raises(NotRunning):
        locked.set_metadata(late=True)


@pytest.mark.conformance(41)
def test_finishing_a_job_twice_is_harmless(client: Client, stored: Stored, effects: str, sql: Rows) -> None:
    """By complete, as often as one likes, and by leaving the block. What comes after still belongs to it."""
    job = client.enqueue(None, Thing())
    with client.lock_job() as (tx, locked):
        assert locked is not None
        for _ in range(2):
            assert locked.complete(tx).id == job.id
        write(tx, effects)
    first = stored(job)
    assert (first.state, first.errors) == (JobState.COMPLETED, ())
    assert sql("SELECT count(*) FROM pgjobs.effect") == [(1,)]
    with client.lock_job(id=job.id) as (_, again):
        assert again is None
    assert stored(job) == first


# --- by id


@pytest.mark.parametrize("state", list(JobState))
def test_a_certain_job_is_locked_in_every_state_in_which_it_waits_to_run(
    client: Client, stored: Stored, sql: Rows, state: JobState
) -> None:
    """Before its time if need be, and whatever is more urgent. `pending` is not for running yet."""
    client.enqueue(None, Thing(), priority=-5, queue="mail")
    job = client.enqueue(None, Thing(), queue="mail")
    sql(
        "UPDATE pgjobs.job SET state = %s, scheduled_at = now() + interval '1 hour', attempted_at = now(),"
        " finalized_at = CASE WHEN %s THEN now() END WHERE id = %s",
        *(state, state.final, job.id),
    )
    before = stored(job)
    with client.lock_job(id=job.id) as (_, locked):
        assert (locked is not None) == (state in ("available", "scheduled", "retryable"))
        assert locked is None or locked.id == job.id
    assert stored(job).state == (before.state if locked is None else JobState.COMPLETED)
    if locked is None:
        assert stored(job) == before


def test_an_id_that_there_is_no_job_for_is_said_so(client: Client) -> None:
    with pytest.raises(JobNotFound), client.lock_job(id=10**12):
        pytest.fail("the block was entered")


def test_a_job_that_somebody_holds_is_not_waited_for(client: Client, stored: Stored) -> None:
    job = client.enqueue(None, Thing())
    with client.lock_job(id=job.id) as (_, first), client.lock_job(id=job.id) as (_, second):
        assert first is not None
        assert second is None
    assert stored(job).state == JobState.COMPLETED


@pytest.mark.parametrize("queue", ["", "with space", "x" * 65, None])
def test_a_queue_that_cannot_be_is_refused(client: Client, queue: Any) -> None:
    with pytest.raises(InvalidOption), client.lock_job(queue=queue):
        pytest.fail("the block was entered")


@pytest.mark.finding("W10")
@pytest.mark.parametrize("id_given", [False, True])
def test_where_there_is_no_job_the_block_gets_nothing_and_holds_no_connection(
    client: Client, stored: Stored, *, id_given: bool
) -> None:
    """It was given a connection of the pool in autocommit mode: what was written stayed, and what was set in it too."""
    over = client.enqueue(None, Thing())
    client.cancel(over.id)
    before = client.pool.get_stats()
    with client.lock_job(id=over.id if id_given else None) as (tx, job):
        assert (tx, job) == (None, None)
        stats = client.pool.get_stats()
        assert stats["pool_available"] == stats["pool_size"] >= before["pool_size"]
    with pytest.raises(ZeroDivisionError), client.lock_job():
        1 / 0  # noqa: B018
    assert stored(over).state == JobState.CANCELLED


# --- failure


@pytest.mark.parametrize("error", [ValueError("failed"), SystemExit("failed"), KeyboardInterrupt("failed")], ids=repr)
def test_what_the_block_raises_is_recorded_and_raised_and_its_writes_are_gone(
    *, client: Client, stored: Stored, effects: str, sql: Rows, error: BaseException
) -> None:
    patient = Client(client.pool, schema=client.schema, backoff=constant(HOUR))
    job = client.enqueue(None, Thing())
    with pytest.raises(type(error)) as raised, patient.lock_job() as (tx, locked):  # noqa: PT012
        assert locked is not None
        write(tx, effects)
        locked.set_metadata(rows=3)
        raise error
    assert raised.value is error
    found = stored(job)
    assert (found.state, found.attempt, found.metadata["rows"]) == (JobState.RETRYABLE, 1, 3)
    ((entry),) = found.errors
    assert entry.error.removeprefix(f"{type(error).__name__}: ") == "failed"
    assert "in test_what_the_block_raises" in (entry.trace or "")
    assert found.scheduled_at - entry.at == HOUR, "by the backoff of the client"
    assert sql("SELECT count(*) FROM pgjobs.effect") == [(0,)]


def test_the_backoff_of_the_handler_in_the_work_map_wins(client: Client, stored: Stored) -> None:
    knowing = Client(client.pool, schema=client.schema, work_map={Thing: Handler(nothing, backoff=constant(3 * HOUR))})
    job = client.enqueue(None, Thing())
    with pytest.raises(ZeroDivisionError), knowing.lock_job():
        1 / 0  # noqa: B018
    assert stored(job).scheduled_at - stored(job).errors[0].at == 3 * HOUR


def test_a_failure_in_the_last_attempt_discards_the_job(client: Client, stored: Stored) -> None:
    job = client.enqueue(None, Thing(), max_attempts=1)
    with pytest.raises(ZeroDivisionError), client.lock_job():
        1 / 0  # noqa: B018
    assert stored(job).state == JobState.DISCARDED


@pytest.mark.parametrize(
    ("signal", "state", "errors"),
    [
        (Snooze(HOUR), JobState.SCHEDULED, 0),
        (Cancel("not wanted"), JobState.CANCELLED, 1),
        (Discard("no use"), JobState.DISCARDED, 1),
        (RetryAfter(HOUR), JobState.RETRYABLE, 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_the_signals_end_the_block_and_are_not_raised(
    *, client: Client, stored: Stored, effects: str, sql: Rows, signal: Exception, state: JobState, errors: int
) -> None:
    job = client.enqueue(None, Thing())
    with client.lock_job() as (tx, _):
        write(tx, effects)
        raise signal
    assert (stored(job).state, stored(job).error_count) == (state, errors)  # type: ignore[unreachable]
    assert sql("SELECT count(*) FROM pgjobs.effect") == [(0,)]


def test_args_that_do_not_fit_are_raised_where_they_are_asked_for(client: Client, stored: Stored) -> None:
    knowing = Client(client.pool, schema=client.schema, work_map={Thing: nothing})
    job = client.enqueue(None, {"n": "text"}, kind="thing")
    with pytest.raises(UndecodableArgs), knowing.lock_job() as (_, locked):  # noqa: PT012
        assert locked is not None
        locked.args  # noqa: B018
    assert (stored(job).state, stored(job).error_count) == (JobState.RETRYABLE, 1)


@pytest.mark.parametrize("how", ["commit", "rollback", "swallowed", "closed", "at the commit"])
def test_a_block_whose_writes_could_not_be_committed_raises_that(
    *, client: Client, stored: Stored, effects: str, sql: Rows, how: str
) -> None:
    """Nobody may go on as if they had been."""
    sql("CREATE TABLE pgjobs.checked (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    job = client.enqueue(None, Thing())
    with pytest.raises(TransactionBroken), client.lock_job() as (tx, _):  # noqa: PT012
        if how in ("commit", "rollback"):
            write(tx, effects) if how == "rollback" else None
            getattr(tx, how)()
        elif how == "swallowed":
            write(tx, effects)
            with pytest.raises(psycopg.errors.DivisionByZero):
                tx.execute("SELECT 1/0")
        elif how == "closed":
            tx.close()
        else:
            write(tx, effects)
            tx.execute(f'INSERT INTO "{client.schema}".checked VALUES (1), (1)'.encode())
    assert (stored(job).state, stored(job).attempt, stored(job).error_count) == (JobState.RETRYABLE, 1, 1)
    assert sql("SELECT count(*) FROM pgjobs.effect") == [(0,)]


def test_the_connection_goes_back_to_the_pool_as_it_came(client: Client, sql: Rows) -> None:
    client.enqueue_many(None, [Thing(n) for n in range(3)])
    with client.lock_job() as (tx, _):
        tx.execute("SET search_path = nowhere")
        tx.execute("SELECT pg_advisory_lock(4711)")
    with pytest.raises(ZeroDivisionError), client.lock_job() as (tx, _):  # noqa: PT012
        tx.execute("SET statement_timeout = 5")
        1 / 0  # noqa: B018
    with client.pool.connection() as conn:
        assert conn.autocommit is False
        assert conn.execute("SHOW statement_timeout").fetchone() == ("0",)
        assert conn.execute("SHOW search_path").fetchone() != ("nowhere",)
    locks = f"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711 AND {SAME_DATABASE}"
    assert sql(locks) == [(0,)]


# --- beside the rest


def test_a_running_block_can_be_cancelled_from_outside_when_it_fails(client: Client, stored: Stored) -> None:
    """Nobody watches over it, so it is not told; but it does not run again."""
    job = client.enqueue(None, Thing())
    with pytest.raises(ZeroDivisionError), client.lock_job():  # noqa: PT012
        assert client.cancel(job.id).state == JobState.RUNNING
        1 / 0  # noqa: B018
    assert stored(job).state == JobState.CANCELLED


def test_a_job_of_a_detached_kind_is_locked_like_any_other(
    client: Client, stored: Stored, server: Tx, duties: Maintenance, sql: Rows
) -> None:
    knowing = Client(client.pool, schema=client.schema, work_map={Thing: Handler(nothing, detached=True)})
    job = client.enqueue(None, Thing())
    with knowing.lock_job() as (_, locked):
        assert locked is not None
        duties.rescue(server)
        assert stored(job).state == JobState.RUNNING
    assert (stored(job).state, stored(job).leased_until) == (JobState.COMPLETED, None)


def test_subscribers_hear_of_it(client: Client) -> None:
    client.enqueue_many(None, [Thing(), Thing()])
    with client.subscribe() as events:
        with client.lock_job():
            pass
        with pytest.raises(ZeroDivisionError), client.lock_job():
            1 / 0  # noqa: B018
        kinds = [event.kind for event in (events.get(), events.get()) if event]
    assert kinds == [EventKind.COMPLETED, EventKind.FAILED]


def test_many_threads_lock_each_job_once(client: Client, sql: Rows) -> None:
    client.enqueue_many(None, [Thing(n) for n in range(60)])
    seen: list[int] = []

    def work() -> None:
        while True:
            with client.lock_job() as (_, job):
                if job is None:
                    return
                seen.append(job.id)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(seen) == list(range(1, 61))
    assert sql("SELECT DISTINCT state, attempt FROM pgjobs.job") == [("completed", 1)]


LOCKER = """
import sys, threading
from pgjobs import Client

client = Client(sys.argv[1], schema=sys.argv[2])
with client.lock_job() as (tx, job):
    tx.execute(f'INSERT INTO "{sys.argv[2]}".effect VALUES (1)')
    print("locked", flush=True)
    threading.Event().wait(60)
"""


def test_the_job_of_a_killed_block_comes_back_and_what_it_wrote_does_not(
    *, client: Client, database: str, stored: Stored, effects: str, sql: Rows, server: Tx, duties: Maintenance
) -> None:
    job = client.enqueue(None, Thing())
    arguments = [sys.executable, "-c", LOCKER, database, client.schema]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"locked\n"
            assert MaintenanceQueries(client.schema).rescue(server, 10, timedelta(0)) == [], "it lives"
        finally:
            process.kill()
    wait_until(lambda: sql("SELECT id FROM pgjobs.job WHERE state = 'running' FOR UPDATE SKIP LOCKED"))
    sql("UPDATE pgjobs.job SET attempted_at = attempted_at - interval '1 hour'")
    duties.rescue(server)
    found = stored(job)
    assert (found.state, found.attempt) == (JobState.RETRYABLE, 1)
    assert [error.error.partition(":")[0] for error in found.errors] == ["worker vanished"]
    assert sql("SELECT count(*) FROM pgjobs.effect") == [(0,)]
    with client.lock_job(id=job.id) as (_, again):
        assert again is not None
        assert again.attempt == 2
