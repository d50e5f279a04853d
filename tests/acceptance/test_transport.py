"""The finish of one job and the claim of the next in one round trip: what is peculiar to that."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool

from pgjobs import Client, Discard, Handler, Hooks, Job, JobState, WorkerPool, constant
from pgjobs.db.connection import shut_down
from pgjobs.execution import low_water_mark, transport
from pgjobs.execution.claimer import Claimer
from pgjobs.execution.queries import ExecutionQueries
from pgjobs.execution.requests import ClaimRequest, Mark
from pgjobs.execution.script import Script
from pgjobs.execution.transport import Transport
from pgjobs.hooks import HookCalls
from tests import inside, modes
from tests.round_trips import RoundTrips, count_round_trips
from tests.samples import Tx
from tests.waiting import wait_until

Answer = tuple[list[Any], psycopg.Error | None]


def work(client: Client, handler: Callable[[Tx, Job[Any]], object], jobs: list[Job[Any]]) -> list[Job[Any]]:
    """Run the handler on one thread until all of these are over; the jobs as they are then."""
    with WorkerPool(client, {"any": handler}, queues={"default": 1}, backoff=constant(timedelta(0))):
        wait_until(lambda: all(stored(client, job).state.final for job in jobs), 20)
    return [stored(client, job) for job in jobs]


def stored(client: Client, job: Job[Any]) -> Job[Any]:
    found = client.get(job.id)
    assert found is not None
    return found


def enqueue(client: Client, jobs: int) -> list[Job[Any]]:
    return [client.enqueue(None, {"number": number}, kind="any") for number in range(jobs)]


@pytest.fixture
def round_trips(monkeypatch: pytest.MonkeyPatch) -> RoundTrips:
    return count_round_trips(monkeypatch)


@pytest.fixture(params=[5, None], ids=["prepared", "plain"])
def either(request: pytest.FixtureRequest, database: str, client: Client) -> Iterator[Client]:
    """A client on connections where statements may be prepared, and one on connections where they may not."""
    settings = {"prepare_threshold": request.param}
    with ConnectionPool(database, min_size=4, max_size=8, kwargs=settings, open=True) as pool:
        yield Client(pool, schema=client.schema)


@pytest.mark.one_by_one("two round trips are for the whole of a batch")
def test_a_job_costs_one_round_trip(either: Client, round_trips: RoundTrips) -> None:
    jobs = work(either, lambda tx, job: None, enqueue(either, 50))
    assert {(job.state, job.attempt) for job in jobs} == {(JobState.COMPLETED, 1)}
    assert len(round_trips.shared) == len(round_trips.finishes) == 50, "each finish took the next claim with it"
    assert round_trips.messages == len(round_trips.scripts) + round_trips.prepared
    assert len(round_trips.scripts) < 50 + 10, "the first claim, and some looks into an empty queue"


@pytest.mark.one_by_one("a batch writes its finish anew")
def test_the_messages_of_a_connection_are_made_once_and_not_each_time_that_it_leaves_the_pool(
    database: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that idles between two jobs asked for the role anew, and kept the messages of each time for ever."""
    made: list[int] = []
    script, template = Script.__init__, Transport._make_template

    def noted(self: Script, *args: Any, **options: Any) -> None:
        made.append(1)
        script(self, *args, **options)

    def counted(self: Transport, *args: Any) -> bytes:
        made.append(1)
        return template(self, *args)

    monkeypatch.setattr(Script, "__init__", noted)
    monkeypatch.setattr(Transport, "_make_template", counted)
    with ConnectionPool(database, min_size=1, max_size=1, kwargs={"prepare_threshold": 5}, open=True) as pool:
        worker = WorkerPool(Client(pool, schema=client.schema), {"any": lambda tx, job: tx.execute("SELECT 1")})
        for number in range(6):
            enqueue(client, 1)
            assert worker.work_one()
            if number == 2:
                before = len(made)
    assert len(made) == before > 0


@pytest.mark.one_by_one("no job is claimed with the finish of another")
def test_what_a_handler_does_to_its_session_does_not_reach_the_job_that_was_claimed_with_its_finish(
    either: Client, round_trips: RoundTrips
) -> None:
    seen: list[Any] = []

    def handler(tx: Tx, job: Job[Any]) -> None:
        seen.append(
            tx.execute(
                "SELECT current_setting('search_path'), current_setting('statement_timeout'), current_user,"
                " (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),"
                " ARRAY(SELECT pg_listening_channels()), to_regclass('pg_temp.mine') IS NULL, pg_backend_pid()"
            ).fetchone()
        )
        assert tx.row_factory is not dict_row
        tx.execute("CREATE TEMP TABLE mine ()")
        tx.execute("SET search_path = nowhere")
        tx.execute("SET LOCAL statement_timeout = '1min'")
        tx.execute("SELECT pg_advisory_lock(4711)")
        tx.execute("LISTEN anything")
        tx.row_factory = dict_row

    jobs = work(either, handler, enqueue(either, 5))
    assert {(job.state, job.attempt) for job in jobs} == {(JobState.COMPLETED, 1)}
    assert len(seen) == 5
    assert len(set(map(str, seen))) == 1, "the same clean session, on the same connection"
    assert len(round_trips.shared) == 5
    assert all("reset_session" in labels for labels in round_trips.shared), "in the same round trip"


def look_and_soil(seen: list[Any], *also: LiteralString) -> Callable[[Tx, Job[Any]], None]:
    """A handler that notes its session, and in the first job leaves one behind that nobody should see."""

    def handler(tx: Tx, job: Job[Any]) -> None:
        seen.append(
            tx.execute(
                "SELECT COALESCE(current_setting('app.tenant', true), ''), current_setting('search_path'),"
                " current_setting('transaction_isolation'), ARRAY(SELECT pg_listening_channels()),"
                " to_regclass('pg_temp.mine') IS NULL"
            ).fetchone()
        )
        if job.args["number"] == 0:
            for statement in ("SET app.tenant = 'somebody'", "SET search_path = nowhere", "LISTEN anything", *also):
                tx.execute(statement)
            tx.execute("CREATE TEMP TABLE mine ()")

    return handler


@pytest.mark.parametrize("level", ["serializable", "repeatable read"])
def test_with_another_isolation_for_a_default_the_next_job_finds_a_clean_session_as_fast(
    database: str, client: Client, round_trips: RoundTrips, level: str
) -> None:
    seen: list[Any] = []
    options = "-c default_transaction_isolation=" + level.replace(" ", "\\ ")
    with Client(make_conninfo(database, options=options), schema=client.schema) as strict:
        jobs = work(strict, look_and_soil(seen), enqueue(client, 5))
    assert {(job.state, job.attempt) for job in jobs} == {(JobState.COMPLETED, 1)}
    assert [row[0] for row in seen] == [""] * 5
    assert len(set(map(str, seen))) == 1
    if modes.BATCH_SIZE == 1:
        assert len(round_trips.shared) == 5, "each finish took the next claim with it"


@pytest.mark.parametrize("also", ["ISOLATION LEVEL SERIALIZABLE", "READ ONLY"])
def test_a_handler_that_changes_the_default_of_transactions_leaves_a_clean_session(
    client: Client, caplog: pytest.LogCaptureFixture, also: LiteralString
) -> None:
    seen: list[Any] = []
    told = Undone()
    client.hooks = HookCalls([told])
    jobs = work(client, look_and_soil(seen, "SET SESSION CHARACTERISTICS AS TRANSACTION " + also), enqueue(client, 3))
    assert {(job.state, job.attempt) for job in jobs} == {(JobState.COMPLETED, 1)}
    assert [row[0] for row in seen] == [""] * 3
    assert len(set(map(str, seen))) == 1
    assert (told.errors, "could not be locked" in caplog.text) == ([], False)


@pytest.mark.one_by_one("no job is claimed with the finish of another")
def test_a_claim_that_fails_behind_a_finish_does_not_bring_the_session_back(client: Client) -> None:
    """What made the session clean is not undone with it."""
    refuse_once(client)
    seen: list[Any] = []
    jobs = work(client, look_and_soil(seen), enqueue(client, 3))
    assert {(job.state, job.attempt) for job in jobs} == {(JobState.COMPLETED, 1)}
    assert [row[0] for row in seen] == [""] * 3
    assert len(set(map(str, seen))) == 1


@pytest.mark.one_by_one("no job is claimed with the finish of another")
def test_a_claim_behind_a_finish_that_cannot_be_taken_back_is_no_fault_of_the_finish(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a session that has become one of a replica."""
    refuse_once(client)
    told = Undone()
    client.hooks = HookCalls([told])
    refused: list[int] = []
    release = ExecutionQueries.unclaim

    def refuse(self: ExecutionQueries, conn: Tx, **options: Any) -> bool:
        if not refused:
            refused.append(conn.info.backend_pid)
            raise psycopg.errors.ReadOnlySqlTransaction("cannot execute UPDATE in a read-only transaction")
        return release(self, conn, **options)

    monkeypatch.setattr(ExecutionQueries, "unclaim", refuse)
    pids: list[int] = []
    jobs = work(client, lambda tx, job: pids.append(tx.info.backend_pid), enqueue(client, 3))
    assert {(job.state, job.attempt, job.error_count) for job in jobs} == {(JobState.COMPLETED, 1, 0)}
    assert told.errors == []
    assert refused == pids[:1]
    assert not set(refused) & set(pids[1:]), "that connection is not used again"


def refuse_once(client: Client) -> None:
    """Let the first claim of the second job fail."""
    script = """
        CREATE SEQUENCE {schema}.tries;
        CREATE FUNCTION {schema}.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF nextval(TG_TABLE_SCHEMA || '.tries') = 1 THEN RAISE EXCEPTION 'not yet'; END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER refuse BEFORE UPDATE ON {schema}.job FOR EACH ROW
            WHEN (NEW.state OPERATOR(pg_catalog.=) 'running'
                AND OLD.args OPERATOR(pg_catalog.->>) 'number' OPERATOR(pg_catalog.=) '1')
            EXECUTE FUNCTION {schema}.refuse();
    """
    with client.pool.connection() as conn:
        conn.execute(sql.SQL(script).format(schema=sql.Identifier(client.schema)))


class Undone(Hooks):
    def __init__(self) -> None:
        self.errors: list[str] = []

    def on_undone(self, job: Job[Any], error: BaseException) -> None:
        self.errors.append(str(error))


@pytest.mark.one_by_one("a batch reads and writes its rows by itself")
def test_a_handler_that_changes_the_encoding_does_not_harm_the_jobs_behind_it(client: Client) -> None:
    """The messages of a queue are kept, and its name is written in the encoding that holds."""
    queue = "a\N{MIDDLE DOT}b"
    encodings = ["UTF8", "LATIN1", "UTF8", "LATIN1", "UTF8"]

    def handler(tx: Tx, job: Job[Any]) -> None:
        tx.execute("SELECT set_config('client_encoding', %s, false)", [encodings[job.args["number"]]])

    jobs = [client.enqueue(None, {"number": number}, kind="any", queue=queue) for number in range(len(encodings))]
    with WorkerPool(client, {"any": handler}, queues={queue: 1}, backoff=constant(timedelta(0))):
        wait_until(lambda: all(stored(client, job).state.final for job in jobs))
    done = [stored(client, job) for job in jobs]
    assert {(job.state, job.attempt, job.error_count) for job in done} == {(JobState.COMPLETED, 1, 0)}


@pytest.mark.parametrize("uses", [False, True], ids=["together", "one after the other"])
@pytest.mark.parametrize("after", [False, True], ids=["the request is lost", "the answer is lost"])
@pytest.mark.one_by_one("no job is claimed with the finish of another")
def test_a_connection_lost_between_two_jobs_costs_neither_an_attempt(
    *, either: Client, monkeypatch: pytest.MonkeyPatch, after: bool, uses: bool
) -> None:
    """With the answer, that of the claim is lost too: nothing ran, so the claim is undone."""
    broken: list[int] = []
    ran: list[int] = []
    run = Transport.run

    def lost(self: Transport, *args: Any, **options: Any) -> Answer:
        if len(ran) < 2 or broken:
            return run(self, *args, **options)
        broken.append(1)
        if after:
            results, _ = run(self, *args, **options)
            assert len(results) > 3, "of the finish and the claim"
        shut_down(self._conn)
        return run(self, *args, **options)

    def handler(tx: Tx, job: Job[Any]) -> None:
        if uses:
            write_effect(either, tx, job)
        ran.append(job.id)

    make_effects(either)
    monkeypatch.setattr(Transport, "run", lost)
    jobs = work(either, handler, enqueue(either, 3))
    assert broken
    _, second, third = jobs
    assert (third.state, third.attempt, third.error_count) == (JobState.COMPLETED, 1, 0)
    assert (second.state, second.attempt) == (JobState.COMPLETED, 1 if after else 2)
    assert effects(either) == ({job.id: 1 for job in jobs} if uses else {})


def make_effects(client: Client) -> None:
    with client.pool.connection() as conn:
        conn.execute(sql.SQL("CREATE TABLE {}.effect (job bigint)").format(sql.Identifier(client.schema)))


def write_effect(client: Client, tx: Tx, job: Job[Any]) -> None:
    tx.execute(sql.SQL("INSERT INTO {}.effect VALUES (%s)").format(sql.Identifier(client.schema)), [job.id])


def effects(client: Client) -> dict[int, int]:
    """How many effects each job has."""
    query = sql.SQL("SELECT job, count(*) FROM {}.effect GROUP BY job").format(sql.Identifier(client.schema))
    with client.pool.connection() as conn:
        return dict(conn.execute(query).fetchall())


def after_each_finish(monkeypatch: pytest.MonkeyPatch, act: Callable[[Transport], object]) -> None:
    """Do something when a finish is sent and answered, and the claim with it."""
    complete = ExecutionQueries.complete

    def noted(self: ExecutionQueries, transport: Transport, *args: Any, **options: Any) -> Any:
        finished = complete(self, transport, *args, **options)
        act(transport)
        return finished

    monkeypatch.setattr(ExecutionQueries, "complete", noted)


@pytest.mark.one_by_one("no job is claimed with the finish of another")
def test_a_job_that_was_claimed_when_the_pool_stops_is_unclaimed(
    either: Client, monkeypatch: pytest.MonkeyPatch, round_trips: RoundTrips
) -> None:
    """The stop comes while the first finish, and the claim with it, is under way."""
    jobs = enqueue(either, 3)
    started: list[int] = []
    pool = WorkerPool(either, {"any": lambda tx, job: started.append(job.id)}, queues={"default": 1})
    after_each_finish(monkeypatch, lambda _: inside.begin_stop(pool))
    with pool:
        wait_until(lambda: not inside.at_work(pool))
    first, *others = (stored(either, job) for job in jobs)
    assert first.state == JobState.COMPLETED
    assert len(round_trips.shared) == 1, "the second was claimed"
    assert started == [first.id]
    assert {(job.state, job.attempt, job.attempted_at) for job in others} == {(JobState.AVAILABLE, 0, None)}


@pytest.mark.one_by_one("no job is claimed with the finish of another")
def test_a_job_that_was_never_started_has_no_attempt_counted_when_its_connection_dies_at_a_stop(
    either: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = enqueue(either, 2)
    started: list[int] = []
    pool = WorkerPool(either, {"any": lambda tx, job: started.append(job.id)}, queues={"default": 1})

    def stop_and_lose(transport: Transport) -> None:
        inside.begin_stop(pool)
        with either.pool.connection() as conn:
            conn.execute("SELECT pg_terminate_backend(%s, 5000)", [transport._conn.info.backend_pid])

    after_each_finish(monkeypatch, stop_and_lose)
    with pool:
        wait_until(lambda: not inside.at_work(pool))
    wait_until(lambda: stored(either, second).state == JobState.AVAILABLE)
    assert started == [first.id]
    assert (stored(either, first).state, stored(either, second).attempt) == (JobState.COMPLETED, 0)


@pytest.mark.one_by_one("no job is claimed with the finish of another")
def test_no_other_claim_comes_between_a_claim_and_its_undoing(either: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another claim that is under way still sees the job as available: it locks the row as soon as that is free, finds
    that it is taken, and holds the lock to its end. The stop must not meet that lock."""
    first, second, *_ = enqueue(either, 3)
    pool = WorkerPool(either, {"any": lambda tx, job: None}, queues={"default": 1})
    after_each_finish(monkeypatch, lambda _: inside.begin_stop(pool))
    release, undone, in_its_way = ExecutionQueries.unclaim, list[int](), list[int]()
    with either.source.connect() as other:

        def meanwhile(self: ExecutionQueries, *args: Any, **options: Any) -> bool:
            query = sql.SQL("SELECT id FROM {}.job WHERE state = 'running' FOR NO KEY UPDATE SKIP LOCKED")
            other.execute("BEGIN")
            in_its_way.extend(id for (id,) in other.execute(query.format(sql.Identifier(either.schema))).fetchall())
            undone.append(1)
            return release(self, *args, **options)

        monkeypatch.setattr(ExecutionQueries, "unclaim", meanwhile)
        with pool:
            wait_until(lambda: not inside.at_work(pool), 20)
        other.execute("ROLLBACK")
    assert stored(either, first).state == JobState.COMPLETED
    assert (stored(either, second).state, stored(either, second).attempt) == (JobState.AVAILABLE, 0)
    assert undone == [1]
    assert in_its_way == []


@pytest.mark.one_by_one("no job is claimed with the finish of another")
def test_where_a_finish_has_found_nothing_the_claim_that_follows_does_not_look_again(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int | None] = []  # behind which job
    request = Claimer.request

    def noted(self: Claimer, queue: str, id: int | None, mark: Mark | None) -> ClaimRequest:
        looks.append(None if mark is None else int(mark.id))
        return request(self, queue, id, mark)

    monkeypatch.setattr(Claimer, "request", noted)
    monkeypatch.setattr(low_water_mark, "_FULL_SCAN_EVERY", 60.0)
    monkeypatch.setattr(low_water_mark, "_FULL_SCAN_AT_LEAST_EVERY", 60.0)
    first, second = enqueue(client, 2)
    pool = WorkerPool(
        client, {"any": lambda tx, job: None}, queues={"default": 1}, listen=False, poll_interval=timedelta(minutes=1)
    )
    with pool:
        wait_until(lambda: len(looks) > 1 and looks[-1] is None)
    assert looks == [None, first.id, second.id, None]


@pytest.mark.parametrize("late", ["more urgent", "committed late"])
def test_what_appears_before_the_mark_waits_for_no_more_than_a_look_past_it(
    client: Client, conn: Tx, late: str
) -> None:
    """R21: the queue is never found empty meanwhile, which would end the mark."""
    order: list[int] = []
    awaited: list[int] = []
    found = threading.Event()
    if late == "committed late":
        awaited.append(client.enqueue(conn, {}, kind="any").id)  # older than all the others, and not there yet

    def handler(tx: Tx, job: Job[Any]) -> None:
        order.append(job.id)
        if len(order) == 20 and late == "committed late":
            conn.commit()
        elif len(order) == 20:
            awaited.append(client.enqueue(None, {}, kind="any", priority=-5).id)
        if job.id in awaited:
            found.set()
        if len(order) > 20 and not found.is_set():
            found.wait(0.01)  # the jobs in between take their time, so that there is no end of them before the look

    work(client, handler, enqueue(client, 200))  # two seconds, and a look that took long lets one pass to the next
    assert awaited[0] in order
    assert order.index(awaited[0]) < len(order) - 5


@pytest.mark.prepared("looks at what is prepared")
@pytest.mark.parametrize("settings", [{"prepare_threshold": None}, {}], ids=["plain", "prepared"])
def test_a_pool_of_the_application_prepares_only_where_it_may(
    database: str, client: Client, round_trips: RoundTrips, settings: dict[str, Any]
) -> None:
    with ConnectionPool(database, min_size=3, max_size=3, kwargs=settings, open=True) as pool:
        theirs = Client(pool, schema=client.schema)
        jobs = work(theirs, lambda tx, job: None, enqueue(theirs, 5))
    assert {(job.state, job.attempt) for job in jobs} == {(JobState.COMPLETED, 1)}
    assert bool(round_trips.prepared) == (not settings)


def test_kinds_whose_handlers_deallocate_run_on_the_plain_path_without_an_attempt_lost(client: Client) -> None:
    jobs = work(client, lambda tx, job: tx.execute("DEALLOCATE ALL"), enqueue(client, 3))
    assert {(job.state, job.attempt, job.error_count) for job in jobs} == {(JobState.COMPLETED, 1, 0)}


@pytest.mark.parametrize("threshold", [5, None], ids=["prepared", "plain"])
def test_a_commit_that_misses_a_statement_of_the_applications_is_the_attempts_failure(
    database: str, client: Client, threshold: int | None
) -> None:
    """What is missing is not ours: the handler would be started again for ever, were that not counted."""
    script = """
        CREATE TABLE {schema}.audited (id bigint);
        CREATE FUNCTION {schema}.audit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            EXECUTE 'EXECUTE audit_statement';
            RETURN NULL;
        END $$;
        CREATE CONSTRAINT TRIGGER audit AFTER INSERT ON {schema}.audited DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION {schema}.audit();
    """
    with client.pool.connection() as conn:
        conn.execute(sql.SQL(script).format(schema=sql.Identifier(client.schema)))
    starts: list[int] = []

    def handler(tx: Tx, job: Job[Any]) -> None:
        starts.append(job.attempt)
        if len(starts) > 9:
            raise Discard("started without end")
        tx.execute(sql.SQL("INSERT INTO {}.audited VALUES (1)").format(sql.Identifier(client.schema)))

    with ConnectionPool(database, min_size=4, max_size=4, kwargs={"prepare_threshold": threshold}, open=True) as pool:
        (job,) = work(
            Client(pool, schema=client.schema), handler, [client.enqueue(None, {}, kind="any", max_attempts=3)]
        )
    assert starts == [1, 2, 3]
    assert (job.state, job.attempt) == (JobState.DISCARDED, 3)
    assert job.last_error is not None
    assert "audit_statement" in job.last_error


@pytest.mark.prepared("looks at what is prepared")
def test_many_clients_on_one_connection_do_not_pile_up_on_it(database: str, client: Client) -> None:
    """As in an application that makes a client for each request."""
    prepared: list[int] = []
    with ConnectionPool(database, min_size=1, max_size=1, open=True) as pool:
        for _ in range(20):
            theirs = Client(pool, schema=client.schema)
            job: Job[Any] = theirs.enqueue(None, {}, kind="any")
            assert WorkerPool(theirs, {"any": lambda tx, job: None}).work_one()
            assert stored(theirs, job).state == JobState.COMPLETED
            with pool.connection() as conn:
                row = conn.execute("SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'pgjobs%'").fetchone()
                assert row is not None
                prepared.append(row[0])
    assert prepared[0] < prepared[1]
    assert len(set(prepared[10:])) == 1


def test_what_a_changed_work_map_no_longer_needs_is_deallocated(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its timeouts stand in the statements; a process that changes them for years does not fill the server."""
    monkeypatch.setattr(transport, "_MOST_PREPARED", 4)
    client.pool.resize(0, 1)
    prepared: list[tuple[int, int]] = []

    def handler(tx: Tx, job: Job[Any]) -> None:
        query = "SELECT pg_backend_pid(), count(*) FROM pg_prepared_statements WHERE name LIKE 'pgjobs%'"
        prepared.extend(tx.execute(query).fetchall())

    jobs = enqueue(client, 20)
    pool = WorkerPool(client, {"any": handler})
    for number in range(len(jobs)):
        pool.work_map[f"other.{number}"] = Handler(handler, timeout=timedelta(seconds=number + 1))
        assert pool.work_one()
    assert {(stored(client, job).state, stored(client, job).attempt) for job in jobs} == {(JobState.COMPLETED, 1)}
    assert len({pid for pid, _ in prepared}) == 1, "all on one connection"
    assert max(number for _, number in prepared) < 10
