"""The connection object that a handler gets: its own object, over the libpq connection of an object of the pool.

psycopg keeps two things in one object: the connection to the server, and what the application has set in Python, such
as a row factory or a callback. pgjobs takes a connection from the pool for many jobs. So that no handler sees what the
handler before it has set, and none can send anything after its job has ended, each attempt gets a new object:

    pool's object ---- copied for each attempt ---> handler's object
         |                                               |
         +--- the same libpq connection, lock, ----------+
              adapters and prepared statements

The pool's object is never changed, so nothing needs to be undone. When the attempt ends, its object ends too: it is
`closed`, and whatever would send something raises, also in cursors, blocks and pipelines that were made of it before.

The objects are of subclasses of the class of the pool's object, and are made without a call of its `__init__`: the
class, its methods and its attributes are the application's. An object changes its class twice in its life:

    unused ---- the first statement, or the libpq connection is read ----> used ---- the end of the attempt ----> ended

psycopg sends everything through `Connection.wait`, which the class of unused objects overrides to notice the first
statement of a handler. A handler may also send by the libpq connection, so a handler that reads `pgconn` counts as
sending. A used object is as fast as one of psycopg itself, because its class overrides neither of them.

An attempt gets a new object even if the one before has sent nothing: a thread may have it still. That costs a
microsecond, since everything else is made when it is asked for.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import lru_cache, partial
from types import new_class
from typing import Any, NamedTuple, cast
from weakref import ref

import psycopg
from psycopg import Connection, pq
from psycopg._preparing import PrepareManager
from psycopg.adapt import AdaptersMap
from psycopg.pq.abc import PGconn

from pgjobs.db.connection import WatchedPrepared, forget_prepared, shared
from pgjobs.db.cursors import AnyConnection

_MOST_CLASSES = 64  # of pools; a program has one or two

Attributes = dict[str, Any]


def attributes_of(original: AnyConnection, first: Callable[[AnyConnection], bool] | None = None) -> Attributes:
    """The attributes for new objects over the connection of this object of a pool. They are in autocommit mode: the
    statements of pgjobs send BEGIN themselves. `first` is called before an object sends its first statement. If it
    returns False, or raises, the object has not been used."""
    original.adapters  # noqa: B018  makes them now, for all objects
    known = shared(original)
    attributes = {
        **vars(original),
        "_autocommit": True,
        "_num_transactions": 0,
        "_prepared": _SharedPrepared(original._prepared, known),
        "_pgjobs_original": original,
        "_pgjobs_classes": classes_for(cast("Any", type(original))),
        "_pgjobs_first": first,
        "_pgjobs_using": known.setdefault("using", threading.Lock()),
        "_pgjobs_ended": None,
        "_pgjobs_callbacks": None,
        "_pgjobs_adapters": None,
    }
    if getattr(attributes.get("_pool"), "close_returns", False):  # else close() would give the pool a handler's object
        del attributes["_pool"]
    return attributes


def working_object(original: AnyConnection) -> AnyConnection:
    """The object over this connection for the statements of pgjobs: the same one each time that the connection is taken
    from its pool, because the transports of the connection have it."""
    known = shared(original)
    attributes = attributes_of(original)
    working: AnyConnection | None = known.get("working")
    if working is None:
        working = known["working"] = make_used(attributes)
    working.__dict__ = attributes
    return working


def original_of(conn: AnyConnection) -> AnyConnection:
    """The object of the pool or framework that this one was made of."""
    original: AnyConnection = conn.__dict__["_pgjobs_original"]
    return original


def end(conn: AnyConnection, job: int) -> tuple[bool, bool]:
    """The job of this object has ended: from now on it sends nothing. Returns whether it has sent anything; and whether
    it is quiet: otherwise another thread is in the middle of a statement, which may have been sent or not."""
    attributes = conn.__dict__
    if attributes.pop("_pgjobs_first", None) is not None:  # so no thread can begin to use it any more
        _close(conn, attributes, job)
        return False, True
    # psycopg holds the lock while it sends and receives
    quiet = conn.__class__ is attributes["_pgjobs_classes"].used and conn.lock.acquire(False)
    try:
        if attributes["_pgjobs_callbacks"] is not None:
            pgconn = attributes["pgconn"]
            pgconn.notice_handler, pgconn.notify_handler = attributes["_pgjobs_callbacks"]
        _close(conn, attributes, job)
    finally:
        if quiet:
            conn.lock.release()
    return True, quiet


def _close(conn: AnyConnection, attributes: Attributes, job: int) -> None:
    attributes["_pgjobs_ended"] = job
    attributes["_closed"] = True  # not `broken`
    conn.__class__ = attributes["_pgjobs_classes"].ended


def _use(conn: AnyConnection) -> None:
    """Before the first statement: call `first`, and make this a used object. In the middle of that it is neither
    unused, for `first` is taken, nor used; so an attempt that ends then knows that it is not quiet."""
    attributes = conn.__dict__
    with attributes["_pgjobs_using"]:  # another thread of the handler waits for the first one
        first = attributes.pop("_pgjobs_first", None)
        if first is None:  # it is used by now, or its job has ended
            return
        used = False
        try:
            used = first(conn)
        finally:
            if not used:
                attributes["_pgjobs_first"] = first
        if used:
            conn.__class__ = attributes["_pgjobs_classes"].used
        if attributes["_pgjobs_ended"] is not None:  # meanwhile
            conn.__class__ = attributes["_pgjobs_classes"].ended


def refuse(conn: AnyConnection) -> None:
    job = conn.__dict__["_pgjobs_ended"]
    what = f"job {job}" if job else "the job"
    raise psycopg.OperationalError(
        f"{what} has ended, and with it its transaction: its connection object cannot be used any more"
    )


def _closed_pgconn() -> PGconn:
    """A libpq connection that is closed, and never was open."""
    pgconn = pq.PGconn.connect_start(b"not a connection string")  # libpq does nothing but to note the error
    pgconn.finish()
    return pgconn


_CLOSED = _closed_pgconn()


class _SharedPrepared(WatchedPrepared):
    """The record of prepared statements that another object has of the same connection, with settings of its own."""

    def __init__(self, other: Any, known: dict[str, Any]) -> None:
        vars(self).update(vars(other))  # the collections are the same objects
        self._other = other
        self._shared = known

    @property
    def _prepared_idx(self) -> int:
        """The number for the name of the next statement."""
        index: int = self._other._prepared_idx
        return index

    @_prepared_idx.setter
    def _prepared_idx(self, index: int) -> None:
        self._other._prepared_idx = index


class HandlerConnection(Connection[Any]):
    """What differs in an object for a handler, used or not. `classes_for` joins it with the class of the pool's
    object."""

    _prepared: PrepareManager
    _pgjobs_classes: Classes
    _pgjobs_ended: int | None  # the job of an object that has ended
    _pgjobs_adapters: AdaptersMap | None
    _pgjobs_callbacks: tuple[Any, Any] | None  # those of libpq, before this object received them

    def __del__(self, __warn: Any = None) -> None:
        """The pool's object stands for the open connection: psycopg warns when that was not closed."""

    def _deallocate(self, name: bytes | None) -> Any:
        if name is None:
            forget_prepared(shared(self))
        return super()._deallocate(name)

    # --- what a handler sets, it sets on its object alone

    @property
    def adapters(self) -> AdaptersMap:
        found = self._pgjobs_adapters
        if found is None:
            found = self._pgjobs_adapters = AdaptersMap(super().adapters)
        return found

    @property
    def prepare_threshold(self) -> int | None:
        return self._prepared.prepare_threshold

    @prepare_threshold.setter
    def prepare_threshold(self, value: int | None) -> None:
        self._prepared = _SharedPrepared(self._prepared, shared(self))
        self._prepared.prepare_threshold = value

    @property
    def prepared_max(self) -> int | None:
        found = self._prepared.prepared_max
        return found if found != sys.maxsize else None

    @prepared_max.setter
    def prepared_max(self, value: int | None) -> None:
        self._prepared = _SharedPrepared(self._prepared, shared(self))
        self._prepared.prepared_max = sys.maxsize if value is None else value

    def add_notice_handler(self, callback: Any) -> None:
        _receive_callbacks(self)
        super().add_notice_handler(callback)

    def remove_notice_handler(self, callback: Any) -> None:
        _receive_callbacks(self)
        super().remove_notice_handler(callback)

    def add_notify_handler(self, callback: Any) -> None:
        _receive_callbacks(self)
        super().add_notify_handler(callback)

    def remove_notify_handler(self, callback: Any) -> None:
        _receive_callbacks(self)
        super().remove_notify_handler(callback)

    def notifies(self, *args: Any, **options: Any) -> Any:
        _receive_callbacks(self)
        return super().notifies(*args, **options)


class _Unused(HandlerConnection):
    """An object that has sent nothing yet."""

    @property
    def pgconn(self) -> PGconn:
        """The libpq connection. A handler that reads it may send something by it, past `wait`."""
        _use(self)
        pgconn: PGconn = self.__dict__["pgconn"] if self._pgjobs_ended is None else _CLOSED
        return pgconn

    @pgconn.setter
    def pgconn(self, pgconn: PGconn) -> None:
        self.__dict__["pgconn"] = pgconn

    def wait(self, *args: Any, **options: Any) -> Any:
        _use(self)
        if self._pgjobs_ended is not None:
            refuse(self)
        return self._pgjobs_classes.used.wait(self, *args, **options)


class _Ended(HandlerConnection):
    """An object whose job has ended: it is closed."""

    @property
    def pgconn(self) -> PGconn:
        return _CLOSED

    @pgconn.setter
    def pgconn(self, pgconn: PGconn) -> None:
        pass

    def wait(self, *args: Any, **options: Any) -> Any:
        refuse(self)

    def _check_connection_ok(self) -> None:
        refuse(self)


class Classes(NamedTuple):
    """The classes of the objects for connections of one class. They show themselves as that class."""

    unused: type[AnyConnection]
    used: type[AnyConnection]
    ended: type[AnyConnection]


@lru_cache(maxsize=_MOST_CLASSES)
def classes_for(base: Any) -> Classes:
    return Classes(*(_joined(state, base) for state in (_Unused, HandlerConnection, _Ended)))


def _joined(state: Any, base: Any) -> Any:
    joined = new_class(base.__name__, (state, base))
    joined.__module__, joined.__qualname__ = base.__module__, base.__qualname__
    return joined


def _receive_callbacks(conn: Any) -> None:
    """Let libpq report notices and notifications to this object, which has lists of its own for the callbacks, and no
    longer to the pool's object; until the object ends."""
    if conn._pgjobs_callbacks is not None or isinstance(conn, _Ended):
        return
    pgconn, this = conn.pgconn, ref(conn)
    conn._notice_handlers, conn._notify_handlers = list(conn._notice_handlers), list(conn._notify_handlers)
    conn._pgjobs_callbacks = (pgconn.notice_handler, pgconn.notify_handler)
    pgconn.notice_handler = partial(Connection._notice_handler, this)
    pgconn.notify_handler = partial(Connection._notify_handler, this)


def make_unused(attributes: Attributes) -> AnyConnection:
    """Make an object with these `attributes_of` a connection."""
    cls = attributes["_pgjobs_classes"].unused
    made: AnyConnection = cls.__new__(cls)
    made.__dict__ = attributes.copy()
    return made


def make_used(attributes: Attributes) -> AnyConnection:
    """The same for an object that may send at once."""
    made = make_unused(attributes)
    del made.__dict__["_pgjobs_first"]
    made.__class__ = attributes["_pgjobs_classes"].used
    return made
