"""The registry of worker processes: who is there, and what runs where."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import pgjobs
from pgjobs import Client, Job, WorkerPool
from pgjobs.maintenance.duties import Maintenance
from pgjobs.workers.registration import Description, Registration
from tests.conformance.conftest import Rows, duties, server, sql
from tests.conftest import Connect
from tests.samples import Tx, nothing
from tests.waiting import wait_until

__all__ = ["duties", "server", "sql"]

ROOT = Path(__file__).parents[2]


def test_a_pool_is_listed_while_it_runs(database: str, client: Client) -> None:
    with Client(database, schema=client.schema, code_version="1f3a9c2") as own:
        assert own.workers() == []
        pool = WorkerPool(own, {"bb": nothing, "aa": nothing}, queues={"default": 2, "mail": 1})
        for _ in range(2):
            with pool:
                wait_until(own.workers)
                (worker,) = own.workers()
            assert own.workers() == [], "it has taken its leave before stop returns"
    assert (worker.id, worker.host, worker.pid) == (own.id, socket.gethostname(), os.getpid())
    assert (worker.queues, worker.threads, worker.kinds) == ({"default": 2, "mail": 1}, 3, ("aa", "bb"))
    assert (worker.version, worker.code_version) == (pgjobs.__version__, "1f3a9c2")
    assert worker.started_at <= worker.seen_at


@pytest.mark.parametrize("stuck", ["{}", "1", "null", '[{"thread": 1}]', '[{"job": "x"}]', "[1]"])
def test_stacks_that_were_written_by_hand_are_passed_over(client: Client, sql: Rows, stuck: str) -> None:
    sql("INSERT INTO pgjobs.worker (id, host, pid, threads, version, stuck) VALUES ('a', 'h', 1, 1, '1', %s)", stuck)
    (worker,) = client.workers()
    assert worker.stuck == ()


@pytest.mark.parametrize("queues", ["[]", "1", "null", '"default"'])
def test_queues_that_were_written_by_hand_are_passed_over(client: Client, sql: Rows, queues: str) -> None:
    sql("INSERT INTO pgjobs.worker (id, host, pid, threads, version, queues) VALUES ('a', 'h', 1, 1, '1', %s)", queues)
    (worker,) = client.workers()
    assert worker.queues == {}


def test_two_pools_of_one_client_share_a_row(client: Client) -> None:
    with WorkerPool(client, {"aa": nothing}, queues={"default": 1, "mail": 1}):
        with WorkerPool(client, {"bb": nothing}, queues={"default": 2}):
            wait_until(lambda: [worker.threads for worker in client.workers()] == [4])
            (both,) = client.workers()
        (one,) = client.workers()
    assert (both.queues, both.kinds) == ({"default": 3, "mail": 1}, ("aa", "bb"))
    assert (one.queues, one.kinds) == ({"default": 1, "mail": 1}, ("aa",))
    assert client.workers() == []


def test_a_row_is_refreshed_every_few_seconds_and_no_more_often(
    client: Client, server: Tx, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("pgjobs.workers.registration.time.monotonic", lambda: now[0])
    threads = {"default": 1}
    registration = Registration(client.schema, "me", None)
    registration.refresh(server)
    assert client.workers() == [], "no pool, no row"
    registration.register("pool", lambda: Description(threads, ["aa"]))
    registration.refresh(server)
    (first,) = client.workers()
    threads["mail"] = 2
    now[0] += 4.9
    registration.refresh(server)
    assert client.workers() == [first]
    now[0] += 0.2
    registration.refresh(server)
    (second,) = client.workers()
    assert second.queues == {"default": 1, "mail": 2}
    assert second.seen_at > first.seen_at
    assert second.started_at == first.started_at


def test_a_stuck_thread_may_have_any_name(client: Client, server: Tx) -> None:
    job = client.enqueue(None, dict[str, Any](), kind="aa")
    stuck = [(name, job, 1.0, "stack") for name in ("a\x00b", "\ud800", "x" * 10_000)]
    registration = Registration(client.schema, "me", None)
    registration.register("pool", lambda: Description({"default": 1}, ["aa"], stuck))
    registration.refresh(server)
    (worker,) = client.workers()
    assert [thread.thread for thread in worker.stuck] == [r"a\x00b", r"\ud800", "x" * 255]


def test_a_process_that_took_over_a_name_has_started_anew(client: Client, sql: Rows, server: Tx) -> None:
    registration = Registration(client.schema, "me", None)
    registration.register("pool", lambda: Description({"default": 1}, []))
    sql("""INSERT INTO pgjobs.worker (id, host, pid, threads, version, started_at)
        VALUES ('me', 'elsewhere', 1, 1, '0', now() - interval '1 day')""")
    registration.refresh(server)
    (worker,) = client.workers()
    assert worker.seen_at - worker.started_at < timedelta(seconds=1)


def test_a_start_does_not_wait_for_a_row_that_somebody_holds(client: Client, connect: Connect, sql: Rows) -> None:
    holder = connect()
    holder.execute(f'LOCK TABLE "{client.schema}".worker')
    done: list[int] = []
    job = client.enqueue(None, dict[str, Any](), kind="aa")
    with WorkerPool(client, {"aa": lambda tx, job: done.append(job.id)}, queues={"default": 1}):
        wait_until(lambda: done == [job.id])
        holder.rollback()
        wait_until(client.workers, timeout=20)
    assert client.workers() == []


def test_a_process_that_was_killed_ages_out_after_a_minute_and_others_stay(
    client: Client, sql: Rows, server: Tx, duties: Maintenance
) -> None:
    for name, seen, lost in (("old", 61, None), ("fresh", 59, None), ("rescued", 61, 30), ("long ago", 600, 100)):
        sql(
            """INSERT INTO pgjobs.worker (id, host, pid, threads, version, seen_at, lost_at) VALUES
            (%s, 'h', 1, 1, '1', now() - %s * interval '1 second', now() - %s::float8 * interval '1 second')""",
            *(name, seen, lost),
        )
    assert duties.do(server, "workers") == timedelta(seconds=30)
    assert {worker.id for worker in client.workers()} == {"fresh", "rescued"}


def test_what_each_process_runs_now_can_be_read_by_sql(client: Client, sql: Rows) -> None:
    entered, leave = threading.Event(), threading.Event()
    threads: list[str] = []

    def handler(tx: Tx, job: Job[Any]) -> None:
        threads.append(threading.current_thread().name)
        entered.set()
        leave.wait(20)

    job = client.enqueue(None, dict[str, Any](), kind="aa")
    with WorkerPool(client, {"aa": handler}, queues={"default": 1}, name="mine"):
        assert entered.wait(10)
        wait_until(client.workers)
        runs = sql(
            """SELECT worker.host, worker.pid, job.id, job.kind, job.attempt FROM pgjobs.job
            LEFT JOIN pgjobs.worker ON worker.id = job.attempted_by[cardinality(job.attempted_by)]
            WHERE job.state = 'running'"""
        )
        leave.set()
    assert runs == [(socket.gethostname(), os.getpid(), job.id, "aa", 1)]
    assert threads == ["mine/worker-0"]


WORKER = """
import sys
from pgjobs import Client, WorkerPool
pool = WorkerPool(Client(sys.argv[1], schema=sys.argv[2]), {"aa": lambda tx, job: None}, queues={"default": 1})
print("ready", flush=True)
pool.run()
"""


@pytest.mark.conformance(321)
@pytest.mark.parametrize("signals", [1, 2])
def test_a_process_that_is_told_to_end_leaves_no_registration_behind(
    client: Client, database: str, signals: int
) -> None:
    command = [sys.executable, "-c", WORKER, database, client.schema]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            wait_until(client.workers)
            assert [worker.pid for worker in client.workers()] == [process.pid]
            for _ in range(signals):
                process.send_signal(signal.SIGTERM)
            process.wait(20)
        finally:
            process.kill()
    assert client.workers() == []


def test_a_stop_without_a_database_does_not_wait_for_it(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    let_go = threading.Event()
    pool = WorkerPool(client, {"aa": nothing}, queues={"default": 1})
    monkeypatch.setattr(client.registration, "deregister", lambda pool, conn: let_go.wait(20))
    pool.start()
    wait_until(client.workers)
    began = time.monotonic()
    assert pool.stop()
    assert time.monotonic() - began < 5
    let_go.set()
