"""Asynchronous connections are refused by synchronous calls, and synchronous ones by asynchronous calls; the error says
what to do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus
from psycopg_pool import AsyncConnectionPool
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from pgjobs import Client, InvalidSetting, InvalidTransaction, JobFilter
from tests.acceptance.async_apps import FORMS, connection, engine_of, transaction
from tests.acceptance.frameworks import DjangoApp
from tests.samples import Thing

CURE = r"tx .*asynchronous connection.*await client\.aenqueue\(tx.*asyncio\.to_thread"
SYNC_CURE = r"tx .*is synchronous.*would block the event loop.*client\.enqueue\(tx"

#: Calls that take a synchronous `tx`.
CALLS: dict[str, Callable[[Client, Any], object]] = {
    "enqueue": lambda client, tx: client.enqueue(tx, Thing()),
    "enqueue unique": lambda client, tx: client.enqueue(tx, Thing(), pending=True),
    "enqueue_many": lambda client, tx: client.enqueue_many(tx, [Thing()]),
    "enqueue_many counted": lambda client, tx: client.enqueue_many(tx, [Thing()], returning=False),
    "get": lambda client, tx: client.get(1, tx),
    "list_jobs": lambda client, tx: client.list_jobs(JobFilter.all(), tx),
    "count": lambda client, tx: client.count(None, tx),
    "cancel": lambda client, tx: client.cancel(1, tx),
    "retry": lambda client, tx: client.retry(1, tx),
    "release": lambda client, tx: client.release(1, tx),
    "delete": lambda client, tx: client.delete(1, tx),
    "update": lambda client, tx: client.update(1, tx, priority=1),
    "cancel_many": lambda client, tx: client.cancel_many(JobFilter(ids=[1]), tx),
    "workers": lambda client, tx: client.workers(tx),
    "migrate": lambda client, tx: client.migrate(tx),
    "pause": lambda client, tx: client.queues.pause("default", tx),
}
ASYNC_CALLS: dict[str, Callable[[Client, Any], Awaitable[object]]] = {
    "aenqueue": lambda client, tx: client.aenqueue(tx, Thing()),
    "aenqueue_many": lambda client, tx: client.aenqueue_many(tx, [Thing()]),
    "aenqueue_many counted": lambda client, tx: client.aenqueue_many(tx, [Thing()], returning=False),
    "aget": lambda client, tx: client.aget(1, tx),
}


@pytest.mark.finding("E7")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_asynchronous_connection_is_refused_with_the_cure(
    client: Client, database: str, call: Callable[[Client, Any], object]
) -> None:
    """It was called nothing that pgjobs can enqueue on, without a word of why."""

    async def main() -> None:
        for form in FORMS:
            async with transaction(form, database) as own:
                with pytest.raises(InvalidTransaction, match=CURE):
                    call(client, own.tx)
        async with connection(database) as conn, conn.transaction() as tx:
            with pytest.raises(InvalidTransaction, match=CURE):
                call(client, tx)
        pool: Any = AsyncConnectionPool(database, open=False)
        with pytest.raises(InvalidTransaction, match=CURE):
            call(client, pool)

    asyncio.run(main())
    assert client.count().total == 0


@pytest.mark.finding("E7")
def test_the_face_of_an_asynchronous_session_is_refused_with_the_cure(client: Client, database: str) -> None:
    """`await session.run_sync(...)` was told that it is connected by psycopg, and that pgjobs needs psycopg 3."""

    async def main() -> None:
        async with engine_of(database) as engine, AsyncSession(engine) as session:
            with pytest.raises(InvalidTransaction, match=CURE):
                await session.run_sync(lambda facade: client.enqueue(facade, Thing()))
            with pytest.raises(InvalidTransaction, match=SYNC_CURE):
                await client.aenqueue(session.sync_session, Thing())  # type: ignore[call-overload]

    asyncio.run(main())
    assert client.count().total == 0


@pytest.mark.parametrize("call", ASYNC_CALLS.values(), ids=ASYNC_CALLS)
def test_a_synchronous_connection_is_refused_with_the_cure(
    client: Client, fresh_database: str, database: str, call: Callable[[Client, Any], Awaitable[object]]
) -> None:
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(database))
    app = DjangoApp(fresh_database, "pgjobs")
    with psycopg.connect(database) as conn, Session(engine) as session, engine.connect() as connected:
        with conn.transaction() as block:
            given = [conn, conn.cursor(), block, session, scoped_session(sessionmaker(engine)), connected, "default"]
            for tx in given:
                with pytest.raises(InvalidTransaction, match=SYNC_CURE):
                    asyncio.run(awaited(call(client, tx)))
        assert not session.in_transaction(), "nothing has begun on it"
        assert not connected.in_transaction()
        assert conn.info.transaction_status == TransactionStatus.IDLE
    app.close()
    engine.dispose()
    assert client.count().total == 0


@pytest.mark.parametrize("call", ASYNC_CALLS.values(), ids=ASYNC_CALLS)
@pytest.mark.parametrize("tx", [5, object, dict], ids=["5", "object", "dict"])
def test_what_is_no_transaction_is_refused(
    client: Client, tx: object, call: Callable[[Client, Any], Awaitable[object]]
) -> None:
    with pytest.raises(InvalidTransaction, match="AsyncConnection"):
        asyncio.run(awaited(call(client, tx)))


async def awaited(call: Awaitable[object]) -> object:
    return await call


def test_asyncpg_is_refused_with_what_to_use_instead(client: Client) -> None:
    tx: Any = type("Connection", (), {"__module__": "asyncpg.connection"})()
    refused = pytest.raises(InvalidTransaction, match=r"connected by asyncpg.*postgresql\+psycopg.*AsyncConnection")
    for call in CALLS.values():
        with refused:
            call(client, tx)
    for async_call in ASYNC_CALLS.values():
        with refused:
            asyncio.run(awaited(async_call(client, tx)))


def test_a_client_takes_no_asynchronous_pool_and_says_what_to_give(database: str) -> None:
    async def main() -> None:
        pool: Any = AsyncConnectionPool(database, open=False)
        with pytest.raises(
            InvalidSetting, match=r"pool must not be an AsyncConnectionPool.*connection string.*aenqueue"
        ):
            Client(pool)

    asyncio.run(main())
