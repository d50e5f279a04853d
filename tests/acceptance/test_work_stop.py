"""`pgjobs work` is stopped: by one signal, by several, by a service manager's, as the first process of a container."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess

import pytest

from pgjobs import Job, JobState
from tests.acceptance.work_command import APP, ROOT, SOON, Place, children_of, gate, is_alive
from tests.conftest import Connect
from tests.waiting import wait_until

GIVEN_BACK = (JobState.AVAILABLE, JobState.SCHEDULED, JobState.RETRYABLE)


def assert_given_back(place: Place, *jobs: Job[None]) -> None:
    """No attempt of these is counted, and nothing of it is left."""
    for job in jobs:
        now = place.job(job)
        assert (now.state in GIVEN_BACK, now.attempt, now.errors) == (True, 0, ())
        assert place.effects(job) == []


def test_one_signal_stops_two_processes_in_time_and_no_attempt_is_lost(place: Place) -> None:
    """As by Kubernetes: a SIGTERM, and half a minute later a SIGKILL, which must find nothing."""
    with place.work("--processes", "2", "--stop-timeout", "2s") as work:
        pids = work.wait_ready(2)
        jobs = [place.enqueue("compute") for _ in range(4)]
        waiting = [place.enqueue("compute") for _ in range(3)]
        wait_until(lambda: all(map(place.starts, jobs)))
        work.signal(signal.SIGTERM)
        assert work.process.wait(15) == 0
        assert work.told("SIGTERM: stopping 2 processes, which end their running jobs within 2 s", "stopped")
        assert not any(map(is_alive, pids))
        assert "is killed" not in work.log
    assert_given_back(place, *jobs, *waiting)
    assert [len(place.starts(job)) for job in jobs] == [1] * 4
    assert [len(place.starts(job)) for job in waiting] == [0] * 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_the_first_signal_lets_jobs_end(place: Place, connect: Connect, number: signal.Signals) -> None:
    with gate(connect) as (locked, open_gate), place.work() as work:
        work.wait_ready()
        # one on each thread: a thread in the middle of a claim may still take a job that comes after the signal
        jobs = [place.enqueue("wait for the gate", gate=locked) for _ in range(2)]
        wait_until(lambda: all(map(place.starts, jobs)))
        work.signal(number)
        work.wait_for(f"{number.name}: stopping 1 process, which ends its running jobs within 25 s")
        work.wait_for("pgjobs: the stop waits up to 25 s")  # the process has heard of it, too
        waiting = place.enqueue()
        open_gate()
        assert work.process.wait(SOON) == 0
    assert place.completed(*jobs)
    assert place.job(waiting).state is JobState.AVAILABLE


def test_a_signal_to_all_processes_at_once_is_one_signal(place: Place, connect: Connect) -> None:
    """As systemd stops a service: the parent then tells those to stop that were told already."""
    with gate(connect) as (locked, open_gate), place.work("--processes", "2") as work:
        pids = work.wait_ready(2)
        jobs = [place.enqueue("wait for the gate", gate=locked) for _ in range(4)]
        wait_until(lambda: all(map(place.starts, jobs)))
        for pid in (*pids, work.process.pid, *pids):
            os.kill(pid, signal.SIGTERM)
        work.wait_for("SIGTERM: stopping 2 processes")
        open_gate()
        assert work.process.wait(SOON) == 0
        assert work.log.count("is ready") == 2, "none was replaced"
    assert place.completed(*jobs)
    assert [place.effects(job) for job in jobs] == [[1]] * 4


def test_ctrl_c_is_one_signal(place: Place, connect: Connect) -> None:
    """A terminal sends it to all processes of the group."""
    with gate(connect) as (locked, open_gate), place.work() as work:
        work.wait_ready()
        job = place.enqueue("wait for the gate", gate=locked)
        wait_until(lambda: place.starts(job))
        os.killpg(work.process.pid, signal.SIGINT)
        work.wait_for("SIGINT: stopping 1 process")
        open_gate()
        assert work.process.wait(SOON) == 0
    assert place.completed(job)


def test_the_second_signal_cuts_jobs_off_and_gives_their_attempts_back(place: Place) -> None:
    with place.work("--processes", "2") as work:
        work.wait_ready(2)
        jobs = [place.enqueue("compute") for _ in range(4)]
        wait_until(lambda: all(map(place.starts, jobs)))
        work.signal(signal.SIGTERM)
        work.wait_for("SIGTERM: stopping 2 processes")
        work.signal(signal.SIGINT)
        assert work.process.wait(SOON) == 128 + signal.SIGINT
        assert work.told("a second signal, SIGINT: running handlers are cut off")
    assert_given_back(place, *jobs)


def test_the_third_signal_kills(place: Place, connect: Connect) -> None:
    with gate(connect) as (locked, _), place.work() as work:
        (pid,) = work.wait_ready()
        job = place.enqueue("wait for the gate", gate=locked)
        wait_until(lambda: place.starts(job))
        os.kill(pid, signal.SIGSTOP)  # so that the second signal does nothing
        for number in (signal.SIGTERM, signal.SIGINT):
            work.signal(number)
            work.wait_for(number.name)
        work.signal(signal.SIGQUIT)
        assert work.process.wait(SOON) == 128 + signal.SIGQUIT
        assert not is_alive(pid)
    assert place.job(job).attempt == 1, "a rescue will find it"


def test_a_process_that_does_not_stop_in_time_is_killed(place: Place) -> None:
    with place.work("--stop-timeout", "500ms") as work:
        (pid,) = work.wait_ready()
        os.kill(pid, signal.SIGSTOP)
        work.signal(signal.SIGTERM)
        assert work.process.wait(SOON) == 128 + signal.SIGKILL
        assert work.told(f"process 1 (pid {pid}) is killed: it did not stop in time")


def test_a_process_that_is_just_starting_has_its_time_to_stop(place: Place) -> None:
    """Its jobs run already, while the parent does not know yet how long they may; it was killed after 4 s."""
    slow = "start = pool.start\ndef slow():\n    start()\n    while not os.path.exists('go on'): time.sleep(0.01)\n"
    place.write(f"{APP}\n{slow}\npool.start = slow\n")
    jobs = [place.enqueue("compute") for _ in range(2)]
    with place.work("--stop-timeout", "6s") as work:
        wait_until(lambda: all(map(place.starts, jobs)), SOON)
        assert "is ready" not in work.log
        work.signal(signal.SIGTERM)
        work.wait_for("SIGTERM: stopping")
        place.write("", "go on")
        assert work.process.wait(SOON) == 0
        assert "is killed" not in work.log
    assert_given_back(place, *jobs)


def test_a_process_that_retires_is_stopped_too(place: Place) -> None:
    with place.work("--max-jobs", "1", "--stop-timeout", "1s") as work:
        work.wait_ready()
        slow = place.enqueue("compute")
        wait_until(lambda: place.starts(slow))
        place.enqueue()
        work.wait_ready(2)
        work.signal(signal.SIGTERM)
        assert work.process.wait(SOON) == 0
        assert "is killed" not in work.log
    assert_given_back(place, slow)


def test_a_signal_while_the_application_is_imported_ends_it_at_once(place: Place) -> None:
    place.write("import time\nopen('imports', 'w').close()\ntime.sleep(600)\n")
    with place.work() as work:
        wait_until((place.directory / "imports").exists, SOON)
        assert work.stop() == 0
        assert work.told("stopped")


def test_a_handler_that_resists_is_left_behind_and_told_by_the_exit_code(place: Place) -> None:
    with place.work("--processes", "2", "--stop-timeout", "1s") as work:
        work.wait_ready(2)
        job = place.enqueue("resist")
        wait_until(lambda: place.starts(job))
        work.signal(signal.SIGTERM)
        assert work.process.wait(15) == 1
        assert "is killed" not in work.log
        assert len(re.findall(r"WARNING .* process [12] \(pid \d+\) exited with code 1$", work.log, re.MULTILINE)) == 1
    assert_given_back(place, job)


def test_a_thread_of_the_application_does_not_keep_a_process_from_ending(place: Place) -> None:
    place.write(f"{APP}\nthreading.Thread(target=time.sleep, args=(600,), name='endless').start()\n")
    with place.work() as work:
        work.wait_ready()
        assert work.stop() == 0
        assert work.told("exiting although code of the application still runs: endless", "stopped")
        assert "is killed" not in work.log


def test_a_process_that_has_stopped_and_does_not_end_is_killed_as_one_that_has_no_jobs(place: Place) -> None:
    """What the application does at its end keeps the interpreter to itself here. That is no failure of the stop."""
    place.write(f"{APP}\nimport atexit, re\natexit.register(re.match, '(a+)+$', 'a' * 60 + 'b')\n")
    with place.work("--stop-timeout", "20s") as work:
        (pid,) = work.wait_ready()
        work.signal(signal.SIGTERM)
        assert work.process.wait(15) == 0
        assert work.told(
            f"WARNING [{work.process.pid}] pgjobs.processes: process 1 (pid {pid}) is killed: it does not exit"
        )
        assert " ERROR " not in work.log


def test_what_is_registered_with_atexit_is_called(place: Place) -> None:
    """By the application, and earlier by a tracer such as `opentelemetry-instrument`: it sends its last data there."""
    place.write(f"{APP}\nimport atexit\natexit.register(open, 'ended', 'w')\natexit.register(print, 'the end')\n")
    place.write("import atexit\natexit.register(print, 'the end of the tracer')\n", "sitecustomize.py")
    with place.work(PYTHONPATH=f"{place.directory}{os.pathsep}{ROOT}") as work:
        work.wait_ready()
        assert work.stop() == 0
        assert work.told("the end\n")
        assert work.told("the end of the tracer", times=2)  # of the parent too
    assert (place.directory / "ended").exists()


def test_a_process_that_cannot_even_load_in_time_ends_without_an_error(place: Place) -> None:
    """As on a very busy machine; it has no jobs that it could lose."""
    place.write("import re\nopen('imports', 'w').close()\nre.match('(a+)+$', 'a' * 60 + 'b')\n")
    with place.work() as work:
        wait_until((place.directory / "imports").exists, SOON)
        assert work.stop() == 0
        assert work.told("is killed: it does not exit; it runs no jobs", "stopped")


def can_unshare() -> bool:
    program = shutil.which("unshare")
    return program is not None and subprocess.run([program, "--pid", "--fork", "true"], check=False).returncode == 0


@pytest.mark.skipif(not can_unshare(), reason="no process id namespaces here")
def test_as_process_1_it_stops_by_one_signal_and_reaps_orphans(place: Place) -> None:
    """As in a container without an init: process 1 gets no default actions of signals, and inherits all orphans."""
    options = ("--processes", "2", "--stop-timeout", "2s")
    with place.work(*options, before=["unshare", "--pid", "--fork", "--kill-child"]) as work:
        work.wait_for(" is ready after ", times=2)
        assert work.told("(pid of the parent: 1)")
        (first,) = children_of(work.process.pid)
        orphans = [place.enqueue("leave an orphan") for _ in range(3)]
        wait_until(lambda: place.completed(*orphans))
        wait_until(lambda: len(children_of(first)) == 2)
        jobs = [place.enqueue("compute") for _ in range(4)]
        wait_until(lambda: all(map(place.starts, jobs)))
        os.kill(first, signal.SIGTERM)
        assert work.process.wait(15) == 0
    assert_given_back(place, *jobs)
