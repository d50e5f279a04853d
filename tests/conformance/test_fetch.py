"""Which job is next, and that each one runs once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal

import pytest

from pgjobs import Client, Job, JobState, NewJob, WorkerPool
from pgjobs.maintenance.duties import Maintenance
from tests.conformance.conftest import Rows, Stored
from tests.conftest import Connect
from tests.samples import SECOND, Thing, Tx
from tests.waiting import wait_until

Order = Literal["priority", "scheduled_at"]


class Ran:
    """A handler that notes what ran, in the order in which it ran."""

    def __init__(self) -> None:
        self.jobs: list[Job[Any]] = []

    def __call__(self, tx: Tx, job: Job[Any]) -> None:
        self.jobs.append(job)

    @property
    def numbers(self) -> list[int]:
        return [job.args.n for job in self.jobs]


@pytest.fixture
def ran() -> Ran:
    return Ran()


def work_all(pool: WorkerPool, queue: str = "default") -> None:
    while pool.work_one(queue):
        pass


@pytest.mark.conformance(49)
def test_a_job_of_the_future_is_not_taken_though_its_state_says_available(client: Client, ran: Ran, sql: Rows) -> None:
    client.enqueue(None, Thing())
    sql("UPDATE pgjobs.job SET scheduled_at = clock_timestamp() + interval '1 minute'")
    for order in ("priority", "scheduled_at"):
        assert not WorkerPool(client, {Thing: ran}, order=order).work_one()
    sql("UPDATE pgjobs.job SET scheduled_at = clock_timestamp()")
    assert WorkerPool(client, {Thing: ran}).work_one()


@pytest.mark.conformance(50, 62)
def test_the_lowest_priority_number_runs_first(client: Client, ran: Ran) -> None:
    client.enqueue_many(None, [NewJob(Thing(priority), priority=priority) for priority in (3, 2, 1)])
    pool = WorkerPool(client, {Thing: ran})
    assert (pool.work_one(), pool.work_one()) == (True, True)
    assert ran.numbers == [1, 2]
    assert (pool.work_one(), pool.work_one()) == (True, False)
    assert ran.numbers == [1, 2, 3]


@pytest.mark.conformance(62)
def test_priorities_order_below_zero_too(client: Client, ran: Ran) -> None:
    client.enqueue_many(None, [NewJob(Thing(priority), priority=priority) for priority in (10, -5, 0, 5)])
    work_all(WorkerPool(client, {Thing: ran}))
    assert ran.numbers == [-5, 0, 5, 10]


@pytest.mark.conformance(67)
def test_among_jobs_of_one_instant_the_priority_decides_and_then_the_order_of_enqueue(client: Client, ran: Ran) -> None:
    when = datetime(2020, 1, 1, tzinfo=UTC)
    options: list[tuple[int, int]] = [(1, 0), (2, -1), (3, 0), (4, -1)]
    client.enqueue_many(None, [NewJob(Thing(n), priority=priority, scheduled_at=when) for n, priority in options])
    work_all(WorkerPool(client, {Thing: ran}))
    assert ran.numbers == [2, 4, 1, 3]


@pytest.mark.conformance(62, 67)
def test_within_a_priority_the_earlier_instant_runs_first(client: Client, ran: Ran) -> None:
    days = [datetime(2020, 1, day, tzinfo=UTC) for day in (3, 1, 2)]
    client.enqueue_many(None, [NewJob(Thing(day.day), scheduled_at=day) for day in days])
    work_all(WorkerPool(client, {Thing: ran}))
    assert ran.numbers == [1, 2, 3]


@pytest.mark.conformance(51)
@pytest.mark.parametrize("entries", [0, 1, 98, 99, 100, 101])
def test_attempted_by_keeps_the_last_hundred(client: Client, ran: Ran, sql: Rows, stored: Stored, entries: int) -> None:
    job = client.enqueue(None, Thing())
    before = [f"worker-{n}" for n in range(entries)]
    sql("UPDATE pgjobs.job SET attempted_by = %s", before)
    assert WorkerPool(client, {Thing: ran}).work_one()
    assert stored(job).attempted_by == (*before, client.id)[-100:]


@pytest.mark.conformance(53)
@pytest.mark.one_by_one("two handlers wait for each other")
def test_free_threads_go_on_while_others_still_work_and_never_are_more_than_there_are(client: Client) -> None:
    release, both = threading.Event(), threading.Barrier(2, timeout=10)
    at_work: Counter[str] = Counter()
    done: list[int] = []
    most: list[int] = []
    lock = threading.Lock()

    def handler(tx: Tx, job: Job[Thing]) -> None:
        with lock:
            at_work["now"] += 1
            most.append(at_work["now"])
        if job.args.n == 0:
            assert release.wait(10)
        if job.args.n < 0:
            both.wait()
        with lock:
            at_work["now"] -= 1
            done.append(job.args.n)

    client.enqueue(None, Thing(0))
    with WorkerPool(client, {Thing: handler}, queues={"default": 2}, poll_interval=SECOND / 10):
        wait_until(lambda: at_work["now"] == 1)
        client.enqueue_many(None, [Thing(n) for n in range(1, 11)])
        wait_until(lambda: len(done) == 10)
        assert 0 not in done, "the slow one still runs"
        release.set()
        wait_until(lambda: len(done) == 11)
        client.enqueue_many(None, [Thing(-1), Thing(-2)])  # each waits for the other: both threads are free again
        wait_until(lambda: len(done) == 13)
    assert max(most) == 2


@pytest.mark.conformance(54)
@pytest.mark.parametrize("order", ["priority", "scheduled_at"])
def test_a_locked_job_is_passed_over_without_waiting(client: Client, ran: Ran, connect: Connect, order: Order) -> None:
    locked, _ = client.enqueue_many(None, [NewJob(Thing(1), priority=-1), Thing(2)])
    pool = WorkerPool(client, {Thing: ran}, order=order)
    holder = connect()
    holder.execute(f'SELECT id FROM "{client.schema}".job WHERE id = %s FOR UPDATE', [locked.id])
    try:
        assert pool.work_one()
        assert ran.numbers == [2]
        assert not pool.work_one(), "nothing but the locked one is left"
    finally:
        holder.rollback()
    assert pool.work_one()
    assert ran.numbers == [2, 1]


@pytest.mark.conformance(54)
def test_a_job_at_work_is_not_given_to_a_second_fetch(client: Client) -> None:
    second: list[bool] = []
    pools: list[WorkerPool] = []

    def handler(tx: Tx, job: Job[Thing]) -> None:
        second.append(pools[0].work_one())

    pools.append(WorkerPool(client, {Thing: handler}))
    client.enqueue(None, Thing())
    assert pools[0].work_one()
    assert second == [False]


@pytest.mark.conformance(55, 61)
@pytest.mark.parametrize("order", ["priority", "scheduled_at"])
def test_an_empty_queue_gives_no_job_and_no_error(client: Client, ran: Ran, order: Order) -> None:
    assert WorkerPool(client, {Thing: ran}, order=order).work_one() is False


@pytest.mark.conformance(56)
def test_a_job_goes_to_workers_of_its_queue_alone(client: Client, ran: Ran) -> None:
    client.enqueue(None, Thing(), queue="extra_priority")
    pool = WorkerPool(client, {Thing: ran})
    assert not pool.work_one()
    assert not pool.work_one("extra")
    assert pool.work_one("extra_priority")


@pytest.mark.conformance(58)
def test_the_handler_is_given_the_whole_job(client: Client, ran: Ran, stored: Stored) -> None:
    given = client.enqueue(
        None, Thing(7), queue="mail", priority=3, max_attempts=4, tags=["one-tag"], metadata={"m": 1}
    )
    assert WorkerPool(client, {Thing: ran}).work_one("mail")
    (job,) = ran.jobs
    for name in ("id", "queue", "kind", "priority", "max_attempts", "scheduled_at", "created_at", "tags", "metadata"):
        assert getattr(job, name) == getattr(given, name), name
    assert (job.args, job.errors, job.error_count, job.last_error) == (Thing(7), (), 0, None)
    assert (job.state, job.attempt, job.finalized_at) == (JobState.RUNNING, 1, None)
    assert job.attempted_by == (client.id,)
    assert job.attempted_at is not None
    assert job.created_at <= job.attempted_at <= (stored(job).finalized_at or job.created_at)


@pytest.mark.conformance(60)
def test_the_order_by_time_takes_the_earliest_whatever_the_priorities(client: Client, ran: Ran) -> None:
    days = [(3, -9), (1, 9), (2, 0)]
    client.enqueue_many(
        None, [NewJob(Thing(day), priority=p, scheduled_at=datetime(2009, 11, day, tzinfo=UTC)) for day, p in days]
    )
    work_all(WorkerPool(client, {Thing: ran}, order="scheduled_at"))
    assert ran.numbers == [1, 2, 3]


@pytest.mark.conformance(61)
def test_jobs_of_one_instant_run_in_the_order_of_enqueue_when_time_decides(client: Client, ran: Ran) -> None:
    when = datetime(2009, 11, 10, tzinfo=UTC)
    client.enqueue_many(None, [NewJob(Thing(n), scheduled_at=when) for n in range(5)])
    work_all(WorkerPool(client, {Thing: ran}, order="scheduled_at"))
    assert ran.numbers == [0, 1, 2, 3, 4]


@pytest.mark.conformance(65)
def test_several_threads_share_the_jobs_and_run_each_once(client: Client, sql: Rows) -> None:
    ran: list[int] = []
    pause = threading.Event()

    def handler(tx: Tx, job: Job[Thing]) -> None:
        pause.wait(0.05)
        ran.append(job.args.n)

    client.enqueue_many(None, [Thing(n) for n in range(20)])
    with WorkerPool(client, {Thing: handler}, queues={"default": 5}):
        wait_until(lambda: sql("SELECT count(*) FROM pgjobs.job WHERE state = 'completed'") == [(20,)])
    assert sorted(ran) == list(range(20))
    assert sql("SELECT DISTINCT attempt, errors FROM pgjobs.job") == [(1, [])]


@pytest.mark.conformance(68)
def test_jobs_that_were_due_run_and_one_that_is_not_yet_does_not(
    client: Client, ran: Ran, sql: Rows, duties: Maintenance, server: Tx
) -> None:
    (now,) = sql("SELECT clock_timestamp()")[0]
    jobs = [NewJob(Thing(offset), scheduled_at=now + offset * SECOND) for offset in (-2, -1, 60)]
    client.enqueue_many(None, jobs)
    pool = WorkerPool(client, {Thing: ran})
    work_all(pool)
    duties.promote(server)
    work_all(pool)
    assert ran.numbers == [-2, -1]
    sql("UPDATE pgjobs.job SET scheduled_at = clock_timestamp() WHERE state = 'scheduled'")
    duties.promote(server)
    work_all(pool)
    assert ran.numbers == [-2, -1, 60]


@pytest.mark.conformance(69)
def test_a_thousand_jobs_with_ten_threads_run_exactly_once_each(client: Client, sql: Rows, effects: str) -> None:
    started: Counter[int] = Counter()
    lock = threading.Lock()

    def handler(tx: Tx, job: Job[Thing]) -> None:
        with lock:
            started[job.id] += 1
        tx.execute(f"INSERT INTO {effects} VALUES (%s)", [job.id])

    jobs = client.enqueue_many(None, [Thing(n) for n in range(1000)])
    with WorkerPool(client, {Thing: handler}, queues={"default": 10}):
        wait_until(lambda: sql("SELECT count(*) FROM pgjobs.job WHERE state = 'completed'") == [(1000,)], timeout=30)
    assert started == Counter({job.id: 1 for job in jobs})
    assert sql("SELECT count(*), count(DISTINCT note) FROM pgjobs.effect") == [(1000, 1000)]
    assert sql("SELECT DISTINCT attempt, errors FROM pgjobs.job") == [(1, [])]


@pytest.mark.conformance(70)
def test_workers_of_both_orders_on_one_table_run_each_job_once(client: Client, sql: Rows) -> None:
    started: Counter[int] = Counter()
    met = threading.Barrier(2, timeout=10)
    lock = threading.Lock()

    def handler_of(name: str) -> Callable[[Tx, Job[Thing]], None]:
        first = threading.Event()

        def handler(tx: Tx, job: Job[Thing]) -> None:
            if not first.is_set():  # each pool takes its part
                first.set()
                met.wait()
            with lock:
                started[job.id] += 1

        return handler

    jobs = client.enqueue_many(None, [NewJob(Thing(n), priority=-n) for n in range(60)])
    old = WorkerPool(client, {Thing: handler_of("old")}, order="priority", queues={"default": 1}, name="old")
    new = WorkerPool(client, {Thing: handler_of("new")}, order="scheduled_at", queues={"default": 1}, name="new")
    with old, new:
        wait_until(lambda: sql("SELECT count(*) FROM pgjobs.job WHERE state = 'completed'") == [(60,)])
    assert started == Counter({job.id: 1 for job in jobs})
