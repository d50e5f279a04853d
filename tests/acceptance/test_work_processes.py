"""`pgjobs work`: processes that die, leak, hang or have lived long enough are replaced, and the others go on."""

from __future__ import annotations

import os
import re
import signal

import pytest

from pgjobs import JobState
from tests.acceptance.work_command import APP, SOON, Place, gate, is_alive
from tests.conftest import Connect
from tests.waiting import wait_until


def test_a_killed_process_is_replaced_and_the_other_goes_on(place: Place) -> None:
    with place.work("--processes", "2") as work:
        first, second = work.wait_ready(2)
        os.kill(first, signal.SIGKILL)
        work.wait_for(f"process 1 (pid {first}) was killed by SIGKILL; another one starts in 0.5 s")
        job = place.enqueue()
        wait_until(lambda: place.completed(job))
        third, still_second = work.wait_ready(3)
        assert still_second == second
        assert third not in (first, second)
        assert work.stop() == 0
    assert len(work.lines) == 7, "starting, three are ready, one was killed, stopping, stopped"


def test_the_job_of_a_killed_process_is_run_by_another(place: Place) -> None:
    with place.work("--processes", "2") as work:
        work.wait_ready(2)
        job = place.enqueue("compute")
        wait_until(lambda: place.starts(job))
        ((_, pid),) = place.starts(job)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: len(place.starts(job)) == 2, SOON)
        assert place.starts(job)[1][1] != pid


def test_a_process_that_leaks_is_replaced_and_no_attempt_is_lost(place: Place) -> None:
    with place.work("--max-rss", "150M") as work:
        (first,) = work.wait_ready()
        slow = place.enqueue("wait for the gate", gate=4711)
        jobs = [place.enqueue("leak", mebibytes=30) for _ in range(12)]
        wait_until(lambda: place.completed(slow, *jobs), 2 * SOON)
        work.wait_ready(2)
        assert f"process 1 (pid {first}) is replaced: it uses " in work.log
        assert "more than --max-rss 150M" in work.log
        assert "another one starts" not in work.log, "no process has died"
    for job in (slow, *jobs):
        assert (place.job(job).attempt, place.job(job).errors) == (1, ())
        assert place.effects(job) == [1]


def test_a_process_that_retires_ends_its_jobs_while_the_next_one_works(place: Place, connect: Connect) -> None:
    with gate(connect) as (locked, open_gate), place.work("--max-jobs", "3", "--stop-timeout", "1s") as work:
        (first,) = work.wait_ready()
        slow = place.enqueue("wait for the gate", gate=locked)
        wait_until(lambda: place.starts(slow))
        jobs = [place.enqueue() for _ in range(3)]
        work.wait_for("is replaced: it has run 3 jobs (--max-jobs)")
        work.wait_ready(2)
        later = place.enqueue()
        wait_until(lambda: place.completed(later, *jobs), SOON)
        assert place.starts(later)[0][1] != first
        assert is_alive(first), "the stop timeout is not for a process that retires"
        open_gate()
        wait_until(lambda: place.completed(slow))
        wait_until(lambda: not is_alive(first))
    assert place.starts(slow) == [(1, first)]


def test_a_process_is_replaced_when_it_is_old(place: Place) -> None:
    with place.work("--max-age", "2s") as work:
        (first,) = work.wait_ready()
        work.wait_for(f"process 1 (pid {first}) is replaced: it has lived for ", "(--max-age)")
        work.wait_ready(2)
        wait_until(lambda: not is_alive(first))


# The process that finds no file of the name `loaded` hangs, in a function of another module.
HANGS = """
import os, time
def wait_for_the_network():
    time.sleep(600)
try:
    os.open("loaded", os.O_CREAT | os.O_EXCL)
except FileExistsError:
    pass
else:
    wait_for_the_network()
"""


def test_a_process_that_hangs_at_import_is_given_up_and_the_others_go_on(place: Place) -> None:
    place.write(HANGS, "hangs.py")
    place.write("import hangs\n" + APP)
    with place.work("--processes", "2", "--start-timeout", "10s") as work:
        work.wait_ready()
        job = place.enqueue()
        wait_until(lambda: place.completed(job))
        work.wait_for("was killed: it did not load app:pool within 10 s: it hangs in ")
        assert "hangs.py, line 4, in wait_for_the_network" in work.log
        assert len(work.wait_ready(2)) == 2, "its place is taken by another"
        assert work.stop() == 0


def test_if_every_process_hangs_at_import_the_command_fails(place: Place) -> None:
    place.write("import time\ntime.sleep(600)\n")
    with place.work("--processes", "2", "--start-timeout", "2s") as work:
        assert work.process.wait(SOON) == 1
        assert work.told("it did not load app:pool within 2 s", "given up: no process has ever worked")
        assert "Traceback" not in work.log


def test_if_every_process_dies_before_it_is_ready_the_command_fails(place: Place) -> None:
    place.write("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    with place.work() as work:
        assert work.process.wait(2 * SOON) == 1
        assert work.log.count("was killed by SIGSEGV") == 5
        assert re.findall(r"another one starts in (\S+) s", work.log) == ["0.5", "1", "2", "4"]


def test_if_the_parent_is_killed_the_processes_end_gently(place: Place, connect: Connect) -> None:
    with gate(connect) as (locked, open_gate), place.work("--processes", "2", "--stop-timeout", "20s") as work:
        pids = work.wait_ready(2)
        jobs = [place.enqueue("wait for the gate", gate=locked) for _ in range(2)]
        waiting = [place.enqueue("wait for the gate", gate=locked) for _ in range(20)]
        wait_until(lambda: all(map(place.starts, jobs)))
        work.signal(signal.SIGKILL)
        work.process.wait()
        stopping = "SELECT count(*) FROM {schema}.job WHERE state = 'running'"
        wait_until(lambda: place.query(stopping) == [(4,)])
        wait_until(lambda: work.told("the parent process is gone, so this process stops", times=2))
        open_gate()
        wait_until(lambda: not any(map(is_alive, pids)), SOON)
    assert place.completed(*jobs)
    done = [job for job in (*jobs, *waiting) if place.completed(job)]
    assert all(place.effects(job) == [1] for job in done)
    assert not place.query("SELECT id FROM {schema}.job WHERE state = 'running' OR errors <> '[]'")
    assert {place.job(job).attempt for job in waiting if job not in done} <= {0}


def test_if_the_parent_is_killed_while_a_process_imports_the_process_ends(place: Place) -> None:
    place.write("import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(600)\n")
    with place.work() as work:
        wait_until(lambda: (place.directory / "pid").exists() and (place.directory / "pid").read_text(), SOON)
        pid = int((place.directory / "pid").read_text())
        work.signal(signal.SIGKILL)
        wait_until(lambda: not is_alive(pid))


def test_a_process_that_is_sent_a_signal_ends_its_job_and_is_replaced(place: Place, connect: Connect) -> None:
    with gate(connect) as (locked, open_gate), place.work() as work:
        (first,) = work.wait_ready()
        job = place.enqueue("wait for the gate", gate=locked)
        wait_until(lambda: place.starts(job))
        os.kill(first, signal.SIGTERM)
        os.kill(first, signal.SIGINT)
        work.wait_for(f"process 1 (pid {first}) stops: it received SIG")
        open_gate()
        wait_until(lambda: place.completed(job))
        work.wait_ready(2)
    assert re.search(rf"process 1 \(pid {first}\) exited with code 0; another one starts in", work.log)
    assert place.starts(job) == [(1, first)]
    assert place.job(job).state is JobState.COMPLETED


def test_max_rss_that_is_too_little_for_a_pool_without_jobs_is_not_tried_again_at_once(place: Place) -> None:
    """One process after the other was replaced as soon as it was ready, for ever."""
    grows = "def larger():\n    start()\n    leaked.append(bytearray(os.urandom(1 << 20) * 100))\n"
    place.write(f"{APP}\nstart = pool.start\n{grows}pool.start = larger\n")
    with place.work("--max-rss", "120M") as work:
        work.wait_for("more than --max-rss 120M, before it has run a job", times=2)
        work.wait_for(
            "exited with code 1; another one starts in 0.5 s", "exited with code 1; another one starts in 1 s"
        )
        assert "is replaced" not in work.log
        work.signal(signal.SIGTERM)
        work.process.wait(SOON)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_max_rss_that_is_too_little_is_refused(place: Place, processes: str) -> None:
    with place.work("--max-rss", "10M", "--processes", processes) as work:
        assert work.process.wait(SOON) == 1
        assert re.search(
            r"failed: --max-rss 10M is too little: app:pool needs \d+ MiB before it has run a job", work.log
        )
