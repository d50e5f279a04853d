"""The policies that say when a failed attempt is tried again."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgjobs import Backoff, InvalidSetting, constant, exponential, never, only_for, river
from pgjobs.options import LONGEST_DELAY
from tests.samples import HOUR
from tests.unit.samples import a_job

ERROR = ValueError("failed")


def delay(policy: Backoff, attempt: int, error: BaseException = ERROR) -> timedelta:
    """The delay that a policy gives after this attempt."""
    due = policy(a_job(attempt=attempt, max_attempts=max(attempt, 25)), error)
    assert isinstance(due, timedelta)
    return due


@pytest.mark.conformance(107)
def test_rivers_policy_waits_the_fourth_power_of_the_attempt_give_or_take_a_tenth() -> None:
    for n in range(1, 25):
        for _ in range(10):
            seconds = delay(river(), n).total_seconds()
            assert 0.9 * n**4 <= seconds < 1.1 * n**4, n


@pytest.mark.conformance(107)
def test_the_jitter_uses_its_whole_range() -> None:
    draws = [delay(river(), 10).total_seconds() / 10**4 for _ in range(500)]
    assert min(draws) < 0.93
    assert max(draws) > 1.07
    assert 0.98 < sum(draws) / len(draws) < 1.02


@given(st.integers(1, 24), st.floats(0, 0.99))
def test_the_jitter_can_be_chosen(attempt: int, jitter: float) -> None:
    seconds = delay(river(jitter=jitter), attempt).total_seconds()
    assert (1 - jitter) * attempt**4 - 1e-3 <= seconds <= (1 + jitter) * attempt**4 + 1e-3


@pytest.mark.conformance(108)
@pytest.mark.parametrize("attempt", [6_000, 32_767, 1_000_000, 10**30])
@pytest.mark.parametrize(
    "policy",
    [
        river(),
        exponential(maximum=timedelta.max),
        exponential(maximum=timedelta.max, factor=1e300),
        exponential(timedelta.max, maximum=timedelta.max, jitter=0.99),
    ],
    ids=["river", "exponential", "steep", "long"],
)
def test_no_delay_overflows(policy: Backoff, attempt: int) -> None:
    due = delay(policy, attempt)
    assert LONGEST_DELAY * 0.009 < due <= LONGEST_DELAY
    assert (datetime(2055, 1, 1, tzinfo=UTC) + due).year < 10_000


@pytest.mark.conformance(108)
def test_rivers_policy_reaches_the_longest_delay_and_stays_there() -> None:
    assert 0.9 * 310**4 <= delay(river(), 310).total_seconds() < 1.1 * 310**4, "300 years are not yet too long"
    for attempt in (1_000, 1_000_000):
        assert 0.9 * LONGEST_DELAY <= delay(river(), attempt) <= LONGEST_DELAY


@pytest.mark.conformance(113)
def test_policies_may_be_asked_from_many_threads_at_once() -> None:
    policy = river()
    with ThreadPoolExecutor(10) as threads:
        draws = list(threads.map(lambda _: [delay(policy, 3).total_seconds() for _ in range(100)], range(10)))
    everything = [seconds for of_one in draws for seconds in of_one]
    assert len(everything) == 1_000
    assert all(0.9 * 81 <= seconds < 1.1 * 81 for seconds in everything)
    assert len(set(everything)) > 900, "the threads do not repeat each other's draws"


def test_the_jitter_of_one_policy_follows_the_random_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "random", lambda: 0.5)
    assert delay(river(), 2) == timedelta(seconds=16)


@pytest.mark.conformance(116)
def test_the_exponential_policy_doubles_up_to_its_maximum() -> None:
    policy = exponential()
    for _ in range(200):
        assert 0.8 <= delay(policy, 1).total_seconds() <= 1.2
        assert 12 <= delay(policy, 5).total_seconds() <= 20
        assert 0.8 * HOUR <= delay(policy, 100) <= 1.2 * HOUR


@pytest.mark.conformance(115)
def test_gues_numbers_can_be_given_to_the_exponential_policy() -> None:
    policy = exponential(timedelta(seconds=1), factor=1.6, jitter=0, maximum=HOUR)
    assert [delay(policy, n).total_seconds() for n in (1, 2, 3)] == pytest.approx([1, 1.6, 2.56])
    assert delay(policy, 60) == HOUR


@given(
    st.integers(1, 2_000_000),
    st.timedeltas(timedelta(0), timedelta(days=400)),
    st.floats(1, 100),
    st.timedeltas(timedelta(0), timedelta(days=4_000_000)),
    st.floats(0, 0.99),
)
def test_the_exponential_policy_stays_within_its_bounds(
    attempt: int, base: timedelta, factor: float, maximum: timedelta, jitter: float
) -> None:
    due = delay(exponential(base, factor=factor, maximum=maximum, jitter=jitter), attempt)
    assert timedelta(0) <= due <= LONGEST_DELAY
    assert due.total_seconds() <= maximum.total_seconds() * (1 + jitter) + 1e-3


@pytest.mark.parametrize(
    "settings",
    [
        {"base": timedelta(seconds=-1)},
        {"factor": 0.5},
        {"maximum": timedelta(seconds=-1)},
        {"jitter": 1.0},
        {"jitter": -0.1},
        {"jitter": float("nan")},
    ],
    ids=str,
)
def test_an_exponential_policy_that_makes_no_sense_is_refused(settings: dict[str, timedelta]) -> None:
    with pytest.raises(ValueError, match=r"exponential|jitter"):
        exponential(**settings)  # type: ignore[arg-type]


@pytest.mark.conformance(117)
@pytest.mark.parametrize("attempt", [1, 2, 10, 100])
def test_the_constant_policy_never_changes(attempt: int) -> None:
    assert delay(constant(timedelta(seconds=5)), attempt) == timedelta(seconds=5)


def test_a_constant_policy_cannot_look_back() -> None:
    with pytest.raises(ValueError, match="negative"):
        constant(timedelta(seconds=-1))


@pytest.mark.conformance(115)
def test_the_policy_never_says_never() -> None:
    assert never()(a_job(), ERROR) is None


@pytest.mark.conformance(119)
def test_a_policy_may_retry_only_some_types_of_errors() -> None:
    policy = only_for(OSError, KeyError, policy=constant(HOUR))
    assert delay(policy, 1, ConnectionError("a subclass")) == HOUR
    assert delay(policy, 1, KeyError("listed")) == HOUR
    assert policy(a_job(), ValueError("not listed")) is None
    assert policy(a_job(), SystemExit(1)) is None


@pytest.mark.conformance(119)
def test_only_some_types_are_retried_by_rivers_policy_unless_another_is_given() -> None:
    assert 14.4 <= delay(only_for(OSError), 2, OSError("again")).total_seconds() < 17.6


@pytest.mark.finding("W8")
@pytest.mark.parametrize("wrong", ["OSError", OSError("an instance"), 5, None, int, (OSError, KeyError)], ids=repr)
def test_only_for_refuses_what_is_no_class_of_errors_when_it_is_made(wrong: Any) -> None:
    """It was found out when the first job failed, and gave that up."""
    with pytest.raises(InvalidSetting, match="classes of exceptions"):
        only_for(OSError, wrong)


def test_only_for_refuses_a_policy_that_is_none() -> None:
    with pytest.raises(InvalidSetting, match="function of"):
        only_for(OSError, policy=5)  # type: ignore[arg-type]
