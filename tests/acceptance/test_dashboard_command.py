"""`pgjobs dashboard`, as a process of its own."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from pgjobs import Client
from tests.acceptance.cli_program import PIPE, of, run, start
from tests.samples import Thing


@contextmanager
def served(client: Client, *arguments: object) -> Iterator[tuple[Any, str]]:
    """The process, and the address that it prints."""
    running = start("dashboard", "--port", "0", *arguments, *of(client), stdout=PIPE, stderr=PIPE, text=True)
    try:
        address = running.stdout.readline().split()[0]
        yield running, address
    finally:
        running.kill()
        running.communicate()


def test_it_serves_pages_and_actions_until_ctrl_c(client: Client) -> None:
    client.enqueue(None, Thing(1))
    with served(client) as (running, address):
        assert b"default" in urlopen(f"{address}queues", timeout=20).read()
        assert b'pgjobs_jobs{queue="default",state="waiting"} 1' in urlopen(f"{address}metrics", timeout=20).read()
        pause = Request(f"{address}queues/pause", b"name=default", {"Origin": address.rstrip("/")})
        assert b"1 queue paused." in urlopen(pause, timeout=20).read()
        foreign = Request(f"{address}queues/resume", b"name=default", {"Origin": "http://elsewhere"})
        with pytest.raises(HTTPError) as refused:
            urlopen(foreign, timeout=20)
        assert refused.value.code == 403
        refused.value.close()
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=20)
    assert (running.returncode, out, err) == (0, "", "")
    assert client.queues.list()[0].paused_at is not None


def test_read_only_lets_nobody_change_anything(client: Client) -> None:
    client.enqueue(None, Thing(1))
    with served(client, "--read-only") as (_, address):
        pause = Request(f"{address}queues/pause", b"name=default", {"Origin": address.rstrip("/")})
        with pytest.raises(HTTPError) as refused:
            urlopen(pause, timeout=20)
        assert refused.value.code == 403
        refused.value.close()


def test_a_port_that_is_taken_is_named(client: Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("dashboard", "--port", port, *of(client))
    assert done.code == 1
    assert f"cannot listen on port {port}" in done.err
    assert len(done.err.splitlines()) == 1


def test_without_its_packages_it_says_which_to_install(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "tests.acceptance.cli_program.BARE", "import sys; sys.modules['jinja2'] = None; " +
        "from pgjobs.cli import main; sys.exit(main())",
    )  # fmt: skip
    done = run("dashboard", "--port", "0", *of(client))
    assert done.code == 1
    assert "pip install 'pgjobs-psycopg[dashboard]'" in done.err
