"""The statements of the dashboard that no call of the client makes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from psycopg import sql

from pgjobs.dashboard.numbers import AuditRow, Count, IndexSize, QueueNumbers, TableSize, bounded
from pgjobs.db import statements
from pgjobs.db.cursors import AnyConnection, answers, bound_cursor, job_cursor, literal_cursor, one
from pgjobs.interval import instant
from pgjobs.results import KEPT, as_utc, kept_for
from pgjobs.states import JobState

_SMALL_TABLE = 32 * 1024 * 1024  # bytes that can be read at once for a count
Rows = list[tuple[Any, ...]]


class DashboardQueries:
    """The statements of one schema."""

    def __init__(self, schema: str) -> None:
        self._schema = schema
        self._sql = statements.load("dashboard.sql", schema)

    # --- transactions and the audit

    def begin_reading(self, conn: AnyConnection) -> datetime:
        """Make the transaction READ ONLY, and return the time of the database."""
        return self._begin(conn, self._sql["begin_reading"])

    def begin_acting(self, conn: AnyConnection) -> datetime:
        """Limit the transaction of an action, and return the time of the database."""
        return self._begin(conn, self._sql["begin_acting"])

    def _begin(self, conn: AnyConnection, statement: bytes) -> datetime:
        with literal_cursor(conn) as cur:
            cur.execute(statement)
            ((now,),) = answers(cur)[-1]
            return instant(now)

    def write_audit(self, conn: AnyConnection, who: str, act: str, target: Mapping[str, Any], count: int) -> None:
        with literal_cursor(conn) as cur:
            values = {"who": who, "act": act, "target": json.dumps(target, default=str), "count": count}
            cur.execute(self._sql["write_audit"], values)

    def list_audit(self, conn: AnyConnection, before: int | None, limit: int) -> list[AuditRow]:
        """The newest rows of the audit, or those before an id."""
        with bound_cursor(conn) as cur:
            cur.execute(self._sql["list_audit"], {"before": before, "limit": limit})
            return [
                AuditRow(id, instant(at), who, act, json.loads(target), count)
                for id, at, who, act, target, count in cur.fetchall()
            ]

    # --- jobs

    def count_states(self, conn: AnyConnection) -> dict[JobState, Count]:
        """The number of jobs in each state, up to 10,000."""
        with bound_cursor(conn) as cur:
            cur.execute(self._sql["count_states"])
            found = {JobState(state): bounded(jobs, least=least) for state, jobs, least in cur.fetchall()}
        return {state: found.get(state, Count(0)) for state in JobState} | {JobState.PENDING: self._pending(conn)}

    def _pending(self, conn: AnyConnection) -> Count:
        """No index has the pending jobs: of a large table their number is an estimate."""
        with bound_cursor(conn) as cur:
            cur.execute(self._sql["size_of_jobs"])
            if one(cur)[0] <= _SMALL_TABLE:
                cur.execute(self._sql["count_pending"])
                return bounded(one(cur)[0])
            cur.execute(self._sql["estimate_pending"])
            rows = cur.fetchall()
            return Count(rows[0][0] if rows else 0, about=True)

    def count_ended_before(self, conn: AnyConnection, state: JobState, before: datetime) -> Count:
        return self._count(conn, self._sql["count_ended_before"], {"state": str(state), "before": before})

    def count_waiting_of_queue(self, conn: AnyConnection, name: str) -> Count:
        return self._count(conn, self._sql["count_waiting_of_queue"], {"name": name})

    def waiting_of_queue(self, conn: AnyConnection, name: str, newest: int, limit: int) -> list[int]:
        """The ids of jobs that wait, at most `limit`; none above `newest`."""
        values = {"name": name, "newest": newest, "limit": limit}
        return [id for (id,) in self._rows(conn, self._sql["waiting_of_queue"], values)]

    def _count(self, conn: AnyConnection, statement: bytes, values: Mapping[str, Any]) -> Count:
        with bound_cursor(conn) as cur:
            cur.execute(statement, values, prepare=False)
            return bounded(one(cur)[0])

    # --- queues and schedules

    def queue_numbers(self, conn: AnyConnection, name: str | None = None) -> list[QueueNumbers]:
        """The numbers of all queues, or of the one with this name."""
        with job_cursor(conn) as cur:
            cur.execute(self._sql["queue_numbers"], {"name": name}, prepare=False)
            return [
                QueueNumbers(
                    name=row[0],
                    paused_at=as_utc(row[1]),
                    waiting=bounded(row[2]),
                    running=row[3],
                    oldest_since=as_utc(row[4]),
                    workers=row[5],
                    keep=dict(zip(KEPT, map(kept_for, row[6:]), strict=True)),
                )
                for row in cur.fetchall()
            ]

    def jobs_of_schedule(self, conn: AnyConnection, name: str, limit: int) -> list[int]:
        """The ids of its newest jobs, the newest first."""
        return [id for (id,) in self._rows(conn, self._sql["jobs_of_schedule"], {"name": name, "limit": limit})]

    # --- the tables

    def duties(self, conn: AnyConnection) -> list[tuple[str, datetime]]:
        """Each duty, and when some process is to do it next."""
        return [(duty, at) for duty, at in self._rows(conn, self._sql["next_runs"], {})]

    def table_sizes(self, conn: AnyConnection) -> list[TableSize]:
        return [TableSize(*row) for row in self._rows(conn, self._sql["table_sizes"], {})]

    def index_sizes(self, conn: AnyConnection) -> list[IndexSize]:
        return [IndexSize(*row) for row in self._rows(conn, self._sql["index_sizes"], {})]

    def may_vacuum(self, conn: AnyConnection, table: str) -> bool:
        """Whether the role of the connection may vacuum a table. VACUUM itself passes over a table with a warning."""
        with bound_cursor(conn) as cur:
            cur.execute(self._sql["may_vacuum"], {"table": table})
            return bool(one(cur)[0])

    def vacuum(self, conn: AnyConnection, table: str) -> None:
        """On a connection in autocommit mode."""
        statement = sql.SQL(self._sql["vacuum_table"].decode()).format(table=sql.Identifier(self._schema, table))
        with literal_cursor(conn) as cur:
            cur.execute(statement)

    def running_vacuums(self, conn: AnyConnection) -> dict[str, str]:
        """What a vacuum of each table does at the moment, autovacuum included, as far as the role may see it."""
        return {name: f"{phase}, {percent} %" for name, phase, percent in self._rows(conn, self._sql["vacuums"], {})}

    def _rows(self, conn: AnyConnection, statement: bytes, values: Mapping[str, Any]) -> Rows:
        with job_cursor(conn) as cur:
            cur.execute(statement, values, prepare=False)
            return cur.fetchall()
