"""One method per statement about queues, connection first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pgjobs import statements
from pgjobs.cursors import AnyConnection, bound_cursor, literal_cursor


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue: one that a worker has worked within the last day, that is paused, or in which jobs wait or run.

    `updated_at` is when a worker last said that it works it, or somebody paused or resumed it; None for never.
    """

    name: str
    paused_at: datetime | None
    updated_at: datetime | None


@dataclass(frozen=True, slots=True)
class QueueFigures:
    """How a queue does. `waiting` jobs could run now, the oldest for as long as `oldest_waiting`; done and failed are
    those that were completed and discarded in the last minute; `workers` are the processes that work it."""

    name: str
    paused_at: datetime | None
    waiting: int
    running: int
    oldest_waiting: timedelta | None
    done_per_minute: int
    failed_per_minute: int
    workers: int


class QueueStore:
    """The statements of one schema."""

    def __init__(self, schema: str) -> None:
        self._channel = statements.channel(schema)
        self._queues = statements.load("queues.sql", schema)

    def list_queues(self, conn: AnyConnection) -> list[Queue]:
        with bound_cursor(conn) as cur:
            cur.execute(self._queues["list_queues"])
            return [_queue(row) for row in cur.fetchall()]

    def queue_figures(self, conn: AnyConnection, names: Iterable[str] | None) -> list[QueueFigures]:
        """Of all queues, or of those that are named, whether there are such or not."""
        with bound_cursor(conn) as cur:
            asked = None if names is None else list(names)
            cur.execute(self._queues["queue_figures"], {"names": asked}, prepare=False)
            return [QueueFigures(row[0], _utc(row[1]), *row[2:]) for row in cur.fetchall()]

    def pause_queues(self, conn: AnyConnection, name: str | None, *, paused: bool) -> list[Queue | None]:
        """The queues, one or all, as they are then; None for each that somebody else holds."""
        with bound_cursor(conn) as cur:
            values = {"name": name, "paused": paused, "channel": self._channel}
            cur.execute(self._queues["pause_queues"], values, prepare=False)
            return [None if row[3] else _queue(row) for row in cur.fetchall()]

    def keep_queues(self, conn: AnyConnection, names: Iterable[str]) -> None:
        """A worker works these queues."""
        with literal_cursor(conn) as cur:
            cur.execute(self._queues["keep_queues"], {"names": list(names)})

    def leave_queues(self, conn: AnyConnection, names: Iterable[str]) -> None:
        """A worker works these queues no more: wake another."""
        with literal_cursor(conn) as cur:
            cur.execute(self._queues["leave_queues"], {"names": list(names), "channel": self._channel})

    def forget_queues(self, conn: AnyConnection) -> None:
        with literal_cursor(conn) as cur:
            cur.execute(self._queues["forget_queues"])


def _queue(row: tuple[Any, ...]) -> Queue:
    return Queue(row[0], _utc(row[1]), _utc(row[2]))


def _utc(instant: datetime | None) -> datetime | None:
    return None if instant is None else instant.astimezone(UTC)
