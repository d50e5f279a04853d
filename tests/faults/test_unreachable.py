"""What a caller is told when no connection can be made, and connections that died while they were idle."""

from __future__ import annotations

import logging
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg_pool import ConnectionPool, PoolTimeout

from pgjobs import CannotConnect, Client, Job, JobFilter, JobState, NewJob, Unique, WorkerPool
from pgjobs.db.connection import has_ended
from pgjobs.db.cursors import AnyConnection
from pgjobs.embedded import EmbeddedPostgres
from tests.conftest import new_database
from tests.faults.ledger import Ledger
from tests.faults.proxy import Proxy
from tests.faults.servers import port_of, through
from tests.waiting import wait_until

OPENSSL = shutil.which("openssl")


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    """One that may be restarted, and where the role `locked` needs a password."""
    with EmbeddedPostgres(tcp=True) as server:
        hba = server.data_dir / "cluster" / "pg_hba.conf"
        hba.write_text(
            "host all locked 127.0.0.1/32 scram-sha-256\nhost all banned 127.0.0.1/32 reject\n" + hba.read_text()
        )
        with psycopg.connect(server.dsn, autocommit=True) as admin:
            admin.execute("CREATE ROLE locked LOGIN PASSWORD 'right'")
            admin.execute("CREATE ROLE nologin")
            admin.execute("SELECT pg_reload_conf()")
        yield server


@pytest.fixture
def dsn(server: EmbeddedPostgres) -> Iterator[str]:
    with new_database(server.dsn) as dsn:
        with Client(dsn) as client:
            client.migrate()
        yield dsn


@pytest.fixture
def client(dsn: str) -> Iterator[Client]:
    with Client(dsn) as client:
        yield client


# --- refused


WRONG = {
    "database": ({"dbname": "nowhere"}, 'database "nowhere" does not exist'),
    "role": ({"user": "nobody_such"}, 'role "nobody_such" does not exist'),
    "password": ({"user": "locked", "password": "wrong"}, 'password authentication failed for user "locked"'),
    "no password": ({"user": "locked"}, "no password supplied"),
    "rejected": ({"user": "banned"}, "pg_hba.conf rejects connection"),
    "no login": ({"user": "nologin"}, "is not permitted to log in"),
    "host": ({"host": "no-such-host.invalid"}, "failed to resolve host 'no-such-host.invalid'"),
    "service": ({"service": "no_such_service"}, 'definition of service "no_such_service" not found'),
    "setting": ({"options": "-c no_such.thing=1 -c nonsense=2"}, "unrecognized configuration parameter"),
}


@pytest.mark.finding("E2")
@pytest.mark.parametrize("wrong", WRONG)
def test_what_another_try_cannot_help_is_raised_at_once_with_the_servers_reason(dsn: str, wrong: str) -> None:
    """`enqueue(None)` waited for 30 seconds, and said only that it had waited."""
    changed, reason = WRONG[wrong]
    with Client(make_conninfo(dsn, **changed)) as client:
        acts: list[Callable[[], object]] = [
            lambda: client.enqueue(None, {}, kind="any"),
            lambda: client.enqueue(None, {}, kind="any", unique=Unique()),
            lambda: client.enqueue_many(None, [NewJob({}, kind="any")], returning=False),
            client.list_jobs,
            client.pool.getconn,
        ]
        for act in acts:
            began = time.monotonic()
            with pytest.raises(CannotConnect) as raised:
                act()
            assert time.monotonic() - began < 5
            assert reason in str(raised.value)
            assert isinstance(raised.value, psycopg.OperationalError)


@pytest.mark.finding("E2")
def test_the_same_where_a_framework_makes_the_connections(dsn: str) -> None:
    """Beside an engine of SQLAlchemy it was the same."""
    from sqlalchemy import create_engine

    from pgjobs.contrib.sqlalchemy import SQLAlchemySource

    nowhere = make_conninfo(dsn, dbname="nowhere")
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(nowhere))
    with Client(SQLAlchemySource(engine)) as client:
        began = time.monotonic()
        with pytest.raises(CannotConnect, match='database "nowhere" does not exist'):
            client.enqueue(None, {}, kind="any")
        assert time.monotonic() - began < 5


@pytest.mark.finding("E2")
def test_all_that_wait_for_a_refused_connection_are_told(dsn: str) -> None:
    """Each waited for 30 seconds."""
    told: list[BaseException] = []
    with Client(make_conninfo(dsn, dbname="nowhere")) as client:

        def enqueue() -> None:
            try:
                client.enqueue(None, {}, kind="any")
            except BaseException as error:
                told.append(error)

        threads = [threading.Thread(target=enqueue) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
    assert len(told) == 20
    assert {type(error) for error in told} == {CannotConnect}
    assert len(set(map(id, told))) == 20, "each has an error of its own, with the traceback of its own thread"


@pytest.mark.finding("E2")
def test_a_refusal_that_is_mended_is_forgotten(server: EmbeddedPostgres, dsn: str) -> None:
    """What was refused once is asked for again."""
    later = make_conninfo(dsn, dbname="comes_later")
    with Client(later) as client, psycopg.connect(server.dsn, autocommit=True) as admin:
        with pytest.raises(CannotConnect):
            client.enqueue(None, {}, kind="any")
        admin.execute("CREATE DATABASE comes_later")
        client.migrate()
        client.enqueue(None, {}, kind="any")
        assert len(client.list_jobs().jobs) == 1


# --- away


@pytest.mark.finding("E2")
def test_a_server_that_is_away_is_waited_for_and_the_error_says_why(dsn: str) -> None:
    """The error said only that it had waited."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        away = through(dsn, unused.getsockname()[1])
        with Client(away) as client:
            client.pool.timeout = 1.5
            began = time.monotonic()
            with pytest.raises(
                PoolTimeout, match=r"after 1\.50 sec; the last try to connect failed: .*refused"
            ) as raised:
                client.enqueue(None, {}, kind="any")
            assert time.monotonic() - began > 1.4
            assert isinstance(raised.value.__cause__, psycopg.OperationalError)


@pytest.mark.finding("E2")
def test_an_enqueue_in_a_restart_waits_for_the_server(server: EmbeddedPostgres, client: Client) -> None:
    """Once the pause between two tries had grown, an enqueue waited for long after the server was there again."""
    client.enqueue(None, {}, kind="any")
    with client.pool.connection() as idle:
        pass
    server.kill()
    wait_until(partial(has_ended, idle))  # its server process outlives the postmaster for a moment
    answered: list[float] = []

    def enqueue() -> None:
        client.enqueue(None, {}, kind="any")
        answered.append(time.monotonic())

    waiting = [threading.Thread(target=enqueue) for _ in range(4)]
    for thread in waiting:
        thread.start()
    failed = client.pool.get_stats
    wait_until(lambda: failed().get("connections_errors", 0) >= 3, timeout=20)
    server.start()
    started = time.monotonic()
    for thread in waiting:
        thread.join(20)
    assert len(answered) == 4
    assert max(answered) - started < 5
    assert len(client.list_jobs().jobs) == 5


@pytest.mark.finding("E2")
def test_nobody_tries_to_connect_when_nobody_waits(dsn: str) -> None:
    """The pool went on for five minutes after the last caller had given up, and logged each try."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with Client(through(dsn, unused.getsockname()[1])) as client:
            client.pool.timeout = 0.5
            for _ in range(3):
                with pytest.raises(PoolTimeout):
                    client.enqueue(None, {}, kind="any")
            tried = client.pool.get_stats
            wait_until(lambda: tried()["pool_size"] == 0, timeout=10)
            before = tried()["connections_num"]
            time.sleep(2.5)  # longer than the longest pause between two tries
            assert tried()["connections_num"] == before


# --- died while idle


def fill(pool: ConnectionPool[Any], connections: int) -> None:
    """Have so many connections idle in the pool."""
    with ExitStack() as held:
        for _ in range(connections):
            held.enter_context(pool.connection())
    wait_until(lambda: pool.get_stats()["pool_available"] >= connections)


@pytest.mark.finding("E2")
@pytest.mark.parametrize("mode", ["fast", "immediate"])
@pytest.mark.parametrize("pool", ["own", "theirs"])
def test_connections_that_died_while_they_were_idle_fail_no_enqueue(
    server: EmbeddedPostgres, dsn: str, mode: Any, pool: str
) -> None:
    """After a restart of the server, as many enqueues in a row failed as there were idle connections."""
    with ExitStack() as opened:
        theirs = opened.enter_context(ConnectionPool(dsn, min_size=0, max_size=4, open=True))
        client = opened.enter_context(Client(dsn if pool == "own" else theirs))
        fill(client.pool, 4)
        server.restart(mode)
        for _ in range(4):
            client.enqueue(None, {}, kind="any")
        fill(client.pool, 4)
        server.restart(mode)
        client.enqueue_many(None, [NewJob({}, kind="any")] * 2)
        client.enqueue(None, {}, kind="any", unique=Unique())
        assert len(client.list_jobs().jobs) == 7


@contextmanager
def tls_in_front_of(server: EmbeddedPostgres, directory: Path) -> Iterator[int]:
    """The port of a relay that speaks TLS with the clients, since the server may have been built without it."""
    key, crt = directory / "server.key", directory / "server.crt"
    command = [OPENSSL or "", "req", "-new", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(crt)], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(crt, key)
    listening = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        source.close()

    def accept() -> None:
        with suppress(OSError):  # closed
            while True:
                plain, _ = listening.accept()
                plain.recv(8)  # asks whether it speaks TLS
                plain.sendall(b"S")
                client = context.wrap_socket(plain, server_side=True)
                try:
                    relayed = socket.create_connection(("127.0.0.1", port_of(server.dsn)))
                except OSError:
                    client.close()
                    continue
                for ends in ((client, relayed), (relayed, client)):
                    threading.Thread(target=pump, args=ends, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listening.getsockname()[1]
    finally:
        listening.close()


@pytest.mark.finding("E2")
@pytest.mark.skipif(OPENSSL is None, reason="no openssl to make a certificate")
def test_the_same_over_tls(server: EmbeddedPostgres, dsn: str, tmp_path: Path) -> None:
    """Over TLS an idle socket may be readable, and its connection live."""
    with (
        tls_in_front_of(server, tmp_path) as port,
        Client(make_conninfo(through(dsn, port), sslmode="require", gssencmode="disable")) as client,
    ):
        fill(client.pool, 3)
        with client.pool.connection() as conn:
            assert conn.pgconn.ssl_in_use
            before = conn.info.backend_pid
        for _ in range(3):
            client.enqueue(None, {}, kind="any")
        with ExitStack() as held:
            pids = [held.enter_context(client.pool.connection()).info.backend_pid for _ in range(3)]
        assert before in pids, "those that live are kept"
        server.restart()
        for _ in range(3):
            client.enqueue(None, {}, kind="any")
        assert len(client.list_jobs().jobs) == 6


@pytest.mark.finding("E2")
def test_what_a_server_says_to_an_idle_connection_does_not_end_it(client: Client, dsn: str) -> None:
    """A notice or a notification that waits is no end."""
    heard: list[str] = []
    with client.pool.connection() as conn:
        pid = conn.info.backend_pid
        conn.autocommit = True
        conn.execute("LISTEN news")
        conn.autocommit = False
        conn.add_notify_handler(lambda came: heard.append(came.payload))
    with psycopg.connect(dsn, autocommit=True) as other:
        for number in range(50):
            other.execute("SELECT pg_notify('news', %s)", [str(number)])
    client.enqueue(None, {}, kind="any")
    with client.pool.connection() as conn:
        assert conn.info.backend_pid == pid
        conn.execute("SELECT 1")
    assert heard == [str(number) for number in range(50)], "none is lost to the application"


# --- lost while something was sent


@pytest.mark.finding("E2")
@pytest.mark.parametrize("cut", ["before", "after"])
@pytest.mark.parametrize("way", ["one statement", "transaction", "many", "copy"])
def test_an_error_after_something_was_sent_says_that_the_job_may_exist(ledger: Ledger, cut: Any, way: str) -> None:
    """The error did not say that the answer was lost, and not the job."""
    import re

    with (
        Proxy(port_of(ledger.dsn)) as proxy,
        Client(through(ledger.dsn, proxy.port), schema=ledger.client.schema) as mine,
    ):
        ways: dict[str, tuple[Callable[[], object], bytes]] = {
            "one statement": (lambda: mine.enqueue(None, {}, kind="any"), b"INSERT"),
            "transaction": (lambda: mine.enqueue(None, {}, kind="any", unique=Unique()), b"COMMIT"),
            "many": (lambda: mine.enqueue_many(None, [NewJob({}, kind="any")] * 3), b"INSERT"),
            "copy": (lambda: mine.enqueue_many(None, [NewJob({}, kind="any")] * 30), b"COMMIT"),
        }
        act, sent = ways[way]
        fill(mine.pool, 1)
        proxy.trap(re.compile(sent), cut)
        with pytest.raises(psycopg.OperationalError, match="the job may exist or not") as raised:
            act()
        assert proxy.sprung.is_set()
        assert "look before you enqueue it again" in str(raised.value)
    there = len(ledger.client.list_jobs(JobFilter(kinds=["any"])).jobs)
    assert there == (0 if cut == "before" else {"many": 3, "copy": 30}.get(way, 1))


@pytest.mark.finding("E2")
def test_the_private_words_of_psycopg_pool_on_which_the_clients_own_pool_rests(dsn: str) -> None:
    """A canary: without these a refusal is told after the timeout only."""
    from psycopg_pool import pool as theirs

    assert {"_add_connection", "_connect", "_maybe_grow_pool", "reconnect_failed"} <= set(dir(ConnectionPool))
    assert {"wait", "fail", "error"} <= {*dir(theirs.WaitingClient), *theirs.WaitingClient.__slots__}
    with ConnectionPool(dsn, min_size=0, max_size=1, open=True) as pool:
        assert len(pool._waiting) == pool._nconns == 0
        assert not pool._growing
        assert pool._lock is not None


# --- threads that wait for a connection


@pytest.mark.finding("E4")
@pytest.mark.parametrize("ends", ["timeout", "stop"])
def test_a_thread_that_waits_for_a_connection_is_not_stuck_in_its_handler(
    server: EmbeddedPostgres, dsn: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """Threads were reported stuck, "its handler ignores that it is to end", that waited for a connection."""
    from pgjobs.execution.attempt import GracePeriods

    monkeypatch.setattr("pgjobs.execution.attempt.AFTER_TIMEOUT", GracePeriods(interrupted=0.1, severed=0.3, stuck=0.6))
    caplog.set_level(logging.INFO)
    runs, cut = threading.Event(), threading.Event()

    def handler(tx: AnyConnection, job: Any) -> None:
        runs.set()
        assert cut.wait(10)

    with Client(dsn) as client:
        client.pool.timeout = 3.0
        client.enqueue(None, {}, kind="any")
        timeout = timedelta(seconds=0.5) if ends == "timeout" else None
        pool = WorkerPool(client, {"any": handler}, queues={"default": 1}, timeout=timeout, listen=False).start()
        assert runs.wait(10)
        server.kill()
        cut.set()
        if ends == "stop":
            began = time.monotonic()
            assert pool.stop(timedelta(seconds=0.2)) is False
            assert time.monotonic() - began < 6
        else:
            wait_until(lambda: "could not be recorded" in caplog.text, timeout=20)
            assert "its handler is over" not in caplog.text, "nothing is wrong with it"
            pool.stop(timedelta(0))
        server.start()
    assert "ignores that it is to end" not in caplog.text
    assert ends != "stop" or "its handler is over, but there is no connection" in caplog.text


@pytest.mark.finding("E4")
def test_a_network_that_passes_nothing_on_costs_one_thread_to_cancel_in(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread was started each quarter of a second for each statement that was to be cancelled."""
    from pgjobs.execution.attempt import GracePeriods

    monkeypatch.setattr(
        "pgjobs.execution.attempt.AFTER_TIMEOUT", GracePeriods(interrupted=3.0, severed=3.0, stuck=60.0)
    )
    most = 0

    def handler(tx: AnyConnection, job: Any) -> None:
        tx.execute("SELECT pg_sleep(60)")

    def cancelling() -> int:
        nonlocal most
        most = max(most, sum(thread.name == "pgjobs/cancel" for thread in threading.enumerate()))
        return most

    with (
        Proxy(port_of(ledger.dsn)) as proxy,
        Client(through(ledger.dsn, proxy.port), schema=ledger.client.schema) as mine,
    ):
        jobs: list[Job[Any]] = [ledger.client.enqueue(None, {}, kind="any") for _ in range(4)]
        pool = WorkerPool(mine, {"any": handler}, queues={"default": 4}, timeout=timedelta(seconds=1)).start()
        running = JobState.RUNNING
        wait_until(lambda: all((found := ledger.client.get(job.id)) and found.state is running for job in jobs))
        proxy.stall()
        wait_until(cancelling, timeout=10)
        give_up = time.monotonic() + 2
        while time.monotonic() < give_up:
            cancelling()
            time.sleep(0.02)
        assert most == 1
        proxy.cut()
        proxy.flow()
        pool.stop(timedelta(0))
