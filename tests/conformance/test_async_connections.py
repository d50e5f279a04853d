"""Asynchronous connections are refused, and the error says what to do."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from pgjobs import Client, InvalidTransaction
from tests.samples import Thing

CURE = r"tx .*asynchronous connection.*asyncio\.to_thread"


@pytest.mark.finding("E7")
def test_an_asynchronous_connection_is_refused_with_the_cure(client: Client, database: str) -> None:
    """It was called nothing that pgjobs can enqueue on, without a word of why."""

    async def enqueue() -> None:
        async with await psycopg.AsyncConnection.connect(database) as conn:
            tx: Any
            for tx in (conn, conn.cursor()):
                with pytest.raises(InvalidTransaction, match=CURE):
                    client.enqueue(tx, Thing())

    asyncio.run(enqueue())
    assert client.count().total == 0


@pytest.mark.finding("E7")
def test_the_face_of_an_asynchronous_session_is_refused_with_the_cure(client: Client, database: str) -> None:
    """`await session.run_sync(...)` was told that it is connected by psycopg, and that pgjobs needs psycopg 3."""
    pytest.importorskip("greenlet")
    aio = pytest.importorskip("sqlalchemy.ext.asyncio")
    info = conninfo_to_dict(database)
    engine = aio.create_async_engine("postgresql+psycopg_async://", connect_args=info)

    async def enqueue() -> None:
        async with aio.AsyncSession(engine) as session:
            with pytest.raises(InvalidTransaction, match=CURE):
                await session.run_sync(lambda facade: client.enqueue(facade, Thing()))
            with pytest.raises(InvalidTransaction, match=CURE):
                client.enqueue(session, Thing())
        await engine.dispose()

    asyncio.run(enqueue())
    assert client.count().total == 0
