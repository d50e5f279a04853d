"""Discards the job for which an operation has failed, or sets its row aside, by the rules of set_aside.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from random import shuffle
from typing import NamedTuple
from uuid import UUID

import psycopg

from pgjobs.clean_text import ERROR_LIMIT, clean, one_line
from pgjobs.db.cursors import AnyConnection
from pgjobs.execution.queries import ExecutionQueries
from pgjobs.execution.set_aside import SetAside, concerns_a_row, is_application_code, is_too_large, short
from pgjobs.job import JobState
from pgjobs.loggers import get_logger

log = get_logger("pgjobs.unworkable")

# Tries in one transaction, each behind a savepoint: more would overflow a cache of Postgres.
MOST_TRIES = 50

Row = tuple[int, str]  # id and queue


class Change(NamedTuple):
    """The change that an operation makes to jobs."""

    states: Sequence[JobState]  # of the jobs that it changes
    to: JobState
    counted: int = 0  # attempts that it adds


WAITING = (JobState.AVAILABLE, JobState.SCHEDULED, JobState.RETRYABLE, JobState.PENDING)
CLAIM = Change((JobState.AVAILABLE,), JobState.RUNNING, counted=1)
PROMOTE = Change((JobState.SCHEDULED, JobState.RETRYABLE), JobState.AVAILABLE)
RESCUE = Change((JobState.RUNNING,), JobState.RETRYABLE)
CANCEL = Change(WAITING, JobState.CANCELLED)


class Operation(NamedTuple):
    """An operation that can be done row by row."""

    name: str
    find: Callable[[], list[Row]]  # the rows that the operation would change
    do: Callable[[Sequence[int]], object]  # the operation for these ids
    change: Change | None  # None if the operation only deletes


@dataclass(frozen=True, slots=True)
class Unworkable:
    """Discards or sets aside the rows for which the operations of one process fail."""

    queries: ExecutionQueries
    set_aside: SetAside

    def deal_with(
        self,
        conn: AnyConnection,
        operation: str,
        row: Row,
        error: psycopg.Error,
        change: Change | None,
        *,
        others_work: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Discard the job if the values of its row are to blame, and return True; else set the row aside. Raises the
        error if the operation fails for all rows. `change` is the change that the operation makes; None if it only
        deletes. If it is in doubt whether the operation fails for all rows, `others_work` is called."""
        if change is not None and self._is_to_blame(conn, row, error, change):
            reason = clean(f"this job cannot be worked because of a value in its row: {short(error)}", ERROR_LIMIT)
            if self.discard(conn, row, change.states, reason):
                self.set_aside.worked(operation, row[0])
                return True
        others = self.set_aside.is_in_doubt(operation, error) and others_work()
        self.set_aside.failed(operation, row[0], error, f"job {row[0]}", others_work=others)
        return False

    def _is_to_blame(self, conn: AnyConnection, row: Row, error: psycopg.Error, change: Change) -> bool:
        if is_application_code(error):
            return False
        try:
            return self.queries.bare_write(
                conn,
                *row,
                states=change.states,
                to=change.to,
                counted=change.counted,
                keep_key=not is_too_large(error),
            )
        except psycopg.Error as other:
            if not concerns_a_row(other):
                raise
            return False

    def discard(
        self, conn: AnyConnection, row: Row, states: Sequence[JobState], reason: str, *, token: UUID | None = None
    ) -> bool:
        """Discard a job, with the reason in its errors. If that fails, try again and drop the values of the row that
        may be the cause. `token` is that of the claim, if this process has claimed the job."""
        for fresh in (False, True):
            try:
                if self.queries.discard_unworkable(conn, *row, states=states, reason=reason, fresh=fresh, token=token):
                    log.error(
                        "job %d discarded: %s", row[0], reason, extra={"job_id": row[0], "queue": one_line(row[1])}
                    )
                    return True
            except psycopg.Error as error:
                if not concerns_a_row(error):
                    raise
                log.debug("job %d could not be discarded: %s", row[0], error)
            else:
                return False  # another process has changed or locked the row
        return False

    def bisect(self, conn: AnyConnection, operation: Operation, error: psycopg.Error) -> None:
        """Find the rows for which an operation has failed, by bisection: do it to each half of the rows, and divide a
        half for which it fails. One call makes at most MOST_TRIES tries; the next call continues. Raises the error if
        it does not concern a row, or if no row works."""
        if not concerns_a_row(error) or self.set_aside.is_common(operation.name, error):
            raise error
        rows = operation.find()
        shuffle(rows)  # rows that fail alike may be neighbours, and would look like a failure of all rows
        parts, tries, works = [rows] if rows else [], 0, False
        while parts and tries < MOST_TRIES:
            part, tries = parts.pop(), tries + 1
            failed = self._try(operation, part)
            if failed is None:
                works = True
                self.set_aside.worked(operation.name)
            elif len(part) > 1:
                parts += [part[: len(part) // 2], part[len(part) // 2 :]]
            else:
                works |= self.deal_with(
                    conn, operation.name, part[0], failed, operation.change, others_work=partial(bool, works)
                )
        self.set_aside.log_new(operation.name)
        if rows and not works and not self.set_aside.rows(operation.name):
            raise error

    def _try(self, operation: Operation, rows: Sequence[Row]) -> psycopg.Error | None:
        try:
            operation.do([id for id, _ in rows])
        except psycopg.Error as error:
            if not concerns_a_row(error):
                raise
            return error
        return None
