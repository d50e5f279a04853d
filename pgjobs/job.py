"""A job as a value: one row of the table. No database in here."""

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
    """One failed attempt. `trace` is None when no Python exception was at hand, as for a vanished worker."""

    attempt: int
    at: datetime
    error: str
    trace: str | None = None


class RunningAttempt(Protocol):
    """What a handler may ask of its attempt; the executor makes it."""

    @property
    def cancelled(self) -> bool: ...
    @property
    def deadline(self) -> datetime | None: ...
    def set_metadata(self, values: Mapping[str, Any]) -> None: ...
    def record_output(self, output: object) -> None: ...
    def complete(self, tx: Any) -> Job[Any]: ...


@dataclass(frozen=True, kw_only=True)
class Job(Generic[Args]):
    """One row, as it was when it was read. Its args, metadata and errors are decoded when they are first asked for.

    `repr` shows no args: what they hold may not belong into a log.
    """

    id: int
    state: JobState  # changed by claim, finish, promote, rescue and the control calls
    queue: str  # never changes
    kind: str  # never changes
    priority: int  # lower runs first
    attempt: int  # starts of the handler; 0 until the first claim; snoozes give theirs back
    max_attempts: int
    raw_args: str = field(repr=False)  # the JSON text
    raw_metadata: str = field(repr=False, default="{}")
    raw_errors: str = field(repr=False, default="[]")
    tags: tuple[str, ...] = ()
    scheduled_at: datetime  # not started before; moved by retry and snooze
    created_at: datetime
    attempted_at: datetime | None = None  # the last claim
    finalized_at: datetime | None = None  # set exactly in the final states
    attempted_by: tuple[str, ...] = field(repr=False, default=())  # the client ids of the last 100 claims
    token: UUID | None = field(repr=False, default=None)  # of the last claim; fences every later write
    leased_until: datetime | None = field(repr=False, default=None)  # of a detached attempt; None for all others
    raw_output: str | None = field(repr=False, default=None)  # the JSON text; not read by a claim
    duplicate: bool = field(
        repr=False, compare=False, default=False
    )  # of the job that was to be enqueued: its duplicate
    decode: Callable[[str], Args] = field(repr=False, compare=False, default=json.loads)
    running: RunningAttempt | None = field(repr=False, compare=False, default=None)  # in the handler alone

    @cached_property
    def args(self) -> Args:
        """The payload: an instance of the args class, or a dict. Raises UndecodableArgs when it does not fit."""
        return self.decode(self.raw_args)

    def decode_args(self) -> None:
        """Raise what `args` would raise, now. It stands ready then, without the lock of a cached_property."""
        vars(self)["args"] = self.decode(self.raw_args)

    @cached_property
    def metadata(self) -> Mapping[str, Any]:
        """What was stored beside the args."""
        stored: dict[str, Any] = json.loads(self.raw_metadata)
        return stored

    @property
    def context(self) -> Mapping[str, Any] | None:
        """What `enqueue(context=...)` or `Client(context=...)` sent along; None when nothing was."""
        context = self.metadata.get("context")
        return context if isinstance(context, dict) else None

    @cached_property
    def output(self) -> Any:
        """What a handler recorded as its result; None when none did."""
        return None if self.raw_output is None else json.loads(self.raw_output)

    @cached_property
    def errors(self) -> tuple[AttemptError, ...]:
        """One entry per failed attempt, the oldest first, kept as long as the row."""
        try:
            return tuple(_attempt_error(entry) for entry in json.loads(self.raw_errors))
        except (ValueError, RecursionError):  # written by hand, and more than Python reads
            return (AttemptError(0, FIRST_INSTANT, self.raw_errors[:1000]),)

    @property
    def cancelled(self) -> bool:
        """In the handler: whether this attempt is to end, because its time is up or the worker pool stops. A handler
        that takes long looks at it now and then, and raises or returns."""
        return self._attempt.cancelled

    @property
    def deadline(self) -> datetime | None:
        """In the handler: when the attempt's time is up, aware, by the clock of this machine; None for never."""
        return self._attempt.deadline

    def set_metadata(self, values: Mapping[str, Any] | None = None, **more: Any) -> None:
        """In the handler: merge these keys into the job's metadata when the attempt ends, however it ends.

        Written with the outcome, not before: the job's row must not change while it runs. At most 64 KiB; raises
        InvalidOption for what JSON cannot hold.
        """
        if values is not None and not isinstance(values, Mapping):
            raise InvalidOption(f"values of set_metadata are a mapping, not {shown(values)}")
        self._attempt.set_metadata({**(values or {}), **more})

    def record_output(self, output: object) -> None:
        """In the handler: keep any JSON value of at most 32 MiB as the job's `output`, written when the attempt ends,
        however it ends. The last call counts. Raises InvalidOption for what JSON cannot hold."""
        self._attempt.record_output(output)

    def complete(self, tx: Any) -> Job[Args]:
        """In a detached handler: complete the job in the transaction `tx`, so that it is completed when, and only when,
        that transaction commits with what else was written in it. The job as it is then.

        Raises AttemptLost, which aborts `tx`, when the job is no longer this attempt's. If `tx` is rolled back, this
        may be called again in another; if the handler returns all the same, the attempt has failed. A transactional
        handler completes its job by returning: there this changes nothing, and takes no other transaction than the
        job's own.
        """
        return self._attempt.complete(tx)

    @property
    def _attempt(self) -> RunningAttempt:
        if self.running is None:
            raise NotRunning(f"job {self.id} is not being run by this handler")
        return self.running

    @property
    def error_count(self) -> int:
        return len(self.errors)

    @property
    def last_error(self) -> str | None:
        return self.errors[-1].error if self.errors else None


def job_from(values: Mapping[str, Any]) -> Job[Any]:
    """`Job(...)`, in a fifth of the time: a frozen dataclass sets its fields one by one."""
    made: Job[Any] = object.__new__(Job)
    fields = vars(made)
    fields.update(_DEFAULTS)
    fields.update(values)
    return made


def job_owning(values: dict[str, Any]) -> Job[Any]:
    """The job of which these are all values, and the dict its own."""
    made: Job[Any] = object.__new__(Job)
    object.__setattr__(made, "__dict__", values)
    return made


def changed(job: Job[Args], **values: Any) -> Job[Args]:
    """The job with other values: `dataclasses.replace`, in a sixth of the time."""
    made = object.__new__(Job)
    fields = vars(made)
    fields.update(vars(job))
    fields.update(values)
    if len(fields) > _FIELDS:  # something was decoded
        for name in _DECODED:
            fields.pop(name, None)
    return made


def without_args(job: Job[Args]) -> Job[Args]:
    """The job as a database role sees it that may not read its args: to ask for them is an error."""

    def decode(raw: str) -> Any:
        raise UndecodableArgs(
            f"this database role may not read the args of job {job.id}: it lacks the right to one of the columns args, "
            "metadata, errors, token and output"
        )

    return changed(job, raw_args=_NOT_READ, decode=decode)


def has_args(job: Job[Any]) -> bool:
    """Whether its args could be read."""
    return job.raw_args != _NOT_READ


_NOT_READ = "null"  # which args never are


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Job) if field.default is not MISSING}
_FIELDS = len(dataclasses.fields(Job))
_DECODED = [name for name, value in vars(Job).items() if isinstance(value, cached_property)]


_current: ContextVar[Job[Any] | None] = ContextVar("pgjobs.current_job", default=None)


def current_job() -> Job[Any] | None:
    """The job whose handler runs in this thread, or None: for a log filter that adds its id to every line."""
    return _current.get()


# Makes a job the current one, until the answer is given to the other.
set_current_job: Callable[[Job[Any]], Token[Job[Any] | None]] = _current.set
reset_current_job: Callable[[Token[Job[Any] | None]], None] = _current.reset


def _attempt_error(entry: Any) -> AttemptError:
    """Read an entry that may have been written by hand: what cannot be understood is shown as it stands."""
    try:
        at = datetime.fromisoformat(entry["at"])
        return AttemptError(
            int(entry["attempt"]),
            at if at.tzinfo else at.replace(tzinfo=UTC),
            str(entry["error"]),
            entry.get("trace"),
        )
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError):
        return AttemptError(0, FIRST_INSTANT, json.dumps(entry))
