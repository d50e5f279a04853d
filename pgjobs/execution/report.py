"""What is reported of an attempt once its outcome is written: the job as it is then, and the kind of the event."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from pgjobs.events import EventKind
from pgjobs.execution.attempt import Attempt
from pgjobs.execution.outcome import AFTER_A_FAULT, Outcome
from pgjobs.execution.queries import FinishResult
from pgjobs.job import Job, JobState, changed

_MOST_ERRORS = 100


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
