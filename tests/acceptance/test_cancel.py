"""Cancelling a job while it runs: the request stands beside the locked row, and the worker acts on it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from pgjobs import Client, Job, JobState, WorkerPool, constant
from tests.waiting import wait_until

AnyConnection = psycopg.Connection[Any]
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


@pytest.mark.conformance(200)
def test_a_handler_that_returns_all_the_same_has_completed_its_job(client: Client) -> None:
    started = threading.Event()

    def handler(tx: AnyConnection, job: Job[Any]) -> None:
        started.set()
        while not job.cancelled:
            threading.Event().wait(0.01)

    job = client.enqueue(None, NOTHING, kind="slow")
    with WorkerPool(client, {"slow": handler}, timeout=None):
        assert started.wait(10)
        client.cancel(job.id)
    found = client.get(job.id)
    assert found is not None
    assert found.state == JobState.COMPLETED
