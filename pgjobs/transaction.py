"""Where connections come from: the application's own, borrowed for an enqueue; a pool's, held for work."""

from __future__ import annotations

import logging
import os
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import psycopg
from psycopg import Connection, Cursor, Transaction
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg_pool import ConnectionPool

from pgjobs.error_text import one_line
from pgjobs.errors import InvalidTransaction, PoolTooSmall

log = logging.getLogger("pgjobs.transaction")

AnyConnection = Connection[Any]
#: What `enqueue` takes as its `tx`; None is a transaction of its own.
Borrowable = Connection[Any] | Cursor[Any] | Transaction

# Where the connection string says nothing else. A dead peer is noticed within half a minute, not after the two hours of
# the operating system.
_CONNECTION_DEFAULTS: dict[str, Any] = {
    "application_name": "pgjobs",
    "client_encoding": "UTF8",
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
    "prepare_threshold": None,  # named statements would collide behind a pooler in transaction mode
}

# Connections beside one for each worker thread: maintenance, and one for an enqueue of the application.
SPARE_CONNECTIONS = 2
# Attributes of a connection that a handler may set and the next job must not see.
_PYTHON_STATE = (
    "autocommit",
    "row_factory",
    "cursor_factory",
    "server_cursor_factory",
    "prepare_threshold",
    "prepared_max",
    "isolation_level",
    "read_only",
    "deferrable",
)


def defaults_for(dsn: str) -> dict[str, Any]:
    """The settings of a connection that its connection string leaves open; raises what psycopg does if it is none."""
    said = conninfo_to_dict(dsn)
    return {name: value for name, value in _CONNECTION_DEFAULTS.items() if name not in said}


def borrow(tx: object) -> AnyConnection:
    """The psycopg connection behind what the application calls its transaction. Nothing is executed on it.

    pgjobs never calls `connection.transaction()` on it: as the first statement that block would commit the caller's
    transaction.
    """
    match tx:
        case Connection():
            return tx
        case Cursor() | Transaction():
            return tx.connection
    raise InvalidTransaction(
        f"tx is a psycopg 3 Connection, Cursor or Transaction, or None for a transaction of its own; not {tx!r}"
    )


class PoolSource:
    """Connections of a `psycopg_pool.ConnectionPool`."""

    def __init__(self, pool: ConnectionPool[Any], *, owned: bool) -> None:
        self.pool = pool
        self.owned = owned
        self._threads = 0  # of all worker pools on it
        # Also when the process ends without a close(): the pool's threads would not notice in time that it does.
        self._closed = weakref.finalize(self, pool.close) if owned else None

    def make_room(self, threads: int) -> None:
        """See to it that so many threads can hold a connection each, or raise PoolTooSmall."""
        self._threads += threads
        needed = self._threads + SPARE_CONNECTIONS
        if self.pool.max_size == 0 or self.pool.max_size >= needed:  # 0: a NullConnectionPool without a limit
            return
        if not self.owned:
            self._threads -= threads
            raise PoolTooSmall(
                f"{self._threads + threads} worker threads need a connection pool of at least {needed} "
                f"({SPARE_CONNECTIONS} to spare); this one has max_size={self.pool.max_size}"
            )
        self.pool.resize(self.pool.min_size, needed)

    def give_room_back(self, threads: int) -> None:
        """So many threads have ended."""
        self._threads -= threads

    @contextmanager
    def checkout(self, timeout: timedelta | None = None) -> Iterator[Checkout]:
        """A connection for work, in autocommit mode: the statements of pgjobs say BEGIN themselves."""
        held = Checkout(self.pool, timeout)
        try:
            yield held
        finally:
            held.give_back()

    @contextmanager
    def transaction(self) -> Iterator[AnyConnection]:
        """A connection in a transaction of its own, committed at the end."""
        with self.pool.connection() as conn, conn.transaction():
            yield conn

    def connect(self, dsn: str | None = None) -> AnyConnection:
        """A connection beside the pool, in autocommit mode, for one who keeps it for long."""
        if dsn is not None:
            return Connection.connect(dsn, autocommit=True, **defaults_for(dsn))
        kwargs: dict[str, Any] = dict(_value(self.pool.kwargs) or {})
        kwargs["autocommit"] = True
        conn: AnyConnection = self.pool.connection_class.connect(_value(self.pool.conninfo), **kwargs)
        return conn

    @contextmanager
    def first_connection(self) -> Iterator[AnyConnection]:
        """A connection to begin with. Not from a pool of our own: that would try again for half a minute, and then not
        say why, when the server or the database is not there."""
        with self.connect() if self.owned else self.pool.connection() as conn:
            yield conn

    def close(self) -> None:
        if self._closed is not None:
            self._closed()


class Checkout:
    """One thread's hold on a connection of a pool, for as long as the thread finds work."""

    def __init__(self, pool: ConnectionPool[Any], timeout: timedelta | None = None) -> None:
        self._pool = pool
        self._timeout = None if timeout is None else timeout.total_seconds()
        # psycopg_pool keeps it to itself; without it, restore() would have to give up every connection
        self._configure: Callable[[AnyConnection], None] | None = pool._configure
        self._take()

    def _take(self) -> None:
        self._gone = True  # until there is one
        self.conn = self._pool.getconn(self._timeout)
        self._gone = False
        self.spoiled = False
        self._kept = {name: getattr(self.conn, name) for name in _PYTHON_STATE}
        self._callbacks = (list(self.conn._notice_handlers), list(self.conn._notify_handlers))
        if not self._kept["autocommit"]:
            self.conn.autocommit = True

    @property
    def usable(self) -> bool:
        """Whether another statement may be sent: connected, and not in the middle of something."""
        if self._gone:
            return False
        status = self.conn.info.transaction_status
        return (
            not self.conn.closed
            and status not in (TransactionStatus.UNKNOWN, TransactionStatus.ACTIVE)
            and self.conn.pgconn.pipeline_status == PipelineStatus.OFF
            and not self.conn.lock.locked()
        )

    @property
    def in_statement(self) -> bool:
        """Whether the server is at work for it. May be asked from any thread."""
        return bool(self.conn.info.transaction_status == TransactionStatus.ACTIVE)

    def cancel_statement(self) -> None:
        """Ask the server to cancel the statement under way. May be called from any thread."""
        with suppress(psycopg.Error):
            self.conn.cancel_safe(timeout=2)

    def shut_down(self, conn_id: int) -> None:
        """End the conversation on this connection, unless it has been renewed meanwhile. Never blocks."""
        conn = self.conn
        if id(conn) == conn_id:
            shut_down(conn)

    def abandon(self, conn_id: int) -> None:
        """Give this connection back on behalf of its thread, closed, unless it has been renewed meanwhile."""
        conn = self.conn
        if id(conn) == conn_id:
            self._discard(conn)

    def restore(self) -> None:
        """Make the connection what it was before the handler: the session, which was reset, as the pool's owner
        configures it; and the attributes of the object. Spoiled, if that cannot be done."""
        try:
            if self._configure is not None:
                self._configure(self.conn)
            self.conn.rollback()  # sends nothing, but fails when a transaction() block was left open
            self.forget_python_state()
        except Exception as error:  # also what the owner's function raises
            log.warning("a connection could not be restored after a handler, and is given up: %s", one_line(error))
            self.spoiled = True

    def forget_python_state(self) -> None:
        """Undo what a handler, or configuring anew, set on the connection object."""
        self.conn._notice_handlers[:], self.conn._notify_handlers[:] = self._callbacks
        for name, value in self._kept.items():
            wanted = True if name == "autocommit" else value
            if getattr(self.conn, name) != wanted:
                setattr(self.conn, name, wanted)

    def renew(self) -> None:
        """Give this connection up for good and hold another one."""
        if not self._gone:
            self._discard(self.conn)
        self._take()

    def let_go(self) -> None:
        """Hold no connection until `renew`."""
        self.give_back()
        self._gone = True

    def give_back(self) -> None:
        if self._gone:
            return
        if self.spoiled or not self.usable or self.conn.info.transaction_status != TransactionStatus.IDLE:
            self._discard(self.conn)
            return
        self.forget_python_state()
        if not self._kept["autocommit"]:
            self.conn.autocommit = False
        self._pool.putconn(self.conn)

    def _discard(self, conn: AnyConnection) -> None:
        sever(conn)
        with suppress(psycopg.Error, ValueError):  # the pool replaces a closed connection
            self._pool.putconn(conn)


def shut_down(conn: AnyConnection) -> None:
    """End the conversation with the server; whoever waits for an answer gets an error. Never blocks."""
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(conn.fileno())) as wire:
        wire.shutdown(socket.SHUT_RDWR)


def sever(conn: AnyConnection) -> None:
    """End a connection that somebody else may still be using.

    The socket is shut down first, which wakes a thread that waits on it; only then, with the connection's lock at
    hand, is it closed. Closing under such a thread would let it wait on a descriptor that soon is another's.
    """
    if conn.closed:
        return
    shut_down(conn)
    lock: threading.Lock = conn.lock
    if lock.acquire(timeout=1):
        lock.release()
        conn.close()


def _value(setting: Any) -> Any:
    return setting() if callable(setting) else setting
