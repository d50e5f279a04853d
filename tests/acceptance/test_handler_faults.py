"""Handlers that end, break or soil their transaction: no write is lost, no thread dies, the next job starts clean."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row
from psycopg.types.string import TextLoader
from psycopg_pool import ConnectionPool

from pgjobs import Client, Discard, Handler, Job, JobState, RetryAt, Snooze, WorkerPool, WorkMap, constant
from pgjobs.backoff import Backoff
from pgjobs.db.cursors import AnyConnection
from tests import modes
from tests.waiting import wait_until

Act = Callable[[AnyConnection], object]
LATER = constant(timedelta(hours=1))

# What a session may carry from one job into the next. What psycopg prepares by itself it also keeps the account of:
# another connection of the pool may have statements of ours, sent often by the test that waits.
SESSION = """
    SELECT current_setting('search_path'), current_user::text, session_user::text, current_setting('TimeZone'),
        current_setting('statement_timeout'), current_setting('lock_timeout'),
        current_setting('idle_in_transaction_session_timeout'), current_setting('default_transaction_read_only'),
        current_setting('transaction_read_only'), current_setting('transaction_isolation'),
        NULLIF(current_setting('app.tenant', true), ''),
        ARRAY(SELECT pg_listening_channels()),
        ARRAY(SELECT name FROM pg_prepared_statements WHERE name !~ '^(pgjobs|_pg3)_'),
        ARRAY(SELECT name FROM pg_cursors),
        ARRAY(SELECT relname::text FROM pg_class WHERE relnamespace = pg_my_temp_schema()),
        (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())
"""


@dataclass
class Session:
    """What a handler sees of its connection."""

    server: tuple[Any, ...]
    python: tuple[Any, ...]

    @classmethod
    def of(cls, tx: AnyConnection) -> Session:
        factories = (tx.row_factory, tx.cursor_factory, tx.server_cursor_factory)
        python = (
            *factories,
            tx.prepare_threshold,
            tx.autocommit,
            tx.isolation_level,
            tx.read_only,
            tx.info.transaction_status,
            tx.pgconn.pipeline_status,
        )
        with psycopg.Cursor(tx, row_factory=psycopg.rows.tuple_row) as cur:
            server = cur.execute(SESSION).fetchone()
        assert server is not None
        with tx.transaction(), tx.cursor() as plain:  # a block of the handler's own works
            plain.execute("SELECT 1")
        return cls(server, python)


@dataclass
class Trial:
    """One worker pool with one thread that runs a clean job, the one under test, and a clean one again."""

    client: Client
    backoff: Backoff = LATER
    faulty_backoff: Backoff | None = None  # of the handler under test
    sessions: list[Session] = field(default_factory=list)
    beside: Client | None = None  # enqueues and looks, where what is set for `client` would not let it take its time

    def sql(self, text: str) -> sql.Composed:
        return sql.SQL(text).format(schema=sql.Identifier(self.client.schema))

    @property
    def own(self) -> Client:
        return self.beside or self.client

    def prepare(self) -> None:
        with self.own.pool.connection() as conn:
            conn.execute(self.sql("CREATE TABLE {schema}.effect (job bigint)"))
            conn.execute(self.sql("CREATE TABLE {schema}.parent (id bigint PRIMARY KEY)"))
            conn.execute(
                self.sql(
                    "CREATE TABLE {schema}.child "
                    "(parent bigint REFERENCES {schema}.parent DEFERRABLE INITIALLY DEFERRED)"
                )
            )
            conn.execute(
                self.sql(
                    "CREATE FUNCTION {schema}.conflict() RETURNS trigger LANGUAGE plpgsql AS "
                    "$$ BEGIN RAISE EXCEPTION 'could not serialize access' USING ERRCODE = '40001'; END $$"
                )
            )
            conn.execute(self.sql("CREATE TABLE {schema}.contended (id bigint)"))
            conn.execute(
                self.sql(
                    "CREATE CONSTRAINT TRIGGER conflict AFTER INSERT ON {schema}.contended DEFERRABLE INITIALLY "
                    "DEFERRED FOR EACH ROW EXECUTE FUNCTION {schema}.conflict()"
                )
            )

    def write(self, tx: AnyConnection, job: Job[Any]) -> None:
        with psycopg.Cursor(tx) as cur:
            cur.execute(self.sql("INSERT INTO {schema}.effect VALUES (%s)"), [job.id])

    def run(self, act: Act, *, after: Callable[[], object] = lambda: None, max_attempts: int = 25) -> Job[Any]:
        """The job whose handler writes a row and then does `act`, as it is when the job behind it has completed."""

        def faulty(tx: AnyConnection, job: Job[Any]) -> None:
            self.write(tx, job)
            act(tx)

        def clean(tx: AnyConnection, job: Job[Any]) -> None:
            if job.args["after"]:
                after()
            self.sessions.append(Session.of(tx))
            self.write(tx, job)

        pool = WorkerPool(
            self.client,
            {"faulty": Handler(faulty, backoff=self.faulty_backoff), "clean": clean},
            queues={"default": 1},
            poll_interval=timedelta(milliseconds=50),
            backoff=self.backoff,
        )
        with self.own.pool.connection() as tx:
            first = self.own.enqueue(tx, {"after": False}, kind="clean")
            under_test = self.own.enqueue(tx, {"after": False}, kind="faulty", max_attempts=max_attempts)
            last = self.own.enqueue(tx, {"after": True}, kind="clean")
        with pool:
            threads = [thread for thread in threading.enumerate() if "/worker-" in thread.name]
            wait_until(lambda: self.job(last).state == JobState.COMPLETED, timeout=20)
            assert threads
            assert all(thread.is_alive() for thread in threads)
        assert self.effects(first) == self.effects(last) == 1
        if modes.BATCH_SIZE == 1:  # who breaks the transaction of a batch costs its neighbours an attempt
            assert self.job(first).attempt == self.job(last).attempt == 1
        return self.job(under_test)

    @property
    def began_clean(self) -> bool:
        """Whether all clean jobs saw the same session: two, or more in a batch that could not be committed."""
        return len(self.sessions) >= 2 and all(session == self.sessions[0] for session in self.sessions)

    def job(self, job: Job[Any]) -> Job[Any]:
        found = self.own.get(job.id)
        assert found is not None
        return found

    def effects(self, job: Job[Any]) -> int:
        with self.own.pool.connection() as conn:
            row = conn.execute(self.sql("SELECT count(*) FROM {schema}.effect WHERE job = %s"), [job.id]).fetchone()
        assert row is not None
        return int(row[0])


@pytest.fixture
def trial(client: Client) -> Trial:
    made = Trial(client)
    made.prepare()
    return made


left_open: list[Any] = []  # context managers that handlers enter and never leave


@pytest.fixture(autouse=True)
def close_what_was_left_open() -> Iterator[None]:
    yield
    while left_open:
        manager = left_open.pop()
        with suppress(Exception):
            manager.__exit__(None, None, None)


def execute(*statements: str) -> Act:
    def act(tx: AnyConnection) -> None:
        for statement in statements:
            tx.execute(statement.encode())

    return act


def enter(open_block: Callable[[AnyConnection], Any]) -> Act:
    """Enter a block and never leave it."""

    def act(tx: AnyConnection) -> None:
        manager = open_block(tx)
        left_open.append(manager)
        manager.__enter__()

    return act


def swallow_an_sql_error(tx: AnyConnection) -> None:
    with suppress(psycopg.Error):
        tx.execute("SELECT 1/0")


def raise_rollback(tx: AnyConnection) -> None:
    raise psycopg.Rollback


def commit(tx: AnyConnection) -> None:
    tx.commit()


def rollback(tx: AnyConnection) -> None:
    tx.rollback()


def close(tx: AnyConnection) -> None:
    tx.close()


def set_autocommit(tx: AnyConnection) -> None:
    tx.autocommit = True


def forget_a_block(tx: AnyConnection) -> None:
    psycopg.Transaction(tx).__enter__()


def forget_a_server_cursor(tx: AnyConnection) -> None:
    cursor = tx.cursor("forgotten")
    left_open.append(cursor)
    cursor.execute("SELECT generate_series(1, 1000)")


def forget_a_server_cursor_with_hold(tx: AnyConnection) -> None:
    cursor = tx.cursor("forgotten", withhold=True)
    left_open.append(cursor)
    cursor.execute("SELECT generate_series(1, 1000)")


def leave_a_stream(tx: AnyConnection) -> None:
    rows = tx.cursor().stream("SELECT generate_series(1, 100000)")
    left_open.append(rows)
    next(iter(rows))


def leave_a_copy_out(tx: AnyConnection) -> None:
    manager = tx.cursor().copy("COPY (SELECT generate_series(1, 100000)) TO STDOUT")
    left_open.append(manager)
    next(iter(manager.__enter__()))


def change_factories(tx: AnyConnection) -> None:
    tx.row_factory = dict_row
    tx.cursor_factory = psycopg.ClientCursor
    tx.server_cursor_factory = psycopg.RawServerCursor
    tx.prepare_threshold = 0


def register_loaders(tx: AnyConnection) -> None:
    for name in ("text", "int8", "int4", "int2", "uuid", "timestamptz", "interval", "bool", "jsonb"):
        tx.adapters.register_loader(name, TextLoader)


@dataclass(frozen=True)
class Fault:
    """What a handler does after its write, and what the job must be then."""

    name: str
    act: Act
    state: JobState
    says: str = ""  # in the record of the error
    writes: int | None = None  # rows that stay: one of a completed job, else none, unless the handler committed it
    in_batch: str = ""  # why it is something else in a batch

    @property
    def effects(self) -> int:
        return int(self.state == JobState.COMPLETED) if self.writes is None else self.writes


DONE, AGAIN = JobState.COMPLETED, JobState.RETRYABLE
RAISES = "commit() and rollback() raise there"
FAULTS = [
    Fault("commit()", commit, AGAIN, "ended its transaction itself", writes=1, in_batch=RAISES),
    Fault("rollback()", rollback, AGAIN, "ended its transaction itself", in_batch=RAISES),
    Fault("COMMIT", execute("COMMIT"), AGAIN, "ended its transaction itself", writes=1),
    Fault("ROLLBACK", execute("ROLLBACK"), AGAIN, "ended its transaction itself"),
    Fault("COMMIT; BEGIN", execute("COMMIT; BEGIN"), AGAIN, "ended its transaction itself", writes=1),
    Fault("ROLLBACK; BEGIN", execute("ROLLBACK; BEGIN"), AGAIN, "ended its transaction itself"),
    Fault("COMMIT AND CHAIN", execute("COMMIT AND CHAIN"), AGAIN, "ended its transaction itself", writes=1),
    Fault("ROLLBACK TO our savepoint", execute("ROLLBACK TO SAVEPOINT pgjobs"), AGAIN, "pgjobs"),
    Fault("RELEASE of our savepoint", execute("RELEASE SAVEPOINT pgjobs"), AGAIN, "pgjobs"),
    Fault("dangling SAVEPOINT", execute("SAVEPOINT mine"), DONE),
    Fault("dangling SAVEPOINT of our name", execute("SAVEPOINT pgjobs"), DONE),
    Fault("an error behind a SAVEPOINT of our name", execute("SAVEPOINT pgjobs", "SELECT 1/0"), AGAIN, "22012"),
    Fault("swallowed SQL error", swallow_an_sql_error, AGAIN, "25P02"),
    Fault("psycopg.Rollback", raise_rollback, AGAIN, "Rollback"),
    Fault("close()", close, AGAIN, "closed"),
    Fault("autocommit", set_autocommit, AGAIN, "autocommit"),
    Fault("SET TRANSACTION READ ONLY", execute("SET TRANSACTION READ ONLY"), DONE),  # ends with the savepoint
    Fault(
        "a write behind READ ONLY", execute("SET TRANSACTION READ ONLY", "SELECT txid_current(), nextval('x')"), AGAIN
    ),
    Fault("SET SESSION CHARACTERISTICS", execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"), DONE),
    Fault("SET search_path", execute("SET search_path = nowhere"), DONE),
    Fault("SET ROLE without rights", execute("SET ROLE pg_monitor"), DONE),
    Fault("SET LOCAL ROLE without rights", execute("SET LOCAL ROLE pg_monitor"), DONE),
    Fault("SET ROLE by a function", execute("SELECT set_config('role', 'pg_monitor', true)"), DONE),
    Fault("SET ROLE, and an error", execute("SET ROLE pg_monitor", "SELECT 1/0"), AGAIN, "22012"),
    Fault("SET ROLE, and COMMIT", execute("SET ROLE pg_monitor", "COMMIT"), AGAIN, "ended its transaction", writes=1),
    Fault("SET SESSION AUTHORIZATION", execute("SET SESSION AUTHORIZATION pg_monitor"), DONE),
    Fault("SET LOCAL SESSION AUTHORIZATION", execute("SET LOCAL SESSION AUTHORIZATION pg_monitor"), DONE),
    Fault("SET LOCAL row_security", execute("SET LOCAL row_security = off"), DONE),
    Fault("SET LOCAL search_path", execute("SET LOCAL search_path = nowhere"), DONE),
    Fault("SET LOCAL default_*", execute("SET LOCAL default_transaction_read_only = on"), DONE),
    Fault("SET TimeZone", execute("SET TimeZone = 'Pacific/Kiritimati'"), DONE),
    Fault("SET of a setting of the application's", execute("SET app.tenant = 'somebody'"), DONE),
    Fault("SET timeouts", execute("SET statement_timeout = '17s'", "SET lock_timeout = '17s'"), DONE),
    Fault("SET idle timeout", execute("SET idle_in_transaction_session_timeout = '17s'"), DONE),
    Fault("SET LOCAL lock_timeout", execute("SET LOCAL lock_timeout = '1ms'"), DONE),
    Fault("SET DateStyle", execute("SET DateStyle = German", "SET IntervalStyle = sql_standard"), DONE),
    Fault("SET standard_conforming_strings", execute("SET standard_conforming_strings = off"), DONE),
    Fault("RESET ALL", execute("RESET ALL"), DONE),
    Fault("pg_advisory_lock", execute("SELECT pg_advisory_lock(4711)"), DONE, in_batch="it is held to the end of it"),
    Fault("LISTEN", execute("LISTEN anything"), DONE),
    Fault("temp table", execute("CREATE TEMP TABLE job AS SELECT 1 AS id"), DONE),
    Fault("PREPARE", execute("PREPARE mine AS SELECT 1"), DONE, in_batch="what is prepared stays to its end"),
    Fault("DEALLOCATE ALL", execute("DEALLOCATE ALL"), DONE),
    Fault("DECLARE CURSOR", execute("DECLARE mine CURSOR FOR SELECT 1"), DONE),
    Fault("DECLARE CURSOR WITH HOLD", execute("DECLARE mine CURSOR WITH HOLD FOR SELECT 1"), DONE),
    Fault("transaction() block left open", enter(lambda tx: tx.transaction()), DONE),
    Fault("transaction() block forgotten", forget_a_block, DONE),
    Fault("pipeline left open", enter(lambda tx: tx.pipeline()), AGAIN, "middle of a command"),
    Fault("server-side cursor left open", forget_a_server_cursor, DONE),
    Fault("server-side cursor WITH HOLD left open", forget_a_server_cursor_with_hold, DONE),
    Fault("stream left open", leave_a_stream, AGAIN, "middle of a command"),
    Fault("COPY out left open", leave_a_copy_out, AGAIN, "middle of a command"),
    Fault("factories changed", change_factories, DONE),
]


def check(trial: Trial, fault: Fault, job: Job[Any]) -> None:
    assert job.state == fault.state, job.errors
    assert trial.effects(job) == fault.effects
    if fault.state == DONE:
        assert job.errors == ()
    else:
        assert [error.attempt for error in job.errors] == [1]
        assert fault.says in f"{job.errors[0].error} {job.errors[0].trace}"
        assert job.scheduled_at > job.created_at + timedelta(minutes=50), "it takes its backoff"


@pytest.mark.conformance(328)
@pytest.mark.conformance(329)
@pytest.mark.conformance(330)
@pytest.mark.conformance(331)
@pytest.mark.conformance(332)
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, id=fault.name, marks=[pytest.mark.one_by_one(fault.in_batch)] if fault.in_batch else [])
        for fault in FAULTS
    ],
)
def test_a_handler_that_soils_its_connection_loses_nothing_and_harms_nobody(trial: Trial, fault: Fault) -> None:
    """T1 to T4, F16."""
    job = trial.run(fault.act)
    check(trial, fault, job)
    assert trial.began_clean, trial.sessions


def test_loaders_that_a_handler_registers_are_not_those_of_the_library(trial: Trial) -> None:
    """They stay with the connection; the claim, the finish and the duties read with psycopg's own."""
    check(trial, Fault("loaders", register_loaders, DONE), trial.run(register_loaders))


def test_copy_in_left_open_is_a_failure(trial: Trial) -> None:
    statement = trial.sql("COPY {schema}.effect FROM STDIN")
    job = trial.run(enter(lambda tx: tx.cursor().copy(statement)))
    check(trial, Fault("COPY in left open", lambda tx: None, AGAIN, "middle of a command"), job)
    assert trial.began_clean, trial.sessions


def test_a_pipeline_with_unsent_writes_is_a_failure_and_none_of_them_stays(trial: Trial) -> None:
    def act(tx: AnyConnection) -> None:
        enter(lambda tx: tx.pipeline())(tx)
        tx.execute(trial.sql("INSERT INTO {schema}.effect VALUES (-1)"))

    job = trial.run(act)
    check(trial, Fault("pipeline", act, AGAIN, "middle of a command"), job)
    with trial.client.pool.connection() as conn:
        assert conn.execute(trial.sql("SELECT count(*) FROM {schema}.effect WHERE job = -1")).fetchone() == (0,)


@pytest.mark.no_decoys("has a trigger or a rule of its own that finds one")
def test_a_statement_timeout_of_the_handler_is_not_the_librarys(trial: Trial) -> None:
    """A trigger makes the record take longer than the handler allows its own statements."""
    with trial.client.pool.connection() as conn:
        conn.execute(
            trial.sql(
                "CREATE FUNCTION {schema}.slow() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN PERFORM pg_sleep(1.2); RETURN NEW; END $$"
            )
        )
        conn.execute(
            trial.sql(
                "CREATE TRIGGER slow BEFORE UPDATE ON {schema}.job FOR EACH ROW "
                "WHEN (NEW.kind = 'faulty' AND NEW.state <> 'running') EXECUTE FUNCTION {schema}.slow()"
            )
        )
    act = execute("SET LOCAL statement_timeout = '1s'")
    check(trial, Fault("SET LOCAL statement_timeout", act, DONE), trial.run(act))
    assert trial.began_clean, trial.sessions


def test_a_statement_timeout_of_a_millisecond_ends_in_an_outcome(trial: Trial) -> None:
    """The one statement of ours that runs under it may be cut off; then the job fails, and says so."""
    job = trial.run(execute("SET LOCAL statement_timeout = '1ms'"))
    assert trial.effects(job) == (job.state == DONE)
    assert job.state == DONE or "57014" in (job.last_error or "")
    assert trial.began_clean, trial.sessions


@pytest.mark.one_by_one("nobody can tell which job of a batch it was, so that one fails again, alone")
def test_a_deferred_constraint_that_fails_at_commit_is_the_attempts_failure(trial: Trial) -> None:
    """T15."""
    job = trial.run(lambda tx: tx.execute(trial.sql("INSERT INTO {schema}.child VALUES (4711)")))
    check(trial, Fault("deferred constraint", lambda tx: None, AGAIN, "23503"), job)


@pytest.mark.one_by_one("nobody can tell which job of a batch it was, so that one fails again, alone")
def test_a_serialization_failure_at_commit_is_the_attempts_failure(trial: Trial) -> None:
    """T15, F15."""
    job = trial.run(lambda tx: tx.execute(trial.sql("INSERT INTO {schema}.contended VALUES (1)")))
    check(trial, Fault("40001 at COMMIT", lambda tx: None, AGAIN, "40001"), job)


def test_an_sql_error_that_the_handler_rolls_back_itself_costs_nothing(trial: Trial) -> None:
    def act(tx: AnyConnection) -> None:
        with suppress(psycopg.Error), tx.transaction():
            tx.execute("SELECT 1/0")
        with tx.transaction():
            raise psycopg.Rollback

    job = trial.run(act)
    check(trial, Fault("own block", act, DONE), job)


def test_a_connection_in_the_middle_of_a_threads_statement_is_given_up(trial: Trial) -> None:
    ended: list[BaseException | None] = []
    threads: list[threading.Thread] = []

    def act(tx: AnyConnection) -> None:
        def go_on() -> None:
            try:
                tx.execute("SELECT pg_sleep(30)")
            except psycopg.Error as error:
                ended.append(error)

        thread = threading.Thread(target=go_on)
        threads.append(thread)
        thread.start()
        wait_until(lambda: tx.info.transaction_status == psycopg.pq.TransactionStatus.ACTIVE)

    job = trial.run(act)
    threads[0].join(10)
    assert not threads[0].is_alive()
    assert isinstance(ended[0], psycopg.Error)
    check(trial, Fault("thread", act, AGAIN, "middle of a command"), job)
    assert trial.began_clean, trial.sessions


@pytest.mark.parametrize("through", ["connection", "cursor"])
@pytest.mark.parametrize("fails", [False, True])
def test_a_thread_that_keeps_the_connection_cannot_write_into_the_next_job(
    trial: Trial, through: str, fails: bool
) -> None:
    """F16."""
    next_job, tried = threading.Event(), threading.Event()
    results: list[str] = []
    threads: list[threading.Thread] = []

    def act(tx: AnyConnection) -> None:
        def go_on(mine: Any) -> None:
            next_job.wait(20)
            try:
                mine.execute(b"SET search_path = stolen; SELECT pg_advisory_lock(4711)")
                results.append("went through")
            except psycopg.Error as error:
                results.append(type(error).__name__)
            tried.set()

        thread = threading.Thread(target=go_on, args=[tx if through == "connection" else tx.cursor()])
        threads.append(thread)
        thread.start()
        if fails:
            raise RuntimeError("after the thread was started")

    def let_it_write() -> None:
        next_job.set()
        assert tried.wait(20)

    job = trial.run(act, after=let_it_write)
    threads[0].join(10)
    assert results == ["OperationalError"]
    assert job.state == (AGAIN if fails else DONE)
    assert trial.effects(job) == (not fails)
    assert trial.began_clean, trial.sessions


class WithBrokenText(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


class WithNumberForText(Exception):
    def __str__(self) -> str:
        answer: Any = 42
        return answer  # type: ignore[no-any-return]


class WithExitForText(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class WithLongText(Exception):
    def __str__(self) -> str:
        return "x" * 10_000_000


def cyclic_cause() -> BaseException:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    return first


def many_causes() -> BaseException:
    error = ValueError("innermost")
    for n in range(5000):
        outer = ValueError(f"number {n}")
        outer.__cause__ = error
        error = outer
    return error


ZOO: list[tuple[str, Callable[[], BaseException], str]] = [
    ("sys.exit(0)", lambda: SystemExit(0), "SystemExit: 0"),
    ("sys.exit(1)", lambda: SystemExit(1), "SystemExit: 1"),
    ("sys.exit()", SystemExit, "SystemExit"),
    ("KeyboardInterrupt", KeyboardInterrupt, "KeyboardInterrupt"),
    ("GeneratorExit", GeneratorExit, "GeneratorExit"),
    ("CancelledError", asyncio.CancelledError, "CancelledError"),
    ("MemoryError", MemoryError, "MemoryError"),
    ("RecursionError", RecursionError, "RecursionError"),
    ("StopIteration", lambda: StopIteration(1), "1"),
    ("BaseException", lambda: BaseException("bare"), "BaseException: bare"),
    ("an exception group", lambda: ExceptionGroup("several", [ValueError("one"), KeyError("two")]), "several"),
    ("a cyclic cause", cyclic_cause, "first"),
    ("5,000 causes", many_causes, "number 4999"),
    ("10 MB of text", WithLongText, "characters cut"),
    ("a text that raises", WithBrokenText, "WithBrokenText"),
    ("a text that is no text", WithNumberForText, "WithNumberForText"),
    ("a text that exits", WithExitForText, "WithExitForText"),
]


@pytest.mark.conformance(39)
@pytest.mark.conformance(319)
@pytest.mark.conformance(339)
@pytest.mark.parametrize(("make", "says"), [case[1:] for case in ZOO], ids=[case[0] for case in ZOO])
def test_whatever_a_handler_raises_is_one_failed_attempt(
    trial: Trial, make: Callable[[], BaseException], says: str
) -> None:
    """T16, F4: no thread dies of it."""

    def act(tx: AnyConnection) -> None:
        raise make()

    job = trial.run(act)
    check(trial, Fault("zoo", act, AGAIN, says), job)
    assert job.finalized_at is None
    assert len(job.errors[0].error) <= 8192
    assert "in act" in (job.errors[0].trace or ""), "the trace begins in the handler"
    assert trial.began_clean, trial.sessions


def test_a_recursion_without_end_is_one_failed_attempt(trial: Trial) -> None:
    def act(tx: AnyConnection) -> object:
        return act(tx)

    job = trial.run(act)
    check(trial, Fault("recursion", act, AGAIN, "recursion"), job)


def exits(job: Job[Any], error: BaseException) -> timedelta:
    raise SystemExit("from a policy")


def raises(job: Job[Any], error: BaseException) -> timedelta:
    raise LookupError("from a policy")


def answers(value: Any) -> Backoff:
    return lambda job, error: value


@pytest.mark.finding("W8")
@pytest.mark.parametrize(
    "policy",
    [exits, raises, answers("soon"), answers(17), answers(datetime(2999, 1, 1)), answers(-timedelta(hours=1)),
     answers(datetime(2000, 1, 1, tzinfo=UTC))],
    ids=["exits", "raises", "text", "number", "naive datetime", "negative", "past"],
)  # fmt: skip
def test_a_backoff_policy_that_fails_leaves_it_to_the_pools(
    trial: Trial, policy: Backoff, caplog: pytest.LogCaptureFixture
) -> None:
    """The job was discarded at its first attempt, and its error was the policy's."""

    def act(tx: AnyConnection) -> None:
        raise ValueError("of the handler")

    trial.faulty_backoff = policy
    check(trial, Fault("policy", act, AGAIN, "of the handler"), trial.run(act))
    said = [record.getMessage() for record in caplog.records if record.name == "pgjobs.return_values"]
    assert len(said) == 1
    assert said[0].startswith("kind faulty: the backoff of its handler")


@pytest.mark.finding("W8")
def test_behind_a_pools_backoff_that_fails_stands_rivers_and_it_is_said_once(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """The job was discarded at its first attempt."""

    def handler(tx: AnyConnection, job: Job[Any]) -> None:
        raise ValueError("of the handler")

    jobs: list[Job[Any]] = [client.enqueue(None, {}, kind="any") for _ in range(3)]
    pool = WorkerPool(client, {"any": handler}, backoff=raises)
    while pool.work_one():
        pass
    for job in jobs:
        found = client.get(job.id)
        assert found is not None
        assert (found.state, found.last_error) == (AGAIN, "of the handler")
        assert timedelta(seconds=0.8) < found.scheduled_at - found.errors[0].at < timedelta(seconds=1.2)
    said = [record.getMessage() for record in caplog.records if record.name == "pgjobs.return_values"]
    assert [text.partition(";")[0] for text in said] == [
        "kind any: the backoff of the worker pool raised LookupError: from a policy"
    ]


@pytest.mark.finding("W8")
def test_the_policy_of_a_handler_is_not_asked_about_args_that_do_not_fit(client: Client) -> None:
    """It may go by `job.args`: what that raised became the job's error."""

    @dataclass
    class Fits:
        number: int

    asked: list[object] = []

    def by_number(job: Job[Any], error: BaseException) -> timedelta:
        asked.append(error)
        return timedelta(seconds=job.args.number)

    work_map = WorkMap()
    work_map.handles(Fits, backoff=by_number)(lambda tx, job: None)
    job: Job[Any] = client.enqueue(None, {"number": "many"}, kind="fits")
    assert WorkerPool(client, work_map, backoff=LATER).work_one()
    found = client.get(job.id)
    assert found is not None
    assert (found.state, asked) == (AGAIN, [])
    assert "number" in (found.last_error or "")


@pytest.mark.finding("W8")
@pytest.mark.parametrize("ago", [timedelta(0), timedelta(hours=1), timedelta(days=700_000)])
def test_a_retry_at_an_instant_that_is_over_waits_for_a_second(client: Client, ago: timedelta) -> None:
    """All attempts followed each other at once."""

    def handler(tx: AnyConnection, job: Job[Any]) -> None:
        raise RetryAt(datetime.now(UTC) - ago, "too late")

    job: Job[Any] = client.enqueue(None, {}, kind="any")
    pool = WorkerPool(client, {"any": handler})
    events = client.subscribe()
    assert pool.work_one()
    found = client.get(job.id)
    assert found is not None
    assert (found.state, found.error_count) == (AGAIN, 1)
    assert found.scheduled_at - found.errors[0].at == timedelta(seconds=1)
    told = events.get(timedelta(seconds=5))
    assert told is not None
    assert (told.job.state, told.job.scheduled_at) == (found.state, found.scheduled_at)


FAR = [datetime.max.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC)]


@pytest.mark.parametrize("when", FAR, ids=["year 9999", "year 1"])
def test_an_instant_at_the_edge_of_time_is_moved_to_one_that_can_be_stored(trial: Trial, when: datetime) -> None:
    def act(tx: AnyConnection) -> None:
        raise RetryAt(when)

    job = trial.run(act)
    assert [error.attempt for error in job.errors][:1] == [1]
    assert "retry at" in job.errors[0].error
    if when.year == 9999:
        assert (job.state, job.scheduled_at.year) == (AGAIN, 9999)


def test_the_longest_snooze_is_cut(trial: Trial) -> None:
    def act(tx: AnyConnection) -> None:
        raise Snooze(timedelta.max)

    job = trial.run(act)
    assert (job.state, job.attempt, job.errors) == (JobState.SCHEDULED, 0, ())
    assert job.scheduled_at.year > 9000


def test_no_transaction_stays_open_after_any_fault(trial: Trial) -> None:
    trial.run(swallow_an_sql_error)
    with trial.client.pool.connection() as conn:
        conn.autocommit = True
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in %'"
        wait_until(lambda: conn.execute(query).fetchone() == (0,))
        conn.autocommit = False


@pytest.mark.conformance(331)
@pytest.mark.parametrize(
    "act",
    [lambda tx: tx.close(), execute("COMMIT"), forget_a_block, change_factories, swallow_an_sql_error],
    ids=["close()", "COMMIT", "block forgotten", "factories", "swallowed error"],
)
def test_a_pool_of_the_application_keeps_its_size_and_gets_usable_connections_back(
    database: str, client: Client, act: Act
) -> None:
    with ConnectionPool(database, min_size=3, max_size=3, open=True) as pool:
        trial = Trial(Client(pool, schema=client.schema))
        trial.prepare()
        trial.run(act)
        wait_until(lambda: pool.get_stats()["pool_available"] == 3)
        held = [pool.getconn() for _ in range(3)]
        for conn in held:
            assert not conn.autocommit
            with conn.transaction():
                assert conn.execute("SELECT 1").fetchone() == (1,)
            conn.commit()
            pool.putconn(conn)


# A pool of the application's own, with sessions as the application wants them.


def configured_pool(dsn: str, *statements: str) -> ConnectionPool[AnyConnection]:
    def configure(conn: AnyConnection) -> None:
        for statement in statements:
            conn.execute(statement.encode())
        conn.commit()

    return ConnectionPool(dsn, configure=configure, min_size=4, max_size=4, open=True)


OWN_STATE = ("SET search_path = theirs, public", "SET app.tenant = 'theirs'", "SET TimeZone = 'Asia/Tokyo'")
CHANGES = {
    "each setting": execute("SET search_path = mine", "SET app.tenant = 'mine'", "SET TimeZone = 'UTC'"),
    "nothing": execute("SELECT 1"),
    "everything": execute("RESET ALL"),
    "the role": execute("SET ROLE NONE"),
    "an error": execute("SET app.tenant = 'mine'", "SELECT 1/0"),
    "the transaction": execute("SET app.tenant = 'mine'", "COMMIT"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_the_application_has_set_in_its_sessions_is_there_for_every_job(
    database: str, client: Client, change: str
) -> None:
    with configured_pool(database, *OWN_STATE) as pool:
        trial = Trial(Client(pool, schema=client.schema))
        trial.prepare()
        trial.run(CHANGES[change])
        for session in trial.sessions:
            assert session.server[0] == "theirs, public"
            assert session.server[3] == "Asia/Tokyo"
            assert session.server[10] == "theirs"


def test_the_role_that_the_application_has_set_is_there_for_every_job(database: str, client: Client) -> None:
    role = f"role_{client.schema}"
    grants = "GRANT USAGE ON SCHEMA {schema} TO {role}; GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {role}"
    Trial(client).prepare()
    with client.pool.connection() as conn:
        conn.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))
        conn.execute(sql.SQL(grants).format(schema=sql.Identifier(client.schema), role=sql.Identifier(role)))
    try:
        with configured_pool(database, f"SET ROLE {role}") as pool:
            for change in (execute("SET ROLE NONE"), execute("SELECT 1")):
                trial = Trial(Client(pool, schema=client.schema))
                trial.run(change)
                assert [session.server[1] for session in trial.sessions] == [role, role]
            for _ in range(4):
                with pool.connection() as conn:
                    assert conn.execute("SELECT current_user::text").fetchone() == (role,)
    finally:
        with client.pool.connection() as conn:
            conn.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(role)))


def test_a_session_goes_back_to_the_application_as_it_came(database: str, client: Client) -> None:
    """None of the settings that pgjobs uses itself stays behind."""
    query = "SELECT name, setting, source FROM pg_settings WHERE source NOT IN ('default', 'configuration file')"
    with configured_pool(database, *OWN_STATE) as pool:

        def settings() -> list[Any]:
            held = [pool.getconn() for _ in range(4)]
            try:
                return [conn.execute(query).fetchall() for conn in held]
            finally:
                for conn in held:
                    conn.rollback()
                    pool.putconn(conn)

        trial = Trial(Client(pool, schema=client.schema))
        trial.prepare()
        before = settings()
        trial.run(execute("SELECT 1"))
        wait_until(lambda: pool.get_stats()["pool_available"] == 4)
        assert settings() == before


def test_named_statements_of_a_pool_survive_a_handler_that_deallocates_all(database: str, client: Client) -> None:
    with ConnectionPool(database, min_size=3, max_size=3, kwargs={"prepare_threshold": 0}, open=True) as pool:
        trial = Trial(Client(pool, schema=client.schema))
        trial.prepare()
        job = trial.run(execute("SELECT 1", "DEALLOCATE ALL", "SELECT 1"))
        assert job.state == DONE


# What the database's administrator may have set.


@pytest.fixture
def restricted(fresh_database: str) -> Iterator[Callable[[str], Client]]:
    """Gives clients of a migrated database in which a setting is changed for everybody."""
    opened: list[Client] = []

    def restrict(setting: str) -> Client:
        with Client(fresh_database) as admin:
            if admin.migrate():
                Trial(admin).prepare()
        name = psycopg.conninfo.conninfo_to_dict(fresh_database)["dbname"]
        with psycopg.connect(fresh_database, autocommit=True) as conn:
            conn.execute(sql.SQL("ALTER DATABASE {} SET {}").format(sql.Identifier(str(name)), sql.SQL(setting)))
        opened.append(Client(make_conninfo(fresh_database, application_name="restricted")))
        return opened[-1]

    yield restrict
    for client in opened:
        client.close()


@pytest.fixture
def unbounded(fresh_database: str) -> Iterator[Client]:
    """A client of the same database which may take its time."""
    bounds = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout")
    with Client(make_conninfo(fresh_database, options=" ".join(f"-c {name}=0" for name in bounds))) as client:
        yield client


@pytest.mark.conformance(335)
@pytest.mark.parametrize(
    "setting",
    [
        "statement_timeout = '1s'",
        "lock_timeout = '1ms'",
        "idle_in_transaction_session_timeout = '1s'",
        "idle_session_timeout = '1s'",
        "default_transaction_isolation = 'serializable'",
        "default_transaction_deferrable = on",
        "synchronous_commit = off",
        "standard_conforming_strings = off",
        "bytea_output = 'escape'",
        "extra_float_digits = -15",
        "row_security = off",
        "client_min_messages = 'debug5'",
        "TimeZone = 'Pacific/Kiritimati'",
        "DateStyle = 'SQL, DMY'",
        "IntervalStyle = 'sql_standard'",
        "client_encoding = 'LATIN1'",
    ],
)
def test_settings_of_the_administrator_do_not_stop_the_work(
    restricted: Callable[[str], Client], unbounded: Client, setting: str
) -> None:
    """T10, F14, F15. The handler thinks between two statements, for longer than a session may be idle, and fails for a
    reason of its own: that is recorded."""
    trial = Trial(restricted(setting), beside=unbounded)

    def act(tx: AnyConnection) -> None:
        threading.Event().wait(1.5 if setting.startswith("idle") else 0.1)
        tx.execute("SELECT 1/0")

    job = trial.run(act)
    check(trial, Fault("administrator", act, AGAIN, "22012"), job)


def test_a_role_that_the_administrator_has_set_is_there_for_every_job(
    restricted: Callable[[str], Client], fresh_database: str
) -> None:
    role = f"role_{uuid.uuid4().hex[:12]}"
    client = restricted("work_mem = '5MB'")
    with client.pool.connection() as conn:
        conn.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))
    try:
        with client.pool.connection() as conn:
            grants = "GRANT USAGE ON SCHEMA pgjobs TO {role}; GRANT ALL ON ALL TABLES IN SCHEMA pgjobs TO {role}"
            conn.execute(sql.SQL(grants).format(role=sql.Identifier(role)))
        trial = Trial(restricted(f"role = '{role}'"))
        trial.run(execute("SET ROLE NONE"))
        assert [session.server[1] for session in trial.sessions] == [role, role]
    finally:
        with psycopg.connect(fresh_database, autocommit=True, options="-c role=none") as conn:
            conn.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(role)))


@pytest.mark.one_by_one("a batch writes what is kept by itself")
@pytest.mark.parametrize("output", ["caf\xe9", "\N{EURO SIGN} \N{GRINNING FACE}"], ids=["fits", "does not fit"])
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("threshold", [5, None], ids=["prepared", "plain"])
def test_an_output_is_kept_as_it_is_whatever_encoding_the_handler_has_set(
    *, database: str, client: Client, output: str, fails: bool, threshold: int | None
) -> None:
    def handler(tx: AnyConnection, job: Job[Any]) -> None:
        tx.execute("SET client_encoding = 'LATIN1'")
        job.record_output([output, "\\\\u0041"])
        if fails:
            raise Discard(output)

    job: Job[Any] = client.enqueue(None, {}, kind="any")
    with ConnectionPool(database, min_size=1, max_size=1, kwargs={"prepare_threshold": threshold}, open=True) as pool:
        assert WorkerPool(Client(pool, schema=client.schema), {"any": handler}).work_one()
    found = client.get(job.id)
    assert found is not None
    assert found.state == (JobState.DISCARDED if fails else JobState.COMPLETED)
    assert found.output == [output, "\\\\u0041"]
    assert [error.error for error in found.errors] == [output] * fails


def test_a_queue_that_the_encoding_a_handler_has_set_does_not_know_is_the_attempts_failure(client: Client) -> None:
    queue = "a\N{MIDDLE DOT}b"
    job: Job[Any] = client.enqueue(None, {}, kind="any", queue=queue)
    pool = WorkerPool(client, {"any": lambda tx, job: tx.execute("SET client_encoding = 'LATIN2'")}, backoff=LATER)
    assert pool.work_one(queue)
    found = client.get(job.id)
    assert found is not None
    assert (found.state, found.error_count) == (JobState.RETRYABLE, 1)


@pytest.mark.conformance(335)
def test_a_statement_timeout_of_the_administrator_is_the_handlers_failure(
    restricted: Callable[[str], Client], unbounded: Client
) -> None:
    """F14."""
    trial = Trial(restricted("statement_timeout = '1s'"), beside=unbounded)
    job = trial.run(execute("SELECT pg_sleep(10)"))
    check(trial, Fault("statement_timeout", lambda tx: None, AGAIN, "57014"), job)


@pytest.mark.conformance(335)
def test_a_read_only_database_fails_loudly_and_leaves_the_job(
    restricted: Callable[[str], Client], caplog: pytest.LogCaptureFixture
) -> None:
    client = restricted("default_transaction_read_only = on")
    with client.pool.connection() as tx:
        tx.execute("SET TRANSACTION READ WRITE")
        job = client.enqueue(tx, {"n": 1}, kind="clean")
    with WorkerPool(client, {"clean": lambda tx, job: None}, queues={"default": 1}):
        wait_until(lambda: any("read-only transaction" in record.getMessage() for record in caplog.records))
    found = client.get(job.id)
    assert found is not None
    assert (found.state, found.attempt) == (JobState.AVAILABLE, 0)
