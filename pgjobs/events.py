"""Events and subscriptions of a client: one event for each attempt that ends in this process, and for each queue that
any process pauses or resumes."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, Self

from pgjobs import checks
from pgjobs.errors import InvalidSetting, shown
from pgjobs.forking import this_process
from pgjobs.job import Job
from pgjobs.options import FIRST_INSTANT


class EventKind(StrEnum):
    """How an attempt ended."""

    COMPLETED = "job_completed"
    FAILED = "job_failed"  # retried or discarded: see `event.job.state`
    CANCELLED = "job_cancelled"
    SNOOZED = "job_snoozed"
    INTERRUPTED = "job_interrupted"  # by a stop of the worker pool; the attempt is not counted


class QueueEventKind(StrEnum):
    """A change of a queue."""

    PAUSED = "queue_paused"
    RESUMED = "queue_resumed"


#: The kinds as text, which every parameter that takes a kind accepts too.
EventName = Literal["job_completed", "job_failed", "job_cancelled", "job_snoozed", "job_interrupted"]
QueueEventName = Literal["queue_paused", "queue_resumed"]


@dataclass(frozen=True, slots=True)
class JobStats:
    """The durations of an attempt."""

    queue_wait: timedelta  # from the time the job was due to its claim, by the database's clock
    run: timedelta  # the handler
    finish: timedelta  # writing the outcome, and the commit


@dataclass(frozen=True, slots=True)
class Event:
    """An attempt ended. `job` has the state after it."""

    kind: EventKind
    job: Job[Any]
    stats: JobStats


@dataclass(frozen=True, slots=True)
class QueueEvent:
    """A queue was paused or resumed."""

    kind: QueueEventKind
    queue: str


if TYPE_CHECKING:
    from typing_extensions import TypeVar

    E = TypeVar("E", default=Event)  # a plain Subscription is a Subscription[Event]
else:
    from typing import TypeVar

    E = TypeVar("E")


class Subscription(Generic[E]):
    """An iterator of events, from `client.subscribe(...)`; also a context manager that closes it.

    The iteration waits for the next event. It ends when the subscription is closed, which also happens when the last
    worker pool of the client stops. At most `size` unread events are kept; further ones are dropped, and counted in
    `dropped`.
    """

    def __init__(self, kinds: frozenset[EventKind | QueueEventKind], size: int, hub: Events) -> None:
        self.kinds = kinds
        self.dropped = 0
        self._size = size
        self._hub = hub
        self._waiting: deque[E] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._process = this_process()

    def __len__(self) -> int:
        """The number of unread events."""
        return len(self._waiting)

    def get(self, timeout: timedelta | None = None) -> E | None:
        """The next event; None if none comes within `timeout` (None waits for ever), or if the subscription is closed
        and has no unread events."""
        seconds = checks.timeout_seconds(timeout)
        if self._process != this_process():  # its events happen in the parent process
            return None
        deadline = None if seconds is None else time.monotonic() + seconds
        with self._changed:
            while not self._waiting and not self._closed:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return None
                self._changed.wait(left)
            return self._waiting.popleft() if self._waiting else None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> E:
        event = self.get()
        if event is None:
            raise StopIteration
        return event

    def close(self) -> None:
        """Stop adding events. Unread events can still be read."""
        if self._process != this_process():
            return
        self._hub.remove(self)
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def put(self, event: E) -> None:
        """Add an event. Never blocks: a worker thread calls this."""
        with self._changed:
            if len(self._waiting) >= self._size:
                self.dropped += 1
            elif not self._closed:
                self._waiting.append(event)
                self._changed.notify()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Events:
    """The subscriptions of one client."""

    def __init__(self) -> None:
        self._subscriptions: tuple[Subscription[Any], ...] = ()
        self.reset()

    def reset(self) -> None:
        """Start empty, as in a forked child, where no worker pool runs and no thread waits for events."""
        self._lock = threading.Lock()
        self._subscriptions = ()
        self._worker_pools = 0  # that are running
        self._paused: dict[str, datetime] | None = None  # since when each queue is paused; None if not known
        self._paused_at = FIRST_INSTANT  # when `_paused` was read, by the database's clock

    def __bool__(self) -> bool:
        """Whether there are subscriptions."""
        return bool(self._subscriptions)

    @property
    def wants_queue_events(self) -> bool:
        """Whether a worker pool should read which queues are paused."""
        return self._worker_pools > 0 and any(
            kind in subscription.kinds for subscription in self._subscriptions for kind in QueueEventKind
        )

    @property
    def knows_paused_queues(self) -> bool:
        return self._paused is not None

    def update_paused_queues(self, now: datetime, paused: dict[str, datetime]) -> None:
        """Publish the changes since the last call. `paused` maps each paused queue to its pause time, as read at `now`.

        Several worker pools of a client call this; a reading that is older than the last one is ignored.
        """
        with self._lock:
            before = self._paused
            if before is not None and now <= self._paused_at:
                return
            self._paused, self._paused_at = paused, now
            if before is None:
                return
            for queue in sorted(before.keys() | paused.keys()):
                if before.get(queue) == paused.get(queue):
                    continue
                if queue in before:
                    self.publish(QueueEvent(QueueEventKind.RESUMED, queue))
                if queue in paused:
                    self.publish(QueueEvent(QueueEventKind.PAUSED, queue))

    def forget_paused_queues(self) -> None:
        """Called when no subscription wants queue events, so that a later one does not get old changes."""
        self._paused = None

    def subscribe(self, kinds: Iterable[str], size: int) -> Subscription[Any]:
        checks.check_number("size", size, 1)
        checks.check_list("kinds", kinds, "EventKind")
        try:
            chosen = frozenset(_kind(kind) for kind in kinds) or frozenset(EventKind)
        except ValueError:
            known = ", ".join((*EventKind, *QueueEventKind))
            raise InvalidSetting(f"kinds must be kinds of events ({known}), not {shown(kinds)}") from None
        subscription: Subscription[Any] = Subscription(chosen, size, self)
        with self._lock:
            self._subscriptions = (*self._subscriptions, subscription)
        return subscription

    def remove(self, subscription: Subscription[Any]) -> None:
        with self._lock:
            self._subscriptions = tuple(other for other in self._subscriptions if other is not subscription)

    def publish(self, event: Event | QueueEvent) -> None:
        for subscription in self._subscriptions:
            if event.kind in subscription.kinds:
                subscription.put(event)

    def worker_pool_started(self) -> None:
        with self._lock:
            self._worker_pools += 1

    def worker_pool_stopped(self) -> None:
        """Close all subscriptions after the last worker pool, since no more events will come."""
        with self._lock:
            self._worker_pools -= 1
            if self._worker_pools:
                return
            self._paused = None
            subscriptions = self._subscriptions
        for subscription in subscriptions:
            with suppress(Exception):
                subscription.close()


def _kind(kind: object) -> EventKind | QueueEventKind:
    known: tuple[EventKind | QueueEventKind, ...] = (*EventKind, *QueueEventKind)
    for member in known:
        if member == kind:
            return member
    raise ValueError
