"""Published tables: Postgres changes no row of them without a key."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from pgjobs import Cancel, Client, Discard, Job, JobFilter, JobState, SchemaDamaged, Snooze, WorkerPool, constant
from pgjobs.db import migration_plan
from pgjobs.db.repair import TABLES
from pgjobs.maintenance.duties import Maintenance
from tests.db.conftest import Run
from tests.db.seen_to import SOON, seen_to
from tests.waiting import wait_until

ALL_TABLES = (*TABLES, "migration")


@pytest.mark.finding("W2")
def test_every_table_has_a_key(own_client: Client, run: Run) -> None:
    """A table without a replica identity cannot be published with its changes."""
    query = """SELECT relname FROM pg_class WHERE relnamespace = 'pgjobs'::regnamespace AND relkind IN ('r', 'p')
        AND NOT (relreplident = 'd' AND EXISTS (
            SELECT FROM pg_index WHERE indrelid = pg_class.oid AND indisprimary AND indisvalid))"""
    assert run(query) == []
    assert {name for (name,) in run("SELECT relname FROM pg_class WHERE relnamespace = 'pgjobs'::regnamespace "
                                    "AND relkind = 'r'")} == set(ALL_TABLES)  # fmt: skip


@pytest.fixture
def published(own_client: Client, run: Run) -> None:
    run("CREATE PUBLICATION everything FOR ALL TABLES")


@pytest.mark.finding("W2")
def test_jobs_of_published_tables_come_to_all_ends(
    own_client: Client, published: None, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """In a publication of all tables, failing, snoozing and cancelled jobs stayed running for ever."""
    caplog.set_level(logging.WARNING)
    seen: list[int] = []

    def handler(tx: psycopg.Connection[Any], job: Job[Any]) -> None:
        seen.append(job.id)
        how = job.args["how"] if seen.count(job.id) == 1 else "complete"
        if how == "wait":
            wait_until(lambda: job.cancelled, timeout=20)
            raise Cancel("as told")
        if how != "complete":
            raise {"fail": ValueError("no"), "snooze": Snooze(SOON), "cancel": Cancel(), "discard": Discard()}[how]

    hows = ("complete", "fail", "snooze", "cancel", "discard", "wait")
    with WorkerPool(own_client, {"thing": handler}, backoff=constant(SOON)):
        jobs = {how: own_client.enqueue(None, {"how": how}, kind="thing") for how in hows}
        wait_until(lambda: jobs["wait"].id in seen)
        assert own_client.cancel(jobs["wait"].id).state is JobState.RUNNING
        ended = [state for state in JobState if state.final]
        wait_until(lambda: own_client.count(JobFilter(states=ended)).total == 6, timeout=20)
    states = {how: own_client.get(job.id) for how, job in jobs.items()}
    assert {how: job and job.state.value for how, job in states.items()} == {
        **dict.fromkeys(("complete", "fail", "snooze"), "completed"),
        **dict.fromkeys(("cancel", "wait"), "cancelled"),
        "discard": "discarded",
    }
    assert run("SELECT * FROM pgjobs.cancel_request") == []
    assert own_client.retry(jobs["discard"].id).state is JobState.AVAILABLE
    assert own_client.update(jobs["discard"].id, priority=1).priority == 1
    assert len(own_client.delete_many(JobFilter.all()).done) == 6
    seen_to(own_client, run)
    assert "failed and is tried again" not in caplog.text


@pytest.mark.finding("W2")
def test_late_requests_are_settled_in_published_tables(own_client: Client, published: None, run: Run) -> None:
    """Requests to cancel could not be deleted from a published table without a key (55000)."""
    job: Job[Any] = own_client.enqueue(None, {}, kind="thing")
    run("INSERT INTO pgjobs.cancel_request (job_id, queue, token) VALUES (%s, 'default', gen_random_uuid())", job.id)
    run("INSERT INTO pgjobs.cancel_request (job_id, queue, token) VALUES (99, 'default', gen_random_uuid())")
    with psycopg.connect(str(own_client.pool.conninfo), autocommit=True) as conn:
        duties = Maintenance(own_client.schema, keep={state: timedelta(0) for state in JobState if state.final})
        duties.do(conn, "rescue")
        assert own_client.get(job.id).state is JobState.CANCELLED  # type: ignore[union-attr]
        duties.do(conn, "prune")
        duties.do(conn, "workers")
    assert run("SELECT * FROM pgjobs.cancel_request") == []
    assert own_client.get(job.id) is None


@pytest.mark.no_decoys("drops the tables, and decoys depend on their type")
@pytest.mark.finding("W2")
def test_published_tables_are_migrated_down_and_up(own_client: Client, published: None) -> None:
    """A migration must pass on tables that are published."""
    for target in reversed(range(len(migration_plan.versions()))):
        own_client.migrate(direction="down", target=target)
    for target in migration_plan.versions():
        own_client.migrate(target=target)
    own_client.check_schema()


@pytest.mark.finding("W2")
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ("ALTER TABLE pgjobs.cancel_request REPLICA IDENTITY NOTHING", "cancel_request.*replica identity"),
        ("ALTER TABLE pgjobs.job REPLICA IDENTITY NOTHING", "job.*replica identity"),
        ("ALTER TABLE pgjobs.maintenance REPLICA IDENTITY NOTHING", "maintenance.*replica identity"),
    ],
)
def test_a_table_that_is_published_without_its_key_is_refused_by_name(
    own_client: Client, published: None, run: Run, changes: str, said: str
) -> None:
    """A published table that cannot be changed let jobs stay `running` for ever, and no word said so."""
    run(changes)
    for act in (own_client.check_schema, WorkerPool(own_client, {"thing": print}).start):
        with pytest.raises(SchemaDamaged, match=said) as raised:
            act()
        assert "REPLICA IDENTITY DEFAULT" in str(raised.value)
        assert "'everything'" in str(raised.value)
    run("ALTER PUBLICATION everything SET (publish = 'insert')")
    own_client.check_schema()


@pytest.mark.finding("W2")
@pytest.mark.parametrize(
    ("part", "fits"),
    [
        ("pgjobs.job WHERE (priority > 0)", False),
        ("pgjobs.job WHERE (id > 0)", True),
        ("pgjobs.job (id, kind)", False),
        ("pgjobs.job (id, queue, kind)", True),
        ("pgjobs.cancel_request WHERE (job_id > 0)", False),
    ],
)
def test_a_part_of_a_table_is_published(own_client: Client, run: Run, part: str, fits: bool) -> None:
    """A row filter or list of columns of a publication can forbid every change, which start did not say."""
    if run("SHOW server_version_num")[0][0] < "150000":
        pytest.skip("since Postgres 15")
    run(f"CREATE PUBLICATION parts FOR TABLE {part}")
    if fits:
        own_client.check_schema()
        seen_to(own_client, run)
        return
    with pytest.raises(SchemaDamaged, match=r"publication 'parts' publishes: cannot (update|delete)"):
        WorkerPool(own_client, {"thing": print}).start()


def test_what_is_not_published_needs_no_key(own_client: Client, run: Run) -> None:
    run("ALTER TABLE pgjobs.job REPLICA IDENTITY NOTHING")
    own_client.check_schema()
    seen_to(own_client, run)
