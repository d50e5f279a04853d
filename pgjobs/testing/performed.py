"""What became of the jobs that a test has run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, Literal, Self, TypeVar

from pgjobs.execution.attempt import Attempt
from pgjobs.job import Job, JobState

Args = TypeVar("Args")

#: What an attempt has led to.
OutcomeName = Literal["complete", "retry", "snooze", "discard", "cancel", "interrupt"]
_FINAL: dict[JobState, OutcomeName] = {
    JobState.COMPLETED: "complete",
    JobState.CANCELLED: "cancel",
    JobState.DISCARDED: "discard",
}


@dataclass(frozen=True, slots=True)
class Performed(Generic[Args]):
    """One attempt at a job.

    - `outcome`: "complete", "retry", "snooze", "discard", "cancel" or "interrupt".
    - `job`: the job after it, as it stands in the table, with its `output`, `metadata` and `errors`.
    - `error`: what the handler raised, or why the attempt failed all the same; None if the job is completed.
    - `enqueued`: the jobs that were enqueued while it ran. Those of a failed attempt are rolled back.
    """

    outcome: OutcomeName
    job: Job[Args]
    error: BaseException | None = None
    enqueued: tuple[Job[Any], ...] = ()

    def raise_error(self) -> Self:
        """Raise `error`, if there is one; else return this object: `jobs.perform(Welcome(email)).raise_error()`."""
        __tracebackhide__ = True
        if self.error is not None:
            raise self.error
        return self


@dataclass(frozen=True, slots=True)
class Drained:
    """The attempts of `drain`, in their order, and how many there were of each outcome."""

    performed: tuple[Performed[Any], ...]

    @property
    def total(self) -> int:
        return len(self.performed)

    @property
    def completed(self) -> int:
        return self._count("complete")

    @property
    def retried(self) -> int:
        return self._count("retry")

    @property
    def snoozed(self) -> int:
        return self._count("snooze")

    @property
    def discarded(self) -> int:
        return self._count("discard")

    @property
    def cancelled(self) -> int:
        return self._count("cancel")

    def _count(self, outcome: OutcomeName) -> int:
        return sum(each.outcome == outcome for each in self.performed)

    def __repr__(self) -> str:
        names = ("completed", "retried", "snoozed", "discarded", "cancelled")
        return f"Drained({', '.join(f'{name}={getattr(self, name)}' for name in names)})"


def outcome_of(job: Job[Any], attempt: Attempt) -> OutcomeName:
    if job.state in _FINAL:
        return _FINAL[job.state]
    if attempt.outcome is None or attempt.outcome.error is not None:
        return "retry"
    return "snooze" if attempt.outcome.snoozed else "interrupt"
