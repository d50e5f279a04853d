"""How fast jobs are enqueued: one in each transaction, and many in one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from psycopg import sql
from psycopg_pool import ConnectionPool

from benchmarks import workload
from benchmarks.ground import Table
from pgjobs import Client

_COLUMNS = "args, queue, kind, priority, max_attempts, metadata, tags"  # what `enqueue_many` writes of a plain job


def one_by_one(client: Client, table: Table, threads: int) -> float:
    """Jobs a second, each in a transaction of its own on a connection of the client's pool."""
    table.empty()
    workload.one_by_one(client, table.jobs, threads)
    return table.insert_rate()


@contextmanager
def own_pool(dsn: str, table: Table, threads: int) -> Iterator[Client]:
    """A client on the application's pool, with what psycopg does by default: it prepares what is repeated."""
    with ConnectionPool(dsn, min_size=threads, max_size=threads, open=True) as pool:
        pool.wait()
        yield Client(pool, schema=table.schema)


def many(client: Client, table: Table, *, returning: bool) -> float:
    """Jobs a second, by one `enqueue_many`, its commit included."""
    table.empty()
    made, seconds = workload.many(client, table.jobs, returning=returning)
    table.check_mails(made)
    return made / seconds


def bare_copy(client: Client, table: Table) -> Callable[[], float]:
    """The floor: the very rows of `many`, ready beforehand as the bytes of a binary COPY."""
    many(client, table, returning=False)
    job, columns = sql.Identifier(table.schema, "job"), sql.SQL(_COLUMNS)
    out = sql.SQL("COPY {} ({}) TO STDOUT (FORMAT binary)").format(job, columns)
    with table.conn.cursor() as cur, cur.copy(out) as copied:
        ready = b"".join(bytes(block) for block in copied)
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(job, columns)

    def run() -> float:
        table.empty()
        started = time.perf_counter()
        with client.pool.connection() as tx, tx.cursor() as cur, cur.copy(statement) as copy:
            for first in range(0, len(ready), 100_000):
                copy.write(ready[first : first + 100_000])
        seconds = time.perf_counter() - started
        table.check_mails(table.jobs)
        return table.jobs / seconds

    return run
