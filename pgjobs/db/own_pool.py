"""The connection pool that a client makes for itself, and the check whether an idle connection is still alive.

psycopg's pool connects in threads of its own, again and again, and its callers learn only that it took too long. This
pool tells them the server's reason: at once if another try cannot help, else when the time is up.
"""

from __future__ import annotations

import atexit
import re
import select
import time
from collections.abc import Callable, Mapping
from os import getpid
from typing import Any
from weakref import WeakSet

import psycopg
from psycopg import Connection
from psycopg.pq import ConnStatus
from psycopg_pool import ConnectionPool, PoolTimeout

from pgjobs.clean_text import clean
from pgjobs.db.cursors import AnyConnection
from pgjobs.db.inherited import opened_here
from pgjobs.errors import CannotConnect, UsedAfterFork
from pgjobs.forking import check_pool, connection_of_parent, this_process

MAX_IDLE = 10.0

_FIRST_PAUSE = 0.2  # seconds between two tries to connect; doubles
_LONGEST_PAUSE = 2.0
_OK = int(ConnStatus.OK)
_MOST_MESSAGES = 10  # that wait on an idle connection; then it lives, for all that can be told
_REASON_LIMIT = 2000

# Answers that stay the same however often one asks. Only the text tells: libpq keeps no SQLSTATE of a connection that
# failed. Of a server that speaks another language, or is starting up, full or unreachable, nothing here is found.
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
    """Whether another try to connect would end in the same way."""
    if not isinstance(error, psycopg.OperationalError):
        return True  # of the code that makes connections, or the settings that it was given
    text = str(error)
    return _NO_HOST.match(text) is not None or _REFUSALS.search(text) is not None


_wait = Connection.wait


class OwnConnection(Connection[Any]):
    """A connection of our own pool, which a forked child leaves alone."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._pgjobs_process = this_process()
        self._pid = getpid()

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        if self._pid != getpid():
            raise connection_of_parent()
        return _wait(self, *args, **kwargs)

    def close(self) -> None:
        if self._pid == getpid():  # else it would tell the server that the parent's session is over
            super().close()


def pool_of_parent() -> UsedAfterFork:
    return UsedAfterFork(
        "this connection pool was made before the process forked, and its connections are the parent's: take "
        "client.pool anew in the child"
    )


def has_ended(conn: AnyConnection) -> bool:
    """Whether the server has ended an idle connection, judged by what has arrived here. Sends nothing, never blocks."""
    pgconn = conn.pgconn
    if pgconn.status != _OK:
        return True
    arrived: Callable[[int], Any] | None = conn.__dict__.get("_pgjobs_arrived")
    if arrived is None:
        poll = select.poll()
        poll.register(pgconn.socket, select.POLLIN)
        arrived = conn.__dict__["_pgjobs_arrived"] = poll.poll
    if not arrived(0):
        return False
    for _ in range(_MOST_MESSAGES):  # an end, or what a server says unasked: a notice, a notification, a setting
        try:
            pgconn.consume_input()
            pgconn.is_busy()  # reads what has come
        except psycopg.Error:
            return True
        if pgconn.status != _OK:
            return True
        if not arrived(0):
            return False
    return False


class _Attempts:
    """How often the pool tries to connect: as long as a caller waits for it, unless that is in vain."""

    def __init__(self, pool: OwnPool, *, growing: bool) -> None:
        self.delay = 0.0  # seconds until the next try
        self._pool = pool
        self._growing = growing

    def update_delay(self, now: float) -> None:
        self.delay = min(2 * self.delay, _LONGEST_PAUSE) or _FIRST_PAUSE

    def time_to_give_up(self, now: float) -> bool:
        # the replacement of a lost connection leaves it to the next caller, who makes the pool grow
        return not self._growing or self._pool.is_refused or not self._pool.is_waited_for


_made: WeakSet[OwnPool] = WeakSet()


def _at_exit() -> None:
    """The threads of a pool would not notice in time that the process ends without a close()."""
    for pool in list(_made):
        pool.close()


# Here, before there is a pool: what was registered last is called first, and what the program has registered may still
# need its connections.
atexit.register(_at_exit)


class OwnPool(ConnectionPool[Any]):
    """A pool of connections to one server, made by `make.connect(conninfo, **kwargs)`."""

    def __init__(
        self, conninfo: str = "", kwargs: Mapping[str, Any] | None = None, *, make: type[AnyConnection] = OwnConnection
    ) -> None:
        self._pid = getpid()
        self._failure: Exception | None = None  # of the last try to connect, if that failed
        _made.add(self)
        super().__init__(
            conninfo,
            kwargs=dict(kwargs or {}),
            connection_class=make,
            min_size=0,
            max_size=10,
            max_idle=MAX_IDLE,
            reconnect_timeout=0.0,
            open=True,
            name="pgjobs",
        )

    def getconn(self, timeout: float | None = None) -> AnyConnection:
        """A connection that the server has not ended meanwhile, for all that can be told without asking it."""
        if self._pid != getpid():
            raise pool_of_parent()
        seconds = self.timeout if timeout is None else timeout
        give_up = time.monotonic() + seconds
        try:
            conn: AnyConnection = super().getconn(timeout)
            while has_ended(conn):
                conn.close()
                self.putconn(conn)  # the pool makes another
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
        """In a child this leaves the parent's connections alone."""
        if self._pid == getpid():
            super().close(timeout)

    def __del__(self) -> None:
        if getattr(self, "_pid", None) == getpid():  # else it would wait for threads of the parent's
            super().__del__()

    # --- when connecting fails; psycopg's pool has no public way to tell those who wait

    @property
    def is_refused(self) -> bool:
        return self._failure is not None and is_refusal(self._failure)

    @property
    def is_waited_for(self) -> bool:
        """Whether a caller waits; those that have given up stay in the queue until there is a connection."""
        with self._lock:
            return any(each.error is None for each in self._waiting)

    def _connect(self, timeout: float | None = None) -> AnyConnection:
        try:
            conn: AnyConnection = super()._connect(timeout)
        except Exception as error:
            self._failure = error
            raise
        self._failure = None
        return conn

    def _add_connection(self, attempt: Any, growing: bool = False) -> None:
        attempts: Any = attempt or _Attempts(self, growing=growing)
        super()._add_connection(attempts, growing=growing)

    def reconnect_failed(self) -> None:
        """The pool has given up one connection."""
        failure, refused = self._failure, self.is_refused
        if not self.is_waited_for:
            return
        with self._lock:
            if not refused:
                self._maybe_grow_pool()
                return
            if self._nconns > 0:  # others live, and will be given back
                return
            waiting = list(self._waiting)
            self._waiting.clear()
        for each in waiting:
            refusal = CannotConnect(_reason(failure))
            refusal.__cause__ = failure
            each.fail(refusal)


def live(pool: ConnectionPool[Any]) -> AnyConnection:
    """A connection of any pool that the server has not ended meanwhile, for all that can be told without asking it."""
    if isinstance(pool, OwnPool):
        return pool.getconn()
    check_pool(pool)
    while True:
        conn: AnyConnection = pool.getconn()
        if not has_ended(conn):
            return opened_here(conn)
        conn.close()
        pool.putconn(conn)  # the pool makes another


def say_that_it_may_exist(error: psycopg.Error) -> None:
    """Add to the error of a connection that was lost after a job was sent that the job may exist."""
    text = str(error).rstrip() or "the connection was lost"
    error.args = (f"{text}\nThe answer of the server was lost, so the job may exist or not: look before you enqueue it "
                  "again, or enqueue it with unique=",)  # fmt: skip


def _reason(failure: BaseException | None) -> str:
    return clean(str(failure), _REASON_LIMIT)
