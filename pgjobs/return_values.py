"""Checks of what the application's handlers, middleware, backoffs and timeout functions return.

Times are converted to plain timedelta and datetime objects: a subclass could override the arithmetic that pgjobs uses.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Awaitable, Generator
from concurrent.futures import Future
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, Literal

from pgjobs.clean_text import error_text, one_line
from pgjobs.errors import InvalidHandler
from pgjobs.interval import EPOCH
from pgjobs.loggers import get_logger
from pgjobs.options import FIRST_INSTANT, LAST_INSTANT, LONGEST_DELAY

log = get_logger("pgjobs.return_values")

NOTHING = timedelta(0)
_EARLIEST, _LATEST = FIRST_INSTANT - EPOCH, LAST_INSTANT - EPOCH
_MOST_WARNINGS = 1000  # remembered before WarnOnce starts again
_LAZY = (map, filter, itertools.starmap)  # they call their function only when their values are read


class BadReturnValue(Exception):
    """A function of the application returned an unusable value. `problem` is the key by which WarnOnce tells one kind
    of problem from another."""

    def __init__(self, problem: str, text: str) -> None:
        super().__init__(text)
        self.problem = problem


# --- times


def plain_delay(delay: timedelta) -> timedelta:
    """As a plain timedelta, cut to the longest delay that the table can hold."""
    plain = timedelta(delay.days, delay.seconds, delay.microseconds)
    return max(-LONGEST_DELAY, min(plain, LONGEST_DELAY))


def plain_instant(when: datetime) -> datetime:
    """As a plain datetime in UTC, cut to the range that the table can hold."""
    since = when - EPOCH
    plain = timedelta(since.days, since.seconds, since.microseconds)
    return EPOCH + max(_EARLIEST, min(plain, _LATEST))


def retry_time(value: object, now: datetime) -> timedelta | datetime | None:
    """The return value of a backoff. Raises BadReturnValue if its type is wrong or it lies in the past.

    `now` may be slightly behind the database's clock, so a time just past may get through; the database corrects it.
    """
    if value is None:
        return None
    if isinstance(value, timedelta):
        delay = plain_delay(value)
        if delay < NOTHING:
            raise BadReturnValue("negative", f"returned a negative delay: {delay!r}")
        return delay
    if isinstance(value, datetime):
        if value.utcoffset() is None:
            raise BadReturnValue("naive", f"returned a datetime without a time zone: {value!r:.80}")
        when = plain_instant(value)
        if when <= now:
            raise BadReturnValue("past", f"returned a time in the past: {when.isoformat()}")
        return when
    raise _wrong_type(value, "a timedelta, an aware datetime, or None for no further attempt")


def checked_timeout(value: object) -> timedelta | Literal["inherit"] | None:
    """The return value of a timeout function. Raises BadReturnValue if it is no timeout."""
    if value is None:
        return None
    if isinstance(value, str) and value == "inherit":
        return "inherit"
    if isinstance(value, timedelta):
        limit = plain_delay(value)
        if limit <= NOTHING:
            raise BadReturnValue("no time", f"returned a timeout that is not > 0: {limit!r}")
        return limit
    raise _wrong_type(value, 'a timedelta, None for no limit, or "inherit"')


def _wrong_type(value: object, wanted: str) -> BadReturnValue:
    _close(value)
    return BadReturnValue(f"type {type(value).__name__}", f"returned {value!r:.80}, which is not {wanted}")


# --- return values of handlers


def check_handler_return(value: object, function: object) -> None:
    """Raise InvalidHandler if a handler or middleware returned work that has not run, such as a coroutine or generator,
    or an exception that it should have raised. Other return values are ignored."""
    problem = _unfinished(value)
    if problem is None:
        return
    _close(value)
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    raise InvalidHandler(f"{name} returned {problem}")


def _unfinished(value: object) -> str | None:
    if isinstance(value, BaseException):
        return f"{type(value).__name__}(...) and did not raise it: write raise {type(value).__name__}(...)"
    if isinstance(value, type):
        if issubclass(value, BaseException):
            return f"the class {value.__name__} and did not raise it: write raise {value.__name__}(...)"
        return None
    what = f"a {type(value).__name__}"
    if isinstance(value, Future):
        return f"{what} without waiting for its result: call its result() in the handler"
    if isinstance(value, (Generator, *_LAZY)):
        return f"{what}, whose body never ran: call the function in a for loop in the handler, without yield"
    if isinstance(value, Awaitable | AsyncGenerator):
        return f"{what}, whose body never ran: pgjobs runs plain functions, so write def, or asyncio.run(...) in it"
    return None


def _close(value: Any) -> None:
    """Close a coroutine or generator that will never run; else Python warns about it."""
    if isinstance(value, Awaitable | Generator) and not isinstance(value, Future):
        with suppress(Exception):
            getattr(value, "close", bool)()


# --- warnings


class WarnOnce:
    """Logs problems of the application's functions, once for each kind and problem: the function may be called a
    thousand times a second."""

    def __init__(self) -> None:
        self._warned: set[tuple[str, str, str]] = set()

    def __call__(self, kind: str, what: str, error: BaseException, *, instead: str) -> None:
        """Warn that the function `what` of this kind raised `error`, or returned an unusable value if that is a
        BadReturnValue; `instead` says what pgjobs does now."""
        bad_value = isinstance(error, BadReturnValue)
        key = (kind, what, error.problem if isinstance(error, BadReturnValue) else type(error).__name__)
        if key in self._warned:
            return
        if len(self._warned) >= _MOST_WARNINGS:
            self._warned.clear()
        self._warned.add(key)
        text = error_text(error)
        did = text if bad_value else f"raised {type(error).__name__}: {text}"
        with suppress(Exception):  # an exception of a log handler must not fail the attempt
            log.warning(
                "kind %s: the %s %s; %s. Logged once for each kind and problem",
                one_line(kind), what, one_line(did), instead, exc_info=None if bad_value else error,
            )  # fmt: skip
