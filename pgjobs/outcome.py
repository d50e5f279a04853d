"""What one attempt leads to: a value, decided by a pure function before anything is written."""

from __future__ import annotations

import json
import re
import traceback
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any

import psycopg

from pgjobs.backoff import Backoff
from pgjobs.errors import Cancel, Discard, JobCancelled, JobStopped, RetryAfter, RetryAt, Signal, Snooze
from pgjobs.job import FIRST_INSTANT, LAST_INSTANT, LONGEST_DELAY, Job, JobState

ERROR_LIMIT = 8 * 1024  # characters of an error's text that are kept
TRACE_LIMIT = 32 * 1024  # characters of its traceback
_FRAMES = 60  # of each traceback in a chain: the innermost
# What must not reach a log line or a terminal as it is, and what Postgres cannot store: control characters but newline
# and tab, and lone surrogates.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
# Beside those what ends a line, or turns the direction of the text.
_NOT_FOR_A_LINE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ends. `retryable` and `scheduled` wait for `delay` or `at`; the other states are final."""

    state: JobState
    delay: timedelta | None = None
    at: datetime | None = None
    error: str | None = None
    trace: str | None = None
    attempt_given_back: bool = False

    def error_json(self, attempt: int) -> str | None:
        """The entry of `errors`, without its time: that is the database's to give."""
        if self.error is None:
            return None
        return json.dumps({"attempt": attempt, "error": self.error, "trace": self.trace})


COMPLETED = Outcome(JobState.COMPLETED)
# cut off by a stop: ready to run again, and no attempt the poorer
INTERRUPTED = Outcome(JobState.AVAILABLE, attempt_given_back=True)


def decide(job: Job[Any], error: BaseException | None, backoff: Backoff) -> Outcome:
    """The outcome of an attempt that returned (`error` is None) or raised. Touches no database.

    The attempt that failed is `job.attempt`. A policy that itself raises counts as one that says never again: its
    error is recorded beside the handler's.
    """
    if error is None:
        return COMPLETED
    return _final_or_snoozed(error) or _failed_attempt(job, error, backoff)


def _final_or_snoozed(error: BaseException) -> Outcome | None:
    """What a handler asked for, or a stop brought about, whatever attempts are left."""
    match error:
        case JobStopped():
            return INTERRUPTED
        case Snooze():
            return Outcome(JobState.SCHEDULED, delay=_bounded(error.delay), attempt_given_back=True)
        case Cancel() | JobCancelled():
            return _failed(JobState.CANCELLED, error)
        case Discard():
            return _failed(JobState.DISCARDED, error)
    return None


def _failed_attempt(job: Job[Any], error: BaseException, backoff: Backoff) -> Outcome:
    """Retried when attempts are left: when the handler says, or the policy."""
    if job.attempt >= job.max_attempts:
        return _failed(JobState.DISCARDED, error)
    match error:
        case RetryAfter():
            return _failed(JobState.RETRYABLE, error, error.delay)
        case RetryAt():
            return _failed(JobState.RETRYABLE, error, error.when)
    try:
        due = _time(backoff(job, error))
    except BaseException as broken:  # a policy is the user's code; its sys.exit() must not cost the record
        broken.__cause__ = error
        if _without_pgjobs(broken.__traceback__) is None:  # raised here: the trace is the handler's, then
            broken.__traceback__ = error.__traceback__
        return _failed(JobState.DISCARDED, broken)
    return _failed(JobState.DISCARDED if due is None else JobState.RETRYABLE, error, due)


def _time(answer: object) -> timedelta | datetime | None:
    """What a policy gave, if that says when. Anything else would be a retry without a delay."""
    if answer is None or isinstance(answer, timedelta):
        return answer
    if isinstance(answer, datetime) and answer.utcoffset() is not None:
        return answer
    raise TypeError(f"a backoff gives a timedelta, an aware datetime or None, not {answer!r}")


def _failed(state: JobState, error: BaseException, due: timedelta | datetime | None = None) -> Outcome:
    return Outcome(
        state,
        delay=_bounded(due) if isinstance(due, timedelta) else None,
        at=min(max(due, FIRST_INSTANT), LAST_INSTANT) if isinstance(due, datetime) else None,
        error=error_text(error),
        trace=error_trace(error),
    )


def _bounded(delay: timedelta) -> timedelta:
    return max(timedelta(0), min(delay, LONGEST_DELAY))


def error_text(error: BaseException) -> str:
    """The error's message, cleaned and cut; with the cause of a signal, and the SQLSTATE of a database error.

    The type stands before it where the message alone says little: none, or that of a `sys.exit(0)`.
    """
    text = _message(error)
    if not text or not isinstance(error, Exception) or isinstance(error, KeyError):
        text = f"{type(error).__name__}: {text}".removesuffix(": ")
    if isinstance(error, psycopg.Error) and error.sqlstate:
        text += f" [{error.sqlstate}]"
    if isinstance(error, Signal) and error.__cause__ is not None:
        text += f" (from {type(error.__cause__).__name__}: {_message(error.__cause__)})"
    return clean(text, ERROR_LIMIT)


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:  # an exception's own __str__ is the user's code
        return "<its text cannot be read>"


def error_trace(error: BaseException) -> str | None:
    """The traceback from the handler's first line on, without values of variables; cleaned and cut in the middle."""
    handlers_own = _without_pgjobs(error.__traceback__)
    if handlers_own is None:
        return None
    try:
        lines = traceback.TracebackException(type(error), error, handlers_own, limit=-_FRAMES, compact=True).format()
        return clean("".join(lines), TRACE_LIMIT)
    except Exception as broken:  # never let the record of a failure fail
        return f"<the traceback cannot be formatted: {type(broken).__name__}>"


def _without_pgjobs(trace: TracebackType | None) -> TracebackType | None:
    """Skip the library's own frames before the handler's; None when there are no others."""
    while trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("pgjobs."):
        trace = trace.tb_next
    return trace


def clean(text: str, limit: int) -> str:
    """Text that can be stored and printed: no control characters but newline and tab, at most `limit` characters,
    cut in the middle."""
    if len(text) > limit:
        half = (limit - 40) // 2
        text = f"{text[:half]}\n[{len(text) - 2 * half} characters cut]\n{text[-half:]}"
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def one_line(text: object, limit: int = 500) -> str:
    """Text for a line of a log: nothing in it ends the line or commands the terminal."""
    return _NOT_FOR_A_LINE.sub(lambda match: match[0].encode("unicode_escape").decode(), str(text)[:limit])[:limit]
