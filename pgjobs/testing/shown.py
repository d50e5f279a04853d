"""How jobs and their args are shown when an assertion fails."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

from pgjobs import codec
from pgjobs.job import Job
from pgjobs.work_map import WorkMap

_MOST_JOBS = 20
_MOST_CHARACTERS = 300


def shown_args(args_class: type | None, raw: str) -> str:
    """The args of a job as JSON text, shortened."""
    return _short(json.dumps(visible_args(args_class, raw), ensure_ascii=False))


def visible_args(args_class: type | None, raw: str) -> Any:
    """The args of a job as a message may show them, without the values of secret fields if their class is known. Every
    failure message gets args from here."""
    return json.loads(raw if args_class is None else codec.redacted(args_class, raw))


def shown_jobs(jobs: Sequence[Job[Any]], classes: Mapping[str, type]) -> str:
    """A line for each job; `classes` are the known args classes by kind."""
    if not jobs:
        return "there are no jobs"
    lines = [shown_job(job, classes.get(job.kind) or class_of(job)) for job in jobs[:_MOST_JOBS]]
    more = len(jobs) - _MOST_JOBS
    return "the jobs there are:\n" + indented([*lines, *([f"and {more} more"] if more > 0 else [])])


def shown_job(job: Job[Any], args_class: type | None) -> str:
    others = "" if job.queue == "default" else f", queue {job.queue!r}"
    tried = f", attempt {job.attempt}" if job.attempt else ""
    return f"job {job.id} of kind {job.kind!r}: {job.state}{tried}{others}, args {shown_args(args_class, job.raw_args)}"


def class_of(job: Job[Any]) -> type | None:
    """The args class of a job that has the args of its enqueue."""
    args = vars(job).get("args")
    return type(args) if is_dataclass(args) else None


def classes_in(work_map: WorkMap | None) -> dict[str, type]:
    """The args classes of the handlers, by their kinds."""
    handlers = (work_map or WorkMap()).items()
    return {kind: handler.args_class for kind, handler in handlers if handler.args_class is not None}


def indented(lines: Iterable[str]) -> str:
    return "\n".join(f"  {line}" for line in lines)


def _short(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."
