"""Races and stuck states, one by one: each test fails when the rule that it is named after is taken away."""

from __future__ import annotations

import logging
import os
import re
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from pgjobs import AttemptLost, Client, Handler, Job, JobLocked, JobState, NewJob, UniqueConflict, WorkerPool, constant
from pgjobs.db.connection import shut_down
from pgjobs.db.cursors import AnyConnection
from pgjobs.embedded import EmbeddedPostgres
from pgjobs.execution.attempt import Attempt
from pgjobs.execution.outcome import COMPLETED, Outcome, decide
from pgjobs.execution.queries import ExecutionQueries
from pgjobs.maintenance.queries import MaintenanceQueries, RetentionRule
from tests import by_hand, inside, modes
from tests.conftest import Connect
from tests.samples import OF_THIS_DATABASE
from tests.waiting import wait_until
from tests.waking import sleep_on

NO_DELAY = timedelta(0)
AT_ONCE = constant(NO_DELAY)
LATER = constant(timedelta(hours=1))


@dataclass
class Table:
    """The jobs of one schema, seen from beside the library, through a connection in autocommit mode."""

    client: Client
    conn: AnyConnection

    def query(self, text: str, *values: Any) -> list[Any]:
        cur = self.conn.execute(self.sql(text), values)
        return cur.fetchall() if cur.description else []

    def sql(self, text: str) -> sql.Composed:
        return sql.SQL(text).format(schema=sql.Identifier(self.client.schema))

    def enqueue(self, kind: str = "any", **options: Any) -> Job[Any]:
        args: dict[str, Any] = {}
        return self.client.enqueue(None, args, kind=kind, **options)

    def job(self, job: Job[Any]) -> Job[Any]:
        found = self.client.get(job.id)
        assert found is not None
        return found

    def claim(self, conn: AnyConnection, **options: Any) -> Job[Any] | None:
        return by_hand.claim(self.client, conn, **options)

    def must_claim(self, conn: AnyConnection, **options: Any) -> Job[Any]:
        job = self.claim(conn, **options)
        assert job is not None
        return job

    def rescue(self, grace: timedelta = NO_DELAY) -> list[Job[Any]]:
        return self.maintenance.rescue(self.conn, 100, grace)

    @property
    def maintenance(self) -> MaintenanceQueries:
        return MaintenanceQueries(self.client.schema)

    @property
    def store(self) -> ExecutionQueries:
        return self.client.queries


@pytest.fixture
def table(client: Client, connect: Connect) -> Table:
    made = Table(client, connect(autocommit=True))
    made.query("CREATE TABLE {schema}.effect (job bigint, attempt integer)")
    return made


@pytest.fixture
def worker(connect: Connect) -> AnyConnection:
    """A connection as a worker thread holds one."""
    return connect(autocommit=True)


def write(table: Table, tx: AnyConnection, job: Job[Any]) -> None:
    tx.execute(table.sql("INSERT INTO {schema}.effect VALUES (%s, %s)"), [job.id, job.attempt])


def in_thread(act: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def failure(job: Job[Any]) -> Outcome:
    return decide(job, ValueError("failed"), LATER)


# R1: attempt numbers come again, tokens never.


def test_r1_a_late_finish_of_an_old_claim_does_not_touch_a_new_one_of_the_same_attempt_number(
    table: Table, worker: AnyConnection, connect: Connect
) -> None:
    table.enqueue()
    old = table.must_claim(worker)
    assert old.token is not None
    worker.execute("ROLLBACK")
    assert table.store.unclaim(table.conn, queue=old.queue, token=old.token)
    new = table.must_claim(connect(autocommit=True))
    assert (new.id, new.attempt) == (old.id, old.attempt), "the number alone would fence nothing"

    # the new one's lock is dropped first, so that nothing but the token stands in the way
    table.query(
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE relation = '{schema}.job'::regclass AND pid <> "
        "pg_backend_pid()"
    )
    wait_until(lambda: table.query("SELECT id FROM {schema}.job FOR UPDATE SKIP LOCKED"))
    for outcome in (COMPLETED, failure(old)):
        with pytest.raises(AttemptLost):
            by_hand.finish_late(table.client, worker, old, outcome)
        worker.execute("ROLLBACK")
    assert table.job(new).token == new.token
    assert table.job(new).state == JobState.RUNNING


def test_r1_a_snooze_between_two_attempts_makes_no_difference(table: Table, worker: AnyConnection) -> None:
    table.enqueue()
    old = table.must_claim(worker)
    by_hand.fail(table.client, worker, old, Outcome(JobState.SCHEDULED, delay=NO_DELAY, refund=True))
    new = table.must_claim(worker)
    assert new.attempt == old.attempt == 1
    assert new.token != old.token
    with pytest.raises(AttemptLost):
        by_hand.complete(table.client, worker, old)


@pytest.mark.parametrize("since", ["retried by hand", "run again"])
def test_r1_a_late_record_of_a_refunded_attempt_does_not_restore_its_claim(
    table: Table, worker: AnyConnection, since: str
) -> None:
    """The answer to its snooze was lost with the connection, so it records it again, as after a crash of the server."""
    job = table.enqueue()
    snoozed = Outcome(JobState.SCHEDULED, delay=NO_DELAY, refund=True)
    old = table.must_claim(worker)
    by_hand.fail(table.client, worker, old, snoozed)
    if since == "retried by hand":
        table.client.retry(job.id)
    else:
        by_hand.fail(table.client, worker, table.must_claim(worker), snoozed)
    before = table.query("SELECT job::text FROM {schema}.job AS job")
    for outcome in (snoozed, failure(old)):
        with pytest.raises(AttemptLost):
            by_hand.finish_late(table.client, worker, old, outcome, after_loss=True)
        worker.execute("ROLLBACK")
    assert table.query("SELECT job::text FROM {schema}.job AS job") == before


# R2: a finish that matches nothing stops the COMMIT behind it.


@pytest.mark.conformance(46)
@pytest.mark.parametrize(
    "change",
    [
        "UPDATE {schema}.job SET state = 'available', token = NULL",
        "UPDATE {schema}.job SET state = 'cancelled', finalized_at = now()",
        "UPDATE {schema}.job SET token = '00000000-0000-0000-0000-000000000000'",
        "UPDATE {schema}.job SET queue = 'other'",
        "DELETE FROM {schema}.job",
    ],
)
@pytest.mark.parametrize("then", ["returns", "wants something kept", "fails"])
def test_r2_what_a_handler_wrote_is_not_committed_when_its_job_is_no_longer_its_own(
    table: Table, change: str, then: str
) -> None:
    """The handler changes the row itself: it holds the lock, nobody else could."""

    def handler(tx: AnyConnection, job: Job[Any]) -> None:
        write(table, tx, job)
        tx.execute(table.sql(change))
        if then == "wants something kept":
            job.set_metadata(seen=True)
        if then == "fails":
            raise ValueError("after the change")

    job = table.enqueue()
    assert WorkerPool(table.client, {"any": handler}, backoff=LATER).work_one()
    assert table.query("SELECT * FROM {schema}.effect") == []
    found = table.job(job)
    assert found.state == JobState.RETRYABLE, "put back, and a failed attempt"
    assert found.token is not None


@pytest.mark.no_decoys("has a trigger or a rule of its own that finds one")
@pytest.mark.parametrize("keeps", [False, True])
def test_r2_what_a_handler_wrote_is_not_committed_when_a_trigger_swallows_the_finish(table: Table, keeps: bool) -> None:
    table.query(
        """
        CREATE FUNCTION {schema}.swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
        CREATE TRIGGER swallow BEFORE UPDATE ON {schema}.job FOR EACH ROW
            WHEN (NEW.state = 'completed') EXECUTE FUNCTION {schema}.swallow();
        """
    )

    def handler(tx: AnyConnection, job: Job[Any]) -> None:
        write(table, tx, job)
        if keeps:
            job.set_metadata(seen=True)

    job = table.enqueue()
    assert WorkerPool(table.client, {"any": handler}, backoff=LATER).work_one()
    assert table.query("SELECT * FROM {schema}.effect") == []
    assert table.job(job).state == JobState.RETRYABLE


def test_r2_a_finish_without_its_row_raises_in_the_server_and_leaves_the_transaction_aborted(
    table: Table, worker: AnyConnection
) -> None:
    table.enqueue()
    job = table.must_claim(worker)
    write(table, worker, job)
    with pytest.raises(AttemptLost) as caught:
        by_hand.complete(table.client, worker, replace(job, token=uuid4()))
    assert isinstance(caught.value.__cause__, psycopg.Error)
    assert caught.value.__cause__.sqlstate == "PJ001"
    assert worker.info.transaction_status == psycopg.pq.TransactionStatus.INERROR
    assert table.query("SELECT * FROM {schema}.effect") == []


# R3: a job that takes the server with it is counted.


@pytest.fixture(scope="module")
def own_server() -> Iterator[EmbeddedPostgres]:
    """A server to crash: what was not flushed is lost, as in production."""
    settings = {"max_prepared_transactions": "5", "max_connections": "30"}
    with EmbeddedPostgres(fsync=True, settings=settings) as server:
        yield server


@pytest.fixture
def crash_client(own_server: EmbeddedPostgres) -> Iterator[Client]:
    with Client(own_server.dsn, schema=f"r3_{uuid4().hex[:8]}") as client:
        client.migrate()
        yield client


def test_r3_a_job_that_kills_its_backend_is_counted_from_the_second_time_at_the_latest(
    crash_client: Client, own_server: EmbeddedPostgres
) -> None:
    query = sql.SQL("SELECT state, attempt FROM {}.job").format(sql.Identifier(crash_client.schema))
    starts: list[int] = []
    left: list[Any] = []  # what the crash has left of the claim

    def handler(tx: AnyConnection, job: Job[Any]) -> None:
        starts.append(job.attempt)
        canary = psycopg.connect(own_server.dsn, autocommit=True)
        os.kill(tx.info.backend_pid, signal.SIGKILL)
        wait_until(lambda: _is_dead(canary))  # the server takes everybody down, and recovers from its disk
        wait_until(lambda: _answers(crash_client))
        with psycopg.connect(own_server.dsn) as conn:
            left.extend(conn.execute(query).fetchall())
        tx.execute("SELECT 1")

    pool = WorkerPool(crash_client, {"killer": handler}, backoff=AT_ONCE)
    # as if the server had been up for long: nobody has been cautious yet, the first claim need not reach the disk
    inside.forget_the_start_of_the_server(pool)
    args: dict[str, Any] = {}
    job = crash_client.enqueue(None, args, kind="killer", max_attempts=3)
    rounds = 0
    while len(starts) < 5 and (rounds := rounds + 1) < 20:
        # one job at a time and no duties, whose commits would take that of the claim to the disk
        with suppress(psycopg.Error):
            if not pool.work_one():
                break
        wait_until(lambda: _answers(crash_client), timeout=30)
    with psycopg.connect(own_server.dsn) as conn:
        found = crash_client.get(job.id, conn)
    assert found is not None
    assert found.state == JobState.DISCARDED
    assert found.attempt == 3
    assert starts in ([1, 2, 3], [1, 1, 2, 3])
    assert left[-2:] == [("running", 2), ("running", 3)], "only the very first claim may have been lost"
    assert [error.attempt for error in found.errors] == [1, 2, 3]


def _is_dead(conn: AnyConnection) -> bool:
    with suppress(psycopg.Error):
        conn.execute("SELECT 1")
    return conn.closed


def _answers(client: Client) -> bool:
    try:
        return client.missing_migrations() == []
    except psycopg.Error:
        return False


def test_r3_a_claim_soon_after_a_server_start_is_on_disk_before_its_handler_starts(
    crash_client: Client, own_server: EmbeddedPostgres
) -> None:
    """The server crashes in the handler: what was committed without waiting would be gone."""
    query = sql.SQL("SELECT state, attempt FROM {}.job").format(sql.Identifier(crash_client.schema))
    left: list[Any] = []

    def handler(tx: AnyConnection, job: Job[Any]) -> None:
        own_server.restart("immediate")
        with psycopg.connect(own_server.dsn) as conn:
            left.extend(conn.execute(query).fetchall())

    args: dict[str, Any] = {}
    crash_client.enqueue(None, args, kind="any")
    with suppress(psycopg.Error):
        WorkerPool(crash_client, {"any": handler}, backoff=LATER).work_one()
    assert left == [("running", 1)]


# R4: a detached job has no lock to show, only a lease.


def test_r4_a_job_with_a_lease_is_rescued_when_that_is_over_and_not_before(table: Table, worker: AnyConnection) -> None:
    table.enqueue("detached")
    table.enqueue("locked")
    claimed = [table.must_claim(worker, detached=["detached"]), None]
    worker.execute("ROLLBACK")  # no lock from here on
    claimed[1] = table.must_claim(worker, detached=["detached"])
    worker.execute("ROLLBACK")
    table.query("UPDATE {schema}.job SET attempted_at = attempted_at - interval '1 hour'")
    assert [job.kind for job in table.rescue(timedelta(seconds=3))] == ["locked"]
    assert table.rescue(timedelta(seconds=3)) == []

    table.query("UPDATE {schema}.job SET leased_until = now() - interval '1 ms' WHERE leased_until IS NOT NULL")
    rescued = table.rescue(timedelta(seconds=3))
    assert [(job.kind, job.state, job.error_count) for job in rescued] == [("detached", JobState.RETRYABLE, 1)]
    assert table.query("SELECT count(*) FROM {schema}.job WHERE leased_until IS NOT NULL") == [(0,)]


def test_r4_the_claim_itself_sets_the_lease_and_only_for_detached_kinds(table: Table, worker: AnyConnection) -> None:
    table.enqueue("detached")
    table.enqueue("other")
    for _ in range(2):
        table.must_claim(worker, detached=["detached", "more"], lease=timedelta(seconds=90))
        worker.execute("ROLLBACK")
    leases = dict(table.query("SELECT kind, leased_until - attempted_at FROM {schema}.job"))
    assert leases == {"detached": timedelta(seconds=90), "other": None}


# R5: nothing comes between claim and lock; and if something does, nothing was started.


@pytest.mark.parametrize("prepares", [True, False], ids=["prepared", "plain"])
def test_r5_claim_and_lock_leave_in_one_message(table: Table, worker: AnyConnection, prepares: bool) -> None:
    """So a stalled process cannot stop between them."""
    transport = table.store.transport(worker, prepares=prepares and not modes.PLAIN)
    settings = by_hand.request().settings

    def claim() -> None:
        table.enqueue()
        wanted = by_hand.request(settings=settings)
        job, _ = table.store.claim(transport, wanted, None, savepoint=True, by_tcp=True)
        assert job is not None

    claim()  # which prepares the statements
    worker.execute("ROLLBACK")
    with tempfile.TemporaryFile() as wire:
        worker.pgconn.trace(wire.fileno())
        claim()
        worker.pgconn.untrace()
        wire.seek(0)
        messages = re.findall(rb"^[^\t\n]*\t([FB])\t\d+\t(\w+)", wire.read(), re.MULTILINE)
    ways = b"".join(way for way, _ in messages)
    assert re.fullmatch(b"F+B+", ways), "all was sent before the first answer was read"
    sent = [kind for way, kind in messages if way == b"F"]
    assert sent == [b"Query"] if transport.prepares else (sent.count(b"Sync"), sent[-1]) == (1, b"Sync")


def steal_between_claim_and_lock(table: Table, theft: str) -> None:
    """A trigger that fires at the COMMIT of the claim stands for whoever comes between it and the lock."""
    table.query(
        "CREATE FUNCTION {schema}.steal() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        + theft
        + " RETURN NULL; END $$"
    )
    table.query(
        "CREATE CONSTRAINT TRIGGER steal AFTER UPDATE ON {schema}.job DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW WHEN (NEW.state OPERATOR(pg_catalog.=) 'running' "
        "AND OLD.state OPERATOR(pg_catalog.=) 'available') EXECUTE FUNCTION {schema}.steal()"
    )


RESCUED = """
    UPDATE {schema}.job SET state = 'retryable', scheduled_at = now() + interval '1 minute', max_attempts = 2,
        errors = errors || '[{{"attempt": 1, "error": "worker vanished: early", "trace": null}}]' WHERE id = NEW.id;
"""
DISCARDED = """
    UPDATE {schema}.job SET state = 'discarded', finalized_at = now(),
        errors = errors || '[{{"attempt": 1, "error": "worker vanished: early", "trace": null}}]' WHERE id = NEW.id;
"""


@pytest.mark.parametrize("theft", [RESCUED, DISCARDED], ids=["rescued", "discarded"])
def test_r5_the_lost_claim_of_a_live_worker_gives_the_attempt_back(table: Table, theft: str) -> None:
    started: list[int] = []
    steal_between_claim_and_lock(table, theft)
    job = table.enqueue(max_attempts=1)
    pool = WorkerPool(table.client, {"any": lambda tx, job: started.append(job.attempt)})
    assert not pool.work_one()
    assert started == []
    found = table.job(job)
    assert (found.state, found.attempt, found.errors) == (JobState.AVAILABLE, 0, ())
    assert (found.attempted_at, found.finalized_at, found.token) == (None, None, None)

    table.query("DROP TRIGGER steal ON {schema}.job")
    assert pool.work_one()
    assert started == [1]
    assert table.job(job).state == JobState.COMPLETED


def test_r5_a_claim_that_another_worker_has_taken_over_is_left_alone(table: Table) -> None:
    other = uuid4()
    steal_between_claim_and_lock(table, f"UPDATE {{schema}}.job SET token = '{other}' WHERE id = NEW.id;")
    job = table.enqueue()
    assert not WorkerPool(table.client, {"any": lambda tx, job: None}).work_one()
    found = table.job(job)
    assert (found.state, found.attempt, found.token) == (JobState.RUNNING, 1, other)


# R8: a request to cancel meets the end of the attempt that it is for.


def requests(table: Table) -> list[Any]:
    return table.query("SELECT job_id, token FROM {schema}.cancel_request")


def in_flight(table: Table, asker: AnyConnection, job: Job[Any]) -> None:
    """A request that is made while the job runs, and not committed yet."""
    assert not asker.autocommit
    assert table.client.cancel(job.id, asker, "not needed").state == JobState.RUNNING


def test_r8_a_request_that_is_committed_after_the_attempt_has_failed_cancels_the_waiting_job(
    table: Table, worker: AnyConnection, connect: Connect
) -> None:
    table.enqueue()
    job, asker = table.must_claim(worker), connect()
    in_flight(table, asker, job)
    by_hand.fail(table.client, worker, job, failure(job))
    asker.commit()
    assert table.job(job).state == JobState.RETRYABLE
    assert requests(table) == [(job.id, job.token)], "left over"
    assert table.maintenance.settle_requests(table.conn, 10) == (1, 1)
    settled = table.job(job)
    assert settled.state == JobState.CANCELLED
    assert settled.finalized_at is not None
    assert settled.metadata["cancel_reason"] == "not needed"
    assert "cancel_attempted_at" in settled.metadata
    assert [error.error for error in settled.errors] == ["failed"]
    assert requests(table) == []
    assert table.maintenance.settle_requests(table.conn, 10) == (0, 0)


@pytest.mark.parametrize("end", ["completed", "deleted"])
def test_r8_a_request_that_nobody_needs_any_more_is_removed(
    table: Table, worker: AnyConnection, connect: Connect, end: str
) -> None:
    table.enqueue()
    job, asker = table.must_claim(worker), connect()
    in_flight(table, asker, job)
    if end == "completed":
        by_hand.complete(table.client, worker, job)
    else:
        by_hand.fail(table.client, worker, job, decide(job, ValueError("failed"), AT_ONCE))
    if end == "deleted":
        table.client.delete(job.id)
    asker.commit()
    before = table.client.get(job.id)
    assert table.maintenance.settle_requests(table.conn, 10) == (0, 1)
    assert table.client.get(job.id) == before
    assert requests(table) == []


def test_r8_a_request_for_the_attempt_that_runs_is_left_to_it(table: Table, worker: AnyConnection) -> None:
    for _ in range(2):
        table.enqueue()
    job = table.must_claim(worker)
    table.client.cancel(job.id)
    assert table.maintenance.settle_requests(table.conn, 10) == (0, 0)
    assert requests(table) == [(job.id, job.token)]
    by_hand.fail(table.client, worker, job, failure(job))
    assert table.job(job).state == JobState.CANCELLED
    other = table.must_claim(worker)
    by_hand.fail(table.client, worker, other, failure(other))
    assert table.job(other).state == JobState.RETRYABLE, "nobody asked for that one"


def test_r8_a_request_for_an_earlier_attempt_is_handed_on_until_the_job_is_over(
    table: Table, worker: AnyConnection
) -> None:
    """The attempt that it names has failed, and the next one runs, before anybody has looked."""
    table.enqueue()
    old = table.must_claim(worker)
    by_hand.fail(table.client, worker, old, decide(old, ValueError("failed"), AT_ONCE))
    new = table.must_claim(worker)
    late = "INSERT INTO {schema}.cancel_request (job_id, queue, token, reason) VALUES (%s, 'default', %s, 'late')"
    table.query(late, old.id, old.token)
    by_hand.fail(table.client, worker, new, decide(new, ValueError("failed"), AT_ONCE))
    newest = table.must_claim(worker)
    assert newest.id == old.id, "nobody has looked, so that attempt was not asked"
    table.query(late, old.id, new.token)
    assert table.maintenance.settle_requests(table.conn, 10) == (0, 2)
    assert requests(table) == [(old.id, newest.token)] * 2
    found = table.store.cancelled_attempts(table.conn, [newest.token or uuid4()])
    assert found == {(newest.id, newest.token): "late"}
    assert table.maintenance.settle_requests(table.conn, 10) == (0, 0)
    by_hand.fail(table.client, worker, newest, failure(newest))
    assert table.job(newest).state == JobState.CANCELLED
    assert requests(table) == []


def test_r8_a_handler_is_told_of_a_request_for_an_earlier_attempt(table: Table) -> None:
    told: list[bool] = []

    def handler(tx: AnyConnection, job: Job[Any]) -> None:
        if job.attempt == 1:
            raise ValueError("failed")
        table.query(
            "INSERT INTO {schema}.cancel_request (job_id, queue, token, reason) VALUES (%s, 'default', %s, 'late')",
            job.id,
            uuid4(),
        )
        told.append(bool(wait_until(lambda: job.cancelled)))

    job = table.enqueue()
    with WorkerPool(table.client, {"any": handler}, queues={"default": 1}, backoff=AT_ONCE):
        wait_until(lambda: table.job(job).state.final)
    assert told == [True]


def test_r8_a_request_that_was_handed_on_does_not_reach_a_retry_by_hand(table: Table, worker: AnyConnection) -> None:
    table.enqueue()
    job = table.must_claim(worker)
    table.query(
        "INSERT INTO {schema}.cancel_request (job_id, queue, token, reason) VALUES (%s, 'default', %s, 'late')",
        job.id,
        uuid4(),
    )
    assert table.maintenance.settle_requests(table.conn, 10) == (0, 1)
    by_hand.complete(table.client, worker, job)
    assert len(requests(table)) == 1
    table.client.retry(job.id)
    again = table.must_claim(worker)
    assert table.maintenance.settle_requests(table.conn, 10) == (0, 0)
    by_hand.fail(table.client, worker, again, failure(again))
    assert table.job(job).state == JobState.RETRYABLE


def test_r8_a_request_that_is_left_over_does_not_reach_a_job_that_was_retried_by_hand(
    table: Table, worker: AnyConnection, connect: Connect
) -> None:
    table.enqueue()
    job, asker = table.must_claim(worker), connect()
    in_flight(table, asker, job)
    by_hand.complete(table.client, worker, job)
    asker.commit()
    assert len(requests(table)) == 1
    assert table.client.retry(job.id).token is None
    assert requests(table) == []
    assert table.maintenance.settle_requests(table.conn, 10) == (0, 0)
    assert table.job(job).state == JobState.AVAILABLE


def test_r8_a_retry_by_hand_waits_for_whoever_deals_with_a_request(
    table: Table, worker: AnyConnection, connect: Connect
) -> None:
    """A duty that holds the request but could not have the job would have its way after the retry."""
    table.enqueue()
    job, asker, duty = table.must_claim(worker), connect(), connect()
    in_flight(table, asker, job)
    by_hand.fail(table.client, worker, job, failure(job))
    asker.commit()
    duty.execute(table.sql("SELECT FROM {schema}.cancel_request FOR UPDATE"))
    with pytest.raises(JobLocked):
        table.client.retry(job.id)
    assert table.job(job).state == JobState.RETRYABLE
    duty.rollback()
    assert table.client.retry(job.id).state == JobState.AVAILABLE
    assert requests(table) == []


def test_r8_a_retry_by_hand_of_a_running_job_does_not_hold_up_its_end(
    table: Table, worker: AnyConnection, connect: Connect
) -> None:
    table.enqueue()
    worker.execute("SET lock_timeout = '1s'")
    job, caller = table.must_claim(worker), connect()
    table.client.cancel(job.id)
    assert table.client.retry(job.id, caller).state == JobState.RUNNING
    by_hand.fail(table.client, worker, job, failure(job))
    assert table.job(job).state == JobState.CANCELLED


def test_r8_what_somebody_holds_is_settled_the_next_time(table: Table, worker: AnyConnection, connect: Connect) -> None:
    table.enqueue()
    job, asker, holder = table.must_claim(worker), connect(), connect()
    in_flight(table, asker, job)
    by_hand.fail(table.client, worker, job, failure(job))
    asker.commit()
    holder.execute(table.sql("SELECT FROM {schema}.job FOR NO KEY UPDATE"))
    started = time.monotonic()
    assert table.maintenance.settle_requests(table.conn, 10) == (0, 0)
    assert time.monotonic() - started < 1
    assert len(requests(table)) == 1
    holder.rollback()
    assert table.maintenance.settle_requests(table.conn, 10) == (1, 1)


def test_r8_a_failed_attempt_that_is_no_longer_its_own_takes_no_request_with_it(
    table: Table, worker: AnyConnection
) -> None:
    table.enqueue()
    job = table.must_claim(worker)
    table.client.cancel(job.id)
    worker.execute("ROLLBACK")
    table.query("UPDATE {schema}.job SET token = gen_random_uuid()")
    with pytest.raises(AttemptLost):
        by_hand.finish_late(table.client, worker, job, failure(job))
    worker.execute("ROLLBACK")
    assert requests(table) == [(job.id, job.token)]
    assert table.job(job).state == JobState.RUNNING


# R10: two rows of one unique key.


def with_duplicate(table: Table, state: str, *, duplicate: str = "available") -> Job[Any]:
    """A job in a state that its key does not cover, and a duplicate that has the key meanwhile."""
    ids = []
    for each in (state, duplicate):
        ids += table.query(
            "INSERT INTO {schema}.job (kind, state, finalized_at, unique_key, unique_states) "
            "VALUES ('any', %s, CASE WHEN %s IN ('completed', 'cancelled', 'discarded') THEN now() END, 'key', "
            "'{{available,pending,running,scheduled}}') RETURNING id",
            *(each, each),
        )
    found = table.client.get(ids[0][0])
    assert found is not None
    return found


@pytest.mark.parametrize("state", ["discarded", "cancelled", "completed", "retryable"])
@pytest.mark.parametrize("duplicate", ["available", "pending", "scheduled"])
def test_r10_a_retry_by_hand_of_a_job_whose_twin_waits_is_refused_and_costs_no_transaction(
    table: Table, connect: Connect, state: str, duplicate: str
) -> None:
    job, tx = with_duplicate(table, state, duplicate=duplicate), connect()
    with pytest.raises(UniqueConflict):
        table.client.retry(job.id)
    args: dict[str, Any] = {}
    other = table.client.enqueue(tx, args, kind="other")
    with pytest.raises(UniqueConflict):
        table.client.retry(job.id, tx)
    tx.commit()
    assert table.job(other).state == JobState.AVAILABLE, "what the caller did beside it is committed"
    assert table.job(job) == job


def test_r10_a_retry_by_hand_of_a_job_whose_twin_is_over_goes_through(table: Table) -> None:
    assert table.client.retry(with_duplicate(table, "discarded", duplicate="completed").id).state == JobState.AVAILABLE


def test_r10_a_job_that_has_its_key_keeps_it_over_a_retry_by_hand(table: Table) -> None:
    job = with_duplicate(table, "scheduled", duplicate="discarded")
    assert table.client.retry(job.id).state == JobState.AVAILABLE


def test_r10_a_twin_that_is_being_inserted_is_not_waited_for_long(table: Table, connect: Connect) -> None:
    job, inserter = with_duplicate(table, "discarded", duplicate="completed"), connect()
    insert = (
        "INSERT INTO {schema}.job (kind, unique_key, unique_states) "
        "SELECT 'any', unique_key, unique_states FROM {schema}.job LIMIT 1"
    )
    inserter.execute(table.sql(insert))
    started = time.monotonic()
    with pytest.raises(JobLocked):
        table.client.retry(job.id)
    assert time.monotonic() - started < 4

    committing = threading.Timer(0.3, inserter.commit)
    committing.start()
    with pytest.raises(UniqueConflict):
        table.client.retry(job.id)
    committing.join()
    assert table.job(job) == job


# R9: rows of the application may reference the job.


@pytest.fixture
def referencing(table: Table) -> str:
    table.query(
        "CREATE TABLE {schema}.note "
        "(job bigint, queue text, FOREIGN KEY (job, queue) REFERENCES {schema}.job (id, queue))"
    )
    return "INSERT INTO {schema}.note SELECT id, queue FROM {schema}.job"


def test_r9_an_insert_that_references_a_running_job_does_not_wait(table: Table, referencing: str) -> None:
    """From inside the handler, through another connection: waiting would be a deadlock with oneself."""

    def handler(tx: AnyConnection, job: Job[Any]) -> None:
        table.query("SET lock_timeout = '500ms'")
        table.query(referencing)

    job = table.enqueue()
    WorkerPool(table.client, {"any": handler}, backoff=LATER).work_one()
    assert table.job(job).errors == ()
    assert table.query("SELECT count(*) FROM {schema}.note") == [(1,)]


def test_r9_an_open_insert_that_references_a_job_hides_it_neither_from_claim_nor_from_rescue_nor_from_promotion(
    table: Table, worker: AnyConnection, connect: Connect, referencing: str
) -> None:
    table.enqueue()
    application = connect()
    application.execute(table.sql(referencing))
    job = table.must_claim(worker)
    worker.execute("ROLLBACK")
    assert [rescued.id for rescued in table.rescue()] == [job.id]
    table.query("UPDATE {schema}.job SET scheduled_at = now()")
    assert table.maintenance.promote(table.conn, 10)[:2] == ({"default": 1}, [])
    application.rollback()


# R11: a connection is ended by its socket, and one that was sent a cancel is not used again.


def test_r11_a_connection_that_is_shut_down_frees_its_row_though_the_server_is_in_a_long_statement(
    table: Table, client: Client
) -> None:
    """And its thread is not left waiting for the answer."""
    started, ended = threading.Event(), threading.Event()
    running: list[Attempt] = []

    def handler(tx: AnyConnection, job: Job[Any]) -> None:
        running.extend(inside.attempts(pool))
        started.set()
        try:
            tx.execute("SELECT pg_sleep(60)")
        finally:
            ended.set()

    table.enqueue()
    pool = WorkerPool(client, {"any": handler}, backoff=LATER)
    thread = in_thread(pool.work_one)
    assert started.wait(10)
    sleeping = f"SELECT 1 FROM {OF_THIS_DATABASE} AND query = 'SELECT pg_sleep(60)' AND state = 'active'"
    wait_until(lambda: table.query(sleeping))
    (attempt,) = running
    assert attempt.checkout is not None
    attempt.checkout.shut_down(attempt._conn_id)
    assert ended.wait(5), "the thread has its error at once"
    # by the server's look for its client, every half a second
    wait_until(lambda: table.query("SELECT id FROM {schema}.job FOR UPDATE SKIP LOCKED"), timeout=5)
    thread.join(10)
    wait_until(lambda: table.query("SELECT state, attempt FROM {schema}.job") == [("retryable", 1)])
    assert not table.query(sleeping)


def test_r11_no_commit_can_start_on_a_connection_that_was_shut_down(table: Table, client: Client) -> None:
    def handler(tx: AnyConnection, job: Job[Any]) -> None:
        write(table, tx, job)
        shut_down(tx)

    job = table.enqueue()
    assert WorkerPool(client, {"any": handler}, backoff=LATER).work_one()
    found = table.job(job)
    assert (found.state, found.attempt, found.error_count) == (JobState.RETRYABLE, 1, 1)
    assert table.query("SELECT count(*) FROM {schema}.effect") == [(0,)]


def test_r11_who_shuts_down_a_connection_that_was_renewed_meanwhile_hits_nobody(client: Client) -> None:
    with client.source.checkout() as checkout:
        before = id(checkout.conn)
        old = checkout.conn  # kept, so that the new one has another id
        checkout.replace()
        checkout.shut_down(before)
        assert checkout.conn.execute("SELECT 1").fetchone() == (1,)
        assert old.closed


def test_r11_a_connection_that_was_sent_a_cancel_is_not_used_for_the_next_job(table: Table, client: Client) -> None:
    """The cancel may arrive late, and hit what runs by then."""
    backends: list[int] = []

    def handler(tx: AnyConnection, job: Job[Any]) -> None:
        backends.append(tx.info.backend_pid)
        if job.attempt == 1 and len(backends) == 1:
            with suppress(psycopg.errors.QueryCanceled), tx.transaction():
                tx.execute("SELECT pg_sleep(60)")

    slow, *_ = [table.enqueue() for _ in range(3)]
    timed = Handler(handler, timeout=lambda job: timedelta(seconds=0.2) if job.id == slow.id else None)
    with WorkerPool(client, {"any": timed}, queues={"default": 1}):
        wait_until(lambda: table.query("SELECT count(*) FROM {schema}.job WHERE state = 'completed'") == [(3,)])
    first, second, third = backends
    assert first != second, "though its job has completed"
    assert second == third, "others are"


# R15: nothing writes the job's row between lock and finish.


def test_r15_a_unique_twin_does_not_wait_for_a_job_that_wants_metadata_and_output_kept(
    table: Table, connect: Connect
) -> None:
    duplicate = connect(autocommit=True)
    duplicate.execute("SET statement_timeout = '5s'")
    rows: list[Any] = []

    def handler(tx: AnyConnection, job: Job[Any]) -> None:
        job.set_metadata(rows=3)
        job.record_output("much")
        insert = (
            "INSERT INTO {schema}.job (kind, unique_key, unique_states) SELECT kind, unique_key, unique_states "
            "FROM {schema}.job ON CONFLICT DO NOTHING RETURNING id"
        )
        rows.append(duplicate.execute(table.sql(insert)).fetchall())

    table.query(
        "INSERT INTO {schema}.job (kind, unique_key, unique_states) VALUES "
        "('any', 'key', '{{available,pending,running,scheduled}}')"
    )
    assert WorkerPool(table.client, {"any": handler}).work_one()
    assert rows == [[]], "a duplicate, and no wait that the timeout would have ended"
    assert table.query("SELECT state, metadata ->> 'rows', output FROM {schema}.job") == [("completed", "3", "much")]


def test_r15_the_row_has_one_version_from_the_lock_to_the_finish(table: Table) -> None:
    versions: list[Any] = []
    look = "SELECT xmin::text, ctid::text FROM {schema}.job"

    def handler(tx: AnyConnection, job: Job[Any]) -> None:
        versions.append(table.query(look))
        job.set_metadata(rows=3)
        job.record_output("much")
        versions.append(table.query(look))
        versions.append(tx.execute(table.sql(look)).fetchall())

    table.enqueue()
    assert WorkerPool(table.client, {"any": handler}).work_one()
    assert versions == [versions[0]] * 3
    assert table.query(look) != versions[0]


# R19: the second path does not wait for the dead connection's own lock.


def lose_the_connection(table: Table, tx: AnyConnection, holder: AnyConnection) -> None:
    """The connection dies, but its lock on the row does not: somebody else has it, as a backend that hangs would."""
    table.query("SELECT pg_terminate_backend(%s)", tx.info.backend_pid)
    holder.execute(table.sql("SELECT id FROM {schema}.job FOR UPDATE"))


def test_r19_an_attempt_whose_row_is_still_locked_is_left_to_the_rescue(
    table: Table, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    holder = connect()

    def handler(tx: AnyConnection, job: Job[Any]) -> None:
        lose_the_connection(table, tx, holder)
        raise ValueError("failed")

    job = table.enqueue()
    pool = WorkerPool(table.client, {"any": handler}, backoff=LATER)
    thread = in_thread(pool.work_one)
    thread.join(10)
    assert not thread.is_alive(), "the thread is free again while the row is still locked"
    assert "could not write the outcome; the rescue will" in caplog.text
    assert table.job(job).state == JobState.RUNNING
    assert table.rescue() == []
    holder.rollback()
    assert [found.id for found in table.rescue()] == [job.id]
    assert [error.error.partition(":")[0] for error in table.job(job).errors] == ["worker vanished"]


@pytest.mark.parametrize("fails", [False, True])
def test_r19_when_the_rescue_was_first_the_record_is_dropped(table: Table, fails: bool) -> None:
    def handler(tx: AnyConnection, job: Job[Any]) -> None:
        write(table, tx, job)
        table.query("SELECT pg_terminate_backend(%s)", tx.info.backend_pid)
        wait_until(table.rescue)
        if fails:
            raise ValueError("failed")

    job = table.enqueue()
    assert WorkerPool(table.client, {"any": handler}, backoff=AT_ONCE).work_one()
    found = table.job(job)
    assert (found.state, found.attempt) == (JobState.RETRYABLE, 1)
    assert [error.error.partition(":")[0] for error in found.errors] == ["worker vanished"]
    assert table.query("SELECT count(*) FROM {schema}.effect") == [(0,)]


# R12: the isolation level of the surroundings is not ours.


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
@pytest.mark.parametrize("where", ["database", "options"])
def test_r12_two_hundred_jobs_over_four_threads_without_an_error(
    fresh_database: str, level: str, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    if where == "database":
        name = sql.Identifier(str(psycopg.conninfo.conninfo_to_dict(fresh_database)["dbname"]))
        with psycopg.connect(fresh_database, autocommit=True) as admin:
            statement = "ALTER DATABASE {} SET default_transaction_isolation = {}"
            admin.execute(sql.SQL(statement).format(name, sql.Literal(level)))
        dsn = fresh_database
    else:
        escaped = level.replace(" ", r"\ ")
        dsn = psycopg.conninfo.make_conninfo(fresh_database, options=f"-c default_transaction_isolation={escaped}")
    seen: set[str] = set()

    def handler(tx: AnyConnection, job: Job[Any]) -> None:
        row = tx.execute("SHOW transaction_isolation").fetchone()
        assert row is not None
        seen.add(row[0])
        tx.execute("UPDATE counter SET n = n + 1")

    with Client(dsn) as client:
        client.migrate()
        with client.pool.connection() as conn:
            assert conn.execute("SHOW default_transaction_isolation").fetchone() == (level,)
            conn.execute("CREATE TABLE counter AS SELECT 0 AS n")
        caplog.set_level(logging.WARNING, "pgjobs")
        client.enqueue_many(None, [NewJob({"n": n}, kind="any") for n in range(200)])
        with WorkerPool(client, {"any": handler}, queues={"default": 4}, backoff=LATER):
            wait_until(lambda: _count(client, "state = 'completed'") == 200, timeout=30)
        assert _count(client, "attempt = 1 AND errors = '[]'") == 200
        with client.pool.connection() as conn:
            assert conn.execute("SELECT n FROM counter").fetchone() == (200,)
    assert seen == {"read committed"}
    assert [record.getMessage() for record in caplog.records if record.name.startswith("pgjobs")] == []


def _count(client: Client, condition: str) -> int:
    with client.pool.connection() as conn:
        row = conn.execute(f"SELECT count(*) FROM pgjobs.job WHERE {condition}".encode()).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_r12_a_duty_that_is_taken_at_the_same_time_is_no_error(table: Table, connect: Connect, level: str) -> None:
    """The other one commits between the beginning of ours and its update."""
    ours = connect(autocommit=True, options=f"-c default_transaction_isolation={level.replace(' ', chr(92) + ' ')}")
    table.enqueue(delay=timedelta(hours=1))
    remaining = table.maintenance.begin_duty(ours, "promote")
    assert remaining is not None
    table.query("UPDATE {schema}.job SET scheduled_at = now()")
    assert table.maintenance.promote(ours, 10)[:2] == ({"default": 1}, [])
    table.maintenance.end_duty(ours, "promote", NO_DELAY)


# R20: an id alone names no job.


def duplicates(table: Table, state: str = "available") -> int:
    """Two jobs of one id, in two queues."""
    for queue in ("default", "other"):
        table.query(
            "INSERT INTO {schema}.job (id, queue, kind, state) OVERRIDING SYSTEM VALUE VALUES (7, %s, 'any', %s)",
            queue,
            state,
        )
    return 7


def states(table: Table) -> dict[str, tuple[Any, ...]]:
    rows = table.query("SELECT queue, state, attempt, token IS NULL, jsonb_array_length(errors) FROM {schema}.job")
    return {row[0]: tuple(row[1:]) for row in rows}


UNTOUCHED = ("available", 0, True, 0)


def test_r20_claim_and_finish_touch_one_of_two_jobs_with_the_same_id(table: Table, worker: AnyConnection) -> None:
    duplicates(table)
    job = table.must_claim(worker, queue="default")
    assert states(table) == {"default": ("running", 1, False, 0), "other": UNTOUCHED}
    by_hand.fail(table.client, worker, job, failure(job))
    assert states(table) == {"default": ("retryable", 1, False, 1), "other": UNTOUCHED}


def test_r20_a_finish_names_queue_and_token_both(table: Table, worker: AnyConnection) -> None:
    duplicates(table)
    job = table.must_claim(worker, queue="default")
    table.query("UPDATE {schema}.job SET state = 'running', token = %s WHERE queue = 'other'", job.token)
    by_hand.complete(table.client, worker, job)
    assert {queue: row[0] for queue, row in states(table).items()} == {"default": "completed", "other": "running"}


def test_r20_rescue_promotion_and_cleaning_touch_one_of_two_jobs_with_the_same_id(table: Table) -> None:
    duplicates(table, "available")
    old = "UPDATE {schema}.job SET state = 'running', attempt = 1, attempted_at = '2020-01-01' WHERE queue = 'default'"
    table.query(old)
    assert [job.queue for job in table.rescue()] == ["default"]
    assert states(table)["other"] == UNTOUCHED

    table.query("UPDATE {schema}.job SET scheduled_at = '2020-01-01' WHERE queue = 'default'")
    table.query("UPDATE {schema}.job SET state = 'pending' WHERE queue = 'other'")
    assert table.maintenance.promote(table.conn, 10)[:2] == ({"default": 1}, [])
    assert states(table)["other"][0] == "pending"

    table.query("UPDATE {schema}.job SET state = 'completed', finalized_at = '2020-01-01' WHERE queue = 'default'")
    assert table.maintenance.prune(table.conn, RetentionRule(JobState.COMPLETED, NO_DELAY), 10) == 1
    assert list(states(table)) == ["other"]


def test_r20_an_id_cannot_be_given_by_an_ordinary_insert(table: Table) -> None:
    with pytest.raises(psycopg.errors.GeneratedAlways):
        table.query("INSERT INTO {schema}.job (id, kind) VALUES (1, 'any')")


# R25: small print of Postgres.


def multixacts(conn: AnyConnection) -> int:
    """How many MultiXacts the server has ever made."""
    row = conn.execute("SELECT mxid_age('1'::xid)").fetchone()
    assert row is not None
    return int(row[0])


def test_r25_the_measure_sees_a_row_written_behind_an_open_savepoint(table: Table, worker: AnyConnection) -> None:
    table.enqueue()
    before = multixacts(table.conn)
    worker.execute(
        table.sql(
            "BEGIN; SELECT FROM {schema}.job FOR NO KEY UPDATE; "
            "SAVEPOINT s; UPDATE {schema}.job SET priority = 1; COMMIT"
        )
    )
    assert multixacts(table.conn) == before + 1


@pytest.mark.parametrize("fails", [False, True])
def test_r25_no_outcome_makes_a_multixact(table: Table, worker: AnyConnection, fails: bool) -> None:
    table.enqueue()
    before = multixacts(table.conn)
    job = table.must_claim(worker)
    write(table, worker, job)
    if fails:
        by_hand.fail(table.client, worker, job, failure(job))
    else:
        by_hand.complete(table.client, worker, job)
    assert multixacts(table.conn) == before


def test_r25_a_job_enqueued_without_a_notification_can_be_prepared(crash_client: Client) -> None:
    """With one that is asked for it depends on whether somebody sleeps just then."""
    args: dict[str, Any] = {}
    conninfo: Any = crash_client.pool.conninfo
    with psycopg.connect(conninfo, autocommit=True) as sleeper, crash_client.pool.connection() as tx:
        crash_client.enqueue(tx, args, kind="loud")
        tx.execute("PREPARE TRANSACTION 'heard by nobody'")
        with psycopg.connect(conninfo, autocommit=True) as end:
            end.execute("ROLLBACK PREPARED 'heard by nobody'")
        sleep_on(sleeper, crash_client, "default")
        check_preparing(crash_client)


def check_preparing(crash_client: Client) -> None:
    args: dict[str, Any] = {}
    with crash_client.pool.connection() as tx:
        silent = crash_client.enqueue(tx, args, kind="silent", notify=False)
        tx.execute("PREPARE TRANSACTION 'silent'")
    with crash_client.pool.connection() as tx:
        tx.autocommit = True
        tx.execute("COMMIT PREPARED 'silent'")
        tx.autocommit = False
    found = crash_client.get(silent.id)
    assert found is not None
    with crash_client.pool.connection() as tx:
        crash_client.enqueue(tx, args, kind="loud")
        with pytest.raises(psycopg.errors.FeatureNotSupported):
            tx.execute("PREPARE TRANSACTION 'loud'")


def test_r25_a_stored_job_has_attempt_0_and_its_first_run_sees_1(table: Table) -> None:
    seen: list[int] = []
    job = table.enqueue()
    assert job.attempt == table.job(job).attempt == 0
    WorkerPool(table.client, {"any": lambda tx, job: seen.append(job.attempt)}).work_one()
    assert seen == [1]
    assert table.job(job).attempt == 1


# T5: the record of a failure is written behind the lock that the attempt has held all along.


@pytest.mark.parametrize("fails", ["", "raises", "in SQL"])
def test_t5_the_row_is_never_to_be_had_between_the_handler_and_the_record(
    table: Table, connect: Connect, fails: str
) -> None:
    """A trigger holds the record up before it touches the row; meanwhile others try to get it."""
    gate = connect(autocommit=True)
    table.query(
        "CREATE FUNCTION {schema}.hold() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_advisory_xact_lock(4712); RETURN NULL; END $$"
    )
    table.query("CREATE TRIGGER hold BEFORE UPDATE ON {schema}.job EXECUTE FUNCTION {schema}.hold()")

    def handler(tx: AnyConnection, job: Job[Any]) -> None:
        write(table, tx, job)
        gate.execute("SELECT pg_advisory_lock(4712)")
        if fails == "in SQL":  # nothing can be prepared in an aborted transaction
            tx.execute("SELECT 1 / 0")
        if fails:
            raise ValueError("failed")

    job = table.enqueue()
    pool = WorkerPool(table.client, {"any": handler}, backoff=LATER)
    thread = in_thread(pool.work_one)
    try:
        wait_until(lambda: table.query(f"SELECT 1 FROM {OF_THIS_DATABASE} AND wait_event = 'advisory'"))
        assert table.query("SELECT state FROM {schema}.job") == [("running",)]
        assert table.query("SELECT id FROM {schema}.job FOR NO KEY UPDATE SKIP LOCKED") == []
        with pytest.raises(psycopg.errors.LockNotAvailable):
            table.query("SELECT id FROM {schema}.job FOR NO KEY UPDATE NOWAIT")
    finally:
        gate.execute("SELECT pg_advisory_unlock_all()")
        thread.join(10)
    assert table.job(job).state == (JobState.RETRYABLE if fails else JobState.COMPLETED)
    assert table.query("SELECT count(*) FROM {schema}.effect") == [(0 if fails else 1,)]


def test_t5_a_prober_never_finds_a_started_job_whose_lock_can_be_had(table: Table, connect: Connect) -> None:
    """The same without a trigger: a hundred failing jobs against somebody who tries all the time."""
    started: set[int] = set()
    found: list[int] = []
    done = threading.Event()
    prober = connect(autocommit=True)
    probe = table.sql("SELECT id FROM {schema}.job WHERE state = 'running' FOR NO KEY UPDATE SKIP LOCKED")

    def handler(tx: AnyConnection, job: Job[Any]) -> None:
        started.add(job.id)
        tx.execute("SELECT pg_sleep(0.003)")
        raise ValueError("failed")

    def keep_trying() -> None:
        while not done.is_set():
            known = set(started)  # not those that are between the commit of the claim and the lock behind it
            found.extend(id for (id,) in prober.execute(probe).fetchall() if id in known)

    for _ in range(100):
        table.enqueue()
    thread = in_thread(keep_trying)
    pool = WorkerPool(table.client, {"any": handler}, backoff=LATER)
    while pool.work_one():
        pass
    done.set()
    thread.join(10)
    assert found == []
    assert table.query("SELECT count(*) FROM {schema}.job WHERE state = 'retryable' AND attempt = 1") == [(100,)]
