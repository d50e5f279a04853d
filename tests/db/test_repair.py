"""What pgjobs needs beside its tables comes back after a TRUNCATE, and the tables of a dump are recognised."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from pgjobs import (
    Client,
    Job,
    JobFilter,
    MigrationError,
    Schedule,
    SchemaDamaged,
    SchemaMissing,
    Unique,
    WorkerPool,
    constant,
)
from pgjobs.cli import main
from pgjobs.db import migration_plan, shape
from pgjobs.db.repair import DUTIES, TABLES, SchemaRepair
from pgjobs.maintenance.queries import MaintenanceQueries
from pgjobs.schedules import registered
from tests.db.conftest import Run
from tests.db.seen_to import SOON, seen_to
from tests.waiting import wait_until

ALL_TABLES = (*TABLES, "migration")


def duties(run: Run) -> set[str]:
    return {duty for (duty,) in run("SELECT duty FROM pgjobs.maintenance")}


# --- rows that are gone


@pytest.mark.finding("W4")
def test_a_pool_that_starts_on_emptied_tables_puts_the_books_back(
    own_client: Client, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """After a TRUNCATE of all tables nothing was promoted, rescued or retried any more, and nothing said so."""
    run(f"TRUNCATE {', '.join(f'pgjobs.{table}' for table in ALL_TABLES)} RESTART IDENTITY")
    with pytest.raises(SchemaDamaged, match="no record"):
        own_client.check_schema()
    seen_to(own_client, run)
    assert duties(run) == set(DUTIES)
    assert own_client.missing_migrations() == []
    own_client.check_schema()
    assert "no rows for promote, rescue, prune, workers, indexes" in caplog.text
    assert f"version {max(migration_plan.versions())}, which is on record now" in caplog.text


@pytest.mark.finding("W4")
@pytest.mark.parametrize("gone", DUTIES)
def test_a_duty_that_is_missing_is_told_and_put_back(
    own_client: Client, run: Run, gone: str, fresh_database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a TRUNCATE there were no duties, so nothing was promoted or rescued, and no word said so."""
    run("DELETE FROM pgjobs.maintenance WHERE duty = %s", gone)
    with pytest.raises(SchemaDamaged, match=f"no rows for {gone}"):
        own_client.check_schema()
    assert main(["migrate", "--check", "--dsn", fresh_database]) == 1
    assert gone in capsys.readouterr().err
    assert own_client.migrate() == []
    assert duties(run) == set(DUTIES)
    own_client.check_schema()
    assert main(["migrate", "--check", "--dsn", fresh_database]) == 0


@pytest.mark.finding("W4")
def test_duties_and_schedules_come_back_while_the_pool_runs(
    own_client: Client, run: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A TRUNCATE under a running worker pool stopped its duties and its schedules for good."""
    monkeypatch.setattr(registered, "_HEARTBEAT_EVERY", 0.5)
    done: list[str] = []

    def handler(tx: psycopg.Connection[Any], job: Job[Any]) -> None:
        done.append(job.args["name"])
        if job.args["name"] == "fail" and job.attempt == 1:
            raise ValueError("once")

    cron = [Schedule("often", "@every 1s", {"name": "tick"}, kind="thing")]
    cron.append(Schedule("start", "@every 1h", {"name": "start"}, kind="thing", run_on_start=True))
    with WorkerPool(own_client, {"thing": handler}, backoff=constant(SOON), cron=cron):
        wait_until(lambda: {"tick", "start"} <= set(done))
        run(f"TRUNCATE {', '.join(f'pgjobs.{table}' for table in ALL_TABLES)}")
        before = done.count("tick")
        own_client.enqueue(None, {"name": "fail"}, kind="thing")
        own_client.enqueue(None, {"name": "later"}, kind="thing", delay=SOON)
        wait_until(lambda: done.count("fail") == 2 and "later" in done)
        wait_until(lambda: done.count("tick") > before)
        wait_until(own_client.workers)
        wait_until(lambda: duties(run) == set(DUTIES), timeout=40)
    assert done.count("start") == 1, "that was at the start"
    assert "no rows for" in caplog.text
    assert "schedules of this code were gone" in caplog.text


@pytest.mark.finding("W4")
def test_a_duty_that_somebody_holds_is_not_taken_for_one_that_is_missing(
    own_client: Client, fresh_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A duty whose row was gone looked like one that another process was at."""
    with psycopg.connect(fresh_database) as holder, psycopg.connect(fresh_database, autocommit=True) as conn:
        holder.execute("SELECT FROM pgjobs.maintenance FOR UPDATE")
        assert MaintenanceQueries(own_client.schema).begin_duty(conn, "promote") is None
    assert caplog.text == ""


@pytest.mark.finding("W4")
@pytest.mark.parametrize("when", ["infinity", "-infinity", "9999-12-31", "2000-01-01", "now() + interval '1 year'"])
def test_a_duty_whose_time_is_absurd_is_due(own_client: Client, run: Run, when: str) -> None:
    """After a time in which the clock of the server was ahead, nothing was promoted and rescued until it had come so
    far again; an infinite time made each duty fail."""
    with WorkerPool(own_client, {"thing": lambda tx, job: None}):
        value = when if "(" in when else f"'{when}'"
        run(f"UPDATE pgjobs.maintenance SET next_run_at = {value}")
        due: Job[Any] = own_client.enqueue(None, {}, kind="thing", delay=timedelta(hours=1))
        lost: Job[Any] = own_client.enqueue(None, {}, kind="thing", delay=timedelta(hours=1))
        run(f"UPDATE pgjobs.job SET scheduled_at = now() - interval '1 hour' WHERE id = {due.id}")
        run("UPDATE pgjobs.job SET state = 'running', attempt = 1, attempted_at = now() - interval '1 hour', "
            f"token = gen_random_uuid() WHERE id = {lost.id}")  # fmt: skip
        wait_until(lambda: own_client.count(JobFilter(states=["completed"])).total == 2, timeout=40)


@pytest.fixture
def reader(run: Run) -> Iterator[str]:
    """A role that may log in, with no right of its own yet."""
    name = f"reader_{uuid4().hex[:12]}"
    run(f"CREATE ROLE {name} LOGIN")
    yield name
    run(f"DROP OWNED BY {name}")
    run(f"DROP ROLE {name}")


@pytest.mark.finding("W4")
def test_who_may_not_put_it_back_is_told_what_to_do(
    own_client: Client, run: Run, fresh_database: str, reader: str
) -> None:
    """A role without the right to write duties worked on without them."""
    run("DELETE FROM pgjobs.maintenance")
    run(f"GRANT USAGE ON SCHEMA pgjobs TO {reader}")
    run(f"GRANT SELECT, UPDATE ON ALL TABLES IN SCHEMA pgjobs TO {reader}")
    with Client(psycopg.conninfo.make_conninfo(fresh_database, user=reader)) as other:
        pool = WorkerPool(other, {"thing": lambda tx, job: None})
        with pytest.raises(SchemaDamaged, match=r"may not write table maintenance.*pgjobs migrate"):
            pool.start()
        run("TRUNCATE pgjobs.migration")
        with pytest.raises(SchemaDamaged, match="record of migrations"):
            pool.start()


def test_who_may_only_see_the_versions_may_check(
    own_client: Client, run: Run, fresh_database: str, reader: str
) -> None:
    run(f"GRANT USAGE ON SCHEMA pgjobs TO {reader}")
    run(f"GRANT SELECT ON pgjobs.migration TO {reader}")
    run("CREATE PUBLICATION everything FOR ALL TABLES")
    with Client(psycopg.conninfo.make_conninfo(fresh_database, user=reader)) as other:
        other.check_schema()
        assert other.migrate() == []


def test_tables_that_are_not_there_are_told_from_a_record_that_is_empty(own_client: Client, run: Run) -> None:
    run("TRUNCATE pgjobs.migration")
    with pytest.raises(SchemaDamaged, match="no record of their version"):
        own_client.missing_migrations()
    assert own_client.migrate(dry_run=True) == []
    assert own_client.migrate() == []
    run("DROP TABLE pgjobs.scheduler")
    with pytest.raises(SchemaDamaged, match="no table scheduler"):
        own_client.check_schema()
    run("DROP SCHEMA pgjobs CASCADE")
    with pytest.raises(SchemaMissing):
        own_client.check_schema()


@pytest.mark.finding("W4")
def test_a_schema_that_was_renamed(own_client: Client, run: Run, fresh_database: str) -> None:
    """A function in PL/pgSQL is a text, in which the former name of the schema stayed."""
    run("ALTER SCHEMA pgjobs RENAME TO jobs")
    with Client(fresh_database, schema="jobs") as renamed:
        with pytest.raises(SchemaDamaged, match="name the schema 'pgjobs'"):
            renamed.check_schema()
        assert renamed.migrate() == []
        renamed.check_schema()
        assert run("SELECT id FROM jobs.enqueue('thing', queue => 'mail')") == [(1,)]
        renamed.enqueue(None, {}, kind="thing", unique=Unique(by_args=True))
        with WorkerPool(renamed, {"thing": lambda tx, job: None}, queues={"default": 1, "mail": 1}):
            wait_until(lambda: renamed.count(JobFilter(states=["completed"])).total == 2)


# --- which tables there are


def test_the_shape_that_is_known_is_the_one_that_migrations_make(own_client: Client, fresh_database: str) -> None:
    """After a change of a migration: PGJOBS_WRITE_SHAPE=1 pytest tests/db/test_repair.py -k shape"""
    with psycopg.connect(fresh_database) as conn:
        found = "".join(f"{line}\n" for line in SchemaRepair("pgjobs").shape(conn))
    if os.environ.get("PGJOBS_WRITE_SHAPE"):
        file = Path(shape.__file__)
        file.write_text(file.read_text(encoding="utf-8").replace(shape.SHAPE, found), encoding="utf-8")
    assert found == shape.SHAPE


def test_no_setting_changes_the_shape(own_client: Client, fresh_database: str) -> None:
    with psycopg.connect(fresh_database) as conn:
        conn.execute("SET quote_all_identifiers = on")
        conn.execute("SET search_path = pgjobs")
        assert SchemaRepair("pgjobs").recognise_versions(conn, migration_plan.versions()) == list(
            migration_plan.versions()
        )


@pytest.mark.finding("W4")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("ALTER TABLE pgjobs.job DROP COLUMN tick", "there is no column job tick timestamptz"),
        ("ALTER TABLE pgjobs.job ADD COLUMN tenant text", "there is a column job tenant text"),
        ("DROP TABLE pgjobs.cancel_request", "there is no column cancel_request id"),
        ("DROP INDEX pgjobs.job_unique", "there is no index job job_unique"),
        ("DROP FUNCTION pgjobs.attempt_lost", "there is no function attempt_lost 0"),
        ("ALTER DOMAIN pgjobs.job_state DROP CONSTRAINT job_state", "there is no rule job_state job_state"),
        ("DROP TRIGGER job_rules ON pgjobs.job", "there is no trigger job job_rules"),
    ],
)
def test_tables_that_are_not_the_newest_are_not_taken_for_them(
    own_client: Client, run: Run, change: str, said: str
) -> None:
    """Tables without a record of their version ended `migrate()` with a raw DuplicateTable."""
    run("TRUNCATE pgjobs.migration")
    run(change)
    before = run("SELECT count(*) FROM pg_class")
    for act in (
        own_client.migrate,
        lambda: own_client.migrate(dry_run=True),
        WorkerPool(own_client, {"thing": print}).start,
    ):
        with pytest.raises(MigrationError, match=said) as raised:
            act()
        assert "migrate with that version first" in str(raised.value)
    assert run("SELECT count(*) FROM pgjobs.migration") == [(0,)]
    assert run("SELECT count(*) FROM pg_class") == before


def test_what_an_application_adds_beside_it_is_no_obstacle(own_client: Client, run: Run) -> None:
    run("CREATE TABLE pgjobs.effect (note text)")
    run("CREATE INDEX ON pgjobs.job (created_at)")
    run("CREATE FUNCTION pgjobs.own() RETURNS integer LANGUAGE sql RETURN 1")
    run("TRUNCATE pgjobs.migration")
    assert own_client.migrate() == []
    own_client.check_schema()


def test_a_table_of_somebody_elses_is_not_taken_for_ours(fresh_database: str, run: Run) -> None:
    run("CREATE SCHEMA pgjobs")
    run("CREATE TABLE pgjobs.queue (id integer)")
    with Client(fresh_database) as own_client, pytest.raises(MigrationError, match="another schema"):
        own_client.migrate()
    assert run("SELECT to_regclass('pgjobs.job')") == [(None,)]
