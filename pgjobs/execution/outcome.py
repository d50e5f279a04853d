"""The outcome of an attempt: a value that a pure function decides before anything is written."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pgjobs import return_values
from pgjobs.backoff import Backoff, river
from pgjobs.clean_text import error_text, error_trace
from pgjobs.errors import Cancel, Discard, JobCancelled, JobStopped, RetryAfter, RetryAt, Snooze
from pgjobs.job import Job, JobState
from pgjobs.options import FIRST_INSTANT

#: Called with a backoff and its exception: BadReturnValue if it returned no usable time.
Complain = Callable[[Backoff, BaseException], None]
AFTER_A_FAULT = timedelta(seconds=1)  # the shortest delay if a bug decides when the next attempt starts
_MOMENT = timedelta(seconds=1)  # allowed for the difference of the two clocks and a late answer to the claim
_RIVER = river()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ends. `retryable` and `scheduled` wait for `delay` or `at`. With `refund` the attempt is not
    counted."""

    state: JobState
    delay: timedelta | None = None
    at: datetime | None = None
    error: str | None = None
    trace: str | None = None
    refund: bool = False

    @property
    def snoozed(self) -> bool:
        return self.state is JobState.SCHEDULED

    def error_json(self, attempt: int) -> str | None:
        """The entry for the job's `errors`, without its time, which the database adds."""
        if self.error is None:
            return None
        return json.dumps({"attempt": attempt, "error": self.error, "trace": self.trace})


@dataclass(frozen=True, slots=True)
class AttemptData:
    """The metadata and the output that a handler has set, as JSON texts in ASCII; None for nothing."""

    metadata: str | None = None
    output: str | None = None


NO_DATA = AttemptData()
COMPLETED = Outcome(JobState.COMPLETED)
INTERRUPTED = Outcome(JobState.AVAILABLE, refund=True)  # stopped by the pool


def _ignore(backoff: Backoff, error: BaseException) -> None: ...


def decide(
    job: Job[Any],
    error: BaseException | None,
    backoff: Backoff,
    *others: Backoff,
    ran: timedelta = return_values.NOTHING,
    complain: Complain = _ignore,
) -> Outcome:
    """Decide the outcome of an attempt whose handler returned (`error` is None) or raised.

    The attempt that failed is `job.attempt`. If `backoff` raises or returns no time, the next of `others` decides, and
    after the last of them River's policy; the job is then retried after a second at the earliest. An instant is
    compared with the time of the claim, by the database's clock, plus `ran`."""
    if error is None:
        return COMPLETED
    decided = _final_or_snoozed(error)
    if decided is not None:
        return decided
    if job.attempt >= job.max_attempts:
        return _failed(JobState.DISCARDED, error)
    return _signalled(error) or _by_policy(job, error, (backoff, *others), ran, complain)


def _final_or_snoozed(error: BaseException) -> Outcome | None:
    """The outcomes that do not depend on the number of attempts left."""
    match error:
        case JobStopped():
            return INTERRUPTED
        case Snooze():
            return Outcome(JobState.SCHEDULED, delay=_not_past(error.delay), refund=True)
        case Cancel() | JobCancelled():
            return _failed(JobState.CANCELLED, error)
        case Discard():
            return _failed(JobState.DISCARDED, error)
    return None


def _signalled(error: BaseException) -> Outcome | None:
    """A retry at a time that the handler has chosen."""
    match error:
        case RetryAfter():
            return _failed(JobState.RETRYABLE, error, _not_past(error.delay))
        case RetryAt():  # the statement that writes it moves a past instant, by the database's clock
            return _failed(JobState.RETRYABLE, error, return_values.plain_instant(error.when))
    return None


def _by_policy(
    job: Job[Any], error: BaseException, policies: Sequence[Backoff], ran: timedelta, complain: Complain
) -> Outcome:
    """A retry at the time that the first working policy gives. A bug in a policy must not lose the job or its error,
    and must not use up all attempts within a second."""
    now = (job.attempted_at or FIRST_INSTANT) + max(return_values.NOTHING, ran - _MOMENT)
    due: timedelta | datetime | None = AFTER_A_FAULT
    soonest = return_values.NOTHING
    for policy in (*policies, _RIVER):
        try:
            due = _no_sooner(return_values.retry_time(policy(job, error), now), now, soonest)
            break
        except BaseException as broken:  # also a sys.exit(): a policy is the user's code
            complain(policy, broken)
            soonest = AFTER_A_FAULT
    return _failed(JobState.DISCARDED if due is None else JobState.RETRYABLE, error, due)


def _no_sooner(due: timedelta | datetime | None, now: datetime, soonest: timedelta) -> timedelta | datetime | None:
    if isinstance(due, timedelta):
        return max(due, soonest)
    return due and max(due, now + _MOMENT + soonest) if soonest else due


def _not_past(delay: timedelta) -> timedelta:
    """The delay of a signal. It is negative only in a signal that was made without its constructor, which is a bug."""
    plain = return_values.plain_delay(delay)
    return plain if plain >= return_values.NOTHING else AFTER_A_FAULT


def _failed(state: JobState, error: BaseException, due: timedelta | datetime | None = None) -> Outcome:
    return Outcome(
        state,
        delay=due if isinstance(due, timedelta) else None,
        at=None if isinstance(due, timedelta) else due,
        error=error_text(error),
        trace=error_trace(error),
    )
