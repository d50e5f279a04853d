"""The heartbeat: every second a worker process shows that it lives, and looks after its own attempts.

A duty of maintenance is done by one process for all; the heartbeat of a process is for that process alone. It runs on
the maintenance thread.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta

import psycopg

from pgjobs.clean_text import one_line
from pgjobs.db.advice import advised
from pgjobs.db.cursors import AnyConnection
from pgjobs.db.source import in_autocommit
from pgjobs.errors import JobCancelled
from pgjobs.events import Events
from pgjobs.execution.executor import Executor
from pgjobs.loggers import get_logger
from pgjobs.observe.figures import AttemptFigures
from pgjobs.workers.context import PoolContext
from pgjobs.workers.figures_writer import WRITE_EVERY, FiguresWriter
from pgjobs.workers.progress_writer import ProgressWriter
from pgjobs.workers.queries import WorkerQueries
from pgjobs.workers.registration import Description, Registration
from pgjobs.workers.worker_threads import WorkerThreads

log = get_logger("pgjobs.worker")

_REFRESH_QUEUES_EVERY = 60.0  # seconds
_FIGURES = "the writing of figures"  # in the log


class Heartbeat:
    """The heartbeat of one worker pool."""

    def __init__(
        self,
        context: PoolContext,
        executor: Executor,
        threads: WorkerThreads,
        registration: Registration,
        events: Events,
        *,
        figures: AttemptFigures,
        lease: timedelta,
    ) -> None:
        self._context = context
        self._claimer = executor.claimer
        self._watchdog = executor.watchdog
        self._threads = threads
        self._registration = registration
        self._events = events
        self._lease = lease
        self._queries = WorkerQueries(context.schema)
        self._progress = ProgressWriter(self._queries, lambda: self._watchdog.attempts)
        self._counted = figures
        self.reset_for_process()
        # by the monotonic clock
        self.refresh_queues_at = 0.0
        self.extend_leases_at = 0.0

    def reset_for_process(self) -> None:
        """Nothing is written yet: called for a new pool, and in a forked child, whose figures are reset before."""
        self._figures = FiguresWriter(self._queries, self._counted)

    def register_queues(self, names: Iterable[str]) -> None:
        """Make the rows of these queues, so that they are listed at once. Raises InsufficientPrivilege, with advice, if
        the role may not claim jobs: its threads would try again and again."""
        try:
            with advised(self._context.schema), self._context.source.first_connection() as conn:
                if not self._queries.may_claim(conn):
                    raise psycopg.errors.InsufficientPrivilege("permission denied for table job: it may not claim jobs")
                self._queries.refresh_queues(conn, names)
        except psycopg.errors.InsufficientPrivilege:
            raise
        except psycopg.Error as error:  # the pool works without these rows too
            log.warning("%s: could not register its queues: %s", self._context.name, one_line(error))

    def read_paused_queues(self) -> None:
        """Learn which queues are paused now, for subscribers that came before the pool started."""
        if self._events.wants_queue_events and not self._events.knows_paused_queues:
            with suppress(psycopg.Error), self._context.source.first_connection() as conn:
                self._events.update_paused_queues(*self._queries.paused_queues(conn))

    def register(self) -> None:
        """Write the row of this process before its first job starts: if that job kills the process at once, the rescue
        can see that its other jobs had the same worker. Waits a second at most for a locked row."""
        self.refresh_queues_at = time.monotonic() + _REFRESH_QUEUES_EVERY
        self._registration.register(self, self._describe)
        with suppress(psycopg.Error), self._context.source.first_connection() as conn, in_autocommit(conn):
            self._registration.refresh(conn)

    def deregister(self) -> None:
        """Undo lost claims, wake other processes for them, and remove the rows of this process. If this fails, the
        rescue undoes the claims, and the rows are pruned."""
        with self._context.source.own_checkout() as checkout:
            with suppress(psycopg.Error):
                self._claimer.lost_claims.unclaim_due(checkout.conn, at_once=True)
            with suppress(psycopg.Error):
                self._queries.wake_queues(checkout.conn, self._context.queue_workers)
            self._write_figures(checkout.conn, at_once=True)
            self._registration.deregister(self, checkout.conn)
            self._progress.remove_all(checkout.conn)  # the last: its transaction may fail, and stay open

    def _describe(self) -> Description:
        queues = {queue: workers.threads for queue, workers in self._context.queue_workers.items()}
        return Description(queues, list(self._claimer.work_map), self._threads.stuck)

    def beat(self, conn: AnyConnection) -> None:
        self.look_after_attempts(conn)
        self._registration.refresh(conn)
        self._look_for_paused_queues(conn)
        if time.monotonic() >= self.refresh_queues_at:
            self.refresh_queues_at = time.monotonic() + _REFRESH_QUEUES_EVERY
            self._queries.refresh_queues(conn, self._context.queue_workers)
            self._queries.prune_queues(conn)
        self._write_figures(conn)
        self._progress.write(conn)  # the last, since nothing depends on it

    @property
    def unwritten(self) -> int:
        """How many attempts are counted and not in the table of figures."""
        return self._figures.unwritten

    def _write_figures(self, conn: AnyConnection, *, at_once: bool = False) -> None:
        """Write the figures, if that is due. A failure stops nothing else, and they are written later."""
        try:
            if self._figures.write(conn, at_once=at_once):
                self._context.outages.worked(log, _FIGURES, wrote=True)
        except psycopg.Error as error:
            again = "" if at_once else f", and is tried again in {WRITE_EVERY:g} s"
            text = f"{self._context.name}: {_FIGURES} failed{again}"
            self._context.outages.failed(log, _FIGURES, error, text)

    def _look_for_paused_queues(self, conn: AnyConnection) -> None:
        """Publish which queues were paused or resumed, by any process, if a subscription wants to know."""
        if self._events.wants_queue_events:
            self._events.update_paused_queues(*self._queries.paused_queues(conn))
        elif self._events.knows_paused_queues:
            self._events.forget_paused_queues()

    def look_after_attempts(self, conn: AnyConnection) -> None:
        """Undo lost claims, stop the handlers of cancelled jobs, and extend the leases of detached attempts."""
        self._claimer.lost_claims.unclaim_due(conn)
        queries, tokens = self._claimer.queries, self._watchdog.tokens
        cancelled = queries.cancelled_attempts(conn, tokens) if tokens else {}
        # before the loop: an attempt of a batch that starts now is added to the watchdog first, and then looks here
        self._watchdog.cancelled = {(id, token): JobCancelled(reason) for (id, token), reason in cancelled.items()}
        for (id, token), reason in cancelled.items():
            self._watchdog.request_stop(token, JobCancelled(reason), id=id)
        if time.monotonic() < self.extend_leases_at:
            return
        self.extend_leases_at = time.monotonic() + self._lease.total_seconds() / 4
        detached = self._watchdog.detached_tokens
        if detached:
            extended = queries.extend_leases(conn, detached, self._lease)
            self._watchdog.stop_expired_leases(set(detached) - extended)
