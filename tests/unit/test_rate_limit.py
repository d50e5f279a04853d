"""How many requests a user may send to the dashboard, and what it says of what was done."""

from __future__ import annotations

import pytest

from pgjobs.dashboard.acts import REASONS, done_text, done_value
from pgjobs.dashboard.rate_limit import _MOST_USERS, RateLimit


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_is_let_through_and_then_so_many_a_second() -> None:
    clock = Clock()
    limit = RateLimit(3, 0.5, clock)
    assert [limit.wait("ada") for _ in range(5)] == [0, 0, 0, 2, 2]
    assert limit.wait("eve") == 0, "each user is counted alone"
    clock.now += 1
    assert limit.wait("ada") == 1, "what was refused was not counted"
    clock.now += 1
    assert limit.wait("ada") == 0
    assert limit.wait("ada") == 2
    clock.now += 1000
    assert [limit.wait("ada") for _ in range(4)] == [0, 0, 0, 2], "no more than a burst is saved up"


def test_the_users_that_were_not_seen_for_longest_are_forgotten() -> None:
    limit = RateLimit(1, 0.001, Clock())
    assert limit.wait("first") == 0
    for number in range(_MOST_USERS):
        assert limit.wait(f"user {number}") == 0
    assert limit.wait("first") == 0
    assert limit.wait(f"user {_MOST_USERS - 1}") > 0
    assert len(limit._left) == _MOST_USERS


def test_what_was_done_is_said_with_the_reasons_for_what_was_not() -> None:
    assert done_value("cancel-jobs", 5, 3, {"running": 1, "locked": 2, "moved": 0}) == (
        "cancel-jobs.5.3.running-1.locked-2"
    )
    assert done_text("cancel-jobs.5.3.running-1.locked-2") == (
        "5 jobs cancelled; left as they were: 1 running at the moment, 2 held by another transaction."
    )
    assert done_text("pause-queues.1.0") == "1 queue paused."
    every = done_value("delete-jobs", 1, 2, dict.fromkeys(REASONS, 1_000))
    assert str(done_text(every)).count("1,000 ") == len(REASONS)


@pytest.mark.parametrize(
    "done",
    ["cancel-jobs.5.3.nonsense-1", "cancel-jobs.5.3.running-", "cancel-jobs.5.3.running-1.", "cancel-jobs.5.3.<b>-1",
     "cancel-jobs.5.3" + ".running-1" * 10, "cancel-jobs.5.3\n", "cancel-jobs.٥.3"],
)  # fmt: skip
def test_no_other_text_gets_onto_the_page(done: str) -> None:
    assert done_text(done) is None
