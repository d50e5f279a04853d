"""Applies an action (cancel, release, retry, delete, update) to one job, or to all jobs that fit a filter.

One job is a filter with one id: the statement and the way to apply it are the same. The two calls differ in this:

                                      one job                   many jobs
    --------------------------------  ------------------------  --------------------------------------------------
    batches                           one                       as many as it takes, in the order of the keys, up
                                                                to the job that is the newest when the call begins
    two queues have a job of this id  AmbiguousJob              is applied to both jobs
    a finished job                    is found                  `cancel_many` passes over it
    a job that cannot be changed      an error                  a reason in `ManyJobs.skipped`
    a job that makes the statement    the error of the server,  the same in the caller's transaction; else the batch
    fail                              or one of ours            is done again job by job, and that job is skipped

Both wait for the locks of other transactions, a second in all. `dry_run` of many jobs rolls everything back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import psycopg

from pgjobs import codec
from pgjobs.checks import check_bool
from pgjobs.control.queries import Action, Changes, ControlQueries, ControlResult, JobKey, KeysetBatch
from pgjobs.db.borrow import Tx, is_borrowed
from pgjobs.db.cursors import AnyConnection
from pgjobs.errors import (
    InvalidFilter,
    InvalidOption,
    JobLocked,
    JobNotFound,
    JobRunning,
    NotDiscarded,
    PgjobsError,
    UniqueConflict,
)
from pgjobs.execution.set_aside import MOST_ALIKE, concerns_a_row
from pgjobs.job import Job
from pgjobs.job_filter import BIGGEST_ID, SMALLEST_ID, JobFilter, check_filter, check_id, check_limit
from pgjobs.options import JobOptions
from pgjobs.results import ManyJobs

PATIENCE = 1.0  # seconds that a call waits in all for the locks of other transactions
PAUSE = 0.02  # seconds between two tries
BATCH = 1000  # jobs of one statement, and of one transaction of our own

Transaction = Callable[[], AbstractContextManager[AnyConnection]]


class JobControl:
    """Applies actions to jobs, in the caller's transaction or in transactions of its own."""

    def __init__(
        self, queries: ControlQueries, transaction: Callable[[Tx], AbstractContextManager[AnyConnection]]
    ) -> None:
        self._queries = queries
        self._transaction = transaction

    def one(self, tx: Tx, id: int, action: Action) -> Job[Any]:
        """Apply the action to the job with this id. Returns the changed job, or raises an error that says why not."""
        check_id(id)
        filter = JobFilter(ids=[int(id)] if SMALLEST_ID <= int(id) <= BIGGEST_ID else [])
        call = _Call(self._queries, action, filter, lambda: self._transaction(tx), is_borrowed(tx), single=True)
        try:
            call.run(BIGGEST_ID)
        except psycopg.errors.LockNotAvailable as error:
            raise JobLocked(f"job {id} needs a lock that another transaction holds: {error}") from error
        except psycopg.errors.UniqueViolation as error:
            if is_conflict(error):
                raise _conflict(id) from error
            raise
        if call.busy:
            raise JobLocked(f"another transaction holds job {id} at the moment: try again")
        for job, result in call.skipped.values():
            raise not_allowed(job, result, action)
        for job in call.done.values():
            return job
        raise JobNotFound(id)

    def many(self, tx: Tx, filter: JobFilter, action: Action, *, limit: int | None, dry_run: bool) -> ManyJobs:
        """Apply the action to the jobs that fit, the oldest first, but to no more than `limit`."""
        check_filter(filter)
        filter.check_not_empty()
        check_limit(limit)
        check_bool("dry_run", dry_run, error=InvalidFilter)
        with self._transactions(tx, dry_run) as transaction:
            call = _Call(self._queries, action, filter, transaction, is_borrowed(tx), notify=not dry_run, limit=limit)
            with transaction() as conn:
                newest = self._queries.newest_id(conn)
            if newest is not None:
                call.run(newest)
        done, skipped = call.done, {key: result for key, (_, result) in call.skipped.items()}
        skipped.update(dict.fromkeys(call.busy, "locked"))
        return ManyJobs(tuple(done[key] for key in sorted(done)), {key[0]: skipped[key] for key in sorted(skipped)})

    @contextmanager
    def _transactions(self, tx: Tx, dry_run: bool) -> Iterator[Transaction]:
        """The transaction of each batch. A dry run is one transaction, or one savepoint of the caller's, that is rolled
        back at its end: a batch must see what the batches before it have done."""
        if not dry_run:
            yield lambda: self._transaction(tx)
            return
        with self._transaction(tx) as conn:
            if not is_borrowed(tx):
                self._queries.begin(conn, PATIENCE)
            with conn.transaction(force_rollback=True):
                yield lambda: _savepoint(conn)


@contextmanager
def _savepoint(conn: AnyConnection) -> Iterator[AnyConnection]:
    with conn.transaction():
        yield conn


@dataclass
class _Call:
    """One call for one job or many, and what became of the jobs so far."""

    queries: ControlQueries
    action: Action
    filter: JobFilter
    transaction: Transaction
    borrowed: bool
    single: bool = False
    notify: bool = True
    limit: int | None = None
    done: dict[JobKey, Job[Any]] = field(default_factory=dict)
    skipped: dict[JobKey, tuple[Job[Any] | None, str]] = field(default_factory=dict)
    busy: set[JobKey] = field(default_factory=set)
    _patience: float = field(default_factory=lambda: PATIENCE)  # seconds that are left to wait

    def run(self, newest: int) -> None:
        """Apply the action batch by batch, up to the id `newest`; then to the busy jobs again, while patience lasts."""
        after: JobKey | None = None
        while (size := self._batch_size()) != 0:
            keys = self._apply(KeysetBatch(newest=newest, size=size, after=after))
            if size is None or len(keys) < size:
                break
            after = keys[-1]
        if not self.busy or self._sees_nothing_new():
            return
        give_up = time.monotonic() + self._patience
        while self.busy and time.monotonic() < give_up:
            time.sleep(PAUSE)
            among, self.busy = sorted(self.busy), set()
            for first in range(0, len(among), BATCH):
                self._apply(KeysetBatch(newest=newest, size=BATCH, among=among[first : first + BATCH]))

    def _batch_size(self) -> int | None:
        if self.single:
            return None
        return BATCH if self.limit is None else min(BATCH, self.limit - len(self.done) - len(self.busy))

    def _sees_nothing_new(self) -> bool:
        if not self.borrowed:
            return False
        with self.transaction() as conn:
            return self.queries.snapshot_is_kept(conn)

    def _apply(self, batch: KeysetBatch) -> Sequence[JobKey]:
        """Apply the action to a batch. Returns the keys of its jobs."""
        try:
            return self._sort(self._try(batch))
        except psycopg.Error as error:
            # borrowed: the transaction of the caller is aborted; single: the caller gets the error of its job
            if self.borrowed or self.single or _why_skipped(error) is None:
                raise
            return self._apply_one_by_one(batch)

    def _try(self, batch: KeysetBatch) -> list[ControlResult]:
        with self.transaction() as conn:
            if not self.borrowed:
                self.queries.begin(conn, self._patience)
            began = time.monotonic()
            try:
                return self.queries.apply(conn, self.action, self.filter, batch, single=self.single, notify=self.notify)
            except psycopg.errors.LockNotAvailable:
                self._patience -= time.monotonic() - began
                raise

    def _apply_one_by_one(self, batch: KeysetBatch) -> Sequence[JobKey]:
        """Apply the action to each job of a batch alone, and skip the jobs for which the statement fails."""
        with self.transaction() as conn:
            keys = self.queries.batch_keys(conn, self.filter, batch)
        refused = 0  # in succession
        for key in keys:
            try:
                self._sort(self._try(KeysetBatch(newest=batch.newest, size=1, among=[key])))
                refused = 0
            except psycopg.Error as error:
                why = _why_skipped(error)
                refused = refused + 1 if why == "refused" else 0
                if why is None or refused > MOST_ALIKE:  # the jobs are not to blame
                    raise
                self.skipped[key] = (None, why)
        return keys

    def _sort(self, results: Sequence[ControlResult]) -> Sequence[JobKey]:
        """Sort the jobs by their results into done, busy and skipped. Returns the keys of all."""
        accepted = {"done", "unchanged"}
        if self.action.running == "request" or (self.single and self.action.running == "leave"):
            accepted.add("running")
        for job, result in results:
            key = (job.id, job.queue)
            if result in accepted:
                self.done[key] = job
            elif result == "busy":
                self.busy.add(key)
            else:
                self.skipped[key] = (job, result)
        return [(job.id, job.queue) for job, _ in results]


def _why_skipped(error: psycopg.Error) -> str | None:
    """Why a job could not be changed; None when the error is not due to a job."""
    if isinstance(error, psycopg.errors.LockNotAvailable):
        return "locked"
    if is_conflict(error):
        return "conflict"
    if isinstance(error, psycopg.errors.ForeignKeyViolation):
        return "referenced"
    if _lacks_right(error):  # for every job
        return None
    return "refused" if concerns_a_row(error) else None


def _lacks_right(error: psycopg.Error) -> bool:
    """Whether the role may not run the statement at all, where a trigger or a policy would refuse one row."""
    is_denied = isinstance(error, psycopg.errors.InsufficientPrivilege)
    return is_denied and not error.diag.context and "row-level security" not in str(error)


def is_conflict(error: psycopg.Error) -> bool:
    """Whether a duplicate with the job's unique key was inserted in the same moment."""
    return isinstance(error, psycopg.errors.UniqueViolation) and error.diag.constraint_name == "job_unique"


def not_allowed(job: Job[Any] | None, result: str, action: Action) -> PgjobsError:
    """The error for a job that the action must not change."""
    assert job is not None  # it is None only in calls for many jobs, which raise no such error
    match result:
        case "conflict":
            return _conflict(job.id)
        case _ if action.name == "retry":
            return NotDiscarded(f"job {job.id} is {job.state}: only a discarded one gets all its attempts again")
        case "running":
            return JobRunning(f"job {job.id} is running: cancel it, or wait until it has ended")
        case _:
            return InvalidOption(f"max_attempts: job {job.id} has used {job.attempt} attempts already")


def _conflict(id: int) -> UniqueConflict:
    return UniqueConflict(f"job {id} cannot wait to run again: another job has its unique key now")


def encode_changes(
    *,
    metadata: Mapping[str, Any] | None,
    output: object,
    priority: int | None,
    scheduled_at: datetime | None,
    max_attempts: int | None,
    tags: Sequence[str] | None,
) -> Changes | None:
    """Check and encode the values of an update; None when there are none. `output` is `...` when it is not given, since
    None is an output."""
    options = JobOptions(
        metadata=metadata, priority=priority, scheduled_at=scheduled_at, max_attempts=max_attempts, tags=tags
    )
    if output is ... and options == JobOptions():
        return None
    return Changes(
        metadata=None if metadata is None else codec.encode_metadata(metadata),
        output=None if output is ... else codec.encode_output(output),
        priority=priority,
        scheduled_at=scheduled_at,
        max_attempts=max_attempts,
        tags=None if tags is None else list(tags),
    )
