"""Workers and servers that die in the middle of batches."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from pgjobs import Client, Job, JobState, WorkerPool, constant
from pgjobs.embedded import EmbeddedPostgres
from tests import inside
from tests.faults.ledger import Ledger
from tests.faults.test_server import load, wait_for_more
from tests.faults.workers import Nursery
from tests.waiting import wait_until

_BATCH = 20


def started(ledger: Ledger) -> int:
    return int(ledger.sql("SELECT count(*) FROM {schema}.start")[0][0])


def test_workers_killed_in_the_middle_of_batches_lose_and_double_nothing(ledger: Ledger, nursery: Nursery) -> None:
    """Ten of them, each in a batch of which some jobs are done and some are not started."""
    in_the_middle = 0
    for number in range(10):
        queue = f"queue-{number}"
        for _ in range(_BATCH):
            ledger.enqueue("sleep 0.02", queue=queue)
        before = started(ledger)
        worker = nursery.start(dsn=ledger.dsn, queues={queue: 1}, batch_size=_BATCH)
        wait_until(lambda before=before: started(ledger) >= before + 3)  # type: ignore[misc]
        worker.kill()
        in_the_middle += started(ledger) < before + _BATCH
    assert in_the_middle, "no worker was killed in the middle"
    nursery.start(dsn=ledger.dsn, queues={f"queue-{number}": 1 for number in range(10)}, batch_size=_BATCH)
    ledger.wait_drained(60)
    ledger.check()
    states = ledger.sql("SELECT state, count(*) FROM {schema}.job GROUP BY state")
    assert states == [("completed", 10 * _BATCH)]


def test_poison_in_a_batch_costs_its_neighbours_nothing(ledger: Ledger, nursery: Nursery) -> None:
    """Nobody can tell which of them it was, so all their attempts are given back; then each runs alone."""
    others = [ledger.enqueue("return", max_attempts=2) for _ in range(5)]
    poison = ledger.enqueue("exit", max_attempts=2)
    others += [ledger.enqueue("return", max_attempts=2) for _ in range(5)]
    workers = [nursery.start(dsn=ledger.dsn, batch_size=_BATCH)]

    def drained() -> bool:
        if not workers[-1].alive:
            workers.append(nursery.start(dsn=ledger.dsn, batch_size=_BATCH))
        return ledger.unfinished() == 0

    wait_until(drained, 60)
    ledger.check()
    assert [ledger.job(job).state for job in others] == [JobState.COMPLETED] * 10
    found = ledger.job(poison)
    assert (found.state, found.attempt) == (JobState.DISCARDED, 2)
    assert len(ledger.starts(poison)) == 2 + len(found.metadata["excused"])
    assert len(workers) == len(ledger.starts(poison)) + 1, "the last one is not asked to die"


def test_a_server_that_crashes_under_batches_loses_and_doubles_nothing(
    fault_server: EmbeddedPostgres, ledger: Ledger, nursery: Nursery
) -> None:
    worker = nursery.start(dsn=ledger.dsn, queues={"default": 2}, batch_size=_BATCH)
    with load(ledger, "sleep 0.01", pause=0.0):
        wait_for_more(ledger, 30)
        for _ in range(2):
            fault_server.restart("immediate")
            wait_for_more(ledger, 30, timeout=30)
    assert worker.alive
    ledger.wait_drained(60)
    ledger.check()


def test_a_batch_whose_number_another_transaction_has_after_a_crash_is_not_completed() -> None:
    """Nothing of the batch had reached the disk, so that the server knows nothing of it: not even that its number is
    used."""
    settings = {"wal_writer_delay": "10s", "autovacuum": "off"}
    with EmbeddedPostgres(fsync=True, settings=settings) as server, Client(server.dsn) as client:
        client.migrate()
        with client.pool.connection() as conn:
            conn.execute("CREATE TABLE effect (job bigint)")
        jobs = [client.enqueue(None, {"number": number}, kind="any") for number in range(4)]

        def handler(tx: psycopg.Connection[Any], job: Job[Any]) -> None:
            tx.execute("INSERT INTO effect VALUES (%s)", [job.id])
            if job.args["number"] == 2:
                server.restart("immediate")
                with psycopg.connect(server.dsn, autocommit=True) as other:
                    for _ in range(20):
                        other.execute("SELECT pg_current_xact_id()")

        pool = WorkerPool(client, {"any": handler}, batch_size=10, backoff=constant(timedelta(0)))
        with suppress(psycopg.Error):
            inside.work_one_batch(pool, 10)
        with client.pool.connection() as conn:
            effects = {job for (job,) in conn.execute("SELECT job FROM effect")}
        found = [client.get(job.id) for job in jobs]
        assert effects == set()
        assert [(job.state.value, job.attempt) for job in found if job] == [("available", 1)] * 4


@pytest.mark.slow
def test_a_process_that_hangs_whole_in_a_batch_is_ended_by_the_server(ledger: Ledger, nursery: Nursery) -> None:
    """When the time of the batch and of the job is over."""
    jobs = [ledger.enqueue(first="return"), ledger.enqueue(first="freeze"), ledger.enqueue(first="return")]
    hanging = nursery.start(dsn=ledger.dsn, timeout=1, batch_size=_BATCH)
    hanging.wait_stopped()
    nursery.start(dsn=ledger.dsn, timeout=1, batch_size=_BATCH)
    ledger.wait_drained(timeout=40)
    hanging.resume()
    after = ledger.enqueue(queue="after")
    nursery.start(dsn=ledger.dsn, queues={"after": 1})
    ledger.wait_drained()
    wait_until(lambda: ledger.sql("SELECT count(*) FROM {schema}.start")[0][0] >= 6)
    ledger.check()
    assert all(len(ledger.effects(job)) == 1 for job in [*jobs, after])
