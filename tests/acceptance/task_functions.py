# mypy: disable-error-code="untyped-decorator"
"""The tasks of test_django_tasks.py: Django finds a task again by the path of its function."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from datetime import timedelta
from typing import Any

import django
from django.db import transaction

from pgjobs import Cancel, Snooze, current_job
from tests.acceptance.frameworks import DjangoEffect

if django.VERSION >= (6, 0):
    from django.tasks import task
else:
    from django_tasks import task

#: What a task does of which a test waits to hear.
heard: list[Any] = []
entered = threading.Event()


class NotGood(Exception):
    """Of a task."""


def write(note: str) -> None:
    DjangoEffect.objects.create(note=note)


@task
def note(text: str, times: int = 1) -> int:
    for number in range(times):
        write(text if times == 1 else f"{text} {number}")
    return times


@task
def hear(text: str) -> None:
    heard.append(text)


@task
def give(value: Any) -> Any:
    return value


@task
def give_what_is_no_json() -> Any:
    return {"a set": {1}}


@task
def write_and_fail(text: str) -> None:
    write(text)
    raise NotGood("it went wrong")


@task
def fail(until: int) -> str:
    job = current_job()
    assert job is not None
    if job.attempt < until:
        raise NotGood(f"attempt {job.attempt}")
    return "at last"


@task
def exit_with(code: int) -> None:
    raise SystemExit(code)


@task
def roll_back(text: str) -> None:
    write(text)
    transaction.set_rollback(True)


@task
def signal_pgjobs(what: str) -> None:
    if what == "cancel":
        raise Cancel("not wanted")
    raise Snooze(timedelta(hours=1))


@task
def snooze_once() -> None:
    job = current_job()
    assert job is not None
    if "snoozes" not in job.metadata:
        raise Snooze(timedelta(hours=1))


@task(takes_context=True)
def say_context(context: Any, text: str) -> dict[str, Any]:
    result = context.task_result
    return {
        "id": result.id,
        "attempt": context.attempt,
        "status": result.status,
        "text": text,
        "workers": result.worker_ids,
        "found": result.task.get_result(result.id).status,
    }


@task
async def write_in_a_coroutine(text: str) -> str:
    await DjangoEffect.objects.acreate(note=text)
    await asyncio.sleep(0)
    return text.upper()


@task
async def write_in_a_coroutine_and_fail(text: str) -> None:
    await DjangoEffect.objects.acreate(note=text)
    raise NotGood("in a coroutine")


@task
async def wait_for_ever() -> None:
    entered.set()
    try:
        await asyncio.Event().wait()
    finally:
        heard.append("ended")


@task
def lose_the_connection(text: str) -> None:
    job = current_job()
    assert job is not None
    write(text)
    if job.attempt == 1:
        with transaction.get_connection().cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")


@task
def die_at_first(text: str) -> None:
    job = current_job()
    assert job is not None
    write(text)
    if job.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)


@task
def outside(text: str) -> bool:
    write(text)
    return bool(transaction.get_connection().in_atomic_block)


def _made_nowhere() -> None: ...


hidden = [task(_made_nowhere)]
