"""The settings of an app: `PGJOBS_` and the name of a setting of Client or WorkerPool, in capitals."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, MutableMapping
from datetime import timedelta
from difflib import get_close_matches
from typing import Any

from pgjobs.client import Client
from pgjobs.errors import InvalidSetting
from pgjobs.worker_pool import WorkerPool

_PREFIX = "PGJOBS_"

#: The database of an app without Flask-SQLAlchemy: a connection string, or a psycopg_pool.ConnectionPool.
DSN = "PGJOBS_DSN"
UNKNOWN_KINDS = "PGJOBS_UNKNOWN_KINDS"


def _parameters(cls: type, *, without: str, renamed: Mapping[str, str]) -> dict[str, inspect.Parameter]:
    keywords = [p for p in inspect.signature(cls).parameters.values() if p.kind is p.KEYWORD_ONLY and p.name != without]
    return {_PREFIX + renamed.get(p.name, p.name.upper()): p for p in keywords}


_OF_CLIENT = _parameters(Client, without="work_map", renamed={"middleware": "ENQUEUE_MIDDLEWARE"})
_OF_POOL = _parameters(WorkerPool, without="backoff", renamed={})  # a pool takes the backoff of its client


def set_defaults(config: MutableMapping[str, Any]) -> None:
    """Refuse unknown settings, and add those that are missing."""
    check_names(config)
    config.setdefault(DSN, None)
    for key, parameter in (_OF_CLIENT | _OF_POOL).items():
        config.setdefault(key, parameter.default)


def check_names(config: Mapping[str, Any]) -> None:
    known = {DSN, *_OF_CLIENT, *_OF_POOL}
    for key in config:
        if key.startswith(_PREFIX) and key not in known:
            near = get_close_matches(key.removeprefix(_PREFIX), [name.removeprefix(_PREFIX) for name in known], 1)
            meant = f"is {_PREFIX}{near[0]} meant?" if near else f"they are {DSN}, and those of Client and WorkerPool"
            raise InvalidSetting(f"there is no setting {key}: {meant}")


def of_client(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of Client."""
    return _values(config, _OF_CLIENT)


def of_pool(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of WorkerPool."""
    return _values(config, _OF_POOL)


def _values(config: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    check_names(config)  # again: the config may have grown
    return {parameter.name: _value(config[key], parameter) for key, parameter in parameters.items() if key in config}


def _value(value: Any, parameter: inspect.Parameter) -> Any:
    """The value; a number of seconds as a timedelta, as Flask's own settings have it."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return timedelta(seconds=value) if is_number and "timedelta" in str(parameter.annotation) else value
