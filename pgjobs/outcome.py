"""What one attempt leads to: a value, decided by a pure function before anything is written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pgjobs.backoff import Backoff
from pgjobs.error_text import error_text, error_trace, without_pgjobs
from pgjobs.errors import Cancel, Discard, JobCancelled, JobStopped, RetryAfter, RetryAt, Snooze
from pgjobs.job import Job, JobState
from pgjobs.options import FIRST_INSTANT, LAST_INSTANT, LONGEST_DELAY


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


@dataclass(frozen=True, slots=True)
class Kept:
    """What an attempt leaves behind beside its outcome, as JSON texts in ASCII; None for nothing."""

    metadata: str | None = None
    output: str | None = None


NOTHING_KEPT = Kept()
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
        if without_pgjobs(broken.__traceback__) is None:  # raised here: the trace is the handler's, then
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
