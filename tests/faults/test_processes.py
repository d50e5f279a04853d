"""Worker processes that die or hang at every point of an attempt."""

from __future__ import annotations

import time

import psycopg
import pytest

from pgjobs import JobState
from tests.faults.ledger import Ledger
from tests.faults.workers import Nursery, Worker
from tests.waiting import wait_until
from tests.waking import LISTENS, armed

_COMMITS = 4711  # the lock that a held COMMIT waits for


@pytest.mark.conformance(318)
def test_f1_a_worker_killed_at_any_point_of_an_attempt_loses_and_doubles_nothing(
    ledger: Ledger, nursery: Nursery
) -> None:
    """Six workers, each with a job of its own, all killed at the same moment."""
    points = ["after_claim", "after_handler", "after_commit"]
    jobs = {point: ledger.enqueue(queue=point) for point in points}
    dying = [nursery.start(dsn=ledger.dsn, queues={point: 1}, stop_at=point) for point in points]
    in_handler = {"in_python": "sleep 60", "in_sql": "sql 60", "before_commit": "return"}
    for queue, first in in_handler.items():
        jobs[queue] = ledger.enqueue(first=first, queue=queue)
    ledger.hold_commit(jobs["before_commit"], _COMMITS)
    with ledger.locked(_COMMITS):
        dying += [nursery.start(dsn=ledger.dsn, queues={queue: 1}) for queue in in_handler]
        for worker in dying[:3]:
            worker.wait_stopped()
        for queue in in_handler:
            ledger.wait_started(jobs[queue])
        wait_until(lambda: ledger.waiting(_COMMITS) == 1)
        for worker in dying:
            worker.kill()
        killed = time.monotonic()
        wait_until(lambda: ledger.waiting(_COMMITS) == 0)  # the server has noticed that nobody waits for this COMMIT
    nursery.start(dsn=ledger.dsn, queues=dict.fromkeys(jobs, 1))
    ledger.wait_drained(timeout=40)
    assert time.monotonic() - killed < 30, "half of the timeout that none of them is waited for"
    ledger.check()
    effects = {point: ledger.effects(job) for point, job in jobs.items()}
    assert effects == {point: [2] for point in jobs} | {"after_commit": [1]}
    assert ledger.starts(jobs["after_claim"]) == [2], "killed before the handler was called"
    for point, job in jobs.items():
        errors = [error.error.split(":")[0] for error in ledger.job(job).errors]
        assert errors == ([] if point == "after_commit" else ["worker vanished"])


def _keep_alive(nursery: Nursery, ledger: Ledger, queue: str) -> list[Worker]:
    """Workers for the queue, one after the other, until its jobs are done; all that were needed."""
    workers = [nursery.start(dsn=ledger.dsn, queues={queue: 1})]

    def done() -> bool:
        if not workers[-1].alive:
            workers.append(nursery.start(dsn=ledger.dsn, queues={queue: 1}))
        query = "SELECT count(*) FROM {schema}.job WHERE queue = %s AND finalized_at IS NULL"
        return bool(ledger.sql(query, queue)[0][0] == 0)

    wait_until(done, timeout=60)
    return workers


@pytest.mark.slow
@pytest.mark.conformance(318)
@pytest.mark.parametrize("poison", ["abort", "segfault", "exit"])
def test_f3_poison_kills_as_many_processes_as_it_has_attempts_and_no_more(
    ledger: Ledger, nursery: Nursery, poison: str
) -> None:
    job = ledger.enqueue(poison, max_attempts=2, queue="poison")
    nursery.start(dsn=ledger.dsn, queues={"default": 2})
    neighbours = [ledger.enqueue("sleep 0.01") for _ in range(20)]
    workers = _keep_alive(nursery, ledger, "poison")
    ledger.wait_drained()
    ledger.check()
    assert len(workers) == 3, "the third is not asked to die"
    assert ledger.job(job).state == JobState.DISCARDED
    assert len(ledger.starts(job)) == 2
    assert ledger.effects(job) == []
    waits = ledger.sql(
        "SELECT max(at - due) < '5 s' FROM {schema}.start WHERE job = ANY (%s)", [j.id for j in neighbours]
    )
    assert waits == [(True,)]


@pytest.mark.parametrize("how", ["fork", "child"])
def test_f6_a_handler_may_fork_and_its_children_write_nothing_into_the_job(
    ledger: Ledger, nursery: Nursery, how: str
) -> None:
    """Also one that comes back out of the handler, as a child does that ends with sys.exit()."""
    jobs = [ledger.enqueue(how), ledger.enqueue(), ledger.enqueue(how), ledger.enqueue()]
    worker = nursery.start(dsn=ledger.dsn)
    ledger.wait_drained()
    ledger.check()
    assert worker.alive
    assert [ledger.job(job).state for job in jobs] == [JobState.COMPLETED] * 4
    assert [ledger.starts(job) for job in jobs] == [[1]] * 4


@pytest.mark.slow
def test_f5_what_a_process_that_hangs_whole_held_is_run_by_another(ledger: Ledger, nursery: Nursery) -> None:
    """Stopped in its handler, it cannot end the transaction itself, so the server does, when the job's time is over.
    Continued later it finds that its attempt is no longer its own."""
    job = ledger.enqueue(first="freeze")
    hanging = nursery.start(dsn=ledger.dsn, timeout=1)
    hanging.wait_stopped()
    nursery.start(dsn=ledger.dsn, timeout=1)
    ledger.wait_drained(timeout=40)
    assert ledger.effects(job) == [2]
    hanging.resume()
    after = ledger.enqueue(queue="after")
    nursery.start(dsn=ledger.dsn, queues={"after": 1})
    ledger.wait_drained()
    ledger.check()
    assert ledger.effects(job) == [2], "what it had written is gone"
    assert ledger.effects(after) == [1]
    wait_until(lambda: "job 1" in hanging.log)


@pytest.mark.slow
def test_f5_a_call_that_keeps_the_interpreter_to_itself_delays_nobody_else(ledger: Ledger, nursery: Nursery) -> None:
    job = ledger.enqueue(first="hog 60")
    hanging = nursery.start(dsn=ledger.dsn, timeout=1)
    ledger.wait_started(job)
    nursery.start(dsn=ledger.dsn, timeout=1)
    others = [ledger.enqueue() for _ in range(10)]
    wait_until(lambda: all(ledger.job(other).state == JobState.COMPLETED for other in others), timeout=5)
    ledger.wait_drained(timeout=40)
    assert ledger.effects(job) == [2]
    hanging.kill()
    ledger.check()


def test_when_the_process_that_is_called_first_is_killed_another_one_takes_over_at_its_next_poll(
    ledger: Ledger, nursery: Nursery
) -> None:
    poll = 6
    listeners = f"SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgjobs' AND {LISTENS}"
    with psycopg.connect(ledger.dsn, autocommit=True) as conn:
        first = nursery.start(dsn=ledger.dsn, poll=poll)
        wait_until(lambda: armed(conn, ledger.client) == ["default"])
        for _ in range(2):
            nursery.start(dsn=ledger.dsn, poll=poll)
        wait_until(lambda: ledger.sql(listeners) == [(3,)])
        first.kill()
        job = ledger.enqueue()
        wait_until(lambda: ledger.effects(job) == [1], timeout=poll + 10)
        wait_until(lambda: armed(conn, ledger.client) == ["default"])
        began = time.monotonic()
        for _ in range(10):
            job = ledger.enqueue()
            wait_until(lambda job=job: ledger.effects(job) == [1])  # type: ignore[misc]
        assert time.monotonic() - began < 15, "by polling alone it would be 30 s or so"
    ledger.wait_drained()
    ledger.check()
