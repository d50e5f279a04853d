"""The low-water mark of each queue: the newest claimed place, behind which the next claim starts its scan.

Index entries of jobs that were claimed stay until vacuum removes them, and while an old snapshot is open it cannot. A
scan from the beginning of the queue would read all of them. So a process starts behind the job that it claimed last.

A more urgent job may appear before the mark: a new job, or a job that becomes available again. So there are full
scans, which start at the beginning of the queue:

    when                                                  by which thread
    ----------------------------------------------------  ------------------------------------------------------------
    nothing was found behind the mark                     the thread that found nothing, at once
    a job before the mark is available again (`forget`)   the next claim
    0.1 s after the last full scan, or 10 times as long   one thread; the others keep using the mark while it scans
    as that took; at the latest 1 s after it
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

from pgjobs.execution.requests import Mark
from pgjobs.job import Job

_FULL_SCAN_EVERY = 0.1  # seconds
_FULL_SCAN_AT_LEAST_EVERY = 1.0
_PAUSE_PER_SCAN = 10  # times as long as the scan took


@dataclass(slots=True)
class _Marked:
    mark: Mark
    full_scan_at: float  # by the monotonic clock


class _OfThread(threading.local):
    scan_began: float | None = None  # its full scan
    empty_behind: Mark | None = None  # where it has found nothing


class LowWaterMarks:
    """The marks of one process, by queue."""

    def __init__(self) -> None:
        self._marks: dict[str, _Marked] = {}
        self._thread = _OfThread()

    def start(self, queue: str) -> Mark | None:
        """Where this thread's next claim starts: behind the mark, or with None at the beginning of the queue."""
        known = self._marks.get(queue)
        if known is None or time.monotonic() >= known.full_scan_at or self._was_empty_behind(known.mark):
            self.full_scan(queue)
            return None
        return known.mark

    def _was_empty_behind(self, mark: Mark) -> bool:
        empty_behind, self._thread.empty_behind = self._thread.empty_behind, None
        return empty_behind == mark

    def full_scan(self, queue: str) -> None:
        """Make this thread's next claim scan the whole queue; other threads keep using the mark."""
        now, known = time.monotonic(), self._marks.get(queue)
        self._thread.scan_began = now
        if known is not None:
            known.full_scan_at = now + _FULL_SCAN_AT_LEAST_EVERY

    def record_claim(self, queue: str, job: Job[Any] | None) -> None:
        """Move the mark to the job that this thread has claimed. None: a full scan has found nothing."""
        known = self._marks.get(queue)
        began, self._thread.scan_began = self._thread.scan_began, None
        if job is None:
            self._marks.pop(queue, None)
            return
        mark = Mark(b"%d" % job.priority, job.scheduled_at.isoformat().encode(), b"%d" % job.id)
        if began is None and known is not None:
            known.mark = mark
            return
        now = time.monotonic()
        pause = _PAUSE_PER_SCAN * (now - (began or now))
        full_scan_at = now + min(max(pause, _FULL_SCAN_EVERY), _FULL_SCAN_AT_LEAST_EVERY)
        self._marks[queue] = _Marked(mark, full_scan_at)

    def record_empty(self, mark: Mark) -> None:
        """Nothing was found behind this mark: if it still stands, this thread's next claim scans the whole queue."""
        self._thread.empty_behind = mark

    def forget(self, queue: str) -> None:
        """A job before the mark is available again: make the next claim scan the whole queue."""
        self._marks.pop(queue, None)
