"""A client on a database of its own, and whether what a worker pool does there comes to its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from pgjobs import Client

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
