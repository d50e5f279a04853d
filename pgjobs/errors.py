"""All errors that pgjobs raises, and the signals that a handler may raise.

    PgjobsError
    ├── InvalidJob (ValueError)          the arguments of enqueue do not make a valid job; nothing was sent
    │   ├── InvalidKind                  the kind is missing, too long or has forbidden characters
    │   ├── InvalidArgs                  JSON or Postgres cannot hold the args; the message names the path
    │   ├── InvalidOption                an option is unknown, or its value is out of range
    │   └── NoJobs                       the list of jobs is empty
    ├── InvalidSchedule (ValueError)     the spec, zone or name of a schedule is invalid
    ├── ScheduleNotFound (LookupError)   no schedule has this name
    ├── InvalidHandler (ValueError)      the object cannot be used as a handler
    │   └── DuplicateHandler             the kind already has a handler
    ├── InvalidFilter (ValueError)       an id, filter, order, limit or cursor is invalid
    │   └── EmptyFilter                  a call that changes many jobs needs a filter that is not empty
    ├── InvalidSetting (ValueError)      a setting of Client or WorkerPool has the wrong type or is out of range
    │   └── PoolTooSmall                 the connection pool has fewer connections than the worker pool has threads
    ├── InvalidTransaction (TypeError)   pgjobs cannot enqueue on this `tx`
    ├── UnknownKind (LookupError)        no handler is registered for the kind
    ├── JobNotFound (LookupError)        no job has this id
    ├── AmbiguousJob (LookupError)       several queues have a job with this id
    ├── JobRunning                       a running job cannot be deleted or updated
    ├── JobLocked                        another transaction held the job's row lock for too long
    ├── UniqueConflict                   another job has the unique key that this job needs to run again
    ├── NotDiscarded                     only a discarded job can be reset
    ├── JobNotFinished (TimeoutError)    the job had not finished when the wait timed out
    ├── QueueNotFound (LookupError)      no worker works this queue, and no job waits in it
    ├── QueueLocked                      another transaction held the queue's row lock for too long
    ├── UndecodableArgs (ValueError)     the stored args do not fit the args class
    ├── JobTimedOut (TimeoutError)       recorded for an attempt that exceeded its timeout
    ├── JobCancelled                     recorded for an attempt that was cancelled while it ran
    ├── JobStopped                       why a stop interrupted an attempt; the attempt is not counted
    ├── NotRunning                       the call is allowed only on a job that this handler is running
    ├── MigrationError
    │   ├── InvalidMigration (ValueError)  the version, direction or number of steps is invalid
    │   ├── SchemaMissing                the schema has no pgjobs tables
    │   ├── SchemaOutdated               the tables are older than this code
    │   ├── SchemaTooNew                 the tables are newer than this code
    │   └── SchemaDamaged                the tables lack rows or settings that pgjobs needs
    ├── WorkerPoolError                  start and stop out of order, or a queue added twice or not there to remove
    ├── UsedAfterFork                    a connection, pool or thread of the parent was used in a forked child
    ├── CannotConnect                    (psycopg.OperationalError) the server refuses to connect; a retry will not help
    ├── TransactionBroken                the handler ended or broke the job's transaction
    └── AttemptLost                      the job no longer belongs to the attempt that tried to finish it

    Interrupted (BaseException)          raised in a handler that did not end in time; do not catch it

    Signal                               raised by handlers, never by pgjobs
    ├── Snooze(delay)                    run again after the delay; this attempt is not counted
    ├── RetryAfter(delay), RetryAt(when) this attempt failed: run again then, whatever the backoff says
    ├── Discard(reason)                  this attempt failed: make no further attempt
    └── Cancel(reason)                   the job is no longer wanted

Errors of the database pass through as psycopg raised them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import psycopg

from pgjobs.secret_fields import without_secrets


def shown(value: object, limit: int = 80) -> str:
    """A short `repr` of a value for an error message, without secret fields; the type's name if `repr` raises."""
    try:
        return f"{without_secrets(value)!r:.{limit}}"
    except Exception:
        return f"<{type(value).__name__}>"


def shown_name(value: object) -> str:
    """As `shown`, where a name or another object is wanted. A connection string may have a password, so it is not
    shown."""
    return "a str" if isinstance(value, str) and any(sign in value for sign in "=@:") else shown(value)


def not_a_timedelta(name: str, value: object, *, wanted: str = "a timedelta", unit: str = "seconds") -> str:
    """The error message for a value that is no timedelta. A plain number is the usual mistake, so it shows how to
    write that number as a timedelta."""
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else 1
    return f"{name} must be {wanted}, not {shown(value)}: give timedelta({unit}={shown(number, 20)})"


class PgjobsError(Exception):
    """Base class of all errors of pgjobs."""

    def __reduce__(self) -> Any:
        """For pickle: without a call of __init__, whose parameters may be others than `args`."""
        return _without_init, (type(self), self.args), *super().__reduce__()[2:]


def _without_init(cls: type[PgjobsError], args: tuple[object, ...]) -> PgjobsError:
    error = cls.__new__(cls)
    error.args = args
    return error


class InvalidJob(PgjobsError, ValueError):
    """The arguments of `enqueue` do not make a valid job. Nothing was sent; the transaction stays usable."""


class InvalidKind(InvalidJob):
    """The kind is missing, too long, or has characters that a kind may not have."""


class InvalidArgs(InvalidJob):
    """JSON or Postgres cannot hold the args exactly. The message names the path, as in `$.items[3].price`."""


class InvalidOption(InvalidJob):
    """An option of a job is unknown, has the wrong type, or is out of range."""


class NoJobs(InvalidJob):
    """`enqueue_many` was called with no jobs, which is usually a mistake."""


class InvalidSchedule(PgjobsError, ValueError):
    """The schedule is invalid or would never tick, or its name is already taken."""


class ScheduleNotFound(PgjobsError, LookupError):
    """There is no schedule with this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no schedule {name!r}")
        self.name = name


class InvalidHandler(PgjobsError, ValueError):
    """The registered object cannot be called as `handler(tx, job)`."""


class DuplicateHandler(InvalidHandler):
    """The kind already has a handler. Delete it from the WorkMap first to replace it."""


class InvalidFilter(PgjobsError, ValueError):
    """An id, filter, order, limit or cursor is invalid. Nothing was sent; the transaction stays usable."""


class EmptyFilter(InvalidFilter):
    """A call that changes many jobs got an empty filter. Use `JobFilter.all()` to change all jobs."""


class InvalidSetting(PgjobsError, ValueError):
    """A setting of `Client` or `WorkerPool`, or a timeout, has the wrong type or is out of range."""


class PoolTooSmall(InvalidSetting):
    """The connection pool has fewer connections than the worker pool uses at once."""


class InvalidTransaction(PgjobsError, TypeError):
    """The call cannot use this `tx`: it has no psycopg 3 connection; or it is asynchronous and the call is not, or the
    other way round."""


class UnknownKind(PgjobsError, LookupError):
    """No handler is registered for this kind."""

    def __init__(self, kind: str) -> None:
        super().__init__(f"no handler for kind {kind!r}: register one in the WorkMap")
        self.kind = kind


class JobNotFound(PgjobsError, LookupError):
    """No job has this id: it was never committed, was deleted, or was pruned after its retention time."""

    def __init__(self, id: int) -> None:
        super().__init__(f"there is no job {id}")
        self.id = id


class AmbiguousJob(PgjobsError, LookupError):
    """Several queues have a job with this id, so the id is not enough to identify it. Nothing was changed; the
    transaction stays usable."""

    def __init__(self, id: int, queues: Sequence[str]) -> None:
        super().__init__(id, queues)
        self.id = id
        self.queues = tuple(queues)

    def __str__(self) -> str:
        return (
            f"{len(self.queues)} queues have a job with the id {self.id}: {', '.join(map(repr, self.queues))}. "
            f"Name the queue, as in delete_many(JobFilter(ids=[{self.id}], queues=[{self.queues[0]!r}])); "
            "client.list_jobs takes the same filter"
        )


class JobRunning(PgjobsError):
    """The job is running, so it was not deleted or updated. The transaction stays usable."""


class JobLocked(PgjobsError):
    """Another transaction held the job's row lock for a second. Nothing was changed; the transaction stays usable."""


class UniqueConflict(PgjobsError):
    """The job's state was not changed: another job has its unique key in the new state."""


class NotDiscarded(PgjobsError):
    """`reset` works only on a discarded job. Nothing was changed; the transaction stays usable."""


class JobNotFinished(PgjobsError, TimeoutError):
    """The job had not finished when `timeout` was over. It goes on."""

    def __init__(self, id: int, state: str, timeout: timedelta) -> None:
        super().__init__(id, state, timeout)
        self.id = id
        self.state = state
        self.timeout = timeout

    def __str__(self) -> str:
        return f"job {self.id} has not finished after {self.timeout.total_seconds():g} s: it is {self.state}"


class QueueNotFound(PgjobsError, LookupError):
    """No worker has worked this queue lately, and no job waits in it."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no queue {name!r}: no worker has worked it lately, and no job waits in it")
        self.name = name


class QueueLocked(PgjobsError):
    """Another transaction held the queue's row lock for a second. Nothing was changed; the transaction stays usable."""


class UndecodableArgs(PgjobsError, ValueError):
    """The stored args do not fit the args class of the handler. The handler was not called."""


class JobTimedOut(PgjobsError, TimeoutError):
    """The attempt took longer than its timeout."""

    def __init__(self, timeout: timedelta) -> None:
        super().__init__(timeout)
        self.timeout = timeout

    def __str__(self) -> str:
        return f"timed out after {self.timeout.total_seconds():g} s"


class JobCancelled(PgjobsError):
    """The job was cancelled while it ran."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return "cancelled remotely" + (f": {self.reason}" if self.reason else "")


class JobStopped(PgjobsError):
    """The worker pool stopped before the attempt ended. The attempt is not counted, and the job runs again."""


class NotRunning(PgjobsError):
    """The call is allowed only inside the job's handler, on the job that the handler was called with."""


class Interrupted(BaseException):
    """Raised by pgjobs in the thread of a handler that did not end after a timeout, cancel or stop. Do not catch it.

    It is not an Exception, so that `except Exception` in the handler does not catch it.
    """


class MigrationError(PgjobsError):
    """The tables could not be migrated, or do not match this code."""


class InvalidMigration(MigrationError, ValueError):
    """The version, direction or number of steps is invalid. Nothing was changed."""


class SchemaMissing(MigrationError):
    """The schema has no pgjobs tables: migrate it."""


class SchemaOutdated(MigrationError):
    """The tables are older than this code: migrate them."""


class SchemaTooNew(MigrationError):
    """The tables are newer than this code: upgrade pgjobs."""


class SchemaDamaged(MigrationError):
    """The tables have the right version, but required rows are missing, the id sequence is behind the ids in use, or
    a publication forbids updates. The message says what to do."""


class WorkerPoolError(PgjobsError):
    """The worker pool cannot do this now: it runs already or has no work, or the queue is there twice or not at all."""


class UsedAfterFork(PgjobsError):
    """A forked child used a connection, psycopg_pool or worker pool that its parent had opened. Nothing was sent."""


class CannotConnect(PgjobsError, psycopg.OperationalError):
    """The connection failed and a retry will not help: the password, user, database or host name is wrong. Nothing
    was sent. The message quotes the server."""


class TransactionBroken(PgjobsError):
    """The handler returned, but its transaction cannot be committed together with the job's completion."""


class AttemptLost(PgjobsError):
    """The job no longer belongs to this attempt: it was rescued, cancelled or changed while the handler ran."""


class Signal(Exception):
    """Base class of the exceptions by which a handler chooses how its attempt ends."""


class Snooze(Signal):
    """Run the job again after `delay`. This attempt is not counted, and no error is recorded."""

    def __init__(self, delay: timedelta) -> None:
        _check_delay("Snooze", delay)
        super().__init__(delay)
        self.delay = delay

    def __str__(self) -> str:
        return f"snoozed for {self.delay}"


class RetryAfter(Signal):
    """Run the job again after `delay`, whatever the backoff says. Counts as a failed attempt."""

    def __init__(self, delay: timedelta, reason: str = "") -> None:
        _check_delay("RetryAfter", delay)
        super().__init__(delay, reason)
        self.delay = delay
        self.reason = reason

    def __str__(self) -> str:
        return f"retry in {self.delay}" + (f" because {self.reason}" if self.reason else "")


class RetryAt(Signal):
    """Run the job again at `when`, an aware datetime, whatever the backoff says. Counts as a failed attempt."""

    def __init__(self, when: datetime, reason: str = "") -> None:
        if not isinstance(when, datetime):
            raise InvalidSetting(f"RetryAt: when must be an aware datetime, not {shown(when)}")
        if when.utcoffset() is None:
            raise InvalidSetting(f"RetryAt: when {shown(when)} has no time zone: use an aware datetime")
        super().__init__(when, reason)
        self.when = when
        self.reason = reason

    def __str__(self) -> str:
        return f"retry at {self.when.isoformat()}" + (f" because {self.reason}" if self.reason else "")


def _check_delay(signal: str, delay: object) -> None:
    if not isinstance(delay, timedelta):
        raise InvalidSetting(f"{signal}: {not_a_timedelta('delay', delay)}")
    if delay < timedelta(0):
        raise InvalidSetting(f"{signal}: delay must not be negative, as {shown(delay)} is")


class Discard(Signal):
    """Discard the job, even if attempts are left. `raise Discard(...) from error` records the cause too."""

    def __init__(self, reason: object = "") -> None:
        super().__init__(reason)


class Cancel(Signal):
    """Cancel the job, even if attempts are left: its work is no longer wanted."""

    def __init__(self, reason: object = "") -> None:
        super().__init__(reason)
