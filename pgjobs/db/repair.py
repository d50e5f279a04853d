"""Finds and repairs damage to a schema whose tables exist.

| damage                                        | as after                                   | repair                  |
|-----------------------------------------------|--------------------------------------------|-------------------------|
| no rows in `maintenance`, so no duty runs     | TRUNCATE, a dump without rows              | insert them             |
| no rows in `migration`, so no known version   | TRUNCATE, a dump without rows              | compare the tables      |
| the sequence of ids is behind the jobs        | failover to a logical replica, a restore   | advance it              |
| functions use the schema's old name           | ALTER SCHEMA ... RENAME, a restore         | replace them            |
| Postgres refuses to change published tables   | CREATE PUBLICATION                         | none: SchemaDamaged     |

`migrate` and the start of a worker pool make these repairs, and log them.
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

log = get_logger("pgjobs.repair")

DUTIES = ("promote", "rescue", "prune", "workers", "indexes")
TABLES = (
    *("job", "queue", "worker", "schedule", "scheduler"),
    *("cancel_request", "job_progress", "figure", "audit", "maintenance"),
)
_MOST_SKIPPED = 10_000  # ids to skip one by one; other sessions draw fewer than that during one statement
_MADE_BY_HAND = 2**53  # greater ids were inserted by hand: no sequence gets so far, and it must not follow them


class SchemaRepair:
    """Looks for damage in one schema, and repairs it; one method per step."""

    def __init__(self, schema: str) -> None:
        self._schema = schema
        self._sql = statements.load("db.sql", schema)

    # --- the record of migrations

    def existing_tables(self, conn: AnyConnection) -> set[str]:
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["existing_tables"], {"schema": self._schema})
            return {name for (name,) in cur.fetchall()}.intersection(TABLES)

    def shape(self, conn: AnyConnection) -> list[str]:
        """The parts of the schema, one per line, as in shape.py."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["shape"], {"schema": self._schema})
            return sorted(line for (line,) in cur.fetchall())

    def recognise_versions(self, conn: AnyConnection, versions: Mapping[int, str]) -> list[int]:
        """Find out the applied versions if the table `migration` is empty or missing.

        Without tables there are none. If the tables are exactly those that all migrations make, all versions are
        applied. Other tables raise MigrationError.
        """
        tables = self.existing_tables(conn)
        if not tables:
            return []
        if "job" not in tables:
            raise MigrationError(
                f"schema {self._schema!r} has tables with names that pgjobs uses, but no table job: "
                f"{', '.join(sorted(tables))}. Give Client another schema, or drop these tables"
            )
        found = set(self.shape(conn))
        missing = sorted(line for line in _NEWEST_SHAPE - found if line.split(" ")[1] != "migration")
        unknown = sorted(line for line in found - _NEWEST_SHAPE if line.split(" ")[:2] in _OUR_COLUMNS)
        if not missing and not unknown:
            return sorted(versions)
        newest = max(versions)
        different = [f"there is no {line}" for line in missing] + [f"there is a {line}" for line in unknown]
        raise MigrationError(
            f"schema {self._schema!r} has tables without a record of their version, and they differ from version "
            f"{newest}: {'; '.join(different[:5])}{'; and more' if len(different) > 5 else ''}. "
            "If another version of pgjobs made them, as in a dump without rows, migrate with that version first; if "
            "they do not belong to pgjobs, give Client another schema; if you do not need them, drop the schema"
        )

    def record_versions(self, conn: AnyConnection, versions: Mapping[int, str], digests: Sequence[str]) -> None:
        """Record that these versions are applied."""
        self._require_insert_right(conn, "migration", "the record of migrations is empty")
        with literal_cursor(conn) as cur:
            values = {"versions": list(versions), "names": list(versions.values()), "digests": list(digests)}
            cur.execute(self._sql["record_migrations"], values)
        log.warning("schema %s: the record of migrations was empty, as in a dump without rows; the tables are those "
                    "of version %d, which is on record now", self._schema, max(versions))  # fmt: skip

    # --- duties

    def missing_duties(self, conn: AnyConnection) -> list[str]:
        """The duties without a row; none for a role that may not read the table."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["may_read_duties"])
            if not one(cur)[0]:
                return []
            cur.execute(self._sql["duties"])
            found = {duty for (duty,) in cur.fetchall()}
        return [duty for duty in DUTIES if duty not in found]

    def insert_duties(self, conn: AnyConnection, missing: Iterable[str]) -> None:
        """Insert the rows of these duties. Several processes may do this at the same time."""
        self._require_insert_right(conn, "maintenance", f"the duties {', '.join(missing)} are missing")
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["insert_duties"], {"duties": list(missing)})
            inserted = [duty for (duty,) in cur.fetchall()]
        if inserted:
            log.warning(
                "schema %s: table maintenance had no rows for %s, as after a TRUNCATE; they were inserted",
                *(self._schema, ", ".join(inserted)),
            )

    def _require_insert_right(self, conn: AnyConnection, table: str, problem: str) -> None:
        """Checked first, since an error of the server would break the caller's transaction."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["may_insert"], {"table": f"{self._schema}.{table}"})
            allowed = bool(one(cur)[0])
        if not allowed:
            raise SchemaDamaged(
                f"schema {self._schema!r}: {problem}, and this role may not write table {table}, or the server is "
                "read-only: run `pgjobs migrate` or client.migrate() as the owner of the tables"
            )

    # --- ids

    def used_ids(self, conn: AnyConnection) -> tuple[int, int] | None:
        """The next id and the greatest id of a job, if the sequence would give ids that jobs already have. None if it
        would not, or if this role may not read the sequence."""
        rights = self._sequence_rights(conn)
        if rights is None:
            return None
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["next_and_greatest_id"])
            next, greatest = one(cur)
        return (next, greatest) if greatest is not None and next <= greatest else None

    def advance_sequence(self, conn: AnyConnection, next: int, greatest: int) -> bool:
        """Let the sequence continue after the greatest id; False if this role may not do it."""
        may_draw, may_set = self._sequence_rights(conn) or (False, False)
        far = greatest - next >= _MOST_SKIPPED
        if greatest >= _MADE_BY_HAND or not (may_set if far else may_draw or may_set):
            return False
        with literal_cursor(conn) as cur:
            if far:
                cur.execute(self._sql["set_next_id"], {"greatest": greatest, "far": _MOST_SKIPPED // 2})
            else:
                cur.execute(self._sql["skip_ids"], {"ids": greatest - next + 1})
        log.warning(
            "schema %s: the next id was %d, but there are jobs up to %d, as after a failover to a logical replica or a "
            "restore of rows alone; ids go on behind them now",
            *(self._schema, next, greatest),
        )
        return True

    def _sequence_rights(self, conn: AnyConnection) -> tuple[bool, bool] | None:
        """Whether this role may draw ids, and set the sequence; None if the sequence must be left alone."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["sequence_rights"])
            may_look, may_draw, may_set, alone, writable = one(cur)
        return (may_draw and writable, may_set and writable) if may_look and alone else None

    def used_ids_text(self, next: int, greatest: int) -> str:
        return (
            f"the next id is {next}, but there are jobs up to {greatest}: run `pgjobs migrate` or client.migrate() "
            "as the owner of the tables"
        )

    # --- functions

    def outdated_functions(self, conn: AnyConnection) -> list[tuple[str, str, str, bool]]:
        """Functions that still use the old name of a renamed schema: the function's name, the old name, the function's
        definition, and whether this role may replace it."""
        ours = [line.removeprefix("function ") for line in SHAPE.splitlines() if line.startswith("function ")]
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["functions_of_old_schema"], {"schema": self._schema, "ours": ours})
            return [(name, old, definition, may) for name, old, definition, may in cur.fetchall()]

    def replace_function(self, conn: AnyConnection, definition: str, old: str) -> None:
        """Create the function again, with the present name of the schema in place of the old one."""
        with literal_cursor(conn) as cur:
            cur.execute(definition.replace(f'"{old}".', f'"{self._schema}".').encode())

    # --- publications

    def publication_problems(self, conn: AnyConnection) -> list[str]:
        """Why Postgres refuses to change published tables, in the words of the server. `conn` is our own."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["publications"], {"schema": self._schema})
            published: dict[str, str] = dict(cur.fetchall())
        return [
            f"table {self._schema}.{table}, which publication {published[table]!r} publishes: {problem}"
            for table in (*TABLES, "migration")
            if table in published and (problem := self._refusal(conn, table))
        ]

    def _refusal(self, conn: AnyConnection, table: str) -> str | None:
        """The reason why the server refuses our statements on this table, if that is its replica identity."""
        try:
            with conn.transaction(), literal_cursor(conn) as cur:
                cur.execute(self._sql[f"try_{table}"])
                answers(cur)
        except (psycopg.errors.ObjectNotInPrerequisiteState, psycopg.errors.InvalidColumnReference) as error:
            detail = f" ({error.diag.message_detail})" if error.diag.message_detail else ""
            return one_line(f"{error.diag.message_primary}{detail}")
        except psycopg.errors.InsufficientPrivilege:  # then this role does not send such statements
            return None
        return None


def repair_schema(conn: AnyConnection, schema: str) -> None:
    """Repair the newest tables: insert missing rows, replace functions, advance the sequence of ids."""
    repair = SchemaRepair(schema)
    missing = repair.missing_duties(conn)
    if missing:
        repair.insert_duties(conn, missing)
    for name, old, definition, may_replace in repair.outdated_functions(conn):
        if may_replace:
            repair.replace_function(conn, definition, old)
            log.warning(
                "schema %s: the function %s still used the schema's old name %s; it was replaced", schema, name, old
            )
    used = repair.used_ids(conn)
    if used is not None and not repair.advance_sequence(conn, *used):
        log.warning("schema %s: %s", schema, repair.used_ids_text(*used))


def check(conn: AnyConnection, schema: str, *, strict: bool = True) -> None:
    """Raise SchemaDamaged if the newest tables are damaged. Without `strict`, damage is accepted that only stops
    enqueuing."""
    repair = SchemaRepair(schema)
    existing = repair.existing_tables(conn)
    lost = [table for table in TABLES if table not in existing]
    if lost:
        raise SchemaDamaged(
            f"schema {schema!r} has a record of its migrations, but no table {', '.join(lost)}: restore the missing "
            "tables from a dump; or if you do not need the schema, drop it and migrate"
        )
    missing = repair.missing_duties(conn)
    if missing:
        raise SchemaDamaged(
            f"schema {schema!r}: table maintenance has no rows for {', '.join(missing)}, as after a TRUNCATE or in a "
            "dump without rows: run `pgjobs migrate` or client.migrate(), or start a worker pool"
        )
    outdated = [(name, old) for name, old, *_ in repair.outdated_functions(conn)] if strict else []
    if outdated:
        raise SchemaDamaged(
            f"the functions {', '.join(name for name, _ in outdated)} of schema {schema!r} name the schema "
            f"{outdated[0][1]!r}, its name before it was renamed: run `pgjobs migrate` or client.migrate() as their "
            "owner"
        )
    problems = repair.publication_problems(conn)
    if problems:
        raise SchemaDamaged(
            f"{'; '.join(problems)}. Let the table have REPLICA IDENTITY DEFAULT, and publish it without a row filter "
            "and list of columns, or with its whole primary key in them"
        )
    used = repair.used_ids(conn) if strict else None
    if used is not None:
        raise SchemaDamaged(f"schema {schema!r}: {repair.used_ids_text(*used)}")


_OUR_COLUMNS = [["column", table] for table in TABLES]
_NEWEST_SHAPE = frozenset(SHAPE.splitlines())
