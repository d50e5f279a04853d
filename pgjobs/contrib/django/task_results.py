"""The TaskResult of a job that is a task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, ClassVar

from django.conf import settings
from django.utils import timezone
from django.utils.module_loading import import_string

from pgjobs.codec import decode_args
from pgjobs.contrib.django.task_api import Task, TaskError, TaskResult, TaskResultStatus
from pgjobs.contrib.django.task_options import UnknownTask
from pgjobs.errors import JobCancelled, JobTimedOut, PgjobsError, shown
from pgjobs.job import AttemptError, Job
from pgjobs.states import JobState

# Keys in the metadata of a job
RUN_AFTER = "task_run_after"  # as the caller gave it: a retry moves the job's own time
_STARTED_AT = "task_started_at"  # the first attempt: a later one moves the job's own time
_ERRORS = "task_errors"  # the class of the exception, by the number of the attempt

_MOST_ERRORS = 100  # as many as a job keeps
_LONGEST_PATH = 200


@dataclass
class TaskArgs:
    """The args of a job that is a task."""

    kind: ClassVar[str] = "django.task"

    task: str  # the path of its function
    args: list[Any]
    kwargs: dict[str, Any]
    backend: str  # its alias in settings.TASKS


@dataclass
class DetachedTaskArgs(TaskArgs):
    """The same, of a task that runs outside of any transaction."""

    kind: ClassVar[str] = "django.task.detached"


KINDS = frozenset({TaskArgs.kind, DetachedTaskArgs.kind})


class WorkerVanished(PgjobsError):
    """The process that ran the task was killed, or lost its connection."""


_STATUS = {
    JobState.AVAILABLE: TaskResultStatus.READY,
    JobState.SCHEDULED: TaskResultStatus.READY,
    JobState.PENDING: TaskResultStatus.READY,
    JobState.RETRYABLE: TaskResultStatus.READY,
    JobState.RUNNING: TaskResultStatus.RUNNING,
    JobState.COMPLETED: TaskResultStatus.SUCCESSFUL,
    JobState.CANCELLED: TaskResultStatus.FAILED,
    JobState.DISCARDED: TaskResultStatus.FAILED,
}

# By the beginning of the stored text, the class of an error that no code of the task has raised.
_NOT_RAISED: Mapping[str, type[PgjobsError]] = {
    "worker vanished": WorkerVanished,
    "timed out after": JobTimedOut,
    "cancelled remotely": JobCancelled,
}


def task_result(job: Job[Any], task: Any = None) -> Any:
    """The TaskResult of a job, as the job is now; `task` is its task, if the caller has it. Raises UnknownTask if the
    code of the task is not there."""
    args = decode_args(TaskArgs, job.raw_args)
    started = _instant(job.metadata.get(_STARTED_AT)) or job.attempted_at
    result = TaskResult(
        task=_task_of(job, args) if task is None else task,
        id=str(job.id),
        status=_STATUS[job.state],
        enqueued_at=_localized(job.created_at),
        started_at=_localized(started),
        last_attempted_at=_localized(job.attempted_at),
        finished_at=_localized(job.finalized_at),
        args=args.args,
        kwargs=args.kwargs,
        backend=args.backend,
        errors=[_task_error(job, error) for error in job.errors],
        worker_ids=list(job.attempted_by[-job.attempt :]) if job.attempt else [],
    )
    object.__setattr__(result, "_return_value", job.output)
    return result


def failure(job: Job[Any], error: BaseException) -> dict[str, Any]:
    """The metadata to keep of an attempt whose task has raised: what the job's own errors do not hold."""
    classes = {**_classes(job), str(job.attempt): class_path(type(error))}
    newest = dict(list(classes.items())[-_MOST_ERRORS:])
    first = job.metadata.get(_STARTED_AT) or (job.attempted_at and job.attempted_at.isoformat())
    return {_ERRORS: newest, _STARTED_AT: first}


def class_path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"[:_LONGEST_PATH]


def _task_of(job: Job[Any], args: TaskArgs) -> Any:
    """The task as it was enqueued. Its queue may be one that the settings no longer allow."""
    found = find_task(args.task)
    values = {
        "priority": -job.priority,
        "queue_name": job.queue,
        "backend": args.backend,
        "run_after": _localized(_instant(job.metadata.get(RUN_AFTER))),
    }
    if all(getattr(found, name) == value for name, value in values.items()):
        return found
    task = replace(found)
    for name, value in values.items():
        object.__setattr__(task, name, value)  # replace(found, **values) would refuse them
    return task


def find_task(path: str) -> Any:
    """The task that is found by this path. Raises UnknownTask."""
    try:
        found = import_string(path)
    except ImportError as error:
        raise UnknownTask(f"the task {shown(path)} cannot be imported: {error}") from error
    if not isinstance(found, Task):
        raise UnknownTask(f"{shown(path)} is no task, but {shown(found)}: decorate the function with @task")
    return found


def _task_error(job: Job[Any], error: AttemptError) -> Any:
    path = _classes(job).get(str(error.attempt))
    if not isinstance(path, str):
        path = class_path(next((cls for text, cls in _NOT_RAISED.items() if error.error.startswith(text)), PgjobsError))
    return TaskError(exception_class_path=path, traceback=error.trace or f"{path}: {error.error}\n")


def _classes(job: Job[Any]) -> Mapping[str, Any]:
    classes = job.metadata.get(_ERRORS)
    return classes if isinstance(classes, dict) else {}


def _instant(text: object) -> datetime | None:
    """An instant in the metadata; None if there is none, or one was written by hand in another form."""
    try:
        return datetime.fromisoformat(str(text)) if text else None
    except ValueError:
        return None


def _localized(when: datetime | None) -> datetime | None:
    """As Django gives instants: naive, in the current time zone, with USE_TZ = False."""
    return timezone.make_naive(when) if when is not None and not settings.USE_TZ else when
