"""What the doctor finds about the server and the way to it: each finding is provoked, and found."""

from __future__ import annotations

from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import ConnectionPool, PoolTimeout

from pgjobs import (
    Client,
    Severity,
)
from pgjobs import embedded as embedded_module
from pgjobs.db.cursors import AnyConnection
from pgjobs.db.own_pool import OwnPool
from pgjobs.db.source import PoolSource
from pgjobs.embedded import EmbeddedPostgres
from pgjobs.observe.doctor import server
from tests.db.conftest import running
from tests.db.findings import COULD_NOT_LOOK, found, one
from tests.faults.servers import PGBOUNCER, pgbouncer, through
from tests.waiting import wait_until

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
        assert one(client, "pool", Severity.WARNING).startswith("1 call in this process got no connection")


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
