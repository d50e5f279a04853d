"""How the threads of one queue wait for work."""

from __future__ import annotations

import threading
from typing import Any

from pgjobs.errors import InvalidSetting

_MOST_THREADS = 10_000


class IdleThreads:
    """The threads of one queue, and how the idle ones wait."""

    def __init__(self, threads: Any) -> None:
        if not isinstance(threads, int) or isinstance(threads, bool) or not 1 <= threads <= _MOST_THREADS:
            raise InvalidSetting(f"a queue has 1 to {_MOST_THREADS} threads, not {threads!r}")
        self.threads = threads
        self.closed = False  # no more jobs of this queue
        self.calls = 0  # how often it was called; a thread that missed a call looks again before it waits
        self._changed = threading.Condition()
        self._idle = 0  # threads that wait
        self._called = 0  # of them, those that were called and have not woken up yet
        self._clock_watched = False  # one idle thread waits no longer than the poll interval

    def wake(self) -> None:
        """Call one idle thread. When it finds a job it calls the next: many jobs wake many threads, one job one."""
        with self._changed:
            self.calls += 1
            if self._called < self._idle:
                self._called += 1
                self._changed.notify()

    def wake_all(self) -> None:
        with self._changed:
            self.calls += 1
            self._called = self._idle
            self._changed.notify_all()

    def close(self) -> None:
        """Let the threads end when they are done with their jobs."""
        self.closed = True
        self.wake_all()

    def wait(self, seen: int, poll_interval: float) -> None:
        """Wait for a call that came after `seen`; one of the idle threads no longer than the poll interval."""
        with self._changed:
            if self.calls != seen:
                return
            self._idle += 1
            if not self._wait_for_call(poll_interval):
                self._called -= 1
            self._idle -= 1
            if self._idle and not self._clock_watched:
                self._changed.notify()  # somebody else must watch the clock now

    def _wait_for_call(self, poll_interval: float) -> bool:
        """Says whether the poll interval was over, rather than a call received."""
        while not self._called:
            if self._clock_watched:
                self._changed.wait()
                continue
            self._clock_watched = True
            called = self._changed.wait(poll_interval)
            self._clock_watched = False
            if not called:
                return not self._called
        return False
