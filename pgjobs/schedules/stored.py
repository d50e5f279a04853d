"""client.schedules: the schedules that the table holds, changed by hand while everything runs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from types import EllipsisType
from typing import Any

from pgjobs import checks
from pgjobs.db.cursors import AnyConnection
from pgjobs.errors import InvalidSchedule, ScheduleNotFound, shown
from pgjobs.figures import ScheduleRow
from pgjobs.options import EncodedJob, NewJob
from pgjobs.schedule import CatchUp, Schedule, bounded, check_catch_up, check_window
from pgjobs.schedules.queries import ScheduleQueries, options_json
from pgjobs.timetable import Every, parse, time_zone

Tx = Any  # what `enqueue` takes
Rows = list[ScheduleRow]


class Schedules:
    """Every schedule of a schema: those that were added here or by SQL, which any worker pool ticks, and those that
    code registered. Each call takes a `tx` as `enqueue` does, and holds when, and only when, that commits.
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
        """The schedule of this name as it is now, or None."""
        _check_name(name)
        with self._transaction(tx) as conn:
            return next(iter(self._queries.rows(conn, name)), None)

    def add(self, schedule: Schedule, tx: Tx = None) -> None:
        """Add a schedule that every worker pool ticks. InvalidSchedule if the name is taken, or if it needs code:
        what computes args or instants belongs to a worker pool, `pool.schedules.add(schedule)`."""
        if not isinstance(schedule, Schedule):
            raise InvalidSchedule(f"schedule is a Schedule(...), not {shown(schedule)}")
        if schedule.computed or schedule.spec is None:
            raise InvalidSchedule(
                f"schedule {schedule.name!r} is supplied by code, which only a worker pool runs: "
                "WorkerPool(client, work_map, cron=[...]), or pool.schedules.add(schedule)"
            )
        job = schedule.job()
        assert job is not None
        row = self._encode(job)
        with self._transaction(tx) as conn:
            added = self._queries.add(
                conn,
                schedule.name,
                kind=row.kind,
                spec=schedule.spec,
                zone=schedule.zone,
                args=row.args,
                options=options_json(row),
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
        """Change a schedule; what is not given stays. `args` is an args instance or a NewJob, and brings the options of
        the jobs with it. Another spec or zone has another next tick. What code registered stays changed until the code
        itself says something else."""
        _check_name(name)
        if spec is not None:
            parse(spec, name=name)
        if zone is not None:
            time_zone(zone)
        if window is not ...:
            check_window(window)
        row = None if args is None else self._encode(args if isinstance(args, NewJob) else NewJob(args))
        if catch_up is not None:
            check_catch_up(catch_up)
        with self._transaction(tx) as conn:
            before = next(iter(self._queries.rows(conn, name)), None)
            if before is None:
                raise ScheduleNotFound(name)
            meant = before.spec if spec is None else str(spec)
            place = before.zone if zone is None else time_zone(zone).key
            ticks = None if meant is None else parse(meant, zone=place, name=name)
            self._queries.change(
                conn,
                name,
                kind=row and row.kind,
                spec=None if spec is None else str(ticks),
                zone=place,
                args=row and row.args,
                options=row and options_json(row),
                catch_up=catch_up,
                set_window=window is not ...,
                window=None if window is ... else check_window(window),
            )
            (after,) = self._queries.rows(conn, name)
            return after

    def pause(self, name: str, tx: Tx = None) -> None:
        """Let its ticks go by, until it is resumed. They are not made up then."""
        self._must(name, tx, self._queries.pause)

    def resume(self, name: str, tx: Tx = None) -> None:
        """Let it tick again."""
        self._must(name, tx, self._queries.resume)

    def run_now(self, name: str, tx: Tx = None) -> None:
        """Let it enqueue its job once more, at once, whenever its next tick is and also while it is paused. The worker
        pools do that, those whose code has it where code supplies the args. Asking twice before it has happened is
        asking once."""
        self._must(name, tx, self._queries.run_now)

    def remove(self, name: str, tx: Tx = None) -> bool:
        """Remove it, for everybody; says whether there was one. What is in the code of a worker pool comes back when
        that starts again."""
        _check_name(name)
        with self._transaction(tx) as conn:
            return self._queries.remove(conn, name)

    def _must(self, name: str, tx: Tx, act: Callable[[AnyConnection, str], bool]) -> None:
        _check_name(name)
        with self._transaction(tx) as conn:
            if not act(conn, name):
                raise ScheduleNotFound(name)


def _check_name(name: object) -> None:
    """Any text that the table can hold: a schedule may have been made by SQL, under a name that code may not use."""
    checks.check_text("name", name, error=InvalidSchedule)
