"""Reads jobs for the methods of a client, in the caller's transaction or in transactions of its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, TypeVar

import psycopg

from pgjobs.db.borrow import AsyncBorrowable, Tx, borrow_async, is_borrowed
from pgjobs.db.cursors import AnyConnection
from pgjobs.execution.queries import ExecutionQueries
from pgjobs.job import Job
from pgjobs.job_filter import JobFilter, check_filter, check_id
from pgjobs.observe.listing import Order, listing
from pgjobs.observe.queries import ObserveQueries
from pgjobs.observe.waiting import Waiting
from pgjobs.results import JobCounts, JobPage
from pgjobs.work_map import WorkMap, decoding

Read = TypeVar("Read")


class JobReader:
    """Reads the jobs of one client. Those that it returns have args of the args classes in the work map."""

    def __init__(
        self,
        queries: ObserveQueries,
        states: ExecutionQueries,
        transaction: Callable[[Tx], AbstractContextManager[AnyConnection]],
        work_map: WorkMap | None,
    ) -> None:
        self._queries = queries
        self._states = states  # reads a job without its progress
        self._transaction = transaction
        self._work_map = work_map

    def get(self, tx: Tx, id: int) -> Job[Any] | None:
        check_id(id)
        job = self._read(tx, lambda conn, with_args: self._queries.get_job(conn, id, with_args=with_args))
        return None if job is None else decoding(self._work_map, job)

    async def get_async(self, tx: AsyncBorrowable, id: int) -> Job[Any] | None:
        check_id(id)
        job = await self._queries.get_job_async(await borrow_async(tx), id)
        return None if job is None else decoding(self._work_map, job)

    def list(
        self,
        tx: Tx,
        filter: JobFilter | None,
        *,
        order: Order,
        descending: bool,
        limit: int,
        cursor: str | None,
    ) -> JobPage:
        which = _checked(filter)
        page = listing(which, order, descending, limit, cursor)
        jobs = self._read(tx, lambda conn, with_args: self._queries.list_jobs(conn, which, page, with_args=with_args))
        return page.page([decoding(self._work_map, job) for job in jobs])

    def count(self, tx: Tx, filter: JobFilter | None) -> JobCounts:
        which = _checked(filter)
        with self._transaction(tx) as conn:
            return JobCounts(self._queries.count_jobs(conn, which))

    def waiting(self, job: Job[Any] | int, timeout: timedelta | None) -> Waiting:
        return Waiting(job, timeout, self._find)

    def _find(self, id: int, queue: str | None) -> Job[Any] | None:
        with self._transaction(None) as conn:
            found = self._states.get_job(conn, id, queue)
        return None if found is None else decoding(self._work_map, found)

    def _read(self, tx: Tx, read: Callable[[AnyConnection, bool], Read]) -> Read:
        """Read with args, or, if the role may not, without them. Not in the caller's transaction: the first error has
        aborted that."""
        try:
            with self._transaction(tx) as conn:
                return read(conn, True)
        except psycopg.errors.InsufficientPrivilege:
            if is_borrowed(tx):
                raise
        with self._transaction(tx) as conn:
            return read(conn, False)


def _checked(filter: JobFilter | None) -> JobFilter:
    which = JobFilter() if filter is None else filter
    check_filter(which)
    return which
