"""One method per statement of sql/wakeup.sql, connection first."""

from __future__ import annotations

from collections.abc import Sequence

from pgjobs.db import statements
from pgjobs.db.channel import channel
from pgjobs.db.cursors import AnyConnection, literal_cursor, one


class WakeupQueries:
    """The statements of one schema. `advisory_class` is the first number of its advisory locks."""

    def __init__(self, schema: str) -> None:
        self._channel = channel(schema)
        self._sql = statements.load("wakeup.sql", schema)

    def facts(self, conn: AnyConnection) -> tuple[bool, int]:
        """Whether a pooler stands between this process and the server; and the advisory class."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["listener_facts"])
            backend_pid, advisory_class = one(cur)
            return backend_pid != conn.pgconn.backend_pid, advisory_class

    def disable_idle_timeout(self, conn: AnyConnection) -> None:
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["disable_idle_timeout"])

    def lead(
        self, conn: AnyConnection, advisory_class: int, queues: Sequence[tuple[str, bool]], *, leaves_jobs: bool
    ) -> list[tuple[bool, bool]]:
        """Try to lead these queues and to switch NOTIFY on. Takes each queue with whether this process leads it
        already; returns for each whether it leads now, and whether NOTIFY is on."""
        values = {
            "class": advisory_class,
            "queues": [queue for queue, _ in queues],
            "leads": [leads for _, leads in queues],
            "leaves_jobs": leaves_jobs,
            "channel": self._channel,
        }
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["lead"], values)
            return [(leads, notify_on) for leads, notify_on, _ in cur.fetchall()]

    def any_claimable(self, conn: AnyConnection, queue: str, kinds: Sequence[str] | None) -> bool:
        """Whether the queue has a job of these kinds that can be claimed now; None means all kinds."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["any_claimable"], {"queue": queue, "kinds": None if kinds is None else list(kinds)})
            found: bool = one(cur)[0]
            return found

    def notify_off(self, conn: AnyConnection, advisory_class: int, queues: Sequence[str]) -> None:
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["notify_off"], {"class": advisory_class, "queues": list(queues)})

    def resign(self, conn: AnyConnection, advisory_class: int, queues: Sequence[tuple[str, bool]]) -> None:
        """Lead these queues no longer, and wake the other processes. Takes each queue with whether NOTIFY is on."""
        values = {
            "class": advisory_class,
            "queues": [queue for queue, _ in queues],
            "notify_on": [notify_on for _, notify_on in queues],
            "channel": self._channel,
        }
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["resign"], values)
