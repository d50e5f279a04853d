"""The source of connections that an application gives to its Client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session, scoped_session

from pgjobs.contrib.sqlalchemy.checkout import EngineCheckout
from pgjobs.contrib.sqlalchemy.connections import driver_errors, psycopg_connection
from pgjobs.db.borrow import Borrowable, borrow
from pgjobs.db.checkout import Checkout, returning
from pgjobs.db.cursors import AnyConnection
from pgjobs.db.inherited import engine_here, remember_engine
from pgjobs.db.source import PoolSource, own_pool
from pgjobs.errors import InvalidSetting, InvalidTransaction, PoolTooSmall, shown, shown_name


class SQLAlchemySource(PoolSource):
    """Connections of an engine. A handler gets a Session on the connection that holds its job's row lock.

    `session` makes a Session for each job: the application's `sessionmaker`, or a subclass of Session. In the handler,
    `commit()`, `rollback()`, `close()` and `begin()` act on a savepoint of the job's transaction; the result becomes
    permanent with the job's commit. The engine needs a connection for each worker thread (`pool_size` and
    `max_overflow`). Maintenance, LISTEN and `enqueue(None, ...)` use other connections, made as the engine makes them.
    """

    batches = False  # the end of a Session's transaction must be the end of one job's transaction

    def __init__(self, engine: Engine, *, session: Callable[..., Session] = Session) -> None:
        _check_engine(engine)
        _check_session(session)
        super().__init__(partial(own_pool, self._connect))
        self.engine = engine
        remember_engine(engine)
        self._session = session

    @contextmanager
    def checkout(self) -> Iterator[Checkout]:
        with returning(self._checkout(engine_here(self.engine))) as checkout:
            yield checkout

    def _checkout(self, engine: Engine, lent: Connection | None = None) -> Checkout:
        return EngineCheckout(engine, self._session, lent)

    @contextmanager
    def checkout_within(self, tx: Borrowable) -> Iterator[Checkout]:
        """In the transaction of a Session or Connection. A Session is flushed first, as it would be before a job that
        it has enqueued can run, and then expired, also after an error, since the job may have written what it has
        loaded."""
        session = tx() if isinstance(tx, scoped_session) else tx
        if not isinstance(session, Session | Connection):
            raise InvalidTransaction(
                f"tx is a Session or Connection of SQLAlchemy for this client, not {shown_name(tx)}"
            )
        borrow(session)  # begins
        if isinstance(session, Connection):
            yield self._checkout(session.engine, session)
            return
        session.flush()
        connection = session.connection()
        try:
            yield self._checkout(connection.engine, connection)
        finally:
            session.expire_all()

    def ensure_size(self, threads: int, *, grow: bool) -> None:
        pool: Any = self.engine.pool
        overflow = getattr(pool, "_max_overflow", -1)  # -1: no limit; only a QueuePool has one
        if overflow >= 0 and pool.size() + overflow < threads:
            raise PoolTooSmall(
                f"{threads} worker threads need as many connections; "
                f"the engine has pool_size={pool.size()} and max_overflow={overflow}"
            )

    def _connect(self) -> AnyConnection:
        """A new connection outside of the engine's pool, made as the engine makes its own."""
        with driver_errors():
            fairy = engine_here(self.engine).pool.recreate().connect()  # a new pool with the same settings
            conn: Any = fairy.driver_connection
            fairy.detach()
        return psycopg_connection(conn)


def _check_engine(engine: Any) -> None:
    inside = getattr(engine, "sync_engine", engine)  # of an AsyncEngine
    if isinstance(inside, Engine) and inside.dialect.is_async:
        raise InvalidSetting(
            f"engine must be synchronous, as handlers are, not {shown(engine)}: give create_engine(...) with the same "
            "URL, and pass Sessions of this engine to aenqueue"
        )
    if not isinstance(engine, Engine):
        raise InvalidSetting(
            f"engine must be an Engine of SQLAlchemy, not {shown_name(engine)}: give create_engine(...)"
        )
    if (engine.dialect.name, engine.dialect.driver) != ("postgresql", "psycopg"):
        raise InvalidSetting(
            f"pgjobs needs psycopg 3: use create_engine('postgresql+psycopg://...'), not {engine.url.drivername}"
        )
    if "@" in (engine.url.host or ""):  # part of a password, which error messages would show
        raise InvalidSetting("the URL of the engine has an @ in its host: write %40 for an @ in the password")


def _check_session(session: Any) -> None:
    if isinstance(session, scoped_session):
        raise InvalidSetting(
            "session is a scoped_session, which has one Session for all jobs of a thread, and each job needs its own: "
            "give the sessionmaker that it was made of"
        )
    if _makes_async(session):
        raise InvalidSetting("session makes an AsyncSession, and workers run handlers on threads: give a sessionmaker")
    if not callable(session):
        raise InvalidSetting(
            f"session must be a sessionmaker or a subclass of Session, not {shown_name(session)}: each job gets its own"
        )


def _makes_async(session: object) -> bool:
    """Whether this makes AsyncSessions."""
    classes = session.__mro__ if isinstance(session, type) else type(session).__mro__
    return any(each.__module__.startswith("sqlalchemy.ext.asyncio") for each in classes)
