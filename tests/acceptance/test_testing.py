"""pgjobs.testing in the transaction of a test: jobs run there as in a worker, and all is gone after its rollback."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from django.db import connections, transaction
from psycopg.pq import TransactionStatus
from sqlalchemy import inspect
from sqlalchemy.orm import Session

from pgjobs import (
    Cancel,
    Client,
    Discard,
    ErrorHandler,
    Handler,
    Hooks,
    Interrupted,
    InvalidSetting,
    InvalidTransaction,
    Job,
    JobFilter,
    JobNotFound,
    JobState,
    JobTimedOut,
    NewJob,
    NotRunning,
    RetryAfter,
    Schedule,
    Snooze,
    TransactionBroken,
    Unique,
    UniqueConflict,
    UnknownKind,
    WorkMap,
    constant,
)
from pgjobs.execution import attempt
from pgjobs.execution.attempt import GracePeriods
from pgjobs.job import current_job
from pgjobs.testing import Jobs
from pgjobs.work_map import HandlerFunction
from tests.acceptance.frameworks import APPS, App, Trial, raw, trial
from tests.conftest import Connect
from tests.samples import HOUR, SECOND, Thing, Tx, nothing

NOTHING: dict[str, Any] = {}


class Undone(Exception):
    pass


@contextmanager
def undone(app: App) -> Iterator[Any]:
    """A transaction of the application, which is rolled back at the end."""
    try:
        with app.transaction() as tx:
            yield tx
            raise Undone
    except Undone:
        pass


@pytest.fixture(params=APPS)
def made(request: pytest.FixtureRequest, fresh_database: str) -> Iterator[Trial]:
    with trial(APPS[request.param](fresh_database, "pgjobs"), fresh_database) as made:
        yield made


@pytest.fixture
def conn(connect: Connect, client: Client) -> Tx:
    """The transaction of a test."""
    return connect()


def jobs_of(client: Client, tx: Any, *handlers: HandlerFunction | Handler, **settings: Any) -> Jobs:
    """Jobs whose handlers are of the kinds "test-0", "test-1" and so on."""
    return Jobs(client, tx, WorkMap({f"test-{n}": each for n, each in enumerate(handlers)}), **settings)


def perform(client: Client, tx: Any, handler: HandlerFunction | Handler, **settings: Any) -> Any:
    return jobs_of(client, tx, handler, **settings).perform(NOTHING, kind="test-0")


# --- with psycopg, SQLAlchemy and Django


def test_a_job_runs_in_the_transaction_of_the_test_and_nothing_is_left_after_it(made: Trial) -> None:
    app = made.app

    def handler(tx: Any, job: Job[Any]) -> None:
        app.write(tx, "by the handler")
        made.client.enqueue(tx, {}, kind="follow-up")
        job.record_output({"attempt": job.attempt})
        job.set_metadata(seen=True)

    with undone(app) as tx:
        app.write(tx, "by the test")
        done = jobs_of(made.client, tx, handler).perform({"n": 1}, kind="test-0", queue="mail")
        assert (done.outcome, done.error) == ("complete", None)
        assert (done.job.state, done.job.queue, done.job.attempt) == (JobState.COMPLETED, "mail", 1)
        assert (done.job.output, done.job.metadata["seen"]) == ({"attempt": 1}, True)
        assert [job.kind for job in done.enqueued] == ["follow-up"]
        assert app.run(tx, "SELECT string_agg(note, ', ' ORDER BY id) FROM effect") == "by the test, by the handler"
        assert (made.jobs, made.effects) == ([], []), "nothing is committed"
    assert (made.jobs, made.effects) == ([], [])


def test_what_a_failing_handler_has_written_is_undone_and_the_error_recorded(made: Trial) -> None:
    app = made.app

    def handler(tx: Any, job: Job[Any]) -> None:
        app.write(tx, "by the handler")
        made.client.enqueue(tx, {}, kind="follow-up")
        raise KeyError("why")

    with undone(app) as tx:
        app.write(tx, "by the test")
        jobs = jobs_of(made.client, tx, handler)
        done = jobs.perform(NOTHING, kind="test-0")
        assert (done.outcome, done.job.state, done.enqueued) == ("retry", JobState.RETRYABLE, ())
        assert done.job.last_error == "KeyError: 'why'"
        with pytest.raises(KeyError, match="why"):
            done.raise_error()
        assert app.run(tx, "SELECT string_agg(note, ', ') FROM effect") == "by the test"
        again = jobs.perform_stored(done.job)
        assert (again.job.attempt, again.job.error_count) == (2, 2)
        jobs.assert_enqueued("test-0", state="retryable", attempt=2)
    assert (made.jobs, made.effects) == ([], [])


def test_an_sql_error_in_the_handler_leaves_the_transaction_usable(made: Trial) -> None:
    app = made.app

    def swallows(tx: Any, job: Job[Any]) -> None:
        app.write(tx, "twice")
        with suppress(Exception):
            app.run(tx, "SELECT 1 / 0")

    with undone(app) as tx:
        done = jobs_of(made.client, tx, swallows).perform(NOTHING, kind="test-0")
        assert done.outcome == "retry"
        assert done.error is not None
        assert app.run(tx, "SELECT count(*) FROM effect") == 0


def test_without_a_tx_everything_commits_until_it_is_cleared(made: Trial) -> None:
    def handler(tx: Any, job: Job[Any]) -> None:
        made.app.write(tx, "kept")

    jobs = jobs_of(made.client, None, handler)
    assert jobs.perform(NOTHING, kind="test-0").outcome == "complete"
    assert (made.jobs, made.effects) == (["test-0"], ["kept"])
    jobs.clear()
    assert made.jobs == []


# --- the transaction is as before


def state(conn: Tx) -> dict[str, Any]:
    rows = conn.execute("SELECT name, setting FROM pg_settings WHERE name NOT LIKE 'plpgsql.%'").fetchall()
    role = conn.execute("SELECT current_setting('role'), session_user").fetchall()
    return {**dict(rows), "role": role}


def test_settings_are_as_before(client: Client, conn: Tx) -> None:
    def sets(tx: Tx, job: Job[Any]) -> None:
        tx.execute("SET LOCAL lock_timeout = '1s'")
        tx.execute("SET search_path = pg_catalog")
        tx.execute("SET TimeZone = 'Asia/Tokyo'")
        tx.execute("SET ROLE pg_monitor")

    def fails(tx: Tx, job: Job[Any]) -> None:
        sets(tx, job)
        raise KeyError

    conn.execute("SET LOCAL lock_timeout = '7s'")
    conn.execute("SET LOCAL search_path = public, pg_temp")
    conn.execute("SET LOCAL statement_timeout = '1min'")
    before = state(conn)
    jobs = jobs_of(client, conn, sets, fails, nothing)
    assert [jobs.perform(NOTHING, kind=f"test-{n}").outcome for n in range(3)] == ["complete", "retry", "complete"]
    assert state(conn) == before
    conn.rollback()
    assert conn.execute("SHOW lock_timeout").fetchone() == ("0",)


@pytest.mark.parametrize("source", APPS)
def test_a_deferred_constraint_fails_the_attempt_as_a_commit_would(source: str, fresh_database: str) -> None:
    """As all foreign keys of Django: the handler of a test was completed, and that of a worker never."""
    with trial(APPS[source](fresh_database, "pgjobs"), fresh_database) as made:
        app = made.app
        made.query("CREATE TABLE parent (note text PRIMARY KEY)")
        made.query("ALTER TABLE effect ADD FOREIGN KEY (note) REFERENCES parent DEFERRABLE INITIALLY DEFERRED")

        def handler(tx: Any, job: Job[Any]) -> None:
            app.write(tx, job.args["note"])

        with undone(app) as tx:
            app.run(tx, "INSERT INTO parent VALUES ('there')")
            jobs = jobs_of(made.client, tx, handler)
            assert jobs.perform({"note": "there"}, kind="test-0").outcome == "complete"
            wrong = jobs.perform({"note": "nowhere"}, kind="test-0")
            assert (wrong.outcome, type(wrong.error), wrong.job.attempt) == ("retry", TransactionBroken, 1)
            assert "could not be committed" in (wrong.job.last_error or "")
            assert app.run(tx, "SELECT string_agg(note, ', ') FROM effect") == "there"
            assert jobs.perform({"note": "there"}, kind="test-0").outcome == "retry"  # twice: unique


def test_deferred_constraints_stay_deferred_in_the_test(client: Client, conn: Tx) -> None:
    conn.execute("CREATE TEMP TABLE parent (n int PRIMARY KEY)")
    conn.execute("CREATE TEMP TABLE child (n int REFERENCES parent DEFERRABLE INITIALLY DEFERRED)")
    conn.execute("CREATE TEMP TABLE eager (n int UNIQUE DEFERRABLE INITIALLY IMMEDIATE)")

    def handler(tx: Tx, job: Job[Any]) -> None:
        tx.execute("INSERT INTO child VALUES (1)")
        tx.execute("INSERT INTO parent VALUES (1)")

    assert perform(client, conn, handler).outcome == "complete"
    conn.execute("INSERT INTO child VALUES (2)")  # of the test: jobs cannot be checked now
    assert perform(client, conn, nothing).outcome == "complete"
    conn.execute("INSERT INTO parent VALUES (2)")
    with pytest.raises(psycopg.errors.UniqueViolation), conn.transaction():
        conn.execute("INSERT INTO eager VALUES (1), (1)")
    conn.execute("INSERT INTO child VALUES (3)")
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        conn.commit()


def test_the_role_of_the_test_runs_the_job_and_stays(client: Client, conn: Tx) -> None:
    conn.execute(f"CREATE ROLE {client.schema} NOLOGIN")
    conn.execute(f"GRANT ALL ON SCHEMA {client.schema} TO {client.schema}")
    conn.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA {client.schema} TO {client.schema}")
    conn.execute(f"SET LOCAL ROLE {client.schema}")
    seen = []

    def handler(tx: Tx, job: Job[Any]) -> None:
        seen.append(tx.execute("SELECT current_user").fetchone())

    assert perform(client, conn, handler).outcome == "complete"
    assert [*seen, conn.execute("SELECT current_user").fetchone()] == [(client.schema,)] * 2


def test_what_the_session_has_is_not_reset(client: Client, conn: Tx) -> None:
    conn.execute("CREATE TEMP TABLE mine (n int)")
    conn.execute("SELECT pg_advisory_lock(17)")
    conn.execute("PREPARE mine AS SELECT 42")
    conn.execute("DECLARE mine CURSOR FOR SELECT generate_series(1, 3)")
    perform(client, conn, lambda tx, job: tx.execute("INSERT INTO mine VALUES (1)") and None)
    assert conn.execute("TABLE mine").fetchall() == [(1,)]
    assert conn.execute("EXECUTE mine").fetchone() == (42,)
    assert conn.execute("FETCH mine").fetchone() == (1,)
    assert conn.execute("SELECT pg_advisory_unlock(17)").fetchone() == (True,)


def test_no_savepoint_is_left(client: Client, conn: Tx) -> None:
    conn.execute("SELECT 1")
    perform(client, conn, nothing)
    for name in ("pgjobs_testing", f"{client.queries.tag}_within", client.queries.tag):
        with pytest.raises(psycopg.errors.InvalidSavepointSpecification), conn.transaction():
            conn.execute(f"RELEASE SAVEPOINT {name}")
    assert conn.info.transaction_status == TransactionStatus.INTRANS


def test_a_handler_cannot_use_its_connection_after_its_job(client: Client, conn: Tx) -> None:
    kept: list[Tx] = []
    perform(client, conn, lambda tx, job: kept.append(tx))
    with pytest.raises(psycopg.OperationalError, match="has ended, and with it its transaction"):
        kept[0].execute("SELECT 1")
    conn.execute("SELECT 1")


def test_commit_in_a_handler_raises_and_the_test_goes_on(client: Client, conn: Tx) -> None:
    done = perform(client, conn, lambda tx, job: tx.commit())
    assert (done.outcome, type(done.error)) == ("retry", psycopg.ProgrammingError)
    assert conn.info.transaction_status == TransactionStatus.INTRANS


def test_sql_that_ends_the_transaction_of_the_test_is_told(client: Client, conn: Tx) -> None:
    with pytest.raises(TransactionBroken, match="the transaction of the test is gone: a handler has sent COMMIT"):
        perform(client, conn, lambda tx, job: tx.execute("ROLLBACK") and None)


def test_a_handler_that_changes_its_own_row_loses_and_the_test_goes_on(client: Client, conn: Tx) -> None:
    def steals(tx: Tx, job: Job[Any]) -> None:
        tx.execute(f"UPDATE {client.schema}.job SET token = NULL WHERE id = {job.id}")

    done = perform(client, conn, steals)
    assert (done.outcome, type(done.error)) == ("retry", TransactionBroken)
    assert done.job.last_error is not None
    conn.execute("SELECT 1")


def test_a_connection_without_a_transaction_is_refused(client: Client, connect: Connect) -> None:
    conn = connect(autocommit=True)
    with pytest.raises(InvalidTransaction, match="in autocommit mode and has no transaction open"):
        jobs_of(client, conn, nothing).perform_stored(client.enqueue(None, {}, kind="test-0"))
    with conn.transaction(force_rollback=True):
        assert perform(client, conn, nothing).outcome == "complete"
        with conn.pipeline(), pytest.raises(InvalidTransaction, match="in a pipeline"):
            jobs_of(client, conn, nothing).drain()


# --- the path of a worker


@pytest.mark.parametrize(
    ("signal", "outcome", "state"),
    [
        (Snooze(HOUR), "snooze", JobState.SCHEDULED),
        (Cancel("no"), "cancel", JobState.CANCELLED),
        (Discard("no"), "discard", JobState.DISCARDED),
        (RetryAfter(HOUR), "retry", JobState.RETRYABLE),
    ],
    ids=["snooze", "cancel", "discard", "retry"],
)
def test_a_signal_is_the_outcome(client: Client, conn: Tx, signal: Exception, outcome: str, state: JobState) -> None:
    def raises(tx: Tx, job: Job[Any]) -> None:
        raise signal

    done = perform(client, conn, raises)
    assert (done.outcome, done.job.state, done.error) == (outcome, state, signal)


def test_hooks_middleware_error_handler_and_backoff_take_part(database: str, client: Client, conn: Tx) -> None:
    seen: list[str] = []

    class Seen(Hooks):
        def on_start(self, job: Job[Any]) -> None:
            seen.append("on_start")

        def on_finish(self, job: Job[Any], error: BaseException | None) -> None:
            seen.append(f"on_finish {job.state}")

    class Gives(ErrorHandler):
        def handle_error(self, job: Job[Any], error: Exception) -> Cancel | None:
            return Cancel() if isinstance(error, KeyError) else None

    def around(tx: Tx, job: Job[Any], run: Any) -> None:
        seen.append("middleware")
        run()

    def fails(tx: Tx, job: Job[Any]) -> None:
        assert current_job() is job
        raise KeyError if job.args else ValueError

    with Client(database, schema=client.schema, hooks=[Seen()], code_version="v7") as other:
        settings: dict[str, Any] = {"middleware": [around], "error_handler": Gives(), "backoff": constant(HOUR)}
        jobs = jobs_of(other, conn, fails, **settings)
        done = jobs.perform(NOTHING, kind="test-0")
        assert done.outcome == "retry"
        assert done.job.scheduled_at - done.job.errors[0].at == HOUR
        assert done.job.metadata["code_version_processed"] == "v7"
        assert jobs.perform({"key": 1}, kind="test-0").outcome == "cancel"
    assert seen == [
        *("on_start", "middleware", "on_finish retryable"),
        *("on_start", "middleware", "on_finish cancelled"),
    ]


def test_a_timeout_cancels_the_statement_and_spares_the_connection(client: Client, conn: Tx) -> None:
    sleeps = Handler(lambda tx, job: tx.execute("SELECT pg_sleep(60)") and None, timeout=SECOND / 10)
    done = perform(client, conn, sleeps)
    assert (done.outcome, type(done.error)) == ("retry", JobTimedOut)
    assert done.job.last_error == "timed out after 0.1 s"
    assert conn.execute("SELECT 1").fetchone() == (1,)


def test_a_timeout_interrupts_python_and_spares_the_connection(client: Client, conn: Tx) -> None:
    def spins(tx: Tx, job: Job[Any]) -> None:
        tx.execute("SELECT 1")
        never = threading.Event()
        while True:
            never.wait(0.01)

    done = perform(client, conn, spins, timeout=SECOND / 10)
    assert (done.outcome, type(done.error)) == ("retry", JobTimedOut)
    assert conn.execute("SELECT 1").fetchone() == (1,)


def test_a_handler_that_ignores_its_timeout_does_not_cost_the_connection(
    client: Client, conn: Tx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "AFTER_TIMEOUT", GracePeriods(0.01, 0.02, 0.03))

    def ignores(tx: Tx, job: Job[Any]) -> None:
        tx.execute("CREATE TABLE pg_temp.ignored (n int)")
        running: Any = job.running
        never = threading.Event()
        while not running.stuck:
            with suppress(Interrupted):
                never.wait(0.01)

    done = perform(client, conn, ignores, timeout=SECOND / 100)
    assert (done.outcome, type(done.error)) == ("retry", JobTimedOut)
    assert conn.execute("SELECT to_regclass('pg_temp.ignored')").fetchone() == (None,)


def test_the_server_does_not_bound_the_transaction_of_the_test(client: Client, conn: Tx) -> None:
    seen = []

    def handler(tx: Tx, job: Job[Any]) -> None:
        version = tx.info.server_version
        name = "transaction_timeout" if version >= 170000 else "idle_in_transaction_session_timeout"
        seen.append(tx.execute(f"SELECT current_setting('{name}')").fetchone())

    perform(client, conn, Handler(handler, timeout=SECOND))
    assert seen == [("0",)]


def test_args_come_as_their_class_and_those_that_do_not_fit_fail_the_attempt(client: Client, conn: Tx) -> None:
    seen: list[object] = []
    jobs = Jobs(client, conn, {Thing: lambda tx, job: seen.append(job.args)})
    done = jobs.perform(Thing(3))
    assert (seen, done.job.args) == ([Thing(3)], Thing(3))
    wrong = jobs.perform({"n": "three"}, kind="thing")
    assert (wrong.outcome, type(wrong.error).__name__) == ("retry", "UndecodableArgs")


def test_a_detached_handler_runs_without_a_tx(client: Client, conn: Tx) -> None:
    def apart(tx: None, job: Job[Any]) -> None:
        assert tx is None
        conn.execute("CREATE TABLE pg_temp.apart (n int)")
        if job.args:
            job.complete(conn)
            conn.execute("INSERT INTO pg_temp.apart VALUES (1)")

    jobs = jobs_of(client, conn, Handler(apart, detached=True))
    assert jobs.perform({"complete": True}, kind="test-0").outcome == "complete"
    assert conn.execute("TABLE pg_temp.apart").fetchall() == [(1,)], "what it has written itself is kept"
    conn.execute("DROP TABLE pg_temp.apart")
    done = jobs.perform(NOTHING, kind="test-0")
    assert (done.outcome, done.job.leased_until) == ("complete", None)
    assert conn.execute("TABLE pg_temp.apart").fetchall() == []


# --- which jobs can be performed


def test_what_cannot_be_performed_says_why(client: Client, conn: Tx) -> None:
    jobs = jobs_of(client, conn, nothing)
    with pytest.raises(UnknownKind):
        jobs.perform(Thing())
    with pytest.raises(InvalidSetting, match="no handlers to run: give it a work_map"):
        Jobs(client, conn).perform(Thing())
    with pytest.raises(JobNotFound):
        jobs.perform_stored(10**9)
    with pytest.raises(NotRunning, match="since it is pending: release it first"):
        jobs.perform(NOTHING, kind="test-0", pending=True)
    done = jobs.perform(NOTHING, kind="test-0", unique=Unique())
    with pytest.raises(NotRunning, match="since it is completed: only a job that waits can be run"):
        jobs.perform(NOTHING, kind="test-0", unique=Unique())
    assert done.job.state is JobState.COMPLETED
    assert conn.info.transaction_status == TransactionStatus.INTRANS


def test_a_claim_that_fails_leaves_the_transaction_usable(client: Client, conn: Tx) -> None:
    def fails(tx: Tx, job: Job[Any]) -> None:
        raise KeyError

    jobs = jobs_of(client, conn, fails)
    unique = Unique(by_state=("available", "pending", "running", "scheduled"))
    failed = jobs.perform(NOTHING, kind="test-0", unique=unique)
    client.enqueue(conn, {}, kind="test-0", unique=unique)
    with pytest.raises(UniqueConflict):
        jobs.perform_stored(failed.job)
    assert len(jobs.all_enqueued()) == 2


def test_missing_tables_are_told_with_what_to_do(database: str, conn: Tx) -> None:
    with (
        Client(database, schema="never_migrated") as client,
        pytest.raises(psycopg.errors.UndefinedTable) as raised,
    ):
        Jobs(client, conn).empty()
    assert "migrate" in "".join([str(raised.value), *getattr(raised.value, "__notes__", [])])


def test_settings_that_are_wrong_are_refused(client: Client, conn: Tx) -> None:
    wrong: dict[str, Any] = {"timeout": 5, "backoff": 5, "middleware": 5, "error_handler": 5}
    for name, value in wrong.items():
        with pytest.raises(InvalidSetting, match=name):
            Jobs(client, conn, {}, **{name: value})
    with pytest.raises(InvalidSetting, match="client is a Client"):
        Jobs(conn)  # type: ignore[arg-type]


# --- assertions: what the transaction sees


@dataclass
class Welcome:
    email: str


@pytest.mark.conformance(307)
def test_assertions_see_the_jobs_of_their_transaction(client: Client, conn: Tx, connect: Connect) -> None:
    jobs = Jobs(client, conn)
    client.enqueue(connect(), Welcome("elsewhere"))
    with pytest.raises(AssertionError, match=r"kind 'welcome', found none; there are no jobs"):
        jobs.assert_enqueued(Welcome)
    stored = client.enqueue(conn, Welcome("ada"), queue="mail")
    job = jobs.assert_enqueued(Welcome, queue="mail")
    assert (job, job.args.email) == (stored, "ada")
    with pytest.raises(AssertionError, match=r"kind 'thing', found none; the jobs there are:\n  job .* of kind 'welc"):
        jobs.assert_enqueued(Thing)
    client.enqueue(conn, Welcome("ada"))
    with pytest.raises(AssertionError, match=r"found 2 of this kind .assert_many_enqueued expects several"):
        jobs.assert_enqueued(Welcome)
    jobs.assert_many_enqueued([NewJob(Welcome("ada"), queue="mail"), Welcome("ada")])


def test_more_jobs_than_a_page_has_are_all_seen(client: Client, conn: Tx) -> None:
    client.enqueue_many(conn, [Thing(n) for n in range(2500)])
    jobs = Jobs(client, conn)
    assert jobs.total(2500)
    assert [job.args for job in jobs.all_enqueued(Thing)] == [Thing(n) for n in range(2500)]


def test_a_sequence_that_never_began_and_ids_below_zero_are_seen(client: Client, conn: Tx) -> None:
    conn.execute(
        f"INSERT INTO {client.schema}.job (id, kind) OVERRIDING SYSTEM VALUE VALUES (-5, 'by-hand'), (0, 'by-hand')"
    )
    assert [job.id for job in Jobs(client, conn).all_enqueued()] == [-5, 0]


# --- drain


@pytest.mark.conformance(316)
def test_a_drain_runs_what_is_due_and_counts(client: Client, conn: Tx) -> None:
    order: list[object] = []

    def handler(tx: Tx, job: Job[Any]) -> None:
        order.append(job.args["n"])
        match job.args["n"]:
            case 2:
                raise Snooze(HOUR)
            case 3:
                raise KeyError
            case 4:
                raise Cancel
            case 5:
                raise Discard

    jobs = jobs_of(client, conn, handler)
    for n in range(1, 7):
        client.enqueue(conn, {"n": n}, kind="test-0", priority=-n, queue="mail" if n == 6 else "default")
    client.enqueue(conn, {"n": 7}, kind="test-0", delay=HOUR)
    drained = jobs.drain("default")
    assert order == [5, 4, 3, 2, 1]
    assert repr(drained) == "Drained(completed=1, retried=1, snoozed=1, discarded=1, cancelled=1)"
    assert (drained.total, [each.outcome for each in drained.performed]) == (
        5, ["discard", "cancel", "retry", "snooze", "complete"],
    )  # fmt: skip
    assert jobs.drain().completed == 1
    assert order[5:] == [6]
    assert jobs.drain().total == 0
    assert repr(jobs.drain(with_scheduled=True)) == (
        "Drained(completed=1, retried=1, snoozed=1, discarded=0, cancelled=0)"
    )


@pytest.mark.parametrize("name", ["with_scheduled", "recursive", "safety"])
def test_a_drain_refuses_what_is_no_bool_and_leaves_the_transaction_usable(client: Client, conn: Tx, name: str) -> None:
    """An instant, up to which to drain, is what travel() is for."""
    jobs = jobs_of(client, conn, nothing)
    client.enqueue(conn, {"n": 1}, kind="test-0")
    drain: Any = jobs.drain
    for wrong in (datetime.now(UTC), None, "yes"):
        with pytest.raises(InvalidSetting, match=f"{name} must be True or False"):
            drain(**{name: wrong})
    assert jobs.drain().completed == 1


@pytest.mark.conformance(316)
def test_jobs_of_jobs_are_drained_only_when_that_is_asked_for(client: Client, conn: Tx) -> None:
    def handler(tx: Tx, job: Job[Any]) -> None:
        if job.args["n"]:
            client.enqueue(tx, {"n": job.args["n"] - 1}, kind="test-0")

    jobs = jobs_of(client, conn, handler)
    client.enqueue(conn, {"n": 3}, kind="test-0")
    assert jobs.drain().completed == 1
    jobs.contains("test-0", args={"n": 2}, state="available")
    assert jobs.drain(recursive=True).completed == 3
    assert jobs.drain(recursive=True).completed == 0


@pytest.mark.conformance(316)
def test_with_safety_off_the_first_error_is_raised(client: Client, conn: Tx) -> None:
    def handler(tx: Tx, job: Job[Any]) -> None:
        if job.args:
            raise KeyError("n")

    jobs = jobs_of(client, conn, handler)
    client.enqueue_many(conn, [NewJob(args, kind="test-0") for args in ({}, {"n": 1}, {"n": 2})])
    with pytest.raises(KeyError, match="n"):
        jobs.drain(safety=False)
    assert [job.state for job in jobs.all_enqueued()] == ["completed", "retryable", "available"]


def test_a_job_that_an_earlier_one_cancels_is_left_out(client: Client, conn: Tx) -> None:
    def handler(tx: Tx, job: Job[Any]) -> None:
        client.cancel(job.id + 1, tx)

    jobs = jobs_of(client, conn, handler)
    client.enqueue_many(conn, [NewJob({}, kind="test-0") for _ in range(2)])
    assert jobs.drain().total == 1


def test_a_drain_of_a_kind_without_a_handler_fails_the_job_as_a_worker_does(client: Client, conn: Tx) -> None:
    client.enqueue(conn, Thing())
    (done,) = jobs_of(client, conn, nothing).drain().performed
    assert (done.outcome, type(done.error)) == ("retry", UnknownKind)


# --- time


def test_travel_makes_due_what_is_due_after_that_time(client: Client, conn: Tx) -> None:
    jobs = jobs_of(client, conn, nothing)
    for hours in (1, 3):
        client.enqueue(conn, {}, kind="test-0", delay=hours * HOUR)
    client.schedules.add(Schedule("nightly", "0 0 * * *", kind="test-0", args={}), conn)
    (before,) = client.schedules.list(conn)
    jobs.travel(2 * HOUR)
    (after,) = client.schedules.list(conn)
    assert before.created_at - after.created_at == 2 * HOUR
    assert jobs.drain().completed == 1
    assert jobs.assert_many_enqueued([NewJob("test-0", delay=HOUR), NewJob("test-0", delay=3 * HOUR)])
    jobs.travel(2 * HOUR)
    assert jobs.drain().completed == 1
    with pytest.raises(InvalidSetting, match="by must be a timedelta, not 5"):
        jobs.travel(5)  # type: ignore[arg-type]


def test_travel_and_clear_leave_the_jobs_of_another_transaction_alone(
    client: Client, conn: Tx, connect: Connect
) -> None:
    jobs = Jobs(client, conn)
    client.enqueue(conn, Thing(), delay=HOUR)
    jobs.travel(HOUR)
    jobs.clear()
    assert jobs.empty()
    conn.rollback()
    assert client.count(JobFilter()).total == 0


# --- SQLAlchemy


def test_pending_objects_of_the_session_are_there_and_what_it_has_loaded_is_read_again(fresh_database: str) -> None:
    from tests.acceptance.frameworks import Effect

    with trial(APPS["sqlalchemy"](fresh_database, "pgjobs"), fresh_database) as made, undone(made.app) as session:
        assert isinstance(session, Session)
        effect = Effect(note="by the test")
        session.add(effect)

        def handler(tx: Session, job: Job[Any]) -> None:
            assert tx is not session
            tx.query(Effect).one().note = "by the handler"
            tx.commit()  # of a savepoint

        assert jobs_of(made.client, session, handler).perform(NOTHING, kind="test-0").outcome == "complete"
        assert effect.note == "by the handler"
        connection = session.connection()
        assert (
            jobs_of(made.client, connection, lambda tx, job: None).perform(NOTHING, kind="test-0").outcome == "complete"
        )
        with pytest.raises(InvalidTransaction, match="a Session or Connection of SQLAlchemy"):
            jobs_of(made.client, raw(session), nothing).perform(NOTHING, kind="test-0")


def test_what_the_session_has_loaded_is_read_again_also_when_the_transaction_is_broken(fresh_database: str) -> None:
    from tests.acceptance.frameworks import Effect

    with trial(APPS["sqlalchemy"](fresh_database, "pgjobs"), fresh_database) as made, undone(made.app) as session:
        effect = Effect(note="by the test")
        session.add(effect)
        session.flush()

        def handler(tx: Session, job: Job[Any]) -> None:
            raw(tx).execute("ROLLBACK")

        with pytest.raises(TransactionBroken):
            jobs_of(made.client, session, handler).perform(NOTHING, kind="test-0")
        assert inspect(effect).expired


# --- Django


NAMES = ("autocommit", "in_atomic_block", "savepoint_ids", "atomic_blocks", "needs_rollback", "run_on_commit")


def test_the_block_of_the_test_is_as_before_and_callbacks_of_the_handler_are_called(fresh_database: str) -> None:
    with trial(APPS["django"](fresh_database, "pgjobs"), fresh_database) as made:
        wrapper, called = connections["default"], []

        def handler(tx: Any, job: Job[Any]) -> None:
            assert tx is wrapper
            transaction.on_commit(lambda: called.append(wrapper.in_atomic_block))
            with transaction.atomic():
                made.app.write(tx, "by the handler")
            if job.args:
                transaction.set_rollback(True)

        with transaction.atomic():
            transaction.on_commit(lambda: called.append("by the test"))
            before = {name: getattr(wrapper, name) for name in NAMES}
            jobs = jobs_of(made.client, "default", handler)
            assert jobs.perform(NOTHING, kind="test-0").outcome == "complete"
            assert jobs.perform({"rollback": True}, kind="test-0").outcome == "retry"
            assert {name: getattr(wrapper, name) for name in NAMES} == before
            assert called == [True]
            transaction.set_rollback(True)
        assert (made.jobs, made.effects, called) == ([], [], [True])


def test_outside_of_atomic_there_is_nothing_to_run_in(fresh_database: str) -> None:
    with (
        trial(APPS["django"](fresh_database, "pgjobs"), fresh_database) as made,
        pytest.raises(InvalidTransaction, match=r"'default' is in no atomic\(\) block"),
    ):
        jobs_of(made.client, "default", nothing).perform(NOTHING, kind="test-0")
