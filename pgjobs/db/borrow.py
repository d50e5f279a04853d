"""The psycopg connection behind the transaction that the caller passes."""

from __future__ import annotations

import sys
from typing import Any, Protocol

from psycopg import Connection, Cursor, Transaction

from pgjobs.db.inherited import drop_inherited, opened_here, remember_engine
from pgjobs.errors import InvalidTransaction, shown


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
