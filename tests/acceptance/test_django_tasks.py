"""Django's tasks as jobs: `django.tasks`, or the package django-tasks before Django 6.0."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connections, transaction
from django.test import override_settings
from django.utils import timezone

from pgjobs import Cancel, InvalidArgs, InvalidSetting, Job, JobState, WorkerPool, constant
from pgjobs.contrib.django import client as client_of
from pgjobs.contrib.django.backend import PgjobsBackend
from pgjobs.contrib.django.shortcuts import config
from pgjobs.contrib.django.task_api import (
    InvalidTask,
    TaskResultDoesNotExist,
    TaskResultStatus,
    task_backends,
    task_enqueued,
    task_finished,
    task_started,
)
from pgjobs.contrib.django.task_results import WorkerVanished
from pgjobs.testing import Jobs
from tests.acceptance import task_functions as tasks
from tests.acceptance.frameworks import DjangoApp, DjangoEffect, Trial, trial
from tests.acceptance.work_command import ROOT
from tests.waiting import wait_until

BACKEND = "pgjobs.contrib.django.backend.PgjobsBackend"
APPS = ["pgjobs.contrib.django"]
READY, RUNNING = TaskResultStatus.READY, TaskResultStatus.RUNNING
FAILED, SUCCESSFUL = TaskResultStatus.FAILED, TaskResultStatus.SUCCESSFUL
NOW = constant(timedelta(0))


def backends(**options: Any) -> dict[str, Any]:
    return {"default": {"BACKEND": BACKEND, "QUEUES": [], "OPTIONS": options}}


def work(jobs: int = 100) -> int:
    """Run what is due, in this thread. How many jobs that were."""
    pool = WorkerPool(client_of(), config().work_map)
    done = 0
    while done < jobs and pool.work_one():
        done += 1
    return done


def stored(result: Any) -> Job[Any]:
    found = client_of().get(int(result.id))
    assert found is not None
    return found


@pytest.fixture
def project(fresh_database: str) -> Iterator[Trial]:
    """A project with the app installed, whose tasks are jobs."""
    app = DjangoApp(fresh_database, "pgjobs")
    with trial(app, fresh_database) as made, override_settings(INSTALLED_APPS=APPS, TASKS=backends()):
        try:
            yield made
        finally:
            config().close()


@pytest.fixture
def heard() -> Iterator[list[Any]]:
    tasks.heard.clear()
    tasks.entered.clear()
    yield tasks.heard
    tasks.heard.clear()


# --- enqueue and results


def test_a_task_runs_and_its_result_is_found(project: Trial) -> None:
    result = tasks.note.enqueue("written", times=2)
    assert (result.status, result.is_finished, result.attempts) == (READY, False, 0)
    assert (result.args, result.kwargs, result.backend) == (["written"], {"times": 2}, "default")
    assert (result.started_at, result.finished_at, result.last_attempted_at) == (None, None, None)
    assert result.task == tasks.note
    assert project.jobs == ["django.task"]
    assert work() == 1
    found = tasks.note.get_result(result.id)
    assert (found.status, found.return_value, found.attempts) == (SUCCESSFUL, 2, 1)
    assert found.worker_ids == [client_of().id]
    assert found.enqueued_at == result.enqueued_at
    assert result.enqueued_at <= found.started_at == found.last_attempted_at <= found.finished_at
    assert project.effects == ["written 0", "written 1"]
    result.refresh()
    assert result == found


def test_a_task_goes_the_way_of_its_atomic_block(project: Trial) -> None:
    with transaction.atomic():
        kept = tasks.note.enqueue("kept")
        assert tasks.note.get_result(kept.id) == kept, "found in the transaction that has enqueued it"
        assert project.jobs == [], "and only there"
    with suppress(KeyError), transaction.atomic():
        dropped = tasks.note.enqueue("dropped")
        assert dropped.task.get_result(dropped.id).status == READY
        raise KeyError
    with transaction.atomic(), suppress(KeyError), transaction.atomic():
        tasks.note.enqueue("dropped too")
        raise KeyError
    with pytest.raises(TaskResultDoesNotExist):
        tasks.note.get_result(dropped.id)
    assert project.jobs == ["django.task"]
    work()
    assert project.effects == ["kept"]


def test_enqueue_is_possible_after_other_statements_and_after_an_error_in_a_block(project: Trial) -> None:
    with transaction.atomic():
        tasks.write("of the application")
        tasks.note.enqueue("by a task")
        with suppress(TypeError):
            tasks.note.enqueue(datetime.now(UTC))
        with pytest.raises(InvalidArgs, match="NUL"):
            tasks.note.enqueue("\0")
        tasks.write("and on")
    work()
    assert project.effects == ["of the application", "and on", "by a task"]


def test_async_code_enqueues_and_reads(project: Trial) -> None:
    async def view() -> Any:
        result = await tasks.note.aenqueue("from async code")
        await result.arefresh()
        return await tasks.note.aget_result(result.id)

    try:
        found = asyncio.run(view())
    finally:
        asyncio.run(close_connections())
    assert found.status == READY
    work()
    assert project.effects == ["from async code"]


async def close_connections() -> None:
    from asgiref.sync import sync_to_async

    await sync_to_async(connections.close_all)()


def test_the_higher_priority_runs_first(project: Trial, heard: list[Any]) -> None:
    for priority in (0, -100, 100, 50):
        tasks.hear.using(priority=priority).enqueue(str(priority))
    work()
    assert heard == ["100", "50", "0", "-100"]


def test_a_task_waits_for_its_time(project: Trial) -> None:
    later = timezone.now() + timedelta(hours=1)
    result = tasks.note.using(run_after=later).enqueue("later")
    assert (result.status, result.task.run_after) == (READY, later)
    assert stored(result).state == JobState.SCHEDULED
    assert work() == 0
    assert tasks.note.get_result(result.id) == result
    past = tasks.note.using(run_after=timezone.now() - timedelta(hours=1)).enqueue("now")
    assert work() == 1
    assert tasks.note.get_result(past.id).task.run_after == past.task.run_after


def test_a_task_is_read_as_it_was_enqueued_whatever_the_settings_say_now(project: Trial) -> None:
    task = tasks.note.using(priority=7, queue_name="mail")
    result = task.enqueue("in another queue")
    assert stored(result).queue == "mail"
    with override_settings(TASKS={"default": {"BACKEND": BACKEND, "QUEUES": ["default"]}}):
        found = tasks.note.get_result(result.id)
        assert (found.task.priority, found.task.queue_name) == (7, "mail")
        assert found == result
        with pytest.raises(InvalidTask, match="mail"):
            task.enqueue("refused")


def test_times_are_naive_where_the_project_says_so(project: Trial) -> None:
    with override_settings(USE_TZ=False, TIME_ZONE="Asia/Kathmandu"):
        when = datetime.now() + timedelta(minutes=5)
        result = tasks.note.using(run_after=when).enqueue("naive")
        assert result.enqueued_at.tzinfo is None
        assert abs(result.enqueued_at - datetime.now()) < timedelta(hours=1)
        assert tasks.note.get_result(result.id).task.run_after == when
    assert stored(result).scheduled_at == timezone.make_aware(when, timezone.get_fixed_timezone(345))


@pytest.mark.parametrize("id", ["", "0", "abc", "-5", "99", "9" * 18, "9" * 19, "9" * 30, "１"])
def test_a_result_that_is_not_there_does_not_exist(project: Trial, id: str) -> None:
    with pytest.raises(TaskResultDoesNotExist):
        task_backends["default"].get_result(id)


def test_the_result_of_another_backend_and_a_job_that_is_no_task_do_not_exist(project: Trial) -> None:
    with override_settings(TASKS={**backends(), "other": {"BACKEND": BACKEND}}):
        result = tasks.note.using(backend="other").enqueue("of the other")
        assert task_backends["other"].get_result(result.id) == result
        with pytest.raises(TaskResultDoesNotExist):
            task_backends["default"].get_result(result.id)
    nothing: dict[str, Any] = {}
    job = project.client.enqueue(None, nothing, kind="no.task")
    with pytest.raises(TaskResultDoesNotExist):
        task_backends["default"].get_result(str(job.id))


@pytest.mark.parametrize("value", [None, 0, "", [], {"a": [1, 2.5, None, True]}, "ü \N{GRINNING FACE}"])
def test_what_a_task_returns_is_its_result(project: Trial, value: Any) -> None:
    result = tasks.give.enqueue(value)
    work()
    result.refresh()
    assert (result.status, result.return_value) == (SUCCESSFUL, value)


def test_the_tasks_may_be_on_another_alias(project: Trial) -> None:
    connections.settings["other"] = {**connections.settings["default"]}
    try:
        with override_settings(TASKS=backends(using="other")):
            with suppress(KeyError), transaction.atomic(using="other"):
                result = tasks.note.enqueue("dropped")
                assert tasks.note.get_result(result.id) == result
                raise KeyError
            with suppress(KeyError), transaction.atomic(using="default"):
                tasks.note.enqueue("kept, as it is of the other alias")
                raise KeyError
        with override_settings(TASKS=backends(using="no such alias")), pytest.raises(InvalidSetting, match="no such"):
            tasks.note.enqueue("never")
        assert len(project.jobs) == 1
    finally:
        connections["other"].close()
        del connections["other"]
        del connections.settings["other"]


# --- errors and retries


def test_a_task_that_raises_has_failed_and_leaves_nothing_but_its_error(project: Trial) -> None:
    result = tasks.write_and_fail.enqueue("undone")
    with pytest.raises(ValueError, match="not finished yet"):
        result.return_value  # noqa: B018
    work()
    result.refresh()
    assert (result.status, result.attempts, project.effects) == (FAILED, 1, [])
    with pytest.raises(ValueError, match="Task failed"):
        result.return_value  # noqa: B018
    (error,) = result.errors
    assert error.exception_class is tasks.NotGood
    assert error.traceback.startswith("Traceback (most recent call last):\n")
    assert error.traceback.endswith("NotGood: it went wrong\n")
    assert "in write_and_fail" in error.traceback
    assert result.finished_at is not None


@pytest.mark.parametrize(
    ("task", "args", "raised", "text"),
    [
        (tasks.exit_with, (3,), SystemExit, "3"),
        (tasks.note, (), TypeError, "missing 1 required positional argument"),
        (tasks.give_what_is_no_json, (), TypeError, "give_what_is_no_json returned cannot be stored as JSON: Unsupp"),
        (tasks.write_in_a_coroutine_and_fail, ("undone",), tasks.NotGood, "in a coroutine"),
    ],
    ids=["exits", "called wrongly", "returns no JSON", "in a coroutine"],
)
def test_whatever_a_task_raises_is_told(
    project: Trial, task: Any, args: tuple[Any, ...], raised: type[BaseException], text: str
) -> None:
    result = task.enqueue(*args)
    work()
    result.refresh()
    assert (result.status, project.effects) == (FAILED, [])
    assert [error.exception_class for error in result.errors] == [raised]
    assert text in result.errors[0].traceback


def test_what_django_would_not_commit_is_no_success(project: Trial) -> None:
    result = tasks.roll_back.enqueue("undone")
    work()
    result.refresh()
    assert (result.status, project.effects) == (FAILED, [])
    assert "set_rollback" in result.errors[0].traceback


def test_a_task_is_tried_again_where_the_options_say_so(project: Trial) -> None:
    with override_settings(TASKS=backends(max_attempts=3, backoff=NOW)):
        result = tasks.fail.enqueue(3)
        seen = []
        for _ in range(3):
            work(1)
            result.refresh()
            seen.append((result.status, result.attempts, len(result.errors)))
        assert seen == [(READY, 1, 1), (READY, 2, 2), (SUCCESSFUL, 3, 2)]
        assert [error.traceback.splitlines()[-1].rpartition(": ")[2] for error in result.errors] == [
            "attempt 1",
            "attempt 2",
        ]
        assert {error.exception_class for error in result.errors} == {tasks.NotGood}
        assert result.started_at < result.last_attempted_at
        assert result.return_value == "at last"


def test_the_last_attempt_is_the_last(project: Trial) -> None:
    with override_settings(TASKS=backends(max_attempts=2, backoff=NOW)):
        result = tasks.fail.enqueue(9)
        assert work() == 2
        result.refresh()
        assert (result.status, result.attempts, len(result.errors)) == (FAILED, 2, 2)


def test_a_backoff_may_be_named_by_its_path(project: Trial) -> None:
    with override_settings(TASKS=backends(backoff=f"{__name__}.NOW")):
        result = tasks.fail.enqueue(3)
        assert work() == 3
        result.refresh()
        assert result.status == SUCCESSFUL
        assert stored(result).max_attempts == 25, "that of the client"


def test_without_a_backoff_that_of_the_project_counts(project: Trial) -> None:
    with override_settings(TASKS=backends(max_attempts=2), PGJOBS={"BACKOFF": constant(timedelta(days=9))}):
        result = tasks.fail.enqueue(2)
        work()
        assert stored(result).scheduled_at - result.enqueued_at >= timedelta(days=9)


def test_signals_of_pgjobs_work_in_a_task(project: Trial) -> None:
    cancelled, snoozed = tasks.signal_pgjobs.enqueue("cancel"), tasks.signal_pgjobs.enqueue("snooze")
    assert work() == 2
    cancelled.refresh()
    snoozed.refresh()
    assert (cancelled.status, stored(cancelled).state) == (FAILED, JobState.CANCELLED)
    assert [error.exception_class for error in cancelled.errors] == [Cancel]
    assert (snoozed.status, snoozed.attempts, snoozed.errors) == (READY, 0, [])


def test_an_attempt_that_does_not_count_is_not_told(project: Trial) -> None:
    result = tasks.snooze_once.enqueue()
    assert work() == 1
    client_of().retry(int(result.id))
    assert work() == 1
    result.refresh()
    assert (result.status, result.attempts) == (SUCCESSFUL, 1)
    assert len(stored(result).attempted_by) == 2


def test_a_task_that_loses_its_connection_runs_again(project: Trial) -> None:
    result = tasks.lose_the_connection.enqueue("written once")
    work(1)
    result.refresh()
    assert (result.status, len(result.errors)) == (READY, 1)
    client_of().retry(int(result.id))
    assert work() == 1
    result.refresh()
    assert (result.status, result.attempts, project.effects) == (SUCCESSFUL, 2, ["written once"])


def test_a_task_whose_code_is_not_there_waits_for_it(project: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    result = tasks.note.enqueue("later")
    with monkeypatch.context() as patched:
        patched.delattr(tasks, "note")
        assert work() == 1
        with pytest.raises(InvalidSetting, match=r"task_functions\.note.*cannot be imported"):
            task_backends["default"].get_result(result.id)
    job = stored(result)
    assert (job.state, job.max_attempts) == (JobState.RETRYABLE, 5)
    assert "cannot be imported" in (job.last_error or "")
    client_of().retry(job.id)
    work()
    assert project.effects == ["later"]


def test_what_is_no_task_is_not_run(project: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    result = tasks.note.enqueue("never")
    monkeypatch.setattr(tasks, "note", tasks.note.func)
    work()
    assert "is no task" in (stored(result).last_error or "")
    assert project.effects == []


def test_a_task_that_no_worker_could_find_is_refused(project: Trial) -> None:
    with transaction.atomic():
        with pytest.raises(InvalidTask, match=r"_made_nowhere.*is no task"):
            tasks.hidden[0].enqueue()
        tasks.note.enqueue("and goes on")
    assert project.jobs == ["django.task"]


def test_a_timeout_is_named_as_the_error(project: Trial, heard: list[Any]) -> None:
    with override_settings(TASKS=backends(timeout=timedelta(milliseconds=50))):
        result = tasks.wait_for_ever.enqueue()
        with WorkerPool(client_of(), config().work_map):
            wait_until(lambda: tasks.wait_for_ever.get_result(result.id).is_finished)
        result.refresh()
        assert (result.status, heard) == (FAILED, ["ended"])
        assert [error.exception_class_path for error in result.errors] == ["pgjobs.errors.JobTimedOut"]
        assert "timed out after 0.05 s" in result.errors[0].traceback


# --- around a task


def test_a_task_may_take_its_context(project: Trial) -> None:
    result = tasks.say_context.enqueue("hello")
    work()
    result.refresh()
    assert result.return_value == {
        "id": result.id,
        "attempt": 1,
        "status": "RUNNING",
        "text": "hello",
        "workers": [client_of().id],
        "found": "RUNNING",
    }


def test_a_coroutine_writes_in_the_transaction_of_its_job(project: Trial) -> None:
    result = tasks.write_in_a_coroutine.enqueue("from a coroutine")
    work()
    result.refresh()
    assert (result.return_value, project.effects) == ("FROM A COROUTINE", ["from a coroutine"])


def test_a_coroutine_is_cancelled_with_its_job(project: Trial, heard: list[Any]) -> None:
    result = tasks.wait_for_ever.enqueue()
    with WorkerPool(client_of(), config().work_map, timeout=None):
        wait_until(tasks.entered.is_set)
        assert tasks.wait_for_ever.get_result(result.id).status == RUNNING
        client_of().cancel(int(result.id))
        wait_until(lambda: tasks.wait_for_ever.get_result(result.id).is_finished)
    result.refresh()
    assert (result.status, stored(result).state, heard) == (FAILED, JobState.CANCELLED, ["ended"])
    assert [error.exception_class_path for error in result.errors] == ["pgjobs.errors.JobCancelled"]


def test_a_detached_task_runs_outside_of_any_transaction(project: Trial) -> None:
    with override_settings(TASKS=backends(detached=True)):
        result = tasks.outside.enqueue("committed at once")
        assert project.jobs == ["django.task.detached"]
        work()
        result.refresh()
        assert (result.status, result.return_value) == (SUCCESSFUL, False)
        assert project.effects == ["committed at once"]


def test_tasks_run_beside_other_jobs(project: Trial) -> None:
    """In the worker pool of the settings, on several threads; at its end no connection of theirs is left."""
    with override_settings(TASKS=backends(), PGJOBS={"QUEUES": {"default": 4}}):
        results = [tasks.note.enqueue(str(number)) for number in range(40)]
        before = sessions(project)
        with config().pool():
            wait_until(lambda: all(tasks.note.get_result(result.id).is_finished for result in results))
        config().close()
        wait_until(lambda: sessions(project) == before)
        assert sorted(project.effects, key=int) == [str(number) for number in range(40)]


def sessions(project: Trial) -> int:
    ((number,),) = project.query("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
    return int(number)


# --- signals


@dataclasses.dataclass
class Ear:
    """What the receivers of Django's signals heard."""

    heard: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)
    current: list[type[BaseException] | None] = dataclasses.field(default_factory=list)

    def enqueued(self, sender: Any, task_result: Any, **_: Any) -> None:
        self._hear("enqueued", sender, task_result)

    def started(self, sender: Any, task_result: Any, **_: Any) -> None:
        self._hear("started", sender, task_result)

    def finished(self, sender: Any, task_result: Any, **_: Any) -> None:
        self._hear("finished", sender, task_result)
        self.current.append(sys.exc_info()[0])
        tasks.write(f"{task_result.status} is committed as {task_result.task.get_result(task_result.id).status}")

    def _hear(self, name: str, sender: Any, task_result: Any) -> None:
        assert sender is PgjobsBackend
        self.heard.append((name, task_result.id, task_result.status))


@pytest.fixture
def ear() -> Iterator[Ear]:
    ear = Ear()
    listened = ((task_enqueued, ear.enqueued), (task_started, ear.started), (task_finished, ear.finished))
    for signal, receiver in listened:
        signal.connect(receiver)
    yield ear
    for signal, receiver in listened:
        signal.disconnect(receiver)


def test_signals_are_sent_when_a_task_is_enqueued_starts_and_has_finished(project: Trial, ear: Ear) -> None:
    good, bad = tasks.note.enqueue("good"), tasks.write_and_fail.enqueue("undone")
    work()
    assert ear.heard == [
        ("enqueued", good.id, READY),
        ("enqueued", bad.id, READY),
        ("started", good.id, RUNNING),
        ("finished", good.id, SUCCESSFUL),
        ("started", bad.id, RUNNING),
        ("finished", bad.id, FAILED),
    ]
    assert ear.current == [None, tasks.NotGood], "the exception that is being handled"
    assert project.effects == [
        "good",
        "SUCCESSFUL is committed as SUCCESSFUL",
        "FAILED is committed as FAILED",
    ], "what a receiver writes stays, also after a task that failed"


def test_a_task_that_runs_again_has_not_finished(project: Trial, ear: Ear) -> None:
    with override_settings(TASKS=backends(max_attempts=2, backoff=NOW)):
        tasks.fail.enqueue(2)
        work()
    assert [(name, status) for name, _, status in ear.heard] == [
        ("enqueued", READY),
        ("started", RUNNING),
        ("started", RUNNING),
        ("finished", SUCCESSFUL),
    ]


def test_a_client_that_was_made_before_the_settings_changed_is_made_anew(project: Trial, ear: Ear) -> None:
    with override_settings(TASKS={}):
        client_of()
    tasks.note.enqueue("good")
    work()
    assert [name for name, _, _ in ear.heard] == ["enqueued", "started", "finished"]


def test_a_coroutine_that_a_stop_cuts_off_runs_again(project: Trial, ear: Ear, heard: list[Any]) -> None:
    result = tasks.wait_for_ever.enqueue()
    with WorkerPool(client_of(), config().work_map, stop_timeout=timedelta(0)):
        wait_until(tasks.entered.is_set)
    result.refresh()
    assert (result.status, result.attempts, result.errors, heard) == (READY, 0, [], ["ended"])
    assert [name for name, _, _ in ear.heard] == ["enqueued", "started"]


def test_the_log_of_django_has_the_error(project: Trial, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        result = tasks.write_and_fail.enqueue("undone")
        work()
    logged = [record for record in caplog.records if record.name in ("django.tasks", "django_tasks")]
    assert [record.levelname for record in logged] == ["INFO", "ERROR"]
    assert f"id={result.id}" in logged[-1].getMessage()
    assert logged[-1].exc_info is not None
    assert logged[-1].exc_info[0] is tasks.NotGood


# --- in the tests of an application


def test_tasks_run_in_the_transaction_of_a_test(project: Trial) -> None:
    with transaction.atomic():
        results = [
            tasks.note.enqueue("written"),
            tasks.write_and_fail.enqueue("undone"),
            tasks.write_in_a_coroutine.enqueue("by a coroutine"),
        ]
        drained = Jobs(client_of(), "default").drain()
        assert (drained.completed, drained.discarded) == (2, 1)
        for result in results:
            result.refresh()
        assert [result.status for result in results] == [SUCCESSFUL, FAILED, SUCCESSFUL]
        assert [effect.note for effect in DjangoEffect.objects.order_by("id")] == ["written", "by a coroutine"]
        transaction.set_rollback(True)
    assert (project.jobs, project.effects) == ([], [])


# --- a process that dies


def die_with_a_task(project: Trial, result: Any, **options: Any) -> None:
    """Run it in a process that is killed by it."""
    where = {name: connections.settings["default"][name] for name in ("ENGINE", "NAME", "OPTIONS")}
    code = (
        "from django.conf import settings\n"
        f"settings.configure(USE_TZ=True, INSTALLED_APPS={APPS!r}, DATABASES={{'default': {where!r}}},\n"
        f"    TASKS={backends(**options)!r})\n"
        "import django\n"
        "django.setup()\n"
        "from pgjobs.contrib.django.worker import pool\n"
        "pool().work_one()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    assert project.effects == []


def test_a_task_whose_process_is_killed_runs_again_once(project: Trial) -> None:
    result = tasks.die_at_first.enqueue("written once")
    die_with_a_task(project, result)
    assert tasks.die_at_first.get_result(result.id).status == RUNNING
    with WorkerPool(client_of(), config().work_map):
        wait_until(lambda: tasks.die_at_first.get_result(result.id).is_finished, 30)
    result.refresh()
    assert (result.status, result.attempts, project.effects) == (SUCCESSFUL, 2, ["written once"])
    assert [error.exception_class for error in result.errors] == [WorkerVanished]
    assert "worker vanished" in result.errors[0].traceback


def test_with_one_attempt_a_task_whose_process_is_killed_has_failed(project: Trial, ear: Ear) -> None:
    with override_settings(TASKS=backends(max_attempts=1)):
        result = tasks.die_at_first.enqueue("never")
        die_with_a_task(project, result, max_attempts=1)
        with WorkerPool(client_of(), config().work_map):
            wait_until(lambda: project.effects, 30)
        result.refresh()
    assert (result.status, result.attempts) == (FAILED, 1)
    assert [error.exception_class for error in result.errors] == [WorkerVanished]
    assert ear.current == [WorkerVanished]
    assert project.effects == ["FAILED is committed as RUNNING"], "a rescue calls its hooks just before it commits"


# --- settings


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_attempt": 3}, "no option 'max_attempt': is max_attempts meant"),
        ({"MAX_ATTEMPTS": 3}, "is max_attempts meant"),
        ({"retries": 3}, "no option 'retries'"),
        ({"max_attempts": 0}, "from 1 to 32767"),
        ({"timeout": 30}, "timedelta"),
        ({"timeout": timedelta(0)}, "timeout must be > 0"),
        ({"backoff": timedelta(seconds=5)}, "a function of"),
        ({"backoff": "no.such.function"}, r"'no\.such\.function', which cannot be imported"),
        ({"detached": "yes"}, "True or False"),
        ("max_attempts", "must be a dict"),
    ],
    ids=str,
)
def test_wrong_options_are_refused_and_found_by_the_checks(project: Trial, options: Any, text: str) -> None:
    with override_settings(TASKS={"default": {"BACKEND": BACKEND, "OPTIONS": options}}):
        with pytest.raises(ImproperlyConfigured, match=text):
            tasks.note.enqueue("never")
        (found,) = task_backends["default"].check()
        assert isinstance(found, checks.Error)
        assert "TASKS['default']" in found.msg
    assert project.jobs == []


def test_the_checks_find_what_is_missing_and_nothing_else(project: Trial) -> None:
    assert list(task_backends["default"].check()) == []
    with override_settings(TASKS={"default": {"BACKEND": BACKEND, "QUEUES": ["a queue"]}}):
        assert [found.id for found in task_backends["default"].check()] == ["pgjobs.E103", "pgjobs.W101"]
    with override_settings(TASKS={"default": {"BACKEND": BACKEND, "QUEUES": ["default", "mail"]}}):
        (found,) = task_backends["default"].check()
        assert isinstance(found, checks.Warning)
        assert "'mail'" in found.msg
        with override_settings(PGJOBS={"QUEUES": {"default": 1, "mail": 2}}):
            assert list(task_backends["default"].check()) == []
    with override_settings(INSTALLED_APPS=[]):
        assert [found.id for found in task_backends["default"].check()] == ["pgjobs.E101"]
        with pytest.raises(InvalidSetting, match="INSTALLED_APPS"):
            tasks.note.enqueue("never")


def test_a_queue_that_pgjobs_cannot_store_is_refused_when_the_task_is_made(project: Trial) -> None:
    with pytest.raises(InvalidTask, match="a queue"):
        tasks.note.using(queue_name="a queue")


def test_a_subclass_of_the_backend_works_too(project: Trial) -> None:
    with override_settings(TASKS={"default": {"BACKEND": f"{__name__}.OwnBackend"}}):
        result = tasks.note.enqueue("written")
        work()
        result.refresh()
        assert result.status == SUCCESSFUL


class OwnBackend(PgjobsBackend):
    """A project may have its own."""
