"""What the functions of an application return where pgjobs asks them, and what becomes of an answer that is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from pgjobs import Cancel, Client, ErrorHandler, InvalidOption, InvalidSetting, Job, Snooze, WorkerPool, constant
from tests.samples import SECOND, Thing, Tx

RETURNS_INSERT = r"middleware around an insert must return the jobs .*, not {}: end it with return insert\(jobs\)"


def no_return(tx: Any, jobs: Any, insert: Any) -> Any:
    insert(jobs)


def their_number(tx: Any, jobs: Any, insert: Any) -> Any:
    return len(insert(jobs))


def what_it_got(tx: Any, jobs: Any, insert: Any) -> Any:
    insert(jobs)
    return jobs


@pytest.mark.parametrize(
    ("middleware", "shown"),
    [(no_return, "None"), (their_number, "1"), (what_it_got, r"\[EncodedJob.*")],
    ids=["nothing", "a number", "what it got"],
)
def test_middleware_around_an_insert_that_does_not_return_the_jobs_is_told_so(
    client: Client, middleware: Any, shown: str
) -> None:
    around = Client(client.pool, schema=client.schema, middleware=[middleware])
    message = RETURNS_INSERT.format(shown)
    with pytest.raises(InvalidSetting, match=message):
        around.enqueue(None, Thing())
    with pytest.raises(InvalidSetting, match=message):
        around.enqueue_many(None, [Thing()])
    with pytest.raises(InvalidSetting, match=message):
        around.enqueue_many(None, [Thing()], returning=False)
    assert client.count().total == 0, "the transaction of the call is rolled back"


def test_middleware_around_one_job_may_not_return_none_of_it(client: Client) -> None:
    dropping = Client(client.pool, schema=client.schema, middleware=[lambda tx, jobs, insert: insert([])])
    with pytest.raises(InvalidSetting, match=r"must return one job, not 0: to refuse a job, raise an exception"):
        dropping.enqueue(None, Thing())
    with client.pool.connection() as tx:
        with pytest.raises(InvalidSetting, match="must return one job"):
            dropping.enqueue(tx, Thing())
        assert tx.execute("SELECT 1").fetchone() == (1,), "the caller's transaction stays usable"


def test_the_same_holds_around_an_asynchronous_insert(client: Client, database: str) -> None:
    async def no_await(tx: Any, jobs: Any, insert: Any) -> Any:
        await insert(jobs)

    async def dropping(tx: Any, jobs: Any, insert: Any) -> Any:
        return await insert([])

    async def main() -> None:
        for middleware, message in (
            (no_await, RETURNS_INSERT.format("None")),
            (dropping, "must return one job, not 0"),
        ):
            around = Client(client.pool, schema=client.schema, middleware=[middleware])
            async with await psycopg.AsyncConnection.connect(database) as conn:
                with pytest.raises(InvalidSetting, match=message):
                    await around.aenqueue(conn, Thing())
                await conn.rollback()

    asyncio.run(main())
    assert client.count().total == 0


@pytest.mark.parametrize("answer", [5, "user 7", ["user", 7], True], ids=repr)
def test_a_context_function_that_returns_no_mapping_is_told_so_before_anything_is_sent(
    client: Client, answer: Any
) -> None:
    """It was stored before, and the handler found no context."""
    with Client("host=/nowhere", context=lambda: answer) as unreachable:
        for call in (lambda: unreachable.enqueue(None, Thing()), lambda: unreachable.enqueue_many(None, [Thing()])):
            with pytest.raises(InvalidOption, match=r"context function .* must return a mapping or None, not "):
                call()


class Answers(ErrorHandler):
    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def handle_error(self, job: Job[Any], error: Exception) -> Any:
        return self._answer

    handle_exit: Any = handle_error


def failing(error: type[BaseException]) -> Callable[[Tx, Job[Any]], None]:
    def handler(tx: Tx, job: Job[Any]) -> None:
        raise error("no")

    return handler


@pytest.mark.parametrize("answer", [Cancel, Snooze(SECOND), True, "cancel"], ids=repr)
@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_the_log_tells_of_an_answer_of_the_error_handler_that_means_nothing(
    client: Client, answer: Any, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    job = client.enqueue(None, Thing())
    pool = WorkerPool(
        client, {Thing: failing(error)}, error_handler=Answers(answer), backoff=constant(timedelta(hours=1))
    )
    assert pool.work_one()
    found = client.get(job.id)
    assert found is not None
    assert (found.state, found.error_count) == ("retryable", 1)
    (line,) = [record for record in caplog.records if record.name == "pgjobs.hooks"]
    assert line.levelname == "ERROR"
    assert f"for job {job.id}, and not Cancel(...), Discard(...) or None: ignored" in line.getMessage()
