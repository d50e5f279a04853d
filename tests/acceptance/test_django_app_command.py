"""`manage.py pgjobs`: the commands of pgjobs as a Django user runs them."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.django_project import ROOT, Project, enqueue, project
from tests.acceptance.work_command import SOON
from tests.waiting import wait_until


@pytest.fixture
def shop(tmp_path: Path, fresh_database: str) -> Iterator[Project]:
    with project(tmp_path, fresh_database) as shop:
        shop.make_tables()
        shop.add_customers("ada")
        yield shop


def test_the_tables_are_made_once(tmp_path: Path, fresh_database: str) -> None:
    with project(tmp_path, fresh_database) as empty:
        made = empty.manage("pgjobs", "migrate")
        assert (made.code, made.out) == (0, "up 0001 tables\n"), made.err
        assert empty.jobs == []
        assert empty.manage("pgjobs", "migrate").out == "nothing to do\n"


def test_jobs_are_listed_shown_and_changed(shop: Project) -> None:
    (job,) = shop.run(enqueue("Greet('ada')"))
    listed = shop.manage("pgjobs", "list", "--json")
    assert (listed.code, listed.err) == (0, "")
    assert [json.loads(line)["id"] for line in listed.lines] == [job]
    assert shop.manage("pgjobs", "cancel", str(job)).code == 0
    assert shop.jobs == [("greet", "cancelled", 0)]
    assert shop.manage("pgjobs", "retry", str(job)).code == 0
    assert shop.jobs == [("greet", "available", 0)]
    assert shop.manage("pgjobs", "list", "--state", "discarded").code == 0


def test_a_job_is_enqueued_with_the_args_class_of_the_project(shop: Project) -> None:
    done = shop.manage("pgjobs", "enqueue", "greet", '{"email": "ada"}')
    assert done.code == 0, done.err
    refused = shop.manage("pgjobs", "enqueue", "greet", '{"mail": "ada"}')
    assert refused.code == 1
    assert len(shop.jobs) == 1


def test_the_help_and_the_errors_are_those_of_pgjobs(shop: Project) -> None:
    for arguments in (["pgjobs", "--help"], ["pgjobs", "-h"], ["help", "pgjobs"]):
        done = shop.manage(*arguments)
        assert done.code == 0
        assert done.out.startswith("usage: manage.py pgjobs")
        assert " retry " in done.out
        assert " demo " not in done.out
    assert shop.manage("pgjobs").code == 2
    assert "usage: manage.py pgjobs list" in shop.manage("pgjobs", "list", "--help").out
    wrong = shop.manage("pgjobs", "list", "--nothing")
    assert wrong.code == 2
    assert "Traceback" not in wrong.err
    missing = shop.manage("pgjobs", "show", "4711")
    assert missing.code == 1
    assert "4711" in missing.err
    assert "CommandError" not in missing.err


def test_the_options_of_every_django_command_may_stand_anywhere(shop: Project) -> None:
    shop.write("elsewhere/others.py", "from shop.settings import *\nPGJOBS = {'SCHEMA': 'no_such_schema'}\n")
    given = ["--settings", "others", "--pythonpath=elsewhere", "-v", "2", "--no-color", "--traceback"]
    for arguments in ([*given, "list"], ["list", *given], ["list", "--limit", "3", *given]):
        done = shop.manage("pgjobs", *arguments)
        assert done.code == 1
        assert "there are no pgjobs tables in schema 'no_such_schema'" in done.err


def test_a_wrong_setting_ends_the_command_with_the_system_check(shop: Project) -> None:
    shop.set(PGJOBS={"QUEUE_S": {}})
    for command in ("work", "list"):
        done = shop.manage("pgjobs", command)
        assert done.code == 1
        assert "(pgjobs.E001) PGJOBS has no setting 'QUEUE_S'" in done.err


def test_it_is_called_from_code(shop: Project) -> None:
    shop.run(enqueue("Greet('ada')"))
    out, code = shop.run("""
        import io
        from django.core.management import CommandError, call_command

        out = io.StringIO()
        call_command("pgjobs", "list", "--json", stdout=out)
        try:
            call_command("pgjobs", "show", "4711", stderr=io.StringIO())
        except CommandError as error:
            code = error.returncode
        result = out.getvalue(), code
    """)
    assert json.loads(out)["kind"] == "greet"
    assert code == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_work_runs_processes_until_a_signal(shop: Project, number: signal.Signals) -> None:
    with shop.work("--processes", "2") as work:
        pids = work.wait_ready(2)
        assert len(set(pids)) == 2
        shop.run(enqueue(*["Greet('ada')"] * 4))
        wait_until(lambda: [state for _, state, _ in shop.jobs] == ["completed"] * 4, SOON)
        work.signal(number)
        assert work.process.wait(SOON) == 0
    assert shop.greeted == {"ada": 4}
    assert "Traceback" not in work.log


def test_work_is_started_from_another_directory_with_other_settings(shop: Project, tmp_path: Path) -> None:
    shop.write("elsewhere/others.py", "from shop.settings import *\nPGJOBS = {'QUEUES': {'mail': 3}}\n")
    elsewhere = tmp_path / "nothing here"
    elsewhere.mkdir()
    options = ("-v2", "--burst", "--settings=others", "--pythonpath", str(shop.directory / "elsewhere"))
    (job,) = shop.run("""
        from pgjobs.contrib.django import enqueue
        from shop.jobs import Greet
        result = [enqueue(Greet("ada"), queue="mail").id]
    """)
    with shop.work(*options, cwd=elsewhere) as work:
        assert work.process.wait(SOON) == 0
        assert " DEBUG " in work.log
    assert shop.query("SELECT state::text FROM pgjobs.job WHERE id = %s", job) == [("completed",)]


def test_work_finds_the_project_without_manage_py_too(shop: Project) -> None:
    shop.run(enqueue("Greet('ada')"))
    command = ("-m", "pgjobs", "work", "pgjobs.contrib.django.worker:pool", "--burst")
    done = shop.call(*command, DJANGO_SETTINGS_MODULE="shop.settings")
    assert done.code == 0, done.err
    assert shop.jobs == [("greet", "completed", 1)]
    done = shop.call(*command)
    assert done.code == 1
    assert "DJANGO_SETTINGS_MODULE" in done.err


def test_the_processes_of_work_get_no_path_but_the_projects_own(shop: Project) -> None:
    """Programs that handlers start inherit it, and may be of another Python."""
    shop.write(
        "shop/jobs.py",
        """
        import os
        from pgjobs.contrib.django import handles
        from shop.models import Customer

        @handles("look")
        def look(tx, job):
            job.record_output(os.environ["PYTHONPATH"].split(os.pathsep))
    """,
    )
    shop.write("shop/urls.py", "urlpatterns = []\n")
    assert shop.manage("pgjobs", "enqueue", "look", "{}").code == 0
    with shop.work("--burst") as work:
        assert work.process.wait(SOON) == 0
    ((paths,),) = shop.query("SELECT output FROM pgjobs.job")
    assert paths[:2] == [str(shop.directory), str(ROOT)]
    assert [path for path in paths if "python3." in path] == []
