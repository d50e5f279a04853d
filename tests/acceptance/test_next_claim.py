"""A claim that is sent with the finish of another job, and goes wrong: neither job pays for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg_pool import ConnectionPool

from pgjobs import Client, Hooks, Job, JobState, WorkerPool, constant
from pgjobs.db.connection import shared
from pgjobs.db.rows import claimed_job
from pgjobs.execution import queries, transport
from pgjobs.hooks import HookCalls
from tests import inside
from tests.acceptance.test_transport import (
    effects,
    either,
    enqueue,
    make_effects,
    refuse_once,
    stored,
    work,
    write_effect,
)
from tests.round_trips import RoundTrips, count_round_trips
from tests.samples import Tx
from tests.waiting import wait_until

__all__ = ["either"]

pytestmark = pytest.mark.one_by_one("no job is claimed with the finish of another")

DONE_AT_ONCE = (JobState.COMPLETED, 1, 0)
AGAIN_AT_ONCE = constant(timedelta(0))


class Told(Hooks):
    """The ends of the attempts, by the number of their job."""

    def __init__(self) -> None:
        self.ends: list[tuple[int, str]] = []

    def on_finish(self, job: Job[Any], error: BaseException | None) -> None:
        self.ends.append((job.args["number"], "completed" if error is None else type(error).__name__))


@pytest.fixture
def told(either: Client) -> Told:
    told = Told()
    either.hooks = HookCalls([told])
    return told


@pytest.fixture
def round_trips(monkeypatch: pytest.MonkeyPatch) -> RoundTrips:
    return count_round_trips(monkeypatch)


def ends_of(jobs: list[Job[Any]]) -> list[tuple[JobState, int, int]]:
    return [(job.state, job.attempt, job.error_count) for job in jobs]


def run_sql(client: Client, text: str) -> None:
    with client.pool.connection() as conn:
        conn.execute(sql.SQL(text).format(schema=sql.Identifier(client.schema)))


# --- the claim is refused


def returns(client: Client, tx: Tx, job: Job[Any]) -> None: ...


def writes(client: Client, tx: Tx, job: Job[Any]) -> None:
    write_effect(client, tx, job)


def keeps(client: Client, tx: Tx, job: Job[Any]) -> None:
    job.set_metadata({"kept": job.id})
    job.record_output("100% 'kept'")


def is_cancelled(client: Client, tx: Tx, job: Job[Any]) -> None:
    client.cancel(job.id, reason="too late")
    wait_until(lambda: job.cancelled)


@pytest.mark.parametrize("act", [returns, writes, keeps, is_cancelled])
def test_a_claim_that_is_refused_undoes_no_completion(
    *, either: Client, told: Told, round_trips: RoundTrips, act: Callable[[Client, Tx, Job[Any]], None]
) -> None:
    """A trigger refuses the claim of the second job, once. The first is completed once, and so is the second."""
    make_effects(either)
    refuse_once(either)
    starts: list[int] = []

    def handler(tx: Tx, job: Job[Any]) -> None:
        starts.append(job.args["number"])
        if job.args["number"] == 0:
            act(either, tx, job)

    jobs = work(either, handler, enqueue(either, 3))
    assert ends_of(jobs) == [DONE_AT_ONCE] * 3
    assert sorted(starts) == [0, 1, 2]
    assert sorted(told.ends) == [(number, "completed") for number in range(3)]
    assert effects(either) == ({jobs[0].id: 1} if act is writes else {})
    repeated = [labels for labels in round_trips.finishes if labels[0] == "rollback"]
    assert len(repeated) == (act is returns), "only where both were in one transaction"
    assert len(round_trips.shared) >= 1
    if act is keeps:
        assert (jobs[0].metadata["kept"], jobs[0].output) == (jobs[0].id, "100% 'kept'")
    if act is is_cancelled:
        assert jobs[0].metadata["cancel_reason"] == "too late"
        assert jobs[0].metadata["cancel_attempted_at"]


def test_a_completion_that_is_refused_beside_a_claim_is_the_failure_of_its_job(either: Client, told: Told) -> None:
    """A deferred trigger refuses it at the COMMIT that the claim shares: so it does when it is repeated alone."""
    run_sql(
        either,
        """
        CREATE FUNCTION {schema}.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            RAISE EXCEPTION 'not this one' USING ERRCODE = 'integrity_constraint_violation';
        END $$;
        CREATE CONSTRAINT TRIGGER refuse AFTER UPDATE ON {schema}.job DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
            WHEN (NEW.state OPERATOR(pg_catalog.=) 'completed'
                AND NEW.args OPERATOR(pg_catalog.->>) 'number' OPERATOR(pg_catalog.=) '0'
                AND NEW.attempt OPERATOR(pg_catalog.=) 1)
            EXECUTE FUNCTION {schema}.refuse();
        """,
    )
    jobs = work(either, lambda tx, job: None, enqueue(either, 3))
    assert ends_of(jobs) == [(JobState.COMPLETED, 2, 1), DONE_AT_ONCE, DONE_AT_ONCE]
    assert "not this one" in jobs[0].errors[0].error
    assert sorted(told.ends) == [(0, "TransactionBroken"), *((number, "completed") for number in range(3))]


# --- the job is claimed, but cannot be locked


def lock_raises(client: Client, sqlstate: str, number: int, *, times: int) -> None:
    """Let the lock of this job raise an error so many times, behind its claim, which is committed by then."""
    text = f"""
        CREATE SEQUENCE {{schema}}.locks;
        CREATE FUNCTION {{schema}}.may_lock(args jsonb) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
            IF args OPERATOR(pg_catalog.->>) 'number' OPERATOR(pg_catalog.=) '{number}'
                    AND pg_catalog.nextval('{client.schema}.locks') OPERATOR(pg_catalog.<=) {times} THEN
                RAISE EXCEPTION 'not to be had' USING ERRCODE = '{sqlstate}';
            END IF;
            RETURN true;
        END $$;
    """
    run_sql(client, text)
    work, found = client.queries.work, b'AND "%b".may_lock(args)\n' % client.schema.encode()
    before, _, rest = work["lock"].rpartition(b"FOR NO KEY UPDATE")
    work["lock"] = before + found + b"FOR NO KEY UPDATE" + rest


@pytest.mark.parametrize("number", [0, 1], ids=["claimed alone", "claimed with a finish"])
@pytest.mark.parametrize("sqlstate", ["P0001", "22000", "54000", "57014", "55P03", "40001"])
def test_a_job_that_cannot_be_locked_is_unclaimed_and_its_attempt_not_counted(
    *, either: Client, told: Told, sqlstate: str, number: int
) -> None:
    lock_raises(either, sqlstate, number, times=1)
    starts: list[int] = []
    jobs = work(either, lambda tx, job: starts.append(job.args["number"]), enqueue(either, 3))
    assert ends_of(jobs) == [DONE_AT_ONCE] * 3
    assert sorted(starts) == [0, 1, 2]
    assert sorted(told.ends) == [(number, "completed") for number in range(3)]


@pytest.mark.parametrize("number", [0, 1], ids=["claimed alone", "claimed with a finish"])
def test_a_job_whose_row_cannot_be_read_is_discarded_and_the_others_are_worked(
    either: Client, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:

    def reads(row: Any, *args: Any) -> Job[Any]:
        job = claimed_job(row, *args)
        if job.args["number"] == number:
            raise ValueError("year 20000 is out of range")
        return job

    monkeypatch.setattr(queries, "claimed_job", reads)
    starts: list[int] = []
    jobs = work(either, lambda tx, job: starts.append(job.args["number"]), enqueue(either, 3))
    others = [each for each in range(3) if each != number]
    assert starts == others
    assert [jobs[each].state for each in others] == [JobState.COMPLETED] * 2
    assert (jobs[number].state, jobs[number].error_count) == (JobState.DISCARDED, 1)
    assert "cannot be read: year 20000 is out of range" in jobs[number].errors[0].error


# --- the finish finds that the job is no longer its own


@pytest.mark.parametrize("uses", [False, True], ids=["untouched", "used"])
def test_a_completion_that_a_trigger_swallows_takes_the_next_job_nothing(
    either: Client, told: Told, uses: bool
) -> None:
    """The claim behind it may be committed by then: it is undone."""
    make_effects(either)
    run_sql(
        either,
        """
        CREATE FUNCTION {schema}.swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
        CREATE TRIGGER swallow BEFORE UPDATE ON {schema}.job FOR EACH ROW
            WHEN (NEW.state OPERATOR(pg_catalog.=) 'completed' AND NEW.attempt OPERATOR(pg_catalog.=) 1
                AND NEW.args OPERATOR(pg_catalog.->>) 'number' OPERATOR(pg_catalog.=) '0')
            EXECUTE FUNCTION {schema}.swallow();
        """,
    )
    starts: list[tuple[int, int]] = []

    def handler(tx: Tx, job: Job[Any]) -> None:
        starts.append((job.args["number"], job.attempt))
        if uses:
            write_effect(either, tx, job)

    jobs = work(either, handler, enqueue(either, 3))
    assert ends_of(jobs) == [(JobState.COMPLETED, 2, 1), DONE_AT_ONCE, DONE_AT_ONCE]
    assert sorted(starts) == [(0, 1), (0, 2), (1, 1), (2, 1)]
    assert sorted(told.ends) == [(0, "TransactionBroken"), *((number, "completed") for number in range(3))]
    assert effects(either) == ({job.id: 1 for job in jobs} if uses else {})


@pytest.mark.parametrize("change", ["DELETE FROM {schema}.job", "UPDATE {schema}.job SET token = gen_random_uuid()"])
def test_a_handler_that_changes_its_own_row_takes_the_next_job_nothing(either: Client, told: Told, change: str) -> None:
    make_effects(either)

    def handler(tx: Tx, job: Job[Any]) -> None:
        write_effect(either, tx, job)
        if (job.args["number"], job.attempt) == (0, 1):
            text = f"{change} WHERE id = {job.id}"
            tx.execute(sql.SQL(text).format(schema=sql.Identifier(either.schema)))

    jobs = work(either, handler, enqueue(either, 3))
    assert ends_of(jobs) == [(JobState.COMPLETED, 2, 1), DONE_AT_ONCE, DONE_AT_ONCE]
    assert effects(either) == {job.id: 1 for job in jobs}
    assert sorted(told.ends) == [(0, "TransactionBroken"), *((number, "completed") for number in range(3))]


def test_a_job_that_was_rescued_meanwhile_is_not_completed_and_the_next_one_is_worked(
    either: Client, told: Told
) -> None:
    """Its connection is lost behind its back, so that its row is free."""
    inside_first, rescued = threading.Event(), threading.Event()

    def handler(tx: Tx, job: Job[Any]) -> None:
        if (job.args["number"], job.attempt) == (0, 1):
            with either.pool.connection() as conn:
                conn.execute("SELECT pg_terminate_backend(%s, 5000)", [tx.info.backend_pid])
            inside_first.set()
            assert rescued.wait(20)

    jobs = enqueue(either, 3)
    with WorkerPool(either, {"any": handler}, queues={"default": 1}, backoff=AGAIN_AT_ONCE):
        assert inside_first.wait(20)
        text = """UPDATE {schema}.job SET state = 'available', attempt = 1, token = NULL WHERE state = 'running'"""
        run_sql(either, text)
        rescued.set()
        wait_until(lambda: all(stored(either, job).state.final for job in jobs), 20)
    done = [stored(either, job) for job in jobs]
    assert ends_of(done) == [(JobState.COMPLETED, 2, 0), DONE_AT_ONCE, DONE_AT_ONCE]
    assert sorted(told.ends) == [(number, "completed") for number in range(3)]


# --- what is prepared


def test_handlers_that_deallocate_and_fail_have_their_outcome_written_at_once(either: Client, told: Told) -> None:
    """On a connection where the outcome of an earlier failure was written: it was left to the rescue."""
    pids: list[int] = []

    def handler(tx: Tx, job: Job[Any]) -> None:
        pids.append(tx.info.backend_pid)
        if job.attempt == 1:
            if job.args["number"]:
                tx.execute("DEALLOCATE ALL")
            raise ValueError("failed")

    jobs = work(either, handler, enqueue(either, 4))
    assert ends_of(jobs) == [(JobState.COMPLETED, 2, 1)] * 4
    assert {error.error for job in jobs for error in job.errors} == {"failed"}
    assert len(set(pids)) == 1
    failed = [(number, "ValueError") for number in range(4)]
    assert sorted(told.ends) == sorted([*failed, *((number, "completed") for number in range(4))])


@pytest.mark.parametrize("swallowed", [False, True])
def test_the_first_outcome_on_a_connection_may_be_that_of_an_error_in_sql(
    either: Client, told: Told, swallowed: bool
) -> None:
    """Nothing can be prepared in the aborted transaction."""

    def handler(tx: Tx, job: Job[Any]) -> None:
        if job.attempt == 1:
            try:
                tx.execute("SELECT 1 / 0")
            except psycopg.Error:
                if not swallowed:
                    raise

    jobs = work(either, handler, enqueue(either, 2))
    assert ends_of(jobs) == [(JobState.COMPLETED, 2, 1)] * 2
    why = "an SQL error in the handler was swallowed" if swallowed else "division by zero"
    assert all(why in job.errors[0].error for job in jobs)


@pytest.mark.prepared("looks at what is prepared")
def test_what_is_kept_of_a_work_map_that_changes_for_ever_is_bounded(
    database: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The statements stay the same, so nothing is deallocated, but each change makes new messages of them."""
    monkeypatch.setattr(transport, "_MOST_TEMPLATES", 10)
    with ConnectionPool(database, min_size=1, max_size=1, kwargs={"prepare_threshold": 5}, open=True) as connections:
        theirs = Client(connections, schema=client.schema)
        pool = WorkerPool(theirs, {"any": lambda tx, job: None})
        kept: list[int] = []
        for _ in range(30):
            del pool.work_map["any"]
            pool.work_map["any"] = lambda tx, job: None
            enqueue(theirs, 1)
            assert pool.work_one()
            with connections.connection() as conn:
                (used,) = shared(conn)["transports"].values()
                kept.append(len(used._templates))
    assert max(kept) <= 10 < sum(kept)


def test_a_finish_takes_no_claim_with_it_when_the_pool_stops(either: Client, round_trips: RoundTrips) -> None:
    """The stop begins in the handler."""
    jobs = enqueue(either, 2)
    pool = WorkerPool(either, {"any": lambda tx, job: inside.begin_stop(pool)}, queues={"default": 1})
    with pool:
        wait_until(lambda: not inside.at_work(pool))
    assert [stored(either, job).state for job in jobs] == [JobState.COMPLETED, JobState.AVAILABLE]
    assert (len(round_trips.finishes), len(round_trips.shared)) == (1, 0)
