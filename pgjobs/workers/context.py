"""PoolContext: the values that the parts of a worker pool share, and the calls from one part to another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from pgjobs.db.channel import CANCEL_NOTICE, DUE_NOTICE, SCHEDULE_NOTICE
from pgjobs.db.source import PoolSource
from pgjobs.outages import Outages
from pgjobs.queue_settings import RunSettings
from pgjobs.wakeup.idle_threads import IdleThreads
from pgjobs.wakeup.listener import Listener


class DutyThread(Protocol):
    """The maintenance thread, as a worker pool and its parts use it."""

    def wake(self) -> None: ...

    def run_soon(self, duty: str) -> None: ...

    def end(self) -> None: ...

    def stop(self, timeout: float | None = None) -> bool: ...

    @property
    def is_current(self) -> bool: ...

    @property
    def overdue(self) -> float: ...


@dataclass(frozen=True, slots=True, eq=False)
class QueueWorkers:
    """The worker threads of one queue."""

    queue: str
    idle: IdleThreads
    settings: RunSettings

    @property
    def threads(self) -> int:
        return self.idle.threads


@dataclass(slots=True, eq=False)
class PoolContext:
    """One worker pool, as its parts see it. It outlives a stop; `maintenance` and `listener` are set while it runs."""

    name: str
    schema: str
    source: PoolSource
    client_closed: Callable[[], None]  # for a part that finds the connection pool closed
    outages: Outages = field(default_factory=Outages)
    # replaced, never changed, because all threads read it
    queue_workers: Mapping[str, QueueWorkers] = field(default_factory=dict)
    maintenance: DutyThread | None = None
    listener: Listener | None = None

    @property
    def threads(self) -> int:
        return sum(workers.threads for workers in self.queue_workers.values())

    def add(self, workers: QueueWorkers) -> None:
        self.queue_workers = {**self.queue_workers, workers.queue: workers}

    def remove(self, queue: str) -> QueueWorkers:
        """End the threads of the queue when they have finished their jobs, and no longer lead the queue."""
        queue_workers = dict(self.queue_workers)
        workers = queue_workers.pop(queue)
        self.queue_workers = queue_workers
        workers.idle.close()
        if self.listener is not None:
            self.listener.report(workers.idle, queue)
        return workers

    def listening(self) -> bool:
        """Whether notifications arrive."""
        listener = self.listener
        return listener is not None and listener.receiving

    def wake(self, queue: str, jobs: int = 1) -> None:
        """Wake a thread of the queue for new jobs. If it finds one it wakes the next, so the number does not matter."""
        workers = self.queue_workers.get(queue)
        if workers is not None:
            workers.idle.wake()

    def wake_all(self) -> None:
        for workers in self.queue_workers.values():
            workers.idle.wake_all()

    def notified(self, payload: str | None) -> None:
        """Act on a notification, which is a notice or else the name of a queue. With None, act as if all had come,
        because some may have been missed; but not on cancel requests, for which the heartbeat looks every second."""
        if payload == CANCEL_NOTICE:
            self.heartbeat_soon()
        if payload in (DUE_NOTICE, None):
            self.promote_soon()
        if payload in (SCHEDULE_NOTICE, None):
            self.tick_soon()
        for queue, workers in self.queue_workers.items():
            if payload in (queue, None):
                workers.idle.wake()

    def heartbeat_soon(self) -> None:
        """A job may have been cancelled."""
        if (maintenance := self.maintenance) is not None:
            maintenance.wake()

    def promote_soon(self) -> None:
        """A job is due in a moment."""
        self.run_soon("promote")

    def tick_soon(self) -> None:
        """A schedule may want to tick."""
        self.run_soon("tick")

    def run_soon(self, duty: str) -> None:
        if (maintenance := self.maintenance) is not None:
            maintenance.run_soon(duty)
