"""What `pgjobs work` tells others of itself: health endpoints, systemd, and its log."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgjobs import Client
from pgjobs.embedded import EmbeddedPostgres
from tests.acceptance.work_command import APP, SOON, Place, Work, gate
from tests.conftest import Connect, in_memory
from tests.faults.proxy import Proxy
from tests.faults.servers import port_of, through
from tests.waiting import wait_until

AWAY = 1  # a port on which no server listens


def get(work: Work, path: str, *, method: str = "GET") -> tuple[int, Any]:
    """The status and the body that the health server answers."""
    work.wait_for("health: http://127.0.0.1:")
    (port,) = re.findall(r"health: http://127\.0\.0\.1:(\d+)/livez and /readyz", work.log)
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            body = answer.read()
            return answer.status, json.loads(body) if body else None
    except urllib.error.HTTPError as error:
        with error:
            body = error.read()
            return error.code, json.loads(body) if body else None


def test_it_is_ready_when_every_process_is(place: Place) -> None:
    place.write(f"import time\nwhile open('slow').read() != 'go': time.sleep(0.01)\n{APP}")
    place.write("", "slow")
    with place.work("--processes", "2", "--health", "127.0.0.1:0") as work:
        assert get(work, "/livez")[0] == 200
        loading = ["process 1: loading", "process 2: loading"]  # "not started yet" for a moment
        wait_until(lambda: get(work, "/readyz")[1]["problems"] == loading, SOON)
        status, body = get(work, "/readyz")
        assert (status, body["ready"]) == (503, False)
        place.write("go", "slow")
        first, _ = work.wait_ready(2)
        status, body = get(work, "/readyz?verbose")
        assert (status, body["ready"], body["problems"]) == (200, True, [])
        assert [(each["process"], each["state"]) for each in body["processes"]] == [(1, "ready"), (2, "ready")]
        assert body["processes"][0]["pid"] == first
        assert get(work, "/readyz", method="HEAD") == (200, None)
        place.write("", "slow")
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: get(work, "/readyz")[0] == 503)
        assert "process 1" in get(work, "/readyz")[1]["problems"][0]
        assert get(work, "/livez")[0] == 200


def test_other_paths_do_not_exist(place: Place) -> None:
    with place.work("--health", "127.0.0.1:0") as work:
        for path in ("/", "/livez/", "/readyz2", "/../livez"):
            assert get(work, path) == (404, {"error": "there are only /livez, /readyz, /metrics"})
        assert get(work, "/livez")[1] == {"live": True, "pid": work.process.pid}


def test_a_client_that_says_nothing_keeps_no_other_from_an_answer(place: Place) -> None:
    with place.work("--health", "127.0.0.1:0") as work:
        get(work, "/livez")
        (port,) = re.findall(r"http://127\.0\.0\.1:(\d+)/", work.log)
        silent = [socket.create_connection(("127.0.0.1", int(port))) for _ in range(20)]
        assert get(work, "/livez")[0] == 200
        for each in silent:
            each.close()
        closing = HTTPConnection("127.0.0.1", int(port))
        closing.putrequest("GET", "/livez")
        closing.endheaders()
        closing.close()
        assert get(work, "/livez")[0] == 200
        assert "Traceback" not in work.log


def test_a_process_that_stands_still_is_not_ready(place: Place) -> None:
    with place.work("--health", "127.0.0.1:0") as work:
        (pid,) = work.wait_ready()
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: get(work, "/readyz")[0] == 503, SOON)
        (problem,) = get(work, "/readyz")[1]["problems"]
        assert re.fullmatch(r"process 1: it has not reported for \d+ s", problem)
        os.kill(pid, signal.SIGCONT)
        wait_until(lambda: get(work, "/readyz")[0] == 200)


def test_while_it_stops_it_is_live_and_not_ready(place: Place, connect: Connect) -> None:
    with gate(connect) as (locked, open_gate), place.work("--health", "127.0.0.1:0") as work:
        work.wait_ready()
        job = place.enqueue("wait for the gate", gate=locked)
        wait_until(lambda: place.starts(job))
        work.signal(signal.SIGTERM)
        work.wait_for("SIGTERM: stopping")
        status, body = get(work, "/readyz")
        assert (status, body["problems"][0]) == (503, "stopping")
        assert get(work, "/livez")[0] == 200
        open_gate()
        assert work.process.wait(SOON) == 0


def test_while_it_stops_it_tells_which_processes_have_ended(place: Place, connect: Connect) -> None:
    """It said that they were not started yet."""
    options = ("--processes", "2", "--health", "127.0.0.1:0")
    with gate(connect) as (locked, open_gate), place.work(*options) as work:
        pids = work.wait_ready(2)
        job = place.enqueue("wait for the gate", gate=locked)
        wait_until(lambda: place.starts(job))
        ((_, pid),) = place.starts(job)
        runs = pids.index(pid) + 1
        work.signal(signal.SIGTERM)
        said = ["stopping", f"process {runs}: stopping: its parent stops it"]
        said.insert(3 - runs, f"process {3 - runs}: exited with code 0")
        wait_until(lambda: get(work, "/readyz")[1]["problems"] == said, SOON)
        open_gate()
        assert work.process.wait(SOON) == 0


def test_an_address_that_is_taken_is_refused_before_anything_starts(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with place.work("--health", f"127.0.0.1:{port}") as work:
            assert work.process.wait(SOON) == 1
            assert work.told(f"pgjobs: error: cannot serve the health endpoints on 127.0.0.1:{port}: ")
            assert "starting" not in work.log


# --- the database goes away


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    """One that a relay can lead to."""
    server = EmbeddedPostgres(tcp=True, fsync=False)
    with in_memory():
        server.start()
    yield server
    server.stop()


@contextmanager
def relayed(server: EmbeddedPostgres, directory: Path) -> Iterator[tuple[Place, Proxy]]:
    """An application that reaches its database through a relay."""
    schema = f"test_{secrets.token_hex(4)}"
    with (
        Client(server.dsn, schema=schema) as client,
        Proxy(port_of(server.dsn)) as relay,
        psycopg.connect(server.dsn, autocommit=True) as conn,
    ):
        client.migrate()
        place = Place(directory, through(server.dsn, relay.port), client, conn)
        place.make_tables()
        place.write(APP)
        yield place, relay


@contextmanager
def refusing() -> Iterator[tuple[int, list[object]]]:
    """A server that closes each connection; its port, and those that it has closed."""
    refused: list[object] = []

    def refuse() -> None:
        with suppress(OSError):  # closed
            while True:
                conn, address = listening.accept()
                conn.close()
                refused.append(address)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=refuse, daemon=True).start()
        yield listening.getsockname()[1], refused
        listening.shutdown(socket.SHUT_RDWR)


def test_without_its_database_it_is_live_and_not_ready(server: EmbeddedPostgres, tmp_path: Path) -> None:
    with (
        relayed(server, tmp_path) as (place, relay),
        place.work("--processes", "2", "--health", "127.0.0.1:0") as work,
    ):
        pids = work.wait_ready(2)
        wait_until(lambda: get(work, "/readyz")[0] == 200)
        relay.lead_to(AWAY)
        relay.cut()
        wait_until(lambda: get(work, "/readyz")[0] == 503, SOON)
        away = ["process 1: the database does not answer", "process 2: the database does not answer"]
        wait_until(lambda: get(work, "/readyz")[1]["problems"] == away, SOON)
        assert get(work, "/livez")[0] == 200
        os.kill(pids[0], signal.SIGKILL)
        work.wait_for("waiting for the database: ")
        with refusing() as (port, refused):
            relay.lead_to(port)
            wait_until(lambda: len(refused) >= 15, SOON)
        assert work.log.count("waiting for the database") == 1, "though the other process reports that it works"
        relay.lead_to(port_of(server.dsn))
        wait_until(lambda: get(work, "/readyz")[0] == 200, SOON)
        job = place.enqueue()
        wait_until(lambda: place.completed(job), SOON)
        assert work.pids()[1] == pids[1], "no process was replaced for it"
        assert "psycopg.pool" not in work.log, "it repeats at each attempt what pgjobs says once"


def test_without_its_database_its_metrics_leave_out_what_that_would_say(
    server: EmbeddedPostgres, tmp_path: Path
) -> None:
    with relayed(server, tmp_path) as (place, relay), place.work("--health", "127.0.0.1:0") as work:
        work.wait_ready()
        job = place.enqueue()
        wait_until(lambda: place.completed(job), SOON)
        wait_until(lambda: "pgjobs_attempts_total" in (text := metrics(work)) and "pgjobs_database_up 1" in text, SOON)
        relay.lead_to(AWAY)
        relay.cut()
        wait_until(lambda: "pgjobs_database_up 0" in metrics(work), SOON)
        text = metrics(work)
        assert "pgjobs_jobs" not in text
        assert 'pgjobs_attempts_total{queue="default",kind="job",outcome="completed"} 1' in text
        relay.lead_to(port_of(server.dsn))
        wait_until(lambda: "pgjobs_database_up 1" in metrics(work), SOON)


def metrics(work: Work) -> str:
    """What /metrics answers."""
    (port,) = re.findall(r"health: http://127\.0\.0\.1:(\d+)/livez", work.log)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text: str = answer.read().decode()
        return text


def test_a_database_that_is_away_at_the_start_is_waited_for_in_one_line(
    server: EmbeddedPostgres, tmp_path: Path
) -> None:
    with relayed(server, tmp_path) as (place, relay):
        relay.lead_to(AWAY)
        with place.work("--processes", "2", "--health", "127.0.0.1:0") as work:
            work.wait_for("waiting for the database: ")
            wait_until(lambda: get(work, "/readyz")[1]["processes"][1]["state"] == "waiting", SOON)
            assert get(work, "/readyz")[0] == 503
            relay.lead_to(port_of(server.dsn))
            work.wait_ready(2)
            assert work.log.count("waiting for the database") == 1
            assert len(work.lines) == 5, "the address of health, starting, waiting, and twice ready"
            assert work.stop() == 0


def test_a_pool_of_the_application_may_wait_longer_for_its_database_than_a_start_takes(
    server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """The process was killed as one that does not load the application."""
    pool = "Client(ConnectionPool(os.environ['DATABASE_URL'], min_size=0, max_size=9, timeout=12, open=True)"
    with relayed(server, tmp_path) as (place, relay):
        place.write(
            "from psycopg_pool import ConnectionPool\n" + APP.replace('Client(os.environ["DATABASE_URL"]', pool)
        )
        relay.lead_to(AWAY)
        with place.work("--start-timeout", "10s") as work:
            work.wait_for("waiting for the database: ")
            relay.lead_to(port_of(server.dsn))
            work.wait_ready()
            assert "was killed" not in work.log
            assert work.stop() == 0


def test_no_wait_fails_without_a_database(server: EmbeddedPostgres, tmp_path: Path) -> None:
    with relayed(server, tmp_path) as (place, relay):
        relay.lead_to(AWAY)
        with place.work("--no-wait") as work:
            assert work.process.wait(SOON) == 1
            assert work.told("process 1 (pid ", " failed: ")
            assert "Traceback" not in work.log


# --- systemd


class Manager:
    """The socket of a service manager, and what it was sent."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.received: list[str] = []
        threading.Thread(target=self._receive, daemon=True).start()

    def _receive(self) -> None:
        while data := self.socket.recv(4096):
            self.received += data.decode().split("\n")

    def close(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_systemd_is_told_what_it_does(place: Place, tmp_path: Path, kind: str) -> None:
    if kind == "path":
        address = bound = str(tmp_path / "notify")
    else:
        name = secrets.token_hex(8)
        address, bound = f"@{name}", f"\0{name}"
    manager = Manager(bound)
    place.write(f"import os\nassert 'NOTIFY_SOCKET' not in os.environ and 'WATCHDOG_USEC' not in os.environ\n{APP}")
    with place.work("--processes", "2", NOTIFY_SOCKET=address, WATCHDOG_USEC="500000") as work:
        wait_until(lambda: "READY=1" in manager.received, SOON)
        assert work.told(" is ready after ", times=2)
        wait_until(lambda: "STATUS=2 processes working" in manager.received)
        wait_until(lambda: manager.received.count("WATCHDOG=1") >= 5)
        first, _ = work.pids()
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: "STATUS=process 1: was killed by SIGKILL" in manager.received)
        assert work.stop() == 0
        wait_until(lambda: "STOPPING=1" in manager.received)
        assert manager.received.count("READY=1") == 1
    manager.close()


def test_systemd_waits_while_it_waits_for_its_tables(place: Place, tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "notify"))
    with place.work(NOTIFY_SOCKET=str(tmp_path / "notify"), SCHEMA="none_such") as work:
        wait_until(lambda: "EXTEND_TIMEOUT_USEC=30000000" in manager.received, SOON)
        version = r"waiting for the tables of schema none_such at version \d+: run pgjobs migrate --schema none_such"
        wait_until(lambda: re.search(f"STATUS=process 1: {version}", "\n".join(manager.received)))
        assert re.search(version, work.log)
        assert "READY=1" not in manager.received
    manager.close()


# --- the log


def test_a_log_in_json_has_an_object_in_each_line(place: Place) -> None:
    with place.work("--log-format", "json") as work:
        work.wait_for("is ready after")
        assert work.stop() == 0
        records = [json.loads(line) for line in work.log.splitlines()]
    assert {"time", "level", "logger", "pid", "message"} <= set.intersection(*(set(record) for record in records))
    assert {record["logger"] for record in records} >= {"pgjobs.processes", "pgjobs.worker"}
    assert records[-1]["message"] == "stopped"


UNCAUGHT = """
import threading, warnings
def ends_badly():
    raise LookupError("no such\\ntown")
def warn(tx, job):
    errand = threading.Thread(target=ends_badly, name="errand")
    errand.start()
    errand.join()
    warnings.warn("this is old", UserWarning)
    raise ValueError("two\\nlines")
"""


def test_tracebacks_and_warnings_are_objects_too(place: Place) -> None:
    place.write(APP.replace('case "leak":', 'case "warn":\n            warn(tx, job)\n        case "leak":') + UNCAUGHT)
    job = place.client.enqueue(None, {"then": "warn"}, kind="job", max_attempts=1)
    with place.work("--log-format", "json", PYTHONWARNINGS="always::UserWarning") as work:
        work.wait_for("this is old", "discarded")
        assert work.stop() == 0
        records = [json.loads(line) for line in work.log.splitlines()]
    (failed,) = [record for record in records if record.get("job_id") == job.id]
    assert failed["exception"].endswith("ValueError: two\nlines")
    (ended,) = [record for record in records if "exception ends thread errand" in record["message"]]
    assert ended["exception"].endswith("LookupError: no such\ntown")
    place.write(f"{APP}\nraise LookupError('no such\\ntown')\n")
    with place.work("--log-format", "json") as work:
        assert work.process.wait(SOON) == 1
        records = [json.loads(line) for line in work.log.splitlines()]
    assert any(record["message"].startswith("Traceback") for record in records)


def test_a_log_that_the_application_configures_is_left_to_it(place: Place) -> None:
    configured = "import logging\nlogging.basicConfig(level='INFO', format='MINE %(name)s %(message)s')\n"
    place.write(configured + APP)
    with place.work("--log-format", "json", "--log-level", "error") as work:
        work.wait_for("MINE pgjobs.worker pgjobs: starts with ")
        assert "is ready" not in work.log, "the parent, which is not the application's, logs errors alone"


def test_the_level_of_the_log_can_be_set(place: Place) -> None:
    with place.work("--log-level", "warning", "--burst") as work:
        assert work.process.wait(SOON) == 0
        assert work.log == ""
