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
from pgjobs.figures import ScheduleRow
from pgjobs.interval import instant, interval_text, span
from pgjobs.options import EncodedJob
from pgjobs.schedule import CatchUp, Schedule

DEAD_AFTER = timedelta(seconds=30)  # a process that has not been heard of for so long has its schedules no more
FORGET_AFTER = timedelta(days=30)  # a schedule that no code has had for so long
_ERROR_LIMIT = 2000  # characters


@dataclass(frozen=True, slots=True)
class DueSchedule:
    """A schedule that wants something now, as it was when that was seen."""

    name: str
    spec: str | None
    zone: str
    catch_up: CatchUp
    window: timedelta | None
    next_tick_at: datetime | None
    run_now_at: datetime | None
    paused: bool
    needs_code: bool  # its args, or its kind, are not in the row
    planned: bool  # next_tick_at is that of this spec
    since: datetime  # what the first tick comes after, when it is not planned
    now: datetime

    @property
    def state(self) -> tuple[object, ...]:
        """What must be the same still when it is moved on."""
        return (self.spec, self.zone, self.next_tick_at, self.run_now_at, self.paused)


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """What is to become of a due schedule: a job for `tick` or none, and its next tick."""

    tick: datetime | None
    next: datetime | None
    ran_now: bool = False
    row: EncodedJob | None = None  # what code supplied; None: what the table has
    error: str | None = None
    counted: datetime | None = None  # the tick that is over


@dataclass(frozen=True, slots=True)
class Moved:
    """What a move did: the job that was made, if one was."""

    id: int | None
    queue: str | None


class ScheduleQueries:
    """The statements about schedules of one schema."""

    def __init__(self, schema: str) -> None:
        self.schema = schema
        self._sql = statements.load("schedules.sql", schema)
        self._channel = channel(schema)

    # --- ticks

    def look(
        self,
        conn: AnyConnection,
        mine: Mapping[str, int],
        aside: Sequence[str],
        batch: int,
        *,
        only: str | None = None,
    ) -> tuple[list[DueSchedule], timedelta | None]:
        """What wants something now, and how long until more does: of the schedules of the table, and of `mine`, which
        code has in these versions; or of `only` one of them."""
        values = {"mine": json.dumps(mine), "aside": list(aside), "batch": batch, "only": only}
        with _one_message(conn) as cur:
            cur.execute(self._sql["due_schedules"], values)
            rows, ((wait,),) = answers(cur)
            return [_due(row) for row in rows], span(wait)

    def names_of_due(self, conn: AnyConnection, mine: Mapping[str, int], aside: Sequence[str], batch: int) -> list[str]:
        """Which schedules want something now, whatever else their rows hold."""
        with literal_cursor(conn) as cur:
            values = {"mine": json.dumps(mine), "aside": list(aside), "batch": batch}
            cur.execute(self._sql["names_of_due_schedules"], values)
            return [name for (name,) in cur.fetchall()]

    def move(self, conn: AnyConnection, seen: DueSchedule, move: Move) -> Moved | None:
        """Make the job and move on; None if the schedule is no longer as it was seen, or somebody else has it."""
        row = move.row
        parameters = {
            "name": seen.name,
            "seen_next": seen.next_tick_at,
            "seen_run_now": seen.run_now_at,
            "spec": seen.spec,
            "zone": seen.zone,
            "paused": seen.paused,
            "kind": row and row.kind,
            "args": row and row.args,
            "options": row and options_json(row),
            "wanted": move.tick is not None,
            "tick": move.tick,
            "tick_text": move.tick and move.tick.isoformat(),
            "next": move.next,
            "last": move.counted,
            "ran_now": move.ran_now,
            "error": move.error and clean(move.error, _ERROR_LIMIT),
            "channel": self._channel,
        }
        with _one_message(conn) as cur:
            cur.execute(self._sql["tick"], parameters)
            (rows,) = answers(cur)
        return Moved(*rows[0][:2]) if rows else None

    def note_error(self, conn: AnyConnection, name: str, error: str) -> None:
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["note_schedule_error"], {"name": name, "error": clean(error, _ERROR_LIMIT)})

    # --- what code registers

    def begin_registration(self, conn: AnyConnection) -> datetime:
        """Begins; the instant that new schedules count from."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["begin_registration"])
            ((epoch,),) = answers(cur)[-1]
            return instant(epoch)

    def register(
        self,
        conn: AnyConnection,
        schedule: Schedule,
        row: EncodedJob | None,
        next: datetime | None,
        scheduler: UUID,
        *,
        again: bool = False,
    ) -> None:
        """Write down what code says; `row` is None where it supplies the args at each tick. `again` is not the start
        of a process, at which a schedule may want to run."""
        parameters = {
            "kind": row and row.kind,
            "spec": schedule.spec,
            "zone": schedule.zone,
            "args": row and row.args,
            "options": row and options_json(row),
            "catch_up": schedule.catch_up,
            "window": schedule.window,
            "registered": _definition(schedule, row),
            "name": schedule.name,
            "version": schedule.version,
            "next": next,
            "run_on_start": schedule.run_on_start and not again,
            "scheduler": scheduler,
            "dead_after": DEAD_AFTER,
        }
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["register_schedule"], parameters)

    def say_who_has_it(self, conn: AnyConnection, scheduler: UUID, worker: str, names: Iterable[str]) -> None:
        with literal_cursor(conn) as cur:
            cur.execute(
                self._sql["write_scheduler"], {"scheduler": scheduler, "worker": worker, "names": sorted(names)}
            )

    def beat(self, conn: AnyConnection, scheduler: UUID, worker: str, names: Iterable[str]) -> bool:
        """Say that this process lives and has these schedules; forget those that no code has had for long. Whether the
        process was known."""
        parameters = {"scheduler": scheduler, "worker": worker, "names": sorted(names)}
        with _one_message(conn) as cur:
            cur.execute(
                self._sql["beat_scheduler"], {**parameters, "dead_after": DEAD_AFTER, "forget_after": FORGET_AFTER}
            )
            (((known,),),) = answers(cur)
            return bool(known)

    def leave(self, conn: AnyConnection, scheduler: UUID) -> None:
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["remove_scheduler"], {"scheduler": scheduler})

    # --- by hand

    def now(self, conn: AnyConnection) -> datetime:
        with bound_cursor(conn) as cur:
            cur.execute(self._sql["schedules_now"])
            now: datetime = one(cur)[0]
            return now.astimezone(UTC)

    def rows(self, conn: AnyConnection, name: str | None = None) -> list[ScheduleRow]:
        with bound_cursor(conn) as cur:
            cur.execute(self._sql["list_schedules"], {"name": name})
            return [
                ScheduleRow(*row[:8], *map(_utc, row[8:12]), *row[12:15], *map(_utc, row[15:]))
                for row in cur.fetchall()
            ]

    # each says whether there was something to do it to

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
    """A cursor for a message that begins its transaction itself; where that fails, it ends it too."""
    with literal_cursor(conn) as cur:
        try:
            yield cur
        except psycopg.Error:
            if not conn.closed:
                cur.execute(b"ROLLBACK")
            raise


def options_json(row: EncodedJob) -> str:
    """The options of a job as a schedule keeps them, which need no args class to be read."""
    options = {
        "queue": row.queue,
        "priority": row.priority,
        "max_attempts": row.max_attempts,
        "tags": row.tags,
        "delay": interval_text(row.delay),
        "pending": row.pending,
        "uniqueness": row.unique and json.loads(row.unique.to_json()),
    }
    if row.scheduled_at is not None:
        options["scheduled_at"] = row.scheduled_at.isoformat()
    return f'{json.dumps(options)[:-1]}, "metadata": {row.metadata}}}'


def _definition(schedule: Schedule, row: EncodedJob | None) -> str:
    """What the code says, to be compared with what it said before; without what a client adds to the metadata of every
    job, which may be different in each process."""
    options = row and {name: str(value) for name, value in vars(row).items() if name != "metadata"}
    said = [schedule.spec, schedule.zone, schedule.catch_up, str(schedule.window), options, str(schedule.metadata)]
    return json.dumps(said)


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
