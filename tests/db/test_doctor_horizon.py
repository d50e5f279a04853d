"""What the doctor finds of what holds VACUUM back: each finding is provoked, and found."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.pq import ExecStatus

from pgjobs import (
    Client,
    Severity,
)
from pgjobs.observe.doctor import check, horizon
from tests.db.conftest import running
from tests.db.findings import found, one
from tests.waiting import wait_until

# --- what holds vacuum back


def test_an_old_transaction(there: Client, on_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(there, "transactions") == []
    monkeypatch.setattr(horizon, "OLD_TRANSACTION", timedelta(0))
    with psycopg.connect(on_server, application_name="forgetful") as conn:
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        conn.execute("SELECT 1")
        pid = conn.info.backend_pid
        said = one(there, "transactions", Severity.NOTICE)
    assert "a transaction has been open for 0s and is idle" in said
    assert f"pid {pid}, role 'pgjobs', application 'forgetful', and holds back" in said


@pytest.mark.parametrize(
    ("age", "severity"),
    [(600, Severity.NOTICE), (3600, Severity.WARNING), (43200, Severity.CRITICAL)],
    ids=["minutes", "hours", "half a day"],
)
def test_the_older_the_worse(age: int, severity: Severity) -> None:
    assert check.by_age(age, warning=horizon._WARNING, critical=horizon._CRITICAL) is severity


def test_sessions_that_the_role_may_not_see(there: Client, on_server: str) -> None:
    with running(on_server) as run:
        run("CREATE ROLE blind LOGIN")
        run("GRANT USAGE ON SCHEMA pgjobs TO blind")
        try:
            with Client(make_conninfo(on_server, user="blind")) as blind:
                assert "may not see what 1 session of" in one(blind, "transactions", Severity.NOTICE)
                run("GRANT pg_read_all_stats TO blind")
                assert found(blind, "transactions") == []
        finally:
            run("DROP OWNED BY blind")
            run("DROP ROLE blind")


def test_a_prepared_transaction(there: Client, on_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(horizon, "OLD_PREPARED", timedelta(0))
    with psycopg.connect(on_server) as conn, running(on_server) as run:
        there.enqueue(conn, {}, kind="thing", notify=False)
        conn.execute("PREPARE TRANSACTION 'forgotten'")
        try:
            said = one(there, "prepared", Severity.WARNING)
        finally:
            run("ROLLBACK PREPARED 'forgotten'")
    assert said == "the prepared transaction 'forgotten' of role 'pgjobs' has been left open for 0s"
    assert found(there, "prepared") == []


def test_a_replication_slot(there: Client, on_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(on_server) as run:
        run("SELECT pg_create_logical_replication_slot('left', 'pgoutput')")
        try:
            assert found(there, "slots") == []
            monkeypatch.setattr(horizon, "HELD_TRANSACTIONS", 0)
            monkeypatch.setattr(horizon, "RETAINED_WAL", 0)
            said = one(there, "slots", Severity.WARNING)
        finally:
            run("SELECT pg_drop_replication_slot('left')")
    assert said.startswith("the logical replication slot 'left', which is not in use, holds back ")
    assert "of WAL" in said


@contextmanager
def standby(dsn: str) -> Iterator[None]:
    """What a standby with hot_standby_feedback does: it streams WAL, and says what transactions its queries need."""
    with psycopg.connect(dsn) as conn:
        row = conn.execute("SELECT pg_current_wal_lsn(), pg_snapshot_xmin(pg_current_snapshot())::text").fetchone()
        assert row is not None
    pgconn = psycopg.pq.PGconn.connect(make_conninfo(dsn, replication="true", application_name="copy").encode())
    try:
        pgconn.send_query(f"START_REPLICATION PHYSICAL {row[0]}".encode())
        result = pgconn.get_result()
        assert result is not None
        assert result.status == ExecStatus.COPY_BOTH, pgconn.error_message
        pgconn.put_copy_data(b"h" + struct.pack("!qIIII", 0, int(row[1]), 0, 0, 0))
        pgconn.flush()
        yield
    finally:
        pgconn.finish()


def test_a_standby_that_holds_rows_back(there: Client, on_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(horizon, "HELD_TRANSACTIONS", 0)
    with standby(on_server), running(on_server) as run:
        run("CREATE TABLE thing (id int)")
        query = "SELECT backend_xmin IS NOT NULL FROM pg_stat_replication"
        wait_until(lambda: run(query) == [(True,)])
        assert "the standby 'copy' at 127.0.0.1 holds back " in one(there, "standbys", Severity.WARNING)
