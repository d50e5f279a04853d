"""One method per statement about schedules, connection first."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any
from uuid import UUID

import psycopg

from pgjobs.clean_text import clean
from pgjobs.db import statements
from pgjobs.db.channel import channel
from pgjobs.db.cursors import AnyConnection, LiteralCursor, answers, bound_cursor, literal_cursor, one
from pgjobs.interval import instant, interval_text, span
from pgjobs.options import EncodedJob
from pgjobs.results import ScheduleRow
from pgjobs.schedule import CatchUp, Schedule

DEAD_AFTER = timedelta(seconds=30)  # a process without a heartbeat for this long no longer has its schedules
PRUNE_AFTER = timedelta(days=30)  # a schedule that has been in no process's code for this long is deleted
_ERROR_LIMIT = 2000  # characters


@dataclass(frozen=True, slots=True)
class DueSchedule:
    """The row of a schedule that has something to do now, as it was when it was read."""

    name: str
    spec: str | None
    zone: str
    catch_up: CatchUp
    window: timedelta | None
    next_tick_at: datetime | None
    run_now_at: datetime | None
    paused: bool
    needs_code: bool  # the row has no args: code computes them for each tick
    planned: bool  # whether next_tick_at was computed from the present spec and zone
    since: datetime  # if it was not: compute the first tick after this instant
    now: datetime

    @property
    def state(self) -> tuple[object, ...]:
        """The columns that must be unchanged when a plan for this schedule is written."""
        return (self.spec, self.zone, self.next_tick_at, self.run_now_at, self.paused)


@dataclass(frozen=True, slots=True, kw_only=True)
class TickPlan:
    """What to do with a due schedule: enqueue a job for `tick` (none if it is None), and tick next at `next`."""

    tick: datetime | None
    next: datetime | None
    ran_now: bool = False  # the tick is a run that was requested by hand
    job: EncodedJob | None = None  # computed by code; None: use the args and options of the row
    error: str | None = None
    last_tick: datetime | None = None  # for the column last_tick_at; None leaves it


@dataclass(frozen=True, slots=True)
class TickResult:
    """The job that a written tick has enqueued, if any."""

    id: int | None
    queue: str | None


class ScheduleQueries:
    """The statements about schedules of one schema."""

    def __init__(self, schema: str) -> None:
        self.schema = schema
        self._sql = statements.load("schedules.sql", schema)
        self._channel = channel(schema)

    # --- ticks

    def due(
        self,
        conn: AnyConnection,
        versions: Mapping[str, int],
        left_out: Sequence[str],
        batch: int,
        *,
        only: str | None = None,
    ) -> tuple[list[DueSchedule], timedelta | None]:
        """The schedules that have something to do now, and how long until the next one has. Looks at the schedules that
        were made in the table, and at those in this process's code, whose names are the keys of `versions`; with
        `only`, at one schedule."""
        values = {"versions": json.dumps(versions), "left_out": list(left_out), "batch": batch, "only": only}
        with _one_message(conn) as cur:
            cur.execute(self._sql["due_schedules"], values)
            rows, ((wait,),) = answers(cur)
            return [_due(row) for row in rows], span(wait)

    def due_names(
        self, conn: AnyConnection, versions: Mapping[str, int], left_out: Sequence[str], batch: int
    ) -> list[str]:
        """The names of the schedules that `due` would read; for when it fails because of a value in a row."""
        with literal_cursor(conn) as cur:
            values = {"versions": json.dumps(versions), "left_out": list(left_out), "batch": batch}
            cur.execute(self._sql["names_of_due_schedules"], values)
            return [name for (name,) in cur.fetchall()]

    def write_tick(self, conn: AnyConnection, seen: DueSchedule, plan: TickPlan) -> TickResult | None:
        """Enqueue the job of a plan and move the schedule to its next tick. Writes nothing and returns None if the row
        has changed since it was read, or another process has locked it."""
        job = plan.job
        parameters = {
            "name": seen.name,
            "seen_next": seen.next_tick_at,
            "seen_run_now": seen.run_now_at,
            "spec": seen.spec,
            "zone": seen.zone,
            "paused": seen.paused,
            "kind": job and job.kind,
            "args": job and job.args,
            "options": job and options_json(job),
            "wanted": plan.tick is not None,
            "tick": plan.tick,
            "tick_text": plan.tick and plan.tick.isoformat(),
            "next": plan.next,
            "last": plan.last_tick,
            "ran_now": plan.ran_now,
            "error": plan.error and clean(plan.error, _ERROR_LIMIT),
            "channel": self._channel,
        }
        with _one_message(conn) as cur:
            cur.execute(self._sql["tick"], parameters)
            (rows,) = answers(cur)
        return TickResult(*rows[0][:2]) if rows else None

    def write_error(self, conn: AnyConnection, name: str, error: str) -> None:
        """Store why a schedule cannot tick."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["write_schedule_error"], {"name": name, "error": clean(error, _ERROR_LIMIT)})

    # --- schedules in code

    def begin_registration(self, conn: AnyConnection) -> datetime:
        """Set the bounds of the registering transaction. Returns the time: new schedules tick first after it."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["begin_registration"])
            ((epoch,),) = answers(cur)[-1]
            return instant(epoch)

    def register(
        self,
        conn: AnyConnection,
        schedule: Schedule,
        job: EncodedJob | None,
        next: datetime | None,
        scheduler: UUID,
        *,
        again: bool = False,
    ) -> None:
        """Write the definition of a schedule in code. `job` is None if its args are computed for each tick. `again`
        restores rows while the process runs: `run_on_start` does not count then."""
        parameters = {
            "kind": job and job.kind,
            "spec": schedule.spec,
            "zone": schedule.zone,
            "args": job and job.args,
            "options": job and options_json(job),
            "catch_up": schedule.catch_up,
            "window": schedule.window,
            "registered": _definition(schedule, job),
            "name": schedule.name,
            "version": schedule.version,
            "next": next,
            "run_on_start": schedule.run_on_start and not again,
            "scheduler": scheduler,
            "dead_after": DEAD_AFTER,
        }
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["register_schedule"], parameters)

    def register_scheduler(self, conn: AnyConnection, scheduler: UUID, worker: str, names: Iterable[str]) -> None:
        """Write which schedules the code of this process has."""
        with literal_cursor(conn) as cur:
            cur.execute(
                self._sql["register_scheduler"], {"scheduler": scheduler, "worker": worker, "names": sorted(names)}
            )

    def heartbeat(self, conn: AnyConnection, scheduler: UUID, worker: str, names: Iterable[str]) -> bool:
        """Write that this process is alive and has these schedules, and delete schedules that no code has had for long.
        Returns whether the table still knew this process."""
        parameters = {"scheduler": scheduler, "worker": worker, "names": sorted(names)}
        with _one_message(conn) as cur:
            cur.execute(
                self._sql["scheduler_heartbeat"], {**parameters, "dead_after": DEAD_AFTER, "prune_after": PRUNE_AFTER}
            )
            (((known,),),) = answers(cur)
            return bool(known)

    def deregister_scheduler(self, conn: AnyConnection, scheduler: UUID) -> None:
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["deregister_scheduler"], {"scheduler": scheduler})

    # --- by hand

    def now(self, conn: AnyConnection) -> datetime:
        with bound_cursor(conn) as cur:
            cur.execute(self._sql["schedules_now"])
            now: datetime = one(cur)[0]
            return now.astimezone(UTC)

    def rows(self, conn: AnyConnection, name: str | None = None) -> list[ScheduleRow]:
        """All schedules by name, or the one of this name."""
        with bound_cursor(conn) as cur:
            cur.execute(self._sql["list_schedules"], {"name": name})
            return [
                ScheduleRow(*row[:8], *map(_utc, row[8:12]), *row[12:15], *map(_utc, row[15:]))
                for row in cur.fetchall()
            ]

    # each returns whether a schedule was changed

    def add(self, conn: AnyConnection, name: str, **columns: Any) -> bool:
        return self._change(conn, self._sql["add_schedule"], name, columns)

    def change(self, conn: AnyConnection, name: str, **columns: Any) -> bool:
        return self._change(conn, self._sql["change_schedule"], name, columns)

    def pause(self, conn: AnyConnection, name: str) -> bool:
        return self._change(conn, self._sql["pause_schedule"], name)

    def resume(self, conn: AnyConnection, name: str) -> bool:
        return self._change(conn, self._sql["resume_schedule"], name)

    def remove(self, conn: AnyConnection, name: str) -> bool:
        return self._change(conn, self._sql["remove_schedule"], name)

    def run_now(self, conn: AnyConnection, name: str) -> bool:
        return self._change(conn, self._sql["run_schedule_now"], name)

    def _change(
        self, conn: AnyConnection, statement: bytes, name: str, columns: Mapping[str, Any] = MappingProxyType({})
    ) -> bool:
        with bound_cursor(conn) as cur:
            cur.execute(statement, {"name": name, **columns})
            return cur.fetchone() is not None


@contextmanager
def _one_message(conn: AnyConnection) -> Iterator[LiteralCursor]:
    """A cursor for a message that begins and commits its own transaction; if the message fails, rolls it back."""
    with literal_cursor(conn) as cur:
        try:
            yield cur
        except psycopg.Error:
            if not conn.closed:
                cur.execute(b"ROLLBACK")
            raise


def options_json(job: EncodedJob) -> str:
    """The options of a job as the row of a schedule has them."""
    options = {
        "queue": job.queue,
        "priority": job.priority,
        "max_attempts": job.max_attempts,
        "tags": job.tags,
        "delay": interval_text(job.delay),
        "pending": job.pending,
        "uniqueness": job.unique and json.loads(job.unique.to_json()),
    }
    if job.scheduled_at is not None:
        options["scheduled_at"] = job.scheduled_at.isoformat()
    return f'{json.dumps(options)[:-1]}, "metadata": {job.metadata}}}'


def _definition(schedule: Schedule, job: EncodedJob | None) -> str:
    """The definition in the code, to notice when the code changes. Without the metadata that a client adds to all its
    jobs: they may differ between processes."""
    options = job and {name: str(value) for name, value in vars(job).items() if name != "metadata"}
    values = [schedule.spec, schedule.zone, schedule.catch_up, str(schedule.window), options, str(schedule.metadata)]
    return json.dumps(values)


def _due(row: Sequence[Any]) -> DueSchedule:
    return DueSchedule(
        name=row[0],
        spec=row[1],
        zone=row[2],
        catch_up=row[3],
        window=span(row[4]),
        next_tick_at=_utc(row[5]),
        run_now_at=_utc(row[6]),
        paused=row[7],
        needs_code=row[8],
        planned=bool(row[9]),
        since=_utc(row[10]),
        now=_utc(row[11]),
    )


def _utc(instant: Any) -> Any:
    return instant and instant.astimezone(UTC)
