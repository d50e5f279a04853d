"""The settings of an app: `PGJOBS_` and the name of a setting of Client or WorkerPool, in capitals."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from datetime import timedelta
from typing import Any

from pgjobs.contrib.keywords import arguments, client_keywords, meant, pool_keywords
from pgjobs.errors import InvalidSetting

_PREFIX = "PGJOBS_"

#: The database of an app without Flask-SQLAlchemy: a connection string, or a psycopg_pool.ConnectionPool.
DSN = "PGJOBS_DSN"
UNKNOWN_KINDS = "PGJOBS_UNKNOWN_KINDS"

_OF_CLIENT = client_keywords(prefix=_PREFIX)
_OF_POOL = pool_keywords(prefix=_PREFIX)
_ALL = {**_OF_CLIENT, **_OF_POOL}


def set_defaults(config: MutableMapping[str, Any]) -> None:
    """Refuse unknown settings, and add those that are missing."""
    _check_names(config)
    config.setdefault(DSN, None)
    for key, parameter in _ALL.items():
        config.setdefault(key, parameter.default)


def of_client(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of Client."""
    _check_names(config)  # again: the config may have grown
    return arguments(config, _OF_CLIENT, _value)


def of_pool(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of WorkerPool."""
    _check_names(config)
    return arguments(config, _OF_POOL, _value)


def _check_names(config: Mapping[str, Any]) -> None:
    known = (DSN, *_ALL)
    for key in config:
        if key.startswith(_PREFIX) and key not in known:
            raise InvalidSetting(f"there is no setting {key}: {meant(key, known, prefix=_PREFIX)}")


def _value(key: str, value: Any) -> Any:
    """The value; a number of seconds as a timedelta, as Flask's own settings have it."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return timedelta(seconds=value) if is_number and "timedelta" in str(_ALL[key].annotation) else value
