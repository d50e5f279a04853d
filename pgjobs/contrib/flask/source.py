"""A source of the connections of Flask-SQLAlchemy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from flask import Flask
from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session

from pgjobs.clean_text import one_line
from pgjobs.contrib.flask.job_context import is_shared, job_context, share_session
from pgjobs.contrib.sqlalchemy import SQLAlchemySource
from pgjobs.contrib.sqlalchemy.checkout import EngineCheckout
from pgjobs.db.checkout import Checkout
from pgjobs.errors import InvalidSetting, InvalidTransaction
from pgjobs.loggers import get_logger

if TYPE_CHECKING:
    from flask_sqlalchemy import SQLAlchemy

log = get_logger("pgjobs.contrib.flask")


class FlaskSource(SQLAlchemySource):
    """Connections of the default engine of an app. A handler runs in an app context, and its Session is made as
    `db.session` makes its own. Make it in an app context."""

    def __init__(self, app: Flask, db: SQLAlchemy) -> None:
        engine = db.engines.get(None)
        if engine is None:
            raise InvalidSetting(
                "the jobs of this app belong to the default database of Flask-SQLAlchemy: set SQLALCHEMY_DATABASE_URI"
            )
        if (engine.dialect.name, engine.dialect.driver) != ("postgresql", "psycopg"):
            raise InvalidSetting(
                "the jobs need a Postgres on psycopg 3: begin SQLALCHEMY_DATABASE_URI with postgresql+psycopg://, not "
                f"{engine.url.drivername}://, or set PGJOBS_DSN for jobs in another database"
            )
        super().__init__(engine, session=_JobSessions(db, engine))
        self._app = app
        self._db = db
        share_session(app, db)

    def _checkout(self, engine: Engine, lent: Connection | None = None) -> Checkout:
        return _AppCheckout(self._app, self._db, engine, self._session, lent)


class _AppCheckout(EngineCheckout):
    """A checkout whose handlers, flushes and listeners of Sessions run in an app context."""

    def __init__(
        self,
        app: Flask,
        db: SQLAlchemy,
        engine: Engine,
        session: Callable[..., Session],
        lent: Connection | None = None,
    ) -> None:
        self._app = app
        self._db = db
        super().__init__(engine, session, lent)

    @contextmanager
    def handler_tx(self) -> Iterator[Session]:
        with job_context(self._app, self._db) as use, super().handler_tx() as session:
            use(session)
            yield session

    def after_transaction(self, *, committed: bool) -> None:
        if self._session is None:  # the handler was not called
            super().after_transaction(committed=committed)
            return
        try:
            with self._app.app_context():
                super().after_transaction(committed=committed)
        except Exception as error:  # of a teardown function of the app
            log.warning("an app context could not be left after a job: %s", one_line(error))


class _JobSessions:
    """Makes the Sessions of jobs, as the application has configured `db.session`."""

    def __init__(self, db: SQLAlchemy, engine: Engine) -> None:
        self._factory: Any = db.session.session_factory
        self._class = _job_session(self._factory.class_, engine)

    def __call__(self, **settings: Any) -> Session:
        return self._class(**{**self._factory.kw, **settings})


def _job_session(base: Any, engine: Engine) -> type[Session]:
    """A subclass, so that listeners of `db.session` are called. Flask-SQLAlchemy's own Session ignores the connection
    that it is bound to, and connects to the engine of each table."""

    class JobSession(base):  # type: ignore[misc]
        of_pgjobs_job = True

        def get_bind(self, *args: Any, **options: Any) -> Any:
            found = super().get_bind(*args, **options)
            if found is engine or found is self.bind:
                return self.bind
            others = [repr(key) for key, bind in self._db.engines.items() if bind is found] or [repr(found)]
            raise InvalidTransaction(
                f"in a handler, db.session works in the transaction of the job, and {others[0]} is another bind: "
                "for that use `with Session(db.engines[key]) as other:`, with Session of sqlalchemy.orm"
            )

        def close(self) -> None:
            if not is_shared(self):
                super().close()

    return JobSession
