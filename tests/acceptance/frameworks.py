"""The three sources of connections as one application each, for tests and for the processes that they start.

All write to the table `effect`; a test that runs over all of them says `app.write(tx, note)` and not how.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any, LiteralString, Protocol

import django
import psycopg
import sqlalchemy
from django.conf import settings
from django.db import connections, models, transaction
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import ConnectionPool
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from pgjobs import Client, Job, WorkerPool, WorkMap, constant
from pgjobs.contrib.django import DjangoSource
from pgjobs.contrib.sqlalchemy import SQLAlchemySource
from pgjobs.work_map import HandlerFunction
from tests import inside

LATER = constant(timedelta(hours=1))
TABLE = "CREATE TABLE effect (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text NOT NULL UNIQUE)"


class App(Protocol):
    """An application with a client."""

    client: Client

    def transaction(self) -> AbstractContextManager[Any]:
        """A transaction of the application's own."""

    def write(self, tx: Any, note: str) -> None:
        """Write as such applications do."""

    def run(self, tx: Any, sql: str) -> Any:
        """Run a statement; the first value of its first row, if it has rows."""

    def close(self) -> None: ...


class PsycopgApp:
    def __init__(self, dsn: str, schema: str) -> None:
        self.pool = ConnectionPool(dsn, min_size=0, max_size=8, open=True)
        self.client = Client(self.pool, schema=schema)

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        with self.pool.connection() as conn:
            yield conn

    def write(self, tx: Any, note: str) -> None:
        tx.execute("INSERT INTO effect (note) VALUES (%s)", [note])

    def run(self, tx: Any, sql: str) -> Any:
        cur = tx.execute(sql)
        return cur.fetchone()[0] if cur.description else None

    def close(self) -> None:
        self.client.close()
        self.pool.close()


class Base(DeclarativeBase):
    pass


class Effect(Base):
    """SQLAlchemy's."""

    __tablename__ = "effect"
    id: Mapped[int] = mapped_column(sqlalchemy.BigInteger, sqlalchemy.Identity(always=True), primary_key=True)
    note: Mapped[str]


class SQLAlchemyApp:
    def __init__(self, dsn: str, schema: str, **settings: Any) -> None:
        where = {name: str(value) for name, value in conninfo_to_dict(dsn).items()}
        url = sqlalchemy.URL.create("postgresql+psycopg", query=where)
        self.engine = sqlalchemy.create_engine(url, **settings)
        self.client = Client(SQLAlchemySource(self.engine), schema=schema)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        with Session(self.engine) as session, session.begin():
            yield session

    def write(self, tx: Any, note: str) -> None:
        tx.add(Effect(note=note))  # and leaves it pending

    def run(self, tx: Any, sql: str) -> Any:
        result = tx.execute(sqlalchemy.text(sql))
        return result.scalar() if result.returns_rows else None

    def close(self) -> None:
        self.client.close()
        self.engine.dispose()


if not settings.configured:
    settings.configure(
        USE_TZ=True, LOGGING_CONFIG=None, DATABASES={"default": {"ENGINE": "django.db.backends.postgresql"}}
    )
    django.setup()


class DjangoEffect(models.Model):  # type: ignore[misc]  # Django has no types
    id = models.BigAutoField(primary_key=True)
    note = models.TextField(unique=True)

    class Meta:
        app_label = "tests"
        db_table = "effect"


class DjangoApp:
    def __init__(self, dsn: str, schema: str, **settings: Any) -> None:
        connections["default"].close()
        del connections["default"]
        where = connections.settings["default"]
        where.update(OPTIONS=conninfo_to_dict(dsn), CONN_MAX_AGE=0, CONN_HEALTH_CHECKS=False, AUTOCOMMIT=True)
        where["NAME"] = where["OPTIONS"].pop("dbname")
        where["OPTIONS"].update(settings.pop("OPTIONS", {}))
        where.update(settings)
        self.client = Client(DjangoSource(), schema=schema)

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        with transaction.atomic():
            yield connections["default"]

    def write(self, tx: Any, note: str) -> None:
        DjangoEffect.objects.create(note=note)

    def run(self, tx: Any, sql: str) -> Any:
        with connections["default"].cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchone()[0] if cursor.description else None

    def close(self) -> None:
        self.client.close()
        wrapper = connections["default"]
        wrapper.close()
        if wrapper.pool is not None:
            wrapper.close_pool()


APPS: dict[str, type[PsycopgApp | SQLAlchemyApp | DjangoApp]] = {
    "psycopg": PsycopgApp,
    "sqlalchemy": SQLAlchemyApp,
    "django": DjangoApp,
}


def backend(app: App, tx: Any) -> int:
    pid = app.run(tx, "SELECT pg_backend_pid()")
    assert isinstance(pid, int)
    return pid


def raw(tx: Any) -> psycopg.Connection[Any]:
    """The driver's connection of a `tx`."""
    if isinstance(tx, Session):
        tx = tx.connection().connection.driver_connection
    elif not isinstance(tx, psycopg.Connection):
        tx = tx.connection
    assert isinstance(tx, psycopg.Connection)
    return tx


class Trial:
    """An application on a database of its own, and what its table and its jobs look like from outside."""

    def __init__(self, app: App, dsn: str, look: psycopg.Connection[Any]) -> None:
        self.app = app
        self.client = app.client
        self.dsn = dsn
        self._look = look

    def query(self, sql: LiteralString, *values: object) -> list[Any]:
        cur = self._look.execute(sql, values or None)
        return cur.fetchall() if cur.description else []

    @property
    def effects(self) -> list[str]:
        return [note for (note,) in self.query("SELECT note FROM effect ORDER BY id")]

    @property
    def jobs(self) -> list[str]:
        """The kinds of all jobs."""
        return [kind for (kind,) in self.query("SELECT kind FROM pgjobs.job ORDER BY id")]

    def enqueue(self, kind: str = "test", **options: Any) -> Job[Any]:
        args: dict[str, Any] = {}
        return self.client.enqueue(None, args, kind=kind, **options)

    def job(self, job: Job[Any]) -> Job[Any]:
        found = self.client.get(job.id)
        assert found is not None
        return found

    def run(self, *handlers: HandlerFunction, **settings: Any) -> list[Job[Any]]:
        """Run one job with each handler, all on one thread and, where nothing is wrong, one connection."""
        jobs = []
        work_map = WorkMap()
        pool = WorkerPool(self.client, work_map, **{"backoff": LATER, **settings})
        with inside.on_one_connection(pool) as work_one:
            for number, handler in enumerate(handlers):
                work_map[f"test-{number}"] = handler
                jobs.append(self.enqueue(f"test-{number}"))
                assert work_one()
        return [self.job(job) for job in jobs]


@contextmanager
def trial(app: App, dsn: str) -> Iterator[Trial]:
    """Make the tables and give the trial; close the application at the end."""
    with psycopg.connect(dsn, autocommit=True) as look:
        look.execute(TABLE)
        try:
            app.client.migrate()
            yield Trial(app, dsn, look)
        finally:
            app.close()
