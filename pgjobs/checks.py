"""What clients and worker pools are told, checked: each error says what was given and what would do."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

from pgjobs.errors import InvalidSetting, PgjobsError, shown

T = TypeVar("T")
Error = Callable[[str], PgjobsError]

#: What a `backoff` is, for the message of `check_function`.
A_BACKOFF = "a function of (job, error), as is constant(timedelta(seconds=5))"


def check_duration(
    name: str, value: object, *, or_none: bool = False, unit: str = "seconds", error: Error = InvalidSetting
) -> None:
    """A number in place of a timedelta is what is given most by mistake: the message says it as it should be."""
    if isinstance(value, timedelta) or (value is None and or_none):
        return
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else 1
    wanted = "a timedelta or None" if or_none else "a timedelta"
    raise error(f"{name} is {wanted}, not {shown(value)}: give timedelta({unit}={shown(number, 20)})")


def check_bool(name: str, value: object, *, error: Error = InvalidSetting) -> None:
    if not isinstance(value, bool):
        raise error(f"{name} is True or False, not {shown(value)}")


def check_text(
    name: str, value: object, *, or_none: bool = False, is_cleaned: bool = False, error: Error = InvalidSetting
) -> None:
    """Refuse what is no text that Postgres can store. `is_cleaned` says that what it cannot store is removed later."""
    if value is None and or_none:
        return
    if not isinstance(value, str):
        raise error(f"{name} is a text, not {shown(value)}: give str(...) of it")
    if not is_cleaned and ("\0" in value or any("\ud800" <= character <= "\udfff" for character in value)):
        raise error(f"{name} holds NUL or a lone surrogate, which Postgres cannot store: {shown(value)}")


def check_number(
    name: str, value: object, least: int, most: int | None = None, *, error: Error = InvalidSetting
) -> None:
    """Refuse what is no whole number from `least` to `most`; None is no upper limit."""
    if isinstance(value, int) and not isinstance(value, bool) and least <= value and (most is None or value <= most):
        return
    limits = f"{least} or more" if most is None else f"{least} to {most}"
    raise error(f"{name} is a whole number, {limits}; not {shown(value)}")


def check_float(name: str, value: object, least: float, below: float = math.inf) -> None:
    """Refuse what is no number from `least` to less than `below`."""
    if isinstance(value, int | float) and not isinstance(value, bool) and least <= value < below:
        return
    limits = f"{least:g} or more" if below == math.inf else f"from {least:g} to less than {below:g}"
    raise InvalidSetting(f"{name} is a number, {limits}; not {shown(value)}")


def check_intervals(poll_interval: timedelta, fetch_cooldown: timedelta) -> None:
    check_duration("poll_interval", poll_interval)
    check_duration("fetch_cooldown", fetch_cooldown)
    if poll_interval < timedelta(milliseconds=1):
        raise InvalidSetting(f"poll_interval is at least a millisecond, not {shown(poll_interval)}")
    if fetch_cooldown and fetch_cooldown < timedelta(milliseconds=1):
        raise InvalidSetting(f"fetch_cooldown is none or at least a millisecond, not {fetch_cooldown!r}")
    if fetch_cooldown > poll_interval:
        raise InvalidSetting(f"poll_interval {poll_interval!r} is shorter than fetch_cooldown {fetch_cooldown!r}")


def check_lease(lease: timedelta) -> None:
    check_duration("lease", lease)
    if lease < timedelta(seconds=5):
        raise InvalidSetting(f"lease is 5 seconds or more, so that it can be extended in time; not {lease!r}")


def check_timeout(timeout: timedelta | None, *, error: Error = InvalidSetting) -> None:
    """Of an attempt."""
    check_duration("timeout", timeout, or_none=True, error=error)
    if timeout is not None and timeout <= timedelta(0):
        raise error(f"timeout is longer than nothing, or None for ever; not {timeout!r}")


def check_retention(name: str, keep: timedelta | None) -> timedelta | None:
    check_duration(name, keep, or_none=True, unit="hours")
    if keep is not None and keep < timedelta(0):
        raise InvalidSetting(f"{name} is a timedelta of zero or more, or None for ever; not {keep!r}")
    return keep


def timeout_seconds(timeout: timedelta | None) -> float | None:
    """The seconds that a call waits, as a lock takes them; None for ever. What is over already is no time at all."""
    check_duration("timeout", timeout, or_none=True)
    return None if timeout is None else min(max(timeout.total_seconds(), 0.0), threading.TIMEOUT_MAX)


def check_not_negative(name: str, value: timedelta) -> None:
    if value < timedelta(0):
        raise InvalidSetting(f"{name} must not be negative, as {shown(value)} is")


def check_function(name: str, value: object, wanted: str, *, error: Error = InvalidSetting) -> None:
    """Of what may be left out."""
    if value is not None and not callable(value):
        raise error(f"{name} is {wanted}, not {shown(value)}")


def check_list(name: str, values: Iterable[T], wanted: str, *, error: Error = InvalidSetting) -> tuple[T, ...]:
    """All of what may be given more than once; one alone, without the list around it, is refused."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise error(f"{name} is a list of {wanted}, not {shown(values)}: give {name}=[...]")
    return tuple(values)


def check_functions(name: str, values: Iterable[T], wanted: str, *, error: Error = InvalidSetting) -> tuple[T, ...]:
    """The same, of functions."""
    given: tuple[Any, ...] = check_list(name, values, wanted, error=error)
    for value in given:
        if not callable(value):
            raise error(f"{name} is a list of {wanted}, not of {shown(value)}")
    return given
