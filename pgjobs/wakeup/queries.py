"""One method per statement about who watches over a queue that sleeps, connection first."""

from __future__ import annotations

from collections.abc import Sequence

from pgjobs.db import statements
from pgjobs.db.channel import channel
from pgjobs.db.cursors import AnyConnection, literal_cursor, one


class WakeupQueries:
    """The statements of one schema. `advisory_class` is the first number of its locks."""

    def __init__(self, schema: str) -> None:
        self._channel = channel(schema)
        self._sql = statements.load("wakeup.sql", schema)

    def facts(self, conn: AnyConnection) -> tuple[bool, int]:
        """Whether something stands between this process and the server, and the advisory class."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["listener_facts"])
            backend_pid, advisory_class = one(cur)
            return backend_pid != conn.pgconn.backend_pid, advisory_class

    def stay(self, conn: AnyConnection) -> None:
        """Let the server not end the session for being idle."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["stay"])

    def take(
        self, conn: AnyConnection, advisory_class: int, queues: Sequence[tuple[str, bool]], *, leaves_jobs: bool
    ) -> list[tuple[bool, bool]]:
        """Of each queue, and whether its post is held already: whether it is now, and whether who enqueues notifies."""
        values = {
            "class": advisory_class,
            "queues": [queue for queue, _ in queues],
            "held": [held for _, held in queues],
            "leaves_jobs": leaves_jobs,
            "channel": self._channel,
        }
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["take_posts"], values)
            return [(post, armed) for post, armed, _ in cur.fetchall()]

    def sees_any(self, conn: AnyConnection, queue: str, kinds: Sequence[str] | None) -> bool:
        """Whether the queue has a job that can be claimed now, of these kinds if they are given."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["sees_any"], {"queue": queue, "kinds": None if kinds is None else list(kinds)})
            found: bool = one(cur)[0]
            return found

    def disarm(self, conn: AnyConnection, advisory_class: int, queues: Sequence[str]) -> None:
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["disarm"], {"class": advisory_class, "queues": list(queues)})

    def leave(self, conn: AnyConnection, advisory_class: int, queues: Sequence[tuple[str, bool]]) -> None:
        """Of each queue, and whether it is armed."""
        values = {
            "class": advisory_class,
            "queues": [queue for queue, _ in queues],
            "armed": [armed for _, armed in queues],
            "channel": self._channel,
        }
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["leave_posts"], values)
