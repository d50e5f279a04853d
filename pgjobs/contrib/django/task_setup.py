"""Lets workers run tasks, if the tasks of the project are jobs. Imports nothing of a task framework otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from django.conf import settings
from django.utils.module_loading import import_string

from pgjobs.client import Client

_BACKEND = "pgjobs.contrib.django.backend"


def serve_tasks(client: Client) -> None:
    """Make the handler of tasks one of the client's, and send Django's signals about them, if a backend of
    `settings.TASKS` is a PgjobsBackend."""
    if client.work_map is None or not any(_is_ours(backend) for backend in _backends()):
        return
    from pgjobs.contrib.django.task_worker import TaskSignals, register

    register(client.work_map)
    client.hooks.add(TaskSignals())


def _backends() -> Iterator[Any]:
    given = getattr(settings, "TASKS", None)
    for params in given.values() if isinstance(given, Mapping) else ():
        with suppress(ImportError, KeyError, TypeError):  # Django says so when a task is defined
            yield import_string(params["BACKEND"])


def _is_ours(backend: Any) -> bool:
    return any(base.__module__ == _BACKEND for base in getattr(backend, "__mro__", ()))
