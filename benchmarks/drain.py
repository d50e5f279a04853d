"""How fast a worker pool drains a full queue. A rate is what the rows say: jobs over the time from the first claim to
the last finish, once it is clear that every job was started once and is completed at its first attempt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.ground import Table, WrongResult
from benchmarks.workload import DEADLINE, Handling, Work, twice
from pgjobs import Client


class Drain:
    """A worker pool on a full queue; called, it drains it once and says how fast.

    `handling` is what the handler does: nothing, or insert one row through its `tx`. `load` fills the queue in another
    way than `Table.load`. `wanted` is how many of the jobs are worked, all of them without it; fewer, when the patience
    ends before. Other options are those of `Work`.
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
        load: Callable[[], None] | None = None,
        **options: Any,
    ) -> None:
        self._table, self._load = table, load or table.load
        self._wanted, self._patience = wanted, patience
        self._handling = handling
        self._work = Work(client, threads, handling=handling, **options)
        self.pool = self._work.pool

    def __call__(self) -> float:
        self._load()
        goal = self._table.jobs if self._wanted is None else self._wanted
        started = self._work(goal, self._patience)
        enough = bool(started) if self._wanted is not None else len(started) == goal
        if twice(started) or not enough:
            raise WrongResult(f"{len(started)} starts for {goal} jobs, more than one for {twice(started)}")
        if self._handling == "insert":
            self._table.check_effects(len(started))
        return self._table.rate() if self._wanted is None else self._table.rate_of(len(started))
