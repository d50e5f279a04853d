"""Repairs what pgjobs needs beside its tables: rows of its own, and a sequence that is ahead of the ids.

A TRUNCATE of all tables removes the rows of the duties, so that no job is promoted or rescued any more; a dump of the
schema alone forgets which migrations it had; after a failover to a logical replica the sequence of ids begins anew. A
worker pool that starts, and `migrate`, repair what can be repaired without a doubt, and log it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import psycopg

from pgjobs.clean_text import one_line
from pgjobs.db import statements
from pgjobs.db.cursors import AnyConnection, answers, literal_cursor, one
from pgjobs.db.shape import SHAPE
from pgjobs.errors import MigrationError, SchemaDamaged
from pgjobs.loggers import get_logger

log = get_logger("pgjobs.bookkeeping")

DUTIES = ("promote", "rescue", "prune", "workers", "indexes")
TABLES = ("job", "queue", "worker", "schedule", "scheduler", "cancel_request", "maintenance")
_FAR = 10_000  # ids that are drawn one by one; more than that anybody draws in the time of one statement
_MADE_BY_HAND = 2**53  # no sequence comes so far: an id beyond is no reason to go there


class Bookkeeping:
    """The statements about it in one schema."""

    def __init__(self, schema: str) -> None:
        self._schema = schema
        self._sql = statements.load("db.sql", schema)

    # --- the record of migrations

    def tables(self, conn: AnyConnection) -> set[str]:
        """Those of our tables that are there."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["tables"], {"schema": self._schema})
            return {name for (name,) in cur.fetchall()}.intersection(TABLES)

    def shape(self, conn: AnyConnection) -> list[str]:
        """What the schema consists of, a line each."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["shape"], {"schema": self._schema})
            return sorted(line for (line,) in cur.fetchall())

    def recognise(self, conn: AnyConnection, versions: Mapping[int, str]) -> list[int]:
        """The versions of tables that nothing is on record of: none without tables, all when they are exactly those
        that all migrations make; MigrationError for others."""
        tables = self.tables(conn)
        if not tables:
            return []
        if "job" not in tables:
            raise MigrationError(
                f"schema {self._schema!r} has tables of these names that are not those of pgjobs, or what is left of "
                f"them: {', '.join(sorted(tables))}. Give Client another schema, or drop these tables"
            )
        found = set(self.shape(conn))
        missing = sorted(line for line in _NEWEST_SHAPE - found if line.split(" ")[1] != "migration")
        strange = sorted(line for line in found - _NEWEST_SHAPE if line.split(" ")[:2] in _COLUMNS_OF_OURS)
        if not missing and not strange:
            return sorted(versions)
        newest = max(versions)
        different = [f"there is no {line}" for line in missing] + [f"there is a {line}" for line in strange]
        problem = (
            f"schema {self._schema!r} has tables, but no record of their version, and they are not those of version "
            f"{newest}: {'; '.join(different[:5])}{'; and more' if len(different) > 5 else ''}. "
        )
        cure = (
            "If another version of pgjobs made them, as in a dump without rows, migrate with that version first; if "
            "they are not tables of pgjobs, give Client another schema; if nothing in them is wanted, drop the schema"
        )
        raise MigrationError(problem + cure)

    def record(self, conn: AnyConnection, versions: Mapping[int, str], digests: Sequence[str]) -> None:
        """Write down that the tables have these versions, which they have."""
        self._require_right(conn, "migration", "the record of migrations is empty")
        with literal_cursor(conn) as cur:
            values = {"versions": list(versions), "names": list(versions.values()), "digests": list(digests)}
            cur.execute(self._sql["record_migrations"], values)
        log.warning("schema %s: the record of migrations was empty, as in a dump without rows; the tables are those "
                    "of version %d, which is on record now", self._schema, max(versions))  # fmt: skip

    # --- duties

    def missing_duties(self, conn: AnyConnection) -> list[str]:
        """None for a role that may not see which there are."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["may_see_duties"])
            if not one(cur)[0]:
                return []
            cur.execute(self._sql["duties"])
            found = {duty for (duty,) in cur.fetchall()}
        return [duty for duty in DUTIES if duty not in found]

    def put_back_duties(self, conn: AnyConnection, missing: Iterable[str]) -> None:
        """Insert the rows of these duties again. Any number of processes may do so at the same time."""
        self._require_right(conn, "maintenance", f"the duties {', '.join(missing)} are missing")
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["put_back_duties"], {"duties": list(missing)})
            made = [duty for (duty,) in cur.fetchall()]
        if made:
            log.warning(
                "schema %s: table maintenance had no rows for %s, as after a TRUNCATE; they are there again",
                *(self._schema, ", ".join(made)),
            )

    def _require_right(self, conn: AnyConnection, table: str, problem: str) -> None:
        """Asked first: an error of the server would end the transaction of a caller."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["may_write"], {"table": f"{self._schema}.{table}"})
            allowed = bool(one(cur)[0])
        if not allowed:
            raise SchemaDamaged(
                f"schema {self._schema!r}: {problem}, and this role may not write table {table}, or not now: run "
                "`pgjobs migrate` or client.migrate() as the owner of the tables"
            )

    # --- ids

    def ids_behind(self, conn: AnyConnection) -> tuple[int, int] | None:
        """The next id and the greatest one, when ids are given that jobs have already; None when all is well, or when
        this role may not see it."""
        rights = self._sequence_rights(conn)
        if rights is None:
            return None
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["ids"])
            next, newest = one(cur)
        return (next, newest) if newest is not None and next <= newest else None

    def move_ids(self, conn: AnyConnection, next: int, newest: int) -> bool:
        """Go on behind the greatest id; says whether that could be done."""
        may_draw, may_set = self._sequence_rights(conn) or (False, False)
        far = newest - next >= _FAR
        if newest >= _MADE_BY_HAND or not (may_set if far else may_draw or may_set):
            return False
        with literal_cursor(conn) as cur:
            if far:
                cur.execute(self._sql["set_next_id"], {"newest": newest, "far": _FAR // 2})
            else:
                cur.execute(self._sql["draw_ids"], {"ids": newest - next + 1})
        log.warning(
            "schema %s: the next id was %d, but there are jobs up to %d, as after a failover to a logical replica or a "
            "restore of rows alone; ids go on behind them now",
            *(self._schema, next, newest),
        )
        return True

    def _sequence_rights(self, conn: AnyConnection) -> tuple[bool, bool] | None:
        """Whether ids may be drawn, and set; None where the sequence is to be left alone."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["sequence_rights"])
            may_look, may_draw, may_set, ours_alone, writable = one(cur)
        return (may_draw and writable, may_set and writable) if may_look and ours_alone else None

    def ids_text(self, next: int, newest: int) -> str:
        return (
            f"the next id is {next}, but there are jobs up to {newest}: run `pgjobs migrate` or client.migrate() "
            "as the owner of the tables"
        )

    # --- functions

    def misnamed(self, conn: AnyConnection) -> list[tuple[str, str, str, bool]]:
        """Functions that name the schema as it was called before: name, that schema, definition, and whether this role
        may replace it."""
        ours = [line.removeprefix("function ") for line in SHAPE.splitlines() if line.startswith("function ")]
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["functions_of_another_schema"], {"schema": self._schema, "ours": ours})
            return [(name, before, definition, may) for name, before, definition, may in cur.fetchall()]

    def rename_in(self, conn: AnyConnection, before: str, definition: str) -> None:
        with literal_cursor(conn) as cur:
            cur.execute(definition.replace(f'"{before}".', f'"{self._schema}".').encode())

    # --- publications

    def forbidden(self, conn: AnyConnection) -> list[str]:
        """What the publications of our tables forbid, in the words of the server. `conn` is our own."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["publications"], {"schema": self._schema})
            published: dict[str, str] = dict(cur.fetchall())
        return [
            f"table {self._schema}.{table}, which publication {published[table]!r} publishes: {problem}"
            for table in (*TABLES, "migration")
            if table in published and (problem := self._refusal(conn, table))
        ]

    def _refusal(self, conn: AnyConnection, table: str) -> str | None:
        try:
            with conn.transaction(), literal_cursor(conn) as cur:
                cur.execute(self._sql[f"try_{table}"])
                answers(cur)
        except (psycopg.errors.ObjectNotInPrerequisiteState, psycopg.errors.InvalidColumnReference) as error:
            detail = f" ({error.diag.message_detail})" if error.diag.message_detail else ""
            return one_line(f"{error.diag.message_primary}{detail}")
        except psycopg.errors.InsufficientPrivilege:  # what this role may not do, it does not do
            return None
        return None


def put_back(conn: AnyConnection, schema: str) -> None:
    """Insert the rows that are missing in the newest tables, and move the sequence behind the ids that jobs have."""
    books = Bookkeeping(schema)
    missing = books.missing_duties(conn)
    if missing:
        books.put_back_duties(conn, missing)
    for name, before, definition, may in books.misnamed(conn):
        if may:
            books.rename_in(conn, before, definition)
            log.warning(
                "schema %s: the function %s still named the schema %s; it names this one now", schema, name, before
            )
    behind = books.ids_behind(conn)
    if behind is not None and not books.move_ids(conn, *behind):
        log.warning("schema %s: %s", schema, books.ids_text(*behind))


def check(conn: AnyConnection, schema: str, *, strict: bool = True) -> None:
    """Raise SchemaDamaged unless the newest tables have all that they need. If not `strict`, what only enqueuing needs
    may be missing."""
    books = Bookkeeping(schema)
    gone = [table for table in TABLES if table not in books.tables(conn)]
    if gone:
        raise SchemaDamaged(
            f"schema {schema!r} has a record of its migrations, but no table {', '.join(gone)}: restore what is "
            "missing from a dump; or if nothing in it is wanted, drop the schema and migrate"
        )
    missing = books.missing_duties(conn)
    if missing:
        raise SchemaDamaged(
            f"schema {schema!r}: table maintenance has no rows for {', '.join(missing)}, as after a TRUNCATE or in a "
            "dump without rows: run `pgjobs migrate` or client.migrate(), or start a worker pool"
        )
    misnamed = [(name, before) for name, before, *_ in books.misnamed(conn)] if strict else []
    if misnamed:
        raise SchemaDamaged(
            f"the functions {', '.join(name for name, _ in misnamed)} of schema {schema!r} name the schema "
            f"{misnamed[0][1]!r}, as it was called before: run `pgjobs migrate` or client.migrate() as their owner"
        )
    forbidden = books.forbidden(conn)
    if forbidden:
        raise SchemaDamaged(
            f"{'; '.join(forbidden)}. Let the table have REPLICA IDENTITY DEFAULT, and publish it without a row filter "
            "and list of columns, or with its whole primary key in them"
        )
    behind = books.ids_behind(conn) if strict else None
    if behind is not None:
        raise SchemaDamaged(f"schema {schema!r}: {books.ids_text(*behind)}")


_COLUMNS_OF_OURS = [["column", table] for table in TABLES]
_NEWEST_SHAPE = frozenset(SHAPE.splitlines())
