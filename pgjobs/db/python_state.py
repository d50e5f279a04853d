"""Undoes what a handler set on the connection object: its attributes and its callbacks, as opposed to the session."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from pgjobs.db.cursors import AnyConnection

_NAMES = (
    "autocommit",
    "row_factory",
    "cursor_factory",
    "server_cursor_factory",
    "prepare_threshold",
    "prepared_max",
    "isolation_level",
    "read_only",
    "deferrable",
)
_values = attrgetter(*_NAMES)
# In a transaction psycopg refuses to change the other attributes, so they need not be compared.
_changeable_in_transaction = attrgetter(
    "row_factory",
    "cursor_factory",
    "server_cursor_factory",
    "prepare_threshold",
    "prepared_max",
    "_notice_handlers",
    "_notify_handlers",
)


class PythonState:
    """The attributes and callbacks of one connection at its checkout."""

    def __init__(self, conn: AnyConnection) -> None:
        self._conn = conn
        original = _values(conn)
        self.autocommit: bool = original[0]
        self._wanted = (True, *original[1:])  # during the checkout the connection is in autocommit mode
        self._callbacks = (list(conn._notice_handlers), list(conn._notify_handlers))
        self._unchanged: tuple[Any, ...] = ()  # how the changeable attributes look when no handler has changed them

    def accept(self) -> None:
        """Take the attributes that the connection has now for the wanted ones."""
        self._wanted = _values(self._conn)

    def restore(self) -> None:
        """Undo what a handler, or the owner's configure function, has set."""
        conn = self._conn
        conn._notice_handlers[:], conn._notify_handlers[:] = self._callbacks
        if _values(conn) == self._wanted:
            return
        for name, wanted in zip(_NAMES, self._wanted, strict=True):
            if getattr(conn, name) != wanted:
                setattr(conn, name, wanted)

    def restore_in_transaction(self) -> None:
        """The same, faster, for a connection that is in a transaction now and was in one whenever a handler had it."""
        if _changeable_in_transaction(self._conn) == self._unchanged:
            return
        self.restore()
        *values, notices, notifies = _changeable_in_transaction(self._conn)
        self._unchanged = (*values, list(notices), list(notifies))
