"""Who sleeps, and sleeping oneself: whoever enqueues notifies only when somebody does."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql

from pgjobs import Client
from pgjobs.db.channel import listen

Conn = psycopg.Connection[Any]

#: What the connection of a listener has said last, as a condition on pg_stat_activity.
LISTENS = "query ~ '^LISTEN|^-- name: (probe|listener_facts|lead|notify_off|resign)'"


def _composed(client: Client, query: str) -> sql.Composed:
    return sql.SQL(query).format(advisory_class=sql.SQL("{}.advisory_class()").format(sql.Identifier(client.schema)))


def sleep_on(conn: Conn, client: Client, *queues: str) -> None:
    """Hear all notifications on this connection, and have those sent that call a worker of these queues: as a process
    does whose threads sleep, but for ever."""
    listen(conn, client.schema)
    for queue in queues:
        query = _composed(client, "SELECT pg_advisory_lock({advisory_class}, hashtext(%s))")
        conn.execute(query, [queue])


def wake_up(conn: Conn, client: Client, queue: str) -> None:
    """Have no more of them sent."""
    conn.execute(_composed(client, "SELECT pg_advisory_unlock({advisory_class}, hashtext(%s))"), [queue])


def armed(conn: Conn, client: Client) -> list[str]:
    """The queues in which somebody sleeps who is woken by a notification."""
    query = """
        SELECT name FROM pg_locks
        JOIN (SELECT DISTINCT name FROM {queues}) AS queue ON objid::bigint::bit(32) = hashtext(name)::bit(32)
        WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND classid::bigint::bit(32) = {advisory_class}::bit(32) AND mode = 'ExclusiveLock' AND granted
        ORDER BY name"""
    query = query.replace("{queues}", f'"{client.schema}".queue')
    return [name for (name,) in conn.execute(_composed(client, query))]


def sleepers(conn: Conn, client: Client) -> int:
    """How many connections there are on which somebody sleeps, or that lead a queue."""
    query = """
        SELECT count(DISTINCT pid) FROM pg_locks
        WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND classid::bigint::bit(32) = {advisory_class}::bit(32) AND mode = 'ExclusiveLock' AND granted"""
    return int(conn.execute(_composed(client, query)).fetchall()[0][0])
