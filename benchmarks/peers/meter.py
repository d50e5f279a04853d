"""What the scripts of the Python libraries have in common: arguments, and what a worker says of itself.

A script is called with a command, the URL of the database and options as JSON. Commands are `setup`, `fill` (enqueue
what is drained), `one` and `bulk` (enqueue, and print the seconds that it took), `send` (one now and then) and `work`.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from itertools import count
from typing import Any


def say(**what: Any) -> None:
    """One line to who has started this process; libraries may print others."""
    os.write(1, f"@{json.dumps(what)}\n".encode())


def arguments() -> tuple[str, str, dict[str, Any]]:
    command, url, options = sys.argv[1:]
    return command, url, json.loads(options)


class Meter:
    """Counts the handlers that start: says so at the first and at the last, and reports all when it is sent a line."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._jobs = int(options["jobs"])
        self._count = count(1)  # next() is one step under the interpreter's lock
        self._seen = bytearray(self._jobs)
        self._waits: list[tuple[int, float]] = []
        threading.Thread(target=self._report, daemon=True).start()

    def start(self, n: int, sent: float | None = None) -> None:
        """What a handler does first, with the args of its job."""
        if sent is not None:
            self._waits.append((n, time.monotonic() - sent))
        self._seen[n] += 1
        number = next(self._count)
        if number == 1:
            say(first=True)
        if number == self._jobs:
            say(last=True)

    def _report(self) -> None:
        sys.stdin.readline()
        say(starts=next(self._count) - 1, distinct=sum(map(bool, self._seen)), waits=self._waits)


def beats(options: dict[str, Any]) -> Iterator[tuple[int, float]]:
    """The number of each job that `send` sends, and how long to pause before. After some it waits to be sent a line."""
    chance = random.Random(1)
    for n in range(options["jobs"]):
        if n == options["warm_up"]:
            say(warm=True)
            sys.stdin.readline()
        yield n, chance.uniform(0.03, 0.05)


class Stopwatch:
    """Says the seconds that a block took."""

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            say(seconds=time.perf_counter() - self._started)
