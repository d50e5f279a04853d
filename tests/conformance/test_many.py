"""Control of many jobs by a filter: the rules of control of one, and what becomes of those it cannot be done to."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg_pool import ConnectionPool

from pgjobs import (
    Client,
    EmptyFilter,
    InvalidFilter,
    InvalidOption,
    Job,
    JobFilter,
    JobState,
    ManyJobs,
    NewJob,
    NotDiscarded,
    QueueSettings,
    WorkerPool,
)
from pgjobs.control import jobs as control_jobs
from tests import by_hand
from tests.conformance.conftest import Rows, Stored
from tests.conftest import Connect
from tests.samples import HOUR, Thing, Tx
from tests.waiting import wait_until
from tests.waking import sleep_on

States = Callable[[], dict[int, str]]
WAITING = ["available", "scheduled", "retryable", "pending"]
FINAL = ["completed", "cancelled", "discarded"]
ALL = JobFilter.all()


@pytest.fixture
def of_each_state(client: Client, sql: Rows) -> dict[str, int]:
    """One job in each state, since an hour; the running one has no worker. Its id by its state."""
    jobs = client.enqueue_many(None, [NewJob(Thing(n), metadata={"kept": 1}) for n, _ in enumerate(JobState)])
    for job, state in zip(jobs, JobState, strict=True):
        sql(
            """UPDATE pgjobs.job SET state = %s, attempt = 2, token = gen_random_uuid(), attempted_at = now(),
                scheduled_at = now() - interval '1 hour',
                finalized_at = CASE WHEN %s THEN now() - interval '1 hour' END
            WHERE id = %s""",
            *(state, state.final, job.id),
        )
    return {state.value: job.id for job, state in zip(jobs, JobState, strict=True)}


@pytest.fixture
def states(sql: Rows) -> States:
    return lambda: dict(sql("SELECT id, state FROM pgjobs.job ORDER BY id"))


@pytest.fixture(params=["own", "borrowed"])
def tx(request: pytest.FixtureRequest, client: Client) -> Iterator[Tx | None]:
    """Each way to call: in transactions of its own, and in the caller's, which must be usable to the end."""
    if request.param == "own":
        yield None
        return
    with client.pool.connection() as conn:
        yield conn
        assert conn.execute("SELECT 1").fetchone() == (1,), "the caller's transaction was aborted"


def done(result: ManyJobs) -> list[int]:
    return [job.id for job in result.done]


def commit(tx: Tx | None) -> None:
    if tx is not None:
        tx.commit()


CALLS: dict[str, Callable[..., ManyJobs]] = {
    "cancel": Client.cancel_many,
    "retry": Client.retry_many,
    "delete": Client.delete_many,
    "update": lambda client, filter, tx=None, **more: client.update_many(filter, tx, priority=9, **more),
}
any_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


# --- which


@pytest.mark.conformance(209)
@any_call
def test_nothing_is_changed_without_a_word_which(call: Callable[..., ManyJobs]) -> None:
    with pytest.raises(EmptyFilter):
        call(Client(ConnectionPool(open=False)), JobFilter())


@any_call
@pytest.mark.parametrize("limit", [0, -1, True])
def test_a_limit_that_is_none_is_refused(call: Callable[..., ManyJobs], limit: int) -> None:
    with pytest.raises(InvalidFilter, match="limit"):
        call(Client(ConnectionPool(open=False)), ALL, limit=limit)


@any_call
def test_a_filter_that_fits_nothing_changes_nothing(client: Client, call: Callable[..., ManyJobs]) -> None:
    assert call(client, ALL) == ManyJobs((), {}), "on empty tables"
    job = client.enqueue(None, Thing())
    for nothing in (JobFilter(ids=[]), JobFilter(kinds=["other"]), JobFilter(tags_any=[])):
        assert call(client, nothing) == ManyJobs((), {})
    assert client.list_jobs().jobs == (job,)


@any_call
def test_only_what_fits_is_touched(client: Client, call: Callable[..., ManyJobs]) -> None:
    jobs = client.enqueue_many(None, [NewJob(Thing(n), queue="ab"[n % 2], delay=HOUR) for n in range(6)])
    assert done(call(client, JobFilter(queues=["b"]))) == [job.id for job in jobs[1::2]]
    assert client.list_jobs(JobFilter(queues=["a"])).jobs == tuple(jobs[::2])


@any_call
def test_more_than_a_batch_is_done_in_batches_to_the_end_and_sorted(
    client: Client, call: Callable[..., ManyJobs], tx: Tx | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_jobs, "BATCH", 3)
    jobs = client.enqueue_many(None, [NewJob(Thing(n), queue="ab"[n % 2], delay=HOUR) for n in range(18)])
    assert done(call(client, JobFilter(queues=["b"]), tx)) == [job.id for job in jobs[1::2]]
    assert done(call(client, JobFilter(queues=["a"]), tx, limit=7)) == [job.id for job in jobs[::2]][:7]


@any_call
def test_what_is_enqueued_while_it_runs_is_not_meant(
    client: Client, call: Callable[..., ManyJobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_jobs, "BATCH", 2)
    jobs = client.enqueue_many(None, [NewJob(Thing(n), delay=HOUR) for n in range(3)])
    sort = control_jobs._Call._sort

    def enqueue_one_more(self: Any, verdicts: Any) -> Any:
        client.enqueue(None, Thing(), delay=HOUR)
        return sort(self, verdicts)

    monkeypatch.setattr(control_jobs._Call, "_sort", enqueue_one_more)
    assert done(call(client, ALL)) == [job.id for job in jobs]


@any_call
def test_all_is_undone_with_the_callers_transaction(client: Client, call: Callable[..., ManyJobs]) -> None:
    jobs = client.enqueue_many(None, [NewJob(Thing(n), delay=HOUR) for n in range(3)])
    with client.pool.connection() as tx:
        tx.execute("SET LOCAL search_path = pg_temp; SET LOCAL DateStyle = 'SQL, DMY'")
        assert done(call(client, ALL, tx)) == [job.id for job in jobs]
        tx.rollback()
    assert client.list_jobs().jobs == tuple(jobs)


# --- what is done


@pytest.mark.conformance(199)
def test_cancel_many(client: Client, of_each_state: dict[str, int], tx: Tx | None, states: States, sql: Rows) -> None:
    before = states()
    result = client.cancel_many(ALL, tx, reason="not needed")
    assert done(result) == [of_each_state[state] for state in sorted([*WAITING, "running"], key=of_each_state.get)]  # type: ignore[arg-type]
    assert result.skipped == {}
    commit(tx)
    after = {**before, **{of_each_state[state]: "cancelled" for state in WAITING}}
    assert states() == after, "those that are over are left alone, and the running one is its worker's"
    for job in result.done:
        assert job.metadata["kept"] == 1
        assert "cancel_attempted_at" in job.metadata
    ((id, reason),) = sql("SELECT job_id, reason FROM pgjobs.cancel_request")
    assert (id, reason) == (of_each_state["running"], "not needed")
    assert done(client.cancel_many(ALL, tx)) == [of_each_state["running"]], "asking again asks once"
    commit(tx)
    assert len(sql("SELECT * FROM pgjobs.cancel_request")) == 1


@pytest.mark.conformance(200)
def test_cancel_many_reaches_the_handlers_that_run(client: Client) -> None:
    entered = threading.Semaphore(0)

    def until_told(tx: Tx, job: Job[Any]) -> None:
        entered.release()
        give_up = time.monotonic() + 20
        while not job.cancelled and time.monotonic() < give_up:
            time.sleep(0.01)
        raise RuntimeError("told" if job.cancelled else "never told")

    with WorkerPool(client, {Thing: until_told}, queues={"a": 1, "b": 1}):
        jobs = client.enqueue_many(None, [NewJob(Thing(), queue=queue) for queue in ("a", "b")])
        for _ in jobs:
            assert entered.acquire(timeout=20)
        assert len(client.cancel_many(JobFilter(kinds=["thing"]), reason="enough").done) == 2
        for job in jobs:
            ended = client.wait(job, timeout=timedelta(seconds=20))
            assert (ended.state, ended.last_error) == ("cancelled", "cancelled remotely: enough")


@pytest.mark.conformance(205, 207)
def test_retry_many(client: Client, of_each_state: dict[str, int], tx: Tx | None, states: States, sql: Rows) -> None:
    sql("UPDATE pgjobs.job SET max_attempts = 2 WHERE state = 'discarded'")
    result = client.retry_many(ALL, tx)
    assert result.skipped == {of_each_state["running"]: "running"}
    commit(tx)
    assert {id for id, state in states().items() if state == "available"} == set(done(result))
    assert len(result.done) == 7
    by_id = {job.id: job for job in result.done}
    assert by_id[of_each_state["discarded"]].max_attempts == 3
    assert by_id[of_each_state["completed"]].finalized_at is None
    recent = datetime.now(UTC) - timedelta(minutes=1)
    late = by_id.pop(of_each_state["available"])
    assert late.scheduled_at < recent, "it keeps its place"
    assert all(job.scheduled_at > recent for job in by_id.values())


def test_retry_many_forgets_requests_to_cancel(client: Client, of_each_state: dict[str, int], sql: Rows) -> None:
    for state in ("available", "running"):
        sql("INSERT INTO pgjobs.cancel_request (job_id, queue) VALUES (%s, 'default')", of_each_state[state])
    client.retry_many(ALL)
    assert sql("SELECT job_id FROM pgjobs.cancel_request") == [(of_each_state["running"],)]


@pytest.mark.conformance(218)
def test_retry_with_reset_gives_a_discarded_job_all_its_attempts_again(
    client: Client, sql: Rows, stored: Stored
) -> None:
    job, other, third = client.enqueue_many(None, [NewJob(Thing(n), max_attempts=3) for n in range(3)])
    sql(
        """UPDATE pgjobs.job SET state = 'discarded', attempt = 3, finalized_at = now(),
            errors = '[{"attempt": 3, "at": "2026-01-02T03:04:05Z", "error": "no", "trace": null}]'
        WHERE id <> %s""",
        third.id,
    )
    again = client.retry(job.id, reset=True)
    assert (again.state, again.attempt, again.max_attempts) == (JobState.AVAILABLE, 0, 3)
    assert [error.error for error in again.errors] == ["no"], "which is its history"
    with pytest.raises(NotDiscarded, match=f"job {job.id} is available"):
        client.retry(job.id, reset=True)
    sql("UPDATE pgjobs.job SET state = 'running', attempted_at = now() WHERE id = %s", third.id)
    with pytest.raises(NotDiscarded, match=f"job {third.id} is running"):
        client.retry(third.id, reset=True)
    result = client.retry_many(ALL, reset=True)
    assert done(result) == [other.id]
    assert result.skipped == {job.id: "unfit", third.id: "running"}
    assert stored(other).attempt == 0


@pytest.mark.conformance(218)
def test_jobs_that_no_code_can_read_any_more_can_still_be_looked_at_cancelled_and_deleted(
    client: Client, sql: Rows, stored: Stored
) -> None:
    sql(
        """INSERT INTO pgjobs.job (kind, args, metadata) SELECT 'gone.for good', '{"no": ["such", "class"]}',
        '{"class": "a.module.that.Was"}' FROM generate_series(1, 3)"""
    )
    gone = JobFilter(kinds=["gone.for good"])
    first, second, third = client.list_jobs(gone).jobs
    assert client.cancel(first.id).state == JobState.CANCELLED
    assert done(client.cancel_many(gone)) == [second.id, third.id]
    assert done(client.delete_many(gone)) == [first.id, second.id, third.id]


@pytest.mark.conformance(209)
def test_delete_many(client: Client, of_each_state: dict[str, int], tx: Tx | None, states: States) -> None:
    before = client.list_jobs().jobs
    result = client.delete_many(ALL, tx)
    assert result.done == tuple(job for job in before if job.state != JobState.RUNNING), "as they were, sorted by id"
    assert result.skipped == {of_each_state["running"]: "running"}
    commit(tx)
    assert states() == {of_each_state["running"]: "running"}


@pytest.mark.conformance(212)
def test_update_many(client: Client, of_each_state: dict[str, int], tx: Tx | None, states: States, sql: Rows) -> None:
    before = states()
    later = datetime.now(UTC).replace(microsecond=0) + HOUR
    result = client.update_many(
        *(ALL, tx), metadata={"new": [1]}, output={"o": 1}, priority=-3, scheduled_at=later, tags=["one"]
    )
    assert result.skipped == {of_each_state["running"]: "running"}
    commit(tx)
    assert states() == {**before, of_each_state["available"]: "scheduled"}
    for job in result.done:
        assert (job.priority, job.scheduled_at, job.tags) == (-3, later, ("one",))
        assert job.metadata["kept"] == 1
        assert job.metadata["new"] == [1]
    assert sql("SELECT count(*) FROM pgjobs.job WHERE output = '{\"o\": 1}'") == [(7,)]


def test_update_many_skips_what_has_used_its_attempts_up(client: Client, of_each_state: dict[str, int]) -> None:
    result = client.update_many(JobFilter(states=["available", "completed"]), max_attempts=2)
    assert done(result) == [of_each_state["completed"]], "it used two, and needs no more"
    assert result.skipped == {of_each_state["available"]: "unfit"}


def test_update_many_that_changes_nothing_is_refused(client: Client) -> None:
    with pytest.raises(InvalidOption, match="something to change"):
        client.update_many(ALL)
    with pytest.raises(InvalidOption, match="priority"):
        client.update_many(ALL, priority=10**6)


# --- what wakes workers


@pytest.mark.parametrize(
    ("act", "payloads"),
    [
        (lambda client, tx: client.retry_many(ALL, tx), {"default", "mail"}),
        (lambda client, tx: client.update_many(ALL, tx, scheduled_at=datetime.now(UTC) - HOUR), {"default", "mail"}),
        (lambda client, tx: client.update_many(ALL, tx, scheduled_at=datetime.now(UTC) + HOUR), set()),
        (lambda client, tx: client.delete_many(ALL, tx), set()),
    ],
    ids=["retry", "due", "later", "delete"],
)
def test_each_queue_that_has_work_is_called_with_the_commit(
    client: Client, connect: Connect, act: Callable[..., ManyJobs], payloads: set[str]
) -> None:
    client.enqueue_many(None, [NewJob(Thing(), queue=queue, delay=HOUR) for queue in ("default", "mail")])
    listener = connect(autocommit=True)
    sleep_on(listener, client, "default", "mail")
    with client.pool.connection() as tx:
        act(client, tx)
        tx.execute("SELECT pg_notify(%s, 'sentinel')", [client.queries.channel])
        assert list(listener.notifies(timeout=0)) == []
    heard = set()
    for notification in listener.notifies(timeout=10):
        if notification.payload == "sentinel":
            break
        heard.add(notification.payload)
    assert heard == payloads


# --- what somebody holds


@any_call
def test_a_row_that_somebody_holds_is_skipped_after_a_second_in_all(
    client: Client, connect: Connect, call: Callable[..., ManyJobs], tx: Tx | None
) -> None:
    jobs = client.enqueue_many(None, [NewJob(Thing(n), delay=HOUR) for n in range(6)])
    holder = connect()
    held = [job.id for job in jobs[1::2]]
    holder.execute(f'SELECT FROM "{client.schema}".job WHERE id = ANY (%s) FOR UPDATE', [held])
    began = time.monotonic()
    result = call(client, ALL, tx)
    assert 1.0 <= time.monotonic() - began < 10
    assert done(result) == [job.id for job in jobs[::2]]
    assert result.skipped == dict.fromkeys(held, "locked")
    holder.rollback()
    commit(tx)
    assert client.list_jobs(JobFilter(ids=held)).jobs == tuple(jobs[1::2])


@any_call
def test_a_row_that_comes_free_in_time_is_not_skipped(
    client: Client, connect: Connect, call: Callable[..., ManyJobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = client.enqueue_many(None, [NewJob(Thing(n), delay=HOUR) for n in range(3)])
    holder = connect()
    holder.execute(f'SELECT FROM "{client.schema}".job WHERE id = %s FOR UPDATE', [jobs[1].id])
    monkeypatch.setattr("pgjobs.control.jobs.time.sleep", lambda seconds: holder.rollback())
    result = call(client, ALL)
    assert (done(result), result.skipped) == ([job.id for job in jobs], {})


@any_call
def test_a_job_that_no_longer_fits_when_it_comes_free_is_left_alone(
    client: Client, connect: Connect, call: Callable[..., ManyJobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, other = client.enqueue_many(None, [NewJob(Thing(n), delay=HOUR, tags=["meant"]) for n in range(2)])
    holder = connect()
    holder.execute(f"UPDATE \"{client.schema}\".job SET tags = '{{}}' WHERE id = %s", [job.id])
    monkeypatch.setattr("pgjobs.control.jobs.time.sleep", lambda seconds: holder.commit())
    result = call(client, JobFilter(tags_any=["meant"]))
    assert (done(result), result.skipped) == ([other.id], {})
    kept = client.get(job.id)
    assert kept is not None
    assert (kept.state, kept.priority) == (JobState.SCHEDULED, 0)


@any_call
def test_a_job_that_is_changed_between_the_look_and_the_lock_is_left_alone(
    client: Client, connect: Connect, call: Callable[..., ManyJobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, other = client.enqueue_many(None, [NewJob(Thing(n), delay=HOUR, tags=["meant"]) for n in range(2)])
    meanwhile, watcher = connect(autocommit=True), connect(autocommit=True)
    key = random.getrandbits(60)
    meanwhile.execute("SELECT pg_advisory_lock(%s)", [key])
    # what has been seen is locked only when this test lets it go on
    look, lock = (
        b"job.id OPERATOR(pg_catalog.=) ANY (ARRAY(SELECT seen.id FROM seen))",
        f"(SELECT pg_advisory_xact_lock({key}))",
    )
    slowly = f"{lock} IS NOT NULL AND ".encode() + look
    statements = {name: statement.replace(look, slowly) for name, statement in client._control._control.items()}
    monkeypatch.setattr(client._control, "_control", statements)
    waits = "SELECT 1 FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))"

    def change() -> None:
        wait_until(lambda: watcher.execute(waits, [meanwhile.info.backend_pid]).fetchone())
        meanwhile.execute(f"UPDATE \"{client.schema}\".job SET tags = '{{}}' WHERE id = %s", [job.id])
        meanwhile.execute("SELECT pg_advisory_unlock(%s)", [key])

    monkeypatch.setattr(control_jobs, "PATIENCE", 20.0)
    changer = threading.Thread(target=change)
    changer.start()
    result = call(client, JobFilter(tags_any=["meant"]))
    changer.join()
    assert (done(result), result.skipped) == ([other.id], {})
    kept = client.get(job.id)
    assert kept is not None
    assert (kept.state, kept.priority) == (JobState.SCHEDULED, 0)


def test_a_job_that_a_worker_holds_is_running_not_locked(client: Client, server: Tx) -> None:
    waiting = client.enqueue(None, Thing())
    running = by_hand.claim(client, server)
    assert running is not None
    assert running.id == waiting.id
    began = time.monotonic()
    for call in (client.delete_many, client.retry_many):
        assert call(ALL) == ManyJobs((), {running.id: "running"})
    assert [job.state for job in client.cancel_many(ALL).done] == ["running"]
    assert time.monotonic() - began < 1.0, "there is nothing to wait for"


def test_a_snapshot_that_is_kept_is_not_looked_at_again(client: Client, connect: Connect) -> None:
    job, other = client.enqueue_many(None, [NewJob(Thing(n), delay=HOUR) for n in range(2)])
    holder, tx = connect(), connect()
    tx.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    holder.execute(f'SELECT FROM "{client.schema}".job WHERE id = %s FOR UPDATE', [job.id])
    began = time.monotonic()
    result = client.delete_many(ALL, tx)
    assert time.monotonic() - began < 1.0
    assert (done(result), result.skipped) == ([other.id], {job.id: "locked"})


# --- constraints


@pytest.fixture
def duplicates(client: Client, sql: Rows) -> Callable[..., list[int]]:
    """Jobs in these states that share a unique key, which covers `covered`."""

    def make(*states: str, covered: list[str]) -> list[int]:
        jobs = client.enqueue_many(None, [Thing(n) for n, _ in enumerate(states)])
        for job, state in zip(jobs, states, strict=True):
            sql(
                """UPDATE pgjobs.job SET unique_key = 'k', unique_states = %s, state = %s,
                    finalized_at = CASE WHEN %s THEN now() END WHERE id = %s""",
                *(covered, state, state in FINAL, job.id),
            )
        return [job.id for job in jobs]

    return make


def test_of_twins_in_one_batch_the_older_one_is_retried(
    client: Client, duplicates: Callable[..., list[int]], tx: Tx | None
) -> None:
    first, second, third = duplicates(
        "discarded", "discarded", "discarded", covered=["available", "pending", "running", "scheduled"]
    )
    alone = client.enqueue(None, Thing(9), delay=HOUR)
    result = client.retry_many(ALL, tx)
    assert done(result) == [first, alone.id]
    assert result.skipped == {second: "conflict", third: "conflict"}
    assert client.retry_many(JobFilter(ids=[third]), tx).skipped == {third: "conflict"}


def test_of_twins_in_one_batch_the_older_one_gets_the_time(
    client: Client, duplicates: Callable[..., list[int]], tx: Tx | None
) -> None:
    first, second = duplicates("retryable", "retryable", covered=["available", "pending", "running", "scheduled"])
    result = client.update_many(ALL, tx, scheduled_at=datetime.now(UTC) - HOUR)
    assert (done(result), result.skipped) == ([first], {second: "conflict"})


def test_twins_are_all_cancelled_and_give_the_key_up(
    client: Client, duplicates: Callable[..., list[int]], sql: Rows, tx: Tx | None
) -> None:
    ids = duplicates("retryable", "retryable", covered=["available", "cancelled", "pending", "running", "scheduled"])
    assert done(client.cancel_many(ALL, tx)) == ids
    commit(tx)
    assert sql("SELECT unique_key IS NULL, metadata ? 'unique_key_conflict' FROM pgjobs.job ORDER BY id") == [
        (False, False),
        (True, True),
    ]


@pytest.mark.parametrize("committed", [True, False])
def test_a_twin_that_is_being_inserted_costs_its_job_alone_and_a_second_at_most(
    *,
    client: Client,
    duplicates: Callable[..., list[int]],
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    committed: bool,
) -> None:
    if committed:
        monkeypatch.setattr(control_jobs, "PATIENCE", 20.0)
    (first,) = duplicates("discarded", covered=["available", "pending", "running", "scheduled"])
    rest = client.enqueue_many(None, [NewJob(Thing(n), delay=HOUR) for n in range(4)])
    inserter, watcher = connect(), connect(autocommit=True)
    inserter.execute(
        f"""INSERT INTO "{client.schema}".job (kind, unique_key, unique_states)
        VALUES ('duplicate', 'k', '{{available,pending,running,scheduled}}')"""
    )
    waits = "SELECT 1 FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))"

    def commit_when_waited_for() -> None:
        wait_until(lambda: watcher.execute(waits, [inserter.info.backend_pid]).fetchone())
        inserter.commit()

    waiter = threading.Thread(target=commit_when_waited_for if committed else lambda: None)
    waiter.start()
    began = time.monotonic()
    result = client.retry_many(JobFilter(kinds=["thing"]))
    assert committed or time.monotonic() - began < 10
    waiter.join()
    assert done(result) == [job.id for job in rest]
    assert result.skipped == {first: "conflict" if committed else "locked"}


def test_a_job_that_the_application_refers_to_is_not_deleted_and_the_others_are(client: Client, sql: Rows) -> None:
    jobs = client.enqueue_many(None, [Thing(n) for n in range(4)])
    sql(
        """CREATE TABLE pgjobs.refers (job_id bigint, queue text,
        FOREIGN KEY (job_id, queue) REFERENCES pgjobs.job (id, queue))"""
    )
    sql("INSERT INTO pgjobs.refers VALUES (%s, 'default')", jobs[1].id)
    result = client.delete_many(ALL)
    assert done(result) == [jobs[0].id, jobs[2].id, jobs[3].id]
    assert result.skipped == {jobs[1].id: "referenced"}
    with client.pool.connection() as tx, pytest.raises(psycopg.errors.ForeignKeyViolation):
        client.delete_many(ALL, tx)


# --- dry run


@pytest.fixture
def rows(sql: Rows) -> Callable[[], list[Any]]:
    """Everything that a call could change: the versions of the jobs, and the requests to cancel them."""
    return lambda: [
        *sql("SELECT xmin::text, * FROM pgjobs.job ORDER BY id"),
        *sql("SELECT * FROM pgjobs.cancel_request ORDER BY job_id"),
    ]


def summary(result: ManyJobs) -> tuple[list[tuple[int, str, int, datetime | None]], dict[int, str]]:
    """What a dry run and the real one have in common: all but the instants of the change."""
    return [(job.id, job.state, job.priority, job.attempted_at) for job in result.done], dict(result.skipped)


@any_call
@pytest.mark.parametrize("limit", [None, 3])
def test_a_dry_run_says_what_the_call_does_and_changes_nothing(
    *,
    client: Client,
    of_each_state: dict[str, int],
    call: Callable[..., ManyJobs],
    tx: Tx | None,
    rows: Callable[[], list[Any]],
    limit: int | None,
) -> None:
    before = rows()
    planned = call(client, ALL, tx, limit=limit, dry_run=True)
    commit(tx)
    assert rows() == before
    assert summary(call(client, ALL, tx, limit=limit)) == summary(planned)
    assert len(planned.done) == 3 if limit else planned.done
    commit(tx)
    assert rows() != before


@any_call
def test_a_dry_run_asks_no_running_job_to_end_and_notifies_nobody(
    *,
    client: Client,
    server: Tx,
    connect: Connect,
    call: Callable[..., ManyJobs],
    tx: Tx | None,
    rows: Callable[[], list[Any]],
) -> None:
    running, waiting = client.enqueue_many(None, [Thing(1), Thing(2)])
    claimed = by_hand.claim(client, server)
    assert claimed is not None
    assert claimed.id == running.id
    listener, before = connect(autocommit=True), rows()
    sleep_on(listener, client, "default")
    planned = call(client, ALL, tx, dry_run=True)
    commit(tx)
    connect(autocommit=True).execute("SELECT pg_notify(%s, 'sentinel')", [client.queries.channel])
    assert next(listener.notifies(timeout=10)).payload == "sentinel"
    assert rows() == before
    assert {waiting.id, *planned.skipped} <= {running.id, *done(planned)}
    assert planned.skipped == ({} if call is Client.cancel_many else {running.id: "running"})
    assert summary(call(client, ALL, tx)) == summary(planned)


@any_call
def test_a_dry_run_says_which_jobs_are_locked(
    client: Client, connect: Connect, call: Callable[..., ManyJobs], tx: Tx | None
) -> None:
    free, locked = client.enqueue_many(None, [NewJob(Thing(n), delay=HOUR) for n in range(2)])
    holder = connect()
    holder.execute(f'SELECT FROM "{client.schema}".job WHERE id = %s FOR UPDATE', [locked.id])
    planned = call(client, ALL, tx, dry_run=True)
    assert (done(planned), planned.skipped) == ([free.id], {locked.id: "locked"})


@any_call
def test_a_dry_run_leaves_the_callers_transaction_as_it_is(
    *,
    client: Client,
    connect: Connect,
    of_each_state: dict[str, int],
    call: Callable[..., ManyJobs],
    rows: Callable[[], list[Any]],
) -> None:
    before, tx, other = rows(), connect(), connect(autocommit=True)
    call(client, ALL, tx, dry_run=True)
    assert tx.info.transaction_status.name == "IDLE", "which it was"
    tx.autocommit = True
    call(client, ALL, tx, dry_run=True)
    assert tx.info.transaction_status.name == "IDLE"
    assert rows() == before
    tx.autocommit = False
    job = client.enqueue(tx, Thing(99))
    assert job.id in done(call(client, ALL, tx, dry_run=True))
    assert tx.info.transaction_status.name == "INTRANS", "it goes on"
    other.execute(f'SELECT FROM "{client.schema}".job FOR UPDATE NOWAIT')  # no lock is left
    tx.commit()
    assert client.get(job.id) == job


def test_a_dry_run_sees_what_its_batches_before_would_have_done(
    client: Client, duplicates: Callable[..., list[int]], tx: Tx | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_jobs, "BATCH", 1)
    first, second, third = duplicates(
        "discarded", "discarded", "discarded", covered=["available", "pending", "running", "scheduled"]
    )
    planned = client.retry_many(ALL, tx, dry_run=True)
    assert (done(planned), planned.skipped) == ([first], {second: "conflict", third: "conflict"})
    assert summary(client.retry_many(ALL, tx)) == summary(planned)


def test_a_dry_run_says_which_jobs_the_application_does_not_let_go(
    client: Client, sql: Rows, connect: Connect, rows: Callable[[], list[Any]]
) -> None:
    jobs = client.enqueue_many(None, [Thing(n) for n in range(4)])
    sql(
        """CREATE TABLE pgjobs.refers (job_id bigint, queue text,
        FOREIGN KEY (job_id, queue) REFERENCES pgjobs.job (id, queue))"""
    )
    sql("INSERT INTO pgjobs.refers VALUES (%s, 'default')", jobs[1].id)
    before, tx = rows(), connect()
    tx.execute("CREATE TEMPORARY TABLE mine AS SELECT 1 AS n")
    with pytest.raises(psycopg.errors.ForeignKeyViolation):  # as the call itself would be
        client.delete_many(ALL, tx, dry_run=True)
    assert tx.execute("SELECT n FROM mine").fetchall() == [(1,)], "but this transaction goes on"
    planned = client.delete_many(ALL, dry_run=True)
    assert planned.skipped == {jobs[1].id: "referenced"}
    assert rows() == before
    assert summary(client.delete_many(ALL)) == summary(planned)


@pytest.mark.parametrize("batch_size", [1, 10])
def test_a_handler_can_make_a_dry_run(client: Client, batch_size: int) -> None:
    other = client.enqueue(None, Thing(), queue="other", delay=HOUR)
    planned: list[list[int]] = []

    def plan(tx: Tx, job: Job[Any]) -> None:
        planned.append(done(client.delete_many(JobFilter(queues=["other"]), tx, dry_run=True)))

    jobs = client.enqueue_many(None, [Thing(n) for n in range(3)])
    with WorkerPool(client, {Thing: plan}, queues={"default": QueueSettings(1, batch_size=batch_size)}):
        for job in jobs:
            assert client.wait(job, timeout=timedelta(seconds=20)).state == JobState.COMPLETED
    assert planned == [[other.id]] * 3
    assert client.get(other.id) == other


@any_call
@pytest.mark.parametrize("dry_run", [None, 1, "yes"])
def test_a_dry_run_that_is_neither_true_nor_false_is_refused(call: Callable[..., ManyJobs], dry_run: object) -> None:
    with pytest.raises(InvalidFilter, match="dry_run must be True or False"):
        call(Client(ConnectionPool(open=False)), ALL, dry_run=dry_run)
