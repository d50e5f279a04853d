"""A list of jobs, page by page: its order, and the cursor from one page to the next."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from pgjobs import checks
from pgjobs.errors import InvalidFilter, shown
from pgjobs.interval import instant, microseconds
from pgjobs.job import Job, JobState
from pgjobs.job_filter import BIGGEST_ID, SMALLEST_ID, JobFilter
from pgjobs.options import FIRST_INSTANT, LAST_INSTANT
from pgjobs.results import JobPage

Order = Literal["id", "time"]

_MOST_JOBS = 10_000  # of one page
_CURSOR = re.compile(r"(id|time)\.(up|down)\.(-?\d{1,19})(?:\.(-?\d{1,18}))?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The order of a list, the length of a page, and the id and time of the job that the page begins behind."""

    order: Order
    descending: bool
    limit: int
    after_id: int | None = None
    after_time: datetime | None = None

    @property
    def after(self) -> datetime | str | None:
        """The time that the page begins behind. The first and last instant may stand for one that Python cannot
        represent: jobs with such a time may be passed over, but must not be listed again and again."""
        if self.after_time == LAST_INSTANT and not self.descending:
            return "infinity"
        if self.after_time == FIRST_INSTANT and self.descending:
            return "-infinity"
        return self.after_time

    def page(self, jobs: Sequence[Job[Any]]) -> JobPage:
        """The page of these jobs, of which there is one more than the limit when there is a next page."""
        shown = tuple(jobs[: self.limit])
        return JobPage(shown, self._cursor(shown[-1]) if len(jobs) > self.limit else None)

    def _cursor(self, job: Job[Any]) -> str:
        cursor = f"{self.order}.{'down' if self.descending else 'up'}.{job.id}"
        return cursor if self.order == "id" else f"{cursor}.{microseconds(time_of(job))}"


def listing(filter: JobFilter, order: str, descending: bool, limit: object, cursor: str | None) -> Listing:
    """Check the arguments of a list; raises InvalidFilter."""
    if order not in ("id", "time"):
        raise InvalidFilter(f"order is 'id' or 'time', not {shown(order, 40)}")
    if order == "time" and (filter.states is None or len(filter.states) != 1):
        raise InvalidFilter(
            "order='time' is the time of one state: name the state, as in JobFilter(states=['completed'])"
        )
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= _MOST_JOBS:
        raise InvalidFilter(f"limit is a whole number from 1 to {_MOST_JOBS}, not {shown(limit, 40)}")
    checks.check_bool("descending", descending, error=InvalidFilter)
    wanted = Listing(order="id" if order == "id" else "time", descending=descending, limit=limit)
    return wanted if cursor is None else _after(wanted, cursor)


def _after(wanted: Listing, cursor: object) -> Listing:
    """The list from the cursor on. The cursor may come out of a URL, so it may hold anything."""
    match = _CURSOR.fullmatch(cursor) if isinstance(cursor, str) else None
    if (
        match is None
        or (match[1] == "time") != (match[4] is not None)
        or not SMALLEST_ID <= int(match[3]) <= BIGGEST_ID
    ):
        raise InvalidFilter(f"{shown(cursor, 60)} is no cursor: give the `next` of a page")
    if (match[1], match[2] == "down") != (wanted.order, wanted.descending):
        raise InvalidFilter(f"the cursor {shown(cursor, 60)} belongs to a list in another order")
    try:
        time = None if match[4] is None else instant(int(match[4]))
    except OverflowError:
        raise InvalidFilter(f"{shown(cursor, 60)} is no cursor: its time is no date") from None
    return replace(wanted, after_id=int(match[3]), after_time=time)


def time_of(job: Job[Any]) -> datetime:
    """The time by which the job is listed: the end of a finished job, the start of a running one, when any other is
    due. list_jobs in sql/observe.sql orders by the same."""
    if job.state == JobState.RUNNING:
        return job.attempted_at or job.created_at
    return job.finalized_at if job.state.final and job.finalized_at else job.scheduled_at
