"""What the doctor finds about the tables: each finding is provoked, and found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgjobs import Client, Severity, roles_sql
from pgjobs.db.roles import LEAST, least_rights
from pgjobs.observe.doctor import CHECKS, tables
from tests.db.conftest import Run
from tests.db.findings import COULD_NOT_LOOK, found, one
from tests.waiting import wait_until

CHECKS_OF_TABLES = [check.name for check in tables.CHECKS]


def enqueue(run: Run, jobs: int) -> None:
    run("INSERT INTO pgjobs.job (kind) SELECT 'thing' FROM generate_series(1, %s)", jobs)


# --- the schema


def test_new_tables_have_no_finding(own_client: Client) -> None:
    findings = own_client.doctor(include_ok=True)
    of_tables = {finding.check: finding for finding in findings if finding.check in CHECKS_OF_TABLES}
    assert list(of_tables) == CHECKS_OF_TABLES
    assert {finding.severity for finding in of_tables.values()} == {Severity.OK}


def test_without_tables_only_that_is_found(fresh_database: str) -> None:
    with Client(fresh_database) as client:
        assert "there are no pgjobs tables" in one(client, "schema", Severity.CRITICAL)
        needing = {check.name for check in CHECKS if check.needs_tables}
        assert needing & {finding.check for finding in client.doctor(include_ok=True)} == set()


def test_tables_of_a_newer_version(own_client: Client, run: Run) -> None:
    run("INSERT INTO pgjobs.migration (version, name, digest) VALUES (9999, 'later', '')")
    assert "is at version 9999" in one(own_client, "schema", Severity.CRITICAL)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ("ALTER TABLE pgjobs.job DROP COLUMN output", "column job output jsonb"),
        ("DROP TABLE pgjobs.scheduler", "column scheduler id uuid not null"),
        ("ALTER TABLE pgjobs.worker DROP CONSTRAINT worker_times", "rule worker worker_times"),
        ("DROP TRIGGER job_rules ON pgjobs.job", "trigger job job_rules"),
        ("DROP PROCEDURE pgjobs.deallocate_since", "function deallocate_since 1"),
    ],
    ids=["column", "table", "rule", "trigger", "function"],
)
def test_what_is_missing_is_named(own_client: Client, run: Run, damage: str, named: str) -> None:
    run(damage)
    assert f"there is no '{named}'" in one(own_client, "schema", Severity.CRITICAL)


def test_what_the_application_added_to_our_tables_is_named(own_client: Client, run: Run) -> None:
    run("ALTER TABLE pgjobs.job ADD COLUMN colour text")
    run("CREATE TABLE pgjobs.colours (colour text)")
    assert one(own_client, "schema", Severity.NOTICE).endswith("no migration made: 'column job colour text'")


def test_a_function_with_another_body_is_named(own_client: Client, run: Run) -> None:
    run("CREATE OR REPLACE FUNCTION pgjobs.attempt_lost() RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RETURN true; END'")
    assert one(own_client, "functions", Severity.WARNING) == "functions are not those of this version: 'attempt_lost'"


def test_every_function_in_plpgsql_is_compared(own_client: Client, run: Run) -> None:
    query = """SELECT proname FROM pg_proc JOIN pg_language ON pg_language.oid = prolang
        WHERE pronamespace = 'pgjobs'::regnamespace AND lanname = 'plpgsql'"""
    assert {name for (name,) in run(query)} == set(tables._bodies("pgjobs"))


def test_functions_of_a_renamed_schema(own_client: Client, run: Run, fresh_database: str) -> None:
    run("ALTER SCHEMA pgjobs RENAME TO jobs")
    with Client(fresh_database, schema="jobs") as renamed:
        assert "still use the old name 'pgjobs'" in one(renamed, "functions", Severity.CRITICAL)
        renamed.migrate()
        assert found(renamed, "functions") == []


# --- indexes, dead rows, size


def test_a_missing_index(own_client: Client, run: Run) -> None:
    run("DROP INDEX pgjobs.job_due")
    assert one(own_client, "indexes", Severity.CRITICAL) == "the index 'job_due' of table job is missing"


def test_an_index_whose_creation_failed(own_client: Client, run: Run) -> None:
    enqueue(run, 2)
    with pytest.raises(psycopg.errors.UniqueViolation):
        run("CREATE UNIQUE INDEX CONCURRENTLY job_kinds ON pgjobs.job (kind)")
    assert "'job_kinds' of table job is not valid" in one(own_client, "indexes", Severity.WARNING)


def test_an_invalid_index_of_ours(own_client: Client, run: Run) -> None:
    run("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'pgjobs.job_fetch'::regclass")
    assert "'job_fetch' of table job is not valid" in one(own_client, "indexes", Severity.CRITICAL)


@pytest.fixture
def emptied(own_client: Client, run: Run, monkeypatch: pytest.MonkeyPatch) -> Client:
    """Tables that held many jobs, of which one is left, and for which a small table counts as large."""
    monkeypatch.setattr(tables, "LARGE", 100_000)
    enqueue(run, 5000)
    run("DELETE FROM pgjobs.job WHERE id < 5000")

    def vacuumed() -> bool:  # not while another session has an old snapshot
        run("VACUUM pgjobs.job")
        return run("SELECT reltuples FROM pg_class WHERE oid = 'pgjobs.job_pkey'::regclass") == [(1,)]

    wait_until(vacuumed)
    return own_client


def test_bloated_indexes(emptied: Client, run: Run) -> None:
    findings = found(emptied, "indexes")
    assert {finding.what.split("'")[1] for finding in findings} == {"job_fetch", "job_pkey"}
    assert {finding.severity for finding in findings} == {Severity.WARNING}
    assert all("for 1 entries" in finding.what for finding in findings)
    run("REINDEX TABLE pgjobs.job")
    assert found(emptied, "indexes") == []


def test_a_bloated_table(emptied: Client, run: Run) -> None:
    assert "table job takes" in one(emptied, "bloat", Severity.WARNING)
    run("VACUUM FULL pgjobs.job")
    assert found(emptied, "bloat") == []


def test_dead_rows_that_no_vacuum_removes(own_client: Client, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MANY_DEAD_ROWS", 1000)
    monkeypatch.setattr(tables, "LONG_WITHOUT_VACUUM", 0.0)
    run("ALTER TABLE pgjobs.job SET (autovacuum_enabled = false)")
    assert one(own_client, "vacuum", Severity.WARNING) == "autovacuum is switched off for table job"
    run("ALTER TABLE pgjobs.job RESET (autovacuum_enabled)")
    enqueue(run, 2000)
    run("DELETE FROM pgjobs.job")
    wait_until(
        lambda: run("SELECT n_dead_tup FROM pg_stat_all_tables WHERE relid = 'pgjobs.job'::regclass") > [(1000,)]
    )
    assert "table job has 2000 dead rows beside 0 living ones" in one(own_client, "vacuum", Severity.WARNING)


# --- ids, publications


def test_ids_behind_the_sequence(own_client: Client, run: Run) -> None:
    enqueue(run, 3)
    run("SELECT setval('pgjobs.job_id_seq', 1)")
    said = one(own_client, "ids", Severity.CRITICAL)
    assert said == "the next id is 2, but there are jobs up to 3: enqueuing will fail"


def test_a_publication_that_forbids_changes(own_client: Client, run: Run) -> None:
    run("ALTER TABLE pgjobs.job REPLICA IDENTITY NOTHING")
    run("CREATE PUBLICATION everything FOR ALL TABLES")
    assert "table pgjobs.job, which publication 'everything' publishes" in one(
        own_client, "publications", Severity.CRITICAL
    )


# --- rights


@pytest.fixture
def roles(client: Client) -> Iterator[dict[str, Any]]:
    """The roles of the tables of one test."""
    names = {kind: f"{client.schema}_{kind}" for kind in LEAST}
    with client.pool.connection() as conn:
        conn.execute(roles_sql(client.schema, transaction=False, view_args=False, **names).encode())  # type: ignore[arg-type]
    yield names
    with client.pool.connection() as conn:
        for name in names.values():
            conn.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
            conn.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def test_roles_with_all_their_rights(client: Client, roles: dict[str, Any]) -> None:
    assert found(client, "rights") == []
    assert all(least_rights(client.schema, kind) for kind in LEAST)


@pytest.mark.parametrize(
    ("kind", "revoked", "named"),
    [
        ("worker", "UPDATE ON {s}.job", "'UPDATE on \"{s}\".job'"),
        ("viewer", "SELECT (tick) ON {s}.job", "'SELECT (tick) on \"{s}\".job'"),
        ("enqueuer", "EXECUTE ON FUNCTION {s}.unique_states(jsonb)", "'EXECUTE on \"{s}\".unique_states(jsonb)'"),
        ("worker", "USAGE ON SEQUENCE {s}.job_id_seq", "'USAGE on \"{s}\".job_id_seq'"),
        ("operator", "USAGE ON SCHEMA {s}", "'USAGE on {s}'"),
    ],
    ids=["table", "column", "function", "sequence", "schema"],
)
def test_a_right_that_is_missing_is_named(
    client: Client, roles: dict[str, Any], kind: str, revoked: str, named: str
) -> None:
    with client.pool.connection() as conn:
        if kind == "enqueuer":
            conn.execute(f"REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA {client.schema} FROM PUBLIC".encode())
        conn.execute(f"REVOKE {revoked.format(s=client.schema)} FROM {roles[kind]}".encode())
    said = one(client, "rights", Severity.WARNING)
    assert f"role '{roles[kind]}', which is like pgjobs_{kind}, lacks rights: {named.format(s=client.schema)}" in said


def test_a_role_of_another_name_is_judged_by_what_it_may(client: Client, roles: dict[str, Any], database: str) -> None:
    with client.pool.connection() as conn:
        conn.execute(f"ALTER ROLE {roles['worker']} RENAME TO {client.schema}_w".encode())
        roles["worker"] = f"{client.schema}_w"
        conn.execute(f"REVOKE DELETE ON {client.schema}.queue FROM {roles['worker']}".encode())
    assert found(client, "rights") == []
    dsn = make_conninfo(database, options=f"-c role={roles['worker']}")
    with Client(dsn, schema=client.schema) as worker:
        assert "like pgjobs_worker, lacks rights: 'DELETE on" in one(worker, "rights", Severity.WARNING)


def test_a_viewer_is_told_what_it_cannot_see(client: Client, roles: dict[str, Any], database: str) -> None:
    dsn = make_conninfo(database, options=f"-c role={roles['viewer']}")
    with Client(dsn, schema=client.schema) as viewer:
        unseen = {finding.check: finding for finding in viewer.doctor() if finding.what.startswith(COULD_NOT_LOOK)}
    assert {"ids", "kinds", "vanished", "transactions"} == set(unseen)
    assert {finding.severity for finding in unseen.values()} == {Severity.NOTICE}
    assert "permission denied for table job" in unseen["vanished"].what
