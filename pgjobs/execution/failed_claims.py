"""Finds the job for which a claim fails, and discards it or sets it aside; set_aside.py has the rules.

A claim fails as a whole if the row that it would take cannot be updated: a trigger of the application refuses the
change, say, or a value is too large. The jobs behind that row must be claimed all the same. So the claim is tried again
for single jobs, in a transaction that is rolled back, until the job to blame is known.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from uuid import UUID

import psycopg
from psycopg.pq import TransactionStatus

from pgjobs.clean_text import error_text
from pgjobs.db.cursors import AnyConnection, commit, rollback
from pgjobs.execution.queries import ExecutionQueries
from pgjobs.execution.requests import ClaimRequest
from pgjobs.execution.set_aside import SetAside, UnchangedRow, UnreadableRow, concerns_a_row
from pgjobs.execution.unworkable import CLAIM, MOST_TRIES, Unworkable
from pgjobs.job import Job, JobState

_CHECK_UNCHANGED_EVERY = 2.0  # seconds between two checks whether a trigger silently keeps the first job of a queue


class FailedClaims:
    """The jobs of one process that cannot be claimed."""

    def __init__(self, queries: ExecutionQueries, set_aside: SetAside, order: str) -> None:
        self._queries = queries
        self._set_aside = set_aside
        self._order = order
        self._unworkable = Unworkable(queries, set_aside)
        self._next_check: dict[str, float] = {}  # of `pass_unchanged`, by queue, by the monotonic clock

    def deal_with(self, conn: AnyConnection, request: ClaimRequest, error: psycopg.Error | UnreadableRow) -> None:
        """A claim has failed: find the job that it would have taken, and discard it or set it aside. Raises the error
        if no job is to blame."""
        if isinstance(error, UnreadableRow):
            return  # the job is discarded already
        operation = claims_of(request.queue)
        if self._set_aside.is_common(operation, error):
            raise error
        with self._trial(conn):
            id = self._queries.select_next(conn, self._order, request.values)
            if id is None:
                return  # another thread has locked it, and finds out the same
            try:
                self._queries.try_claim(conn, id, request.values)
            except psycopg.Error as failed:
                if not concerns_a_row(failed):
                    raise
                others = partial(self._others_work, conn, request)
                if self._unworkable.deal_with(conn, operation, (id, request.queue), failed, CLAIM, others_work=others):
                    commit(conn)

    def pass_unchanged(self, conn: AnyConnection, queue: str, make_request: Callable[[], ClaimRequest]) -> bool:
        """No job was claimed: check now and then whether a trigger has silently kept the first job of the queue, and
        set that aside. Returns whether the caller should claim again."""
        now = time.monotonic()
        if now < self._next_check.setdefault(queue, now + _CHECK_UNCHANGED_EVERY):
            return False
        self._next_check[queue] = now + _CHECK_UNCHANGED_EVERY
        request = make_request()
        with self._trial(conn):
            id = self._queries.select_next(conn, self._order, request.values)
            if id is None:
                return False
            self._next_check[queue] = 0.0  # there may be more such jobs
            try:
                if self._queries.try_claim(conn, id, request.values):
                    return True
                operation, others = claims_of(queue), partial(self._others_work, conn, request)
                self._unworkable.deal_with(conn, operation, (id, queue), UnchangedRow(), CLAIM, others_work=others)
            except psycopg.Error as error:
                if not concerns_a_row(error):
                    raise
                self._next_check[queue] = now + _CHECK_UNCHANGED_EVERY
                return not isinstance(error, UnchangedRow)  # another error: the next claim raises it
            return True

    def discard_unreadable(self, conn: AnyConnection, queue: str, token: UUID, error: Exception) -> None:
        """Discard the job of a claim that is committed and whose row cannot be read: no later claim could read it."""
        rollback(conn)
        id = self._queries.select_claimed_id(conn, queue, token)
        if id is not None:
            reason = f"this job cannot be worked because its row cannot be read: {error_text(error)}"
            self._unworkable.discard(conn, (id, queue), (JobState.RUNNING,), reason, token=token)

    def went_on(self, queue: str, job: Job[Any] | None) -> None:
        """Called after a claim, with the job that it has claimed: log the jobs that it has set aside."""
        if not self._set_aside:
            return
        operation = claims_of(queue)
        self._set_aside.log_new(operation)
        if job is not None:
            self._set_aside.worked(operation, job.id)

    def _others_work(self, conn: AnyConnection, request: ClaimRequest) -> bool:
        """Whether at least one of a sample of the other jobs of the queue can be claimed."""
        for id in self._queries.sample_available(conn, request.values, MOST_TRIES):
            try:
                if self._queries.try_claim(conn, id, request.values):
                    return True
            except psycopg.Error as error:
                if not concerns_a_row(error):
                    raise
        return False

    @contextmanager
    def _trial(self, conn: AnyConnection) -> Iterator[None]:
        """A transaction in which claims are tried, and which is rolled back unless the block commits it."""
        self._queries.begin_trial(conn)
        try:
            yield
        finally:
            if not conn.closed and conn.info.transaction_status != TransactionStatus.IDLE:
                rollback(conn)


def claims_of(queue: str) -> str:
    """The name of the claims of a queue in SetAside, which the log shows."""
    return f"claims of queue {queue!r}"
