"""The metrics of `pgjobs work`: each child reports those of its pool every two seconds, and the parent adds them up.

The parent does not have the application's database. For a scrape it asks one child to read what the database says.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pgjobs.metrics import gauges_of, samples_of_pool
from pgjobs.observe.gauges import KEEP, NO_DATABASE, WAIT
from pgjobs.observe.metrics import Samples, as_text, from_json, lasting, to_json, total
from pgjobs.processes.child_process import ChildProcess
from pgjobs.processes.messages import Command, Report, State
from pgjobs.worker_pool import WorkerPool

_REPORT_EVERY = 2.0  # seconds


class PoolMetrics:
    """What a child reports of its pool."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        self._gauges = gauges_of(pool.client)
        self._gauges_wanted = False
        self._metrics: list[Any] = []
        self._next_at = float("-inf")

    def read_gauges(self) -> None:
        """The parent asks for the gauges of the database. Called on another thread, which must not wait."""
        self._gauges_wanted = True
        self._gauges.refresh()

    def metrics(self, *, now: bool = False) -> list[Any]:
        """Those of the pool: the same as before until two seconds have passed, or `now`."""
        clock = time.monotonic()
        if now or clock >= self._next_at:
            self._next_at = clock + _REPORT_EVERY
            self._metrics = to_json(samples_of_pool(self._pool))
        return self._metrics

    def gauges(self) -> list[Any] | None:
        """Those of the database, once after they were asked for."""
        found = self._gauges.fresh() if self._gauges_wanted else None
        if found is None:
            return None
        self._gauges_wanted = False
        return to_json(found)


class ProcessMetrics:
    """The metrics of all children, those that have ended included: a sum that went down would look like a restart."""

    def __init__(self) -> None:
        self._ended: Samples = {}
        self._of_children: dict[ChildProcess, Samples] = {}
        self._gauges = NO_DATABASE
        self._gauges_at = float("-inf")
        self._asked = weakref.WeakKeyDictionary[
            ChildProcess, float
        ]()  # when the child had reported before it was asked
        self._changed = threading.Condition()  # also guards what is above, since the health server reads it

    def note(self, child: ChildProcess, report: Report) -> None:
        with self._changed:
            if report.metrics is not None:
                self._of_children[child] = from_json(report.metrics)
            if report.gauges is not None:
                self._gauges, self._gauges_at = from_json(report.gauges), time.monotonic()
                self._changed.notify_all()

    def note_end(self, child: ChildProcess) -> None:
        """Keep what a child had counted. What it counted since its last report is lost if it was killed."""
        with self._changed:
            self._ended = total([self._ended, lasting(self._of_children.pop(child, {}))])

    def text(self, children: Sequence[ChildProcess]) -> str:
        """The text for Prometheus. Waits a second at most for what the database says."""
        states = Counter(str(child.report.state) for child in children)
        processes: Samples = {("pgjobs_processes", (state,)): [number] for state, number in states.items()}
        with self._changed:
            if not self._gauges_fresh and self._ask(children):
                self._changed.wait_for(lambda: self._gauges_fresh, WAIT)
            gauges = self._gauges if self._gauges_fresh else NO_DATABASE
            parts = [
                self._ended,
                *self._of_children.values(),
                processes,
                gauges,
            ]  # dicts that are replaced, not changed
        return as_text(total(parts))  # without the lock, which the supervisor needs

    @property
    def _gauges_fresh(self) -> bool:
        return time.monotonic() - self._gauges_at < KEEP

    def _ask(self, children: Sequence[ChildProcess]) -> bool:
        """Ask the child that reported last for the gauges. Returns whether there is one that can tell.

        A child that has not reported since it was asked is not asked again: if it is stopped, the requests would fill
        its socket, and the command to stop would not reach it.
        """
        ready = [child for child in children if child.report.state is State.READY and not child.silent]
        if not ready:
            return False
        child = max(ready, key=lambda each: each.reported_at)
        reported_at = child.reported_at
        if self._asked.get(child) != reported_at:
            if not child.channel.offer(Command.READ_GAUGES):
                return False
            self._asked[child] = reported_at
        return True
