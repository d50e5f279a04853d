"""The checkout of an engine's connection, and the Session that each job gets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, Engine, exc
from sqlalchemy.orm import Session

from pgjobs.clean_text import forget_details, one_line
from pgjobs.contrib.sqlalchemy.connections import JobConnection, driver_errors, psycopg_connection
from pgjobs.db.checkout import Checkout
from pgjobs.db.cursors import AnyConnection
from pgjobs.db.inherited import opened_here
from pgjobs.errors import InvalidSetting, TransactionBroken, shown
from pgjobs.loggers import get_logger

log = get_logger("pgjobs.contrib.sqlalchemy")

_MOST_FLUSHES = 100  # in a row, as in SQLAlchemy's commit; each may cause new changes to flush


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
        with driver_errors():
            self._pooled = self._engine.raw_connection() if self._lent is None else self._lent.connection
            conn = opened_here(psycopg_connection(self._pooled.driver_connection))
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
        self._connection = Connection(self._engine, connection=JobConnection(self._pooled, tx))
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


def _check_made(session: Any, connection: Connection) -> None:
    """A Session that is not of this job would be committed or dropped apart from it, and be closed at its end."""
    if getattr(session, "bind", None) is not connection:
        raise InvalidSetting(
            f"session gave a job {shown(session)}, which is not bound to the job's connection: it must make a new "
            "Session for each job, with the keyword arguments that it gets, as a sessionmaker does"
        )


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
