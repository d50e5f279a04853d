"""One method per way to insert jobs, connection first: encoded jobs in, Jobs out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import psycopg
from psycopg.pq import PipelineStatus

from pgjobs.db import statements
from pgjobs.db.channel import DUE_NOTICE, channel
from pgjobs.db.cursors import AnyConnection, bound_cursor, one
from pgjobs.db.rows import as_job
from pgjobs.enqueuing.copy_buffer import CopyBuffer
from pgjobs.enqueuing.copy_rows import HEADER, TRAILER, CopyRows, instant, microseconds
from pgjobs.enqueuing.single_insert import hot_insert
from pgjobs.errors import InvalidTransaction
from pgjobs.execution.transport import prepared
from pgjobs.job import Job, JobState, changed, job_from, without_args
from pgjobs.options import FIRST_INSTANT, EncodedJob

Answer = TypeVar("Answer")

COPY_FROM = 20  # jobs: for fewer, the exchanges that a COPY needs take longer than an INSERT
_PLACE = _DUPLICATE_KEY = 19  # stand behind the columns of a job, each in another statement
_KEY, _MAY_READ = 20, 21
_BLOCK = 128 * 1024  # bytes that are given to a COPY at once
_TRIES = 100  # to insert a job whose duplicate is there, and gone, and there again
_SOON = timedelta(seconds=2)  # as in sql/parts.sql


class EnqueueQueries:
    """The statements of one schema."""

    def __init__(self, schema: str) -> None:
        self._channel = channel(schema)
        self._enqueue = statements.load("enqueuing.sql", schema)
        # a name of ours may stand in a statement, where it costs nothing
        quoted = f"'{self._channel}'".encode()
        self._hot = prepared(f"pgjobs_in_{schema}", self._enqueue["insert_plain_job"], {"channel": quoted})
        self._plain = self._enqueue["insert_plain_job"].replace(b"%(channel)s", quoted)

    def insert(self, conn: AnyConnection, jobs: Sequence[EncodedJob], *, notify: bool) -> list[Job[Any]]:
        """Insert the jobs; they come back in their order. In place of a duplicate, the job that is there already."""
        check_encoding(conn)
        if any(job.unique is not None for job in jobs):
            return self._insert_unique(conn, jobs, notify)
        if len(jobs) == 1:
            return [self._insert_one(conn, jobs[0], notify)]
        if len(jobs) >= COPY_FROM and can_copy(conn):
            now, forbidden, ids = self._prepare_copy(conn, len(jobs))
            if not forbidden:
                return self._copy_with_ids(conn, jobs, notify, now, ids)
        return [_present(job) for job, *_ in self._insert_array(conn, jobs, notify)]

    def insert_hot(self, conn: AnyConnection, job: EncodedJob, *, may_prepare: bool) -> Job[Any]:
        """As `insert`, of one that is plain, in a transaction of its own, on a connection that is in none."""
        codec = check_encoding(conn)
        values = [str(vars(job)[name]).encode(codec) for name in self._hot.parameters]
        row = hot_insert(conn, self._hot).row(conn, self._hot, values, may_prepare=may_prepare)
        id, state, args, metadata, scheduled_at, created_at, queue, kind, priority, most, *_ = _present(row)
        return _inserted(
            job,
            id=int.from_bytes(id, signed=True),
            state=JobState(state.decode()),
            raw_args=args.decode(codec),
            raw_metadata=metadata.decode(codec),
            scheduled_at=instant(int.from_bytes(scheduled_at, signed=True)),
            created_at=instant(int.from_bytes(created_at, signed=True)),
            queue=queue.decode(codec),
            kind=kind.decode(codec),
            priority=int.from_bytes(priority, signed=True),
            max_attempts=int.from_bytes(most),
        )

    def _insert_one(self, conn: AnyConnection, job: EncodedJob, notify: bool) -> Job[Any]:
        with bound_cursor(conn) as cur:
            if notify and is_plain(job):
                cur.execute(self._plain, vars(job))
                id, state, args, metadata, scheduled_at, created_at, queue, kind, priority, most, *_ = one(cur)
                return _inserted(
                    job,
                    id=id,
                    state=JobState(state),
                    raw_args=args,
                    raw_metadata=metadata,
                    scheduled_at=scheduled_at.astimezone(UTC),
                    created_at=created_at.astimezone(UTC),
                    queue=queue,
                    kind=kind,
                    priority=priority,
                    max_attempts=most,
                )
            cur.execute(self._enqueue["insert_job"], self._parameters(job, notify))
            return as_job(one(cur))

    def _parameters(self, job: EncodedJob, notify: bool) -> dict[str, Any]:
        return {**vars(job), **self._telling(notify), "tags": list(job.tags)}

    def _telling(self, notify: bool) -> dict[str, Any]:
        return {"notify": notify, "channel": self._channel}

    # --- unique jobs

    def _insert_unique(self, conn: AnyConnection, jobs: Sequence[EncodedJob], notify: bool) -> list[Job[Any]]:
        """In turns: what has no duplicate is inserted, of the others the duplicate is looked up. If that has ended
        in between, the job takes another turn."""
        done: dict[int, Job[Any]] = {}
        left = list(range(len(jobs)))
        for _ in range(_TRIES):
            duplicates: list[tuple[bytes, int]] = []
            inserted = list(self._insert_turn(conn, [jobs[at] for at in left], notify))
            may_read = all(may for *_, may in inserted)
            for job, place, key, _ in inserted:
                if job is None and key is not None:
                    duplicates.append((key, left[place]))
                else:
                    done[left[place]] = _present(job)
            done.update(self._replace_duplicates(conn, jobs, duplicates, notify, may_read=may_read))
            others = [duplicate for duplicate in duplicates if duplicate[1] not in done]
            done.update(self._find_duplicates(conn, jobs, others, may_read=may_read))
            left = [at for at in left if at not in done]
            if not left:
                return [done[at] for at in range(len(jobs))]
        raise psycopg.DataError(f"job {left[0]} of {len(jobs)}: its key is taken, but there is no job that holds it")

    def _insert_turn(
        self, conn: AnyConnection, jobs: Sequence[EncodedJob], notify: bool
    ) -> Iterator[tuple[Job[Any] | None, int, bytes | None, bool]]:
        if len(jobs) > 1:
            yield from self._insert_array(conn, jobs, notify)
            return
        (job,) = jobs
        assert job.unique is not None
        with bound_cursor(conn) as cur:
            parameters = {**self._parameters(job, notify), "uniqueness": job.unique.to_json()}
            cur.execute(self._enqueue["insert_unique_job"], parameters)
            yield _turn(one(cur))

    def _insert_array(
        self, conn: AnyConnection, jobs: Sequence[EncodedJob], notify: bool
    ) -> Iterator[tuple[Job[Any] | None, int, bytes | None, bool]]:
        """Each job as it was inserted, None if it was not; its place, its key, and whether the role may read
        duplicates."""
        columns = {
            "pending": [job.pending for job in jobs],
            "queues": [job.queue for job in jobs],
            "kinds": [job.kind for job in jobs],
            "priorities": [job.priority for job in jobs],
            "max_attempts": [job.max_attempts for job in jobs],
            "args": [job.args for job in jobs],
            "metadata": [job.metadata for job in jobs],
            "tags": [_array_text(job.tags) for job in jobs],
            "timed": [job.scheduled_at is not None for job in jobs],
            "scheduled_at": [job.scheduled_at or FIRST_INSTANT for job in jobs],  # any: it is not looked at
            "delays": [job.delay for job in jobs],
            "uniqueness": ["" if job.unique is None else job.unique.to_json() for job in jobs],
        }
        with bound_cursor(conn) as cur:
            cur.execute(self._enqueue["insert_jobs"], {**columns, **self._telling(notify)})
            yield from map(_turn, cur.fetchall())

    def _replace_duplicates(
        self,
        conn: AnyConnection,
        jobs: Sequence[EncodedJob],
        duplicates: list[tuple[bytes, int]],
        notify: bool,
        *,
        may_read: bool,
    ) -> dict[int, Job[Any]]:
        """Those that replaced something in a duplicate that waits. In the order of the keys, as when they are
        inserted."""
        replaced = {}
        with bound_cursor(conn) as cur:
            for key, place in sorted(duplicates):
                job = jobs[place]
                if not job.replace:
                    continue
                cur.execute(self._replacing(job), {**self._parameters(job, notify), "key": key})
                row = cur.fetchone()
                if row is None:
                    continue
                duplicate = as_job(row)
                if may_read:
                    cur.execute(self._enqueue["read_replaced"], {"id": duplicate.id, "queue": duplicate.queue})
                    rest = cur.fetchone()
                    replaced[place] = _duplicate(duplicate if rest is None else _with_private(duplicate, rest))
                else:
                    replaced[place] = _duplicate(_without_private(duplicate, job, replaced=True))
        return replaced

    def _replacing(self, job: EncodedJob) -> bytes:
        """The statement that replaces what this job names."""
        before, *changes = re.split(
            rb"^ *-- replace[ d](\w*)\n", self._enqueue["replace_duplicate"], flags=re.MULTILINE
        )
        by_name = {
            name.decode(): change.strip().rstrip(b",") for name, change in zip(changes[::2], changes[1::2], strict=True)
        }
        return before + b",\n".join(by_name[name] for name in job.replace) + b"\n" + changes[-1]

    def _find_duplicates(
        self, conn: AnyConnection, jobs: Sequence[EncodedJob], duplicates: list[tuple[bytes, int]], *, may_read: bool
    ) -> dict[int, Job[Any]]:
        """Those whose duplicate is still there."""
        if not duplicates:
            return {}
        statement = self._enqueue["duplicates"] if may_read else self._enqueue["duplicates_unread"]
        with bound_cursor(conn) as cur:
            cur.execute(statement, {"keys": list({key for key, _ in duplicates})})
            found = {row[_DUPLICATE_KEY]: as_job(row) for row in cur.fetchall()}
        return {
            place: _duplicate(found[key] if may_read else _without_private(found[key], jobs[place]))
            for key, place in duplicates
            if key in found
        }

    # --- COPY

    def _prepare_copy(self, conn: AnyConnection, jobs: int) -> tuple[datetime, bool, list[int]]:
        with bound_cursor(conn) as cur:
            cur.execute(self._enqueue["prepare_copy"], {"jobs": jobs})
            now, forbidden, ids = one(cur)
            return now.astimezone(UTC), forbidden, ids

    def _copy_with_ids(
        self, conn: AnyConnection, jobs: Sequence[EncodedJob], notify: bool, now: datetime, ids: Sequence[int]
    ) -> list[Job[Any]]:
        inserted = [_copied(job, id, now) for job, id in zip(jobs, ids, strict=True)]
        self._copy(conn, self._enqueue["copy_with_ids"], _joined(_rows_with_ids(jobs, inserted, now)))
        if notify:
            waiting = [job.scheduled_at for job in inserted if job.state is JobState.SCHEDULED]
            self._notify(conn, {job.queue for job in inserted if job.state is JobState.AVAILABLE}, now, waiting)
        return inserted

    def insert_spooled(self, conn: AnyConnection, spool: CopyBuffer, *, notify: bool) -> None:
        """Insert all that is in the spool, and give nothing back."""
        if not can_copy(conn):
            raise InvalidTransaction("jobs in any number go to a connection with client_encoding UTF8, in no pipeline")
        self._copy(conn, self._enqueue["copy_due_now"], spool.due_now())
        now = datetime.min.replace(tzinfo=UTC)
        if spool.has_timed:
            now, _, _ = self._prepare_copy(conn, 0)
            self._copy(conn, self._enqueue["copy_timed"], _joined(spool.timed(microseconds(now))))
        if notify:
            self._notify(conn, spool.awake, now, () if spool.earliest is None else [instant(spool.earliest)])

    def _notify(self, conn: AnyConnection, awake: set[str], now: datetime, waiting: Sequence[datetime]) -> None:
        """Wake the workers of these queues, and maintenance when one of these times is sooner than that looks."""
        told = awake | ({DUE_NOTICE} if waiting and min(waiting) < now + _SOON else set())
        if told:
            with bound_cursor(conn) as cur:
                cur.execute(self._enqueue["notify_queues"], {"channel": self._channel, "queues": sorted(told)})

    def _copy(self, conn: AnyConnection, statement: bytes, blocks: Iterable[bytes]) -> None:
        with bound_cursor(conn) as cur, cur.copy(statement) as copy:
            copy.write(HEADER)
            for block in blocks:
                copy.write(block)
            copy.write(TRAILER)


def can_copy(conn: AnyConnection) -> bool:
    """Whether the connection is in the mode for it: not in a pipeline of the application's, and with the encoding in
    which the rows are made."""
    return (
        conn.pgconn.pipeline_status == PipelineStatus.OFF
        and conn.pgconn.parameter_status(b"client_encoding") == b"UTF8"
    )


def check_encoding(conn: AnyConnection) -> str:
    """The codec of the connection's text; refuses a connection that has none."""
    codec = conn.info.encoding
    if codec == "ascii":
        raise InvalidTransaction("client_encoding is SQL_ASCII, which says of no text what it is: connect with UTF8")
    return codec


def is_plain(job: EncodedJob) -> bool:
    """Whether it is to run now, and has nothing that most jobs have not."""
    return not (job.unique or job.tags or job.pending or job.delay or job.scheduled_at)


def _turn(row: Sequence[Any]) -> tuple[Job[Any] | None, int, bytes | None, bool]:
    return None if row[0] is None else as_job(row), row[_PLACE] - 1, row[_KEY], row[_MAY_READ]


def _duplicate(job: Job[Any]) -> Job[Any]:
    return changed(job, duplicate=True)


def _with_private(duplicate: Job[Any], row: Sequence[Any]) -> Job[Any]:
    args, metadata, errors, token, output = row
    return changed(duplicate, raw_args=args, raw_metadata=metadata, raw_errors=errors, token=token, raw_output=output)


def _without_private(duplicate: Job[Any], job: EncodedJob, *, replaced: bool = False) -> Job[Any]:
    """The duplicate as a role sees it that may not read args. Those are known where they are the same by the key, or
    have
    just been replaced; else to ask for them is an error."""
    assert job.unique is not None
    known = {"raw_metadata": "{}", "raw_errors": "[]"}
    if job.unique.by_args is True or (replaced and "args" in job.replace):
        return changed(duplicate, raw_args=job.args, **known)
    return without_args(changed(duplicate, **known))


def _present(answer: Answer | None) -> Answer:
    if answer is None:  # a trigger of the application's, for one
        raise psycopg.DataError("the statement gave no row")
    return answer


def _moment(job: EncodedJob, now: datetime) -> tuple[datetime, JobState]:
    """When the job is due, and the state in which it begins."""
    due = now + job.delay if job.scheduled_at is None else job.scheduled_at.astimezone(UTC)
    if job.pending:
        return due, JobState.PENDING
    return due, JobState.SCHEDULED if due > now else JobState.AVAILABLE


def _copied(job: EncodedJob, id: int, now: datetime) -> Job[Any]:
    """The job that a COPY inserts. Its args are the text that was sent; Postgres writes the same with blanks in it."""
    due, state = _moment(job, now)
    return _inserted(
        job, id=id, state=state, raw_args=job.args, raw_metadata=job.metadata, scheduled_at=due, created_at=now
    )


def _inserted(job: EncodedJob, **known: Any) -> Job[Any]:
    """The job as it stands in the table, for all that is `known` of that; the rest is as it was sent."""
    return job_from(
        {
            "queue": job.queue,
            "kind": job.kind,
            "priority": job.priority,
            "attempt": 0,
            "max_attempts": job.max_attempts,
            "tags": tuple(job.tags),
            **known,
        }
    )


def _rows_with_ids(jobs: Sequence[EncodedJob], inserted: Sequence[Job[Any]], now: datetime) -> Iterator[bytes]:
    rows, created = CopyRows(), microseconds(now)
    for job, made in zip(jobs, inserted, strict=True):
        due = created if made.scheduled_at == now else microseconds(made.scheduled_at)
        yield rows.with_id(job, made.id, made.state, due, created)


def _joined(rows: Iterable[bytes]) -> Iterator[bytes]:
    """The rows in blocks that are worth a call."""
    block, size = [], 0
    for row in rows:
        block.append(row)
        size += len(row)
        if size >= _BLOCK:
            yield b"".join(block)
            block, size = [], 0
    yield b"".join(block)


def _array_text(tags: Sequence[str]) -> str:
    """An array as Postgres reads it."""
    return "{" + ",".join(map(_quoted, tags)) + "}"


def _quoted(tag: str) -> str:
    return '"' + tag.replace("\\", "\\\\").replace('"', '\\"') + '"'
