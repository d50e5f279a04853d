"""Where connections come from: the application's own, borrowed for an enqueue; a source's, held for work.

`PoolSource` is a psycopg pool. The sources in `pgjobs.contrib` take the connections for handlers from a framework, and
have a small pool for pgjobs itself. No framework is imported here: where an object of one is, its module is loaded.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Protocol

from psycopg import Connection, Cursor, Transaction
from psycopg_pool import ConnectionPool, PoolClosed

from pgjobs.db.checkout import Checkout, PoolCheckout, giving_back
from pgjobs.db.cursors import AnyConnection
from pgjobs.db.dsn import check_url, for_libpq, read_dsn
from pgjobs.db.inherited import drop_inherited, opened_here, remember_engine
from pgjobs.db.own_pool import OwnConnection, OwnPool, has_ended
from pgjobs.errors import InvalidTransaction, PoolTooSmall, shown
from pgjobs.forking import PerProcess, check_pool, opened_before_fork, this_process


class HasConnection(Protocol):
    """What all of these have, each in its own way: a psycopg Cursor and Transaction; a SQLAlchemy Session,
    scoped_session and Connection; a connection of Django's."""

    @property
    def connection(self) -> Any: ...


#: What `enqueue` takes as its `tx`: a psycopg connection, one of those, or an alias of Django's. None, which is not
#: among them, is a transaction of its own.
Borrowable = Connection[Any] | HasConnection | str

_WANTED = (
    "tx is a psycopg 3 Connection, Cursor or Transaction; a SQLAlchemy Session, scoped_session or Connection; a Django "
    "connection or alias; or None for a transaction of its own"
)

_ASYNC = (
    "tx {} belongs to an asynchronous connection, which pgjobs cannot use, also not in run_sync(): enqueue in a thread "
    "(asyncio.to_thread), on a psycopg Connection or a Session of a synchronous engine, together with what belongs to "
    "the job"
)

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


def borrow(tx: object) -> Connection[Any]:
    """The psycopg connection behind what the application calls its transaction. Nothing is executed on it.

    pgjobs never calls `connection.transaction()` on it: as the first statement that block would commit the caller's
    transaction. A Session or a Connection of SQLAlchemy that has not begun begins, as it does for any statement: it
    would not commit what it does not know of.
    """
    match tx:
        case Connection():
            return opened_here(tx)
        case Cursor() | Transaction():
            return opened_here(tx.connection)
    found = _behind_sqlalchemy(tx)
    if found is None:
        found = _behind_django(tx)
    if isinstance(found, Connection):
        return opened_here(found)
    if found is not None:
        if _is_async(found):
            raise InvalidTransaction(_ASYNC.format(shown(tx)))
        raise InvalidTransaction(
            f"tx {shown(tx)} is connected by {type(found).__module__.partition('.')[0]}, and pgjobs needs psycopg 3: "
            "a URL of SQLAlchemy says postgresql+psycopg://, Django takes it where psycopg2 is not installed"
        )
    if _is_async(tx):
        raise InvalidTransaction(_ASYNC.format(shown(tx)))
    raise InvalidTransaction(f"{_WANTED}; not {shown(tx)}")


def _is_async(tx: object) -> bool:
    """Whether it is an asynchronous connection, or a session on one: of psycopg, asyncpg, or SQLAlchemy."""
    return "async" in f"{type(tx).__module__}.{type(tx).__name__}".lower()


def _behind_sqlalchemy(tx: Any) -> object:
    """The driver's connection; None when `tx` is not SQLAlchemy's."""
    engine, orm = sys.modules.get("sqlalchemy.engine"), sys.modules.get("sqlalchemy.orm")
    if orm is not None and isinstance(tx, (orm.Session, orm.scoped_session)):
        tx = tx.connection()  # flushes nothing
    if engine is None or not isinstance(tx, engine.Connection):
        return None
    remember_engine(tx.engine)
    if not tx.in_transaction():
        tx.begin()
    found: object = tx.connection.driver_connection
    return found


def _behind_django(tx: Any) -> object:
    """The driver's connection; None when `tx` is not Django's."""
    db, base = sys.modules.get("django.db"), sys.modules.get("django.db.backends.base.base")
    if db is None:
        return None
    if isinstance(tx, str):
        aliases = _django_aliases(db)
        if tx not in aliases:
            known = ", ".join(map(repr, aliases)) or "none, since it is not configured here"
            raise InvalidTransaction(f"{_WANTED}; {tx!r} is none of Django's aliases: {known}")
        tx = db.connections[tx]
    elif base is None or not isinstance(tx, (base.BaseDatabaseWrapper, type(db.connection))):
        return None
    drop_inherited(tx)
    with tx.cursor():  # connects, or finds out that the connection has died, as for any statement; sends nothing
        tx.validate_no_broken_transaction()
    found: object = tx.connection
    return found


def _django_aliases(db: Any) -> list[str]:
    try:
        return list(db.connections)
    except Exception:  # Django was imported, but has no settings
        return []


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
        with self.own_checkout() as held:
            yield held

    @contextmanager
    def own_checkout(self) -> Iterator[Checkout]:
        """A connection for what pgjobs does itself, whatever kind the handlers are given."""
        with giving_back(PoolCheckout(self.pool, may_prepare=self.owned)) as held:
            yield held

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
