"""What asynchronous code enqueues: one job and many, duplicates, hooks and middleware; and without a transaction."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Iterator
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from pgjobs import Client, Hooks, InvalidArgs, InvalidSetting, Job, NewJob, NoJobs, Unique, UsedAfterFork
from tests.acceptance.async_apps import FORMS, OF_PSYCOPG, connection, transaction
from tests.acceptance.inserts import Query, query
from tests.conformance.conftest import facts
from tests.samples import HOUR, Thing

__all__ = ["query"]

each_form = pytest.mark.parametrize("form", FORMS)
BY_N = Unique(by_args=["n"])


@each_form
def test_duplicates_and_replaced_jobs_come_back(client: Client, database: str, form: str) -> None:
    async def main() -> None:
        async with transaction(form, database) as own:
            first = await client.aenqueue(own.tx, Thing(1), unique=BY_N)
            again = await client.aenqueue(own.tx, Thing(1), unique=BY_N)
            assert (first.duplicate, again.duplicate, again.id) == (False, True, first.id)
            changed = await client.aenqueue(own.tx, Thing(1), unique=BY_N, replace=["priority"], priority=-4)
            assert (changed.id, changed.priority, changed.duplicate) == (first.id, -4, True)
            jobs = await client.aenqueue_many(own.tx, [Thing(2), Thing(1), NewJob(Thing(3))], unique=BY_N)
            assert [(job.args, job.duplicate) for job in jobs] == [
                (Thing(2), False), (Thing(1), True), (Thing(3), False),
            ]  # fmt: skip
            await own.commit()
            assert client.get(first.id) == replace(changed, duplicate=False, decode=changed.decode)

    asyncio.run(main())
    assert client.count().total == 3


@each_form
@pytest.mark.parametrize("number", [1, 3, 25, 1200])
def test_many_come_back_in_their_order(client: Client, database: str, form: str, number: int) -> None:
    """25 and more are sent by COPY."""

    async def main() -> None:
        async with transaction(form, database) as own:
            new = (NewJob(Thing(n), delay=HOUR * (n % 2)) for n in range(number))
            jobs = await client.aenqueue_many(own.tx, new, queue="mail", tags=["red-one"])
            await own.rollback()
            assert client.count().total == 0
            jobs = await client.aenqueue_many(own.tx, [job.args for job in jobs], queue="mail", tags=["red-one"])
            await own.commit()
            assert [job.args.n for job in jobs] == list(range(number))
            assert sorted(job.id for job in jobs) == [job.id for job in jobs]
            for job in (jobs[0], jobs[-1]):
                stored = client.get(job.id)
                assert stored is not None
                assert facts(stored) == facts(job)

    asyncio.run(main())
    assert client.count().total == number


@each_form
def test_any_number_is_counted_only(client: Client, database: str, query: Query, form: str) -> None:
    async def main() -> None:
        async with transaction(form, database) as own:
            new = [NewJob(Thing(n), delay=HOUR * (n % 2), unique=BY_N if n < 3 else None) for n in range(700)]
            assert await client.aenqueue_many(own.tx, new, returning=False) == 700
            await own.rollback()
            assert await client.aenqueue_many(own.tx, iter(new), returning=False, notify=False) == 700
            assert await client.aenqueue_many(own.tx, new[:3], returning=False) == 0
            await own.commit()

    asyncio.run(main())
    assert query("SELECT state, count(*) FROM {s}.job GROUP BY 1 ORDER BY 1") == [
        ("available", 350),
        ("scheduled", 350),
    ]


OPTIONS: list[dict[str, Any]] = [
    {},
    {"delay": HOUR},
    {"pending": True},
    {"tags": ["red-one"], "metadata": {"a": 1}},
    {"notify": False},
    {"unique": Unique()},
    {"context": {"user": 7}},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: next(iter(options), "none"))
@pytest.mark.parametrize("form", ["AsyncConnection", "None"])
def test_every_option_is_that_of_enqueue(client: Client, database: str, form: str, options: Any) -> None:
    async def main() -> Job[Any]:
        if form == "None":
            return await client.aenqueue(None, {"n": 5}, kind="thing", **options)
        async with connection(database) as conn, conn.transaction() as tx:
            return await client.aenqueue(tx, {"n": 5}, kind="thing", **options)

    job = asyncio.run(main())
    assert client.get(job.id) == job
    expected = client.enqueue(None, {"n": 5}, kind="other", **options)
    for name in ("state", "tags", "queue", "priority", "max_attempts", "metadata", "context"):
        assert getattr(job, name) == getattr(expected, name)


def test_what_is_invalid_is_refused_before_anything_is_sent(client: Client, database: str) -> None:
    async def main() -> None:
        async with connection(database) as conn:
            calls: list[tuple[type[Exception], Awaitable[Any]]] = [
                (InvalidArgs, client.aenqueue(conn, 5)),
                (InvalidArgs, client.aenqueue_many(conn, [Thing(), {"kindless": 1}, 7])),
                (InvalidArgs, client.aenqueue_many(conn, [Thing()] * 600 + [5])),
                (NoJobs, client.aenqueue_many(conn, [])),
                (NoJobs, client.aenqueue_many(conn, [], returning=False)),
            ]
            for error, call in calls:
                with pytest.raises((error, ValueError)):
                    await call
            assert conn.info.transaction_status == TransactionStatus.IDLE

    asyncio.run(main())


# --- a transaction of its own


def test_without_a_transaction_of_the_caller_a_job_is_committed_at_once(
    client: Client, database: str, query: Query
) -> None:
    async def main() -> None:
        await client.aenqueue(None, Thing(1))
        await client.aenqueue_many(None, [Thing(2), Thing(3)])
        assert await client.aenqueue_many(None, (Thing(n) for n in (4, 5)), returning=False) == 2
        with ConnectionPool(database, min_size=1, max_size=1, open=True) as sync_pool:
            await client.aenqueue(sync_pool, Thing(6))
        async with AsyncConnectionPool(database, min_size=1, max_size=1, open=False) as pool:
            await client.aenqueue(pool, Thing(7))
            await client.aenqueue_many(pool, [Thing(8)])
            assert await client.aenqueue_many(pool, [Thing(9)], returning=False) == 1

    asyncio.run(main())
    assert query("SELECT args ->> 'n' FROM {s}.job ORDER BY id") == [(str(n),) for n in range(1, 10)]


def test_a_connection_of_a_pool_that_the_server_has_closed_is_passed_over(
    client: Client, database: str, query: Query
) -> None:
    async def main() -> None:
        async with AsyncConnectionPool(database, min_size=1, max_size=1, open=False) as pool:
            async with pool.connection() as conn:
                pid = conn.info.backend_pid
            query("SELECT pg_terminate_backend(%s, 10000)", pid)
            await client.aenqueue(pool, Thing())

    asyncio.run(main())
    assert client.count().total == 1


def test_a_pool_of_another_event_loop_is_refused(client: Client, database: str) -> None:
    """As in a forked child, which would use the connection of its parent."""
    loop = asyncio.new_event_loop()
    pool = AsyncConnectionPool(database, min_size=1, max_size=1, open=False)
    loop.run_until_complete(pool.open(wait=True))
    try:
        with pytest.raises(UsedAfterFork, match="another event loop"):
            asyncio.run(client.aenqueue(pool, Thing()))
    finally:
        loop.run_until_complete(pool.close())
        loop.close()
    assert client.count().total == 0


def test_many_tasks_enqueue_at_once(client: Client, database: str) -> None:
    async def main() -> None:
        async with connection(database) as conn:
            jobs = await asyncio.gather(
                *(client.aenqueue(None, Thing(n)) for n in range(50)),
                *(client.aenqueue(conn, Thing(n)) for n in range(50, 100)),
            )
            await conn.commit()
        assert [job.args.n for job in jobs] == list(range(100))

    asyncio.run(main())
    assert client.count().total == 100


def test_tasks_of_one_connection_wait_for_each_other(client: Client, database: str) -> None:
    """While one of them begins the transaction, the connection is in pipeline mode, and counting was refused."""

    async def main() -> None:
        for _ in range(5):
            async with connection(database) as conn:
                plain, counted = [Thing(n) for n in range(30)], [Thing(n) for n in range(1200)]
                results: list[Any] = await asyncio.gather(
                    client.aenqueue_many(conn, counted, returning=False),
                    client.aenqueue(conn, Thing(1)),
                    client.aenqueue_many(conn, plain),
                    client.aenqueue_many(conn, counted, returning=False),
                    client.aenqueue(conn, Thing(2)),
                    client.aenqueue(conn, Thing(3), unique=BY_N),
                    client.aenqueue(conn, Thing(3), unique=BY_N),
                )
                assert results[0] == results[3] == 1200
                assert [job.args for job in results[2]] == plain
                await conn.rollback()

    asyncio.run(main())


# --- hooks, middleware and context


@pytest.fixture
def told() -> list[tuple[int, bool]]:
    return []


class Told(Hooks):
    def __init__(self, told: list[tuple[int, bool]]) -> None:
        self._told = told

    def on_enqueue(self, job: Job[Any]) -> None:
        self._told.append((job.args.n, threading.current_thread() is threading.main_thread()))


@pytest.fixture
def hooked(database: str, client: Client, told: list[tuple[int, bool]]) -> Iterator[Client]:
    with Client(database, schema=client.schema, hooks=[Told(told)]) as hooked:
        yield hooked


def test_hooks_are_told_of_each_job_that_is_inserted(
    hooked: Client, database: str, told: list[tuple[int, bool]]
) -> None:
    """On the event loop, where the loop inserts; in the thread that inserts otherwise."""

    async def main() -> None:
        async with connection(database) as conn:
            await hooked.aenqueue(conn, Thing(1))
            await hooked.aenqueue(conn, Thing(2), unique=BY_N)
            await hooked.aenqueue(conn, Thing(2), unique=BY_N)
            await hooked.aenqueue_many(conn, [Thing(3), Thing(4)])
            assert await hooked.aenqueue_many(conn, [Thing(5)], returning=False) == 1
            await conn.commit()
        await hooked.aenqueue(None, Thing(6))

    asyncio.run(main())
    assert told == [(1, True), (2, True), (3, True), (4, True), (5, True), (6, False)]


async def to_mail(tx: Any, jobs: Any, insert: Any) -> Any:
    assert isinstance(tx, psycopg.AsyncConnection)
    inserted = await insert([replace(job, queue="mail") for job in jobs])
    await tx.execute("SELECT 1")
    return inserted


def to_post(tx: Any, jobs: Any, insert: Any) -> Any:
    return insert([replace(job, queue="post") for job in jobs])


def test_asynchronous_middleware_stands_around_the_insert(client: Client, database: str) -> None:
    async def main() -> None:
        with Client(client.pool, schema=client.schema, middleware=[to_mail]) as other:
            async with connection(database) as conn:
                assert (await other.aenqueue(conn, Thing())).queue == "mail"
                assert {job.queue for job in await other.aenqueue_many(conn, [Thing()] * 25)} == {"mail"}
                assert await other.aenqueue_many(conn, [Thing()] * 25, returning=False) == 25
                await conn.commit()

    asyncio.run(main())
    assert client.count().by_queue == {"mail": 51}


def test_middleware_that_cannot_stand_around_an_insert_is_refused_before_it(client: Client, database: str) -> None:
    async def main() -> None:
        with Client(client.pool, schema=client.schema, middleware=[to_post]) as plain:
            async with connection(database) as conn:
                for call in (plain.aenqueue(conn, Thing()), plain.aenqueue_many(conn, [Thing()])):
                    with pytest.raises(InvalidSetting, match=r"to_post is a plain function.*write async def"):
                        await call
                assert conn.info.transaction_status == TransactionStatus.IDLE
            assert (await plain.aenqueue(None, Thing())).queue == "post"
        with Client(client.pool, schema=client.schema, middleware=[to_mail]) as other:
            with pytest.raises(InvalidSetting, match=r"to_mail is async.*another Client"):
                other.enqueue(None, Thing())
            with pytest.raises(InvalidSetting, match=r"to_mail is async.*another Client"):
                await other.aenqueue_many(None, [Thing()])

    asyncio.run(main())
    assert client.count().by_queue == {"post": 1}


USER: ContextVar[int] = ContextVar("user")


@pytest.mark.parametrize("form", ["None", *OF_PSYCOPG])
def test_the_context_of_the_task_reaches_the_job(client: Client, database: str, form: str) -> None:
    async def enqueue(other: Client, user: int) -> Job[Any]:
        USER.set(user)
        if form == "None":
            return await other.aenqueue(None, Thing())
        async with transaction(form, database) as own:
            return await other.aenqueue(own.tx, Thing())

    async def main() -> None:
        with Client(client.pool, schema=client.schema, context=lambda: {"user": USER.get()}) as other:
            jobs = await asyncio.gather(*(enqueue(other, user) for user in range(5)))
            assert [job.context for job in jobs] == [{"user": user} for user in range(5)]

    asyncio.run(main())
