"""MemoryClient, InlineClient, NoopClient, and jobs made by hand: without a database."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from pgjobs import (
    Client,
    EncodedJob,
    Handler,
    Hooks,
    InvalidArgs,
    InvalidOption,
    InvalidSetting,
    Job,
    JobState,
    NewJob,
    NoJobs,
    NotRunning,
    Snooze,
    UnknownKind,
    current_job,
)
from pgjobs.testing import InlineClient, MemoryClient, NoopClient, make_job
from tests.samples import HOUR, Thing, nothing

# --- MemoryClient


def test_a_memory_client_is_a_client_that_checks_and_keeps() -> None:
    client: Client = MemoryClient(queue="mail")
    job = client.enqueue(object(), Thing(1), delay=HOUR)  # type: ignore[call-overload]
    assert (job.id, job.queue, job.state, job.args, job.kind) == (1, "mail", JobState.SCHEDULED, Thing(1), "thing")
    assert job.scheduled_at - job.created_at == HOUR
    assert [each.id for each in client.enqueue_many(None, [Thing(2), NewJob(Thing(3), pending=True)])] == [2, 3]
    assert client.enqueue_many(None, (Thing(n) for n in (4, 5)), returning=False) == 2
    assert isinstance(client, MemoryClient)
    assert [each.args for each in client.enqueued.all_enqueued()] == [Thing(n) for n in range(1, 6)]
    assert repr(client) == "MemoryClient(5 jobs)"
    client.close()


def test_a_memory_client_refuses_what_a_client_refuses() -> None:
    client = MemoryClient(work_map={Thing: nothing}, max_args_bytes=20)
    with pytest.raises(UnknownKind):
        client.enqueue(None, {}, kind="other")
    with pytest.raises(InvalidArgs):
        client.enqueue(None, Thing(10**30))
    with pytest.raises(InvalidOption):
        client.enqueue(None, Thing(), priority=10**6)
    with pytest.raises(NoJobs):
        client.enqueue_many(None, [])
    assert client.enqueued.empty()


def test_a_memory_client_has_no_database() -> None:
    client = MemoryClient()
    for act in (lambda: client.get(1), client.migrate, client.list_jobs, lambda: client.pool):
        with pytest.raises(InvalidSetting, match="has no database: it can enqueue, and nothing else"):
            act()


def test_hooks_and_middleware_of_a_memory_client_are_called() -> None:
    seen: list[object] = []

    class Seen(Hooks):
        def on_enqueue(self, job: Job[Any]) -> None:
            seen.append(job.id)

    def double(tx: Any, jobs: Sequence[EncodedJob], insert: Any) -> Any:
        seen.append(tx)
        return insert([replace(job, queue="mail") for job in jobs])

    client = MemoryClient(hooks=[Seen()], middleware=[double])
    client.enqueue(None, Thing())
    assert seen == [None, 1]
    client.enqueued.assert_enqueued(Thing, queue="mail")


@pytest.mark.parametrize(
    ("middleware", "message"),
    [
        (lambda tx, jobs, insert: None, r"not None: end it with return insert\(jobs\)"),
        (lambda tx, jobs, insert: insert([]), "must return one job, not 0"),
        (lambda tx, jobs, insert: insert([*jobs, *jobs]), "must return one job, not 2"),
    ],
    ids=["nothing", "no job", "two jobs"],
)
def test_middleware_that_a_client_would_refuse_is_refused_in_memory_too(middleware: Any, message: str) -> None:
    client = MemoryClient(middleware=[middleware])
    tx: Any = object()
    with pytest.raises(InvalidSetting, match=message):
        client.enqueue(None, Thing())
    with pytest.raises(InvalidSetting, match=message):
        asyncio.run(client.aenqueue(tx, Thing()))
    client.enqueued.assert_not_enqueued(Thing)


async def around(tx: Any, jobs: Sequence[EncodedJob], insert: Any) -> Any:
    return await insert([replace(job, queue="mail") for job in jobs])


def test_asynchronous_code_enqueues_in_memory() -> None:
    async def enqueue(client: MemoryClient) -> None:
        tx: Any = object()
        assert (await client.aenqueue(tx, Thing(1), priority=2)).args == Thing(1)
        assert [job.id for job in await client.aenqueue_many(tx, [Thing(2)])] == [2]
        assert await client.aenqueue_many(tx, [Thing(3)], returning=False) == 1

    client = MemoryClient()
    asyncio.run(enqueue(client))
    client.enqueued.assert_many_enqueued([NewJob(Thing(1), priority=2), Thing(2), Thing(3)])
    other = MemoryClient(middleware=[around])
    asyncio.run(enqueue(other))
    assert {job.queue for job in other.enqueued.all_enqueued()} == {"mail"}
    with pytest.raises(InvalidSetting, match="around is async"):
        other.enqueue(None, Thing())
    seen: list[int] = []
    inline = InlineClient(work_map={Thing: lambda tx, job: seen.append(job.args.n)})
    asyncio.run(enqueue(inline))
    assert seen == [1, 2, 3]


# --- InlineClient and NoopClient


def test_an_inline_client_calls_the_handler_with_the_callers_tx() -> None:
    seen: list[tuple[object, object, int]] = []

    def handler(tx: Any, job: Job[Thing]) -> None:
        seen.append((tx, job.args, job.attempt))
        if job.args.n == 1:
            client.enqueue(tx, Thing(2))

    client = InlineClient(work_map={Thing: handler, "apart": Handler(handler_of_dict, detached=True)})
    tx: Any = object()
    job = client.enqueue(tx, Thing(1), delay=HOUR)
    assert job.state is JobState.SCHEDULED
    assert seen == [(tx, Thing(1), 1), (tx, Thing(2), 1)]
    client.enqueue(tx, {"seen": None}, kind="apart")
    assert client.enqueued.total(3)


def handler_of_dict(tx: Any, job: Job[dict[str, Any]]) -> None:
    assert tx is None
    assert job.args == {"seen": None}


def test_what_the_handler_of_an_inline_client_raises_is_raised() -> None:
    def fails(tx: Any, job: Job[Thing]) -> None:
        raise Snooze(HOUR) if job.args.n else KeyError("n")

    client = InlineClient(work_map={Thing: fails})
    with pytest.raises(KeyError):
        client.enqueue(None, Thing())
    with pytest.raises(Snooze):
        client.enqueue(None, Thing(1))
    with pytest.raises(UnknownKind):
        client.enqueue(None, {}, kind="other")


def test_middleware_of_the_handler_wraps_it_inline() -> None:
    seen: list[str] = []

    def around(tx: Any, job: Job[Any], run: Any) -> None:
        seen.append("before")
        run()
        seen.append("after")

    def handler(tx: Any, job: Job[Any]) -> None:
        seen.append("handler")

    InlineClient(work_map={Thing: Handler(handler, middleware=[around])}).enqueue(None, Thing())
    assert seen == ["before", "handler", "after"]


def test_a_noop_client_checks_and_forgets() -> None:
    client = NoopClient()
    assert client.enqueue(None, Thing(5)).args == Thing(5)
    assert client.enqueue_many(None, [Thing(), Thing()], returning=False) == 2
    with pytest.raises(InvalidOption):
        client.enqueue(None, Thing(), queue="")
    assert client.enqueued.empty()
    assert client.enqueued.get_first() is None


# --- make_job


def test_a_made_job_runs_and_reads_back_what_its_handler_records() -> None:
    def handler(tx: Any, job: Job[Thing]) -> None:
        assert not job.cancelled
        job.set_metadata(a=1)
        job.set_metadata({"b": (1, 2)})
        job.record_output({"n": job.args.n + job.attempt})
        job.set_progress(3, total=4, note="almost")

    job = make_job(Thing(5), attempt=2, queue="mail", metadata={"old": True})
    handler(None, job)
    assert (job.kind, job.queue, job.attempt, job.state) == ("thing", "mail", 2, JobState.RUNNING)
    assert job.metadata["old"] is True
    assert "a" not in job.metadata, "a job is as it was when it was read"
    assert job.recorded.metadata == {"a": 1, "b": [1, 2]}
    assert job.recorded.output == {"n": 7}
    assert job.recorded.progress == (3.0, 4.0, "almost")
    assert job.recorded.completed_on is None


def test_a_made_job_can_be_cancelled_and_has_the_deadline_it_was_given() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    job = make_job(Thing(), cancelled=True, deadline=at)
    assert (job.cancelled, job.deadline) == (True, at)
    assert (make_job(Thing()).cancelled, make_job(Thing()).deadline) == (False, None)


def test_a_made_job_completes_on_the_tx_that_it_is_given() -> None:
    job, tx = make_job({"a": 1}, kind="report", id=7), object()
    completed = job.complete(tx)
    assert (completed.id, completed.state, job.recorded.completed_on) == (7, JobState.COMPLETED, tx)
    with pytest.raises(NotRunning):
        completed.set_metadata(a=1)


def test_args_of_a_made_job_have_been_through_json() -> None:
    args: dict[str, Any] = {"pair": (1, 2)}
    assert make_job(args, kind="report").args == {"pair": [1, 2]}
    assert make_job(NewJob(Thing(3), priority=4)).priority == 4
    assert make_job(Thing(3)).args == Thing(3)


def test_what_a_running_job_refuses_a_made_job_refuses() -> None:
    job = make_job(Thing())
    for act in (
        lambda: job.set_metadata(a=object()),
        lambda: job.record_output({1, 2}),
        lambda: job.set_progress(-1),
        lambda: make_job(Thing(), attempt=0),
        lambda: make_job(Thing(), attempt=4, max_attempts=3),
        lambda: make_job(Thing(), priority=10**6),
    ):
        with pytest.raises(InvalidOption):
            act()
    assert current_job() is None
