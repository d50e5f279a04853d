"""The notification channel of a schema, and its payloads: the name of a queue, or one of the notices below."""

from __future__ import annotations

from pgjobs.db import statements
from pgjobs.db.cursors import AnyConnection, literal_cursor

# The payloads that are not the name of a queue.
CANCEL_NOTICE = " cancel"  # the cancellation of a running job was requested; see control.sql
DUE_NOTICE = " due"  # a job was enqueued whose time comes before the next promote; see parts.sql
SCHEDULE_NOTICE = " schedule"  # a schedule was changed; see the trigger in migrations/0001_tables.sql


def channel(schema: str) -> str:
    return f"pgjobs:{schema}"


def listen(conn: AnyConnection, schema: str) -> None:
    with literal_cursor(conn) as cur:
        cur.execute(f'LISTEN "{channel(schema)}"'.encode())


def probe(conn: AnyConnection, schema: str) -> None:
    """Return once the server has answered."""
    with literal_cursor(conn) as cur:
        cur.execute(statements.load("observe.sql", schema)["probe"])
