"""One method per statement that changes a job by hand, connection first."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pgjobs.db import statements
from pgjobs.db.channel import channel
from pgjobs.db.cursors import AnyConnection, bound_cursor, literal_cursor, one
from pgjobs.db.rows import as_job, only
from pgjobs.job import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What one update changes, checked and encoded already; None leaves a thing as it is."""

    metadata: str | None
    output: str | None
    priority: int | None
    scheduled_at: datetime | None
    max_attempts: int | None
    tags: list[str] | None


#: A job as a control statement leaves it, and what the statement says it did; see sql/control.sql.
ControlResult = tuple[Job[Any], str]


class ControlQueries:
    """The statements that change one job by hand, in one schema. Each gives the job as it is now, and what became of
    the call; None when there is no such job."""

    def __init__(self, schema: str) -> None:
        self._channel = channel(schema)
        self._control = statements.load("control.sql", schema)

    def begin_control(self, conn: AnyConnection) -> None:
        with literal_cursor(conn) as cur:
            cur.execute(self._control["begin_control"])

    def cancel(self, conn: AnyConnection, id: int, *, reason: str) -> ControlResult | None:
        return self._judged(conn, self._control["cancel"], {"id": id, "reason": reason})

    def release(self, conn: AnyConnection, id: int) -> ControlResult | None:
        return self._judged(conn, self._control["release"], {"id": id})

    def retry(self, conn: AnyConnection, id: int, *, reset: bool = False) -> ControlResult | None:
        return self._judged(conn, self._control["retry"], {"id": id, "reset": reset})

    def delete(self, conn: AnyConnection, id: int) -> ControlResult | None:
        return self._judged(conn, self._control["delete"], {"id": id})

    def update(self, conn: AnyConnection, id: int, changes: Changes) -> ControlResult | None:
        values = {name: getattr(changes, name) for name in Changes.__slots__}
        return self._judged(conn, self._control["update"], {"id": id, **values})

    def _judged(self, conn: AnyConnection, statement: bytes, parameters: dict[str, Any]) -> ControlResult | None:
        with bound_cursor(conn) as cur:
            cur.execute(statement, {**parameters, "channel": self._channel})
            row = only(parameters["id"], cur.fetchall())
            return (as_job(row), row[19]) if row else None

    def snapshot_is_kept(self, conn: AnyConnection) -> bool:
        """Whether the transaction that is open would see nothing new if it looked again."""
        with bound_cursor(conn) as cur:
            cur.execute(self._control["snapshot_is_kept"])
            return bool(one(cur)[0])
