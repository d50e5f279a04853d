"""The duty `promote`: makes scheduled and retryable jobs available when they are due.

A job may give up its unique key while it waits, and another job may have the key when the first one is due. The
statement for the batch leaves such jobs alone, and each is promoted or discarded by a statement of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta

import psycopg

from pgjobs.db.cursors import AnyConnection
from pgjobs.execution.set_aside import concerns_a_row
from pgjobs.execution.unworkable import MOST_TRIES, PROMOTE, Operation, Row, Unworkable
from pgjobs.job import JobState
from pgjobs.loggers import get_logger
from pgjobs.maintenance.batch_size import BATCH
from pgjobs.maintenance.queries import MaintenanceQueries, Selection

log = get_logger("pgjobs.maintenance")

_NOW = timedelta(0)
_RETRY_LOCKED = timedelta(milliseconds=20)  # if a due job was not promoted, because another transaction has locked it
_MOST_CONTESTED = MOST_TRIES  # jobs with a statement of their own, in one transaction: each takes a savepoint


class Promoter:
    """`wake` is called with a queue and how many jobs of it were promoted."""

    def __init__(self, queries: MaintenanceQueries, unworkable: Unworkable, wake: Callable[[str, int], None]) -> None:
        self._queries = queries
        self._unworkable = unworkable
        self._set_aside = unworkable.set_aside
        self._wake = wake
        self._promoted: dict[str, int] = {}  # jobs by queue, for wake_workers

    def promote(self, conn: AnyConnection) -> timedelta | None:
        """Promote a batch of due jobs. Returns how long until the next job is due, None if none waits."""
        rows = self._rows()
        try:
            self._promoted, contested, due = self._queries.promote(conn, BATCH, rows)
        except psycopg.Error as error:
            self._promote_by_bisection(conn, rows, error)
            return _NOW
        if self._promoted:
            self._set_aside.worked("promote")
        for id, queue in contested[:_MOST_CONTESTED]:
            self._promote_contested(conn, id, queue)
        if sum(self._promoted.values()) + len(contested) >= BATCH or len(contested) > _MOST_CONTESTED:
            return _NOW
        if contested:  # `due` is the time of one of these
            due = self._queries.next_due(conn, self._rows())
        if due is None or due > _NOW:
            return due
        return _RETRY_LOCKED if -due > _RETRY_LOCKED else _NOW  # locked, or due since a moment ago

    def wake_workers(self) -> None:
        """Wake the workers of this process for the promoted jobs; when these are committed."""
        promoted, self._promoted = self._promoted, {}
        for queue, jobs in promoted.items():
            self._wake(queue, jobs)

    def bring_forward(self, conn: AnyConnection) -> None:
        """Make the duty due when the next job is due: a job was enqueued that is due earlier."""
        self._queries.bring_promote_forward(conn)

    def _rows(self) -> Selection:
        return Selection(set_aside=self._set_aside.rows("promote"))

    def _promote_by_bisection(self, conn: AnyConnection, rows: Selection, error: psycopg.Error) -> None:
        self._promoted = {}

        def promote(ids: Sequence[int]) -> None:
            promoted, contested, _ = self._queries.promote(conn, len(ids), Selection(among=ids))
            for queue, jobs in promoted.items():
                self._promoted[queue] = self._promoted.get(queue, 0) + jobs
            for id, queue in contested if len(ids) == 1 else ():
                self._promote_contested(conn, id, queue)

        def find() -> list[Row]:
            return self._queries.rows_to_promote(conn, BATCH, rows)

        self._unworkable.bisect(conn, Operation("promote", find, promote, PROMOTE), error)

    def _promote_contested(self, conn: AnyConnection, id: int, queue: str) -> None:
        """Promote a job, or discard it if another job has its unique key."""
        try:
            try:
                state = self._queries.settle_promotion(conn, id, queue)
            except (psycopg.errors.UniqueViolation, psycopg.errors.LockNotAvailable):  # the other is being inserted
                self._queries.postpone_promotion(conn, id, queue)
                return
        except psycopg.Error as error:
            if not concerns_a_row(error):
                raise
            self._unworkable.deal_with(conn, "promote", (id, queue), error, PROMOTE)
            self._set_aside.log_new("promote")
            return
        if state is JobState.AVAILABLE:
            self._promoted[queue] = self._promoted.get(queue, 0) + 1
        elif state is not None:
            log.info("job %d discarded: another job has its unique key", id)
