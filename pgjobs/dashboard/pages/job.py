"""One job: its attempts, what it holds, and what can be done with it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any

from pgjobs.dashboard import form_values
from pgjobs.dashboard.job_queries import JobQueries, JobTransaction
from pgjobs.dashboard.job_view import args_text, attempts, json_text, read_jobs, time_of, when_label
from pgjobs.dashboard.pages.bulk import cancel_reason
from pgjobs.dashboard.problem import Problem
from pgjobs.dashboard.request import Page, Request, Response, post_page
from pgjobs.db.cursors import AnyConnection
from pgjobs.errors import AmbiguousJob, JobNotFound
from pgjobs.job import Job, has_args
from pgjobs.job_filter import BIGGEST_ID, SMALLEST_ID
from pgjobs.states import JobState


def show(request: Request, id: int) -> Response:
    with request.reading() as conn:
        job = _read(request, conn, id)
        transaction = _transaction(request, conn, job)
    return request.render(
        "job.html",
        job=job,
        when=time_of(job),
        when_label=when_label(job),
        attempts=attempts(job, request.now),
        transaction=transaction,
        may_read=has_args(job),
        args=args_text(request, job),
        metadata=json_text(request, job.raw_metadata),
        output=json_text(request, job.raw_output),
        refresh=30 if job.state.final else 3,
        can=_can(job),
    )


def _read(request: Request, conn: AnyConnection, id: int) -> Job[Any]:
    if not SMALLEST_ID <= id <= BIGGEST_ID:
        raise JobNotFound(id)
    jobs = list(read_jobs(request, conn, [id]).values())
    if not jobs:
        raise JobNotFound(id)
    if len(jobs) > 1:
        raise AmbiguousJob(id, [job.queue for job in jobs])
    return jobs[0]


def _transaction(request: Request, conn: AnyConnection, job: Job[Any]) -> JobTransaction | None:
    if job.state is not JobState.RUNNING:
        return None
    return JobQueries(request.client.schema).transaction_of(conn, job.id, job.queue)


def _can(job: Job[Any]) -> set[str]:
    """What the job's state allows."""
    if job.state is JobState.RUNNING:
        return {"cancel"}
    can = {"retry", "edit", "delete"}
    if not job.state.final:
        can.add("cancel")
    if job.state is JobState.PENDING:
        can.add("release")
    return can


# --- actions


def _act(request: Request, id: int, audit: str, apply: Callable[[Request, int, AnyConnection], Job[Any]]) -> Response:
    with request.acting(audit, job=id) as action:
        apply(request, id, action.tx)
    return request.done("job", audit, id=id)


def _cancel(request: Request, id: int, tx: AnyConnection) -> Job[Any]:
    return request.client.cancel(id, tx, reason=cancel_reason(request))


def _retry(request: Request, id: int, tx: AnyConnection) -> Job[Any]:
    return request.client.retry(id, tx, reset=request.form.get("reset") == "1")


def _release(request: Request, id: int, tx: AnyConnection) -> Job[Any]:
    return request.client.release(id, tx)


def edit(request: Request, id: int) -> Response:
    with request.acting("update-jobs", job=id) as action:
        changes = _changes(request)
        if not changes:
            raise Problem(400, "Nothing is to be changed.", "Go back, and write a new value into a field.")
        action.target["changes"] = {name: value for name, value in changes.items() if name != "metadata"}
        request.client.update(id, action.tx, **changes)
    return request.done("job", "update-jobs", id=id)


def _changes(request: Request) -> dict[str, Any]:
    """The fields that were filled in; an empty one leaves its value as it is. Tags are replaced where they differ."""
    form = request.form
    at: datetime | None = form_values.instant("Due", form.get("scheduled_at", ""), request.now, past=False)
    tags = form.get("tags", "")
    given = {
        "priority": form_values.number("Priority", form.get("priority", "")),
        "max_attempts": form_values.number("Attempts", form.get("max_attempts", "")),
        "scheduled_at": at,
        "tags": None if tags == form.get("tags_before", "") else tags.split(),
        "metadata": form_values.json_object("Metadata", form.get("metadata", "")) or None,
    }
    return {name: value for name, value in given.items() if value is not None}


_ID = "/jobs/<int(signed=True):id>"

PAGES = (
    Page(_ID, "job", show, role="viewer"),
    post_page(f"{_ID}/cancel", "cancel_job", partial(_act, audit="cancel-jobs", apply=_cancel)),
    post_page(f"{_ID}/retry", "retry_job", partial(_act, audit="retry-jobs", apply=_retry)),
    post_page(f"{_ID}/release", "release_job", partial(_act, audit="release-jobs", apply=_release)),
    post_page(f"{_ID}/edit", "edit_job", edit),
)
