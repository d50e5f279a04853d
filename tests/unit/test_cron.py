"""Schedules as values, and which of the ticks that have come is made."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgjobs import InvalidOption, InvalidSchedule, NewJob, Schedule, every
from pgjobs.options import LAST_INSTANT
from pgjobs.schedule import CatchUp, Due, due
from pgjobs.timetable import parse
from tests.samples import HOUR, SECOND

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
HOURLY = parse("@hourly")


@dataclass
class Report:
    name: str = "sales"


@dataclass
class Needy:
    name: str


# --- values


@pytest.mark.conformance(164)
@pytest.mark.parametrize("name", ["", "x" * 128, "a b", "ünder", "-x", "a;b", None, 5])
def test_a_name_is_short_and_of_the_letters_of_a_kind(name: Any) -> None:
    with pytest.raises(InvalidSchedule, match="name of a schedule"):
        Schedule(name, "@daily", Report())


@pytest.mark.conformance(164)
@pytest.mark.parametrize("name", ["x", "x" * 127, "a.b/c:d", "nightly[1]"])
def test_a_name_of_these_letters_is_taken(name: str) -> None:
    assert Schedule(name, "@daily", Report()).name == name


@pytest.mark.conformance(164)
def test_a_schedule_has_args_and_a_spec() -> None:
    with pytest.raises(InvalidSchedule, match="has no args"):
        Schedule("x", "@daily", None)
    with pytest.raises(InvalidSchedule, match="a spec is"):
        Schedule("x", None, Report())  # type: ignore[arg-type]


async def a_coroutine() -> Report:
    return Report()


@pytest.mark.conformance(159)
@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("report", "has 'report' as its args: give an args instance"),
        (5, "has 5 as its args: give an args instance"),
        ([Report()], "give an args instance"),
        ({"n": 1}, "give kind="),
        (NewJob({"n": 1}), "give kind="),
        (a_coroutine, "async"),
        (lambda day: Report(), "missing a required argument: 'day'"),
        (Needy, "Needy .*missing a required argument: 'name'"),
    ],
    ids=["text", "number", "list", "dict", "NewJob", "async", "parameter", "class"],
)
def test_args_that_no_tick_can_make_a_job_of_are_refused_at_once(args: Any, message: str) -> None:
    """The error came at the start of the pool, or at each tick, as a warning in the log."""
    with pytest.raises(InvalidSchedule, match=f"schedule 'x'.*{message}"):
        Schedule("x", "@daily", args)


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ({"catch_up": "some"}, InvalidSchedule),
        ({"window": timedelta(0)}, InvalidSchedule),
        ({"window": 5}, InvalidSchedule),
        ({"zone": "Nowhere"}, InvalidSchedule),
        ({"version": -1}, InvalidSchedule),
        ({"version": "1"}, InvalidSchedule),
        ({"priority": 100_000}, InvalidOption),
    ],
    ids=str,
)
def test_a_setting_out_of_its_range_is_refused_at_once(setting: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        Schedule("x", "@daily", Report(), **setting)


def only(job: NewJob[Any] | None) -> NewJob[Any]:
    assert job is not None
    return job


@pytest.mark.conformance(159)
def test_args_may_come_in_each_of_their_forms() -> None:
    for args in (Report(), NewJob(Report()), Report, lambda: Report("sales"), lambda: NewJob(Report())):
        assert only(Schedule("x", "@daily", args).job()).args == Report()
    assert only(Schedule("x", "@daily", {"n": 1}, kind="the.kind").job()).kind == "the.kind"
    assert Schedule("x", "@daily", lambda: None).job() is None
    for fixed in (Report(), NewJob(Report()), {"n": 1}):
        assert not Schedule("x", "@daily", fixed, kind="the.kind").computed
    for made in (Report, lambda: None):
        assert Schedule("x", "@daily", made).computed


def test_the_options_of_one_job_win_over_those_of_the_schedule() -> None:
    schedule = Schedule("x", "@daily", lambda: NewJob(Report(), priority=-1, tags=["own"]), priority=5, queue="reports")
    options = only(schedule.job()).options
    assert (options.priority, options.tags, options.queue) == (-1, ["own"], "reports")


def test_a_schedule_tells_its_next_tick_of_aware_instants_alone() -> None:
    assert Schedule("x", every(HOUR), Report()).next(NOON) == NOON + HOUR
    with pytest.raises(InvalidSchedule, match="aware"):
        Schedule("x", every(HOUR), Report()).next(datetime(2026, 1, 1))


# --- ticks that came, perhaps long ago


def hours(*numbers: float) -> list[datetime]:
    return [NOON + number * HOUR for number in numbers]


def test_a_tick_that_has_just_come_is_made_whatever_the_policy() -> None:
    for catch_up in get_args(CatchUp):
        assert due(HOURLY, NOON, NOON + SECOND, catch_up, None) == Due(NOON, NOON + HOUR, missed=False)


@pytest.mark.conformance(182)
def test_of_ticks_that_were_missed_the_last_is_made_or_each_or_none() -> None:
    now = NOON + 3.5 * HOUR
    three, four = hours(3, 4)
    assert due(HOURLY, NOON, now, "last", None) == Due(three, four, missed=True)
    assert due(HOURLY, NOON, now, "all", None) == Due(NOON, NOON + HOUR, missed=False)
    assert due(HOURLY, NOON, now, "skip", None) == Due(None, four, missed=True)
    assert due(HOURLY, NOON, three + SECOND, "skip", None) == Due(three, four, missed=True), "that one was not missed"


@pytest.mark.conformance(182)
def test_what_is_older_than_the_window_is_not_made_up() -> None:
    now = NOON + 3.5 * HOUR
    two, three, four = hours(2, 3, 4)
    assert due(HOURLY, NOON, now, "last", HOUR) == Due(three, four, missed=True)
    assert due(HOURLY, NOON, now, "last", HOUR / 4) == Due(None, four, missed=True)
    assert due(HOURLY, NOON, now, "all", 2 * HOUR) == Due(two, three, missed=True)
    assert due(HOURLY, NOON, now, "all", HOUR / 4) == Due(None, four, missed=True)
    assert due(HOURLY, NOON, now, "skip", HOUR) == Due(three, four, missed=True), "its own idea of on time"
    assert due(HOURLY, NOON, now, "all", timedelta(days=100_000)) == Due(NOON, NOON + HOUR, missed=False)


@pytest.mark.conformance(168)
def test_after_the_last_tick_of_all_there_is_none() -> None:
    assert due(every(timedelta.max), NOON, NOON, "last", None) == Due(NOON, LAST_INSTANT, missed=False)


def test_an_object_with_more_missed_ticks_than_can_be_counted_goes_on_from_now() -> None:
    class Tiny:
        def next(self, after: datetime) -> datetime | None:
            return after + timedelta(microseconds=1)

    what = due(parse(Tiny()), NOON, NOON + HOUR, "last", None)
    assert what.tick is not None
    assert NOON < what.tick < NOON + HOUR
    assert what.next == NOON + HOUR + timedelta(microseconds=1)


@pytest.mark.conformance(182)
@given(
    minutes=st.integers(0, 5000),
    catch_up=st.sampled_from(get_args(CatchUp)),
    window=st.none() | st.timedeltas(SECOND, timedelta(days=4)),
    spec=st.sampled_from(["*/10 * * * *", "@every 7m", "0 3 * * *"]),
)
def test_going_on_ends_at_the_first_tick_to_come(
    minutes: int, catch_up: CatchUp, window: timedelta | None, spec: str
) -> None:
    ticks = parse(spec)
    first = ticks.next(NOON)
    assert first is not None
    now, upcoming, made = first + timedelta(minutes=minutes), first, []
    while upcoming <= now:
        what = due(ticks, upcoming, now, catch_up, window)
        assert what.next > upcoming
        upcoming = what.next
        made += [what.tick] if what.tick else []
    every_tick = [first]
    while every_tick[-1] < upcoming:
        following = ticks.next(every_tick[-1])
        assert following is not None
        every_tick.append(following)
    assert every_tick[-1] == upcoming, "no tick to come is jumped over"
    limit = window if window is not None else timedelta(minutes=1) if catch_up == "skip" else timedelta.max
    fresh = [tick for tick in every_tick if tick <= now and now - tick <= limit]
    assert made == (fresh if catch_up == "all" else fresh[-1:])
