"""Jobs as rows of a binary COPY. Its text form would need every args escaped, and costs the server more to read."""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta

from pgjobs.options import EncodedJob

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)  # of Postgres
_MICROSECOND = timedelta(microseconds=1)
_TEXT = 25  # the type of an element of text[]
_JSONB_VERSION = b"\x01"
# each field is its length and its bytes; a row begins with how many fields it has
_COUNT = struct.Struct("!h")
_LENGTH = struct.Struct("!i")
_SMALLINT = struct.Struct("!ih")
_INTEGER = struct.Struct("!ii")
_TIMES = struct.Struct("!hiqiq")
_ID_AND_TIMES = struct.Struct("!hiqiqiq")
_ARRAY = struct.Struct("!iiIii")  # dimensions, nulls or not, type of the elements; length and lower bound of the first
_EMPTY_ARRAY = struct.pack("!iiI", 0, 0, _TEXT)
_MOST_TAILS = 1000


class CopyRows:
    """Writes the rows of one COPY. What follows the args is mostly the same from job to job, and kept."""

    def __init__(self) -> None:
        self._tails: dict[tuple[object, ...], bytes] = {}

    def with_id(self, job: EncodedJob, id: int, state: str, due: int, now: int) -> bytes:
        """A row of `copy_with_ids`; the times in microseconds, as `microseconds` gives them."""
        return _ID_AND_TIMES.pack(11, 8, id, 8, now, 8, due) + _field(state.encode()) + self.rest(job)

    def timed(self, rest: bytes, state: str, due: int, now: int) -> bytes:
        """A row of `copy_timed`."""
        return _TIMES.pack(10, 8, now, 8, due) + _field(state.encode()) + rest

    def due_now(self, job: EncodedJob) -> bytes:
        """A row of `copy_due_now`."""
        return _COUNT.pack(7) + self.rest(job)

    def rest(self, job: EncodedJob) -> bytes:
        """The columns that all of them end with: args, queue, kind, priority, max_attempts, metadata, tags."""
        args = job.args.encode()
        key = (job.queue, job.kind, job.priority, job.max_attempts, job.metadata, *job.tags)
        tail = self._tails.get(key)
        if tail is None:
            if len(self._tails) >= _MOST_TAILS:
                self._tails.clear()
            tail = self._tails[key] = _tail(job)
        return _LENGTH.pack(len(args) + 1) + _JSONB_VERSION + args + tail


def microseconds(when: datetime) -> int:
    """An instant as Postgres counts it."""
    return span(when - _EPOCH)


def instant(when: int) -> datetime:
    return _EPOCH + when * _MICROSECOND


def span(time: timedelta) -> int:
    return time // _MICROSECOND


def _tail(job: EncodedJob) -> bytes:
    return b"".join(
        (
            _field(job.queue.encode()),
            _field(job.kind.encode()),
            _SMALLINT.pack(2, job.priority),
            _INTEGER.pack(4, job.max_attempts),
            _field(_JSONB_VERSION + job.metadata.encode()),
            _field(_array([tag.encode() for tag in job.tags])),
        )
    )


def _array(texts: list[bytes]) -> bytes:
    if not texts:
        return _EMPTY_ARRAY
    return _ARRAY.pack(1, 0, _TEXT, len(texts), 1) + b"".join(map(_field, texts))


def _field(value: bytes) -> bytes:
    return _LENGTH.pack(len(value)) + value
