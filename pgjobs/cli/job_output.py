"""How jobs are printed: a line of a table, all that is known of one, or JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pgjobs.cli.output import Column, RawJson, harmless, harmless_lines, time_text, when_text
from pgjobs.job import Job, JobState

COLUMNS = (
    Column("ID", right=True),
    Column("STATE"),
    Column("KIND", elastic=True),
    Column("QUEUE", elastic=True),
    Column("PRIORITY", right=True),
    Column("ATTEMPT", right=True),
    Column("WHEN"),
    Column("TAGS", elastic=True),
    Column("LAST ERROR", elastic=True),
)


def table_row(job: Job[Any]) -> Sequence[object]:
    """One line of a list, without args, metadata and output."""
    return (
        job.id,
        str(job.state),
        job.kind,
        job.queue,
        job.priority,
        f"{job.attempt}/{job.max_attempts}",
        when_text(time_of(job)),
        " ".join(job.tags),
        None if job.last_error is None else job.last_error.partition("\n")[0],
    )


def time_of(job: Job[Any]) -> datetime:
    """When a finished job ended, a running one started, and when a waiting one is due."""
    if job.state is JobState.RUNNING:
        return job.attempted_at or job.created_at
    return job.finalized_at if job.state.final and job.finalized_at else job.scheduled_at


def listed_fields(job: Job[Any]) -> dict[str, Any]:
    """The JSON of a job in a list: without args, metadata and output."""
    return {
        "id": job.id,
        "state": str(job.state),
        "queue": job.queue,
        "kind": job.kind,
        "priority": job.priority,
        "attempt": job.attempt,
        "max_attempts": job.max_attempts,
        "tags": job.tags,
        "scheduled_at": job.scheduled_at,
        "created_at": job.created_at,
        "attempted_at": job.attempted_at,
        "finalized_at": job.finalized_at,
        "attempted_by": job.attempted_by[-1] if job.attempted_by else None,
        "errors": job.error_count,
        "last_error": job.last_error,
    }


def all_fields(job: Job[Any]) -> dict[str, Any]:
    """The JSON of a job with all that the row has."""
    return {
        **listed_fields(job),
        "attempted_by": job.attempted_by,
        "leased_until": job.leased_until,
        "args": RawJson(job.raw_args),
        "metadata": RawJson(job.raw_metadata),
        "output": None if job.raw_output is None else RawJson(job.raw_output),
        "errors": RawJson(job.raw_errors),
    }


def detail_lines(job: Job[Any], *, with_args: bool) -> list[str]:
    """All that is known of a job, for people."""
    seconds = None if job.attempted_at is None else _seconds_of_attempt(job, job.attempted_at)
    values: dict[str, object] = {
        "kind": job.kind,
        "queue": job.queue,
        "state": str(job.state),
        "priority": job.priority,
        "attempt": f"{job.attempt} of {job.max_attempts}",
        "tags": " ".join(job.tags) or None,
        "enqueued": time_text(job.created_at),
        "due": time_text(job.scheduled_at),
        "started": time_text(job.attempted_at),
        "ended": time_text(job.finalized_at),
        "runs for" if job.state is JobState.RUNNING else "took": None if seconds is None else f"{seconds:.3f} s",
        "worker": job.attempted_by[-1] if job.attempted_by else None,
        "lease ends": time_text(job.leased_until),
    }
    lines = [f"job {job.id}"]
    lines += [f"  {name:<10} {harmless(value)}" for name, value in values.items() if value is not None]
    if with_args:
        lines += _json_block("args", job.raw_args)
    if job.raw_metadata != "{}":
        lines += _json_block("metadata", job.raw_metadata)
    if job.raw_output is not None:
        lines += _json_block("output", job.raw_output)
    for error in job.errors:
        lines.append(f"  attempt {error.attempt} failed {time_text(error.at)}")
        lines += [f"    {line}" for line in harmless_lines(error.error)]
        lines += [f"    {line}" for line in harmless_lines(error.trace.rstrip() if error.trace else "") if line]
    return lines


def _seconds_of_attempt(job: Job[Any], began: datetime) -> float | None:
    """How long the last attempt took, or has been running."""
    if job.state is JobState.RUNNING:
        return (datetime.now(UTC) - began).total_seconds()
    if job.state is JobState.COMPLETED and job.finalized_at is not None:
        return (job.finalized_at - began).total_seconds()
    return None


def _json_block(name: str, raw: str) -> list[str]:
    try:
        text = json.dumps(json.loads(raw, parse_float=_finite), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):  # larger than Python reads, or nested too deeply
        text = raw
    first, *rest = text.split("\n")
    return [f"  {name:<10} {harmless(first)}", *(f"  {'':<10} {harmless(line)}" for line in rest)]


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is more than a float holds")
    return number
