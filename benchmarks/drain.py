"""How fast a worker pool drains a full queue. A rate is what the rows say: jobs over the time from the first claim to
the last finish, once it is clear that every job was started once and is completed at its first attempt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from threading import Event
from typing import Any, Literal

import psycopg
from psycopg import sql

from benchmarks.ground import DEADLINE, Table, WrongResult, steady
from pgjobs import Client, Job, WorkerPool, WorkMap

Handling = Literal["noop", "insert"]


class Drain:
    """A worker pool on a full queue; called, it drains it once and says how fast.

    `handling` is what the handler does: nothing, or insert one row through its `tx`. `load` fills the queue in another
    way than `Table.load`. `wanted` is how many of the jobs are worked, all of them without it; fewer, when the patience
    ends before. Other options are those of the pool.
    """

    def __init__(
        self,
        client: Client,
        table: Table,
        threads: int,
        *,
        handling: Handling = "noop",
        wanted: int | None = None,
        patience: float = DEADLINE,
        kind: str = "noop",
        load: Callable[[], None] | None = None,
        noted: Callable[[int], None] = lambda started: None,
        **options: Any,
    ) -> None:
        self._table, self._load, self._noted = table, load or table.load, noted
        self._wanted, self._patience = wanted, patience
        self._handling = handling
        # as text, which is what handlers have: to compose it anew for each job takes psycopg ten microseconds
        insert = sql.SQL("INSERT INTO {} (job) VALUES (%s)").format(sql.Identifier(table.schema, "effect"))
        self._insert = insert.as_string(table.conn)
        self._started: list[int] = []  # job ids; appending is one step under the interpreter's lock
        self._last = Event()
        handler = self._note if handling == "noop" else self._write
        options.setdefault("queues", {"default": threads})
        self.pool = WorkerPool(client, WorkMap({kind: handler}), **options)

    def _write(self, tx: psycopg.Connection[Any], job: Job[Any]) -> None:
        tx.execute(self._insert, [job.id])
        self._note(tx, job)

    def _note(self, tx: psycopg.Connection[Any], job: Job[Any]) -> None:
        self._started.append(job.id)
        self._noted(len(self._started))
        if len(self._started) >= self._goal:
            self._last.set()

    def __call__(self) -> float:
        self._load()
        self._goal = self._table.jobs if self._wanted is None else self._wanted
        self._started.clear()
        self._last.clear()
        with steady(self.pool):
            self._last.wait(self._patience)
        return self._checked()

    def _checked(self) -> float:
        started = len(self._started)
        twice = [job for job, starts in Counter(self._started).items() if starts > 1]
        enough = started > 0 if self._wanted is not None else started == self._goal
        if twice or not enough:
            raise WrongResult(f"{started} starts for {self._goal} jobs, more than one for {twice}")
        if self._handling == "insert":
            self._table.check_effects(started)
        return self._table.rate() if self._wanted is None else self._table.rate_of(started)
