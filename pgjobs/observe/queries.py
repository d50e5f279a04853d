"""One method per statement that looks at jobs, connection first.

The values of a filter are never bound to a prepared statement: the plan is made for this filter, and the parts of it
that say nothing are gone before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pgjobs.db import statements
from pgjobs.db.cursors import AnyConnection, BoundCursor, bound_cursor
from pgjobs.db.rows import as_job
from pgjobs.job import Job, JobState
from pgjobs.job_filter import JobFilter
from pgjobs.observe.listing import Listing


class ObserveQueries:
    """The statements of one schema."""

    def __init__(self, schema: str) -> None:
        self._observe = statements.load("observe.sql", schema)

    def list_jobs(self, conn: AnyConnection, filter: JobFilter, listing: Listing) -> list[Job[Any]]:
        """The jobs of a page, and one more if there are more."""
        clock = "id" if listing.order == "id" else _clock(filter)
        available = clock == "scheduled_at" and filter.states == (JobState.AVAILABLE,)
        statement = self._observe["list_available" if available else "list_jobs"]
        place = {
            "order": f"{clock} {'down' if listing.descending else 'up'}",
            "limit": listing.limit + 1,
            "after_id": listing.after_id,
            "after_time": listing.after_time,
        }
        with bound_cursor(conn) as cur:
            return [as_job(row) for row in _rows(cur, statement, filter, place)]

    def count_jobs(self, conn: AnyConnection, filter: JobFilter) -> dict[tuple[str, JobState], int]:
        """How many fit, by queue and state."""
        with bound_cursor(conn) as cur:
            rows = _rows(cur, self._observe["count_jobs"], filter, {})
            return {(queue, JobState(state)): jobs for queue, state, jobs in rows}


def _rows(cur: BoundCursor, statement: bytes, filter: JobFilter, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    cur.execute(statement, {**filter.parameters, **values}, prepare=False)
    return cur.fetchall()


def _clock(filter: JobFilter) -> str:
    """The column that tells the time of the one state that the filter names; see listing.py."""
    assert filter.states is not None
    state = JobState(filter.states[0])
    if state == JobState.RUNNING:
        return "attempted_at"
    return "finalized_at" if state.final else "scheduled_at"
