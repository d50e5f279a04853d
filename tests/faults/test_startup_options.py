"""The settings that connections of a client's own pool get when they are opened, if they lead straight to a server."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg_pool import ConnectionPool
from sqlalchemy import create_engine

from pgjobs import Client, Job, JobState, WorkerPool, constant
from pgjobs.contrib.sqlalchemy import SQLAlchemySource
from pgjobs.db.cursors import AnyConnection
from pgjobs.db.own_pool import OwnPool
from pgjobs.db.startup_options import is_refusal_of_options
from pgjobs.embedded import EmbeddedPostgres
from tests.conftest import new_database
from tests.faults.proxy import Proxy
from tests.faults.servers import PGBOUNCER, pgbouncer, port_of, socket_dsn, through
from tests.waiting import wait_until

needs_pgbouncer = pytest.mark.skipif(PGBOUNCER is None, reason="there is no pgbouncer here")

CHECK = {"client_connection_check_interval": "500ms"}
TCP = {
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "25000",
}
TIMEOUTS = ("idle_in_transaction_session_timeout", "statement_timeout", "lock_timeout")


@pytest.fixture
def dsn(fault_server: EmbeddedPostgres) -> Iterator[str]:
    with new_database(fault_server.dsn) as dsn:
        with Client(dsn) as client:
            client.migrate()
        yield dsn


@pytest.fixture
def server_defaults(dsn: str) -> dict[str, str]:
    """What a connection without options has."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        return shown(conn)


def shown(conn: AnyConnection, *more: str) -> dict[str, str]:
    def show(name: str) -> str:
        row = conn.execute(f"SHOW {name}".encode()).fetchone()
        assert row is not None
        return str(row[0])

    return {name: show(name) for name in (*CHECK, *TCP, *more)}


def of_pool(client: Client, *more: str) -> dict[str, str]:
    with client.pool.connection() as conn:
        return shown(conn, *more)


def start_and_stop(client: Client) -> None:
    """What a worker process does first."""
    with WorkerPool(client, {"any": lambda tx, job: None}, listen=False, queues={"default": 1}):
        pass


def run_job(client: Client) -> None:
    """One job from beginning to end, by a worker pool."""
    job: Job[Any] = client.enqueue(None, {}, kind="any")

    def state() -> JobState:
        found = client.get(job.id)
        assert found is not None
        return found.state

    pool = WorkerPool(
        client, {"any": lambda tx, job: None}, queues={"default": 2}, listen=False, backoff=constant(timedelta(0)),
        poll_interval=timedelta(seconds=0.1),
    )  # fmt: skip
    with pool:
        wait_until(lambda: state() == JobState.COMPLETED)


def test_connections_of_a_worker_process_have_the_settings_and_a_reset_keeps_them(dsn: str) -> None:
    with Client(dsn) as client:
        start_and_stop(client)
        with client.pool.connection() as conn:
            assert shown(conn) == {**CHECK, **TCP}
            conn.execute("SET client_connection_check_interval = 0; SET tcp_user_timeout = 1; RESET ALL")
            assert shown(conn) == {**CHECK, **TCP}


def test_the_pool_stays_an_applications_pool_with_the_servers_own_timeouts(fault_server: EmbeddedPostgres) -> None:
    with new_database(fault_server.dsn) as dsn, psycopg.connect(dsn, autocommit=True) as admin:
        database = admin.info.dbname
        for nth, name in enumerate(TIMEOUTS, 71):
            admin.execute(f"ALTER DATABASE {database} SET {name} = '{nth}s'".encode())
        with Client(dsn) as client:
            client.migrate()
            start_and_stop(client)
            found = of_pool(client, *TIMEOUTS, "application_name")
    assert found == {**CHECK, **TCP} | {name: f"{nth}s" for nth, name in enumerate(TIMEOUTS, 71)} | {
        "application_name": "pgjobs"
    }


def test_a_process_that_only_enqueues_connects_once_and_asks_nothing(
    dsn: str, server_defaults: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise AssertionError("nothing is to be learnt here")

    monkeypatch.setattr(OwnPool, "learn_options", fail)
    with Client(dsn) as client:
        client.enqueue(None, {}, kind="any")
        client.enqueue(None, {}, kind="any")
        assert client.pool.get_stats()["connections_num"] == 1
        assert of_pool(client) == server_defaults


def test_connections_that_were_there_before_the_workers_are_replaced(dsn: str, server_defaults: dict[str, str]) -> None:
    with Client(dsn) as client:
        held, idle = client.pool.getconn(), client.pool.getconn()
        client.pool.putconn(idle)
        assert shown(held) == server_defaults
        start_and_stop(client)
        assert shown(held) == server_defaults, "it is in use"
        assert idle.closed
        held.rollback()
        client.pool.putconn(held)
        assert held.closed
        assert of_pool(client) == {**CHECK, **TCP}


def test_the_settings_of_the_applications_connection_string_win(dsn: str) -> None:
    theirs = make_conninfo(dsn, options=r"-c tcp_user_timeout=7000 -c work_mem=5MB --application_name=a\ b")
    with Client(theirs) as client:
        start_and_stop(client)
        with client.pool.connection() as conn:
            expected = {**CHECK, **TCP, "tcp_user_timeout": "7000", "work_mem": "5MB"}
            assert shown(conn, "work_mem") == expected
            conn.execute("RESET ALL")
            assert shown(conn, "work_mem") == expected


def test_the_settings_of_pgoptions_win(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGOPTIONS", "-c tcp_keepalives_idle=77 -c work_mem=5MB")
    with Client(dsn) as client:
        start_and_stop(client)
        assert of_pool(client, "work_mem") == {**CHECK, **TCP, "tcp_keepalives_idle": "77", "work_mem": "5MB"}


def test_a_unix_socket_gets_no_settings_of_tcp(fault_server: EmbeddedPostgres, dsn: str) -> None:
    name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    with Client(make_conninfo(socket_dsn(fault_server), dbname=name)) as client:
        start_and_stop(client)
        assert of_pool(client)["client_connection_check_interval"] == "500ms"
        options = client.pool.kwargs["options"]  # type: ignore[index]
        assert "tcp" not in options


def twice(dsn: str, monkeypatch: pytest.MonkeyPatch, directory: Path) -> str:
    return make_conninfo(dsn, host="127.0.0.1,127.0.0.1", port=f"{port_of(dsn)},{port_of(dsn)}")


def twice_by_environment(dsn: str, monkeypatch: pytest.MonkeyPatch, directory: Path) -> str:
    monkeypatch.setenv("PGHOST", "127.0.0.1,127.0.0.1")
    given = psycopg.conninfo.conninfo_to_dict(dsn)
    return " ".join(f"{name}={value}" for name, value in given.items() if name != "host")


def twice_by_service(dsn: str, monkeypatch: pytest.MonkeyPatch, directory: Path) -> str:
    file = directory / "services"
    given = psycopg.conninfo.conninfo_to_dict(dsn)
    given["host"] = "127.0.0.1,127.0.0.1"
    file.write_text("[twice]\n" + "".join(f"{name}={value}\n" for name, value in given.items()))
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    return "service=twice"


@pytest.mark.parametrize("name_hosts", [twice, twice_by_environment, twice_by_service])
def test_several_hosts_get_none_since_each_may_be_another_kind_of_server(
    dsn: str,
    server_defaults: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name_hosts: Callable[[str, pytest.MonkeyPatch, Path], str],
) -> None:
    with Client(name_hosts(dsn, monkeypatch, tmp_path)) as client:
        start_and_stop(client)
        assert of_pool(client) == server_defaults
        run_job(client)


def test_pools_of_applications_and_frameworks_get_none(dsn: str, server_defaults: dict[str, str]) -> None:
    with ConnectionPool(dsn, min_size=4, max_size=4, open=True) as theirs, Client(theirs) as client:
        start_and_stop(client)
        assert of_pool(client) == server_defaults
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn))
    with Client(SQLAlchemySource(engine)) as framed:
        start_and_stop(framed)
        assert of_pool(framed) == server_defaults
        assert "options" not in framed.pool.kwargs  # type: ignore[operator]
    engine.dispose()


def test_connections_outside_the_pool_get_none(dsn: str, server_defaults: dict[str, str]) -> None:
    """A server must not cancel the build of an index because the process that began it is gone."""
    with Client(dsn) as client:
        start_and_stop(client)
        with client.source.connect() as conn:
            assert shown(conn) == server_defaults


# --- poolers


@needs_pgbouncer
@pytest.mark.parametrize("ignores", ["extra_float_digits", "extra_float_digits,options"])
def test_none_are_sent_through_a_pooler(dsn: str, caplog: pytest.LogCaptureFixture, ignores: str) -> None:
    caplog.set_level(logging.INFO)
    with pgbouncer(dsn, ignores=ignores) as port, Client(through(dsn, port)) as client:
        run_job(client)
        assert "options" not in client.pool.kwargs  # type: ignore[operator]
    assert "startup" not in caplog.text, "none were tried"


@needs_pgbouncer
def test_a_pooler_that_comes_in_between_and_refuses_them_gets_none_from_then_on(
    dsn: str, server_defaults: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pgjobs")
    with pgbouncer(dsn) as pooler, Proxy(port_of(dsn)) as proxy, Client(through(dsn, proxy.port)) as client:
        start_and_stop(client)
        assert of_pool(client) == {**CHECK, **TCP}
        proxy.lead_to(pooler)
        proxy.cut()
        with client.pool.connection() as first, client.pool.connection() as second:
            assert [shown(conn) for conn in (first, second)] == [server_defaults] * 2
        client.enqueue(None, {}, kind="any")
    said = [record for record in caplog.records if "startup options" in record.message]
    assert [record.levelname for record in said] == ["INFO"], "once"
    assert "unsupported startup parameter" in said[0].message


@needs_pgbouncer
def test_a_pooler_that_comes_in_between_and_swallows_them_does_no_harm(
    dsn: str, server_defaults: dict[str, str]
) -> None:
    with (
        pgbouncer(dsn, ignores="extra_float_digits,options") as pooler,
        Proxy(port_of(dsn)) as proxy,
        Client(through(dsn, proxy.port)) as client,
    ):
        start_and_stop(client)
        proxy.lead_to(pooler)
        proxy.cut()
        assert of_pool(client) == server_defaults, "it swallowed them"
        seen: list[str] = []
        jobs: list[Job[Any]] = [client.enqueue(None, {}, kind="any") for _ in range(3)]

        def handler(tx: AnyConnection, job: object) -> None:
            seen.append(shown(tx)["tcp_user_timeout"])

        for _ in jobs:
            assert WorkerPool(client, {"any": handler}).work_one()
        assert seen == ["25000"] * 3, "each job has the settings all the same"


def test_a_server_that_refuses_them_gets_none(dsn: str, server_defaults: dict[str, str]) -> None:
    """As one would that cannot notice that a client is gone, after a failover for example."""
    pool = OwnPool(dsn)
    pool.kwargs = {"options": "-c client_connection_check_interval=never"}
    with pool, pool.connection() as conn:
        assert shown(conn) == server_defaults


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("FATAL:  unsupported startup parameter: options", True),
        ("FATAL:  unsupported startup parameter in options: tcp_user_timeout", True),
        ("FATAL:  Feature not supported: RDS Proxy currently doesn't support command-line options.", True),
        ('FATAL:  invalid value for parameter "client_connection_check_interval": 500', True),
        ('FATAL:  unrecognized configuration parameter "tcp_user_timeout"', True),
        ('connection to server at "options.example.com" (1.2.3.4), port 5432 failed: Connection refused', False),
        ('FATAL:  password authentication failed for user "options"', False),
        ("FATAL:  the database system is starting up", False),
    ],
)
def test_only_what_may_be_a_refusal_of_options_is_tried_again_without(text: str, refused: bool) -> None:
    assert is_refusal_of_options(psycopg.OperationalError(text)) is refused
    assert not is_refusal_of_options(ValueError(text))
