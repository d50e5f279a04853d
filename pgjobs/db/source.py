"""A source: where a client and its worker pools take connections from.

`PoolSource` takes them from a psycopg pool. The sources in `pgjobs.contrib` take the connections for handlers from a
framework, and have a small psycopg pool for pgjobs itself.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import Any

from psycopg import Connection
from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolClosed

from pgjobs.db.borrow import Borrowable, borrow
from pgjobs.db.borrowed_checkout import BorrowedCheckout
from pgjobs.db.checkout import Checkout, PoolCheckout, returning
from pgjobs.db.connection import OwnConnection, has_ended
from pgjobs.db.cursors import AnyConnection
from pgjobs.db.dsn import check_url, for_libpq, read_dsn
from pgjobs.db.own_pool import OwnPool, made_by_frameworks
from pgjobs.errors import InvalidSetting, PoolTooSmall
from pgjobs.forking import PerProcess, check_pool, opened_before_fork, this_process

# Used where the connection string does not set them. With these, a dead peer is noticed within half a minute; with the
# defaults of the operating system, after two hours.
CONNECTION_DEFAULTS: dict[str, Any] = {
    "application_name": "pgjobs",
    "client_encoding": "UTF8",
    "connect_timeout": 10,
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
    "prepare_threshold": None,  # prepared statements of several clients would collide behind a pooler
}

# Connections besides one per worker thread: for maintenance, and for an enqueue by the application.
SPARE_CONNECTIONS = 2


def defaults_for(dsn: str) -> dict[str, Any]:
    """The defaults that this connection string does not set; InvalidSetting if it is not a connection string."""
    given = read_dsn(dsn)
    return {name: value for name, value in CONNECTION_DEFAULTS.items() if name not in given}


class PoolSource:
    """Connections of a `psycopg_pool.ConnectionPool`: the application's, or one that each process makes for itself at
    its first use."""

    batches = True  # whether several handlers may share a transaction

    def __init__(self, pool: ConnectionPool[Any] | Callable[[], OwnPool]) -> None:
        self.owned = not isinstance(pool, ConnectionPool)
        self._used: PerProcess[Counter[str]] = PerProcess(Counter)  # by all worker pools with this source: "threads"
        if isinstance(pool, ConnectionPool):
            if isinstance(pool.conninfo, str):
                check_url(pool.conninfo)
            check_pool(pool)
            self._pools = PerProcess(partial(self._checked, pool, None if pool.closed else this_process()))
        else:
            self._pools = PerProcess(partial(self._make, pool))

    @property
    def pool(self) -> ConnectionPool[Any]:
        """The pool of this process. Raises UsedAfterFork if the application opened the pool before the fork."""
        return self._pools.get()

    def _checked(self, pool: ConnectionPool[Any], opened_in: object) -> ConnectionPool[Any]:
        if opened_in not in (None, this_process()) and not pool.closed:
            raise opened_before_fork(pool)
        check_pool(pool)
        return pool

    def _make(self, make: Callable[[], OwnPool]) -> ConnectionPool[Any]:
        pool = make()
        weakref.finalize(self, pool.close).atexit = False  # at exit own_pool.py closes it, later than this would
        return pool

    def reserve_connections(self, threads: int) -> None:
        """Reserve a connection for each of these threads: our own pool grows, another one must be large enough, or this
        raises PoolTooSmall."""
        used = self._used.get()
        self.ensure_size(used["threads"] + threads, grow=True)
        used["threads"] += threads

    @property
    def reserved_threads(self) -> int:
        """For how many threads of this process connections are reserved."""
        return self._used.get()["threads"]

    def ensure_size(self, threads: int, *, grow: bool) -> None:
        """Raise PoolTooSmall if the pool has no connection for each of so many threads, and some to spare. Our own pool
        can grow, and does so if `grow`."""
        needed = threads + SPARE_CONNECTIONS
        if self.pool.max_size == 0 or self.pool.max_size >= needed:  # 0 is a NullConnectionPool without a limit
            return
        if not self.owned:
            raise PoolTooSmall(
                f"{threads} worker threads need a connection pool of at least {needed} "
                f"({SPARE_CONNECTIONS} to spare); this one has max_size={self.pool.max_size}"
            )
        if grow:
            self.pool.resize(self.pool.min_size, needed)

    def release_connections(self, threads: int) -> None:
        """End the reservation of `reserve_connections`."""
        self._used.get()["threads"] -= threads

    def checkout(self) -> AbstractContextManager[Checkout]:
        """A connection to run jobs on, in autocommit mode: the statements of pgjobs send BEGIN themselves."""
        return self.own_checkout()

    def own_checkout(self) -> AbstractContextManager[Checkout]:
        """A connection for pgjobs itself, from a psycopg pool even if handlers get connections of a framework."""
        return returning(PoolCheckout(self.pool, may_prepare=self.owned))

    @contextmanager
    def checkout_within(self, tx: Borrowable) -> Iterator[Checkout]:
        """The connection of the caller's transaction, to run jobs inside of that, with a transport that ends none."""
        yield BorrowedCheckout(borrow(tx))

    @contextmanager
    def transaction(self) -> Iterator[AnyConnection]:
        """A connection in a new transaction, which is committed at the end of the block."""
        with live_connection(self.pool) as conn, conn.transaction():
            yield conn

    def connect(self, dsn: str | None = None) -> AnyConnection:
        """A new connection outside the pool, in autocommit mode, for a caller that keeps it for a long time."""
        if dsn is not None:
            return Connection.connect(for_libpq(dsn), autocommit=True, **defaults_for(dsn))
        pool = self.pool
        # Without startup options: a server must not cancel the build of an index because its client is gone.
        kwargs: dict[str, Any] = dict(pool.given if isinstance(pool, OwnPool) else _value(pool.kwargs) or {})
        kwargs["autocommit"] = True
        conninfo = _value(pool.conninfo)
        check_url(conninfo)
        conn: AnyConnection = pool.connection_class.connect(conninfo, **kwargs)
        return conn

    @contextmanager
    def first_connection(self) -> Iterator[AnyConnection]:
        """A connection for the first statements of a program. It bypasses our own pool, which would retry for half a
        minute while the server is unreachable. Our own pool learns from it which startup options it can use; a process
        that only enqueues does not call this, so it pays nothing for them."""
        pool = self.pool
        if self.owned and pool.closed:
            raise PoolClosed("the client is closed")
        with self.connect() if self.owned else pool.connection() as conn:
            if isinstance(pool, OwnPool):
                pool.learn_options(conn)
            yield conn

    @property
    def is_failing(self) -> bool:
        """Whether the last attempt of our own pool to connect failed. Callers may wait half a minute for the next one
        before they learn of it."""
        pool = self.pool
        return isinstance(pool, OwnPool) and pool.is_failing

    def discard_idle(self) -> None:
        """Discard the pool's idle connections, after one connection has stopped answering."""
        with suppress(AttributeError):  # psycopg_pool before 3.3 has no drain()
            self.pool.drain()

    def close(self) -> None:
        """Close the pool, if this process made it. A child never closes its parent's pool."""
        if self.owned:
            self.pool.close()


def source_of(pool: object) -> PoolSource:
    """The source that a client is made with. Raises InvalidSetting for what is none."""
    if isinstance(pool, PoolSource):
        return pool
    if isinstance(pool, ConnectionPool):
        return PoolSource(pool)
    if isinstance(pool, str) and pool:
        return PoolSource(partial(OwnPool, for_libpq(pool), defaults_for(pool)))
    if isinstance(pool, AsyncConnectionPool):
        raise InvalidSetting(
            "pool must not be an AsyncConnectionPool, since workers and most calls are synchronous: give the "
            "connection string, and pass connections of that pool to aenqueue"
        )
    # without the value, which may be a URL with a password
    raise InvalidSetting(
        "pool must be a connection string, a psycopg_pool.ConnectionPool or a source, not "
        + ("empty" if pool == "" else f"of type {type(pool).__name__}")
    )


@contextmanager
def in_autocommit(conn: AnyConnection) -> Iterator[None]:
    """In this block each statement is a transaction of its own: one round trip instead of three."""
    before = conn.autocommit
    conn.autocommit = True
    try:
        yield
    finally:
        if not conn.closed:
            conn.autocommit = before


@contextmanager
def live_connection(pool: ConnectionPool[Any]) -> Iterator[AnyConnection]:
    """Like `pool.connection()`, but skips connections that the server has closed while they were idle."""
    while True:
        with pool.connection() as conn:
            if has_ended(conn):
                conn.close()  # the pool opens another one
                continue
            yield conn
        return


def own_pool(connect: Callable[[], AnyConnection]) -> OwnPool:
    """A pool for pgjobs itself whose connections are made by this function, for the sources of frameworks."""

    class Made(OwnConnection):
        @classmethod
        def connect(cls, conninfo: str = "", *, autocommit: bool = False, **kwargs: Any) -> Any:
            conn = connect()
            conn.autocommit = autocommit
            made_by_frameworks.add(conn)
            return conn

    return OwnPool(make=Made)


def _value(setting: Any) -> Any:
    return setting() if callable(setting) else setting
