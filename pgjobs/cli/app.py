"""The Client of an application: by its name as in `shop.jobs:client`, or as a framework knows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pgjobs import application
from pgjobs.client import Client
from pgjobs.job import Job, changed, has_args
from pgjobs.work_map import WorkMap, shown_args
from pgjobs.worker_pool import WorkerPool


@dataclass(frozen=True)
class App:
    """A client, and the handlers and worker threads of the application if they are known."""

    client: Client
    work_map: WorkMap | None = None
    threads: int | None = None

    def shown(self, job: Job[Any], *, secrets: bool) -> Job[Any]:
        """The job as it is printed: its args without secrets, unless they are asked for."""
        if secrets or not has_args(job):
            return job
        return changed(job, raw_args=shown_args(self.work_map, job.kind, job.raw_args))


@dataclass(frozen=True, kw_only=True)
class Framework:
    """A framework whose own command line runs the commands of pgjobs, as in `flask pgjobs list`."""

    program: str  #: as the usage shows it, such as "flask pgjobs"
    load: Callable[[], App]  #: called by the commands that need a client, unless they are given --app or --dsn
    pool: str  #: module:function which each worker process of `work` calls for its WorkerPool


def load(name: str) -> App:
    """The client of an application. `name` is `module:object`; the object is a Client, a WorkerPool, or a function that
    returns one of them. The module may be in the current directory. Raises ApplicationNotLoaded."""
    try:
        found: object = application.load(name, Client, WorkerPool)
    except application.ApplicationNotLoaded as error:
        if error.place is not None:
            error.add_note(f"raised in {error.place}")
        raise
    if isinstance(found, WorkerPool):
        return App(found.client, found.work_map, found.threads)
    assert isinstance(found, Client)
    return App(found, found.work_map)
