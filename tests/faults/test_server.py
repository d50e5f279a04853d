"""Servers that crash, connections that are ended, disks that are full."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgjobs import Client, Job, JobState, WorkerPool
from pgjobs.embedded import EmbeddedPostgres
from tests.faults.ledger import Ledger
from tests.faults.servers import ROOT_ON_LINUX, small_disk
from tests.faults.workers import Nursery
from tests.samples import Tx
from tests.waiting import wait_until
from tests.waking import LISTENS

_LISTENING = f"SELECT 1 FROM pg_stat_activity WHERE {LISTENS} AND datname = current_database()"


@contextmanager
def load(ledger: Ledger, jobs: str = "sleep 0.02", pause: float = 0.01) -> Iterator[list[int]]:
    """Somebody enqueues all along, whatever becomes of the server; the ids of what is certain to be there."""
    over = threading.Event()
    certain: list[int] = []

    def enqueue() -> None:
        while not over.is_set():
            try:
                certain.append(ledger.enqueue(jobs).id)
                over.wait(pause)
            except psycopg.OperationalError:
                over.wait(0.05)

    thread = threading.Thread(target=enqueue)
    thread.start()
    try:
        yield certain
    finally:
        over.set()
        thread.join()


def completed(ledger: Ledger) -> int:
    return int(ledger.sql("SELECT count(*) FROM {schema}.job WHERE state = 'completed'")[0][0])


def wait_for_more(ledger: Ledger, more: int = 5, timeout: float = 10) -> float:
    """Wait until so many more jobs are completed; how many seconds it took."""
    began, before = time.monotonic(), completed(ledger)
    wait_until(lambda: completed(ledger) >= before + more, timeout)
    return time.monotonic() - began


def check_that_it_listens(ledger: Ledger) -> None:
    """A notification wakes an idle worker long before it would poll, which it does once a minute."""
    for _ in range(2):
        job = ledger.enqueue()
        wait_until(lambda job=job: ledger.job(job).state == JobState.COMPLETED, timeout=5)  # type: ignore[misc]


def check_the_log(log: str, seconds: float) -> None:
    assert log.count("\n") < 10 * seconds + 50, f"too much in the log:\n{log[:5000]}"


@pytest.mark.parametrize("down", [0.0, pytest.param(60.0, marks=[pytest.mark.slow, pytest.mark.timeout(180)])])
def test_f9_a_server_that_crashes_loses_nothing_and_the_worker_goes_on_by_itself(
    fault_server: EmbeddedPostgres, ledger: Ledger, nursery: Nursery, down: float
) -> None:
    worker = nursery.start(dsn=ledger.dsn, queues={"default": 4}, poll=60)
    before = len(worker.log)
    with load(ledger) as certain:
        wait_for_more(ledger)
        if down:
            fault_server.kill()
            threading.Event().wait(down)
            fault_server.start()
        else:
            fault_server.restart("immediate")
        wait_for_more(ledger, timeout=30)  # half of the time between two polls
    assert worker.alive
    ledger.wait_drained()
    ledger.check()
    assert set(certain) <= {id for (id,) in ledger.sql("SELECT id FROM {schema}.job")}
    wait_until(lambda: ledger.sql(_LISTENING), timeout=15)
    check_that_it_listens(ledger)
    check_the_log(worker.log[before:], down + 10)


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.conformance(325)
def test_f10_whoever_ends_connections_all_along_stops_nothing(ledger: Ledger, nursery: Nursery) -> None:
    """One after the other, those of listener and maintenance among them; a job may lose an attempt at most."""
    worker = nursery.start(dsn=ledger.dsn, queues={"default": 4}, poll=60)
    victim = """
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE application_name = 'pgjobs' AND datname = current_database() ORDER BY random() LIMIT 1
    """
    with load(ledger):
        wait_for_more(ledger)
        for _ in range(120):
            ledger.sql(victim)
            threading.Event().wait(0.5)
        wait_for_more(ledger, timeout=30)  # half of the time between two polls
    assert worker.alive
    ledger.wait_drained()
    ledger.check()
    wait_until(lambda: ledger.sql(_LISTENING), timeout=15)
    check_that_it_listens(ledger)


@pytest.mark.conformance(325)
def test_a_listener_whose_connection_is_ended_listens_again(ledger: Ledger, nursery: Nursery) -> None:
    nursery.start(dsn=ledger.dsn, poll=60)
    end = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pgjobs' AND {LISTENS}"
    for _ in range(2):
        wait_until(lambda: ledger.sql(end))
        wait_until(lambda: ledger.sql(_LISTENING))
        check_that_it_listens(ledger)


@pytest.mark.conformance(325)
def test_the_duties_go_on_when_their_connection_is_ended(ledger: Ledger, nursery: Nursery) -> None:
    # one that runs and is not to be rescued: without, nobody would look
    running = "INSERT INTO {schema}.job (kind, state, attempt, leased_until) VALUES ('job', 'running', 1, '9999-01-01')"
    ledger.sql(running + " RETURNING id")
    nursery.start(dsn=ledger.dsn)
    duty = "SELECT next_run_at FROM {schema}.maintenance WHERE duty = 'rescue'"
    # not the connection that the start looks with: without that there is no worker
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query ~ 'name: (begin|end)_duty'"
    wait_until(lambda: ledger.sql(end))
    ended = ledger.sql(duty)
    wait_until(lambda: ledger.sql(duty) > ended, timeout=10)


def test_f12_an_application_that_holds_all_connections_delays_the_work_and_no_more(ledger: Ledger) -> None:
    """Of its own pool, which it shares with the workers; they take what they need as soon as it is given back."""
    from psycopg_pool import ConnectionPool

    def handler(tx: Tx, job: Job[object]) -> None:
        tx.execute(
            sql.SQL("INSERT INTO {}.effect (job, attempt) VALUES (%s, %s)").format(schema), [job.id, job.attempt]
        )

    schema = sql.Identifier(ledger.schema)
    with ConnectionPool(ledger.dsn, min_size=4, max_size=4, open=True) as pool:
        client = Client(pool)
        held = [pool.getconn() for _ in range(4)]
        job = ledger.enqueue()
        pool.putconn(held.pop())  # what start() needs
        with WorkerPool(client, {"job": handler}, queues={"default": 2}):
            held.append(pool.getconn())
            more = [ledger.enqueue() for _ in range(5)]
            while held:
                pool.putconn(held.pop())
            wait_until(lambda: all(ledger.job(each).state == JobState.COMPLETED for each in (job, *more)))
        ledger.check()


def fill(file: Path) -> None:
    """Make it as long as its disk has room."""
    with file.open("wb", buffering=0) as ballast, suppress(OSError):
        while True:
            ballast.write(bytes(8192))


@pytest.mark.slow
@pytest.mark.skipif(not ROOT_ON_LINUX, reason="mounts a small disk, which takes root")
def test_f13_a_full_disk_stops_the_work_until_there_is_room(fault_server: EmbeddedPostgres, nursery: Nursery) -> None:
    with (
        small_disk(64) as disk,
        psycopg.connect(fault_server.dsn, autocommit=True) as admin,
    ):
        space = disk / "space"
        space.mkdir(mode=0o700)
        admin.execute(sql.SQL("CREATE TABLESPACE small LOCATION {}").format(str(space)))
        admin.execute("CREATE DATABASE small TABLESPACE small")
        dsn = make_conninfo(fault_server.dsn, dbname="small")
        ledger = Ledger(dsn)
        try:
            worker = nursery.start(dsn=dsn, ledger=dsn, queues={"default": 4})
            with load(ledger):
                wait_for_more(ledger)
                before = len(worker.log)
                ballast = disk / "ballast"
                fill(ballast)
                wait_until(lambda: "No space left on device" in worker.log[before:], timeout=60)
                check_the_log(worker.log[before:], 60)
                ballast.unlink()
                assert wait_for_more(ledger, timeout=20) < 15
            assert worker.alive
            ledger.wait_drained(60)
            ledger.check()
        finally:
            nursery.close_workers()
            ledger.close()
            admin.execute("DROP DATABASE small WITH (FORCE)")
            admin.execute("DROP TABLESPACE small")


@pytest.mark.conformance(335)
def test_f13_a_database_that_is_read_only_for_a_while_is_worked_again_afterwards(
    ledger: Ledger, nursery: Nursery
) -> None:
    """Also by a worker whose sessions began while it was."""
    name = sql.Identifier(str(conninfo_to_dict(ledger.dsn)["dbname"]))
    worker = nursery.start(dsn=ledger.dsn)
    ledger.enqueue()
    ledger.wait_drained()
    said = nursery.log.count("in a read-only transaction")
    with psycopg.connect(ledger.dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name))
        ledger.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pgjobs'")
        with psycopg.connect(ledger.dsn, options="-c default_transaction_read_only=off") as tx:
            jobs = [ledger.enqueue_in(tx) for _ in range(3)]
        wait_until(lambda: worker.log.count("in a read-only transaction") > said)
        admin.execute(sql.SQL("ALTER DATABASE {} RESET default_transaction_read_only").format(name))
    wait_until(lambda: all(ledger.job(job).state == JobState.COMPLETED for job in jobs))
    ledger.check()


def test_a_connection_that_met_an_error_is_not_used_again(ledger: Ledger) -> None:
    """It may be the session's fault: of one that began while the database was read-only, or a replica."""
    source = ledger.client.source
    pids: list[int] = []

    def meet_an_error() -> None:
        with source.own_checkout() as held:
            pids.append(held.conn.info.backend_pid)
            held.conn.execute("SET default_transaction_read_only = on")
            held.conn.execute("CREATE TABLE forbidden ()")

    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        meet_an_error()
    with source.own_checkout() as held:
        assert held.conn.info.backend_pid not in pids
