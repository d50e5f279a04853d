"""Job: one row of the job table as a frozen value. Knows no database."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from dataclasses import MISSING, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar
from uuid import UUID

from pgjobs.errors import InvalidOption, NotRunning, UndecodableArgs, shown
from pgjobs.options import FIRST_INSTANT
from pgjobs.progress import Progress, Report, report
from pgjobs.states import JobState

__all__ = [
    "AttemptError",
    "Job",
    "JobState",
    "RunningAttempt",
    "changed",
    "current_job",
    "job_from",
    "job_owning",
    "reset_current_job",
    "set_current_job",
]

Args = TypeVar("Args", covariant=True)  # noqa: PLC0105  users read Job[Args]


@dataclass(frozen=True, slots=True)
class AttemptError:
    """One failed attempt: its number, its time (aware), the error and the traceback as text. `trace` is None if there
    was no Python exception, as for a vanished worker."""

    attempt: int
    at: datetime
    error: str
    trace: str | None = None


class RunningAttempt(Protocol):
    """The methods of Job that work only inside its handler. The executor implements them."""

    @property
    def cancelled(self) -> bool: ...
    @property
    def deadline(self) -> datetime | None: ...
    def set_metadata(self, values: Mapping[str, Any]) -> None: ...
    def record_output(self, output: object) -> None: ...
    def set_progress(self, report: Report) -> None: ...
    def complete(self, tx: Any) -> Job[Any]: ...


@dataclass(frozen=True, kw_only=True)
class Job(Generic[Args]):
    """One row of the job table, as it was when it was read.

    `args`, `metadata`, `output` and `errors` are decoded when they are first read. All datetimes are aware. `repr`
    hides the args, metadata, errors and output, which may be confidential.
    """

    id: int
    state: JobState  # changed by claim, finish, promote, rescue and the control calls
    queue: str  # never changes
    kind: str  # never changes
    priority: int  # lower runs first
    attempt: int  # counted attempts: 0 before the first claim; snoozes and stops are not counted
    max_attempts: int
    raw_args: str = field(repr=False)  # JSON text
    raw_metadata: str = field(repr=False, default="{}")
    raw_errors: str = field(repr=False, default="[]")
    tags: tuple[str, ...] = ()
    scheduled_at: datetime  # not started before; a retry or snooze moves it
    created_at: datetime
    attempted_at: datetime | None = None  # the last claim
    finalized_at: datetime | None = None  # set in the final states, and only in them, unless a hand changed the row
    attempted_by: tuple[str, ...] = field(repr=False, default=())  # client ids of the last 100 claims, the newest last
    token: UUID | None = field(repr=False, default=None)  # of the last claim; every write of the attempt checks it
    leased_until: datetime | None = field(repr=False, default=None)  # set while a detached attempt runs
    raw_output: str | None = field(repr=False, default=None)  # JSON text; a claim does not read it
    # True in the return value of `enqueue` if this job was there already and has the same unique key
    duplicate: bool = field(repr=False, compare=False, default=False)
    decode: Callable[[str], Args] = field(repr=False, compare=False, default=json.loads)
    # how far the running attempt has come: only of a job from `client.get` or `client.list_jobs`, else None
    progress: Progress | None = field(repr=False, compare=False, default=None)
    running: RunningAttempt | None = field(repr=False, compare=False, default=None)  # set only inside the handler

    @cached_property
    def args(self) -> Args:
        """The payload: an instance of the args class, or a dict. Raises UndecodableArgs if the JSON does not fit the
        class."""
        return self.decode(self.raw_args)

    def decode_args(self) -> None:
        """Decode `args` now, which is faster than the first read of the property: that takes a lock in Python 3.11."""
        vars(self)["args"] = self.decode(self.raw_args)

    @cached_property
    def metadata(self) -> Mapping[str, Any]:
        """The JSON object that was stored with the job."""
        stored = json.loads(self.raw_metadata)
        return stored if isinstance(stored, dict) else {}  # another JSON value was written by hand

    @property
    def context(self) -> Mapping[str, Any] | None:
        """The mapping from `enqueue(context=...)` or `Client(context=...)`; None without one."""
        context = self.metadata.get("context")
        return context if isinstance(context, dict) else None

    @cached_property
    def output(self) -> Any:
        """The result that a handler recorded with `record_output`; None if there is none."""
        return None if self.raw_output is None else json.loads(self.raw_output)

    @cached_property
    def errors(self) -> tuple[AttemptError, ...]:
        """One entry per failed attempt, the oldest first. Kept as long as the row."""
        try:
            return tuple(_attempt_error(entry) for entry in json.loads(self.raw_errors))
        except (ValueError, TypeError, RecursionError):  # JSON that was written by hand, and that Python cannot read
            return (AttemptError(0, FIRST_INSTANT, self.raw_errors[:1000]),)

    @property
    def cancelled(self) -> bool:
        """In the handler: True when this attempt should end, because its timeout is over, the job was cancelled or the
        worker pool stops. A long handler should check it now and then, and return or raise."""
        return self._attempt.cancelled

    @property
    def deadline(self) -> datetime | None:
        """In the handler: when the timeout is over (aware, by the clock of this machine); None without a timeout."""
        return self._attempt.deadline

    def set_metadata(self, values: Mapping[str, Any] | None = None, **more: Any) -> None:
        """In the handler: merge these keys into the job's metadata.

        They are written together with the outcome of the attempt, whether it succeeds or fails. The keys of one attempt
        may have 64 KiB of JSON; raises InvalidOption for more, and for values that JSON cannot hold.
        """
        if values is not None and not isinstance(values, Mapping):
            raise InvalidOption(f"values of set_metadata must be a mapping, not {shown(values)}")
        self._attempt.set_metadata({**(values or {}), **more})

    def record_output(self, output: object) -> None:
        """In the handler: set the job's `output` to any JSON value of at most 32 MiB. The last call wins.

        It is written together with the outcome of the attempt, whether it succeeds or fails. Raises InvalidOption for a
        value that is larger, or that JSON cannot hold.
        """
        self._attempt.record_output(output)

    def set_progress(self, done: float, *, total: float | None = None, note: str | None = None) -> None:
        """In the handler: say how far it has come, `done` of `total` in any unit, with a note of at most 200
        characters. Each call replaces the whole of the one before.

        It may be called at any rate and from any thread: it only keeps the values. Once a second at most, another
        thread of the worker pool writes them in a transaction of its own. They are then seen at once as `job.progress`
        of a job from `client.get` or `client.list_jobs`, whatever becomes of the attempt, and go when that has ended.
        Nothing writes them for `WorkerPool.work_one` on a pool that is not started, nor for `client.lock_job`. Raises
        InvalidOption for numbers that are negative or not finite, and for a note that is longer or not one line.
        """
        self._attempt.set_progress(report(done, total, note))

    def complete(self, tx: Any) -> Job[Args]:
        """In a detached handler: complete the job in the transaction `tx`, together with the handler's other writes.

        The job is completed if, and only if, the caller commits `tx`. Metadata and output are written with it: what is
        set after this call is lost. Returns the completed job. Raises AttemptLost if the job no longer belongs to this
        attempt; `tx` is aborted then. If `tx` is rolled back, this may be called again in another transaction; if the
        handler returns without that, the attempt fails.

        A handler that is not detached completes its job by returning. There this call changes nothing, and accepts only
        the job's own transaction.
        """
        return self._attempt.complete(tx)

    @property
    def _attempt(self) -> RunningAttempt:
        if self.running is None:
            raise NotRunning(
                f"job {self.id} is not run by this handler: this needs a handler, and the job that it was called with"
            )
        return self.running

    @property
    def error_count(self) -> int:
        return len(self.errors)

    @property
    def last_error(self) -> str | None:
        return self.errors[-1].error if self.errors else None


def job_from(values: Mapping[str, Any]) -> Job[Any]:
    """Like `Job(**values)`, but five times as fast: a frozen dataclass sets its fields one by one."""
    return job_owning({**_DEFAULTS, **values})


def job_owning(values: dict[str, Any]) -> Job[Any]:
    """A job whose `__dict__` is this dict, without a copy. It must have all fields."""
    made: Job[Any] = object.__new__(Job)
    object.__setattr__(made, "__dict__", values)
    return made


def changed(job: Job[Args], **values: Any) -> Job[Args]:
    """Like `dataclasses.replace`, but six times as fast."""
    made = object.__new__(Job)
    fields = vars(made)
    fields.update(vars(job))
    fields.update(values)
    if len(fields) > _FIELDS:  # drop the decoded values, which may be outdated now
        for name in _DECODED:
            fields.pop(name, None)
    return made


def without_args(job: Job[Args]) -> Job[Args]:
    """The job for a database role that lacks the right to read its args: `job.args` raises UndecodableArgs."""

    def decode(raw: str) -> Any:
        raise UndecodableArgs(
            f"this database role may not read the args of job {job.id}: it lacks the right to read one of the columns "
            "args, metadata, errors, token and output"
        )

    return changed(job, raw_args=_NOT_READ, decode=decode)


def has_args(job: Job[Any]) -> bool:
    """False for a job from `without_args`."""
    return job.raw_args != _NOT_READ


_NOT_READ = "null"  # args are always a JSON object
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Job) if field.default is not MISSING}
_FIELDS = len(dataclasses.fields(Job))
_DECODED = [name for name, value in vars(Job).items() if isinstance(value, cached_property)]

_current: ContextVar[Job[Any] | None] = ContextVar("pgjobs.current_job", default=None)


def current_job() -> Job[Any] | None:
    """The job whose handler runs in this thread, or None. For example for a log filter that adds the job's id."""
    return _current.get()


#: Set the job of `current_job()`; pass the returned token to `reset_current_job`.
set_current_job: Callable[[Job[Any]], Token[Job[Any] | None]] = _current.set
reset_current_job: Callable[[Token[Job[Any] | None]], None] = _current.reset


def _attempt_error(entry: Any) -> AttemptError:
    """One entry of `errors`. An entry that was written by hand in another form becomes the text of the error."""
    try:
        at = datetime.fromisoformat(entry["at"])
        return AttemptError(
            int(entry["attempt"]),
            at if at.tzinfo else at.replace(tzinfo=UTC),
            str(entry["error"]),
            None if entry.get("trace") is None else str(entry["trace"]),
        )
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError):
        return AttemptError(0, FIRST_INSTANT, json.dumps(entry))
