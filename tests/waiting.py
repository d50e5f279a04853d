"""Waiting for a condition instead of sleeping."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], timeout: float = 10.0) -> object:
    """The first truthy value of `condition()`; AssertionError naming the condition if none comes in time.

    Between two looks it pauses twice as long as a look takes, for 10 to 100 ms: many conditions are queries, which take
    the processor from what is waited for.
    """
    now = time.monotonic()
    deadline = now + timeout
    while True:
        began = now
        value = condition()
        if value:
            return value
        now = time.monotonic()
        if now >= deadline:
            raise AssertionError(f"not true within {timeout:g} s: {_named(condition)}; last value: {value!r}")
        time.sleep(min(max(0.01, 2 * (now - began)), 0.1))
        now = time.monotonic()


def _named(condition: Callable[[], object]) -> str:
    """A lambda by its source line, anything else by its name."""
    name = getattr(condition, "__qualname__", None) or repr(condition)
    if not name.endswith("<lambda>"):
        return str(name)
    try:
        return inspect.getsource(condition).strip()
    except (OSError, TypeError):  # typed at a prompt, or compiled from a string
        return str(name)
