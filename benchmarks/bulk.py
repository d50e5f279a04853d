"""How fast jobs are enqueued in bulk, what a million of them cost the client, and what another queue notices of it.

    python -m benchmarks.bulk [--jobs 1000000] [--dsn DSN]

Each way in a process of its own, one after the other, all jobs in one transaction. Beside the large batch a worker pool
of another queue is given a job every 20 ms; its pickup is the time from before the enqueue to the start of the handler.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import quantiles
from typing import Any

import psycopg

from benchmarks.memory import peak
from pgjobs import Client, Job, NewJob, Unique, WorkerPool
from pgjobs.embedded import EmbeddedPostgres

SCHEMA = "bulk"
BY_ARGS = Unique(by_args=True)
_PROBE_EVERY = 0.02  # seconds


@dataclass
class Mail:
    number: int
    address: str


@dataclass
class Probe:
    sent: float


def jobs(number: int, *, unique: bool = False) -> Iterator[object]:
    for n in range(number):
        mail = Mail(n, f"user{n}@example.com")
        yield NewJob(mail, unique=BY_ARGS) if unique else mail


WAYS = {
    "with ids": lambda client, tx, number: client.enqueue_many(tx, jobs(number)),
    "without": lambda client, tx, number: client.enqueue_many(tx, jobs(number), returning=False),
    "unique": lambda client, tx, number: client.enqueue_many(tx, jobs(number, unique=True)),
}

SHARE = {"with ids": 10, "without": 1, "unique": 20}  # of the jobs: all that come back are in memory at once


def enqueue(dsn: str, way: str, number: int) -> None:
    """One way, in this process; prints seconds, and the memory it took at most, in MB."""
    with Client(dsn, schema=SCHEMA) as client, client.pool.connection() as tx:
        started = time.perf_counter()
        WAYS[way](client, tx, number)
        tx.commit()
        print(time.perf_counter() - started, peak())


@contextmanager
def probing(client: Client) -> Iterator[list[float]]:
    """Times the pickup in another queue for as long as the block."""
    waits: list[float] = []
    stop = threading.Event()

    def pick_up(tx: psycopg.Connection[Any], job: Job[Probe]) -> None:
        waits.append(time.perf_counter() - job.args.sent)

    def send() -> None:
        while not stop.wait(_PROBE_EVERY):
            client.enqueue(None, Probe(time.perf_counter()), queue="probe")

    with WorkerPool(client, {Probe: pick_up}, queues={"probe": 2}):
        sender = threading.Thread(target=send)
        sender.start()
        yield waits
        stop.set()
        sender.join()


def notifications(dsn: str, act: Any) -> int:
    """How many notifications of the queue of the large batch are delivered while `act` runs, and somebody sleeps."""
    with psycopg.connect(dsn, autocommit=True) as listening, psycopg.connect(dsn, autocommit=True) as last:
        listening.execute(f'LISTEN "pgjobs:{SCHEMA}"'.encode())
        listening.execute(f"""SELECT pg_advisory_lock("{SCHEMA}".advisory_class(), hashtext('default'))""".encode())
        act()
        last.execute(f"SELECT pg_notify('pgjobs:{SCHEMA}', 'over')".encode())
        heard = 0
        for notice in listening.notifies():
            if notice.payload == "over":
                break
            heard += notice.payload == "default"
        return heard


def measure(dsn: str, number: int) -> None:
    print("| way | jobs | jobs/s | client MB | notifications | pickup elsewhere p50 / p99 ms (idle) |")
    print("| --- | --- | --- | --- | --- | --- |")
    for way in WAYS:
        size = number // SHARE[way]
        with Client(dsn, schema=SCHEMA) as client:
            client.migrate(direction="down", target=0)
            client.migrate()
            with probing(client) as idle:
                time.sleep(3)
            command = [sys.executable, "-m", "benchmarks.bulk", "--dsn", dsn, "--way", way, "--jobs", str(size)]
            said: list[str] = []

            def run(command: list[str] = command, said: list[str] = said) -> None:
                said += subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()

            with probing(client) as busy:
                heard = notifications(dsn, run)
        seconds, memory = map(float, said)
        print(
            f"| {way} | {size:,} | {size / seconds:,.0f} | {memory:.0f} | {heard} "
            f"| {_cut(busy, 50)} / {_cut(busy, 99)} ({_cut(idle, 50)} / {_cut(idle, 99)}) |",
            flush=True,
        )


def _cut(waits: list[float], percent: int) -> str:
    return f"{1000 * quantiles(waits, n=100)[percent - 1]:.1f}" if len(waits) > 1 else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--dsn", help="a server of your own; without it one is started")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)  # of the process that does one
    given = parser.parse_args()
    if given.way:
        enqueue(given.dsn, given.way, given.jobs)
    elif given.dsn:
        measure(given.dsn, given.jobs)
    else:
        with EmbeddedPostgres() as server:
            measure(server.dsn, given.jobs)


if __name__ == "__main__":
    main()
