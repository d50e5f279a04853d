"""The statements that read jobs and queues.

Those with a filter are never prepared: the planner makes a plan for each filter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from pgjobs.db import statements
from pgjobs.db.cursors import (
    AnyAsyncConnection,
    AnyConnection,
    BoundCursor,
    async_job_cursor,
    bound_cursor,
    job_cursor,
    literal_cursor,
)
from pgjobs.db.rows import as_job_with_progress, only
from pgjobs.job import Job, JobState, without_args
from pgjobs.job_filter import JobFilter
from pgjobs.observe.listing import Listing
from pgjobs.observe.stats import LONG, OLD, OLDER, SHORT, Figures, Wanted, figures_of
from pgjobs.results import KEPT, Queue, QueueStats, as_utc, kept_for, queue_of


class ObserveQueries:
    """The statements of one schema."""

    def __init__(self, schema: str) -> None:
        self._observe = statements.load("observe.sql", schema)

    def get_job(self, conn: AnyConnection, id: int, *, with_args: bool = True) -> Job[Any] | None:
        """Find the job with this id, with its progress. Raises AmbiguousJob when several queues have one. Without args
        it reads neither args nor errors, output and note: for a role that may not."""
        statement = self._observe["get_job_with_progress" if with_args else "get_job_without_args"]
        with job_cursor(conn) as cur:
            cur.execute(statement, {"id": id})
            return _only_job(id, cur.fetchall(), with_args)

    async def get_job_async(self, conn: AnyAsyncConnection, id: int) -> Job[Any] | None:
        """The same on an asynchronous connection, always with args."""
        async with async_job_cursor(conn) as cur:
            await cur.execute(self._observe["get_job_with_progress"], {"id": id})
            return _only_job(id, await cur.fetchall(), True)

    def list_jobs(
        self, conn: AnyConnection, filter: JobFilter, listing: Listing, *, with_args: bool = True
    ) -> list[Job[Any]]:
        """The jobs of a page, and one more job if there is a next page."""
        column = "id" if listing.order == "id" else _time_column(filter)
        available = column == "scheduled_at" and filter.states == (JobState.AVAILABLE,)
        if with_args:
            statement = self._observe["list_available" if available else "list_jobs"]
        else:
            statement = self._observe["list_available_without_args" if available else "list_jobs_without_args"]
        page = {
            "order": f"{column} {'down' if listing.descending else 'up'}",
            "limit": listing.limit + 1,
            "after_id": listing.after_id,
            "after_time": listing.after,
        }
        with job_cursor(conn) as cur:
            return [_job(row, with_args) for row in _rows(cur, statement, filter, page)]

    def count_jobs(self, conn: AnyConnection, filter: JobFilter) -> dict[tuple[str, JobState], int]:
        """The number of jobs that fit, by queue and state."""
        with bound_cursor(conn) as cur:
            rows = _rows(cur, self._observe["count_jobs"], filter, {})
            return {(queue, JobState(state)): jobs for queue, state, jobs in rows}

    # --- queues

    def list_queues(self, conn: AnyConnection) -> list[Queue]:
        with bound_cursor(conn) as cur:
            cur.execute(self._observe["list_queues"])
            return [queue_of(row) for row in cur.fetchall()]

    def queue_stats(self, conn: AnyConnection, names: Iterable[str] | None) -> list[QueueStats]:
        """The numbers of all queues, or of those in `names`, which need not exist."""
        with bound_cursor(conn) as cur:
            values = {"names": None if names is None else list(names)}
            cur.execute(self._observe["queue_stats"], values, prepare=False)
            return [QueueStats(row[0], as_utc(row[1]), *row[2:]) for row in cur.fetchall()]

    def figures(self, conn: AnyConnection, wanted: Wanted) -> list[Figures]:
        """The figures that the worker pools have written."""
        values = {
            "queue": wanted.queue,
            "kind": wanted.kind,
            "since": wanted.since,
            "ago": wanted.ago,
            "step": wanted.step,
            "old": OLD,
            "short": SHORT,
            "older": OLDER,
            "long": LONG,
            "by_queue": "queue" in wanted.by,
            "by_kind": "kind" in wanted.by,
        }
        with bound_cursor(conn) as cur:
            cur.execute(self._observe["figures"], values, prepare=False)
            return [figures_of(row) for row in cur.fetchall()]

    # --- gauges

    def limit_time(self, conn: AnyConnection) -> None:
        """Limit how long the statements of this transaction may take."""
        with literal_cursor(conn) as cur:
            cur.execute(self._observe["limit_gauges"])

    def overdue_duties(self, conn: AnyConnection) -> dict[str, float]:
        """By how many seconds each duty of maintenance is overdue."""
        with literal_cursor(conn) as cur:
            cur.execute(self._observe["overdue_duties"])
            return dict(cur.fetchall())

    def oldest_transaction(self, conn: AnyConnection) -> float:
        """The age in seconds of the oldest transaction in this database, without this one."""
        with literal_cursor(conn) as cur:
            cur.execute(self._observe["oldest_transaction"])
            ((age,),) = cur.fetchall()
            return max(float(age), 0.0)

    def own_retention(self, conn: AnyConnection) -> list[tuple[str, JobState, timedelta]]:
        """How long the jobs of a queue and state are kept, for queues with a retention of their own."""
        with literal_cursor(conn) as cur:
            cur.execute(self._observe["own_retention"])
            return [
                (name, state, kept)
                for name, *seconds in cur.fetchall()
                for state, kept in zip(KEPT, map(kept_for, seconds), strict=True)
                if kept is not None
            ]


def _only_job(id: int, rows: Sequence[tuple[Any, ...]], with_args: bool) -> Job[Any] | None:
    row = only(id, rows)
    return None if row is None else _job(row, with_args)


def _job(row: Sequence[Any], with_args: bool) -> Job[Any]:
    job = as_job_with_progress(row)
    return job if with_args else without_args(job)


def _rows(cur: BoundCursor, statement: bytes, filter: JobFilter, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    conditions = filter.parameters
    cur.execute(statements.without_unused(statement, conditions), {**conditions, **values}, prepare=False)
    return cur.fetchall()


def _time_column(filter: JobFilter) -> str:
    """The column with the time by which jobs of the filter's one state are listed; see listing.py."""
    assert filter.states is not None
    state = JobState(filter.states[0])
    if state == JobState.RUNNING:
        return "attempted_at"
    return "finalized_at" if state.final else "scheduled_at"
