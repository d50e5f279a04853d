"""Workers that die: what their handlers wrote is gone, the attempt is on record, and another runs the job soon."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from psycopg import sql

from pgjobs import Client, Job, JobState, WorkerPool, constant
from pgjobs.db.cursors import AnyConnection
from pgjobs.maintenance.queries import MaintenanceQueries
from pgjobs.maintenance.rescuing import RESCUE_GRACE
from tests.acceptance.work_command import gate
from tests.conftest import Connect
from tests.samples import OF_THIS_DATABASE
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]

# A worker process. What happens is told in two tables: `start` is written at once through a connection of its own,
# `effect` through the job's transaction. A job asks by its args how its handler goes on.
WORKER = """
import os, signal, sys, threading, time
from datetime import timedelta
import psycopg
from pgjobs import Client, WorkerPool, constant
from tests import modes

modes.install()
dsn, schema, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
beside = psycopg.connect(dsn, autocommit=True)
told = threading.Lock()

def handler(tx, job):
    tx.execute(f"INSERT INTO {schema}.effect VALUES (%s, %s)", [job.id, job.attempt])
    with told:
        beside.execute(f"INSERT INTO {schema}.start VALUES (%s, %s, %s)", [job.id, job.attempt, os.getpid()])
    match job.args["then"]:
        case "wait in python" if job.attempt == 1:
            threading.Event().wait(60)
        case "wait in sql" if job.attempt == 1:
            tx.execute("SELECT pg_sleep(60)")
        case "wait for the gate":
            tx.execute("SELECT pg_advisory_xact_lock_shared(%s)", [job.args["gate"]])
        case "exit":
            os._exit(1)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)

client = Client(dsn, schema=schema)
pool = WorkerPool(client, {"job": handler}, queues={"default": threads}, backoff=constant(timedelta(0)))
threading.Thread(target=lambda: (pool._stopping.wait(), print("stopping", flush=True)), daemon=True).start()
print("ready", flush=True)
pool.run()
"""


@dataclass
class Table:
    """The jobs of one schema, seen through a connection in autocommit mode."""

    client: Client
    conn: AnyConnection
    dsn: str

    def query(self, text: str, *values: Any) -> list[Any]:
        statement = sql.SQL(text).format(schema=sql.Identifier(self.client.schema))
        cur = self.conn.execute(statement, values or None)
        return cur.fetchall() if cur.description else []

    def enqueue(self, then: str, *, max_attempts: int = 25, **args: Any) -> Job[Any]:
        return self.client.enqueue(None, {"then": then, **args}, kind="job", max_attempts=max_attempts)

    def job(self, job: Job[Any]) -> Job[Any]:
        found = self.client.get(job.id)
        assert found is not None
        return found

    def starts(self, job: Job[Any]) -> list[tuple[int, int]]:
        """The attempt and the process of each start of the job's handler."""
        return self.query("SELECT attempt, pid FROM {schema}.start WHERE job = %s ORDER BY attempt", job.id)

    def effects(self, job: Job[Any]) -> list[int]:
        return [attempt for (attempt,) in self.query("SELECT attempt FROM {schema}.effect WHERE job = %s", job.id)]

    def started(self, job: Job[Any], attempt: int = 1) -> bool:
        return any(number == attempt for number, _ in self.starts(job))

    @contextmanager
    def worker(self, threads: int = 1) -> Iterator[subprocess.Popen[bytes]]:
        """A worker process that works, killed on the way out if it still lives."""
        with subprocess.Popen(
            [sys.executable, "-c", WORKER, self.dsn, self.client.schema, str(threads)],
            stdout=subprocess.PIPE,
            cwd=ROOT,
        ) as process:
            try:
                assert next_line(process) == b"ready\n"
                yield process
            finally:
                process.kill()


def next_line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.fixture
def table(client: Client, connect: Connect, database: str) -> Table:
    made = Table(client, connect(autocommit=True), database)
    made.query("CREATE TABLE {schema}.effect (job bigint, attempt integer)")
    made.query("CREATE TABLE {schema}.start (job bigint, attempt integer, pid integer)")
    return made


@pytest.mark.parametrize("then", ["wait in python", "wait in sql"])
def test_the_job_of_a_killed_worker_is_run_by_another_within_ten_seconds(table: Table, then: str) -> None:
    job = table.enqueue(then)
    with table.worker() as first:
        wait_until(lambda: table.started(job))
        with table.worker() as second:  # to start Python takes time, too
            first.kill()
            first.wait()
            wait_until(lambda: table.job(job).state == JobState.COMPLETED, timeout=10)
    assert table.effects(job) == [2], "the first one's write is gone, the second one's is there once"
    assert table.starts(job) == [(1, first.pid), (2, second.pid)]
    done = table.job(job)
    assert done.attempt == 2
    assert [error.attempt for error in done.errors] == [1]
    assert done.errors[0].error.startswith("worker vanished: ")
    assert done.attempted_by[0] in done.errors[0].error
    assert done.errors[0].trace is None


@pytest.mark.conformance(318)
@pytest.mark.parametrize("then", ["exit", "kill"])
def test_a_job_that_kills_its_process_kills_no_more_than_its_attempts_and_is_discarded(table: Table, then: str) -> None:
    """T7, F3. While other jobs are worked. The rows are made older by hand, which saves the waiting."""
    job = table.enqueue(then, max_attempts=2)
    dead: list[int] = []
    for attempt in (1, 2):
        with table.worker() as process:
            process.wait(20)
            dead.append(process.pid)
        wait_until(lambda: table.query("SELECT 1 FROM {schema}.job WHERE state = 'running' FOR UPDATE SKIP LOCKED"))
        table.query("UPDATE {schema}.job SET attempted_at = attempted_at - interval '1 hour'")
        assert [
            rescued.attempt for rescued in MaintenanceQueries(table.client.schema).rescue(table.conn, 10, RESCUE_GRACE)
        ] == [attempt]
        table.query("UPDATE {schema}.job SET state = 'available', scheduled_at = now() WHERE state = 'retryable'")
    other = table.enqueue("return")
    with table.worker() as process:
        wait_until(lambda: table.job(other).state == JobState.COMPLETED)
        assert process.poll() is None, "it is not started a third time"
    assert table.starts(job) == [(1, dead[0]), (2, dead[1])]
    discarded = table.job(job)
    assert (discarded.state, discarded.attempt) == (JobState.DISCARDED, 2)
    assert discarded.finalized_at is not None
    assert [error.attempt for error in discarded.errors] == [1, 2]
    assert all(error.error.startswith("worker vanished: ") for error in discarded.errors)
    assert table.effects(job) == []


@pytest.mark.conformance(318)
def test_the_neighbours_of_a_job_that_kills_its_process_are_completed(table: Table, connect: Connect) -> None:
    """Nobody can tell which of the two killed the first process: neither loses its only attempt for that."""
    with gate(connect) as (number, open_gate):
        neighbour = table.enqueue("wait for the gate", gate=number, max_attempts=1)
        with table.worker(threads=2) as first:
            wait_until(lambda: table.started(neighbour))
            killer = table.enqueue("kill", max_attempts=1)
            first.wait(20)
        open_gate()
    while not table.job(killer).state.final:
        with table.worker(threads=2) as process:
            wait_until(lambda: process.poll() is not None or table.job(killer).state.final, timeout=20)
    with table.worker():
        wait_until(lambda: table.job(neighbour).state == JobState.COMPLETED)
    assert table.job(killer).state == JobState.DISCARDED
    assert 2 <= len(table.starts(killer)) <= 3, "one that counts, and at most two that it shared with the neighbour"
    assert table.job(killer).error_count == 1
    assert table.effects(neighbour) == [1]
    assert table.effects(killer) == []


@pytest.mark.conformance(147)
def test_a_slow_job_of_a_live_worker_is_left_to_it(table: Table, connect: Connect) -> None:
    """However old its claim is: the row lock is its proof of life, to the rescue and to a second worker's."""
    with gate(connect) as (number, open_gate), table.worker() as slow:
        job = table.enqueue("wait for the gate", gate=number)
        wait_until(lambda: table.started(job))
        assert MaintenanceQueries(table.client.schema).rescue(table.conn, 10, timedelta(0)) == []
        with table.worker() as second:
            past = "SELECT 1 FROM {schema}.job, {schema}.maintenance WHERE duty = 'rescue' AND next_run_at > %s"
            grace = RESCUE_GRACE + timedelta(seconds=2)  # and one more run of the duty
            claimed = table.job(job).attempted_at
            assert claimed is not None
            wait_until(lambda: table.query(past, claimed + grace))
            assert second.poll() is None
            assert table.job(job).state == JobState.RUNNING
            open_gate()
            wait_until(lambda: table.job(job).state == JobState.COMPLETED)
        assert table.starts(job) == [(1, slow.pid)]
    assert table.job(job).errors == ()
    assert table.effects(job) == [1]


@pytest.mark.conformance(320)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_job_end_and_the_process_exit_with_0(
    table: Table, connect: Connect, number: signal.Signals
) -> None:
    """F7."""
    with gate(connect) as (locked, open_gate), table.worker() as process:
        job, waiting = table.enqueue("wait for the gate", gate=locked), table.enqueue("return")
        wait_until(lambda: table.started(job))
        process.send_signal(number)
        assert next_line(process) == b"stopping\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        assert table.job(job).state == JobState.RUNNING
        open_gate()
        assert process.wait(10) == 0
    assert table.job(job).state == JobState.COMPLETED
    assert table.effects(job) == [1]
    assert table.job(waiting).state == JobState.AVAILABLE, "no other job was begun"


@pytest.mark.conformance(320)
def test_a_signal_to_an_idle_worker_ends_it_at_once(table: Table) -> None:
    job = table.enqueue("return")
    with table.worker(threads=3) as process:
        wait_until(lambda: table.job(job).state == JobState.COMPLETED)
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0


@pytest.mark.conformance(320)
@pytest.mark.conformance(321)
@pytest.mark.conformance(352)
def test_a_second_signal_cuts_the_job_off_and_it_runs_again(table: Table, connect: Connect) -> None:
    with gate(connect) as (locked, open_gate):
        job = table.enqueue("wait for the gate", gate=locked)
        with table.worker() as process:
            wait_until(lambda: table.started(job))
            process.send_signal(signal.SIGTERM)
            assert next_line(process) == b"stopping\n"  # two that come at once are one
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.3)
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 128 + signal.SIGTERM
        assert table.effects(job) == [], "half a handler is never committed"
        open_gate()
    table.query("UPDATE {schema}.job SET attempted_at = attempted_at - interval '1 hour' WHERE state = 'running'")
    runs: list[int] = []
    pool = WorkerPool(table.client, {"job": lambda tx, job: runs.append(job.id)}, backoff=constant(timedelta(0)))
    with pool:
        wait_until(lambda: table.job(job).state == JobState.COMPLETED)
    assert runs == [job.id]


# Its handler heeds nothing, and it says when it has heard the first signal.
DEAF = """
import sys, threading
from pgjobs import Client, WorkerPool

def handler(tx, job):
    print("started", flush=True)
    while True:
        try:
            threading.Event().wait(60)
        except BaseException:
            continue

pool = WorkerPool(Client(sys.argv[1], schema=sys.argv[2]), {"job": handler})
threading.Thread(target=lambda: (pool._stopping.wait(), print("stopping", flush=True)), daemon=True).start()
pool.run()
"""


@pytest.mark.conformance(320)
def test_a_third_signal_ends_the_process_at_once_and_the_job_comes_back_by_itself(table: Table) -> None:
    """The second and the third come together, so that nothing of what the second begins can have been done."""
    job = table.enqueue("return")
    arguments = [sys.executable, "-c", DEAF, table.dsn, table.client.schema]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, cwd=ROOT) as process:
        try:
            assert next_line(process) == b"started\n"
            process.send_signal(signal.SIGTERM)
            assert next_line(process) == b"stopping\n"
            for number in (signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
                process.send_signal(number)
            assert process.wait(10) in (128 + signal.SIGINT, 128 + signal.SIGTERM)
        finally:
            process.kill()
    assert (table.job(job).state, table.job(job).attempt) == (JobState.RUNNING, 1), "nobody gave it back"
    table.query("UPDATE {schema}.job SET attempted_at = attempted_at - interval '1 hour'")
    with table.worker():
        wait_until(lambda: table.job(job).state == JobState.COMPLETED)
    assert [error.attempt for error in table.job(job).errors] == [1]


def test_the_row_of_a_worker_killed_in_a_long_statement_is_free_long_before_that_ends(table: Table) -> None:
    """T13. The server looks for its client while it works for it."""
    job = table.enqueue("wait in sql")
    with table.worker() as process:
        wait_until(lambda: table.started(job))
        wait_until(lambda: table.query(f"SELECT 1 FROM {OF_THIS_DATABASE} AND query LIKE 'SELECT pg_sleep(60)%%'"))
        process.kill()
        process.wait()
    free = "SELECT 1 FROM {schema}.job WHERE state = 'running' FOR UPDATE SKIP LOCKED"
    wait_until(lambda: table.query(free), timeout=8)  # two seconds, on a machine that does nothing else


def test_a_worker_whose_connection_is_ended_goes_on_with_the_next_job(table: Table, connect: Connect) -> None:
    """The process lives: it records the attempt itself, and needs no rescue."""
    with gate(connect) as (number, open_gate), table.worker() as process:
        job = table.enqueue("wait for the gate", gate=number)
        wait_until(lambda: table.started(job))
        end = f"SELECT pg_terminate_backend(pid) FROM {OF_THIS_DATABASE} AND wait_event = 'advisory' AND query LIKE %s"
        wait_until(lambda: table.query(end, "SELECT pg_advisory_xact_lock_shared%"))
        open_gate()
        wait_until(lambda: table.job(job).state == JobState.COMPLETED)
        assert process.poll() is None
    errors = table.job(job).errors
    assert [error.attempt for error in errors] == [1]
    assert "57P01" in errors[0].error
    assert table.effects(job) == [2]
