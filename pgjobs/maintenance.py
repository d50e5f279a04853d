"""The duties that keep the queue moving, and the one thread that repeats them.

No process is the leader. A duty is a row with a time; whoever can lock that row when it is due does the duty, in short
transactions that the server bounds, and moves the time on. So a process that dies or hangs holds nobody up.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta

import psycopg

from pgjobs.job import JobState
from pgjobs.outcome import one_line
from pgjobs.store import AnyConnection, Store
from pgjobs.transaction import PoolSource

log = logging.getLogger("pgjobs.maintenance")

BATCH = 1000  # rows that one transaction of a duty touches at most
# A claim and its lock leave in one message, so a running row this old without a lock has lost its worker.
RESCUE_GRACE = timedelta(seconds=3)
_PROMOTE_EVERY = timedelta(seconds=1)  # at the latest; sooner when a job is due sooner
_RESCUE_EVERY = timedelta(seconds=1)
_CLEAN_EVERY = timedelta(seconds=30)
AFTER_FAILURE = timedelta(seconds=5)
_AT_LEAST_EVERY = timedelta(seconds=1)  # look whether somebody else's duty is due
_SOON = timedelta(0)


class Maintenance:
    """The acts. Each is one call that does all there is to do now, and returns when it wants to be done again."""

    def __init__(
        self,
        store: Store,
        *,
        keep: Mapping[JobState, timedelta | None],
        wake: Callable[[str, int], None] = lambda queue, jobs: None,
    ) -> None:
        self._store = store
        self._keep = keep
        self._wake = wake
        self.duties: dict[str, Callable[[AnyConnection], timedelta]] = {
            "promote": self.promote,
            "rescue": self.rescue,
            "clean": self.clean,
        }

    def promote(self, conn: AnyConnection) -> timedelta:
        """Make due jobs available, and wake threads for them."""
        queues = self._store.promote(conn, BATCH)
        for queue, jobs in queues.items():
            self._wake(queue, jobs)
        if sum(queues.values()) >= BATCH:
            return _SOON
        due = self._store.next_due(conn)
        return _PROMOTE_EVERY if due is None else max(_SOON, min(due, _PROMOTE_EVERY))

    def rescue(self, conn: AnyConnection) -> timedelta:
        """Finish the attempts of workers that vanished."""
        jobs = self._store.rescue(conn, BATCH, RESCUE_GRACE)
        for job in jobs:
            log.warning("job %d rescued: its worker vanished in attempt %d; now %s", job.id, job.attempt, job.state)
        return _SOON if len(jobs) >= BATCH else _RESCUE_EVERY

    def clean(self, conn: AnyConnection) -> timedelta:
        """Delete what has been over for longer than it is kept."""
        deleted = [
            self._store.clean(conn, state, keep, BATCH) for state, keep in self._keep.items() if keep is not None
        ]
        return _SOON if max(deleted, default=0) >= BATCH else _CLEAN_EVERY

    def do(self, conn: AnyConnection, duty: str) -> timedelta:
        """Do a duty if it is due and nobody else is at it; how long until it is due again."""
        remaining = self._store.begin_duty(conn, duty)
        if remaining is None:  # somebody else is at it
            return _AT_LEAST_EVERY
        if remaining > _SOON:
            return min(remaining, _AT_LEAST_EVERY)
        after = self.duties[duty](conn)
        self._store.end_duty(conn, duty, after)
        return after

    def postpone(self, conn: AnyConnection, duty: str) -> None:
        """After a failure: move the duty's time on, so that not every process tries it hot."""
        self._store.postpone_duty(conn, duty, AFTER_FAILURE)


class MaintenanceThread:
    """Repeats the duties until it is stopped."""

    def __init__(self, maintenance: Maintenance, source: PoolSource, *, name: str) -> None:
        self._maintenance = maintenance
        self._source = source
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float | None = None) -> bool:
        """Stop after the act under way. Says whether the thread has ended."""
        self._stopping.set()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _repeat(self) -> None:
        due = dict.fromkeys(self._maintenance.duties, 0.0)
        while not self._stopping.wait(max(0.0, min(due.values()) - time.monotonic())):
            for duty, when in due.items():
                if when <= time.monotonic() and not self._stopping.is_set():
                    due[duty] = time.monotonic() + self._attempt(duty).total_seconds()

    def _attempt(self, duty: str) -> timedelta:
        """Do one duty, whatever may come of it; when to try it again."""
        try:
            with self._source.checkout() as held:
                return self._maintenance.do(held.conn, duty)
        except Exception as error:  # the thread outlives every error of the database
            log.warning("duty %s failed and is tried again in %s: %s", duty, AFTER_FAILURE, one_line(error))
        try:
            with self._source.checkout() as held:
                self._maintenance.postpone(held.conn, duty)
        except psycopg.Error as error:
            log.debug("duty %s could not be postponed: %s", duty, one_line(error))
        return AFTER_FAILURE
