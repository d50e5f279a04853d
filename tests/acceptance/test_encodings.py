"""A database or a connection that does not say which characters its bytes stand for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg_pool import ConnectionPool

from pgjobs import Client, InvalidTransaction, JobFilter, MigrationError, WorkerPool
from tests.samples import Thing, nothing


@pytest.fixture
def unreadable(client: Client, database: str) -> Iterator[Client]:
    """A client whose connections have the client_encoding SQL_ASCII."""
    with ConnectionPool(database, min_size=1, kwargs={"client_encoding": "SQL_ASCII"}, open=True) as connections:
        yield Client(connections, schema=client.schema)


CALLS: dict[str, Callable[[Client, int], Any]] = {
    "enqueue": lambda client, _: client.enqueue(None, Thing(1)),
    "get": lambda client, id: client.get(id),
    "list_jobs": lambda client, _: client.list_jobs(),
    "cancel": lambda client, id: client.cancel(id),
    "cancel_many": lambda client, _: client.cancel_many(JobFilter(kinds=["thing"])),
    "pause": lambda client, _: client.queues.pause("default"),
    "queues": lambda client, _: client.queues.list(),
    "stats": lambda client, _: client.stats(),
    "schedules": lambda client, _: client.schedules.list(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_connection_without_an_encoding_is_refused_for_reading_too(
    client: Client, unreadable: Client, call: Callable[[Client, int], Any]
) -> None:
    job = client.enqueue(None, Thing(1))
    with pytest.raises(InvalidTransaction, match=r"client_encoding is SQL_ASCII.*connect with UTF8"):
        call(unreadable, job.id)
    assert client.get(job.id) == job


def test_the_tables_are_recognised_over_a_connection_without_an_encoding(unreadable: Client) -> None:
    """It said that an unreleased version had made them, and to drop them."""
    assert unreadable.migrate() == []
    with pytest.raises(MigrationError, match="needs UTF8, but client_encoding is SQL_ASCII"):
        WorkerPool(unreadable, {Thing: nothing}).start()


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_no_tables_are_made_in_a_database_that_workers_would_refuse(
    server_dsn: str, schema: str, encoding: str
) -> None:
    name = sql.Identifier(f"{schema}_{encoding}")
    made = sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING {} LC_COLLATE 'C' LC_CTYPE 'C'")
    with psycopg.connect(server_dsn, autocommit=True) as admin:
        admin.execute(made.format(name, encoding))
    try:
        there = make_conninfo(server_dsn, dbname=f"{schema}_{encoding}")
        with Client(there) as client:
            for _ in range(2):
                with pytest.raises(MigrationError, match=f"needs UTF8, but server_encoding is {encoding}"):
                    client.migrate()
        with psycopg.connect(there) as conn:
            assert conn.execute("SELECT to_regnamespace('pgjobs')").fetchone() == (None,)
    finally:
        with psycopg.connect(server_dsn, autocommit=True) as admin:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
