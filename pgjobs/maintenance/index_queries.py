"""The statements about the indexes of the job table, one method each."""

from __future__ import annotations

from datetime import datetime

from psycopg import sql

from pgjobs.db import statements
from pgjobs.db.cursors import AnyConnection, answers, literal_cursor, one
from pgjobs.interval import instant

TIME_INDEX = "job_by_time"


class IndexQueries:
    """The statements about the indexes of the job table, in one schema."""

    def __init__(self, schema: str) -> None:
        self._schema = schema
        self._sql = statements.load("maintenance.sql", schema)

    def current_time(self, conn: AnyConnection) -> datetime:
        """The time of the server: its clock decides when a duty is due."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["current_time"])
            return instant(one(cur)[0])

    def job_indexes(self, conn: AnyConnection) -> dict[str, bool]:
        """The indexes by name, and whether each is valid."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["job_indexes"])
            return dict(cur.fetchall())

    def rebuild(self, conn: AnyConnection, name: str) -> None:
        self._execute(conn, self._sql["rebuild_index"], name)

    def drop(self, conn: AnyConnection, name: str) -> None:
        self._execute(conn, self._sql["drop_index"], name)

    def lock_index_duty(self, conn: AnyConnection) -> bool:
        """Lock the row of the duty `indexes` until the end of the transaction; False if another process has it."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["lock_index_duty"])
            (rows,) = answers(cur)
            return bool(rows)

    @property
    def time_index_sql(self) -> str:
        """The statement that makes the index, for a log line: the owner of the table may have to run it."""
        return " ".join(line for line in self._sql["create_time_index"].decode().split("\n") if line[:2] != "--")

    def create_time_index(self, conn: AnyConnection) -> None:
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["create_time_index"])

    def _execute(self, conn: AnyConnection, statement: bytes, name: str) -> None:
        with literal_cursor(conn) as cur:
            cur.execute(sql.SQL(statement.decode()).format(index=sql.Identifier(self._schema, name)))
