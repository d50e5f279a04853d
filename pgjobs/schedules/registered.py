"""The schedules in the code of a worker pool, and how the pool registers them in the tables.

Each run of a pool has a row in the table `scheduler`, with the names of its schedules and a heartbeat. From these rows
other processes learn whether a schedule is in the code of any live process: it decides about `run_on_start`, and when
the row of a schedule is deleted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

import psycopg

from pgjobs import checks
from pgjobs.db.cursors import AnyConnection
from pgjobs.db.source import PoolSource
from pgjobs.errors import InvalidSchedule, shown
from pgjobs.loggers import get_logger
from pgjobs.options import EncodedJob, NewJob
from pgjobs.schedule import Schedule, bounded
from pgjobs.schedules.queries import ScheduleQueries

log = get_logger("pgjobs.cron")

_HEARTBEAT_EVERY = 10.0  # seconds


class CodeSchedules:
    """The schedules of a worker pool: those of `WorkerPool(cron=[...])`, and those added while it runs.

        pool.schedules.add(Schedule("poll", "@every 30s", lambda: Poll(limit())))
        pool.schedules.remove("poll")

    They belong to this process; `client.schedules` has all schedules of the table.
    """

    def __init__(
        self,
        queries: ScheduleQueries,
        source: PoolSource,
        encode: Callable[[NewJob[Any]], EncodedJob],
        schedules: Iterable[Schedule],
        *,
        worker: str,
    ) -> None:
        self._queries = queries
        self._source = source
        self._encode = encode
        self._schedules: Mapping[str, Schedule] = {}  # replaced, never changed: the maintenance thread reads it
        self.reset_for_process(worker)
        self._changed: Callable[[], None] = lambda: None
        self._next_heartbeat = 0.0
        self._missing = False  # the tables have been emptied, and the schedules are not registered again yet
        self.add(*checks.check_list("cron", schedules, "Schedule(...)", error=InvalidSchedule))

    def __repr__(self) -> str:
        return f"CodeSchedules({', '.join(map(repr, self._schedules))})"

    def reset_for_process(self, worker: str) -> None:
        """Called for a new pool, and in a forked child: no pool runs in this process yet."""
        self._worker = worker
        self._changing = threading.Lock()
        self._scheduler: UUID | None = None  # the row of this run of the pool; None while the pool does not run

    def add(self, *schedules: Schedule) -> None:
        """Add schedules: all of them, or none if one is refused. Raises InvalidSchedule if a name is used already."""
        with self._changing:
            after = dict(self._schedules)
            for schedule in schedules:
                if not isinstance(schedule, Schedule):
                    raise InvalidSchedule(f"cron is a list of Schedule(...), not of {shown(schedule)}")
                if schedule.name in after:
                    raise InvalidSchedule(
                        f"there is a schedule {schedule.name!r} already: give each schedule its own name"
                    )
                after[schedule.name] = schedule
            if self._scheduler is not None:
                self._register(self._scheduler, after, schedules)
            self._schedules = after
        self._changed()

    def remove(self, *names: str) -> bool:
        """Remove schedules from this pool. Returns whether it had any of them. Their rows stay in the table, for other
        processes may have them; a row is deleted 30 days after the last process had it."""
        with self._changing:
            after = {name: schedule for name, schedule in self._schedules.items() if name not in names}
            if len(after) == len(self._schedules):
                return False
            if self._scheduler is not None:
                with self._source.own_checkout() as checkout:
                    self._queries.register_scheduler(checkout.conn, self._scheduler, self._worker, after)
            self._schedules = after
        return True

    def clear(self) -> bool:
        """Remove all schedules from this pool. Returns whether it had any."""
        return self.remove(*self._schedules)

    @property
    def by_name(self) -> Mapping[str, Schedule]:
        return self._schedules

    def __iter__(self) -> Iterator[Schedule]:
        return iter(self._schedules.values())

    def __len__(self) -> int:
        return len(self._schedules)

    def __contains__(self, name: object) -> bool:
        return name in self._schedules

    # --- for the worker pool

    def start(self, changed: Callable[[], None]) -> None:
        """Register the schedules. From now on `add` registers at once, and then calls `changed`."""
        with self._changing:
            scheduler = uuid4()
            if self._schedules:
                self._register(scheduler, self._schedules, list(self))
            self._scheduler = scheduler
            self._changed = changed
            self._next_heartbeat = time.monotonic() + _HEARTBEAT_EVERY

    def stop(self) -> None:
        with self._changing:
            self._scheduler = None
            self._changed = lambda: None

    def deregistration(self) -> Callable[[], None]:
        """Returns the call that removes the row of the present run of the pool, also after `stop`. Without it other
        processes count the run as live for half a minute more."""
        scheduler = self._scheduler

        def deregister() -> None:
            if scheduler is not None and self._schedules:
                with suppress(psycopg.Error), self._source.own_checkout() as checkout:
                    self._queries.deregister_scheduler(checkout.conn, scheduler)

        return deregister

    def heartbeat(self, conn: AnyConnection) -> None:
        """Every ten seconds, write that this process is alive; register again what is gone from the tables."""
        if time.monotonic() < self._next_heartbeat or not self._schedules:
            return
        if not self._changing.acquire(blocking=False):  # `add` or `remove` writes now, and may wait for the database
            return
        try:
            self._next_heartbeat = time.monotonic() + _HEARTBEAT_EVERY
            if self._scheduler is None:
                return
            if not self._queries.heartbeat(conn, self._scheduler, self._worker, self._schedules):
                self._missing = True
            if self._missing:
                self._write(conn, self._scheduler, self._schedules, list(self), again=True)
                self._missing = False
                log.warning("the schedules of this code were gone from the tables, as after a TRUNCATE; they are back")
        finally:
            self._changing.release()

    def _register(self, scheduler: UUID, all: Iterable[str], new: Iterable[Schedule]) -> None:
        with self._source.own_checkout() as checkout:
            self._write(checkout.conn, scheduler, all, new)

    def _write(
        self,
        conn: AnyConnection,
        scheduler: UUID,
        all: Iterable[str],
        new: Iterable[Schedule],
        *,
        again: bool = False,
    ) -> None:
        # the application's code may raise, so it runs before any row is locked
        jobs = {schedule.name: self._constant_job(schedule) for schedule in new}
        with conn.transaction():
            now = self._queries.begin_registration(conn)
            self._queries.register_scheduler(conn, scheduler, self._worker, all)
            for schedule in sorted(new, key=lambda schedule: schedule.name):  # all processes lock in this order
                first = bounded(schedule.next(now))
                self._queries.register(conn, schedule, jobs[schedule.name], first, scheduler, again=again)

    def _constant_job(self, schedule: Schedule) -> EncodedJob | None:
        """The checked job of a schedule; None if its args are computed for each tick."""
        if schedule.computed:
            return None
        job = schedule.job()
        assert job is not None
        return self._encode(job)
