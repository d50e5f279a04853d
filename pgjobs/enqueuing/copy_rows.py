"""The rows of a binary COPY. The text form would need all args escaped, and costs the server more to read."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from pgjobs.job import JobState
from pgjobs.options import EncodedJob

Instant = TypeVar("Instant", int, datetime)

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)  # of Postgres
_MICROSECOND = timedelta(microseconds=1)
_BLOCK = 128 * 1024  # bytes that are passed to a COPY at once
_TEXT = 25  # the type of an element of text[]
_JSONB_VERSION = b"\x01"
# each field is its length and its bytes; a row begins with the number of its fields
_LENGTH = struct.Struct("!i")
_ARGS = struct.Struct("!ib")  # the bytes of the text follow the length and the version
_COUNT_AND_ARGS = struct.Struct("!hib")
_COUNT_AND_ID = struct.Struct("!hiq")
_SMALLINT = struct.Struct("!ih")
_INTEGER = struct.Struct("!ii")
_TIMES = struct.Struct("!hiqiq")
_TWO_TIMES = struct.Struct("!iqiq")
_ARRAY = struct.Struct("!iiIii")  # dimensions, nulls or not, type of the elements; length and lower bound of the first
_EMPTY_ARRAY = struct.pack("!iiI", 0, 0, _TEXT)
_MOST_TAILS = 1000


class CopyRows:
    """Writes the rows of one COPY. The columns after args are the same for all jobs of a template."""

    def __init__(self) -> None:
        self._tails: dict[int, tuple[EncodedJob, bytes]] = {}  # by the id of the template, which is kept alive

    def due_now(self, template: EncodedJob, args: str) -> bytes:
        """A row of `copy_due_now`."""
        text = args.encode()
        return _COUNT_AND_ARGS.pack(7, len(text) + 1, 1) + text + self._tail(template)

    def timed(self, rest: bytes, state: str, due: int, now: int) -> bytes:
        """A row of `copy_timed`."""
        return _TIMES.pack(10, 8, now, 8, due) + _field(state.encode()) + rest

    def rest(self, template: EncodedJob, args: str) -> bytes:
        """The last columns of every row: args, queue, kind, priority, max_attempts, metadata, tags."""
        text = args.encode()
        return _ARGS.pack(len(text) + 1, 1) + text + self._tail(template)

    def _tail(self, template: EncodedJob) -> bytes:
        known = self._tails.get(id(template))
        if known is None:
            if len(self._tails) >= _MOST_TAILS:
                self._tails.clear()
            known = self._tails[id(template)] = (template, tail(template))
        return known[1]


def head(state: str, due: int, now: int) -> bytes:
    """The columns between id and args of `copy_with_ids`; both times as `postgres_time` gives them."""
    return _TWO_TIMES.pack(8, now, 8, due) + _field(state.encode())


def row_with_id(id: int, head: bytes, args: str, tail: bytes) -> bytes:
    """A row of `copy_with_ids`."""
    text = args.encode()
    return _COUNT_AND_ID.pack(11, 8, id) + head + _ARGS.pack(len(text) + 1, 1) + text + tail


def initial_state(due: Instant, now: Instant, *, pending: bool) -> JobState:
    """The state of a new job, as the part `initial_state` of sql/parts.sql says it for an INSERT."""
    if pending:
        return JobState.PENDING
    return JobState.SCHEDULED if due > now else JobState.AVAILABLE


def in_blocks(rows: Iterable[bytes]) -> Iterator[bytes]:
    """The rows, joined to blocks that are worth a call."""
    block, size = [], 0
    for row in rows:
        block.append(row)
        size += len(row)
        if size >= _BLOCK:
            yield b"".join(block)
            block, size = [], 0
    yield b"".join(block)


def postgres_time(at: datetime) -> int:
    """Microseconds since 2000, as Postgres counts them."""
    return in_microseconds(at - _EPOCH)


def instant(time: int) -> datetime:
    """The instant of a `postgres_time`."""
    return _EPOCH + time * _MICROSECOND


def in_microseconds(duration: timedelta) -> int:
    return duration // _MICROSECOND


def tail(job: EncodedJob) -> bytes:
    """The columns behind args of every row."""
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
