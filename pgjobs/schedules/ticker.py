"""Ticks the schedules: enqueues the job of each tick that is due, and moves the schedule to its next tick.

Every process ticks the schedules that were made in the table, and those that its own code registered. Several processes
may see the same due tick. Each makes a plan and writes it with one guarded statement, and the guard lets one of them
through: it compares the row with what the process saw when it made the plan.

The application's functions (computed args, the `next(after)` of a timetable) run before any row is locked. Args are
computed in a thread of their own. Such a tick waits in `Ticker.pending`, where the next calls of `tick` find it:

    the schedule in `pending`       next call of `tick`
    ------------------------------  -----------------------------------------------------------
    is not there                    plans the tick and starts the function
    still computes                  leaves it out; after each minute logs that there is no result yet
    done, schedule unchanged        writes the planned tick, even if later ticks are due by now
    done, schedule changed since    drops the answer and plans again
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from functools import lru_cache

import psycopg

from pgjobs.clean_text import error_text, forget_details, one_line
from pgjobs.db.cursors import AnyConnection
from pgjobs.execution.set_aside import SetAside, concerns_a_row
from pgjobs.loggers import get_logger
from pgjobs.outages import kind_of
from pgjobs.schedule import Schedule, bounded, due
from pgjobs.schedules.args_supplier import SuppliedJob
from pgjobs.schedules.queries import DueSchedule, ScheduleQueries, TickPlan
from pgjobs.timetable import Ticks, parse

log = get_logger("pgjobs.cron")

BATCH = 10  # schedules of one call: a promote, or a stop of the pool, waits for no more than these
LOOK_EVERY = timedelta(seconds=5)  # for a change of the table whose notification got lost
_SOON = timedelta(milliseconds=1)
_OPERATION = "ticks"  # the name under which SetAside keeps schedules

# seconds
_LONG = 60.0  # a function that computes args for longer is logged
_CONTENDED = 0.1  # pause of a schedule that another process holds or has just moved
_AFTER_FAILURE = 30.0  # pause of a schedule that failed, at least
_AFTER_COMMON_FAILURE = 5.0  # instead, when many schedules fail alike: the cause may lie outside of them
_RECENTLY = 300.0  # a tick within this time proves that schedules can tick, so one that fails is itself to blame


class _PendingTick:
    """A planned tick whose args are being computed."""

    def __init__(self, seen: DueSchedule, schedule: Schedule, plan: TickPlan, job: SuppliedJob) -> None:
        self.seen = seen
        self.schedule = schedule
        self.plan = plan
        self.job = job
        self._started_at = time.monotonic()
        self._log_at = self._started_at + _LONG

    def is_for(self, seen: DueSchedule, schedule: Schedule | None) -> bool:
        """Whether the row and the code of the schedule are the same as when the tick was planned."""
        return self.seen.state == seen.state and self.schedule is schedule

    @property
    def still_computes(self) -> bool:
        """Whether there is no result yet, and it is too early to log that."""
        return not self.job.done() and time.monotonic() < self._log_at

    def log_if_slow(self) -> None:
        now = time.monotonic()
        if now >= self._log_at:
            self._log_at = now + _LONG
            log.warning("schedule %s: the function of its args has not answered for %.0f s", self.seen.name,
                        now - self._started_at)  # fmt: skip


class Ticker:
    """`registered` returns the schedules in the code of this process, by name; `supply` computes the job of a tick;
    `enqueued` is called with the connection, the id and the queue of each job that was enqueued."""

    def __init__(
        self,
        queries: ScheduleQueries,
        registered: Callable[[], Mapping[str, Schedule]],
        supply: Callable[[Schedule], SuppliedJob],
        *,
        enqueued: Callable[[AnyConnection, int, str], None] = lambda conn, id, queue: None,
    ) -> None:
        self._queries = queries
        self._registered = registered
        self._supply = supply
        self._enqueued = enqueued
        self.pending: dict[str, _PendingTick] = {}
        self._paused_until: dict[str, float] = {}  # schedules that failed or are contended
        self._failing = SetAside()
        self._ticked_at = -math.inf  # the latest tick that was written

    def tick(self, conn: AnyConnection) -> timedelta:
        """Make each tick that is due and each run that was requested by hand. Returns how long until the next."""
        registered = self._registered()
        now = time.monotonic()
        self._paused_until = {name: until for name, until in self._paused_until.items() if until > now}
        due_schedules, wait = self._find_due(conn, registered)
        for seen in due_schedules:
            try:
                self._tick(conn, seen, registered.get(seen.name))
            except Exception as error:  # the other schedules tick all the same
                self._pause(conn, seen.name, error)
            else:
                self._failing.worked(_OPERATION, seen.name)
        self._failing.log_new(_OPERATION)
        if due_schedules:
            return _SOON
        pauses = [timedelta(seconds=until - time.monotonic()) for until in self._paused_until.values()]
        return max(_SOON, min(LOOK_EVERY, LOOK_EVERY if wait is None else wait, *pauses))

    def _find_due(
        self, conn: AnyConnection, registered: Mapping[str, Schedule]
    ) -> tuple[list[DueSchedule], timedelta | None]:
        """The due schedules, and how long until another is due. If a row cannot be read, the rows are read one by
        one."""
        versions = {name: schedule.version for name, schedule in registered.items()}
        left_out = [*self._paused_until, *(name for name, pending in self.pending.items() if pending.still_computes)]
        try:
            return self._queries.due(conn, versions, left_out, BATCH)
        except Exception as error:
            if isinstance(error, psycopg.Error) and not concerns_a_row(error):
                raise
            names = self._queries.due_names(conn, versions, left_out, BATCH)
            if not names:
                raise
        found: list[DueSchedule] = []
        for name in names:
            try:
                found += self._queries.due(conn, versions, left_out, 1, only=name)[0]
            except Exception as error:
                self._pause(conn, name, error)
        return found, _SOON

    def _tick(self, conn: AnyConnection, seen: DueSchedule, schedule: Schedule | None) -> None:
        pending = self.pending.get(seen.name)
        if pending is None or not pending.is_for(seen, schedule):
            plan = self._plan(seen, schedule)
            if plan.tick is None or not seen.needs_code:
                self._write(conn, seen, plan)
                return
            if pending is not None and not pending.job.done():  # a schedule has one thread at most
                pending.log_if_slow()
                return
            assert schedule is not None
            pending = self.pending[seen.name] = _PendingTick(seen, schedule, plan, self._supply(schedule))
        if not pending.job.done():
            pending.log_if_slow()
            return
        del self.pending[seen.name]
        self._write(conn, seen, _with_job(seen, pending.plan, pending.job))

    def _plan(self, seen: DueSchedule, schedule: Schedule | None) -> TickPlan:
        ticks = _ticks_of(seen, schedule)
        if not seen.planned or seen.next_tick_at is None:
            return TickPlan(tick=None, next=bounded(ticks.next(seen.since)))
        if seen.run_now_at is not None:
            return TickPlan(tick=seen.run_now_at, next=seen.next_tick_at, ran_now=True)
        found = due(ticks, seen.next_tick_at, seen.now, seen.catch_up, seen.window)
        if found.missed and not seen.paused:
            log.warning("schedule %s: ticks since %s that came too late are left out", seen.name, seen.next_tick_at)
        tick = None if seen.paused else found.tick
        return TickPlan(tick=tick, next=found.next, last_tick=tick)

    def _write(self, conn: AnyConnection, seen: DueSchedule, plan: TickPlan) -> None:
        result = self._queries.write_tick(conn, seen, plan)
        self._ticked_at = time.monotonic()
        if result is None:  # another process ticks it, or it was changed: not at once again
            self._paused_until[seen.name] = time.monotonic() + _CONTENDED
        elif result.id is not None and result.queue is not None:
            log.debug("schedule %s: job %d for %s", seen.name, result.id, plan.tick)
            self._enqueued(conn, result.id, result.queue)

    def _pause(self, conn: AnyConnection, name: str, error: Exception) -> None:
        """After a failure, do not tick this schedule for a while, and store the error. Raises it if the database is to
        blame and not the schedule."""
        of_database = isinstance(error, psycopg.Error)
        if kind_of(error) is not None or (of_database and not concerns_a_row(error)):
            raise error
        now = time.monotonic()
        others_work = not of_database or now - self._ticked_at < _RECENTLY
        try:
            pause = self._failing.failed(_OPERATION, name, error, f"schedule {name}", others_work=others_work)
            self._paused_until[name] = now + max(pause, _AFTER_FAILURE)
        except psycopg.Error:  # many fail alike; schedules after them may tick all the same
            self._paused_until[name] = now + _AFTER_COMMON_FAILURE
        forget_details(error)
        try:
            self._queries.write_error(conn, name, error_text(error))
        except psycopg.Error as other:
            if not concerns_a_row(other):
                raise
            log.debug("schedule %s: its error could not be written: %s", name, one_line(other))


def _ticks_of(seen: DueSchedule, schedule: Schedule | None) -> Ticks:
    if seen.spec is not None:
        return _parsed(seen.spec, seen.zone, seen.name)
    assert schedule is not None
    return schedule.ticks


@lru_cache(maxsize=1000)
def _parsed(spec: str, zone: str, name: str) -> Ticks:
    return parse(spec, zone=zone, name=name)


def _with_job(seen: DueSchedule, plan: TickPlan, supplied: SuppliedJob) -> TickPlan:
    """The plan with the job that the function supplied; without its tick if there is none."""
    error = supplied.exception()
    if error is None:
        job = supplied.result()
        return replace(plan, tick=None) if job is None else replace(plan, job=job)
    forget_details(error)
    why = f"{type(error).__name__}: {one_line(error)}"
    log.warning("schedule %s: its tick of %s is skipped: %s", seen.name, plan.tick, why)
    return replace(plan, tick=None, error=f"tick of {plan.tick}: {error_text(error)}")
