"""How long a stop waits, and what a probe is told."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pgjobs import Client, InvalidSetting, Job, JobState, WorkerPool
from pgjobs.maintenance.thread import MaintenanceThread
from tests import inside
from tests.conformance.conftest import Gate, Rows, Stored
from tests.samples import HOUR, SECOND, Thing, nothing, shown
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys, threading, time
from datetime import timedelta
from pgjobs import Client, WorkerPool

def slow(tx, job):
    tx.execute("SELECT 1")
    print("runs", flush=True)
    {body}

client = Client(sys.argv[1], schema=sys.argv[2])
pool = WorkerPool(client, {{"slow": slow}}, queues={{"default": 2}}, stop_timeout=timedelta(seconds=1))
{end}
"""
SLEEPS, SPINS = "time.sleep(60)", "while True: time.sleep(0.01)"


@contextmanager
def program(client: Client, database: str, text: str, jobs: int = 2) -> Iterator[subprocess.Popen[str]]:
    """A process whose jobs run."""
    for _ in range(jobs):
        client.enqueue(None, {}, kind="slow")
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", text, database, client.schema]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            for _ in range(jobs):
                assert process.stdout.readline() == "runs\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("body", [SLEEPS, SPINS], ids=["in C", "in Python"])
def test_one_sigterm_gives_the_attempts_of_long_jobs_back_before_a_sigkill(
    client: Client, database: str, sql: Rows, body: str
) -> None:
    with program(client, database, PROGRAM.format(body=body, end="pool.run()")) as process:
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=20)
    assert sql("SELECT state, attempt, errors FROM pgjobs.job") == [("available", 0, [])] * 2
    assert process.returncode in (0, 1), stderr
    assert (process.returncode == 0) == (body == SPINS), "1 says that a thread was left behind"


@pytest.mark.parametrize("body", [SLEEPS, SPINS], ids=["in C", "in Python"])
def test_ctrl_c_at_the_exit_of_a_program_ends_the_wait(client: Client, database: str, sql: Rows, body: str) -> None:
    end = "pool.start()\nthreading.Event().wait()"
    text = PROGRAM.format(body=body, end=end).replace("timedelta(seconds=1)", "None")
    with program(client, database, text) as process:
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        while "it waits without limit for 2 running jobs" not in (line := process.stderr.readline()):
            assert line
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert sql("SELECT state, attempt, errors FROM pgjobs.job") == [("available", 0, [])] * 2


def test_a_stop_waits_as_long_as_the_setting_says_and_a_timeout_that_is_given_wins(
    client: Client, gate: Gate, stored: Stored
) -> None:
    pool = WorkerPool(client, {Thing: gate}, queues={"default": 1}, stop_timeout=SECOND / 10)
    first = client.enqueue(None, Thing())
    with pool:  # the end of the block
        assert gate.entered.acquire(timeout=10)
    assert (stored(first).state, stored(first).attempt) == (JobState.AVAILABLE, 0)
    pool.start()
    assert gate.entered.acquire(timeout=10)
    assert pool.stop() is False
    assert (stored(first).state, stored(first).attempt) == (JobState.AVAILABLE, 0)
    pool.start()
    assert gate.entered.acquire(timeout=10)
    stopped: list[bool] = []
    thread = threading.Thread(target=lambda: stopped.append(pool.stop(None)))
    thread.start()
    wait_until(inside.stopping(pool).is_set)
    thread.join(1)
    assert stopped == [], "None waits for ever, whatever the setting"
    gate.open.set()
    thread.join(10)
    assert stopped == [True]
    assert stored(first).state == JobState.COMPLETED


def test_a_stop_is_not_told_of_a_thread_that_an_earlier_one_left_behind(client: Client, gate: Gate) -> None:
    pool = WorkerPool(client, {Thing: gate}, queues={"default": 1}).start()
    job = client.enqueue(None, Thing())
    assert gate.entered.acquire(timeout=10)
    assert pool.stop_and_cancel() is False
    client.cancel(job.id)
    pool.start()
    assert pool.stop() is True, "this stop has cut off no handler"
    assert pool.any_stuck
    gate.open.set()
    wait_until(lambda: not pool.any_stuck)


def test_ctrl_c_in_a_stop_cuts_off_and_the_next_stop_does_not_wait_again(
    client: Client, gate: Gate, stored: Stored
) -> None:
    pool = WorkerPool(client, {Thing: gate}, queues={"default": 1}, stop_timeout=None).start()
    job = client.enqueue(None, Thing())
    assert gate.entered.acquire(timeout=10)

    def interrupt() -> None:
        wait_until(inside.stopping(pool).is_set)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            pool.stop()
    finally:
        signal.signal(signal.SIGINT, before)
    pool.stop()
    assert (stored(job).state, stored(job).attempt) == (JobState.AVAILABLE, 0)


@pytest.mark.parametrize("value", [25, "25s", -SECOND], ids=shown)
def test_a_stop_timeout_that_is_no_time_is_refused(client: Client, value: Any) -> None:
    with pytest.raises(InvalidSetting, match="stop_timeout must"):
        WorkerPool(client, {Thing: nothing}, stop_timeout=value)


# --- healthy


def test_a_pool_is_healthy_from_its_start_to_its_stop(client: Client, gate: Gate) -> None:
    pool = WorkerPool(client, {Thing: gate}, queues={"default": 2, "other": 1}, poll_interval=HOUR)
    assert not pool.healthy()
    with pool:
        assert pool.healthy()
        pool.add_queue("more", 2)
        assert pool.healthy()
        pool.remove_queue("other")
        assert pool.healthy()
        client.enqueue(None, Thing())
        assert gate.entered.acquire(timeout=10)
        inside.begin_stop(pool)
        wait_until(lambda: len(inside.at_work(pool)) == 1)
        assert pool.healthy(), "it stops, and waits for a job"
        gate.open.set()
    assert not pool.healthy()


@pytest.mark.one_by_one("the timeouts are those of single jobs")
def test_a_pool_with_a_stuck_thread_is_not_healthy_until_that_has_ended(client: Client) -> None:
    free, entered = threading.Event(), threading.Event()

    def resists(tx: Any, job: Job[Any]) -> None:
        entered.set()
        while not free.is_set():
            try:
                free.wait(20)
            except BaseException:
                continue

    pool = WorkerPool(client, {Thing: resists}, queues={"default": 1}, timeout=SECOND / 10)
    job = client.enqueue(None, Thing())
    with pool:
        assert entered.wait(10)
        assert pool.healthy()
        wait_until(lambda: not pool.healthy(), timeout=20)
        client.cancel(job.id)  # else it runs again
        free.set()
        wait_until(pool.healthy)


@pytest.mark.parametrize("part", ["worker-0", "worker-1", "watch", "listener", "maintenance"])
def test_a_pool_that_has_lost_a_thread_is_not_healthy(
    client: Client, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with WorkerPool(client, {Thing: nothing}, queues={"default": 2}, name="lost") as pool:
        assert pool.healthy()
        (thread,) = (thread for thread in threading.enumerate() if thread.name == f"lost/{part}")
        with monkeypatch.context() as patch:
            patch.setattr(thread, "is_alive", lambda: False)
            assert not pool.healthy()
        assert pool.healthy()


def test_a_maintenance_thread_that_hangs_makes_the_pool_unhealthy(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, hangs = threading.Event(), threading.Event()

    def hang(self: MaintenanceThread) -> None:
        hangs.set()
        assert free.wait(20)

    with WorkerPool(client, {Thing: nothing}, queues={"default": 1}) as pool:
        monkeypatch.setattr(MaintenanceThread, "_do_housekeeping", hang)
        assert hangs.wait(10)
        wait_until(lambda: not pool.healthy(SECOND), timeout=60)
        assert pool.healthy(HOUR)
        monkeypatch.undo()
        free.set()
        wait_until(lambda: pool.healthy(SECOND))


@pytest.mark.parametrize("age", [5, None, -SECOND], ids=shown)
def test_an_age_that_is_no_time_is_refused(client: Client, age: Any) -> None:
    with pytest.raises(InvalidSetting, match="max_age must"):
        WorkerPool(client, {Thing: nothing}).healthy(age)
