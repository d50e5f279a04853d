"""The sources of connections that a client can have, and how a handler inserts one row with what each gives it as `tx`.

In the public names of pgjobs alone, as workload.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import ConnectionPool

from pgjobs import Client

Source = Literal["own pool", "user's pool", "SQLAlchemy", "Django"]
Write = Callable[[Any, int], None]  # inserts the id of a job through a handler's `tx`

_SPARE = 2  # connections that a pool of the user's needs beside those of the worker threads


def write_with_psycopg(schema: str) -> Write:
    # as text, which is what handlers have: to compose it anew for each job takes psycopg ten microseconds
    insert = sql.SQL("INSERT INTO {} (job) VALUES (%s)").format(sql.Identifier(schema, "effect")).as_string(None)

    def write(tx: Any, job: int) -> None:
        tx.execute(insert, [job])

    return write


@contextmanager
def _own_pool(dsn: str, schema: str, threads: int) -> Iterator[tuple[Client, Write]]:
    with Client(dsn, schema=schema) as client:
        yield client, write_with_psycopg(schema)


@contextmanager
def _users_pool(dsn: str, schema: str, threads: int) -> Iterator[tuple[Client, Write]]:
    """A pool with psycopg's defaults: it prepares what is repeated."""
    with ConnectionPool(dsn, min_size=threads, max_size=threads + _SPARE, open=True) as pool:
        pool.wait()
        with Client(pool, schema=schema) as client:
            yield client, write_with_psycopg(schema)


@contextmanager
def _sqlalchemy(dsn: str, schema: str, threads: int) -> Iterator[tuple[Client, Write]]:
    from sqlalchemy import URL, BigInteger, create_engine
    from sqlalchemy.orm import DeclarativeBase, mapped_column

    from pgjobs.contrib.sqlalchemy import SQLAlchemySource

    class Base(DeclarativeBase):
        pass

    class Effect(Base):
        __tablename__ = "effect"
        __table_args__ = {"schema": schema}  # noqa: RUF012 (SQLAlchemy wants a dict here)
        job = mapped_column(BigInteger, primary_key=True, autoincrement=False)

    def write(tx: Any, job: int) -> None:
        tx.add(Effect(job=job))

    where = {name: str(value) for name, value in conninfo_to_dict(dsn).items()}
    engine = create_engine(URL.create("postgresql+psycopg", query=where), pool_size=threads + _SPARE)
    with Client(SQLAlchemySource(engine), schema=schema) as client:
        yield client, write
    engine.dispose()


@contextmanager
def _django(dsn: str, schema: str, threads: int) -> Iterator[tuple[Client, Write]]:
    import django
    from django.conf import settings
    from django.db import models

    from pgjobs.contrib.django import DjangoSource

    options = conninfo_to_dict(dsn)
    database = {"ENGINE": "django.db.backends.postgresql", "NAME": options.pop("dbname"), "OPTIONS": options}
    settings.configure(USE_TZ=True, LOGGING_CONFIG=None, DATABASES={"default": database})
    django.setup()

    class Effect(models.Model):  # type: ignore[misc]  # Django has no types
        job = models.BigIntegerField(primary_key=True)

        class Meta:
            app_label = "benchmarks"
            db_table = f'"{schema}"."effect"'  # Django leaves a name alone that is quoted

    def write(tx: Any, job: int) -> None:
        Effect.objects.create(job=job)

    with Client(DjangoSource(), schema=schema) as client:
        yield client, write


_SOURCES: dict[Source, Callable[[str, str, int], AbstractContextManager[tuple[Client, Write]]]] = {
    "own pool": _own_pool,
    "user's pool": _users_pool,
    "SQLAlchemy": _sqlalchemy,
    "Django": _django,
}


def connected(source: Source, dsn: str, schema: str, threads: int) -> AbstractContextManager[tuple[Client, Write]]:
    """A client that so many worker threads can use, and what its handlers insert a row with.

    Django can be configured once in a process.
    """
    return _SOURCES[source](dsn, schema, threads)
