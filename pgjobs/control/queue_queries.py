"""The statements that change the table `queue`: by hand, and by the worker processes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from pgjobs.db import statements
from pgjobs.db.channel import channel
from pgjobs.db.cursors import AnyConnection, bound_cursor
from pgjobs.results import KEPT, Queue, queue_of


class QueueQueries:
    """The statements of one schema."""

    def __init__(self, schema: str) -> None:
        self._channel = channel(schema)
        self._queues = statements.load("control.sql", schema)

    # --- by hand

    def pause_queues(self, conn: AnyConnection, name: str | None, *, paused: bool) -> list[Queue | None]:
        """Pause or resume one queue or all; the queues as they are then, None for each whose row another transaction
        holds."""
        with bound_cursor(conn) as cur:
            values = {"name": name, "paused": paused, "channel": self._channel}
            cur.execute(self._queues["pause_queues"], values, prepare=False)
            return [None if row[6] else queue_of(row) for row in cur.fetchall()]

    def update_queue(self, conn: AnyConnection, name: str, keep: Mapping[str, timedelta | None]) -> Queue | None:
        """Set how long the jobs of a queue are kept, for the states in `keep`; None when another transaction holds its
        row."""
        values: dict[str, Any] = {"name": name}
        for state in KEPT:
            values[f"set_{state}"] = state in keep
            values[f"keep_{state}"] = keep.get(state)
        with bound_cursor(conn) as cur:
            cur.execute(self._queues["update_queue"], values, prepare=False)
            row = cur.fetchone()
            return None if row is None else queue_of(row)
