"""Checks of settings and arguments. Each error names the argument, shows its value and says what is allowed."""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from pgjobs.errors import InvalidSetting, PgjobsError, not_a_timedelta, shown

T = TypeVar("T")
Error = Callable[[str], PgjobsError]

#: What a `backoff` must be, for the message of `check_function`.
A_BACKOFF = "a function of (job, error), as is constant(timedelta(seconds=5))"

_A_MILLISECOND = timedelta(milliseconds=1)


def check_duration(
    name: str, value: object, *, or_none: bool = False, unit: str = "seconds", error: Error = InvalidSetting
) -> None:
    if isinstance(value, timedelta) or (value is None and or_none):
        return
    wanted = "a timedelta or None" if or_none else "a timedelta"
    raise error(not_a_timedelta(name, value, wanted=wanted, unit=unit))


def check_not_negative(name: str, value: timedelta) -> None:
    if value < timedelta(0):
        raise InvalidSetting(f"{name} must not be negative, as {shown(value)} is")


def check_bool(name: str, value: object, *, error: Error = InvalidSetting) -> None:
    if not isinstance(value, bool):
        raise error(f"{name} must be True or False, not {shown(value)}")


def check_text(
    name: str, value: object, *, or_none: bool = False, is_cleaned: bool = False, error: Error = InvalidSetting
) -> None:
    """Refuse a value that is not a str, or that Postgres cannot store. With `is_cleaned` the caller removes the
    characters that Postgres cannot store."""
    if value is None and or_none:
        return
    if not isinstance(value, str):
        raise error(f"{name} must be a str, not {shown(value)}: give str(...) of it")
    if not is_cleaned and ("\0" in value or any("\ud800" <= character <= "\udfff" for character in value)):
        raise error(f"{name} holds NUL or a lone surrogate, which Postgres cannot store: {shown(value)}")


def check_number(
    name: str, value: object, least: int, most: int | None = None, *, error: Error = InvalidSetting
) -> None:
    """Refuse a value that is not an int from `least` to `most`; `most=None` means no upper limit."""
    if isinstance(value, int) and not isinstance(value, bool) and least <= value and (most is None or value <= most):
        return
    limits = f"{least} or more" if most is None else f"from {least} to {most}"
    raise error(f"{name} must be a whole number, {limits}, not {shown(value)}")


def check_float(name: str, value: object, least: float, below: float = math.inf) -> None:
    """Refuse a value that is not a number with `least <= value < below`."""
    if isinstance(value, int | float) and not isinstance(value, bool) and least <= value < below:
        return
    limits = f"{least:g} or more" if below == math.inf else f"from {least:g} to less than {below:g}"
    raise InvalidSetting(f"{name} must be a number, {limits}, not {shown(value)}")


def check_intervals(poll_interval: timedelta, fetch_cooldown: timedelta) -> None:
    check_duration("poll_interval", poll_interval)
    check_duration("fetch_cooldown", fetch_cooldown)
    if poll_interval < _A_MILLISECOND:
        raise InvalidSetting(f"poll_interval must be a millisecond or more, not {shown(poll_interval)}")
    if fetch_cooldown and fetch_cooldown < _A_MILLISECOND:
        raise InvalidSetting(f"fetch_cooldown must be 0, or a millisecond or more, not {fetch_cooldown!r}")
    if fetch_cooldown > poll_interval:
        raise InvalidSetting(f"poll_interval {poll_interval!r} is shorter than fetch_cooldown {fetch_cooldown!r}")


def check_lease(lease: timedelta) -> None:
    check_duration("lease", lease)
    if lease < timedelta(seconds=5):
        raise InvalidSetting(f"lease must be 5 seconds or more, so that it can be extended in time, not {lease!r}")


def check_stop_timeout(stop_timeout: timedelta | None) -> None:
    """Check how long a stop waits for running jobs; None means for ever."""
    check_duration("stop_timeout", stop_timeout, or_none=True)
    if stop_timeout is not None:
        check_not_negative("stop_timeout", stop_timeout)


def check_max_age(max_age: timedelta) -> None:
    check_duration("max_age", max_age)
    check_not_negative("max_age", max_age)


def check_timeout(timeout: timedelta | None, *, error: Error = InvalidSetting) -> None:
    """Check the timeout of an attempt; None means no limit."""
    check_duration("timeout", timeout, or_none=True, error=error)
    if timeout is not None and timeout <= timedelta(0):
        raise error(f"timeout must be > 0, or None for no limit, not {timeout!r}")


def check_retention(name: str, keep: timedelta | None) -> timedelta | None:
    """Check how long finished jobs are kept; None means for ever."""
    check_duration(name, keep, or_none=True, unit="hours")
    if keep is not None and keep < timedelta(0):
        raise InvalidSetting(f"{name} must be a timedelta of zero or more, or None for ever, not {keep!r}")
    return keep


def timeout_seconds(timeout: timedelta | None) -> float | None:
    """Convert a timeout to the seconds that locks take: a negative one to 0, None to None (wait for ever)."""
    check_duration("timeout", timeout, or_none=True)
    return None if timeout is None else min(max(timeout.total_seconds(), 0.0), threading.TIMEOUT_MAX)


def check_function(name: str, value: object, wanted: str, *, error: Error = InvalidSetting) -> None:
    """Refuse a value that is neither None nor callable."""
    if value is not None and not callable(value):
        raise error(f"{name} must be {wanted}, not {shown(value)}")


def check_signature(
    where: str, function: Callable[..., object], wanted: str, arguments: Sequence[object], *, error: Error
) -> None:
    """Refuse a function that cannot be called with `arguments`, or whose call would not run its body. `wanted` is the
    `def` line that the error suggests."""
    for called in (function, type(function).__call__):  # `function` may be an object with a __call__ method
        if inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called):
            raise error(f"{where} is async, and pgjobs would never run its body: write a plain {wanted}")
        if inspect.isgeneratorfunction(called):
            raise error(f"{where} is a generator, and pgjobs would never run its body: write {wanted}, without yield")
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as problem:
        raise error(f"{where} does not fit {wanted}: {problem}") from None
    except ValueError:  # a builtin without a signature; its first call shows whether it fits
        return


def check_list(name: str, values: Iterable[T], wanted: str, *, error: Error = InvalidSetting) -> tuple[T, ...]:
    """The values as a tuple. A single value without a list around it is refused."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise error(f"{name} must be a list of {wanted}, not {shown(values)}: give {name}=[...]")
    return tuple(values)


def check_functions(name: str, values: Iterable[T], wanted: str, *, error: Error = InvalidSetting) -> tuple[T, ...]:
    """Like `check_list`, and each value must be callable."""
    functions: tuple[Any, ...] = check_list(name, values, wanted, error=error)
    for function in functions:
        if not callable(function):
            raise error(f"{name} must be a list of {wanted}, not of {shown(function)}")
    return functions
