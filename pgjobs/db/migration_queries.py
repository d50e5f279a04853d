"""One method per statement of the bookkeeping of migrations, connection first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from psycopg.pq import TransactionStatus

from pgjobs.db import statements
from pgjobs.db.cursors import AnyConnection, literal_cursor, one


class MigrationQueries:
    """The statements that keep the books of migrations in one schema."""

    def __init__(self, schema: str) -> None:
        self._schema = schema
        self._sql = statements.load("db.sql", schema)

    @property
    def table_sql(self) -> str:
        """What makes the schema and the table of migrations."""
        return f'CREATE SCHEMA IF NOT EXISTS "{self._schema}";\n{self._sql["create_migration_table"].decode()}'

    @property
    def _own_path_sql(self) -> tuple[str, str]:
        """What makes the search_path our own in a transaction, and what makes it the caller's again."""
        return self._sql["own_search_path"].decode(), self._sql["search_path_of_caller"].decode()

    @contextmanager
    def own_path(self, conn: AnyConnection) -> Iterator[None]:
        """Inside the block the search_path of the open transaction is our own."""
        own, callers = self._own_path_sql
        self.execute(conn, own)
        try:
            yield
        finally:
            if conn.info.transaction_status == TransactionStatus.INTRANS:  # else a rollback does it
                self.execute(conn, callers)

    def bookkeeping_sql(self, version: int, name: str, digest: str, direction: str) -> str:
        """The statement that records a step. All three values come from the files of this package."""
        statement = self._sql["record_migration" if direction == "up" else "forget_migration"].decode()
        return statement.format(version=version, name=name, digest=digest)

    @property
    def guarded_table_sql(self) -> str:
        """What makes the schema and the table of migrations where there are none, and waits for other migrators."""
        table = self._sql["create_migration_table"].decode()
        text = self._sql["guarded_table"].decode()
        return text.replace("{schema}", self._schema).replace("{table}", table)

    def guarded_sql(self, version: int, direction: str, step: str) -> str:
        """The step with a look whether it was taken already; `step` records itself."""
        text = self._sql["guarded_step"].decode().replace("{up}", "true" if direction == "up" else "false")
        return text.replace("{version}", str(version)).replace("{step}", step)

    def begin_step(self, conn: AnyConnection) -> None:
        self.execute(conn, self._sql["begin_step"].decode())

    def lock(self, conn: AnyConnection) -> None:
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["lock_migrations"], {"schema": self._schema})

    def bound_lock_waits(self, conn: AnyConnection) -> None:
        self.execute(conn, self._sql["bound_lock_waits"].decode())

    def create_table(self, conn: AnyConnection) -> None:
        """Make the table, and the schema if it is not there."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["schema_exists"], {"schema": self._schema})
            exists = bool(one(cur)[0])
        self.execute(conn, self._sql["create_migration_table"].decode() if exists else self.table_sql)

    def table_exists(self, conn: AnyConnection) -> bool:
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["migration_table_exists"], {"schema": self._schema})
            return bool(one(cur)[0])

    def applied(self, conn: AnyConnection) -> dict[int, str | None]:
        """The applied versions, each with the digest of its SQL; None where an unreleased version recorded none."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["applied_migrations"])
            return dict(cur.fetchall())

    def execute(self, conn: AnyConnection, sql: str) -> None:
        with literal_cursor(conn) as cur:
            cur.execute(sql.encode())
