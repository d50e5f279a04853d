"""What the extension keeps for one app: the client, and the handlers as they run in this app."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flask import Flask

from pgjobs.client import Client
from pgjobs.contrib.flask import settings
from pgjobs.contrib.flask.job_context import current_tx, guard_session, job_context, the_session
from pgjobs.errors import InvalidSetting, shown_name
from pgjobs.forking import PerProcess
from pgjobs.job import Job
from pgjobs.work_map import WorkMap
from pgjobs.worker_pool import WorkerPool

if TYPE_CHECKING:
    from flask_sqlalchemy import SQLAlchemy


class AppJobs:
    """The jobs of one app."""

    def __init__(self, app: Flask, handlers: WorkMap, db: SQLAlchemy | None) -> None:
        self.app = app
        self._handlers = handlers  # of the extension
        self._seen = -1  # its `changes` when it was copied
        self._work_map = WorkMap()
        self._given_db = None if db is None else _checked(db)
        self._client: Client | None = None  # a client may be used in a forked child
        self._lock: PerProcess[threading.Lock] = PerProcess(threading.Lock)
        theirs = app.extensions.get("sqlalchemy") if self._given_db is None else self._given_db
        if theirs is not None and _is_theirs(theirs):
            guard_session(theirs)

    @property
    def client(self) -> Client:
        work_map = self.work_map
        with self._lock.get():
            if self._client is None:
                self._client = self._make_client(work_map)
            return self._client

    def _make_client(self, work_map: WorkMap) -> Client:
        config, db = self.app.config, self.db
        source: Any = config[settings.DSN]
        if db is not None:
            from pgjobs.contrib.flask.source import FlaskSource

            source = FlaskSource(self.app, db)
        # other processes may handle the kinds that this app leaves to them
        knows_all = bool(work_map) and config.get(settings.UNKNOWN_KINDS, "error") == "error"
        return Client(source, work_map=work_map if knows_all else None, **settings.of_client(config))

    @property
    def db(self) -> SQLAlchemy | None:
        """The Flask-SQLAlchemy whose session is the current transaction; None without one."""
        dsn, theirs, given = self.app.config.get(settings.DSN), self.app.extensions.get("sqlalchemy"), self._given_db
        if dsn is not None:
            if given is not None:
                raise InvalidSetting(
                    f"{settings.DSN} and db both name a database: for jobs in that of db leave out {settings.DSN}, for "
                    "jobs in another one leave out db"
                )
            return None
        if given is not None and theirs is not given:
            raise InvalidSetting(f"the db of Pgjobs does not belong to {self.app!r}: call db.init_app(app)")
        if theirs is None:
            raise InvalidSetting(
                f"the jobs of {self.app!r} have no database: set {settings.DSN} to a connection string, or use "
                "Flask-SQLAlchemy and call db.init_app(app)"
            )
        return _checked(theirs)

    @property
    def current_tx(self) -> Any:
        """The transaction in which the current code works; None if there is none."""
        tx = current_tx(self.app)
        if tx is not None:
            return tx
        return None if self.db is None else self.db.session

    @property
    def work_map(self) -> WorkMap:
        """The handlers of the extension, which run in the app context of this app."""
        changes = self._handlers.changes
        if self._seen != changes:
            with self._lock.get():
                for kind in self._handlers.keys() - self._work_map.keys():
                    handler = self._handlers[kind]
                    middleware = (self._in_context, *handler.middleware)
                    self._work_map[kind] = replace(handler, middleware=middleware)
                self._seen = changes
        return self._work_map

    def worker_pool(self, options: Mapping[str, Any]) -> WorkerPool:
        return WorkerPool(self.client, self.work_map, **{**settings.of_pool(self.app.config), **options})

    def _in_context(self, tx: Any, job: Job[Any], run: Callable[[], Any]) -> Any:
        """The middleware that runs a handler in an app context. With Flask-SQLAlchemy the source has entered it
        already: it also lasts while the Session is flushed."""
        if tx is not None and current_tx(self.app) is tx:
            return run()
        tx = the_session(tx)
        with job_context(self.app, self.db) as use:
            use(tx)
            return run()


def _is_theirs(db: object) -> bool:
    theirs = sys.modules.get("flask_sqlalchemy")  # loaded, if `db` is an object of it
    return theirs is not None and isinstance(db, theirs.SQLAlchemy)


def _checked(db: Any) -> SQLAlchemy:
    if not _is_theirs(db):
        raise InvalidSetting(
            f"db must be the SQLAlchemy of flask_sqlalchemy, not {shown_name(db)}: without it, set {settings.DSN} and "
            "give no db"
        )
    checked: SQLAlchemy = db
    return checked
