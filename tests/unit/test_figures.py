"""Figures in memory: durations in buckets that can be added up, and attempts counted without a lock."""

from __future__ import annotations

import gc
import math
import threading
import tracemalloc
import weakref
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgjobs import AttemptFigures, Durations
from pgjobs.observe import figures as module
from pgjobs.observe.figures import BOUNDS, OTHER_KINDS, OTHER_QUEUES, FigureKey, counts_of, number_of

SECONDS = st.floats(0, 1e6)
WITHIN = 1.12  # as the guide says
IN_FIGURES = tracemalloc.Filter(True, module.__file__)


def counted(seconds: list[float]) -> Durations:
    figures = AttemptFigures({"job"})
    for each in seconds:
        figures.record("q", "job", "completed", 0.0, each)
    return figures.snapshot()[FigureKey("q", "job", "completed")].run


@given(st.lists(SECONDS, min_size=1, max_size=200), st.sampled_from([50, 95, 99, 100]))
def test_a_percentile_is_off_by_no_more_than_is_said(seconds: list[float], percent: int) -> None:
    found = counted(seconds).percentile(percent)
    true = sorted(seconds)[math.ceil(len(seconds) * percent / 100) - 1]
    assert found is not None
    if true <= 0.001:
        assert abs(found.total_seconds() - true) <= 0.0005
    else:
        assert true / WITHIN <= found.total_seconds() <= true * WITHIN


@given(st.lists(SECONDS, max_size=50), st.lists(SECONDS, max_size=50))
def test_durations_add_up(some: list[float], others: list[float]) -> None:
    none = Durations()
    first, second = counted(some) if some else none, counted(others) if others else none
    both = first.plus(second)
    assert both.counts == (counted(some + others) if some + others else none).counts
    assert both.count == len(some) + len(others)
    assert both.plus(second, -1).counts == first.counts


def test_the_mean_is_exact() -> None:
    assert counted([0.1, 0.2, 0.6]).mean == timedelta(seconds=0.3)


def test_no_durations_have_no_mean_and_no_percentiles() -> None:
    none = Durations()
    assert (none.mean, none.p50, none.p95, none.p99, none.count) == (None, None, None, None, 0)


def test_a_longer_duration_counts_as_the_longest() -> None:
    assert counted([1e9]).p99 == timedelta(seconds=1e6)


@pytest.mark.parametrize(
    "seconds", [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30, 60, 300, 1800]
)
def test_the_bounds_that_other_tools_use_are_among_ours(seconds: float) -> None:
    assert seconds in BOUNDS
    assert sum(counted([seconds, seconds * 1.001]).counts[: BOUNDS.index(seconds) + 1]) == 1, "it belongs below"


def test_nothing_is_lost_between_threads_that_count_start_and_end_while_others_read() -> None:
    kinds = ["job", *(f"job-{n}" for n in range(400))]
    figures = AttemptFigures(kinds)
    key = FigureKey("q", "job", "completed")
    done = threading.Event()
    seen = [0]

    def read() -> None:
        while not done.is_set():
            tally = figures.snapshot().get(key)
            seen.append(0 if tally is None else tally.attempts)

    def count() -> None:
        for n in range(2000):
            figures.record("q", "job" if n % 5 else kinds[n // 5], "completed", 0.1, 0.2)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(5):
        threads = [threading.Thread(target=count) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    done.set()
    reader.join()
    assert figures.snapshot()[key].attempts == 20 * 1601
    assert figures.snapshot()[key].run.count == 20 * 1601
    assert seen == sorted(seen), "the sums only grow"


def test_of_threads_that_have_ended_only_the_sums_are_kept() -> None:
    figures = AttemptFigures({"job"})
    ended = []
    for _ in range(50):
        thread = threading.Thread(target=figures.record, args=("q", "job", "completed", 0.1, 0.1))
        thread.start()
        thread.join()
        ended.append(weakref.ref(thread))
        del thread
    gc.collect()
    assert sum(thread() is not None for thread in ended) == 1
    assert figures.snapshot()[FigureKey("q", "job", "completed")].attempts == 50


def test_a_thread_needs_memory_for_the_buckets_that_it_uses() -> None:
    """200 threads with 50 kinds needed 36 MB."""
    kinds = [f"kind-{n}" for n in range(50)]
    figures = AttemptFigures(kinds)
    tracemalloc.start()
    try:
        for n in range(10_000):
            figures.record("q", kinds[n % 50], "completed", 0.0005 * (n % 60), 0.001 * (n % 40))
        statistics = tracemalloc.take_snapshot().filter_traces([IN_FIGURES]).statistics("filename")
    finally:
        tracemalloc.stop()
    assert 0 < sum(each.size for each in statistics) / 50 < 1000


COUNTS = st.lists(st.integers(0, 10**10), max_size=len(BOUNDS) + 1)


@given(COUNTS, COUNTS)
def test_the_sum_of_numbers_has_the_sums_of_the_counts(some: list[int], others: list[int]) -> None:
    """So the server adds up all buckets with one addition."""
    both = Durations(tuple(some)).plus(Durations(tuple(others))).counts
    assert counts_of(str(int(number_of(some)) + int(number_of(others)))) == both


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-1", "1.5", ""])
def test_a_number_that_was_written_by_hand_has_no_counts(number: str) -> None:
    assert counts_of(number) == ()


def test_the_number_of_kinds_is_bounded_but_for_those_with_a_handler() -> None:
    """Any job may be enqueued under any kind, and each kind would take memory and rows."""
    known = {f"known-{n}" for n in range(100)}
    figures = AttemptFigures(known)
    for n in range(1000):
        figures.record("q", f"made-up-{n}", "discarded", 0.1, 0.0)
    for kind in known:
        figures.record("q", kind, "completed", 0.1, 0.1)
    found = figures.snapshot()
    assert len(found) == 100 + 20 + 1
    assert found[FigureKey("q", OTHER_KINDS, "discarded")].attempts == 980
    assert sum(tally.attempts for tally in found.values()) == 1100


def test_the_number_of_queues_is_bounded_but_for_those_that_are_worked() -> None:
    """A process rescues the jobs of all queues."""
    figures = AttemptFigures({"job"})
    for n in range(300):
        figures.record(f"worked-{n}", "job", "completed", 0.1, 0.1)
    for n in range(1000):
        figures.record_lost(f"made-up-{n}", "job", "retried")
    figures.record_lost("made-up-7", "job", "retried")
    figures.record_lost("worked-299", "job", "retried")
    found = figures.snapshot()
    assert len(found) == 300 + 200 + 1 + 1
    assert found[FigureKey(OTHER_QUEUES, "job", "retried")].attempts == 800
    assert found[FigureKey("made-up-7", "job", "retried")].attempts == 2
    assert found[FigureKey("worked-299", "job", "retried")].attempts == 1


def test_an_attempt_whose_worker_vanished_has_no_duration() -> None:
    figures = AttemptFigures()
    figures.record_lost("q", "job", "retried")
    tally = figures.snapshot()[FigureKey("q", "job", "retried")]
    assert (tally.attempts, tally.run.count, tally.wait.count, tally.lost) == (1, 0, 0, 1)
    assert tally.plus(tally).lost == 2
    assert tally.plus(tally, -1).lost == 0
