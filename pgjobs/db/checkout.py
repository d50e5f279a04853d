"""A checkout: a thread takes one connection for as long as it finds work, and runs one job after another on it.

Between two jobs the session is made clean again, so that no handler sees the settings of the handler before it. A
connection that cannot be made clean is spoiled, and is closed when it goes back to where it came from. What a handler
sets on its connection object ends with that object: see handler_connection.py.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from os import getpid
from typing import Any, TypeVar

import psycopg
from psycopg.pq import ConnStatus, PipelineStatus, TransactionStatus
from psycopg_pool import ConnectionPool

from pgjobs.clean_text import one_line
from pgjobs.db import handler_connection
from pgjobs.db.connection import allow_prepare, force_close, shared, shut_down, watch_prepared
from pgjobs.db.cursors import AnyConnection
from pgjobs.db.own_pool import take_live
from pgjobs.forking import connection_of_parent
from pgjobs.loggers import get_logger

log = get_logger("pgjobs.checkout")

NEVER = float("inf")

# How many transactions go on with savepoints that are sent ahead, after a handler has used its connection. A savepoint
# that is not used costs the server some microseconds; one that is sent when it is needed, a round trip.
_AHEAD = 16
_COUNT_EVERY = 64  # transactions that have used the connection: to count takes the server 24 microseconds
_BUSY = (TransactionStatus.UNKNOWN, TransactionStatus.ACTIVE)


class Checkout(ABC):
    """The connection that one thread works on.

    A subclass decides where connections come from, and what a handler gets as its `tx`.
    """

    conn: AnyConnection  # for the statements of pgjobs, in autocommit mode: they send BEGIN themselves
    original: AnyConnection  # the object of the pool or framework over the same connection, which is never changed
    spoiled: bool  # must not be used for another job
    used: bool  # whether the handler of the last attempt has sent anything
    saved = False  # whether a savepoint was set in the transaction that is open
    savepoints_ahead: int  # for so many transactions the savepoint is sent with the claim, before it is needed
    wraps_tx = True  # whether `handler_tx` must be entered and left; else `start_tx` makes the handler's `tx`
    transport: Any  # kept by the claimer together with the connection
    session: Any  # what the last claim found out about the session; None before the first claim
    configures = True  # whether its owner has settings of their own, which a reset of the session removes
    error_details = True  # whether the details of Postgres' errors may be logged
    can_prepare = False  # whether statements may be prepared on it, and a job claimed in the finish of another
    borrowed = False  # of a caller, who has a transaction open: it is not ended here, nor the connection given up
    answer_due = NEVER  # when to shut down a connection that still waits for an answer, by the monotonic clock

    def __init__(self) -> None:
        self._cancels = 0  # begun, and not yet sent to the server
        self._cancels_changed = threading.Condition()
        self._take()

    @abstractmethod
    def _get(self) -> AnyConnection:
        """Take a connection from where this kind of checkout has them from."""

    @abstractmethod
    def _put(self, conn: AnyConnection) -> None:
        """Return the connection, idle or closed, to where it came from. Raises nothing."""

    @abstractmethod
    def _configure(self) -> None:
        """Apply the settings of its owner to the session, which was reset."""

    @property
    def _ours(self) -> bool:
        """Whether this checkout still has the connection. A handler may have returned it to its framework, and another
        thread may be using it."""
        return True

    def _take(self) -> None:
        self._empty = True  # until there is a connection
        self.original = self._get()
        self._empty = False
        self.spoiled = self.used = self._busy = False
        self.transport = self.session = None
        self._tx: AnyConnection | None = None  # of the attempt that runs
        self.savepoints_ahead = _AHEAD
        self._process = getpid()
        self._uses = 0  # transactions whose handlers have used the connection
        self._shared = shared(self.original)
        self._before_use: Callable[[], None] | None = None  # in a batch
        try:
            if self.original.pgconn.transaction_status != TransactionStatus.IDLE and not self.borrowed:
                self.original.rollback()  # what the pool's check has begun
            self.conn = handler_connection.working_object(self.original)
            self.describe_tx()
            self._prepare_tx()
        except BaseException:
            self._put(self.original)
            self._empty = True
            raise

    def describe_tx(self) -> None:
        """Decide the attributes of the objects that the next handlers get."""
        self._attributes = handler_connection.attributes_of(self.original, self._begin_use)
        if self._before_use is not None or self.borrowed:
            self._attributes["_num_transactions"] = 1  # psycopg refuses commit() as in a transaction() block

    def _prepare_tx(self) -> None:  # noqa: B027  only a framework needs it
        """Called between two transactions: make what must be made before the transaction of the next handler."""

    def enable_prepare(self) -> None:
        """Called where no pooler stands between this connection and the server, and statements will be prepared."""
        watch_prepared(self.original)
        self.describe_tx()

    # --- for the handler

    @abstractmethod
    def handler_tx(self) -> AbstractContextManager[Any]:
        """The handler's `tx`, inside the transaction that is open.

        The end of the block sends the writes that a framework has delayed, and raises TransactionBroken if the
        framework would refuse to commit.
        """

    @abstractmethod
    def after_transaction(self, *, committed: bool) -> None:
        """Close the handler's `tx` after the transaction has ended, and run the callbacks that wait for a commit. Their
        errors are logged: they cannot change the outcome any more."""

    def begin(self, *, saved: bool) -> None:
        """The transaction of the next job has begun; `saved`: and a savepoint is set in it."""
        self.saved = saved
        if self.used:
            self.savepoints_ahead = _AHEAD
            self._uses += 1
        elif self.savepoints_ahead:
            self.savepoints_ahead -= 1

    @property
    def may_have_prepared(self) -> bool:
        """Whether to count the statements that handlers have prepared by name: always on a connection where one was
        seen to, and now and then where a function of the application may have done it."""
        return "prepares_by_name" in self._shared or self._uses % _COUNT_EVERY == 0

    def _begin_use(self, tx: AnyConnection) -> bool:
        """A handler is about to send its first statement. If the savepoint cannot be set, the next one tries again."""
        transport = self.transport  # read before `_tx`: a thread that its job has left behind must not get the next one
        if self._tx is not tx:
            handler_connection.refuse(tx)
        if self._before_use is not None:
            self._before_use()
            return True
        if self.original.pgconn.transaction_status == TransactionStatus.IDLE:
            return False  # a framework sets the object up before the transaction
        if getpid() != self._process:
            raise connection_of_parent()
        if not self.saved:
            transport.set_savepoint()
            self.saved = True
        return True

    def start_tx(self) -> AnyConnection:
        """A connection object for the next handler, in the transaction that is open."""
        tx = self._tx = handler_connection.make_unused(self._attributes)
        return tx

    def is_tx(self, conn: AnyConnection) -> bool:
        """Whether this is the connection object of the handler that runs."""
        return conn is self._tx

    def end_tx(self, job: int) -> bool:
        """End the connection object of this job's handler, which has ended, and find out whether it has `used` it.
        Returns False if another thread is using the connection: then the connection must not be used any more."""
        tx, self._tx = self._tx, None
        if tx is None:
            self.used = False
            return True
        self.used, quiet = handler_connection.end(tx, job)
        if not quiet:
            self._busy = self.used = True
        return quiet

    @contextmanager
    def batch(self, before_use: Callable[[], None]) -> Iterator[None]:
        """In this block several handlers share a transaction: before the first statement of each, `before_use` is
        called, and they cannot commit or roll back by the methods of psycopg."""
        self._before_use = before_use
        self.describe_tx()
        try:
            yield
        finally:
            self._before_use = None
            self.describe_tx()

    # --- its state

    @property
    def usable(self) -> bool:
        """Whether another statement may be sent: the connection is open, and no statement is running on it."""
        if self._empty:
            return False
        pgconn = self.original.pgconn
        return (
            self._ours
            and pgconn.status == ConnStatus.OK
            and pgconn.transaction_status not in _BUSY
            and pgconn.pipeline_status == PipelineStatus.OFF
            and not self._busy
            and not self.conn.lock.locked()
        )

    @property
    def by_tcp(self) -> bool:
        """Whether the connection goes over a network, and not through a socket of this machine."""
        return not self.conn.info.host.startswith("/")

    @property
    def in_transaction(self) -> bool:
        return bool(self.original.pgconn.transaction_status == TransactionStatus.INTRANS)

    # --- for other threads, while a statement is running

    @property
    def in_statement(self) -> bool:
        """Whether the server is executing a statement. Any thread may call this."""
        return self._ours and bool(self.conn.info.transaction_status == TransactionStatus.ACTIVE)

    def cancels_begin(self) -> None:
        """Announce a `cancel_statement` that another thread is about to call."""
        with self._cancels_changed:
            self._cancels += 1

    def cancel_statement(self) -> None:
        """Ask the server to cancel the running statement, after `cancels_begin`. Any thread may call this."""
        try:
            if self._ours:
                with suppress(psycopg.Error):
                    self.conn.cancel_safe(timeout=2)
        finally:
            self.cancel_ends()

    def cancel_ends(self) -> None:
        """The announced cancel was sent to the server, or will not be sent."""
        with self._cancels_changed:
            self._cancels -= 1
            self._cancels_changed.notify_all()

    def wait_for_cancels(self) -> None:
        """Wait until every announced cancel was sent, so that none of them hits a later statement."""
        with self._cancels_changed:
            self._cancels_changed.wait_for(lambda: self._cancels <= 0, 3)

    def shut_down(self, conn_id: int) -> None:
        """Shut down the socket of this connection, unless the checkout has another one by now. Never blocks."""
        conn = self.conn
        if id(conn) != conn_id or not self._ours:
            return
        if self.borrowed:
            self._busy = True  # its attempt ends as if it were shut down
        else:
            shut_down(conn)

    def abandon(self, conn_id: int) -> None:
        """Close and return this connection for its thread, which hangs, unless the checkout has another one by now."""
        conn = self.conn
        if id(conn) == conn_id and not self.borrowed:
            self._discard(conn)

    @contextmanager
    def answered_within(self, seconds: float) -> Iterator[None]:
        """The statements of this block must be answered in this time; else the watchdog shuts down the connection."""
        self.answer_due = time.monotonic() + seconds
        try:
            yield
        finally:
            self.answer_due = NEVER

    # --- between jobs, and its end

    def restore(self) -> None:
        """Configure the session, which was reset after the handler, as its owner wants it. If that fails the checkout
        is spoiled."""
        if self.in_transaction:  # of the next job, which was claimed in the finish; its session was reset there
            return
        try:
            self._configure()
            if self.original.pgconn.transaction_status != TransactionStatus.IDLE:
                raise psycopg.ProgrammingError("its configure function has left a transaction open")
            self._prepare_tx()
        except Exception as error:  # the owner's configure function may raise anything
            lost = self.original.closed  # cut off, say; who needs the connection next logs that the database is away
            level = logging.DEBUG if lost else logging.WARNING
            log.log(level, "a connection could not be restored after a handler, and is closed: %s", one_line(error))
            self.spoiled = True

    def replace(self) -> None:
        """Close this connection and take another one."""
        if self.borrowed:
            self._busy = False
            return
        if not self._empty:
            self._discard(self.conn)
        self._take()

    def return_early(self) -> None:
        """Return the connection now, inside the block of the checkout; only `replace` makes it usable again."""
        if self.borrowed:
            return
        self.return_to_pool()
        self._empty = True

    def return_to_pool(self) -> None:
        """Return the connection as it was when it was taken; closed, if it is spoiled or in the middle of something."""
        if self._empty or getpid() != self._process:  # a child leaves the connection to its parent
            return
        if self.spoiled or not self.usable or self.conn.info.transaction_status != TransactionStatus.IDLE:
            self._discard(self.conn)
            return
        self._put(self.original)

    def _discard(self, conn: AnyConnection) -> None:
        original = handler_connection.original_of(conn)
        if self._ours:
            force_close(conn)
        self._put(original)


class PoolCheckout(Checkout):
    """A connection of a psycopg pool, which the handler gets as its `tx`."""

    wraps_tx = False

    def __init__(self, pool: ConnectionPool[Any], *, may_prepare: bool) -> None:
        self._pool = pool
        self._may_prepare = may_prepare
        # psycopg_pool has no public name for it; without it, restore() could restore no connection
        self._configure_anew: Callable[[AnyConnection], None] | None = pool._configure
        self.configures = self._configure_anew is not None
        super().__init__()

    def _get(self) -> AnyConnection:
        conn = take_live(self._pool)
        self.can_prepare = self._may_prepare or conn.prepare_threshold is not None
        return conn

    def _put(self, conn: AnyConnection) -> None:
        with suppress(psycopg.Error, ValueError):
            self._pool.putconn(conn)  # which replaces a closed connection

    def _configure(self) -> None:
        if self._configure_anew is not None:  # with an object of its own, since the pool's is configured already
            configured = handler_connection.make_used(self._attributes)
            try:
                self._configure_anew(configured)
            finally:
                handler_connection.end(configured, 0)

    def enable_prepare(self) -> None:
        if self._may_prepare and self.conn.prepare_threshold is None:
            allow_prepare(self.conn)
        super().enable_prepare()

    def handler_tx(self) -> AbstractContextManager[AnyConnection]:
        return nullcontext(self.start_tx())

    def after_transaction(self, *, committed: bool) -> None:
        pass


AnyCheckout = TypeVar("AnyCheckout", bound=Checkout)


@contextmanager
def returning(checkout: AnyCheckout) -> Iterator[AnyCheckout]:
    """Return the connection at the end of the block."""
    try:
        yield checkout
    except psycopg.Error:  # the session itself may be the cause, on a server that became a replica for example
        checkout.spoiled = True
        raise
    finally:
        checkout.return_to_pool()
