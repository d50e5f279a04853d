"""Checked jobs on their way to a COPY, as the bytes of their rows: in memory, and in temporary files when they are
many. So a million of them need no more memory than a few, and none is sent before the last one is checked."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from tempfile import SpooledTemporaryFile
from types import TracebackType
from typing import Self

from pgjobs.enqueuing.copy_rows import CopyRows, microseconds, span
from pgjobs.job import JobState
from pgjobs.options import EncodedJob

_IN_MEMORY = 8 * 1024 * 1024  # bytes
_BLOCK = 256 * 1024
# of a job with a time: the number of its queue, whether the time is a delay, whether it is pending; the time; how much
# follows
_RECORD = struct.Struct("!i??qi")


class CopyBuffer:
    """Jobs without a key. Those that can run at once are kept as they will be sent; of the others the state depends on
    the time of the database, which nobody has asked for yet."""

    def __init__(self) -> None:
        self.jobs = 0
        self.awake: set[str] = set()  # the queues that have a job which can run now
        self.earliest: int | None = None  # when the first of those that wait for their time is due
        self._rows = CopyRows()
        self._due_now = SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115  closed with the spool
        self._timed = SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115
        self._queues: dict[str, int] = {}  # of the timed ones

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._due_now.close()
        self._timed.close()

    def add(self, job: EncodedJob) -> None:
        self.jobs += 1
        if job.scheduled_at is None and not job.delay and not job.pending:
            self.awake.add(job.queue)
            self._due_now.write(self._rows.due_now(job))
            return
        number = self._queues.setdefault(job.queue, len(self._queues))
        when = span(job.delay) if job.scheduled_at is None else microseconds(job.scheduled_at)
        rest = self._rows.rest(job)
        self._timed.write(_RECORD.pack(number, job.scheduled_at is None, job.pending, when, len(rest)) + rest)

    @property
    def has_timed(self) -> bool:
        return bool(self._queues)

    def due_now(self) -> Iterator[bytes]:
        """The rows of `copy_due_now`, in blocks."""
        self._due_now.seek(0)
        while block := self._due_now.read(_BLOCK):
            yield block

    def timed(self, now: int) -> Iterator[bytes]:
        """The rows of `copy_timed`, one by one; `now` in microseconds. Completes `awake` and `earliest`."""
        queues = list(self._queues)
        self._timed.seek(0)
        while record := self._timed.read(_RECORD.size):
            number, is_delay, pending, when, length = _RECORD.unpack(record)
            due = now + when if is_delay else when
            state = JobState.PENDING if pending else JobState.SCHEDULED if due > now else JobState.AVAILABLE
            if state is JobState.AVAILABLE:
                self.awake.add(queues[number])
            elif state is JobState.SCHEDULED:
                self.earliest = due if self.earliest is None else min(due, self.earliest)
            yield self._rows.timed(self._timed.read(length), state, due, now)
