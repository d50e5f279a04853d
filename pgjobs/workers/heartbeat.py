"""What each worker process does for itself every second, beside the duties that any process may do for all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import timedelta

from pgjobs.control.queue_queries import QueueQueries
from pgjobs.db.cursors import AnyConnection
from pgjobs.errors import JobCancelled
from pgjobs.events import Events
from pgjobs.execution.claimer import Claimer
from pgjobs.execution.watchdog import Watchdog
from pgjobs.workers.registration import Registration

_KEEP_QUEUES_EVERY = 60.0  # seconds between two words that this process works its queues


class ProcessDuties:
    """Of one pool: it says that it is there, takes back what it has claimed in vain, and looks after its attempts."""

    def __init__(
        self,
        claimer: Claimer,
        watchdog: Watchdog,
        registration: Registration,
        queue_queries: QueueQueries,
        *,
        queues: Callable[[], Iterable[str]],
        lease: timedelta,
        events: Events,
    ) -> None:
        self._claimer = claimer
        self._watchdog = watchdog
        self._registration = registration
        self._queue_queries = queue_queries
        self._queues = queues
        self._lease = lease
        self._events = events
        # when they are next due, by the monotonic clock
        self.keep_queues_at = 0.0
        self.extend_at = 0.0

    def begin(self) -> None:
        """The queues are on record already."""
        self.keep_queues_at = time.monotonic() + _KEEP_QUEUES_EVERY

    def do(self, conn: AnyConnection) -> None:
        self.look_after_attempts(conn)
        self._registration.refresh(conn)
        self.look_at_queues(conn)
        if time.monotonic() >= self.keep_queues_at:
            self.keep_queues_at = time.monotonic() + _KEEP_QUEUES_EVERY
            self._queue_queries.keep_queues(conn, self._queues())
            self._queue_queries.forget_queues(conn)

    def look_at_queues(self, conn: AnyConnection) -> None:
        """Tell those who subscribe to it which queues were paused or resumed, whoever did that."""
        if self._events.wants_queue_events:
            self._events.update_paused_queues(*self._queue_queries.paused(conn))
        elif self._events.knows_paused_queues:
            self._events.forget_paused_queues()

    def look_after_attempts(self, conn: AnyConnection) -> None:
        """Tell the handlers whose jobs somebody has cancelled, and extend the leases of the detached ones."""
        self._claimer.take_back_orphans(conn)
        queries, tokens = self._claimer.queries, self._watchdog.tokens
        wanted = queries.cancelled_attempts(conn, tokens) if tokens else {}
        # first: a job that begins now is watched before it looks here
        self._watchdog.unwanted = {(id, token): JobCancelled(reason) for (id, token), reason in wanted.items()}
        for (id, token), reason in wanted.items():
            self._watchdog.request_stop(token, JobCancelled(reason), id=id)
        if time.monotonic() < self.extend_at:
            return
        self.extend_at = time.monotonic() + self._lease.total_seconds() / 4
        detached = self._watchdog.detached_tokens
        if detached:
            kept = queries.extend_leases(conn, detached, self._lease)
            self._watchdog.stop_those_without_lease(set(detached) - kept)
