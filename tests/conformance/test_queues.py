"""Queues: which there are and how they do; pausing them; adding and removing them while a pool works."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Literal

import psycopg
import pytest
from psycopg_pool import ConnectionPool

from pgjobs import (
    Client,
    InvalidOption,
    InvalidSetting,
    Job,
    JobFilter,
    JobState,
    NewJob,
    PoolTooSmall,
    Queue,
    QueueLocked,
    QueueNotFound,
    QueueStats,
    WorkerPool,
    WorkerPoolError,
)
from pgjobs.workers.queries import WorkerQueries
from tests import by_hand, inside
from tests.conformance.conftest import Gate, Rows, Stored
from tests.conftest import Connect
from tests.samples import HOUR, SECOND, Thing, Tx, nothing
from tests.waiting import wait_until

SOON = timedelta(milliseconds=10)


@pytest.fixture
def in_state(client: Client, sql: Rows) -> Callable[..., None]:
    """Makes jobs of a queue in this state, whose time was so long ago."""

    def make(state: str, queue: str, ago: timedelta = HOUR, jobs: int = 1, priority: int = 0) -> None:
        sql(
            """INSERT INTO pgjobs.job (state, kind, queue, priority, scheduled_at, attempted_at, finalized_at)
            SELECT state, 'thing', %s, %s, at, at,
                CASE WHEN state IN ('completed', 'cancelled', 'discarded') THEN at END
            FROM (SELECT %s::text AS state, now() - %s::interval AS at) AS given, generate_series(1, %s)""",
            *(queue, priority, state, ago, jobs),
        )

    return make


def names(client: Client) -> list[str]:
    return [queue.name for queue in client.queues.list()]


@contextmanager
def in_the_background(work: Callable[[], object]) -> Iterator[threading.Thread]:
    """Does this on a thread, which must have ended when the block has."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(20)
        assert not thread.is_alive()


# --- which there are


@pytest.mark.conformance(216)
def test_figures_of_empty_tables_are_zeros(client: Client) -> None:
    assert client.queues.list() == ()
    assert client.queues.stats() == {}
    assert client.queues.stats(["default"]) == {"default": QueueStats("default", None, 0, 0, None, 0, 0, 0)}


@pytest.mark.conformance(217)
def test_every_queue_that_is_worked_or_has_work_is_listed_once(
    client: Client, in_state: Callable[..., None], sql: Rows
) -> None:
    for _ in range(2):
        in_state("available", "b.waiting", priority=3, jobs=2)
        in_state("available", "b.waiting", priority=-3)
        in_state("running", "c.running")
    sql("UPDATE pgjobs.job SET leased_until = now() + interval '1 hour' WHERE state = 'running'")  # not to be rescued
    with WorkerPool(client, {Thing: nothing}, queues={"a.worked": 1, "b.waiting": 1}):
        assert names(client) == ["a.worked", "b.waiting", "c.running"]
    sql("DELETE FROM pgjobs.job")
    assert names(client) == ["a.worked", "b.waiting"], "also when all that they had is gone"


def test_queues_are_listed_in_the_order_of_their_names_however_many_there_are(
    client: Client, in_state: Callable[..., None]
) -> None:
    made = [f"q{n:03}" for n in range(60)]
    for name in random.sample(made, len(made)):
        in_state("available", name, priority=random.randint(-3, 3))
    assert names(client) == made == list(client.queues.stats())


# --- how they do


def test_figures(client: Client, in_state: Callable[..., None], sql: Rows) -> None:
    in_state("available", "a", ago=HOUR, jobs=3, priority=5)
    in_state("available", "a", ago=2 * HOUR, jobs=2, priority=9)
    in_state("available", "a", ago=SECOND, jobs=1, priority=-9)
    in_state("available", "b", ago=-HOUR)  # by hand, before its time
    in_state("running", "a", jobs=4)
    for state in ("completed", "discarded", "cancelled"):
        in_state(state, "a", ago=timedelta(seconds=10), jobs=2)
        in_state(state, "a", ago=timedelta(seconds=90), jobs=3)
    in_state("scheduled", "a", ago=-HOUR, jobs=7)
    (paused,) = client.queues.pause("b")
    sql(
        "INSERT INTO pgjobs.worker (id, host, pid, threads, version, queues) VALUES ('w', 'h', 1, 1, '1', '{\"a\": 1}')"
    )
    found = client.queues.stats()
    assert list(found) == ["a", "b"]
    a, b = found.values()
    assert (a.waiting, a.running, a.done_per_minute, a.failed_per_minute, a.workers) == (6, 4, 2, 2, 1)
    assert a.oldest_waiting is not None
    assert timedelta(0) <= a.oldest_waiting - 2 * HOUR < timedelta(minutes=1)
    assert b == QueueStats("b", paused.paused_at, 1, 0, timedelta(0), 0, 0, 0)
    assert client.queues.stats(["b", "unknown"]) == {
        "b": b,
        "unknown": QueueStats("unknown", None, 0, 0, None, 0, 0, 0),
    }
    with pytest.raises(InvalidOption):
        client.queues.stats(["no such name"])


def test_what_is_asked_of_queues_sees_the_callers_transaction(client: Client) -> None:
    with client.pool.connection() as tx:
        tx.execute(
            "SET LOCAL search_path = pg_temp; SET LOCAL DateStyle = 'SQL, DMY'; SET LOCAL IntervalStyle = iso_8601"
        )
        client.enqueue(tx, Thing())
        assert [queue.name for queue in client.queues.list(tx)] == ["default"]
        (figures,) = client.queues.stats(tx=tx).values()
        assert figures.waiting == 1
        assert figures.oldest_waiting is not None
        (paused,) = client.queues.pause("default", tx)
        assert paused.paused_at is not None
        assert abs(paused.paused_at - datetime.now(UTC)) < timedelta(minutes=1)
        tx.rollback()
    assert client.queues.list() == ()


# --- pausing


@pytest.mark.conformance(220)
def test_all_queues_are_paused_and_resumed_by_a_star(client: Client, in_state: Callable[..., None]) -> None:
    assert client.queues.pause("*") == client.queues.resume("*") == ()
    in_state("available", "a")
    in_state("running", "b")
    (first,) = client.queues.pause("a")
    assert first.paused_at is not None
    paused = client.queues.pause("*")
    assert [queue.name for queue in paused] == ["a", "b"]
    assert paused[0].paused_at == first.paused_at, "it keeps its time"
    assert client.queues.list() == paused
    assert [queue.paused_at for queue in client.queues.resume("*")] == [None, None]
    assert [queue.paused_at for queue in client.queues.list()] == [None, None]


@pytest.mark.conformance(220)
def test_an_unknown_queue_is_not_found(client: Client, in_state: Callable[..., None]) -> None:
    in_state("available", "a")
    for call in (client.queues.pause, client.queues.resume):
        with pytest.raises(QueueNotFound, match="'b'"):
            call("b")
    assert names(client) == ["a"]


@pytest.mark.conformance(220)
def test_pausing_what_is_paused_and_resuming_what_is_not_changes_nothing(
    client: Client, in_state: Callable[..., None]
) -> None:
    in_state("available", "a")
    assert [queue.paused_at for queue in client.queues.resume("a")] == [None]
    resumed = client.queues.get("a")
    assert client.queues.resume("a") == client.queues.resume("*") == (resumed,)
    (first,) = client.queues.pause("a")
    assert first.paused_at == first.updated_at is not None
    assert client.queues.pause("a") == client.queues.pause("*") == (first,)
    assert client.queues.get("a") == first, "the row is as it was"
    (again,) = client.queues.resume("a")
    assert again.updated_at is not None
    assert again.updated_at > first.updated_at, "a resume is a change"


def test_one_queue_is_read_by_its_name(client: Client, in_state: Callable[..., None], conn: Tx) -> None:
    in_state("available", "a")
    assert client.queues.get("a") == Queue("a", None, None)
    assert client.queues.get("b") is None
    client.queues.pause("a", conn)
    (paused, unpaused) = client.queues.get("a", conn), client.queues.get("a")
    assert paused is not None
    assert unpaused is not None
    assert paused.paused_at is not None
    assert unpaused.paused_at is None, "it is not committed"
    with pytest.raises(InvalidOption, match="queue 'a b'"):
        client.queues.get("a b")


@pytest.mark.parametrize("name", ["", "a b", "**", None, 5, "a\0"], ids=repr)
def test_what_cannot_be_the_name_of_a_queue_is_refused_before_anything_is_sent(name: Any) -> None:
    with pytest.raises(InvalidOption, match="queue"):
        Client(ConnectionPool(open=False)).queues.pause(name)


@pytest.mark.parametrize("order", ["priority", "scheduled_at"])
def test_no_job_of_a_paused_queue_is_claimed(client: Client, order: Literal["priority", "scheduled_at"]) -> None:
    client.enqueue_many(None, [NewJob(Thing(), queue="a"), NewJob(Thing(), queue="b")])
    client.queues.pause("a")
    pool = WorkerPool(client, {Thing: nothing}, order=order)
    assert pool.work_one("a") is False
    with client.lock_job(queue="a") as (_, locked):
        assert locked is None
    assert pool.work_one("b") is True
    client.queues.resume("a")
    assert pool.work_one("a") is True


@pytest.mark.parametrize("listen", [True, False])
def test_a_paused_queue_stands_still_and_goes_on_when_it_is_resumed(
    client: Client, gate: Gate, stored: Stored, listen: bool
) -> None:
    client.enqueue(None, Thing(), queue="a")
    with WorkerPool(
        *(client, {Thing: gate}), queues={"a": 2, "b": 1}, poll_interval=SOON if not listen else HOUR, listen=listen
    ):
        assert gate.entered.acquire(timeout=20)
        client.queues.pause("a")
        waiting = client.enqueue(None, Thing(), queue="a")
        for _ in range(5):  # the other queue is worked meanwhile
            client.enqueue(None, Thing(), queue="b")
        gate.open.set()
        wait_until(lambda: client.count(JobFilter(states=["completed"])).by_queue == {"a": 1, "b": 5})
        assert stored(waiting).state == JobState.AVAILABLE
        client.queues.resume("a")
        client.wait(waiting, timeout=20 * SECOND)


def test_nothing_is_started_once_a_pause_has_returned(client: Client, sql: Rows) -> None:
    def again(tx: Tx, job: Job[Any]) -> None:  # so that the queue is never empty
        client.enqueue(tx, Thing())

    def completed() -> int:
        return client.count(JobFilter(states=["completed"])).total

    client.enqueue_many(None, [Thing(n) for n in range(8)])
    with WorkerPool(client, {Thing: again}, queues={"default": 4}, poll_interval=SOON):
        for _ in range(5):
            goal = completed() + 1
            wait_until(partial(lambda goal: completed() >= goal, goal))
            client.queues.pause("default")
            ((paused,),) = sql("SELECT clock_timestamp()")
            wait_until(lambda: client.queues.stats()["default"].running == 0)
            assert client.queues.stats()["default"].waiting == 8
            assert sql("SELECT id FROM pgjobs.job WHERE attempted_at > %s", paused) == []
            client.queues.resume("*")
        client.queues.pause("default")


def test_a_pause_holds_from_the_callers_commit_on(client: Client, in_state: Callable[..., None], server: Tx) -> None:
    in_state("available", "a", jobs=3)

    def claim() -> Job[Any] | None:
        job = by_hand.claim(client, server, "a")
        server.execute("COMMIT")
        return job

    with client.pool.connection() as tx:
        client.queues.pause("a", tx)
        assert claim() is not None, "not yet, and the claim does not wait for it"
        tx.rollback()
        assert claim() is not None, "never"
        client.queues.pause("a", tx)
        tx.commit()
        assert claim() is None
        client.queues.resume("a", tx)
        assert claim() is None
        tx.commit()
        assert claim() is not None


@pytest.mark.parametrize("borrowed", [True, False])
def test_who_pauses_what_somebody_else_is_pausing_waits_a_second_at_most(
    client: Client, in_state: Callable[..., None], connect: Connect, borrowed: bool
) -> None:
    in_state("available", "a")
    client.queues.resume("a")
    holder = connect()
    client.queues.pause("a", holder)
    for name in ("a", "*"):
        with client.pool.connection() as tx:
            began = time.monotonic()
            with pytest.raises(QueueLocked, match="try again"):
                client.queues.resume(name, tx if borrowed else None)
            assert 1.0 <= time.monotonic() - began < 10
            assert tx.execute("SELECT 1").fetchone() == (1,), "the transaction is usable"
    WorkerQueries(client.schema).refresh_queues(connect(autocommit=True), ["a"])  # which would hang
    holder.commit()
    assert client.queues.resume("a")[0].paused_at is None


def test_a_queue_whose_row_is_being_made_is_waited_for_a_second_at_most(
    client: Client, in_state: Callable[..., None], connect: Connect
) -> None:
    in_state("available", "a")
    holder = connect()
    client.queues.pause("a", holder)
    with pytest.raises(QueueLocked, match="try again"):
        client.queues.pause("a")
    holder.commit()
    assert client.queues.pause("a")[0].paused_at is not None


# --- their rows


def test_a_worker_keeps_the_rows_of_its_queues_fresh_and_old_ones_go(
    client: Client, sql: Rows, in_state: Callable[..., None]
) -> None:
    sql(
        """INSERT INTO pgjobs.queue (name, updated_at, paused_at) VALUES
            ('old', now() - interval '25 hours', NULL), ('not.so.old', now() - interval '23 hours', NULL),
            ('old.paused', now() - interval '25 hours', now()), ('old.waiting', now() - interval '25 hours', NULL)"""
    )
    in_state("available", "old.waiting")
    with WorkerPool(client, {Thing: nothing}, queues={"mine": 1}) as pool:
        assert "mine" in names(client), "as soon as it is started"
        sql("UPDATE pgjobs.queue SET updated_at = now() - interval '25 hours' WHERE name = 'mine'")
        inside.refresh_queues(pool)
        wait_until(lambda: "old" not in names(client))
        assert names(client) == ["mine", "not.so.old", "old.paused", "old.waiting"]
        mine = next(queue for queue in client.queues.list() if queue.name == "mine")
        assert mine.updated_at is not None
        assert abs(datetime.now(UTC) - mine.updated_at) < timedelta(minutes=1)
        waiting = next(queue for queue in client.queues.list() if queue.name == "old.waiting")
        assert waiting == Queue("old.waiting", None, None), "it is known by its jobs alone"


def test_the_rows_of_new_queues_are_made_in_one_order_by_all_so_that_nobody_waits_in_a_circle(
    client: Client, connect: Connect
) -> None:
    holder, third = connect(), connect(autocommit=True)
    insert = f'INSERT INTO "{client.schema}".queue (name) VALUES (%s) ON CONFLICT DO NOTHING'
    holder.execute(insert, ["b"])
    waits = "SELECT 1 FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))"
    with in_the_background(lambda: WorkerQueries(client.schema).refresh_queues(connect(autocommit=True), ["b", "a"])):
        wait_until(lambda: third.execute(waits, [holder.info.backend_pid]).fetchone())
        third.execute("SET lock_timeout = '100ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):  # it has made `a` before it waits for `b`
            third.execute(insert, ["a"])
        holder.rollback()
    assert names(client) == ["a", "b"]


def test_a_pause_outlives_the_workers_and_a_new_start(client: Client, stored: Stored) -> None:
    with WorkerPool(client, {Thing: nothing}, queues={"a": 1}):
        client.queues.pause("a")
    job = client.enqueue(None, Thing(), queue="a")
    with WorkerPool(client, {Thing: nothing}, queues={"a": 1, "b": 1}, poll_interval=SOON):
        client.wait(client.enqueue(None, Thing(), queue="b"), timeout=20 * SECOND)
        assert client.queues.list()[0].paused_at is not None
        assert stored(job).state == JobState.AVAILABLE
        client.queues.resume("a")
        client.wait(job, timeout=20 * SECOND)


# --- adding and removing them


@pytest.mark.conformance(223)
def test_a_queue_that_is_added_is_worked_and_one_that_is_removed_waits_until_it_is_back(
    client: Client, stored: Stored
) -> None:
    early = client.enqueue(None, Thing(), queue="b")
    with WorkerPool(client, {Thing: nothing}, queues={"a": 1}, poll_interval=SOON) as pool:
        pool.add_queue("b", 2)
        assert pool.threads == 3
        client.wait(early, timeout=20 * SECOND)
        assert names(client) == ["a", "b"]
        assert pool.remove_queue("b") is True
        assert pool.threads == 1
        waits = client.enqueue(None, Thing(), queue="b")
        client.wait(client.enqueue(None, Thing(), queue="a"), timeout=20 * SECOND)
        assert stored(waits).state == JobState.AVAILABLE
        pool.add_queue("b", 1)
        client.wait(waits, timeout=20 * SECOND)


@pytest.mark.conformance(223)
def test_a_queue_that_was_added_is_woken_by_notifications(client: Client) -> None:
    with WorkerPool(client, {Thing: nothing}, queues={"a": 1}, poll_interval=HOUR) as pool:
        wait_until(lambda: inside.listens(pool))
        pool.add_queue("b", 1)
        wait_until(lambda: inside.waiting(pool, "b") == 1)
        client.wait(client.enqueue(None, Thing(), queue="b"), timeout=20 * SECOND)


@pytest.mark.conformance(223)
def test_removing_waits_for_the_jobs_at_work(client: Client, gate: Gate, stored: Stored) -> None:
    with WorkerPool(client, {Thing: gate}, queues={"a": 1, "b": 2}, poll_interval=SOON) as pool:
        running = client.enqueue(None, Thing(), queue="b")
        assert gate.entered.acquire(timeout=20)
        waiting = client.enqueue_many(None, [NewJob(Thing(), queue="b")])[0]
        assert gate.entered.acquire(timeout=20)
        third = client.enqueue(None, Thing(), queue="b")
        removed: list[bool] = []
        with in_the_background(lambda: removed.append(pool.remove_queue("b"))):
            wait_until(lambda: pool.threads == 1)
            assert pool.running
            assert removed == []
            gate.open.set()
        assert removed == [True]
        assert [stored(job).state for job in (running, waiting, third)] == ["completed", "completed", "available"]
        assert inside.at_work(pool) == ["a"]


def test_removing_with_a_timeout_leaves_the_jobs_to_end_by_themselves(
    client: Client, gate: Gate, stored: Stored
) -> None:
    with WorkerPool(client, {Thing: gate}, queues={"a": 1, "b": 1}, poll_interval=SOON) as pool:
        running = client.enqueue(None, Thing(), queue="b")
        assert gate.entered.acquire(timeout=20)
        assert pool.remove_queue("b", timeout=timedelta(0)) is False
        pool.add_queue("b", 1)  # beside the thread that is still at work
        another = client.enqueue(None, Thing(), queue="b")
        assert gate.entered.acquire(timeout=20)
        gate.open.set()
        for job in (running, another):
            assert client.wait(job, timeout=20 * SECOND).state == JobState.COMPLETED
        wait_until(lambda: sorted(inside.at_work(pool)) == ["a", "b"])


@pytest.mark.conformance(223)
@pytest.mark.parametrize("started", [True, False])
def test_what_is_unknown_is_not_removed_and_what_is_known_not_added(client: Client, started: bool) -> None:
    pool = WorkerPool(client, {Thing: nothing}, queues={"a": 1})
    if started:
        pool.start()
    with pytest.raises(WorkerPoolError, match="does not work queue 'b'"):
        pool.remove_queue("b")
    with pytest.raises(WorkerPoolError, match="works queue 'a' already"):
        pool.add_queue("a", 1)
    for threads in (0, -1, 10_001, True, "5"):
        with pytest.raises(InvalidSetting, match="threads"):
            pool.add_queue("b", threads)  # type: ignore[arg-type]
    with pytest.raises(InvalidOption, match="queue"):
        pool.add_queue("*", 1)
    assert pool.threads == 1
    pool.stop()


def test_queues_of_a_pool_that_does_not_run_are_those_of_its_next_start(client: Client) -> None:
    pool = WorkerPool(client, {Thing: nothing}, queues={"a": 1})
    pool.add_queue("b", 1)
    assert pool.remove_queue("a") is True
    assert pool.threads == 1
    with pool:
        client.wait(client.enqueue(None, Thing(), queue="b"), timeout=20 * SECOND)
        assert names(client) == ["b"]


def test_a_connection_pool_has_room_for_what_is_added_and_gets_it_back(client: Client, database: str) -> None:
    with ConnectionPool(database, min_size=1, max_size=5, open=True) as connections:
        own = Client(connections, schema=client.schema)
        with WorkerPool(own, {Thing: nothing}, queues={"a": 1}) as pool:
            with pytest.raises(PoolTooSmall, match="4 worker threads"):
                pool.add_queue("b", 3)
            assert pool.threads == 1
            for _ in range(3):
                pool.add_queue("b", 2)
                assert pool.remove_queue("b") is True
        with WorkerPool(own, {Thing: nothing}, queues={"a": 3}):
            pass


def test_a_handler_may_add_and_remove_queues_its_own_too(client: Client) -> None:
    def move(tx: Tx, job: Job[Any]) -> None:
        pool.add_queue("b", 1)
        assert pool.remove_queue("a") is True  # which does not wait for itself

    pool = WorkerPool(client, {Thing: move}, queues={"a": 1})
    with pool:
        job = client.enqueue(None, Thing(), queue="a")
        assert client.wait(job, timeout=20 * SECOND).errors == ()
        wait_until(lambda: inside.at_work(pool) == ["b"])


def test_a_handler_that_adds_a_queue_while_the_pool_stops_does_not_hold_it_up(client: Client) -> None:
    entered = threading.Event()
    raised: list[Exception] = []

    def add(tx: Tx, job: Job[Any]) -> None:
        entered.set()
        wait_until(lambda: inside.stopping(pool).is_set())
        try:
            pool.add_queue("b", 1)
        except WorkerPoolError as error:
            raised.append(error)

    pool = WorkerPool(client, {Thing: add}, queues={"a": 1}).start()
    client.enqueue(None, Thing(), queue="a")
    assert entered.wait(20)
    assert pool.stop() is True
    assert "is being stopped" in str(raised[0])


def test_a_stop_does_not_wait_for_who_removes_a_queue(client: Client, gate: Gate) -> None:
    pool = WorkerPool(client, {Thing: gate}, queues={"a": 1}).start()
    client.enqueue(None, Thing(), queue="a")
    assert gate.entered.acquire(timeout=20)
    with in_the_background(lambda: pool.remove_queue("a")):
        wait_until(lambda: pool.threads == 0)
        began = time.monotonic()
        assert pool.stop(timeout=timedelta(0)) is False
        assert time.monotonic() - began < 10
        gate.open.set()
    assert not pool.running


@pytest.mark.conformance(223)
def test_queues_that_come_and_go_under_load_lose_no_job_and_leave_no_thread(client: Client, sql: Rows) -> None:
    runs: list[int] = []

    def tally(tx: Tx, job: Job[Any]) -> None:
        runs.append(job.id)

    def come_and_go(name: str) -> None:
        for n in range(8):
            pool.add_queue(name, 1 + n % 2)
            client.enqueue_many(None, [NewJob(Thing(i), queue=name) for i in range(5)])
            assert pool.remove_queue(name) is True

    with WorkerPool(client, {Thing: tally}, queues={"a": 1}, poll_interval=SOON) as pool:
        threads = [threading.Thread(target=come_and_go, args=(f"q{n}",)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert pool.threads == 1
        assert inside.at_work(pool) == ["a"]
        for n in range(4):
            pool.add_queue(f"q{n}", 1)
        wait_until(lambda: sql("SELECT DISTINCT state FROM pgjobs.job") == [("completed",)], timeout=30)
    assert len(runs) == len(set(runs)) == 4 * 8 * 5
