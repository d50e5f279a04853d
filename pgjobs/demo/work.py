"""The work, done twice: by a plain loop, and by two worker processes of which one is killed half way."""

from __future__ import annotations

import os
import random
import sysconfig
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from psycopg import Connection

from pgjobs.demo import app, queries
from pgjobs.demo.terminal import Progress, say
from pgjobs.demo.worker_process import DemoFailed, WorkerProcess

_FEWEST_FILES = 100  # on a very slow machine the loop takes longer than `seconds`
_ENOUGH_FILES = 1200  # some systems install the standard library without its tests
_STALLED = 60.0  # seconds without any progress


def plain_loop(dsn: str, seconds: float) -> tuple[list[str], float]:
    """Index files for so many seconds; returns which files these were, and how long it took."""
    paths = find_files()
    for path in paths:
        Path(path).read_bytes()  # else the loop, which goes first, would be the only one to wait for the disk
    began = time.monotonic()
    with _connect_as_a_worker(dsn) as tx, warnings.catch_warnings(), Progress("plain loop") as progress:
        warnings.simplefilter("ignore")  # about the source files that are parsed
        for done, path in enumerate(paths, 1):
            app.write_index(tx, path)
            tx.commit()
            took = time.monotonic() - began
            progress.show(took / seconds, f"{done:,} files in {took:.1f} s")
            if took >= seconds and done >= _FEWEST_FILES:
                break
        tx.execute(queries.SET_LOOP_ASIDE)
        tx.execute(app.TABLES)
    return paths[:done], took


def _connect_as_a_worker(dsn: str) -> Connection[Any]:
    """Statements are prepared, except behind a pooler, where they would collide."""
    conn = psycopg.connect(dsn, prepare_threshold=None)
    if one_row(conn, "SELECT pg_backend_pid()") == (conn.info.backend_pid,):
        conn.prepare_threshold = 5
    return conn


def find_files() -> list[str]:
    """The source files of the standard library, shuffled, and always in the same order."""
    found = _sources("stdlib")
    if len(found) < _ENOUGH_FILES:
        found += _sources("purelib")  # the installed packages
    if not found:
        raise DemoFailed(f"there are no Python source files in {sysconfig.get_path('stdlib')}")
    random.Random(0).shuffle(found)
    return found


def _sources(place: str) -> list[str]:
    root = Path(sysconfig.get_path(place))
    apart = ("site-packages", "dist-packages")
    paths = (path for path in sorted(root.rglob("*.py")) if path.relative_to(root).parts[0] not in apart)
    return [str(path) for path in paths if path.is_file() and os.access(path, os.R_OK)]


class Row(NamedTuple):
    """The row of a job at some moment, and how many rows of the index its handler has committed."""

    state: str
    attempt: int
    workers: str
    in_index: int


@dataclass
class Kill:
    """The end of a worker in the middle of a job, and the row of that job before it, at its rescue, and at the end."""

    job_id: int
    path: str
    half_way: datetime  # by the clock of the database, as is the next
    killed_at: datetime
    rows: list[tuple[str, Row]]


def work_off(dsn: str, workers: tuple[WorkerProcess, WorkerProcess], total: int) -> Kill:
    """Watch until all jobs are finished; half way, kill the first worker."""
    victim, other = workers
    with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as conn:
        watch = _Watch(conn, workers, total)
        with Progress("two workers") as progress:
            watch.until(lambda done: done >= total // 2, progress)
        kill = _kill_inside_a_handler(conn, victim, other)
        began = time.monotonic()
        say(
            f"3. Half way: kill -9 of {victim.name}, in the middle of job {kill.job_id} ({Path(kill.path).name}). Its "
            "handler, the function that does the job, had written rows and not committed them: Postgres rolls them "
            f"back, and releases the lock on the row of the job. {other.name} goes on alone. In a few seconds it will "
            "find that row without a lock, and run the job again."
        )
        with Progress("one worker") as progress:
            watch.until(lambda done: one_row(conn, queries.STATE_OF_JOB, [kill.job_id]) != ("running",), progress)
            kill.rows.append((f"{time.monotonic() - began:.1f} s after the kill", _row_of(conn, kill.job_id)))
            watch.until(lambda done: done == total, progress)
            kill.rows.append(("at the end", _row_of(conn, kill.job_id)))
        return kill


class _Watch:
    def __init__(self, conn: Connection[Any], workers: tuple[WorkerProcess, ...], total: int) -> None:
        self._conn = conn
        self._workers = workers
        self._total = total

    def until(self, condition: Callable[[int], bool], progress: Progress) -> None:
        """Show the progress until the condition holds, which is given the number of finished jobs."""
        before, since = -1, time.monotonic()
        while True:
            done = one_row(self._conn, queries.FINISHED)[0]
            progress.show(done / self._total, f"{done:,} of {self._total:,} jobs")
            if condition(done):
                return
            for worker in self._workers:
                worker.check()
            if done != before:
                before, since = done, time.monotonic()
            elif time.monotonic() - since > _STALLED:
                raise DemoFailed(f"no job was finished for {_STALLED:g} s; {done} of {self._total} are finished")
            time.sleep(0.1)  # more often would take time from the workers


def _kill_inside_a_handler(conn: Connection[Any], victim: WorkerProcess, other: WorkerProcess) -> Kill:
    """Freeze both processes until the server says that both have written and not committed, then kill the victim."""
    half_way = one_row(conn, queries.NOW)[0]
    for _ in range(200):
        victim.freeze()
        other.freeze()
        time.sleep(0.1)  # until the server has done what the processes have sent before
        inside = one_row(conn, queries.INSIDE_HANDLERS)[0]
        job = conn.execute(queries.RUNNING_JOB, [victim.name]).fetchone()
        if inside == 2 and job:
            job_id, path, now = job
            row = _row_of(conn, job_id)
            victim.kill()
            other.thaw()
            return Kill(job_id, path, half_way, now, [("before the kill", row)])
        victim.thaw()
        other.thaw()
        time.sleep(random.uniform(0.0, 0.01))
    raise DemoFailed(f"{victim.name} was never seen inside a handler, so it could not be killed there")


def _row_of(conn: Connection[Any], job_id: int) -> Row:
    return Row(*one_row(conn, queries.ROW_OF_JOB, [job_id]))


def one_row(conn: Connection[Any], query: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> tuple[Any, ...]:
    """The only row of a query."""
    row: tuple[Any, ...] | None = conn.execute(query, parameters).fetchone()
    assert row is not None, query
    return row
