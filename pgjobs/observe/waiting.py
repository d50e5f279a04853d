"""How often a caller who waits for the end of a job looks at it, and when it gives up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from pgjobs import checks
from pgjobs.errors import JobNotFinished, JobNotFound
from pgjobs.job import Job, changed
from pgjobs.job_filter import check_id

_FIRST_PAUSE = 0.05  # seconds between two looks; grows by half each time
_LONGEST_PAUSE = 1.0


class Waiting:
    """One call of `wait` or `await_job`, for which time runs from now on. `read` finds the job with an id in a queue,
    or in any queue."""

    def __init__(
        self, job: Job[Any] | int, timeout: timedelta | None, read: Callable[[int, str | None], Job[Any] | None]
    ) -> None:
        self._job = job
        self._id = job.id if isinstance(job, Job) else job
        self._queue = job.queue if isinstance(job, Job) else None
        check_id(self._id)
        self._read = read
        self._timeout = timeout
        seconds = checks.timeout_seconds(timeout)
        self._deadline = time.monotonic() + (threading.TIMEOUT_MAX if seconds is None else seconds)
        self._next_pause = _FIRST_PAUSE
        self.pause = 0.0  # seconds until the next look

    def look(self) -> Job[Any] | None:
        """The job, if it is finished, with args of the class that the given job has. Raises JobNotFound, and
        JobNotFinished after the timeout."""
        found = self._read(self._id, self._queue)
        if found is None:
            raise JobNotFound(self._id)
        if found.state.final:
            return changed(found, decode=self._job.decode) if isinstance(self._job, Job) else found
        left = self._deadline - time.monotonic()
        if self._timeout is not None and left <= 0:
            raise JobNotFinished(self._id, found.state, self._timeout)
        self.pause = min(self._next_pause, left)
        self._next_pause = min(1.5 * self._next_pause, _LONGEST_PAUSE)
        return None
