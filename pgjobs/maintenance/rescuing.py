"""The duty `rescue`: finishes the attempts of workers that vanished, and settles late requests to cancel.

A worker vanished if its job is running, without a lock on the row (or, for a detached job, with a lease that is over).
The attempt counts, with an error that says so. The job is tried again after 1 s, the next time after 2 s, up to a
minute; or it is discarded, if that was its last attempt.

If the worker ran other jobs as well, any of them may have killed it. So a job that never failed before is excused: the
attempt does not count, twice at most. A job that kills its process is thus started `max_attempts` times when it runs
alone, and twice more when it never does. A last attempt of a kind that this process does not know is left, for a day,
to a process that does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import psycopg

from pgjobs.db.cursors import AnyConnection
from pgjobs.execution.unworkable import CANCEL, RESCUE, Operation, Row, Unworkable
from pgjobs.job import Job, JobState
from pgjobs.log_limit import LINES
from pgjobs.loggers import get_logger, job_fields
from pgjobs.maintenance.batch_size import BatchSize
from pgjobs.maintenance.queries import MaintenanceQueries, Rescued, Selection

log = get_logger("pgjobs.maintenance")

# A worker claims and locks a job in one message, so a running row this old without a lock has lost its worker.
RESCUE_GRACE = timedelta(seconds=3)
_CANCEL_REQUESTS = "cancel requests"  # the name of the operation in the log


class Rescuer:
    """`kinds` returns the kinds that this process knows, or None for every kind. `on_rescued` is called with each
    rescued job; with its args and metadata if `reads_rescued` says so, since these may be large."""

    def __init__(
        self,
        queries: MaintenanceQueries,
        unworkable: Unworkable,
        *,
        kinds: Callable[[], Iterable[str] | None],
        on_rescued: Callable[[Job[Any]], None] | None,
        reads_rescued: Callable[[], bool],
    ) -> None:
        self._queries = queries
        self._unworkable = unworkable
        self._kinds = kinds
        self._on_rescued = on_rescued
        self._reads_rescued = reads_rescued
        self._batch_size = BatchSize()

    def rescue(self, conn: AnyConnection) -> timedelta | None:
        """Rescue a batch of jobs and settle a batch of requests. Zero if there may be more, None if not."""
        with self._batch_size.next() as batch:
            jobs = self._rescue(conn, batch)
            cancelled, settled = self._settle_requests(conn, batch)
        _log_rescued(jobs)
        for job in jobs:
            self._report(conn, job)
        if cancelled:
            log.info("%d jobs cancelled: the requests came while their attempts ended", cancelled)
        return timedelta(0) if jobs.more or max(len(jobs), settled) >= batch else None

    def _rescue(self, conn: AnyConnection, batch: int) -> Rescued:
        rows, kinds = Selection(set_aside=self._unworkable.set_aside.rows("rescue")), self._kinds()
        try:
            jobs = self._queries.rescue(conn, batch, RESCUE_GRACE, kinds, rows)
        except psycopg.Error as error:
            jobs = Rescued()
            jobs.more = True

            def rescue(ids: Sequence[int]) -> None:
                jobs.extend(self._queries.rescue(conn, len(ids), RESCUE_GRACE, kinds, Selection(among=ids)))

            def find() -> list[Row]:
                return self._queries.rows_to_rescue(conn, batch, RESCUE_GRACE, kinds, rows)

            self._unworkable.bisect(conn, Operation("rescue", find, rescue, RESCUE), error)
        if jobs:
            self._unworkable.set_aside.worked("rescue")
        return jobs

    def _report(self, conn: AnyConnection, job: Job[Any]) -> None:
        if self._on_rescued is None:
            return
        if self._reads_rescued():  # one job at a time, to hold no more than one in memory
            with suppress(psycopg.DataError, psycopg.ProgrammingError):
                job = self._queries.rescued_job(conn, job.id, job.queue) or job
        self._on_rescued(job)

    def _settle_requests(self, conn: AnyConnection, batch: int) -> tuple[int, int]:
        """Settle requests to cancel an attempt that has ended. How many jobs are cancelled, and requests settled."""
        rows = Selection(set_aside=self._unworkable.set_aside.rows(_CANCEL_REQUESTS))
        cancelled = 0
        try:
            return self._queries.settle_requests(conn, batch, rows)
        except psycopg.Error as error:

            def settle(ids: Sequence[int]) -> None:
                nonlocal cancelled
                cancelled += self._queries.settle_requests(conn, batch, Selection(among=ids))[0]

            def find() -> list[Row]:
                return self._queries.rows_to_settle(conn, batch, rows)

            self._unworkable.bisect(conn, Operation(_CANCEL_REQUESTS, find, settle, CANCEL), error)
        return cancelled, batch  # there may be more


def _log_rescued(jobs: Sequence[Job[Any]]) -> None:
    """Log the first jobs one by one, those that are discarded before the others, and then their number."""
    in_order = sorted(jobs, key=lambda job: job.state is not JobState.DISCARDED)
    for job in in_order[:LINES]:
        count = f"attempt {job.attempt} counts" if job.token else "as it ran other jobs too, the attempt does not count"
        level = logging.ERROR if job.state is JobState.DISCARDED else logging.WARNING
        log.log(level, "job %d (%s) rescued: its worker vanished; %s; now %s", job.id, job.kind, count, job.state,
                extra=job_fields(job))  # fmt: skip
    if more := in_order[LINES:]:
        discarded = sum(job.state is JobState.DISCARDED for job in more)
        log.log(logging.ERROR if discarded else logging.WARNING, "%d more jobs rescued, %d of them discarded",
                len(more), discarded)  # fmt: skip
