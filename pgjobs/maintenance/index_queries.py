"""One method per statement of the upkeep of indexes, connection first."""

from __future__ import annotations

from psycopg import sql

from pgjobs.db import statements
from pgjobs.db.cursors import AnyConnection, answers, literal_cursor

TIME_INDEX = "job_by_time"


class IndexQueries:
    """The statements about the indexes of the job table of one schema."""

    def __init__(self, schema: str) -> None:
        self._schema = schema
        self._sql = statements.load("maintenance.sql", schema)

    def job_indexes(self, conn: AnyConnection) -> dict[str, bool]:
        """The indexes by name, and whether they are valid."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["job_indexes"])
            return dict(cur.fetchall())

    def rebuild(self, conn: AnyConnection, name: str) -> None:
        self._execute(conn, self._sql["rebuild_index"], name)

    def drop(self, conn: AnyConnection, name: str) -> None:
        self._execute(conn, self._sql["drop_index"], name)

    def begin_making(self, conn: AnyConnection) -> bool:
        """In a transaction, whose end ends it: whether nobody else is at it."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["begin_making"])
            (rows,) = answers(cur)
            return bool(rows)

    @property
    def making_time_index(self) -> str:
        """The statement, for who must run it by hand."""
        return " ".join(line for line in self._sql["make_time_index"].decode().split("\n") if line[:2] != "--")

    def make_time_index(self, conn: AnyConnection) -> None:
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["make_time_index"])

    def _execute(self, conn: AnyConnection, statement: bytes, name: str) -> None:
        with literal_cursor(conn) as cur:
            cur.execute(sql.SQL(statement.decode()).format(index=sql.Identifier(self._schema, name)))
