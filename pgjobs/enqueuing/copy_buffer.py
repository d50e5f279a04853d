"""Checked jobs that wait for a COPY, as the bytes of their rows: in memory, and in temporary files when they are many.
So a million jobs need no more memory than a few, and the last job is checked before the first is sent.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from tempfile import SpooledTemporaryFile
from types import TracebackType
from typing import Self

from pgjobs.enqueuing.copy_rows import CopyRows, in_microseconds, initial_state, postgres_time
from pgjobs.job import JobState
from pgjobs.options import EncodedJob

_IN_MEMORY = 8 * 1024 * 1024  # bytes
_BLOCK = 256 * 1024
# of a job with a time: the number of its queue, whether the time is a delay, whether it is pending; the time; and the
# length of its last columns, which follow
_RECORD = struct.Struct("!i??qi")


class CopyBuffer:
    """Jobs without a key. The rows of jobs that can run at once are stored as they will be sent. The state of all other
    jobs depends on the time of the database, which is not known yet."""

    def __init__(self) -> None:
        self.jobs = 0
        self.available: set[str] = set()  # the queues that get a job that can run now
        self.first_due: int | None = None  # when the first scheduled job is due; a `postgres_time`
        self._rows = CopyRows()
        self._due_now = SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115  closed with the buffer
        self._timed = SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115
        self._queues: dict[str, int] = {}  # of the timed jobs

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._due_now.close()
        self._timed.close()

    def add(self, job: EncodedJob, args: str) -> None:
        """Add the job with these args, as JSON."""
        self.jobs += 1
        if job.scheduled_at is None and not job.delay and not job.pending:
            self.available.add(job.queue)
            self._due_now.write(self._rows.due_now(job, args))
            return
        number = self._queues.setdefault(job.queue, len(self._queues))
        time = in_microseconds(job.delay) if job.scheduled_at is None else postgres_time(job.scheduled_at)
        rest = self._rows.rest(job, args)
        self._timed.write(_RECORD.pack(number, job.scheduled_at is None, job.pending, time, len(rest)) + rest)

    @property
    def has_timed(self) -> bool:
        return bool(self._queues)

    def due_now(self) -> Iterator[bytes]:
        """The rows of `copy_due_now`, in blocks."""
        self._due_now.seek(0)
        while block := self._due_now.read(_BLOCK):
            yield block

    def timed(self, now: int) -> Iterator[bytes]:
        """The rows of `copy_timed`, one by one; `now` is a `postgres_time`. Completes `available` and `first_due`."""
        queues = list(self._queues)
        self._timed.seek(0)
        while record := self._timed.read(_RECORD.size):
            number, is_delay, pending, time, length = _RECORD.unpack(record)
            due = now + time if is_delay else time
            state = initial_state(due, now, pending=pending)
            if state is JobState.AVAILABLE:
                self.available.add(queues[number])
            elif state is JobState.SCHEDULED:
                self.first_due = due if self.first_due is None else min(due, self.first_due)
            yield self._rows.timed(self._timed.read(length), state, due, now)
