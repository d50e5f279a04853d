"""Decides what to do with a row for which a statement fails: discard its job, or leave the row alone for a while.

An act (a claim of a queue, a duty, the ticks of schedules) is one statement for many rows. If the statement fails
because of one row, the act goes on without that row:

    what is seen                                        whose fault it is         what becomes of the row
    --------------------------------------------------  ------------------------  ----------------------------------
    its values cannot be read; or the act fails, and    the row's own values      discarded, with the reason
    a bare write of the same change, which reads
    nothing of the row and adds nothing to it, works
    (without its unique key, if something of the row
    has no room)
    a function raised it (P0001, or an error with a     a trigger, CHECK, policy  passed over for 1 s, then 2 s, 4 s,
    context), or a constraint of others, or a policy;   or index that the         up to 5 min; never discarded
    or the bare write fails too                         application has added
    more than 5 rows in succession fail alike, and no   the same, or a missing    nothing: the act fails as a whole,
    other row of the act works                          privilege                 and that is logged once
    the connection, a time limit, the disk; and, but    the server's              nothing: the act fails as a whole
    not in a function, which may fail so for certain
    rows, a lock, a conflict, a read-only database
    the act goes through, and the row is as it was      a trigger that returns    as where a function raises
                                                        NULL for it

A bare write alone does not prove that the values of the row are to blame: a CHECK or trigger of the application may
judge the very values that the bare write leaves out. So an error that looks like code of the application counts as such
without a trial. In doubt no job is discarded.
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

MOST_ALIKE = 5  # rows of an act that are set aside for the same cause while nothing else works
_FIRST_PAUSE = 1.0  # seconds; doubles
_LONGEST_PAUSE = 300.0
_MOST_ROWS = 1000  # of one act
_MOST_ACTS = 1000
_COMMON_FOR = 5.0  # seconds in which an act that cannot be done is not looked into again: good rows may have come since

# Classes of SQLSTATE that say nothing of a row: connection, transaction state, conflicts of transactions, resources,
# state of objects (locks), the operator, the system; and prepared statements that are gone.
_NOT_OF_A_ROW = frozenset({"08", "25", "26", "40", "53", "55", "57", "58"})
# Of those, what a function of the application's may raise itself for a certain row: another server that it cannot
# reach, a lock that it does not wait for. A time limit is that of the whole statement, for all its rows.
_ALSO_RAISED_BY_FUNCTIONS = frozenset({"08", "25", "40", "55"})
_IN_A_FUNCTION = re.compile(r"PL/|\bSQL\b")  # in what the server says of where an error arose, in any language
_TOO_LARGE = "54000"
_DUPLICATE = "23505"
_APPLICATION_CODE = frozenset({"P0", "09", "23", "27", "38", "39", "42", "44"})
# Rules of our own table; see the migrations. Those of its types say which type.
_OWN_CHECKS = frozenset({"job_finalized", "job_has_attempts_left", "job_unique_states"})
_CHANGING = re.compile(r'"[^"]*"|\'[^\']*\'|\d+')


class UnreadableRow(Exception):
    """The server gave a row, and it cannot be read."""


class UnchangedRow(psycopg.errors.TriggeredActionException):
    """A trigger of the application has left the row as it is, and the statement went through."""

    def __init__(self) -> None:
        super().__init__("a trigger of the application returns NULL for it")


def concerns_a_row(error: BaseException) -> bool:
    """Whether the statement may have failed because of what it did to a certain row."""
    if isinstance(error, UnreadableRow):
        return True
    if not isinstance(error, psycopg.Error) or error.sqlstate is None:
        return False
    if error.sqlstate[:2] in _ALSO_RAISED_BY_FUNCTIONS:
        return _IN_A_FUNCTION.search(error.diag.context or "") is not None
    return error.sqlstate[:2] not in _NOT_OF_A_ROW


def short(error: Exception) -> str:
    """What the server says, without the row that it may add to that."""
    if not isinstance(error, psycopg.Error):
        return str(error)
    return f"{error.diag.message_primary or error} [{error.sqlstate}]"


def is_too_large(error: psycopg.Error) -> bool:
    """Whether a value has no room, perhaps in an index: not every such error says which."""
    return error.sqlstate == _TOO_LARGE


def is_application_code(error: psycopg.Error) -> bool:
    """Whether the error comes from code or a rule that the application has added to the table; or from another job that
    holds the unique key, perhaps not for long."""
    state, diag = error.sqlstate or "", error.diag
    if diag.context or state == _DUPLICATE:
        return True
    own_rule = bool(diag.datatype_name) or diag.constraint_name in _OWN_CHECKS
    return state[:2] in _APPLICATION_CODE and not own_rule


@dataclass(slots=True)
class _Row:
    until: float
    pause: float


@dataclass(slots=True)
class _Act:
    """What one act passes over."""

    rows: dict[Hashable, _Row] = field(default_factory=dict)
    cause: Hashable = None  # of the rows that have failed in succession
    in_succession: list[Hashable] = field(default_factory=list)
    common_until: float = 0.0  # the act cannot be done for this cause, and that was said
    said: dict[Hashable, int] = field(default_factory=dict)  # how many rows were logged for a cause
    unsaid: list[tuple[str, Exception]] = field(default_factory=list)


class SetAside:
    """The rows that the acts of one process pass over, by act. What it remembers is bounded, and gone with the process:
    another one finds out for itself."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._acts: dict[str, _Act] = {}
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        """Whether there is anything to be passed over, or was lately."""
        return bool(self._acts)

    def rows(self, act: str) -> list[Any]:
        """What the act passes over now. Costs nothing while there is nothing."""
        if not self._acts or act not in self._acts:
            return []
        now = self._clock()
        with self._lock:
            known = self._acts.get(act)
            if known is None:
                return []
            # whose time is over long since is gone, or has been worked by others
            known.rows = {key: row for key, row in known.rows.items() if now < row.until + 2 * row.pause}
            return [key for key, row in known.rows.items() if now < row.until]

    def worked(self, act: str, key: Hashable = None) -> None:
        """Something of the act works: what fails now is not its common fault. `key` is a row that works itself."""
        if not self._acts or act not in self._acts:
            return
        with self._lock:
            known = self._acts.get(act)
            if known is None:
                return
            known.in_succession.clear()
            known.cause, known.common_until = None, 0.0
            if key is not None:
                known.rows.pop(key, None)
            if not known.rows:
                del self._acts[act]

    def is_common(self, act: str, error: psycopg.Error) -> bool:
        """Whether it is known that the act cannot be done for this cause."""
        known = self._acts.get(act)
        return known is not None and known.cause == _cause(error) and self._clock() < known.common_until

    def is_in_doubt(self, act: str, error: Exception) -> bool:
        """Whether one more row that fails for this cause is taken for no fault of the rows, unless others work."""
        known = self._acts.get(act)
        if known is None or known.cause != _cause(error):
            return False
        return bool(known.common_until) or len(known.in_succession) >= MOST_ALIKE

    def was_said(self, error: BaseException) -> bool:
        """Whether the log has it already that an act cannot be done for this cause."""
        if not self._acts or not isinstance(error, psycopg.Error):
            return False
        with self._lock:
            acts = list(self._acts)
        return any(self.is_common(act, error) for act in acts)

    def failed(self, act: str, key: Hashable, error: Exception, what: str, *, others_work: bool = False) -> float:
        """Pass over a row from now on, for twice as long as the last time; for how many seconds. `others_work`
        says that rows beside it did just now. Raises the error when it is no fault of this row, so that the act cannot
        be done; else `say` follows when the act goes on."""
        cause, now = _cause(error), self._clock()
        with self._lock:
            known = self._acts.setdefault(act, _Act())
            self._forget_others(act)
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
                return self._set_aside(known, key, error, f"{act}: {what}")
            for each in known.in_succession:  # it was no fault of theirs
                known.rows.pop(each, None)
            known.in_succession.clear()
            known.unsaid.clear()
            new, known.common_until = not known.common_until, now + _COMMON_FOR
        if new:
            log.warning("%s: more than %d rows fail alike, so none is set aside: %s", act, MOST_ALIKE, short(error))
        raise error

    def _set_aside(self, known: _Act, key: Hashable, error: Exception, what: str) -> float:
        row = known.rows.get(key)
        pause = _FIRST_PAUSE if row is None else min(2 * row.pause, _LONGEST_PAUSE)
        known.rows[key] = _Row(self._clock() + pause, pause)
        if row is None:
            known.unsaid.append((what, error))
        return pause

    def say(self, act: str) -> None:
        """Log what was set aside just now: each row once, and of many that fail alike only a few."""
        known = self._acts.get(act)
        while known is not None and known.unsaid:
            what, error = known.unsaid.pop(0)
            cause = _cause(error)
            said = known.said[cause] = known.said.get(cause, 0) + 1
            if said <= MOST_ALIKE:
                log.warning("%s fails and is passed over for a while, longer each time: %s", what, short(error))
            elif said == MOST_ALIKE + 1:
                log.warning("%s fails too; others that fail alike are not logged: %s", what, short(error))

    def _forget_others(self, act: str) -> None:
        """Keep the number of acts bounded: names of queues come out of the table."""
        while len(self._acts) > _MOST_ACTS:
            del self._acts[next(name for name in self._acts if name != act)]


def _cause(error: Exception) -> Hashable:
    """What errors have in common that have one cause: the place in the application's code, or else the text but for the
    values in it."""
    if not isinstance(error, psycopg.Error):
        return type(error), _CHANGING.sub("#", str(error))
    diag = error.diag
    where = (diag.context or "").split("\n", 1)[0] or _CHANGING.sub("#", diag.message_primary or str(error))
    return error.sqlstate, diag.constraint_name, where
