"""The rows of the progress: how many are written at a time and how often, which are read, and which are removed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql as composing

from pgjobs import Client, JobFilter
from pgjobs.progress import report
from pgjobs.workers.progress_writer import ProgressWriter
from pgjobs.workers.queries import AttemptKey, WorkerQueries
from tests.conftest import Connect

Run = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def run(client: Client, connect: Connect) -> Run:
    """Runs SQL that commits at once; in it `pgjobs.` stands for the schema of the test."""
    conn = connect(autocommit=True)

    def run(query: str, *values: object) -> list[tuple[Any, ...]]:
        cursor = conn.execute(query.replace("pgjobs.", f'"{client.schema}".').encode(), values or None)
        return cursor.fetchall() if cursor.description else []

    return run


class Counted(WorkerQueries):
    """Counts the statements, and the rows of each."""

    def __init__(self, schema: str) -> None:
        super().__init__(schema)
        self.calls: list[tuple[int, int]] = []

    def write_progress(self, conn: Any, reports: Any, ended: Sequence[AttemptKey]) -> None:
        super().write_progress(conn, reports, ended)
        self.calls.append((len(reports), len(ended)))


class Process:
    """A worker process: the attempts that it runs, its clock, and what it writes."""

    def __init__(self, client: Client, conn: psycopg.Connection[Any]) -> None:
        self.conn = conn
        self.queries = Counted(client.schema)
        self.time = 0.0
        self.attempts: dict[int, Any] = {}
        self.writer = ProgressWriter(self.queries, lambda: list(self.attempts.values()), lambda: self.time)

    def start(self, id: int, token: UUID | None = None) -> None:
        self.attempts[id] = SimpleNamespace(job=SimpleNamespace(id=id, token=token or uuid4()), progress=None)

    def says(self, id: int, done: float) -> None:
        self.attempts[id].progress = report(done, None, None)

    def written(self, after: float = 1.0) -> list[tuple[int, int]]:
        """What each statement of a beat so many seconds later has written and removed."""
        self.time += after
        self.queries.calls.clear()
        self.writer.write(self.conn)
        return list(self.queries.calls)


@pytest.fixture
def process(client: Client, connect: Connect) -> Process:
    return Process(client, connect(autocommit=True))


def test_only_what_has_changed_is_written_and_once_a_second(process: Process, run: Run) -> None:
    for id in (1, 2, 3):
        process.start(id)
    assert process.written() == [], "no handler has said anything"
    process.says(1, 10)
    process.says(2, 20)
    assert process.written() == [(2, 0)]
    process.says(1, 11)
    assert process.written(after=0.9) == []
    process.says(1, 12)
    assert process.written(after=0.1) == [(1, 0)]
    process.says(1, 12)
    assert process.written() == [], "it has said the same again"
    assert run("SELECT job_id, done FROM pgjobs.job_progress ORDER BY 1") == [(1, 12), (2, 20)]
    del process.attempts[1]
    process.says(3, 30)
    assert process.written() == [(1, 1)], "in one statement"
    assert run("SELECT job_id, done FROM pgjobs.job_progress ORDER BY 1") == [(2, 20), (3, 30)]


def test_a_thousand_rows_are_written_at_a_time_and_every_attempt_has_its_turn(process: Process, run: Run) -> None:
    for id in range(2500):
        process.start(id)
    turns = []
    for second in range(5):
        for id in range(2500):
            process.says(id, second)
        turns.append(process.written())
    assert turns == [[(1000, 0)]] * 5
    assert run("SELECT done, count(*) FROM pgjobs.job_progress GROUP BY 1 ORDER BY 1") == [
        *((2, 500), (3, 1000), (4, 1000))
    ], "the oldest were written first"
    process.attempts.clear()
    assert [process.written() for _ in range(4)] == [[(0, 1000)], [(0, 1000)], [(0, 500)], []]
    assert run("SELECT count(*) FROM pgjobs.job_progress") == [(0,)]


def test_after_a_failure_it_is_written_a_second_later(process: Process, run: Run) -> None:
    process.start(1)
    process.says(1, 1)
    run("ALTER TABLE pgjobs.job_progress RENAME TO hidden")
    with pytest.raises(psycopg.errors.UndefinedTable):
        process.written()
    process.conn.rollback()
    run("ALTER TABLE pgjobs.hidden RENAME TO job_progress")
    assert process.written(after=0.5) == []
    assert process.written(after=0.5) == [(1, 0)]


def test_all_rows_are_removed_at_the_end(process: Process, run: Run) -> None:
    for id in range(1500):
        process.start(id)
        process.says(id, 1)
    process.written()
    process.written()
    run("INSERT INTO pgjobs.job_progress (job_id, token, done) VALUES (1, gen_random_uuid(), 7)")
    process.writer.remove_all(process.conn)
    assert run("SELECT job_id, done FROM pgjobs.job_progress") == [(1, 7)], "that of another process"


def test_a_thousand_running_jobs_are_listed_with_theirs(client: Client, process: Process, run: Run) -> None:
    run("INSERT INTO pgjobs.job (kind, state, token) SELECT 'thing', 'running', gen_random_uuid() "
        "FROM generate_series(1, 1000)")  # fmt: skip
    for id, token in run("SELECT id, token FROM pgjobs.job"):
        process.start(id, token)
        process.says(id, id)
    assert process.written() == [(1000, 0)]
    listed = client.list_jobs(JobFilter(states=["running"]), limit=1000).jobs
    assert [job.progress and job.progress.done for job in listed] == [job.id for job in listed]


@pytest.mark.parametrize(
    "change", ["state = 'retryable'", "token = gen_random_uuid()", "token = NULL", "state = 'completed'"]
)
def test_a_row_belongs_to_the_attempt_that_runs_now(client: Client, run: Run, change: str) -> None:
    ((id,),) = run("INSERT INTO pgjobs.job (kind, state, token) VALUES ('thing', 'running', gen_random_uuid()) "
                   "RETURNING id")  # fmt: skip
    run("INSERT INTO pgjobs.job_progress (job_id, token, done) SELECT id, token, 1 FROM pgjobs.job")

    def found() -> list[float | None]:
        jobs = [client.get(id), *client.list_jobs().jobs, *client.list_jobs(JobFilter(ids=[id])).jobs]
        return [job.progress.done if job and job.progress else None for job in jobs]

    assert found() == [1, 1, 1]
    run(f"UPDATE pgjobs.job SET {change}")
    assert found() == [None, None, None]


def test_rows_that_are_left_over_are_pruned_and_locked_ones_left_for_later(
    client: Client, connect: Connect, run: Run
) -> None:
    run("INSERT INTO pgjobs.job (kind, state, token) VALUES ('thing', 'running', gen_random_uuid())")
    run("INSERT INTO pgjobs.job_progress (job_id, token, done) SELECT id, token, 1 FROM pgjobs.job")
    run("INSERT INTO pgjobs.job_progress (job_id, token, done) SELECT n, gen_random_uuid(), 2 "
        "FROM generate_series(1, 25) AS n")  # fmt: skip
    holder, pruner, queries = connect(), connect(autocommit=True), WorkerQueries(client.schema)
    table = composing.Identifier(client.schema, "job_progress")
    holder.execute(composing.SQL("SELECT FROM {} WHERE job_id = 25 FOR UPDATE").format(table))
    assert [queries.prune_progress(pruner, 10) for _ in range(3)] == [10, 10, 4]
    holder.rollback()
    assert queries.prune_progress(pruner, 10) == 1
    assert run("SELECT done FROM pgjobs.job_progress") == [(1,)]


@pytest.mark.parametrize("setting", ["DateStyle = 'SQL, DMY'", "TimeZone = 'Asia/Kathmandu'", "extra_float_digits = 0"])
def test_no_setting_of_the_session_changes_what_is_read(
    client: Client, connect: Connect, run: Run, setting: str
) -> None:
    run("INSERT INTO pgjobs.job (kind, state, token) VALUES ('thing', 'running', gen_random_uuid())")
    run("INSERT INTO pgjobs.job_progress (job_id, token, done, total, note) "
        "SELECT id, token, 0.1, 1e300, 'é' FROM pgjobs.job")  # fmt: skip
    (job,) = client.list_jobs().jobs
    conn = connect()
    conn.execute(f"SET {setting}".encode())
    found = client.get(job.id, conn)
    assert found is not None
    assert found.progress == job.progress
    assert job.progress is not None
    assert (job.progress.done, job.progress.total, job.progress.note) == (0.1, 1e300, "é")
