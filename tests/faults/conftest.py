"""A server of the fault tests' own, which they may crash, and a nursery of workers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pgjobs.embedded import EmbeddedPostgres
from tests.conftest import new_database
from tests.faults.ledger import Ledger
from tests.faults.workers import Nursery


@pytest.fixture(scope="session")
def fault_server() -> Iterator[EmbeddedPostgres]:
    """With fsync on: what it has committed must survive its crash."""
    with EmbeddedPostgres(tcp=True, settings={"max_connections": "300"}) as server:
        yield server


@pytest.fixture(scope="session")
def session_nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with Nursery(tmp_path_factory.mktemp("workers")) as nursery:
        yield nursery


@pytest.fixture
def nursery(session_nursery: Nursery) -> Iterator[Nursery]:
    """Starts workers, which end with the test."""
    yield session_nursery
    session_nursery.close_workers()


@pytest.fixture
def ledger(fault_server: EmbeddedPostgres) -> Iterator[Ledger]:
    """An empty queue in a database of this test's own."""
    with new_database(fault_server.dsn) as dsn:
        ledger = Ledger(dsn)
        yield ledger
        ledger.close()
