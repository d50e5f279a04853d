"""A handler that gives back work which nobody has done has failed, and so has one that returns what it was to raise."""

from __future__ import annotations

import asyncio
import functools
import gc
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from pgjobs import (
    Cancel,
    Client,
    Discard,
    Handler,
    Job,
    JobState,
    QueueSettings,
    RetryAfter,
    Snooze,
    WorkerPool,
    constant,
)
from tests.samples import HOUR, Tx
from tests.waiting import wait_until


async def coroutine(tx: Any, job: Any) -> None:
    raise AssertionError("it is not to run")


def generator(tx: Any, job: Any) -> Iterator[int]:
    yield 1


async def async_generator(tx: Any, job: Any) -> Any:
    yield 1


def decorated(function: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    def plain(tx: Any, job: Any) -> Any:
        return function(tx, job)

    return plain


class Awaitable:
    def __await__(self) -> Iterator[None]:
        yield


class Callable_:
    def __call__(self, tx: Any, job: Any) -> Any:
        return coroutine(tx, job)


def begun(tx: Any, job: Any) -> Any:
    made = generator(tx, job)
    next(made)
    return made


def of_a_loop(tx: Any, job: Any) -> Any:
    loop = asyncio.new_event_loop()
    try:
        return loop.create_future()
    finally:
        loop.close()


HANDLERS: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "a decorated async def": (decorated(coroutine), "never ran"),
    "a lambda": (lambda tx, job: coroutine(None, job), "never ran"),
    "a partial of one that is decorated": (functools.partial(decorated(coroutine)), "never ran"),
    "an object": (Callable_(), "never ran"),
    "a generator": (decorated(generator), "never ran"),
    "a generator expression": (lambda tx, job: (each for each in [tx]), "never ran"),
    "a generator that was begun": (begun, "generator"),
    "an async generator": (decorated(async_generator), "never ran"),
    "a map": (lambda tx, job: map(print, ["never printed"]), "never ran"),
    "an awaitable": (lambda tx, job: Awaitable(), "never ran"),
    "a future of a loop": (of_a_loop, "never ran"),
    "a future of a pool": (lambda tx, job: Future(), "result()"),
    "a Cancel": (lambda tx, job: Cancel("unwanted"), "raise Cancel(...)"),
    "a Discard": (lambda tx, job: Discard(), "raise Discard(...)"),
    "a Snooze": (lambda tx, job: Snooze(HOUR), "raise Snooze(...)"),
    "a RetryAfter": (lambda tx, job: RetryAfter(HOUR), "raise RetryAfter(...)"),
    "a class of signals": (lambda tx, job: Cancel, "raise Cancel(...)"),
    "an error": (lambda tx, job: ValueError("of the handler"), "raise ValueError(...)"),
    "an exit": (lambda tx, job: SystemExit(1), "raise SystemExit(...)"),
}


def run(client: Client, handler: Any, *, batch_size: int = 1) -> Job[Any]:
    """The job when its first attempt is over; no warning of what was never awaited is left behind."""
    job: Job[Any] = client.enqueue(None, {}, kind="any")

    def found() -> Job[Any]:
        read = client.get(job.id)
        assert read is not None
        return read

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        queues = {"default": QueueSettings(1, batch_size=batch_size)}
        with WorkerPool(client, {"any": handler}, queues=queues, backoff=constant(HOUR)):
            wait_until(lambda: found().state not in (JobState.AVAILABLE, JobState.RUNNING), 20)
        gc.collect()
    assert [str(each.message) for each in warned if "never awaited" in str(each.message)] == []
    return found()


@pytest.mark.finding("W7")
@pytest.mark.parametrize("way", ["alone", "batch", "detached", "middleware"])
@pytest.mark.parametrize("name", HANDLERS)
def test_work_that_was_not_done_is_a_failed_attempt_that_says_what_to_write(
    client: Client, name: str, way: str
) -> None:
    """It was completed."""
    function, says = HANDLERS[name]

    def middleware(tx: Any, job: Any, call: Callable[[], Any]) -> None:
        call()

    handler = Handler(function, detached=way == "detached", middleware=[middleware] * (way == "middleware"))
    job = run(client, handler, batch_size=5 if way == "batch" else 1)
    assert (job.state, job.attempt) == (JobState.RETRYABLE, 1)
    assert says in (job.last_error or "")
    assert " returned " in (job.last_error or "")


@pytest.mark.finding("W7")
def test_its_writes_are_gone(client: Client) -> None:
    """They were committed, as those of a job that is completed."""

    def handler(tx: Tx, job: Job[Any]) -> Any:
        client.enqueue(tx, {}, kind="effect", queue="other")
        return Cancel("unwanted")

    assert run(client, handler).state is JobState.RETRYABLE
    assert client.count().by_queue.get("other") is None


@pytest.mark.finding("W7")
def test_middleware_that_gives_a_coroutine_has_not_run_the_handler(client: Client) -> None:
    """The handler was never called, and its job completed."""
    called: list[int] = []

    async def middleware(tx: Any, job: Any, call: Callable[[], Any]) -> None:
        call()

    handler: Any = Handler(lambda tx, job: called.append(job.id), middleware=[middleware])
    job = run(client, handler)
    assert (job.state, called) == (JobState.RETRYABLE, [])
    assert "middleware returned a coroutine" in (job.last_error or "")


@pytest.mark.parametrize("way", ["alone", "batch"])
@pytest.mark.parametrize(
    "answer", [None, 0, "done", {"sent": 3}, [], range(3), int, iter([1]), print], ids=lambda answer: repr(answer)[:12]
)
def test_any_other_answer_is_ignored(client: Client, answer: object, way: str) -> None:
    job = run(client, lambda tx, job: answer, batch_size=5 if way == "batch" else 1)
    assert (job.state, job.errors) == (JobState.COMPLETED, ())


def test_a_handler_may_return_its_cursor(client: Client) -> None:
    assert run(client, lambda tx, job: tx.execute("SELECT 1")).state is JobState.COMPLETED
