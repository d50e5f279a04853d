"""The duties: making due jobs available, finishing what vanished workers left, cleaning up."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from pgjobs import Client, Job, JobFilter, JobState, NewJob, RetryAfter, Snooze, WorkerPool
from pgjobs.db.cursors import rollback
from pgjobs.maintenance.duties import Maintenance
from pgjobs.maintenance.queries import MaintenanceQueries
from pgjobs.maintenance.thread import MaintenanceThread
from tests import inside
from tests.conformance.conftest import Rows, Stored
from tests.conftest import Connect
from tests.samples import SECOND, Thing, Tx, nothing
from tests.waiting import wait_until
from tests.waking import sleep_on, sleepers

ZERO = timedelta(0)


# --- promote


def make_due(sql: Rows) -> None:
    sql("UPDATE pgjobs.job SET scheduled_at = clock_timestamp() - interval '1 second' WHERE state = 'scheduled'")


@pytest.mark.conformance(153)
def test_due_jobs_become_available_in_batches(
    client: Client, sql: Rows, server: Tx, duties: Maintenance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgjobs.maintenance.promoting.BATCH", 10)
    client.enqueue_many(None, [NewJob(Thing(n), delay=timedelta(hours=1)) for n in range(12)])
    make_due(sql)
    sql("UPDATE pgjobs.job SET state = 'retryable' WHERE id <= 5")
    sql("UPDATE pgjobs.job SET scheduled_at = clock_timestamp() + interval '1 hour' WHERE id = 12")
    available = "SELECT count(*) FROM pgjobs.job WHERE state = 'available'"
    assert duties.promote(server) == ZERO, "a full batch: it wants to go on at once"
    assert sql(available) == [(10,)]
    assert duties.promote(server) > ZERO
    assert sql(available) == [(11,)], "and the one that is not due waits"


@pytest.mark.conformance(153)
def test_promote_comes_back_for_the_next_job_that_is_due(client: Client, server: Tx, duties: Maintenance) -> None:
    client.enqueue(None, Thing(), delay=SECOND / 2)
    assert ZERO < duties.promote(server) <= SECOND / 2


@pytest.mark.conformance(154)
def test_each_queue_that_got_jobs_is_notified_once_and_no_other(
    client: Client, sql: Rows, server: Tx, connect: Connect
) -> None:
    woken: list[tuple[str, int, int]] = []

    def wake(queue: str, jobs: int) -> None:
        ((visible,),) = sql("SELECT count(*) FROM pgjobs.job WHERE state = 'available' AND queue = %s", queue)
        woken.append((queue, jobs, visible))

    duties = Maintenance(client.schema, keep={}, wake=wake)
    listener = connect(autocommit=True)
    sleep_on(listener, client, "default", "mail", "later")
    for queue, count in (("mail", 3), ("default", 1)):
        client.enqueue_many(None, [NewJob(Thing(), queue=queue, delay=timedelta(hours=1))] * count)
    make_due(sql)
    client.enqueue(None, Thing(), queue="later", delay=timedelta(hours=1))
    for _ in range(2):
        sql("UPDATE pgjobs.maintenance SET next_run_at = clock_timestamp()")
        duties.do(server, "promote")
    server.execute("SELECT pg_notify(%s, 'sentinel')", [client.queries.channel])
    heard = []
    for notification in listener.notifies(timeout=10):
        if notification.payload == "sentinel":
            break
        heard.append(notification.payload)
    assert sorted(heard) == ["default", "mail"]
    assert sorted(woken) == [("default", 1, 1), ("mail", 3, 3)], "and not before others can see the jobs"


@pytest.mark.parametrize(
    ("due", "wait"),
    [
        (SECOND / 300, SECOND / 300),
        (SECOND / 2, SECOND / 2),
        (timedelta(hours=1), SECOND),
        (None, SECOND),
        (-SECOND, SECOND / 50),  # due, and not promoted: somebody holds it
    ],
    ids=str,
)
def test_promote_sleeps_until_exactly_the_next_due_instant(
    *, client: Client, server: Tx, duties: Maintenance, monkeypatch: pytest.MonkeyPatch, due: Any, wait: timedelta
) -> None:
    monkeypatch.setattr(MaintenanceQueries, "promote", staticmethod(lambda conn, batch, rows: ({}, [], due)))
    assert duties.promote(server) == wait


def test_a_job_that_is_due_sooner_than_promote_brings_it_forward(
    client: Client, sql: Rows, server: Tx, duties: Maintenance
) -> None:
    sql("UPDATE pgjobs.maintenance SET next_run_at = clock_timestamp() + interval '1 hour'")
    soon = client.enqueue(None, Thing(), delay=timedelta(minutes=1))
    duties.bring_promote_forward(server)
    at = "SELECT next_run_at FROM pgjobs.maintenance WHERE duty = 'promote'"
    assert sql(at) == [(soon.scheduled_at,)]
    duties.bring_promote_forward(server)
    client.enqueue(None, Thing(), delay=timedelta(minutes=5))
    duties.bring_promote_forward(server)
    assert sql(at) == [(soon.scheduled_at,)]
    sql("UPDATE pgjobs.maintenance SET next_run_at = clock_timestamp() + interval '1 second'")
    before = sql(at)
    duties.bring_promote_forward(server)
    assert sql(at) == before, "never later"
    sql("UPDATE pgjobs.maintenance SET next_run_at = clock_timestamp() + interval '1 hour' WHERE duty <> 'promote'")
    others = "SELECT 1 FROM pgjobs.maintenance WHERE duty <> 'promote' AND next_run_at < now() + interval '30 min'"
    assert sql(others) == []


@pytest.fixture
def sleepy_promote(monkeypatch: pytest.MonkeyPatch) -> None:
    """Promote sleeps for an hour unless it learns of a job that is due earlier."""
    monkeypatch.setattr("pgjobs.maintenance.duties.PROMOTE_EVERY", timedelta(hours=1))
    monkeypatch.setattr("pgjobs.maintenance.duties.LOOK_EVERY", timedelta(hours=1))
    monkeypatch.setattr("pgjobs.maintenance.duties.IDLE_LOOK_EVERY", timedelta(hours=1))


@pytest.mark.usefixtures("sleepy_promote")
def test_a_job_with_a_short_delay_is_promoted_at_its_time_though_promote_sleeps(
    client: Client, sql: Rows, stored: Stored, server: Tx
) -> None:
    """The enqueue tells, in whichever transaction and process; so does a change of the time by hand."""
    with WorkerPool(client, {Thing: nothing}, queues={"default": 1}, poll_interval=timedelta(hours=1)):
        asleep = "SELECT next_run_at > now() + interval '50 min' FROM pgjobs.maintenance WHERE duty = 'promote'"
        wait_until(lambda: sleepers(server, client) == 1)
        for delay in (SECOND / 2, SECOND / 50):
            wait_until(lambda: sql(asleep) == [(True,)])
            job = client.enqueue(None, Thing(), delay=delay)
            wait_until(lambda job=job: stored(job).state == JobState.COMPLETED, timeout=5)  # type: ignore[misc]
        later = client.enqueue(None, Thing(), delay=timedelta(hours=2))
        wait_until(lambda: sql(asleep) == [(True,)])
        (now,) = sql("SELECT clock_timestamp()")[0]
        client.update(later.id, scheduled_at=now + SECOND / 2)
        wait_until(lambda: stored(later).state == JobState.COMPLETED, timeout=5)
        for n in range(2):  # one by itself, and as one of many
            last = client.enqueue(None, Thing(n), delay=timedelta(hours=2))
            wait_until(lambda: sql(asleep) == [(True,)])
            (now,) = sql("SELECT clock_timestamp()")[0]
            client.update_many(JobFilter(ids=[last.id]), scheduled_at=now + SECOND / 2)
            wait_until(lambda last=last: stored(last).state == JobState.COMPLETED, timeout=5)  # type: ignore[misc]


@pytest.mark.usefixtures("sleepy_promote")
@pytest.mark.parametrize("listen", [True, False])
def test_a_job_that_is_retried_or_snoozed_for_a_moment_is_back_at_its_time(
    client: Client, stored: Stored, listen: bool
) -> None:
    """Its own process knows, and needs no notification."""

    def handler(tx: Tx, job: Job[Thing]) -> None:
        runs.append(job.attempt)
        if len(runs) == 1:
            raise Snooze(SECOND / 10)
        if len(runs) == 2:
            raise RetryAfter(SECOND / 10)

    runs: list[int] = []
    job = client.enqueue(None, Thing())
    with WorkerPool(client, {Thing: handler}, queues={"default": 1}, listen=listen, poll_interval=timedelta(hours=1)):
        wait_until(lambda: stored(job).state == JobState.COMPLETED, timeout=5)
    assert runs == [1, 1, 2]


def test_a_scheduled_job_starts_by_itself_when_it_is_due(client: Client, stored: Stored) -> None:
    with WorkerPool(client, {Thing: nothing}, queues={"default": 1}):
        job = client.enqueue(None, Thing(), delay=SECOND / 5)
        wait_until(lambda: stored(job).state == JobState.COMPLETED, timeout=5)
    started = stored(job).attempted_at
    assert started is not None
    assert started >= job.scheduled_at


# --- rescue


@pytest.fixture
def vanished(sql: Rows) -> Callable[..., None]:
    """Leaves jobs behind, each as a worker does that vanished two hours ago."""

    def leave(count: int = 1, *, attempt: int = 1, max_attempts: int = 25, args: str = "{}") -> None:
        sql(
            """INSERT INTO pgjobs.job (kind, state, args, attempt, max_attempts, attempted_at, attempted_by, token)
            SELECT 'thing', 'running', %s::jsonb, %s, %s, now() - interval '2 hours',
                ARRAY['the-host-' || gen_random_uuid()], gen_random_uuid()
            FROM generate_series(1, %s)""",
            args,
            attempt,
            max_attempts,
            count,
        )

    return leave


@pytest.mark.conformance(129)
def test_a_job_whose_worker_vanished_is_retryable_with_one_error(
    client: Client, sql: Rows, server: Tx, duties: Maintenance, vanished: Callable[..., None]
) -> None:
    """How long it has run does not matter, only that nobody holds its row. The next attempt is soon."""
    vanished(attempt=3)
    duties.rescue(server)
    (now,) = sql("SELECT clock_timestamp()")[0]
    job = client.get(1)
    assert job is not None
    assert (job.state, job.attempt, job.finalized_at) == (JobState.RETRYABLE, 3, None)
    (error,) = job.errors
    assert (error.attempt, error.trace) == (3, None)
    assert "worker vanished" in error.error
    assert "the-host" in error.error
    assert ZERO < job.scheduled_at - now <= SECOND


@pytest.mark.conformance(130)
def test_a_job_whose_worker_vanished_in_its_last_attempt_is_discarded(
    client: Client, sql: Rows, server: Tx, duties: Maintenance, vanished: Callable[..., None]
) -> None:
    vanished(attempt=5, max_attempts=5)
    duties.rescue(server)
    (now,) = sql("SELECT clock_timestamp()")[0]
    job = client.get(1)
    assert job is not None
    assert (job.state, job.attempt, job.error_count) == (JobState.DISCARDED, 5, 1)
    assert job.finalized_at is not None
    assert now - job.finalized_at < 5 * SECOND


@pytest.mark.conformance(132)
def test_only_running_jobs_are_rescued(client: Client, sql: Rows, server: Tx, duties: Maintenance) -> None:
    for state in JobState:
        if state != JobState.RUNNING:
            sql(
                "INSERT INTO pgjobs.job (kind, state, attempt, attempted_at, finalized_at)"
                " VALUES ('thing', %s, 1, now() - interval '2 hours', CASE WHEN %s THEN now() END)",
                state,
                state.final,
            )
    before = sql("SELECT job::text FROM pgjobs.job AS job ORDER BY id")
    duties.rescue(server)
    assert len(before) == 7
    assert sql("SELECT job::text FROM pgjobs.job AS job ORDER BY id") == before


@pytest.mark.conformance(135)
def test_more_vanished_jobs_than_a_batch_are_all_rescued_past_a_batch_that_cannot_be(
    *,
    client: Client,
    sql: Rows,
    server: Tx,
    connect: Connect,
    duties: Maintenance,
    vanished: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pgjobs.maintenance.batch_size.LARGE_BATCH", 5)
    vanished(16)
    holder = connect()  # a whole batch of living workers stands in front
    holder.execute(f'SELECT id FROM "{client.schema}".job WHERE id <= 5 FOR NO KEY UPDATE')
    try:
        assert [duties.rescue(server) == ZERO for _ in range(3)] == [True, True, False]
        assert sql("SELECT id FROM pgjobs.job WHERE state = 'running' ORDER BY id") == [(n,) for n in range(1, 6)]
    finally:
        holder.rollback()
    assert duties.rescue(server) == ZERO
    assert sql("SELECT DISTINCT state FROM pgjobs.job") == [("retryable",)]


@pytest.mark.conformance(136)
def test_args_that_nobody_can_read_hold_up_no_rescue(
    client: Client, sql: Rows, server: Tx, duties: Maintenance, vanished: Callable[..., None]
) -> None:
    vanished(args='{"n": ' + "[" * 3000 + "]" * 3000 + "}")
    vanished(args='{"n": "no number"}', attempt=2, max_attempts=2)
    vanished()
    sql("UPDATE pgjobs.job SET errors = '[5, null, \"text\", [1]]' WHERE id = 3")
    duties.rescue(server)
    assert sql("SELECT id, state FROM pgjobs.job ORDER BY id") == [(1, "retryable"), (2, "discarded"), (3, "retryable")]


@pytest.mark.conformance(137)
def test_a_job_that_was_finished_or_taken_again_meanwhile_is_not_rescued(
    *, client: Client, sql: Rows, server: Tx, connect: Connect, duties: Maintenance, vanished: Callable[..., None]
) -> None:
    """The rescue reads and writes in one statement, and what is locked it leaves alone."""
    vanished(3)
    finisher = connect()
    finisher.execute(f"""UPDATE "{client.schema}".job SET state = 'completed', finalized_at = now() WHERE id = 1""")
    finisher.execute(f"""UPDATE "{client.schema}".job SET attempt = 2, attempted_at = now() WHERE id = 2""")
    duties.rescue(server)
    finisher.commit()
    assert sql("SELECT state, attempt, errors = '[]' FROM pgjobs.job ORDER BY id") == [
        ("completed", 1, True),
        ("running", 2, True),
        ("retryable", 1, False),
    ]
    duties.rescue(server)
    assert sql("SELECT state FROM pgjobs.job WHERE id = 2") == [("running",)], "it was taken a moment ago"


@pytest.mark.conformance(140)
def test_the_maintenance_of_a_pool_stops_at_once_and_works_again_after_a_new_start(
    client: Client, sql: Rows, vanished: Callable[..., None]
) -> None:
    pool = WorkerPool(client, {Thing: nothing})
    for _ in range(2):
        vanished()
        with pool:
            wait_until(lambda: sql("SELECT count(*) FROM pgjobs.job WHERE state = 'running'") == [(0,)])
            began = time.monotonic()
        assert time.monotonic() - began < 3
    thread = MaintenanceThread(Maintenance(client.schema, keep={}), client.source, name="maintenance")
    thread.start()
    assert thread.stop(5) is True


@pytest.mark.conformance(141)
def test_a_job_of_a_vanished_worker_runs_within_seconds_of_the_start(
    client: Client, sql: Rows, vanished: Callable[..., None]
) -> None:
    vanished()
    with WorkerPool(client, {Thing: nothing}):
        wait_until(lambda: sql("SELECT state, attempt FROM pgjobs.job") == [("completed", 2)], timeout=5)


@pytest.mark.conformance(144, 296)
def test_the_duties_of_one_schema_touch_no_other_and_wait_for_no_other(
    *,
    client: Client,
    other_client: Client,
    sql: Rows,
    connect: Connect,
    duties: Maintenance,
    vanished: Callable[..., None],
) -> None:
    vanished()
    with other_client.pool.connection() as conn:
        conn.execute(
            f"""INSERT INTO "{other_client.schema}".job (kind, state, attempt, attempted_at)
            VALUES ('thing', 'running', 1, now() - interval '2 hours')"""
        )
    holder, server = connect(autocommit=True), connect(autocommit=True)
    due = MaintenanceQueries(other_client.schema).begin_duty(holder, "rescue")
    try:
        assert due is not None
        assert due <= ZERO, "the other schema's duty is held"
        duties.do(server, "rescue")
    finally:
        holder.close()
    assert sql("SELECT state FROM pgjobs.job") == [("retryable",)]
    job = other_client.get(1)
    assert job is not None
    assert job.state == JobState.RUNNING


@pytest.mark.conformance(147)
def test_a_live_job_is_not_rescued_however_long_it_runs(
    client: Client, server: Tx, duties: Maintenance, stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgjobs.maintenance.rescuing.RESCUE_GRACE", ZERO)
    seen: list[Job[Any]] = []

    def handler(tx: Tx, job: Job[Thing]) -> None:
        duties.rescue(server)
        seen.append(stored(job))

    job = client.enqueue(None, Thing())
    pool = WorkerPool(client, {Thing: handler})
    assert pool.work_one()
    assert (seen[0].state, seen[0].errors) == (JobState.RUNNING, ())
    assert (stored(job).state, stored(job).attempt) == (JobState.COMPLETED, 1)


# --- clean

KEPT = {
    JobState.COMPLETED: "keep_completed",
    JobState.CANCELLED: "keep_cancelled",
    JobState.DISCARDED: "keep_discarded",
}


@pytest.fixture
def old_jobs(sql: Rows) -> None:
    """One job of each state that is eight days old, and of each final state one that ended just now."""
    for state in JobState:
        sql(
            "INSERT INTO pgjobs.job (kind, state, created_at, scheduled_at, attempted_at, finalized_at)"
            " VALUES ('old', %s, now() - interval '8 days', now() - interval '8 days', now() - interval '8 days',"
            " CASE WHEN %s THEN now() - interval '8 days' END)",
            state,
            state.final,
        )
        if state.final:
            sql("INSERT INTO pgjobs.job (kind, state, finalized_at) VALUES ('new', %s, now())", state)


def left(sql: Rows) -> set[str]:
    """The final states that still have their old job."""
    return {state for (state,) in sql("SELECT state FROM pgjobs.job WHERE kind = 'old' AND finalized_at IS NOT NULL")}


@pytest.mark.conformance(281, 288)
@pytest.mark.parametrize("forever", [*KEPT, None], ids=str)
@pytest.mark.usefixtures("old_jobs")
def test_a_state_that_is_kept_for_ever_stays_and_the_others_are_cut(
    client: Client, sql: Rows, server: Tx, forever: JobState | None
) -> None:
    Maintenance(
        client.schema, keep={state: None if state == forever else 7 * 24 * 3600 * SECOND for state in KEPT}
    ).prune(server)
    assert left(sql) == ({forever} if forever else set())
    assert sql("SELECT count(*) FROM pgjobs.job WHERE kind = 'new'") == [(3,)]
    assert sql("SELECT count(*) FROM pgjobs.job WHERE finalized_at IS NULL") == [(5,)], "only what is over is cleaned"


@pytest.mark.conformance(281, 288)
@pytest.mark.usefixtures("old_jobs")
def test_nothing_is_deleted_when_everything_is_kept_for_ever(client: Client, sql: Rows, server: Tx) -> None:
    Maintenance(client.schema, keep=dict.fromkeys(KEPT)).prune(server)
    assert sql("SELECT count(*) FROM pgjobs.job") == [(11,)]


@pytest.mark.conformance(281)
@pytest.mark.usefixtures("old_jobs")
def test_a_pool_cleans_by_its_settings(client: Client, sql: Rows) -> None:
    with WorkerPool(client, {Thing: nothing}, queues={"idle": 1}, keep_cancelled=None):
        wait_until(lambda: left(sql) == {"cancelled"})
    assert sql("SELECT count(*) FROM pgjobs.job WHERE kind = 'new'") == [(3,)]


def test_jobs_are_cleaned_in_batches_the_oldest_first(
    client: Client, sql: Rows, server: Tx, duties: Maintenance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgjobs.maintenance.batch_size.LARGE_BATCH", 2)
    sql(
        "INSERT INTO pgjobs.job (kind, state, finalized_at)"
        " SELECT 'old', 'completed', now() - interval '2 days' + n * interval '1 minute'"
        " FROM generate_series(3, 1, -1) n"
    )
    assert duties.prune(server) == ZERO
    assert sql("SELECT id FROM pgjobs.job") == [(1,)], "the youngest"
    assert duties.prune(server) > ZERO
    assert sql("SELECT id FROM pgjobs.job") == []


# --- who does them: any process, and none can hold a duty


def a_due_job(client: Client, sql: Rows) -> Job[Any]:
    job = client.enqueue(None, Thing(), delay=timedelta(hours=1))
    make_due(sql)
    return job


@pytest.mark.conformance(292, 294)
def test_a_duty_that_one_process_is_at_is_left_to_it_and_taken_over_when_it_dies(
    *, client: Client, sql: Rows, server: Tx, connect: Connect, duties: Maintenance, stored: Stored
) -> None:
    """Instead of a leader there is a row per duty: whoever can lock it does the duty."""
    job = a_due_job(client, sql)
    other = connect(autocommit=True)
    assert MaintenanceQueries(client.schema).begin_duty(other, "promote") is not None
    assert duties.do(server, "promote") > ZERO
    assert stored(job).state == JobState.SCHEDULED, "somebody else is at it"
    other.close()
    wait_until(lambda: duties.do(server, "promote") and stored(job).state == JobState.AVAILABLE)


@pytest.mark.conformance(292)
def test_a_duty_that_was_just_done_is_not_due_for_another_process(
    client: Client, sql: Rows, server: Tx, connect: Connect, duties: Maintenance
) -> None:
    assert duties.do(server, "prune") == timedelta(seconds=30)
    sql("INSERT INTO pgjobs.job (kind, state, finalized_at) VALUES ('old', 'completed', now() - interval '9 days')")
    assert 29 * SECOND < duties.do(connect(autocommit=True), "prune") < 30 * SECOND
    assert sql("SELECT count(*) FROM pgjobs.job") == [(1,)]
    sql("UPDATE pgjobs.maintenance SET next_run_at = clock_timestamp()")
    duties.do(server, "prune")
    assert sql("SELECT count(*) FROM pgjobs.job") == [(0,)]


@pytest.mark.conformance(293)
def test_the_server_ends_a_duty_whose_process_hangs(client: Client, server: Tx) -> None:
    MaintenanceQueries(client.schema).begin_duty(server, "rescue")
    bounds = [
        server.execute(f"SHOW {name}").fetchone()
        for name in ("idle_in_transaction_session_timeout", "statement_timeout", "lock_timeout")
    ]
    assert bounds == [("5s",), ("30s",), ("5s",)]
    rollback(server)
    assert server.execute("SHOW idle_in_transaction_session_timeout").fetchone() == ("0",), "for the duty alone"


@pytest.mark.conformance(294)
def test_a_duty_that_fails_is_moved_on_and_does_not_stop_the_others(
    client: Client, sql: Rows, monkeypatch: pytest.MonkeyPatch, stored: Stored
) -> None:
    job = a_due_job(client, sql)
    vanished = client.enqueue(None, Thing())
    sql(f"UPDATE pgjobs.job SET state = 'running', attempt = 1 WHERE id = {vanished.id}")

    def broken(*args: Any) -> list[Job[Any]]:
        raise psycopg.OperationalError("no rescue today")

    monkeypatch.setattr(MaintenanceQueries, "rescue", staticmethod(broken))
    with WorkerPool(client, {Thing: nothing}, queues={"idle": 1}):
        wait_until(lambda: stored(job).state == JobState.AVAILABLE)
        later = "SELECT next_run_at > clock_timestamp() + interval '3 s' FROM pgjobs.maintenance WHERE duty = 'rescue'"
        wait_until(lambda: sql(later) == [(True,)])


def test_a_promote_does_not_wait_for_the_disk(client: Client, server: Tx, duties: Maintenance) -> None:
    with server.transaction():
        duties.promote(server)
        assert server.execute("SHOW synchronous_commit").fetchall() == [("off",)]


def test_an_idle_queue_costs_no_transaction_of_a_duty_that_would_find_nothing(
    client: Client, sql: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    looks: list[set[str]] = []
    begin, look = MaintenanceQueries(client.schema).begin_duty, MaintenanceQueries(client.schema).anything_due

    def begun(conn: Tx, duty: str, *more: Any) -> timedelta | None:
        done.append(duty)
        return begin(conn, duty, *more)

    def looked(conn: Tx, soon: timedelta) -> set[str]:
        looks.append(look(conn, soon))
        return looks[-1]

    monkeypatch.setattr(MaintenanceQueries, "begin_duty", staticmethod(begun))
    monkeypatch.setattr(MaintenanceQueries, "anything_due", staticmethod(looked))
    with WorkerPool(client, {Thing: nothing}, queues={"idle": 1}):
        wait_until(lambda: "promote" in done, 20)  # when the listener began to listen, for what it may have missed
        done.clear()
        before = len(looks)
        wait_until(lambda: len(looks) > before + 1, 20)
        assert not {"promote", "rescue"} & set(done)
        client.enqueue(None, Thing(), delay=timedelta(hours=1))
        sql("UPDATE pgjobs.job SET scheduled_at = now()")  # behind the back of all who would tell
        wait_until(lambda: "promote" in done, 20)
        sql("UPDATE pgjobs.job SET state = 'running', attempt = 1")
        wait_until(lambda: "rescue" in done, 20)
        assert {"promote"} in looks


@pytest.mark.parametrize("listen", [True, False])
def test_an_idle_process_that_hears_of_nothing_looks_every_second(
    client: Client, stored: Stored, monkeypatch: pytest.MonkeyPatch, listen: bool
) -> None:
    """Else a job with a short delay would wait for a look that is further away."""
    monkeypatch.setattr("pgjobs.maintenance.duties.IDLE_LOOK_EVERY", timedelta(hours=1))
    look, looks = MaintenanceQueries(client.schema).anything_due, list[set[str]]()

    def looked(conn: Tx, soon: timedelta) -> set[str]:
        looks.append(look(conn, soon))
        return looks[-1]

    monkeypatch.setattr(MaintenanceQueries, "anything_due", staticmethod(looked))
    with WorkerPool(client, {Thing: nothing}, queues={"default": 1}, listen=listen, poll_interval=SECOND / 20) as pool:
        wait_until(lambda: looks and looks[-1] == set())
        if listen:
            wait_until(lambda: inside.listens_directly(pool))
        job = client.enqueue(None, Thing(), delay=SECOND / 3)
        wait_until(lambda: stored(job).state == JobState.COMPLETED)


def test_a_rescued_job_starts_at_its_time_though_nobody_looks_for_what_is_due(
    client: Client, sql: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgjobs.maintenance.duties.IDLE_LOOK_EVERY", timedelta(hours=1))
    maintenance = "pgjobs.maintenance.duties.Maintenance.anything_due"
    monkeypatch.setattr(maintenance, lambda *args: {"rescue"})  # all that was to be seen when it looked
    with WorkerPool(client, {"thing": nothing}, queues={"default": 1}, poll_interval=timedelta(hours=1)):
        wait_until(lambda: sql("SELECT 1 FROM pgjobs.maintenance WHERE duty = 'promote' AND next_run_at > now()"))
        sql(
            "INSERT INTO pgjobs.job (kind, state, attempt, attempted_at, attempted_by, token) "
            "SELECT kind, 'running', 1, now() - interval '1 hour', '{x}', gen_random_uuid() "
            "FROM (VALUES (%s)) AS of(kind)",
            "thing",
        )
        wait_until(lambda: sql("SELECT 1 FROM pgjobs.job WHERE state = 'completed'"), timeout=20)


def test_a_snoozed_job_comes_back(client: Client, stored: Stored) -> None:
    runs: list[int] = []

    def handler(tx: Tx, job: Job[Thing]) -> None:
        runs.append(job.attempt)
        if len(runs) == 1:
            raise Snooze(SECOND / 20)

    job = client.enqueue(None, Thing())
    with WorkerPool(client, {Thing: handler}):
        wait_until(lambda: stored(job).state == JobState.COMPLETED)
    assert runs == [1, 1]


def test_a_job_that_the_application_refers_to_stays_and_does_not_keep_the_others(
    client: Client, sql: Rows, server: Tx, duties: Maintenance
) -> None:
    jobs = client.enqueue_many(None, [Thing(n) for n in range(5)])
    sql("UPDATE pgjobs.job SET state = 'completed', finalized_at = now() - interval '1 year'")
    sql("CREATE TABLE pgjobs.mine (job bigint, queue text, FOREIGN KEY (job, queue) REFERENCES pgjobs.job (id, queue))")
    sql(f"INSERT INTO pgjobs.mine VALUES ({jobs[2].id}, 'default')")
    duties.prune(server)
    assert sql("SELECT id FROM pgjobs.job") == [(jobs[2].id,)]
