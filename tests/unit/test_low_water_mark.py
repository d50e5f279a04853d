"""How often a claim scans a whole queue, past the low-water mark."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from pgjobs.execution import low_water_mark
from pgjobs.execution.low_water_mark import LowWaterMarks
from pgjobs.job import Job, JobState

NOW = datetime(2026, 1, 1, tzinfo=UTC)
JOB: Job[Any] = Job(
    id=1, state=JobState.RUNNING, queue="q", kind="any", priority=0, attempt=1, max_attempts=25,
    scheduled_at=NOW, created_at=NOW, raw_args="{}",
)  # fmt: skip


class Scans:
    """The scans of one process, by a clock of their own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(low_water_mark, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.marks = LowWaterMarks()

    def next_is_full(self) -> bool:
        """Whether the claim that begins now scans the whole queue."""
        return self.marks.start("q") is None

    def claimed(self, took: float) -> None:
        self.now += took
        self.marks.record_claim("q", JOB)


@pytest.mark.parametrize(("took", "pause"), [(0.0001, 0.1), (0.03, 0.3), (0.5, 1.0), (20.0, 1.0)])
def test_a_costly_full_scan_is_done_less_often_but_once_in_a_second(
    monkeypatch: pytest.MonkeyPatch, took: float, pause: float
) -> None:
    scans = Scans(monkeypatch)
    for _ in range(3):
        assert scans.next_is_full()
        scans.claimed(took)
        end = scans.now + pause
        while scans.now < end - 0.02:
            assert not scans.next_is_full()
            scans.claimed(0.01)
        scans.now = end + 0.001


def test_while_one_thread_scans_the_whole_queue_the_others_use_the_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    scans = Scans(monkeypatch)
    scans.next_is_full()
    scans.claimed(0.5)
    scans.now += 1.001
    assert scans.next_is_full()
    with ThreadPoolExecutor(1) as other:
        for _ in range(5):
            scans.now += 0.1
            assert not other.submit(scans.next_is_full).result()
            other.submit(scans.claimed, 0.0).result()
    scans.claimed(0.0)
    scans.now += 0.9
    assert not scans.next_is_full(), "the pause counts from the end of the scan"


def test_a_thread_that_found_nothing_behind_a_mark_scans_the_whole_queue_next(monkeypatch: pytest.MonkeyPatch) -> None:
    scans = Scans(monkeypatch)
    scans.next_is_full()
    scans.claimed(0.0)
    mark = scans.marks.start("q")
    assert mark is not None
    scans.marks.record_empty(mark)
    with ThreadPoolExecutor(1) as other:
        assert not other.submit(scans.next_is_full).result()
    assert scans.next_is_full()


def test_a_mark_that_is_forgotten_holds_for_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    scans = Scans(monkeypatch)
    scans.next_is_full()
    scans.claimed(0.0)
    assert not scans.next_is_full()
    scans.marks.forget("q")
    with ThreadPoolExecutor(1) as other:
        assert other.submit(scans.next_is_full).result()
    assert scans.next_is_full()
