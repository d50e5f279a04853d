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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from benchmarks.drain import Drain
from benchmarks.ground import DEADLINE, table
from pgjobs import Client, WorkerPool

STATEMENTS = "pg_stat_statements"
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


def idle(dsn: str, schema: str, threads: int, seconds: float) -> dict[str, float]:
    """What a process with so many idle threads costs, each second but for the connections; asked from another database
    of a server that was started with pg_stat_statements, so that the question does not count itself."""
    beside = make_conninfo(dsn, dbname="template1")
    with _idle_pool(dsn, schema, threads) as child, psycopg.connect(beside, autocommit=True) as conn:
        conn.execute(f"CREATE EXTENSION IF NOT EXISTS {STATEMENTS}")
        database = str(conninfo_to_dict(dsn)["dbname"])
        first, began = _counts(conn, database, child.pid), time.monotonic()
        time.sleep(seconds)
        last, took = _counts(conn, database, child.pid), time.monotonic() - began
    rates = {name: (last[name] - first[name]) / took for name in first if name != "connections"}
    return {"connections": last["connections"], **rates}


@contextmanager
def _idle_pool(dsn: str, schema: str, threads: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "benchmarks.memory", "idle", dsn, schema, str(threads), "0"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()  # it is idle now
        yield child
        assert child.stdin is not None
        child.stdin.close()


def _be_idle(dsn: str, schema: str, threads: int) -> None:
    with Client(dsn, schema=schema) as client, WorkerPool(client, {"noop": _noop}, queues={"default": threads}):
        time.sleep(_SETTLE)
        print("idle", flush=True)
        sys.stdin.read()


def _noop(tx: object, job: object) -> None:
    pass


def _counts(conn: psycopg.Connection[Any], database: str, pid: int) -> dict[str, float]:
    """Connections now; transactions, statements and the processor's time so far."""
    conn.execute("SELECT pg_stat_clear_snapshot()")
    connections, transactions = conn.execute(
        "SELECT numbackends, xact_commit + xact_rollback FROM pg_stat_database WHERE datname = %s", [database]
    ).fetchall()[0]
    query = f"SELECT sum(calls)::float8 FROM {STATEMENTS} JOIN pg_database ON oid = dbid WHERE datname = %s"
    return {
        "connections": connections,
        "transactions": transactions,
        "statements": conn.execute(query, [database]).fetchall()[0][0],
        "processor, ms": 1000 * _processor_seconds(pid),
    }


def _processor_seconds(pid: int) -> float:
    """Of another process, with all its threads, so far."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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
