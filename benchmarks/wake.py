"""What it costs those who enqueue that sleepers are to be woken, and how soon these start.

    python -m benchmarks.wake             # on an embedded Postgres with fsync on, or on DATABASE_URL

Commits: pgbench runs the very statement of `enqueue`, one in each transaction, beside the same without any NOTIFY and
with one in every commit, heard by one connection. The pool is one of four threads: all of them at work on something
else, or idle, in which case they also work what is enqueued.

Pickup: from before the call of `enqueue` until the handler starts, on one clock in one process: one job after the other
with pauses (sparse), or whenever chance wants it, so many a second (dense).
"""

from __future__ import annotations

import argparse
import random
import re
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.floors import pgbench
from benchmarks.ground import WrongResult, database, progress
from pgjobs import Client, Job, WorkerPool
from pgjobs.db import statements
from pgjobs.db.channel import channel, listen

NOTHING, BUSY, IDLE, ALWAYS = "no NOTIFY", "all at work", "some idle", "NOTIFY always"
_THREADS = 4
_POLL = timedelta(seconds=1)
_DEADLINE = 30.0
_CALLED = re.compile(
    r"CASE WHEN NOT pg_catalog\.pg_try_advisory.*?(pg_catalog\.pg_notify\(%\(channel\)s, queue\)) END", re.DOTALL
)
_VALUES: dict[str, Any] = {
    "queue": "default",
    "kind": "noop",
    "priority": 0,
    "max_attempts": 25,
    "args": '{"n": 1, "address": "ada@example.com"}',
    "metadata": "{}",
}


@dataclass
class Commits:
    """Enqueuing commits a second, by who works meanwhile."""

    clients: int
    rates: dict[str, list[float]] = field(default_factory=lambda: {arm: [] for arm in (NOTHING, BUSY, IDLE, ALWAYS)})

    def median(self, arm: str) -> float:
        return statistics.median(self.rates[arm])

    def __str__(self) -> str:
        best = self.median(NOTHING)
        return f"{self.clients:>7}" + "".join(
            f"{self.median(a):>9,.0f} {self.median(a) / best:<6.2f}" for a in self.rates
        )


@dataclass
class Pickup:
    """Milliseconds from before the enqueue to the start of the handler."""

    load: str
    waits: list[float]

    def __str__(self) -> str:
        waits = sorted(self.waits)
        p50, p99 = (waits[int(len(waits) * part)] for part in (0.5, 0.99))
        return f"{self.load:>7}{len(waits):>7}{p50:>8.2f}{p99:>8.2f}{waits[-1]:>8.2f}"


def script(conn: psycopg.Connection[Any], schema: str, arm: str) -> str:
    """The statement of `enqueue` with its values in it."""
    text = statements.load("enqueuing.sql", schema)["insert_plain_job"].decode()
    if arm in (NOTHING, ALWAYS):
        text, found = _CALLED.subn(r"\1" if arm == ALWAYS else "NULL", text)
        if not found:
            raise WrongResult("the statement of enqueue has changed, and with it what is compared here")
    values = {**_VALUES, "channel": channel(schema)}
    composed = psycopg.ClientCursor(conn).mogrify(text.encode(), values)
    return composed.replace("'pgjobs:", "'pgjobs' || ':' || '")  # what follows a colon is a variable to pgbench


@contextmanager
def others(dsn: str, schema: str, arm: str) -> Iterator[None]:
    """Whoever is there beside those who enqueue."""
    with Client(dsn, schema=schema) as client, psycopg.connect(dsn, autocommit=True) as ear:
        if arm in (NOTHING, ALWAYS):
            listen(ear, client.schema)
            yield
            return
        entered, free = threading.Semaphore(0), threading.Event()

        def hold(tx: psycopg.Connection[Any], job: Job[Any]) -> None:
            entered.release()
            free.wait(_DEADLINE)

        handlers = {"noop": lambda tx, job: None, "hold": hold}
        with WorkerPool(client, handlers, queues={"default": _THREADS}, poll_interval=_POLL, reindex_at=None):
            for _ in range(_THREADS if arm == BUSY else 0):
                client.enqueue(None, {"n": 1}, kind="hold", priority=-1)
                if not entered.acquire(timeout=_DEADLINE):
                    raise WrongResult("a thread that should be at work is not")
            time.sleep(0.3)  # until it has noticed itself that they all are, or sleep
            yield
            free.set()


def _empty(conn: psycopg.Connection[Any], schema: str) -> None:
    conn.execute(f'TRUNCATE "{schema}".job'.encode())


def commits(dsn: str, schema: str, arm: str, clients: int, seconds: float) -> float:
    """Transactions a second that each enqueue one job."""
    with psycopg.connect(dsn, autocommit=True) as conn, tempfile.TemporaryDirectory() as directory:
        _empty(conn, schema)
        path = Path(directory, "enqueuing.sql")
        path.write_text(script(conn, schema, arm).rstrip().rstrip(";") + ";\n")
        command = [pgbench(), "--no-vacuum", "--protocol=prepared", f"--file={path}", f"--client={clients}"]
        with others(dsn, schema, arm):
            command += ["--jobs=2", f"--time={seconds:.0f}", dsn]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = re.search(r"tps = ([\d.]+)", done.stdout)
        if done.returncode != 0 or found is None:
            raise WrongResult(f"pgbench failed:\n{done.stderr}")
        return float(found[1])


def measure_commits(dsn: str, schema: str, clients: Sequence[int], seconds: float, rounds: int) -> list[Commits]:
    """All arms in turns. The schema has been migrated; what is in its table of jobs is lost."""
    rows = [Commits(number) for number in clients]
    for round in range(rounds):
        for row in rows:
            for arm, rates in row.rates.items():
                progress(f"round {round + 1}: {row.clients}, {arm}")
                rates.append(commits(dsn, schema, arm, row.clients, seconds))
    progress("")
    return rows


def measure_pickup(dsn: str, schema: str, jobs: int, per_second: float) -> list[Pickup]:
    """Of so many jobs each. As above, the jobs of the schema are lost."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        _empty(conn, schema)

    def sparse(send: Callable[[], None], picked: threading.Semaphore) -> None:
        for _ in range(jobs):
            send()
            picked.acquire(timeout=_DEADLINE)
            time.sleep(random.uniform(0.01, 0.03))

    def dense(send: Callable[[], None], picked: threading.Semaphore) -> None:
        for _ in range(jobs):
            send()
            time.sleep(random.expovariate(per_second))
        for _ in range(jobs):
            picked.acquire(timeout=_DEADLINE)

    return [Pickup(load.__name__, _waits(dsn, schema, load, jobs)) for load in (sparse, dense)]


def _waits(
    dsn: str, schema: str, load: Callable[[Callable[[], None], threading.Semaphore], None], jobs: int
) -> list[float]:
    waits: list[float] = []
    picked = threading.Semaphore(0)

    def handler(tx: psycopg.Connection[Any], job: Job[dict[str, float]]) -> None:
        waits.append((time.monotonic() - job.args["sent"]) * 1000)
        picked.release()

    with Client(dsn, schema=schema) as client, Client(dsn, schema=schema) as working:

        def send() -> None:
            with client.pool.connection() as tx:
                client.enqueue(tx, {"sent": time.monotonic()}, kind="probe")

        with WorkerPool(working, {"probe": handler}, queues={"default": _THREADS}, poll_interval=_POLL):
            for _ in range(20):  # the first need connections
                send()
                picked.acquire(timeout=_DEADLINE)
                time.sleep(0.02)
            waits.clear()
            load(send, picked)
    if len(waits) != jobs:
        raise WrongResult(f"{jobs} jobs should have been started, but {len(waits)} were")
    return waits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[8, 16], help="who commit at once (default: 8 16)")
    parser.add_argument("--seconds", type=float, default=5, help="of one run (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=500, help="to be picked up, of each kind (default: %(default)s)")
    parser.add_argument("--per-second", type=float, default=200, help="dense jobs (default: %(default)s)")
    options = parser.parse_args()
    with database() as (dsn, schema):
        with Client(dsn, schema=schema) as client:
            client.migrate()
        rows = measure_commits(dsn, schema, options.clients, options.seconds, options.rounds)
        print("enqueuing commits a second, and over those without any NOTIFY")
        print(f"{'clients':>7}" + "".join(f"{arm:>16}" for arm in rows[0].rates), *rows, sep="\n")
        print("\npickup in milliseconds, from before the enqueue to the start of the handler")
        head = f"{'load':>7}{'jobs':>7}{'p50':>8}{'p99':>8}{'most':>8}"
        print(head, *measure_pickup(dsn, schema, options.jobs, options.per_second), sep="\n")


if __name__ == "__main__":
    main()
