"""The work that is measured, in the public names of pgjobs alone, so that it runs over any version of pgjobs.

As a program it is one side of a comparison (`make bench BASELINE=...`): a process with that side's pgjobs on its path.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import psycopg

import pgjobs
from benchmarks.calls import count_calls
from benchmarks.sources import Source, Write, connected, write_with_psycopg
from pgjobs import Client, Job, WorkerPool, WorkMap

DEADLINE = 300.0  # seconds that one run may take
Handling = Literal["noop", "insert"]
Run = Callable[[], dict[str, Any]]  # does the work once, and says what came of it

_WARM_UP = 3  # the first jobs of a pool wait for its connections
_IDLE_AFTER = 0.3  # seconds after a job until its pool sleeps again


# --- work jobs


class Work:
    """A worker pool whose handler does nothing, or inserts one row through its `tx`. It notes the id of each start.

    `write` inserts that row; without it, psycopg does. `noted` is called with the number of starts so far. Other
    options are those of the pool.
    """

    def __init__(
        self,
        client: Client,
        threads: int,
        *,
        handling: Handling = "noop",
        kind: str = "noop",
        write: Write | None = None,
        noted: Callable[[int], None] = lambda started: None,
        **options: Any,
    ) -> None:
        self._insert = write or write_with_psycopg(client.schema)
        self._noted = noted
        self.started: list[int] = []  # job ids; appending is one step under the interpreter's lock
        self._last = threading.Event()
        handler = self._note if handling == "noop" else self._write
        options.setdefault("queues", {"default": threads})
        self.pool = WorkerPool(client, WorkMap({kind: handler}), **options)

    def _write(self, tx: Any, job: Job[Any]) -> None:
        self._insert(tx, job.id)
        self._note(tx, job)

    def _note(self, tx: Any, job: Job[Any]) -> None:
        self.started.append(job.id)
        self._noted(len(self.started))
        if len(self.started) >= self._goal:
            self._last.set()

    def __call__(self, goal: int, patience: float = DEADLINE) -> list[int]:
        """Let the pool run until that many jobs are started, or the patience ends; the ids of all that were."""
        with self.working(goal):
            self._last.wait(patience)
        return self.started

    @contextmanager
    def working(self, goal: int) -> Iterator[None]:
        """The pool runs in this block; afterwards `started` has the ids of all jobs that it started."""
        self._goal = goal
        self.started.clear()
        self._last.clear()
        with self.pool:
            yield


def twice(started: list[int]) -> list[int]:
    return [job for job, starts in Counter(started).items() if starts > 1]


# --- wait for jobs


@dataclass
class Probe:
    sent: float


@contextmanager
def probed(
    dsn: str, schema: str, expected: int, threads: int = 4
) -> Iterator[tuple[Client, list[tuple[float, datetime]]]]:
    """A client to enqueue with, beside a pool that works with a client of its own.

    Also the wait of each job with its instant, once the block is over. A wait is from `Probe.sent`, on the clock of
    `time.time`.
    """
    waits: list[tuple[float, datetime]] = []
    picked = threading.Semaphore(0)

    def pick_up(tx: psycopg.Connection[Any], job: Job[Probe]) -> None:
        waits.append((time.time() - job.args.sent, job.scheduled_at))
        picked.release()

    with (
        Client(dsn, schema=schema) as working,
        Client(dsn, schema=schema) as client,
        WorkerPool(working, {Probe: pick_up}, queues={"default": threads}),
    ):
        for _ in range(_WARM_UP):
            client.enqueue(None, Probe(time.time()))
            picked.acquire(timeout=DEADLINE)
            time.sleep(_IDLE_AFTER)
        waits.clear()
        yield client, waits
        for _ in range(expected):
            if not picked.acquire(timeout=DEADLINE):
                break


def warmed(expected: int) -> int:
    """How many jobs `probed` completes in all."""
    return expected + _WARM_UP


def pickup(dsn: str, schema: str, probes: int) -> list[float]:
    """In ms, from just before the enqueue, which commits a transaction of its own, to the start of the handler."""
    with probed(dsn, schema, probes) as (client, waits):
        for _ in range(probes):
            time.sleep(random.uniform(0.02, 0.06))
            client.enqueue(None, Probe(time.time()))
    return [1000 * wait for wait, _ in waits]


# --- enqueue jobs


@dataclass
class Mail:
    number: int
    address: str


def mails(number: int) -> Iterator[Mail]:
    return (Mail(n, f"user{n}@example.com") for n in range(number))


def one_by_one(client: Client, jobs: int, threads: int) -> None:
    """Each in a transaction of its own on a connection of the client's pool."""
    start = threading.Barrier(threads)

    def work(first: int) -> None:
        start.wait()
        for n in range(first, jobs, threads):
            with client.pool.connection() as tx:
                client.enqueue(tx, Mail(n, f"user{n}@example.com"))

    with ExitStack() as held:  # the pool connects now
        for _ in range(threads):
            held.enter_context(client.pool.connection())
    running = [threading.Thread(target=work, args=[n]) for n in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()


def many(client: Client, jobs: int, *, returning: bool) -> tuple[int, float]:
    """The number of jobs that one `enqueue_many` returns, and the seconds that it took with its commit."""
    started = time.perf_counter()
    with client.pool.connection() as tx:
        if returning:
            made = len([job.id for job in client.enqueue_many(tx, mails(jobs))])
        else:
            made = client.enqueue_many(tx, mails(jobs), returning=False)
    return made, time.perf_counter() - started


# --- one side of a comparison


@contextmanager
def _migrate(dsn: str, schema: str, jobs: int) -> Iterator[Run]:
    with Client(dsn, schema=schema) as client:
        client.migrate()
    yield lambda: {}


@contextmanager
def _drain(
    dsn: str,
    schema: str,
    jobs: int,
    *,
    threads: int,
    handling: Handling = "noop",
    source: Source = "own pool",
    **options: Any,
) -> Iterator[Run]:
    with connected(source, dsn, schema, threads) as (client, write):
        work = Work(client, threads, handling=handling, write=write, **options)

        def run() -> dict[str, Any]:
            started = work(jobs)
            return {"started": len(started), "twice": twice(started)}

        yield run


@contextmanager
def _calls(
    dsn: str,
    schema: str,
    jobs: int,
    *,
    threads: int,
    handling: Handling = "noop",
    source: Source = "own pool",
    **options: Any,
) -> Iterator[Run]:
    with connected(source, dsn, schema, threads) as (client, write):

        def run() -> dict[str, Any]:
            inserting = write if handling == "insert" else None
            python, c = count_calls(client, threads, jobs, write=inserting, **options)
            return {"Python calls": python, "C calls": c}

        yield run


@contextmanager
def _share(
    dsn: str, schema: str, jobs: int, *, threads: int, handling: Handling = "noop", **options: Any
) -> Iterator[Run]:
    """Work beside other processes until the input says that all jobs are done."""
    with Client(dsn, schema=schema) as client:
        work = Work(client, threads, handling=handling, **options)

        def run() -> dict[str, Any]:
            with work.working(jobs):
                sys.stdin.readline()
            return {"started": work.started}

        yield run


@contextmanager
def _pickup(dsn: str, schema: str, jobs: int) -> Iterator[Run]:
    yield lambda: {"waits": pickup(dsn, schema, jobs)}


@contextmanager
def _enqueue(dsn: str, schema: str, jobs: int, *, threads: int, source: Source = "own pool") -> Iterator[Run]:
    with connected(source, dsn, schema, threads) as (client, _):

        def run() -> dict[str, Any]:
            one_by_one(client, jobs, threads)
            return {}

        yield run


@contextmanager
def _bulk(dsn: str, schema: str, jobs: int, *, returning: bool) -> Iterator[Run]:
    with Client(dsn, schema=schema) as client:

        def run() -> dict[str, Any]:
            made, seconds = many(client, jobs, returning=returning)
            return {"made": made, "seconds": seconds}

        yield run


#: Each kind of work by name: a context manager of (dsn, schema, jobs, **options) that connects and yields the run.
WORK: dict[str, Callable[..., AbstractContextManager[Run]]] = {
    "migrate": _migrate,
    "drain": _drain,
    "calls": _calls,
    "share": _share,
    "pickup": _pickup,
    "enqueue": _enqueue,
    "bulk": _bulk,
}


def main() -> None:
    """Get ready, run at the first line of the input, and stay until it ends.

    So the processor time of this process's server processes can be read after the run.
    """
    task = json.loads(sys.argv[1])
    with WORK[task["work"]](task["dsn"], task["schema"], task["jobs"], **task["options"]) as run:
        print(json.dumps({"pgjobs": pgjobs.__file__}), flush=True)
        if not sys.stdin.readline():  # the program that asked has ended
            return
        before = time.process_time()
        found = run()
        print(json.dumps({**found, "processor": time.process_time() - before}), flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    main()
