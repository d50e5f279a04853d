"""Where connections come from: the application's own, borrowed for an enqueue; a source's, held for work.

`PoolSource` is a psycopg pool. The sources in `pgjobs.contrib` take the connections for handlers from a framework, and
have a small pool for pgjobs itself. No framework is imported here: where an object of one is, its module is loaded.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from psycopg import Connection
from psycopg_pool import ConnectionPool, PoolClosed

from pgjobs.db.checkout import Checkout, PoolCheckout, giving_back
from pgjobs.db.cursors import AnyConnection
from pgjobs.db.dsn import check_url, for_libpq, read_dsn
from pgjobs.db.own_pool import OwnConnection, OwnPool, has_ended
from pgjobs.errors import PoolTooSmall
from pgjobs.forking import PerProcess, check_pool, opened_before_fork, this_process

# Where the connection string says nothing else. A dead peer is noticed within half a minute, not after the two hours of
# the operating system.
CONNECTION_DEFAULTS: dict[str, Any] = {
    "application_name": "pgjobs",
    "client_encoding": "UTF8",
    "connect_timeout": 10,
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
    "prepare_threshold": None,  # named statements would collide behind a pooler in transaction mode
}

# Connections beside one for each worker thread: maintenance, and one for an enqueue of the application.
SPARE_CONNECTIONS = 2


def defaults_for(dsn: str) -> dict[str, Any]:
    """The settings of a connection that its connection string leaves open; InvalidSetting if it is none."""
    said = read_dsn(dsn)
    return {name: value for name, value in CONNECTION_DEFAULTS.items() if name not in said}


class PoolSource:
    """Connections of a `psycopg_pool.ConnectionPool`: of one that is given, or of one that each process makes for
    itself when it needs it first."""

    batches = True  # whether several handlers may share a transaction

    def __init__(self, pool: ConnectionPool[Any] | Callable[[], OwnPool]) -> None:
        self.owned = not isinstance(pool, ConnectionPool)
        self._used: PerProcess[Counter[str]] = PerProcess(Counter)  # the threads of all worker pools on it
        if isinstance(pool, ConnectionPool):
            if isinstance(pool.conninfo, str):
                check_url(pool.conninfo)
            check_pool(pool)
            self._pools = PerProcess(partial(self._given, pool, None if pool.closed else this_process()))
        else:
            self._pools = PerProcess(partial(self._own, pool))

    @property
    def pool(self) -> ConnectionPool[Any]:
        """Raises UsedAfterFork when it was given, and opened before this process was forked."""
        return self._pools.get()

    def _given(self, pool: ConnectionPool[Any], opened_in: object) -> ConnectionPool[Any]:
        if opened_in not in (None, this_process()) and not pool.closed:
            raise opened_before_fork(pool)
        check_pool(pool)
        return pool

    def _own(self, make: Callable[[], OwnPool]) -> ConnectionPool[Any]:
        pool = make()
        weakref.finalize(self, pool.close).atexit = False  # then the pool sees to it, behind the program's own ends
        return pool

    def make_room(self, threads: int) -> None:
        """See to it that so many threads can hold a connection each, or raise PoolTooSmall."""
        used = self._used.get()
        self._fit(used["threads"] + threads)
        used["threads"] += threads

    def _fit(self, threads: int) -> None:
        needed = threads + SPARE_CONNECTIONS
        if self.pool.max_size == 0 or self.pool.max_size >= needed:  # 0: a NullConnectionPool without a limit
            return
        if not self.owned:
            raise PoolTooSmall(
                f"{threads} worker threads need a connection pool of at least {needed} "
                f"({SPARE_CONNECTIONS} to spare); this one has max_size={self.pool.max_size}"
            )
        self.pool.resize(self.pool.min_size, needed)

    def give_room_back(self, threads: int) -> None:
        """So many threads have ended."""
        self._used.get()["threads"] -= threads

    @contextmanager
    def checkout(self) -> Iterator[Checkout]:
        """A connection to run jobs on, in autocommit mode: the statements of pgjobs say BEGIN themselves."""
        with self.own_checkout() as checkout:
            yield checkout

    @contextmanager
    def own_checkout(self) -> Iterator[Checkout]:
        """A connection for what pgjobs does itself, whatever kind the handlers are given."""
        with giving_back(PoolCheckout(self.pool, may_prepare=self.owned)) as checkout:
            yield checkout

    @contextmanager
    def transaction(self) -> Iterator[AnyConnection]:
        """A connection in a transaction of its own, committed at the end."""
        with live_connection(self.pool) as conn, conn.transaction():
            yield conn

    def connect(self, dsn: str | None = None) -> AnyConnection:
        """A connection beside the pool, in autocommit mode, for one who keeps it for long."""
        if dsn is not None:
            return Connection.connect(for_libpq(dsn), autocommit=True, **defaults_for(dsn))
        kwargs: dict[str, Any] = dict(_value(self.pool.kwargs) or {})
        kwargs["autocommit"] = True
        conninfo = _value(self.pool.conninfo)
        check_url(conninfo)
        conn: AnyConnection = self.pool.connection_class.connect(conninfo, **kwargs)
        return conn

    @contextmanager
    def first_connection(self) -> Iterator[AnyConnection]:
        """A connection to begin with. Not from a pool of our own: that would try again for half a minute, and then not
        say why, when the server or the database is not there."""
        if self.owned and self.pool.closed:
            raise PoolClosed("the client is closed")
        with self.connect() if self.owned else self.pool.connection() as conn:
            yield conn

    def drop_idle(self) -> None:
        """Some connection has fallen silent: let none that idles be used again, where the pool can do that."""
        with suppress(AttributeError):  # before psycopg_pool 3.3
            self.pool.drain()

    def close(self) -> None:
        """Close the pool that this process has made; in a child never the parent's."""
        if self.owned:
            self.pool.close()


@contextmanager
def in_autocommit(conn: AnyConnection) -> Iterator[None]:
    """For as long as the block, each statement is a transaction: one round trip in place of three."""
    before = conn.autocommit
    conn.autocommit = True
    try:
        yield
    finally:
        if not conn.closed:
            conn.autocommit = before


@contextmanager
def live_connection(pool: ConnectionPool[Any]) -> Iterator[AnyConnection]:
    """As `pool.connection()`, but none that the server has ended while it was idle."""
    while True:
        with pool.connection() as conn:
            if has_ended(conn):
                conn.close()  # the pool makes another
                continue
            yield conn
        return


def own_pool(connect: Callable[[], AnyConnection]) -> OwnPool:
    """A pool of connections that a function makes: for pgjobs itself, beside those of a framework."""

    class Made(OwnConnection):
        @classmethod
        def connect(cls, conninfo: str = "", *, autocommit: bool = False, **kwargs: Any) -> Any:
            conn = connect()
            conn.autocommit = autocommit
            return conn

    return OwnPool(make=Made)


def _value(setting: Any) -> Any:
    return setting() if callable(setting) else setting
