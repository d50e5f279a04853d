"""How one thread holds a connection while it works: one job after another on it, each of which finds it clean."""

from __future__ import annotations

import os
import re
import socket
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from operator import attrgetter
from typing import Any, TypeVar

import psycopg
from psycopg.pq import ConnStatus, PipelineStatus, TransactionStatus
from psycopg_pool import ConnectionPool

from pgjobs.clean_text import one_line
from pgjobs.db.cursors import AnyConnection
from pgjobs.db.own_pool import live
from pgjobs.loggers import get_logger

log = get_logger("pgjobs.checkout")

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
_python_state = attrgetter(*_PYTHON_STATE)
_PREPARE_AFTER = 5  # times that a statement was sent; as psycopg has it where nobody says otherwise
# What deallocates, and tables that are gone with the job: the next may make them with other columns.
_ENDS_WHAT_IS_PREPARED = re.compile(rb"\b(?:DEALLOCATE|DISCARD\s+ALL|TEMP(?:ORARY)?\s+TABLE)\b")
# Those that psycopg lets nobody change within a transaction need not be looked at in one.
_state_in_transaction = attrgetter(
    "row_factory",
    "cursor_factory",
    "server_cursor_factory",
    "prepare_threshold",
    "prepared_max",
    "_notice_handlers",
    "_notify_handlers",
)
_BUSY = (TransactionStatus.UNKNOWN, TransactionStatus.ACTIVE)

NEVER = float("inf")


class Checkout(ABC):
    """One thread's hold on a connection, for as long as the thread finds work.

    A subclass says where connections come from, and what of them a handler is given.
    """

    conn: AnyConnection
    spoiled: bool  # not for another job
    transport: Any  # what the claimer keeps with the connection
    session: Any  # what the last claim found of its session; None before that
    configures = True  # whether its owner has settings of his own, which a reset takes away
    error_details = True  # whether the details of Postgres may be logged
    can_prepare = False  # whether statements may be prepared on it, and jobs follow each other without a pause
    answer_due = NEVER  # when, by the monotonic clock, the connection is given up that waits for an answer

    def __init__(self) -> None:
        self._cancels = 0  # that the server is being asked for
        self._cancels_changed = threading.Condition()
        self._take()

    @abstractmethod
    def _get(self) -> AnyConnection: ...

    @abstractmethod
    def _put(self, conn: AnyConnection) -> None:
        """Give it back where it came from: idle, or closed. Raises nothing."""

    @abstractmethod
    def _configure(self) -> None:
        """Make the session, which was reset, what its owner wants it to be."""

    @property
    def _ours(self) -> bool:
        """Whether it is still held. What a handler has given back may be at work for somebody else by now."""
        return True

    def _take(self) -> None:
        self._gone = True  # until there is one
        self.conn = self._get()
        self._gone = False
        self.spoiled = False
        self.transport = self.session = None
        self._kept = _python_state(self.conn)
        self._wanted = (True, *self._kept[1:])
        self._callbacks = (list(self.conn._notice_handlers), list(self.conn._notify_handlers))
        self._clean_state: tuple[Any, ...] = ()  # what no handler has changed looks like
        if not self.conn.autocommit:
            try:
                if self.conn.pgconn.transaction_status != TransactionStatus.IDLE:  # the check of a pool has begun one
                    self.conn.rollback()
                self.conn.autocommit = True
            except BaseException:
                self._put(self.conn)
                self._gone = True
                raise

    def enable_prepare(self) -> None:  # noqa: B027  most connections are not our own
        """No pooler stands in between: on a connection of our own, what is sent often may be prepared."""

    # --- for the handler

    @abstractmethod
    def handler_tx(self) -> AbstractContextManager[Any]:
        """What the handler is given, inside the transaction that is open.

        The end of the block sends what a framework has kept back, and raises TransactionBroken when the framework
        would not commit.
        """

    @abstractmethod
    def settle(self, *, committed: bool) -> None:
        """The transaction is over: end what the handler was given, and run what waits for a commit. Whatever that
        raises is the log's, for the outcome stands."""

    def references(self) -> int:
        """How many hold what the handler was given, themselves or by what they hold. More than before the handler:
        it was kept by somebody, a thread perhaps, who could write into the next job."""
        return sys.getrefcount(self.conn)

    # --- its state

    @property
    def usable(self) -> bool:
        """Whether another statement may be sent: connected, and not in the middle of something."""
        if self._gone:
            return False
        pgconn = self.conn.pgconn
        return (
            self._ours
            and pgconn.status == ConnStatus.OK
            and pgconn.transaction_status not in _BUSY
            and pgconn.pipeline_status == PipelineStatus.OFF
            and not self.conn.lock.locked()
        )

    @property
    def in_transaction(self) -> bool:
        return bool(self.conn.pgconn.transaction_status == TransactionStatus.INTRANS)

    @property
    def in_block(self) -> bool:
        """Whether a block of `conn.transaction()` was left open. psycopg keeps it to itself."""
        return self.conn._num_transactions > 0

    @property
    def in_statement(self) -> bool:
        """Whether the server is at work for it. May be asked from any thread."""
        return self._ours and bool(self.conn.info.transaction_status == TransactionStatus.ACTIVE)

    def cancel_statement(self) -> None:
        """Ask the server to cancel the statement under way, after `cancels_begin`. May be called from any thread."""
        try:
            if self._ours:
                with suppress(psycopg.Error):
                    self.conn.cancel_safe(timeout=2)
        finally:
            self.cancel_ends()

    def cancels_begin(self) -> None:
        """A `cancel_statement` follows, in another thread."""
        with self._cancels_changed:
            self._cancels += 1

    def cancel_ends(self) -> None:
        """The server was asked for it, or will not be."""
        with self._cancels_changed:
            self._cancels -= 1
            self._cancels_changed.notify_all()

    def wait_for_cancels(self) -> None:
        """Wait until the server was asked for the last cancel that was begun."""
        with self._cancels_changed:
            self._cancels_changed.wait_for(lambda: self._cancels <= 0, 3)

    def shut_down(self, conn_id: int) -> None:
        """End the conversation on this connection, unless it has been renewed meanwhile. Never blocks."""
        conn = self.conn
        if id(conn) == conn_id and self._ours:
            shut_down(conn)

    @contextmanager
    def answered_within(self, seconds: float) -> Iterator[None]:
        """What is asked in the block has its answers by then, or the connection is shut down by whoever looks."""
        self.answer_due = time.monotonic() + seconds
        try:
            yield
        finally:
            self.answer_due = NEVER

    # --- its end

    def abandon(self, conn_id: int) -> None:
        """Give this connection back on behalf of its thread, closed, unless it has been renewed meanwhile."""
        conn = self.conn
        if id(conn) == conn_id:
            self._discard(conn)

    def restore(self) -> None:
        """Make the connection what it was before the handler: the session, which was reset, as its owner configures
        it; and the attributes of the object. Spoiled, if that cannot be done."""
        try:
            if self.in_transaction:  # the next job is there already, and the session was looked after
                self.forget_state_in_transaction()
                return
            self._configure()
            self.conn.rollback()  # sends nothing, but fails when a transaction() block was left open
            self.forget_python_state()
        except Exception as error:  # also what the owner's function raises
            log.warning("a connection could not be restored after a handler, and is given up: %s", one_line(error))
            self.spoiled = True

    def forget_python_state(self) -> None:
        """Undo what a handler, or configuring anew, set on the connection object."""
        self.conn._notice_handlers[:], self.conn._notify_handlers[:] = self._callbacks
        if _python_state(self.conn) == self._wanted:
            return
        for name, wanted in zip(_PYTHON_STATE, self._wanted, strict=True):
            if getattr(self.conn, name) != wanted:
                setattr(self.conn, name, wanted)

    def forget_state_in_transaction(self) -> None:
        """The same where a transaction is open, and was all the time or has followed another at once."""
        if _state_in_transaction(self.conn) == self._clean_state:
            return
        self.forget_python_state()
        *values, notices, notifies = _state_in_transaction(self.conn)
        self._clean_state = (*values, list(notices), list(notifies))

    def replace(self) -> None:
        """Give this connection up for good and hold another one."""
        if not self._gone:
            self._discard(self.conn)
        self._take()

    def return_early(self) -> None:
        """Hold no connection until `renew`."""
        self.return_to_pool()
        self._gone = True

    def return_to_pool(self) -> None:
        if self._gone:
            return
        if self.spoiled or not self.usable or self.conn.info.transaction_status != TransactionStatus.IDLE:
            self._discard(self.conn)
            return
        self.forget_python_state()
        if not self._kept[0]:
            self.conn.autocommit = False
        self._put(self.conn)

    def _discard(self, conn: AnyConnection) -> None:
        if self._ours:
            sever(conn)
        self._put(conn)


class PoolCheckout(Checkout):
    """A hold on a connection of a psycopg pool, which is what the handler is given."""

    def __init__(self, pool: ConnectionPool[Any], *, may_prepare: bool) -> None:
        self._pool = pool
        self._may_prepare = may_prepare
        # psycopg_pool keeps it to itself; without it, restore() would have to give up every connection
        self._configure_anew: Callable[[AnyConnection], None] | None = pool._configure
        self.configures = self._configure_anew is not None
        super().__init__()

    def _get(self) -> AnyConnection:
        conn = live(self._pool)
        self.can_prepare = self._may_prepare or conn.prepare_threshold is not None
        return conn

    def _put(self, conn: AnyConnection) -> None:
        with suppress(psycopg.Error, ValueError):  # the pool replaces a closed connection
            self._pool.putconn(conn)

    def _configure(self) -> None:
        if self._configure_anew is not None:
            self._configure_anew(self.conn)

    def enable_prepare(self) -> None:
        if self._may_prepare and self.conn.prepare_threshold is None:
            allow_prepare(self.conn)
            self._wanted = _python_state(self.conn)

    def handler_tx(self) -> AbstractContextManager[AnyConnection]:
        return nullcontext(self.conn)

    def settle(self, *, committed: bool) -> None:
        pass


Held = TypeVar("Held", bound=Checkout)


@contextmanager
def giving_back(checkout: Held) -> Iterator[Held]:
    """Give it back at the end of the block."""
    try:
        yield checkout
    except psycopg.Error:  # perhaps of the session: of a server that has become a replica, say
        checkout.spoiled = True
        raise
    finally:
        checkout.return_to_pool()


def allow_prepare(conn: AnyConnection) -> None:
    """Let psycopg prepare what is sent often on a connection of our own, which leads to the server itself."""
    conn.prepare_threshold = _PREPARE_AFTER
    prepared = conn._prepared
    if not may_prepare(conn):
        add = partial(_add_to_prepared, conn, prepared.maybe_add_to_cache)
        prepared.maybe_add_to_cache = add  # type: ignore[method-assign]


def may_prepare(conn: AnyConnection) -> bool:
    """Whether that was done on this connection, if perhaps somebody has set it back since."""
    return "maybe_add_to_cache" in vars(conn._prepared)


def _add_to_prepared(conn: AnyConnection, add: Callable[..., Any], query: Any, prepare: Any, name: bytes) -> Any:
    """Psycopg is about to send this. By itself it notices a DEALLOCATE only where that is sent for the first time, and
    would go on with what is gone."""
    if name or _ENDS_WHAT_IS_PREPARED.search(query.query.upper()) is None:
        return add(query, prepare, name)
    conn._prepared.clear()  # behind the statement psycopg deallocates what is still there
    for transport in vars(conn).get("_pgjobs_transports", {}).values():
        transport.forget()
    return None


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
