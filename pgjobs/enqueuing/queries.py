"""The statements of sql/enqueuing.sql with their parameters, and the functions that send them on a psycopg connection.

builder.py yields the requests and does no I/O; `run` sends each request and passes its rows back. `run_async` and
`send_async` do the same on an asynchronous connection.
"""

from __future__ import annotations

import re
from asyncio import sleep
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

from psycopg.pq import PipelineStatus

from pgjobs.db import statements
from pgjobs.db.channel import channel
from pgjobs.db.cursors import (
    AnyAsyncConnection,
    AnyConnection,
    async_bound_cursor,
    async_job_cursor,
    bound_cursor,
    job_cursor,
)
from pgjobs.enqueuing.copy_rows import HEADER, TRAILER
from pgjobs.errors import InvalidTransaction
from pgjobs.execution.script import Statement, array_text, numbered
from pgjobs.options import FIRST_INSTANT, EncodedJob

Result = TypeVar("Result")

_COMMENT = re.compile(rb"^ *--(?! name:| replace).*\n", re.MULTILINE)  # all but those that are read or logged


class Request(NamedTuple):
    """A statement to be sent, with its parameters; or a COPY, with the blocks that follow it."""

    statement: bytes
    parameters: Mapping[str, Any]
    blocks: Iterable[bytes] | None = None  # to be read to the end
    reads_jobs: bool = False  # its rows are jobs that were there already, with whatever a hand has written into them


Rows = Sequence[Sequence[Any]]
Requests = Generator[Request, Rows, Result]  # yields requests, is sent the rows of each, and returns the result


class EnqueueQueries:
    """The requests of one schema: one method for each statement."""

    def __init__(self, schema: str) -> None:
        self._channel = channel(schema)
        # psycopg parses the placeholders of a statement longer than 4096 bytes anew each time
        self._enqueue = {
            name: _COMMENT.sub(b"", text) for name, text in statements.load("enqueuing.sql", schema).items()
        }
        # the channel is the same for every job, and costs nothing as part of the text
        quoted = f"'{self._channel}'".encode()
        plain = self._enqueue["insert_plain_job"]
        self._plain = plain.replace(b"%(channel)s", quoted)
        #: insert_plain_job for `single_insert`
        self.plain: Statement = numbered(f"pgjobs_in_{schema}", plain, {"channel": quoted})
        assert self.plain.parameters == ("queue", "kind", "priority", "max_attempts", "args", "metadata")

    def insert_plain_job(self, job: EncodedJob) -> Request:
        return Request(self._plain, vars(job))

    @staticmethod
    def plain_values(job: EncodedJob, args: str) -> list[bytes]:
        """The parameters of `plain`, in UTF-8, for a job with these args."""
        return [
            job.queue.encode(),
            job.kind.encode(),
            b"%d" % job.priority,
            b"%d" % job.max_attempts,
            args.encode(),
            job.metadata.encode(),
        ]

    def insert_job(self, job: EncodedJob, *, notify: bool) -> Request:
        return Request(self._enqueue["insert_job"], self._parameters(job, notify))

    def insert_unique_job(self, job: EncodedJob, *, notify: bool) -> Request:
        return Request(self._enqueue["insert_unique_job"], self._parameters(job, notify))

    def insert_jobs(self, jobs: Sequence[EncodedJob], *, notify: bool) -> Request:
        columns = {
            "pending": [job.pending for job in jobs],
            "queues": [job.queue for job in jobs],
            "kinds": [job.kind for job in jobs],
            "priorities": [job.priority for job in jobs],
            "max_attempts": [job.max_attempts for job in jobs],
            "args": [job.args for job in jobs],
            "metadata": [job.metadata for job in jobs],
            "tags": [array_text(job.tags) for job in jobs],
            "timed": [job.scheduled_at is not None for job in jobs],
            "scheduled_at": [job.scheduled_at or FIRST_INSTANT for job in jobs],  # not read where `timed` is false
            "delays": [job.delay for job in jobs],
            "uniqueness": [_uniqueness(job) for job in jobs],
        }
        return Request(self._enqueue["insert_jobs"], {**columns, "notify": notify, "channel": self._channel})

    def duplicates(self, keys: Iterable[bytes], *, may_read: bool) -> Request:
        statement = self._enqueue["duplicates"] if may_read else self._enqueue["duplicates_unread"]
        return Request(statement, {"keys": list(keys)}, reads_jobs=True)

    def replace_duplicate(self, job: EncodedJob, key: bytes, *, notify: bool) -> Request:
        """Replaces in the job that has the key what `job.replace` names."""
        before, *changes = re.split(
            rb"^ *-- replace[ d](\w*)\n", self._enqueue["replace_duplicate"], flags=re.MULTILINE
        )
        by_name = {
            name.decode(): change.strip().rstrip(b",") for name, change in zip(changes[::2], changes[1::2], strict=True)
        }
        statement = before + b",\n".join(by_name[name] for name in job.replace) + b"\n" + changes[-1]
        return Request(statement, {**self._parameters(job, notify), "key": key}, reads_jobs=True)

    def read_replaced(self, id: int, queue: str) -> Request:
        return Request(self._enqueue["read_replaced"], {"id": id, "queue": queue})

    def prepare_copy(self, jobs: int = 0) -> Request:
        return Request(self._enqueue["prepare_copy"], {"jobs": jobs})

    def copy_with_ids(self, blocks: Iterable[bytes]) -> Request:
        return Request(self._enqueue["copy_with_ids"], {}, _framed(blocks))

    def copy_due_now(self, blocks: Iterable[bytes]) -> Request:
        return Request(self._enqueue["copy_due_now"], {}, _framed(blocks))

    def copy_timed(self, blocks: Iterable[bytes]) -> Request:
        return Request(self._enqueue["copy_timed"], {}, _framed(blocks))

    def notify_copied(self, available: Iterable[str], first_due: datetime | None) -> Request:
        """Notifies the workers of the queues that got an available job, and maintenance if a job is due soon."""
        waking = [(queue, "available", FIRST_INSTANT) for queue in sorted(available)]
        if first_due is not None:
            waking.append(("", "scheduled", first_due))
        queues, states, times = map(list, zip(*waking, strict=True))
        parameters = {"queues": queues, "states": states, "times": times, "notify": True, "channel": self._channel}
        return Request(self._enqueue["notify_copied"], parameters)

    def _parameters(self, job: EncodedJob, notify: bool) -> dict[str, Any]:
        return {
            **vars(job),
            "tags": list(job.tags),
            "uniqueness": _uniqueness(job),
            "notify": notify,
            "channel": self._channel,
        }


def run(requests: Requests[Result], send: Callable[[Request], Rows]) -> Result:
    """Send each request, and return what comes of them all."""
    try:
        request = next(requests)
        while True:
            request = requests.send(send(request))
    except StopIteration as end:
        result: Result = end.value
        return result


async def run_async(requests: Requests[Result], send: Callable[[Request], Awaitable[Rows]]) -> Result:
    """The same, where `send` is asynchronous."""
    try:
        request = next(requests)
        while True:
            request = requests.send(await send(request))
    except StopIteration as end:
        result: Result = end.value
        return result


def send(conn: AnyConnection, request: Request) -> Rows:
    """Send one request on a connection, in whatever transaction it is."""
    with (job_cursor if request.reads_jobs else bound_cursor)(conn) as cur:
        if request.blocks is None:
            cur.execute(request.statement, request.parameters)
            return cur.fetchall()
        with cur.copy(request.statement) as copy:
            for block in request.blocks:
                copy.write(block)
        return ()


async def send_async(conn: AnyAsyncConnection, request: Request) -> Rows:
    """Send one request on an asynchronous connection, in whatever transaction it is."""
    async with (async_job_cursor if request.reads_jobs else async_bound_cursor)(conn) as cur:
        if request.blocks is None:
            await cur.execute(request.statement, request.parameters)
            return await cur.fetchall()
        async with cur.copy(request.statement) as copy:
            for block in request.blocks:
                await copy.write(block)
                await sleep(0)  # psycopg may not let other tasks run while the socket takes all
        return ()


def can_copy(conn: AnyConnection | AnyAsyncConnection) -> bool:
    """Whether a COPY can be sent: not within a pipeline of the application, and only in the encoding of its rows."""
    return (
        conn.pgconn.pipeline_status == PipelineStatus.OFF
        and conn.pgconn.parameter_status(b"client_encoding") == b"UTF8"
    )


def no_copy() -> InvalidTransaction:
    return InvalidTransaction(
        "enqueue_many(returning=False) sends a COPY: it needs a connection with client_encoding UTF8, outside a "
        "pipeline"
    )


def _framed(blocks: Iterable[bytes]) -> Iterator[bytes]:
    yield HEADER
    yield from blocks
    yield TRAILER


def _uniqueness(job: EncodedJob) -> str:
    return "" if job.unique is None else job.unique.to_json()
