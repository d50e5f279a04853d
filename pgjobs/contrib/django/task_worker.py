"""Runs tasks as handlers of jobs, and sends Django's signals about them."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, Literal

from asgiref.sync import async_to_sync
from django.db import close_old_connections

from pgjobs.contrib.django.task_api import TaskContext, normalize_json, task_backends, task_finished, task_started
from pgjobs.contrib.django.task_options import TaskOptions
from pgjobs.contrib.django.task_results import KINDS, DetachedTaskArgs, TaskArgs, WorkerVanished, failure, task_result
from pgjobs.errors import InvalidOption, NotRunning, Snooze
from pgjobs.hooks import Hooks
from pgjobs.job import Job
from pgjobs.states import JobState
from pgjobs.work_map import Handler, WorkMap

_LOOK_EVERY = 0.2  # seconds: how soon a coroutine hears that its attempt is to end


def register(work_map: WorkMap) -> None:
    """Let the workers of this WorkMap run tasks."""
    if TaskArgs.kind not in work_map:
        work_map[TaskArgs] = Handler(run_task, backoff=_backoff, timeout=_timeout)
        work_map[DetachedTaskArgs] = Handler(run_task, backoff=_backoff, timeout=_timeout, detached=True)


def run_task(tx: Any, job: Job[TaskArgs]) -> None:
    """The handler of all tasks."""
    try:
        value = _run(job)
        if value is not None:
            job.record_output(value)
    except BaseException as error:
        # a job that is to end gets the reason for its error, and one that is snoozed has none
        if not job.cancelled and not isinstance(error, Snooze):
            with suppress(NotRunning, InvalidOption):
                job.set_metadata(failure(job, error))
        raise


def _run(job: Job[Any]) -> Any:
    """Call the task. What it returned, as JSON gives it back."""
    result = task_result(job)
    task = result.task
    task_started.send(type(task.get_backend()), task_result=result)
    context = [TaskContext(task_result=result)] if task.takes_context else []
    value = _call(job, task, [*context, *result.args], result.kwargs)
    try:
        return normalize_json(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"what {task.module_path} returned cannot be stored as JSON: {error}") from error


def _call(job: Job[Any], task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    if inspect.iscoroutinefunction(task.func):
        return async_to_sync(_await)(job, task, args, kwargs)
    return task.call(*args, **kwargs)


async def _await(job: Job[Any], task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run a coroutine, and cancel it when the attempt is to end: no exception can be raised in a thread that waits for
    an event loop."""
    running = asyncio.ensure_future(task.func(*args, **kwargs))
    told = False
    while not (await asyncio.wait([running], timeout=_LOOK_EVERY))[0]:
        if job.cancelled and not told:
            told = running.cancel()
    return running.result()


# --- the options of its backend


def _backoff(job: Job[Any], error: BaseException) -> timedelta | datetime | None:
    backend = task_backends[job.args.backend]
    options: TaskOptions = backend.task_options
    return options.retry_at(job, error, backend.client.backoff)


def _timeout(job: Job[Any]) -> timedelta | Literal["inherit"] | None:
    options: TaskOptions = task_backends[job.args.backend].task_options
    return options.timeout


# --- the end of a task


class TaskSignals(Hooks):
    """Sends `task_finished` when the outcome of a task is written: what its receivers write is not undone with a failed
    task."""

    def on_finish(self, job: Job[Any], error: BaseException | None) -> None:
        if job.kind in KINDS and job.state.final:
            _send_finished(job, error)

    def on_rescue(self, job: Job[Any]) -> None:
        if job.kind in KINDS and job.state.final:
            try:
                _send_finished(job, WorkerVanished(job.last_error or ""))
            finally:
                close_old_connections()  # of the thread that does the maintenance


def _send_finished(job: Job[Any], error: BaseException | None) -> None:
    if isinstance(error, KeyboardInterrupt):
        return  # the user ends the process; Django's own backend is silent then too
    result = task_result(job)
    sender = type(result.task.get_backend())
    if error is None or job.state is JobState.COMPLETED:
        task_finished.send(sender, task_result=result)
        return
    trace = error.__traceback__
    try:
        raise error  # receivers log the exception that is being handled
    except BaseException:
        task_finished.send(sender, task_result=result)
    finally:
        error.__traceback__ = trace
