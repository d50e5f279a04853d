"""What a claimer keeps from one claim to the next."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from pgjobs import Job, JobState, WorkMap
from pgjobs.execution.claimer import Claimer
from pgjobs.execution.queries import ExecutionQueries

CONN: Any = None
NOW = datetime(2026, 1, 1, tzinfo=UTC)
JOB: Job[Any] = Job(
    id=1, state=JobState.RUNNING, queue="q", kind="any", priority=0, attempt=1, max_attempts=25,
    scheduled_at=NOW, created_at=NOW, raw_args="{}",
)  # fmt: skip


def test_a_forked_child_neither_undoes_the_claims_of_its_parent_nor_uses_its_marks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    undone: list[UUID] = []
    monkeypatch.setattr(ExecutionQueries, "unclaim", lambda *args, queue, token: undone.append(token))
    claimer = Claimer(ExecutionQueries("pgjobs"), WorkMap(), worker="parent")
    claimer.lost_claims.add("q", uuid4())
    claimer.marks.record_claim("q", JOB)
    assert claimer.marks.start("q") is not None
    claimer.reset_for_process("child")
    claimer.lost_claims.unclaim_due(CONN, at_once=True)
    assert undone == []
    assert claimer.marks.start("q") is None
    own = uuid4()
    claimer.lost_claims.add("q", own)
    claimer.lost_claims.unclaim_due(CONN)
    assert undone == [own]
