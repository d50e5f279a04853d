"""Cancelling a job while it runs: the request stands beside the locked row, and the worker acts on it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from pgjobs import Cancel, Client, Handler, Job, JobState, QueueSettings, WorkerPool, constant
from pgjobs.db.cursors import AnyConnection
from tests.waiting import wait_until

NOTHING: dict[str, Any] = {}


def flag(tx: AnyConnection, job: Job[Any]) -> None:
    while not job.cancelled:
        threading.Event().wait(0.01)
    raise RuntimeError("I was told to end")


def statement(tx: AnyConnection, job: Job[Any]) -> None:
    tx.execute("SELECT pg_sleep(60)")


def loop(tx: AnyConnection, job: Job[Any]) -> None:
    while True:
        sum(range(1000))


@pytest.mark.conformance(200, 199)
@pytest.mark.parametrize("listen", [True, False], ids=["listening", "polling"])
@pytest.mark.parametrize("resist", [flag, statement, loop])
def test_a_running_job_that_is_cancelled_ends_cancelled_and_what_it_wrote_is_gone(
    client: Client, resist: Callable[[AnyConnection, Job[Any]], None], listen: bool
) -> None:
    started = threading.Event()

    def handler(tx: AnyConnection, job: Job[Any]) -> None:
        client.enqueue(tx, NOTHING, kind="effect", queue="nobody")
        started.set()
        resist(tx, job)

    job = client.enqueue(None, NOTHING, kind="slow")
    with WorkerPool(client, {"slow": handler}, timeout=None, listen=listen, backoff=constant(timedelta(hours=1))):
        assert started.wait(10)
        answer = client.cancel(job.id, reason="not needed")
        assert answer.state == JobState.RUNNING
        assert "cancel_attempted_at" in answer.metadata

        def ended() -> bool:
            found = client.get(job.id)
            return found is not None and found.state == JobState.CANCELLED

        wait_until(ended)
    found = client.get(job.id)
    assert found is not None
    assert found.finalized_at is not None
    assert [(error.attempt, error.error) for error in found.errors] == [(1, "cancelled remotely: not needed")]
    assert client.get(job.id + 1) is None
    with client.pool.connection() as conn:
        left = conn.execute(f"SELECT count(*) FROM {client.schema}.cancel_request").fetchone()
    assert left == (0,)


@pytest.mark.finding("W17")
@pytest.mark.conformance(200)
@pytest.mark.parametrize("way", ["alone", "batch", "detached", "detached, in a transaction"])
@pytest.mark.parametrize("keeps", [False, True])
def test_a_handler_that_returns_all_the_same_has_completed_its_job_and_the_reason_is_kept(
    client: Client, way: str, *, keeps: bool
) -> None:
    """Nothing on the job told that anybody had wanted it cancelled."""
    started = threading.Event()

    def handler(tx: AnyConnection | None, job: Job[Any]) -> None:
        if keeps:
            job.set_metadata(rows=3)
        if tx is not None:
            tx.execute("SELECT 1")  # before the cancel, which would cancel it
        started.set()
        while not job.cancelled:
            threading.Event().wait(0.01)
        if way.endswith("transaction"):
            with client.pool.connection() as own:
                kept.append(job.complete(own))

    kept: list[Job[Any]] = []
    job = client.enqueue(None, NOTHING, kind="slow")
    queues = {"default": QueueSettings(1, batch_size=5 if way == "batch" else 1)}
    work_map = {"slow": Handler(handler, detached=way.startswith("detached"))}
    with WorkerPool(client, work_map, queues=queues, timeout=None):
        assert started.wait(10)
        asked = client.cancel(job.id, reason="not needed")
        wait_until(lambda: (seen := client.get(job.id)) is not None and seen.state.final)
    found = client.get(job.id)
    assert found is not None
    assert (found.state, found.errors) == (JobState.COMPLETED, ())
    expected = {"cancel_reason": "not needed", "cancel_attempted_at": asked.metadata["cancel_attempted_at"]}
    assert found.metadata == expected | ({"rows": 3} if keeps else {})
    with client.pool.connection() as conn:
        left = conn.execute(f"SELECT count(*) FROM {client.schema}.cancel_request").fetchone()
    assert left == (0,)


def test_a_handler_that_is_to_end_may_say_that_it_obeys(client: Client) -> None:
    """As the guide shows it: what it wrote is gone."""
    started = threading.Event()

    def handler(tx: AnyConnection, job: Job[Any]) -> None:
        client.enqueue(tx, NOTHING, kind="effect", queue="nobody")
        started.set()
        while not job.cancelled:
            threading.Event().wait(0.01)
        raise Cancel("as I was told")

    job = client.enqueue(None, NOTHING, kind="slow")
    with WorkerPool(client, {"slow": handler}, timeout=None):
        assert started.wait(10)
        client.cancel(job.id, reason="not needed")
        wait_until(lambda: (seen := client.get(job.id)) is not None and seen.state == JobState.CANCELLED)
    found = client.get(job.id)
    assert found is not None
    assert found.metadata["cancel_reason"] == "not needed"
    assert client.get(job.id + 1) is None
