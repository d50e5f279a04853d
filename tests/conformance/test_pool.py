"""Starting and stopping, settings, schemas, and how idle threads are woken."""

from __future__ import annotations

import inspect
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql as composing
from psycopg.conninfo import make_conninfo
from psycopg_pool import ConnectionPool

from pgjobs import (
    Client,
    Hooks,
    InvalidOption,
    InvalidSetting,
    Job,
    JobState,
    MigrationError,
    PoolTooSmall,
    SchemaMissing,
    Snooze,
    WorkerPool,
    WorkerPoolError,
    WorkMap,
    constant,
)
from pgjobs.hooks import HookCalls
from pgjobs.wakeup.listener import Listener
from pgjobs.wakeup.queries import WakeupQueries
from tests import by_hand, inside
from tests.conformance.conftest import Gate, Rows, Stored
from tests.conftest import Connect
from tests.samples import HOUR, SECOND, Thing, Tx, nothing, shown
from tests.waiting import wait_until
from tests.waking import armed, sleep_on, sleepers


def threads_of(pool: WorkerPool) -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith(f"{pool.name}/")}


@contextmanager
def in_the_background(work: Callable[[], object]) -> Iterator[threading.Thread]:
    """Does this on a thread, which must have ended when the block has."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(100)  # a busy machine is slow
        assert not thread.is_alive()


# --- stop


@pytest.mark.conformance(248)
def test_stop_with_nothing_at_work_returns_at_once(client: Client) -> None:
    pool = WorkerPool(client, {Thing: nothing}, poll_interval=HOUR).start()
    wait_until(lambda: len(threads_of(pool)) == 14)
    began = time.monotonic()
    assert pool.stop() is True
    assert time.monotonic() - began < 3
    assert threads_of(pool) == set()


@pytest.mark.conformance(249, 265)
@pytest.mark.one_by_one("the handlers are in it at the same time")
@pytest.mark.parametrize("threads", [1, 5])
def test_stop_waits_for_the_jobs_at_work_and_no_longer(client: Client, gate: Gate, sql: Rows, threads: int) -> None:
    client.enqueue_many(None, [Thing(n) for n in range(threads)])
    pool = WorkerPool(client, {Thing: gate}, queues={"default": threads}, poll_interval=HOUR, listen=False).start()
    for _ in range(threads):
        assert gate.entered.acquire(timeout=10)
    stopped: list[tuple[bool, float]] = []
    with in_the_background(lambda: stopped.append((pool.stop(), time.monotonic()))):
        wait_until(inside.stopping(pool).is_set)
        assert stopped == [], "a handler still runs"
        assert sql("SELECT DISTINCT state FROM pgjobs.job") == [("running",)]
        opened = time.monotonic()
        gate.open.set()
    ((ended, when),) = stopped
    assert ended is True
    assert when - opened < 5, "no poll was waited for"
    assert sql("SELECT DISTINCT state FROM pgjobs.job") == [("completed",)]


@pytest.mark.conformance(249)
def test_no_job_is_started_after_stop_was_called(client: Client, gate: Gate, stored: Stored) -> None:
    pool = WorkerPool(client, {Thing: gate}, queues={"default": 1}).start()
    running = client.enqueue(None, Thing(1))
    assert gate.entered.acquire(timeout=10)
    with in_the_background(pool.stop):
        wait_until(inside.stopping(pool).is_set)
        waiting = client.enqueue(None, Thing(2))
        gate.open.set()
    assert stored(running).state == JobState.COMPLETED
    assert (stored(waiting).state, stored(waiting).attempt) == (JobState.AVAILABLE, 0)


@pytest.mark.conformance(249)
def test_stop_under_continual_insertion_leaves_no_job_running(client: Client, sql: Rows) -> None:
    """F8."""
    over = threading.Event()

    def insert() -> None:
        while not over.is_set():
            client.enqueue_many(None, [Thing(), Thing()])

    with in_the_background(insert):
        pool = WorkerPool(client, {Thing: nothing}, queues={"default": 4}).start()
        wait_until(lambda: sql("SELECT count(*) > 20 FROM pgjobs.job WHERE state = 'completed'") == [(True,)])
        assert pool.stop(20 * SECOND) is True
        over.set()
    assert sql("SELECT count(*) FROM pgjobs.job WHERE state = 'running'") == [(0,)]
    assert sql("SELECT DISTINCT state, attempt FROM pgjobs.job WHERE state <> 'completed'") in ([], [("available", 0)])


@pytest.mark.conformance(279)
def test_a_long_job_is_cut_off_by_a_stop_that_does_not_wait_for_it_and_loses_nothing(
    client: Client, gate: Gate, stored: Stored
) -> None:
    job = client.enqueue(None, Thing())
    pool = WorkerPool(client, {Thing: gate}, queues={"default": 1}).start()
    assert gate.entered.acquire(timeout=10)
    assert pool.stop(SECOND / 10) is False
    assert not pool.running
    assert (stored(job).state, stored(job).attempt, stored(job).errors) == (JobState.AVAILABLE, 0, ())
    gate.open.set()
    with WorkerPool(client, {Thing: nothing}):
        wait_until(lambda: stored(job).state == JobState.COMPLETED)
    assert stored(job).attempt == 1


@pytest.mark.conformance(275)
def test_stop_before_any_start_is_no_error(client: Client) -> None:
    assert WorkerPool(client, {Thing: nothing}).stop() is True


@pytest.mark.parametrize("timeout", [5, "5"], ids=repr)
def test_a_stop_that_is_refused_tells_nobody_to_end(client: Client, stored: Stored, timeout: Any) -> None:
    with WorkerPool(client, {Thing: nothing}, queues={"default": 1}) as pool:
        with pytest.raises(InvalidSetting, match=r"timeout must be a timedelta or None, not '?5"):
            pool.stop(timeout)
        with pytest.raises(InvalidSetting, match=r"timeout must be a timedelta or None, not '?5"):
            pool.remove_queue("default", timeout)
        job = client.enqueue(None, Thing())
        wait_until(lambda: stored(job).state == JobState.COMPLETED)
        assert pool.running


@pytest.mark.parametrize("timeout", [-5 * SECOND, timedelta.min], ids=repr)
def test_a_stop_whose_time_is_over_already_cuts_off(client: Client, gate: Gate, timeout: timedelta) -> None:
    client.enqueue(None, Thing())
    pool = WorkerPool(client, {Thing: gate}, queues={"default": 1}).start()
    assert gate.entered.acquire(timeout=10)
    assert not pool.stop(timeout)
    assert not pool.running


def test_the_longest_timeout_is_for_ever(client: Client) -> None:
    pool = WorkerPool(client, {Thing: nothing}, queues={"default": 1, "other": 1}).start()
    assert pool.remove_queue("other", timedelta.max)
    assert pool.stop(timedelta.max)


@pytest.mark.conformance(267)
def test_a_pool_that_runs_cannot_be_started_again_and_one_that_was_stopped_can(client: Client, stored: Stored) -> None:
    """A stopped pool may be started again, and a handler may be added at any time: so says the design."""
    pool = WorkerPool(client, {Thing: nothing}, queues={"default": 1})
    assert pool.stop() is True
    with pool:
        with pytest.raises(WorkerPoolError, match="started already"):
            pool.start()
        assert pool.running
    assert threads_of(pool) == set()
    assert pool.stop() is True
    job = client.enqueue(None, Thing())
    with pool:
        wait_until(lambda: stored(job).state == JobState.COMPLETED)


@pytest.mark.conformance(255)
def test_a_pool_survives_being_started_and_stopped_a_hundred_times_by_several_threads(
    client: Client, sql: Rows
) -> None:
    pool = WorkerPool(client, {Thing: nothing}, queues={"default": 2}, poll_interval=HOUR)
    with pool:
        pass  # what is made once and kept, like the connections of the client, is made now
    descriptors = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    surprises: list[BaseException] = []

    def start_and_stop() -> None:
        for _ in range(25):
            try:
                pool.start()
            except WorkerPoolError:
                pass  # another thread was first
            except BaseException as error:
                surprises.append(error)
            pool.stop()

    with ExitStack() as at_once:
        for _ in range(4):
            at_once.enter_context(in_the_background(start_and_stop))
    assert surprises == []
    assert pool.stop() is True
    assert threads_of(pool) == set()
    if descriptors:
        wait_until(lambda: len(os.listdir("/proc/self/fd")) <= descriptors + 6)  # the client's pool may hold a few more
    client.enqueue(None, Thing())
    with pool:
        wait_until(lambda: sql("SELECT state FROM pgjobs.job") == [("completed",)])


# --- start


@pytest.mark.conformance(254)
def test_a_pool_without_handlers_is_not_started(client: Client) -> None:
    pool = WorkerPool(client, {})
    with pytest.raises(WorkerPoolError, match="handler"):
        pool.start()
    assert threads_of(pool) == set()


@pytest.mark.conformance(254)
def test_a_pool_without_queues_is_refused(client: Client) -> None:
    with (
        pytest.raises((InvalidSetting, WorkerPoolError), match="queue"),
        WorkerPool(client, {Thing: nothing}, queues={}),
    ):
        pass


@pytest.mark.conformance(254)
def test_start_raises_what_the_database_says_and_can_be_tried_again(server_dsn: str, schema: str) -> None:
    missing = make_conninfo(server_dsn, dbname=schema)
    with Client(missing) as client:
        pool = WorkerPool(client, {Thing: nothing}, queues={"default": 1})
        began = time.monotonic()
        with pytest.raises(psycopg.OperationalError, match="does not exist"):
            pool.start()
        assert time.monotonic() - began < 5
        assert threads_of(pool) == set()
        with psycopg.connect(server_dsn, autocommit=True) as admin:
            admin.execute(composing.SQL("CREATE DATABASE {}").format(composing.Identifier(schema)))
        try:
            with pytest.raises(SchemaMissing):
                pool.start()
            client.migrate()
            with pool:
                assert pool.running
        finally:
            client.close()
            with psycopg.connect(server_dsn, autocommit=True) as admin:
                admin.execute(composing.SQL("DROP DATABASE {} WITH (FORCE)").format(composing.Identifier(schema)))


@pytest.mark.conformance(254)
def test_a_server_that_is_not_there_is_an_error_of_the_driver() -> None:
    with Client("host=127.0.0.1 port=1 dbname=nowhere connect_timeout=2") as client:
        began = time.monotonic()
        with pytest.raises(psycopg.OperationalError, match="refused"):
            WorkerPool(client, {Thing: nothing}).start()
        assert time.monotonic() - began < 5


def test_a_connection_pool_that_is_too_small_is_refused_with_the_numbers(client: Client, database: str) -> None:
    """T12."""
    with ConnectionPool(database, min_size=0, max_size=6, open=True) as connections:
        own = Client(connections, schema=client.schema)
        with pytest.raises(PoolTooSmall, match=r"5 .*7 .*6"):
            WorkerPool(own, {Thing: nothing}, queues={"default": 3, "mail": 2}).start()
        with WorkerPool(own, {Thing: nothing}, queues={"default": 3, "mail": 1}) as pool:
            assert pool.threads == 4


# --- settings


@pytest.mark.conformance(258)
@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"queues": {"default": 0}}, "threads"),
        ({"queues": {"default": -1}}, "threads"),
        ({"queues": {"default": 10_001}}, "threads"),
        ({"queues": {"default": True}}, "threads"),
        ({"queues": {"default": 2.0}}, "threads"),
        ({"queues": {"": 1}}, "queue"),
        ({"queues": {"a b": 1}}, "queue"),
        ({"order": "random"}, "order"),
        ({"poll_interval": timedelta(0)}, "poll_interval"),
        ({"poll_interval": timedelta(microseconds=999)}, "poll_interval"),
        ({"poll_interval": -SECOND}, "poll_interval"),
        ({"fetch_cooldown": -SECOND}, "fetch_cooldown"),
        ({"fetch_cooldown": timedelta(microseconds=999)}, "fetch_cooldown"),
        ({"fetch_cooldown": 2 * SECOND}, "shorter"),
        ({"keep_completed": -SECOND}, "keep_completed"),
        ({"keep_cancelled": -SECOND}, "keep_cancelled"),
        ({"keep_discarded": -SECOND}, "keep_discarded"),
    ],
    ids=str,
)
def test_a_setting_out_of_its_range_is_refused_at_construction_by_its_name(
    client: Client, settings: dict[str, Any], named: str
) -> None:
    with pytest.raises((InvalidSetting, InvalidOption), match=named):
        WorkerPool(client, {Thing: nothing}, **settings)


@pytest.mark.conformance(258)
@pytest.mark.parametrize(
    "settings",
    [
        {"queues": {"default": 1}},
        {"queues": {"default": 10_000}},
        {"poll_interval": timedelta(milliseconds=1), "fetch_cooldown": timedelta(milliseconds=1)},
        {"keep_completed": timedelta(0), "keep_cancelled": None, "keep_discarded": timedelta.max},
    ],
    ids=str,
)
def test_settings_at_the_edge_of_their_range_are_taken(client: Client, settings: dict[str, Any]) -> None:
    WorkerPool(client, {Thing: nothing}, **settings)


@pytest.mark.conformance(258, 268)
@pytest.mark.parametrize(
    "settings",
    [{"max_attempts": 0}, {"max_attempts": -1}, {"priority": 40_000}, {"queue": ""}, {"schema": "a" * 47}],
    ids=str,
)
def test_a_setting_of_the_client_out_of_its_range_is_refused_at_construction(
    database: str, settings: dict[str, Any]
) -> None:
    with pytest.raises((InvalidSetting, InvalidOption)):
        Client(database, **settings)


@pytest.mark.conformance(268)
@pytest.mark.parametrize("pool", [None, "", 5, object()], ids=shown)
def test_a_client_needs_something_to_connect_with(pool: Any) -> None:
    with pytest.raises(InvalidSetting, match="connection"):
        Client(pool)


@pytest.mark.conformance(269)
def test_a_schema_that_cannot_be_named_without_quotes_is_refused_by_the_client(database: str) -> None:
    for name in (
        "",
        "drop table;",
        "my-jobs",
        "foo bar",
        "a.b.c",
        ".foo",
        "foo.",
        "123table",
        "schema.123t",
        "Jobs123",
    ):
        with pytest.raises(InvalidSetting, match="schema"):
            Client(database, schema=name)


# --- schemas


@pytest.mark.conformance(260)
def test_everything_works_with_nothing_on_the_search_path(
    client: Client, database: str, sql: Rows, connect: Connect
) -> None:
    def handler(tx: Tx, job: Job[Thing]) -> None:
        if job.attempt == 1 and job.args.n == 1:
            raise ValueError("once")

    with ConnectionPool(database, kwargs={"options": "-c search_path="}, min_size=0, max_size=4, open=True) as bare:
        own = Client(bare, schema=client.schema)
        assert own.missing_migrations() == []
        sql(  # what a vanished worker left, and what is to be cleaned
            "INSERT INTO pgjobs.job (kind, state, attempt, attempted_at)"
            " VALUES ('thing', 'running', 1, now() - interval '1 hour')"
        )
        sql(
            "INSERT INTO pgjobs.job (kind, state, finalized_at)"
            " VALUES ('thing', 'completed', now() - interval '2 days')"
        )
        own.enqueue_many(None, [Thing(0), Thing(1)])
        own.enqueue(None, Thing(2), delay=SECOND / 10)
        with WorkerPool(own, {Thing: handler}, queues={"default": 2}, backoff=constant(SECOND / 10)):
            wait_until(lambda: sql("SELECT state, count(*) FROM pgjobs.job GROUP BY state") == [("completed", 4)])


@pytest.mark.conformance(264)
def test_two_schemas_work_side_by_side_also_when_one_is_second_on_the_search_path(
    client: Client, other_client: Client, database: str
) -> None:
    ran: list[str] = []
    path = f"-c search_path={client.schema},{other_client.schema}"
    with ConnectionPool(database, kwargs={"options": path}, min_size=0, max_size=8, open=True) as connections:
        first, second = (Client(connections, schema=own.schema) for own in (client, other_client))
        jobs = {"first": first.enqueue(None, Thing()), "second": second.enqueue(None, Thing())}
        second.enqueue(None, Thing())
        pool = WorkerPool(first, {Thing: lambda tx, job: ran.append("first")})
        assert (pool.work_one(), pool.work_one()) == (True, False)
        pool = WorkerPool(second, {Thing: lambda tx, job: ran.append("second")})
        assert (pool.work_one(), pool.work_one(), pool.work_one()) == (True, True, False)
        assert ran == ["first", "second", "second"]
        assert jobs["first"].id == jobs["second"].id == 1, "each schema counts by itself"


# --- threads


@pytest.mark.conformance(262, 246)
def test_all_threads_of_a_pool_work_and_none_is_left_after_it(client: Client) -> None:
    met = threading.Barrier(2, timeout=10)
    names: list[str] = []

    def handler(tx: Tx, job: Job[Thing]) -> None:
        names.append(threading.current_thread().name)
        if job.args.n in (0, 30):  # not in one batch
            met.wait()

    client.enqueue_many(None, [Thing(n) for n in range(40)])
    with WorkerPool(client, {Thing: handler}, queues={"default": 2}, name="two") as pool:
        wait_until(lambda: len(names) == 40)
        ours = {"worker-0", "worker-1", "maintenance", "listener", "listener-answers", "watch"}
        wait_until(lambda: threads_of(pool) == {f"two/{thread}" for thread in ours})
    assert set(names) == {"two/worker-0", "two/worker-1"}, "a handler knows its thread by this name"
    assert threads_of(pool) == set()


def test_each_queue_has_its_own_threads(client: Client, gate: Gate) -> None:
    done = threading.Event()
    client.enqueue(None, Thing(), queue="slow")
    with WorkerPool(client, {Thing: gate, "other": lambda tx, job: done.set()}, queues={"slow": 1, "fast": 1}):
        assert gate.entered.acquire(timeout=10)
        client.enqueue(None, {}, kind="other", queue="fast")
        assert done.wait(10), "a queue whose threads are all at work holds up no other"
        gate.open.set()


@pytest.mark.conformance(276)
def test_a_kind_that_is_registered_later_is_worked_with_what_waited_for_it(client: Client, sql: Rows) -> None:
    work_map = WorkMap({"other": nothing})
    client.enqueue_many(None, [Thing(n) for n in range(3)])
    with WorkerPool(client, work_map, backoff=constant(SECOND / 20)):
        wait_until(lambda: sql("SELECT count(*) FROM pgjobs.job WHERE errors <> '[]'") == [(3,)])
        work_map[Thing] = nothing
        client.enqueue(None, Thing(3))
        wait_until(lambda: sql("SELECT state, count(*) FROM pgjobs.job GROUP BY state") == [("completed", 4)])


@pytest.mark.conformance(278)
def test_the_name_of_the_pool_is_in_its_log_lines(
    client: Client, stored: Stored, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="pgjobs"):
        nothing_in_it: dict[str, int] = {}
        job = client.enqueue(None, nothing_in_it, kind="unknown.kind")
        with WorkerPool(client, {Thing: nothing}, name="the-pool", queues={"default": 1}):
            wait_until(lambda: stored(job).state == JobState.RETRYABLE)
    of_the_pool = [record for record in caplog.records if record.name == "pgjobs.worker"]
    assert all(record.getMessage().startswith("the-pool: ") for record in of_the_pool)
    (failed,) = (record for record in caplog.records if record.name == "pgjobs.job")
    assert str(failed.threadName).startswith("the-pool/")


# --- waking


@pytest.mark.conformance(225)
def test_only_a_job_that_can_run_now_notifies(client: Client, server: Tx) -> None:
    sleep_on(server, client, "default", "later", "silent", "last")
    client.enqueue(None, Thing(), queue="later", delay=HOUR)
    client.enqueue(None, Thing(), queue="silent", notify=False)
    client.enqueue_many(None, [Thing(), Thing()])
    client.enqueue(None, Thing(), queue="last")
    heard = []
    for notification in server.notifies(timeout=10):
        heard.append(notification.payload)
        if notification.payload == "last":
            break
    assert heard == ["default", "last"], "once for two jobs of one transaction"


@pytest.mark.conformance(225)
def test_a_notification_wakes_a_pool_that_would_not_poll_for_an_hour(
    client: Client, stored: Stored, server: Tx
) -> None:
    with WorkerPool(client, {Thing: nothing}, queues={"default": 2, "mail": 1}, poll_interval=HOUR):
        wait_until(lambda: armed(server, client) == ["default", "mail"])
        for queue in ("default", "mail", "default"):
            job = client.enqueue(None, Thing(), queue=queue)
            wait_until(lambda job=job: stored(job).state == JobState.COMPLETED, timeout=5)  # type: ignore[misc]


@pytest.mark.conformance(225)
@pytest.mark.one_by_one("the handlers wait for each other")
def test_one_notification_is_enough_for_many_jobs_and_many_threads(client: Client, sql: Rows, server: Tx) -> None:
    met = threading.Barrier(5, timeout=10)

    def handler(tx: Tx, job: Job[Thing]) -> None:
        met.wait()

    with WorkerPool(client, {Thing: handler}, queues={"default": 5}, poll_interval=HOUR):
        wait_until(lambda: armed(server, client) == ["default"])
        client.enqueue_many(None, [Thing(n) for n in range(5)])
        wait_until(lambda: sql("SELECT DISTINCT state FROM pgjobs.job") == [("completed",)])


@pytest.mark.conformance(227)
def test_a_pool_that_only_polls_does_everything_a_listening_one_does(client: Client, sql: Rows, server: Tx) -> None:
    def handler(tx: Tx, job: Job[Thing]) -> None:
        if job.args.n == 1 and job.attempt == 1:
            raise ValueError("once")

    pool = WorkerPool(client, {Thing: handler}, listen=False, poll_interval=SECOND / 20, backoff=constant(SECOND / 20))
    with pool:
        client.enqueue_many(None, [Thing(0), Thing(1)])
        client.enqueue(None, Thing(2), delay=SECOND / 20)
        sql("INSERT INTO pgjobs.job (kind, args) VALUES ('thing', '{\"n\": 3}')")
        wait_until(lambda: sql("SELECT state, count(*) FROM pgjobs.job GROUP BY state") == [("completed", 4)])
        assert sleepers(server, client) == 0


@pytest.mark.conformance(229)
def test_one_connection_listens_for_all_queues_and_is_gone_after_stop(client: Client, sql: Rows, server: Tx) -> None:
    queues = {f"queue-{n}": 1 for n in range(5)}
    with WorkerPool(client, {Thing: nothing}, queues=queues):
        wait_until(lambda: armed(server, client) == [*queues])
        for queue in queues:
            client.enqueue(None, Thing(), queue=queue)
        wait_until(lambda: sql("SELECT count(*) FROM pgjobs.job WHERE state = 'completed'") == [(5,)])
        wait_until(lambda: armed(server, client) == [*queues])
        assert sleepers(server, client) == 1
    assert sleepers(server, client) == 0


@pytest.mark.conformance(233)
def test_the_poll_interval_is_a_second_unless_it_is_set(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    assert inspect.signature(WorkerPool).parameters["poll_interval"].default == SECOND
    looks: list[float] = []
    look = WakeupQueries.any_claimable

    def noted_look(*args: Any, **options: Any) -> bool:
        looks.append(time.monotonic())
        return look(*args, **options)

    monkeypatch.setattr(WakeupQueries, "any_claimable", noted_look)
    with WorkerPool(client, {Thing: nothing}, queues={"default": 1}, listen=False, poll_interval=SECOND / 20):
        wait_until(lambda: len(looks) >= 5)
    gaps = [later - earlier for earlier, later in pairwise(looks)]
    assert min(gaps) >= 0.049
    assert min(gaps) < 0.5


@contextmanager
def listener(client: Client, connect: Callable[[], Tx], wake: Callable[[str | None], None]) -> Iterator[Listener]:
    listener = Listener(client.schema, connect, wake=wake, name="listener")
    listener.start()
    try:
        yield listener
    finally:
        listener.stop()


@pytest.mark.conformance(228)
def test_a_listener_that_cannot_connect_tries_again_and_then_hears(
    client: Client, server: Tx, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[float] = []
    woken: list[str | None] = []

    def connect() -> Tx:
        tries.append(time.monotonic())
        if len(tries) < 3:
            raise psycopg.OperationalError("not yet")
        return client.source.connect()

    with listener(client, connect, woken.append) as listening_one:
        wait_until(lambda: listening_one.listening)
        assert len(tries) == 3
        assert tries[1] - tries[0] > 0.09
        assert tries[2] - tries[1] > 0.19, "the pauses grow"
        wait_until(lambda: woken == [None])  # what was enqueued while nobody listened
        sleep_on(server, client, "mail")
        client.enqueue(None, Thing(), queue="mail")
        wait_until(lambda: woken == [None, "mail"])
    assert sum("not listening" in record.getMessage() for record in caplog.records) == 1, "not at every try"


@pytest.mark.conformance(228)
def test_a_listener_that_waits_for_its_next_try_stops_at_once(client: Client) -> None:
    tries: list[int] = []

    def connect() -> Tx:
        tries.append(1)
        raise psycopg.OperationalError("never")

    with listener(client, connect, lambda queue: None):
        wait_until(lambda: len(tries) >= 5)
        began = time.monotonic()
    assert time.monotonic() - began < 1.4, "the next try would be in 1.6 s"


# --- what a review found


def test_two_stops_at_once_both_return(client: Client, gate: Gate) -> None:
    client.enqueue(None, Thing())
    pool = WorkerPool(client, {Thing: gate}, queues={"default": 1}).start()
    assert gate.entered.acquire(timeout=10)
    stops = [threading.Thread(target=pool.stop) for _ in range(2)]
    for stop in stops:
        stop.start()
    gate.open.set()
    for stop in stops:
        stop.join(10)
        assert not stop.is_alive()


@pytest.mark.conformance(252)
@pytest.mark.parametrize("patience", [SECOND * 0, SECOND / 10])
def test_a_stop_that_is_less_patient_than_the_one_under_way_cuts_off(
    client: Client, stored: Stored, patience: timedelta
) -> None:
    entered, free = threading.Event(), threading.Event()

    def handler(tx: Tx, job: Job[Thing]) -> None:
        entered.set()
        wait_until(lambda: free.is_set() or job.cancelled)
        assert not job.cancelled

    job = client.enqueue(None, Thing())
    pool = WorkerPool(client, {Thing: handler}, queues={"default": 1}).start()
    assert entered.wait(10)
    answers: list[bool] = []
    with in_the_background(lambda: answers.append(pool.stop())):
        wait_until(lambda: inside.is_being_started_or_stopped(pool))
        assert pool.stop(patience) is False
    assert answers == [False], "neither of them let all handlers end"
    assert (stored(job).state, stored(job).attempt) == (JobState.AVAILABLE, 0)
    free.set()
    pool.start()
    wait_until(lambda: stored(job).state == JobState.COMPLETED)
    assert pool.stop() is True, "that is forgotten with the next start"


def test_a_hook_of_the_maintenance_may_stop_its_pool(database: str, client: Client, server: Tx) -> None:
    answers: list[bool] = []

    class Stopping(Hooks):
        def on_rescue(self, job: Job[Any]) -> None:
            answers.append(pool.stop())

    client.enqueue(None, Thing())
    by_hand.must_claim(client, server, worker="vanished")
    server.execute("ROLLBACK")
    server.execute(f"""UPDATE "{client.schema}".job SET attempted_at = now() - interval '1 hour'""")
    with Client(database, schema=client.schema, hooks=[Stopping()]) as hooked:
        pool = WorkerPool(hooked, {Thing: nothing})  # known to the hook before it starts
        pool.start()
        wait_until(lambda: not pool.running)
        wait_until(lambda: not threads_of(pool))
    assert answers == [False]


def test_a_stop_without_any_patience_cuts_nothing_off_where_nothing_runs(client: Client) -> None:
    pool = WorkerPool(client, {Thing: nothing}, queues={"default": 3}).start()
    assert pool.stop_and_cancel() is True


@pytest.mark.one_by_one("a batch gives back what it has not started")
def test_a_job_that_was_claimed_in_the_moment_of_a_stop_is_told_to_end_like_all_others(
    client: Client, stored: Stored
) -> None:
    class Slow(Hooks):
        def on_claim(self, job: Job[Any] | None, error: BaseException | None) -> None:
            claimed.set()
            wait_until(lambda: inside.is_cut_off(pool))

    claimed, seen = threading.Event(), list[bool]()
    client.hooks = HookCalls([Slow()])

    def handler(tx: Tx, job: Job[Thing]) -> None:
        seen.append(job.cancelled)
        raise RuntimeError("told to end")

    job = client.enqueue(None, Thing())
    pool = WorkerPool(client, {Thing: handler}, queues={"default": 1}).start()
    assert claimed.wait(10)
    assert pool.stop_and_cancel() is False
    assert seen == [True]
    assert (stored(job).state, stored(job).attempt) == (JobState.AVAILABLE, 0)


def test_two_handlers_may_stop_their_pool(client: Client, stored: Stored) -> None:
    pools: list[WorkerPool] = []
    met = threading.Barrier(2, timeout=10)

    def handler(tx: Tx, job: Job[Thing]) -> None:
        met.wait()
        assert pools[0].stop() is False

    jobs = [client.enqueue(None, Thing(), queue=queue) for queue in ("a", "b")]
    pools.append(WorkerPool(client, {Thing: handler}, queues={"a": 1, "b": 1}).start())
    wait_until(lambda: not pools[0].running)
    assert [stored(job).state for job in jobs] == [JobState.COMPLETED] * 2


def test_a_log_handler_that_fails_ends_no_thread_and_loses_no_record(client: Client, stored: Stored) -> None:
    class Failing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("disk full")

    def handler(tx: Tx, job: Job[Thing]) -> None:
        raise ValueError("mine")

    failing = Failing()
    logger = logging.getLogger("pgjobs")
    job = client.enqueue(None, Thing())
    with WorkerPool(client, {Thing: handler}, queues={"default": 1}) as pool:
        logger.addHandler(failing)
        try:
            wait_until(lambda: stored(job).state == JobState.RETRYABLE)
            assert [error.error for error in stored(job).errors] == ["mine"]
            assert pool.running
        finally:
            logger.removeHandler(failing)


def test_two_pools_of_one_client_have_room_for_all_their_threads(client: Client) -> None:
    with WorkerPool(client, {Thing: nothing}), WorkerPool(client, {Thing: nothing}):
        assert client.pool.max_size >= 22
    with WorkerPool(client, {Thing: nothing}):
        pass


def test_a_start_that_fails_half_way_leaves_nothing_behind(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    right, started = threading.Thread.start, []

    def start(thread: threading.Thread) -> None:
        started.append(thread)
        if thread.name.endswith("worker-2"):
            raise RuntimeError("can't start new thread")
        right(thread)

    pool = WorkerPool(client, {Thing: nothing})
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="new thread"):
            pool.start()
    assert not pool.running
    wait_until(lambda: threads_of(pool) == set())
    with pool:
        assert pool.running


def test_a_direction_that_is_none_changes_nothing(client: Client) -> None:
    wrong: Any = "Up"
    with pytest.raises(MigrationError, match="'Up'"):
        client.migrate(direction=wrong)
    assert client.missing_migrations() == []


def test_a_signal_made_without_what_it_should_say_is_a_failed_attempt(client: Client, stored: Stored) -> None:
    class Later(Snooze):
        def __init__(self) -> None:
            pass

    def handler(tx: Tx, job: Job[Thing]) -> None:
        raise Later

    job = client.enqueue(None, Thing())
    assert WorkerPool(client, {Thing: handler}).work_one()
    assert (stored(job).state, stored(job).error_count) == (JobState.RETRYABLE, 1)


def test_ctrl_c_at_work_one_is_recorded_and_goes_on(client: Client, stored: Stored) -> None:
    def handler(tx: Tx, job: Job[Thing]) -> None:
        signal.raise_signal(signal.SIGINT)

    job = client.enqueue(None, Thing())
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            WorkerPool(client, {Thing: handler}).work_one()
    finally:
        signal.signal(signal.SIGINT, before)
    assert (stored(job).state, stored(job).error_count) == (JobState.RETRYABLE, 1)


def test_what_configures_a_session_is_not_added_up(database: str, client: Client) -> None:
    heard: list[str] = []
    seen: list[int] = []

    def configure(conn: Tx) -> None:
        conn.add_notice_handler(lambda notice: heard.append(notice.message_primary or ""))

    def handler(tx: Tx, job: Job[Thing]) -> None:
        heard.clear()
        tx.execute("DO $$ BEGIN RAISE NOTICE 'once'; END $$")
        seen.append(len(heard))

    with ConnectionPool(database, min_size=1, max_size=4, configure=configure) as pool:
        own = Client(pool, schema=client.schema)
        own.enqueue_many(None, [Thing(n) for n in range(5)])
        with WorkerPool(own, {Thing: handler}, queues={"default": 1}):
            wait_until(lambda: len(seen) == 5)
    assert seen == [1] * 5
