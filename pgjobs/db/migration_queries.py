"""The statements of migrations, except for the migrations themselves; one method each, connection first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from psycopg.pq import TransactionStatus

from pgjobs.db import statements
from pgjobs.db.cursors import AnyConnection, literal_cursor, one
from pgjobs.db.rows import str_of


class MigrationQueries:
    """The statements in one schema."""

    def __init__(self, schema: str) -> None:
        self._schema = schema
        self._sql = statements.load("db.sql", schema)

    # --- one step of a migration

    def begin_step(self, conn: AnyConnection) -> None:
        self.execute(conn, self._sql["begin_step"])

    def lock(self, conn: AnyConnection) -> None:
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["lock_migrations"], {"schema": self._schema})

    def bound_lock_waits(self, conn: AnyConnection) -> None:
        self.execute(conn, self._sql["bound_lock_waits"])

    @contextmanager
    def own_path(self, conn: AnyConnection) -> Iterator[None]:
        """In this block the search_path of the open transaction is pg_catalog alone."""
        self.execute(conn, self._sql["set_own_search_path"])
        try:
            yield
        finally:
            if conn.info.transaction_status == TransactionStatus.INTRANS:  # else the rollback restores it
                self.execute(conn, self._sql["restore_search_path"])

    def execute(self, conn: AnyConnection, sql: bytes) -> None:
        with literal_cursor(conn) as cur:
            cur.execute(sql)

    # --- the table of applied migrations

    def table_exists(self, conn: AnyConnection) -> bool:
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["migration_table_exists"], {"schema": self._schema})
            return bool(one(cur)[0])

    def create_table(self, conn: AnyConnection) -> None:
        """Create the table, and the schema if it does not exist."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["schema_exists"], {"schema": self._schema})
            exists = bool(one(cur)[0])
        if not exists:
            self.execute(conn, f'CREATE SCHEMA IF NOT EXISTS "{self._schema}"'.encode())
        self.execute(conn, self._sql["create_migration_table"])

    def applied(self, conn: AnyConnection) -> dict[int, str | None]:
        """The digest of the SQL of each applied version; None if an unreleased version recorded none."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["applied_migrations"])
            return {version: recorded and str_of(recorded) for version, recorded in cur.fetchall()}

    def record_sql(self, version: int, name: str, digest: str, direction: str) -> str:
        """The statement that records a step. All values come from the files of this package."""
        statement = self._sql["record_migration" if direction == "up" else "remove_migration_record"].decode()
        return statement.format(version=version, name=name, digest=digest)

    # --- for a script that may run several times

    @property
    def guarded_table_sql(self) -> str:
        """Locks out other migrators, and creates the schema and the table of migrations if they do not exist."""
        table = self._sql["create_migration_table"].decode()
        text = self._sql["guarded_table"].decode()
        return text.replace("{schema}", self._schema).replace("{table}", table)

    def guarded_sql(self, version: int, direction: str, step: str) -> str:
        """Runs a step, which also records itself, unless it was taken already."""
        text = self._sql["guarded_step"].decode().replace("{up}", "true" if direction == "up" else "false")
        return text.replace("{version}", str(version)).replace("{step}", step)
