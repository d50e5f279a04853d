"""The schedules that a process has in its code, and how the others know."""

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

_BEAT_EVERY = 10.0  # seconds


class CodeSchedules:
    """The schedules of a worker pool: what `WorkerPool(cron=[...])` was given, and what is added while it runs.

        pool.schedules.add(Schedule("poll", "@every 30s", lambda: Poll(limit())))
        pool.schedules.remove("poll")

    They are for this process alone; `client.schedules` is for what the table holds.
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
        self._schedules: Mapping[str, Schedule] = {}  # replaced, never changed: the ticking thread reads it
        self.begin_anew(worker)
        self._changed: Callable[[], None] = lambda: None
        self._next_beat = 0.0
        self._gone = False  # from the table
        self.add(*checks.check_list("cron", schedules, "Schedule(...)", error=InvalidSchedule))

    def __repr__(self) -> str:
        return f"CodeSchedules({', '.join(map(repr, self._schedules))})"

    def begin_anew(self, worker: str) -> None:
        """Be the schedules of this process, in which no pool runs yet."""
        self._worker = worker
        self._changing = threading.Lock()
        self._scheduler: UUID | None = None  # while the pool runs

    def add(self, *schedules: Schedule) -> None:
        """Have these schedules too, from now on; all or none. InvalidSchedule if there is one of the name already."""
        with self._changing:
            after = dict(self._schedules)
            for schedule in schedules:
                if not isinstance(schedule, Schedule):
                    raise InvalidSchedule(f"cron is a list of Schedule(...), not of {shown(schedule)}")
                if schedule.name in after:
                    raise InvalidSchedule(f"there is a schedule {schedule.name!r} already: names are used once")
                after[schedule.name] = schedule
            if self._scheduler is not None:
                self._register(self._scheduler, after, schedules)
            self._schedules = after
        self._changed()

    def remove(self, *names: str) -> bool:
        """Have these no more; says whether there was any of them. What the table knows of them stays: other processes
        may have them, and 30 days after the last one they are forgotten."""
        with self._changing:
            after = {name: schedule for name, schedule in self._schedules.items() if name not in names}
            if len(after) == len(self._schedules):
                return False
            if self._scheduler is not None:
                with self._source.own_checkout() as checkout:
                    self._queries.say_who_has_it(checkout.conn, self._scheduler, self._worker, after)
            self._schedules = after
        return True

    def clear(self) -> bool:
        """Have none any more."""
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
        """Write them down; from now on what is added is written at once, and `changed` called."""
        with self._changing:
            scheduler = uuid4()
            if self._schedules:
                self._register(scheduler, self._schedules, list(self))
            self._scheduler = scheduler
            self._changed = changed
            self._next_beat = time.monotonic() + _BEAT_EVERY

    def stop(self) -> None:
        with self._changing:
            self._scheduler = None
            self._changed = lambda: None

    def sign_off(self) -> Callable[[], None]:
        """What tells the others, when this run of the pool is over, that it has none any more. They would notice by
        themselves in half a minute."""
        scheduler = self._scheduler

        def leave() -> None:
            if scheduler is not None and self._schedules:
                with suppress(psycopg.Error), self._source.own_checkout() as checkout:
                    self._queries.leave(checkout.conn, scheduler)

        return leave

    def beat(self, conn: AnyConnection) -> None:
        """Say now and then that this process lives."""
        if time.monotonic() < self._next_beat or not self._schedules:
            return
        if not self._changing.acquire(blocking=False):  # somebody adds or removes, and says so himself
            return
        try:
            self._next_beat = time.monotonic() + _BEAT_EVERY
            if self._scheduler is None:
                return
            if not self._queries.beat(conn, self._scheduler, self._worker, self._schedules):
                self._gone = True
            if self._gone:
                self._write(conn, self._scheduler, self._schedules, list(self), again=True)
                self._gone = False
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
        # what the application's code may do wrong is done before anything is locked
        rows = {schedule.name: self._fixed(schedule) for schedule in new}
        with conn.transaction():
            now = self._queries.begin_registration(conn)
            self._queries.say_who_has_it(conn, scheduler, self._worker, all)
            for schedule in sorted(new, key=lambda schedule: schedule.name):  # everybody locks in this order
                first = bounded(schedule.next(now))
                self._queries.register(conn, schedule, rows[schedule.name], first, scheduler, again=again)

    def _fixed(self, schedule: Schedule) -> EncodedJob | None:
        """The checked job of a schedule whose args are always the same."""
        if schedule.computed:
            return None
        job = schedule.job()
        assert job is not None
        return self._encode(job)
