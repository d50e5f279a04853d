"""A backend of Django's tasks. A task is a job: it is enqueued in the transaction that is open, and runs in its own.

    TASKS = {"default": {"BACKEND": "pgjobs.contrib.django.backend.PgjobsBackend"}}

On Django 5.2 install `django-tasks` beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

from django.apps import apps
from django.core import checks
from django.utils import timezone

from pgjobs.client import Client
from pgjobs.contrib.django import settings
from pgjobs.contrib.django.shortcuts import client as client_of
from pgjobs.contrib.django.source import DjangoSource
from pgjobs.contrib.django.task_api import (
    BaseTaskBackend,
    InvalidTask,
    InvalidTaskBackend,
    TaskResultDoesNotExist,
    normalize_json,
    task_enqueued,
)
from pgjobs.contrib.django.task_options import TaskOptions, UnknownTask, read_options
from pgjobs.contrib.django.task_results import (
    KINDS,
    RUN_AFTER,
    DetachedTaskArgs,
    TaskArgs,
    WorkerVanished,
    find_task,
    task_result,
)
from pgjobs.errors import InvalidOption, InvalidSetting
from pgjobs.options import check_queue
from pgjobs.queue_settings import check_queues

__all__ = ["PgjobsBackend", "UnknownTask", "WorkerVanished"]

_ID = re.compile(r"[1-9][0-9]{0,18}")
_LARGEST_ID = 2**63 - 1


class PgjobsBackend(BaseTaskBackend):  # type: ignore[misc]  # Django has no types
    """Tasks as jobs of pgjobs, which `manage.py pgjobs work` runs beside all others.

    `enqueue` inserts on the connection of the alias: inside `atomic()` the task exists when, and only when, that block
    commits. The task runs in the transaction that completes it. `get_result` reads on the same connection.

    `OPTIONS` may have `max_attempts`, `backoff`, `timeout`, `detached` and `using`. A priority of Django's is negated:
    its higher one runs first, as the lower one of a job does.
    """

    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True

    @cached_property
    def task_options(self) -> TaskOptions:
        """The checked OPTIONS. Raises InvalidTaskBackend."""
        try:
            return read_options(self.options)
        except InvalidSetting as error:
            raise InvalidTaskBackend(f"the OPTIONS of TASKS[{self.alias!r}]: {error}") from error

    @property
    def client(self) -> Client:
        """The client of the application, on the alias of the database that has the tasks."""
        return client_of(self.task_options.using)

    def validate_task(self, task: Any) -> None:
        super().validate_task(task)
        try:
            check_queue(task.queue_name)
        except InvalidOption as error:
            raise InvalidTask(str(error)) from error

    def enqueue(self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Insert the task in the transaction that is open on the alias; outside of `atomic()` that commits at once."""
        self.validate_task(task)
        try:
            find_task(task.module_path)
        except UnknownTask as error:
            raise InvalidTask(f"no worker could find it: {error}") from error
        options = self.task_options
        args_class = DetachedTaskArgs if options.detached else TaskArgs
        run_after = task.run_after
        if run_after is not None and timezone.is_naive(run_after):
            run_after = timezone.make_aware(run_after)
        client = self.client
        job = client.enqueue(
            _alias(client),
            args_class(task.module_path, normalize_json(list(args)), normalize_json(dict(kwargs)), self.alias),
            queue=task.queue_name,
            priority=-int(task.priority),
            scheduled_at=run_after,
            max_attempts=options.starts,
            metadata=None if run_after is None else {RUN_AFTER: run_after.isoformat()},
        )
        result = task_result(job, task)
        task_enqueued.send(type(self), task_result=result)
        return result

    def get_result(self, result_id: str) -> Any:
        """The result of a task of this backend, in the transaction that is open on the alias, which may have enqueued
        it. Raises TaskResultDoesNotExist."""
        text = str(result_id)
        client = self.client
        job = client.get(int(text), _alias(client)) if _ID.fullmatch(text) and int(text) <= _LARGEST_ID else None
        if job is None or job.kind not in KINDS:
            raise TaskResultDoesNotExist(result_id)
        result = task_result(job)
        if result.backend != self.alias:
            raise TaskResultDoesNotExist(result_id)
        return result

    def check(self, **kwargs: Any) -> Iterable[Any]:
        yield from super().check(**kwargs)
        if not apps.is_installed("pgjobs.contrib.django"):
            yield checks.Error(
                f"TASKS[{self.alias!r}] needs the app of pgjobs.",
                hint="Add 'pgjobs.contrib.django' to INSTALLED_APPS.",
                id="pgjobs.E101",
            )
        try:
            self.task_options  # noqa: B018  checks them
        except InvalidTaskBackend as error:
            yield checks.Error(str(error), id="pgjobs.E102")
        yield from self._check_queues()

    def _check_queues(self) -> Iterator[Any]:
        for queue in sorted(self.queues, key=str):
            try:
                check_queue(queue)
            except InvalidOption as error:
                yield checks.Error(f"The QUEUES of TASKS[{self.alias!r}]: {error}", id="pgjobs.E103")
        with suppress(InvalidSetting):  # the checks of the app report it
            worked = check_queues(settings.pool_settings().get("queues"))
            for queue in sorted(self.queues - set(worked), key=str):
                yield checks.Warning(
                    f"TASKS[{self.alias!r}] has the queue {queue!r}, and the workers of PGJOBS have only "
                    f"{', '.join(map(repr, worked))}.",
                    hint="Add the queue to PGJOBS['QUEUES'], unless other workers take its tasks.",
                    id="pgjobs.W101",
                )


def _alias(client: Client) -> str:
    assert isinstance(client.source, DjangoSource)
    return client.source.alias
