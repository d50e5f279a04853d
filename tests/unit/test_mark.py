"""How often a claim looks at a whole queue, past the mark."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from pgjobs.execution import claimer
from pgjobs.execution.claimer import Claimer
from pgjobs.execution.queries import ExecutionQueries
from pgjobs.job import Job, JobState
from pgjobs.work_map import WorkMap

NOW = datetime(2026, 1, 1, tzinfo=UTC)
JOB: Job[Any] = Job(
    id=1, state=JobState.RUNNING, queue="q", kind="any", priority=0, attempt=1, max_attempts=25,
    scheduled_at=NOW, created_at=NOW, raw_args="{}",
)  # fmt: skip


class Looks:
    """The looks of one process, by a clock of their own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(claimer, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.claimer = Claimer(ExecutionQueries("pgjobs"), WorkMap({"any": lambda tx, job: None}), worker="w")

    def at_all(self) -> bool:
        """Whether the claim that begins now looks at all."""
        return self.claimer.mark("q") is None

    def claimed(self, took: float) -> None:
        self.now += took
        self.claimer.note("q", JOB)


@pytest.mark.parametrize(("took", "pause"), [(0.0001, 0.1), (0.03, 0.3), (0.5, 1.0), (20.0, 1.0)])
def test_a_look_that_costs_much_is_done_less_often_but_once_in_a_second(
    monkeypatch: pytest.MonkeyPatch, took: float, pause: float
) -> None:
    looks = Looks(monkeypatch)
    for _ in range(3):
        assert looks.at_all()
        looks.claimed(took)
        end = looks.now + pause
        while looks.now < end - 0.02:
            assert not looks.at_all()
            looks.claimed(0.01)
        looks.now = end + 0.001


def test_while_one_thread_looks_at_all_the_others_go_by_the_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks(monkeypatch)
    looks.at_all()
    looks.claimed(0.5)
    looks.now += 1.001
    assert looks.at_all()
    with ThreadPoolExecutor(1) as other:
        for _ in range(5):
            looks.now += 0.1
            assert not other.submit(looks.at_all).result()
            other.submit(looks.claimed, 0.0).result()
    looks.claimed(0.0)
    looks.now += 0.9
    assert not looks.at_all(), "the pause counts from the end of the look"
