"""Migrations: up, down, dry, many at once, cut off in the middle, without rights, against locks, on other versions."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg_pool import ConnectionPool

from pgjobs import (
    Client,
    Job,
    JobState,
    MigrationError,
    SchemaMissing,
    SchemaOutdated,
    SchemaTooNew,
    WorkerPool,
    WorkMap,
    schema_sql,
)
from pgjobs.db import migrate, migration_plan, statements
from pgjobs.embedded import find_bindir
from tests.conftest import Connect
from tests.waiting import wait_until

pytestmark = pytest.mark.no_decoys("drops the tables, and decoys depend on their type")

Connection = psycopg.Connection[Any]
NEWEST = max(migration_plan.versions())

# What another schema must have just the same to be called the same tables. Every definition is taken as text, with
# the schema's name made anonymous; physical column order counts, object ids do not.
CATALOG = """
SELECT 'table', relname::text, relkind::text || coalesce(array_to_string(reloptions, ','), '')
    FROM pg_class WHERE relnamespace = %(schema)s::text::regnamespace
UNION ALL
SELECT 'column', relname::text || '.' || attname::text,
        -- its place: what went down and up again has a higher number, though
        row_number() OVER (PARTITION BY attrelid ORDER BY attnum) || ' ' ||
        format_type(atttypid, atttypmod) || ' ' || attnotnull
        || ' ' || attidentity::text || ' ' || coalesce(pg_get_expr(adbin, adrelid), '')
    FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
    LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
    WHERE relnamespace = %(schema)s::text::regnamespace AND relkind = 'r' AND attnum > 0 AND NOT attisdropped
UNION ALL
SELECT 'constraint', conrelid::regclass::text || '.' || conname::text, pg_get_constraintdef(oid)
    FROM pg_constraint WHERE connamespace = %(schema)s::text::regnamespace
UNION ALL
SELECT 'index', indexname, indexdef FROM pg_indexes WHERE schemaname = %(schema)s::text
UNION ALL
SELECT 'function', proname, pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = %(schema)s::text::regnamespace
UNION ALL
SELECT 'trigger', tgname, pg_get_triggerdef(pg_trigger.oid)
    FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid WHERE relnamespace = %(schema)s::text::regnamespace
"""


def catalog(dsn: str, schema: str) -> list[tuple[str, str, str]]:
    """Everything the schema consists of, without the schema's own name."""
    with psycopg.connect(dsn) as conn:
        if conn.execute("SELECT to_regnamespace(%s)", [schema]).fetchone() == (None,):
            return []
        rows = conn.execute(CATALOG, {"schema": schema}).fetchall()
    own = re.compile(rf'"?{schema}"?\.')
    return sorted((what, own.sub("", name), own.sub("", text)) for what, name, text in rows)


def rows_of(dsn: str, schema: str, table: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn) as conn:
        return conn.execute(sql.SQL("SELECT * FROM {} ORDER BY 1").format(sql.Identifier(schema, table))).fetchall()


def versions(dsn: str, schema: str) -> list[int]:
    with psycopg.connect(dsn) as conn:
        return migrate.applied(conn, schema)


def schemas(dsn: str) -> list[str]:
    """The schemas of the database that are not Postgres's own."""
    with psycopg.connect(dsn) as conn:
        rows = conn.execute("SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_|^information_schema$|^public$'")
        return [name for (name,) in rows]


def taken(steps: list[migration_plan.Step]) -> list[str]:
    return [f"{step.direction} {step.version}" for step in steps]


MIGRATOR = """
import sys
from pgjobs import Client
dsn, schema = sys.argv[1:]
with Client(dsn, schema=schema) as client:
    client.migrate()
"""

# Eight processes: each says that it has connected, waits for a byte, migrates, and says how many steps it took.
MIGRATORS = """
import os, sys
from pgjobs import Client
dsn, schema = sys.argv[1:]
children = [os.fork()]
while children[-1] and len(children) < 8:
    children.append(os.fork())
if children[-1]:
    sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
with Client(dsn, schema=schema) as client:
    with client.pool.connection() as conn:
        conn.execute("SELECT 1")
    os.write(1, b"ready\\n")
    os.read(0, 1)
    os.write(1, b"%d\\n" % len(client.migrate()))
"""


@contextmanager
def migrator(dsn: str, schema: str, program: str = MIGRATOR) -> Iterator[subprocess.Popen[str]]:
    """A process of its own that migrates."""
    command = [sys.executable, "-c", program, dsn, schema]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def backends(dsn: str, application_name: str, *, waiting: bool = False) -> list[int]:
    with psycopg.connect(dsn) as conn:
        rows = conn.execute(
            "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND (wait_event_type = 'Lock' OR NOT %s)",
            [application_name, waiting],
        )
        return [pid for (pid,) in rows]


@pytest.fixture
def empty(fresh_database: str, schema: str) -> Iterator[Client]:
    """A client on a database without tables."""
    with Client(fresh_database, schema=schema) as client:
        yield client


@contextmanager
def role(server_dsn: str, dsn: str, *grants: str) -> Iterator[str]:
    """The dsn of a new login role that may do nothing in the database but what `grants` say."""
    name = f"pgjobs_role_{os.urandom(4).hex()}"
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'secret'").format(sql.Identifier(name)))
        try:
            for grant in grants:
                admin.execute(sql.SQL(grant).format(role=sql.Identifier(name)))
            yield make_conninfo(dsn, user=name, password="secret")
        finally:
            admin.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(sql.Identifier(name)))
            admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


# --- up and down


@pytest.mark.conformance(297)
def test_up_goes_from_nothing_to_the_newest_and_a_second_time_does_nothing(empty: Client, fresh_database: str) -> None:
    assert versions(fresh_database, empty.schema) == []
    assert empty.missing_migrations() == list(migration_plan.versions())

    assert taken(empty.migrate()) == [f"up {version}" for version in migration_plan.versions()]
    assert versions(fresh_database, empty.schema) == list(range(1, NEWEST + 1))

    before = catalog(fresh_database, empty.schema), rows_of(fresh_database, empty.schema, "migration")
    assert empty.migrate() == []
    assert (catalog(fresh_database, empty.schema), rows_of(fresh_database, empty.schema, "migration")) == before


@pytest.mark.conformance(297)
def test_looking_at_an_empty_database_makes_nothing(empty: Client, fresh_database: str) -> None:
    assert versions(fresh_database, empty.schema) == []
    assert empty.missing_migrations() == list(migration_plan.versions())
    with pytest.raises(SchemaMissing):
        empty.check_schema()
    assert schemas(fresh_database) == []


@pytest.mark.conformance(298)
def test_up_down_up_ends_where_it_began(empty: Client, fresh_database: str) -> None:
    empty.migrate()
    tables = catalog(fresh_database, empty.schema)
    duties = [duty for duty, _ in rows_of(fresh_database, empty.schema, "maintenance")]
    assert [name for what, name, _ in tables if what == "table"].count("job") == 1
    assert {what for what, _, _ in tables} >= {"table", "column", "constraint", "index", "function"}

    empty.migrate(direction="down", target=0)
    left = catalog(fresh_database, empty.schema)
    assert {name for what, name, _ in left if what == "table"} == {"migration", "migration_pkey"}
    assert not [name for what, name, _ in left if what == "function"]
    assert versions(fresh_database, empty.schema) == []

    empty.migrate()
    assert catalog(fresh_database, empty.schema) == tables
    assert [duty for duty, _ in rows_of(fresh_database, empty.schema, "maintenance")] == duties
    empty.check_schema()


@pytest.mark.conformance(298)
@pytest.mark.usefixtures("three_versions")
def test_down_takes_one_step_unless_told_otherwise(empty: Client, fresh_database: str) -> None:
    empty.migrate()
    assert taken(empty.migrate(direction="down")) == [f"down {NEWEST + 2}"]
    assert versions(fresh_database, empty.schema) == list(range(1, NEWEST + 2))
    assert taken(empty.migrate(direction="down", max_steps=2)) == [f"down {NEWEST + 1}", f"down {NEWEST}"]


@pytest.mark.conformance(298)
@pytest.mark.usefixtures("three_versions")
def test_max_steps_bounds_the_steps_in_both_directions(empty: Client, fresh_database: str) -> None:
    assert taken(empty.migrate(max_steps=2)) == ["up 1", "up 2"]
    assert taken(empty.migrate(max_steps=0)) == []
    assert taken(empty.migrate(max_steps=99)) == [f"up {version}" for version in range(3, NEWEST + 3)]
    assert taken(empty.migrate(direction="down", max_steps=99)) == [f"down {v}" for v in range(NEWEST + 2, 0, -1)]
    assert versions(fresh_database, empty.schema) == []


@pytest.mark.conformance(298)
@pytest.mark.usefixtures("three_versions")
def test_a_target_is_reached_from_both_sides_and_reaching_it_again_does_nothing(
    empty: Client, fresh_database: str
) -> None:
    empty.migrate(target=2)
    assert versions(fresh_database, empty.schema) == [1, 2]
    assert empty.migrate(target=2) == []

    empty.migrate()
    empty.migrate(direction="down", target=1)
    assert versions(fresh_database, empty.schema) == [1]
    assert empty.migrate(direction="down", target=1) == []
    assert empty.migrate(direction="down", target=2) == []
    assert versions(fresh_database, empty.schema) == [1]


@pytest.mark.conformance(298)
@pytest.mark.usefixtures("three_versions")
def test_target_0_takes_everything_down(empty: Client, fresh_database: str) -> None:
    """River says -1 for "all"; here it is the version that is left, 0, and -1 is as unknown as any other number."""
    empty.migrate()
    assert taken(empty.migrate(direction="down", target=0)) == [f"down {v}" for v in range(NEWEST + 2, 0, -1)]
    assert versions(fresh_database, empty.schema) == []
    assert empty.migrate(direction="down", target=0) == []


@pytest.mark.conformance(298)
@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("target", [-1, NEWEST + 1, 77])
def test_an_unknown_target_is_refused_by_name_before_anything_is_done(
    empty: Client, fresh_database: str, direction: migration_plan.Direction, target: int
) -> None:
    with pytest.raises(MigrationError, match=f"no version {target}.*0 to {NEWEST}"):
        empty.migrate(direction=direction, target=target)
    with pytest.raises(MigrationError, match=f"no version {target}"):
        empty.migrate(direction=direction, target=target, dry_run=True)
    with pytest.raises(MigrationError, match=f"no version {target}"):
        schema_sql(empty.schema, target=target)
    with pytest.raises(MigrationError, match=f"no version {target}"):
        schema_sql(empty.schema, start=target)
    assert schemas(fresh_database) == []


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_negative_number_of_steps_is_refused(empty: Client, dry_run: bool) -> None:
    with pytest.raises(MigrationError, match="max_steps"):
        empty.migrate(max_steps=-1, dry_run=dry_run)


@pytest.mark.usefixtures("three_versions")
def test_a_step_that_fails_leaves_the_steps_before_it_and_nothing_of_itself(empty: Client, fresh_database: str) -> None:
    empty.migrate(target=NEWEST)
    with psycopg.connect(fresh_database) as conn:
        conn.execute(sql.SQL("CREATE TABLE {} ()").format(sql.Identifier(empty.schema, "shelf")))
    with pytest.raises(psycopg.errors.DuplicateTable):
        empty.migrate()
    assert versions(fresh_database, empty.schema) == list(range(1, NEWEST + 2))

    with psycopg.connect(fresh_database) as conn:
        conn.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(empty.schema, "shelf")))
    empty.migrate()
    empty.check_schema()


def test_each_step_is_logged(empty: Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="pgjobs.migrate"):
        empty.migrate()
    assert [record.getMessage() for record in caplog.records] == [
        f"schema {empty.schema}: up {version:04} {name}" for version, name in migration_plan.versions().items()
    ]


# --- dry, and inside the caller's transaction


@pytest.mark.conformance(299)
@pytest.mark.usefixtures("three_versions")
def test_a_dry_run_says_what_would_be_done_and_changes_nothing(empty: Client, fresh_database: str) -> None:
    assert taken(empty.migrate(dry_run=True)) == [f"up {version}" for version in migration_plan.versions()]
    assert taken(empty.migrate(dry_run=True, target=2)) == ["up 1", "up 2"]
    assert empty.migrate(dry_run=True, direction="down") == []
    assert schemas(fresh_database) == []

    empty.migrate()
    before = catalog(fresh_database, empty.schema), rows_of(fresh_database, empty.schema, "migration")
    assert empty.migrate(dry_run=True) == []
    assert taken(empty.migrate(dry_run=True, direction="down")) == [f"down {NEWEST + 2}"]
    assert taken(empty.migrate(dry_run=True, direction="down", target=1)) == [
        f"down {v}" for v in range(NEWEST + 2, 1, -1)
    ]
    assert taken(empty.migrate(dry_run=True, direction="down", max_steps=1)) == [f"down {NEWEST + 2}"]
    assert (catalog(fresh_database, empty.schema), rows_of(fresh_database, empty.schema, "migration")) == before


@pytest.mark.conformance(299)
def test_a_dry_run_tells_the_very_steps_that_are_then_taken(empty: Client) -> None:
    assert empty.migrate(dry_run=True) == empty.migrate()
    assert empty.migrate(dry_run=True, direction="down") == empty.migrate(direction="down")


@pytest.mark.conformance(299)
def test_a_repair_in_the_callers_transaction_goes_with_its_rollback(empty: Client, fresh_database: str) -> None:
    empty.migrate()
    duties = sql.Identifier(empty.schema, "maintenance")
    with psycopg.connect(fresh_database) as tx:
        tx.execute(sql.SQL("DELETE FROM {}").format(duties))
        tx.commit()
        empty.migrate(tx, max_steps=0)  # no step is sent before the repair
        assert tx.execute(sql.SQL("SELECT count(*) > 0 FROM {}").format(duties)).fetchone() == (True,)
        tx.rollback()
    assert rows_of(fresh_database, empty.schema, "maintenance") == []


@pytest.mark.conformance(299)
def test_a_migration_in_the_callers_transaction_goes_with_its_rollback(empty: Client, fresh_database: str) -> None:
    with psycopg.connect(fresh_database) as tx:
        tx.execute("CREATE TABLE theirs ()")
        assert len(empty.migrate(tx)) == NEWEST
        tx.rollback()
        assert tx.execute("SELECT to_regclass('theirs')").fetchone() == (None,)
    assert schemas(fresh_database) == []


@pytest.mark.conformance(299)
def test_a_migration_as_the_first_statement_of_the_callers_transaction_goes_with_its_rollback(
    empty: Client, fresh_database: str
) -> None:
    """A block of its own on an idle connection would be the outermost one, and commit behind the caller's back."""
    with psycopg.connect(fresh_database) as tx:
        empty.migrate(tx)
        assert tx.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
        tx.rollback()
    assert schemas(fresh_database) == []


@pytest.mark.conformance(299)
@pytest.mark.usefixtures("three_versions")
def test_a_migration_in_the_callers_transaction_is_there_with_its_commit(empty: Client, fresh_database: str) -> None:
    with psycopg.connect(fresh_database) as tx:
        empty.migrate(tx)
        client_job = empty.enqueue(tx, {"n": 1}, kind="first")
        with psycopg.connect(fresh_database) as other:
            assert other.execute("SELECT to_regnamespace(%s)", [empty.schema]).fetchone() == (None,)
    empty.check_schema()
    assert empty.get(client_job.id) is not None


@pytest.mark.conformance(299)
def test_a_savepoint_of_the_caller_undoes_the_migration_and_keeps_the_rest(empty: Client, fresh_database: str) -> None:
    with psycopg.connect(fresh_database) as tx:
        tx.execute("CREATE TABLE theirs ()")
        with suppress(ZeroDivisionError), tx.transaction() as savepoint:
            empty.migrate(savepoint)
            1 / 0  # noqa: B018
        assert tx.execute("SELECT to_regclass('theirs')::text").fetchone() == ("theirs",)
    assert schemas(fresh_database) == []


@pytest.mark.conformance(299)
def test_down_in_the_callers_transaction_goes_with_its_rollback(empty: Client, fresh_database: str) -> None:
    empty.migrate()
    before = catalog(fresh_database, empty.schema)
    with psycopg.connect(fresh_database) as tx:
        assert len(empty.migrate(tx, direction="down", target=0)) == NEWEST
        tx.rollback()
    assert catalog(fresh_database, empty.schema) == before
    empty.check_schema()


def test_a_migration_leaves_the_callers_settings_alone(empty: Client, fresh_database: str) -> None:
    show = (
        "SELECT current_setting('lock_timeout'), current_setting('statement_timeout'), current_setting('search_path')"
    )
    with psycopg.connect(fresh_database) as tx:
        tx.execute("SET lock_timeout = '7s'; SET statement_timeout = '70s'; SET search_path = public")
        tx.commit()
        tx.execute("SET LOCAL lock_timeout = '8s'")
        before = tx.execute(show).fetchone()
        empty.migrate(tx)
        assert tx.execute(show).fetchone() == before


def test_on_an_autocommit_connection_each_step_still_is_one_transaction(fresh_database: str, schema: str) -> None:
    """Without a transaction the lock among migrators would be gone with the statement that took it."""
    gate = threading.Barrier(8)

    def migrate_here(_: int) -> int:
        with Client(fresh_database, schema=schema) as client, psycopg.connect(fresh_database, autocommit=True) as tx:
            gate.wait(30)
            return len(client.migrate(tx))

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(migrate_here, range(8))) == NEWEST
    assert versions(fresh_database, schema) == list(range(1, NEWEST + 1))


# --- does the schema fit the code


@pytest.mark.conformance(300)
@pytest.mark.usefixtures("three_versions")
def test_validation_says_ok_or_lists_what_is_missing(empty: Client, fresh_database: str) -> None:
    assert empty.missing_migrations() == list(migration_plan.versions())
    empty.migrate(max_steps=1)
    assert empty.missing_migrations() == list(range(2, NEWEST + 3))
    empty.migrate()
    assert empty.missing_migrations() == []
    empty.check_schema()


@pytest.mark.conformance(300)
@pytest.mark.usefixtures("three_versions")
def test_a_version_missing_in_the_middle_is_listed_refused_and_mended(empty: Client, fresh_database: str) -> None:
    empty.migrate()
    second = NEWEST + 1
    with psycopg.connect(fresh_database) as conn:
        conn.execute(
            sql.SQL("DELETE FROM {} WHERE version = {}").format(sql.Identifier(empty.schema, "migration"), second)
        )
        conn.execute(sql.SQL("ALTER TABLE {} DROP COLUMN colour").format(sql.Identifier(empty.schema, "queue")))
    assert empty.missing_migrations() == [second]
    with pytest.raises(SchemaOutdated, match=f"lacks version {second}"):
        empty.check_schema()
    assert taken(empty.migrate()) == [f"up {second}"]
    empty.check_schema()


def handle(tx: Connection, job: Job[Any]) -> None:
    """A handler that does nothing."""


def test_a_worker_pool_refuses_a_schema_without_tables_and_says_what_to_do(empty: Client) -> None:
    pool = WorkerPool(empty, WorkMap({"thing": handle}))
    with pytest.raises(SchemaMissing, match=rf"{empty.schema}.*version {NEWEST}.*pgjobs migrate"):
        pool.start()
    assert not pool.running


def test_code_that_is_older_than_the_schema_refuses_it_and_names_both_versions(client: Client, database: str) -> None:
    with client.pool.connection() as conn:
        conn.execute(
            sql.SQL("INSERT INTO {} VALUES (99, 'from the future', 'unknown')").format(
                sql.Identifier(client.schema, "migration")
            )
        )
    tables = catalog(database, client.schema)
    both = rf"99.*\b{NEWEST}\b"
    pool = WorkerPool(client, WorkMap({"thing": handle}))
    with pytest.raises(SchemaTooNew, match=both):
        pool.start()
    assert not pool.running
    with pytest.raises(SchemaTooNew, match=both):
        client.check_schema()
    for direction in get_args(migration_plan.Direction):
        with pytest.raises(SchemaTooNew, match=both):
            client.migrate(direction=direction)
        with pytest.raises(SchemaTooNew, match=both):
            client.migrate(direction=direction, dry_run=True)
    assert catalog(database, client.schema) == tables
    assert 99 in versions(database, client.schema)


def test_code_that_is_newer_than_the_schema_refuses_it_and_names_both_versions(
    client: Client, three_versions: None
) -> None:
    both = rf"version {NEWEST},.*needs {NEWEST + 2}\b"
    pool = WorkerPool(client, WorkMap({"thing": handle}))
    with pytest.raises(SchemaOutdated, match=both):
        pool.start()
    assert not pool.running
    with pytest.raises(SchemaOutdated, match=both):
        client.check_schema()
    client.migrate()
    client.check_schema()
    with pool:
        job: Job[Any] = client.enqueue(None, {}, kind="thing")
        wait_until(lambda: (found := client.get(job.id)) and found.state == JobState.COMPLETED)


# --- many at once


def assert_one_of_everything(dsn: str, schema: str, reference: list[tuple[str, str, str]]) -> None:
    assert versions(dsn, schema) == list(range(1, NEWEST + 1))
    assert catalog(dsn, schema) == reference
    duties = [duty for duty, _ in rows_of(dsn, schema, "maintenance")]
    assert duties == sorted(set(duties))


@pytest.fixture
def reference(client: Client, database: str) -> list[tuple[str, str, str]]:
    """The catalog of tables that one migrator made alone."""
    return catalog(database, client.schema)


@pytest.mark.conformance(303)
@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
def test_eight_processes_at_once_leave_one_of_everything(
    fresh_database: str, schema: str, reference: list[tuple[str, str, str]], isolation: str
) -> None:
    """Under whatever isolation the database starts transactions: one that kept its first snapshot would not see what
    the migrator before it has done."""
    with psycopg.connect(fresh_database, autocommit=True) as admin:
        admin.execute(
            sql.SQL("ALTER DATABASE {} SET default_transaction_isolation = {}").format(
                sql.Identifier(admin.info.dbname), isolation
            )
        )
    with migrator(fresh_database, schema, MIGRATORS) as processes:
        assert processes.stdout
        assert [processes.stdout.readline() for _ in range(8)] == ["ready\n"] * 8
        out, errors = processes.communicate("." * 8, timeout=60)
        assert processes.returncode == 0, errors
    taken_by_each = list(map(int, out.split()))
    assert (len(taken_by_each), sum(taken_by_each)) == (8, NEWEST)
    assert_one_of_everything(fresh_database, schema, reference)


@pytest.mark.conformance(303)
def test_twenty_threads_at_once_leave_one_of_everything(
    fresh_database: str, schema: str, reference: list[tuple[str, str, str]]
) -> None:
    gate = threading.Barrier(20)

    def migrate_here(_: int) -> int:
        with Client(fresh_database, schema=schema) as client:
            with client.pool.connection():
                gate.wait(60)
            return len(client.migrate())

    with ThreadPoolExecutor(20) as threads:
        assert sum(threads.map(migrate_here, range(20))) == NEWEST
    assert_one_of_everything(fresh_database, schema, reference)


@pytest.mark.conformance(303)
def test_twenty_at_once_up_and_down_end_whole(
    fresh_database: str, schema: str, reference: list[tuple[str, str, str]]
) -> None:
    def migrate_here(n: int) -> None:
        with Client(fresh_database, schema=schema) as client:
            if n % 2:
                client.migrate(direction="down")
            else:
                client.migrate()

    with ThreadPoolExecutor(20) as threads:
        list(threads.map(migrate_here, range(20)))
    with Client(fresh_database, schema=schema) as client:
        client.migrate()
    assert_one_of_everything(fresh_database, schema, reference)


def test_a_role_with_short_timeouts_waits_its_turn_among_migrators(fresh_database: str, schema: str) -> None:
    impatient = make_conninfo(fresh_database, options="-c statement_timeout=200 -c lock_timeout=100")
    with Client(fresh_database, schema=schema) as first, Client(impatient, schema=schema) as second:
        with psycopg.connect(fresh_database) as tx, ThreadPoolExecutor(1) as threads:
            first.migrate(tx)
            waiting = threads.submit(second.migrate)
            began = time.monotonic()
            # ten times what the role would allow a wait or a statement to last
            wait_until(lambda: time.monotonic() - began > 2 and backends(fresh_database, "pgjobs", waiting=True))
            assert not waiting.done()
            tx.commit()
            assert waiting.result(30) == []
        second.check_schema()


# --- killed in the middle


def test_a_process_killed_in_the_middle_of_a_migration_leaves_nothing_and_the_next_one_does_it_all(
    fresh_database: str, schema: str, reference: list[tuple[str, str, str]]
) -> None:
    with psycopg.connect(fresh_database) as obstacle:
        obstacle.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
        obstacle.commit()
        # Made but not committed: a second CREATE of one of the migration's last tables waits here, with all that comes
        # before it already done in its own transaction.
        obstacle.execute(sql.SQL("CREATE TABLE {} ()").format(sql.Identifier(schema, "maintenance")))
        with migrator(make_conninfo(fresh_database, application_name="victim"), schema) as victim:
            wait_until(lambda: backends(fresh_database, "victim", waiting=True))
            victim.send_signal(signal.SIGKILL)
            assert victim.wait(10) == -signal.SIGKILL
        obstacle.rollback()
    wait_until(lambda: not backends(fresh_database, "victim"))
    assert versions(fresh_database, schema) == []
    assert catalog(fresh_database, schema) == []

    with Client(fresh_database, schema=schema) as client:
        assert len(client.migrate()) == NEWEST
    assert_one_of_everything(fresh_database, schema, reference)


def test_a_migrator_whose_connection_is_cut_leaves_nothing_and_may_try_again(
    fresh_database: str, schema: str, reference: list[tuple[str, str, str]]
) -> None:
    with psycopg.connect(fresh_database) as obstacle, Client(fresh_database, schema=schema) as client:
        obstacle.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
        obstacle.commit()
        obstacle.execute(sql.SQL("CREATE TABLE {} ()").format(sql.Identifier(schema, "worker")))
        with ThreadPoolExecutor(1) as threads:
            migrating = threads.submit(client.migrate)
            wait_until(lambda: backends(fresh_database, "pgjobs", waiting=True))
            with psycopg.connect(fresh_database, autocommit=True) as admin:
                for pid in backends(fresh_database, "pgjobs", waiting=True):
                    admin.execute("SELECT pg_terminate_backend(%s)", [pid])
            with pytest.raises(psycopg.OperationalError):
                migrating.result(30)
        obstacle.rollback()
        assert versions(fresh_database, schema) == []
        client.migrate()
    assert_one_of_everything(fresh_database, schema, reference)


# --- without rights


@pytest.mark.conformance(306)
def test_a_role_that_may_not_create_schemas_migrates_in_one_that_is_there(
    server_dsn: str, fresh_database: str, schema: str, reference: list[tuple[str, str, str]]
) -> None:
    with psycopg.connect(fresh_database) as admin:
        admin.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
    with role(server_dsn, fresh_database, f"GRANT USAGE, CREATE ON SCHEMA {schema} TO {{role}}") as dsn:
        with psycopg.connect(dsn) as conn:
            may = conn.execute("SELECT has_database_privilege(current_database(), 'CREATE')").fetchone()
            assert may == (False,)
        with Client(dsn, schema=schema) as client:
            assert len(client.migrate()) == NEWEST
            job: Job[Any] = client.enqueue(None, {}, kind="thing")
            with WorkerPool(client, WorkMap({"thing": handle}), queues={"default": 1}):
                wait_until(lambda: (found := client.get(job.id)) and found.state == JobState.COMPLETED)
        assert_one_of_everything(fresh_database, schema, reference)
        with Client(dsn, schema=schema) as client:
            client.migrate(direction="down", target=0)


@pytest.mark.conformance(306)
def test_a_role_that_may_not_create_the_schema_is_told_so(server_dsn: str, fresh_database: str, schema: str) -> None:
    with role(server_dsn, fresh_database) as dsn, Client(dsn, schema=schema) as client:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            client.migrate()
        assert client.missing_migrations() == list(migration_plan.versions())
    assert schemas(fresh_database) == []


@pytest.mark.conformance(306)
def test_a_role_that_may_only_use_the_tables_finds_nothing_to_migrate(
    server_dsn: str, fresh_database: str, schema: str
) -> None:
    """An application that migrates whenever it starts may do so as a role that can create nothing at all."""
    with Client(fresh_database, schema=schema) as owner:
        owner.migrate()
    grants = (
        f"GRANT USAGE ON SCHEMA {schema} TO {{role}}",
        f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {{role}}",
    )
    with role(server_dsn, fresh_database, *grants) as dsn, Client(dsn, schema=schema) as client:
        assert client.migrate() == []
        client.check_schema()


# --- against a lock


def test_down_gives_up_in_bounded_time_while_a_job_runs_and_works_afterwards(
    client: Client, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "_LOCK_TRIES", 2)
    running, let_go = threading.Event(), threading.Event()

    def slow(tx: Connection, job: Job[Any]) -> None:
        running.set()
        let_go.wait(60)

    job: Job[Any] = client.enqueue(None, {}, kind="slow")
    with WorkerPool(client, WorkMap({"slow": slow}), queues={"default": 1}):
        assert running.wait(10)
        began = time.monotonic()
        with pytest.raises(MigrationError, match="locked") as raised:
            client.migrate(direction="down", target=0)
        assert time.monotonic() - began < 15
        assert isinstance(raised.value.__cause__, psycopg.errors.LockNotAvailable | psycopg.errors.DeadlockDetected)
        assert 1 in versions(database, client.schema)
        let_go.set()
        wait_until(lambda: (found := client.get(job.id)) and found.state == JobState.COMPLETED)
    assert taken(client.migrate(direction="down", target=0))[-1] == "down 1"


def test_down_waits_for_a_lock_that_is_let_go_in_time(client: Client, connect: Connect) -> None:
    holder = connect()
    holder.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(sql.Identifier(client.schema, "job")))
    with ThreadPoolExecutor(1) as threads:
        going_down = threads.submit(client.migrate, direction="down", target=0)
        first_try = wait_until(lambda: waiting_for_table(connect, client.schema))
        wait_until(lambda: waiting_for_table(connect, client.schema) not in (None, first_try))
        assert not going_down.done()
        holder.rollback()
        assert taken(going_down.result(30))[-1] == "down 1"


def test_others_are_not_held_up_for_long_behind_a_migration_that_waits(client: Client, connect: Connect) -> None:
    holder = connect()
    holder.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(sql.Identifier(client.schema, "job")))
    with ThreadPoolExecutor(1) as threads:
        going_down = threads.submit(client.migrate, direction="down", target=0)
        wait_until(lambda: waiting_for_table(connect, client.schema))
        try:
            # an insert queues behind the request for the table; it must get through while the holder still holds it.
            # Not an enqueue: what that calls may be gone already, with the newest of the versions
            with client.pool.connection() as tx:
                tx.execute("SET LOCAL lock_timeout = '10s'")
                insert = sql.SQL("INSERT INTO {} (kind) VALUES ('thing')")
                tx.execute(insert.format(sql.Identifier(client.schema, "job")))
        finally:
            holder.rollback()
        with suppress(MigrationError):
            going_down.result(60)


def waiting_for_table(connect: Connect, schema: str) -> datetime | None:
    """Since when somebody asks for a lock on the job table that he has not got."""
    with connect(autocommit=True) as conn:
        row = conn.execute(
            "SELECT min(waitstart) FROM pg_locks WHERE NOT granted AND relation = %s::text::regclass", [f"{schema}.job"]
        ).fetchone()
        assert row
        since: datetime | None = row[0]
        return since


# --- the SQL for another tool


@pytest.mark.usefixtures("three_versions")
def test_the_sql_text_makes_the_same_tables_as_migrate(empty: Client, fresh_database: str) -> None:
    with psycopg.connect(fresh_database, autocommit=True) as conn:
        conn.execute(schema_sql(empty.schema).encode())
        made = catalog(fresh_database, empty.schema)
        empty.check_schema()
        assert empty.migrate() == []

        with Client(fresh_database, schema=f"{empty.schema}_2") as other:
            other.migrate()
            assert [row[:2] for row in rows_of(fresh_database, empty.schema, "migration")] == [
                row[:2] for row in rows_of(fresh_database, other.schema, "migration")
            ]
            assert made == catalog(fresh_database, other.schema)

        conn.execute(schema_sql(empty.schema, start=max(migration_plan.versions()), target=1).encode())
        assert versions(fresh_database, empty.schema) == [1]
        conn.execute(schema_sql(empty.schema, start=1, target=0).encode())
        assert versions(fresh_database, empty.schema) == []
        conn.execute(schema_sql(empty.schema).encode())
        assert catalog(fresh_database, empty.schema) == made


def test_the_sql_text_pastes_into_psql(fresh_database: str, schema: str, reference: list[tuple[str, str, str]]) -> None:
    psql = shutil.which(find_bindir() / "psql") or shutil.which("psql")
    assert psql, "psql is on the PATH, or comes with the embedded Postgres"
    pasted = subprocess.run(
        [psql, "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", fresh_database],
        input=schema_sql(schema),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (pasted.returncode, pasted.stderr) == (0, "")
    assert_one_of_everything(fresh_database, schema, reference)


def test_the_sql_text_is_one_transaction(fresh_database: str, schema: str) -> None:
    with psycopg.connect(fresh_database, autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
        conn.execute(sql.SQL("CREATE TABLE {} ()").format(sql.Identifier(schema, "maintenance")))
        before = catalog(fresh_database, schema)
        with pytest.raises(psycopg.errors.DuplicateTable):
            conn.execute(schema_sql(schema).encode())
        conn.rollback()
    assert catalog(fresh_database, schema) == before


# --- two schemas


def test_two_schemas_of_one_database_know_nothing_of_each_other(fresh_database: str, schema: str) -> None:
    with Client(fresh_database, schema=schema) as one, Client(fresh_database, schema="pgjobs") as two:
        one.migrate()
        with pytest.raises(SchemaMissing):
            two.check_schema()
        two.migrate()
        assert catalog(fresh_database, schema) == catalog(fresh_database, "pgjobs") != []
        job: Job[Any] = one.enqueue(None, {}, kind="thing")
        one.migrate(direction="down", target=0)
        two.check_schema()
        assert two.get(job.id) is None
        assert two.enqueue(None, {}, kind="thing").id == 1


def test_two_schemas_do_not_wait_for_each_others_migrations(fresh_database: str, schema: str) -> None:
    with Client(fresh_database, schema=schema) as one, Client(fresh_database, schema=f"{schema}_2") as two:
        with psycopg.connect(fresh_database) as tx:
            one.migrate(tx)
            with two.pool.connection() as impatient:
                impatient.execute("SET statement_timeout = '10s'")
                assert len(two.migrate(impatient)) == NEWEST
        one.check_schema()
        two.check_schema()


def test_an_applications_pool_migrates_whatever_its_connections_are_like(fresh_database: str, schema: str) -> None:
    likings: list[dict[str, Any]] = [
        {"autocommit": True},
        {"row_factory": psycopg.rows.dict_row},
        {"cursor_factory": psycopg.ClientCursor},
        {"options": "-c default_transaction_deferrable=on -c default_transaction_isolation=serializable"},
    ]
    for number, kwargs in enumerate(likings):
        with ConnectionPool(fresh_database, kwargs=kwargs, min_size=1, max_size=2) as pool:
            client = Client(pool, schema=f"{schema}_{number}")
            assert len(client.migrate()) == NEWEST
            client.check_schema()
            assert client.migrate() == []


# --- what is special in one of them

FINAL = "finalized_at = now()"
WAITING = ("available", "scheduled", "pending", "retryable")


WRONG = [  # each value with the rule that it breaks, and whether an UPDATE by hand of the column is checked too
    *((f"state = '{state}'", "job_finalized", False) for state in ("completed", "cancelled", "discarded")),
    *((f"state = '{state}', {FINAL}", "job_finalized", False) for state in (*WAITING, "running")),
    ("state = 'lost'", "job_state", True),
    ("attempt = -1", "job_attempt", False),
    ("max_attempts = 0", "job_attempt", True),
    (f"attempt = 26, state = 'completed', {FINAL}", "job_has_attempts_left", False),
    ("attempt = 26, state = 'running'", "job_has_attempts_left", False),
    *((f"attempt = 25, state = '{state}'", "job_has_attempts_left", False) for state in WAITING),
    ("queue = ''", "job_names", True),
    ("queue = repeat('q', 65)", "job_names", True),
    ("kind = ''", "job_names", True),
    ("kind = repeat('k', 129)", "job_names", True),
    ("args = '[]'", "job_json", True),
    ("metadata = '[]'", "job_json", False),
    ("errors = '{}'", "job_json", True),
    ("tags = '{NULL}'", "job_arrays", True),
    ("attempted_by = '{NULL}'", "job_arrays", False),
    *((f"{column} = 'infinity'", "job_times", True) for column in ("scheduled_at", "created_at")),
    ("attempted_at = 'infinity'", "job_times", False),
    ("leased_until = '9999-12-31 UTC'", "job_times", False),
    ("state = 'completed', finalized_at = '0001-01-01 BC'", "job_times", False),
    ("unique_key = 'x'", "job_unique_states", True),
    ("unique_key = 'x', unique_states = '{available}'", "job_unique_covers", True),
]


@pytest.mark.parametrize(("values", "rule", "also_update"), WRONG)
def test_a_row_that_cannot_be_is_refused(
    empty: Client, fresh_database: str, values: str, rule: str, also_update: bool
) -> None:
    """A new row, and an UPDATE of the columns that no claim or finish sets."""
    empty.migrate()
    columns, texts = zip(*(each.split(" = ") for each in re.split(", (?=[a-z_]+ = )", values)), strict=True)
    defaults = {} if "kind" in columns else {"kind": "'thing'"}
    names, given = ", ".join([*defaults, *columns]), ", ".join([*defaults.values(), *texts])
    with psycopg.connect(fresh_database, autocommit=True) as conn:
        conn.execute(sql.SQL("SET search_path = {}").format(sql.Identifier(empty.schema)))
        with pytest.raises(psycopg.errors.CheckViolation, match=rule) as refused:
            conn.execute(f"INSERT INTO job ({names}) VALUES ({given})".encode())
        assert refused.value.diag.constraint_name == rule
        assert rule == "job_state" or columns[0] in str(refused.value) or columns[1] in str(refused.value)
        conn.execute("INSERT INTO job (kind) VALUES ('thing')")
        if also_update:
            with pytest.raises(psycopg.errors.CheckViolation, match=rule):
                conn.execute(f"UPDATE job SET {values}".encode())


def test_a_copy_of_a_row_that_cannot_be_is_refused(empty: Client, fresh_database: str) -> None:
    empty.migrate()

    def copy() -> None:
        statement = sql.SQL("COPY {} (kind) FROM STDIN").format(sql.Identifier(empty.schema, "job"))
        with psycopg.connect(fresh_database) as conn, conn.cursor() as cur, cur.copy(statement) as rows:
            rows.write_row(["good"])
            rows.write_row([""])

    with pytest.raises(psycopg.errors.CheckViolation, match="job_names"):
        copy()


def test_a_refusal_names_the_value_and_hides_the_args(empty: Client, fresh_database: str) -> None:
    empty.migrate()
    with psycopg.connect(fresh_database, autocommit=True) as conn:
        conn.execute(sql.SQL("SET search_path = {}").format(sql.Identifier(empty.schema)))
        with pytest.raises(psycopg.errors.CheckViolation, match=r'kind = "x+; a queue has 1 to 64'):
            conn.execute("INSERT INTO job (kind) VALUES (repeat('x', 129))")
        with pytest.raises(psycopg.errors.CheckViolation, match="args = a JSON array") as refused:
            conn.execute("INSERT INTO job (kind, args) VALUES ('thing', '[\"secret\"]')")
        assert "secret" not in f"{refused.value} {refused.value.diag.message_detail}"


def test_a_row_that_was_wrong_before_may_still_be_changed(empty: Client, fresh_database: str) -> None:
    """Rows that a replica or a restore wrote without triggers must not stop what is done about them."""
    empty.migrate()
    with psycopg.connect(fresh_database, autocommit=True) as conn:
        conn.execute(sql.SQL("SET search_path = {}").format(sql.Identifier(empty.schema)))
        conn.execute("SET session_replication_role = replica")
        conn.execute("INSERT INTO job (kind, created_at, attempt) VALUES ('thing', '-infinity', 99)")
        conn.execute("SET session_replication_role = origin")
        conn.execute("UPDATE job SET errors = '[1]', scheduled_at = now(), unique_key = NULL, created_at = '-infinity'")
        with pytest.raises(psycopg.errors.CheckViolation, match="job_times"):
            conn.execute("UPDATE job SET created_at = 'infinity'")
        conn.execute("UPDATE job SET created_at = now()")


def test_the_job_table_has_no_checks_and_one_type_of_our_own(empty: Client, fresh_database: str) -> None:
    """Each CHECK would cost every claim and finish, which read them anew from the catalog."""
    empty.migrate()
    with psycopg.connect(fresh_database) as conn:
        conn.execute(sql.SQL("SET search_path = {}").format(sql.Identifier(empty.schema)))
        assert conn.execute(
            "SELECT count(*) FROM pg_constraint WHERE contype = 'c' AND conrelid = 'job'::regclass"
        ).fetchone() == (0,)
        assert conn.execute(
            """SELECT attname FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid
            WHERE attrelid = 'job'::regclass AND attnum > 0 AND typnamespace <> 'pg_catalog'::regnamespace"""
        ).fetchall() == [("state",)]


def test_no_claim_and_no_completion_calls_the_rules(empty: Client, fresh_database: str) -> None:
    """The trigger is for columns that these statements leave alone."""
    empty.migrate()
    with psycopg.connect(fresh_database, autocommit=True) as conn:
        conn.execute(sql.SQL("SET search_path = {}").format(sql.Identifier(empty.schema)))
        empty.enqueue(None, {}, kind="thing")
        conn.execute(
            """CREATE OR REPLACE FUNCTION refuse_job() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN RAISE EXCEPTION ''called''; END'"""
        )
        pool = WorkerPool(empty, {"thing": lambda tx, job: job.set_metadata({"a": 1})})
        assert pool.work_one()
        assert conn.execute("SELECT state, metadata FROM job").fetchall() == [("completed", {"a": 1})]


# --- tables of versions that were never released


def make_unreleased(dsn: str, schema: str, *, with_digest: bool) -> None:
    """The record of migrations as an unreleased version wrote it."""
    table = sql.Identifier(schema, "migration")
    with psycopg.connect(dsn) as conn:
        if with_digest:
            conn.execute(sql.SQL("UPDATE {} SET digest = 'of another file'").format(table))
        else:
            conn.execute(sql.SQL("ALTER TABLE {} DROP COLUMN digest").format(table))
            conn.execute(sql.SQL("INSERT INTO {} (version, name) VALUES (2, 'schedules')").format(table))


@pytest.mark.parametrize("with_digest", [True, False], ids=["another digest", "no digest"])
def test_tables_of_an_unreleased_version_are_refused_by_name(
    empty: Client, fresh_database: str, with_digest: bool
) -> None:
    empty.migrate()
    make_unreleased(fresh_database, empty.schema, with_digest=with_digest)
    before = catalog(fresh_database, empty.schema)
    for act in (
        empty.migrate,
        lambda: empty.migrate(dry_run=True),
        empty.missing_migrations,
        empty.check_schema,
        WorkerPool(empty, WorkMap({"thing": lambda tx, job: None})).start,
    ):
        with pytest.raises(MigrationError, match=f'unreleased version.*DROP SCHEMA "{empty.schema}"'):
            act()
    assert catalog(fresh_database, empty.schema) == before
    with psycopg.connect(fresh_database, autocommit=True) as conn:
        conn.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(empty.schema)))
    empty.migrate()
    empty.check_schema()


def test_the_sql_text_refuses_tables_of_an_unreleased_version(empty: Client, fresh_database: str) -> None:
    empty.migrate()
    make_unreleased(fresh_database, empty.schema, with_digest=False)
    with psycopg.connect(fresh_database) as conn, pytest.raises(psycopg.errors.RaiseException, match="unreleased"):
        conn.execute(schema_sql(empty.schema).encode())


def test_comments_and_white_space_do_not_change_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = migration_plan.digest(1)
    shutil.copytree(statements.ROOT, tmp_path / "sql")
    (file,) = (tmp_path / "sql" / "migrations").glob("0001_*.sql")
    text = file.read_text()
    monkeypatch.setattr(statements, "ROOT", tmp_path / "sql")
    for changed, same in (
        (text.replace("\n    queue", "\n    -- a comment\n        queue"), True),
        (text.replace("DEFAULT 25", "DEFAULT 26"), False),
    ):
        assert changed != text
        file.write_text(changed)
        statements.templates.cache_clear()
        assert (migration_plan.digest(1) == recorded) is same
    statements.templates.cache_clear()


@pytest.mark.finding("E7")
@pytest.mark.usefixtures("three_versions")
def test_up_to_a_version_below_the_one_that_is_there_is_refused(empty: Client) -> None:
    """`migrate(target=1)` on version 3 did nothing, and said nothing."""
    empty.migrate()
    for dry_run in (False, True):
        with pytest.raises(
            MigrationError, match=rf"is at version {NEWEST + 2}.* already, above target=1: .*direction='down'"
        ):
            empty.migrate(target=1, dry_run=dry_run)
    assert empty.missing_migrations() == []
