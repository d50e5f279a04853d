"""Batches: many jobs in one transaction, and each of them as if it had its own."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool

import pgjobs.execution.attempt
from pgjobs import (
    Cancel,
    Client,
    Discard,
    Handler,
    Hooks,
    Interrupted,
    InvalidSetting,
    Job,
    JobState,
    NotRunning,
    QueueSettings,
    RetryAfter,
    Snooze,
    WorkerPool,
    WorkMap,
    constant,
    current_job,
)
from pgjobs.db.connection import shut_down
from pgjobs.execution import batch as batches
from pgjobs.execution.attempt import GracePeriods
from pgjobs.execution.batch_queries import BatchQueries
from pgjobs.execution.queries import ExecutionQueries
from pgjobs.execution.script import numbered
from pgjobs.execution.transport import Transport
from tests.round_trips import count_round_trips
from tests.samples import SAME_DATABASE, Tx
from tests.waiting import wait_until

Do = Callable[[Tx, Job[Any]], object]
NO_DELAY = constant(timedelta(0))

# `at_commit` is looked at in the COMMIT itself: a job that is listed there cannot be committed.
TABLES = """
CREATE TABLE {schema}.effect (job bigint, attempt int, xid text DEFAULT pg_current_xact_id()::text, at int);
CREATE TABLE {schema}.impossible (job bigint);
CREATE FUNCTION {schema}.look() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM {schema}.impossible WHERE job = NEW.job) THEN
        RAISE EXCEPTION 'job % cannot be committed', NEW.job USING ERRCODE = 'foreign_key_violation';
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER look AFTER INSERT ON {schema}.effect DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION {schema}.look();
"""


@dataclass
class Desk:
    """A client, what its handlers do, when they were started, and what they wrote."""

    client: Client
    does: dict[int, Do] = field(default_factory=dict)  # by the number of the job; else it writes, and that is all
    starts: list[int] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    writes: bool = True

    def sql(self, text: str, *values: Any) -> list[tuple[Any, ...]]:
        with self.client.pool.connection() as conn:
            cur = conn.execute(sql.SQL(text).format(schema=sql.Identifier(self.client.schema)), values or None)
            return cur.fetchall() if cur.description else []

    def enqueue(self, jobs: int, **options: Any) -> list[Job[Any]]:
        return [self.client.enqueue(None, {"number": number}, kind="any", **options) for number in range(jobs)]

    def handler(self, tx: Tx, job: Job[Any]) -> None:
        self.starts.append(job.id)
        if self.writes:
            self.write(tx, job)
        do = self.does.get(job.args["number"])
        if do is not None and (job.attempt == 1 or getattr(do, "always", False)):
            do(tx, job)

    def write(self, tx: Tx, job: Job[Any]) -> None:
        statement = sql.SQL("INSERT INTO {}.effect (job, attempt) VALUES (%s, %s)")
        tx.execute(statement.format(sql.Identifier(self.client.schema)), [job.id, job.attempt])

    def pool(self, handlers: Mapping[str, Any] | None = None, **options: Any) -> WorkerPool:
        usual = {"queues": {"default": 1}, "batch_size": 50, "batch_time": timedelta(minutes=1), "backoff": NO_DELAY}
        wanted = {**usual, **self.options, **options}
        return WorkerPool(self.client, handlers or {"any": self.handler}, **wanted)

    def work(self, jobs: Sequence[Job[Any]], **options: Any) -> list[Job[Any]]:
        """Run these jobs to their end; the jobs as they are then."""
        with self.pool(**options):
            wait_until(lambda: all(job.state.final for job in self.each_stored(jobs)), 30)
        return self.stored(jobs)

    def stored(self, jobs: Sequence[Job[Any]]) -> list[Job[Any]]:
        return list(self.each_stored(jobs))

    def each_stored(self, jobs: Sequence[Job[Any]]) -> Iterator[Job[Any]]:
        """Read one by one, so that a look which ends at the first costs one query."""
        found = (self.client.get(job.id) for job in jobs)
        return (job for job in found if job is not None)

    def effects(self) -> dict[int, list[int]]:
        """The attempts whose writes were committed, by job."""
        found: dict[int, list[int]] = {}
        for job, attempt in self.sql("SELECT job, attempt FROM {schema}.effect"):
            found.setdefault(job, []).append(attempt)
        return found

    def together(self) -> list[list[int]]:
        """The jobs whose writes were committed, by their transaction."""
        rows = self.sql("SELECT array_agg(job ORDER BY job) FROM {schema}.effect GROUP BY xid ORDER BY min(job)")
        return [jobs for (jobs,) in rows]

    def check(self, jobs: Sequence[Job[Any]]) -> None:
        """A completed job has its effect, of its last attempt, once; any other has none; no start is uncounted."""
        effects = self.effects()
        for job in self.stored(jobs):
            assert effects.get(job.id, []) == ([job.attempt] if job.state == JobState.COMPLETED else []), job
            assert self.starts.count(job.id) <= job.attempt, job
            failed = job.attempt - (job.state == JobState.COMPLETED)
            assert [error.attempt for error in job.errors] == list(range(1, failed + 1))


@pytest.fixture(params=["prepared", "plain"])
def desk(request: pytest.FixtureRequest, database: str, client: Client) -> Iterator[Desk]:
    """On a connection on which statements may be prepared, and on one behind what might be a pooler."""
    with client.pool.connection() as conn:
        conn.execute(sql.SQL(TABLES).format(schema=sql.Identifier(client.schema)))
    if request.param == "prepared":
        yield Desk(client)
        return
    with ConnectionPool(database, min_size=4, max_size=8, kwargs={"prepare_threshold": None}, open=True) as pool:
        yield Desk(Client(pool, schema=client.schema))


def states(jobs: Sequence[Job[Any]]) -> list[tuple[str, int]]:
    return [(job.state.value, job.attempt) for job in jobs]


# --- what a batch is


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"batch_size": 0}, "batch_size is 1 to 1000 jobs, not 0"),
        ({"batch_size": 1001}, "batch_size is 1 to 1000 jobs, not 1001"),
        ({"batch_size": True}, "not True"),
        ({"batch_time": timedelta(0)}, "batch_time is a timedelta > 0"),
        ({"batch_time": 1}, "batch_time is a timedelta > 0, not 1"),
        ({"durability": "none"}, "durability is 'full' or 'relaxed', not 'none'"),
    ],
)
def test_settings_out_of_their_range_are_refused(client: Client, settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidSetting, match=problem):
        WorkerPool(client, {"any": print}, **settings)


@pytest.mark.finding("E7")
@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"threads": 1, "batch_size": 5000}, "not 5000"),
        ({"threads": 1, "batch_time": timedelta(-1)}, "batch_time"),
        ({"threads": 1, "durability": ""}, "durability is 'full' or 'relaxed', not ''"),
        ({"threads": 0}, "threads is a whole number from 1 to 10000, not 0"),
    ],
)
def test_settings_of_a_queue_are_refused_when_they_are_made(settings: dict[str, Any], problem: str) -> None:
    """A QueueSettings out of its range was accepted until the worker pool started."""
    with pytest.raises(InvalidSetting, match=problem):
        QueueSettings(**settings)


def test_the_jobs_of_a_batch_run_in_their_order_in_one_transaction(desk: Desk) -> None:
    jobs = desk.enqueue(5)
    jobs.append(desk.client.enqueue(None, {"number": 5}, kind="any", priority=-1))
    done = desk.work(jobs)
    assert states(done) == [("completed", 1)] * 6
    assert desk.starts == [jobs[5].id, *(job.id for job in jobs[:5])]
    assert desk.together() == [[job.id for job in jobs]]
    desk.check(jobs)


def test_a_queue_may_be_worked_in_batches_beside_one_that_is_not(desk: Desk) -> None:
    single, many = desk.enqueue(4), desk.enqueue(4, queue="many")
    with desk.pool(batch_size=1) as pool:
        pool.add_queue("many", QueueSettings(1, batch_size=10))
        wait_until(lambda: all(job.state.final for job in desk.each_stored([*single, *many])))
    assert desk.together() == [*([job.id] for job in single), [job.id for job in many]]


def test_handlers_that_send_nothing_cost_two_round_trips_for_a_batch(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = count_round_trips(monkeypatch)
    desk = Desk(client, writes=False)
    jobs = desk.enqueue(200)
    with desk.pool(listen=False):
        wait_until(lambda: len(desk.starts) == 200)
        wait_until(lambda: all(job.state == JobState.COMPLETED for job in desk.each_stored(jobs)))
    assert sent.messages - sent.prepared <= 2 * 4 + 8, "and some looks into an empty queue"


@pytest.mark.prepared("it looks at the plans of what is prepared")
def test_a_claim_of_many_is_not_planned_anew_each_time(client: Client) -> None:
    desk, plans = Desk(client, writes=False), list[tuple[int, int]]()

    def look(tx: Tx, job: Job[Any]) -> None:
        found = tx.execute(
            "SELECT custom_plans, generic_plans FROM pg_prepared_statements"
            " WHERE name LIKE 'pgjobs%claim%' AND statement LIKE '%placed%'"
        )
        plans[:] = found.fetchall()

    desk.does[39] = look
    desk.work(desk.enqueue(40), batch_size=4)
    assert max(generic for _, generic in plans) >= 9
    assert {custom for custom, _ in plans} == {0}


@pytest.mark.no_decoys("makes an index by hand, whose condition finds one")
def test_the_plan_of_a_claim_of_many_goes_by_the_index_though_the_table_was_small(client: Client) -> None:
    store, desk = BatchQueries(client.queries), Desk(client)
    desk.enqueue(5)
    desk.sql("CREATE INDEX job_by_time ON {schema}.job (queue, scheduled_at, id) WHERE state = 'available'")
    desk.sql("ANALYZE {schema}.job")
    with client.pool.connection() as conn:
        conn.execute(store._batch["set_batch_settings"].replace(b"%(synchronous_commit)s", b"'off'"))
        for order, index in (("priority", "job_fetch"), ("scheduled_at", "job_by_time")):
            claim = numbered("look", store._claims[order, False].replace(b"%(limit)s", b"100"))
            conn.execute(b"PREPARE look AS " + claim.sql)
            nulls = ", ".join(["NULL"] * len(claim.parameters))
            plan = "\n".join(line for (line,) in conn.execute(f"EXPLAIN EXECUTE look ({nulls})".encode()))
            conn.execute("DEALLOCATE look")
            assert f"Index Scan using {index}" in plan
            assert "Seq Scan on job" not in plan


@pytest.mark.parametrize("setting", ["TimeZone=UTC", "TimeZone=Asia/Kolkata", "DateStyle=SQL,DMY", "DateStyle=German"])
@pytest.mark.parametrize("threshold", [5, None], ids=["prepared", "plain"])
def test_a_job_of_a_batch_is_what_its_row_says(
    client: Client, database: str, threshold: int | None, setting: str
) -> None:
    seen: list[tuple[Job[Any], Job[Any] | None]] = []

    def look(tx: Tx, job: Job[Any]) -> None:
        seen.append((job, client.get(job.id)))

    settings = {"options": f"-c {setting}", "prepare_threshold": threshold}
    with ConnectionPool(database, min_size=4, max_size=8, kwargs=settings, open=True) as pool:
        desk = Desk(Client(pool, schema=client.schema), dict.fromkeys(range(3), look), writes=False)
        jobs = desk.enqueue(1)
        jobs += [client.enqueue(None, {"number": 1}, kind="any", tags=["one", "two"], metadata={"x": 1})]
        jobs += [client.enqueue(None, {"number": 2}, kind="any", priority=3, max_attempts=3)]
        desk.sql("UPDATE {schema}.job SET attempted_by = array_fill('a'::text, '{{100}}') WHERE id = %s", jobs[0].id)
        desk.sql("UPDATE {schema}.job SET attempted_by = %s WHERE id = %s", ["a,", '"b '], jobs[2].id)
        desk.work(jobs)
    assert [job.id for job, _ in seen] == [job.id for job in jobs]
    for job, row in seen:
        assert job == row
        assert {at.tzinfo for at in (job.scheduled_at, job.created_at, job.attempted_at) if at} == {UTC}
    mine = seen[1][0].attempted_by
    assert [job.attempted_by for job, _ in seen] == [("a",) * 99 + mine, mine, ("a,", '"b ', *mine)]


def test_jobs_that_must_run_alone_do(desk: Desk) -> None:
    """One with a failed attempt, one with a single attempt, one whose worker vanished beside others, a detached one."""
    first = desk.enqueue(2)
    detached = desk.client.enqueue(None, {"number": 2}, kind="detached")
    middle = desk.enqueue(2)
    once = desk.enqueue(1, max_attempts=1)
    failed, excused = desk.enqueue(2)
    last = desk.enqueue(2)
    desk.sql("UPDATE {schema}.job SET attempt = 1 WHERE id = %s", failed.id)
    desk.sql("UPDATE {schema}.job SET metadata = '{{\"excused\": []}}' WHERE id = %s", excused.id)
    leases: list[object] = []
    handlers = {
        "any": desk.handler,
        "detached": Handler(lambda tx, job: leases.append((tx, job.leased_until is not None)), detached=True),
    }
    alone = [once[0], failed, excused]
    jobs = [*first, detached, *middle, *alone, *last]
    done = desk.work(jobs, handlers=handlers)
    assert {job.state for job in done} == {JobState.COMPLETED}
    assert leases == [(None, True)]
    by_transaction = desk.together()
    assert by_transaction[0] == [job.id for job in first]
    assert all([job.id] in by_transaction for job in alone)


@pytest.mark.conformance(272)
def test_a_batch_that_is_claimed_when_the_pool_stops_is_unclaimed_but_for_what_was_started(desk: Desk) -> None:
    jobs = desk.enqueue(10)
    pool = desk.pool()
    desk.does[3] = lambda tx, job: pool.stop()
    with pool:
        wait_until(lambda: not pool.running)
    done = desk.stored(jobs)
    assert states(done) == [("completed", 1)] * 4 + [("available", 0)] * 6
    assert {(job.attempted_at, job.token, job.error_count) for job in done[4:]} == {(None, None, 0)}
    assert desk.starts == [job.id for job in jobs[:4]]
    desk.check(jobs)


def test_after_its_time_a_batch_starts_no_more(desk: Desk) -> None:
    jobs = desk.enqueue(6)
    for number in range(6):
        desk.does[number] = lambda tx, job: threading.Event().wait(0.002)
    done = desk.work(jobs, batch_time=timedelta(milliseconds=1))
    assert states(done) == [("completed", 1)] * 6
    assert desk.together() == [[job.id] for job in jobs]
    assert sorted(desk.starts) == desk.starts, "what was given back keeps its place"


def test_what_a_batch_gives_back_runs_before_what_stands_behind_it(desk: Desk) -> None:
    jobs = desk.enqueue(30)
    desk.does = dict.fromkeys(range(30), lambda tx, job: threading.Event().wait(0.002))
    desk.work(jobs, batch_size=5, batch_time=timedelta(milliseconds=1), listen=False)
    assert desk.starts == [job.id for job in jobs]


@pytest.mark.parametrize("ends", ["a retry", "a rollback"])
def test_what_is_to_run_again_at_once_runs_before_what_stands_behind_its_batch(desk: Desk, ends: str) -> None:
    def again(tx: Tx, job: Job[Any]) -> None:
        if ends == "a rollback":
            tx.execute("ROLLBACK")
        raise RetryAfter(timedelta(0))

    desk.does = {60: again}
    jobs = desk.enqueue(60)
    urgent = desk.client.enqueue(None, {"number": 60}, kind="any", priority=-1)
    desk.work([*jobs, urgent], batch_size=10, batch_time=timedelta(minutes=1), listen=False)
    ids, first = [job.id for job in jobs], 9 if ends == "a retry" else 0
    assert desk.starts == [urgent.id, *ids[:first], urgent.id, *ids[first:]]


def test_no_batch_has_more_savepoints_than_the_server_keeps_at_hand(desk: Desk) -> None:
    jobs = desk.enqueue(130)
    done = desk.work(jobs, batch_size=1000)
    assert states(done) == [("completed", 1)] * 130
    assert [len(jobs) for jobs in desk.together()] == [60, 60, 10]
    assert len(desk.starts) == 130


def test_no_more_jobs_are_claimed_than_there_are_savepoints_for(desk: Desk) -> None:
    jobs = desk.enqueue(250)
    desk.work(jobs, batch_size=100)
    claimed_twice = "SELECT count(*) FROM {schema}.job WHERE pg_catalog.cardinality(attempted_by) > 1"
    assert desk.sql(claimed_twice) == [(40,)], "of the first claim, which could not know"


def test_claims_are_of_few_sizes_whatever_part_of_the_handlers_needs_a_savepoint() -> None:
    """Each has a statement of its own."""
    sizes = {
        batches._rounded(60 * started // used) for started in range(1, 1001) for used in range(1, 61) if used <= started
    }
    assert len(sizes) <= 16
    assert {60, 120, 480} <= sizes
    assert all(batches._rounded(room) <= room < 2 * batches._rounded(room) for room in range(1, 10_000))


@pytest.mark.no_decoys("has a trigger or a rule of its own that finds one")
def test_a_job_that_is_taken_away_between_claim_and_lock_is_left_out_of_its_batch(desk: Desk) -> None:
    """By what the application does in the COMMIT of the claim, say."""
    desk.sql(
        """
        CREATE FUNCTION {schema}.take_away() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            EXECUTE format('UPDATE %I.job SET state = ''available'', attempt = 0, token = NULL WHERE id = $1',
                TG_TABLE_SCHEMA) USING NEW.id;
            RETURN NULL;
        END $$;
        CREATE CONSTRAINT TRIGGER take_away AFTER UPDATE ON {schema}.job DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
            WHEN (NEW.state = 'running' AND cardinality(NEW.attempted_by) = 1 AND NEW.args ->> 'number' = '1')
            EXECUTE FUNCTION {schema}.take_away();
        """
    )
    jobs = desk.enqueue(4)
    done = desk.work(jobs)
    assert states(done) == [("completed", 1)] * 4
    first, second, *others = (job.id for job in jobs)
    assert desk.together() == [[first, *others], [second]]
    desk.check(jobs)


def test_a_job_that_is_kept_does_not_keep_its_batch(desk: Desk) -> None:
    kept, attempts = list[Job[Any]](), list[weakref.ref[Any]]()

    def keeps(tx: Tx, job: Job[Any]) -> None:
        if job.args["number"] == 2:
            kept.append(job)
        else:
            attempts.append(weakref.ref(job.running))

    jobs = desk.enqueue(5)
    with desk.pool({"any": keeps}):
        wait_until(lambda: all(job.state == JobState.COMPLETED for job in desk.each_stored(jobs)))
        wait_until(lambda: [attempt() for attempt in attempts] == [None] * 4)
    assert not kept[0].cancelled
    with pytest.raises(NotRunning):
        kept[0].set_metadata(late=True)


# --- one job and its neighbours


def test_each_job_of_a_batch_has_its_own_outcome(desk: Desk) -> None:
    def fails(error: BaseException) -> Do:
        def do(tx: Tx, job: Job[Any]) -> None:
            job.set_metadata(seen=job.id)
            raise error

        return do

    def keeps(tx: Tx, job: Job[Any]) -> None:
        job.set_metadata(it='has "quotes", {braces}')
        job.record_output([job.id, None])

    def snoozes(tx: Tx, job: Job[Any]) -> None:
        if desk.starts.count(job.id) == 1:
            raise Snooze(timedelta(0))

    desk.does = {
        1: fails(ValueError("no")),
        3: fails(Discard("enough")),
        4: fails(Cancel("nobody wants it")),
        5: snoozes,
        6: keeps,
        8: fails(SystemExit(1)),
    }
    jobs = desk.enqueue(10)
    done = desk.work(jobs)
    state = {job.args["number"]: (job.state.value, job.attempt, job.error_count) for job in done}
    completed, again = ("completed", 1, 0), ("completed", 2, 1)
    assert state == {
        0: completed, 1: again, 2: completed, 3: ("discarded", 1, 1), 4: ("cancelled", 1, 1), 5: completed,
        6: completed, 7: completed, 8: again, 9: completed,
    }  # fmt: skip
    assert done[1].errors[0].error == "no"
    assert done[1].metadata["seen"] == jobs[1].id
    assert (done[6].metadata["it"], done[6].output) == ('has "quotes", {braces}', [jobs[6].id, None])
    assert done[7].metadata == {}
    ok = [jobs[number].id for number in (0, 2, 6, 7, 9)]
    assert ok in desk.together(), "those that did not fail were committed together"
    effects = desk.effects()
    assert all(effects.get(job.id, []) == ([job.attempt] if job.state == JobState.COMPLETED else []) for job in done)


def test_an_sql_error_that_is_swallowed_is_the_failure_of_its_job_alone(desk: Desk) -> None:
    def swallows(tx: Tx, job: Job[Any]) -> None:
        with suppress(psycopg.Error):
            tx.execute("SELECT 1 / 0")

    desk.does = {2: swallows}
    jobs = desk.enqueue(5)
    done = desk.work(jobs)
    assert states(done) == [("completed", 1), ("completed", 1), ("completed", 2), ("completed", 1), ("completed", 1)]
    assert "swallowed" in (done[2].last_error or "")
    assert len(desk.together()[0]) == 4
    desk.check(jobs)


ENDS = ["COMMIT", "ROLLBACK", "COMMIT; BEGIN", "ROLLBACK; BEGIN", "COMMIT AND CHAIN", "ROLLBACK AND CHAIN"]


@pytest.mark.parametrize("when", [0, 2, 4], ids=["first", "middle", "last"])
@pytest.mark.parametrize("ends", ENDS)
def test_a_handler_that_ends_the_transaction_harms_no_other_job(desk: Desk, ends: str, when: int) -> None:
    """What it has committed of the others counts; what it has rolled back runs again."""
    desk.does = {when: lambda tx, job: tx.execute(ends)}
    jobs = desk.enqueue(5)
    done = desk.work(jobs)
    assert {job.state for job in done} == {JobState.COMPLETED}
    broken = done[when]
    assert "ended its transaction" in (broken.errors[0].error), broken.errors
    effects = desk.effects()
    assert [effects.pop(broken.id)[-1:]] == [[broken.attempt]]
    assert effects == {job.id: [job.attempt] for job in done if job.id != broken.id}
    assert all(desk.starts.count(job.id) <= job.attempt for job in done)
    if ends.startswith("COMMIT"):
        assert states(done[:when]) == [("completed", 1)] * when


def test_what_outlives_a_rollback_is_gone_with_a_batch_that_cannot_be_committed(desk: Desk) -> None:
    held: list[Any] = []

    def locks(tx: Tx, job: Job[Any]) -> None:
        query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
        held.append(tx.execute(query).fetchone())
        if job.attempt == 1:
            tx.execute("SELECT pg_advisory_lock(4711)")

    locks.always = True  # type: ignore[attr-defined]
    jobs = desk.enqueue(2, max_attempts=2)
    desk.does = {0: locks}
    desk.sql("INSERT INTO {schema}.impossible VALUES (%s)", jobs[1].id)
    assert states(desk.work(jobs)) == [("completed", 2), ("discarded", 2)]
    assert held == [(0,), (0,)]


def test_what_a_handler_has_committed_of_its_session_is_gone_with_the_batch(desk: Desk) -> None:
    seen: list[Any] = []

    def look(tx: Tx, job: Job[Any]) -> None:
        seen.append(tx.execute("SELECT current_setting('search_path'), current_setting('work_mem')").fetchone())

    def soils(tx: Tx, job: Job[Any]) -> None:
        look(tx, job)
        tx.execute("SET search_path = nowhere; SET work_mem = '1MB'; COMMIT")

    look.always = True  # type: ignore[attr-defined]
    desk.does = {0: look, 1: soils, 2: look, 3: look}
    jobs = desk.enqueue(4)
    assert {job.state for job in desk.work(jobs)} == {JobState.COMPLETED}
    assert len(seen) >= 4
    assert len(set(seen)) == 1


@pytest.mark.parametrize("soils", ["SET ROLE pg_monitor", "SET client_encoding = 'LATIN2'"])
def test_what_a_handler_has_committed_of_its_session_hides_no_outcome(desk: Desk, soils: str) -> None:
    # before Postgres 18 a deferred trigger runs as the role that commits
    desk.sql("GRANT USAGE ON SCHEMA {schema} TO pg_monitor")
    desk.sql("GRANT SELECT ON {schema}.impossible TO pg_monitor")
    desk.does = {2: lambda tx, job: tx.execute(f"{soils}; COMMIT")}
    jobs = desk.enqueue(4, queue="a\N{MIDDLE DOT}b")
    done = desk.work(jobs, queues={"a\N{MIDDLE DOT}b": 1})
    assert states(done) == [("completed", 1)] * 2 + [("completed", 2), ("completed", 1)]
    assert "ended its transaction" in done[2].errors[0].error
    assert [desk.effects()[job.id] for job in done] == [[1], [1], [1, 2], [1]]


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_the_methods_that_end_a_transaction_are_refused(desk: Desk, ends: str) -> None:
    desk.does = {1: lambda tx, job: getattr(tx, ends)()}
    jobs = desk.enqueue(3)
    done = desk.work(jobs)
    assert states(done) == [("completed", 1), ("completed", 2), ("completed", 1)]
    assert f"Explicit {ends}() forbidden" in (done[1].last_error or "")
    desk.check(jobs)


def test_blocks_and_pipelines_of_a_handler_work_as_ever(desk: Desk) -> None:
    def block(tx: Tx, job: Job[Any]) -> None:
        with suppress(ValueError), tx.transaction():
            tx.execute("CREATE TABLE dropped_by_its_block ()")
            raise ValueError
        with tx.transaction():
            assert tx.execute("SELECT to_regclass('dropped_by_its_block') IS NULL").fetchone() == (True,)

    def pipeline(tx: Tx, job: Job[Any]) -> None:
        with tx.pipeline():
            desk.write(tx, job)
            assert tx.execute("SELECT 1").fetchone() == (1,)

    desk.writes = False
    desk.does = {0: desk.write, 1: pipeline, 2: block, 3: desk.write, 4: pipeline}
    jobs = desk.enqueue(6)
    assert states(desk.work(jobs)) == [("completed", 1)] * 6
    assert desk.together() == [[jobs[number].id for number in (0, 1, 3, 4)]]


@pytest.mark.parametrize("then", ["left open", "in the middle"])
def test_a_handler_that_leaves_its_connection_unusable_is_blamed_alone(desk: Desk, then: str) -> None:
    pipelines: list[Any] = []  # else the garbage collector would close it

    def leaves(tx: Tx, job: Job[Any]) -> None:
        if then == "left open":
            pipelines.append(tx.pipeline())
            pipelines[0].__enter__()
        else:
            tx.pgconn.send_query(b"SELECT pg_sleep(10)")

    desk.does = {2: leaves}
    jobs = desk.enqueue(4)
    done = desk.work(jobs)
    assert states(done) == [("completed", 2)] * 3 + [("completed", 1)]
    assert "in the middle of a command" in done[2].errors[0].error
    assert "runs again, alone" in done[0].errors[0].error
    desk.check(jobs)


def test_what_a_handler_does_to_its_session_does_not_reach_the_next_one_of_its_batch(desk: Desk) -> None:
    seen: list[Any] = []

    def look(tx: Tx, job: Job[Any]) -> None:
        assert tx.row_factory is not dict_row
        names = ["search_path", "statement_timeout", "idle_in_transaction_session_timeout", "tcp_user_timeout"]
        seen.append(
            tx.execute(
                "SELECT current_user, ARRAY(SELECT current_setting(name) FROM unnest(%s::text[]) AS name),"
                " ARRAY(SELECT pg_listening_channels()), to_regclass('pg_temp.mine') IS NULL, pg_backend_pid()",
                [names],
            ).fetchone()
        )
        tx.execute("CREATE TEMP TABLE mine ()")
        tx.execute("SET search_path = nowhere")
        tx.execute("SET LOCAL statement_timeout = '20s'")
        tx.execute("SET LOCAL idle_in_transaction_session_timeout = '7s'")
        tx.execute("LISTEN anything")
        tx.row_factory = dict_row
        if job.args["number"] == 2:
            raise ValueError("with all that")

    desk.does = dict.fromkeys(range(5), look)
    jobs = desk.enqueue(5)
    done = desk.work(jobs)
    assert {job.state for job in done} == {JobState.COMPLETED}
    assert len(seen) == 5
    assert len(set(map(str, seen))) == 1, "the same clean session, on the same connection"
    desk.check(jobs)


@pytest.mark.parametrize("fails", [False, True], ids=["all complete", "one fails"])
def test_an_advisory_lock_is_held_until_the_writes_of_its_batch_are_committed(desk: Desk, fails: bool) -> None:
    """As of a job by itself: what it guards is not for others before they see what was done to it."""
    held: list[Any] = []
    locks = f"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711 AND {SAME_DATABASE}"

    def look(tx: Tx, job: Job[Any]) -> None:
        held.append((job.args["number"], desk.sql(locks)[0][0]))
        if fails:
            raise ValueError

    desk.does = {0: lambda tx, job: tx.execute("SELECT pg_advisory_lock(4711)"), 1: look, 2: look}
    jobs = desk.enqueue(3)
    desk.work(jobs, batch_time=timedelta(minutes=1))
    assert held == [(1, 1), (2, 1)]
    assert desk.sql(locks) == [(0,)]


def test_the_last_handler_of_a_batch_may_leave_its_session_without_any_rights(desk: Desk) -> None:
    desk.does = {2: lambda tx, job: tx.execute("SET ROLE pg_monitor")}
    jobs = desk.enqueue(3)
    assert states(desk.work(jobs)) == [("completed", 1)] * 3
    assert desk.together() == [[job.id for job in jobs]]


@pytest.mark.parametrize("batch_size", [1, 50], ids=["one by one", "batches"])
@pytest.mark.parametrize("output", ["caf\xe9", "caf\xe9 \N{EURO SIGN} \N{GRINNING FACE}"], ids=["fits", "does not fit"])
def test_an_output_survives_a_handler_that_changes_the_encoding(desk: Desk, batch_size: int, output: str) -> None:
    def sets(tx: Tx, job: Job[Any]) -> None:
        tx.execute("SET client_encoding = 'LATIN1'")
        job.record_output(output)

    desk.does = {2: sets}
    done = desk.work(desk.enqueue(3), batch_size=batch_size)
    assert states(done) == [("completed", 1)] * 3
    assert [job.output for job in done] == [None, None, output]


@pytest.mark.parametrize("encoding", ["LATIN1", "LATIN2"])
def test_a_handler_that_changes_the_encoding_does_not_hide_its_batch(desk: Desk, encoding: str) -> None:
    """The name of the queue is sent in the encoding of the moment, in which it may not even have a place."""

    def fails(tx: Tx, job: Job[Any]) -> None:
        raise ValueError

    desk.does = {1: fails, 3: lambda tx, job: tx.execute(f"SET client_encoding = '{encoding}'")}
    jobs = desk.enqueue(4, queue="a\N{MIDDLE DOT}b")
    done = desk.work(jobs, queues={"a\N{MIDDLE DOT}b": 1})
    assert states(done) == [("completed", 1), ("completed", 2), ("completed", 1), ("completed", 1)]
    desk.check(jobs)


def test_what_the_application_has_set_up_in_its_sessions_is_there_for_each_job(database: str, desk: Desk) -> None:
    def configure(conn: Tx) -> None:
        conn.execute("SET app.tenant = 'theirs'")
        conn.commit()

    seen: list[Any] = []

    def look(tx: Tx, job: Job[Any]) -> None:
        seen.append(tx.execute("SELECT current_setting('app.tenant', true)").fetchone())
        tx.execute("SET app.tenant = 'mine'")

    with ConnectionPool(database, min_size=4, max_size=8, configure=configure, open=True) as pool:
        theirs = Desk(Client(pool, schema=desk.client.schema), {1: look, 2: look, 3: look})
        jobs = theirs.enqueue(5)
        assert states(theirs.work(jobs)) == [("completed", 1)] * 5
    assert seen == [("theirs",)] * 3


def test_a_batch_goes_on_after_a_job_whose_connection_somebody_keeps(desk: Desk) -> None:
    kept: list[Tx] = []
    blocks: list[Any] = []

    def leaves_open(tx: Tx, job: Job[Any]) -> None:
        blocks.append(tx.transaction())
        blocks[-1].__enter__()

    desk.does = {1: lambda tx, job: kept.append(tx), 3: leaves_open}
    jobs = desk.enqueue(6)
    done = desk.work(jobs)
    assert states(done) == [("completed", 1)] * 6
    assert desk.together() == [[job.id for job in jobs]]
    assert kept[0].closed
    desk.check(jobs)


# --- a batch that cannot be committed


def test_a_job_that_cannot_be_committed_lets_the_others_run_again_each_by_itself(desk: Desk) -> None:
    jobs = desk.enqueue(6, max_attempts=3)
    desk.sql("INSERT INTO {schema}.impossible VALUES (%s)", jobs[2].id)
    done = desk.work(jobs)
    assert states(done) == [("completed", 2)] * 2 + [("discarded", 3)] + [("completed", 2)] * 3
    assert "the batch of 6 jobs that it ran in could not be committed" in done[0].errors[0].error
    assert "cannot be committed" in done[2].errors[2].error
    assert desk.together() == [[job.id] for job in jobs if job.id != jobs[2].id]
    desk.check(jobs)


def test_a_job_alone_in_its_batch_is_to_blame_for_what_cannot_be_committed(desk: Desk) -> None:
    jobs = desk.enqueue(1, max_attempts=2)
    desk.sql("INSERT INTO {schema}.impossible VALUES (%s)", jobs[0].id)
    (done,) = desk.work(jobs)
    assert states([done]) == [("discarded", 2)]
    assert "the handler's writes could not be committed" in done.errors[0].error


def test_a_job_that_changes_its_own_row_or_a_neighbours_cannot_commit_the_batch(desk: Desk) -> None:
    def changes(tx: Tx, job: Job[Any]) -> None:
        statement = sql.SQL("UPDATE {}.job SET token = gen_random_uuid() WHERE id = %s")
        tx.execute(statement.format(sql.Identifier(desk.client.schema)), [job.id - 1])

    desk.does = {2: changes}
    jobs = desk.enqueue(4)
    done = desk.work(jobs)
    assert states(done) == [("completed", 2)] * 4
    assert "no longer runs under this attempt" in done[0].errors[0].error
    desk.check(jobs)


@pytest.mark.parametrize("writes", [True, False], ids=["writing", "idle"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_line_that_dies_around_the_commit_of_a_batch_neither_loses_nor_doubles_an_effect(
    *, desk: Desk, monkeypatch: pytest.MonkeyPatch, when: str, writes: bool
) -> None:
    broken: list[int] = []
    finish = BatchQueries.finish

    def across(self: BatchQueries, transport: Transport, *args: Any, **options: Any) -> Any:
        if broken:
            return finish(self, transport, *args, **options)
        broken.append(1)
        if when == "after":
            finish(self, transport, *args, **options)
        shut_down(transport._conn)
        if when == "before":
            return finish(self, transport, *args, **options)
        raise psycopg.OperationalError("the line is dead, and the answer lost")

    monkeypatch.setattr(BatchQueries, "finish", across)
    desk.writes = writes
    jobs = desk.enqueue(5)
    with desk.client.subscribe() as events:
        done = desk.work(jobs)
        told = list(events)
    assert broken
    attempt = 2 if when == "before" else 1
    assert states(done) == [("completed", attempt)] * 5
    assert len(desk.starts) == 5 * attempt
    completed = [event.job.id for event in told if event.kind == "job_completed"]
    assert sorted(completed) == [job.id for job in jobs]
    if writes:
        desk.check(jobs)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("stuck", [False, True], ids=["dies", "is stuck"])
@pytest.mark.parametrize("shared", [False, True], ids=["locked by itself", "locked with others"])
def test_what_a_handler_has_committed_before_its_connection_is_lost_is_not_done_again(
    *, desk: Desk, stuck: bool, shared: bool
) -> None:
    gone = threading.Event()

    def commits(tx: Tx, job: Job[Any]) -> None:
        if shared:  # as an insert does whose foreign key refers to a job
            assert len(desk.sql("SELECT id FROM {schema}.job FOR KEY SHARE")) == 3
        tx.execute("COMMIT")
        if stuck:
            gone.wait(60)  # whatever it is told
        else:
            shut_down(tx)

    def timeout(job: Job[Any]) -> timedelta | None:
        return timedelta(seconds=0.3) if stuck and (job.args["number"], job.attempt) == (1, 1) else None

    desk.does = {1: commits}
    jobs = desk.enqueue(3)
    try:
        done = desk.work(
            jobs, handlers={"any": Handler(desk.handler, timeout=timeout)}, batch_time=timedelta(minutes=1)
        )
    finally:
        gone.set()
    assert states(done) == [("completed", 1), ("completed", 2), ("completed", 1)]
    assert desk.effects()[jobs[0].id] == [1]


def test_a_claim_that_the_server_has_lost_in_a_crash_is_counted_all_the_same(desk: Desk) -> None:
    """It did not wait for the disk. But the handlers have started."""

    def crash(tx: Tx, job: Job[Any]) -> None:
        shut_down(tx)
        locked = (
            "SELECT count(*) FROM {schema}.job WHERE id NOT IN (SELECT id FROM {schema}.job FOR UPDATE SKIP LOCKED)"
        )
        wait_until(lambda: desk.sql(locked) == [(0,)])
        desk.sql("UPDATE {schema}.job SET state = 'available', attempt = 0, token = NULL, attempted_at = NULL")

    def fails(tx: Tx, job: Job[Any]) -> None:
        raise ValueError

    desk.does = {1: fails, 3: crash}
    jobs = desk.enqueue(6)
    done = desk.work(jobs)
    assert states(done) == [("completed", 2)] * 5 + [("completed", 1)], "the fifth has found the connection dead"
    desk.check(jobs)


@pytest.mark.conformance(142)
@pytest.mark.parametrize("after", [False, True], ids=["the request is lost", "the answer is lost"])
def test_a_line_that_dies_under_the_claim_of_a_batch_costs_no_attempt(
    *, desk: Desk, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """When the answer is lost the claim was committed: it is given back, on the next connection."""
    broken: list[int] = []
    claim = BatchQueries.claim

    def lost(self: BatchQueries, transport: Transport, *args: Any, **options: Any) -> Any:
        if broken:
            return claim(self, transport, *args, **options)
        broken.append(1)
        if after:
            claim(self, transport, *args, **options)
        shut_down(transport._conn)
        return claim(self, transport, *args, **options)

    monkeypatch.setattr(BatchQueries, "claim", lost)
    jobs = desk.enqueue(5)
    done = desk.work(jobs)
    assert {(job.state.value, job.attempt, job.error_count) for job in done} == {("completed", 1, 0)}
    assert desk.together() == [[job.id for job in jobs]]
    desk.check(jobs)


# --- told to end


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Handlers that are told to end and do not are made to sooner."""
    monkeypatch.setattr(
        pgjobs.execution.attempt, "AFTER_TIMEOUT", GracePeriods(interrupted=0.2, severed=0.6, stuck=1.2)
    )


def short_of_time(desk: Desk, first: Do) -> WorkMap:
    """Only the first attempt at a job of kind "slow", which is `first`, has 0.3 s; the others have time."""

    def slow(tx: Tx, job: Job[Any]) -> None:
        del handlers["slow"]
        handlers["slow"] = desk.handler
        desk.starts.append(job.id)
        first(tx, job)

    handlers = WorkMap({"any": desk.handler, "slow": Handler(slow, timeout=timedelta(seconds=0.3))})
    return handlers


def enqueue_around_a_slow_one(desk: Desk) -> list[Job[Any]]:
    return [*desk.enqueue(2), desk.client.enqueue(None, {"number": 2}, kind="slow"), *desk.enqueue(2)]


def test_a_statement_that_takes_too_long_is_the_failure_of_its_job_alone(desk: Desk) -> None:
    def sleeps(tx: Tx, job: Job[Any]) -> None:
        desk.write(tx, job)
        tx.execute("SELECT pg_sleep(30)")

    jobs = enqueue_around_a_slow_one(desk)
    done = desk.work(jobs, handlers=short_of_time(desk, sleeps))
    assert states(done) == [("completed", 1), ("completed", 1), ("completed", 2), ("completed", 1), ("completed", 1)]
    assert done[2].errors[0].error.startswith("timed out")
    assert desk.together()[0] == [job.id for job in jobs[:2]], "the batch has ended with it"
    desk.check(jobs)


def test_the_time_of_each_job_begins_when_it_starts(desk: Desk) -> None:
    deadlines: list[datetime] = []

    def waits(tx: Tx, job: Job[Any]) -> None:
        assert job.deadline is not None
        deadlines.append(job.deadline)
        threading.Event().wait(0.3)

    desk.does = dict.fromkeys(range(4), waits)
    jobs = desk.enqueue(4)
    done = desk.work(jobs, timeout=timedelta(seconds=1), batch_time=timedelta(minutes=1))
    assert states(done) == [("completed", 1)] * 4
    assert len(desk.together()) == 1
    assert deadlines == sorted(set(deadlines))


def ignores(desk: Desk, gone: threading.Event) -> Do:
    """A handler that writes and goes on, whatever it is told and when, until `gone` is set or a minute is over."""

    def do(tx: Tx, job: Job[Any]) -> None:
        until = time.monotonic() + 60
        with suppress(Interrupted):  # raised once
            with suppress(psycopg.errors.QueryCanceled):
                desk.write(tx, job)
            while not gone.is_set() and time.monotonic() < until:
                gone.wait(0.05)
        gone.wait(60)

    return do


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("returns", [True, False], ids=["returns", "is stuck"])
def test_a_handler_whose_connection_must_be_shut_down_lets_its_neighbours_run_again(desk: Desk, returns: bool) -> None:
    gone = threading.Event()
    jobs = enqueue_around_a_slow_one(desk)
    handlers = short_of_time(desk, ignores(desk, gone))

    def first_batch_over() -> bool:
        return all(job.state != JobState.RUNNING or job.attempt > 1 for job in desk.stored(jobs))

    try:
        with desk.pool(handlers=handlers):
            wait_until(lambda: desk.starts)
            wait_until(first_batch_over)
            if returns:
                gone.set()
            wait_until(lambda: all(job.state.final for job in desk.each_stored(jobs)), 20)
            done = desk.stored(jobs)
            gone.set()
    finally:
        gone.set()
    assert states(done[:3]) == [("completed", 2)] * 3
    assert [job.state for job in done[3:]] == [JobState.COMPLETED] * 2
    assert {job.error_count for job in done[3:]} == {0}, "those were not started"
    assert "runs again, alone" in done[0].errors[0].error
    assert done[2].errors[0].error.startswith("timed out")
    desk.check(jobs)


def test_a_hard_stop_commits_what_was_done_and_gives_the_rest_back(desk: Desk) -> None:
    at_it = threading.Event()

    def waits(tx: Tx, job: Job[Any]) -> None:
        at_it.set()
        tx.execute("SELECT pg_sleep(60)")

    desk.does = {2: waits}
    jobs = desk.enqueue(5)
    with desk.pool() as pool:
        assert at_it.wait(20)
        assert pool.stop(timedelta(0)) is False
    done = desk.stored(jobs)
    assert states(done) == [("completed", 1)] * 2 + [("available", 0)] * 3
    assert {job.error_count for job in done} == {0}
    assert desk.effects() == {job.id: [1] for job in jobs[:2]}


def test_a_job_of_a_batch_can_be_cancelled_while_it_runs(desk: Desk) -> None:
    """And no other one, though they share a token."""
    at_it = threading.Event()

    def waits(tx: Tx, job: Job[Any]) -> None:
        at_it.set()
        until = time.monotonic() + 20
        while not job.cancelled and time.monotonic() < until:
            threading.Event().wait(0.01)
        raise ValueError("cancelled" if job.cancelled else "not cancelled")

    desk.does = {1: waits}
    jobs = desk.enqueue(4)
    with desk.pool(batch_time=timedelta(minutes=1)):
        assert at_it.wait(20)
        desk.client.cancel(jobs[3].id, reason="another one")
        desk.client.cancel(jobs[1].id, reason="not needed")
        wait_until(lambda: all(job.state.final for job in desk.each_stored(jobs)))
    done = desk.stored(jobs)
    assert states(done[:3]) == [("completed", 1), ("cancelled", 1), ("completed", 1)]
    assert done[1].metadata["cancel_reason"] == "not needed"
    assert done[3].state in (JobState.COMPLETED, JobState.CANCELLED)
    desk.check(jobs[:3])


@pytest.mark.parametrize("last", [False, True], ids=["in the middle", "the last"])
def test_a_job_of_a_batch_that_is_cancelled_before_it_starts_is_not_started(
    *, desk: Desk, monkeypatch: pytest.MonkeyPatch, last: bool
) -> None:
    """And no other one is told, though they share a token."""
    found: list[object] = []
    look = ExecutionQueries.cancelled_attempts

    def noted(self: ExecutionQueries, *args: Any) -> Any:
        wanted = look(self, *args)
        found.extend([wanted] if wanted else [])
        return wanted

    monkeypatch.setattr(ExecutionQueries, "cancelled_attempts", noted)
    told: list[bool] = []

    def waits(tx: Tx, job: Job[Any]) -> None:
        desk.client.cancel(job.id + 2, reason="not needed")
        wait_until(lambda: len(found) >= 2)  # what was found first has been passed on
        told.append(job.cancelled)

    desk.does = {1: waits}
    jobs = desk.enqueue(4 if last else 6)
    done = desk.work(jobs, batch_time=timedelta(minutes=1))
    assert told == [False]
    cancelled = done.pop(3)
    assert states(done) == [("completed", 1)] * len(done)
    assert states([cancelled]) == [("cancelled", 1)]
    assert cancelled.metadata["cancel_reason"] == "not needed"
    assert cancelled.id not in desk.starts
    assert len(desk.together()) == 1
    desk.check(jobs)


# --- as for a single job


def test_hooks_events_and_middleware_see_each_job(desk: Desk) -> None:
    seen: list[tuple[str, int, bool]] = []
    told = threading.Lock()

    class Look(Hooks):
        def on_claim(self, job: Job[Any] | None, error: BaseException | None) -> None:
            self.see("claim", job, error)

        def on_start(self, job: Job[Any]) -> None:
            self.see("start", job, None)

        def on_finish(self, job: Job[Any], error: BaseException | None) -> None:
            self.see("finish " + job.state, job, error)

        def see(self, what: str, job: Job[Any] | None, error: BaseException | None) -> None:
            with told:
                seen.append((what, job.id if job else 0, error is None))

    def around(tx: Tx, job: Job[Any], run: Callable[[], Any]) -> None:
        found = current_job()
        assert found is not None
        assert found.id == job.id
        seen.append(("before", job.id, True))
        run()

    def fails(tx: Tx, job: Job[Any]) -> None:
        raise ValueError

    desk.client.hooks = type(desk.client.hooks)([Look()])
    desk.does = {1: fails}
    jobs = desk.enqueue(3, max_attempts=2)
    with desk.client.subscribe() as events:
        desk.work(jobs, middleware=[around])
        told_events = [(event.kind.value, event.job.id) for event in events]
    first, second, third = (job.id for job in jobs)
    claims = [("claim", first, True), ("claim", second, True), ("claim", third, True)]
    runs = [(what, id, True) for id in (first, second, third) for what in ("start", "before")]
    finished = [
        ("finish completed", first, True),
        ("finish available", second, False),
        ("finish completed", third, True),
    ]
    assert seen[:12] == claims + runs + finished
    assert told_events[:3] == [("job_completed", first), ("job_failed", second), ("job_completed", third)]


def test_a_batch_is_no_longer_than_what_the_claims_of_one_would_take(desk: Desk) -> None:
    """Nothing of a paused queue, nothing that is not due, no kinds that are left to others."""
    jobs = desk.enqueue(3)
    later = desk.enqueue(1, delay=timedelta(hours=1))
    foreign = desk.client.enqueue(None, {"number": 9}, kind="foreign")
    paused = desk.enqueue(1, queue="paused")
    desk.client.queues.pause("paused")
    queues = {"default": 1, "paused": QueueSettings(1, batch_size=5)}
    done = desk.work(jobs, queues=queues, unknown_kinds="leave")
    assert states(done) == [("completed", 1)] * 3
    others = desk.stored([*later, foreign, *paused])
    assert {(job.state.value, job.attempt) for job in others} == {("scheduled", 0), ("available", 0)}


def test_args_that_do_not_fit_and_kinds_without_a_handler_fail_alone(desk: Desk) -> None:
    jobs = desk.enqueue(2)
    unknown = desk.client.enqueue(None, {"number": 2}, kind="unknown", max_attempts=2)
    jobs += [unknown, *desk.enqueue(2)]
    done = desk.work(jobs)
    assert [job.state.value for job in done] == ["completed", "completed", "discarded", "completed", "completed"]
    assert "no handler" in done[2].errors[0].error
    assert desk.together()[0] == [jobs[0].id, jobs[1].id, jobs[3].id, jobs[4].id]


def test_the_version_of_the_code_is_noted_with_each_job(database: str, desk: Desk) -> None:
    with Client(database, schema=desk.client.schema, code_version="v7") as client:
        theirs = Desk(client)
        jobs = theirs.enqueue(4)
        done = theirs.work(jobs)
    assert [job.metadata for job in done] == [{"code_version_enqueued": "v7", "code_version_processed": "v7"}] * 4


def test_kinds_whose_handlers_deallocate_are_run_in_batches_all_the_same(desk: Desk) -> None:
    desk.does = dict.fromkeys(range(3), lambda tx, job: tx.execute("DEALLOCATE ALL"))
    jobs = desk.enqueue(6)
    done = desk.work(jobs)
    assert states(done) == [("completed", 1)] * 6
    desk.check(jobs)


@pytest.mark.prepared("nothing is prepared that could be deallocated")
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("number", [2, 5])
def test_what_is_deallocated_behind_the_back_of_psycopg_costs_the_neighbours_no_effect(
    client: Client, number: int, fails: bool
) -> None:
    """In the second batch on this connection the next handler finds out, by a statement of psycopg's, or the finish:
    then each job runs again, alone."""

    def deallocates(tx: Tx, job: Job[Any]) -> None:
        tx.execute("DO $$ BEGIN EXECUTE 'DEALLO' || 'CATE ALL'; END $$")
        if fails:
            raise ValueError("failed")

    desk = Desk(client)
    desk.sql(TABLES)
    desk.does[6 + number] = deallocates
    jobs = desk.enqueue(12)
    done = desk.work(jobs, batch_size=6)
    assert states(done[:6]) == [("completed", 1)] * 6
    assert {job.state for job in done} == {JobState.COMPLETED}
    assert max(job.attempt for job in done) == 2
    if number == 5:
        assert {job.attempt for job in done[6:]} == {2}
    desk.check(jobs)
    own = [6 + number] if fails else []
    assert [job.args["number"] for job in done if job.last_error == "failed"] == own


# --- durability


@pytest.mark.no_decoys("has a trigger or a rule of its own that finds one")
@pytest.mark.parametrize("prepare", [5, None], ids=["prepared", "plain"])
@pytest.mark.parametrize("batch_size", [1, 10], ids=["one by one", "batches"])
def test_relaxed_finishes_do_not_wait_for_the_disk_and_no_others(
    database: str, client: Client, batch_size: int, prepare: int | None
) -> None:
    """Asked in the COMMIT itself, whatever the handler has set; also for failures, and for those recorded late."""
    Desk(client).sql(
        """
        CREATE TABLE {schema}.finish (queue text, setting text);
        CREATE FUNCTION {schema}.note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            EXECUTE format('INSERT INTO %I.finish VALUES ($1, $2)', TG_TABLE_SCHEMA)
                USING NEW.queue, current_setting('synchronous_commit');
            RETURN NULL;
        END $$;
        CREATE CONSTRAINT TRIGGER note AFTER UPDATE ON {schema}.job DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
            WHEN (OLD.state = 'running') EXECUTE FUNCTION {schema}.note();
        """
    )

    def fails(tx: Tx, job: Job[Any]) -> None:
        raise ValueError

    settings = {"prepare_threshold": prepare, "options": "-c synchronous_commit=local"}
    with ConnectionPool(database, min_size=6, max_size=8, kwargs=settings, open=True) as pool:
        desk = Desk(Client(pool, schema=client.schema), writes=False)
        desk.does = {1: lambda tx, job: tx.execute("SELECT 1"), 2: fails, 3: lambda tx, job: tx.execute("ROLLBACK")}
        relaxed, full = desk.enqueue(4, queue="relaxed"), desk.enqueue(4)
        queues = {"relaxed": QueueSettings(1, durability="relaxed"), "default": 1}
        desk.work([*relaxed, *full], queues=queues, batch_size=batch_size)
        found = desk.sql("SELECT DISTINCT queue, setting FROM {schema}.finish ORDER BY 1")
    assert found == [("default", "local"), ("relaxed", "off")]
