"""Looking into the tables of a test, and doing the duties by hand."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql as composing

from pgjobs import Client, Job, JobState
from pgjobs.maintenance.duties import Maintenance
from tests.conftest import Connect
from tests.samples import Tx

Rows = Callable[..., list[tuple[Any, ...]]]
Stored = Callable[[Job[Any]], Job[Any]]


def facts(job: Job[Any]) -> tuple[Any, ...]:
    """All that a job says, however its JSON is written."""
    plain = replace(job, raw_args="", raw_errors="[]", raw_metadata="{}")
    return plain, json.loads(job.raw_args), job.errors, dict(job.metadata), job.output


@pytest.fixture
def sql(client: Client, connect: Connect) -> Rows:
    """Runs SQL on a connection that commits at once; in it `pgjobs.` stands for the schema of the test."""
    conn = connect(autocommit=True)

    def run(query: str, *values: object) -> list[tuple[Any, ...]]:
        cursor = conn.execute(query.replace("pgjobs.", f'"{client.schema}".'), values or None)
        return cursor.fetchall() if cursor.description else []

    return run


@pytest.fixture
def stored(client: Client) -> Stored:
    """The job as the table has it now."""

    def read(job: Job[Any]) -> Job[Any]:
        found = client.get(job.id)
        assert found is not None, f"job {job.id} is gone"
        return found

    return read


class Gate:
    """A handler that says when it was entered, and waits to be let out."""

    def __init__(self) -> None:
        self.entered, self.open = threading.Semaphore(0), threading.Event()

    def __call__(self, tx: Tx, job: Job[Any]) -> None:
        self.entered.release()
        assert self.open.wait(20)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


@pytest.fixture
def effects(client: Client, sql: Rows) -> str:
    """A table of the application's, for what handlers write."""
    sql("CREATE TABLE pgjobs.effect (note text)")
    return f'"{client.schema}".effect'


@pytest.fixture
def duties(client: Client) -> Maintenance:
    """The duties, to be done by hand, with the times that jobs are kept by default."""
    day = timedelta(hours=24)
    return Maintenance(
        client.schema, keep={JobState.COMPLETED: day, JobState.CANCELLED: day, JobState.DISCARDED: 7 * day}
    )


@pytest.fixture
def server(connect: Connect) -> psycopg.Connection[Any]:
    """A connection that commits at once, for the duties."""
    return connect(autocommit=True)


@pytest.fixture
def other_client(database: str, schema: str) -> Iterator[Client]:
    """A client on tables of a second schema of the same database."""
    with Client(database, schema=f"{schema}_2") as client:
        client.migrate()
        yield client
        with client.pool.connection() as conn:
            conn.execute(composing.SQL("DROP SCHEMA {} CASCADE").format(composing.Identifier(client.schema)))


@pytest.fixture
def skew_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[timedelta], None]:
    """Lets the clock of this process be wrong by so much, for all of pgjobs."""
    import sys
    import time

    def skew(by: timedelta) -> None:
        class AnyDatetime(type(datetime)):  # type: ignore[misc]
            def __instancecheck__(cls, instance: object) -> bool:
                return isinstance(instance, datetime)

        class Skewed(datetime, metaclass=AnyDatetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return (datetime.now(UTC) + by).astimezone(tz)

            @classmethod
            def utcnow(cls) -> Any:
                return datetime.now(UTC).replace(tzinfo=None) + by

        right = time.time
        monkeypatch.setattr(time, "time", lambda: right() + by.total_seconds())
        for name, module in list(sys.modules.items()):
            if name.startswith("pgjobs.") and getattr(module, "datetime", None) is datetime:
                monkeypatch.setattr(module, "datetime", Skewed)

    return skew
