"""The settings of a worker pool, checked: each error says what was given and what would do."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from pgjobs.errors import InvalidSetting
from pgjobs.work_map import Handler, HandlerFunction, checked_handler


def check_intervals(poll_interval: timedelta, fetch_cooldown: timedelta) -> None:
    if poll_interval < timedelta(milliseconds=1):
        raise InvalidSetting(f"poll_interval is at least a millisecond, not {poll_interval!r}")
    if fetch_cooldown and fetch_cooldown < timedelta(milliseconds=1):
        raise InvalidSetting(f"fetch_cooldown is none or at least a millisecond, not {fetch_cooldown!r}")
    if fetch_cooldown > poll_interval:
        raise InvalidSetting(f"poll_interval {poll_interval!r} is shorter than fetch_cooldown {fetch_cooldown!r}")


def check_lease(lease: timedelta) -> None:
    if lease < timedelta(seconds=5):
        raise InvalidSetting(f"lease is 5 seconds or more, so that it can be extended in time; not {lease!r}")


def check_unknown_kinds(
    unknown: Literal["error", "leave"] | Handler | HandlerFunction,
) -> Literal["error", "leave"] | Handler:
    if unknown in ("error", "leave"):
        return unknown
    if isinstance(unknown, str):
        raise InvalidSetting(f"unknown_kinds is 'error', 'leave' or a handler(tx, job), not {unknown!r}")
    handler = checked_handler(unknown)
    if handler.detached:
        raise InvalidSetting("a handler of unknown kinds cannot be detached: name the kinds in the WorkMap")
    return handler


def check_keep(name: str, keep: timedelta | None) -> timedelta | None:
    if keep is not None and keep < timedelta(0):
        raise InvalidSetting(f"{name} is a timedelta of zero or more, or None for ever; not {keep!r}")
    return keep
