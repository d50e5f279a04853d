"""What the database does to a job that its handler can do nothing about: the numbers are those of the fault list."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from datetime import timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg_pool import ConnectionPool

from pgjobs import Client, Hooks, Job, JobState, QueueSettings, TransactionBroken, WorkerPool, constant
from pgjobs.db.cursors import AnyConnection
from tests.conftest import Connect
from tests.waiting import wait_until

NOTHING: dict[str, Any] = {}
SOON = constant(timedelta(milliseconds=20))


@pytest.fixture
def run_sql(client: Client, connect: Connect) -> Callable[..., list[Any]]:
    """Runs SQL on a connection that commits at once; `{s}` is the schema of the test."""
    conn = connect(autocommit=True)

    def run(text: str, *values: object) -> list[Any]:
        cur = conn.execute(sql.SQL(text).format(s=sql.Identifier(client.schema)), values or None)
        return cur.fetchall() if cur.description else []

    return run


def stored(client: Client, job: Job[Any]) -> Job[Any]:
    found = client.get(job.id)
    assert found is not None
    return found


def test_t8_that_a_job_runs_and_who_runs_it_is_there_for_everybody_to_see(
    client: Client, run_sql: Callable[..., list[Any]]
) -> None:
    seen: list[Any] = []

    def handler(tx: AnyConnection, job: Job[Any]) -> None:
        seen.extend(run_sql("SELECT state, attempt, attempted_by, attempted_at IS NOT NULL FROM {s}.job"))

    client.enqueue(None, NOTHING, kind="any")
    assert WorkerPool(client, {"any": handler}).work_one()
    assert seen == [("running", 1, [client.id], True)]


def test_a_pool_whose_check_begins_a_transaction_is_worked_with_and_gets_its_connections_back(
    database: str, client: Client
) -> None:
    def check(conn: AnyConnection) -> None:
        conn.execute("SELECT 1")

    with ConnectionPool(database, min_size=4, max_size=4, check=check, open=True, timeout=3) as connections:
        theirs = Client(connections, schema=client.schema)
        job = theirs.enqueue(None, NOTHING, kind="any")
        with WorkerPool(theirs, {"any": lambda tx, job: None}, queues={"default": 1}):
            wait_until(lambda: stored(client, job).state == JobState.COMPLETED)
        wait_until(lambda: connections.get_stats()["pool_available"] == 4)


def test_t14_a_client_asks_the_network_whether_a_silent_server_is_there(client: Client) -> None:
    with client.pool.connection() as conn:
        asked = conn.info.get_parameters()
    idle, interval, count = (int(asked[f"keepalives_{name}"]) for name in ("idle", "interval", "count"))
    assert asked["keepalives"] == "1"
    assert idle + interval * count <= 30
    assert int(asked["tcp_user_timeout"]) <= 30_000


def test_t18_connections_that_died_while_they_were_idle_cost_no_job_an_attempt(
    client: Client, database: str, run_sql: Callable[..., list[Any]]
) -> None:
    """As after a restart of the server, each of them is handed out once."""
    name = f"dies-{uuid4().hex[:8]}"
    with Client(make_conninfo(database, application_name=name), schema=client.schema) as dying:
        with ExitStack() as held:
            for _ in range(4):
                held.enter_context(dying.pool.connection())
        wait_until(lambda: dying.pool.get_stats()["pool_available"] == 4)
        of_it = "FROM pg_stat_activity WHERE application_name = %s"
        run_sql(f"SELECT pg_terminate_backend(pid) {of_it}", name)
        wait_until(lambda: run_sql(f"SELECT count(*) {of_it}", name) == [(0,)])
        job = client.enqueue(None, NOTHING, kind="any")
        with WorkerPool(dying, {"any": lambda tx, job: None}, queues={"default": 1}):
            wait_until(lambda: stored(client, job).state == JobState.COMPLETED)
    assert (stored(client, job).attempt, stored(client, job).errors) == (1, ())


# --- F14: what the administrator has set for a role


HOSTILE = {
    "statement_timeout": "100ms",
    "lock_timeout": "1ms",
    "idle_in_transaction_session_timeout": "10ms",
    "default_transaction_isolation": "serializable",
    "search_path": "nowhere",
    "TimeZone": "Pacific/Kiritimati",
    "DateStyle": "German",
    "bytea_output": "escape",
}


@pytest.fixture
def role(client: Client, run_sql: Callable[..., list[Any]]) -> Iterator[str]:
    """A role that may work the jobs, and is set up to make that hard."""
    name = f"hostile_{uuid4().hex[:8]}"
    run_sql(f"CREATE ROLE {name} LOGIN PASSWORD 'hostile'")
    run_sql(f"GRANT USAGE ON SCHEMA {{s}} TO {name}")
    run_sql(f"GRANT ALL ON ALL TABLES IN SCHEMA {{s}} TO {name}")
    for setting, value in HOSTILE.items():
        run_sql(f"ALTER ROLE {name} SET {setting} = '{value}'")
    yield name
    run_sql(f"DROP OWNED BY {name}")
    run_sql(f"DROP ROLE {name}")


def test_f14_a_role_with_hostile_settings_works_jobs_and_what_its_handlers_meet_is_on_record(
    client: Client, database: str, role: str, connect: Connect, run_sql: Callable[..., list[Any]]
) -> None:
    run_sql("CREATE TABLE {s}.contended AS SELECT 1 AS id")
    run_sql(f"GRANT ALL ON {{s}}.contended TO {role}")
    holder = connect()
    holder.execute(sql.SQL("SELECT FROM {s}.contended FOR UPDATE").format(s=sql.Identifier(client.schema)))

    def thinks(tx: AnyConnection, job: Job[Any]) -> None:
        threading.Event().wait(0.1)
        tx.execute("SELECT 1")

    def waits(tx: AnyConnection, job: Job[Any]) -> None:
        tx.execute(sql.SQL("UPDATE {s}.contended SET id = 2").format(s=sql.Identifier(client.schema)))

    def takes_long(tx: AnyConnection, job: Job[Any]) -> None:
        tx.execute("SELECT pg_sleep(20)")

    handlers = {"thinks": thinks, "waits": waits, "takes.long": takes_long}
    jobs = {kind: client.enqueue(None, NOTHING, kind=kind, max_attempts=1) for kind in handlers}
    with (
        Client(make_conninfo(database, user=role, password="hostile"), schema=client.schema) as hostile,
        WorkerPool(hostile, handlers, queues={"default": 2}),
    ):
        wait_until(lambda: all(stored(client, job).state.final for job in jobs.values()))
    ended = {kind: stored(client, job) for kind, job in jobs.items()}
    assert ended["thinks"].state == JobState.COMPLETED, ended["thinks"].errors
    assert [error.attempt for error in ended["waits"].errors] == [1]
    assert "55P03" in (ended["waits"].last_error or "")
    assert [error.attempt for error in ended["takes.long"].errors] == [1]
    assert "57014" in (ended["takes.long"].last_error or "")


# --- F15: conflicts


def test_f15_of_two_handlers_in_a_deadlock_one_fails_and_runs_again(
    client: Client, run_sql: Callable[..., list[Any]]
) -> None:
    run_sql("CREATE TABLE {s}.pair AS SELECT id, 0 AS times FROM generate_series(1, 2) AS id")
    met = threading.Barrier(2, timeout=20)
    add = sql.SQL("UPDATE {s}.pair SET times = times + 1 WHERE id = %s").format(s=sql.Identifier(client.schema))

    def handler(tx: AnyConnection, job: Job[Any]) -> None:
        first = job.args["first"]
        tx.execute(add, [first])
        if job.attempt == 1:
            met.wait()
        tx.execute(add, [3 - first])

    jobs = [client.enqueue(None, {"first": first}, kind="any", queue=f"queue-{first}") for first in (1, 2)]
    with WorkerPool(client, {"any": handler}, queues={"queue-1": 1, "queue-2": 1}, backoff=SOON):
        wait_until(lambda: all(stored(client, job).state == JobState.COMPLETED for job in jobs), timeout=30)
    [error] = [error for job in jobs for error in stored(client, job).errors]
    assert "40P01" in error.error
    assert sorted(stored(client, job).attempt for job in jobs) == [1, 2]
    assert run_sql("SELECT DISTINCT times FROM {s}.pair") == [(2,)], "each of the two has added once to both"


@pytest.mark.parametrize("caught", [False, True])
def test_f15_a_serialization_failure_in_a_handler_is_the_attempts_failure(client: Client, caught: bool) -> None:
    conflict = "DO $$ BEGIN RAISE EXCEPTION 'could not serialize access' USING ERRCODE = '40001'; END $$"

    def handler(tx: AnyConnection, job: Job[Any]) -> None:
        try:
            tx.execute(conflict)
        except psycopg.errors.SerializationFailure:
            if not caught:
                raise

    job = client.enqueue(None, NOTHING, kind="any")
    assert WorkerPool(client, {"any": handler}, backoff=SOON).work_one()
    failed = stored(client, job)
    assert (failed.attempt, [error.attempt for error in failed.errors]) == (1, [1])
    assert failed.state == JobState.RETRYABLE
    assert ("25P02" if caught else "40001") in (failed.last_error or "")


def test_f15_with_serializable_for_a_default_neither_claims_nor_handlers_fail_for_it(
    client: Client, database: str, run_sql: Callable[..., list[Any]]
) -> None:
    """Each handler reads what the other one writes, which serializable would refuse to one of them."""
    run_sql("CREATE TABLE {s}.pair AS SELECT id, 0 AS times FROM generate_series(1, 2) AS id")
    met = threading.Barrier(2, timeout=20)
    levels: list[str] = []

    def handler(tx: AnyConnection, job: Job[Any]) -> None:
        pair = sql.SQL("{s}.pair").format(s=sql.Identifier(client.schema))
        levels.extend(row[0] for row in tx.execute("SHOW transaction_isolation"))
        tx.execute(sql.SQL("SELECT sum(times) FROM {}").format(pair))
        met.wait()
        tx.execute(sql.SQL("UPDATE {} SET times = 1 WHERE id = %s").format(pair), [job.args["id"]])

    options = "-c default_transaction_isolation=serializable"
    with Client(make_conninfo(database, options=options), schema=client.schema) as strict:
        jobs = [strict.enqueue(None, {"id": id}, kind="any", queue=f"queue-{id}") for id in (1, 2)]
        with WorkerPool(strict, {"any": handler}, queues={"queue-1": 1, "queue-2": 1}):
            wait_until(lambda: all(stored(client, job).state == JobState.COMPLETED for job in jobs))
    assert [stored(client, job).errors for job in jobs] == [(), ()]
    assert levels == ["read committed"] * 2


ENDED_BY: dict[str, tuple[str, str]] = {
    "idle": ("25P03", "by idle_in_transaction_session_timeout"),
    "killed": ("57P01", "by pg_terminate_backend()"),
}


def end_connection(how: str, tx: AnyConnection, beside: AnyConnection) -> None:
    """Let the server end this connection, and return when it has."""
    pid = tx.info.backend_pid
    if how == "idle":
        tx.execute("SET LOCAL idle_in_transaction_session_timeout = '20ms'")
    else:
        beside.execute("SELECT pg_terminate_backend(%s)", [pid])
    gone = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s)"
    wait_until(lambda: beside.execute(gone, [pid]).fetchone() == (True,))


@pytest.mark.finding("E1")
@pytest.mark.parametrize("goes_on", [False, True], ids=["returns", "goes on"])
@pytest.mark.parametrize("way", ["hot", "plain", "batch", "by hand"])
@pytest.mark.parametrize("how", ENDED_BY)
def test_why_the_server_has_ended_the_connection_of_a_handler_is_on_record(
    *, database: str, client: Client, connect: Connect, how: str, way: str, goes_on: bool
) -> None:
    """The record said that the server closed the connection unexpectedly, and not why."""
    beside = connect(autocommit=True)

    def handler(tx: AnyConnection, job: Job[Any]) -> None:
        end_connection(how, tx, beside)
        if goes_on:
            tx.execute("SELECT 1")

    job: Job[Any] = client.enqueue(None, NOTHING, kind="any")
    kwargs = {"prepare_threshold": None if way == "plain" else 5}
    with ConnectionPool(database, min_size=1, max_size=6, kwargs=kwargs, open=True) as pool:
        other = Client(pool, schema=client.schema, backoff=constant(timedelta(hours=1)))
        if way == "by hand":
            with suppress(psycopg.Error, TransactionBroken), other.lock_job() as (tx, locked):
                assert locked is not None
                handler(tx, locked)
        else:
            queues = {"default": QueueSettings(1, batch_size=5 if way == "batch" else 1)}
            with WorkerPool(other, {"any": handler}, queues=queues):
                wait_until(lambda: stored(client, job).errors, 20)
    sqlstate, says = ENDED_BY[how]
    error = stored(client, job).last_error or ""
    assert f"[{sqlstate}]" in error
    assert says in error


@pytest.mark.finding("E1")
@pytest.mark.one_by_one("both jobs would be claimed at once")
@pytest.mark.parametrize("threshold", [5, None], ids=["hot", "plain"])
def test_why_the_server_has_ended_the_connection_of_a_claim_is_in_the_log(
    *, database: str, client: Client, connect: Connect, threshold: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    """It said that the server closed the connection unexpectedly, and not why."""
    beside = connect(autocommit=True)
    backends: list[int] = []

    class Killer(Hooks):
        def on_finish(self, job: Job[Any], error: BaseException | None) -> None:
            if len(backends) == 1:
                beside.execute("SELECT pg_terminate_backend(%s)", [backends[0]])
                gone = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s)"
                wait_until(lambda: beside.execute(gone, backends).fetchone() == (True,))

    jobs: list[Job[Any]] = [client.enqueue(None, NOTHING, kind="any") for _ in range(2)]
    kwargs = {"prepare_threshold": threshold}
    with ConnectionPool(database, min_size=1, max_size=6, kwargs=kwargs, open=True) as pool:
        other = Client(pool, schema=client.schema, hooks=[Killer()])
        work_map = {"any": lambda tx, job: backends.append(tx.info.backend_pid)}
        pause = timedelta(milliseconds=10)  # so that the finish does not claim the next job
        with WorkerPool(other, work_map, queues={"default": 1}, fetch_cooldown=pause, poll_interval=pause):
            wait_until(lambda: all(stored(client, job).state == JobState.COMPLETED for job in jobs), 20)
    said = [record.getMessage() for record in caplog.records if "is lost" in record.getMessage()]
    assert len(said) == 1
    assert "administrator command" in said[0]
    assert "by pg_terminate_backend()" in said[0]
