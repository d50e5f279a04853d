"""How many functions the worker threads call for each job, in Python and in C. No timing: counting slows them down.

Timing differs from minute to minute where other processes run too. These counts do not, and they show what the
interpreter has to do.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import count
from types import FrameType
from typing import Any

from benchmarks.sources import Write
from pgjobs import Client, Job, WorkerPool, WorkMap


class _Tally:
    """The calls of one thread, from the start of its first handler to the start of its last."""

    def __init__(self) -> None:
        self.python = self.c = self.handlers = 0
        self.first: tuple[int, int] | None = None
        self.last = (0, 0)

    def handler_starts(self) -> None:
        self.handlers += 1
        self.last = (self.python, self.c)
        self.first = self.first or self.last


class _Counter(threading.local):
    """Counts for each thread apart."""

    def __init__(self, tallies: list[_Tally]) -> None:
        self.tally = _Tally()
        tallies.append(self.tally)


def count_calls(client: Client, threads: int, goal: int, *, write: Write | None, **options: Any) -> tuple[float, float]:
    """The calls for one job, in Python and in C, of a pool that works so many jobs.

    The call of the handler does not count, nor what it calls in the benchmark; with `write`, what that calls does.
    """
    over = threading.Event()
    started = count(1)
    tallies: list[_Tally] = []
    counter = _Counter(tallies)

    def noop(tx: Any, job: Job[Any]) -> None:
        pass

    def insert(tx: Any, job: Job[Any]) -> None:
        assert write is not None
        write(tx, job.id)

    handler: Callable[[Any, Job[Any]], None] = noop if write is None else insert
    code = handler.__code__

    def watch(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            if frame.f_code is code:
                counter.tally.handler_starts()
                if next(started) >= goal:
                    over.set()
            else:
                counter.tally.python += 1
        elif event == "c_call":
            counter.tally.c += 1

    threading.setprofile(watch)
    try:
        with WorkerPool(client, WorkMap({"noop": handler}), queues={"default": threads}, **options):
            over.wait()
    finally:
        threading.setprofile(None)
    worked = [(tally, tally.first) for tally in tallies if tally.first is not None]
    turns = sum(tally.handlers - 1 for tally, _ in worked)
    python = sum(tally.last[0] - first[0] for tally, first in worked)
    c = sum(tally.last[1] - first[1] for tally, first in worked)
    return python / turns, c / turns
