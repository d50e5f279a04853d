"""What is passed over, for how long, and when it is no fault of a row."""

from __future__ import annotations

import logging

import psycopg
import pytest

from pgjobs.execution.set_aside import MOST_ALIKE, SetAside, concerns_a_row

OPERATION = "claims"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def error(number: int = 0, what: str = "frozen") -> psycopg.Error:
    return psycopg.errors.RaiseException(f"{what}: {number}")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def set_aside(clock: Clock) -> SetAside:
    return SetAside(clock)


@pytest.mark.finding("S3")
def test_a_row_is_passed_over_for_a_time_that_grows_from_a_second_to_five_minutes(
    set_aside: SetAside, clock: Clock
) -> None:
    """A row that failed was tried again hot, and stopped the whole operation each time."""
    pauses = []
    for _ in range(11):
        set_aside.failed(OPERATION, 7, error(), "job 7")
        began = clock.now
        while set_aside.rows(OPERATION) == [7]:
            clock.now += 0.5
        pauses.append(clock.now - began)
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    set_aside.worked(OPERATION, 7)
    set_aside.failed(OPERATION, 7, error(), "job 7")
    clock.now += 1
    assert set_aside.rows(OPERATION) == []
    clock.now += 10
    assert set_aside.rows(OPERATION) == []
    set_aside.worked(OPERATION)
    assert not set_aside, "nothing is remembered of a row that is gone"


@pytest.mark.finding("S3")
def test_when_more_than_a_few_fail_alike_none_is_set_aside(
    set_aside: SetAside, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault of all rows must not be taken for one of each."""
    for n in range(MOST_ALIKE):
        set_aside.failed(OPERATION, n, error(n), f"job {n}")
    for n in range(MOST_ALIKE, MOST_ALIKE + 3):
        with pytest.raises(psycopg.errors.RaiseException):
            set_aside.failed(OPERATION, n, error(n), f"job {n}")
    set_aside.log_new(OPERATION)
    assert set_aside.rows(OPERATION) == []
    assert set_aside.is_common(OPERATION, error(99))
    assert set_aside.was_logged(error(99))
    assert not set_aside.is_common(OPERATION, error(99, "another cause"))
    assert len(caplog.messages) == 1
    set_aside.worked(OPERATION)
    assert not set_aside.is_common(OPERATION, error(99))


@pytest.mark.finding("S3")
def test_rows_that_fail_beside_others_that_work_are_all_set_aside_but_not_all_logged(
    set_aside: SetAside, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows that fail beside others must not stop those, nor fill the log."""
    caplog.set_level(logging.WARNING)
    for n in range(1000):
        set_aside.failed(OPERATION, n, error(n), f"job {n}", others_work=True)
        set_aside.log_new(OPERATION)
    assert len(set_aside.rows(OPERATION)) == 1000
    assert len(caplog.messages) == MOST_ALIKE + 1
    with pytest.raises(psycopg.Error):
        set_aside.failed(OPERATION, 1000, error(1000), "job 1000", others_work=True)
    assert len(set_aside.rows(OPERATION)) <= 1000, "what is remembered is bounded"


@pytest.mark.finding("S3")
def test_another_act_and_another_cause_count_for_themselves(set_aside: SetAside) -> None:
    """What stops one operation says nothing of another."""
    for n in range(3 * MOST_ALIKE):
        set_aside.failed(f"claims of {n}", n, error(n), f"job {n}")
        set_aside.failed(OPERATION, n, error(n, "ABCDEFGHIJKLMNOP"[n % 16]), f"job {n}")
    assert len(set_aside.rows(OPERATION)) == 3 * MOST_ALIKE


@pytest.mark.finding("S3")
@pytest.mark.parametrize(
    ("state", "concerns"),
    [
        ("P0001", True), ("23514", True), ("42501", True), ("22003", True), ("54000", True), ("22P02", True),
        ("XX000", True), ("25006", False), ("53100", False), ("57014", False), ("55P03", False), ("40P01", False),
        ("08006", False), ("57P01", False), (None, False),
    ],
)  # fmt: skip
def test_what_says_nothing_of_a_row_is_nobodys_fault(state: str | None, concerns: bool) -> None:
    """A lost connection or a full disk must not set rows aside."""
    problem = psycopg.Error("x")
    problem.sqlstate = state
    assert concerns_a_row(problem) is concerns
