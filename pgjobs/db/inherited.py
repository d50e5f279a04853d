"""Connections of the application that a forked child has inherited, and how it begins anew with its own.

psycopg does not say which process has opened a connection, so pgjobs writes it on those that it sees.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

from psycopg import Connection

from pgjobs.db.cursors import AnyConnection
from pgjobs.forking import check_pool, connection_of_parent, leave_alone, run_in_child, this_process

_engines: WeakKeyDictionary[Any, tuple[int, int]] = WeakKeyDictionary()  # the process that uses the pool of each


def opened_here(conn: AnyConnection) -> AnyConnection:
    """The connection; raises UsedAfterFork where it is known that another process has opened it."""
    if is_inherited(conn):
        raise connection_of_parent()
    return conn


def is_inherited(conn: AnyConnection) -> bool:
    process = this_process()
    return bool(vars(conn).setdefault("_pgjobs_process", process) != process)


def remember_engine(engine: Any) -> None:
    """This engine of SQLAlchemy is used in this process."""
    _engines.setdefault(engine, this_process())


def engine_here(engine: Any) -> Any:
    """The engine, which in a child begins with a new pool; no word is sent on the parent's connections. SQLAlchemy
    tells those who fork to do so."""
    process = this_process()
    if _engines.setdefault(engine, process) != process:
        leave_alone(engine.pool)
        engine.dispose(close=False)
        _engines[engine] = process
    return engine


def drop_inherited(wrapper: Any) -> None:
    """Let a connection of Django's begin anew in a child; what its `close()` sends would end the parent's session."""
    if getattr(wrapper, "pool", None) is not None:  # that of OPTIONS, since Django 5.1
        check_pool(wrapper.pool)
    conn = wrapper.connection
    if not isinstance(conn, Connection) or not is_inherited(conn):
        return
    if wrapper.in_atomic_block:
        raise connection_of_parent()
    leave_alone(conn)
    conn._pool = None  # else psycopg warns of it when the process ends
    wrapper.connection = None


def _django_connections() -> Iterator[Any]:
    """Those of this thread."""
    db = sys.modules.get("django.db")
    if db is not None:
        with suppress(Exception):  # settings that are not there, or not right
            yield from db.connections.all(initialized_only=True)


def _begin_anew() -> None:
    """Done in each child as soon as it is forked, so that it also holds for code that does not go through pgjobs."""
    for engine in list(_engines):
        with suppress(Exception):
            engine_here(engine)
    for wrapper in _django_connections():
        with suppress(Exception):  # in the middle of an atomic() block: that is refused where it is used
            drop_inherited(wrapper)


run_in_child(_begin_anew)
