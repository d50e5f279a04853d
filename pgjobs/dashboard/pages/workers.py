"""The worker processes: their threads, what each of them runs and for how long, and where stuck ones are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from pgjobs import JobFilter
from pgjobs.dashboard.request import Page, Request, Response
from pgjobs.job import Job
from pgjobs.results import WorkerProcess

_MOST_RUNNING = 500  # jobs that are shown


def show(request: Request) -> Response:
    with request.reading() as conn:
        workers = request.client.workers(conn)
        running = request.client.list_jobs(
            JobFilter(states=["running"]), conn, order="time", limit=_MOST_RUNNING
        )  # those that run for the longest time come first
    by_worker: dict[str, list[Job[Any]]] = defaultdict(list)
    for job in running.jobs:
        by_worker[job.attempted_by[-1] if job.attempted_by else ""].append(job)
    known = {worker.id for worker in workers}
    return request.render(
        "workers.html",
        workers=workers,
        running=by_worker,
        left_behind=[job for id, jobs in by_worker.items() if id not in known for job in jobs],
        more=running.next is not None,
        versions=_versions(workers),
    )


def _versions(workers: Sequence[WorkerProcess]) -> dict[tuple[str, str | None], list[WorkerProcess]]:
    """The processes by the version of pgjobs and that of the application's code."""
    found: dict[tuple[str, str | None], list[WorkerProcess]] = defaultdict(list)
    for worker in workers:
        found[worker.version, worker.code_version].append(worker)
    return dict(found)


PAGES = (Page("/workers", "workers", show, role="viewer"),)
