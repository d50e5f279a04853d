"""The statements of the duties, one method each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from pgjobs.db import statements
from pgjobs.db.channel import channel
from pgjobs.db.cursors import AnyConnection, answers, literal_cursor, one, rollback, run_guarded
from pgjobs.db.rows import as_job
from pgjobs.interval import span
from pgjobs.job import Job, JobState


class DutyMissing(LookupError):
    """The table `maintenance` has no row for this duty: the table was emptied."""


class Selection(NamedTuple):
    """Restricts a statement of a duty to rows, by their ids: not those `set_aside`, and only those `among`."""

    set_aside: Sequence[int] | None = None
    among: Sequence[int] | None = None

    @property
    def values(self) -> dict[str, Any]:
        return {
            "set_aside": list(self.set_aside) if self.set_aside else None,
            "among": None if self.among is None else list(self.among),
        }


ALL_ROWS = Selection()


class RetentionRule(NamedTuple):
    """Jobs that ended in `state` are deleted after `keep`: the jobs of `queue`, or those of all queues but
    `other_queues`."""

    state: JobState
    keep: timedelta
    queue: str | None = None
    other_queues: tuple[str, ...] = ()

    def values(self, batch: int, rows: Selection) -> dict[str, Any]:
        return {
            "state": self.state,
            "keep": self.keep,
            "queue": self.queue,
            "others": list(self.other_queues),
            "batch": batch,
            **rows.values,
        }


#: A position in the index on the ends of jobs: the end and the id of the last job that was read; None: none yet.
Position = tuple[datetime | None, int]
START: Position = (None, 0)


class Rescued(list[Job[Any]]):
    """The jobs whose attempts a rescue has finished."""

    more = False  # whether there are more to rescue


class MaintenanceQueries:
    """The statements of the duties, in one schema."""

    def __init__(self, schema: str) -> None:
        self._channel = channel(schema)
        self._sql = statements.load("maintenance.sql", schema)

    def begin_duty(self, conn: AnyConnection, duty: str, longest: timedelta = timedelta(hours=25)) -> timedelta | None:
        """Begin a transaction and lock the row of a duty. Returns how long until the duty is due.

        If that is zero or less, the duty is due and the transaction stays open. None: another process does the duty
        now. A time further away than `longest` is wrong, and counts as due. Raises DutyMissing if there is no row.
        """
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["begin_duty"], {"duty": duty, "longest": longest})
            (((microseconds, known),),) = answers(cur)
        remaining = span(microseconds)
        if remaining is None or remaining > timedelta(0):
            rollback(conn)
        if not known:
            raise DutyMissing(duty)
        return remaining

    def end_duty(self, conn: AnyConnection, duty: str, after: timedelta) -> None:
        """Set when the duty is due again, and commit."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["end_duty"], {"duty": duty, "after": after})

    def postpone_duty(self, conn: AnyConnection, duty: str, after: timedelta) -> None:
        """Set when a duty that has failed is due again."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["postpone_duty"], {"duty": duty, "after": after})

    def anything_due(self, conn: AnyConnection, soon: timedelta) -> set[str]:
        """The duties of `promote` and `rescue` that have something to do now or within `soon`."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["anything_due"], {"soon": soon})
            promote, rescue = one(cur)
            return {duty for duty, wanted in (("promote", promote), ("rescue", rescue)) if wanted}

    def bring_promote_forward(self, conn: AnyConnection) -> None:
        """Make the duty `promote` due when the next job is due, if that is earlier."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["bring_promote_forward"])

    def promote(
        self, conn: AnyConnection, batch: int, rows: Selection = ALL_ROWS
    ) -> tuple[dict[str, int], list[tuple[int, str]], timedelta | None]:
        """Make due jobs available. Returns how many jobs of each queue; the jobs (id and queue) that were left because
        another job may have taken their unique key; and how long until the next waiting job is due."""
        values = {"batch": batch, "channel": self._channel, **rows.values}
        found, [(due,)] = run_guarded(conn, self._sql["promote"], values)
        promoted = {queue: jobs for queue, jobs, id, *_ in found if id is None}
        return promoted, [(id, queue) for queue, _, id, *_ in found if id is not None], span(due)

    def settle_promotion(self, conn: AnyConnection, id: int, queue: str) -> JobState | None:
        """Make one job available, or discard it if another job has its unique key. Returns the new state, or None if
        the job no longer waits. Raises if a transaction is still inserting the other job."""
        values = {"id": id, "queue": queue, "channel": self._channel}
        (rows,) = run_guarded(conn, self._sql["settle_promotion"], values)
        return JobState(rows[0][0]) if rows else None

    def postpone_promotion(self, conn: AnyConnection, id: int, queue: str) -> None:
        """Make a job due a second later."""
        run_guarded(conn, self._sql["postpone_promotion"], {"id": id, "queue": queue})

    def next_due(self, conn: AnyConnection, rows: Selection = ALL_ROWS) -> timedelta | None:
        """How long until the next waiting job is due."""
        [[(due,)]] = run_guarded(conn, self._sql["next_due"], rows.values)
        return span(due)

    def rescue(
        self,
        conn: AnyConnection,
        batch: int,
        grace: timedelta,
        kinds: Iterable[str] | None = None,
        rows: Selection = ALL_ROWS,
    ) -> Rescued:
        """Finish the attempts of workers that vanished. Returns the jobs as they are now, without their args, metadata
        and earlier errors, and without a token if the attempt was excused. `kinds` are the kinds that this process
        knows, None is every kind; a last attempt of another kind is left to other processes."""
        values = self._rescue_values(batch, grace, kinds, rows)
        (found,) = run_guarded(conn, self._sql["rescue"], values)
        rescued = Rescued(as_job(row) for row in found)
        rescued.more = bool(found) and bool(found[0][-1])
        return rescued

    def _rescue_values(
        self, batch: int, grace: timedelta, kinds: Iterable[str] | None, rows: Selection
    ) -> dict[str, Any]:
        return {"batch": batch, "grace": grace, "kinds": None if kinds is None else list(kinds), **rows.values}

    def rescued_job(self, conn: AnyConnection, id: int, queue: str) -> Job[Any] | None:
        """A job that was just rescued. Values larger than a few megabytes are empty."""
        (rows,) = run_guarded(conn, self._sql["rescued_job"], {"id": id, "queue": queue})
        return as_job(rows[0]) if rows else None

    def settle_requests(self, conn: AnyConnection, batch: int, rows: Selection = ALL_ROWS) -> tuple[int, int]:
        """Settle the requests to cancel attempts that have ended. Returns how many jobs were cancelled, and how many
        requests were settled."""
        [[(cancelled, settled)]] = run_guarded(conn, self._sql["settle_requests"], {"batch": batch, **rows.values})
        return cancelled, settled

    def date_finished(self, conn: AnyConnection, batch: int, rows: Selection = ALL_ROWS) -> int:
        """Give finished jobs an end that have none, or one in the future. Returns how many."""
        [[(dated,)]] = run_guarded(conn, self._sql["date_finished"], {"batch": batch, **rows.values})
        return dated  # type: ignore[no-any-return]

    def prune(self, conn: AnyConnection, rule: RetentionRule, batch: int, rows: Selection = ALL_ROWS) -> int:
        """Delete the oldest jobs that were kept as long as the rule says. Returns how many."""
        [[(deleted,)]] = run_guarded(conn, self._sql["prune"], rule.values(batch, rows))
        return deleted  # type: ignore[no-any-return]

    def prune_figures(self, conn: AnyConnection, keep: timedelta, batch: int) -> int:
        """Delete the oldest figures that were kept as long. Returns how many rows."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["prune_figures"], {"keep": keep, "batch": batch})
            pruned: int = one(cur)[0]
            return pruned

    def roll_up_figures(
        self, conn: AnyConnection, old: timedelta, older: timedelta, period: timedelta, batch: int
    ) -> int:
        """Add figures that are as old as `old`, but not as `older`, to those of the beginning of their period, which
        divides an hour. Returns how many rows of other minutes it has deleted, which are `batch` at most."""
        values = {"old": old, "older": older, "period": period, "batch": batch}
        [[(deleted,)]] = run_guarded(conn, self._sql["roll_up_figures"], values)
        return deleted  # type: ignore[no-any-return]

    def prune_audit(self, conn: AnyConnection, keep: timedelta, batch: int) -> int:
        """Delete the oldest rows of the audit that were kept as long. Returns how many."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["prune_audit"], {"keep": keep, "batch": batch})
            pruned: int = one(cur)[0]
            return pruned

    def prune_after(
        self, conn: AnyConnection, rule: RetentionRule, after: Position, batch: int, rows: Selection = ALL_ROWS
    ) -> tuple[int, Position]:
        """Read the next jobs of all queues that ended in the state of the rule, and delete those that were kept as long
        as it says. Returns how many were read, and the new position."""
        [[(seen, ended_at, id, _)]] = run_guarded(
            conn, self._sql["prune_after"], _values_after(rule, after, batch, rows)
        )
        return seen, after if ended_at is None else (ended_at, id)

    def some_jobs_to_prune(self, conn: AnyConnection, rule: RetentionRule, batch: int) -> list[tuple[int, str]]:
        """Some jobs that were kept as long as the rule says, in no order: id and queue."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["some_jobs_to_prune"], rule.values(batch, ALL_ROWS))
            return [(id, queue) for id, queue in cur.fetchall()]

    # --- the rows that a statement above would take, as id and queue; for when it fails because of one of them

    def rows_to_promote(self, conn: AnyConnection, batch: int, rows: Selection = ALL_ROWS) -> list[tuple[int, str]]:
        return _rows(conn, self._sql["rows_to_promote"], {"batch": batch, **rows.values})

    def rows_to_rescue(
        self, conn: AnyConnection, batch: int, grace: timedelta, kinds: Iterable[str] | None, rows: Selection = ALL_ROWS
    ) -> list[tuple[int, str]]:
        return _rows(conn, self._sql["rows_to_rescue"], self._rescue_values(batch, grace, kinds, rows))

    def rows_to_settle(self, conn: AnyConnection, batch: int, rows: Selection = ALL_ROWS) -> list[tuple[int, str]]:
        return _rows(conn, self._sql["rows_to_settle"], {"batch": batch, **rows.values})

    def rows_to_date(self, conn: AnyConnection, batch: int, rows: Selection = ALL_ROWS) -> list[tuple[int, str]]:
        return _rows(conn, self._sql["rows_to_date"], {"batch": batch, **rows.values})

    def rows_to_prune(
        self, conn: AnyConnection, rule: RetentionRule, batch: int, rows: Selection = ALL_ROWS
    ) -> list[tuple[int, str]]:
        return _rows(conn, self._sql["rows_to_prune"], rule.values(batch, rows))

    def rows_to_prune_after(
        self, conn: AnyConnection, rule: RetentionRule, after: Position, batch: int, rows: Selection = ALL_ROWS
    ) -> list[tuple[int, str]]:
        return _rows(conn, self._sql["rows_to_prune_after"], _values_after(rule, after, batch, rows))


def _values_after(rule: RetentionRule, after: Position, batch: int, rows: Selection) -> dict[str, Any]:
    ended_at, id = after
    return {**rule.values(batch, rows), "after": ended_at, "after_id": id}


def _rows(conn: AnyConnection, statement: bytes, values: Mapping[str, Any]) -> list[tuple[int, str]]:
    (rows,) = run_guarded(conn, statement, values)
    return [(id, queue) for id, queue in rows]
