"""Single connections: the class of the connections in our own pool, and functions for any psycopg connection.

The functions find out whether the server has closed a connection, break a connection while another thread is using it,
and let psycopg prepare statements on it. psycopg has no methods for these.

pgjobs makes more than one object for one connection to the server (see handler_connection.py). What it knows about the
connection itself, such as its prepared statements, is in one dict that these objects share.
"""

from __future__ import annotations

import os
import re
import select
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from os import getpid
from typing import Any

import psycopg
from psycopg import Connection
from psycopg._preparing import PrepareManager
from psycopg.pq import ConnStatus

from pgjobs.db.cursors import AnyAsyncConnection, AnyConnection
from pgjobs.forking import connection_of_parent, this_process

_OK = int(ConnStatus.OK)
_MOST_MESSAGES = 10  # read from an idle connection; one that still has more to read counts as alive
_PREPARE_AFTER = 5  # executions of a statement; psycopg's default

# Statements after which prepared statements are gone (DEALLOCATE, DISCARD) or may have become wrong (a temporary table
# ends with its job, and the next job may create it with other columns).
_ENDS_PREPARED = re.compile(rb"\b(?:DEALLOCATE|DISCARD\s+ALL|TEMP(?:ORARY)?\s+TABLE)\b")

_wait = Connection.wait


def shared(conn: AnyConnection) -> dict[str, Any]:
    """What pgjobs knows about a connection to the server, whichever object stands for it: its "transports", the state
    of its single "inserts", whether `allow_prepare` was called, and whether a handler has sent a PREPARE."""
    known: dict[str, Any] = vars(conn).setdefault("_pgjobs_shared", {})
    return known


class WatchedPrepared(PrepareManager):
    """psycopg's record of the statements that it has prepared, which notices when other statements deallocate them.
    psycopg itself notices a DEALLOCATE only the first time that it is sent, and would then use what is gone."""

    def __init__(self, conn: AnyConnection) -> None:
        super().__init__()
        self._shared = shared(conn)

    def maybe_add_to_cache(self, query: Any, prep: Any, name: bytes) -> Any:
        """Runs before psycopg sends a statement."""
        if name:
            return super().maybe_add_to_cache(query, prep, name)
        text = query.query.upper()
        if b"PREPARE" in text:
            self._shared["prepares_by_name"] = True
        if _ENDS_PREPARED.search(text) is None:
            return super().maybe_add_to_cache(query, prep, name)
        self.clear()  # after this statement psycopg deallocates the prepared statements that still exist
        forget_prepared(self._shared)
        return None


class _WatchedOriginal(WatchedPrepared):
    """The same for a connection object whose class is not ours: psycopg itself deallocates all statements after a
    ROLLBACK, if it has prepared any."""

    def maintain_gen(self, conn: Any) -> Any:
        if None in self._to_flush:
            forget_prepared(self._shared)
        return super().maintain_gen(conn)


def forget_prepared(known: dict[str, Any]) -> None:
    """What pgjobs has prepared on the connection with this shared dict was deallocated, or is about to be."""
    for transport in known.get("transports", {}).values():
        transport.forget()


class OwnConnection(Connection[Any]):
    """A connection of our own pool. A forked child can neither use nor close it: the session is the parent's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._pgjobs_process = this_process()
        self._pid = getpid()
        self._prepared = WatchedPrepared(self)

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        if self._pid != getpid():
            raise connection_of_parent()
        return _wait(self, *args, **kwargs)

    def close(self) -> None:
        if self._pid == getpid():  # in a child the message to the server would end the parent's session
            super().close()

    def _deallocate(self, name: bytes | None) -> Any:
        """psycopg deallocates a statement; all of them after a ROLLBACK or DROP, if it has prepared any itself."""
        if name is None:
            forget_prepared(shared(self))
        return super()._deallocate(name)


# --- is it alive?


def has_ended(conn: AnyConnection | AnyAsyncConnection) -> bool:
    """Whether the server has closed an idle connection, as far as this side has received it. Sends nothing, never
    blocks."""
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
    for _ in range(_MOST_MESSAGES):  # the end of the connection; or a notice, a notification, a changed setting
        try:
            pgconn.consume_input()
            pgconn.is_busy()  # parses the input
        except psycopg.Error:
            return True
        if pgconn.status != _OK:
            return True
        if not arrived(0):
            return False
    return False


# --- break it


def shut_down(conn: AnyConnection) -> None:
    """Shut down the socket, so that a thread that waits for the server gets an error. Never blocks."""
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(conn.fileno())) as wire:
        wire.shutdown(socket.SHUT_RDWR)


def force_close(conn: AnyConnection) -> None:
    """Close a connection that another thread may be using.

    Shutting down the socket wakes that thread. The connection is closed only once its lock is free: if it were closed
    earlier, the thread could go on waiting on a file descriptor that soon belongs to another socket.
    """
    if conn.closed:
        return
    shut_down(conn)
    locks: list[threading.Lock] = [conn.lock]
    if "using" in shared(conn):  # a handler's thread has it while it sends a savepoint
        locks.append(shared(conn)["using"])
    if all(_gets_free(lock) for lock in locks):
        conn.close()


def _gets_free(lock: threading.Lock) -> bool:
    free = lock.acquire(timeout=1)
    if free:
        lock.release()
    return free


# --- prepare statements on it


def watch_prepared(original: AnyConnection) -> None:
    """Notice when an application deallocates statements by this object of its pool or framework, as in a listener for
    connections, where pgjobs has prepared its own."""
    if not isinstance(original._prepared, WatchedPrepared):
        watched = _WatchedOriginal(original)
        vars(watched).update(vars(original._prepared))
        original._prepared = watched


def allow_prepare(conn: AnyConnection) -> None:
    """Let psycopg prepare frequent statements on a connection of our own, which must lead straight to the server."""
    original = vars(conn).get("_pgjobs_original", conn)  # of the pool, if this is a handler's
    if not isinstance(original._prepared, WatchedPrepared):  # made by a framework for our pool, in a class of its own
        original._prepared = WatchedPrepared(original)
    original.prepare_threshold = conn.prepare_threshold = _PREPARE_AFTER
    shared(conn)["may_prepare"] = True


def may_prepare(conn: AnyConnection) -> bool:
    """Whether `allow_prepare` was called on this connection, even if the threshold was changed again later."""
    return "may_prepare" in shared(conn)
