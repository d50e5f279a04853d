"""One method per statement about all jobs that fit a filter, connection first.

Apart from the store because they share what it does not know: the parameters of a filter. Their values are never bound
to a prepared statement: the plan is made for this filter, and the parts of it that say nothing are gone before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pgjobs.db import statements
from pgjobs.db.cursors import AnyConnection, BoundCursor, bound_cursor, literal_cursor, one
from pgjobs.execution.queries import Changes, Verdict, as_job
from pgjobs.job import Job, JobState
from pgjobs.job_filter import JobFilter, Listing

_VERDICT = 19  # stands behind the columns of a job


#: The id and the queue of a job: after a restore two queues may have jobs of one id.
Place = tuple[int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Which of the jobs that fit are next: so many of those behind a place, or `among` some of them."""

    newest: int
    batch: int
    after: Place | None = None  # None: from the first
    among: Sequence[Place] | None = None


class FilterStore:
    """The statements of one schema."""

    def __init__(self, schema: str) -> None:
        self._channel = statements.channel(schema)
        self._many = statements.load("many.sql", schema)
        self._observe = statements.load("observe.sql", schema)

    # --- look

    def list_jobs(self, conn: AnyConnection, filter: JobFilter, listing: Listing) -> list[Job[Any]]:
        """The jobs of a page, and one more if there are more."""
        clock = "id" if listing.order == "id" else _clock(filter)
        available = clock == "scheduled_at" and filter.states == (JobState.AVAILABLE,)
        statement = self._observe["list_available" if available else "list_jobs"]
        place = {
            "order": f"{clock} {'down' if listing.descending else 'up'}",
            "limit": listing.limit + 1,
            "after_id": listing.after_id,
            "after_time": listing.after_time,
        }
        with bound_cursor(conn) as cur:
            return [as_job(row) for row in _rows(cur, statement, filter, place)]

    def count_jobs(self, conn: AnyConnection, filter: JobFilter) -> dict[tuple[str, JobState], int]:
        """How many fit, by queue and state."""
        with bound_cursor(conn) as cur:
            rows = _rows(cur, self._observe["count_jobs"], filter, {})
            return {(queue, JobState(state)): jobs for queue, state, jobs in rows}

    def newest_id(self, conn: AnyConnection) -> int | None:
        """The greatest id, whoever gave it; None when there is no job."""
        with bound_cursor(conn) as cur:
            cur.execute(self._observe["newest_id"])
            newest: int | None = one(cur)[0]
            return newest

    # --- control: what became of each job of the batch, in the order of their ids

    def begin_many(self, conn: AnyConnection, patience: float) -> None:
        """Begin a batch in a transaction of our own, which waits for nothing longer than these seconds."""
        with literal_cursor(conn) as cur:
            cur.execute(self._many["begin_many"], {"patience": f"{max(1, int(patience * 1000))}ms"})

    def places_in_turn(self, conn: AnyConnection, filter: JobFilter, turn: Turn) -> list[Place]:
        with bound_cursor(conn) as cur:
            rows = _rows(cur, self._many["ids_in_turn"], filter, {**_turn(turn), "over": True})
            return [(id, queue) for id, queue in rows]

    def cancel_many(self, conn: AnyConnection, filter: JobFilter, turn: Turn, *, reason: str) -> list[Verdict]:
        return self._judged(conn, self._many["cancel_many"], filter, turn, {"over": False, "reason": reason})

    def retry_many(self, conn: AnyConnection, filter: JobFilter, turn: Turn, *, reset: bool) -> list[Verdict]:
        return self._judged(conn, self._many["retry_many"], filter, turn, {"over": True, "reset": reset})

    def delete_many(self, conn: AnyConnection, filter: JobFilter, turn: Turn) -> list[Verdict]:
        return self._judged(conn, self._many["delete_many"], filter, turn, {"over": True})

    def update_many(self, conn: AnyConnection, filter: JobFilter, turn: Turn, changes: Changes) -> list[Verdict]:
        values = {f"new_{name}": getattr(changes, name) for name in Changes.__slots__}
        return self._judged(conn, self._many["update_many"], filter, turn, {"over": True, **values})

    def _judged(
        self, conn: AnyConnection, statement: bytes, filter: JobFilter, turn: Turn, values: Mapping[str, Any]
    ) -> list[Verdict]:
        with bound_cursor(conn) as cur:
            rows = _rows(cur, statement, filter, {**_turn(turn), **values, "notify": True, "channel": self._channel})
            return [(as_job(row), row[_VERDICT]) for row in rows]


def _rows(cur: BoundCursor, statement: bytes, filter: JobFilter, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    cur.execute(statement, {**_filter(filter), **values}, prepare=False)
    return cur.fetchall()


def _clock(filter: JobFilter) -> str:
    """The column that tells the time of the one state that the filter names; see job_filter."""
    assert filter.states is not None
    state = JobState(filter.states[0])
    if state == JobState.RUNNING:
        return "attempted_at"
    return "finalized_at" if state.final else "scheduled_at"


def _filter(filter: JobFilter) -> dict[str, Any]:
    """The parameters of the part `matches`."""
    values = {name: getattr(filter, name) for name in JobFilter.__slots__ if name != "really_all"}
    lists = {name: list(value) for name, value in values.items() if isinstance(value, tuple)}
    return {**values, **lists, "metadata": filter.metadata_json}


def _turn(turn: Turn) -> dict[str, Any]:
    after, after_queue = turn.after or (None, None)
    among = turn.among
    return {
        "newest": turn.newest,
        "batch": turn.batch,
        "after": after,
        "after_queue": after_queue,
        "among": None if among is None else [id for id, _ in among],
        "names": None if among is None else [f"{id} {queue}" for id, queue in among],
    }
