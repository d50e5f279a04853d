"""How `pgjobs work` starts: it finds the pool, picks queues, waits for the tables; and runs until empty, or reloads."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgjobs import Client, JobState, roles_sql
from pgjobs.db import migration_plan
from tests.acceptance.work_command import APP, ROOT, SOON, Place, gate, is_alive
from tests.conftest import Connect
from tests.samples import HOUR
from tests.waiting import wait_until

# --- the application


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (APP.replace("pool =", "pol ="), "module app ({}/app.py) has no 'pool': is pol meant?"),
        (f"{APP}\nraise LookupError('no such town')\n", "importing app raised LookupError: no such town"),
        (f"{APP}\npool.start()\n", "the worker pool app:pool is started already: `pgjobs work` starts it, so"),
    ],
    ids=["no pool", "raises", "starts it"],
)
def test_an_application_that_cannot_be_loaded_fails_in_a_few_lines(place: Place, text: str, why: str) -> None:
    place.write(text)
    with place.work("--processes", "2") as work:
        assert work.process.wait(SOON) == 1
    (told,) = [line for line in work.lines if " failed: " in line]
    assert why.format(place.directory) in told
    assert work.log.count("Traceback") == (1 if "raised" in why else 0)
    assert "pgjobs/application" not in work.log, "the traceback is that of the application alone"


def test_a_target_of_another_form_is_refused_at_once(place: Place) -> None:
    with place.work(target="app.py") as work:
        assert work.process.wait(SOON) == 1
    assert work.log.startswith("pgjobs: error: 'app.py' does not say where the WorkerPool is: give module:object, ")


@pytest.mark.parametrize("target", ["package.worker:make", "package.worker:holder.pool"])
def test_a_function_or_a_dotted_name_in_a_package_is_found(place: Place, target: str) -> None:
    (place.directory / "package").mkdir()
    place.write("", "package/__init__.py")
    place.write(
        f"{APP}\nclass holder:\n    pass\nholder.pool = pool\ndef make():\n    return pool\n", "package/worker.py"
    )
    with place.work(target=target) as work:
        work.wait_ready()
        job = place.enqueue()
        wait_until(lambda: place.completed(job))


def test_only_the_worker_processes_import_the_application(place: Place) -> None:
    """By the installed program too, which finds it although the directory is not on its sys.path."""
    place.write(f"import os\nwith open('imported', 'a') as file:\n    print(os.getpid(), file=file)\n{APP}")
    program = [str(Path(sys.executable).with_name("pgjobs"))]
    with place.work("--processes", "2", program=program, PYTHONSAFEPATH="1") as work:
        pids = work.wait_ready(2)
        assert sorted((place.directory / "imported").read_text().split()) == sorted(map(str, pids))
        assert work.stop() == 0


# --- queues


def test_queues_picks_queues_and_sets_threads_and_the_rest_stays(place: Place) -> None:
    shows = "\nstart = pool.start\ndef show():\n    workers = pool._context.queue_workers\n"
    shows += "    print({name: (w.threads, w.settings.batch_size) for name, w in workers.items()}, flush=True)\n"
    shows += "    return start()\npool.start = show\n"
    place.write(APP + shows)
    with place.work("--queues", "mail=3") as work:
        work.wait_ready()
        assert work.told("{'mail': (3, 7)}")
        elsewhere, mail = place.enqueue(), place.enqueue(queue="mail")
        wait_until(lambda: place.completed(mail))
        assert place.job(elsewhere).state is JobState.AVAILABLE
        assert [process.queues for process in place.client.workers()] == [{"mail": 3}]
    with place.work("--queues", "mail, default=1") as work:
        work.wait_ready()
        assert re.search(r"\{'default': \(1, \d+\), 'mail': \(1, 7\)\}", work.log)


def test_a_queue_that_the_pool_does_not_have_is_refused(place: Place) -> None:
    with place.work("--queues", "default=1,mial=2", "--processes", "2") as work:
        assert work.process.wait(SOON) == 1
        assert work.told("failed: worker pool 'pgjobs' has no queue 'mial'; it has default, mail")


# --- tables


def test_missing_tables_are_waited_for_in_one_line(place: Place) -> None:
    schema = f"{place.client.schema}_later"
    with place.work("--processes", "2", SCHEMA=schema) as work, Client(place.dsn, schema=schema) as client:
        work.wait_for(f"waiting for the tables of schema {schema} at version ")
        assert re.search(rf" at version \d+: run pgjobs migrate --schema {schema}\n", work.log)
        client.migrate()
        place.query(f"CREATE TABLE {schema}.effect (job bigint, attempt integer)")
        place.query(f"CREATE TABLE {schema}.start (job bigint, attempt integer, pid integer)")
        work.wait_ready(2)
        job = client.enqueue(None, {"then": "return"}, kind="job")
        assert client.wait(job.id).state is JobState.COMPLETED
        assert work.stop() == 0
        assert len(work.lines) == 6, "starting, waiting, two are ready, stopping, stopped"
    place.conn.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))


def test_old_tables_are_waited_for_in_one_line(place: Place) -> None:
    """The code of a new release starts before its migration: here, of a copy of pgjobs with one migration more."""
    copy = place.directory
    shutil.copytree(ROOT / "pgjobs", copy / "pgjobs", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "sql", copy / "pgjobs" / "sql")
    new, schema = max(migration_plan.versions()) + 1, place.client.schema
    migration = (
        "-- name: up\nALTER TABLE pgjobs.job ADD later int;\n-- name: down\nALTER TABLE pgjobs.job DROP later;\n"
    )
    place.write(migration, f"pgjobs/sql/migrations/{new:04}_later.sql")
    with place.work("--processes", "2", PYTHONPATH=str(copy)) as work:
        work.wait_for(f"waiting for the tables of schema {schema} at version {new}: run pgjobs migrate")
        migrate = [sys.executable, "-m", "pgjobs", "migrate", "--dsn", place.dsn, "--schema", schema]
        done = subprocess.run(migrate, cwd=copy, capture_output=True, text=True, check=False, timeout=SOON)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"up {new:04} later\n", "")
        work.wait_ready(2)
        job = place.enqueue()
        wait_until(lambda: place.completed(job))
        assert work.stop() == 0
        assert len(work.lines) == 6, "starting, waiting, two are ready, stopping, stopped"


def test_a_signal_ends_the_wait_for_tables(place: Place) -> None:
    with place.work(SCHEMA="none_such") as work:
        work.wait_for("waiting for the tables")
        assert work.stop() == 0


def test_no_wait_fails_without_tables(place: Place) -> None:
    with place.work("--no-wait", SCHEMA="none_such") as work:
        assert work.process.wait(SOON) == 1
        assert work.told(" failed: there are no pgjobs tables in schema 'none_such'", "run `pgjobs migrate`")


@pytest.mark.parametrize("rights", ["none", "enqueuer", "operator"])
def test_a_role_without_the_rights_learns_in_one_line_what_it_needs(place: Place, rights: str) -> None:
    names: Any = {
        name: f"{place.client.schema}_{name}" for name in ("enqueuer", "worker", "viewer", "operator", "none")
    }
    role = names[rights]
    roles = [sql.Identifier(name) for name in names.values()]
    place.query(f"CREATE ROLE {names.pop('none')}")
    place.conn.execute(roles_sql(place.client.schema, transaction=False, **names).encode())
    place.query(f"ALTER ROLE {role} LOGIN")
    try:
        with place.work("--no-wait", DATABASE_URL=make_conninfo(place.dsn, user=role)) as work:
            assert work.process.wait(SOON) == 1
            (line,) = [line for line in work.lines if " failed: " in line]
            assert "failed: permission denied for " in line
            assert line.endswith("; a worker needs the rights of pgjobs_worker")
            assert "LINE" not in line, "the statement that the server refused"
            assert r"\n" not in line
    finally:
        for each in roles:
            place.conn.execute(sql.SQL("DROP OWNED BY {}").format(each))
            place.conn.execute(sql.SQL("DROP ROLE {}").format(each))


# --- until empty


@pytest.mark.parametrize("processes", ["1", "2"])
def test_burst_works_until_the_queues_are_empty(place: Place, processes: str) -> None:
    jobs = [place.enqueue() for _ in range(50)] + [place.enqueue(queue="mail") for _ in range(20)]
    later = place.client.enqueue(None, {"then": "return"}, kind="job", delay=HOUR)
    paused = place.enqueue(queue="paused")
    with place.work("--burst", "--processes", processes) as work:
        assert work.process.wait(2 * SOON) == 0
        assert work.told("stops: no jobs are left", times=int(processes))
    assert place.completed(*jobs)
    assert place.job(later).state is JobState.SCHEDULED
    assert place.job(paused).state is JobState.AVAILABLE, "another queue"


def test_burst_waits_for_jobs_that_run_elsewhere(place: Place, connect: Connect) -> None:
    with gate(connect) as (locked, open_gate), place.work() as other:
        other.wait_ready()
        job = place.enqueue("wait for the gate", gate=locked)
        wait_until(lambda: place.starts(job))
        with place.work("--burst") as work:
            work.wait_ready()
            place.client.queues.pause("mail")
            stuck = place.enqueue(queue="mail")
            later = place.enqueue()
            wait_until(lambda: place.completed(later))
            assert work.process.poll() is None
            open_gate()
            assert work.process.wait(SOON) == 0
            assert place.job(stuck).state is JobState.AVAILABLE, "its queue is paused"


# --- reload


def test_reload_replaces_the_processes_when_a_file_changes(place: Place) -> None:
    place.write("VERSION = 1\n", "helper.py")
    place.write(f"import helper\nprint('version', helper.VERSION, flush=True)\n{APP}")
    with place.work("--reload", "--processes", "2") as work:
        before = work.wait_ready(2)
        assert work.told("version 1", times=2)
        touch(place.directory / "helper.py", "VERSION = 2\n")
        work.wait_for("helper.py changed: replacing 2 processes")
        work.wait_ready(4)
        assert work.told("version 2", times=2)
        wait_until(lambda: not any(map(is_alive, before)))
        job = place.enqueue()
        wait_until(lambda: place.completed(job))
        assert work.stop() == 0


def test_reload_waits_for_broken_code_to_be_mended(place: Place) -> None:
    with place.work("--reload") as work:
        work.wait_ready()
        touch(place.directory / "app.py", "def broken(:\n")
        work.wait_for("importing app raised SyntaxError: invalid syntax; waiting for a change of the code")
        touch(place.directory / "app.py", APP)
        work.wait_ready(2)


def test_reload_begins_with_broken_code(place: Place) -> None:
    place.write("import none_such\n")
    with place.work("--reload") as work:
        work.wait_for("No module named 'none_such'; waiting for a change of the code")
        touch(place.directory / "app.py", APP)
        work.wait_ready()


def touch(file: Path, text: str) -> None:
    """Write the file, as one that is newer than before, however coarse the clock of the file system is."""
    file.write_text(text)
    os.utime(file, (time.time() + 2, time.time() + 2))


# --- the rest


def test_auto_is_one_process_for_each_cpu(place: Place) -> None:
    with place.work("--processes", "auto", "--burst", before=["taskset", "--cpu-list", "0"]) as work:
        assert work.process.wait(SOON) == 0
        assert work.told("starting 1 process")


def test_it_ends_when_a_handler_closes_the_client(place: Place) -> None:
    place.write(APP.replace('case "leak":', 'case "close":\n            client.close()\n        case "leak":'))
    with place.work() as work:
        (first,) = work.wait_ready()
        place.enqueue("close")
        work.wait_for(f"process 1 (pid {first}) stops: its worker pool has stopped by itself")
        work.wait_for(f"process 1 (pid {first}) exited with code 1; another one starts in")
        work.signal(signal.SIGTERM)
        work.process.wait(SOON)
