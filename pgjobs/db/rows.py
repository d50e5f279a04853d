"""Makes Job values from rows. All statements that return jobs list the same columns in the same order."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC
from typing import Any
from uuid import UUID

from psycopg.rows import TupleRow

from pgjobs.errors import AmbiguousJob
from pgjobs.job import Job, JobState, job_from


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
    for name in ("tags", "attempted_by"):
        values[name] = _flat(values[name])
    return _job(values, _INSTANTS)


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


def claimed_job(row: Sequence[Any], queue: str, token: UUID) -> Job[Any]:
    """The Job of a claimed row, which has only the columns that the claimer does not know."""
    values = dict(zip(_CLAIMED_COLUMNS, row, strict=False))
    values["state"] = JobState.RUNNING
    values["queue"] = queue
    values["token"] = token
    return _job(values, _CLAIMED_INSTANTS)


def _job(values: dict[str, Any], instants: Sequence[str]) -> Job[Any]:
    values["tags"] = tuple(values["tags"])
    values["attempted_by"] = tuple(values["attempted_by"])
    for name in instants:
        if values[name] is not None:
            values[name] = values[name].astimezone(UTC)
    return job_from(values)


_COLUMNS = (
    "id", "state", "queue", "kind", "priority", "attempt", "max_attempts", "raw_args", "raw_metadata", "raw_errors",
    "tags", "scheduled_at", "created_at", "attempted_at", "finalized_at", "attempted_by", "token", "leased_until",
    "raw_output",
)  # fmt: skip
_CLAIMED_COLUMNS = (
    "id", "kind", "priority", "attempt", "max_attempts", "raw_args", "raw_metadata", "raw_errors", "tags",
    "scheduled_at", "created_at", "attempted_at", "attempted_by", "leased_until",
)  # fmt: skip
QUEUE = _COLUMNS.index("queue")
_INSTANTS = ("scheduled_at", "created_at", "attempted_at", "finalized_at", "leased_until")
_CLAIMED_INSTANTS = ("scheduled_at", "created_at", "attempted_at", "leased_until")
_STATES = {state.value: state for state in JobState}
