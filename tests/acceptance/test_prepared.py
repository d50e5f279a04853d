"""What psycopg prepares on connections of pgjobs' own, and what becomes of it when it is deallocated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg_pool import ConnectionPool

from pgjobs import Client, Job, JobState, NewJob, QueueSettings, WorkerPool, constant
from pgjobs.db.source import in_autocommit
from tests.samples import Tx
from tests.waiting import wait_until

Act = Callable[[Tx, int], object]
JOBS = 20  # statements are prepared from the sixth time on
PREPARED = (
    "SELECT count(*) FROM pg_prepared_statements "
    "WHERE (name LIKE '\\_pg3%%' OR name LIKE 'pgjobs\\_in\\_%%') AND statement ILIKE %s"
)


class Trial:
    """Jobs whose handlers write a row and do something, on one thread; how often each was started, and on what."""

    def __init__(self, client: Client, act: Act, **options: Any) -> None:
        self.client, self.act, self.options = client, act, options
        self.starts: list[int] = []
        self.prepared: list[int] = []
        self.backends: set[int] = set()
        self.errors: list[str] = []

    def sql(self, text: str) -> sql.Composed:
        return sql.SQL(text).format(s=sql.Identifier(self.client.schema))

    def handler(self, tx: Tx, job: Job[Any]) -> None:
        number = job.args["number"]
        self.starts.append(number)
        self.backends.add(tx.info.backend_pid)
        tx.execute(self.sql("INSERT INTO {s}.effect VALUES (%s)"), [number])
        self.act(tx, number)
        self.prepared.append(prepared(tx, "effect"))

    def run(self) -> list[Job[Any]]:
        jobs = [self.client.enqueue(None, {"number": number}, kind="any") for number in range(JOBS)]
        threads: dict[str, Any] = {"default": QueueSettings(1, **self.options)}
        with WorkerPool(self.client, {"any": self.handler}, queues=threads, backoff=constant(timedelta(0))):
            wait_until(lambda: all(job.state.final for job in self.stored(jobs)), 30)
        return list(self.stored(jobs))

    def stored(self, jobs: list[Job[Any]]) -> Iterator[Job[Any]]:
        found = (self.client.get(job.id) for job in jobs)
        return (job for job in found if job is not None)

    def none_was_disturbed(self) -> None:
        assert [(job.state, [error.error for error in job.errors]) for job in self.run()] == [
            (JobState.COMPLETED, [])
        ] * JOBS
        assert sorted(self.starts) == list(range(JOBS)), "each was started once"
        with self.client.pool.connection() as conn:
            effects = conn.execute(self.sql("SELECT count(*) FROM {s}.effect")).fetchone()
        assert effects == (JOBS,)


def prepared(conn: Tx, table: str) -> int:
    """How many statements have been prepared, by psycopg or for an enqueue, that insert into the table."""
    row = conn.execute(PREPARED, [f"%INSERT INTO%{table}%"], prepare=False).fetchone()
    assert row is not None
    return int(row[0])


def nothing(tx: Tx, number: int) -> None: ...


def now_and_then(act: Act) -> Act:
    """So that it also hits what is prepared for good."""
    return lambda tx, number: act(tx, number) if number % 2 else None


def deallocates(tx: Tx, number: int) -> None:
    tx.execute("DEALLOCATE ALL")


def deallocates_in_a_block(tx: Tx, number: int) -> None:
    tx.execute("DO $$ BEGIN EXECUTE 'deallocate all'; END $$")


def drops_a_savepoint(tx: Tx, number: int) -> None:
    with tx.transaction():
        tx.execute("SELECT 1")
        raise psycopg.Rollback


def drops_a_table(tx: Tx, number: int) -> None:
    tx.execute("CREATE TABLE pg_temp.beside ()")
    tx.execute("DROP TABLE pg_temp.beside")


def makes_a_table_of_its_own(tx: Tx, number: int) -> None:
    """The same name for other columns: what is prepared for those before cannot be used."""
    column = sql.Identifier(f"column_{number}")
    tx.execute(sql.SQL("CREATE TEMP TABLE mine ({} int)").format(column))
    tx.execute("SELECT * FROM mine")


@pytest.fixture
def ready(client: Client) -> Client:
    with client.pool.connection() as conn:
        conn.execute(sql.SQL("CREATE TABLE {}.effect (number int)").format(sql.Identifier(client.schema)))
    return client


@pytest.fixture
def theirs(ready: Client, database: str) -> Iterator[Callable[..., Client]]:
    """Clients of pools of the application."""
    pools: list[ConnectionPool[Any]] = []

    def make(**kwargs: Any) -> Client:
        pools.append(ConnectionPool(database, min_size=4, max_size=4, kwargs=kwargs, open=True))
        return Client(pools[-1], schema=ready.schema)

    yield make
    for pool in pools:
        pool.close()


WAYS = pytest.mark.parametrize("options", [{}, {"batch_size": 10}], ids=["one by one", "batches"])


@pytest.mark.prepared("looks at what is prepared")
@WAYS
def test_a_handlers_statements_are_prepared_and_cost_no_connection(ready: Client, options: dict[str, Any]) -> None:
    trial = Trial(ready, nothing, **options)
    trial.none_was_disturbed()
    assert trial.prepared[0] == 0
    assert trial.prepared[-1] == 1
    assert len(trial.backends) == 1, "what psycopg prepared is not what a handler left behind"


@pytest.mark.one_by_one("it is there to the end of its batch")
def test_a_statement_that_a_handler_prepares_by_name_costs_the_connection(ready: Client) -> None:
    trial = Trial(ready, lambda tx, number: tx.execute(f"PREPARE mine_{number} AS SELECT 1".encode()))
    trial.none_was_disturbed()
    assert len(trial.backends) == JOBS


@WAYS
@pytest.mark.parametrize(
    "act", [deallocates, deallocates_in_a_block, drops_a_savepoint, drops_a_table, makes_a_table_of_its_own]
)
def test_nobody_is_disturbed_by_what_a_handler_does_to_what_is_prepared(
    ready: Client, act: Act, options: dict[str, Any]
) -> None:
    Trial(ready, now_and_then(act), **options).none_was_disturbed()


@pytest.mark.parametrize("act", [drops_a_savepoint, drops_a_table])
def test_a_rollback_on_a_pool_that_prepares_deallocates_and_costs_no_job_another_start(
    theirs: Callable[..., Client], act: Act
) -> None:
    """psycopg itself deallocates everything then."""
    Trial(theirs(prepare_threshold=0), now_and_then(act)).none_was_disturbed()


@WAYS
def test_a_claim_whose_lock_alone_was_deallocated_is_made_again(
    theirs: Callable[..., Client], options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:

    def act(tx: Tx, number: int) -> None:
        if number % 10 == 0:
            names = tx.execute(
                "SELECT name FROM pg_prepared_statements WHERE name ~ '^pgjobs.*_lock_[0-9]+$'"
            ).fetchall()
            for (name,) in names:
                tx.execute(sql.SQL("DEALLOCATE {}").format(sql.Identifier(name)))

    Trial(theirs(), act, **options).none_was_disturbed()
    assert "vanished" not in caplog.text, "nothing waited for a rescue"


@pytest.mark.prepared("looks at what is prepared")
def test_an_enqueue_is_prepared_also_after_a_handler_has_deallocated(ready: Client) -> None:
    """On the very connection of the handler."""
    ready.pool.resize(0, 1)
    for _ in range(3):
        for number in range(10):
            ready.enqueue(None, {"number": number}, kind="any")
        with ready.pool.connection() as conn:
            assert prepared(conn, "job") >= 1
        with ready.lock_job() as (tx, job):
            assert job is not None
            tx.execute("DEALLOCATE ALL")
            assert prepared(tx, "job") == 0
    for statement in ("DISCARD ALL", "DISCARD ALL"):
        with ready.pool.connection() as conn, in_autocommit(conn):
            conn.execute(statement)
        for number in range(10):
            ready.enqueue(None, {"number": number}, kind="any")
    with ready.pool.connection() as conn:
        assert prepared(conn, "job") >= 1


def test_a_batch_goes_on_after_a_handler_whose_writes_were_dropped(ready: Client) -> None:
    """What was prepared for a table that was dropped with them is not for the one that stands there now."""
    table = sql.SQL("CREATE TABLE {}.mine ({} int)")

    def act(tx: Tx, number: int) -> None:
        column = sql.Identifier("first" if number < 10 else "second")
        tx.execute(table.format(sql.Identifier(ready.schema), column))
        tx.execute(sql.SQL("SELECT * FROM {}.mine").format(sql.Identifier(ready.schema)))
        raise ArithmeticError(number)

    jobs = Trial(ready, act, batch_size=JOBS).run()
    assert {error.error for job in jobs for error in job.errors} == {str(number) for number in range(JOBS)}


@pytest.mark.parametrize("threshold", [None, 2, 7])
def test_a_pool_of_the_application_prepares_as_it_did(theirs: Callable[..., Client], threshold: int | None) -> None:
    client = theirs(prepare_threshold=threshold)
    trial = Trial(client, lambda tx, number: trial.errors.append(repr(tx.prepare_threshold)))
    trial.none_was_disturbed()
    assert set(trial.errors) == {repr(threshold)}
    assert bool(trial.prepared[-1]) == (threshold is not None)
    conns = [client.pool.getconn() for _ in range(4)]
    assert {conn.prepare_threshold for conn in conns} == {threshold}
    for conn in conns:
        client.pool.putconn(conn)


@pytest.mark.prepared("looks at what is prepared")
def test_a_handler_may_do_without_and_the_next_one_has_it_again(ready: Client) -> None:
    def act(tx: Tx, number: int) -> None:
        trial.errors.append(repr(tx.prepare_threshold))
        tx.prepare_threshold = None

    trial = Trial(ready, act)
    trial.none_was_disturbed()
    assert set(trial.errors) == {"5"}


CONTROL: dict[str, Callable[[Client, int, Tx], object]] = {
    "cancel": lambda client, id, tx: client.cancel(id, tx),
    "retry": lambda client, id, tx: client.retry(id, tx),
    "update": lambda client, id, tx: client.update(id, tx, priority=1),
    "delete": lambda client, id, tx: client.delete(id, tx),
}


@pytest.mark.parametrize("name", CONTROL)
def test_a_control_call_for_one_job_is_prepared_where_the_application_lets_psycopg_prepare(
    client: Client, database: str, name: str
) -> None:
    """It takes the server longer to parse and plan such a statement than to execute it."""
    jobs = client.enqueue_many(None, [NewJob({"number": number}, kind="any") for number in range(JOBS)])
    with psycopg.connect(database) as tx:
        for job in jobs:
            CONTROL[name](client, job.id, tx)
        query = "SELECT count(*) > 0 FROM pg_prepared_statements WHERE statement LIKE %s"
        assert tx.execute(query, [f"-- name: {name}\n%"], prepare=False).fetchone() == (True,)
