"""Backoff policies: when a failed job runs again. A policy is a function of the job and its error."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from pgjobs import checks
from pgjobs.errors import InvalidSetting, shown
from pgjobs.job import Job
from pgjobs.options import LONGEST_DELAY

#: `backoff(job, error)` returns the delay before the next attempt (a timedelta), its time (an aware datetime), or None
#: to discard the job. `job.attempt` is the number of the failed attempt, from 1. If the function raises, or returns
#: anything else, such as a negative delay or a time in the past, the backoff of the worker pool decides; if that fails
#: too, `river()` decides.
Backoff = Callable[[Job[Any], BaseException], timedelta | datetime | None]


def river(*, jitter: float = 0.1) -> Backoff:
    """The default: wait `attempt ** 4` seconds, +-`jitter` (0.1 is 10 %). 25 attempts span three weeks.

    The policy of the River job queue.
    """
    _check_jitter(jitter)
    longest = int(LONGEST_DELAY.total_seconds())  # as an int, since a large attempt ** 4 is no float
    return lambda job, error: _jittered(float(min(job.attempt**4, longest)), jitter)


def exponential(
    base: timedelta = timedelta(seconds=1),
    *,
    factor: float = 2.0,
    maximum: timedelta = timedelta(hours=1),
    jitter: float = 0.2,
) -> Backoff:
    """Wait `base * factor ** (attempt - 1)`, at most `maximum`, +-`jitter` (0.2 is 20 %)."""
    checks.check_duration("base", base)
    checks.check_duration("maximum", maximum)
    checks.check_not_negative("exponential: base", base)
    checks.check_not_negative("exponential: maximum", maximum)
    checks.check_float("exponential: factor", factor, 1)
    _check_jitter(jitter)

    def backoff(job: Job[Any], error: BaseException) -> timedelta:
        try:
            seconds = base.total_seconds() * factor ** (job.attempt - 1)
        except OverflowError:
            seconds = maximum.total_seconds()
        return _jittered(min(seconds, maximum.total_seconds()), jitter)

    return backoff


def constant(delay: timedelta) -> Backoff:
    """Wait the same delay before each attempt."""
    checks.check_duration("delay", delay)
    checks.check_not_negative("delay", delay)
    return lambda job, error: delay


def never() -> Backoff:
    """Discard the job at its first error, without another attempt."""
    return lambda job, error: None


def only_for(*types: type[BaseException], policy: Backoff | None = None) -> Backoff:
    """Retry by `policy`, or by `river()` without one, if the error is of these types; else discard the job."""
    classes: tuple[object, ...] = types
    for given in classes:
        if not isinstance(given, type) or not issubclass(given, BaseException):
            raise InvalidSetting(
                "types must be classes of exceptions, as in only_for(TimeoutError, ConnectionError), "
                f"not {shown(given)}"
            )
    if not types:
        raise InvalidSetting("types of exceptions are missing: only_for() would never retry, and never() says so")
    checks.check_function("policy", policy, checks.A_BACKOFF)
    chosen = policy or river()
    return lambda job, error: chosen(job, error) if isinstance(error, types) else None


def _check_jitter(jitter: float) -> None:
    checks.check_float("jitter", jitter, 0, 1)


def _jittered(seconds: float, jitter: float) -> timedelta:
    spread = seconds * (1 - jitter + 2 * jitter * random.random())
    return timedelta(seconds=min(spread, LONGEST_DELAY.total_seconds()))
