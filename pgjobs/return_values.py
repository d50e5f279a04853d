"""What the application's own functions give around an attempt: a handler, a backoff, a timeout. Checked, and made plain
values, so that no subclass of a timedelta or datetime goes further than here."""

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
_MOST_COMPLAINTS = 1000  # that are remembered
_LAZY = (map, filter, itertools.starmap)  # each calls its function only when its values are read


class BadReturnValue(Exception):
    """What a function of the application's gave cannot be used. `problem` is the same for all that is wrong in the same
    way."""

    def __init__(self, problem: str, text: str) -> None:
        super().__init__(text)
        self.problem = problem


# --- times


def plain_delay(delay: timedelta) -> timedelta:
    """As the standard library has it, and no longer than the table can hold."""
    plain = timedelta(delay.days, delay.seconds, delay.microseconds)
    return max(-LONGEST_DELAY, min(plain, LONGEST_DELAY))


def plain_instant(when: datetime) -> datetime:
    """In UTC, as the standard library has it, and within what the table can hold."""
    since = when - EPOCH
    plain = timedelta(since.days, since.seconds, since.microseconds)
    return EPOCH + max(_EARLIEST, min(plain, _LATEST))


def retry_time(answer: object, now: datetime) -> timedelta | datetime | None:
    """What a backoff gave, if that says when; BadReturnValue if it does not, or would be a retry without a pause that
    the backoff did not ask for. `now` may be a moment late: an instant that is just over is left to the database."""
    if answer is None:
        return None
    if isinstance(answer, timedelta):
        delay = plain_delay(answer)
        if delay < NOTHING:
            raise BadReturnValue("negative", f"gave a negative delay: {delay!r}")
        return delay
    if isinstance(answer, datetime):
        if answer.utcoffset() is None:
            raise BadReturnValue("naive", f"gave a datetime without a time zone: {answer!r:.80}")
        when = plain_instant(answer)
        if when <= now:
            raise BadReturnValue("past", f"gave an instant that is over: {when.isoformat()}")
        return when
    raise _no_time(answer, "a timedelta, an aware datetime, or None for never again")


def checked_timeout(answer: object) -> timedelta | Literal["inherit"] | None:
    """The timeout that a function gave; raises BadReturnValue if it gave something else."""
    if answer is None:
        return None
    if isinstance(answer, str) and answer == "inherit":
        return "inherit"
    if isinstance(answer, timedelta):
        limit = plain_delay(answer)
        if limit <= NOTHING:
            raise BadReturnValue("no time", f"gave a timeout of no time: {limit!r}")
        return limit
    raise _no_time(answer, 'a timedelta, None for ever, or "inherit"')


def _no_time(answer: object, wanted: str) -> BadReturnValue:
    _close(answer)
    return BadReturnValue(f"type {type(answer).__name__}", f"gave {answer!r:.80}, which is not {wanted}")


# --- the end of a handler


def check_handler_return(answer: object, function: object) -> None:
    """Raise InvalidHandler when a handler or middleware returned work that has not been done (a coroutine, a
    generator), or an error instead of raising it. All other answers are ignored."""
    said = _undone(answer)
    if said is None:
        return
    _close(answer)
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    raise InvalidHandler(f"{name} returned {said}")


def _undone(answer: object) -> str | None:
    if isinstance(answer, BaseException):
        return f"{type(answer).__name__}(...) and did not raise it: write raise {type(answer).__name__}(...)"
    if isinstance(answer, type):
        if issubclass(answer, BaseException):
            return f"the class {answer.__name__} and did not raise it: write raise {answer.__name__}(...)"
        return None
    what = f"a {type(answer).__name__}"
    if isinstance(answer, Future):
        return f"{what}, and nobody waits for its work: call its result() in the handler"
    if isinstance(answer, (Generator, *_LAZY)):
        return f"{what}, whose body never ran: call the function in a for loop in the handler, without yield"
    if isinstance(answer, Awaitable | AsyncGenerator):
        return f"{what}, whose body never ran: pgjobs runs plain functions, so write def, or asyncio.run(...) in it"
    return None


def _close(answer: Any) -> None:
    """What never began and never will be says so in a warning, unless it is closed."""
    if isinstance(answer, Awaitable | Generator) and not isinstance(answer, Future):
        with suppress(Exception):
            getattr(answer, "close", bool)()


# --- what is said of it


class WarnOnce:
    """Logs what is wrong with a function of the application, once for each kind and problem: the function may be called
    a thousand times a second."""

    def __init__(self) -> None:
        self._said: set[tuple[str, str, str]] = set()

    def __call__(self, kind: str, what: str, error: BaseException, *, instead: str) -> None:
        """`what` of this kind has raised `error`, or given what BadReturnValue says; `instead` is done."""
        wrong = isinstance(error, BadReturnValue)
        key = (kind, what, error.problem if isinstance(error, BadReturnValue) else type(error).__name__)
        if key in self._said:
            return
        if len(self._said) >= _MOST_COMPLAINTS:
            self._said.clear()
        self._said.add(key)
        text = error_text(error)
        did = text if wrong else f"raised {type(error).__name__}: {text}"
        with suppress(Exception):  # a handler of the log that fails must not cost the attempt
            log.warning(
                "kind %s: the %s %s; %s. Said once for each kind and problem",
                one_line(kind), what, one_line(did), instead, exc_info=None if wrong else error,
            )  # fmt: skip
