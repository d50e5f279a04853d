"""Finds the psycopg connection of the transaction that a caller passes as `tx`.

No framework is imported here: if `tx` is an object of a framework, then its module is loaded already.
"""

from __future__ import annotations

import sys
from typing import Any, Protocol

from psycopg import Connection, Cursor, Transaction

from pgjobs.db.inherited import drop_inherited, opened_here, remember_engine
from pgjobs.errors import InvalidTransaction, shown


class HasConnection(Protocol):
    """An object with an attribute `connection`: a psycopg Cursor or Transaction; a SQLAlchemy Session, scoped_session
    or Connection; a Django connection. The attribute means something else in each."""

    @property
    def connection(self) -> Any: ...


#: What `enqueue` accepts as its `tx`: a psycopg connection, one of the above, or a Django alias. It also accepts None,
#: for a transaction of its own.
Borrowable = Connection[Any] | HasConnection | str


_WANTED = (
    "tx is a psycopg 3 Connection, Cursor or Transaction; a SQLAlchemy Session, scoped_session or Connection; a Django "
    "connection or alias; or None for a transaction of its own"
)


_ASYNC = (
    "tx {} belongs to an asynchronous connection, which pgjobs cannot use, not even in run_sync(): enqueue in a thread "
    "(asyncio.to_thread), on a psycopg Connection or a Session of a synchronous engine, together with the writes that "
    "belong to the job"
)


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
    if found is not None:
        if _is_async(found):
            raise InvalidTransaction(_ASYNC.format(shown(tx)))
        raise InvalidTransaction(
            f"tx {shown(tx)} is connected by {type(found).__module__.partition('.')[0]}, and pgjobs needs psycopg 3: "
            "in SQLAlchemy use a postgresql+psycopg:// URL, for Django uninstall psycopg2"
        )
    if _is_async(tx):
        raise InvalidTransaction(_ASYNC.format(shown(tx)))
    raise InvalidTransaction(f"{_WANTED}; not {shown(tx)}")


def _is_async(tx: object) -> bool:
    """Whether this is an asynchronous connection, or a session on one, of psycopg, asyncpg or SQLAlchemy."""
    return "async" in f"{type(tx).__module__}.{type(tx).__name__}".lower()


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


def _behind_django(tx: Any) -> object:
    """The driver's connection; None if `tx` is not an object or alias of Django."""
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
    with tx.cursor():  # connects or reconnects, as for any statement; sends nothing
        tx.validate_no_broken_transaction()
    found: object = tx.connection
    return found


def _django_aliases(db: Any) -> list[str]:
    try:
        return list(db.connections)
    except Exception:  # Django is imported, but not configured
        return []
