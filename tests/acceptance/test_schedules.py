"""Schedules over processes that start together, and that are killed again and again: each tick once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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

# A worker process that has two schedules, of which code supplies the args of one. It works no queue of theirs, so that
# the jobs stay as they were made.
WORKER = """
import sys
from datetime import timedelta
from pgjobs import Client, NewJob, Schedule, WorkerPool, every

dsn, schema = sys.argv[1:]
beat = every(timedelta(milliseconds=50))
cron = [
    Schedule("fixed", beat, {}, kind="job", queue="kept", catch_up="all", run_on_start=True),
    Schedule("computed", beat, lambda: NewJob({}, kind="job"), queue="kept", catch_up="all"),
]
pool = WorkerPool(Client(dsn, schema=schema), {"job": lambda tx, job: None}, queues={"other": 1}, cron=cron)
print("ready", flush=True)
sys.stdin.readline()
pool.run()
"""


@pytest.fixture
def query(client: Client, connect: Connect) -> Any:
    conn: Connection[Any] = connect(autocommit=True)

    def run(text: str, *values: Any) -> list[Any]:
        return conn.execute(sql.SQL(text).format(schema=sql.Identifier(client.schema)), values or None).fetchall()

    return run


@contextmanager
def worker(dsn: str, schema: str) -> Iterator[subprocess.Popen[str]]:
    """A worker process that waits for `go`, killed on the way out if it still lives."""
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, dsn, schema],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def go(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()


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


def test_f30_eight_processes_that_start_together_tick_once(client: Client, database: str, query: Any) -> None:
    with ExitStack() as started:
        processes = [started.enter_context(worker(database, client.schema)) for _ in range(8)]
        go(*processes)
        wait_until(lambda: query("SELECT count(*) FROM {schema}.scheduler") == [(8,)], timeout=60)
        ((until,),) = query("SELECT clock_timestamp() + interval '1 second'")
        wait_until(lambda: all(ticks_of(query, name)[-1:] > [until] for name in ("fixed", "computed")), timeout=30)
        for process in processes:
            process.terminate()
        assert [process.wait(30) for process in processes] == [0] * 8
    assert_each_tick_once(query)
    assert query("SELECT count(*) FROM {schema}.scheduler") == [(0,)], "each signs off"


@pytest.mark.conformance(345)
def test_processes_that_are_killed_across_ticks_lose_none_and_double_none(
    client: Client, database: str, query: Any
) -> None:
    """There is no leader to kill: whichever ticks is killed a moment after, or while, it does."""
    for _ in range(8):
        with worker(database, client.schema) as first, worker(database, client.schema) as second:
            go(first, second)
            before = len(ticks_of(query, "computed"))
            wait_until(lambda before=before: len(ticks_of(query, "computed")) > before, timeout=30)  # type: ignore[misc]
            first.kill()
            between = len(ticks_of(query, "computed"))
            wait_until(lambda between=between: len(ticks_of(query, "computed")) > between, timeout=30)  # type: ignore[misc]
            second.kill()
    with worker(database, client.schema) as last:
        go(last)
        behind = "SELECT 1 FROM {schema}.schedule WHERE next_tick_at < clock_timestamp() - interval '1 second'"
        wait_until(lambda: not query(behind), timeout=30)
        last.terminate()
        assert last.wait(30) == 0
    assert_each_tick_once(query)
