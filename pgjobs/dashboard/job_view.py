"""A job as a page shows it: what the user may see of it, and its attempts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import psycopg

from pgjobs.dashboard.json_text import pretty
from pgjobs.dashboard.problem import log
from pgjobs.dashboard.request import Request
from pgjobs.db.cursors import AnyConnection
from pgjobs.job import AttemptError, Job, has_args
from pgjobs.job_filter import JobFilter
from pgjobs.observe.listing import Listing, listing, time_of
from pgjobs.observe.queries import ObserveQueries
from pgjobs.states import JobState
from pgjobs.work_map import shown_args

_SHORT = 120  # characters of args in a list


@dataclass(frozen=True, slots=True)
class Text:
    """A text of a job as it is shown, and how many characters of it are not."""

    text: str
    cut: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One start of the handler. What is not known is None: the row has the start of the last attempt alone."""

    number: int
    result: str
    worker: str | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    took: timedelta | None = None
    error: AttemptError | None = None


def read_jobs(request: Request, conn: AnyConnection, ids: list[int]) -> dict[tuple[int, str], Job[Any]]:
    """The jobs with these ids, by id and queue; without args where the database role may not read them."""
    which, wanted = JobFilter(ids=ids), listing(JobFilter(), "id", False, max(1, 2 * len(ids)), None)
    try:
        with conn.transaction():  # a savepoint: the transaction goes on after the error
            jobs = list(request.client.list_jobs(which, conn, limit=wanted.limit).jobs)
    except psycopg.errors.InsufficientPrivilege:
        jobs = _without_args(request, conn, which, wanted)
    return {(job.id, job.queue): job for job in jobs}


def _without_args(request: Request, conn: AnyConnection, which: JobFilter, wanted: Listing) -> list[Job[Any]]:
    return ObserveQueries(request.client.schema).list_jobs(conn, which, wanted, with_args=False)


def args_text(request: Request, job: Job[Any]) -> Text | None:
    """The args as the application renders them, or as JSON without secrets; None if they are not to be shown."""
    if not request.shows_args or not has_args(job):
        return None
    if request.site.render_args is not None:
        try:
            rendered = request.site.render_args(job)
        except Exception as error:  # the application's code; the page is needed most when something is wrong
            log.warning("render_args failed for job %d (%s)", job.id, job.kind, exc_info=error)
            rendered = None
        if rendered is not None:
            return Text(str(rendered))
    return Text(*pretty(shown_args(request.site.work_map, job.kind, job.raw_args)))


def short_args(request: Request, job: Job[Any]) -> str | None:
    """The args for one line of a list."""
    shown = args_text(request, job)
    if shown is None:
        return None
    line = " ".join(shown.text.split())
    return line if len(line) <= _SHORT else f"{line[:_SHORT]}…"


def json_text(request: Request, raw: str | None) -> Text | None:
    return None if raw is None or not request.shows_args else Text(*pretty(raw))


def when_label(job: Job[Any]) -> str:
    """What happened, or will, at the time by which the job is listed."""
    if job.state is JobState.RUNNING:
        return "started"
    return "ended" if job.state.final else "due"


def attempts(job: Job[Any], now: datetime) -> list[Attempt]:
    """The attempts that are known, the newest first."""
    made = [_failed(job, error) for error in job.errors]
    last = _last(job, now)
    if last is not None:
        made.append(last)
    return made[::-1]


def _failed(job: Job[Any], error: AttemptError) -> Attempt:
    start = job.attempted_at
    is_last = error.attempt == job.attempt and job.state is not JobState.RUNNING and error is job.errors[-1]
    if not is_last or start is None or error.at < start:
        start = None
    return Attempt(
        number=error.attempt,
        result="failed",
        worker=_worker_of(job, error.attempt),
        started_at=start,
        ended_at=error.at,
        took=None if start is None else error.at - start,
        error=error,
    )


def _last(job: Job[Any], now: datetime) -> Attempt | None:
    """The attempt that runs, or that ended without an error."""
    start, end = job.attempted_at, job.finalized_at
    worker = job.attempted_by[-1] if job.attempted_by else None
    if job.state is JobState.RUNNING:
        took = None if start is None else max(now - start, timedelta())
        return Attempt(number=job.attempt, result="running", worker=worker, started_at=start, took=took)
    if job.state is JobState.COMPLETED and start is not None:
        took = None if end is None or end < start else end - start
        return Attempt(number=job.attempt, result="completed", worker=worker, started_at=start, ended_at=end, took=took)
    return None


def _worker_of(job: Job[Any], attempt: int) -> str | None:
    """The row names the worker of each claim. A snooze or a stop refunds an attempt, not a claim: then only the last
    attempt is known to belong to the last claim."""
    if len(job.attempted_by) == job.attempt and 1 <= attempt <= job.attempt:
        return job.attempted_by[attempt - 1]
    return job.attempted_by[-1] if job.attempted_by and attempt == job.attempt else None


__all__ = [
    "Attempt", "Text", "args_text", "attempts", "json_text", "read_jobs", "short_args", "time_of", "when_label",
]  # fmt: skip
