"""The database of the tests: a given one, or a server of the tests' own."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgjobs import Client, schema_sql
from pgjobs.embedded import EmbeddedPostgres
from tests import decoys, modes

# the machine that runs the tests may be busy with others
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

Connect = Callable[..., psycopg.Connection[Any]]
_MEMORY = "/dev/shm"


modes.install()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The summary lists what the mode leaves out, each with its reason."""
    for item in items:
        for name, left_out in modes.LEFT_OUT.items():
            mark = item.get_closest_marker(name)
            if left_out and mark is not None:
                item.add_marker(pytest.mark.skip(reason=f"{name}: {mark.args[0]}"))


def pytest_collection_finish() -> None:
    """Let no garbage collection look at the thousands of tests again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def server_dsn() -> Iterator[str]:
    """A server to make databases on: PGJOBS_TEST_DATABASE_URL, else DATABASE_URL, else one started here."""
    given = os.environ.get("PGJOBS_TEST_DATABASE_URL") or os.environ.get("DATABASE_URL")
    if given:
        yield given
        return
    server = EmbeddedPostgres(fsync=False, settings={"max_connections": "300", "max_wal_size": "128MB"})
    with in_memory():
        server.start()
    try:
        yield server.dsn
    finally:
        server.stop()


@contextmanager
def in_memory() -> Iterator[None]:
    """Make temporary directories in memory, if there is room: most of what a test costs is tables made and dropped."""
    before = tempfile.tempdir
    if os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > 2 << 30:
        tempfile.tempdir = _MEMORY
    try:
        yield
    finally:
        tempfile.tempdir = before


@contextmanager
def new_database(server_dsn: str) -> Iterator[str]:
    """The dsn of a new database with a name of its own, dropped on the way out whoever is still connected."""
    name = f"pgjobs_test_{uuid.uuid4().hex[:12]}"
    dsn = make_conninfo(server_dsn, dbname=name)
    with psycopg.connect(server_dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        if modes.DECOYS:
            admin.execute(sql.SQL("ALTER DATABASE {} SET search_path = decoy, public").format(sql.Identifier(name)))
    if modes.DECOYS:
        with psycopg.connect(dsn, autocommit=True) as conn:
            decoys.make_decoys(conn, of_pgjobs_alone=True)
    try:
        yield dsn
    finally:
        with psycopg.connect(server_dsn, autocommit=True) as admin:
            admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="session")
def database(server_dsn: str) -> Iterator[str]:
    """The dsn of the one database this session's tests share."""
    with new_database(server_dsn) as dsn:
        yield dsn


@pytest.fixture(autouse=modes.DECOYS)
def no_decoy(request: pytest.FixtureRequest) -> Iterator[None]:
    """Nothing of pgjobs comes upon a decoy in this test."""
    names = {"database", "fresh_database"} & set(request.fixturenames)
    with ExitStack() as opened:
        dsns = [make_conninfo(request.getfixturevalue(name), options="-c search_path=pg_catalog") for name in names]
        conns = [psycopg.connect(dsn, autocommit=True) for dsn in dsns]
        before = [decoys.calls(opened.enter_context(conn)) for conn in conns]
        yield
        found = [text for conn, calls in zip(conns, before, strict=True) for text in decoys.found(conn, calls)]
    assert found == []


@pytest.fixture
def fresh_database(server_dsn: str) -> Iterator[str]:
    """The dsn of an empty database for this test alone."""
    with new_database(server_dsn) as dsn:
        yield dsn


@pytest.fixture
def connect(database: str) -> Iterator[Connect]:
    """Opens connections to `database`; takes psycopg.connect's keywords; closes them all after the test."""
    with ExitStack() as opened:

        def open_connection(**kwargs: Any) -> psycopg.Connection[Any]:
            connection: psycopg.Connection[Any] = psycopg.connect(database, **kwargs)
            opened.callback(connection.close)
            return connection

        yield open_connection


@pytest.fixture
def conn(connect: Connect) -> psycopg.Connection[Any]:
    """One connection to `database`, not in autocommit; what the test does not commit is gone after it."""
    return connect()


@pytest.fixture
def schema() -> str:
    """A name for this test's own tables: tests share a database, and no test sees another's jobs."""
    return f"test_{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def tables(database: str) -> Iterator[Tables]:
    """Makes the tables of a test, and drops them."""
    with ExitStack() as opened:
        yield Tables(database, opened)


class Tables:
    """Makes and drops tables on one connection for all tests: a new session reads the catalogs anew, which takes as
    long as the tables themselves."""

    def __init__(self, dsn: str, opened: ExitStack) -> None:
        self._dsn, self._opened = dsn, opened
        self._conn: psycopg.Connection[Any] | None = None

    def make(self, schema: str) -> None:
        """What `client.migrate()` makes: tests/db/test_migrate.py compares the two."""
        self._run(schema_sql(schema).encode())

    def drop(self, schema: str) -> None:
        """A process that the test has killed may still run its last statement on the server."""
        while True:
            with suppress(psycopg.errors.DeadlockDetected):
                self._run(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))
                return

    def _run(self, statements: bytes | sql.Composed) -> None:
        try:
            self._connection().execute(statements)
        except psycopg.OperationalError:
            if not self._connection().closed:
                raise
            self._conn = None  # a test has ended the sessions of the database
            self._connection().execute(statements)

    def _connection(self) -> psycopg.Connection[Any]:
        if self._conn is None:
            self._conn = psycopg.connect(self._dsn, autocommit=True, application_name="tables of the tests")
            self._opened.callback(self._conn.close)
        return self._conn


@pytest.fixture
def client(database: str, schema: str, tables: Tables) -> Iterator[Client]:
    """A client on migrated tables of this test's own."""
    with Client(database, schema=schema) as client:
        if modes.DECOYS:  # come with a migration
            client.migrate()
        else:
            tables.make(schema)
        yield client
        tables.drop(schema)
