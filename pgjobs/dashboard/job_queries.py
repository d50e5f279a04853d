"""The statements with which the dashboard finds jobs and groups failures.

Those with a filter are never prepared: the planner makes a plan for each filter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

import psycopg

from pgjobs.db import statements
from pgjobs.db.cursors import AnyConnection, bound_cursor, job_cursor, one
from pgjobs.interval import span
from pgjobs.job_filter import JobFilter
from pgjobs.states import JobState

#: What is counted exactly; more is shown as "10,000+".
MOST_COUNTED = 10_000
_COUNT_TIMEOUT = "100ms"
_MOST_FAILURES = 2_000


#: The id and the queue of a job: two queues may have jobs with the same id.
JobKey = tuple[int, str]


class JobPlace(NamedTuple):
    """A job, and the time by which it is listed."""

    id: int
    queue: str
    state: str
    at: datetime

    @property
    def key(self) -> JobKey:
        return self.id, self.queue


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What a search asks for beside a filter: the class of the last error, and a text anywhere in the job.

    `any_error`: an error without a traceback has its first words as its class. They may be confidential, so a user who
    may not see errors neither sees nor finds them.
    """

    error: str | None = None
    text: str | None = None
    any_error: bool = True

    @property
    def is_empty(self) -> bool:
        return self.error is None and self.text is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The next `size` jobs in an order, from a place on. `order` is a column and a direction, as in `id down`."""

    order: str
    size: int
    after_id: int | None
    after_time: datetime | str | None


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Failed jobs of one kind whose last errors have the same class."""

    kind: str
    error: str
    discarded: int
    retryable: int
    queues: int
    first_at: datetime
    last_at: datetime
    newest_id: int


@dataclass(frozen=True, slots=True)
class Failures:
    """The groups of the newest failures, of which `looked_at` were looked at; `is_all`: there are no older ones."""

    groups: list[FailureGroup]
    looked_at: int
    is_all: bool


@dataclass(frozen=True, slots=True)
class JobTransaction:
    """The transaction of a running job. `waits_for` names what its backend waits for."""

    pid: int
    age: timedelta | None  # None if the role of the dashboard may not see it
    state: str | None
    waits_for: str | None
    blocked_by: Sequence[int]


class JobQueries:
    """The statements of one schema."""

    def __init__(self, schema: str) -> None:
        self._sql = statements.load("dashboard_jobs.sql", schema)

    def window(self, conn: AnyConnection, filter: JobFilter, window: Window) -> list[JobPlace]:
        """The next jobs that fit the filter, which should be one that an index serves."""
        of_available = window.order.startswith("scheduled_at") and filter.states == (JobState.AVAILABLE,)
        conditions = filter.parameters
        values = {
            **conditions,
            "order": window.order,
            "limit": window.size,
            "after_id": window.after_id,
            "after_time": window.after_time,
            "line_queues": conditions["queues"],
        }
        statement = self._sql["window_of_available" if of_available else "window_of_jobs"]
        with job_cursor(conn) as cur:
            cur.execute(statements.without_unused(statement, conditions), values, prepare=False)
            return [JobPlace(*row) for row in cur.fetchall()]

    def fitting(
        self, conn: AnyConnection, filter: JobFilter, search: Search, *, between: tuple[int, int] | None = None
    ) -> dict[JobKey, str]:
        """The states of the jobs that fit both, by their keys, with an id between these. Without them the filter should
        name the ids."""
        first, last = between or (None, None)
        conditions = {**filter.parameters, "first": first, "last": last}
        statement = self._sql["fitting_jobs" if search.is_empty else "fitting_search"]
        with bound_cursor(conn) as cur:
            statement = statements.without_unused(statement, conditions)
            searched = {"error": search.error, "text": search.text, "any_error": search.any_error}
            cur.execute(statement, {**conditions, **searched}, prepare=False)
            return {(id, queue): state for id, queue, state in cur.fetchall()}

    def count(self, conn: AnyConnection, filter: JobFilter, most: int = MOST_COUNTED) -> int | None:
        """The number of jobs that fit, at most `most`; None when it takes too long to count them."""
        values = {**filter.parameters, "most": most}
        statement = statements.without_unused(self._sql["count_up_to"], filter.parameters)
        try:
            with conn.transaction(force_rollback=True), bound_cursor(conn) as cur:
                cur.execute(self._sql["set_count_timeout"], {"timeout": _COUNT_TIMEOUT})
                cur.execute(statement, values, prepare=False)
                return int(one(cur)[0])
        except psycopg.errors.QueryCanceled:
            return None

    def about_all(self, conn: AnyConnection) -> int | None:
        """The number of all jobs, as the statistics of the table have it."""
        with bound_cursor(conn) as cur:
            cur.execute(self._sql["about_all_jobs"])
            found: int | None = one(cur)[0]
            return found

    def newest_id(self, conn: AnyConnection) -> int | None:
        with bound_cursor(conn) as cur:
            cur.execute(self._sql["newest_job_id"])
            newest: int | None = one(cur)[0]
            return newest

    def failures(self, conn: AnyConnection, *, any_error: bool) -> Failures:
        """The newest failures by kind and class of error, the most frequent first. `any_error`: see Search."""
        with job_cursor(conn) as cur:
            cur.execute(self._sql["failures"], {"most": _MOST_FAILURES, "any_error": any_error}, prepare=False)
            rows = cur.fetchall()
        looked_at, discarded = rows[0][8:] if rows else (0, 0)
        return Failures([FailureGroup(*row[:8]) for row in rows], looked_at, discarded < _MOST_FAILURES)

    def last_errors(self, conn: AnyConnection, ids: Iterable[int]) -> dict[int, str]:
        """The last error of each of these jobs, cut."""
        with bound_cursor(conn) as cur:
            cur.execute(self._sql["sample_of_failures"], {"ids": list(ids)})
            return {id: error for id, error in cur.fetchall() if error is not None}

    def transaction_of(self, conn: AnyConnection, id: int, queue: str) -> JobTransaction | None:
        """The transaction that runs a job; None if the job is detached, or if none is seen, as by a role that may not
        read all columns."""
        try:
            with conn.transaction(), bound_cursor(conn) as cur:
                cur.execute(self._sql["transaction_of_job"], {"id": id, "queue": queue})
                row = cur.fetchone()
        except psycopg.errors.InsufficientPrivilege:
            return None
        if row is None:
            return None
        pid, age, state, wait_type, wait, blocked_by = row
        return JobTransaction(pid, span(age), state, ": ".join(filter(None, (wait_type, wait))) or None, blocked_by)

    def known_kinds(self, conn: AnyConnection) -> list[str]:
        with bound_cursor(conn) as cur:
            cur.execute(self._sql["known_kinds"])
            return [kind for (kind,) in cur.fetchall()]

    def known_queues(self, conn: AnyConnection) -> list[str]:
        with bound_cursor(conn) as cur:
            cur.execute(self._sql["known_queues"])
            return [queue for (queue,) in cur.fetchall()]
