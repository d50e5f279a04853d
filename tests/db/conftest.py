"""A client on a database of its own, and whether what a worker pool does there comes to its end."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgjobs import Client
from pgjobs.db import migration_plan, statements
from pgjobs.embedded import EmbeddedPostgres
from tests.conftest import new_database

Run = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def own_client(fresh_database: str) -> Iterator[Client]:
    """A client on the usual schema of a database of its own: publications and dumps are of all there is."""
    with Client(fresh_database) as client:
        client.migrate()
        yield client


@contextmanager
def running(dsn: str) -> Iterator[Run]:
    """Runs SQL on a connection that commits at once."""
    with psycopg.connect(dsn, autocommit=True) as conn:

        def run(query: str, *values: object) -> list[tuple[Any, ...]]:
            cursor = conn.execute(query.encode(), values or None)
            return cursor.fetchall() if cursor.description else []

        yield run


@pytest.fixture
def run(fresh_database: str) -> Iterator[Run]:
    with running(fresh_database) as run:
        yield run


SECOND = """
-- name: up
ALTER TABLE pgjobs.queue ADD COLUMN colour text;

-- name: down
ALTER TABLE pgjobs.queue DROP COLUMN colour;
"""
THIRD = """
-- name: up
CREATE TABLE pgjobs.shelf (name text PRIMARY KEY);

-- name: down
DROP TABLE pgjobs.shelf;
"""


@pytest.fixture
def three_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The code as it will be two migrations from now. Only for schemas that have a name of their own."""
    newest = max(migration_plan.versions())
    shutil.copytree(statements.ROOT, tmp_path / "sql")
    for number, text in enumerate([SECOND, THIRD], start=newest + 1):
        (tmp_path / "sql" / "migrations" / f"{number:04}_more.sql").write_text(text)
    monkeypatch.setattr(statements, "ROOT", tmp_path / "sql")
    migration_plan.versions.cache_clear()
    yield
    monkeypatch.undo()
    migration_plan.versions.cache_clear()


# --- for the doctor

PRODUCTION = {"wal_level": "logical", "max_prepared_transactions": "5", "max_connections": "50"}


@pytest.fixture(scope="session")
def own_server() -> Iterator[EmbeddedPostgres]:
    """A server as in production, whose settings a test may change."""
    with EmbeddedPostgres(tcp=True, settings=PRODUCTION) as own:
        yield own


@pytest.fixture
def on_server(own_server: EmbeddedPostgres) -> Iterator[str]:
    """The dsn of a new database there."""
    with new_database(own_server.dsn) as dsn:
        yield dsn


@pytest.fixture
def there(on_server: str) -> Iterator[Client]:
    with Client(on_server) as client:
        client.migrate()
        yield client
