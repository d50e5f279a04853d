"""One method per statement that changes all jobs that fit a filter, connection first.

The values of a filter are never bound to a prepared statement: the plan is made for this filter, and the parts of it
that say nothing are gone before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pgjobs.control.queries import Changes, ControlResult
from pgjobs.db import statements
from pgjobs.db.channel import channel
from pgjobs.db.cursors import AnyConnection, BoundCursor, bound_cursor, literal_cursor, one
from pgjobs.db.rows import as_job
from pgjobs.job_filter import JobFilter

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


class FilterQueries:
    """The statements of one schema."""

    def __init__(self, schema: str) -> None:
        self._channel = channel(schema)
        self._many = statements.load("control.sql", schema)

    def newest_id(self, conn: AnyConnection) -> int | None:
        """The greatest id, whoever gave it; None when there is no job."""
        with bound_cursor(conn) as cur:
            cur.execute(self._many["newest_id"])
            newest: int | None = one(cur)[0]
            return newest

    def begin_many(self, conn: AnyConnection, patience: float) -> None:
        """Begin a batch in a transaction of our own, which waits for nothing longer than these seconds."""
        with literal_cursor(conn) as cur:
            cur.execute(self._many["begin_many"], {"patience": f"{max(1, int(patience * 1000))}ms"})

    def places_in_turn(self, conn: AnyConnection, filter: JobFilter, turn: Turn) -> list[Place]:
        with bound_cursor(conn) as cur:
            rows = _rows(cur, self._many["ids_in_turn"], filter, {**_turn(turn), "over": True})
            return [(id, queue) for id, queue in rows]

    def cancel_many(self, conn: AnyConnection, filter: JobFilter, turn: Turn, *, reason: str) -> list[ControlResult]:
        return self._judged(conn, self._many["cancel_many"], filter, turn, {"over": False, "reason": reason})

    def retry_many(self, conn: AnyConnection, filter: JobFilter, turn: Turn, *, reset: bool) -> list[ControlResult]:
        return self._judged(conn, self._many["retry_many"], filter, turn, {"over": True, "reset": reset})

    def delete_many(self, conn: AnyConnection, filter: JobFilter, turn: Turn) -> list[ControlResult]:
        return self._judged(conn, self._many["delete_many"], filter, turn, {"over": True})

    def update_many(self, conn: AnyConnection, filter: JobFilter, turn: Turn, changes: Changes) -> list[ControlResult]:
        values = {f"new_{name}": getattr(changes, name) for name in Changes.__slots__}
        return self._judged(conn, self._many["update_many"], filter, turn, {"over": True, **values})

    def _judged(
        self, conn: AnyConnection, statement: bytes, filter: JobFilter, turn: Turn, values: Mapping[str, Any]
    ) -> list[ControlResult]:
        with bound_cursor(conn) as cur:
            rows = _rows(cur, statement, filter, {**_turn(turn), **values, "notify": True, "channel": self._channel})
            return [(as_job(row), row[_VERDICT]) for row in rows]


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


def _rows(cur: BoundCursor, statement: bytes, filter: JobFilter, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    cur.execute(statement, {**filter.parameters, **values}, prepare=False)
    return cur.fetchall()
