"""How often a caller who waits for the end of a job looks at it, and when it gives up."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from typing import Any

from pgjobs import checks
from pgjobs.errors import JobNotFinished
from pgjobs.job import Job, JobState
from pgjobs.job_filter import check_id

_FIRST_PAUSE = 0.05  # seconds between two looks; grows by half each time
_LONGEST_PAUSE = 1.0


class Waiting:
    """One call of `wait` or `await_job`, for which time runs from now on."""

    def __init__(self, job: Job[Any] | int, timeout: timedelta | None) -> None:
        self.id = job.id if isinstance(job, Job) else job
        self.queue = job.queue if isinstance(job, Job) else None
        check_id(self.id)
        self._timeout = timeout
        seconds = checks.timeout_seconds(timeout)
        self._deadline = time.monotonic() + (threading.TIMEOUT_MAX if seconds is None else seconds)
        self._pause = _FIRST_PAUSE

    def next_pause(self, state: JobState) -> float:
        """The seconds until the next look at the job, which is in this state. Raises JobNotFinished after the
        timeout."""
        left = self._deadline - time.monotonic()
        if self._timeout is not None and left <= 0:
            raise JobNotFinished(self.id, state, self._timeout)
        pause = min(self._pause, left)
        self._pause = min(1.5 * self._pause, _LONGEST_PAUSE)
        return pause
