"""Asynchronous calls while the database lets them wait: the event loop goes on, and a cancelled task leaves its
connection in order. What waits for the end of a job."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.pq import PipelineStatus, TransactionStatus
from sqlalchemy.ext.asyncio import AsyncSession

from pgjobs import Client, Job, JobNotFinished, JobNotFound, JobState, Unique, WorkerPool
from pgjobs.enqueuing import builder
from pgjobs.enqueuing.copy_rows import row_with_id
from tests.acceptance.async_apps import FORMS, connection, engine_of, transaction
from tests.acceptance.inserts import Query, query
from tests.conftest import Connect
from tests.samples import SECOND, Thing, nothing

__all__ = ["query"]

CALLS: dict[str, Callable[[Client, Any], Awaitable[Any]]] = {
    "plain": lambda client, tx: client.aenqueue(tx, Thing(1)),
    "delayed": lambda client, tx: client.aenqueue(tx, Thing(1), delay=SECOND),
    "unique": lambda client, tx: client.aenqueue(tx, Thing(1), unique=Unique()),
    "several": lambda client, tx: client.aenqueue_many(tx, [Thing(1), Thing(2)]),
    "many": lambda client, tx: client.aenqueue_many(tx, [Thing(n) for n in range(50)]),
    "counted": lambda client, tx: client.aenqueue_many(tx, [Thing(n) for n in range(50)], returning=False),
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


class Lock:
    """A lock on the table of jobs that no insert passes, held by another session."""

    def __init__(self, connect: Connect, client: Client, query: Query) -> None:
        self._conn = connect()
        self._client, self._query = client, query
        # ends the test where a call blocks the event loop, and nothing could release the lock
        self._conn.execute("SET idle_in_transaction_session_timeout = '20s'")
        self._conn.commit()

    def take(self) -> None:
        self._conn.execute(sql.SQL("LOCK TABLE {}.job").format(sql.Identifier(self._client.schema)))

    def release(self) -> None:
        self._conn.rollback()

    async def is_awaited(self) -> None:
        """Wait until a statement waits for it. Other tasks run meanwhile."""
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE %s"
        deadline = time.monotonic() + 15
        while self._query(waits, f'%"{self._client.schema}"%') == [(0,)]:
            assert time.monotonic() < deadline, "nothing waits for the lock"
            await asyncio.sleep(0.01)


@pytest.fixture
def lock(connect: Connect, client: Client, query: Query) -> Lock:
    return Lock(connect, client, query)


@asynccontextmanager
async def while_locked(lock: Lock, call: Awaitable[Any]) -> AsyncIterator[asyncio.Future[Any]]:
    """The call as a task, while it waits for the lock."""
    lock.take()
    task = asyncio.ensure_future(call)
    try:
        await lock.is_awaited()
        yield task
    finally:
        lock.release()


# --- the event loop goes on


@each_call
@pytest.mark.parametrize("form", ["None", *FORMS])
def test_the_event_loop_is_never_blocked(
    client: Client, database: str, lock: Lock, form: str, call: Callable[[Client, Any], Awaitable[Any]]
) -> None:
    """It releases the lock that the call waits for."""

    async def main() -> None:
        if form == "None":
            async with while_locked(lock, call(client, None)) as task:
                pass
            await task
            return
        async with transaction(form, database) as own:
            async with while_locked(lock, call(client, own.tx)) as task:
                pass
            await task
            await own.commit()

    asyncio.run(main())
    assert client.count().total in (1, 2, 50)


def test_reading_does_not_block_it_either(client: Client, database: str, lock: Lock) -> None:
    job = client.enqueue(None, Thing())

    async def main() -> None:
        async with while_locked(lock, client.aget(job.id)) as reading:
            pass
        assert await reading == client.get(job.id)
        async with connection(database) as conn:
            async with while_locked(lock, client.aget(job.id, conn)) as reading:
                pass
            assert await reading == client.get(job.id)
        async with while_locked(lock, client.await_job(job)) as waiting:
            pass
        assert await asyncio.to_thread(WorkerPool(client, {Thing: nothing}).work_one)
        assert (await waiting).state is JobState.COMPLETED

    asyncio.run(main())


def test_other_tasks_run_while_very_many_jobs_are_encoded_and_copied(
    client: Client, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, turns = 20_000, 0
    encoded, copied = list[int](), list[int]()  # for each job, the turns that another task has had before it

    def jobs() -> Iterator[Thing]:
        for n in range(number):
            encoded.append(turns)
            yield Thing(n)

    def row(*parts: Any) -> bytes:
        copied.append(turns)
        return row_with_id(*parts)

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def main() -> None:
        async with connection(database) as conn:
            others = asyncio.ensure_future(take_turns())
            await client.aenqueue_many(conn, jobs())
            others.cancel()
            await conn.commit()

    monkeypatch.setattr(builder, "row_with_id", row)
    asyncio.run(main())
    assert encoded[-1] - encoded[0] >= number / 500 - 1
    assert copied[-1] - copied[0] >= 10, "after each block"
    assert client.count().total == number


# --- cancellation


@each_call
@pytest.mark.parametrize("before", [0, 1], ids=["first statement", "later statement"])
def test_a_task_that_is_cancelled_leaves_a_transaction_that_can_be_rolled_back(
    client: Client, database: str, lock: Lock, call: Callable[[Client, Any], Awaitable[Any]], before: int
) -> None:
    async def main() -> None:
        async with connection(database, prepare_threshold=1) as conn:
            for _ in range(3):
                for _ in range(before):
                    await conn.execute("SELECT 1")
                async with while_locked(lock, call(client, conn)) as task:
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await task
                    assert conn.info.transaction_status == TransactionStatus.INERROR
                    assert conn.pgconn.pipeline_status == PipelineStatus.OFF
                with pytest.raises(psycopg.errors.InFailedSqlTransaction):
                    await client.aenqueue(conn, Thing())
                await conn.rollback()
                await call(client, conn)
                await conn.rollback()
            await client.aenqueue(conn, Thing())
            await conn.commit()

    asyncio.run(main())
    assert client.count().total == 1


@each_call
def test_a_time_limit_within_a_savepoint_leaves_the_rest_of_the_transaction(
    client: Client, database: str, lock: Lock, query: Query, call: Callable[[Client, Any], Awaitable[Any]]
) -> None:
    async def main() -> None:
        async with connection(database) as conn:
            lock.take()
            await conn.execute("SELECT 1")
            with pytest.raises(TimeoutError):
                async with conn.transaction(), asyncio.timeout(0.05):
                    await call(client, conn)
            lock.release()
            await client.aenqueue(conn, Thing(9))
            await conn.commit()

    asyncio.run(main())
    assert query("SELECT args ->> 'n' FROM {s}.job") == [("9",)]


@each_call
def test_a_session_of_a_cancelled_task_can_be_rolled_back_and_used_again(
    client: Client, database: str, lock: Lock, call: Callable[[Client, Any], Awaitable[Any]]
) -> None:
    async def main() -> None:
        async with engine_of(database, pool_size=1, max_overflow=0) as engine:
            async with AsyncSession(engine) as session:
                async with while_locked(lock, call(client, session)) as task:
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await task
                await session.rollback()
                await client.aenqueue(session, Thing())
                await session.commit()
            async with AsyncSession(engine) as session, session.begin():
                await client.aenqueue(session, Thing())

    asyncio.run(main())
    assert client.count().total == 2


def test_a_cancelled_task_without_a_transaction_goes_on_at_once_and_the_job_may_exist(
    client: Client, lock: Lock
) -> None:
    async def main() -> None:
        async with while_locked(lock, client.aenqueue(None, Thing())) as task:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        # asyncio.run waits for the thread

    asyncio.run(main())
    assert client.count().total == 1


# --- the end of a job


def test_await_job_returns_the_finished_job_with_its_args(client: Client) -> None:
    async def main() -> Job[Thing]:
        job = await client.aenqueue(None, Thing(3))
        waiting = asyncio.ensure_future(client.await_job(job))
        assert await asyncio.to_thread(WorkerPool(client, {Thing: nothing}).work_one)
        return await waiting

    job = asyncio.run(main())
    assert (job.state, job.args) == (JobState.COMPLETED, Thing(3))
    assert asyncio.run(client.await_job(job.id, timeout=timedelta(0))).args == {"n": 3}


def test_await_job_gives_up_as_wait_does(client: Client) -> None:
    job = client.enqueue(None, Thing())
    for timeout in (timedelta(0), timedelta(seconds=0.2)):
        with pytest.raises(JobNotFinished):
            asyncio.run(client.await_job(job, timeout=timeout))
    with pytest.raises(JobNotFound):
        asyncio.run(client.await_job(job.id + 1))

    async def main() -> None:
        task = asyncio.ensure_future(client.await_job(job))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_aget_reads_in_the_transaction_of_the_caller(client: Client, database: str) -> None:
    async def main() -> None:
        for form in FORMS:
            async with transaction(form, database) as own:
                job = await client.aenqueue(own.tx, Thing())
                found = await client.aget(job.id, own.tx)
                assert found is not None
                assert (found.id, found.args) == (job.id, {"n": 0})
                assert await client.aget(job.id) is None
                assert await client.aget(job.id + 1, own.tx) is None

    asyncio.run(main())
