"""Connections that break without a word, or between a question and its answer."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from psycopg.conninfo import make_conninfo

from pgjobs import Client, JobState, WorkerPool
from pgjobs.embedded import EmbeddedPostgres
from pgjobs.wakeup import listener
from tests import inside, modes
from tests.conftest import new_database
from tests.faults.ledger import Ledger
from tests.faults.proxy import Proxy
from tests.faults.servers import ROOT_ON_LINUX, Network, in_a_network_of_its_own, port_of, socket_dsn, through
from tests.faults.workers import Nursery
from tests.waiting import wait_until
from tests.waking import LISTENS

# The statement that commits a job, in whatever message it leaves.
_COMPLETION = re.compile(rb"(?is)(release.savepoint|_complete_batch).*\bcommit\b")
_CLAIM = re.compile(rb"state = 'running'," if modes.PLAIN else rb"EXECUTE \w+_claim_")


@pytest.fixture
def proxy(ledger: Ledger) -> Iterator[Proxy]:
    with Proxy(port_of(ledger.dsn)) as proxy:
        yield proxy


@pytest.mark.conformance(327)
@pytest.mark.parametrize("cut", ["before", "after"])
def test_a_connection_that_breaks_around_the_commit_neither_loses_nor_doubles(
    ledger: Ledger, nursery: Nursery, proxy: Proxy, cut: str
) -> None:
    """After it: the job is completed with its effect, though its worker never heard so. Before it: it is not, so it
    runs once more."""
    nursery.start(dsn=through(ledger.dsn, proxy.port), ledger=ledger.dsn)
    wait_until(lambda: ledger.sql("SELECT 1 FROM {schema}.maintenance WHERE next_run_at > now()"))
    proxy.trap(_COMPLETION, cut)  # type: ignore[arg-type]
    job = ledger.enqueue()
    assert proxy.sprung.wait(10)
    ledger.wait_drained()
    ledger.check()
    assert ledger.effects(job) == ([1] if cut == "after" else [2])
    assert ledger.starts(job) == ([1] if cut == "after" else [1, 2])
    assert len(ledger.job(job).errors) == (0 if cut == "after" else 1)


def test_an_answer_that_stops_in_the_middle_keeps_no_other_thread_from_its_work(
    ledger: Ledger, nursery: Nursery, proxy: Proxy
) -> None:
    """Who waits for the rest of it does so without the interpreter's lock."""
    job = ledger.enqueue(metadata={"long": "x" * 60_000})
    proxy.trap(_CLAIM, "within")
    nursery.start(dsn=through(ledger.dsn, proxy.port), ledger=ledger.dsn, queues={"default": 2})
    assert proxy.sprung.wait(10)
    other = ledger.enqueue()
    wait_until(lambda: ledger.job(other).state == JobState.COMPLETED)
    assert ledger.starts(job) == []


@pytest.mark.conformance(326)
def test_a_listener_whose_peer_falls_silent_finds_out_and_listens_again(
    ledger: Ledger, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network acknowledges all it sends, so nothing but an answer that is missing tells it."""
    monkeypatch.setattr(listener, "_SILENCE", 0.2)
    monkeypatch.setattr(listener, "_ANSWER", 0.5)
    with Client(ledger.dsn) as client:
        pool = WorkerPool(client, {"job": lambda tx, job: None}, listen_dsn=through(ledger.dsn, proxy.port))
        with pool:
            wait_until(lambda: inside.listens(pool))
            proxy.stall()
            wait_until(lambda: not inside.listens(pool))
            proxy.flow()
            wait_until(lambda: inside.listens(pool))
            wait_until(lambda: ledger.sql(f"SELECT 1 FROM pg_stat_activity WHERE {LISTENS}"))


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_f11_a_worker_whose_network_swallows_everything_is_replaced_and_cannot_come_back(
    ledger: Ledger, nursery: Nursery, proxy: Proxy
) -> None:
    """Its side and the server's both look alive to the other. When the server has ended the transaction another worker
    runs the job; what the first one had sent arrives later and changes nothing. Then it works again."""
    first = nursery.start(dsn=through(ledger.dsn, proxy.port), ledger=ledger.dsn, timeout=1, queues={"default": 4})
    jobs = [ledger.enqueue(first="sleep 1.5", then="return") for _ in range(3)]
    for job in jobs:
        ledger.wait_started(job)
    proxy.stall()
    second = nursery.start(dsn=ledger.dsn, timeout=1, queues={"default": 4})
    began = time.monotonic()
    ledger.wait_drained(timeout=40)
    assert time.monotonic() - began < 30
    proxy.flow()
    second.kill()
    later = ledger.enqueue()
    wait_until(lambda: ledger.job(later).state == JobState.COMPLETED, timeout=60)
    assert first.alive
    ledger.wait_drained()
    ledger.check()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_f11_a_worker_whose_connections_fall_silent_works_on_new_ones(
    ledger: Ledger, nursery: Nursery, proxy: Proxy
) -> None:
    """Those of idle threads and of the maintenance too: an answer that is missing for too long ends the connection."""
    worker = nursery.start(dsn=through(ledger.dsn, proxy.port), ledger=ledger.dsn, queues={"default": 3}, poll=0.2)
    warm = [ledger.enqueue("sleep 0.2") for _ in range(6)]
    ledger.wait_drained()
    proxy.lose()
    jobs = [ledger.enqueue(delay=timedelta(seconds=0.1)) for _ in range(3)]
    ledger.wait_drained(timeout=120)
    assert worker.alive
    ledger.check()
    assert [len(ledger.effects(job)) for job in warm + jobs] == [1] * 9


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.skipif(not ROOT_ON_LINUX, reason="a network of its own takes root")
def test_f11_a_host_whose_packets_vanish_is_given_up_within_half_a_minute(tmp_path: Path) -> None:
    """By both sides: the server frees what it held, and the worker connects anew as soon as it can."""

    def begin() -> tuple[EmbeddedPostgres, Nursery]:
        return EmbeddedPostgres(tcp=True).start(), Nursery(tmp_path)

    server, nursery = in_a_network_of_its_own(begin)
    with Nursery(tmp_path) as outside:
        try:
            network = Network(nursery.pid)
            with new_database(socket_dsn(server)) as dsn:
                ledger = Ledger(dsn)
                inside = make_conninfo(dsn, host="127.0.0.1")
                worker = nursery.start(dsn=inside, ledger=dsn, queues={"default": 4}, timeout=600)
                jobs = [ledger.enqueue(first="sleep 5"), ledger.enqueue(first="sql 300")]
                for job in jobs:
                    ledger.wait_started(job)
                network.swallow()
                began = time.monotonic()
                other = outside.start(dsn=dsn, queues={"default": 4})
                ledger.wait_drained(timeout=90)
                assert time.monotonic() - began < 45
                assert [len(ledger.starts(job)) for job in jobs] == [2, 2]
                network.mend()
                other.kill()
                after = ledger.enqueue()
                wait_until(lambda: ledger.job(after).state == JobState.COMPLETED, timeout=60)
                assert worker.alive
                ledger.check()
                ledger.close()
        finally:
            nursery.close()
            server.stop()
