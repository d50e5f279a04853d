"""A connection that breaks around the COMMIT: the job is completed with its effect, or neither, and nothing doubles."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pgjobs import Client, EventKind, Handler, Hooks, Job, JobState, WorkerPool, constant
from pgjobs.db.connection import shut_down
from pgjobs.db.cursors import AnyConnection
from pgjobs.execution.queries import ExecutionQueries
from pgjobs.execution.transport import Transport
from pgjobs.hooks import HookCalls


class Line:
    """Breaks the connection once, before the COMMIT reaches the server or after that has answered it."""

    def __init__(self, when: str) -> None:
        self.when = when
        self.broken = 0

    def across(self, commit: Callable[..., Any]) -> Callable[..., Any]:
        """This method that commits, with the line between it and the server."""

        def call(owner: object, transport: Transport, *args: Any, **kwargs: Any) -> Any:
            if self.broken:
                return commit(owner, transport, *args, **kwargs)
            self.broken += 1
            if self.when == "before":
                shut_down(transport._conn)
            answer = commit(owner, transport, *args, **kwargs)
            assert self.when == "after", "what was sent on a dead line was answered"
            shut_down(transport._conn)
            raise psycopg.OperationalError(f"the line is dead, and the answer lost: {answer!r}")

        return call


@pytest.fixture
def effects(client: Client) -> sql.Composed:
    table = sql.SQL("{}.effect").format(sql.Identifier(client.schema))
    with client.pool.connection() as conn:
        conn.execute(sql.SQL("CREATE TABLE {} (job bigint, attempt integer)").format(table))
    return table


@pytest.mark.conformance(327)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("error", [None, ValueError("failed")], ids=["succeeds", "fails"])
def test_a_line_that_dies_around_the_commit_neither_loses_nor_doubles_an_effect(
    *, client: Client, effects: sql.Composed, monkeypatch: pytest.MonkeyPatch, when: str, error: Exception | None
) -> None:
    line = Line(when)
    monkeypatch.setattr(ExecutionQueries, "complete", line.across(ExecutionQueries.complete))
    monkeypatch.setattr(ExecutionQueries, "fail", line.across(ExecutionQueries.fail))
    starts: list[int] = []

    def handler(tx: AnyConnection, job: Job[Any]) -> None:
        starts.append(job.attempt)
        tx.execute(sql.SQL("INSERT INTO {} VALUES (%s, %s)").format(effects), [job.id, job.attempt])
        if error is not None and job.attempt == 1:
            raise error

    job: Job[Any] = client.enqueue(None, {}, kind="any")
    pool = WorkerPool(client, {"any": handler}, backoff=constant(timedelta(0)))
    assert pool.work_one()
    runs_again = error is not None or when == "before"
    assert pool.work_one() is runs_again
    assert pool.work_one() is False
    assert line.broken == 1
    found = client.get(job.id)
    assert found is not None
    assert (found.state, found.attempt) == (JobState.COMPLETED, 1 + runs_again)
    assert [entry.attempt for entry in found.errors] == [1] * runs_again
    assert starts == [1, 2][: 1 + runs_again]
    with client.pool.connection() as conn:
        rows = conn.execute(sql.SQL("SELECT job, attempt FROM {}").format(effects)).fetchall()
    assert rows == [(job.id, found.attempt)]


@pytest.mark.conformance(327)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_line_that_dies_around_the_record_of_a_detached_job_costs_it_no_second_run(
    *, client: Client, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    line = Line(when)
    monkeypatch.setattr(ExecutionQueries, "finish_late", line.across(ExecutionQueries.finish_late))
    starts: list[int] = []
    job: Job[Any] = client.enqueue(None, {}, kind="any")
    pool = WorkerPool(client, {"any": Handler(lambda tx, job: starts.append(job.attempt), detached=True)})
    assert pool.work_one()
    assert pool.work_one() is False
    assert line.broken == 1
    found = client.get(job.id)
    assert found is not None
    assert (found.state, found.attempt, found.errors) == (JobState.COMPLETED, 1, ())
    assert starts == [1]


class Told(Hooks):
    def __init__(self) -> None:
        self.calls: list[str] = []

    def on_undone(self, job: Job[Any], error: BaseException) -> None:
        self.calls.append("undone")

    def on_finish(self, job: Job[Any], error: BaseException | None) -> None:
        self.calls.append(f"{job.state}, {error}")


@pytest.mark.parametrize("detached", [False, True])
def test_a_completion_whose_answer_is_lost_is_told_as_one(
    *, client: Client, monkeypatch: pytest.MonkeyPatch, detached: bool
) -> None:
    line, told = Line("after"), Told()
    client.hooks = HookCalls([told])
    commit = "finish_late" if detached else "complete"
    monkeypatch.setattr(ExecutionQueries, commit, line.across(getattr(ExecutionQueries, commit)))
    job: Job[Any] = client.enqueue(None, {}, kind="any")
    pool = WorkerPool(client, {"any": Handler(lambda tx, job: None, detached=detached)})
    with client.subscribe() as events:
        assert pool.work_one()
    assert line.broken == 1
    assert told.calls == ["completed, None"]
    assert [(event.kind, event.job.id, event.job.state) for event in events] == [
        (EventKind.COMPLETED, job.id, JobState.COMPLETED)
    ]
