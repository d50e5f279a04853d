"""How fast many jobs are enqueued in one transaction."""

from __future__ import annotations

import time
from collections.abc import Callable

from psycopg import sql

from benchmarks import workload
from benchmarks.ground import Table
from pgjobs import Client

_COLUMNS = "args, queue, kind, priority, max_attempts, metadata, tags"  # what `enqueue_many` writes of a plain job


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
