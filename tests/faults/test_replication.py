"""A logical replica of the tables, and what becomes of it when the first server is lost."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from pgjobs import Client, Job, JobFilter, JobState, WorkerPool
from pgjobs.embedded import EmbeddedPostgres
from tests.conftest import new_database
from tests.db.conftest import running
from tests.db.seen_to import seen_to
from tests.waiting import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def logical_server() -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(fsync=False, settings={"wal_level": "logical"}) as server:
        yield server


@pytest.mark.finding("W2")
@pytest.mark.finding("W12")
def test_a_logical_replica_follows_and_takes_over(logical_server: EmbeddedPostgres) -> None:
    """Its sequence begins at 1, below the ids of the jobs that it was sent."""
    done: list[int] = []

    def handler(tx: psycopg.Connection[object], job: Job[object]) -> None:
        done.append(job.id)
        if job.args == {"fail": True} and job.attempt == 1:
            raise ValueError("once")

    with (
        new_database(logical_server.dsn) as first,
        new_database(logical_server.dsn) as second,
        Client(first) as client,
        Client(second) as replica,
        running(first) as on_first,
        running(second) as there,
    ):
        client.migrate()
        replica.migrate()
        there("TRUNCATE pgjobs.migration, pgjobs.maintenance")
        on_first("CREATE PUBLICATION everything FOR ALL TABLES")
        on_first("SELECT pg_create_logical_replication_slot('everything', 'pgoutput')")
        there(
            f"CREATE SUBSCRIPTION everything CONNECTION '{first}' PUBLICATION everything "
            "WITH (create_slot = false, slot_name = 'everything')"
        )
        try:
            with WorkerPool(client, {"thing": handler}):
                for n in range(20):
                    client.enqueue(None, {"fail": n % 2 == 0}, kind="thing", queue="default")
                finished = JobFilter(states=["completed"])
                wait_until(lambda: client.count(finished).total == 20, timeout=30)
            client.enqueue(None, {}, kind="thing", queue="left")
            wait_until(lambda: replica.count().total == 21, timeout=30)
            wait_until(lambda: replica.count(finished).total == 20, timeout=30)
        finally:
            there("ALTER SUBSCRIPTION everything DISABLE")
            there("ALTER SUBSCRIPTION everything SET (slot_name = NONE)")
            there("DROP SUBSCRIPTION everything")
            on_first("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active")
            wait_until(lambda: on_first("SELECT count(*) FROM pg_replication_slots WHERE active") == [(0,)])
            on_first("SELECT pg_drop_replication_slot('everything')")
        assert there("SELECT last_value, is_called FROM pgjobs.job_id_seq") == [(1, False)]
        with WorkerPool(replica, {"thing": handler}, queues={"other": 1}):
            pass
        seen_to(replica, there)
        assert replica.enqueue(None, {}, kind="thing").id > 21
        (left,) = replica.list_jobs(JobFilter(queues=["left"])).jobs
        assert (left.id, left.state) == (21, JobState.AVAILABLE)
        replica.check_schema()
