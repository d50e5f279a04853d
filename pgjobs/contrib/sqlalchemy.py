"""SQLAlchemy: enqueue on a Session, and run handlers with a Session.

    engine = create_engine("postgresql+psycopg://localhost/app")
    client = Client(SQLAlchemySource(engine))

    def welcome(session: Session, job: Job[Welcome]) -> None:
        session.get_one(Account, job.args.account).greeted = True

Changes that are pending in the Session when the handler returns are flushed, and committed together with the job.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg_pool import PoolTimeout
from sqlalchemy import Connection, Engine, exc
from sqlalchemy.orm import Session, scoped_session
from sqlalchemy.pool import PoolProxiedConnection

from pgjobs.clean_text import forget_details, one_line
from pgjobs.db.borrow import Borrowable, borrow
from pgjobs.db.checkout import Checkout, returning
from pgjobs.db.cursors import AnyConnection
from pgjobs.db.inherited import engine_here, opened_here, remember_engine
from pgjobs.db.source import PoolSource, own_pool
from pgjobs.errors import InvalidSetting, InvalidTransaction, PoolTooSmall, TransactionBroken, shown, shown_name
from pgjobs.loggers import get_logger

log = get_logger("pgjobs.contrib.sqlalchemy")

_MOST_FLUSHES = 100  # in a row, as in SQLAlchemy's commit; each may cause new changes to flush


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
        with _driver_errors():
            fairy = engine_here(self.engine).pool.recreate().connect()  # a new pool with the same settings
            conn: Any = fairy.driver_connection
            fairy.detach()
        return _psycopg(conn)


class EngineCheckout(Checkout):
    """A checkout of a connection of the engine.

    pgjobs sends BEGIN and COMMIT itself. Each job has a Connection of SQLAlchemy of its own, with a transaction object
    that exists only while the handler runs. After the job the Connection is closed, and so is the driver's connection
    that it has: what a handler has kept of them raises, and cannot reach the next job.
    """

    def __init__(self, engine: Engine, session: Callable[..., Session], lent: Connection | None = None) -> None:
        self._engine = engine
        self._lent = lent  # by a caller, with its transaction
        self.borrowed = lent is not None
        self._make_session = session
        self._session: Session | None = None
        super().__init__()

    def _get(self) -> AnyConnection:
        with _driver_errors():
            self._pooled = self._engine.raw_connection() if self._lent is None else self._lent.connection
            conn = opened_here(_psycopg(self._pooled.driver_connection))
        self.can_prepare = conn.prepare_threshold is not None
        return conn

    def _put(self, conn: AnyConnection) -> None:
        if self.borrowed:
            return
        with suppress(exc.SQLAlchemyError, psycopg.Error):
            if self._ours and conn.info.transaction_status != TransactionStatus.IDLE:
                self._pooled.invalidate()  # without this, close() would send a ROLLBACK
            self._pooled.close()

    @property
    def _ours(self) -> bool:
        return self._pooled.driver_connection is self.original

    def _configure(self) -> None:
        """Call the application's listeners for new connections, which may set up the database session."""
        if self.borrowed:
            return
        record: Any = getattr(self._pooled, "_connection_record", None)
        self._engine.pool.dispatch.connect(self.original, record)

    def _prepare_tx(self) -> None:
        """Make the next job's Connection. The engine's options may set attributes of the driver's connection, which
        psycopg allows only outside of a transaction."""
        tx = self.start_tx()
        self._connection = Connection(self._engine, connection=_JobsConnection(self._pooled, tx))
        vars(tx)["_autocommit"] = True  # also if the options of the engine say otherwise: pgjobs sends BEGIN

    @contextmanager
    def handler_tx(self) -> Iterator[Session]:
        if self._tx is None:  # it was not made before this transaction
            self._prepare_tx()
        self._connection.begin()
        # in a savepoint, so that a rollback() does not end the job's transaction and release its row lock
        session = self._make_session(
            bind=self._connection, binds=None, twophase=False, join_transaction_mode="create_savepoint"
        )
        _check_made(session, self._connection)
        self._session = session
        yield session
        _flush(session, self._connection)

    def after_transaction(self, *, committed: bool) -> None:
        session, self._session = self._session, None
        unfinished = session is not None and session.in_transaction()
        try:
            self._end_transaction(committed)
            if session is not None:
                if unfinished:
                    _call_listeners(session, committed, error_details=self.error_details)
                session.close()
            self._connection.close()
        except Exception as error:
            log.warning("a Session could not be closed after its job: %s", one_line(error))
            self.spoiled = True

    def _end_transaction(self, committed: bool) -> None:
        """End SQLAlchemy's transaction object. The database transaction has ended already: nothing is sent."""
        transaction = self._connection.get_transaction()
        if transaction is not None:
            transaction.commit() if committed else transaction.rollback()


class _JobsConnection(PoolProxiedConnection):
    """What a job's Connection takes for the pooled connection: the same, but with the driver's connection of the job,
    and it stays checked out when it is closed."""

    __slots__ = ("_connection_record", "_pooled", "dbapi_connection")

    def __init__(self, pooled: PoolProxiedConnection, conn: AnyConnection) -> None:
        self._pooled = pooled
        self.dbapi_connection: Any = conn
        self._connection_record = _JobsRecord(pooled)

    @property
    def driver_connection(self) -> Any:  # type: ignore[override]
        return self.dbapi_connection

    @property
    def is_valid(self) -> bool:
        return self._pooled.is_valid

    @property
    def is_detached(self) -> bool:
        return self._pooled.is_detached

    @property
    def info(self) -> Any:
        return self._pooled.info

    @property
    def record_info(self) -> Any:
        return self._pooled.record_info

    def cursor(self, *args: Any, **options: Any) -> Any:
        return self.dbapi_connection.cursor(*args, **options)

    def commit(self) -> None:
        if not self.dbapi_connection.closed:  # else the job has ended, and pgjobs has ended its transaction
            self.dbapi_connection.commit()

    def rollback(self) -> None:
        if not self.dbapi_connection.closed:
            self.dbapi_connection.rollback()

    def invalidate(self, e: BaseException | None = None, soft: bool = False) -> None:
        self._pooled.invalidate(e, soft)

    def detach(self) -> None:
        self._pooled.detach()

    def close(self) -> None:
        """The checkout goes on with the connection."""

    def _close_special(self, transaction_reset: bool = False) -> None:
        """SQLAlchemy calls this instead of close() after it has ended a transaction."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pooled, name)


class _JobsRecord:
    """The record of a pooled connection, without what is to be undone on the driver's connection of a job, which ends
    with the job."""

    def __init__(self, pooled: Any) -> None:
        self._record = pooled._connection_record
        self.finalize_callback: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._record, name)


def _call_listeners(session: Session, committed: bool, *, error_details: bool) -> None:
    """Call the after_commit or after_rollback listeners of the Session, now that the job's transaction has ended. Their
    exceptions are logged."""
    dispatch: Any = session.dispatch
    try:
        (dispatch.after_commit if committed else dispatch.after_rollback)(session)
    except Exception as error:
        if not error_details:
            forget_details(error)
        log.error("a listener of the Session failed after a job: %s", one_line(error), exc_info=True)


def _flush(session: Session, connection: Connection) -> None:
    """Flush the pending changes as a commit does, and raise where a commit would."""
    if not session.is_active:
        raise TransactionBroken("a flush failed and the handler swallowed its error: the Session must be rolled back")
    dispatch: Any = session.dispatch
    dispatch.before_commit(session)
    for _ in range(_MOST_FLUSHES):
        if not (session.new or session.dirty or session.deleted):
            break
        session.flush()
    transaction = session.get_transaction()
    used = () if transaction is None else {entry[0] for entry in transaction._connections.values()}
    if any(other is not connection for other in used):
        raise TransactionBroken(
            "the Session used another connection than the job's: its get_bind() returns another one"
        )


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


def _check_made(session: Any, connection: Connection) -> None:
    """A Session that is not of this job would be committed or dropped apart from it, and be closed at its end."""
    if getattr(session, "bind", None) is not connection:
        raise InvalidSetting(
            f"session gave a job {shown(session)}, which is not bound to the job's connection: it must make a new "
            "Session for each job, with the keyword arguments that it gets, as a sessionmaker does"
        )


def _makes_async(session: object) -> bool:
    """Whether this makes AsyncSessions."""
    classes = session.__mro__ if isinstance(session, type) else type(session).__mro__
    return any(each.__module__.startswith("sqlalchemy.ext.asyncio") for each in classes)


def _psycopg(conn: Any) -> AnyConnection:
    if not isinstance(conn, psycopg.Connection):
        raise InvalidSetting(f"the engine makes connections of {type(conn).__module__}, and pgjobs needs psycopg 3")
    return conn


@contextmanager
def _driver_errors() -> Iterator[None]:
    """Raise errors of the driver and the pool as psycopg's, which pgjobs knows how to treat."""
    try:
        yield
    except exc.TimeoutError as error:
        raise PoolTimeout(str(error)) from None
    except exc.DBAPIError as error:
        if isinstance(error.orig, psycopg.Error):
            raise error.orig from None
        raise
