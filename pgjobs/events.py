"""What a client tells those who subscribe: one event for each attempt that ends in this process, and for each queue
that is paused or resumed by whichever process."""

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
    FAILED = "job_failed"  # it will be retried, or is discarded: `event.job.state` says
    CANCELLED = "job_cancelled"
    SNOOZED = "job_snoozed"
    INTERRUPTED = "job_interrupted"  # cut off by a stop; its attempt is given back


class QueueEventKind(StrEnum):
    """What has become of a queue."""

    PAUSED = "queue_paused"
    RESUMED = "queue_resumed"


#: The kinds as text.
EventName = Literal["job_completed", "job_failed", "job_cancelled", "job_snoozed", "job_interrupted"]
QueueEventName = Literal["queue_paused", "queue_resumed"]


@dataclass(frozen=True, slots=True)
class JobStats:
    """How long the parts of an attempt took."""

    queue_wait: timedelta  # from when the job was due to its claim, by the database's clock
    run: timedelta  # in the handler
    finish: timedelta  # to write the outcome and commit


@dataclass(frozen=True, slots=True)
class Event:
    kind: EventKind
    job: Job[Any]  # as the attempt left it
    stats: JobStats


@dataclass(frozen=True, slots=True)
class QueueEvent:
    kind: QueueEventKind
    queue: str


if TYPE_CHECKING:
    from typing_extensions import TypeVar

    E = TypeVar("E", default=Event)  # so that Subscription alone is one of job events
else:
    from typing import TypeVar

    E = TypeVar("E")


class Subscription(Generic[E]):
    """Events as they come: `for event in subscription`, which ends when it is closed, and it is when the worker pool
    stops; or one by one, `next(subscription)`. What it holds is bounded: events beyond `size` that nobody has read are
    dropped, and counted."""

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
        """How many events wait to be read."""
        return len(self._waiting)

    def get(self, timeout: timedelta | None = None) -> E | None:
        """The next event; None when there was none for `timeout`, or when it is closed and all is read."""
        seconds = checks.timeout_seconds(timeout)
        if self._process != this_process():  # what it is told of happens in the process that forked this one
            return None
        give_up = None if seconds is None else time.monotonic() + seconds
        with self._changed:
            while not self._waiting and not self._closed:
                left = None if give_up is None else give_up - time.monotonic()
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
        """No more events; those that wait can still be read."""
        if self._process != this_process():
            return
        self._hub.remove(self)
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def put(self, event: E) -> None:
        """Never waits for a reader."""
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
        """In a forked child there are no subscribers, and no worker pool runs."""
        self._lock = threading.Lock()
        self._subscriptions = ()
        self._worker_pools = 0  # that run now
        self._paused: dict[str, datetime] | None = None  # the queues, and since when; None without subscribers
        self._paused_at = FIRST_INSTANT  # when that was so, by the database's clock

    def __bool__(self) -> bool:
        """Whether anybody listens."""
        return bool(self._subscriptions)

    @property
    def wants_queue_events(self) -> bool:
        """Whether a worker pool is to look which queues are paused."""
        return self._worker_pools > 0 and any(
            kind in subscription.kinds for subscription in self._subscriptions for kind in QueueEventKind
        )

    @property
    def knows_paused_queues(self) -> bool:
        return self._paused is not None

    def update_paused_queues(self, now: datetime, paused: dict[str, datetime]) -> None:
        """Which queues are paused, and since when; tells what has changed since the last time. Several worker pools of
        a client look: what one of them saw earlier, and tells later, is past."""
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
                    self._publish(QueueEvent(QueueEventKind.RESUMED, queue))
                if queue in paused:
                    self._publish(QueueEvent(QueueEventKind.PAUSED, queue))

    def forget_paused_queues(self) -> None:
        """Nobody asks any more: what changes meanwhile is not told later."""
        self._paused = None

    def subscribe(self, kinds: Iterable[str], size: int) -> Subscription[Any]:
        checks.check_number("size", size, 1)
        checks.check_list("kinds", kinds, "EventKind")
        try:
            chosen = frozenset(_kind(kind) for kind in kinds) or frozenset(EventKind)
        except ValueError:
            known = ", ".join((*EventKind, *QueueEventKind))
            raise InvalidSetting(f"the kinds of events are {known}; not {shown(kinds)}") from None
        subscription: Subscription[Any] = Subscription(chosen, size, self)
        with self._lock:
            self._subscriptions = (*self._subscriptions, subscription)
        return subscription

    def remove(self, subscription: Subscription[Any]) -> None:
        with self._lock:
            self._subscriptions = tuple(other for other in self._subscriptions if other is not subscription)

    def publish(self, event: Event) -> None:
        self._publish(event)

    def _publish(self, event: Event | QueueEvent) -> None:
        for subscription in self._subscriptions:
            if event.kind in subscription.kinds:
                subscription.put(event)

    def worker_pool_started(self) -> None:
        with self._lock:
            self._worker_pools += 1

    def worker_pool_stopped(self) -> None:
        """When it was the last one, nothing will happen any more: the subscriptions are closed."""
        with self._lock:
            self._worker_pools -= 1
            over = self._subscriptions if self._worker_pools == 0 else ()
            if self._worker_pools == 0:
                self._paused = None
        for subscription in over:
            with suppress(Exception):
                subscription.close()


def _kind(kind: object) -> EventKind | QueueEventKind:
    known: tuple[EventKind | QueueEventKind, ...] = (*EventKind, *QueueEventKind)
    for member in known:
        if member == kind:
            return member
    raise ValueError
