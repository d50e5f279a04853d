"""A Flask application for tests, on a database of its own, and what its tables look like from outside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
from flask import Flask, current_app
from flask_sqlalchemy import SQLAlchemy
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import URL
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from pgjobs import Client, Job, WorkerPool
from pgjobs.contrib.flask import Pgjobs
from tests.acceptance.frameworks import LATER, TABLE


class Base(DeclarativeBase):
    pass


db = SQLAlchemy(model_class=Base)


class Effect(db.Model):  # type: ignore[name-defined,misc]
    __tablename__ = "effect"
    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str]
    app: Mapped[str | None] = mapped_column(default=lambda: current_app.name)  # made in the flush


@dataclass
class Note:
    """The args of a job."""

    text: str = "written"


def url(dsn: str) -> URL:
    """The URL of a database, for SQLAlchemy."""
    return URL.create("postgresql+psycopg", query={key: str(value) for key, value in conninfo_to_dict(dsn).items()})


def add(text: str) -> None:
    """Write as such applications do, and leave it pending."""
    db.session.add(Effect(note=text))


class Shop:
    """One app with its jobs."""

    def __init__(self, app: Flask, jobs: Pgjobs, look: psycopg.Connection[Any]) -> None:
        self.app = app
        self.jobs = jobs
        self._look = look

    def query(self, sql: LiteralString, *values: object) -> list[Any]:
        cur = self._look.execute(sql, values or None)
        return cur.fetchall() if cur.description else []

    @property
    def client(self) -> Client:
        with self.app.app_context():
            return self.jobs.client

    def pool(self, **options: Any) -> WorkerPool:
        with self.app.app_context():
            return self.jobs.worker_pool(**{"backoff": LATER, **options})

    @property
    def effects(self) -> list[str]:
        return [note for (note,) in self.query("SELECT note FROM effect ORDER BY id")]

    @property
    def stored(self) -> list[tuple[str, str]]:
        """The kind and the state of each job."""
        return self.query("SELECT kind, state::text FROM pgjobs.job ORDER BY id")

    @property
    def connections(self) -> int:
        """The connections to this database that were made since the test looks at it."""
        ((count,),) = self.query(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND backend_start > (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid())"
        )
        assert isinstance(count, int)
        return count

    def enqueue(self, args: object = None) -> Job[Any]:
        """Enqueue a job that is committed."""
        with self.app.app_context():
            return self.jobs.enqueue(Note() if args is None else args, tx=None)

    def job(self, job: Job[Any]) -> Job[Any]:
        found = self.client.get(job.id)
        assert found is not None
        return found

    def run(self, args: object = None, **options: Any) -> Job[Any]:
        """Enqueue a job, run it on this thread, and return it as it is then."""
        job = self.enqueue(args)
        assert self.pool(**options).work_one()
        return self.job(job)

    def close(self) -> None:
        self.client.close()
        with self.app.app_context():
            if "sqlalchemy" in self.app.extensions:
                for engine in db.engines.values():
                    engine.dispose()


def make_app(name: str = "shop", **config: Any) -> Flask:
    app = Flask(name)
    app.config.update(TESTING=True, **config)
    return app


@contextmanager
def tables(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """The tables of the application and of pgjobs, and a connection to look at them."""
    with Client(dsn) as client:
        client.migrate()
    with psycopg.connect(dsn, autocommit=True) as look:
        look.execute(TABLE)
        look.execute("ALTER TABLE effect ADD app text")
        yield look


@contextmanager
def shop(dsn: str, *, name: str = "shop", jobs: Pgjobs | None = None, **config: Any) -> Iterator[Shop]:
    """An app with Flask-SQLAlchemy."""
    app = make_app(name, SQLALCHEMY_DATABASE_URI=url(dsn), **config)
    db.init_app(app)
    jobs = jobs or Pgjobs()
    jobs.init_app(app, db)
    with tables(dsn) as look:
        made = Shop(app, jobs, look)
        try:
            yield made
        finally:
            made.close()


@contextmanager
def plain_shop(dsn: str, **config: Any) -> Iterator[Shop]:
    """An app without Flask-SQLAlchemy."""
    app = make_app(**{"PGJOBS_DSN": dsn, **config})
    jobs = Pgjobs(app)
    with tables(dsn) as look:
        made = Shop(app, jobs, look)
        try:
            yield made
        finally:
            made.close()
