"""Enqueued with the caller's writes, finished with the handler's writes, or not at all."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool

from pgjobs import Client, InvalidTransaction, Job, JobState, WorkerPool
from tests.conformance.conftest import Rows, Stored
from tests.conftest import Connect
from tests.samples import Thing, Tx, shown
from tests.waking import sleep_on

# --- enqueue


@pytest.mark.conformance(34)
def test_a_batch_vanishes_whole_with_a_rollback(client: Client, conn: Tx, sql: Rows) -> None:
    client.enqueue_many(conn, [Thing(1), Thing(2)])
    conn.rollback()
    assert sql("SELECT count(*) FROM pgjobs.job") == [(0,)]
    client.enqueue_many(conn, [Thing(1), Thing(2)])
    assert sql("SELECT count(*) FROM pgjobs.job") == [(0,)], "nobody sees them before the commit"
    conn.commit()
    assert sql("SELECT count(*) FROM pgjobs.job") == [(2,)]


FORMS: dict[str, Callable[[Tx], Any]] = {
    "connection": lambda conn: conn,
    "cursor": lambda conn: conn.cursor(),
    "client cursor": psycopg.ClientCursor,
}


@pytest.mark.conformance(37)
@pytest.mark.parametrize("form", FORMS)
def test_a_job_exists_when_and_only_when_the_caller_commits(
    client: Client, conn: Tx, sql: Rows, effects: str, form: str
) -> None:
    for number, end in enumerate((conn.rollback, conn.commit)):
        conn.execute(f"INSERT INTO {effects} VALUES ('of the caller')")
        client.enqueue(FORMS[form](conn), Thing())
        assert conn.info.transaction_status == TransactionStatus.INTRANS, "enqueue has not ended the transaction"
        end()
        assert sql("SELECT count(*) FROM pgjobs.job") == [(number,)]
        assert sql("SELECT count(*) FROM pgjobs.effect") == [(number,)]


def roll_back(tx: psycopg.Transaction) -> None:
    raise psycopg.Rollback(tx)


@pytest.mark.conformance(37)
def test_a_transaction_block_of_the_caller_takes_the_job_along(client: Client, conn: Tx, sql: Rows) -> None:
    with conn.transaction() as tx:
        client.enqueue(tx, Thing(1))
        with conn.transaction() as inner:
            client.enqueue(inner, Thing(2))
            roll_back(inner)
    assert sql("SELECT args ->> 'n' FROM pgjobs.job") == [("1",)]
    with conn.transaction() as tx:
        client.enqueue(tx, Thing(3))
        roll_back(tx)
    assert sql("SELECT args ->> 'n' FROM pgjobs.job") == [("1",)]


@pytest.mark.conformance(37)
def test_the_first_statement_of_a_transaction_may_be_an_enqueue(
    client: Client, conn: Tx, sql: Rows, effects: str
) -> None:
    client.enqueue(conn, Thing())
    conn.execute(f"INSERT INTO {effects} VALUES ('after it')")
    conn.rollback()
    assert sql("SELECT (SELECT count(*) FROM pgjobs.job) + (SELECT count(*) FROM pgjobs.effect)") == [(0,)]


@pytest.mark.conformance(37)
def test_without_a_transaction_of_the_caller_the_job_is_committed_at_once(
    client: Client, connect: Connect, database: str, sql: Rows
) -> None:
    client.enqueue(None, Thing(1))
    client.enqueue_many(None, [Thing(2), Thing(3)])
    with ConnectionPool(database, min_size=1, max_size=1, open=True) as pool:
        client.enqueue(pool, Thing(4))
    client.enqueue(connect(autocommit=True), Thing(5))
    assert sql("SELECT args ->> 'n' FROM pgjobs.job ORDER BY id") == [("1",), ("2",), ("3",), ("4",), ("5",)]


@pytest.mark.conformance(37)
def test_enqueue_leaves_the_connection_as_it_found_it(client: Client, connect: Connect) -> None:
    conn = connect(row_factory=dict_row, cursor_factory=psycopg.ClientCursor)
    before = {name: getattr(conn, name) for name in ("row_factory", "cursor_factory", "autocommit", "isolation_level")}
    conn.execute("SET search_path = pg_catalog")
    conn.execute("SET LOCAL statement_timeout = '7s'")
    client.enqueue(conn, Thing())
    client.enqueue_many(conn, [Thing(), Thing()])
    assert {name: getattr(conn, name) for name in before} == before
    assert conn.execute("SHOW statement_timeout").fetchone() == {"statement_timeout": "7s"}
    assert conn.execute("SHOW search_path").fetchone() == {"search_path": "pg_catalog"}
    assert conn.execute("SELECT '{\"a\": 1}'::jsonb AS read").fetchone() == {"read": {"a": 1}}
    conn.rollback()


@pytest.mark.conformance(37)
@pytest.mark.parametrize("tx", ["postgresql://localhost", 5, object(), dict], ids=shown)
def test_what_is_no_transaction_is_refused(client: Client, tx: Any) -> None:
    with pytest.raises(InvalidTransaction, match="psycopg"):
        client.enqueue(tx, Thing())


@pytest.mark.conformance(36)
def test_a_notification_goes_out_with_the_commit_and_never_with_a_rollback(
    client: Client, conn: Tx, connect: Connect
) -> None:
    listener, sentinel = connect(autocommit=True), connect(autocommit=True)
    channel = client.queries.channel
    sleep_on(listener, client, "mail")

    def heard() -> list[str]:
        """What has arrived up to the sentinel, which was sent last."""
        sentinel.execute("SELECT pg_notify(%s, 'sentinel')", [channel])
        payloads = []
        for notification in listener.notifies(timeout=10):
            if notification.payload == "sentinel":
                break
            payloads.append(notification.payload)
        return payloads

    client.enqueue(conn, Thing(), queue="mail")
    assert heard() == [], "not before the commit"
    conn.rollback()
    assert heard() == [], "nor after a rollback"
    client.enqueue(conn, Thing(), queue="mail")
    conn.commit()
    assert heard() == ["mail"]


# --- the handler's transaction


@pytest.mark.conformance(38)
def test_what_a_handler_writes_is_seen_by_itself_at_once_and_by_others_with_the_completion(
    client: Client, sql: Rows, stored: Stored, effects: str
) -> None:
    seen: dict[str, Any] = {}

    def handler(tx: Tx, job: Job[Thing]) -> None:
        tx.execute(f"INSERT INTO {effects} VALUES ('written')")
        row = tx.execute(f"SELECT count(*) FROM {effects}").fetchone()
        seen["itself"] = row and row[0]
        seen["others"] = sql("SELECT (SELECT count(*) FROM pgjobs.effect), state FROM pgjobs.job")

    job = client.enqueue(None, Thing())
    assert WorkerPool(client, {Thing: handler}).work_one()
    assert seen == {"itself": 1, "others": [(0, "running")]}
    assert stored(job).state == JobState.COMPLETED
    assert sql("SELECT note FROM pgjobs.effect") == [("written",)]


@pytest.mark.conformance(39)
def test_a_handler_that_writes_and_raises_leaves_no_writes_and_one_failed_attempt(
    client: Client, sql: Rows, stored: Stored, effects: str
) -> None:
    """T6."""

    def handler(tx: Tx, job: Job[Thing]) -> None:
        tx.execute(f"INSERT INTO {effects} VALUES ('half done')")
        client.enqueue(tx, Thing(2), queue="follow-up")
        raise ValueError("no further")

    job = client.enqueue(None, Thing(1))
    assert WorkerPool(client, {Thing: handler}).work_one()
    assert sql("SELECT count(*) FROM pgjobs.effect") == [(0,)]
    assert sql("SELECT id FROM pgjobs.job") == [(job.id,)], "the job that it enqueued is gone too"
    failed = stored(job)
    assert (failed.state, failed.attempt, failed.error_count) == (JobState.RETRYABLE, 1, 1)
    assert failed.last_error == "no further"


@pytest.mark.conformance(39)
def test_an_sql_error_in_a_handler_drops_its_writes_and_is_on_record(
    client: Client, sql: Rows, stored: Stored, effects: str
) -> None:
    def handler(tx: Tx, job: Job[Thing]) -> None:
        tx.execute(f"INSERT INTO {effects} VALUES ('half done')")
        tx.execute("SELECT 1 / 0")

    job = client.enqueue(None, Thing(1))
    assert WorkerPool(client, {Thing: handler}).work_one()
    assert sql("SELECT count(*) FROM pgjobs.effect") == [(0,)]
    assert "[22012]" in (stored(job).last_error or "")


@pytest.mark.conformance(40)
def test_the_transaction_of_the_handler_holds_the_row_lock_of_its_job(
    client: Client, connect: Connect, sql: Rows
) -> None:
    seen: dict[str, Any] = {}

    def handler(tx: Tx, job: Job[Thing]) -> None:
        row = tx.execute("SELECT pg_current_xact_id()::text").fetchone()
        seen["own transaction"] = row and row[0]
        seen["locked by"] = sql("SELECT xmax::text FROM pgjobs.job WHERE id = %s", job.id)[0][0]
        lock = f'SELECT id FROM "{client.schema}".job WHERE id = %s FOR NO KEY UPDATE'
        seen["to be had"] = connect(autocommit=True).execute(lock + " SKIP LOCKED", [job.id]).fetchall()
        with pytest.raises(psycopg.errors.LockNotAvailable):
            connect(autocommit=True).execute(lock + " NOWAIT", [job.id])

    client.enqueue(None, Thing())
    assert WorkerPool(client, {Thing: handler}).work_one()
    assert seen["to be had"] == []
    assert seen["locked by"] == seen["own transaction"]


@pytest.mark.conformance(40)
def test_the_row_lock_lets_others_insert_rows_that_refer_to_the_job(client: Client, connect: Connect) -> None:
    queue = f'"{client.schema}".job'

    def handler(tx: Tx, job: Job[Thing]) -> None:
        other = connect(autocommit=True)
        other.execute("SET lock_timeout = '2s'")
        other.execute(f"SELECT id FROM {queue} WHERE id = %s FOR KEY SHARE", [job.id])  # as a foreign key does

    job = client.enqueue(None, Thing())
    assert WorkerPool(client, {Thing: handler}).work_one()
    done = client.get(job.id)
    assert done is not None
    assert (done.state, done.last_error) == (JobState.COMPLETED, None)


CHANGES = {
    "completed": "UPDATE pgjobs.job SET state = 'completed', finalized_at = now() - interval '1 hour'",
    "cancelled": "UPDATE pgjobs.job SET state = 'cancelled', finalized_at = now() - interval '1 hour'",
    "discarded": "UPDATE pgjobs.job SET state = 'discarded', finalized_at = now() - interval '1 hour'",
    "rescued": "UPDATE pgjobs.job SET state = 'retryable', scheduled_at = now() + interval '1 hour'",
    "taken again": "UPDATE pgjobs.job SET token = gen_random_uuid(), attempt = attempt + 1",
    "taken again, same attempt": "UPDATE pgjobs.job SET token = gen_random_uuid()",
    "deleted": "DELETE FROM pgjobs.job",
}


@pytest.mark.conformance(46, 86, 87)
@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_job_that_was_changed_by_others_keeps_the_change_and_loses_what_the_handler_wrote(
    client: Client, sql: Rows, effects: str, change: str, fails: bool
) -> None:
    """The handler gives up its lock, as a lost connection would, and then puts everything back but the ownership:
    nothing but the guard of the finish is left to notice."""
    changed: list[Any] = []
    savepoint = re.search(r"SAVEPOINT (\w+)", client.queries.work["savepoint"].decode())
    assert savepoint is not None

    def handler(tx: Tx, job: Job[Thing]) -> None:
        tx.execute("ROLLBACK")
        sql(CHANGES[change])
        changed.extend(sql("SELECT job::text FROM pgjobs.job AS job"))
        tx.execute("BEGIN")
        tx.execute(f"SAVEPOINT {savepoint[1]}")
        tx.execute(f"INSERT INTO {effects} VALUES ('too late')")
        if fails:
            raise ValueError("too late")

    client.enqueue(None, Thing())
    assert WorkerPool(client, {Thing: handler}).work_one()
    assert sql("SELECT job::text FROM pgjobs.job AS job") == changed
    assert sql("SELECT count(*) FROM pgjobs.effect") == [(0,)]


@pytest.mark.conformance(46)
def test_a_handler_that_changes_its_own_job_is_not_committed(
    client: Client, sql: Rows, effects: str, stored: Stored
) -> None:
    def handler(tx: Tx, job: Job[Thing]) -> None:
        tx.execute(f"INSERT INTO {effects} VALUES ('written')")
        tx.execute(f"""UPDATE "{client.schema}".job SET state = 'available', token = NULL""")

    job = client.enqueue(None, Thing())
    assert WorkerPool(client, {Thing: handler}).work_one()
    assert sql("SELECT count(*) FROM pgjobs.effect") == [(0,)]
    found = stored(job)
    assert (found.state, found.error_count) == (JobState.RETRYABLE, 1)
    assert "row of its own job" in found.errors[0].error


@pytest.mark.no_decoys("has a trigger or a rule of its own that finds one")
def test_a_job_by_itself_is_one_statement_which_commits_itself_and_leaves_the_connection_as_it_was(
    database: str, client: Client, sql: Rows, tmp_path: Path
) -> None:
    with (
        ConnectionPool(database, min_size=1, max_size=1, open=True) as pool,
        (tmp_path / "trace").open("w+b") as trace,
    ):
        theirs = Client(pool, schema=client.schema)
        with pool.connection() as conn:
            conn.pgconn.trace(trace.fileno())
        theirs.enqueue(None, Thing())
        conn.pgconn.untrace()
        trace.seek(0)
        asked = [line for line in trace.read().splitlines() if line.split(b"\t")[1:2] == [b"F"]]
        assert sum(b"\tQuery\t" in line or b"\tSync" in line for line in asked) == 1, asked
        assert sql("SELECT count(*) FROM pgjobs.job") == [(1,)]
        with client.pool.connection() as operator:
            operator.execute(f"ALTER TABLE {client.schema}.job ADD CHECK (priority <> 77)".encode())
        with pytest.raises(psycopg.errors.CheckViolation):
            theirs.enqueue(None, Thing(), priority=77)
        with pool.connection() as again:
            assert again is conn
            assert not conn.autocommit
            assert conn.info.transaction_status == TransactionStatus.IDLE
