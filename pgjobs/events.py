"""What a client tells those who subscribe: one event for each attempt that ends in this process."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

from pgjobs import settings
from pgjobs.errors import InvalidSetting
from pgjobs.forking import this_process
from pgjobs.job import Job


class EventKind(StrEnum):
    """How an attempt ended."""

    COMPLETED = "job_completed"
    FAILED = "job_failed"  # it will be retried, or is discarded: `event.job.state` says
    CANCELLED = "job_cancelled"
    SNOOZED = "job_snoozed"
    INTERRUPTED = "job_interrupted"  # cut off by a stop; its attempt is given back


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


class Subscription:
    """Events as they come: `for event in subscription`, which ends when it is closed, and it is when the worker pool
    stops. What it holds is bounded: events beyond `size` that nobody has read are dropped, and counted."""

    def __init__(self, kinds: frozenset[EventKind], size: int, hub: Events) -> None:
        self.kinds = kinds
        self.dropped = 0
        self._size = size
        self._hub = hub
        self._waiting: deque[Event] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._process = this_process()

    def __len__(self) -> int:
        """How many events wait to be read."""
        return len(self._waiting)

    def get(self, timeout: timedelta | None = None) -> Event | None:
        """The next event; None when there was none for `timeout`, or when it is closed and all is read."""
        seconds = settings.patience(timeout)
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

    def __iter__(self) -> Iterator[Event]:
        while (event := self.get()) is not None:
            yield event

    def close(self) -> None:
        """No more events; those that wait can still be read."""
        if self._process != this_process():
            return
        self._hub.remove(self)
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def put(self, event: Event) -> None:
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
        self._subscriptions: tuple[Subscription, ...] = ()
        self.begin_anew()

    def begin_anew(self) -> None:
        """In a forked child: nobody listens, and no pool runs."""
        self._lock = threading.Lock()
        self._subscriptions = ()
        self._worker_pools = 0  # that run now

    def __bool__(self) -> bool:
        """Whether anybody listens."""
        return bool(self._subscriptions)

    def subscribe(self, kinds: Iterable[EventKind | str], size: int) -> Subscription:
        settings.check_number("size", size, 1)
        settings.several("kinds", kinds, "EventKind")
        try:
            chosen = frozenset(EventKind(kind) for kind in kinds) or frozenset(EventKind)
        except ValueError as error:
            raise InvalidSetting(f"{error}: the kinds of events are {', '.join(EventKind)}") from None
        subscription = Subscription(chosen, size, self)
        with self._lock:
            self._subscriptions = (*self._subscriptions, subscription)
        return subscription

    def remove(self, subscription: Subscription) -> None:
        with self._lock:
            self._subscriptions = tuple(other for other in self._subscriptions if other is not subscription)

    def publish(self, event: Event) -> None:
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
        for subscription in over:
            with suppress(Exception):
                subscription.close()
