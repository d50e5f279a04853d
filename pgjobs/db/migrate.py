"""Applies migrations, up or down, and checks whether the tables fit this code.

Each step runs in a transaction of its own, which begins with an advisory lock per schema: any number of processes may
migrate at the same time, and each step is taken once. A step waits 2 s for a table that another session has locked, and
is then retried in a new transaction: a longer wait would block all other sessions, which queue behind it.
"""

from __future__ import annotations

from contextlib import nullcontext

import psycopg
from psycopg.pq import TransactionStatus

from pgjobs.db import repair, statements
from pgjobs.db.cursors import AnyConnection
from pgjobs.db.migration_plan import Direction, Step, check_version, digest, most_steps, plan, versions
from pgjobs.db.migration_queries import MigrationQueries
from pgjobs.db.repair import SchemaRepair
from pgjobs.errors import MigrationError, SchemaDamaged, SchemaMissing, SchemaOutdated, SchemaTooNew
from pgjobs.loggers import get_logger

log = get_logger("pgjobs.migrate")

_LOCK_TRIES = 5


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
    """Take all steps up, or one step down; or fewer or more, with `target` and `max_steps`. Returns the steps taken.

    On a `borrowed` connection all steps belong to the transaction that its owner has open or is about to open; in
    autocommit mode there is no such transaction. Raises MigrationError if the tables stay locked by another session.
    """
    if conn.autocommit and conn.info.transaction_status == TransactionStatus.IDLE:
        borrowed = False
    limit = most_steps(direction, target, max_steps)
    if dry_run:
        have = applied(conn, schema) or SchemaRepair(schema).recognise_versions(conn, versions())
        return plan(schema, have, direction, target)[:limit]
    done: list[Step] = []
    while len(done) < limit:
        advance = _advance if borrowed else _advance_alone
        step = advance(conn, schema, direction, target)
        if step is None:
            break
        log.info("schema %s: %s", schema, step)
        done.append(step)
    if direction == "up":
        # a block of our own would commit a borrowed transaction in which no step was sent before: see borrow()
        with nullcontext() if borrowed else conn.transaction():
            queries = MigrationQueries(schema)
            if not borrowed:
                queries.begin_step(conn)
            queries.lock(conn)  # so that no other process removes the tables during the repair
            if not missing(conn, schema):
                repair.repair_schema(conn, schema)
    return done


def _advance_alone(conn: AnyConnection, schema: str, direction: Direction, target: int | None) -> Step | None:
    """Take the next step in a transaction of its own, and retry while another session has the tables locked."""
    for left in reversed(range(_LOCK_TRIES)):
        try:
            with conn.transaction():
                return _advance(conn, schema, direction, target, alone=True)
        except (
            psycopg.errors.LockNotAvailable,
            psycopg.errors.DeadlockDetected,
        ) as error:  # a job locks several tables
            if not left:
                raise MigrationError(f"the tables stayed locked by another session: {error}") from error
    return None


def _advance(
    conn: AnyConnection, schema: str, direction: Direction, target: int | None, *, alone: bool = False
) -> Step | None:
    """Take the next step, if there is one."""
    queries = MigrationQueries(schema)
    if alone:
        queries.begin_step(conn)
    queries.lock(conn)
    if alone:
        queries.bound_lock_waits(conn)
    with queries.own_path(conn):
        return _take_next(conn, queries, schema, direction, target)


def _take_next(
    conn: AnyConnection, queries: MigrationQueries, schema: str, direction: Direction, target: int | None
) -> Step | None:
    """Take the next step under the lock; which one is decided here, since another process may just have taken one."""
    # CREATE ... IF NOT EXISTS alone would require the right to create, even where everything exists
    if not queries.table_exists(conn):
        _check_encoding(conn, "server_encoding")
        queries.create_table(conn)
    have = _applied(conn, queries, schema) or _record_recognised(conn, schema)
    steps = plan(schema, have, direction, target)
    if not steps:
        return None
    step = steps[0]
    queries.execute(conn, step.sql.encode())
    record = queries.record_sql(step.version, step.name, digest(step.version), direction)
    queries.execute(conn, record.encode())
    return step


# --- which versions are applied


def applied(conn: AnyConnection, schema: str) -> list[int]:
    """The applied versions; [] on an empty database."""
    queries = MigrationQueries(schema)
    return _applied(conn, queries, schema) if queries.table_exists(conn) else []


def _applied(conn: AnyConnection, queries: MigrationQueries, schema: str) -> list[int]:
    found = queries.applied(conn)
    for version, recorded in found.items():
        if recorded is None or (version in versions() and recorded != digest(version)):
            raise MigrationError(
                f"the tables of schema {schema!r} were made by an unreleased version of pgjobs (migration {version}): "
                f'drop the schema (DROP SCHEMA "{schema}" CASCADE, which deletes its jobs) and migrate again'
            )
    return list(found)


def _record_recognised(conn: AnyConnection, schema: str) -> list[int]:
    """Record the versions of tables that have no record, as in a dump without rows; returns these versions."""
    repair = SchemaRepair(schema)
    found = repair.recognise_versions(conn, versions())
    if found:
        repair.record_versions(conn, versions(), [digest(version) for version in versions()])
    return found


# --- do the tables fit this code?


def missing(conn: AnyConnection, schema: str) -> list[int]:
    """The versions of this code that are not applied."""
    known = applied(conn, schema)
    if not known and SchemaRepair(schema).existing_tables(conn):
        raise _no_record(schema)
    return sorted(set(versions()) - set(known))


def make_ready(conn: AnyConnection, schema: str) -> None:
    """Repair the schema, and raise unless the tables fit this code: for the start of a worker pool."""
    if MigrationQueries(schema).table_exists(conn) and not applied(conn, schema):
        _record_recognised(conn, schema)
    check_versions(conn, schema)
    repair.repair_schema(conn, schema)
    repair.check(conn, schema, strict=False)


def check(conn: AnyConnection, schema: str) -> None:
    """Raise unless the schema is exactly as this code needs it; the error names both versions, or the damage."""
    check_versions(conn, schema)
    repair.check(conn, schema)


def check_versions(conn: AnyConnection, schema: str) -> None:
    """Raise unless exactly the versions of this code are applied, on a database in UTF8."""
    _check_encoding(conn, "server_encoding", "client_encoding")
    known, newest = applied(conn, schema), max(versions())
    have, lacking = max(known, default=0), sorted(set(versions()) - set(known))
    if have == 0 and SchemaRepair(schema).existing_tables(conn):
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


def _check_encoding(conn: AnyConnection, *sides: str) -> None:
    """In another encoding, one job or error message with a character that it lacks would stop a queue."""
    for side in sides:
        encoding = conn.info.parameter_status(side)
        if encoding != "UTF8":
            raise MigrationError(f"pgjobs needs UTF8, but {side} is {encoding}")


def _no_record(schema: str) -> SchemaDamaged:
    return SchemaDamaged(
        f"there are tables in schema {schema!r}, but no record of their version (table migration), as after a TRUNCATE "
        "or in a dump without rows: run `pgjobs migrate` or client.migrate(), which compares them with the newest "
        "version and records it"
    )


# --- migrations for other tools


def schema_sql(schema: str = "pgjobs", *, start: int = 0, target: int | None = None, transaction: bool = True) -> str:
    """The SQL that brings the tables from version `start` to `target`, for psql or another migration tool.

    It may run again: it skips steps that were taken, and `client.migrate()` may follow. With `transaction=False`
    it has no BEGIN and COMMIT of its own, for a tool that runs it in a transaction: `op.execute(...)` of Alembic,
    `RunSQL(...)` of Django. It has no parameters: a percent sign in it is just a percent sign.
    """
    statements.check_schema(schema)
    check_version("start", start)
    check_version("target", target)
    have = [version for version in versions() if version <= start]
    goal = max(versions()) if target is None else target
    direction: Direction = "up" if goal >= start else "down"
    queries = MigrationQueries(schema)
    parts = [queries.guarded_table_sql]
    for step in plan(schema, have, direction, goal):
        record = queries.record_sql(step.version, step.name, digest(step.version), direction)
        parts.append(queries.guarded_sql(step.version, direction, f"{step.sql}\n{record}"))
    return "\n\n".join(["BEGIN;", *parts, "COMMIT;"] if transaction else parts) + "\n"
