"""Decides what to do with a row for which a statement fails: discard its job, or leave the row alone for a while.

An operation (a claim of a queue, a duty, the ticks of schedules) is one statement for many rows. If the statement fails
because of one row, the operation goes on without that row:

    what is seen                                        what is to blame          what is done with the row
    --------------------------------------------------  ------------------------  ----------------------------------
    its values cannot be read; or the operation fails,  the row's own values      discarded, with the reason
    and a bare write of the same change, which reads
    nothing of the row and adds nothing to it, works
    (without its unique key, if a value of the row is
    too large)
    a function raised the error (P0001, or an error     a trigger, CHECK, policy  passed over for 1 s, then 2 s, 4 s,
    with a context), or a constraint or policy of the   or index that the         up to 5 min; never discarded
    application; or the bare write fails too            application has added
    more than 5 rows in succession fail alike, and no   the same, or a missing    nothing: the operation fails as
    other row of the operation works                    privilege                 a whole, and that is logged once
    an error of the connection, a time limit, the       the server                nothing: the operation fails as
    disk; or of a lock, a conflict or a read-only                                 a whole
    database, unless a function raised it, which may
    fail so for certain rows
    the operation succeeds, and the row is as it was    a trigger that returns    as where a function raised the error
                                                        NULL for it

A bare write alone does not prove that the values of the row are to blame: a CHECK or trigger of the application may
check the very values that the bare write leaves out. So an error that looks like code of the application counts as such
without a bare write. In doubt the job is not discarded.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import psycopg

from pgjobs.loggers import get_logger

log = get_logger("pgjobs.set_aside")

MOST_ALIKE = 5  # rows of an operation that are set aside for the same cause while no other row works
_FIRST_PAUSE = 1.0  # seconds; doubles
_LONGEST_PAUSE = 300.0
_MOST_ROWS = 1000  # of one operation
_MOST_OPERATIONS = 1000
_COMMON_FOR = 5.0  # seconds in which the rows of an operation that fails as a whole are not tried again one by one

# Classes of SQLSTATE that do not concern a row: connection, transaction state, conflicts of transactions, resources,
# state of objects (locks), the operator, the system; and prepared statements that are gone.
_NOT_OF_A_ROW = frozenset({"08", "25", "26", "40", "53", "55", "57", "58"})
# Of those, the classes that a function of the application may raise for a certain row: it cannot reach another server,
# say, or does not wait for a lock. A time limit is not among them: it is for the whole statement, with all its rows.
_ALSO_RAISED_BY_FUNCTIONS = frozenset({"08", "25", "40", "55"})
_IN_A_FUNCTION = re.compile(r"PL/|\bSQL\b")  # in the context of an error, in any language of the server
_TOO_LARGE = "54000"
_DUPLICATE = "23505"
_APPLICATION_CODE = frozenset({"P0", "09", "23", "27", "38", "39", "42", "44"})
# The rules of our own trigger, which is the only function in the context of its errors. An error of our type has the
# type's name instead.
_OWN_RULE = re.compile(r"[^\n]*\brefuse_job\(\)[^\n]*")
_CHANGING = re.compile(r'"[^"]*"|\'[^\']*\'|\d+')


class UnreadableRow(Exception):
    """A row of the server cannot be read in Python."""


class UnchangedRow(psycopg.errors.TriggeredActionException):
    """A trigger of the application has kept the row as it is, and the statement has succeeded."""

    def __init__(self) -> None:
        super().__init__("a trigger of the application returns NULL for it")


def concerns_a_row(error: BaseException) -> bool:
    """Whether the statement may have failed because of a certain row."""
    if isinstance(error, UnreadableRow):
        return True
    if not isinstance(error, psycopg.Error) or error.sqlstate is None:
        return False
    if error.sqlstate[:2] in _ALSO_RAISED_BY_FUNCTIONS:
        return _IN_A_FUNCTION.search(error.diag.context or "") is not None
    return error.sqlstate[:2] not in _NOT_OF_A_ROW


def short(error: Exception) -> str:
    """The message of an error, without the DETAIL, which may show the row."""
    if not isinstance(error, psycopg.Error):
        return str(error)
    return f"{error.diag.message_primary or error} [{error.sqlstate}]"


def is_too_large(error: psycopg.Error) -> bool:
    """Whether a value is too large, perhaps for an index: the error may not say which."""
    return error.sqlstate == _TOO_LARGE


def is_application_code(error: psycopg.Error) -> bool:
    """Whether the error comes from code or a rule that the application has added to the table; or from another job with
    the same unique key, which may end soon."""
    state, diag = error.sqlstate or "", error.diag
    if _OWN_RULE.fullmatch(diag.context or ""):
        return False
    if diag.context or state == _DUPLICATE:
        return True
    return state[:2] in _APPLICATION_CODE and not diag.datatype_name


@dataclass(slots=True)
class _Row:
    until: float
    pause: float


@dataclass(slots=True)
class _OperationRows:
    """The rows that one operation passes over."""

    rows: dict[Hashable, _Row] = field(default_factory=dict)
    cause: Hashable = None  # that the rows in `in_succession` have in common
    in_succession: list[Hashable] = field(default_factory=list)
    common_until: float = 0.0  # until then the operation fails as a whole for this cause, which was logged
    logged: dict[Hashable, int] = field(default_factory=dict)  # how many rows, by cause
    not_logged: list[tuple[str, Exception]] = field(default_factory=list)


class SetAside:
    """The rows that the operations of one process pass over, by the name of the operation. Their number is bounded.
    Processes do not share them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.operations: dict[str, _OperationRows] = {}
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        """Whether any operation passes over rows, or did a short while ago."""
        return bool(self.operations)

    def rows(self, operation: str) -> list[Any]:
        """The rows that the operation passes over now."""
        if not self.operations or operation not in self.operations:
            return []
        now = self._clock()
        with self._lock:
            known = self.operations.get(operation)
            if known is None:
                return []
            # forget the rows that have not failed again long after their pause: another process may have worked them
            known.rows = {key: row for key, row in known.rows.items() if now < row.until + 2 * row.pause}
            return [key for key, row in known.rows.items() if now < row.until]

    def worked(self, operation: str, key: Hashable = None) -> None:
        """A row of the operation has worked: the next failure is not common to all rows. `key` is the row, if it is
        known."""
        if not self.operations or operation not in self.operations:
            return
        with self._lock:
            known = self.operations.get(operation)
            if known is None:
                return
            known.in_succession.clear()
            known.cause, known.common_until = None, 0.0
            if key is not None:
                known.rows.pop(key, None)
            if not known.rows:
                del self.operations[operation]

    def is_common(self, operation: str, error: psycopg.Error) -> bool:
        """Whether the operation is known to fail as a whole for this cause."""
        known = self.operations.get(operation)
        return known is not None and known.cause == _cause(error) and self._clock() < known.common_until

    def is_in_doubt(self, operation: str, error: Exception) -> bool:
        """Whether one more row that fails for this cause makes the operation fail as a whole, unless another row
        works."""
        known = self.operations.get(operation)
        if known is None or known.cause != _cause(error):
            return False
        return bool(known.common_until) or len(known.in_succession) >= MOST_ALIKE

    def was_logged(self, error: BaseException) -> bool:
        """Whether it was logged already that an operation fails as a whole for this cause."""
        if not self.operations or not isinstance(error, psycopg.Error):
            return False
        with self._lock:
            operations = list(self.operations)
        return any(self.is_common(operation, error) for operation in operations)

    def failed(self, operation: str, key: Hashable, error: Exception, what: str, *, others_work: bool = False) -> float:
        """Pass over a row from now on, for twice as long as the last time; returns for how many seconds. `others_work`:
        other rows of the operation have just worked. Raises the error if the operation fails as a whole; else the
        caller logs the row by `log_new` when the operation goes on."""
        cause, now = _cause(error), self._clock()
        with self._lock:
            known = self.operations.setdefault(operation, _OperationRows())
            self._forget_others(operation)
            if cause != known.cause:
                known.cause, known.common_until = cause, 0.0
                known.in_succession.clear()
            if others_work:
                known.in_succession.clear()
                known.common_until = 0.0
            elif key not in known.in_succession:
                known.in_succession.append(key)
            few = len(known.in_succession) <= MOST_ALIKE and (key in known.rows or len(known.rows) < _MOST_ROWS)
            if few and not known.common_until:
                return self._set_aside(known, key, error, f"{operation}: {what}")
            for each in known.in_succession:  # these rows are not to blame
                known.rows.pop(each, None)
            known.in_succession.clear()
            known.not_logged.clear()
            new, known.common_until = not known.common_until, now + _COMMON_FOR
        if new:
            log.warning(
                "%s: more than %d rows fail alike, so none is set aside: %s", operation, MOST_ALIKE, short(error)
            )
        raise error

    def _set_aside(self, known: _OperationRows, key: Hashable, error: Exception, what: str) -> float:
        row = known.rows.get(key)
        pause = _FIRST_PAUSE if row is None else min(2 * row.pause, _LONGEST_PAUSE)
        known.rows[key] = _Row(self._clock() + pause, pause)
        if row is None:
            known.not_logged.append((what, error))
        return pause

    def log_new(self, operation: str) -> None:
        """Log the rows that were set aside since the last call, each once; if many fail alike, only the first few."""
        known = self.operations.get(operation)
        while known is not None and known.not_logged:
            what, error = known.not_logged.pop(0)
            cause = _cause(error)
            logged = known.logged[cause] = known.logged.get(cause, 0) + 1
            if logged <= MOST_ALIKE:
                log.warning("%s fails and is passed over for a while, longer each time: %s", what, short(error))
            elif logged == MOST_ALIKE + 1:
                log.warning("%s fails too; more rows that fail alike are not logged: %s", what, short(error))

    def _forget_others(self, operation: str) -> None:
        """Keep the number of operations bounded: the names of queues come from the table."""
        while len(self.operations) > _MOST_OPERATIONS:
            del self.operations[next(name for name in self.operations if name != operation)]


def _cause(error: Exception) -> Hashable:
    """A key that errors with the same cause have in common: the place in the application's code, or else the message
    without the values in it."""
    if not isinstance(error, psycopg.Error):
        return type(error), _CHANGING.sub("#", str(error))
    diag = error.diag
    where = (diag.context or "").split("\n", 1)[0] or _CHANGING.sub("#", diag.message_primary or str(error))
    return error.sqlstate, diag.constraint_name, where
