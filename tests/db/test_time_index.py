"""The index for claims by time: there when somebody has asked for that order, and only then."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgjobs import Client, WorkerPool
from pgjobs.execution.queries import passing_over
from pgjobs.maintenance import time_index
from tests import by_hand, inside
from tests.conformance.conftest import Rows, server, sql
from tests.conftest import Connect
from tests.samples import nothing
from tests.waiting import wait_until

__all__ = ["server", "sql"]

NO_ARGS: dict[str, Any] = {}


def valid(sql: Rows) -> bool | None:
    """Whether the index is valid; None if there is none."""
    query = """
        SELECT indisvalid FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
        WHERE indrelid = 'pgjobs.job'::regclass AND relname = 'job_by_time'"""
    rows = sql(query)
    return rows[0][0] if rows else None


def oldest_first(client: Client, **options: Any) -> WorkerPool:
    return WorkerPool(client, {"thing": nothing}, queues={"default": 1}, order="scheduled_at", **options)


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_index, "_LONGEST_PAUSE", 0.05)


def test_who_does_not_ask_for_the_order_does_not_pay_for_it(client: Client, sql: Rows) -> None:
    with WorkerPool(client, {"thing": nothing}) as pool:
        assert inside.time_index(pool) is None
    assert valid(sql) is None


def test_the_claim_by_time_reads_the_index_whatever_the_priorities(client: Client, sql: Rows) -> None:
    sql(
        """INSERT INTO pgjobs.job (kind, priority, scheduled_at)
        SELECT 'other', n % 5, now() - n * interval '1 second' FROM generate_series(1, 20000) AS n"""
    )
    sql("ANALYZE pgjobs.job")
    statement = (
        "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + passing_over(client.queries.work["select_by_time"], b"").decode()
    )

    def plan() -> tuple[str, int]:
        """All of it as text, and how many blocks it read."""
        with client.pool.connection() as conn, psycopg.ClientCursor(conn) as cursor:
            cursor.execute(statement, by_hand.request("default").values)
            found: Any = cursor.fetchone()
            plan = found[0][0]["Plan"]
            conn.rollback()
            return str(plan), plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]

    text, before = plan()
    assert "job_by_time" not in text
    assert before > 100
    with oldest_first(client, unknown_kinds="leave"):
        wait_until(lambda: valid(sql))
    text, after = plan()
    assert "job_by_time" in text
    assert "'Sort'" not in text
    assert after < 20


@pytest.mark.usefixtures("no_pause")
def test_claims_work_while_it_is_made_and_several_pools_make_one(
    client: Client, database: str, sql: Rows, connect: Connect
) -> None:
    holder = connect()
    holder.execute(f"""INSERT INTO "{client.schema}".job (kind, scheduled_at) VALUES ('thing', now() + '1 hour')""")
    with Client(database, schema=client.schema) as other, oldest_first(client), oldest_first(other):
        wait_until(lambda: valid(sql) is False)
        for _ in range(5):
            job = client.enqueue(None, NO_ARGS, kind="thing")
            wait_until(lambda job=job: client.get(job.id).state == "completed")  # type: ignore[misc, union-attr]
        building = (
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE %s AND state = 'active' AND pid <> pg_backend_pid()"
        )
        assert sql(building, f'%INDEX CONCURRENTLY%"{client.schema}"%') == [(1,)]
        holder.rollback()
        wait_until(lambda: valid(sql))


def test_a_session_that_keeps_its_snapshots_does_not_wait_for_itself(client: Client, database: str, sql: Rows) -> None:
    dsn = make_conninfo(database, options="-c default_transaction_isolation=serializable")
    with Client(dsn, schema=client.schema) as strict, oldest_first(strict):
        wait_until(lambda: valid(sql))


@pytest.mark.usefixtures("no_pause")
def test_what_is_cut_off_by_a_stop_is_removed_and_made_the_next_time(
    client: Client, sql: Rows, connect: Connect
) -> None:
    holder = connect()
    holder.execute(f"""INSERT INTO "{client.schema}".job (kind) VALUES ('other')""")
    pool = oldest_first(client).start()
    wait_until(lambda: valid(sql) is False)
    pool.stop()
    holder.rollback()
    wait_until(lambda: valid(sql) is None)
    with pool:
        wait_until(lambda: valid(sql))


def test_what_somebody_else_has_left_is_named_and_not_touched(
    client: Client, sql: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    sql("CREATE INDEX job_by_time ON pgjobs.job (queue)")
    sql("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'pgjobs.job_by_time'::regclass")
    with oldest_first(client) as pool:
        inside.time_index_thread(pool).join(10)
    assert valid(sql) is False
    assert ["job_by_time is not valid" in record.getMessage() for record in caplog.records] == [True]


@pytest.fixture
def worker_role(client: Client, sql: Rows) -> Iterator[str]:
    """A role that may do everything with the tables but what their owner may."""
    role = f"worker_{uuid.uuid4().hex[:8]}"
    sql(f"CREATE ROLE {role}")
    sql(f'GRANT USAGE ON SCHEMA "{client.schema}" TO {role}')
    for what in ("TABLES", "SEQUENCES"):
        sql(f'GRANT ALL ON ALL {what} IN SCHEMA "{client.schema}" TO {role}')
    yield role
    sql(f"DROP OWNED BY {role}")
    sql(f"DROP ROLE {role}")


def test_a_role_that_may_not_make_it_says_once_who_should_run_what(
    client: Client, database: str, sql: Rows, worker_role: str, caplog: pytest.LogCaptureFixture
) -> None:
    modest = Client(make_conninfo(database, options=f"-c role={worker_role}"), schema=client.schema)
    with modest, oldest_first(modest, reindex_at=None) as pool:
        inside.time_index_thread(pool).join(10)
        assert not inside.time_index_thread(pool).is_alive(), "and does not try again"
        job = modest.enqueue(None, NO_ARGS, kind="thing")
        wait_until(lambda: client.get(job.id).state == "completed")  # type: ignore[union-attr]
    (warning,) = (message for message in map(str, (r.getMessage() for r in caplog.records)) if "by time" in message)
    statement = warning.partition("let the owner run: ")[2]
    assert valid(sql) is None
    sql(statement)
    assert valid(sql)
