"""How fast jobs are enqueued: one in each transaction, and many in one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from psycopg_pool import ConnectionPool

from benchmarks.ground import Table, WrongResult
from pgjobs import Client
from pgjobs.db import statements
from pgjobs.enqueuing.copy_rows import HEADER, TRAILER, CopyRows


@dataclass
class Mail:
    number: int
    address: str


def mails(number: int) -> Iterator[Mail]:
    return (Mail(n, f"user{n}@example.com") for n in range(number))


def one_by_one(client: Client, table: Table, threads: int) -> float:
    """Jobs a second, each in a transaction of its own on a connection of the client's pool."""
    table.empty()
    start = threading.Barrier(threads)

    def work(first: int) -> None:
        start.wait()
        for n in range(first, table.jobs, threads):
            with client.pool.connection() as tx:
                client.enqueue(tx, Mail(n, f"user{n}@example.com"))

    with ExitStack() as held:  # the pool connects now
        for _ in range(threads):
            held.enter_context(client.pool.connection())
    _together(work, threads)
    return table.insert_rate()


@contextmanager
def own_pool(dsn: str, table: Table, threads: int) -> Iterator[Client]:
    """A client on the application's pool, with what psycopg does by default: it prepares what is repeated."""
    with ConnectionPool(dsn, min_size=threads, max_size=threads, open=True) as pool:
        pool.wait()
        yield Client(pool, schema=table.schema)


def _together(work: Callable[[int], None], threads: int) -> None:
    running = [threading.Thread(target=work, args=[n]) for n in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()


def many(client: Client, table: Table, *, returning: bool) -> float:
    """Jobs a second, by one `enqueue_many`, its commit included."""
    table.empty()
    started = time.perf_counter()
    with client.pool.connection() as tx:
        if returning:
            ids = [job.id for job in client.enqueue_many(tx, mails(table.jobs))]
        else:
            ids = list(range(client.enqueue_many(tx, mails(table.jobs), returning=False)))
    seconds = time.perf_counter() - started
    return _checked(table, len(ids), seconds)


def bare_copy(client: Client, table: Table) -> Callable[[], float]:
    """The floor: the very rows of `many`, ready beforehand as the bytes of a binary COPY."""
    rows = CopyRows()
    encoded = map(client._encoder.encode, mails(table.jobs))
    ready = b"".join([HEADER, *map(rows.due_now, encoded), TRAILER])
    statement = statements.load("enqueuing.sql", client.schema)["copy_due_now"]

    def run() -> float:
        table.empty()
        started = time.perf_counter()
        with client.pool.connection() as tx, tx.cursor() as cur, cur.copy(statement) as copy:
            for first in range(0, len(ready), 100_000):
                copy.write(ready[first : first + 100_000])
        return _checked(table, table.jobs, time.perf_counter() - started)

    return run


def _checked(table: Table, said: int, seconds: float) -> float:
    there = table.value("SELECT count(*) FROM {job} WHERE state = 'available' AND kind = 'mail'")
    if not there == said == table.jobs:
        raise WrongResult(f"{table.jobs} jobs were enqueued, {said} said so and {there} are there")
    return table.jobs / seconds
