"""Every error that pgjobs raises, and the signals that a handler may raise.

    PgjobsError
    ├── InvalidJob (ValueError)          what was given to enqueue cannot become a job; nothing was sent
    │   ├── InvalidKind                  a kind that is missing, too long or of other characters
    │   ├── InvalidArgs                  args that JSON or Postgres cannot hold; names the path
    │   ├── InvalidOption                an option out of its range, or one that there is not
    │   └── NoJobs                       an empty list of jobs
    ├── InvalidSchedule (ValueError)     a schedule whose spec, zone or name cannot be used
    ├── ScheduleNotFound (LookupError)   no schedule with this name
    ├── InvalidHandler (ValueError)      a function that cannot be a handler
    │   └── DuplicateHandler             a second handler for one kind
    ├── InvalidFilter (ValueError)       which jobs are meant, in which order: something no job can have
    │   └── EmptyFilter                  a call that changes many jobs was not told which
    ├── InvalidSetting (ValueError)      a setting of Client or WorkerPool out of its range or type
    │   └── PoolTooSmall                 fewer connections than threads
    ├── InvalidTransaction (TypeError)   a `tx` that is nothing pgjobs can enqueue on
    ├── UnknownKind (LookupError)        no handler for a kind
    ├── JobNotFound (LookupError)        no job with this id
    ├── AmbiguousJob (LookupError)       jobs of two queues have this id
    ├── JobRunning                       a job that runs cannot be deleted or updated
    ├── JobLocked                        somebody else held the job's row for longer than a call waits
    ├── UniqueConflict                   a job cannot wait again: another one has its unique key
    ├── NotDiscarded                     a job that is to begin anew is not discarded
    ├── JobNotFinished (TimeoutError)        a job had not ended after the time that was to be waited
    ├── QueueNotFound (LookupError)      no worker and no job knows this queue
    ├── QueueLocked                      somebody else held the queue's row for longer than a call waits
    ├── UndecodableArgs (ValueError)     stored args that do not fit the args class
    ├── JobTimedOut (TimeoutError)       recorded for an attempt whose time was up
    ├── JobCancelled                     recorded for an attempt that was cancelled by hand while it ran
    ├── JobStopped                       why an attempt was cut off by a stop; it is given back, not recorded
    ├── NotRunning                       what only a running handler may ask was asked of another job
    ├── MigrationError
    │   ├── InvalidMigration (ValueError)  a version, direction or number of steps that cannot be
    │   ├── SchemaMissing                there are no pgjobs tables in this schema
    │   ├── SchemaOutdated               the tables are older than this code
    │   ├── SchemaTooNew                 the tables are newer than this code
    │   └── SchemaDamaged                the tables are there, but something that they need is not
    ├── WorkerPoolError                  start and stop out of order, a queue twice or one it does not work
    ├── UsedAfterFork                    a connection, a pool or its threads belong to the process that forked this one
    ├── CannotConnect                    (psycopg.OperationalError) a connection is refused, and would be again
    ├── TransactionBroken                the handler ended or broke the job's transaction
    └── AttemptLost                      the job was taken away from the attempt that wanted to finish it

    Interrupted (BaseException)          raised in a handler that was told to end and did not; let it through

    Signal                               raised by a handler, never by pgjobs
    ├── Snooze(delay)                    not now: run again after the delay, this attempt is not counted
    ├── RetryAfter(delay), RetryAt(when) failed: run again then, whatever the backoff says
    ├── Discard(reason)                  failed for good: no further attempt
    └── Cancel(reason)                   nobody wants this job any more

Errors of the database pass through as psycopg raised them: the transaction they happened in is the caller's.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import psycopg


def shown(value: object, limit: int = 80) -> str:
    """What was given, for the message of an error: in short, and whatever its `repr` does."""
    try:
        return f"{value!r:.{limit}}"
    except Exception:
        return f"<{type(value).__name__}>"


class PgjobsError(Exception):
    """The base of every error of this library."""


class InvalidJob(PgjobsError, ValueError):
    """What was given to `enqueue` cannot become a job. Nothing was sent; the transaction stays usable."""


class InvalidKind(InvalidJob):
    """A kind that is missing, too long, or has characters that a kind may not have."""


class InvalidArgs(InvalidJob):
    """Args that JSON or Postgres cannot hold exactly. The message names the path, as in `$.items[3].price`."""


class InvalidOption(InvalidJob):
    """An option of a job out of its range, or one that there is not."""


class NoJobs(InvalidJob):
    """`enqueue_many` was given no job: more often a mistake of the caller than a wish."""


class InvalidSchedule(PgjobsError, ValueError):
    """A schedule that can never tick, or not as it is written; or a second one of the same name."""


class ScheduleNotFound(PgjobsError, LookupError):
    """There is no schedule with this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no schedule {name!r}")
        self.name = name


class InvalidHandler(PgjobsError, ValueError):
    """What was registered cannot be called as `handler(tx, job)`."""


class DuplicateHandler(InvalidHandler):
    """A kind that already has a handler was registered again."""


class InvalidFilter(PgjobsError, ValueError):
    """An id, filter, order, limit or cursor that cannot be. Nothing was sent; the transaction stays usable."""


class EmptyFilter(InvalidFilter):
    """A call that changes many jobs was given a filter that says nothing. `JobFilter.all()` means really all."""


class InvalidSetting(PgjobsError, ValueError):
    """A setting of `Client` or `WorkerPool`, or a time to wait, out of its range or of another type."""


class PoolTooSmall(InvalidSetting):
    """The connection pool holds fewer connections than the worker pool would use at once."""


class InvalidTransaction(PgjobsError, TypeError):
    """A `tx` that is nothing pgjobs can enqueue on: no connection of psycopg 3 stands behind it."""


class UnknownKind(PgjobsError, LookupError):
    """No handler is registered for this kind."""

    def __init__(self, kind: str) -> None:
        super().__init__(f"no handler for kind {kind!r}: register one in the WorkMap")
        self.kind = kind


class JobNotFound(PgjobsError, LookupError):
    """There is no job with this id: it never was, was deleted, or was cleaned away."""

    def __init__(self, id: int) -> None:
        super().__init__(f"there is no job {id}")
        self.id = id


class AmbiguousJob(PgjobsError, LookupError):
    """Several queues have a job with this id, so the id does not say which job is meant. Nothing was changed; the
    transaction stays usable."""

    def __init__(self, id: int, queues: Sequence[str]) -> None:
        super().__init__(id, queues)
        self.id = id
        self.queues = tuple(queues)

    def __str__(self) -> str:
        return (
            f"{len(self.queues)} queues have a job with the id {self.id}: {', '.join(map(repr, self.queues))}. "
            f"Name the queue, as in delete_many(JobFilter(ids=[{self.id}], queues=[{self.queues[0]!r}])); "
            "client.list takes the same filter"
        )


class JobRunning(PgjobsError):
    """The job runs, so its row is its worker's: it was not deleted or updated. The transaction stays usable."""


class JobLocked(PgjobsError):
    """Another transaction held the job's row for a second, so nothing was changed. The transaction stays usable."""


class UniqueConflict(PgjobsError):
    """The job was not moved: another job has its unique key in the state it would enter."""


class NotDiscarded(PgjobsError):
    """Only a discarded job can be given all its attempts again. The transaction stays usable."""


class JobNotFinished(PgjobsError, TimeoutError):
    """A job had not ended when the time to wait for it was up."""

    def __init__(self, id: int, state: str, timeout: timedelta) -> None:
        super().__init__(id, state, timeout)
        self.id = id
        self.state = state
        self.timeout = timeout

    def __str__(self) -> str:
        return f"job {self.id} is not over after {self.timeout.total_seconds():g} s: it is {self.state}"


class QueueNotFound(PgjobsError, LookupError):
    """There is no such queue: no worker has worked it lately, and no job waits in it."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no queue {name!r}: no worker has worked it lately, and no job waits in it")
        self.name = name


class QueueLocked(PgjobsError):
    """Another transaction held the queue's row for a second, so nothing was changed. The transaction stays usable."""


class UndecodableArgs(PgjobsError, ValueError):
    """The stored args do not fit the args class of the handler. The handler was not called."""


class JobTimedOut(PgjobsError, TimeoutError):
    """An attempt took longer than its timeout."""

    def __init__(self, timeout: timedelta) -> None:
        super().__init__(timeout)
        self.timeout = timeout

    def __str__(self) -> str:
        return f"timed out after {self.timeout.total_seconds():g} s"


class JobCancelled(PgjobsError):
    """A job was cancelled by hand while it ran."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return "cancelled remotely" + (f": {self.reason}" if self.reason else "")


class JobStopped(PgjobsError):
    """The worker pool stopped before the attempt had ended. The attempt is given back."""


class NotRunning(PgjobsError):
    """What only a running handler may ask was asked of a job that is not being run here."""


class Interrupted(BaseException):
    """Raised by pgjobs in the thread of a handler that was told to end and did not. Let it through.

    No Exception, so that an `except Exception` of the handler's does.
    """


class MigrationError(PgjobsError):
    """The tables could not be migrated, or do not fit this code."""


class InvalidMigration(MigrationError, ValueError):
    """The version, the direction or the number of steps is not possible. Nothing was changed."""


class SchemaMissing(MigrationError):
    """There are no pgjobs tables in this schema yet."""


class SchemaOutdated(MigrationError):
    """The tables are older than this code: migrate them."""


class SchemaTooNew(MigrationError):
    """The tables are newer than this code: upgrade pgjobs."""


class SchemaDamaged(MigrationError):
    """The tables have the right version, but rows that pgjobs needs are missing, the sequence of ids is behind, or a
    publication forbids changes. The message says what to do."""


class WorkerPoolError(PgjobsError):
    """`start` on a running pool, a pool with nothing to work on, a queue added twice or removed that is not there."""


class UsedAfterFork(PgjobsError):
    """This process uses what its parent opened or started before the fork: a connection, a psycopg_pool, or a worker
    pool. Nothing was sent."""


class CannotConnect(PgjobsError, psycopg.OperationalError):
    """A connection was refused, and would be again: the password, user, database or host name is wrong. Nothing was
    sent. The message quotes the server."""


class TransactionBroken(PgjobsError):
    """The handler returned, but its transaction cannot be committed together with the job."""


class AttemptLost(PgjobsError):
    """The job no longer runs under this attempt's token: it was rescued, cancelled or changed meanwhile."""


class Signal(Exception):
    """The base of what a handler raises to say how its attempt ends."""


class Snooze(Signal):
    """Not now: run again after `delay`. The attempt is given back, and no error is recorded."""

    def __init__(self, delay: timedelta) -> None:
        _check_delay("Snooze", delay)
        super().__init__(delay)
        self.delay = delay

    def __str__(self) -> str:
        return f"snoozed for {self.delay}"


class RetryAfter(Signal):
    """Failed: run again after `delay`, whatever the backoff says. Counts as a failed attempt."""

    def __init__(self, delay: timedelta, reason: str = "") -> None:
        _check_delay("RetryAfter", delay)
        super().__init__(delay, reason)
        self.delay = delay
        self.reason = reason

    def __str__(self) -> str:
        return f"retry in {self.delay}" + (f" because {self.reason}" if self.reason else "")


class RetryAt(Signal):
    """Failed: run again at `when` (aware), whatever the backoff says. Counts as a failed attempt."""

    def __init__(self, when: datetime, reason: str = "") -> None:
        if not isinstance(when, datetime):
            raise InvalidSetting(f"RetryAt: when is an aware datetime, not {shown(when)}")
        if when.utcoffset() is None:
            raise InvalidSetting(f"RetryAt: when {shown(when)} has no time zone: use an aware datetime")
        super().__init__(when, reason)
        self.when = when
        self.reason = reason

    def __str__(self) -> str:
        return f"retry at {self.when.isoformat()}" + (f" because {self.reason}" if self.reason else "")


def _check_delay(signal: str, delay: object) -> None:
    if not isinstance(delay, timedelta):
        seconds = delay if isinstance(delay, int | float) and not isinstance(delay, bool) else 60
        raise InvalidSetting(
            f"{signal}: delay is a timedelta, not {shown(delay)}: give timedelta(seconds={shown(seconds, 20)})"
        )
    if delay < timedelta(0):
        raise InvalidSetting(f"{signal}: delay must not be negative, as {shown(delay)} is")


class Discard(Signal):
    """Failed for good: the job is discarded, whatever attempts are left. `raise Discard(...) from error` keeps
    the cause."""

    def __init__(self, reason: object = "") -> None:
        super().__init__(reason)


class Cancel(Signal):
    """Nobody wants this job any more: it is cancelled, whatever attempts are left."""

    def __init__(self, reason: object = "") -> None:
        super().__init__(reason)
