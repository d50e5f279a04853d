"""Bounds the log lines of a storm: so many a second for each subject, then one line with the number of the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

S = TypeVar("S", bound=Hashable)

LINES = 10  # that are logged of one subject within a window
_WINDOW = 1.0  # seconds
_STORM_WINDOW = 10.0  # seconds, after a window in which lines were withheld; it admits one line
_MOST_SUBJECTS = 100  # kinds come from a table: any number of them may fail


@dataclass(slots=True)
class Withheld(Generic[S]):
    """Lines that were not logged."""

    subject: S | None  # None: of several subjects, which were too many to count them apart
    count: int
    seconds: float  # within which they came
    latest: str


@dataclass(slots=True)
class _Window:
    began: float
    length: float = _WINDOW
    admitted: int = 0
    withheld: int = 0
    latest: str = ""


class LogLimit(Generic[S]):
    """Counts the lines of each subject. Threads share it."""

    def __init__(self, lines: int = LINES, clock: Callable[[], float] = time.monotonic) -> None:
        self._lines = lines
        self._clock = clock
        self._lock = threading.Lock()
        self._windows: dict[S | None, _Window] = {}

    def admit(self, subject: S, text: str) -> tuple[bool, list[Withheld[S]]]:
        """Count a line. Returns whether to log it, and what was withheld in windows that are over and is to be logged
        first."""
        with self._lock:
            now = self._clock()
            over: list[Withheld[S]] = []
            known = self._windows.get(subject)
            if known is None or now - known.began >= known.length:
                over = self._take_over(now)
            key = subject if subject in self._windows or len(self._windows) < _MOST_SUBJECTS else None
            window = self._windows.setdefault(key, _Window(now))
            if window.admitted < self._lines:
                window.admitted += 1
                return True, over
            window.withheld += 1
            window.latest = text
            return False, over

    def take(self, *, all: bool = False) -> list[Withheld[S]]:
        """What was withheld in windows that are over, or in all: it is to be logged now."""
        if not self._windows:
            return []
        with self._lock:
            return self._take_over(float("inf") if all else self._clock())

    def _take_over(self, now: float) -> list[Withheld[S]]:
        over = [(subject, window) for subject, window in self._windows.items() if now - window.began >= window.length]
        ended = min(now, self._clock())
        for subject, window in over:
            del self._windows[subject]
            if window.withheld:
                self._windows[subject] = _Window(ended, _STORM_WINDOW, admitted=self._lines - 1)
        return [
            Withheld(subject, window.withheld, ended - window.began, window.latest)
            for subject, window in over
            if window.withheld
        ]
