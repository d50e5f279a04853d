"""`client.schedules`: lists and changes the schedules in the table, while worker pools run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from types import EllipsisType
from typing import Any

from pgjobs import checks
from pgjobs.db.borrow import Tx
from pgjobs.db.cursors import AnyConnection
from pgjobs.errors import InvalidSchedule, ScheduleNotFound, shown
from pgjobs.options import EncodedJob, NewJob
from pgjobs.results import ScheduleRow
from pgjobs.schedule import CatchUp, Schedule, bounded, check_catch_up, check_window
from pgjobs.schedules.queries import ScheduleQueries, options_json
from pgjobs.timetable import Every, parse, time_zone

Rows = list[ScheduleRow]


class Schedules:
    """All schedules of a schema. Schedules added here or by SQL are ticked by any worker pool; those that the code of a
    pool registered, by the pools that have them. Each call takes a `tx` as `enqueue` does, and takes effect when that
    commits.
    """

    def __init__(
        self,
        queries: ScheduleQueries,
        transaction: Callable[[Tx], AbstractContextManager[AnyConnection]],
        encode: Callable[[NewJob[Any]], EncodedJob],
    ) -> None:
        self._queries = queries
        self._transaction = transaction
        self._encode = encode

    def __repr__(self) -> str:
        return f"Schedules(schema={self._queries.schema!r})"

    def list(self, tx: Tx = None) -> Rows:
        """All schedules by name, as they are now."""
        with self._transaction(tx) as conn:
            return self._queries.rows(conn)

    def get(self, name: str, tx: Tx = None) -> ScheduleRow | None:
        """The schedule of this name, or None."""
        _check_name(name)
        with self._transaction(tx) as conn:
            return next(iter(self._queries.rows(conn, name)), None)

    def add(self, schedule: Schedule, tx: Tx = None) -> None:
        """Add a schedule that any worker pool ticks. Raises InvalidSchedule if the name is taken, or if the schedule
        computes its args or its ticks by a function: such a schedule belongs to a worker pool,
        `pool.schedules.add(schedule)`."""
        if not isinstance(schedule, Schedule):
            raise InvalidSchedule(f"schedule is a Schedule(...), not {shown(schedule)}")
        if schedule.computed or schedule.spec is None:
            raise InvalidSchedule(
                f"schedule {schedule.name!r} computes its args or ticks by a function, which only a worker pool can "
                "call: use WorkerPool(client, work_map, cron=[...]), or pool.schedules.add(schedule)"
            )
        job = schedule.job()
        assert job is not None
        new = self._encode(job)
        with self._transaction(tx) as conn:
            added = self._queries.add(
                conn,
                schedule.name,
                kind=new.kind,
                spec=schedule.spec,
                zone=schedule.zone,
                args=new.args,
                options=options_json(new),
                catch_up=schedule.catch_up,
                window=schedule.window,
                version=schedule.version,
                next=bounded(schedule.next(self._queries.now(conn))),
                run_on_start=schedule.run_on_start,
            )
        if not added:
            raise InvalidSchedule(f"there is a schedule {schedule.name!r} already: change it, or remove it first")

    def change(
        self,
        name: str,
        tx: Tx = None,
        *,
        spec: str | Every | None = None,
        zone: str | None = None,
        args: object = None,
        catch_up: CatchUp | None = None,
        window: timedelta | EllipsisType | None = ...,
    ) -> ScheduleRow:
        """Change a schedule. A parameter that is left out changes nothing. `args` is an args instance or a NewJob, and
        replaces the options of the jobs too. A new spec or zone gives a new next tick. A change to a schedule that code
        registered lasts until the code defines it differently."""
        _check_name(name)
        if spec is not None:
            parse(spec, name=name)
        if zone is not None:
            time_zone(zone)
        if window is not ...:
            check_window(window)
        new = None if args is None else self._encode(args if isinstance(args, NewJob) else NewJob(args))
        if catch_up is not None:
            check_catch_up(catch_up)
        with self._transaction(tx) as conn:
            before = next(iter(self._queries.rows(conn, name)), None)
            if before is None:
                raise ScheduleNotFound(name)
            new_spec = before.spec if spec is None else str(spec)
            new_zone = before.zone if zone is None else time_zone(zone).key
            ticks = None if new_spec is None else parse(new_spec, zone=new_zone, name=name)
            moved = ticks is not None and (str(ticks), new_zone) != (before.spec, before.zone)
            self._queries.change(
                conn,
                name,
                next=bounded(ticks.next(self._queries.now(conn))) if ticks is not None and moved else None,
                planned_for=f"{ticks} {new_zone}",
                kind=new and new.kind,
                spec=None if spec is None else str(ticks),
                zone=new_zone,
                args=new and new.args,
                options=new and options_json(new),
                catch_up=catch_up,
                set_window=window is not ...,
                window=None if window is ... else check_window(window),
            )
            (after,) = self._queries.rows(conn, name)
            return after

    def pause(self, name: str, tx: Tx = None) -> None:
        """Enqueue no jobs at its ticks until it is resumed. The ticks of the pause are not made up."""
        self._apply(name, tx, self._queries.pause)

    def resume(self, name: str, tx: Tx = None) -> None:
        """End a pause."""
        self._apply(name, tx, self._queries.resume)

    def run_now(self, name: str, tx: Tx = None) -> None:
        """Enqueue its job once, now, also while it is paused; its next tick stays. A worker pool does this, so one must
        run; if the args are computed, a pool whose code has the schedule. Two calls before that enqueue one job."""
        self._apply(name, tx, self._queries.run_now)

    def remove(self, name: str, tx: Tx = None) -> bool:
        """Remove it from the table. Returns whether there was one. A worker pool with the schedule in its code adds it
        again when it starts."""
        _check_name(name)
        with self._transaction(tx) as conn:
            return self._queries.remove(conn, name)

    def _apply(self, name: str, tx: Tx, change: Callable[[AnyConnection, str], bool]) -> None:
        _check_name(name)
        with self._transaction(tx) as conn:
            if not change(conn, name):
                raise ScheduleNotFound(name)


def _check_name(name: object) -> None:
    """Any text that the table can hold is allowed: SQL may add a schedule under a name that code may not use."""
    checks.check_text("name", name, error=InvalidSchedule)
