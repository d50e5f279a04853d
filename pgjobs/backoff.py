"""When a failed attempt is tried again. Pure: a policy is a function of the job and its error."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from pgjobs import checks
from pgjobs.errors import InvalidSetting, shown
from pgjobs.job import Job
from pgjobs.options import LONGEST_DELAY

#: `backoff(job, error)` gives the delay before the next attempt, an aware instant, or None for never again.
#: `job.attempt` is the number of the attempt that failed, from 1. If it raises, or gives anything else (a negative
#: delay, an instant in the past), the backoff of the worker pool decides; if that fails too, River's policy decides.
Backoff = Callable[[Job[Any], BaseException], timedelta | datetime | None]


def river(*, jitter: float = 0.1) -> Backoff:
    """River's policy and the default: attempt to the power of 4 seconds, +-10 %. 25 attempts span three weeks."""
    _check_jitter(jitter)
    return lambda job, error: _jittered(_seconds(job.attempt, 4), jitter)


def exponential(
    base: timedelta = timedelta(seconds=1),
    *,
    factor: float = 2.0,
    maximum: timedelta = timedelta(hours=1),
    jitter: float = 0.2,
) -> Backoff:
    """`base` times `factor` for each attempt after the first, at most `maximum`, +-`jitter`."""
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
    """The same delay before every attempt."""
    checks.check_duration("delay", delay)
    checks.check_not_negative("delay", delay)
    return lambda job, error: delay


def never() -> Backoff:
    """No second attempt: the first error discards the job."""
    return lambda job, error: None


def only_for(*types: type[BaseException], policy: Backoff | None = None) -> Backoff:
    """Retry by `policy` (River's when left out) for these exception types; discard at once for all others."""
    classes: tuple[object, ...] = types
    for given in classes:
        if not isinstance(given, type) or not issubclass(given, BaseException):
            raise InvalidSetting(
                f"types are classes of exceptions, as in only_for(TimeoutError, ConnectionError), not {shown(given)}"
            )
    if not types:
        raise InvalidSetting("types of exceptions are missing: only_for() would retry none, which never() says")
    checks.check_function("policy", policy, checks.A_BACKOFF)
    chosen = policy or river()
    return lambda job, error: chosen(job, error) if isinstance(error, types) else None


def _check_jitter(jitter: float) -> None:
    checks.check_float("jitter", jitter, 0, 1)


def _seconds(attempt: int, power: int) -> float:
    return float(min(attempt**power, int(LONGEST_DELAY.total_seconds())))


def _jittered(seconds: float, jitter: float) -> timedelta:
    # random.random() is one call into C under the interpreter's lock: safe from any thread
    spread = seconds * (1 - jitter + 2 * jitter * random.random())
    return timedelta(seconds=min(spread, LONGEST_DELAY.total_seconds()))
