"""Bounds how many requests a user may send: a program, or a page that reloads too often, must not load the database."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_MOST_USERS = 1_000  # that are counted; those who have sent nothing for longest are forgotten


class RateLimit:
    """A user may send `burst` requests at once, and `per_second` of them in the long run. Threads share it; each
    process counts for itself."""

    def __init__(self, burst: int, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst = burst
        self._per_second = per_second
        self._clock = clock
        self._lock = threading.Lock()
        self._left: dict[str, tuple[float, float]] = {}  # by user, the oldest first: requests that are left, and when

    def wait(self, user: str) -> float:
        """Count a request. Returns 0, or how many seconds the user has to wait if it is one too many."""
        with self._lock:
            now = self._clock()
            left, counted_at = self._left.pop(user, (float(self._burst), now))
            left = min(float(self._burst), left + (now - counted_at) * self._per_second)
            allowed = left >= 1
            self._left[user] = (left - 1 if allowed else left), now
            if len(self._left) > _MOST_USERS:
                del self._left[next(iter(self._left))]
            return 0.0 if allowed else (1 - left) / self._per_second
