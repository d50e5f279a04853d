"""The connection pool that a client makes for itself.

psycopg's pool connects in background threads and retries; its callers learn only that it took too long. This pool also
raises the server's reason: at once if a retry cannot help, as with a wrong password, else at the timeout.
"""

from __future__ import annotations

import atexit
import logging
import re
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from os import getpid
from typing import Any
from weakref import WeakSet

import psycopg
from psycopg.pq import TransactionStatus
from psycopg_pool import ConnectionPool, PoolTimeout

from pgjobs.clean_text import clean, one_line
from pgjobs.db.connection import OwnConnection, has_ended
from pgjobs.db.cursors import AnyConnection
from pgjobs.db.inherited import opened_here
from pgjobs.db.startup_options import is_refusal_of_options, startup_options
from pgjobs.errors import CannotConnect, UsedAfterFork
from pgjobs.forking import check_pool
from pgjobs.loggers import demote, get_logger

log = get_logger("pgjobs.pool")


class _Name(str):
    """The name of a pool of ours, by which its log records are known: the application may use the same text."""

    __slots__ = ()


#: Connections that a framework has made for a pool of ours.
made_by_frameworks: WeakSet[AnyConnection] = WeakSet()


def _is_ours(record: logging.LogRecord) -> bool:
    values = record.args if isinstance(record.args, tuple) else ()
    return any(isinstance(value, _Name | OwnConnection) or _is_made(value) for value in values)


def _is_made(value: object) -> bool:
    return isinstance(value, psycopg.Connection) and value in made_by_frameworks


# psycopg_pool warns at each try to connect and of each connection that it replaces. The callers get the errors, and the
# parts of a worker pool log together that the database is down (outages.py).
demote("psycopg.pool", _is_ours)

MAX_IDLE = 10.0

_FIRST_PAUSE = 0.2  # seconds between two attempts to connect; doubles each time
_LONGEST_PAUSE = 2.0
_REASON_LIMIT = 2000

# Errors that a retry cannot help. They are recognised by their text, since libpq keeps no SQLSTATE of a failed
# connection. So pgjobs retries a server with messages in another language, like a server that is starting, full or
# unreachable.
_REFUSALS = re.compile(
    r"""
    password\ authentication\ failed | authentication\ failed\ for\ user | authentication\ failed\ for\ \S+\ user
    | no\ password\ supplied | SASL\ authentication\ failed
    | (?:role|database|user)\ "[^"]*"\ does\ not\ exist | no\ such\ (?:database|user)
    | no\ pg_hba\.conf\ entry | pg_hba\.conf\ rejects | is\ not\ permitted\ to\ log\ in
    | permission\ denied\ for\ database | is\ not\ currently\ accepting\ connections
    | unrecognized\ configuration\ parameter | invalid\ value\ for\ parameter | unsupported\ startup\ parameter
    | invalid\ connection\ option | invalid\ \S+\ value | invalid\ port\ number | invalid\ integer\ value
    | does\ not\ support\ SSL,\ but\ SSL\ was\ required | certificate\ verify\ failed
    | root\ certificate\ file\ .*\ does\ not\ exist | requires\ a\ valid\ client\ certificate
    | definition\ of\ service\ .*\ not\ found | service\ file\ .*\ not\ found | syntax\ error\ in\ service\ file
    | could\ not\ (?:open|read|load)\ (?:certificate|private\ key|root\ certificate)\ file | private\ key\ file
    | authentication\ method\ requirement | channel\ binding\ (?:is\ )?required
    | invalid\ response\ to\ SSL\ negotiation
    """,
    re.VERBOSE | re.IGNORECASE,
)
_NO_HOST = re.compile(r"\A(?:failed to resolve host|could not translate host name|.*Name or service not known)")


def is_refusal(error: BaseException) -> bool:
    """Whether another attempt to connect would fail in the same way."""
    if not isinstance(error, psycopg.OperationalError):
        return True  # an error in the code that connects, or in its settings
    text = str(error)
    return _NO_HOST.match(text) is not None or _REFUSALS.search(text) is not None


def pool_of_parent() -> UsedAfterFork:
    return UsedAfterFork(
        "this connection pool was made before the process forked, and its connections are the parent's: use "
        "client.pool again in the child, which then has a pool of its own"
    )


class _Attempts:
    """Decides when the pool retries: while a caller waits for a connection, unless the server refuses."""

    def __init__(self, pool: OwnPool, *, growing: bool) -> None:
        self.delay = 0.0  # seconds until the next attempt
        self._pool = pool
        self._growing = growing

    def update_delay(self, now: float) -> None:
        self.delay = min(2 * self.delay, _LONGEST_PAUSE) or _FIRST_PAUSE

    def time_to_give_up(self, now: float) -> bool:
        # a lost connection is replaced without retries: the next caller makes the pool grow again
        return not self._growing or self._pool.is_refused or not self._pool.is_waited_for


_made: WeakSet[OwnPool] = WeakSet()


def _at_exit() -> None:
    """Without a close() the threads of a pool would notice too late that the process ends."""
    for pool in list(_made):
        pool.close()


# Registered at import, before the program's own functions: atexit calls those first, and they may need connections.
atexit.register(_at_exit)


class OwnPool(ConnectionPool[Any]):
    """A pool of connections to one server, made by `make.connect(conninfo, **kwargs)`."""

    def __init__(
        self, conninfo: str = "", kwargs: Mapping[str, Any] | None = None, *, make: type[AnyConnection] = OwnConnection
    ) -> None:
        self._pid = getpid()
        self._failure: Exception | None = None  # of the last attempt to connect; None if it succeeded
        self.given: dict[str, Any] = dict(kwargs or {})  # `kwargs` without startup options of ours
        self._dsn = conninfo
        self._learning = threading.Lock()  # taken for good by `learn_options`
        if make is not OwnConnection:  # a framework's connections have the framework's settings
            self._learning.acquire()
        _made.add(self)
        super().__init__(
            conninfo,
            kwargs=self.given,
            connection_class=make,
            min_size=0,
            max_size=10,
            max_idle=MAX_IDLE,
            reconnect_timeout=0.0,
            open=True,
            name=_Name("pgjobs"),
        )

    def getconn(self, timeout: float | None = None) -> AnyConnection:
        """A connection that the server has not closed, as far as can be known without a round trip."""
        if self._pid != getpid():
            raise pool_of_parent()
        seconds = self.timeout if timeout is None else timeout
        give_up = time.monotonic() + seconds
        try:
            conn: AnyConnection = super().getconn(timeout)
            while has_ended(conn):
                conn.close()
                self.putconn(conn)  # the pool opens another one
                conn = super().getconn(give_up - time.monotonic())
        except PoolTimeout:
            failure = self._failure
            why = "" if failure is None else f"; the last try to connect failed: {_reason(failure)}"
            raise PoolTimeout(f"couldn't get a connection after {seconds:.2f} sec{why}") from failure
        return conn

    def putconn(self, conn: AnyConnection) -> None:
        if self._pid == getpid():
            super().putconn(conn)

    def close(self, timeout: float = 5.0) -> None:
        """Does nothing in a child: the connections are the parent's."""
        if self._pid == getpid():
            super().close(timeout)

    def __del__(self) -> None:
        if getattr(self, "_pid", None) == getpid():  # a child would wait for threads that only the parent has
            super().__del__()

    # --- startup options

    def learn_options(self, conn: AnyConnection) -> None:
        """Find out whether further connections can have startup options. `conn` has the same parameters as they, but no
        startup options of ours. Asks the server once; does nothing inside a transaction."""
        if conn.info.transaction_status != TransactionStatus.IDLE or not self._learning.acquire(blocking=False):
            return  # the lock is kept: once is enough
        options = None
        with suppress(psycopg.Error, ValueError):  # everything works without them too
            options = startup_options(conn, self._dsn)
        if options is None:
            return
        self.kwargs = {**self.given, "options": options}
        if self.get_stats()["pool_size"] > 0:
            self.replace_connections()

    def replace_connections(self) -> None:
        """Replace the idle connections now, and the others when they are returned."""
        with suppress(AttributeError):  # psycopg_pool before 3.3 has no drain()
            self.drain()

    def _drop_options(self, tried: object, error: psycopg.Error) -> bool:
        """Called when connecting with these kwargs failed. Returns whether to try again without startup options; then
        later connections have none either."""
        if tried is self.given or not is_refusal_of_options(error):
            return False
        if self.kwargs is tried:
            self.kwargs = self.given
            log.info("connections have no startup options from now on: %s", one_line(error))
        return True

    # --- when connecting fails; psycopg's pool has no public way to raise an error in its waiting callers

    @property
    def is_failing(self) -> bool:
        """Whether the last attempt to connect failed."""
        return self._failure is not None

    @property
    def is_refused(self) -> bool:
        return self._failure is not None and is_refusal(self._failure)

    @property
    def is_waited_for(self) -> bool:
        """Whether a caller waits. Callers that have given up stay in psycopg's queue, with an error, until a connection
        comes."""
        with self._lock:
            return any(each.error is None for each in self._waiting)

    def _connect(self, timeout: float | None = None) -> AnyConnection:
        tried = self.kwargs
        try:
            try:
                conn: AnyConnection = super()._connect(timeout)
            except psycopg.OperationalError as error:
                if not self._drop_options(tried, error):
                    raise
                conn = super()._connect(timeout)
        except Exception as error:
            self._failure = error
            raise
        self._failure = None
        return conn

    def _add_connection(self, attempt: Any, growing: bool = False) -> None:
        attempts: Any = attempt or _Attempts(self, growing=growing)
        super()._add_connection(attempts, growing=growing)

    def reconnect_failed(self) -> None:
        """psycopg calls this when it stops retrying one connection. If a retry cannot help and no connection is left,
        fail the waiting callers; else try again for them."""
        failure, refused = self._failure, self.is_refused
        if not self.is_waited_for:
            return
        with self._lock:
            if not refused:
                self._maybe_grow_pool()
                return
            if self._nconns > 0:  # the callers get the other connections once these are returned
                return
            waiting = list(self._waiting)
            self._waiting.clear()
        for each in waiting:
            refusal = CannotConnect(_reason(failure))
            refusal.__cause__ = failure
            each.fail(refusal)


def take_live(pool: ConnectionPool[Any]) -> AnyConnection:
    """A connection from any pool that the server has not closed, as far as can be known without a round trip."""
    if isinstance(pool, OwnPool):
        return pool.getconn()
    check_pool(pool)
    while True:
        conn: AnyConnection = pool.getconn()
        if not has_ended(conn):
            return opened_here(conn)
        conn.close()
        pool.putconn(conn)  # the pool opens another one


def explain_lost_answer(error: psycopg.Error) -> None:
    """Add to the error of a connection that was lost after an enqueue was sent: the job may exist."""
    text = str(error).rstrip() or "the connection was lost"
    error.args = (f"{text}\nThe answer of the server was lost, so the job may exist or not: look before you enqueue it "
                  "again, or enqueue it with unique=",)  # fmt: skip


def _reason(failure: BaseException | None) -> str:
    return clean(str(failure), _REASON_LIMIT)
