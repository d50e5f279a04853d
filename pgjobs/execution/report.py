"""Reports an attempt, once its outcome is written: to the figures, the log, the hooks and the subscribers."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from pgjobs.events import Event, EventKind, Events, JobStats
from pgjobs.execution.attempt import Attempt
from pgjobs.execution.job_log import JobLog
from pgjobs.execution.outcome import AFTER_A_FAULT, Outcome
from pgjobs.execution.queries import FinishResult
from pgjobs.hooks import HookCalls
from pgjobs.job import Job, JobState, changed

_MOST_ERRORS = 100
_SOON = timedelta(seconds=2)
_COMPLETED = JobState.COMPLETED  # a global, since it is asked for every job


@dataclass(frozen=True, slots=True, kw_only=True)
class Reporter:
    """Reports attempts for the threads of one process."""

    hooks: HookCalls
    events: Events
    job_log: JobLog = field(default_factory=JobLog)
    # called for each attempt that ends: queue, kind, how it ended, seconds waited and seconds run
    count: Callable[[str, str, str, float, float], None] | None = None
    # called when a job is due again before maintenance would look for it
    on_due_soon: Callable[[], None] = lambda: None

    @property
    def reports_completed(self) -> bool:
        """Whether completed attempts are reported, and not just counted."""
        return bool(self.hooks.any or self.events or self.job_log.any)

    def report(
        self, attempt: Attempt, outcome: Outcome, finished: FinishResult, error: BaseException | None, took: float
    ) -> None:
        """Report an attempt that has ended with `error`. Its outcome took so many seconds to write."""
        self.count_ended(attempt, outcome, finished.state)
        if error is None and not self.reports_completed:
            return
        if error is not None or self.job_log.any:
            self.job_log.ended(attempt.job, finished.state, outcome, error, attempt.run_seconds)
        if outcome.at is not None or (outcome.delay is not None and outcome.delay < _SOON):
            self.on_due_soon()
        if not self.hooks and not self.events:
            return
        job = job_after(attempt, outcome, finished)
        if attempt.started:
            self.hooks("on_finish", job, error)
        stats = JobStats(
            timedelta(seconds=waited(attempt.job)), timedelta(seconds=attempt.run_seconds), timedelta(seconds=took)
        )
        event = Event(event_kind(job, outcome), job, stats)
        self.hooks("on_outcome", event, error)
        self.events.publish(event)

    def count_ended(self, attempt: Attempt, outcome: Outcome, state: JobState) -> None:
        """Count an attempt. `report` includes this."""
        if self.count is not None:
            job = attempt.job
            how = "completed" if state is _COMPLETED else how_it_ended(state, outcome)
            self.count(job.queue, job.kind, how, waited(job), attempt.run_seconds)


def job_after(attempt: Attempt, outcome: Outcome, finished: FinishResult) -> Job[Any]:
    """The job as it is after the statement that wrote the outcome."""
    job, data = attempt.job, attempt.data
    metadata, errors = job.raw_metadata, job.raw_errors
    with suppress(ValueError, TypeError, AttributeError, RecursionError):  # JSON that was written by hand
        metadata, errors = _merged(metadata, data.metadata), _with_entry(errors, job.attempt, outcome, finished)
        metadata = _with_snooze(metadata, job.raw_metadata) if outcome.snoozed else metadata
    due = outcome.at or (None if outcome.delay is None else finished.at + outcome.delay)
    if outcome.at is not None and outcome.at <= finished.at:
        due = finished.at + AFTER_A_FAULT
    return changed(
        job,
        state=finished.state,
        attempt=job.attempt - int(outcome.refund),
        scheduled_at=due or job.scheduled_at,
        finalized_at=finished.at if finished.state.final else None,
        leased_until=None,
        raw_errors=errors,
        raw_metadata=metadata,
        raw_output=data.output,
        running=None,
    )


def _merged(metadata: str, data: str | None) -> str:
    return metadata if data is None else json.dumps({**json.loads(metadata), **json.loads(data)})


def _with_snooze(metadata: str, before: str) -> str:
    count = json.loads(before).get("snoozes")
    number = isinstance(count, int | float) and not isinstance(count, bool)
    return json.dumps({**json.loads(metadata), "snoozes": count + 1 if number else 1})


def _with_entry(errors: str, attempt: int, outcome: Outcome, finished: FinishResult) -> str:
    entry = outcome.error_json(attempt)
    if entry is None:
        return errors
    entries = json.loads(errors)
    if len(entries) >= _MOST_ERRORS:
        del entries[_MOST_ERRORS // 2]
    return json.dumps([*entries, {**json.loads(entry), "at": finished.at.isoformat()}])


def event_kind(job: Job[Any], outcome: Outcome) -> EventKind:
    if job.state is JobState.COMPLETED:
        return EventKind.COMPLETED
    if job.state is JobState.CANCELLED:
        return EventKind.CANCELLED
    if outcome.error is not None:
        return EventKind.FAILED
    return EventKind.SNOOZED if outcome.state is JobState.SCHEDULED else EventKind.INTERRUPTED


def how_it_ended(state: JobState, outcome: Outcome) -> str:
    """How an attempt has ended, in one of the words of observe/figures.py, which counts them."""
    if state is JobState.COMPLETED:
        return "completed"
    if state is JobState.CANCELLED:
        return "cancelled"
    if state is JobState.DISCARDED:
        return "discarded"
    if outcome.error is not None:
        return "retried"
    return "snoozed" if outcome.snoozed else "interrupted"


def how_it_was_lost(job: Job[Any]) -> str:
    """The same for a job that was rescued. Its attempt is excused if it has no token."""
    if job.state is JobState.RETRYABLE:
        return "retried" if job.token else "interrupted"
    return "cancelled" if job.state is JobState.CANCELLED else "discarded"


def waited(job: Job[Any]) -> float:
    """For how many seconds the job could have run before it was claimed, by the database's clock. Every attempt asks,
    so this spares a call of max()."""
    if job.attempted_at is None:
        return 0.0
    seconds = (job.attempted_at - job.scheduled_at).total_seconds()
    return seconds if seconds > 0.0 else 0.0
