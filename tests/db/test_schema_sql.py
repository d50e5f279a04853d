"""The tables as a text of SQL: inside the migration of another tool, and more than once."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import sqlalchemy
from django.db import connections
from django.db.migrations.operations import RunSQL
from django.db.migrations.state import ProjectState
from psycopg import sql

from pgjobs import Client, Job, schema_sql
from pgjobs.db import migration_plan
from pgjobs.embedded import find_bindir
from tests.acceptance.frameworks import DjangoApp

pytestmark = pytest.mark.finding("E10")
NEWEST = max(migration_plan.versions())


def by_psycopg(dsn: str, text: str) -> None:
    with psycopg.connect(dsn) as conn:
        conn.execute("CREATE TABLE app (id int)")
        conn.execute(text.encode())


def by_psql(dsn: str, text: str) -> None:
    psql = shutil.which(find_bindir() / "psql") or shutil.which("psql")
    assert psql
    command = [psql, "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--single-transaction", dsn]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def by_alembic(dsn: str, text: str) -> None:
    """What `op.execute(text)` does with a text."""
    engine = sqlalchemy.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn))
    with engine.begin() as conn:
        conn.execute(sqlalchemy.text("CREATE TABLE app (id int)"))
        conn.execute(sqlalchemy.text(text))
    engine.dispose()


def by_django(dsn: str, text: str) -> None:
    app = DjangoApp(dsn, "pgjobs")
    with connections["default"].schema_editor(atomic=True) as editor:
        RunSQL(text).database_forwards("app", editor, ProjectState(), ProjectState())
    app.close()


@pytest.mark.parametrize("run", [by_psycopg, by_psql, by_alembic, by_django])
def test_it_belongs_to_the_transaction_of_another_tool(
    run: Callable[[str, str], None], fresh_database: str, schema: str
) -> None:
    """The text carried its own BEGIN and COMMIT, which a framework's migration does not want."""
    run(fresh_database, schema_sql(schema, transaction=False))
    with Client(fresh_database, schema=schema) as client:
        client.check_schema()
        assert client.migrate() == []
        job: Job[Any] = client.enqueue(None, {}, kind="test", metadata={"a": 1.50})
        assert client.get(job.id) == job


def test_a_rollback_of_that_transaction_leaves_nothing(fresh_database: str, schema: str) -> None:
    """The text committed what the caller had written before it."""
    with psycopg.connect(fresh_database) as conn:
        conn.execute("CREATE TABLE app (id int)")
        conn.execute(schema_sql(schema, transaction=False).encode())
        conn.rollback()
        found = conn.execute("SELECT to_regclass('app'), to_regnamespace(%s)", [schema]).fetchone()
    assert found == (None, None)


@pytest.mark.usefixtures("three_versions")
@pytest.mark.parametrize("transaction", [True, False])
def test_it_may_run_again_whatever_was_done_before(fresh_database: str, schema: str, transaction: bool) -> None:
    """A second run of the text failed with DuplicateTable."""
    text = schema_sql(schema, transaction=transaction).encode()
    notices: list[Any] = []
    with psycopg.connect(fresh_database, autocommit=True) as conn, Client(fresh_database, schema=schema) as client:
        conn.add_notice_handler(notices.append)
        conn.execute(schema_sql(schema, target=NEWEST + 1, transaction=transaction).encode())
        assert client.missing_migrations() == [NEWEST + 2]
        conn.execute(text)
        job: Job[Any] = client.enqueue(None, {}, kind="test")
        conn.execute(text)
        conn.execute(schema_sql(schema, start=1, transaction=transaction).encode())
        client.check_schema()
        assert client.migrate() == []
        assert client.get(job.id) == job

        down = schema_sql(schema, start=NEWEST + 2, target=0, transaction=transaction).encode()
        for _ in range(2):
            conn.execute(down)
            assert client.missing_migrations() == list(migration_plan.versions())
        assert client.migrate() != []
        client.check_schema()
    assert notices == []


@pytest.mark.usefixtures("three_versions")
def test_it_takes_what_migrate_has_begun(fresh_database: str, schema: str) -> None:
    with Client(fresh_database, schema=schema) as client:
        client.migrate(target=NEWEST + 1)
        with psycopg.connect(fresh_database) as conn:
            conn.execute(schema_sql(schema).encode())
        client.check_schema()


def test_it_waits_for_another_that_migrates(fresh_database: str, schema: str) -> None:
    with psycopg.connect(fresh_database) as first, psycopg.connect(fresh_database) as second:
        first.execute(schema_sql(schema, target=1, transaction=False).encode())
        second.execute("SET lock_timeout = '200ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            second.execute(schema_sql(schema, transaction=False).encode())
        second.rollback()
        first.commit()
        second.execute(schema_sql(schema, transaction=False).encode())


def test_a_role_that_may_not_make_schemas_uses_one_that_is_there(fresh_database: str, schema: str) -> None:
    with psycopg.connect(fresh_database) as conn:
        names = {"s": sql.Identifier(schema), "r": sql.Identifier(f"{schema}_owner")}
        conn.execute(sql.SQL("CREATE ROLE {r}; CREATE SCHEMA {s} AUTHORIZATION {r}; SET ROLE {r}").format(**names))
        conn.execute(schema_sql(schema, transaction=False).encode())
        conn.rollback()


def test_operators_of_strangers_on_the_search_path_are_not_asked(fresh_database: str, schema: str) -> None:
    """The text ran under the caller's search_path, and with it operators that any role had put there."""
    with psycopg.connect(fresh_database) as conn:
        conn.execute("CREATE SCHEMA evil; CREATE TABLE evil.seen (what text)")
        for name, left, right in [
            *(("=", "integer", "integer"), ("=", "bigint", "bigint"), ("=", "boolean", "boolean")),
            *(("=", "name", "name"), ("=", "name", "text"), ("=", "oid", "oid"), ("=", "text", "text")),
            *(("=", "bigint", "integer"), ("<>", "text", "text")),
        ]:
            conn.execute(
                f"CREATE OR REPLACE FUNCTION evil.f({left}, {right}) RETURNS boolean LANGUAGE plpgsql AS "
                "'BEGIN INSERT INTO evil.seen VALUES (current_query()); RETURN true; END'"
            )
            conn.execute(f"CREATE OPERATOR evil.{name} (FUNCTION = evil.f, LEFTARG = {left}, RIGHTARG = {right})")
        conn.execute("SET search_path = evil, pg_catalog")
        conn.execute(schema_sql(schema, transaction=False).encode())
        path = conn.execute("SHOW search_path").fetchone()
        seen = conn.execute("SELECT count(*) FROM evil.seen").fetchone()
    assert path == ("evil, pg_catalog",)
    assert seen == (0,)


def test_the_command_prints_it_without_a_transaction(capsys: pytest.CaptureFixture[str]) -> None:
    from pgjobs import cli

    assert cli.main(["migrate", "--sql", "--no-transaction"]) == 0
    assert capsys.readouterr().out == schema_sql(transaction=False)
