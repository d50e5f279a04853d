"""Workers and servers that die in the middle of batches."""

from __future__ import annotations

import pytest

from pgjobs import JobState
from pgjobs.embedded import EmbeddedPostgres
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
    assert len(ledger.starts(poison)) == 2 + len(found.metadata["given_back"])
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
