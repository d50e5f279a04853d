"""How jobs are printed: a line of a table, all that is known of one, or JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import chain
from typing import Any

from pgjobs.cli.output import Column, RawJson, harmless, harmless_lines, print_table, time_text, when_text
from pgjobs.job import Job, JobState, has_args
from pgjobs.observe.listing import time_of
from pgjobs.progress import Progress

_COLUMNS = (
    Column("ID", right=True),
    Column("STATE"),
    Column("KIND", elastic=True),
    Column("QUEUE", elastic=True),
    Column("PRIORITY", right=True),
    Column("ATTEMPT", right=True),
    Column("WHEN"),
    Column("PROGRESS", right=True),
    Column("TAGS", elastic=True),
    Column("LAST ERROR", elastic=True),
)
_PROGRESS = [column.head for column in _COLUMNS].index("PROGRESS")


NOT_READ = "args, errors, output and notes: this database role may not read them"


def print_jobs(first: Sequence[Job[Any]], others: Iterable[Job[Any]] = ()) -> None:
    """Print a list as a table. It has a column for progress if one of its first jobs has any."""
    with_progress = any(job.progress is not None for job in first)
    shown = [at for at in range(len(_COLUMNS)) if with_progress or at != _PROGRESS]
    rows = map(_row, chain(first, others))
    print_table([_COLUMNS[at] for at in shown], ([row[at] for at in shown] for row in rows))


def _row(job: Job[Any]) -> Sequence[object]:
    """One line of a list, without args, metadata and output."""
    return (
        job.id,
        str(job.state),
        job.kind,
        job.queue,
        job.priority,
        f"{job.attempt}/{job.max_attempts}",
        when_text(time_of(job)),
        None if job.progress is None else _percent(job.progress) or _amount(job.progress.done),
        " ".join(job.tags),
        None if job.last_error is None else job.last_error.partition("\n")[0],
    )


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
        "errors": job.error_count if has_args(job) else None,
        "last_error": job.last_error,
        "progress": None if job.progress is None else _progress_fields(job.progress),
    }


def _progress_fields(progress: Progress) -> dict[str, Any]:
    return {**asdict(progress), "fraction": progress.fraction}


def all_fields(job: Job[Any]) -> dict[str, Any]:
    """The JSON of a job with all that the row has; null for what the role may not read."""
    is_read = has_args(job)
    return {
        **listed_fields(job),
        "attempted_by": job.attempted_by,
        "leased_until": job.leased_until,
        "args": RawJson(job.raw_args) if is_read else None,
        "metadata": RawJson(job.raw_metadata),
        "output": None if job.raw_output is None else RawJson(job.raw_output),
        "errors": RawJson(job.raw_errors) if is_read else None,
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
        "progress": None if job.progress is None else _progress_text(job.progress),
        "lease ends": time_text(job.leased_until),
    }
    lines = [f"job {job.id}"]
    lines += [f"  {name:<10} {harmless(value)}" for name, value in values.items() if value is not None]
    if not has_args(job):
        lines.append(f"  {'not shown':<10} {NOT_READ}")
    elif with_args:
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


def _progress_text(progress: Progress) -> str:
    """As in `3 of 10 (30%), 2s ago: page 3`."""
    total = "" if progress.total is None else f" of {_amount(progress.total)} ({_percent(progress)})"
    note = "" if progress.note is None else f": {progress.note}"
    return f"{_amount(progress.done)}{total}, {when_text(progress.updated_at)}{note}"


def _percent(progress: Progress) -> str | None:
    """Rounded down, so that 100% means all of it."""
    return None if progress.fraction is None else f"{math.floor(progress.fraction * 100)}%"


def _amount(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


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
