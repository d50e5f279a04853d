"""Finds the psycopg connection of the transaction that a caller passes as `tx`: `borrow` a synchronous one,
`borrow_async` an asynchronous one. Each refuses the other's, and says which call takes it.

No framework is imported here: if `tx` is an object of a framework, then its module is loaded already.
"""

from __future__ import annotations

import sys
from typing import Any, Protocol

from psycopg import AsyncConnection, AsyncCursor, AsyncTransaction, Connection, Cursor, Transaction
from psycopg_pool import ConnectionPool

from pgjobs.db.cursors import AnyAsyncConnection
from pgjobs.db.inherited import drop_inherited, opened_here, remember_engine
from pgjobs.errors import InvalidTransaction, shown_name


class HasConnection(Protocol):
    """An object with an attribute `connection`: a psycopg Cursor or Transaction; a SQLAlchemy Session, scoped_session
    or Connection; a Django connection. The attribute means something else in each."""

    @property
    def connection(self) -> Any: ...


class HasAsyncConnection(HasConnection, Protocol):
    """An AsyncSession, async_scoped_session or AsyncConnection of SQLAlchemy."""

    async def aclose(self) -> None: ...


#: A transaction of the caller's: a psycopg connection, one of the above, or a Django alias.
Borrowable = Connection[Any] | HasConnection | str

#: What the calls of a client accept as `tx`: a transaction of the caller's; or None or a pool, for one of their own.
Tx = Borrowable | ConnectionPool[Any] | None

#: What `aenqueue` accepts as its `tx`. It also accepts None.
AsyncBorrowable = AsyncConnection[Any] | AsyncCursor[Any] | AsyncTransaction | HasAsyncConnection


_WANTED = (
    "tx is a psycopg 3 Connection, Cursor or Transaction; a SQLAlchemy Session, scoped_session or Connection; a Django "
    "connection or alias; or None for a transaction of its own"
)
_WANTED_ASYNC = (
    "tx is a psycopg 3 AsyncConnection, AsyncCursor or AsyncTransaction; a SQLAlchemy AsyncSession, "
    "async_scoped_session or AsyncConnection; or None for a transaction of its own"
)
_ASYNC = (
    "tx {} belongs to an asynchronous connection: write await client.aenqueue(tx, ...), aenqueue_many or aget, outside "
    "of run_sync(); call any other method without this tx, in a thread, as in asyncio.to_thread(client.cancel, id)"
)
_SYNC = (
    "tx {} is synchronous, and a call on it would block the event loop: in the function and thread that work with it "
    "(asyncio.to_thread, Django's sync_to_async) write client.enqueue(tx, ...), enqueue_many or get"
)


def is_borrowed(tx: Tx) -> bool:
    """Whether the transaction is the caller's."""
    return not (tx is None or isinstance(tx, ConnectionPool))


def borrow(tx: object) -> Connection[Any]:
    """The psycopg connection behind the caller's transaction. Nothing is sent on it.

    Callers must not use `connection.transaction()` on it: if that block is the first to send something, its end commits
    the caller's transaction. A SQLAlchemy Session or Connection that has not begun begins here, as it would for any
    statement: without that its commit() would send nothing.
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
    raise InvalidTransaction(_why_not(tx, found))


async def borrow_async(tx: object) -> AnyAsyncConnection:
    """The psycopg connection behind the caller's asynchronous transaction, by the rules of `borrow`."""
    match tx:
        case AsyncConnection():
            return opened_here(tx)
        case AsyncCursor() | AsyncTransaction():
            return opened_here(tx.connection)
    found = await _behind_async_sqlalchemy(tx)
    if isinstance(found, AsyncConnection):
        return opened_here(found)
    raise InvalidTransaction(_why_not_async(tx, found))


# --- what is refused, and what to do instead


def _why_not(tx: object, found: object) -> str:
    """Why `borrow` refuses `tx`, behind which it found this connection, or None."""
    if isinstance(found, AsyncConnection):
        return _ASYNC.format(shown_name(tx))
    if found is not None or _is_asyncpg(tx):
        return _other_driver(tx, tx if found is None else found)
    return _ASYNC.format(shown_name(tx)) if _is_async(tx) else f"{_WANTED}; not {shown_name(tx)}"


def _why_not_async(tx: object, found: object) -> str:
    if found is not None or _is_asyncpg(tx):
        return _other_driver(tx, tx if found is None else found)
    return _SYNC.format(shown_name(tx)) if _is_sync(tx) else f"{_WANTED_ASYNC}; not {shown_name(tx)}"


def _is_async(tx: object) -> bool:
    """Whether this is an asynchronous connection, a session on one or a pool, of psycopg, asyncpg or SQLAlchemy."""
    return "async" in f"{type(tx).__module__}.{type(tx).__name__}".lower()


def _is_sync(tx: object) -> bool:
    """Whether `borrow` knows this kind of object. Nothing is begun on it."""
    engine, orm = sys.modules.get("sqlalchemy.engine"), sys.modules.get("sqlalchemy.orm")
    return (
        isinstance(tx, Connection | Cursor | Transaction)
        or (orm is not None and isinstance(tx, (orm.Session, orm.scoped_session)))
        or (engine is not None and isinstance(tx, engine.Connection))
        or _is_django(tx)
    )


def _is_asyncpg(tx: object) -> bool:
    return type(tx).__module__.partition(".")[0] == "asyncpg"


def _other_driver(tx: object, found: object) -> str:
    driver = type(found).__module__.partition(".")[0]
    return (
        f"tx {shown_name(tx)} is connected by {driver}, and pgjobs needs psycopg 3: in SQLAlchemy use a "
        "postgresql+psycopg:// URL, for Django uninstall psycopg2, instead of asyncpg use psycopg's AsyncConnection"
    )


# --- frameworks


def _behind_sqlalchemy(tx: Any) -> object:
    """The driver's connection; None if `tx` is not an object of SQLAlchemy."""
    engine, orm = sys.modules.get("sqlalchemy.engine"), sys.modules.get("sqlalchemy.orm")
    if orm is not None and isinstance(tx, (orm.Session, orm.scoped_session)):
        tx = tx.connection()  # does not flush
    if engine is None or not isinstance(tx, engine.Connection):
        return None
    remember_engine(tx.engine)
    if not tx.in_transaction():
        tx.begin()
    found: object = tx.connection.driver_connection
    return found


async def _behind_async_sqlalchemy(tx: Any) -> object:
    """The same for the asynchronous objects of SQLAlchemy."""
    aio = sys.modules.get("sqlalchemy.ext.asyncio")
    if aio is None:
        return None
    if isinstance(tx, (aio.AsyncSession, aio.async_scoped_session)):
        tx = await tx.connection()  # does not flush
    if not isinstance(tx, aio.AsyncConnection):
        return None
    remember_engine(tx.engine.sync_engine)
    if not tx.in_transaction():
        await tx.begin()
    found: object = (await tx.get_raw_connection()).driver_connection
    return found


def _behind_django(tx: Any) -> object:
    """The driver's connection; None if `tx` is not an object or alias of Django."""
    if not _is_django(tx):
        return None
    if isinstance(tx, str):
        db: Any = sys.modules["django.db"]
        aliases = _django_aliases(db)
        if tx not in aliases:
            known = ", ".join(map(repr, aliases)) or "none, since it is not configured here"
            raise InvalidTransaction(f"{_WANTED}; {shown_name(tx)} is none of Django's aliases: {known}")
        tx = db.connections[tx]
    drop_inherited(tx)
    with tx.cursor():  # connects or reconnects, as for any statement; sends nothing
        tx.validate_no_broken_transaction()
    found: object = tx.connection
    return found


def _is_django(tx: object) -> bool:
    """Whether this is a connection of Django; or a name, while Django is loaded."""
    db, base = sys.modules.get("django.db"), sys.modules.get("django.db.backends.base.base")
    if db is None:
        return False
    if isinstance(tx, str):
        return True
    return base is not None and isinstance(tx, (base.BaseDatabaseWrapper, type(db.connection)))


def _django_aliases(db: Any) -> list[str]:
    try:
        return list(db.connections)
    except Exception:  # Django is imported, but not configured
        return []
