"""Control by hand: cancel, retry, delete, update; what each may do to a job in which state, and never by waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from pgjobs import (
    Client,
    InvalidOption,
    Job,
    JobLocked,
    JobNotFound,
    JobRunning,
    JobState,
    Snooze,
    UniqueConflict,
    constant,
)
from pgjobs.execution.outcome import decide
from pgjobs.maintenance.duties import Maintenance
from tests import by_hand
from tests.conformance.conftest import Rows, Stored
from tests.conftest import Connect
from tests.samples import HOUR, Thing, Tx
from tests.waking import sleep_on

Call = Callable[..., Job[Any]]
WAITING = ["available", "scheduled", "retryable", "pending"]
FINAL = ["completed", "cancelled", "discarded"]
NEVER = 10**12  # an id that no job has


@pytest.fixture
def in_state(client: Client, sql: Rows) -> Callable[..., Job[Any]]:
    """A job that is in this state since an hour ago."""

    def make(state: str, *, attempt: int = 1, max_attempts: int = 25, after: timedelta = -HOUR) -> Job[Any]:
        job = client.enqueue(None, Thing(), metadata={"kept": 1})
        sql(
            """UPDATE pgjobs.job SET state = %s, attempt = %s, max_attempts = %s, token = gen_random_uuid(),
                attempted_at = now() - interval '1 hour', scheduled_at = now() + %s,
                finalized_at = CASE WHEN %s THEN now() - interval '1 hour' END
            WHERE id = %s""",
            *(state, attempt, max_attempts, after, state in FINAL, job.id),
        )
        made = client.get(job.id)
        assert made is not None
        return made

    return make


@pytest.fixture
def running(client: Client, server: Tx) -> Job[Any]:
    """A job that a worker holds, on `server`."""
    client.enqueue(None, Thing(), metadata={"kept": 1})
    job = by_hand.claim(client, server)
    assert job is not None
    return job


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> float:
    """Seconds: so many that who waits for a row is told from one who does not on a busy machine, too."""
    monkeypatch.setattr("pgjobs.control.jobs.PATIENCE", 60.0)
    return 60.0


@pytest.fixture(params=["own", "borrowed"])
def tx(request: pytest.FixtureRequest, client: Client) -> Iterator[Tx | None]:
    """Each way to call: in a transaction of its own, and in the caller's, which must be usable to the end."""
    if request.param == "own":
        yield None
        return
    with client.pool.connection() as conn:
        yield conn
        assert conn.execute("SELECT 1").fetchone() == (1,), "the caller's transaction was aborted"


def cancelled_at(job: Job[Any]) -> datetime:
    return datetime.fromisoformat(job.metadata["cancel_attempted_at"])


def is_recent(instant: datetime | None) -> bool:
    return instant is not None and abs(datetime.now(UTC) - instant) < timedelta(minutes=1)


def heard(listener: Tx, client: Client) -> list[str]:
    """What was notified so far, told apart from what comes later by a notification of our own."""
    with psycopg.connect(client.pool.conninfo, autocommit=True) as conn:  # type: ignore[arg-type]
        conn.execute("SELECT pg_notify(%s, 'sentinel')", [client.queries.channel])
    payloads: list[str] = []
    for notification in listener.notifies(timeout=10):
        if notification.payload == "sentinel":
            return payloads
        payloads.append(notification.payload)
    raise AssertionError("the sentinel did not arrive")


@pytest.fixture
def listener(client: Client, connect: Connect) -> Tx:
    conn = connect(autocommit=True)
    sleep_on(conn, client, "default")
    return conn


# --- cancel


@pytest.mark.conformance(199)
@pytest.mark.parametrize("state", WAITING)
def test_a_job_that_waits_is_cancelled_at_once(
    client: Client, in_state: Call, stored: Stored, tx: Tx | None, state: str
) -> None:
    job = in_state(state)
    cancelled = client.cancel(job.id, tx, "not needed")
    if tx is not None:
        assert stored(job) == job, "not before the caller commits"
        tx.commit()
    assert stored(job) == cancelled
    assert cancelled.state == JobState.CANCELLED
    assert is_recent(cancelled.finalized_at)
    assert cancelled_at(cancelled) == cancelled.finalized_at
    assert cancelled.metadata["cancel_reason"] == "not needed"
    assert cancelled.metadata["kept"] == 1
    assert cancelled.attempt == job.attempt


@pytest.mark.parametrize("state", FINAL)
def test_a_job_that_is_over_is_not_cancelled(
    client: Client, in_state: Call, stored: Stored, sql: Rows, state: str
) -> None:
    job = in_state(state)
    assert client.cancel(job.id) == job == stored(job)
    assert sql("SELECT * FROM pgjobs.cancel_request") == []


# The side of the handler, who is told, is the worker's; here is what the call does.
def test_a_job_that_runs_is_asked_to_be_cancelled(
    *, client: Client, running: Job[Any], stored: Stored, sql: Rows, listener: Tx, tx: Tx | None
) -> None:
    asked = client.cancel(running.id, tx, "not needed")
    assert asked.state == JobState.RUNNING
    assert is_recent(cancelled_at(asked))
    assert asked.metadata["kept"] == 1
    assert (asked.id, asked.attempt, asked.token, asked.raw_args) == (
        *(running.id, running.attempt, running.token),
        running.raw_args,
    )
    if tx is not None:
        assert heard(listener, client) == []
        tx.commit()
    assert heard(listener, client) == [" cancel"], "which is no queue's name"
    requests = sql("SELECT job_id, queue, token, reason, requested_at FROM pgjobs.cancel_request")
    assert requests == [(running.id, "default", running.token, "not needed", cancelled_at(asked))]
    assert stored(running) == running, "its row is the worker's"
    assert "cancel_attempted_at" not in stored(running).metadata


def test_who_asks_twice_makes_one_request_and_is_told_when_it_was_made(
    client: Client, running: Job[Any], sql: Rows
) -> None:
    first = client.cancel(running.id, reason="the first")
    again = client.cancel(running.id, reason="the second")
    assert cancelled_at(first) == cancelled_at(again)
    assert sql("SELECT reason FROM pgjobs.cancel_request") == [("the first",)]


def test_an_attempt_can_be_asked_whether_it_shall_be_cancelled(
    client: Client, running: Job[Any], server: Tx, connect: Connect
) -> None:
    assert running.token is not None
    other = connect(autocommit=True)
    assert client.queries.cancelled_attempts(other, [running.token]) == {}
    client.cancel(running.id, reason="not needed")
    wanted = {(running.id, running.token): "not needed"}
    assert client.queries.cancelled_attempts(other, [uuid4(), running.token]) == {
        (running.id, running.token): "not needed"
    }
    assert client.queries.cancelled_attempts(server, [running.token]) == wanted, "who holds it, too"
    assert client.queries.cancelled_attempts(other, [uuid4()]) == {}
    assert client.queries.cancelled_attempts(other, []) == {}


def test_a_reason_of_any_characters_can_be_given(client: Client, in_state: Call, stored: Stored) -> None:
    job = in_state("available")
    client.cancel(job.id, reason="a\0b\ud800 'quoted' %s {} ä")
    assert stored(job).metadata["cancel_reason"] == "a\ufffdb\ufffd 'quoted' %s {} ä"


@pytest.mark.conformance(204)
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("error", [ValueError("failed"), Snooze(HOUR), Snooze(timedelta(0))], ids=str)
def test_a_running_job_with_a_request_on_record_that_fails_ends_cancelled(
    *, client: Client, running: Job[Any], stored: Stored, sql: Rows, server: Tx, error: Exception, late: bool
) -> None:
    asked = client.cancel(running.id, reason="not needed")
    outcome = decide(running, error, constant(HOUR))
    assert not outcome.state.final
    if late:
        server.execute("ROLLBACK")
        by_hand.finish_late(client, server, running, outcome)
    else:
        by_hand.fail(client, server, running, outcome)
    ended = stored(running)
    assert ended.state == JobState.CANCELLED
    assert is_recent(ended.finalized_at)
    assert [entry.error for entry in ended.errors] == ([] if isinstance(error, Snooze) else ["failed"])
    assert cancelled_at(ended) == cancelled_at(asked)
    assert ended.metadata["cancel_reason"] == "not needed"
    assert ended.metadata["kept"] == 1
    assert sql("SELECT * FROM pgjobs.cancel_request") == []


@pytest.mark.conformance(204)
def test_a_running_job_with_a_request_on_record_that_completes_is_completed(
    *, client: Client, running: Job[Any], stored: Stored, sql: Rows, server: Tx, duties: Maintenance
) -> None:
    client.cancel(running.id)
    by_hand.complete(client, server, running)
    assert stored(running).state == JobState.COMPLETED
    duties.rescue(server)
    assert stored(running).state == JobState.COMPLETED
    assert sql("SELECT * FROM pgjobs.cancel_request") == []


@pytest.mark.conformance(131)
@pytest.mark.parametrize("attempt", [1, 25])
def test_a_job_whose_worker_vanished_is_cancelled_when_that_was_asked_for(
    *, client: Client, in_state: Call, stored: Stored, sql: Rows, server: Tx, duties: Maintenance, attempt: int
) -> None:
    job, other = in_state("running", attempt=attempt), in_state("running")
    asked = client.cancel(job.id, reason="not needed")
    duties.rescue(server)
    ended = stored(job)
    assert ended.state == JobState.CANCELLED
    assert is_recent(ended.finalized_at)
    assert [error.error.partition(":")[0] for error in ended.errors] == ["worker vanished"]
    assert cancelled_at(ended) == cancelled_at(asked)
    assert sql("SELECT * FROM pgjobs.cancel_request") == []
    assert stored(other).state == JobState.RETRYABLE, "and nobody else"


# --- retry


@pytest.mark.conformance(205)
@pytest.mark.parametrize("state", [*WAITING, *FINAL])
def test_a_job_of_any_state_but_running_can_be_retried(
    *, client: Client, in_state: Call, stored: Stored, listener: Tx, tx: Tx | None, state: str
) -> None:
    job = in_state(state, after=HOUR)
    heard(listener, client)  # the enqueue
    retried = client.retry(job.id, tx)
    if tx is not None:
        assert stored(job) == job, "not before the caller commits"
        tx.commit()
    assert stored(job) == retried
    assert retried.state == JobState.AVAILABLE
    assert is_recent(retried.scheduled_at)
    assert retried.finalized_at is None
    assert (retried.attempt, retried.max_attempts, retried.raw_metadata) == (1, 25, job.raw_metadata)
    assert heard(listener, client) == ["default"]


@pytest.mark.conformance(205)
def test_a_running_job_is_not_retried(
    client: Client, running: Job[Any], stored: Stored, sql: Rows, tx: Tx | None
) -> None:
    client.cancel(running.id)
    assert client.retry(running.id, tx) == running == stored(running)
    assert len(sql("SELECT * FROM pgjobs.cancel_request")) == 1, "nor is a request to cancel it forgotten"


@pytest.mark.conformance(206)
def test_an_overdue_job_that_is_retried_keeps_its_place_in_line(client: Client, in_state: Call) -> None:
    job = in_state("available", after=-HOUR)
    assert client.retry(job.id).scheduled_at == job.scheduled_at
    other = in_state("retryable", after=-HOUR)
    assert is_recent(client.retry(other.id).scheduled_at), "which a job that is not in the line does not have"


@pytest.mark.conformance(207)
@pytest.mark.parametrize(
    ("state", "attempt", "allowed"),
    [("discarded", 3, 4), ("completed", 3, 4), ("discarded", 2, 3), ("cancelled", 0, 3), ("retryable", 2, 3)],
)
def test_a_retry_allows_one_attempt_more_where_none_is_left(
    *, client: Client, in_state: Call, server: Tx, state: str, attempt: int, allowed: int
) -> None:
    job = in_state(state, attempt=attempt, max_attempts=3)
    assert client.retry(job.id).max_attempts == allowed
    claimed = by_hand.claim(client, server)
    assert claimed is not None
    assert (claimed.id, claimed.attempt) == (job.id, attempt + 1)


def test_a_cancelled_job_that_is_retried_does_not_look_cancelled(client: Client, in_state: Call) -> None:
    job = in_state("scheduled")
    client.cancel(job.id, reason="not needed")
    assert client.retry(job.id).metadata == job.metadata


# --- delete


@pytest.mark.conformance(208, 214)
@pytest.mark.parametrize("state", [*WAITING, *FINAL])
def test_a_job_that_does_not_run_is_returned_and_gone(
    client: Client, in_state: Call, tx: Tx | None, state: str
) -> None:
    job = in_state(state)
    assert client.delete(job.id, tx) == job
    if tx is not None:
        assert client.get(job.id) == job, "not before the caller commits"
        tx.commit()
    assert client.get(job.id) is None


@pytest.mark.conformance(208, 350)
def test_a_job_that_runs_is_neither_deleted_nor_updated_and_nobody_waits(
    client: Client, running: Job[Any], stored: Stored, tx: Tx | None, patience: float
) -> None:
    """T9."""
    calls: list[Call] = [client.delete, lambda id, tx: client.update(id, tx, scheduled_at=datetime.now(UTC))]
    for call in calls:
        started = time.monotonic()
        with pytest.raises(JobRunning):
            call(running.id, tx)
        assert time.monotonic() - started < patience / 2
    assert stored(running) == running


@pytest.mark.conformance(205, 208, 214)
def test_there_is_nothing_to_be_done_to_a_job_that_does_not_exist(client: Client, tx: Tx | None) -> None:
    calls: list[Call] = [
        client.cancel,
        client.retry,
        client.delete,
        client.update,
        lambda id, tx: client.update(id, tx, priority=1),
    ]
    for call in calls:
        with pytest.raises(JobNotFound, match=f"no job {NEVER}") as raised:
            call(NEVER, tx)
        assert isinstance(raised.value, LookupError)


# --- update


@pytest.mark.conformance(212)
@pytest.mark.parametrize("state", [*WAITING, *FINAL])
def test_an_update_merges_metadata_replaces_output_and_leaves_the_rest(
    *, client: Client, in_state: Call, stored: Stored, sql: Rows, tx: Tx | None, state: str
) -> None:
    job = in_state(state)
    client.update(job.id, tx, metadata={"new": [1, None], "kept": 2}, output={"rows": 1})
    updated = client.update(job.id, tx, metadata={"more": True}, output=["other"])
    if tx is not None:
        assert stored(job) == job
        tx.commit()
    assert stored(job) == updated
    assert updated.metadata == {**job.metadata, "kept": 2, "new": [1, None], "more": True}
    assert sql("SELECT output FROM pgjobs.job") == [(["other"],)]
    unchanged = ("state", "priority", "attempt", "max_attempts", "scheduled_at", "tags", "finalized_at", "raw_args")
    assert [getattr(updated, name) for name in unchanged] == [getattr(job, name) for name in unchanged]


@pytest.mark.conformance(212)
@pytest.mark.parametrize("output", [None, False, 0, "", "text", [], {}, 1.5])
def test_every_json_value_can_be_the_output(client: Client, in_state: Call, sql: Rows, output: object) -> None:
    job = in_state("completed")
    client.update(job.id, output=output)
    client.update(job.id, priority=1)
    ((stored, is_null),) = sql("SELECT output, output IS NULL FROM pgjobs.job")
    assert stored == output
    assert type(stored) is type(output)
    assert not is_null


@pytest.mark.conformance(212)
def test_an_update_of_nothing_changes_nothing(
    client: Client, in_state: Call, running: Job[Any], sql: Rows, tx: Tx | None
) -> None:
    job = in_state("retryable")
    versions = sql("SELECT id, xmin::text FROM pgjobs.job ORDER BY id")
    assert client.update(job.id, tx) == job
    assert client.update(running.id, tx) == running
    if tx is not None:
        tx.commit()
    assert sql("SELECT id, xmin::text FROM pgjobs.job ORDER BY id") == versions


@pytest.mark.conformance(212)
def test_an_output_over_the_limit_is_refused_and_one_just_below_is_not(
    client: Client, in_state: Call, sql: Rows, tx: Tx | None
) -> None:
    job = in_state("completed")
    limit = 32 * 1024 * 1024
    with pytest.raises(InvalidOption, match=r"output.*bytes"):
        client.update(job.id, tx, output="x" * (limit - 1))  # and two quotes
    client.update(job.id, tx, output="x" * (limit - 2))
    if tx is not None:
        tx.commit()
    assert sql("SELECT octet_length(output #>> '{}') FROM pgjobs.job") == [(limit - 2,)]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"output": {1, 2}}, InvalidOption),
        ({"output": float("nan")}, InvalidOption),
        ({"output": "\0"}, InvalidOption),
        ({"metadata": {"a": object()}}, InvalidOption),
        ({"metadata": {"a": "x" * 70_000}}, InvalidOption),
        ({"metadata": [1]}, InvalidOption),
        ({"priority": 40_000}, InvalidOption),
        ({"max_attempts": 0}, InvalidOption),
        ({"tags": ["a b c"]}, InvalidOption),
        ({"scheduled_at": datetime(2030, 1, 1)}, InvalidOption),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_a_job_cannot_have_is_refused_before_anything_is_sent(
    *, client: Client, in_state: Call, stored: Stored, tx: Tx | None, changes: dict[str, Any], error: type[Exception]
) -> None:
    job = in_state("available")
    with pytest.raises(error):
        client.update(job.id, tx, **changes)
    assert stored(job) == job


@pytest.mark.parametrize(
    ("state", "least"), [("available", 4), ("scheduled", 4), ("retryable", 4), ("pending", 4), ("discarded", 3)]
)
def test_no_fewer_attempts_can_be_allowed_than_were_used(
    client: Client, in_state: Call, tx: Tx | None, state: str, least: int
) -> None:
    job = in_state(state, attempt=3, max_attempts=10)
    with pytest.raises(InvalidOption, match="has used 3 attempts"):
        client.update(job.id, tx, max_attempts=least - 1)
    assert client.update(job.id, tx, max_attempts=least).max_attempts == least


@pytest.mark.parametrize(
    ("state", "after", "then"),
    [
        ("available", HOUR, "scheduled"),
        ("available", -HOUR, "available"),
        ("scheduled", HOUR, "scheduled"),
        ("scheduled", -HOUR, "available"),
        ("retryable", HOUR, "retryable"),
        ("retryable", -HOUR, "available"),
        ("pending", -HOUR, "pending"),
        ("completed", -HOUR, "completed"),
    ],
)
def test_a_waiting_job_waits_for_its_new_time(
    *, client: Client, in_state: Call, listener: Tx, state: str, after: timedelta, then: str
) -> None:
    job = in_state(state, after=2 * HOUR)
    heard(listener, client)  # the enqueue
    when = datetime.now(UTC) + after
    updated = client.update(job.id, scheduled_at=when)
    assert (updated.state, updated.scheduled_at) == (then, when)
    assert heard(listener, client) == (["default"] if then == "available" else [])


def test_priority_and_tags_can_be_changed(client: Client, in_state: Call, stored: Stored) -> None:
    job = in_state("available")
    client.update(job.id, priority=-7, tags=["one", "two"])
    assert (stored(job).priority, stored(job).tags) == (-7, ("one", "two"))
    assert client.update(job.id, tags=[], priority=0).tags == ()
    assert stored(job).priority == 0


# --- rows that somebody holds

CALLS: dict[str, Callable[[Client, int, Tx | None], Job[Any]]] = {
    "cancel": lambda client, id, tx: client.cancel(id, tx),
    "retry": lambda client, id, tx: client.retry(id, tx),
    "delete": lambda client, id, tx: client.delete(id, tx),
    "update": lambda client, id, tx: client.update(id, tx, scheduled_at=datetime.now(UTC)),
}


@pytest.mark.conformance(214, 350)
@pytest.mark.parametrize("call", CALLS)
def test_no_call_waits_for_a_row_that_somebody_holds_for_much_longer_than_a_second(
    *, client: Client, in_state: Call, stored: Stored, sql: Rows, connect: Connect, tx: Tx | None, call: str
) -> None:
    job, holder = in_state("pending"), connect()
    holder.execute(f'SELECT FROM "{client.schema}".job FOR NO KEY UPDATE')
    started = time.monotonic()
    with pytest.raises(JobLocked):
        CALLS[call](client, job.id, tx)
    assert 0.9 < time.monotonic() - started < 4
    assert stored(job) == job
    holder.rollback()
    CALLS[call](client, job.id, tx)


@pytest.mark.conformance(350)
@pytest.mark.parametrize("call", CALLS)
def test_a_row_that_is_let_go_meanwhile_is_had(
    client: Client, in_state: Call, connect: Connect, tx: Tx | None, call: str
) -> None:
    job, holder = in_state("pending"), connect()
    holder.execute(f'UPDATE "{client.schema}".job SET priority = 3')
    letting_go = threading.Timer(0.2, holder.commit)
    letting_go.start()
    assert CALLS[call](client, job.id, tx).priority == 3
    letting_go.join()


@pytest.mark.conformance(350)
@pytest.mark.parametrize("call", CALLS)
def test_a_claim_in_flight_is_waited_for_and_then_seen(
    client: Client, in_state: Call, connect: Connect, tx: Tx | None, call: str
) -> None:
    job, claimer = in_state("available"), connect()
    claimer.execute(f"UPDATE \"{client.schema}\".job SET state = 'running', token = gen_random_uuid()")
    claiming = threading.Timer(0.2, claimer.commit)
    claiming.start()
    if call in ("cancel", "retry"):
        assert CALLS[call](client, job.id, tx).state == JobState.RUNNING
    else:
        with pytest.raises(JobRunning):
            CALLS[call](client, job.id, tx)
    claiming.join()


@pytest.mark.conformance(350)
@pytest.mark.parametrize("call", CALLS)
def test_a_transaction_that_would_see_nothing_new_does_not_wait(
    client: Client, in_state: Call, connect: Connect, patience: float, call: str
) -> None:
    job, holder = in_state("pending"), connect()
    holder.execute(f'SELECT FROM "{client.schema}".job FOR NO KEY UPDATE')
    with client.pool.connection() as tx:
        tx.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        started = time.monotonic()
        with pytest.raises(JobLocked):
            CALLS[call](client, job.id, tx)
        assert time.monotonic() - started < patience / 2
        holder.rollback()
        CALLS[call](client, job.id, tx)


def test_a_call_of_its_own_sees_what_others_commit_whatever_the_isolation_of_the_session(
    client: Client, in_state: Call, connect: Connect, database: str
) -> None:
    options = "-c default_transaction_isolation=serializable"
    with Client(f"{database} options='{options}'", schema=client.schema) as strict:
        for call in CALLS.values():
            job, holder = in_state("pending"), connect()
            holder.execute(f'UPDATE "{client.schema}".job SET priority = 3 WHERE id = {job.id}')
            letting_go = threading.Timer(0.2, holder.commit)
            letting_go.start()
            assert call(strict, job.id, None).priority == 3
            letting_go.join()


@pytest.mark.conformance(214)
def test_a_job_that_an_open_insert_references_cannot_be_deleted_now(
    *, client: Client, in_state: Call, stored: Stored, sql: Rows, connect: Connect, tx: Tx | None
) -> None:
    job, holder = in_state("completed"), connect()
    sql("CREATE TABLE pgjobs.mail (job bigint, queue text, FOREIGN KEY (job, queue) REFERENCES pgjobs.job)")
    holder.execute(f"INSERT INTO \"{client.schema}\".mail VALUES ({job.id}, 'default')")
    started = time.monotonic()
    with pytest.raises(JobLocked):
        client.delete(job.id, tx)
    assert time.monotonic() - started < 4
    assert stored(job) == job
    assert client.update(job.id, tx, priority=2).priority == 2, "which touches no key, and need not wait"
    holder.rollback()


@pytest.mark.conformance(350)
def test_a_request_to_cancel_does_not_wait_for_the_handler_of_the_job(
    client: Client, running: Job[Any], server: Tx, tx: Tx | None, patience: float
) -> None:
    started = time.monotonic()
    client.cancel(running.id, tx)
    assert time.monotonic() - started < patience / 2
    server.execute(f"SET LOCAL lock_timeout = '{patience:g}s'")
    started = time.monotonic()
    by_hand.complete(client, server, running)  # nor the handler for the one who asks
    assert time.monotonic() - started < patience / 2


# --- unique duplicates


@pytest.fixture
def duplicate(sql: Rows) -> Callable[[Job[Any], str], None]:
    """Gives a job a unique key, and to another one, that is available, the same."""

    def make(job: Job[Any], states: str) -> None:
        sql("UPDATE pgjobs.job SET unique_key = 'key', unique_states = %s WHERE id = %s", states, job.id)
        sql("INSERT INTO pgjobs.job (kind, unique_key, unique_states) VALUES ('thing', 'key', %s)", states)

    return make


def test_an_update_of_the_time_does_not_make_a_job_the_twin_of_another(
    client: Client, in_state: Call, stored: Stored, duplicate: Callable[[Job[Any], str], None], tx: Tx | None
) -> None:
    job = in_state("retryable", after=HOUR)
    duplicate(job, "{available,pending,running,scheduled}")
    with pytest.raises(UniqueConflict):
        client.update(job.id, tx, scheduled_at=datetime.now(UTC))
    assert stored(job) == job
    assert client.update(job.id, tx, scheduled_at=datetime.now(UTC) + HOUR).state == JobState.RETRYABLE


def test_to_cancel_succeeds_also_where_cancelled_jobs_are_unique(
    client: Client, in_state: Call, duplicate: Callable[[Job[Any], str], None], sql: Rows, tx: Tx | None
) -> None:
    job = in_state("retryable")
    duplicate(job, "{available,cancelled,pending,running,scheduled}")
    cancelled = client.cancel(job.id, tx)
    assert cancelled.state == JobState.CANCELLED
    assert cancelled.metadata["unique_key_conflict"] is True
    if tx is not None:
        tx.commit()
    assert sql("SELECT id = %s, unique_key IS NULL FROM pgjobs.job ORDER BY id", job.id) == [
        (True, True),
        (False, False),
    ]
