"""Decides how jobs are inserted, and makes Jobs of the rows that come back. It does no I/O: it yields requests and is
sent their rows, so that every driver, synchronous or not, inserts in the same way.

| jobs | statement |
| --- | --- |
| one, and nothing about it is unusual | insert_plain_job |
| one, with a time, tags, `pending` or `notify=False` | insert_job |
| one with a key | insert_unique_job, then what is done about duplicates |
| several, of which some have a key | insert_jobs, then what is done about duplicates |
| several without a key, fewer than 20 or where COPY is not possible | insert_jobs |
| several without a key | prepare_copy, copy_with_ids, notify_copied |
| any number without a key, to be counted only | copy_due_now; prepare_copy and copy_timed; notify_copied |

Unique jobs are inserted in turns. The insert of a turn skips each job that has a duplicate. Then the duplicates are
changed, if the job says `replace`, or looked up. If a duplicate ends between the insert and this step, the skipped job
takes part in the next turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import psycopg

from pgjobs.db.rows import as_job
from pgjobs.enqueuing.copy_buffer import CopyBuffer
from pgjobs.enqueuing.copy_rows import (
    head,
    in_blocks,
    initial_state,
    instant,
    postgres_time,
    row_with_id,
    tail,
)
from pgjobs.enqueuing.encoded_jobs import UNKNOWN, EncodedJobs
from pgjobs.enqueuing.encoder import Encoder
from pgjobs.enqueuing.queries import EnqueueQueries, Request, Requests, Rows
from pgjobs.job import Job, JobState, changed, job_from, job_owning, without_args
from pgjobs.options import EncodedJob

COPY_FROM = 20  # jobs: for fewer, the round trips of a COPY take longer than an INSERT
_KEY, _MAY_READ = 19, 20  # the columns after those of a job
_MOST_TEMPLATES = 1000  # whose parts of a COPY are kept
_TURNS = 100  # at most: in each turn a job may be skipped for a duplicate that then ends
_STATES = {state.value: state for state in JobState}
#: The fields of an inserted plain job, most of which come from its row.
_PLAIN = vars(
    job_from(
        dict.fromkeys(
            ("id", "state", "queue", "kind", "priority", "max_attempts", "raw_args", "scheduled_at", "created_at")
        )
        | {"attempt": 0}
    )
)


class _NotInserted(NamedTuple):
    """A job that was not inserted, because another job has its key. Sorted by key, as the insert sorts the jobs."""

    key: bytes
    place: int  # of the job that was not inserted


class InsertBuilder:
    """Builds the inserts of one client."""

    def __init__(self, queries: EnqueueQueries, encoder: Encoder) -> None:
        self._queries = queries
        self._with_args = encoder.with_args

    def insert(self, jobs: Sequence[EncodedJob], *, notify: bool, may_copy: bool) -> Requests[list[Job[Any]]]:
        """Insert the jobs, and return them in their order. If another job has the key of one, return that other job."""
        if len(jobs) == 1 and notify and is_plain(jobs[0]):
            return self._insert_plain(jobs[0])
        encoded = EncodedJobs.of(jobs)
        if encoded.any_unique:
            return self._insert_unique(list(encoded), notify)
        if len(jobs) == 1:
            return self._insert_one(jobs[0], notify)
        if len(jobs) >= COPY_FROM and may_copy:
            return self._copy_with_ids(encoded, notify)
        return self._insert_several(list(encoded), notify)

    def insert_buffer(self, buffer: CopyBuffer, *, notify: bool) -> Requests[None]:
        """Insert all jobs of the buffer, and return none of them."""
        yield self._queries.copy_due_now(buffer.due_now())
        if buffer.has_timed:
            ((now, _, _),) = yield self._queries.prepare_copy()
            yield self._queries.copy_timed(in_blocks(buffer.timed(postgres_time(now))))
        if notify:
            first_due = None if buffer.first_due is None else instant(buffer.first_due)
            yield from self._notify_copied(buffer.available, first_due)

    # --- without a key

    def _insert_plain(self, job: EncodedJob) -> Requests[list[Job[Any]]]:
        rows = yield self._queries.insert_plain_job(job)
        args = job.original_args if job.has_original_args else UNKNOWN
        return [self.plain_job(job, args, rows[0] if rows else None)]

    def plain_job(self, job: EncodedJob, args: object, row: Sequence[Any] | None) -> Job[Any]:
        """The job of a row of `insert_plain_job`."""
        if row is None:
            raise _no_row()
        id, state, raw_args, metadata, scheduled_at, created_at, queue, kind, priority, max_attempts, *_ = row
        values = _PLAIN.copy()
        values["id"] = id
        values["state"] = _STATES[state]
        values["queue"] = queue
        values["kind"] = kind
        values["priority"] = priority
        values["max_attempts"] = max_attempts
        values["raw_args"] = raw_args
        values["raw_metadata"] = metadata
        values["scheduled_at"] = scheduled_at if scheduled_at.tzinfo is UTC else scheduled_at.astimezone(UTC)
        values["created_at"] = created_at if created_at.tzinfo is UTC else created_at.astimezone(UTC)
        if kind != job.original_kind:
            return self._with_args(job, job_owning(values))
        values["decode"] = job.decode
        if args is not UNKNOWN:
            values["args"] = args
        return job_owning(values)

    def _insert_one(self, job: EncodedJob, notify: bool) -> Requests[list[Job[Any]]]:
        rows = yield self._queries.insert_job(job, notify=notify)
        return [self._with_args(job, as_job(_one(rows)))]

    def _insert_several(self, jobs: Sequence[EncodedJob], notify: bool) -> Requests[list[Job[Any]]]:
        rows = yield self._queries.insert_jobs(jobs, notify=notify)
        return [self._with_args(job, as_job(_inserted(row))) for job, row in zip(jobs, rows, strict=True)]

    def _copy_with_ids(self, jobs: EncodedJobs, notify: bool) -> Requests[list[Job[Any]]]:
        ((now, forbidden, ids),) = yield self._queries.prepare_copy(len(jobs))
        if forbidden:
            return (yield from self._insert_several(list(jobs), notify))
        copied = _Copied(now.astimezone(UTC), self._with_args)
        yield self._queries.copy_with_ids(in_blocks(copied.rows(jobs, ids)))
        if notify:
            yield from self._notify_copied(copied.available, copied.first_due)
        return copied.jobs

    def _notify_copied(self, available: set[str], first_due: datetime | None) -> Requests[None]:
        if available or first_due is not None:
            yield self._queries.notify_copied(available, first_due)

    # --- with a key

    def _insert_unique(self, jobs: Sequence[EncodedJob], notify: bool) -> Requests[list[Job[Any]]]:
        done: dict[int, Job[Any]] = {}
        left = list(range(len(jobs)))
        for _ in range(_TURNS):
            rows = yield self._insert_turn([jobs[place] for place in left], notify)
            may_read = all(row[_MAY_READ] for row in rows)
            duplicates = []
            for place, row in zip(left, rows, strict=True):
                if row[0] is None and row[_KEY] is not None:
                    duplicates.append(_NotInserted(row[_KEY], place))
                else:
                    done[place] = as_job(_inserted(row))
            replaced = yield from self._replace_duplicates(jobs, duplicates, notify, may_read)
            found = yield from self._find_duplicates(
                jobs, [duplicate for duplicate in duplicates if duplicate.place not in replaced], may_read
            )
            done |= replaced | found
            left = [place for place in left if place not in done]
            if not left:
                return [self._with_args(job, done[place]) for place, job in enumerate(jobs)]
        raise psycopg.DataError(f"job {left[0]} of {len(jobs)}: its key is taken, but no job has it")

    def _insert_turn(self, jobs: Sequence[EncodedJob], notify: bool) -> Request:
        if len(jobs) == 1:
            return self._queries.insert_unique_job(jobs[0], notify=notify)
        return self._queries.insert_jobs(jobs, notify=notify)

    def _replace_duplicates(
        self, jobs: Sequence[EncodedJob], duplicates: Sequence[_NotInserted], notify: bool, may_read: bool
    ) -> Requests[dict[int, Job[Any]]]:
        """The duplicates that waited and were changed, by the place of the job. They are changed in the order of their
        keys, as jobs are inserted."""
        replaced = {}
        for key, place in sorted(duplicates):
            job = jobs[place]
            if not job.replace:
                continue
            rows = yield self._queries.replace_duplicate(job, key, notify=notify)
            if not rows:
                continue
            duplicate = as_job(rows[0])
            if may_read:
                rest = yield self._queries.read_replaced(duplicate.id, duplicate.queue)
                replaced[place] = _as_duplicate(_with_private(duplicate, rest[0]) if rest else duplicate)
            else:
                replaced[place] = _as_duplicate(_without_private(duplicate, job, replaced=True))
        return replaced

    def _find_duplicates(
        self, jobs: Sequence[EncodedJob], duplicates: Sequence[_NotInserted], may_read: bool
    ) -> Requests[dict[int, Job[Any]]]:
        """The duplicates that are still there, by the place of the job."""
        if not duplicates:
            return {}
        rows = yield self._queries.duplicates({key for key, _ in duplicates}, may_read=may_read)
        found = {row[_KEY]: as_job(row) for row in rows}
        return {
            place: _as_duplicate(found[key] if may_read else _without_private(found[key], jobs[place]))
            for key, place in duplicates
            if key in found
        }


def is_one_statement(jobs: EncodedJobs) -> bool:
    """Whether jobs are inserted by one statement, which needs no transaction around it."""
    return len(jobs) < COPY_FROM and not jobs.any_unique


def is_plain(job: EncodedJob) -> bool:
    """Whether the job can run now and has neither a key nor tags, as most jobs."""
    return not (job.unique or job.tags or job.pending or job.delay or job.scheduled_at)


def _one(rows: Rows) -> Sequence[Any]:
    if not rows:
        raise _no_row()
    return rows[0]


def _no_row() -> psycopg.DataError:
    """A trigger of the application has dropped the row, for example."""
    return psycopg.DataError("the statement gave no row")


def _inserted(row: Sequence[Any]) -> Sequence[Any]:
    """Return the row of a job; raise if it has no id, because the job was not inserted."""
    if row[0] is None:
        raise _no_row()
    return row


def _as_duplicate(job: Job[Any]) -> Job[Any]:
    return changed(job, duplicate=True)


def _with_private(duplicate: Job[Any], row: Sequence[Any]) -> Job[Any]:
    args, metadata, errors, token, output = row
    return changed(duplicate, raw_args=args, raw_metadata=metadata, raw_errors=errors, token=token, raw_output=output)


def _without_private(duplicate: Job[Any], job: EncodedJob, *, replaced: bool = False) -> Job[Any]:
    """The duplicate for a role that may not read args. They are known if the key covers them, or if they were just
    replaced; else it is an error to ask for them."""
    assert job.unique is not None
    known = {"raw_metadata": "{}", "raw_errors": "[]"}
    if job.unique.by_args is True or (replaced and "args" in job.replace):
        return changed(duplicate, raw_args=job.args, **known)
    return without_args(changed(duplicate, **known))


class _Copied:
    """The jobs of one COPY. They are made while their rows are written, and what all jobs of a template have in common
    is made once. Their args are the text that was sent; Postgres writes the same with blanks in it."""

    def __init__(self, now: datetime, with_args: Callable[[EncodedJob, Job[Any]], Job[Any]]) -> None:
        self.jobs: list[Job[Any]] = []
        self.available: set[str] = set()  # the queues that get a job that can run now
        self.first_due: datetime | None = None  # when the first scheduled job is due
        self._now = now
        self._with_args = with_args

    def rows(self, jobs: EncodedJobs, ids: Sequence[int]) -> Iterator[bytes]:
        """Each row, whose job is then the last one of `jobs`."""
        add = self.jobs.append
        of_template: dict[int, tuple[dict[str, Any], bytes, bytes]] = {}  # by id; `jobs` keeps the templates alive
        for number, template, text, args in zip(ids, jobs.templates, jobs.texts, jobs.args, strict=True):
            parts = of_template.get(id(template))
            if parts is None:
                if len(of_template) >= _MOST_TEMPLATES:
                    of_template.clear()
                parts = of_template[id(template)] = self._parts(template)
            common, before, behind = parts
            values = common.copy()
            values["id"] = number
            values["raw_args"] = text
            if args is not UNKNOWN:
                values["args"] = args
            add(job_owning(values))
            yield row_with_id(number, before, text, behind)

    def _parts(self, template: EncodedJob) -> tuple[dict[str, Any], bytes, bytes]:
        """The fields of the jobs of a template, and the columns before and after the args of their rows."""
        now = self._now
        due = now if template.scheduled_at is None else template.scheduled_at.astimezone(UTC)
        if template.delay and template.scheduled_at is None:
            due = now + template.delay
        state = initial_state(due, now, pending=template.pending)
        if state is JobState.AVAILABLE:
            self.available.add(template.queue)
        elif state is JobState.SCHEDULED:
            self.first_due = due if self.first_due is None else min(due, self.first_due)
        job = job_from(
            {
                "id": 0,
                "state": state,
                "queue": template.queue,
                "kind": template.kind,
                "priority": template.priority,
                "attempt": 0,
                "max_attempts": template.max_attempts,
                "raw_args": template.args,
                "raw_metadata": template.metadata,
                "tags": tuple(template.tags),
                "scheduled_at": due,
                "created_at": now,
            }
        )
        created = postgres_time(now)
        times = created if due is now else postgres_time(due)
        return vars(self._with_args(template, job)), head(state, times, created), tail(template)
