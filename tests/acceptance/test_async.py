"""Enqueue from asynchronous code, on every kind of asynchronous transaction: the job goes the way of the caller's
writes, and the connection stays as it was."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row
from sqlalchemy.ext.asyncio import AsyncSession

from pgjobs import Client, JobState, NewJob, Unique
from tests.acceptance.async_apps import FORMS, AsyncConn, connection, engine_of, transaction
from tests.acceptance.inserts import Query, query
from tests.samples import Thing

__all__ = ["query"]

each_form = pytest.mark.parametrize("form", FORMS)
BY_N = Unique(by_args=["n"])


@pytest.fixture
def effect(client: Client, query: Query) -> str:
    """A table of the application's."""
    query("CREATE TABLE {s}.effect (note text)")
    return f'"{client.schema}".effect'


@pytest.fixture
def count(query: Query) -> Callable[[], int]:
    """The committed jobs."""
    return lambda: int(query("SELECT count(*) FROM {s}.job")[0][0])


# --- the caller's transaction


@each_form
@pytest.mark.parametrize("first", [True, False], ids=["first statement", "later statement"])
def test_a_job_exists_when_and_only_when_the_caller_commits(
    client: Client, database: str, query: Query, effect: str, form: str, *, first: bool
) -> None:
    written = f"INSERT INTO {effect} VALUES ('of the caller')"

    async def main() -> None:
        async with transaction(form, database) as own:
            for number, end in enumerate((own.rollback, own.commit)):
                if not first:
                    await own.execute(written)
                job = await client.aenqueue(own.tx, Thing(7), priority=3)
                assert client.get(job.id) is None, "it is not committed"
                if first:
                    await own.execute(written)
                await end()
                assert query("SELECT count(*) FROM {s}.job") == [(number,)]
                assert query("SELECT count(*) FROM {s}.effect") == [(number,)]
            assert client.get(job.id) == job
            assert (job.args, job.priority, job.state) == (Thing(7), 3, JobState.AVAILABLE)

    asyncio.run(main())


@each_form
def test_what_is_not_committed_at_the_end_is_gone(
    client: Client, database: str, count: Callable[[], int], form: str
) -> None:
    async def main() -> None:
        async with transaction(form, database) as own:
            await client.aenqueue(own.tx, Thing())
            await client.aenqueue_many(own.tx, [Thing(), Thing()])

    asyncio.run(main())
    assert count() == 0


def test_a_transaction_block_takes_its_job_along(client: Client, database: str, query: Query) -> None:
    async def main() -> None:
        async with connection(database) as conn:
            async with conn.transaction() as tx:
                await client.aenqueue(tx, Thing(1))
                async with conn.transaction(force_rollback=True) as inner:
                    await client.aenqueue(inner, Thing(2))
            async with conn.transaction(force_rollback=True) as tx:
                await client.aenqueue(tx, Thing(3))

    asyncio.run(main())
    assert query("SELECT args ->> 'n' FROM {s}.job") == [("1",)]


@pytest.mark.parametrize("form", ["AsyncSession", "async_scoped_session", "AsyncConnection of SQLAlchemy"])
def test_a_savepoint_of_sqlalchemy_takes_its_job_along(client: Client, database: str, query: Query, form: str) -> None:
    async def main() -> None:
        async with transaction(form, database) as own:
            await client.aenqueue(own.tx, Thing(1))
            savepoint = await own.tx.begin_nested()
            await client.aenqueue(own.tx, Thing(2))
            await savepoint.rollback()
            async with own.tx.begin_nested():
                await client.aenqueue(own.tx, Thing(3))
            await own.commit()
            await client.aenqueue(own.tx, Thing(4))
            await own.rollback()
            await client.aenqueue(own.tx, Thing(5))
            await own.commit()

    asyncio.run(main())
    assert query("SELECT args ->> 'n' FROM {s}.job ORDER BY id") == [("1",), ("3",), ("5",)]


def test_a_session_that_commits_at_its_end_commits_the_job(
    client: Client, database: str, count: Callable[[], int]
) -> None:
    async def main() -> None:
        async with engine_of(database) as engine:
            async with AsyncSession(engine) as session, session.begin():
                await client.aenqueue(session, Thing())
            async with engine.begin() as conn:
                await client.aenqueue(conn, Thing())

    asyncio.run(main())
    assert count() == 2


@pytest.mark.skipif(not psycopg.Pipeline.is_supported(), reason="libpq is older than version 14")
def test_the_transaction_begins_in_the_message_of_the_insert(client: Client, database: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with connection(database) as conn:
            with (tmp_path / "trace").open("w+b") as trace:
                conn.pgconn.trace(trace.fileno())
                await client.aenqueue(conn, Thing())
                conn.pgconn.untrace()
                trace.seek(0)
                sent = [line.split(b"\t")[3] for line in trace.read().splitlines() if line.split(b"\t")[1:2] == [b"F"]]
            assert sent == [*[b"Parse", b"Bind", b"Describe", b"Execute"] * 2, b"Sync"]
            await conn.commit()

    asyncio.run(main())


@pytest.mark.parametrize("threshold", [0, 2, None])
def test_the_connection_is_left_as_it_was(client: Client, database: str, threshold: int | None) -> None:
    names = ("row_factory", "cursor_factory", "autocommit", "isolation_level", "prepare_threshold")

    async def main() -> None:
        async with connection(
            database, row_factory=dict_row, cursor_factory=psycopg.AsyncRawCursor, prepare_threshold=threshold
        ) as conn:
            await conn.set_isolation_level(IsolationLevel.SERIALIZABLE)
            before = {name: getattr(conn, name) for name in names}
            for number in range(4):
                await client.aenqueue(conn, Thing(number))
                assert conn.info.transaction_status == TransactionStatus.INTRANS
                await conn.execute("SET LOCAL statement_timeout = '7s'")
                await conn.execute("SET LOCAL search_path = pg_catalog")
                await client.aenqueue_many(conn, [Thing(), Thing()])
                await client.aenqueue(conn, Thing(number), unique=BY_N)
                assert {name: getattr(conn, name) for name in names} == before
                assert await shown(conn, "statement_timeout") == "7s"
                assert await shown(conn, "search_path") == "pg_catalog"
                assert await shown(conn, "transaction_isolation") == "serializable"
                await conn.commit()

    asyncio.run(main())
    assert client.count().total == 4 * 4


async def shown(conn: AsyncConn, setting: str) -> object:
    row = await (await conn.execute(f"SHOW {setting}".encode())).fetchone()
    assert row is not None
    return row[setting]


def test_a_connection_in_autocommit_mode_commits_at_once(
    client: Client, database: str, count: Callable[[], int]
) -> None:
    async def main() -> None:
        async with connection(database, autocommit=True) as conn:
            await client.aenqueue(conn, Thing())
            assert conn.info.transaction_status == TransactionStatus.IDLE
            assert count() == 1
            async with conn.transaction(force_rollback=True):
                await client.aenqueue(conn, Thing())

    asyncio.run(main())
    assert count() == 1


@pytest.mark.skipif(not psycopg.Pipeline.is_supported(), reason="libpq is older than version 14")
def test_in_a_pipeline_of_the_application(client: Client, database: str, count: Callable[[], int]) -> None:
    async def main() -> None:
        async with connection(database) as conn:
            async with conn.pipeline():
                await client.aenqueue(conn, Thing())
                jobs = await client.aenqueue_many(conn, [Thing(n) for n in range(25)])
                assert [job.args.n for job in jobs] == list(range(25))
                assert await client.aenqueue_many(conn, [Thing()] * 25, returning=False) == 25
            await conn.commit()

    asyncio.run(main())
    assert count() == 51


def test_an_error_aborts_the_transaction_as_that_of_any_statement(
    client: Client, database: str, query: Query, count: Callable[[], int]
) -> None:
    query("ALTER TABLE {s}.job ADD CHECK (priority <> 77)")

    async def main() -> None:
        async with connection(database) as conn:
            each: list[dict[str, Any]] = [{}, {"unique": BY_N}]
            for options in each:
                with pytest.raises(psycopg.errors.CheckViolation):
                    await client.aenqueue(conn, Thing(), priority=77, **options)
                assert conn.info.transaction_status == TransactionStatus.INERROR
                await conn.rollback()
            await client.aenqueue(conn, Thing())
            await conn.commit()

    asyncio.run(main())
    assert count() == 1


def test_a_connection_that_is_lost_is_an_error_and_stays_closed(
    client: Client, database: str, query: Query, count: Callable[[], int]
) -> None:
    async def main() -> None:
        each: list[dict[str, Any]] = [{}, {"tags": ["red-one"]}]
        for options in each:
            async with connection(database) as conn:
                query("SELECT pg_terminate_backend(%s, 10000)", conn.info.backend_pid)
                with pytest.raises(psycopg.OperationalError):
                    await client.aenqueue(conn, NewJob(Thing(), **options))
                assert conn.closed
                with pytest.raises(psycopg.OperationalError, match=r"closed|lost"):
                    await client.aenqueue(conn, Thing())

    asyncio.run(main())
    assert count() == 0
