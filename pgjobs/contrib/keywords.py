"""Settings that are keyword arguments of Client and WorkerPool: what the settings of all frameworks have in common."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from pgjobs.client import Client
from pgjobs.worker_pool import WorkerPool

#: By the name of the setting, the keyword argument that it is.
Keywords = Mapping[str, inspect.Parameter]


def client_keywords(*without: str, prefix: str = "") -> Keywords:
    """The keyword arguments of Client. Its `middleware` is ENQUEUE_MIDDLEWARE, since WorkerPool has a `middleware`
    too."""
    found = _keywords(Client, {"work_map", *without}, prefix)
    found[f"{prefix}ENQUEUE_MIDDLEWARE"] = found.pop(f"{prefix}MIDDLEWARE")
    return found


def pool_keywords(*, prefix: str = "") -> Keywords:
    """The keyword arguments of WorkerPool. Its `backoff` is that of its client."""
    return _keywords(WorkerPool, {"backoff"}, prefix)


def _keywords(of: Callable[..., object], without: set[str], prefix: str) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(of).parameters.values()
    wanted = [each for each in parameters if each.kind is each.KEYWORD_ONLY and each.name not in without]
    return {f"{prefix}{each.name.upper()}": each for each in wanted}


def arguments(given: Mapping[str, Any], of: Keywords, value: Callable[[str, Any], Any]) -> dict[str, Any]:
    """The keyword arguments that are among the given settings. `value` gets the name and the value of a setting, and
    returns the value of the argument."""
    return {parameter.name: value(name, given[name]) for name, parameter in of.items() if name in given}


def meant(name: object, known: Iterable[str], *, prefix: str = "") -> str:
    """What to say of a name that does not exist: the known name that is most like it, or else all of them."""
    by_name = {each.removeprefix(prefix).lower(): each for each in known}
    near = get_close_matches(str(name).removeprefix(prefix).lower(), by_name, 1)
    return f"is {by_name[near[0]]} meant?" if near else f"they are {', '.join(by_name.values())}"
