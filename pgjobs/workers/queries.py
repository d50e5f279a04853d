"""One method per statement of the registry of worker processes, connection first."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, timedelta
from typing import Any

from pgjobs.db import statements
from pgjobs.db.cursors import AnyConnection, bound_cursor, literal_cursor
from pgjobs.figures import WorkerProcess


class WorkerQueries:
    """The statements about the table of workers of one schema."""

    def __init__(self, schema: str) -> None:
        self._sql = statements.load("workers.sql", schema)

    def announce(self, conn: AnyConnection, worker: Mapping[str, Any]) -> None:
        """Write or refresh the row of a process, and commit."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["announce"], {**worker, "queues": json.dumps(worker["queues"])})

    def withdraw(self, conn: AnyConnection, id: str) -> None:
        """Remove the row of a process, and commit."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["withdraw"], {"id": id})

    def prune_workers(self, conn: AnyConnection, after: timedelta) -> list[str]:
        """Delete the rows that were not refreshed for so long; the ids of their processes."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["prune_workers"], {"after": after})
            return [id for (id,) in cur.fetchall()]

    def workers(self, conn: AnyConnection) -> list[WorkerProcess]:
        with bound_cursor(conn) as cur:
            cur.execute(self._sql["workers"])
            return [_worker(row) for row in cur.fetchall()]


def _worker(row: Sequence[Any]) -> WorkerProcess:
    return WorkerProcess(
        id=row[0],
        host=row[1],
        pid=row[2],
        queues=json.loads(row[3]),
        threads=row[4],
        kinds=tuple(row[5]),
        version=row[6],
        code_version=row[7],
        started_at=row[8].astimezone(UTC),
        seen_at=row[9].astimezone(UTC),
    )
