"""One method per statement about queues, connection first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from pgjobs.db import statements
from pgjobs.db.channel import channel
from pgjobs.db.cursors import AnyConnection, bound_cursor, literal_cursor
from pgjobs.figures import Queue, QueueStats
from pgjobs.states import JobState

#: The states of which a queue may say how long their jobs are kept, in the order of the columns.
KEPT = (JobState.COMPLETED, JobState.CANCELLED, JobState.DISCARDED)
#: What the table holds for ever. (Infinite intervals are new in Postgres 17.)
FOR_EVER = timedelta(days=1_000_000)


class QueueQueries:
    """The statements of one schema."""

    def __init__(self, schema: str) -> None:
        self._channel = channel(schema)
        self._queues = statements.load("control.sql", schema)

    def list_queues(self, conn: AnyConnection) -> list[Queue]:
        with bound_cursor(conn) as cur:
            cur.execute(self._queues["list_queues"])
            return [_queue(row) for row in cur.fetchall()]

    def queue_stats(self, conn: AnyConnection, names: Iterable[str] | None) -> list[QueueStats]:
        """Of all queues, or of those that are named, whether there are such or not."""
        with bound_cursor(conn) as cur:
            asked = None if names is None else list(names)
            cur.execute(self._queues["queue_stats"], {"names": asked}, prepare=False)
            return [QueueStats(row[0], _utc(row[1]), *row[2:]) for row in cur.fetchall()]

    def pause_queues(self, conn: AnyConnection, name: str | None, *, paused: bool) -> list[Queue | None]:
        """The queues, one or all, as they are then; None for each that somebody else holds."""
        with bound_cursor(conn) as cur:
            values = {"name": name, "paused": paused, "channel": self._channel}
            cur.execute(self._queues["pause_queues"], values, prepare=False)
            return [None if row[6] else _queue(row) for row in cur.fetchall()]

    def paused(self, conn: AnyConnection) -> tuple[datetime, dict[str, datetime]]:
        """The time by the database's clock; and the queues that are paused then, with since when."""
        with bound_cursor(conn) as cur:
            cur.execute(self._queues["paused_queues"])
            rows = cur.fetchall()
            return rows[0][0], {name: since for _, name, since in rows if name is not None}

    def update_queue(self, conn: AnyConnection, name: str, keep: Mapping[str, timedelta | None]) -> Queue | None:
        """Set how long the jobs of a queue are kept, by the states that are named; None: somebody else has its row."""
        values: dict[str, Any] = {"name": name}
        for state in KEPT:
            values[f"set_{state}"] = state in keep
            values[f"keep_{state}"] = keep.get(state)
        with bound_cursor(conn) as cur:
            cur.execute(self._queues["update_queue"], values, prepare=False)
            row = cur.fetchone()
            return None if row is None else _queue(row)

    def own_retention(self, conn: AnyConnection) -> list[tuple[str, JobState, timedelta]]:
        """The queues and states that are not kept as long as the worker pools say, and for how long."""
        with literal_cursor(conn) as cur:
            cur.execute(self._queues["own_retention"])
            return [
                (name, state, kept)
                for name, *seconds in cur.fetchall()
                for state, kept in zip(KEPT, map(_kept, seconds), strict=True)
                if kept is not None
            ]

    def keep_queues(self, conn: AnyConnection, names: Iterable[str]) -> None:
        """A worker works these queues."""
        with literal_cursor(conn) as cur:
            cur.execute(self._queues["keep_queues"], {"names": list(names)})

    def leave_queues(self, conn: AnyConnection, names: Iterable[str]) -> None:
        """A worker works these queues no more: wake another."""
        with literal_cursor(conn) as cur:
            cur.execute(self._queues["leave_queues"], {"names": list(names), "channel": self._channel})

    def prune_queues(self, conn: AnyConnection) -> None:
        with literal_cursor(conn) as cur:
            cur.execute(self._queues["prune_queues"])


def _queue(row: tuple[Any, ...]) -> Queue:
    return Queue(row[0], _utc(row[1]), _utc(row[2]), *map(_kept, row[3:6]))


def _kept(seconds: float | None) -> timedelta | None:
    """What the row says, which may be written by hand."""
    if seconds is None:
        return None
    return timedelta.max if seconds >= FOR_EVER.total_seconds() else timedelta(seconds=max(seconds, 0.0))


def _utc(instant: datetime | None) -> datetime | None:
    return None if instant is None else instant.astimezone(UTC)
