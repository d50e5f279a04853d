"""Applies sql/migrations in order, up or down, each in a transaction; and tells whether the tables fit the code."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from typing import Literal

import psycopg
from psycopg.pq import TransactionStatus

from pgjobs import checks
from pgjobs.db import bookkeeping, statements
from pgjobs.db.bookkeeping import Bookkeeping
from pgjobs.db.cursors import AnyConnection
from pgjobs.db.migration_queries import MigrationQueries
from pgjobs.errors import (
    InvalidMigration,
    MigrationError,
    SchemaDamaged,
    SchemaMissing,
    SchemaOutdated,
    SchemaTooNew,
    shown,
)
from pgjobs.loggers import get_logger

log = get_logger("pgjobs.migrate")

_LOCK_TRIES = 5  # of 2 s each: longer, and everybody else would queue behind the migration's lock request
Direction = Literal["up", "down"]


@dataclass(frozen=True, slots=True)
class Step:
    """One migration, applied or to be applied, in one direction."""

    version: int
    name: str
    direction: Direction
    sql: str = field(repr=False)

    def __str__(self) -> str:
        return f"{self.direction} {self.version:04} {self.name}"


@cache
def versions() -> dict[int, str]:
    """Every migration of this code: its name by its version, 1 to n."""
    files = sorted((statements.ROOT / "migrations").glob("*.sql"))
    return {int(match[1]): match[2] for file in files if (match := re.fullmatch(r"(\d{4})_(\w+)", file.stem))}


def digest(version: int) -> str:
    """What stands on record of the SQL of a migration. Comments and white space do not count."""
    up = statements.templates(_path(version))["up"]
    code = " ".join(re.sub(r"^\s*--.*$", "", up, flags=re.MULTILINE).split())
    return sha256(code.encode()).hexdigest()


def _path(version: int) -> str:
    return f"migrations/{version:04}_{versions()[version]}.sql"


def check_request(direction: object, target: object, max_steps: object, dry_run: object) -> None:
    """Refuse what `migrate` cannot do."""
    if not isinstance(direction, str) or direction not in ("up", "down"):
        raise InvalidMigration(f"direction is 'up' or 'down', not {shown(direction)}")
    _check_version("target", target)
    if max_steps is not None:
        checks.check_number("max_steps", max_steps, 0, error=InvalidMigration)
    checks.check_bool("dry_run", dry_run, error=InvalidMigration)


def migrate(
    conn: AnyConnection,
    schema: str,
    *,
    direction: Direction = "up",
    target: int | None = None,
    max_steps: int | None = None,
    dry_run: bool = False,
    borrowed: bool = False,
) -> list[Step]:
    """Take the steps up to the newest version, or one step down, or as far as `target` and `max_steps` say.

    Each step commits by itself, and any number of processes may do this at once. On a `borrowed` connection they all
    belong to the transaction that its owner has open, or is about to open; in autocommit mode there is none. Raises
    MigrationError for a target that does not exist, or when the tables stay locked by somebody else.
    """
    if conn.autocommit and conn.info.transaction_status == TransactionStatus.IDLE:
        borrowed = False
    if dry_run:
        have = applied(conn, schema) or Bookkeeping(schema).recognise(conn, versions())
        return _plan(schema, have, direction, target)[: _steps(direction, target, max_steps)]
    done: list[Step] = []
    while len(done) < _steps(direction, target, max_steps):
        step = _advance(conn, schema, direction, target) if borrowed else _patiently(conn, schema, direction, target)
        if step is None:
            break
        log.info("schema %s: %s", schema, step)
        done.append(step)
    if direction == "up":
        with conn.transaction():  # under the lock, so that no other process takes the tables away meanwhile
            migrations = MigrationQueries(schema)
            if not borrowed:
                migrations.begin_step(conn)
            migrations.lock(conn)
            if not missing(conn, schema):
                bookkeeping.put_back(conn, schema)
    return done


def make_ready(conn: AnyConnection, schema: str) -> None:
    """Put back what is missing of the bookkeeping, and raise unless the tables fit this code: for a worker pool that
    starts."""
    if MigrationQueries(schema).table_exists(conn) and not applied(conn, schema):
        _recognise(conn, schema)
    _check_version_of(conn, schema)
    bookkeeping.put_back(conn, schema)
    bookkeeping.check(conn, schema, strict=False)


def _recognise(conn: AnyConnection, schema: str) -> list[int]:
    """Write down what tables have that nothing is on record of, as in a dump without rows; which versions that are."""
    books = Bookkeeping(schema)
    found = books.recognise(conn, versions())
    if found:
        books.record(conn, versions(), [digest(version) for version in versions()])
    return found


def applied(conn: AnyConnection, schema: str) -> list[int]:
    """The versions that the schema has; [] on an empty database."""
    migrations = MigrationQueries(schema)
    return _applied(conn, migrations, schema) if migrations.table_exists(conn) else []


def _applied(conn: AnyConnection, migrations: MigrationQueries, schema: str) -> list[int]:
    found = migrations.applied(conn)
    for version, recorded in found.items():
        if recorded is None or (version in versions() and recorded != digest(version)):
            raise MigrationError(
                f"the tables of schema {schema!r} were made by an unreleased version of pgjobs (migration {version}): "
                f'drop the schema (DROP SCHEMA "{schema}" CASCADE, which deletes its jobs) and migrate again'
            )
    return list(found)


def missing(conn: AnyConnection, schema: str) -> list[int]:
    """The versions that this code has and the schema has not; [] when all is well."""
    known = applied(conn, schema)
    if not known and Bookkeeping(schema).tables(conn):
        raise _no_record(schema)
    return sorted(set(versions()) - set(known))


def _no_record(schema: str) -> SchemaDamaged:
    return SchemaDamaged(
        f"there are tables in schema {schema!r}, but no record of their version (table migration), as after a TRUNCATE "
        "or in a dump without rows: run `pgjobs migrate` or client.migrate(), which looks at them and records it"
    )


def check(conn: AnyConnection, schema: str) -> None:
    """Raise unless the schema is exactly what this code was written for; the error names both versions, or what is
    missing."""
    _check_version_of(conn, schema)
    bookkeeping.check(conn, schema)


def _check_version_of(conn: AnyConnection, schema: str) -> None:
    _check_encoding(conn)
    known, newest = applied(conn, schema), max(versions())
    have, lacking = max(known, default=0), sorted(set(versions()) - set(known))
    if have == 0 and Bookkeeping(schema).tables(conn):
        raise _no_record(schema)
    if have == 0:
        raise SchemaMissing(
            f"there are no pgjobs tables in schema {schema!r} (this code needs version {newest}): "
            "run `pgjobs migrate` or client.migrate()"
        )
    if have < newest:
        raise SchemaOutdated(
            f"schema {schema!r} is at version {have}, this code needs {newest}: "
            "run `pgjobs migrate` or client.migrate()"
        )
    if have > newest:
        raise SchemaTooNew(
            f"schema {schema!r} is at version {have}, this code knows only {newest}: upgrade pgjobs in this process"
        )
    if lacking:
        raise SchemaOutdated(
            f"schema {schema!r} is at version {have} but lacks version {', '.join(map(str, lacking))}: "
            "run `pgjobs migrate` or client.migrate()"
        )


def _check_encoding(conn: AnyConnection) -> None:
    """Elsewhere than in UTF8, one job or one error message with another letter would stop a queue."""
    for side in ("server_encoding", "client_encoding"):
        encoding = conn.info.parameter_status(side)
        if encoding != "UTF8":
            raise MigrationError(f"pgjobs needs UTF8, but {side} is {encoding}")


def schema_sql(schema: str = "pgjobs", *, start: int = 0, target: int | None = None, transaction: bool = True) -> str:
    """The SQL that brings the tables from version `start` to `target`, for psql or another migration tool.

    It may run again: a step that was taken is passed over, and `client.migrate()` may follow. With `transaction=False`
    it has no BEGIN and COMMIT of its own, for a tool that runs it in a transaction: `op.execute(...)` of Alembic,
    `RunSQL(...)` of Django. It has no parameters; its percent signs are meant as they stand.
    """
    statements.check_schema(schema)
    _check_version("start", start)
    _check_version("target", target)
    have = [version for version in versions() if version <= start]
    goal = max(versions()) if target is None else target
    direction: Direction = "up" if goal >= start else "down"
    migrations = MigrationQueries(schema)
    parts = [migrations.guarded_table_sql]
    for step in _plan(schema, have, direction, goal):
        whole = f"{step.sql}\n{migrations.bookkeeping_sql(step.version, step.name, digest(step.version), direction)}"
        parts.append(migrations.guarded_sql(step.version, direction, whole))
    return "\n\n".join(["BEGIN;", *parts, "COMMIT;"] if transaction else parts) + "\n"


def _check_version(name: str, version: object) -> None:
    if version is None and name == "target":
        return
    if not isinstance(version, int) or isinstance(version, bool):
        raise InvalidMigration(f"{name} is the number of a version, 0 to {max(versions())}, not {shown(version)}")
    if version != 0 and version not in versions():
        raise InvalidMigration(f"{name}: there is no version {shown(version)}: this code knows 0 to {max(versions())}")


def _steps(direction: Direction, target: int | None, max_steps: int | None) -> int:
    if max_steps is not None:
        return max_steps
    return 1 if direction == "down" and target is None else len(versions())


def _plan(schema: str, have: list[int], direction: Direction, target: int | None) -> list[Step]:
    unknown = set(have) - set(versions())
    if unknown:
        raise SchemaTooNew(f"schema {schema!r} has version {max(unknown)}, this code knows only {max(versions())}")
    if direction == "up":
        goal = max(versions()) if target is None else target
        if max(have, default=0) > goal:
            raise InvalidMigration(
                f"schema {schema!r} is at version {max(have)} already, above target={goal}: "
                "to take steps back say direction='down'"
            )
        return [_step(schema, version, "up") for version in versions() if version <= goal and version not in have]
    return [_step(schema, version, "down") for version in reversed(have) if version > (target or 0)]


def _step(schema: str, version: int, direction: Direction) -> Step:
    sql = statements.load(_path(version), schema)[direction]
    return Step(version, versions()[version], direction, sql.decode())


def _advance(
    conn: AnyConnection, schema: str, direction: Direction, target: int | None, *, bounded: bool = False
) -> Step | None:
    """Take the next step, if there is one. Looks under the lock: another process may just have taken it."""
    migrations = MigrationQueries(schema)
    if bounded:
        migrations.begin_step(conn)
    migrations.lock(conn)
    if bounded:
        migrations.bound_lock_waits(conn)
    with migrations.own_path(conn):
        return _take_next(conn, migrations, schema, direction, target)


def _take_next(
    conn: AnyConnection, migrations: MigrationQueries, schema: str, direction: Direction, target: int | None
) -> Step | None:
    """Take the next step, if there is one, under the lock and the search_path for it."""
    # IF NOT EXISTS alone would ask for the right to create, also from a role that has nothing to create
    if not migrations.table_exists(conn):
        migrations.create_table(conn)
    have = _applied(conn, migrations, schema) or _recognise(conn, schema)
    steps = _plan(schema, have, direction, target)
    if not steps:
        return None
    step = steps[0]
    migrations.execute(conn, step.sql)
    migrations.execute(conn, migrations.bookkeeping_sql(step.version, step.name, digest(step.version), direction))
    return step


def _patiently(conn: AnyConnection, schema: str, direction: Direction, target: int | None) -> Step | None:
    """Take the next step in a transaction of its own, anew while the tables are locked."""
    for left in reversed(range(_LOCK_TRIES)):
        try:
            with conn.transaction():
                return _advance(conn, schema, direction, target, bounded=True)
        except psycopg.errors.LockNotAvailable as error:
            if not left:
                raise MigrationError(f"the tables stayed locked by somebody else: {error}") from error
    return None
