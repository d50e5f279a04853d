"""What a worker process needs: memory while it drains a queue; connections and queries while it has nothing to do.

Each is asked of a process of its own, which runs this file.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from benchmarks.drain import Drain
from benchmarks.ground import table
from benchmarks.workload import DEADLINE
from pgjobs import Client, WorkerPool

STATEMENTS = "pg_stat_statements"
_CALLS = f"SELECT COALESCE(sum(calls), 0) FROM {STATEMENTS} JOIN pg_database ON oid = dbid WHERE datname = %s"
_SETTLE = 12.0  # seconds until a pool that has just started is idle, and the server has counted what it did until then


def peak() -> float:
    """The most memory that this process ever had, in MB. `getrusage` gives the parent's figure where that is more."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)
    return float(status.partition("VmHWM:")[2].split()[0]) / 1024


def draining(what: str, dsn: str, schema: str, threads: int, jobs: int) -> float:
    """The most memory that a process of its own had, in MB, when it had drained so many jobs."""
    command = [sys.executable, "-m", "benchmarks.memory", what, dsn, schema, str(threads), str(jobs)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=DEADLINE)
    return float(done.stdout)


def _drain(dsn: str, schema: str, threads: int, jobs: int, **options: Any) -> None:
    with table(dsn, schema, jobs) as (client, rows):
        Drain(client, rows, threads, **options)()
    print(peak())


# --- nothing to do


class IdleProcess:
    """A process with so many idle threads, looked at from another database of its server, so that looking does not
    count itself. The server was started with pg_stat_statements."""

    def __init__(self, dsn: str, schema: str, threads: int) -> None:
        self._command = [sys.executable, "-m", "benchmarks.memory", "idle", dsn, schema, str(threads), "0"]
        self._database = str(conninfo_to_dict(dsn)["dbname"])
        self._beside = make_conninfo(dsn, dbname="template1")

    def __enter__(self) -> Self:
        self._conn = psycopg.connect(self._beside, autocommit=True)
        self._conn.execute(f"CREATE EXTENSION IF NOT EXISTS {STATEMENTS}")
        self._child = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._child.stdout is not None
        self._child.stdout.readline()  # it is idle now
        return self

    def __exit__(self, *raised: object) -> None:
        with self._child:
            assert self._child.stdin is not None
            self._child.stdin.close()
        self._conn.close()

    def rates(self, seconds: float) -> dict[str, float]:
        """What it costs in a second; and its connections."""
        first, began = self._counts(), time.monotonic()
        time.sleep(seconds)
        last, took = self._counts(), time.monotonic() - began
        connections = self._one("SELECT numbackends FROM pg_stat_database WHERE datname = %s")
        return {"connections": connections, **{name: (last[name] - first[name]) / took for name in first}}

    def claims(self, seconds: float, act: Callable[[], object]) -> float:
        """How often its threads look for a job within so many seconds from an act."""
        query = f"{_CALLS} AND query LIKE 'UPDATE%%attempt = attempt + %%'"
        before = self._one(query)
        act()
        time.sleep(seconds)
        return self._one(query) - before

    def _counts(self) -> dict[str, float]:
        self._conn.execute("SELECT pg_stat_clear_snapshot()")
        return {
            "transactions": self._one("SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = %s"),
            "statements": self._one(_CALLS),
            "processor, ms": 1000 * _processor_seconds(self._child.pid),
        }

    def _one(self, query: str) -> float:
        return float(self._conn.execute(query, [self._database]).fetchall()[0][0])


def _processor_seconds(pid: int) -> float:
    """Of another process, with all its threads, so far."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _be_idle(dsn: str, schema: str, threads: int) -> None:
    with Client(dsn, schema=schema) as client, WorkerPool(client, {"noop": _noop}, queues={"default": threads}):
        time.sleep(_SETTLE)
        print("idle", flush=True)
        sys.stdin.read()


def _noop(tx: object, job: object) -> None:
    pass


def main() -> None:
    parser = argparse.ArgumentParser(description="a part of `make bench`: what one worker process needs")
    parser.add_argument("what", choices=("drain", "batches", "idle"))
    parser.add_argument("dsn")
    parser.add_argument("schema")
    parser.add_argument("threads", type=int)
    parser.add_argument("jobs", type=int)
    given = parser.parse_args()
    where = (given.dsn, given.schema, given.threads)
    if given.what == "idle":
        _be_idle(*where)
    else:
        options: dict[str, Any] = {"batch_size": 100} if given.what == "batches" else {}
        _drain(*where, given.jobs, **options)


if __name__ == "__main__":
    main()
