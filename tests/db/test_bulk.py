"""Batches: nothing sent before all is checked, memory bounded, connections in every mode, one notification a queue."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus
from psycopg_pool import ConnectionPool

from pgjobs import Client, EncodedJob, Hooks, InvalidArgs, InvalidJob, InvalidTransaction, Job, NewJob, NoJobs, Unique
from pgjobs.db.cursors import AnyConnection
from tests.conftest import Connect
from tests.db.test_races import Table, table
from tests.samples import HOUR, Thing, shown
from tests.waking import sleep_on

__all__ = ["table"]  # a fixture

BY_N = Unique(by_args=["n"])


def count(table: Table) -> int:
    ((jobs,),) = table.query("SELECT count(*) FROM {schema}.job")
    assert isinstance(jobs, int)
    return jobs


# --- a bad one


@pytest.mark.parametrize("returning", [True, False])
@pytest.mark.parametrize("bad", ["no job", NewJob({"n": float("nan")}, kind="thing"), NewJob({}), Thing], ids=repr)
def test_a_bad_job_refuses_the_whole_iterator_before_anything_is_sent(
    client: Client, conn: AnyConnection, table: Table, bad: object, returning: bool
) -> None:
    def jobs() -> Iterator[object]:
        for n in range(3000):
            yield bad if n == 2500 else NewJob(Thing(n), delay=n % 2 * HOUR)

    with pytest.raises(InvalidJob) as refused:
        client.enqueue_many(conn, jobs(), returning=returning)  # type: ignore[call-overload]
    assert refused.value.__notes__ == ["at position 2500 of the jobs to enqueue"]
    assert conn.info.transaction_status == TransactionStatus.IDLE
    assert count(table) == 0


def test_an_iterator_that_fails_sends_nothing(client: Client, conn: AnyConnection, table: Table) -> None:
    def jobs() -> Iterator[Thing]:
        yield Thing(1)
        raise LookupError("of the caller's own")

    with pytest.raises(LookupError) as raised:
        client.enqueue_many(conn, jobs(), returning=False)
    assert not getattr(raised.value, "__notes__", [])
    assert conn.info.transaction_status == TransactionStatus.IDLE


@pytest.mark.parametrize("nothing", [[], iter([])], ids=["list", "iterator"])
def test_no_jobs_are_an_error_for_a_count_too(client: Client, nothing: Any) -> None:
    with pytest.raises(NoJobs):
        client.enqueue_many(None, nothing, returning=False)


def test_the_iterator_may_read_from_the_very_connection(client: Client, conn: AnyConnection, table: Table) -> None:
    with conn.cursor(name="reading") as reading:
        reading.execute("SELECT generate_series(1, 100)")
        assert client.enqueue_many(conn, (Thing(n) for (n,) in reading), returning=False) == 100
    conn.commit()
    assert count(table) == 100


# --- the connection


@pytest.mark.parametrize("returning", [True, False])
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_batch_goes_with_the_caller_s_transaction(
    client: Client, conn: AnyConnection, table: Table, end: str, returning: bool
) -> None:
    jobs = [NewJob(Thing(n), delay=n % 2 * HOUR, unique=BY_N if n % 3 else None) for n in range(100)]
    client.enqueue_many(conn, jobs, returning=returning)  # type: ignore[call-overload]
    assert count(table) == 0, "nothing is committed for the caller"
    getattr(conn, end)()
    assert count(table) == (100 if end == "commit" else 0)


@pytest.mark.parametrize("returning", [True, False])
def test_a_batch_on_a_connection_in_autocommit_mode_or_in_a_pipeline(
    client: Client, connect: Connect, table: Table, returning: bool
) -> None:
    jobs = [Thing(n) for n in range(50)]
    auto = connect(autocommit=True)
    client.enqueue_many(auto, jobs, returning=returning)  # type: ignore[call-overload]
    assert auto.info.transaction_status == TransactionStatus.IDLE
    assert count(table) == 50
    piped = connect()
    with piped.pipeline():
        made = client.enqueue_many(piped, jobs, returning=returning)  # type: ignore[call-overload]
        assert (made if isinstance(made, int) else len(made)) == 50
    piped.commit()
    assert count(table) == 100


@pytest.mark.parametrize(
    "kwargs",
    [
        {"row_factory": psycopg.rows.dict_row},
        {"cursor_factory": psycopg.ClientCursor},
        {"options": "-c TimeZone=Australia/Lord_Howe -c DateStyle=German -c IntervalStyle=sql_standard"},
        {"prepare_threshold": 0},
    ],
    ids=shown,
)
def test_whatever_the_connection_is_like(
    client: Client, connect: Connect, table: Table, kwargs: dict[str, Any]
) -> None:
    tx = connect(**kwargs)
    given = [NewJob(Thing(n), delay=n % 2 * HOUR, tags=["abc"]) for n in range(40)]
    jobs = client.enqueue_many(tx, given)
    unique = client.enqueue_many(tx, [NewJob(Thing(n % 2), delay=HOUR, tags=["abc"], unique=BY_N) for n in range(4)])
    assert client.enqueue_many(tx, iter(given), returning=False) == 40
    tx.commit()
    assert [job.duplicate for job in unique] == [False, False, True, True]
    for job in (*jobs, *unique):
        there = table.job(job)
        assert (there.scheduled_at, there.state, there.tags) == (job.scheduled_at, job.state, ("abc",))
    assert count(table) == 82


@pytest.mark.parametrize("jobs", [1, 25])
@pytest.mark.parametrize("returning", [True, False])
def test_text_is_stored_as_given_whatever_the_encoding_of_the_connection(
    client: Client, connect: Connect, jobs: int, returning: bool
) -> None:
    with connect(client_encoding="LATIN1") as tx:
        batch = [NewJob({"x": "é"}, kind="thing", metadata={"y": "ü"})] * jobs
        client.enqueue_many(tx, batch, returning=returning)  # type: ignore[call-overload]
    for job in client.list_jobs().jobs:
        assert (job.args, job.metadata) == ({"x": "é"}, {"y": "ü"})


def test_jobs_in_any_number_are_refused_where_they_cannot_be_copied(
    client: Client, table: Table, database: str
) -> None:
    with ConnectionPool(database, min_size=1, kwargs={"client_encoding": "LATIN1"}, open=True) as pool:
        theirs = Client(pool, schema=client.schema)
        with pytest.raises(InvalidTransaction, match="UTF8"):
            theirs.enqueue_many(None, [NewJob({"x": "é"}, kind="thing")], returning=False)
    assert count(table) == 0


@pytest.mark.parametrize("options", [{}, {"delay": HOUR}, {"unique": BY_N}], ids=str)
@pytest.mark.parametrize("tx", [True, False])
def test_a_connection_that_says_of_no_text_what_it_is_is_refused_before_anything_is_sent(
    client: Client, table: Table, database: str, options: dict[str, Any], tx: bool
) -> None:
    with ConnectionPool(database, min_size=2, kwargs={"client_encoding": "SQL_ASCII"}, open=True) as pool:
        theirs = Client(pool, schema=client.schema)
        with pool.connection() as conn, pytest.raises(InvalidTransaction, match="SQL_ASCII"):
            theirs.enqueue(conn if tx else None, {"n": "é"}, kind="thing", **options)
    assert count(table) == 0


@pytest.mark.no_decoys("has a trigger or a rule of its own that finds one")
def test_row_security_allows_an_insert_where_it_forbids_a_copy(client: Client, table: Table, connect: Connect) -> None:
    owner = connect(autocommit=True)
    role = f"{client.schema}_role"
    for statement in (
        f"CREATE ROLE {role}",
        f"GRANT USAGE ON SCHEMA {client.schema} TO {role}",
        f"GRANT SELECT, INSERT ON {client.schema}.job TO {role}",
        f"GRANT USAGE ON SEQUENCE {client.schema}.job_id_seq TO {role}",
        f"ALTER TABLE {client.schema}.job ENABLE ROW LEVEL SECURITY",
        f"CREATE POLICY mail ON {client.schema}.job TO {role} USING (true) WITH CHECK (queue = 'mail')",
    ):
        owner.execute(statement.encode())
    try:
        tx = connect(autocommit=True)
        tx.execute(f"SET ROLE {role}".encode())
        jobs = client.enqueue_many(tx, [NewJob(Thing(n), queue="mail") for n in range(50)])
        assert [table.job(job).args["n"] for job in jobs] == list(range(50))
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            client.enqueue_many(tx, [Thing(n) for n in range(50)])
        with pytest.raises(psycopg.errors.FeatureNotSupported):
            client.enqueue_many(tx, [NewJob(Thing(1), queue="mail")], returning=False)
    finally:
        owner.execute(f"DROP OWNED BY {role}".encode())
        owner.execute(f"DROP ROLE {role}".encode())


# --- who looks on


def test_hooks_hear_of_every_job_that_was_inserted_and_of_no_duplicate(client: Client) -> None:
    heard: list[int] = []

    class Hear(Hooks):
        def on_enqueue(self, job: Job[Any]) -> None:
            heard.append(job.id)

    hearing = Client(client.pool, schema=client.schema, hooks=[Hear()])
    jobs = hearing.enqueue_many(None, [NewJob(Thing(n % 3), unique=BY_N) for n in range(6)] + [NewJob(Thing(9))] * 30)
    assert heard == [job.id for job in jobs if not job.duplicate]
    heard.clear()
    assert hearing.enqueue_many(None, [Thing(n) for n in range(40)], returning=False) == 40
    assert len(heard) == 40


def test_middleware_sees_a_batch_at_once_and_may_change_it_and_the_key_is_that_of_what_is_stored(
    client: Client, table: Table
) -> None:
    seen: list[int] = []

    def upper(tx: Any, jobs: Sequence[EncodedJob], insert: Any) -> list[Job[Any]]:
        seen.append(len(jobs))
        inserted: list[Job[Any]] = insert([replace(job, args='{"n": 7}') for job in jobs])
        return inserted

    changing = Client(client.pool, schema=client.schema, middleware=[upper])
    assert changing.enqueue_many(None, (Thing(n) for n in range(40)), returning=False) == 40
    jobs = changing.enqueue_many(None, [NewJob(Thing(n), unique=BY_N) for n in range(3)])
    assert [job.duplicate for job in jobs] == [False, True, True]
    assert seen == [40, 3]
    assert table.query("SELECT DISTINCT args ->> 'n' FROM {schema}.job") == [("7",)]


@pytest.mark.parametrize("returning", [True, False])
@pytest.mark.parametrize("size", [3, 200])
def test_a_batch_sends_one_notification_for_each_queue_that_has_a_job_to_run(
    client: Client, connect: Connect, size: int, returning: bool
) -> None:
    listening = connect(autocommit=True)
    sleep_on(listening, client, "mail", "reports", "later", "pending", "unique")
    jobs = [NewJob(Thing(n), queue=queue) for n in range(size) for queue in ("mail", "reports")]
    jobs += [NewJob(Thing(n), queue="later", delay=HOUR) for n in range(size)]
    jobs += [NewJob(Thing(n), queue="pending", pending=True) for n in range(size)]
    jobs += [NewJob(Thing(n), queue="unique", unique=BY_N) for n in range(size)]
    client.enqueue_many(None, jobs, returning=returning)  # type: ignore[call-overload]
    client.enqueue_many(None, jobs, returning=returning, notify=False)  # type: ignore[call-overload]
    with connect(autocommit=True) as last:
        last.execute("SELECT pg_notify(%s, 'over')", [client.queries.channel])
    heard: list[str] = []
    for notice in listening.notifies():
        if notice.payload == "over":
            break
        heard.append(notice.payload)
    assert sorted(heard) == ["mail", "reports", "unique"]


# --- the memory


def test_a_long_iterator_takes_no_more_memory_than_a_short_one(client: Client, table: Table) -> None:
    """10,000 jobs are 30 MB as bytes of rows and more as objects; a buffer keeps 8 MB of them in memory."""
    text = "x" * 3000
    tracemalloc.start()
    try:
        jobs = (NewJob({"n": n, "text": text}, kind="thing", delay=HOUR) for n in range(10_000))
        assert client.enqueue_many(None, jobs, returning=False) == 10_000
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count(table) == 10_000
    assert most < 14 * 1024 * 1024


@pytest.mark.no_decoys("has a trigger or a rule of its own that finds one")
def test_errors_of_the_database_leave_no_half_a_batch(client: Client, table: Table, conn: AnyConnection) -> None:
    table.query("ALTER TABLE {schema}.job ADD CONSTRAINT odd CHECK (args ->> 'n' <> '77')")
    for given in ([Thing(n) for n in range(100)], [NewJob(Thing(n), unique=BY_N) for n in range(100)]):
        with pytest.raises(psycopg.errors.CheckViolation):
            client.enqueue_many(None, given)
    with pytest.raises(psycopg.errors.CheckViolation):
        client.enqueue_many(None, (Thing(n) for n in range(100)), returning=False)
    assert count(table) == 0
    with pytest.raises(InvalidArgs):
        client.enqueue_many(conn, [Thing(1)] * 30 + [Thing("x")])  # type: ignore[arg-type]
