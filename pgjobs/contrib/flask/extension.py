"""The extension that an application makes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, overload

from flask import Blueprint, Flask, current_app

from pgjobs.client import Client
from pgjobs.contrib.flask import settings
from pgjobs.contrib.flask.app_jobs import AppJobs
from pgjobs.contrib.flask.commands import Commands
from pgjobs.db.borrow import Tx
from pgjobs.errors import InvalidSetting, shown_name
from pgjobs.job import Job
from pgjobs.options import NewJob, Options
from pgjobs.work_map import Handler, HandlerFunction, WorkMap, as_work_map
from pgjobs.worker_pool import WorkerPool

if TYPE_CHECKING:
    from flask_sqlalchemy import SQLAlchemy

    from pgjobs.dashboard import Auth

Args = TypeVar("Args")

_NAME = "pgjobs"  # of the extension in `app.extensions`
_APP_JOBS = "pgjobs.app"  # of what it keeps for the app


class Pgjobs:
    """Jobs of a Flask application.

        db = SQLAlchemy()
        jobs = Pgjobs()

        @jobs.handles(Welcome)
        def welcome(session: Session, job: Job[Welcome]) -> None:
            db.session.get_one(Account, job.args.account).greeted = True   # committed together with the job

        def create_app() -> Flask:
            app = Flask(__name__)
            db.init_app(app)
            jobs.init_app(app, db)
            return app

    - `app`: calls `init_app(app, db)`.
    - `db`: the application's Flask-SQLAlchemy, with its database on psycopg 3. Jobs are enqueued on `db.session`, and
      handlers get a Session, which in their app context is `db.session` too. Without it, and without PGJOBS_DSN, it is
      the one that the app has. With PGJOBS_DSN, a connection string or a psycopg_pool.ConnectionPool, handlers get a
      psycopg connection.
    - `work_map`: handlers, beside those that `handles` registers.

    The settings of Client and WorkerPool are read from the app's config: `schema` from PGJOBS_SCHEMA, `queues` from
    PGJOBS_QUEUES, and so on; the `middleware` of Client from PGJOBS_ENQUEUE_MIDDLEWARE. They count when the client or
    a worker pool is made, which is at the first use. Where a timedelta is wanted, a number is seconds.

    One Pgjobs may serve several apps. What needs to know the app (everything but `handles` and `init_app`) needs an app
    context. `flask pgjobs` runs the commands of pgjobs for the app. Raises InvalidSetting.
    """

    def __init__(
        self,
        app: Flask | None = None,
        db: SQLAlchemy | None = None,
        work_map: Mapping[Any, Handler | HandlerFunction] | None = None,
    ) -> None:
        self._db = db
        self._handlers = WorkMap() if work_map is None else as_work_map(work_map)
        #: A decorator that registers a handler for an args class or a kind; see WorkMap.handles. The handler runs in an
        #: app context.
        self.handles = self._handlers.handles
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask, db: SQLAlchemy | None = None) -> None:
        """Add jobs to this app. `db` is that of the Pgjobs by default. Raises InvalidSetting for an unknown PGJOBS_
        setting, and if the app has a Pgjobs already."""
        if not isinstance(app, Flask):
            raise InvalidSetting(f"app must be a Flask, not {shown_name(app)}")
        if _NAME in app.extensions:
            raise InvalidSetting(f"{app!r} has a Pgjobs already: call init_app once for each app")
        settings.set_defaults(app.config)
        app_jobs = AppJobs(app, self._handlers, self._db if db is None else db)
        app.extensions[_NAME] = self
        app.extensions[_APP_JOBS] = app_jobs
        app.cli.add_command(Commands(app_jobs))

    def _here(self) -> AppJobs:
        """What belongs to the current app."""
        found = current_app.extensions.get(_NAME)
        if found is not self:
            problem = "has no Pgjobs" if found is None else "has another Pgjobs"
            raise InvalidSetting(f"the app {current_app.name!r} {problem}: call init_app(app) of this one")
        app_jobs: AppJobs = current_app.extensions[_APP_JOBS]
        return app_jobs

    @property
    def client(self) -> Client:
        """The client of the current app, made at its first use."""
        return self._here().client

    @property
    def work_map(self) -> WorkMap:
        """The handlers, for the current app: they run in its app context. A copy, which follows what `handles`
        registers."""
        return self._here().work_map

    def worker_pool(self, **options: Any) -> WorkerPool:
        """A worker pool for the current app, with the settings of its config. Keyword arguments of WorkerPool win over
        them."""
        return self._here().worker_pool(options)

    def dashboard(
        self,
        *,
        auth: Auth,
        name: str = "pgjobs_dashboard",
        read_only: bool = False,
        show_args: bool = False,
        render_args: Callable[[Job[Any]], str | None] | None = None,
        allowed_hosts: Sequence[str] | None = None,
    ) -> Blueprint:
        """A Blueprint with the dashboard, for `app.register_blueprint(jobs.dashboard(auth=auth), url_prefix="/jobs")`.

        `auth` decides about each request, as that of `pgjobs.dashboard.Dashboard` does; it runs in the request context,
        after the functions that the app calls before each request. `allowed_hosts` is not needed where the app has
        TRUSTED_HOSTS. The other settings are those of Dashboard. It needs `pgjobs-psycopg[dashboard]`.
        """
        from pgjobs.contrib.flask.dashboard import dashboard_blueprint
        from pgjobs.dashboard import Dashboard
        from pgjobs.dashboard.access import checked_auth

        checked_auth(auth)

        def make() -> Dashboard:
            app_jobs = self._here()
            hosts = ["*"] if allowed_hosts is None and current_app.config.get("TRUSTED_HOSTS") else allowed_hosts
            return Dashboard(
                app_jobs.client,
                auth=auth,
                read_only=read_only,
                show_args=show_args,
                render_args=render_args,
                work_map=app_jobs.work_map,
                allowed_hosts=hosts,
            )

        return dashboard_blueprint(name, make)

    @overload
    def enqueue(
        self,
        args: NewJob[Args],
        *,
        tx: Tx | EllipsisType = ...,
        notify: bool = True,
    ) -> Job[Args]: ...

    @overload
    def enqueue(
        self,
        args: Args,
        *,
        tx: Tx | EllipsisType = ...,
        kind: str | None = None,
        notify: bool = True,
        **options: Unpack[Options],
    ) -> Job[Args]: ...

    def enqueue(
        self,
        args: Args | NewJob[Args],
        *,
        tx: Tx | EllipsisType = ...,
        kind: str | None = None,
        notify: bool = True,
        **options: Unpack[Options],
    ) -> Job[Args]:
        """Insert one job, as `Client.enqueue` does, in the current transaction.

        With Flask-SQLAlchemy that is the transaction of `db.session`: the job exists when, and only when,
        `db.session.commit()` is called. Without it, it is the job's in a handler; elsewhere the job gets a transaction
        of its own. `tx` names another transaction; None is one of its own. A kind without a handler raises UnknownKind,
        if the app has handlers and PGJOBS_UNKNOWN_KINDS is "error".
        """
        app_jobs = self._here()
        chosen = app_jobs.current_tx if isinstance(tx, EllipsisType) else tx
        client: Any = app_jobs.client  # its overloads are those of this method
        job: Job[Args] = client.enqueue(chosen, args, kind=kind, notify=notify, **options)
        return job

    @overload
    def enqueue_many(
        self,
        jobs: Iterable[object],
        *,
        tx: Tx | EllipsisType = ...,
        notify: bool = True,
        returning: Literal[True] = True,
        **options: Unpack[Options],
    ) -> list[Job[Any]]: ...

    @overload
    def enqueue_many(
        self,
        jobs: Iterable[object],
        *,
        tx: Tx | EllipsisType = ...,
        notify: bool = True,
        returning: Literal[False],
        **options: Unpack[Options],
    ) -> int: ...

    def enqueue_many(
        self,
        jobs: Iterable[object],
        *,
        tx: Tx | EllipsisType = ...,
        notify: bool = True,
        returning: bool = True,
        **options: Unpack[Options],
    ) -> list[Job[Any]] | int:
        """Insert many jobs, as `Client.enqueue_many` does, in the transaction that `enqueue` takes."""
        app_jobs = self._here()
        chosen = app_jobs.current_tx if isinstance(tx, EllipsisType) else tx
        client: Any = app_jobs.client
        inserted: list[Job[Any]] | int = client.enqueue_many(
            chosen, jobs, notify=notify, returning=returning, **options
        )
        return inserted
