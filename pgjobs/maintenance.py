"""The duties that keep the queue moving, and the one thread that repeats them.

No process is the leader. A duty is a row with a time; whoever can lock that row when it is due does the duty, in short
transactions that the server bounds, and moves the time on. So a process that dies or hangs holds nobody up.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import psycopg

from pgjobs.error_text import one_line
from pgjobs.job import Job, JobState
from pgjobs.store import AnyConnection, Store
from pgjobs.transaction import PoolSource

log = logging.getLogger("pgjobs.maintenance")

BATCH = 1000  # rows that one transaction of a duty touches at most
# A claim and its lock leave in one message, so a running row this old without a lock has lost its worker.
RESCUE_GRACE = timedelta(seconds=3)
PROMOTE_EVERY = timedelta(seconds=1)  # at the latest; an enqueue that is due within twice that tells, see enqueue.sql
_PROMOTE_AGAIN = timedelta(milliseconds=20)  # for a job that is due still because somebody holds it
_RESCUE_EVERY = timedelta(seconds=1)
_CLEAN_EVERY = timedelta(seconds=30)
AFTER_FAILURE = timedelta(seconds=5)
_AT_LEAST_EVERY = timedelta(seconds=1)  # look whether somebody else's duty is due
_SOON = timedelta(0)
_ONE_BY_ONE = 50  # rows of a transaction that puts each behind a savepoint: more would overflow a cache of the server
_BESIDE_EVERY = 1.0  # seconds


class Maintenance:
    """The acts. Each is one call that does all there is to do now, and returns when it wants to be done again."""

    def __init__(
        self,
        store: Store,
        *,
        keep: Mapping[JobState, timedelta | None],
        wake: Callable[[str, int], None] = lambda queue, jobs: None,
        rescued: Callable[[Job[Any]], None] = lambda job: None,
    ) -> None:
        self._store = store
        self._keep = keep
        self._wake = wake
        self._rescued = rescued
        self._promoted: dict[str, int] = {}
        self.duties: dict[str, Callable[[AnyConnection], timedelta]] = {
            "promote": self.promote,
            "rescue": self.rescue,
            "clean": self.clean,
        }

    def promote(self, conn: AnyConnection) -> timedelta:
        """Make due jobs available; until exactly the next one is due."""
        self._promoted = self._store.promote(conn, BATCH)
        if sum(self._promoted.values()) >= BATCH:
            return _SOON
        due = self._store.next_due(conn)
        if due is None:
            return PROMOTE_EVERY
        return min(due, PROMOTE_EVERY) if due > _SOON else _PROMOTE_AGAIN

    def rescue(self, conn: AnyConnection) -> timedelta:
        """Finish the attempts of workers that vanished, and what is left of requests to cancel attempts that ended."""
        jobs = self._store.rescue(conn, BATCH, RESCUE_GRACE)
        for job in jobs:
            log.warning("job %d rescued: its worker vanished in attempt %d; now %s", job.id, job.attempt, job.state)
            self._rescued(job)
        cancelled, gone = self._store.settle_requests(conn, BATCH)
        if cancelled:
            log.info("%d jobs cancelled whose attempt ended while that was being asked for", cancelled)
        return _SOON if max(len(jobs), gone) >= BATCH else _RESCUE_EVERY

    def clean(self, conn: AnyConnection) -> timedelta:
        """Delete what has been over for longer than it is kept."""
        deleted = [self._clean(conn, state, keep) for state, keep in self._keep.items() if keep is not None]
        return _SOON if max(deleted, default=0) >= BATCH else _CLEAN_EVERY

    def _clean(self, conn: AnyConnection, state: JobState, keep: timedelta) -> int:
        """How many were deleted; a full batch's worth when it is worth going on at once."""
        try:
            with conn.transaction():
                return self._store.clean(conn, state, keep, BATCH)
        except psycopg.IntegrityError as error:
            log.warning("some %s jobs are kept: the application refers to them: %s", state, one_line(error))
        deleted = 0
        for id, queue in self._store.some_old_jobs(conn, state, keep, _ONE_BY_ONE):
            with suppress(psycopg.IntegrityError), conn.transaction():
                self._store.clean_one(conn, state, id, queue)
                deleted += 1
        return BATCH if deleted else 0

    def do(self, conn: AnyConnection, duty: str) -> timedelta:
        """Do a duty if it is due and nobody else is at it; how long until it is due again."""
        remaining = self._store.begin_duty(conn, duty)
        if remaining is None:  # somebody else is at it
            return _AT_LEAST_EVERY
        if remaining > _SOON:
            return min(remaining, _AT_LEAST_EVERY)
        after = self.duties[duty](conn)
        self._store.end_duty(conn, duty, after)
        self._wake_promoted()  # not before others can see them
        return after

    def _wake_promoted(self) -> None:
        promoted, self._promoted = self._promoted, {}
        for queue, jobs in promoted.items():
            self._wake(queue, jobs)

    def hurry(self, conn: AnyConnection) -> None:
        """A job was enqueued that is due before the next promote was to be."""
        self._store.hurry_promote(conn)

    def postpone(self, conn: AnyConnection, duty: str) -> None:
        """After a failure: move the duty's time on, so that not every process tries it hot."""
        self._store.postpone_duty(conn, duty, AFTER_FAILURE)


class MaintenanceThread:
    """Repeats the duties until it is stopped."""

    def __init__(
        self,
        maintenance: Maintenance,
        source: PoolSource,
        *,
        name: str,
        beside: Callable[[AnyConnection], None] = lambda conn: None,
        tick: Callable[[AnyConnection], timedelta] = lambda conn: _AT_LEAST_EVERY,
        at_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._maintenance = maintenance
        self._acts: dict[str, Callable[[AnyConnection], timedelta]] = {
            **{duty: partial(maintenance.do, duty=duty) for duty in maintenance.duties},
            "tick": tick,  # no duty of one process: each looks after the schedules that it has
        }
        self._at_end = at_end
        self._hurried: SimpleQueue[str] = SimpleQueue()
        self._source = source
        self._beside = beside  # what concerns this process alone; called every second, and when called for
        self._called = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._repeat, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float | None = None) -> bool:
        """Stop after the act under way. Says whether the thread has ended."""
        self._stopping = True
        self._called.set()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def call(self) -> None:
        """Something is to be looked at now."""
        self._called.set()

    def hurry(self, act: str) -> None:
        """There may be something for this act before its time. May be called from any thread."""
        self._hurried.put(act)
        self._called.set()

    def _repeat(self) -> None:
        due = dict.fromkeys(self._acts, 0.0)
        while not self._stopping:
            for act in self._taken_hurries():
                due[act] = 0.0
            for duty, when in due.items():
                if when <= time.monotonic() and not self._stopping:
                    due[duty] = time.monotonic() + self._attempt(duty, self._acts[duty]).total_seconds()
            self._look_beside()
            self._called.wait(max(0.0, min(*due.values(), time.monotonic() + _BESIDE_EVERY) - time.monotonic()))
            self._called.clear()
        self._at_end()

    def _taken_hurries(self) -> set[str]:
        hurried = set()
        with suppress(Empty):
            while True:
                hurried.add(self._hurried.get_nowait())
        if "promote" in hurried:
            self._attempt("promote", self._hurry_promote)
        return hurried

    def _hurry_promote(self, conn: AnyConnection) -> timedelta:
        self._maintenance.hurry(conn)
        return _SOON

    def _look_beside(self) -> None:
        try:
            with self._source.own_checkout() as held:
                self._beside(held.conn)
        except Exception as error:
            with suppress(Exception):
                log.warning("could not look for jobs to cancel: %s", one_line(error))

    def _attempt(self, duty: str, act: Callable[[AnyConnection], timedelta]) -> timedelta:
        """Do one act, whatever may come of it; when to try it again."""
        try:
            with self._source.own_checkout() as held:
                return act(held.conn)
        except Exception as error:  # the thread outlives every error of the database
            with suppress(Exception):  # a handler of the log that fails
                log.warning("duty %s failed and is tried again in %s: %s", duty, AFTER_FAILURE, one_line(error))
        if duty not in self._maintenance.duties:
            return AFTER_FAILURE
        try:
            with self._source.own_checkout() as held:
                self._maintenance.postpone(held.conn, duty)
        except psycopg.Error as error:
            log.debug("duty %s could not be postponed: %s", duty, one_line(error))
        return AFTER_FAILURE
