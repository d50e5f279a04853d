"""The listener and a peer that has gone silent: no reset, no end of file, nothing but no answers."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgjobs import Client
from pgjobs.db.channel import listen, probe
from pgjobs.db.source import defaults_for
from pgjobs.wakeup.listener import Listener
from tests.samples import OF_THIS_DATABASE
from tests.waiting import wait_until


class Relay:
    """Stands between a client and the server, and can stop handing on what it reads."""

    def __init__(self, dsn: str) -> None:
        server = conninfo_to_dict(dsn)
        self._host, self._port = str(server.get("host", "127.0.0.1")), int(server.get("port") or 5432)
        self._door = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = [self._door]
        self.dsn = make_conninfo(dsn, host="127.0.0.1", port=self._door.getsockname()[1])
        self.silent = False
        self.accepted = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client = self._door.accept()[0]
                server = self._connect()
                self._open += [client, server]
                self.accepted += 1
                for source, target in ((client, server), (server, client)):
                    threading.Thread(target=self._hand_on, args=(source, target), daemon=True).start()

    def _connect(self) -> socket.socket:
        if not self._host.startswith("/"):
            return socket.create_connection((self._host, self._port))
        wire = socket.socket(socket.AF_UNIX)
        wire.connect(f"{self._host}/.s.PGSQL.{self._port}")
        return wire

    def _hand_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if not self.silent:
                    target.sendall(data)
            if not self.silent:
                target.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def relay(database: str) -> Iterator[Relay]:
    relay = Relay(database)
    yield relay
    relay.close()


@pytest.fixture
def listening(client: Client, relay: Relay) -> Iterator[Callable[..., Listener]]:
    """Starts a listener behind the relay; what it hears goes into a list."""
    started: list[Listener] = []

    def start(heard: list[str | None], **options: Any) -> Listener:
        def connect() -> psycopg.Connection[Any]:
            return psycopg.connect(relay.dsn, autocommit=True, **{**defaults_for(relay.dsn), **options})

        listener = Listener(client.schema, connect, wake=heard.append, name="listener")
        listener.start()
        started.append(listener)
        return listener

    yield start
    for listener in started:
        listener.stop()


def notify(client: Client, text: str) -> None:
    with client.pool.connection() as conn:
        conn.execute("SELECT pg_notify(%s, %s)", [client.queries.channel, text])


@pytest.mark.conformance(326)
def test_a_peer_that_has_gone_silent_is_noticed_and_the_listener_hears_again(
    client: Client, relay: Relay, listening: Callable[..., Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str | None] = []
    with monkeypatch.context() as impatient:  # it may take a slow answer for none, until the peer speaks again
        impatient.setattr("pgjobs.wakeup.listener._SILENCE", 0.2)
        impatient.setattr("pgjobs.wakeup.listener._ANSWER", 0.2)
        listener = listening(heard, connect_timeout=2)
        wait_until(lambda: listener.listening)
        relay.silent = True
        wait_until(lambda: not listener.listening)
    notify(client, "lost")
    before = len(heard)
    relay.silent = False
    wait_until(lambda: heard[before:] == [None], timeout=20)  # it looks for what it has missed
    notify(client, "mail")
    wait_until(lambda: heard[before:] == [None, "mail"])
    assert relay.accepted >= 2


@pytest.mark.conformance(326)
def test_a_peer_that_is_silent_from_the_first_statement_on_is_noticed(
    client: Client, relay: Relay, listening: Callable[..., Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgjobs.wakeup.listener._ANSWER", 0.2)
    silences = iter([True, False])

    def silent_at_first(conn: psycopg.Connection[Any], schema: str) -> None:
        relay.silent = next(silences, False)
        listen(conn, schema)

    monkeypatch.setattr("pgjobs.wakeup.listener.listen", silent_at_first)
    heard: list[str | None] = []

    def speak() -> None:
        wait_until(lambda: relay.silent)
        wait_until(lambda: relay.accepted >= 2)
        monkeypatch.setattr("pgjobs.wakeup.listener._ANSWER", 5.0)  # the usual: whoever speaks may be slow
        relay.silent = False

    threading.Thread(target=speak, daemon=True).start()
    listening(heard, connect_timeout=2)
    wait_until(lambda: heard == [None], timeout=20)


def test_a_quiet_peer_that_answers_keeps_its_connection_and_no_notification_is_lost(
    client: Client, relay: Relay, listening: Callable[..., Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgjobs.wakeup.listener._SILENCE", 0.02)
    probes = list[float]()

    def noted_probe(conn: psycopg.Connection[Any], schema: str) -> None:
        probes.append(time.monotonic())
        notify(client, f"{len(probes)}")  # arrives together with the answer
        probe(conn, schema)

    monkeypatch.setattr("pgjobs.wakeup.listener.probe", noted_probe)
    heard: list[str | None] = []
    listening(heard)
    wait_until(lambda: len(heard) > 20)
    assert heard[:21] == [None, *map(str, range(1, 21))]
    assert relay.accepted == 1


def test_a_silent_peer_is_noticed_within_fifteen_seconds_by_default() -> None:
    """And one that does not even answer a connect after ten."""
    from pgjobs.wakeup import listener

    assert listener._SILENCE + listener._ANSWER == 15
    assert defaults_for("postgresql://localhost/app")["connect_timeout"] == 10
    assert "connect_timeout" not in defaults_for("postgresql://localhost/app?connect_timeout=3")


@pytest.mark.finding("W3")
def test_a_listener_is_not_ended_for_being_idle(
    client: Client, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A role or server may have an idle_session_timeout, and the session of the listener is idle most of its life."""
    dsn = make_conninfo(database, options="-c idle_session_timeout=200ms", application_name="idle one")
    listener = Listener(
        client.schema, lambda: psycopg.connect(dsn, autocommit=True), wake=lambda queue: None, name="ear"
    )
    listener.start()
    with psycopg.connect(database, autocommit=True) as admin:
        idle = f"SELECT count(*) FROM {OF_THIS_DATABASE} AND application_name = 'idle one' AND state = 'idle' "
        try:
            wait_until(lambda: listener.listening)
            wait_until(lambda: admin.execute(idle + "AND now() - state_change > interval '1 s'").fetchone() == (1,))
        finally:
            listener.stop()
    assert caplog.text == ""
