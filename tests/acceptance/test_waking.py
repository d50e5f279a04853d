"""Waking without polling: nothing that is enqueued is overlooked, though those who enqueue notify but once."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from pgjobs import Client, Job, JobFilter, JobState, NewJob, Schedule, Unique, WorkerPool
from pgjobs.db.channel import listen
from pgjobs.db.checkout import NEVER
from pgjobs.execution.batch import Batches
from pgjobs.execution.executor import Executor
from pgjobs.wakeup.queries import WakeupQueries
from pgjobs.wakeup.wakeup_leader import WakeupLeader
from pgjobs.workers.context import QueueWorkers
from pgjobs.workers.worker_threads import WorkerThreads
from tests import inside, modes
from tests.conftest import Connect
from tests.samples import HOUR, Tx, nothing
from tests.waiting import wait_until
from tests.waking import armed, sleep_on, sleepers, wake_up

#: What a thread calls to look for jobs and claim them at once.
LOOKS = (Batches, "run_next") if modes.BATCH_SIZE > 1 else (Executor, "claim")
UNFINISHED = JobFilter(states=["available", "scheduled", "running", "retryable"])


@contextmanager
def delays(chance: float) -> Iterator[None]:
    """Now and then a pause between a look and what follows from it, and around what the listener does."""

    def delayed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            pause()
            try:
                return function(*args, **options)
            finally:
                pause()

        return call

    def pause() -> None:
        if random.random() < chance:
            time.sleep(random.choice([0, 0.001, 0.003, 0.015]))

    with pytest.MonkeyPatch.context() as patch:
        for owner, names in (
            (WakeupLeader, ("_lead", "_resign", "_notify_off", "notified", "update")),
            (WorkerThreads, ("_report_empty", "work_while_jobs")),
        ):
            for name in names:
                patch.setattr(owner, name, delayed(getattr(owner, name)))
        yield


def enqueue_some(client: Client, jobs: int, kinds: Sequence[str] = ("thing",)) -> None:
    """By itself, several in a transaction, or in one that stays open a while."""
    while jobs > 0:
        with client.pool.connection() as tx:
            for _ in range(min(jobs, random.choice([1, 1, 1, 1, 3]))):
                client.enqueue(tx, {"n": jobs}, kind=random.choice(kinds))
                jobs -= 1
            if random.random() < 0.1:
                time.sleep(random.choice([0.002, 0.02, 0.1]))
        time.sleep(random.choice([0, 0, 0, 0.0005, 0.002, 0.012, 0.03]))


@dataclass
class Storm:
    """Pools that never poll, and many who enqueue; with `kinds` each pool knows one of them and leaves the others."""

    dsn: str
    schema: str
    pools: int
    threads: int
    kinds: Sequence[str] = ()

    def handle(self, tx: Tx, job: Job[Any]) -> None:
        time.sleep(random.choice([0, 0, 0, 0.001, 0.01, 0.025]))

    def pool(self, client: Client, number: int) -> WorkerPool:
        kind, others = ("thing", "error") if not self.kinds else (self.kinds[number % len(self.kinds)], "leave")
        return WorkerPool(
            client,
            {kind: self.handle},
            queues={"default": self.threads},
            poll_interval=HOUR,
            unknown_kinds=others,  # type: ignore[arg-type]
        )

    def blow(self, *, enqueuers: int, jobs: int, rounds: int = 1) -> None:
        """Each round ends when all that was enqueued is done, within seconds of the last."""
        with ExitStack() as stack:
            client = stack.enter_context(Client(self.dsn, schema=self.schema))
            client.pool.resize(1, enqueuers)
            pools = [
                stack.enter_context(self.pool(stack.enter_context(Client(self.dsn, schema=self.schema)), number))
                for number in range(self.pools)
            ]
            for _ in range(rounds):
                arguments = (client, jobs, self.kinds or ["thing"])
                callers = [threading.Thread(target=enqueue_some, args=arguments) for _ in range(enqueuers)]
                for caller in callers:
                    caller.start()
                for caller in callers:
                    caller.join()
                self.wait_done(client, pools)

    def wait_done(self, client: Client, pools: Sequence[WorkerPool]) -> None:
        try:
            wait_until(lambda: not client.list_jobs(UNFINISHED, limit=1).jobs, timeout=20)
        except AssertionError:
            states = [vars(inside.wakeup(pool)) for pool in pools]
            raise AssertionError(f"overlooked: {client.list_jobs(UNFINISHED).jobs}; {states}") from None


@pytest.mark.parametrize(("pools", "threads"), [(1, 1), (1, 4), (4, 1), (3, 3)])
@pytest.mark.parametrize("chance", [0, 0.3])
def test_nothing_is_overlooked_though_nobody_polls(
    client: Client, database: str, pools: int, threads: int, chance: float
) -> None:
    with delays(chance):
        Storm(database, client.schema, pools, threads).blow(rounds=3, enqueuers=4, jobs=12)


@pytest.mark.parametrize("chance", [0, 0.3])
def test_nothing_is_overlooked_that_others_leave(client: Client, database: str, chance: float) -> None:
    with delays(chance):
        Storm(database, client.schema, 4, 2, ["first", "second"]).blow(rounds=3, enqueuers=4, jobs=12)


@pytest.mark.parametrize(("pools", "threads"), [(1, 1), (1, 2), (2, 1)])
def test_a_job_that_comes_soon_after_another_is_not_overlooked(
    client: Client, server: Tx, pool_of: Callable[..., WorkerPool], pools: int, threads: int
) -> None:
    """Whatever the sleepers are about to do at that moment."""
    for _ in range(pools):
        pool_of(queues={"default": threads})
    with delays(0.2):
        for _ in range(60):
            thing(client, server)
            time.sleep(random.uniform(0, 0.02))
            job = thing(client, server)
            wait_until(lambda job=job: done(client, job), timeout=5)  # type: ignore[misc]


# --- one after the other


@pytest.fixture
def server(connect: Connect) -> Tx:
    """A connection that commits at once."""
    return connect(autocommit=True)


@pytest.fixture
def pool_of(client: Client, database: str) -> Iterator[Callable[..., WorkerPool]]:
    """Starts pools that never poll, each with a client of its own."""
    with ExitStack() as stack:

        def start(
            handler: Callable[..., None] = nothing, kinds: Sequence[str] = ("thing",), **options: Any
        ) -> WorkerPool:
            own = stack.enter_context(Client(database, schema=client.schema))
            settings: dict[str, Any] = {"queues": {"default": 1}, "poll_interval": HOUR} | options
            return stack.enter_context(WorkerPool(own, dict.fromkeys(kinds, handler), **settings))

        yield start


def done(client: Client, job: Job[Any] | None) -> bool:
    assert job is not None
    found = client.get(job.id)
    return found is not None and found.state == JobState.COMPLETED


def thing(client: Client, tx: Tx | None = None, **options: Any) -> Job[Any]:
    args: dict[str, Any] = {}
    return client.enqueue(tx, args, kind="thing", **options)


def raw(client: Client, server: Tx, query: str) -> Job[Any] | None:
    row = server.execute(query.replace("pgjobs.", f'"{client.schema}".').encode()).fetchone()
    return None if row is None else client.get(row[0])


def resumed(client: Client, server: Tx) -> Job[Any]:
    client.queues.pause("default")
    job = thing(client, notify=False)
    client.queues.resume("default")
    return job


def several(client: Client, server: Tx, **options: Any) -> Job[Any]:
    """Enough of them for a COPY."""
    jobs = [NewJob({"n": n}, kind="thing", **options) for n in range(30)]
    client.enqueue_many(None, jobs, returning=False)
    return client.list_jobs(JobFilter(states=["available", "running", "completed"]), limit=1, descending=True).jobs[0]


def pending(client: Client) -> Job[Any]:
    return thing(client, pending=True)


def ticked(client: Client, server: Tx) -> Job[Any] | None:
    before = max((job.id for job in client.list_jobs(JobFilter.all()).jobs), default=0)
    client.schedules.remove("yearly")
    client.schedules.add(Schedule("yearly", "@yearly", {}, kind="thing", run_on_start=True))
    newer = f"SELECT id FROM pgjobs.job WHERE id > {before}"
    return wait_until(lambda: raw(client, server, newer))  # type: ignore[return-value]


WAYS: dict[str, Callable[[Client, Tx], Job[Any] | None]] = {
    "one": lambda client, server: thing(client),
    "of a transaction": lambda client, server: thing(client, delay=timedelta(0), unique=Unique(by_queue=True)),
    "many": lambda client, server: client.enqueue_many(None, [NewJob({}, kind="thing")] * 3)[-1],
    "very many": several,
    "many unique": lambda client, server: several(client, server, unique=Unique(by_args=True)),
    "at its time": lambda client, server: thing(client, delay=timedelta(milliseconds=50)),
    "released": lambda client, server: client.release(pending(client).id),
    "retried": lambda client, server: client.retry(thing(client, delay=HOUR).id),
    "moved": lambda client, server: client.update(thing(client, delay=HOUR).id, scheduled_at=datetime.now(UTC) - HOUR),
    "retried with others": lambda client, server: client.retry_many(JobFilter(ids=[pending(client).id])).done[0],
    "resumed": resumed,
    "by SQL": lambda client, server: raw(client, server, "SELECT id FROM pgjobs.enqueue('thing')"),
    "ticked": ticked,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_job_wakes_a_sleeper_however_it_became_available(
    client: Client, server: Tx, pool_of: Callable[..., WorkerPool], way: str
) -> None:
    pool_of()
    for _ in range(2):
        wait_until(lambda: armed(server, client) == ["default"])
        job = WAYS[way](client, server)
        wait_until(lambda job=job: done(client, job), timeout=5)  # type: ignore[misc]


@pytest.mark.conformance(226)
def test_one_notification_until_the_sleeper_is_armed_again(client: Client, connect: Connect, server: Tx) -> None:
    """What those who enqueue do, seen from outside: the sleeper here is a bare connection."""
    sleeper, commits = connect(autocommit=True), connect(autocommit=True)

    def heard() -> list[str]:
        server.execute("SELECT pg_notify(%s, 'sentinel')", [client.queries.channel])
        found: list[str] = []
        for notification in sleeper.notifies(timeout=10):
            if notification.payload == "sentinel":
                return found
            found.append(notification.payload)
        raise AssertionError("the sentinel was not heard")

    sleep_on(sleeper, client, "default", "mail")
    thing(client, commits)
    assert heard() == ["default"]
    wake_up(sleeper, client, "default")
    for _ in range(5):
        thing(client, commits)
    assert heard() == [], "nobody sleeps there any more"
    thing(client, commits, queue="mail")
    assert heard() == ["mail"], "another queue notifies at once"
    sleep_on(sleeper, client, "default")
    with commits.transaction():
        for _ in range(6):
            thing(client, commits)
    assert heard() == ["default"]


@pytest.mark.conformance(226)
def test_a_pool_is_called_once_until_it_sleeps_again(
    client: Client, connect: Connect, server: Tx, pool_of: Callable[..., WorkerPool]
) -> None:
    free = threading.Event()
    pool = pool_of(lambda tx, job: free.wait(20))
    ear, commits = connect(autocommit=True), connect(autocommit=True)
    listen(ear, client.schema)
    for _ in range(2):
        free.clear()
        # a thread that is about to sleep looks once more, and would take the job without being called
        wait_until(lambda: inside.all_wait(pool, asleep=True) and armed(server, client) == ["default"])
        thing(client, commits)
        wait_until(lambda: armed(server, client) == [])
        for _ in range(5):
            thing(client, commits)
        server.execute("SELECT pg_notify(%s, 'sentinel')", [client.queries.channel])
        heard = []
        for notification in ear.notifies(timeout=10):
            if notification.payload == "sentinel":
                break
            heard.append((notification.payload, notification.pid == commits.info.backend_pid))
        assert [mine for _, mine in heard].count(True) == 1, "beside it, the pool itself may call for others"
        free.set()
        wait_until(lambda: not client.list_jobs(UNFINISHED).jobs)


def test_when_all_threads_of_one_process_are_at_work_another_one_is_called(
    client: Client, server: Tx, pool_of: Callable[..., WorkerPool]
) -> None:
    free = threading.Event()
    for _ in range(3):
        pool_of(lambda tx, job: free.wait(20))
    running = JobFilter(states=["running"])
    for at_work in range(3):
        wait_until(lambda: armed(server, client) == ["default"])
        thing(client)
        wait_until(lambda at_work=at_work: len(client.list_jobs(running).jobs) == at_work + 1, timeout=5)  # type: ignore[misc]
    wait_until(lambda: sleepers(server, client) == 0)
    free.set()
    wait_until(lambda: armed(server, client) == ["default"])


def test_a_process_that_stops_or_gives_its_queue_up_leaves_the_post_to_another(
    client: Client, server: Tx, pool_of: Callable[..., WorkerPool]
) -> None:
    first = pool_of(queues={"default": 1, "mail": 1})
    wait_until(lambda: armed(server, client) == ["default", "mail"])
    second, third = pool_of(queues={"default": 2, "mail": 1}), pool_of()
    for pool in (second, third):
        wait_until(lambda pool=pool: inside.listens(pool))  # type: ignore[misc]
    first.remove_queue("default")
    wait_until(lambda: sleepers(server, client) == 2)
    wait_until(lambda: armed(server, client) == ["default", "mail"])
    first.stop()
    wait_until(lambda: armed(server, client) == ["default", "mail"])
    for queue in ("default", "mail"):
        job = thing(client, queue=queue)
        wait_until(lambda job=job: done(client, job), timeout=5)  # type: ignore[misc]
    first.start()
    first.remove_queue("mail")
    first.add_queue("extra", 1)
    wait_until(lambda: armed(server, client) == ["default", "extra", "mail"])


@pytest.mark.parametrize(("batch_size", "hard"), [(1, True), (10, True), (10, False)])
def test_an_attempt_that_a_stop_gives_back_wakes_another_process(
    client: Client, server: Tx, pool_of: Callable[..., WorkerPool], batch_size: int, hard: bool
) -> None:
    starts: list[Job[Any]] = []

    def handler(tx: Tx, job: Job[Any]) -> None:
        starts.append(job)
        if len(starts) == 1:
            assert inside.stopping(first).wait(20)
            if hard:
                tx.execute("SELECT pg_sleep(60)")

    first = pool_of(handler, batch_size=batch_size)
    wait_until(lambda: armed(server, client) == ["default"])
    jobs = client.enqueue_many(None, [NewJob({}, kind="thing") for _ in range(batch_size)])
    wait_until(lambda: starts)
    wait_until(lambda: armed(server, client) == [])
    pool_of(handler)
    wait_until(lambda: armed(server, client) == ["default"])
    assert first.stop(timedelta(0) if hard else None) is not hard
    wait_until(lambda: all(done(client, job) for job in jobs))


def test_a_listener_that_comes_back_arms_anew(client: Client, server: Tx, pool_of: Callable[..., WorkerPool]) -> None:
    pool_of(queues={"default": 2})
    for _ in range(2):
        wait_until(lambda: armed(server, client) == ["default"])
        server.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND database ="
                       " (SELECT oid FROM pg_database WHERE datname = current_database())")  # fmt: skip
        job = thing(client)
        wait_until(lambda job=job: done(client, job), timeout=10)  # type: ignore[misc]


@pytest.mark.one_by_one("the first process may take both jobs into one batch")
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("what", ["lead", "notify_off", "resign"])
def test_what_is_committed_around_a_change_of_the_sleepers_is_found(
    *,
    client: Client,
    server: Tx,
    pool_of: Callable[..., WorkerPool],
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    moment: str,
) -> None:
    """Before a sleeper is armed nobody notifies; when its threads are at work another process is to know."""
    entered, free = threading.Semaphore(0), threading.Event()

    def handler(tx: Tx, job: Job[Any]) -> None:
        entered.release()
        assert free.wait(20)

    pool_of(handler, kinds=["thing", "other"])
    wait_until(lambda: armed(server, client) == ["default"])
    second = pool_of(handler, kinds=["other"], unknown_kinds="leave")
    wait_until(lambda: inside.waiting(second) == 1 and not inside.wakeup(second).active)
    jobs: list[Job[Any]] = []
    change = getattr(WakeupQueries, what)

    def changed(*args: Any, **options: Any) -> Any:
        if moment == "before" and not jobs:
            jobs.append(client.enqueue(None, {}, kind="other"))
        result = change(*args, **options)
        if moment == "after" and not jobs:
            jobs.append(client.enqueue(None, {}, kind="other"))
        return result

    monkeypatch.setattr(WakeupQueries, what, changed)
    thing(client)
    assert entered.acquire(timeout=5)
    assert entered.acquire(timeout=5), "by the second process, while the first is at work"
    free.set()
    wait_until(lambda: not client.list_jobs(UNFINISHED).jobs, timeout=5)


# R13: a transaction that has enqueued stays open.


def test_r13_a_sleeper_that_cannot_arm_hears_all_the_same_and_looks_now_and_then(
    client: Client, connect: Connect, server: Tx, pool_of: Callable[..., WorkerPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    tries, looks = count(monkeypatch, WakeupQueries, "lead"), count(monkeypatch, *LOOKS)
    tx = connect()
    late = thing(client, tx)
    pool = pool_of(queues={"default": 200})
    wait_until(lambda: len(tries) > 10)
    began, tried, looked = time.monotonic(), len(tries), len(looks)
    for _ in range(20):
        job = thing(client)
        wait_until(lambda job=job: done(client, job), timeout=5)  # type: ignore[misc]
    scheduled = thing(client, delay=timedelta(milliseconds=20))
    wait_until(lambda: done(client, scheduled), timeout=5)
    wait_until(lambda: len(tries) > tried + 60)
    passed = time.monotonic() - began
    assert len(tries) - tried <= passed / 0.05 + 21 * 10, "a few for each job, then every 50 ms"
    assert len(looks) - looked <= passed / 0.05 + 21 * 20
    assert sleepers(server, client) == 1, "it leads the queue"
    assert armed(server, client) == []
    assert inside.listens(pool)
    tx.commit()
    wait_until(lambda: done(client, late), timeout=5)
    wait_until(lambda: armed(server, client) == ["default"])


def test_r13_the_pauses_between_two_tries_grow_to_50_ms(
    client: Client, connect: Connect, pool_of: Callable[..., WorkerPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    tries, looks = count(monkeypatch, WakeupQueries, "lead"), count(monkeypatch, *LOOKS)
    thing(client, connect())
    pool_of(queues={"default": 3})
    wait_until(lambda: len(tries) >= 30)
    pauses = [later - earlier for earlier, later in pairwise(tries[10:])]
    assert min(pauses) >= 0.045
    assert len(looks) <= 30 + 20


def count(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> list[float]:
    """When it was called."""
    calls: list[float] = []
    function = getattr(owner, name)

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(time.monotonic())
        return function(*args, **options)

    monkeypatch.setattr(owner, name, counted)
    return calls


def test_an_idle_process_of_200_threads_asks_no_more_than_one_of_two(
    client: Client, server: Tx, pool_of: Callable[..., WorkerPool]
) -> None:
    queues = {"default": 150, "mail": 50}
    pool = pool_of(queues=queues, poll_interval=timedelta(seconds=1))
    wait_until(lambda: armed(server, client) == ["default", "mail"])
    # each has also looked once more, as one does that has just been armed
    wait_until(lambda: inside.all_wait(pool, asleep=True))
    with pytest.MonkeyPatch.context() as patch:
        looks, tries = count(patch, WakeupQueries, "any_claimable"), count(patch, WakeupQueries, "lead")
        claims = count(patch, *LOOKS)
        began = time.monotonic()
        wait_until(lambda: len(looks) >= 8)
        assert time.monotonic() - began >= 2.9, "each queue looks every second, whatever its threads"
    assert claims == [], "nothing is claimed where nothing is seen"
    assert tries == [], "and who is armed stays so"


def test_a_process_that_starts_looks_once_for_each_queue(
    client: Client, pool_of: Callable[..., WorkerPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = count(monkeypatch, *LOOKS)
    pool = pool_of(queues={"default": 100, "mail": 20}, listen=False)
    wait_until(lambda: inside.all_wait(pool))
    assert len(looks) == 2


@pytest.mark.one_by_one("the handlers wait for each other")
@pytest.mark.parametrize("called_before", [False, True])
def test_what_waits_at_the_start_is_worked_by_all_threads(
    client: Client, pool_of: Callable[..., WorkerPool], monkeypatch: pytest.MonkeyPatch, called_before: bool
) -> None:
    """Though the first of them may call the others before those have begun to wait."""
    work = WorkerThreads._work

    def late(self: WorkerThreads, workers: QueueWorkers, seen: int | None) -> None:
        if called_before and seen is not None:
            wait_until(lambda: workers.idle.wake_count > seen)
        work(self, workers, seen)

    monkeypatch.setattr(WorkerThreads, "_work", late)
    together = threading.Barrier(8)
    client.enqueue_many(None, [NewJob({}, kind="thing")] * 8)

    def meet(tx: Tx, job: Job[Any]) -> None:
        together.wait(20)

    pool_of(meet, queues={"default": 8}, listen=False)
    wait_until(lambda: not client.list_jobs(UNFINISHED).jobs, timeout=20)


# --- a single job


def test_a_sleeper_that_was_called_for_a_single_job_stays_armed(
    client: Client, server: Tx, pool_of: Callable[..., WorkerPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgjobs.wakeup.wakeup_leader._LINGER", 60.0)
    pool = pool_of(queues={"default": 3})
    wait_until(lambda: inside.all_wait(pool, asleep=True))
    changes = [count(monkeypatch, WakeupQueries, what) for what in ("lead", "notify_off", "resign")]
    for _ in range(5):
        job = thing(client)
        wait_until(lambda job=job: done(client, job), timeout=5)  # type: ignore[misc]
        wait_until(lambda: inside.all_wait(pool, asleep=True))
    assert changes == [[], [], []]
    assert armed(server, client) == ["default"]


def test_a_second_notification_disarms_a_sleeper_while_nobody_has_found_nothing(
    client: Client, server: Tx, pool_of: Callable[..., WorkerPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgjobs.wakeup.wakeup_leader._LINGER", 60.0)
    monkeypatch.setattr("pgjobs.wakeup.idle_threads._RESIGN_SOON", 60.0)
    entered, free = threading.Semaphore(0), threading.Event()

    def hold(tx: Tx, job: Job[Any]) -> None:
        entered.release()
        free.wait(20)

    pool = pool_of(hold)
    wait_until(lambda: inside.wakeup(pool).asleep)
    thing(client)
    assert entered.acquire(timeout=5)
    assert armed(server, client) == ["default"]
    thing(client)
    wait_until(lambda: armed(server, client) == [])
    free.set()
    wait_until(lambda: not client.list_jobs(UNFINISHED).jobs)
    wait_until(lambda: armed(server, client) == ["default"])


def test_the_leader_is_updated_after_the_thread_that_a_first_notification_woke(
    client: Client, pool_of: Callable[..., WorkerPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The update needs the interpreter's lock, which that thread waits for. Behind a second notification it is not put
    off."""
    monkeypatch.setattr("pgjobs.wakeup.wakeup_leader._LINGER", 60.0)
    monkeypatch.setattr("pgjobs.wakeup.listener._UPDATE_AFTER", 60.0)
    pauses: list[float] = []
    update = WakeupLeader.update

    def updated(self: WakeupLeader, *args: Any) -> float:
        pauses.append(update(self, *args))
        return pauses[-1]

    monkeypatch.setattr(WakeupLeader, "update", updated)
    pool = pool_of(queues={"default": 3})
    wait_until(lambda: inside.all_wait(pool, asleep=True) and pauses[-1:] == [NEVER])
    before = len(pauses)
    for _ in range(2):
        assert len(pauses) == before
        job = thing(client)
        wait_until(lambda job=job: done(client, job), timeout=5)  # type: ignore[misc]
        wait_until(lambda: inside.all_wait(pool, asleep=True))
    wait_until(lambda: len(pauses) > before, timeout=5)  # sooner than after a silence


# --- what else holds


@pytest.mark.no_decoys("drops the tables, and decoys depend on their type")
def test_a_sleeper_of_another_schema_is_not_called(
    client: Client, database: str, schema: str, connect: Connect, server: Tx
) -> None:
    with Client(database, schema=f"{schema}_2") as other:
        other.migrate()
        sleeper = connect(autocommit=True)
        sleep_on(sleeper, other, "default")
        listen(sleeper, client.schema)
        thing(client)
        server.execute("SELECT pg_notify(%s, 'sentinel')", [client.queries.channel])
        assert next(sleeper.notifies(timeout=10)).payload == "sentinel"
        other.migrate(direction="down", target=0)


def test_another_number_for_the_locks(client: Client, server: Tx, pool_of: Callable[..., WorkerPool]) -> None:
    raw(client, server, "SELECT id FROM pgjobs.enqueue('thing')")
    server.execute(
        f"""CREATE OR REPLACE FUNCTION "{client.schema}".advisory_class() RETURNS integer LANGUAGE sql STABLE AS
        'SELECT -2147483648'""".encode()
    )
    pool_of()
    wait_until(lambda: armed(server, client) == ["default"])
    job = thing(client)
    wait_until(lambda: done(client, job), timeout=5)


def test_jobs_for_very_many_queues_take_no_locks(client: Client, conn: Tx) -> None:
    jobs = [NewJob({"n": n}, kind="thing", queue=f"queue-{n}") for n in range(150)]
    held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
    for some, locks in ((jobs[:50], 50), (jobs, 0)):
        client.enqueue_many(conn, some)
        assert conn.execute(held).fetchall() == [(locks,)]
        conn.rollback()


def test_a_pool_behind_a_pooler_only_polls_and_says_so_once(
    client: Client,
    server: Tx,
    pool_of: Callable[..., WorkerPool],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    facts = WakeupQueries.facts
    monkeypatch.setattr(WakeupQueries, "facts", lambda *args: (True, facts(*args)[1]))
    asked = count(monkeypatch, WakeupQueries, "facts")
    pool = pool_of(poll_interval=timedelta(milliseconds=50))
    wait_until(lambda: len(asked) == 1)
    wait_until(lambda: inside.listens(pool))
    conn = inside.listener(pool)._conn
    assert conn is not None
    server.execute("SELECT pg_terminate_backend(%s)", [conn.info.backend_pid])
    wait_until(lambda: len(asked) == 2)
    job = thing(client)
    wait_until(lambda: done(client, job), timeout=5)
    assert sleepers(server, client) == 0
    warnings = [record.getMessage() for record in caplog.records if "pooler" in record.getMessage()]
    assert len(warnings) == 1
    assert "listen_dsn" in warnings[0]
