"""When specs tick: what they mean, over changes of the clocks too, and which are refused."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgjobs import InvalidSchedule, every
from pgjobs.options import FIRST_INSTANT, LAST_INSTANT
from pgjobs.timetable import Cron, CustomTimetable, Every, Ticks, parse, time_zone
from tests.samples import HOUR

DAY = timedelta(days=1)
NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)


def first_ticks(timetable: Ticks, after: datetime, count: int) -> list[datetime]:
    found: list[datetime] = []
    for _ in range(count):
        tick = timetable.next(found[-1] if found else after)
        assert tick is not None
        found.append(tick)
    return found


def ticks(spec: object, zone: str, start: str, end: str) -> list[str]:
    """The ticks after one moment of a zone and up to another, as its clocks show them."""
    place = ZoneInfo(zone)
    after, until = (datetime.fromisoformat(text).replace(tzinfo=place).astimezone(UTC) for text in (start, end))
    timetable = parse(spec, zone=zone, name="test")
    found = []
    while (tick := timetable.next(after)) is not None and tick <= until:
        assert tick > after
        assert tick.utcoffset() == timedelta(0), "instants are told in UTC"
        after = tick
        found.append(f"{tick.astimezone(place):%m-%d %H:%M %z}")
    return found


# --- the clocks are put forward and back (F29)


@pytest.mark.conformance(344)
@pytest.mark.parametrize(
    ("zone", "spec", "start", "end", "expected"),
    [
        # put forward at 2:00 to 3:00: what is jumped over comes at the first instant after
        (
            "America/New_York",
            "30 2 * * *",
            "2026-03-07",
            "2026-03-10",
            ["03-07 02:30 -0500", "03-08 03:00 -0400", "03-09 02:30 -0400"],
        ),
        # several times that one jump swallows are one tick
        (
            "America/New_York",
            "*/20 2 * * *",
            "2026-03-07 02:30",
            "2026-03-09 02:10",
            ["03-07 02:40 -0500", "03-08 03:00 -0400", "03-09 02:00 -0400"],
        ),
        # also one that comes at that very instant anyway
        ("America/New_York", "0 2,3 * * *", "2026-03-08", "2026-03-09", ["03-08 03:00 -0400"]),
        # put back at 2:00 to 1:00: what comes twice is meant once, the first time
        (
            "America/New_York",
            "30 1 * * *",
            "2026-10-31",
            "2026-11-03",
            ["10-31 01:30 -0400", "11-01 01:30 -0400", "11-02 01:30 -0500"],
        ),
        # half an hour, in the other direction of the year
        (
            "Australia/Lord_Howe",
            "15 2 * * *",
            "2026-10-03",
            "2026-10-06",
            ["10-03 02:15 +1030", "10-04 02:30 +1100", "10-05 02:15 +1100"],
        ),
        (
            "Australia/Lord_Howe",
            "45 1 * * *",
            "2026-04-04",
            "2026-04-07",
            ["04-04 01:45 +1100", "04-05 01:45 +1100", "04-06 01:45 +1030"],
        ),
        # midnight itself is jumped over, and an hour before it comes twice
        (
            "Africa/Cairo",
            "0 0 * * *",
            "2026-04-22 12:00",
            "2026-04-25 12:00",
            ["04-23 00:00 +0200", "04-24 01:00 +0300", "04-25 00:00 +0300"],
        ),
        (
            "Africa/Cairo",
            "30 23 * * *",
            "2026-10-28",
            "2026-10-31",
            ["10-28 23:30 +0300", "10-29 23:30 +0300", "10-30 23:30 +0200"],
        ),
        (
            "Africa/Cairo",
            "0 0 * * *",
            "2026-10-29 12:00",
            "2026-10-31 12:00",
            ["10-30 00:00 +0200", "10-31 00:00 +0200"],
        ),
        # the jump ends on the next day: the tick of the day before is not lost
        (
            "America/Nuuk",
            "30 23 * * *",
            "2026-03-27",
            "2026-03-30",
            ["03-27 23:30 -0200", "03-29 00:00 -0100", "03-29 23:30 -0100"],
        ),
        # a day that the zone left out has no tick
        (
            "Pacific/Apia",
            "0 10 * * *",
            "2011-12-29",
            "2012-01-01",
            ["12-29 10:00 -1000", "12-31 10:00 +1400"],
        ),
        # the third fourth of a month, without a change, for comparison
        ("UTC", "30 2 * * *", "2026-03-07", "2026-03-09", ["03-07 02:30 +0000", "03-08 02:30 +0000"]),
    ],
)
def test_a_time_of_day_ticks_once_on_each_day(zone: str, spec: str, start: str, end: str, expected: list[str]) -> None:
    assert ticks(spec, zone, start, end) == expected


@pytest.mark.conformance(344)
@pytest.mark.parametrize(
    ("zone", "spec", "start", "end", "expected"),
    [
        (
            "America/New_York",
            "*/30 * * * *",
            "2026-11-01 00:45",
            "2026-11-01 02:15",
            ["11-01 01:00 -0400", "11-01 01:30 -0400", "11-01 01:00 -0500", "11-01 01:30 -0500", "11-01 02:00 -0500"],
        ),
        (
            "America/New_York",
            "30 * * * *",
            "2026-03-08 00:45",
            "2026-03-08 04:00",
            ["03-08 01:30 -0500", "03-08 03:30 -0400"],
        ),
        # that there is no 2:00 is no tick of 3:00 for who follows the clock
        (
            "America/New_York",
            "0 */2 * * *",
            "2026-03-08 00:30",
            "2026-03-08 06:30",
            ["03-08 04:00 -0400", "03-08 06:00 -0400"],
        ),
        (
            "Australia/Lord_Howe",
            "*/15 * * * *",
            "2026-04-05 01:20",
            "2026-04-05 02:05",
            ["04-05 01:30 +1100", "04-05 01:45 +1100", "04-05 01:30 +1030", "04-05 01:45 +1030", "04-05 02:00 +1030"],
        ),
        (
            "Australia/Lord_Howe",
            "*/15 * * * *",
            "2026-10-04 01:40",
            "2026-10-04 02:50",
            ["10-04 01:45 +1030", "10-04 02:30 +1100", "10-04 02:45 +1100"],
        ),
        (
            "Africa/Cairo",
            "@hourly",
            "2026-04-23 22:30",
            "2026-04-24 02:30",
            ["04-23 23:00 +0200", "04-24 01:00 +0300", "04-24 02:00 +0300"],
        ),
        (
            "Africa/Cairo",
            "@hourly",
            "2026-10-29 22:30",
            "2026-10-30 00:30",
            ["10-29 23:00 +0300", "10-29 23:00 +0200", "10-30 00:00 +0200"],
        ),
    ],
)
def test_a_star_in_the_hour_follows_the_clock(zone: str, spec: str, start: str, end: str, expected: list[str]) -> None:
    assert ticks(spec, zone, start, end) == expected


@pytest.mark.conformance(344)
def test_a_time_of_day_that_comes_twice_is_over_when_it_comes_again() -> None:
    again = datetime(2026, 11, 1, 1, 40, tzinfo=ZoneInfo("America/New_York"), fold=1).astimezone(UTC)
    following = parse("45 1 * * *", zone="America/New_York").next(again)
    assert following == datetime(2026, 11, 2, 6, 45, tzinfo=UTC)


@pytest.mark.conformance(344)
@pytest.mark.parametrize("day", ["2026-03-08", "2026-11-01"])
def test_an_interval_takes_no_notice_of_clocks(day: str) -> None:
    start = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo("America/New_York")).astimezone(UTC)
    found = first_ticks(parse("@every 30m", zone="America/New_York"), start, 12)
    assert all(later - earlier == HOUR / 2 for earlier, later in pairwise([start, *found]))


@pytest.mark.conformance(344)
@given(
    zone=st.sampled_from(["America/New_York", "Australia/Lord_Howe", "Africa/Cairo", "Antarctica/Troll", "Asia/Gaza"]),
    hour=st.integers(0, 23),
    minute=st.integers(0, 59),
    year=st.integers(2000, 2035),
)
def test_any_time_of_day_ticks_once_on_each_day_of_any_year(zone: str, hour: int, minute: int, year: int) -> None:
    place = ZoneInfo(zone)
    tick: datetime | None = datetime(year, 1, 1, tzinfo=place).astimezone(UTC) - timedelta(microseconds=1)
    timetable = parse(f"{minute} {hour} * * *", zone=zone)
    late = []
    for day in range(365):
        assert tick is not None
        tick = timetable.next(tick)
        assert tick is not None
        local = tick.astimezone(place)
        meant = datetime(year, 1, 1, hour, minute) + day * DAY
        if local.replace(tzinfo=None, fold=0) != meant:
            assert meant < local.replace(tzinfo=None) <= meant + 2 * HOUR, "after a jump of the clocks"
            late.append(local)
        assert local.fold == 0, "the first time, if it comes twice"
    assert len(late) <= 3, "only on the few days with a jump"


@given(
    start=st.datetimes(datetime(1971, 1, 1), datetime(2090, 1, 1), timezones=st.just(UTC)),
    spec=st.sampled_from(["*/7 * * * *", "30 1,2 * * *", "0 0 * * 0", "*/20 1-3 1,15 * *", "@monthly"]),
    zone=st.sampled_from(["America/New_York", "Australia/Lord_Howe", "UTC"]),
    span=st.timedeltas(timedelta(0), 40 * DAY),
)
def test_the_last_tick_up_to_now_is_found_without_counting(
    start: datetime, spec: str, zone: str, span: timedelta
) -> None:
    timetable = parse(spec, zone=zone)
    first = timetable.next(start)
    assert first is not None
    until = first + span
    last = timetable.last(first, until)
    assert first <= last <= until
    following = timetable.next(last)
    assert following is not None
    assert following > until
    assert last == first or timetable.next(last - timedelta(microseconds=1)) == last


# --- intervals


@pytest.mark.conformance(173)
@pytest.mark.parametrize(
    ("text", "interval"),
    [
        ("@every 1h30m", 1.5 * HOUR),
        ("@every 1ms", timedelta(milliseconds=1)),
        ("@every 90s", timedelta(seconds=90)),
        ("@EVERY 1.5s", timedelta(seconds=1.5)),
        ("@every .5h", HOUR / 2),
        ("@every 1h 2m 3s 4ms 5us", timedelta(hours=1, minutes=2, seconds=3, milliseconds=4, microseconds=5)),
        ("@every 2000ns", timedelta(microseconds=2)),
    ],
)
def test_an_interval_is_read_and_written_as_text(text: str, interval: timedelta) -> None:
    assert parse(text) == every(interval)
    assert parse(str(parse(text))) == every(interval)


def test_an_interval_of_ages_has_no_second_tick() -> None:
    assert every(timedelta.max).next(NEW_YEAR) is None
    assert parse(f"@every {'9' * 200}h").next(NEW_YEAR) is None


@given(interval=st.timedeltas(timedelta(microseconds=1), 400 * DAY), span=st.timedeltas(timedelta(0), 4000 * DAY))
def test_the_ticks_of_an_interval_keep_their_beat(interval: timedelta, span: timedelta) -> None:
    timetable, until = every(interval), NEW_YEAR + span
    last = timetable.last(NEW_YEAR, until)
    assert (last - NEW_YEAR) % interval == timedelta(0)
    assert timedelta(0) <= until - last < interval
    first = timetable.first_from(NEW_YEAR, until)
    assert first is not None
    assert (first - NEW_YEAR) % interval == timedelta(0)
    assert timedelta(0) <= first - until < interval


# --- cron texts


@pytest.mark.conformance(173)
@pytest.mark.parametrize(
    ("alias", "expected"),
    [
        ("@yearly", ["2027-01-01 00:00", "2028-01-01 00:00"]),
        ("@annually", ["2027-01-01 00:00", "2028-01-01 00:00"]),
        ("@monthly", ["2026-03-01 00:00", "2026-04-01 00:00"]),
        ("@weekly", ["2026-02-08 00:00", "2026-02-15 00:00"]),
        ("@daily", ["2026-02-04 00:00", "2026-02-05 00:00"]),
        ("@midnight", ["2026-02-04 00:00", "2026-02-05 00:00"]),
        ("@Hourly", ["2026-02-03 11:00", "2026-02-03 12:00"]),
    ],
)
def test_aliases_mean_what_cron_says(alias: str, expected: list[str]) -> None:
    found = first_ticks(parse(alias, name="its name changes nothing"), datetime(2026, 2, 3, 10, 30, tzinfo=UTC), 2)
    assert [f"{tick:%Y-%m-%d %H:%M}" for tick in found] == expected


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("0 0 29 2 *", "2028-02-29 00:00"),
        ("0 12 L * *", "2026-01-31 12:00"),
        ("5-10/5 0 1 * *", "2026-01-01 00:05"),
        ("0 0 13 * fri", "2026-01-02 00:00"),  # a day of the month or of the week, as cron has it
        ("0 9 * jan-mar mon#2", "2026-01-12 09:00"),
    ],
)
@pytest.mark.conformance(176)
def test_what_cron_allows_is_allowed(spec: str, expected: str) -> None:
    assert f"{parse(spec).next(NEW_YEAR):%Y-%m-%d %H:%M}" == expected


def test_a_field_with_an_h_is_drawn_once_from_the_name() -> None:
    assert parse("H H * * *", name="one").next(NEW_YEAR) == parse("H H * * *", name="one").next(NEW_YEAR)
    drawn = {parse("H H * * *", name=f"name-{n}").next(NEW_YEAR) for n in range(20)}
    assert len(drawn) > 10


@pytest.mark.conformance(176)
@pytest.mark.parametrize(
    "spec",
    [
        "* * * *",
        "* * * * * *",
        "60 * * * *",
        "* 24 * * *",
        "* * 32 * *",
        "* * * 13 *",
        "* * * * 8",
        "*/0 * * * *",
        "some words are not cron",
        "",
        " ",
        "@reboot",
        "@every",
        "@every 5",
        "@every 0s",
        "@every -5s",
        "@every 1h later",
        "0 0 30 2 *",
        "0 0 31 4 *",
        "0-99999999 * * * *",
        "R * * * *",
        "0 R(0-5) * * *",
        "0 0 * * 1,r",
        "0 0 * * *" + " " * 300 + "x",
        "\0 * * * *",
        "٣ * * * *",
    ],
)
def test_a_text_that_is_no_cron_or_never_comes_is_refused_by_its_text(spec: str) -> None:
    with pytest.raises(InvalidSchedule) as refused:
        parse(spec)
    assert repr(spec.strip()[:70])[:-1] in str(refused.value)


@pytest.mark.parametrize("spec", [None, 5, HOUR, object(), CustomTimetable])
def test_what_is_no_spec_at_all_is_refused(spec: object) -> None:
    with pytest.raises(InvalidSchedule):
        parse(spec)


@pytest.mark.parametrize("interval", [timedelta(0), -HOUR, 5, None])
def test_an_interval_is_longer_than_nothing(interval: timedelta) -> None:
    with pytest.raises(InvalidSchedule):
        every(interval)


# --- ranges that pass the end of their field, and steps

FIELDS = {  # where it stands in the text, its least and greatest value, its size, how the others are filled
    "minute": (0, 59, "{} * * * *"),
    "hour": (0, 23, "0 {} * * *"),
    "month": (1, 12, "0 0 1 {} *"),
    "weekday": (0, 7, "0 0 * * {}"),
}
NAMES = {
    "month": ["", "JAN", "feb", "Mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
    "weekday": ["sun", "Mon", "tue", "wed", "THU", "fri", "sat", "sun"],
}


@st.composite
def field_parts(draw: st.DrawFn, field: str) -> tuple[str, set[int]]:
    """A part of a field as text, and the values that it means, counted one by one."""
    least, most, _ = FIELDS[field]
    size = 7 if field == "weekday" else most - least + 1
    low, high = draw(st.integers(least, most)), draw(st.integers(least, most))
    if low == high or (low, high) == (7, 0):
        return str(low), {low % 7 if field == "weekday" else low}
    step = draw(st.integers(1, size))
    if field == "weekday" and low == 7:
        counted = range(0, high + 1)
    else:
        counted = range(low, (high if high > low else high + size) + 1)
    values = {least + (value - least) % size for at, value in enumerate(counted) if at % step == 0}
    names = NAMES.get(field) if draw(st.booleans()) and (low, high) != (0, 7) else None
    written = [names[value] if names else str(value) for value in (low, high)]
    return "-".join(written) + (f"/{step}" if step > 1 or draw(st.booleans()) else ""), values


def values_that_tick(field: str, text: str) -> set[int]:
    """The values of the field at which a schedule with this text in it ticks."""
    read: dict[str, Callable[[datetime], int]] = {
        "minute": lambda tick: tick.minute,
        "hour": lambda tick: tick.hour,
        "month": lambda tick: tick.month,
        "weekday": lambda tick: tick.isoweekday() % 7,
    }
    span = {"minute": HOUR, "hour": DAY, "month": timedelta(days=365), "weekday": timedelta(days=7)}[field]
    timetable = parse(FIELDS[field][2].format(text))
    found: set[int] = set()
    tick = timetable.next(NEW_YEAR - timedelta(seconds=1))
    while tick is not None and tick < NEW_YEAR + span:
        found.add(read[field](tick))
        tick = timetable.next(tick)
    return found


@pytest.mark.finding("W5")
@pytest.mark.parametrize("field", FIELDS)
@given(data=st.data())
def test_a_range_with_a_step_is_counted_on_past_the_end_of_its_field(field: str, data: st.DataObject) -> None:
    """`22-4/3` in the hours ticked at 22 and 2 in place of 22, 1 and 4: croniter counts such ranges wrongly."""
    parts = data.draw(st.lists(field_parts(field), min_size=1, max_size=3))
    text = ",".join(text for text, _ in parts)
    assert values_that_tick(field, text) == set[int]().union(*(values for _, values in parts)), text


@pytest.mark.finding("W5")
@pytest.mark.parametrize(
    ("field", "text", "expected"),
    [
        ("hour", "22-4/3", {22, 1, 4}),
        ("hour", "22-4", {22, 23, 0, 1, 2, 3, 4}),
        ("hour", "20-2/5,12", {20, 1, 12}),
        ("month", "11-2/3", {11, 2}),
        ("month", "NOV-feb/3", {11, 2}),
        ("minute", "50-10/7", {50, 57, 4}),
        ("weekday", "fri-mon/2", {5, 0}),
        ("weekday", "sat-tue/2", {6, 1}),
        ("weekday", "5-7/2", {5, 0}),
        ("weekday", "7-3/2", {0, 2}),
        ("weekday", "0-7", set(range(7))),
        ("weekday", "1-7/3", {1, 4, 0}),
    ],
)
def test_ranges_that_wrap_by_hand(field: str, text: str, expected: set[int]) -> None:
    """The same by hand, days of the week and names among them; see above."""
    assert values_that_tick(field, text) == expected


@pytest.mark.finding("W5")
def test_days_at_the_end_of_one_month_and_the_beginning_of_the_next() -> None:
    """`28-3` are days of two months; with a step it would depend on the month which, and is refused."""
    assert ticks("0 0 28-3 * *", "UTC", "2026-02-27", "2026-03-04") == [
        f"{day} 00:00 +0000" for day in ("02-28", "03-01", "03-02", "03-03")
    ]
    with pytest.raises(InvalidSchedule, match=r"'0 0 28-3/2 \* \*'.*'28-3/2'.*length of the month.*list the days"):
        parse("0 0 28-3/2 * *")


@pytest.mark.finding("W5")
@pytest.mark.parametrize(
    ("spec", "advice"),
    [
        ("*/90 * * * *", "every(timedelta(minutes=90))"),
        ("5/90 * * * *", "every(timedelta(minutes=90))"),
        ("H/61 * * * *", "every(timedelta(minutes=61))"),
        ("0-30/75,40 * * * *", "every(timedelta(minutes=75))"),
        ("0 */25 * * *", "every(timedelta(hours=25))"),
        ("0 0 */45 * *", "every(timedelta(days=45))"),
        ("0 0 * * */14", "every(timedelta(days=14))"),
        ("0 0 1 */18 *", "list the values"),
        (f"*/{'9' * 30} * * * *", "every(timedelta(minutes=9999"),
    ],
)
def test_a_step_longer_than_its_field_is_refused_with_what_to_write(spec: str, advice: str) -> None:
    """`*/90` ticked at each full hour, which is not what its author meant."""
    with pytest.raises(InvalidSchedule) as refused:
        parse(spec)
    assert repr(spec) in str(refused.value)
    assert advice in str(refused.value)


@pytest.mark.parametrize("spec", ["*/60 * * * *", "0 */24 * * *", "0 0 */31 * *", "0 0 1 */12 *", "0 0 * * */7"])
def test_a_step_as_long_as_its_field_is_its_first_value(spec: str) -> None:
    assert parse(spec).next(NEW_YEAR) is not None


@pytest.mark.finding("W5")
@pytest.mark.parametrize("spec", ["0 9-9 * * *", "0 0 * * 7-0", "0 0 * * fri-fri#2", "0 0 1 jan-1 *", "0 0 31-L * *"])
def test_a_range_that_begins_where_it_ends_is_refused(spec: str) -> None:
    """croniter takes `9-9` for every hour, and every other cron for 9."""
    with pytest.raises(InvalidSchedule, match="begins and ends at the same"):
        parse(spec)


# --- zones


@pytest.mark.conformance(183)
@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "../etc/passwd", "/etc/passwd", "America", "a\0b", None, 5])
def test_an_unknown_zone_is_refused_by_its_name(zone: object) -> None:
    with pytest.raises(InvalidSchedule, match="time zone"):
        time_zone(zone)
    with pytest.raises(InvalidSchedule, match="time zone"):
        parse("@daily", zone=zone)  # type: ignore[arg-type]


# --- objects of the application's


class Never:
    def next(self, after: datetime) -> datetime | None:
        return None


class AtTheEndOfTime:
    def next(self, after: datetime) -> datetime | None:
        return datetime.max.replace(tzinfo=UTC)


class Daily:
    def next(self, after: datetime) -> datetime | None:
        return (after + DAY).replace(hour=0, minute=0, second=0, microsecond=0)


@pytest.mark.conformance(168)
def test_a_schedule_may_never_tick() -> None:
    assert parse(Never()).next(NEW_YEAR) is None
    last = parse(AtTheEndOfTime()).next(NEW_YEAR)
    assert last is not None
    assert last - NEW_YEAR > 1000 * 365 * DAY


def test_an_object_with_next_may_stand_for_the_spec() -> None:
    timetable = parse(Daily())
    assert timetable.next(NEW_YEAR) == NEW_YEAR + DAY
    assert timetable.last(NEW_YEAR, NEW_YEAR + 10.5 * DAY) == NEW_YEAR + 10 * DAY
    assert timetable.first_from(NEW_YEAR, NEW_YEAR + 9.5 * DAY) == NEW_YEAR + 10 * DAY


@pytest.mark.parametrize("answer", [datetime(2030, 1, 1), NEW_YEAR, NEW_YEAR - DAY, "tomorrow"], ids=str)
def test_an_object_that_gives_no_later_instant_is_told_so(answer: datetime) -> None:
    class Broken:
        def next(self, after: datetime) -> datetime | None:
            return answer

    with pytest.raises(InvalidSchedule, match=r"next\(after\)"):
        parse(Broken()).next(NEW_YEAR)


@pytest.mark.parametrize(
    "timetable", [parse("@daily"), every(HOUR), parse("30 2 * * *", zone="America/New_York")], ids=str
)
def test_nothing_breaks_at_the_ends_of_time(timetable: Ticks) -> None:
    assert isinstance(timetable, Cron | Every)
    assert timetable.next(FIRST_INSTANT) is not None
    near = LAST_INSTANT
    for _ in range(100):
        following = timetable.next(near)
        if following is None:
            break
        near = following
    else:
        assert isinstance(timetable, Every)
