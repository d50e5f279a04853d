"""Schedules over processes that start together, and that are killed again and again: each tick once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from psycopg import Connection, sql

from pgjobs import Client
from tests.conftest import Connect
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
BEAT = timedelta(milliseconds=50)

# Forks a worker process for each line, and says its id; at the end it says how each of them ended. They have two
# schedules, of which code supplies the args of one, and work no queue of theirs, so that the jobs stay as they are.
WORKERS = """
import os, sys
from datetime import timedelta
from pgjobs import Client, NewJob, Schedule, WorkerPool, every

dsn, schema = sys.argv[1:]
beat = every(timedelta(milliseconds=50))
cron = [
    Schedule("fixed", beat, {}, kind="job", queue="kept", catch_up="all", run_on_start=True),
    Schedule("computed", beat, lambda: NewJob({}, kind="job"), queue="kept", catch_up="all"),
]
forked = []
for _ in sys.stdin:
    forked.append(os.fork())
    if forked[-1] == 0:
        client = Client(dsn, schema=schema)
        WorkerPool(client, {"job": lambda tx, job: None}, queues={"other": 1}, cron=cron).run()
        sys.exit()
    print(forked[-1], flush=True)
print(*[os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in forked])
"""


@pytest.fixture
def query(client: Client, connect: Connect) -> Any:
    conn: Connection[Any] = connect(autocommit=True)

    def run(text: str, *values: Any) -> list[Any]:
        return conn.execute(sql.SQL(text).format(schema=sql.Identifier(client.schema)), values or None).fetchall()

    return run


class Workers:
    """Worker processes, forked from one that has imported all that they need."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def start(self) -> int:
        """Start one, and return its process id."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("start\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def exit_codes(self) -> list[int]:
        """Wait until all have ended."""
        said, _ = self._process.communicate(timeout=30)
        return list(map(int, said.split()))


@pytest.fixture
def workers(client: Client, database: str) -> Iterator[Workers]:
    """Those that still live at the end of the test are killed."""
    with subprocess.Popen(
        [sys.executable, "-c", WORKERS, database, client.schema],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        process_group=0,
    ) as process:
        try:
            yield Workers(process)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def ticks_of(query: Any, name: str) -> list[datetime]:
    return [tick for (tick,) in query("SELECT tick FROM {schema}.job WHERE schedule = %s ORDER BY tick", name)]


def assert_each_tick_once(query: Any) -> None:
    """From the first one on, without a gap; beside them the one run at the start."""
    for name in ("fixed", "computed"):
        ticks = ticks_of(query, name)
        ((beat,),) = query("SELECT next_tick_at FROM {schema}.schedule WHERE name = %s", name)
        in_beat = [tick for tick in ticks if (beat - tick) % BEAT == timedelta(0)]
        assert all(later - earlier == BEAT for earlier, later in pairwise([*in_beat, beat]))
        assert len(ticks) - len(in_beat) == (1 if name == "fixed" else 0)


def test_f30_eight_processes_that_start_together_tick_once(workers: Workers, query: Any) -> None:
    pids = [workers.start() for _ in range(8)]
    wait_until(lambda: query("SELECT count(*) FROM {schema}.scheduler") == [(8,)], timeout=60)
    ((until,),) = query("SELECT clock_timestamp() + interval '1 second'")
    wait_until(lambda: all(ticks_of(query, name)[-1:] > [until] for name in ("fixed", "computed")), timeout=30)
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    assert workers.exit_codes() == [0] * 8
    assert_each_tick_once(query)
    assert query("SELECT count(*) FROM {schema}.scheduler") == [(0,)], "each signs off"


@pytest.mark.conformance(345)
def test_processes_that_are_killed_across_ticks_lose_none_and_double_none(workers: Workers, query: Any) -> None:
    """There is no leader to kill: whichever ticks is killed a moment after, or while, it does."""
    for _ in range(8):
        for pid in [workers.start(), workers.start()]:
            before = len(ticks_of(query, "computed"))
            wait_until(lambda before=before: len(ticks_of(query, "computed")) > before, timeout=30)  # type: ignore[misc]
            os.kill(pid, signal.SIGKILL)
    last = workers.start()
    wait_until(lambda: query("SELECT 1 FROM {schema}.worker WHERE pid = %s", last), timeout=30)
    behind = "SELECT 1 FROM {schema}.schedule WHERE next_tick_at < clock_timestamp() - interval '1 second'"
    wait_until(lambda: not query(behind), timeout=30)
    os.kill(last, signal.SIGTERM)
    assert workers.exit_codes() == [-signal.SIGKILL] * 16 + [0]
    assert_each_tick_once(query)
