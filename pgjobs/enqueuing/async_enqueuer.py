"""Inserts jobs on asynchronous psycopg connections: the asynchronous driver of builder.py.

| tx | how |
| --- | --- |
| an asynchronous connection of the caller's, or a pool of such | each statement is awaited on that connection |
| None, or a ConnectionPool | the synchronous Enqueuer runs in a thread |

So asynchronous code needs no pool of its own. Such a pool would double the connections of a process, to save a thread
for the time of one statement.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import psycopg
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from pgjobs.db.advice import advised
from pgjobs.db.borrow import AsyncBorrowable, borrow_async
from pgjobs.db.connection import has_ended
from pgjobs.db.cursors import AnyAsyncConnection
from pgjobs.db.own_pool import explain_lost_answer
from pgjobs.enqueuing import single_insert
from pgjobs.enqueuing.builder import is_plain
from pgjobs.enqueuing.copy_buffer import CopyBuffer
from pgjobs.enqueuing.encoded_jobs import EncodedJobs
from pgjobs.enqueuing.enqueuer import Enqueuer, check_inserted, fill
from pgjobs.enqueuing.queries import can_copy, no_copy, run_async, send_async
from pgjobs.forking import check_async_pool
from pgjobs.hooks import check_middleware, insert_with_middleware
from pgjobs.job import Job
from pgjobs.options import EncodedJob, JobOptions

#: What `aenqueue` takes: the caller's transaction; or None or a pool, for a transaction of its own.
AsyncTx = AsyncBorrowable | AsyncConnectionPool[Any] | ConnectionPool[Any] | None

_ENCODED_AT_ONCE = 500  # jobs; then other tasks get a turn


@dataclass(frozen=True, slots=True)
class AsyncEnqueuer:
    """Enqueues the jobs of one client from asynchronous code, with the parts of its synchronous Enqueuer."""

    sync: Enqueuer

    async def enqueue(self, tx: AsyncTx, new: object, *, notify: bool) -> Job[Any]:
        """Insert one job, a `NewJob` or args."""
        if tx is None or isinstance(tx, ConnectionPool):
            return await asyncio.to_thread(self.sync.enqueue, tx, new, notify=notify)
        encoded = template, text, args = self.sync.encoder.encode_parts(new)
        async with self._transaction(tx) as conn:
            if notify and is_plain(template) and not self.sync.middleware and _can_send_now(conn):
                values = self.sync.queries.plain_values(template, text)
                row = await single_insert.send_within_async(conn, self.sync.queries.plain, values)
                return self.sync.plain_job(encoded, row)
            return (await self._insert(conn, tx, [template.with_args(text, args)], notify, one=True))[0]

    async def enqueue_many(
        self, tx: AsyncTx, new: Iterable[object], call: JobOptions, *, notify: bool
    ) -> list[Job[Any]]:
        """Insert many jobs; they come back in their order."""
        if tx is None or isinstance(tx, ConnectionPool):
            return await asyncio.to_thread(self.sync.enqueue_many, tx, new, call, notify=notify)
        jobs = EncodedJobs()
        await self._encode(jobs, None, new, call)
        async with self._transaction(tx) as conn:
            return await self._insert(conn, tx, jobs, notify)

    async def enqueue_counted(self, tx: AsyncTx, new: Iterable[object], call: JobOptions, *, notify: bool) -> int:
        """Insert any number of jobs; return how many, without the duplicates. See Enqueuer.enqueue_counted."""
        if tx is None or isinstance(tx, ConnectionPool):
            return await asyncio.to_thread(self.sync.enqueue_counted, tx, new, call, notify=notify)
        may_copy = isinstance(tx, AsyncConnectionPool) or await _can_copy(await borrow_async(tx))
        with CopyBuffer() as buffer:
            jobs = EncodedJobs()
            await self._encode(jobs, self.sync.buffer_for(may_copy, buffer), new, call)
            async with self._transaction(tx) as conn:
                if buffer.jobs:
                    if not await _can_copy(conn):
                        raise no_copy()
                    requests = self.sync.builder.insert_buffer(buffer, notify=notify)
                    await run_async(requests, partial(send_async, conn))
                inserted = await self._insert(conn, tx, jobs, notify) if jobs else []
            return buffer.jobs + sum(not job.duplicate for job in inserted)

    async def _encode(
        self, jobs: EncodedJobs, buffer: CopyBuffer | None, new: Iterable[object], call: JobOptions
    ) -> None:
        """Check and encode the jobs, and let other tasks run in between."""
        encoded = self.sync.encoder.encode_all(new, call)
        while fill(jobs, buffer, islice(encoded, _ENCODED_AT_ONCE)) == _ENCODED_AT_ONCE:
            await asyncio.sleep(0)

    async def _insert(
        self, conn: AnyAsyncConnection, tx: AsyncTx, jobs: Sequence[EncodedJob], notify: bool, *, one: bool = False
    ) -> list[Job[Any]]:
        """Insert the jobs, with the middleware around it, which gets the caller's `tx`; `one` is the job of
        `aenqueue`."""

        async def insert(jobs: Sequence[EncodedJob]) -> list[Job[Any]]:
            if not jobs:
                return []
            may_copy = len(jobs) > 1 and await _can_copy(conn)
            requests = self.sync.builder.insert(jobs, notify=notify, may_copy=may_copy)
            return await run_async(requests, partial(send_async, conn))

        if self.sync.middleware:  # which may expect a list
            jobs = list(jobs)
        inserted: list[Job[Any]] = await insert_with_middleware(self.sync.middleware, tx, insert)(jobs)
        if self.sync.middleware:
            check_inserted(inserted, one=one)
        self.sync.call_hooks(inserted)
        return inserted

    @asynccontextmanager
    async def _transaction(self, tx: AsyncBorrowable | AsyncConnectionPool[Any]) -> AsyncIterator[AnyAsyncConnection]:
        """The transaction of an enqueue: the caller's, or one of its own on a connection of the pool."""
        if self.sync.middleware:
            check_middleware(self.sync.middleware, is_async=True)
        with advised(self.sync.schema):
            if not isinstance(tx, AsyncConnectionPool):
                yield await borrow_async(tx)
                return
            check_async_pool(tx)
            all_sent = False
            try:
                async with _live_connection(tx) as conn, conn.transaction():
                    yield conn
                    all_sent = True
            except psycopg.OperationalError as error:
                if all_sent:
                    explain_lost_answer(error)
                raise


@asynccontextmanager
async def _live_connection(pool: AsyncConnectionPool[Any]) -> AsyncIterator[AnyAsyncConnection]:
    """Like `pool.connection()`, but skips connections that the server has closed while they were idle."""
    while True:
        async with pool.connection() as conn:
            if has_ended(conn):
                await conn.close()  # the pool opens another one
                continue
            yield conn
        return


def _can_send_now(conn: AnyAsyncConnection) -> bool:
    """Whether `single_insert` can be used. While a statement of another task runs, a cursor does better: it looks at
    the connection when its turn has come."""
    return not conn.lock.locked() and single_insert.can_send(conn)


async def _can_copy(conn: AnyAsyncConnection) -> bool:
    async with conn.lock:  # while another task begins the transaction, the connection is in a pipeline
        return can_copy(conn)
