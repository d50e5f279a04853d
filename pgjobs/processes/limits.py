"""When a process has lived long enough: `--max-jobs`, `--max-rss`, `--max-age`."""

from __future__ import annotations

import os
import random
import resource
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from pgjobs.hooks import Hooks
from pgjobs.job import Job

_EARLIER = 0.1  # the part of a limit by which it may be reached earlier, so that processes do not end together
_STATM = "/proc/self/statm"
MEBIBYTE = 1 << 20


class Limits:
    """The limits of one process. Number of jobs and age are lowered by chance, by a tenth at most; memory is not, since
    it differs from process to process by itself."""

    def __init__(
        self,
        *,
        max_jobs: int | None = None,
        max_rss: int | None = None,
        max_age: float | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.max_rss = max_rss
        self.max_jobs = None if max_jobs is None else max_jobs - int(chance() * _EARLIER * max_jobs)
        self._max_age = None if max_age is None else max_age * (1 - _EARLIER * chance())
        self.begin()

    def begin(self) -> None:
        """Count the age from now. A process that has waited for its tables is not old, nor one that loads for long."""
        self._began = time.monotonic()

    def reached(self) -> str | None:
        """Which limit of memory or age is reached, as a text that says what is wrong; None if none is."""
        return self.too_large() or self._too_old()

    def too_large(self) -> str | None:
        if self.max_rss is not None and (used := resident_bytes()) > self.max_rss:
            return f"it uses {used / MEBIBYTE:.0f} MiB, more than --max-rss {self.max_rss / MEBIBYTE:.0f}M"
        return None

    def _too_old(self) -> str | None:
        age = time.monotonic() - self._began
        if self._max_age is not None and age > self._max_age:
            return f"it has lived for {timedelta(seconds=round(age))} (--max-age)"
        return None


class JobLimit(Hooks):
    """Calls a function when so many attempts have ended."""

    def __init__(self, most: int, reached: Callable[[str], None]) -> None:
        self._most = most
        self._reached = reached
        self._ended = 0
        self._lock = threading.Lock()

    def on_finish(self, job: Job[Any], error: BaseException | None) -> None:
        with self._lock:
            self._ended += 1
            is_last = self._ended == self._most
        if is_last:
            self._reached(f"it has run {self._most} jobs (--max-jobs)")


def resident_bytes() -> int:
    """The memory of this process that is in RAM. Where the system does not tell (macOS), the most that it ever was."""
    try:
        with open(_STATM, encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
