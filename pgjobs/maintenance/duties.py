"""The duties that keep the queues moving, and how a process comes to do one.

No process is the leader. Each duty has a row in the table `maintenance` with the time at which it is due. A process
that finds a duty due locks its row, does the duty in a short transaction that the server bounds, and moves the time on.
If that process dies or hangs, the server ends its transaction, and another process does the duty.

To add a duty, add it to the list in `Maintenance`: its name, its function and its interval. Add its name to DUTIES in
pgjobs/db/repair.py too: its row is then inserted where it is missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from random import random
from typing import Any

from pgjobs.clean_text import one_line
from pgjobs.db.cursors import AnyConnection
from pgjobs.db.repair import SchemaRepair
from pgjobs.execution.queries import ExecutionQueries
from pgjobs.execution.set_aside import SetAside
from pgjobs.execution.unworkable import Unworkable
from pgjobs.job import Job, JobState
from pgjobs.loggers import get_logger
from pgjobs.maintenance.promoting import Promoter
from pgjobs.maintenance.pruning import Pruner
from pgjobs.maintenance.queries import DutyMissing, MaintenanceQueries
from pgjobs.maintenance.reindexer import Reindex
from pgjobs.maintenance.rescuing import Rescuer
from pgjobs.observe.queries import ObserveQueries
from pgjobs.workers.queries import WorkerQueries

log = get_logger("pgjobs.maintenance")

NOW = timedelta(0)

# The intervals that are not used in the list of duties alone.
# An enqueue notifies if its job is due within twice PROMOTE_EVERY: see notify_due in parts.sql.
PROMOTE_EVERY = timedelta(seconds=1)
AFTER_FAILURE = timedelta(seconds=5)

# How often this process looks at duties that are not due yet, or that another process is doing.
LOOK_EVERY = timedelta(seconds=1)  # at urgent duties
LOOK_SELDOM = timedelta(seconds=30)  # at the others
# At urgent duties that had nothing to do. That is soon enough: a job that starts now is rescued after RESCUE_GRACE at
# the earliest; a job that is due within two seconds notifies when it is enqueued, if this process listens.
IDLE_LOOK_EVERY = timedelta(seconds=1.75)

# The time in the row of a duty. An exact time is written a little early, so that a look at that time finds it due. A
# time further away than _LONGEST_WAIT was written under a wrong clock; such a duty is due.
_EARLY = timedelta(milliseconds=1)
_LONGEST_WAIT = timedelta(minutes=5)

_WORKER_GONE_AFTER = timedelta(minutes=1)  # without a heartbeat
_PROGRESS_BATCH = 1000  # rows of one statement


@dataclass(frozen=True, slots=True)
class Duty:
    """A duty. A call does it now, and returns how long until it should be done again."""

    name: str
    function: Callable[[AnyConnection], timedelta | None]  # returns how long until there is more to do; None: not known
    every: timedelta  # it is done again after this time at the latest
    urgent: bool = False  # users wait for it; `anything_due` must say whether it has anything to do
    after_commit: Callable[[], None] = lambda: None  # for what cannot be done in the transaction of the duty
    yields: timedelta = NOW  # this process tries it later, by a random part of this, so that others do it too

    def __call__(self, conn: AnyConnection) -> timedelta:
        wait = self.function(conn)
        return self.every if wait is None else min(wait, self.every)


class Maintenance:
    """The duties of one process. `keep` is how long jobs are kept, by state; the other parameters are explained where
    they are used, in promoting.py and rescuing.py."""

    def __init__(
        self,
        schema: str,
        *,
        keep: Mapping[JobState, timedelta | None],
        wake: Callable[[str, int], None] = lambda queue, jobs: None,
        rescued: Callable[[Job[Any]], None] | None = None,
        reads_rescued: Callable[[], bool] = lambda: True,
        kinds: Callable[[], Iterable[str] | None] = lambda: None,
        reindex: Reindex | None = None,
    ) -> None:
        self.set_aside = SetAside()
        self._queries = MaintenanceQueries(schema)
        self._workers = WorkerQueries(schema)
        self._repair = SchemaRepair(schema)
        unworkable = Unworkable(ExecutionQueries(schema), self.set_aside)
        promoter = Promoter(self._queries, unworkable, wake)
        rescuer = Rescuer(self._queries, unworkable, kinds=kinds, on_rescued=rescued, reads_rescued=reads_rescued)
        pruner = Pruner(self._queries, ObserveQueries(schema), unworkable, keep)
        duties = [
            Duty("promote", promoter.promote, PROMOTE_EVERY, urgent=True, after_commit=promoter.wake_workers),
            # it yields to other processes: they may know kinds of jobs that this one must leave
            Duty("rescue", rescuer.rescue, timedelta(seconds=1), urgent=True, yields=timedelta(seconds=0.5)),
            Duty("prune", pruner.prune, timedelta(seconds=30)),
            Duty("workers", self._prune_workers, timedelta(seconds=30)),
        ]
        if reindex is not None:
            longest_day = timedelta(hours=25)
            duties.append(Duty("indexes", reindex.check_time, longest_day, after_commit=reindex.start_if_time))
        self.duties = {duty.name: duty for duty in duties}
        self.promote, self.rescue, self.prune = (self.duties[name] for name in ("promote", "rescue", "prune"))
        self.bring_promote_forward = promoter.bring_forward

    def do(self, conn: AnyConnection, name: str) -> timedelta:
        """Do a duty if it is due and no other process does it. Returns how long until this process should try again."""
        duty = self.duties[name]
        try:
            remaining = self._queries.begin_duty(conn, name, max(duty.every, _LONGEST_WAIT))
        except DutyMissing:
            self._repair.insert_duties(conn, self._repair.missing_duties(conn))
            return NOW
        if remaining is None:
            return LOOK_EVERY
        if remaining > NOW:
            return min(remaining + _EARLY, LOOK_EVERY if duty.urgent else LOOK_SELDOM)
        wait = duty(conn)
        done_at, is_exact = time.monotonic(), NOW < wait < LOOK_EVERY
        self._queries.end_duty(conn, name, max(NOW, wait - _EARLY) if is_exact else wait)
        duty.after_commit()
        if is_exact:
            wait = max(NOW, wait - timedelta(seconds=time.monotonic() - done_at))
        return wait + duty.yields * random()

    def anything_due(self, conn: AnyConnection) -> set[str]:
        """The urgent duties that have something to do now, or will before this process looks again."""
        return self._queries.anything_due(conn, IDLE_LOOK_EVERY + PROMOTE_EVERY)

    def postpone(self, conn: AnyConnection, name: str) -> None:
        """Set a later time for a duty that has failed, so that not every process tries it at once."""
        self._queries.postpone_duty(conn, name, AFTER_FAILURE)

    def _prune_workers(self, conn: AnyConnection) -> timedelta | None:
        """Delete the rows of processes that vanished, and the progress of their attempts."""
        for id in self._workers.prune_workers(conn, _WORKER_GONE_AFTER):
            log.warning("worker %s is taken for gone: no heartbeat for %s", one_line(id), _WORKER_GONE_AFTER)
        pruned = self._workers.prune_progress(conn, _PROGRESS_BATCH)
        return NOW if pruned == _PROGRESS_BATCH else None
