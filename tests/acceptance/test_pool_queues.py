"""The queues of a pool are picked before its start, and whether they are empty can be asked."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from pgjobs import Client, InvalidOption, InvalidSetting, JobState, QueueSettings, WorkerPool, WorkerPoolError
from tests.acceptance.work_command import gate
from tests.conftest import Connect
from tests.samples import HOUR, Thing, nothing
from tests.waiting import wait_until


def make(client: Client, **options: Any) -> WorkerPool:
    queues: dict[str, int | QueueSettings] = {
        "default": 3,
        "mail": QueueSettings(2, batch_size=7, durability="relaxed"),
        "logs": 1,
    }
    return WorkerPool(client, {Thing: nothing}, queues=queues, **options)


def test_selected_queues_have_new_threads_and_their_other_settings(client: Client) -> None:
    pool = make(client)
    before = pool._context.queue_workers["mail"].settings
    pool.select_queues({"mail": 5, "logs": None})
    workers = pool._context.queue_workers
    assert {queue: each.threads for queue, each in workers.items()} == {"mail": 5, "logs": 1}
    assert workers["mail"].settings == before
    assert pool.threads == 6
    elsewhere, mail = client.enqueue(None, Thing()), client.enqueue(None, Thing(), queue="mail")
    with pool:
        assert client.wait(mail.id, timeout=timedelta(seconds=20)).state is JobState.COMPLETED
        assert client.workers()[0].queues == {"mail": 5, "logs": 1}
        with pytest.raises(WorkerPoolError, match=r"runs: select its queues before start\(\)"):
            pool.select_queues({"mail": 1})
    found = client.get(elsewhere.id)
    assert found is not None
    assert found.state is JobState.AVAILABLE


def test_an_unknown_queue_is_refused_and_nothing_changes(client: Client) -> None:
    pool = make(client)
    with pytest.raises(WorkerPoolError, match=r"worker pool 'pgjobs' has no queue 'mial'; it has default, logs, mail"):
        pool.select_queues({"default": 1, "mial": 1})
    assert pool.threads == 6


@pytest.mark.parametrize("threads", [{}, None, [("mail", 1)], {"mail": 0}, {"mail": "2"}, {"mail": True}], ids=repr)
def test_wrong_threads_are_refused(client: Client, threads: Any) -> None:
    pool = make(client)
    with pytest.raises(InvalidSetting):
        pool.select_queues(threads)
    with pytest.raises(InvalidOption):
        pool.select_queues({"no name": 1})
    assert pool.threads == 6


def test_a_pool_is_drained_when_nothing_runs_and_nothing_can(client: Client, connect: Connect) -> None:
    pool = make(client)
    assert pool.drained()
    job = client.enqueue(None, Thing(), queue="mail")
    assert not pool.drained()
    client.queues.pause("mail")
    assert pool.drained(), "nothing of a paused queue can run"
    client.queues.resume("mail")
    client.cancel(job.id)
    assert pool.drained()
    client.enqueue(None, Thing(), queue="mail", delay=HOUR)
    client.enqueue(None, Thing(), queue="elsewhere")
    assert pool.drained()
    conn = connect(autocommit=True)
    conn.execute(f"UPDATE {client.schema}.job SET scheduled_at = now() WHERE state = 'scheduled'")
    assert not pool.drained(), "a job that is due, though nothing has made it available"


def test_a_pool_is_not_drained_while_a_job_runs_elsewhere(client: Client, connect: Connect) -> None:
    def wait(tx: Any, job: Any) -> None:
        tx.execute("SELECT pg_advisory_xact_lock_shared(%s)", [locked])

    with gate(connect) as (locked, open_gate), WorkerPool(client, {"wait": wait}):
        client.enqueue(None, {}, kind="wait")
        pool = make(client)
        wait_until(lambda: client.queues.stats()["default"].running == 1)
        assert not pool.drained()
        open_gate()
        wait_until(pool.drained)


def test_kinds_that_are_left_to_others_do_not_count(client: Client) -> None:
    client.enqueue(None, {}, kind="other")
    assert make(client, unknown_kinds="leave").drained()
    assert not make(client).drained()
