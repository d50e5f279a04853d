"""Asynchronous transactions of every kind that `aenqueue` takes, for tests: each has the same few methods."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)

AsyncConn = psycopg.AsyncConnection[Any]

#: What stands for the `tx` on an asynchronous connection of psycopg.
OF_PSYCOPG: dict[str, Callable[[AsyncConn], Any]] = {
    "AsyncConnection": lambda conn: conn,
    "AsyncCursor": lambda conn: conn.cursor(),
    "AsyncClientCursor": psycopg.AsyncClientCursor,
}
#: The same on an engine of SQLAlchemy.
OF_SQLALCHEMY: dict[str, Callable[[AsyncEngine], Any]] = {
    "AsyncSession": AsyncSession,
    "async_scoped_session": lambda engine: async_scoped_session(async_sessionmaker(engine), lambda: 0),
    "AsyncConnection of SQLAlchemy": lambda engine: engine.connect(),
}
FORMS = [*OF_PSYCOPG, *OF_SQLALCHEMY]


@dataclass
class Transaction:
    """A transaction of the application's."""

    tx: Any
    conn: AsyncConn | None  # of psycopg, where the application has it
    execute: Callable[[str], Awaitable[object]]
    commit: Callable[[], Awaitable[None]]
    rollback: Callable[[], Awaitable[None]]


@asynccontextmanager
async def transaction(form: str, dsn: str) -> AsyncIterator[Transaction]:
    """A transaction of this form that has not begun. What it has not committed at the end is rolled back."""
    if form in OF_PSYCOPG:
        async with connection(dsn) as conn:
            tx = OF_PSYCOPG[form](conn)
            yield Transaction(tx, conn, lambda sql: conn.execute(sql.encode()), conn.commit, conn.rollback)
        return
    async with engine_of(dsn) as engine:
        tx = OF_SQLALCHEMY[form](engine)
        if form == "AsyncConnection of SQLAlchemy":
            await tx.start()
        try:
            yield Transaction(tx, None, lambda sql: tx.execute(text(sql)), tx.commit, tx.rollback)
        finally:
            await tx.close()


@asynccontextmanager
async def connection(dsn: str, **settings: Any) -> AsyncIterator[AsyncConn]:
    """A connection of psycopg, closed at the end without a commit."""
    conn: AsyncConn = await psycopg.AsyncConnection.connect(dsn, **settings)
    try:
        yield conn
    finally:
        await conn.close()


@asynccontextmanager
async def engine_of(dsn: str, **settings: Any) -> AsyncIterator[AsyncEngine]:
    where = {name: str(value) for name, value in conninfo_to_dict(dsn).items()}
    engine = create_async_engine(URL.create("postgresql+psycopg", query=where), **settings)
    try:
        yield engine
    finally:
        await engine.dispose()
