"""What takes the place of Django's backends and test cases in its own tests: see django_suite.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django.db import connection, connections
from django.test import TransactionTestCase

from pgjobs import JobFilter, WorkerPool
from pgjobs.contrib.django.backend import PgjobsBackend
from pgjobs.contrib.django.shortcuts import config
from pgjobs.testing import Jobs


class StoringBackend(PgjobsBackend):
    """Keeps tasks, and runs none."""

    @property
    def results(self) -> list[Any]:
        return [self.get_result(str(job.id)) for job in self.client.list_jobs(None, connection).jobs]

    def clear(self) -> None:
        self.client.delete_many(JobFilter.all())


class RunningBackend(PgjobsBackend):
    """Runs a task at once; in the transaction that is open, as in the tests of an application."""

    def enqueue(self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        result = super().enqueue(task, args, kwargs)
        if connection.in_atomic_block:
            Jobs(self.client, connection).perform_stored(int(result.id))
        else:
            WorkerPool(self.client, config().work_map).work_one(task.queue_name)
        return self.get_result(result.id)


class Case(TransactionTestCase):  # type: ignore[misc]  # Django has no types
    databases = ("default",)

    def tearDown(self) -> None:
        config().client().delete_many(JobFilter.all())
        connections.close_all()
