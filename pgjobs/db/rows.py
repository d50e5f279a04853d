"""Makes Job values from rows. All statements that return jobs list the same columns in the same order."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from psycopg.rows import TupleRow

from pgjobs.errors import AmbiguousJob
from pgjobs.job import Job, JobState, job_from, job_owning
from pgjobs.progress import progress_from


def only(id: int, rows: Sequence[TupleRow]) -> TupleRow | None:
    """The only row, or None. Raises AmbiguousJob if jobs in several queues have this id."""
    if len(rows) > 1:
        raise AmbiguousJob(id, [row[QUEUE] for row in rows])
    return rows[0] if rows else None


def str_of(name: str | bytes) -> str:
    """A name from the server as str; psycopg returns bytes if the client encoding is SQL_ASCII."""
    return name if isinstance(name, str) else name.decode("utf-8", "surrogateescape")


def as_job(row: Sequence[Any]) -> Job[Any]:
    """The Job of a row, with its timestamps in UTC."""
    values = dict(zip(_COLUMNS, row, strict=False))  # a statement may return more columns
    values["state"] = _STATES[values["state"]]
    values["tags"] = tuple(_flat(values["tags"]))
    values["attempted_by"] = tuple(_flat(values["attempted_by"]))
    for name in _INSTANTS:
        if values[name] is not None:
            values[name] = values[name].astimezone(UTC)
    return job_from(values)


def as_job_with_progress(row: Sequence[Any]) -> Job[Any]:
    """The Job of a row that has the progress of the job behind its columns."""
    job = as_job(row)
    if row[_PROGRESS] is not None:
        vars(job)["progress"] = progress_from(row[_PROGRESS])  # the job is frozen, but has not been handed out yet
    return job


def _flat(values: Sequence[Any]) -> Sequence[Any]:
    """The texts of an array, in which an UPDATE by hand may have written nulls and further dimensions."""
    if all(isinstance(value, str) for value in values):
        return values
    flat: list[Any] = []
    for value in values:
        if isinstance(value, list):
            flat += _flat(value)
        elif value is not None:
            flat.append(value)
    return flat


def claimed_job(row: Sequence[Any], values: dict[str, Any], instant: Callable[[str], datetime]) -> Job[Any]:
    """The Job of a claimed row. `values` are those of a claimed job, and become those of this one; the row has the
    columns that may differ. A NULL stands for the value that is there."""
    id, kind, priority, most, args, scheduled_at, created_at, metadata, errors, tags, attempted_by = row[:11]
    values["id"] = id
    values["kind"] = kind
    values["priority"] = priority
    values["max_attempts"] = most
    values["raw_args"] = args
    values["scheduled_at"] = values["created_at"] = instant(scheduled_at)
    if created_at is not None:
        values["created_at"] = instant(created_at)
    if metadata is not None:
        values["raw_metadata"] = metadata
    if errors is not None:
        values["raw_errors"] = errors
    if tags is not None:
        values["tags"] = tuple(_flat(tags))
    if attempted_by is not None:
        values["attempted_by"] = tuple(_flat(attempted_by))
    if len(row) > 11:  # of a claim of one job
        values["attempt"] = row[11]
        values["attempted_at"] = instant(row[12])
        if row[13] is not None:
            values["leased_until"] = instant(row[13])
    return job_owning(values)


def claimed_at(text: str) -> datetime:
    """An instant that the server sends as JSON."""
    at = datetime.fromisoformat(text[1:-1])
    return at if at.tzinfo is UTC else at.astimezone(UTC)


_COLUMNS = (
    "id", "state", "queue", "kind", "priority", "attempt", "max_attempts", "raw_args", "raw_metadata", "raw_errors",
    "tags", "scheduled_at", "created_at", "attempted_at", "finalized_at", "attempted_by", "token", "leased_until",
    "raw_output",
)  # fmt: skip
QUEUE = _COLUMNS.index("queue")
_PROGRESS = len(_COLUMNS)
_INSTANTS = ("scheduled_at", "created_at", "attempted_at", "finalized_at", "leased_until")
# All fields of a job, with the values that most claimed jobs have: to copy this is faster than to build it.
CLAIMED: dict[str, Any] = dict.fromkeys(field.name for field in dataclasses.fields(Job)) | {
    "state": JobState.RUNNING,
    "attempt": 1,
    "raw_metadata": "{}",
    "raw_errors": "[]",
    "tags": (),
    "duplicate": False,
    "decode": json.loads,
}
_STATES = {state.value: state for state in JobState}
