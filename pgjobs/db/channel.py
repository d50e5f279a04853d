"""The notification channel of a schema, and what is said on it."""

from __future__ import annotations

from pgjobs.db import statements
from pgjobs.db.cursors import AnyConnection, literal_cursor

# what a notification says that is not the name of a queue
CANCEL_NOTICE = " cancel"  # see control.sql
DUE_NOTICE = " due"  # a job waits for a time that comes before the next promote; see enqueuing.sql
SCHEDULE_NOTICE = " schedule"  # what a notification says when a schedule was changed; see 0002_schedules.sql


def channel(schema: str) -> str:
    """The notification channel of a schema; the payload is the name of a queue."""
    return f"pgjobs:{schema}"


def listen(conn: AnyConnection, schema: str) -> None:
    with literal_cursor(conn) as cur:
        cur.execute(f'LISTEN "{channel(schema)}"'.encode())


def probe(conn: AnyConnection, schema: str) -> None:
    """Return when the server has answered."""
    with literal_cursor(conn) as cur:
        cur.execute(statements.load("observe.sql", schema)["probe"])
