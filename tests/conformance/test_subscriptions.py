"""Subscriptions: every attempt that ends, as it ends, and never a worker slowed down."""

from __future__ import annotations

import inspect
import threading
import time
from datetime import timedelta
from typing import Any

import pytest

from pgjobs import (
    Cancel,
    Client,
    Discard,
    Event,
    EventKind,
    InvalidSetting,
    Job,
    JobState,
    QueueEvent,
    QueueEventKind,
    RetryAfter,
    Snooze,
    Subscription,
    WorkerPool,
    constant,
)
from pgjobs.execution.attempt import GracePeriods
from tests.conformance.conftest import Rows, Stored, facts
from tests.samples import SECOND, Thing, Tx, nothing
from tests.waiting import wait_until

ZERO = timedelta(0)
LATER = constant(timedelta(hours=1))
QUICK = GracePeriods(interrupted=0.2, severed=0.4, stuck=0.6)  # the same steps as by default, sooner


def waiting_in(subscription: Subscription) -> list[Event]:
    """The events that wait to be read."""
    events = [subscription.get(ZERO) for _ in range(len(subscription))]
    return [event for event in events if event is not None]


ENDINGS: list[tuple[BaseException | None, EventKind]] = [
    (None, EventKind.COMPLETED),
    (ValueError("failed"), EventKind.FAILED),
    (SystemExit(1), EventKind.FAILED),
    (RetryAfter(ZERO), EventKind.FAILED),
    (RetryAfter(SECOND), EventKind.FAILED),
    (Discard("why"), EventKind.FAILED),
    (Cancel("why"), EventKind.CANCELLED),
    (Snooze(ZERO), EventKind.SNOOZED),
    (Snooze(SECOND), EventKind.SNOOZED),
]


@pytest.mark.parametrize(("error", "kind"), ENDINGS, ids=repr)
def test_each_ending_is_an_event_with_the_job_as_it_is_then(
    client: Client, stored: Stored, error: BaseException | None, kind: EventKind
) -> None:
    def handler(tx: Tx, job: Job[Thing]) -> None:
        if error is not None:
            raise error

    job = client.enqueue(None, Thing(5))
    with client.subscribe() as everything, client.subscribe([kind]) as of_its_kind:
        with client.subscribe([other for other in EventKind if other != kind]) as of_others:
            assert WorkerPool(client, {Thing: handler}).work_one()
            assert waiting_in(of_others) == []
        (event,) = waiting_in(everything)
        assert waiting_in(of_its_kind) == [event]
    assert event.kind == kind
    assert facts(event.job) == facts(stored(job))
    assert event.job.args == Thing(5)


def test_unknown_kinds_and_undecodable_args_are_failures_too(client: Client) -> None:
    client.enqueue(None, {}, kind="nobody.knows")
    client.enqueue(None, {"n": "text"}, kind="thing")
    pool = WorkerPool(client, {Thing: nothing})
    with client.subscribe() as events:
        assert pool.work_one()
        assert pool.work_one()
        assert [event.kind for event in waiting_in(events)] == [EventKind.FAILED] * 2


def test_a_job_that_a_stop_cuts_off_is_interrupted_and_one_that_is_cancelled_by_hand_cancelled(
    client: Client, stored: Stored
) -> None:
    started = threading.Semaphore(0)

    def loop(tx: Tx, job: Job[Any]) -> None:
        started.release()
        while True:
            sum(range(100))

    cancelled, stopped = client.enqueue(None, Thing()), client.enqueue(None, Thing(), queue="other")
    subscription = client.subscribe()
    pool = WorkerPool(client, {Thing: loop}, queues={"default": 1, "other": 1}).start()
    assert started.acquire(timeout=10)
    assert started.acquire(timeout=10)
    client.cancel(cancelled.id)
    wait_until(lambda: len(subscription) == 1)
    pool.stop(ZERO)
    events = list(subscription)
    assert [(event.kind, event.job.id) for event in events] == [
        (EventKind.CANCELLED, cancelled.id),
        (EventKind.INTERRUPTED, stopped.id),
    ]
    assert [event.job.state for event in events] == [JobState.CANCELLED, JobState.AVAILABLE]


def test_a_handler_that_cannot_be_ended_is_one_event(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgjobs.execution.attempt.AFTER_TIMEOUT", QUICK)
    release = threading.Event()

    def deaf(tx: Tx, job: Job[Any]) -> None:
        while not release.is_set():
            try:
                release.wait(0.05)
            except BaseException:
                continue

    client.enqueue(None, Thing())
    subscription = client.subscribe()
    with WorkerPool(client, {Thing: deaf}, queues={"default": 1}, timeout=SECOND / 10, backoff=LATER):
        wait_until(lambda: len(subscription) == 1)
        release.set()
    assert [event.kind for event in subscription] == [EventKind.FAILED]


@pytest.mark.conformance(236)
@pytest.mark.parametrize("detached", [False, True])
def test_the_statistics_of_an_event_are_the_times_it_took(client: Client, sql: Rows, *, detached: bool) -> None:
    from pgjobs import Handler

    def handler(tx: Tx | None, job: Job[Any]) -> None:
        until = time.monotonic() + 0.05
        while time.monotonic() < until:
            sum(range(100))

    client.enqueue(None, Thing())
    sql("UPDATE pgjobs.job SET scheduled_at = now() - interval '1 minute'")
    with client.subscribe() as subscription:
        assert WorkerPool(client, {Thing: Handler(handler, detached=detached)}).work_one()
        (event,) = waiting_in(subscription)
    assert 60 * SECOND <= event.stats.queue_wait < 90 * SECOND
    assert SECOND / 20 <= event.stats.run < 30 * SECOND
    assert ZERO < event.stats.finish < 30 * SECOND


def test_a_job_that_was_asked_for_before_its_time_has_not_waited(client: Client) -> None:
    job = client.enqueue(None, Thing(), delay=timedelta(hours=1))
    with client.subscribe() as subscription:
        with client.lock_job(id=job.id):
            pass
        (event,) = waiting_in(subscription)
    assert event.stats.queue_wait == ZERO


# --- bounded, and in nobody's way


@pytest.mark.conformance(235)
def test_a_subscriber_that_never_reads_slows_nobody_and_holds_so_many_events(client: Client, sql: Rows) -> None:
    client.enqueue_many(None, [Thing(n) for n in range(101)])
    subscription = client.subscribe(size=100)
    with WorkerPool(client, {Thing: nothing}, queues={"default": 2}):
        wait_until(lambda: sql("SELECT count(*) FROM pgjobs.job WHERE state = 'completed'") == [(101,)])
        wait_until(lambda: subscription.dropped)
    assert (len(subscription), subscription.dropped) == (100, 1)
    assert len(list(subscription)) == 100


def test_the_events_that_are_kept_are_the_first_ones(client: Client) -> None:
    jobs = client.enqueue_many(None, [Thing(n) for n in range(4)])
    pool = WorkerPool(client, {Thing: nothing})
    with client.subscribe(size=2) as subscription:
        for _ in range(3):
            assert pool.work_one()
        first = subscription.get(ZERO)
        assert first is not None
        assert first.job.id == jobs[0].id
        assert pool.work_one()
        assert [event.job.id for event in waiting_in(subscription)] == [jobs[1].id, jobs[3].id], "there was room again"
        assert subscription.dropped == 1


def test_a_thousand_are_kept_by_default(client: Client) -> None:
    assert inspect.signature(client.subscribe).parameters["size"].default == 1000


def test_a_subscriber_may_wait_for_the_next_event(client: Client) -> None:
    got: list[Event | None] = []
    with client.subscribe() as subscription:
        assert subscription.get(SECOND / 50) is None
        reader = threading.Thread(target=lambda: got.append(subscription.get()), daemon=True)
        reader.start()
        client.enqueue(None, Thing())
        assert WorkerPool(client, {Thing: nothing}).work_one()
        reader.join(10)
    assert [event.kind for event in got if event] == [EventKind.COMPLETED]


@pytest.mark.conformance(230)
def test_a_subscriber_that_fails_harms_nobody(client: Client, sql: Rows) -> None:
    failed = threading.Event()

    def read(subscription: Subscription) -> None:
        try:
            for event in subscription:
                raise ValueError(event.kind)
        except ValueError:
            failed.set()

    others = client.subscribe()
    threading.Thread(target=read, args=(client.subscribe(),), daemon=True).start()
    with WorkerPool(client, {Thing: nothing}, queues={"default": 1}):
        client.enqueue(None, Thing())
        assert failed.wait(10)
        client.enqueue(None, Thing())
        wait_until(lambda: len(others) == 2)
    assert sql("SELECT DISTINCT state FROM pgjobs.job") == [("completed",)]


# --- when it ends


def test_a_subscription_ends_when_the_pool_stops_and_what_it_holds_can_be_read_then(client: Client) -> None:
    seen: list[Event] = []
    subscription = client.subscribe()
    reader = threading.Thread(target=lambda: seen.extend(subscription), daemon=True)
    client.enqueue_many(None, [Thing(), Thing()])
    with WorkerPool(client, {Thing: nothing}, queues={"default": 1}):
        wait_until(lambda: len(subscription) == 2)
    reader.start()
    reader.join(10)
    assert not reader.is_alive()
    assert len(seen) == 2
    assert subscription.get() is None


def test_a_subscriber_that_waits_is_let_go_when_the_pool_stops(client: Client) -> None:
    seen: list[Event] = []
    subscription = client.subscribe()
    pool = WorkerPool(client, {Thing: nothing}, queues={"default": 1}).start()
    reader = threading.Thread(target=lambda: seen.extend(subscription), daemon=True)
    reader.start()
    pool.stop()
    reader.join(10)
    assert not reader.is_alive()
    assert seen == []


def test_a_subscription_hears_two_pools_and_ends_with_the_last(client: Client) -> None:
    first = WorkerPool(client, {Thing: nothing}, queues={"default": 1}, name="first").start()
    second = WorkerPool(client, {Thing: nothing}, queues={"other": 1}, name="second").start()
    subscription = client.subscribe()
    client.enqueue(None, Thing(1))
    client.enqueue(None, Thing(2), queue="other")
    wait_until(lambda: len(subscription) == 2)
    first.stop()
    client.enqueue(None, Thing(3), queue="other")
    wait_until(lambda: len(subscription) == 3)
    second.stop()
    assert sorted(event.job.args.n for event in subscription) == [1, 2, 3]


def test_a_start_that_failed_and_a_stop_of_what_did_not_run_end_no_subscription(
    client: Client, other_client: Client
) -> None:
    subscription = client.subscribe()
    running = WorkerPool(client, {Thing: nothing}, queues={"default": 1}).start()
    try:
        WorkerPool(client, {Thing: nothing}, name="never started").stop()
        client.enqueue(None, Thing())
        wait_until(lambda: len(subscription) == 1)
        other_client.enqueue(None, Thing())
        with other_client.subscribe() as others:
            assert WorkerPool(other_client, {Thing: nothing}).work_one()
            assert len(waiting_in(others)) == 1
        assert len(subscription) == 1, "another client's events are its own"
        client.enqueue(None, Thing())
        wait_until(lambda: len(subscription) == 2)
    finally:
        running.stop()
    assert len(list(subscription)) == 2, "it has ended"


def test_a_pool_that_is_started_again_is_heard_by_who_subscribes_again(client: Client) -> None:
    pool = WorkerPool(client, {Thing: nothing}, queues={"default": 1})
    for _ in range(2):
        subscription = client.subscribe()
        with pool:
            client.enqueue(None, Thing())
            wait_until(lambda: len(subscription) == 1)  # noqa: B023
        assert len(list(subscription)) == 1


def test_a_closed_subscription_hears_nothing_more(client: Client) -> None:
    client.enqueue_many(None, [Thing(), Thing()])
    pool = WorkerPool(client, {Thing: nothing})
    with client.subscribe() as subscription:
        assert pool.work_one()
    assert pool.work_one()
    assert len(list(subscription)) == 1
    subscription.close()


@pytest.mark.parametrize(
    ("kinds", "size"), [("job_failed", 1), (["job_exploded"], 1), ([5], 1), ([], 0), ([], -1)], ids=repr
)
def test_what_nobody_can_subscribe_to_is_refused(client: Client, kinds: Any, size: int) -> None:
    with pytest.raises(InvalidSetting):
        client.subscribe(kinds, size=size)


def test_kinds_may_be_named_by_their_strings(client: Client) -> None:
    client.enqueue(None, Thing())
    with client.subscribe(["job_completed"]) as completed, client.subscribe(["job_failed"]) as failed:
        assert WorkerPool(client, {Thing: nothing}).work_one()
        assert (len(completed), len(failed)) == (1, 0)


# --- one by one, and of queues


@pytest.mark.finding("E10")
def test_events_can_be_read_one_by_one(client: Client) -> None:
    """`next(subscription)` was a TypeError."""
    with client.subscribe() as events:
        for n in range(2):
            client.enqueue(None, Thing(n))
        pool = WorkerPool(client, {Thing: nothing})
        assert pool.work_one()
        assert pool.work_one()
        assert [next(events).job.args.n, next(events).job.args.n] == [0, 1]
        events.close()
        with pytest.raises(StopIteration):
            next(events)


def told(events: Subscription[QueueEvent], count: int) -> list[tuple[str, str]]:
    """The next events of queues."""
    found = [events.get(20 * SECOND) for _ in range(count)]
    return [(event.kind, event.queue) for event in found if event is not None]


@pytest.mark.finding("E10")
@pytest.mark.parametrize("listen", [True, False])
def test_a_pause_by_whichever_process_is_an_event_in_each_with_a_pool(
    client: Client, database: str, listen: bool
) -> None:
    """Nothing told that a queue was paused or resumed."""
    with Client(database, schema=client.schema) as other, WorkerPool(client, {Thing: nothing}, listen=listen):
        events = client.subscribe(["queue_paused", "queue_resumed"])
        paused = client.subscribe([QueueEventKind.PAUSED])
        attempts = client.subscribe()
        other.queues.pause("default")
        assert told(events, 1) == [("queue_paused", "default")]
        other.queues.resume("default")
        assert told(events, 1) == [("queue_resumed", "default")]
        client.enqueue(None, Thing(), queue="mail")
        client.queues.pause("*")
        assert told(events, 2) == [("queue_paused", "default"), ("queue_paused", "mail")]
        assert told(paused, 3) == [("queue_paused", name) for name in ("default", "default", "mail")]
        assert events.get(ZERO) is None
        assert attempts.get(ZERO) is None, "all kinds are those of attempts"
    assert events.get(SECOND) is None, "closed with the pool"


@pytest.mark.finding("E10")
def test_what_was_paused_before_is_no_news(client: Client) -> None:
    """Only changes are told: to who subscribed before the pool started, and after a stop too."""
    client.enqueue(None, Thing(), queue="mail")
    client.queues.pause("mail")
    pool = WorkerPool(client, {Thing: nothing}, queues={"idle": 1})
    for _ in range(2):
        with client.subscribe(["queue_paused", "queue_resumed"]) as events, pool:
            client.queues.resume("mail")
            assert told(events, 1) == [("queue_resumed", "mail")]
        client.queues.pause("mail")


@pytest.mark.finding("E10")
def test_two_pools_of_a_client_tell_it_once(client: Client) -> None:
    """Each of them looks every second."""
    with WorkerPool(client, {Thing: nothing}), WorkerPool(client, {Thing: nothing}, queues={"other": 1}):
        events = client.subscribe(["queue_paused", "queue_resumed"])
        for _ in range(3):
            client.queues.pause("other")
            assert told(events, 1) == [("queue_paused", "other")]
            client.queues.resume("other")
            assert told(events, 1) == [("queue_resumed", "other")]
        assert events.get(2 * SECOND) is None


@pytest.mark.finding("E10")
def test_who_asks_for_both_gets_both(client: Client) -> None:
    """In one subscription, told apart by their class or their kind."""
    with WorkerPool(client, {Thing: nothing}):
        events = client.subscribe(["job_completed", "queue_paused"])
        client.enqueue(None, Thing())
        first = events.get(20 * SECOND)
        client.queues.pause("default")
        second = events.get(20 * SECOND)
    assert isinstance(first, Event)
    assert second == QueueEvent(QueueEventKind.PAUSED, "default")
