"""Connections of the application that a forked child inherits: the child must not use or close them.

A child shares the parent's sockets, so anything that it sends would reach the parent's session. Each child therefore
drops inherited connections of SQLAlchemy and Django at once, and opens new ones when it needs them. psycopg does not
record which process opened a connection, so pgjobs records that on each connection it sees.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from psycopg import Connection

from pgjobs.db.cursors import AnyAsyncConnection, AnyConnection
from pgjobs.forking import check_pool, connection_of_parent, leave_alone, run_in_child, this_process

Opened = TypeVar("Opened", bound="AnyConnection | AnyAsyncConnection")

_engines: WeakKeyDictionary[Any, tuple[int, int]] = WeakKeyDictionary()  # by engine, the process whose pool it has


def opened_here(conn: Opened) -> Opened:
    """Returns the connection; raises UsedAfterFork if it is known that another process opened it."""
    if is_inherited(conn):
        raise connection_of_parent()
    return conn


def is_inherited(conn: AnyConnection | AnyAsyncConnection) -> bool:
    """Whether another process opened this connection; one that pgjobs has not seen before counts as this process's."""
    process = this_process()
    return bool(vars(conn).setdefault("_pgjobs_process", process) != process)


def remember_engine(engine: Any) -> None:
    """Record that this process uses this SQLAlchemy engine."""
    _engines.setdefault(engine, this_process())


def engine_here(engine: Any) -> Any:
    """The engine, with a new pool if this process is a child, as SQLAlchemy documents it for forks. Nothing is sent on
    the parent's connections."""
    process = this_process()
    if _engines.setdefault(engine, process) != process:
        leave_alone(engine.pool)
        engine.dispose(close=False)
        _engines[engine] = process
    return engine


def drop_inherited(wrapper: Any) -> None:
    """Let a Django connection reconnect in a child. It is not closed: `close()` would end the parent's session."""
    if getattr(wrapper, "pool", None) is not None:  # OPTIONS["pool"], since Django 5.1
        check_pool(wrapper.pool)
    conn = wrapper.connection
    if not isinstance(conn, Connection) or not is_inherited(conn):
        return
    if wrapper.in_atomic_block:
        raise connection_of_parent()
    leave_alone(conn)
    conn._pool = None  # else psycopg warns at exit that the connection was not closed
    wrapper.connection = None


def _django_connections() -> Iterator[Any]:
    """The open Django connections of this thread."""
    db = sys.modules.get("django.db")
    if db is not None:
        with suppress(Exception):  # Django is not configured, or wrongly
            yield from db.connections.all(initialized_only=True)


def _drop_all_inherited() -> None:
    """Runs in each child right after the fork, so that code which never calls pgjobs is safe too."""
    for engine in list(_engines):
        with suppress(Exception):
            engine_here(engine)
    for wrapper in _django_connections():
        with suppress(Exception):  # inside an atomic() block: a later use of the connection raises
            drop_inherited(wrapper)


run_in_child(_drop_all_inherited)
