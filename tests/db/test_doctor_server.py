"""What the doctor finds about the server and the way to it: each finding is provoked, and found."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import ExecStatus
from psycopg_pool import ConnectionPool, PoolTimeout

from pgjobs import (
    Client,
    InvalidSetting,
    Job,
    JobFilter,
    NewJob,
    PgjobsError,
    Schedule,
    Severity,
    Snooze,
    WorkerPool,
    constant,
)
from pgjobs import embedded as embedded_module
from pgjobs.db.cursors import AnyConnection
from pgjobs.db.own_pool import OwnPool
from pgjobs.db.source import PoolSource
from pgjobs.embedded import EmbeddedPostgres
from pgjobs.observe import doctor
from pgjobs.observe.doctor import check, horizon, queries, server
from tests.conftest import new_database
from tests.db.conftest import running
from tests.db.findings import COULD_NOT_LOOK, documented, found, one
from tests.faults.servers import PGBOUNCER, pgbouncer, through
from tests.samples import Tx
from tests.waiting import wait_until

SETTINGS = {"wal_level": "logical", "max_prepared_transactions": "5", "max_connections": "50"}


@pytest.fixture(scope="module")
def own_server() -> Iterator[EmbeddedPostgres]:
    """A server as in production, whose settings a test may change."""
    with EmbeddedPostgres(tcp=True, settings=SETTINGS) as own:
        yield own


@pytest.fixture
def on_server(own_server: EmbeddedPostgres) -> Iterator[str]:
    """The dsn of a new database there."""
    with new_database(own_server.dsn) as dsn:
        yield dsn


@pytest.fixture
def there(on_server: str) -> Iterator[Client]:
    with Client(on_server) as client:
        client.migrate()
        yield client


# --- all is well


def test_a_healthy_busy_database_has_no_finding(there: Client) -> None:
    def handler(tx: Tx, job: Job[Any]) -> None:
        if job.attempt == 1 and job.args["how"] == "fail":
            raise ValueError("once")
        if job.args["how"] == "snooze" and not job.metadata.get("snoozes"):
            raise Snooze(timedelta(milliseconds=10))

    cron = [Schedule("often", "@every 1s", {"how": "tick"}, kind="thing")]
    hows = ("complete", "fail", "snooze")
    with WorkerPool(there, {"thing": handler}, queues={"default": 4}, backoff=constant(timedelta(0)), cron=cron):
        wait_until(there.workers)
        for _ in range(5):
            there.enqueue_many(None, [NewJob({"how": hows[n % 3]}, kind="thing") for n in range(300)])
            assert there.doctor() == []
        wait_until(lambda: there.count(JobFilter(states=["completed"])).total >= 1500, timeout=60)
        assert there.doctor() == []
        assert {finding.severity for finding in there.doctor(include_ok=True)} == {Severity.OK}


def test_the_guide_lists_all_checks() -> None:
    assert list(documented()) == [check.name for check in doctor.CHECKS]


# --- each check is independent of the others, and changes nothing


def test_a_check_that_fails_is_a_finding_and_hinders_no_other(own_client: Client, fresh_database: str) -> None:
    with psycopg.connect(fresh_database) as holder:
        holder.execute("LOCK TABLE pgjobs.schedule IN ACCESS EXCLUSIVE MODE")
        findings = own_client.doctor(include_ok=True)
    (schedules,) = [finding for finding in findings if finding.check == "schedules"]
    assert schedules.what.startswith(f"{COULD_NOT_LOOK}: LockNotAvailable: ")
    assert schedules.severity is Severity.WARNING
    assert {finding.check for finding in findings} == {check.name for check in doctor.CHECKS}


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("UPDATE pgjobs.job SET priority = 1", "cannot execute UPDATE in a read-only transaction"),
        ("SET LOCAL statement_timeout = 10; SELECT pg_sleep(5)", "the server took more than 5 s to answer"),
    ],
    ids=["write", "slow"],
)
def test_the_server_keeps_a_check_from_writing_and_from_lasting(
    own_client: Client, monkeypatch: pytest.MonkeyPatch, sql: str, said: str
) -> None:
    def find(look: queries.Look) -> Iterator[check.Problem]:
        yield check.Problem(Severity.NOTICE, "so far", "nothing")
        look.conn.execute(sql.encode())

    monkeypatch.setattr(doctor, "CHECKS", [check.Check("schema", "fine", "why", find)])
    first, second = sorted(own_client.doctor(), key=lambda finding: finding.severity.rank)
    assert first.what == "so far"
    assert second.what.startswith(COULD_NOT_LOOK)
    assert said in second.what


def test_a_lost_connection_is_an_error(own_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(look: queries.Look) -> Iterator[check.Problem]:
        look.conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        yield check.Problem(Severity.NOTICE, "not reached", "nothing")

    monkeypatch.setattr(doctor, "CHECKS", [check.Check("schema", "fine", "why", find)])
    with pytest.raises(psycopg.OperationalError):
        own_client.doctor()


def test_wrong_arguments(own_client: Client) -> None:
    with pytest.raises(InvalidSetting, match="threads must be a whole number, 0 or more, not -1"):
        own_client.doctor(threads=-1)
    with pytest.raises(PgjobsError, match="include_ok"):
        own_client.doctor(include_ok="yes")  # type: ignore[arg-type]


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
                assert "may not see what 1 sessions" in one(blind, "transactions", Severity.NOTICE)
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


# --- the server and its settings


@pytest.mark.parametrize(
    ("setting", "severity"),
    [
        ("fsync", Severity.CRITICAL),
        ("full_page_writes", Severity.CRITICAL),
        ("autovacuum", Severity.WARNING),
    ],
)
def test_a_setting_of_the_server(there: Client, on_server: str, setting: str, severity: Severity) -> None:
    with running(on_server) as run:
        run(f"ALTER SYSTEM SET {setting} = off")
        try:
            run("SELECT pg_reload_conf()")
            wait_until(lambda: found(there, "settings"))
            assert one(there, "settings", severity).startswith(f"{setting} is off: ")
        finally:
            run(f"ALTER SYSTEM RESET {setting}")
            run("SELECT pg_reload_conf()")
    wait_until(lambda: found(there, "settings") == [])


@pytest.mark.parametrize(
    ("setting", "severity", "said"),
    [
        ("synchronous_commit = off", Severity.WARNING, "synchronous_commit is off"),
        ("track_counts = off", Severity.WARNING, "track_counts is off"),
        ("default_transaction_read_only = on", Severity.CRITICAL, "neither enqueue nor work"),
        ("default_transaction_isolation = 'repeatable read'", Severity.NOTICE, "is 'repeatable read'"),
        ("statement_timeout = '5s'", Severity.NOTICE, "statement_timeout is 5000 ms"),
        ("lock_timeout = '1s'", Severity.NOTICE, "lock_timeout is 1000 ms"),
        ("idle_in_transaction_session_timeout = '5s'", Severity.NOTICE, "session_timeout is 5000 ms"),
    ],
)
def test_a_setting_of_the_database(there: Client, on_server: str, setting: str, severity: Severity, said: str) -> None:
    with running(on_server) as run:
        run(f"ALTER DATABASE {conninfo_to_dict(on_server)['dbname']} SET {setting}")
        assert said in one(there, "settings", severity)


def test_a_server_that_takes_no_writes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    lines = embedded_module._lines  # a standby is ready when it says "standby"
    monkeypatch.setattr(
        embedded_module, "_lines", lambda path: [line.replace("standby", "ready") for line in lines(path)]
    )
    with EmbeddedPostgres(fsync=False, data_dir=tmp_path / "data") as server:
        with Client(server.dsn) as client:
            client.migrate()
        (server.data_dir / "cluster" / "standby.signal").touch()
        server.restart()
        with Client(server.dsn) as client:
            assert one(client, "server", Severity.CRITICAL) == "the server is a standby, which accepts no writes"


def test_an_old_version(own_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "OLDEST_VERSION", 99)
    assert "the server is Postgres" in one(own_client, "server", Severity.CRITICAL)


def test_connections_that_run_out(there: Client, on_server: str) -> None:
    name = conninfo_to_dict(on_server)["dbname"]
    with running(on_server) as run:
        run(f"ALTER DATABASE {name} CONNECTION LIMIT 1")
        said = one(there, "connections", Severity.CRITICAL)
        assert said == "2 of the 1 connections that this database allows are in use"
        run(f"ALTER DATABASE {name} CONNECTION LIMIT 30")
        assert found(there, "connections") == []


def test_more_threads_than_connections(there: Client, on_server: str) -> None:
    insert = "INSERT INTO pgjobs.worker (id, host, pid, threads, version) VALUES (%s, 'h', 1, 25, '1')"
    with running(on_server) as run:
        run(insert, "a")
        assert found(there, "worker-connections") == []
        run(insert, "b")
        said = one(there, "worker-connections", Severity.WARNING)
    assert (
        said
        == "the 2 worker processes need 56 connections when all their 50 threads run jobs, and the server allows 47"
    )


# --- the way to the server


def test_a_pool_that_is_too_small(fresh_database: str) -> None:
    with ConnectionPool(fresh_database, min_size=0, max_size=3, open=True) as pool:
        client = Client(pool)
        client.migrate()
        assert client.doctor(threads=1) == client.doctor()
        (finding,) = [finding for finding in client.doctor(threads=2) if finding.check == "pool"]
        assert finding.what.startswith("2 worker threads need a connection pool of at least 4")
        with pool.connection(), pool.connection(), pool.connection(), pytest.raises(PoolTimeout):
            pool.getconn(timeout=0.01)
        assert one(client, "pool", Severity.WARNING).startswith("1 times a caller in this process got no connection")


def test_a_pool_of_a_single_connection_suffices_to_look(fresh_database: str) -> None:
    with ConnectionPool(fresh_database, min_size=0, max_size=1, timeout=1.0, open=True) as pool:
        client = Client(pool)
        client.migrate()
        assert [finding for finding in client.doctor() if finding.what.startswith(COULD_NOT_LOOK)] == []


def test_a_pool_of_ours_grows_and_is_never_too_small(own_client: Client) -> None:
    assert [finding for finding in own_client.doctor(threads=1000) if finding.check == "pool"] == []
    assert own_client.pool.max_size < 1000, "looking changes nothing"


@pytest.mark.skipif(PGBOUNCER is None, reason="there is no pgbouncer here")
def test_a_pooler_in_between(there: Client, on_server: str) -> None:
    with pgbouncer(on_server) as port, Client(through(on_server, port)) as client:
        assert "leads through a pooler" in one(client, "pooler", Severity.NOTICE)
        assert [finding.check for finding in client.doctor()] == ["workers", "pooler"]
        with running(on_server) as run:
            assert run("SELECT count(*) FROM pg_stat_activity WHERE query ~ '^LISTEN'") == [(0,)]


class TwoDatabases(PoolSource):
    """A source that leads to another database each second time."""

    def __init__(self, dsn: str, other: str) -> None:
        super().__init__(lambda: OwnPool(dsn))
        self._dsns = [dsn, other]

    def connect(self, dsn: str | None = None) -> AnyConnection:
        self._dsns.reverse()
        return super().connect(self._dsns[1])


def test_notifications_that_do_not_arrive(
    there: Client, on_server: str, own_server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_LISTEN_WAIT", 0.3)
    assert found(there, "listen") == []
    with Client(TwoDatabases(on_server, own_server.dsn)) as client:
        assert "did not arrive" in one(client, "listen", Severity.WARNING)


@pytest.mark.parametrize(
    ("seconds", "severity", "said"),
    [(30.0, Severity.NOTICE, "30 s ahead of"), (-300.0, Severity.WARNING, "300 s behind")],
    ids=["ahead", "behind"],
)
def test_a_wrong_clock(
    there: Client, monkeypatch: pytest.MonkeyPatch, seconds: float, severity: Severity, said: str
) -> None:
    right = server.now
    monkeypatch.setattr(server, "now", lambda: right() + seconds)
    assert said in one(there, "clock", severity)
