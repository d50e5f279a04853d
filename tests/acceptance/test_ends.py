"""Worker pools that are not ended as they should be: the client is closed first, or the program just ends."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg_pool import ConnectionPool, PoolClosed

from pgjobs import Client, Job, JobState, WorkerPool
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
SAID = "its client was closed while it ran, so it stops: call stop() before client.close()"


@pytest.fixture(params=["own", "theirs"])
def closing(request: pytest.FixtureRequest, database: str, client: Client) -> Iterator[tuple[Client, Any]]:
    """A client, and what closes its connections."""
    if request.param == "own":
        mine = Client(database, schema=client.schema)
        yield mine, mine.close
        mine.close()
        return
    with ConnectionPool(database, min_size=0, max_size=8, open=True) as theirs:
        yield Client(theirs, schema=client.schema), theirs.close


@pytest.mark.finding("E8")
def test_a_pool_whose_client_is_closed_stops_and_says_so_once(
    client: Client, closing: tuple[Client, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """It went on for ever, and logged each try."""
    caplog.set_level(logging.INFO, logger="pgjobs")
    runs, free = threading.Event(), threading.Event()

    def handler(tx: Any, job: Job[Any]) -> None:
        runs.set()
        assert free.wait(20)
        tx.execute("SELECT 1")

    mine, close = closing
    pool = WorkerPool(mine, {"work": handler}, queues={"default": 3, "other": 2}).start()
    job: Job[Any] = client.enqueue(None, {}, kind="work")
    assert runs.wait(20)
    close()
    wait_until(lambda: SAID in caplog.text)
    free.set()  # what runs then ends as if nothing had happened
    wait_until(lambda: not pool.running)
    found = client.get(job.id)
    assert found is not None
    assert (found.state, found.errors) == (JobState.COMPLETED, ())
    assert pool.stop() is True
    mine_alone = [record for record in caplog.records if record.name.startswith("pgjobs")]
    assert [record.getMessage() for record in mine_alone if record.levelno >= logging.WARNING] == [f"pgjobs: {SAID}"]


@pytest.mark.finding("E8")
def test_a_pool_that_runs_until_a_signal_raises_when_its_client_is_closed(database: str, client: Client) -> None:
    """It went on for ever."""
    program = """
import sys, threading
from pgjobs import Client, WorkerPool, WorkerPoolError
client = Client(sys.argv[1], schema=sys.argv[2])
threading.Timer(0.5, client.close).start()
try:
    WorkerPool(client, {"work": print}).run()
except WorkerPoolError as error:
    print(error)
"""
    done = ended(program, database, client.schema)
    assert done.stdout == "worker pool 'pgjobs' has stopped: its client was closed while it ran\n"
    assert done.stderr == f"pgjobs: {SAID}\n"


@pytest.mark.finding("E8")
def test_a_pool_of_a_closed_client_does_not_start(database: str, client: Client) -> None:
    """It started, worked nothing and said so again and again."""
    mine = Client(database, schema=client.schema)
    mine.close()
    pool = WorkerPool(mine, {"work": print})
    with pytest.raises(PoolClosed, match="the client is closed"):
        pool.start()
    assert not pool.running


def ended(program: str, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program, *args]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.finding("E8")
@pytest.mark.parametrize("end", ["", "sys.exit()", "client.close()"], ids=["falls off its end", "exits", "closes"])
@pytest.mark.parametrize("listen", [True, False], ids=["listening", "polling"])
def test_a_program_that_ends_without_a_stop_ends_quietly(client: Client, database: str, end: str, listen: bool) -> None:
    """It printed nine errors, and the attempt was lost."""
    program = f"""
import sys, threading, time
from datetime import timedelta
from pgjobs import Client, WorkerPool
client = Client(sys.argv[1], schema=sys.argv[2])
runs, many = threading.Event(), threading.Semaphore(0)

def work(tx, job):
    tx.execute("SELECT 1")
    many.release()

def slow(tx, job):
    tx.execute("SELECT 1")
    runs.set()
    time.sleep(60)

pool = WorkerPool(client, {{"work": work, "slow": slow}}, queues={{"default": 4, "other": 2}}, listen={listen},
                  stop_timeout=timedelta(seconds=1))
pool.start()
for _ in range(10):
    client.enqueue(None, {{}}, kind="work")
slow = client.enqueue(None, {{}}, kind="slow")
assert runs.wait(20)
for _ in range(10):
    assert many.acquire(timeout=20)
print(slow.id)
{end}
"""
    began = time.monotonic()
    done = ended(program, database, client.schema)
    assert time.monotonic() - began < 20
    assert "stop()" in done.stderr.splitlines()[0]
    assert "Traceback" not in done.stderr
    found = client.get(int(done.stdout))
    assert found is not None
    if end != "client.close()":  # else there is no connection to write the outcome on, and others rescue the job
        assert done.stderr.count("its handler ignores that it is to end") == 1, done.stderr
        assert (found.state, found.attempt, found.errors) == (JobState.AVAILABLE, 0, ())
    with WorkerPool(client, {"slow": lambda tx, job: None}, queues={"default": 1}):
        slow = int(done.stdout)
        wait_until(lambda: (job := client.get(slow)) and job.state == JobState.COMPLETED, timeout=30)


@pytest.mark.finding("E8")
def test_a_program_that_has_stopped_its_pool_says_nothing(client: Client, database: str) -> None:
    """The line that reminds of stop() is for those who forgot."""
    program = """
import sys
from pgjobs import Client, WorkerPool
client = Client(sys.argv[1], schema=sys.argv[2])
pool = WorkerPool(client, {"work": print}).start()
pool.stop()
with pool:
    pass
"""
    assert ended(program, database, client.schema).stderr == ""


@pytest.mark.finding("E8")
@pytest.mark.parametrize(
    "made", ["WorkerPool(client, {'work': work})", "None"], ids=["pool is made before", "pool is made after"]
)
def test_a_program_may_stop_its_pool_at_its_exit(client: Client, database: str, made: str) -> None:
    """A stop() that was registered with atexit before the start came too late: the job was cut off by then."""
    program = f"""
import atexit, sys, threading, time
from pgjobs import Client, WorkerPool
client = Client(sys.argv[1], schema=sys.argv[2])
runs = threading.Event()

def work(tx, job):
    runs.set()
    time.sleep(1)

def end():
    pool.stop()
    client.close()

pool = {made}
atexit.register(end)
pool = pool or WorkerPool(client, {{"work": work}})
pool.start()
job = client.enqueue(None, {{}}, kind="work")
assert runs.wait(20)
print(job.id)
"""
    done = ended(program, database, client.schema)
    assert done.stderr == ""
    job = client.get(int(done.stdout))
    assert job is not None
    assert job.state is JobState.COMPLETED
