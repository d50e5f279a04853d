"""`PGJOBS` of the Django settings: where the jobs are, and the keyword arguments of Client and WorkerPool in capitals.

    PGJOBS = {
        "USING": "default",                    # the alias whose database has the jobs
        "SCHEMA": "pgjobs",
        "QUEUES": {"default": 10, "mail": 2},
        "CRON": ["shop.jobs.schedules"],
        "DASHBOARD": {"SHOW_ARGS": True},      # keyword arguments of Dashboard
    }

Objects of the application may be given by a dotted path, since the settings are read before the apps are imported. A
path of CRON, HOOKS, MIDDLEWARE and ENQUEUE_MIDDLEWARE may lead to one object or to a list of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from django.conf import settings
from django.utils.module_loading import import_string

from pgjobs.contrib.keywords import Keywords, arguments, client_keywords, meant, pool_keywords
from pgjobs.errors import InvalidSetting, shown, shown_name

_OF_CLIENT = client_keywords("id", "schema")
_OF_POOL = pool_keywords()
#: Those of the dashboard, in `PGJOBS["DASHBOARD"]`. Who may use it, the permissions of the project say.
_OF_DASHBOARD = {"READ_ONLY": "read_only", "SHOW_ARGS": "show_args", "RENDER_ARGS": "render_args"}
_KNOWN = ("USING", "SCHEMA", "DASHBOARD", *_OF_CLIENT, *_OF_POOL)

_OBJECTS = ("BACKOFF", "CONTEXT", "ERROR_HANDLER", "UNKNOWN_KINDS", "RENDER_ARGS")
_LISTS = ("CRON", "HOOKS", "MIDDLEWARE", "ENQUEUE_MIDDLEWARE")


def using() -> str:
    """The alias of `settings.DATABASES` whose database has the jobs."""
    return _text("USING", "default")


def schema() -> str:
    """The schema of the tables."""
    return _text("SCHEMA", "pgjobs")


def client_settings() -> dict[str, Any]:
    """The keyword arguments of the client. Raises InvalidSetting if one of the settings is unknown."""
    return _chosen(_OF_CLIENT)


def pool_settings() -> dict[str, Any]:
    """The keyword arguments of the worker pool. Raises InvalidSetting if one of the settings is unknown."""
    return _chosen(_OF_POOL)


def dashboard_settings() -> dict[str, Any]:
    """The keyword arguments of the dashboard. Raises InvalidSetting."""
    given = _given().get("DASHBOARD", {})
    if not isinstance(given, Mapping) or not _OF_DASHBOARD.keys() >= given.keys():
        raise InvalidSetting(
            f"PGJOBS['DASHBOARD'] must be a dict of some of {', '.join(_OF_DASHBOARD)}, not {shown(given)}"
        )
    return {_OF_DASHBOARD[name]: _value(name, value) for name, value in given.items()}


def unknown() -> list[str]:
    """What is wrong with each setting that does not exist."""
    return [f"PGJOBS has no setting {shown(name)}: {meant(name, _KNOWN)}" for name in _given() if name not in _KNOWN]


def _given() -> Mapping[str, Any]:
    given = getattr(settings, "PGJOBS", {})
    if not isinstance(given, Mapping):
        raise InvalidSetting(f"PGJOBS must be a dict such as {{'QUEUES': {{'default': 10}}}}, not {shown_name(given)}")
    return given


def _text(name: str, default: str) -> str:
    value = _given().get(name, default)
    if not isinstance(value, str) or not value:
        raise InvalidSetting(f"PGJOBS[{name!r}] must be a name such as {default!r}, not {shown(value)}")
    return value


def _chosen(keywords: Keywords) -> dict[str, Any]:
    for problem in unknown():
        raise InvalidSetting(problem)
    return arguments(_given(), keywords, _value)


def _value(name: str, value: Any) -> Any:
    if name in _OBJECTS:
        return imported(f"PGJOBS[{name!r}]", value)
    if name in _LISTS:
        return [each for part in _listed(value) for each in _listed(imported(f"PGJOBS[{name!r}]", part))]
    return value


def _listed(value: Any) -> Iterable[Any]:
    """The items of a list; one object that is no list as its only item."""
    return value if isinstance(value, Iterable) and not isinstance(value, str) else [value]


def imported(where: str, value: Any) -> Any:
    """The object that a dotted path leads to; any other value as it is. Raises InvalidSetting, which names `where` the
    path stands."""
    if not isinstance(value, str) or "." not in value:
        return value
    try:
        found: Any = import_string(value)
    except ImportError as error:
        raise InvalidSetting(f"{where} has {value!r}, which cannot be imported: {error}") from error
    return found
