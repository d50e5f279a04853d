"""One method per statement of the duties, connection first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from pgjobs.db import statements
from pgjobs.db.channel import channel
from pgjobs.db.cursors import AnyConnection, act, answers, literal_cursor, one, rollback
from pgjobs.db.rows import as_job
from pgjobs.interval import instant, span
from pgjobs.job import Job, JobState


class DutyMissing(LookupError):
    """The table of duties has no row of this one: somebody has emptied it."""


class Selection(NamedTuple):
    """Which rows an act leaves out, by their ids, and which it is restricted to."""

    aside: Sequence[int] | None = None
    among: Sequence[int] | None = None

    @property
    def values(self) -> dict[str, Any]:
        return {
            "aside": list(self.aside) if self.aside else None,
            "among": None if self.among is None else list(self.among),
        }


ALL_ROWS = Selection()


class PrunePart(NamedTuple):
    """Which jobs that are over are looked at: those that ended in a state longer ago than `keep`, from a place in the
    index on; and which of them are deleted: those of a queue, or of all queues but some."""

    state: JobState
    keep: timedelta
    queue: str | None
    others: Sequence[str]
    after: datetime | None
    after_id: int

    def values(self, batch: int, rows: Selection) -> dict[str, Any]:
        return {**self._asdict(), "others": list(self.others), "batch": batch, **rows.values}


class Rescued(list[Job[Any]]):
    """The jobs that a rescue has finished."""

    more = False  # whether it has left some for the next time


class MaintenanceQueries:
    """The statements of the duties, in one schema."""

    def __init__(self, schema: str) -> None:
        self.schema = schema
        self.channel = channel(schema)
        self._maintain = statements.load("maintenance.sql", schema)

    def begin_duty(self, conn: AnyConnection, duty: str, longest: timedelta = timedelta(hours=25)) -> timedelta | None:
        """Lock a duty in a transaction that stays open if the duty is due, also if it says to be for longer than
        `longest`.

        How long until it is due, zero or less for now; None: somebody else is at it. Raises DutyMissing when there is
        no row of the duty.
        """
        with literal_cursor(conn) as cur:
            cur.execute(self._maintain["begin_duty"], {"duty": duty, "longest": longest})
            (((microseconds, known),),) = answers(cur)
        remaining = span(microseconds)
        if remaining is None or remaining > timedelta(0):
            rollback(conn)
        if not known:
            raise DutyMissing(duty)
        return remaining

    def end_duty(self, conn: AnyConnection, duty: str, after: timedelta) -> None:
        """Move the duty's time on and commit."""
        with literal_cursor(conn) as cur:
            cur.execute(self._maintain["end_duty"], {"duty": duty, "after": after})

    def current_time(self, conn: AnyConnection) -> datetime:
        with literal_cursor(conn) as cur:
            cur.execute(self._maintain["current_time"])
            return instant(one(cur)[0])

    def postpone_duty(self, conn: AnyConnection, duty: str, after: timedelta) -> None:
        with literal_cursor(conn) as cur:
            cur.execute(self._maintain["postpone_duty"], {"duty": duty, "after": after})

    def glance(self, conn: AnyConnection, soon: timedelta) -> set[str]:
        """Whether `promote` and `rescue` would find anything."""
        with literal_cursor(conn) as cur:
            cur.execute(self._maintain["glance"], {"soon": soon})
            promote, rescue = one(cur)
            return {duty for duty, wanted in (("promote", promote), ("rescue", rescue)) if wanted}

    def hurry_promote(self, conn: AnyConnection) -> None:
        """Let the duty be done when the next job is due, if that is sooner than it was to be."""
        with literal_cursor(conn) as cur:
            cur.execute(self._maintain["hurry_promote"])

    def promote(
        self, conn: AnyConnection, batch: int, rows: Selection = ALL_ROWS
    ) -> tuple[dict[str, int], list[tuple[int, str]], timedelta | None]:
        """Make due jobs available; how many per queue, id and queue of those that a duplicate may be in the way of, and
        how
        long until the next waiting job is due."""
        values = {"batch": batch, "channel": self.channel, **rows.values}
        found, [(due,)] = act(conn, self._maintain["promote"], values)
        promoted = {queue: jobs for queue, jobs, id, *_ in found if id is None}
        return promoted, [(id, queue) for queue, _, id, *_ in found if id is not None], span(due)

    def settle_promotion(self, conn: AnyConnection, id: int, queue: str) -> JobState | None:
        """Make one available, or discard it if its duplicate has its key; raises when that cannot be told yet. None:
        there
        is nothing to settle any more."""
        values = {"id": id, "queue": queue, "channel": self.channel}
        (rows,) = act(conn, self._maintain["settle_promotion"], values)
        return JobState(rows[0][0]) if rows else None

    def postpone_promotion(self, conn: AnyConnection, id: int, queue: str) -> None:
        act(conn, self._maintain["postpone_promotion"], {"id": id, "queue": queue})

    def next_due(self, conn: AnyConnection, rows: Selection = ALL_ROWS) -> timedelta | None:
        """How long until the next waiting job is due."""
        [[(due,)]] = act(conn, self._maintain["next_due"], rows.values)
        return span(due)

    def rescue(
        self,
        conn: AnyConnection,
        batch: int,
        grace: timedelta,
        kinds: Iterable[str] | None = None,
        rows: Selection = ALL_ROWS,
    ) -> Rescued:
        """Finish the attempts of workers that vanished; the jobs as they are now, without a token where the attempt was
        given back, and without their args, metadata and earlier errors. Last attempts of other kinds than these are
        left to others; None is every kind."""
        values = self._rescue_values(batch, grace, kinds, rows)
        (found,) = act(conn, self._maintain["rescue"], values)
        rescued = Rescued(as_job(row) for row in found)
        rescued.more = bool(found) and bool(found[0][-1])
        return rescued

    def _rescue_values(
        self, batch: int, grace: timedelta, kinds: Iterable[str] | None, rows: Selection
    ) -> dict[str, Any]:
        return {"batch": batch, "grace": grace, "kinds": None if kinds is None else list(kinds), **rows.values}

    def rescued_job(self, conn: AnyConnection, id: int, queue: str) -> Job[Any] | None:
        """A job that was just rescued; without what of it is larger than a few megabytes."""
        with literal_cursor(conn) as cur:
            cur.execute(self._maintain["rescued_job"], {"id": id, "queue": queue})
            row = cur.fetchone()
            return as_job(row) if row else None

    def settle_requests(self, conn: AnyConnection, batch: int, rows: Selection = ALL_ROWS) -> tuple[int, int]:
        """Apply, pass on or drop requests to cancel attempts that are over: how many jobs are cancelled, requests dealt
        with."""
        [[(cancelled, settled)]] = act(conn, self._maintain["settle_requests"], {"batch": batch, **rows.values})
        return cancelled, settled

    def prune(
        self,
        conn: AnyConnection,
        state: JobState,
        keep: timedelta,
        batch: int,
        rows: Selection = ALL_ROWS,
        *,
        queue: str | None = None,
        others: Sequence[str] = (),
    ) -> int:
        """Delete jobs that ended in this state longer ago than `keep`, of a queue or of all but some; how many."""
        values = {"state": state, "keep": keep, "batch": batch, "queue": queue, "others": list(others), **rows.values}
        [[(deleted,)]] = act(conn, self._maintain["prune"], values)
        return deleted  # type: ignore[no-any-return]

    def prune_part(
        self, conn: AnyConnection, part: PrunePart, batch: int, rows: Selection = ALL_ROWS
    ) -> tuple[int, tuple[datetime, int] | None]:
        """Look at the next jobs that ended in a state longer ago than they are kept, and delete those of the queue, or
        of all but the others; how many were looked at, and when the last of them ended, with its id."""
        [[(seen, ended_at, id, _)]] = act(conn, self._maintain["prune_part"], part.values(batch, rows))
        return seen, None if ended_at is None else (ended_at, id)

    def rows_to_prune_part(
        self, conn: AnyConnection, part: PrunePart, batch: int, rows: Selection = ALL_ROWS
    ) -> list[tuple[int, str]]:
        return _rows(conn, self._maintain["rows_to_prune_part"], part.values(batch, rows))

    def some_jobs_to_prune(
        self,
        conn: AnyConnection,
        state: JobState,
        keep: timedelta,
        batch: int,
        *,
        queue: str | None = None,
        others: Sequence[str] = (),
    ) -> list[tuple[int, str]]:
        """Some jobs that may be deleted, of a queue or of all but some: id and queue."""
        values = {"state": state, "keep": keep, "batch": batch, "queue": queue, "others": list(others)}
        with literal_cursor(conn) as cur:
            cur.execute(self._maintain["some_jobs_to_prune"], values)
            return [(id, queue) for id, queue in cur.fetchall()]

    def rows_to_promote(self, conn: AnyConnection, batch: int, rows: Selection = ALL_ROWS) -> list[tuple[int, str]]:
        return _rows(conn, self._maintain["rows_to_promote"], {"batch": batch, **rows.values})

    def rows_to_rescue(
        self, conn: AnyConnection, batch: int, grace: timedelta, kinds: Iterable[str] | None, rows: Selection = ALL_ROWS
    ) -> list[tuple[int, str]]:
        return _rows(conn, self._maintain["rows_to_rescue"], self._rescue_values(batch, grace, kinds, rows))

    def rows_to_settle(self, conn: AnyConnection, batch: int, rows: Selection = ALL_ROWS) -> list[tuple[int, str]]:
        return _rows(conn, self._maintain["rows_to_settle"], {"batch": batch, **rows.values})

    def rows_to_prune(
        self, conn: AnyConnection, state: JobState, keep: timedelta, batch: int, rows: Selection = ALL_ROWS
    ) -> list[tuple[int, str]]:
        """Where no queue says anything itself."""
        values = {"state": state, "keep": keep, "batch": batch, "queue": None, "others": [], **rows.values}
        return _rows(conn, self._maintain["rows_to_prune"], values)


def _rows(conn: AnyConnection, statement: bytes, values: Mapping[str, Any]) -> list[tuple[int, str]]:
    (rows,) = act(conn, statement, values)
    return [(id, queue) for id, queue in rows]
