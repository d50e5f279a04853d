"""Writes what the handlers of a process say of their progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from pgjobs.db.cursors import AnyConnection
from pgjobs.execution.attempt import Attempt
from pgjobs.progress import Report
from pgjobs.workers.queries import AttemptKey, WorkerQueries

_WRITE_EVERY = 1.0  # seconds between two statements, or more
_MOST_ROWS = 1000  # of one statement, and so of one second; the others wait for the next


class ProgressWriter:
    """The progress of the attempts of one worker pool; `running` returns those that run now, and `clock` the time in
    seconds. Only the maintenance thread calls it.

    Handlers store their values in their attempts, and take no lock. This compares them with what it has written, so an
    attempt that ends costs nothing: its row goes in the next round.
    """

    def __init__(
        self,
        queries: WorkerQueries,
        running: Callable[[], Iterable[Attempt]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queries = queries
        self._running = running
        self._clock = clock
        self._written: dict[AttemptKey, Report] = {}  # the longest unchanged first
        self._write_at = float("-inf")  # by the clock

    def write(self, conn: AnyConnection) -> None:
        """Write the values that have changed and remove the rows of ended attempts, if that is due."""
        now = self._clock()
        if now < self._write_at:
            return
        said = {
            (attempt.job.id, attempt.job.token): attempt.progress
            for attempt in self._running()
            if attempt.progress is not None and attempt.job.token is not None
        }
        ended = [key for key in self._written if key not in said][:_MOST_ROWS]
        changed = self._next_changed(said)
        if not changed and not ended:
            return
        self._write_at = now + _WRITE_EVERY  # also after a failure
        self._queries.write_progress(conn, changed, ended)
        for key in (*ended, *changed):
            self._written.pop(key, None)
        self._written.update(changed)

    def _next_changed(self, said: dict[AttemptKey, Report]) -> dict[AttemptKey, Report]:
        """The values to write: those of new attempts, then those whose rows are the oldest."""
        new = [key for key in said if key not in self._written]
        old = [key for key, report in self._written.items() if said.get(key, report) != report]
        return {key: said[key] for key in (*new, *old)[:_MOST_ROWS]}

    def remove_all(self, conn: AnyConnection) -> None:
        """Remove all rows: the pool has stopped."""
        written, self._written = list(self._written), {}
        for start in range(0, len(written), _MOST_ROWS):
            self._queries.write_progress(conn, {}, written[start : start + _MOST_ROWS])
