"""SQLAlchemy: enqueue on a Session, and handlers that are given one.

    engine = create_engine("postgresql+psycopg://localhost/app")
    client = Client(SQLAlchemySource(engine))

    def welcome(session: Session, job: Job[Welcome]) -> None:
        session.get_one(Account, job.args.account).greeted = True

What is pending in the Session when the handler returns is flushed, and committed together with the job.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from sys import getrefcount
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg_pool import PoolTimeout
from sqlalchemy import Connection, Engine, exc
from sqlalchemy.orm import Session

from pgjobs.clean_text import forget_details, one_line
from pgjobs.db.checkout import Checkout, returning
from pgjobs.db.cursors import AnyConnection
from pgjobs.db.inherited import engine_here, opened_here, remember_engine
from pgjobs.db.source import PoolSource, own_pool
from pgjobs.errors import InvalidSetting, PoolTooSmall, TransactionBroken
from pgjobs.loggers import get_logger

log = get_logger("pgjobs.contrib.sqlalchemy")

_MOST_FLUSHES = 100  # in a row, each of which leaves something new to flush; as many as SQLAlchemy's commit allows


class SQLAlchemySource(PoolSource):
    """Connections of an engine; a handler is given a Session on the connection that holds its job.

    `session` makes it: the application's `sessionmaker`, or a subclass of Session. Inside the handler, `commit()`,
    `rollback()`, `close()` and `begin()` act on a savepoint of the job's transaction: what they keep is committed with
    the job, and only with it, what they drop is dropped. The engine needs a connection for each worker thread, by its
    `pool_size` and `max_overflow`. What pgjobs does itself (upkeep, LISTEN, `enqueue(None, ...)`) it does on
    connections of its own, made as the engine makes them.
    """

    batches = False  # a Session is told of one end of its transaction, which is that of one job

    def __init__(self, engine: Engine, *, session: Callable[..., Session] = Session) -> None:
        if not isinstance(engine, Engine):
            raise InvalidSetting(f"a SQLAlchemySource needs an Engine of SQLAlchemy, not {engine!r}")
        if (engine.dialect.name, engine.dialect.driver) != ("postgresql", "psycopg"):
            raise InvalidSetting(
                f"pgjobs needs psycopg 3: create_engine('postgresql+psycopg://...'), not {engine.url.drivername}"
            )
        if "@" in (engine.url.host or ""):  # it would be shown with each failure
            raise InvalidSetting("the URL of the engine has an @ in its host: in a password write %40 for @")
        super().__init__(partial(own_pool, self._connect))
        self.engine = engine
        remember_engine(engine)
        self._session = session

    @contextmanager
    def checkout(self) -> Iterator[Checkout]:
        with returning(_EngineCheckout(engine_here(self.engine), self._session)) as checkout:
            yield checkout

    def _ensure_size(self, threads: int) -> None:
        pool: Any = self.engine.pool
        overflow = getattr(pool, "_max_overflow", -1)  # -1: no limit; other pools than the usual one have none
        if overflow >= 0 and pool.size() + overflow < threads:
            raise PoolTooSmall(
                f"{threads} worker threads need an engine with as many connections; "
                f"this one has pool_size={pool.size()} and max_overflow={overflow}"
            )

    def _connect(self) -> AnyConnection:
        """A connection that is not the engine's, made as the engine makes its own."""
        with _driver_errors():
            beside = (
                engine_here(self.engine).pool.recreate().connect()
            )  # a pool apart, which takes nothing from the engine's
            conn: Any = beside.driver_connection
            beside.detach()
        return _psycopg(conn)


class _EngineCheckout(Checkout):
    """A hold on a connection of an engine.

    pgjobs says BEGIN and COMMIT on the driver's connection, so the engine's is in its AUTOCOMMIT mode. What SQLAlchemy
    takes for its transaction is begun for the handler alone, and ended when the real one is over.
    """

    def __init__(self, engine: Engine, session: Callable[..., Session]) -> None:
        self._engine = engine
        self._make_session = session
        self._session: Session | None = None
        super().__init__()

    def _get(self) -> AnyConnection:
        with _driver_errors():
            self._connection = self._engine.connect()
            self._connection.execution_options(isolation_level="AUTOCOMMIT")
            self._fairy = self._connection.connection
            return opened_here(_psycopg(self._fairy.driver_connection))

    def _put(self, conn: AnyConnection) -> None:
        with suppress(exc.SQLAlchemyError, psycopg.Error):
            if self._ours and conn.info.transaction_status != TransactionStatus.IDLE:
                self._connection.invalidate()  # else close() would send a ROLLBACK
            self._connection.close()

    @property
    def _ours(self) -> bool:
        return self._fairy.driver_connection is self.conn

    def _configure(self) -> None:
        """Call what the application listens with for new connections: it may have set something in the session."""
        record: Any = getattr(self._fairy, "_connection_record", None)
        self._engine.pool.dispatch.connect(self.conn, record)

    def references(self) -> int:
        return super().references() + getrefcount(self._connection)

    @contextmanager
    def handler_tx(self) -> Iterator[Session]:
        self._connection.begin()
        # a savepoint of its own, so that a rollback() leaves the job's transaction, and with it the lock, alone
        session = self._session = self._make_session(
            bind=self._connection, binds=None, twophase=False, join_transaction_mode="create_savepoint"
        )
        yield session
        _flush(session, self._connection)

    def after_transaction(self, *, committed: bool) -> None:
        session, self._session = self._session, None
        untold = session is not None and session.in_transaction()
        try:
            self._end_transaction(committed)
            if session is not None:
                if untold:
                    _tell(session, committed, error_details=self.error_details)
                session.close()
        except Exception as error:
            log.warning("a Session could not be closed after its job: %s", one_line(error))
            self.spoiled = True

    def _end_transaction(self, committed: bool) -> None:
        """End what SQLAlchemy takes for its transaction. The real one is over: nothing is sent."""
        transaction = self._connection.get_transaction()
        if transaction is not None:
            transaction.commit() if committed else transaction.rollback()


def _tell(session: Session, committed: bool, *, error_details: bool) -> None:
    """Call who listens to the Session for its end, which its own commit() or rollback() would have come too early for.
    The outcome stands, whatever they raise."""
    dispatch: Any = session.dispatch
    try:
        (dispatch.after_commit if committed else dispatch.after_rollback)(session)
    except Exception as error:
        if not error_details:
            forget_details(error)
        log.error("a listener failed after a job: %s", one_line(error), exc_info=True)


def _flush(session: Session, connection: Connection) -> None:
    """Send what is pending, as a commit does; raises when a commit would."""
    if not session.is_active:
        raise TransactionBroken("a flush failed in the handler and was swallowed, so its Session was to be rolled back")
    dispatch: Any = session.dispatch
    dispatch.before_commit(session)
    for _ in range(_MOST_FLUSHES):
        if not (session.new or session.dirty or session.deleted):
            break
        session.flush()
    transaction = session.get_transaction()
    used = () if transaction is None else {taken[0] for taken in transaction._connections.values()}
    if any(other is not connection for other in used):
        raise TransactionBroken("the Session has used a connection beside the job's: its get_bind() leads elsewhere")


def _psycopg(conn: Any) -> AnyConnection:
    if not isinstance(conn, psycopg.Connection):
        raise InvalidSetting(f"the engine gives connections of {type(conn).__module__}, and pgjobs needs psycopg 3")
    return conn


@contextmanager
def _driver_errors() -> Iterator[None]:
    """Let errors of the driver and of the pool through as psycopg's: pgjobs goes by them."""
    try:
        yield
    except exc.TimeoutError as error:
        raise PoolTimeout(str(error)) from None
    except exc.DBAPIError as error:
        if isinstance(error.orig, psycopg.Error):
            raise error.orig from None
        raise
