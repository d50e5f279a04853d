"""`flask pgjobs` as people run it: `work` finds the app as Flask does, and what its processes die of loses nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

import pytest

from pgjobs import InvalidSetting, JobState
from pgjobs.contrib.flask import Pgjobs, commands
from tests.acceptance.flask_shop import Note, make_app, shop
from tests.acceptance.work_command import ROOT, SOON, Place, gate
from tests.conftest import Connect
from tests.samples import nothing
from tests.waiting import wait_until

# The application of work_command.py, in Flask: `effect` is written by `db.session`.
FLASK_APP = """
import os, signal, threading
from datetime import timedelta
import psycopg
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import URL, text
from sqlalchemy.orm import Mapped, mapped_column
from pgjobs import constant
from pgjobs.contrib.flask import Pgjobs

schema, dsn = os.environ["SCHEMA"], os.environ["DATABASE_URL"]
db, jobs = SQLAlchemy(), Pgjobs()

class Effect(db.Model):
    __table_args__ = {"schema": schema}
    job: Mapped[int] = mapped_column(primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)

@jobs.handles("job")
def handler(session, job):
    db.session.add(Effect(job=job.id, attempt=job.attempt))
    db.session.flush()
    with psycopg.connect(dsn, autocommit=True) as beside:
        beside.execute(f"INSERT INTO {schema}.start VALUES (%s, %s, %s)", [job.id, job.attempt, os.getpid()])
    match job.args["then"]:
        case "commit and wait" if job.attempt == 1:
            db.session.commit()
            threading.Event().wait(60)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "wait for the gate":
            db.session.execute(text("SELECT pg_advisory_xact_lock_shared(:gate)"), {"gate": job.args["gate"]})

def create_app(*queues):
    app = Flask(__name__)
    url = URL.create("postgresql+psycopg", query={key: str(value) for key, value in conninfo_to_dict(dsn).items()})
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    app.config["PGJOBS_SCHEMA"] = schema
    app.config["PGJOBS_QUEUES"] = {queue: 1 for queue in queues or ["default"]}
    app.config["PGJOBS_BACKOFF"] = constant(timedelta(0))
    db.init_app(app)
    jobs.init_app(app, db)
    return app
"""


@pytest.fixture
def flask_place(place: Place) -> Place:
    place.write(FLASK_APP, "shop.py")
    (place.directory / "app.py").unlink()
    return place


def program(*options: str) -> tuple[str, ...]:
    """The words that stand before `work`."""
    return ("-m", "flask", *options, "pgjobs")


@pytest.mark.parametrize(
    ("options", "file", "queue"),
    [
        (["--app", "shop"], "shop.py", "default"),
        (["--app", "shop:create_app('mail')"], "shop.py", "mail"),
        (["--app", "inner/shop.py:create_app", "--debug"], "inner/shop.py", "default"),
        ([], "app.py", "default"),
        ([], "wsgi.py", "default"),
    ],
    ids=["module", "arguments", "path", "app.py", "wsgi.py"],
)
def test_worker_processes_find_the_app_as_flask_does(
    flask_place: Place, options: Sequence[str], file: str, queue: str
) -> None:
    (flask_place.directory / file).parent.mkdir(exist_ok=True)
    (flask_place.directory / "shop.py").rename(flask_place.directory / file)
    job = flask_place.enqueue(queue=queue)
    with flask_place.work("--processes", "2", target="", program=program(*options)) as work:
        wait_until(lambda: flask_place.completed(job), SOON)
        work.wait_ready(2)
        assert work.stop() == 0
    assert flask_place.effects(job) == [1]


def test_worker_processes_find_the_app_of_the_environment(flask_place: Place) -> None:
    job = flask_place.enqueue(queue="mail")
    with flask_place.work(target="", program=program(), FLASK_APP="shop:create_app('mail')") as work:
        wait_until(lambda: flask_place.completed(job), SOON)
        assert work.stop() == 0


def test_a_sigterm_lets_the_running_job_end(flask_place: Place, connect: Connect) -> None:
    with gate(connect) as (number, open_gate), flask_place.work(target="", program=program("--app", "shop")) as work:
        job = flask_place.enqueue("wait for the gate", gate=number)
        wait_until(lambda: flask_place.starts(job), SOON)
        work.signal(signal.SIGTERM)
        work.wait_for("SIGTERM: stopping")
        waiting = flask_place.enqueue()
        open_gate()
        assert work.process.wait(SOON) == 0
    assert flask_place.completed(job)
    assert flask_place.effects(job) == [1]
    assert flask_place.job(waiting).state == JobState.AVAILABLE
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE %s"
    assert flask_place.query(sessions, f"%{flask_place.client.schema}.effect%") == [(0,)]


def test_the_job_of_a_killed_process_leaves_no_write_and_is_run_again_once(flask_place: Place) -> None:
    with flask_place.work(target="", program=program("--app", "shop")) as work:
        (first,) = work.wait_ready()
        job = flask_place.enqueue("commit and wait")
        wait_until(lambda: flask_place.starts(job))
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: flask_place.completed(job), SOON)
        (second,) = work.wait_ready(2)
        assert work.stop() == 0
    assert flask_place.effects(job) == [2]
    assert flask_place.starts(job) == [(1, first), (2, second)]
    assert flask_place.job(job).errors[0].error.startswith("worker vanished: ")


def test_a_job_that_kills_its_process_is_discarded_and_others_are_run(flask_place: Place) -> None:
    job = flask_place.client.enqueue(None, {"then": "kill"}, kind="job", max_attempts=2)
    with flask_place.work(target="", program=program("--app", "shop")) as work:
        wait_until(lambda: flask_place.job(job).state == JobState.DISCARDED, 2 * SOON)
        other = flask_place.enqueue()
        wait_until(lambda: flask_place.completed(other), SOON)
        assert work.stop() == 0
    assert [attempt for attempt, _ in flask_place.starts(job)] == [1, 2]
    assert (flask_place.effects(job), flask_place.effects(other)) == ([], [1])


def test_work_waits_for_the_tables_and_says_which_command_makes_them(flask_place: Place) -> None:
    schema = f"{flask_place.client.schema}_new"
    with flask_place.work(target="", program=program("--app", "shop"), SCHEMA=schema) as work:
        work.wait_for(f"waiting for the tables of schema {schema} at version 1: run flask pgjobs migrate\n")
        assert work.stop() == 0


def flask(place: Place, *words: str, app: str = "shop") -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "DATABASE_URL": place.dsn, "SCHEMA": place.client.schema, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "flask", "--app", app, *words],
        cwd=place.directory,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_commands_take_the_database_and_the_schema_of_the_app(flask_place: Place) -> None:
    flask_place.enqueue()
    listed = flask(flask_place, "pgjobs", "list", "--state", "available")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "job" in listed.stdout
    checked = flask(flask_place, "pgjobs", "migrate", "--check")
    assert checked.returncode == 0, checked.stderr
    wrong = flask(flask_place, "pgjobs", "list", "--nonsense")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("usage: flask pgjobs ")


def test_the_group_lists_its_commands(flask_place: Place) -> None:
    shown = flask(flask_place, "pgjobs", "--help")
    assert shown.returncode == 0
    for name in ("work", "migrate", "list", "retry", "queues"):
        assert f"\n  {name} " in shown.stdout
    assert "\n  demo " not in shown.stdout
    assert flask(flask_place, "pgjobs", "work", "--help").stdout.startswith("usage: flask pgjobs work")


def test_an_app_that_cannot_be_loaded_is_named(flask_place: Place) -> None:
    flask_place.write("import pgjobs\nraise LookupError('no such town')\n", "shop.py")
    told = flask(flask_place, "pgjobs", "work")
    assert told.returncode != 0
    assert "no such town" in told.stderr


# --- in the process of the test


def test_commands_run_in_the_test_runner_of_flask(fresh_database: str) -> None:
    with shop(fresh_database) as made:
        made.jobs.handles(Note)(nothing)
        made.enqueue()
        ran = made.app.test_cli_runner().invoke(args=["pgjobs", "list"])
        assert ran.exit_code == 0
        assert "note" in ran.output
        assert made.app.test_cli_runner().invoke(args=["pgjobs", "list", "--state", "wrong"]).exit_code == 1
        assert made.app.test_cli_runner().invoke(args=["pgjobs", "list", "--wrong"]).exit_code == 2


def test_a_program_that_makes_the_app_itself_is_told_to_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLASK_APP", raising=False)
    app = make_app(PGJOBS_DSN="postgresql://nowhere/app")
    Pgjobs(app)
    ran = app.test_cli_runner().invoke(args=["pgjobs", "work"])
    assert ran.exit_code == 2
    assert "set FLASK_APP" in ran.output


def test_an_app_without_jobs_is_named_by_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASK_APP", "tests.acceptance.flask_shop:make_app('bare')")
    monkeypatch.syspath_prepend(str(ROOT))
    with pytest.raises(InvalidSetting, match="<Flask 'bare'> has no Pgjobs"):
        commands.worker_pool()
