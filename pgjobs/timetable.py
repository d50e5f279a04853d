"""What the spec of a schedule means: from an instant it computes the next tick. Uses no clock and no database.

A spec is a cron text of five fields, an alias (`@hourly`), an interval (`every(timedelta)`, `@every 1h30m`), or any
object with a method `next(after)`. Where a zone puts its clocks forward and back:

- A cron text whose hour field has no star is a time of day. It ticks once on each day that the zone has. If the clock
  jumps over the time, it ticks at the first instant after the jump; if the time comes twice, it ticks the first time.
  Several times within one jump are one tick.
- A cron text with a star in the hour field ticks whenever the clock shows a minute that fits: a minute that comes twice
  ticks twice, a minute that is jumped over does not tick. So `*/15 * * * *` and `@hourly` tick evenly through a change
  by whole hours.
- An interval is elapsed time: clocks do not matter.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cached_property
from typing import Protocol, runtime_checkable
from zoneinfo import ZoneInfo

from croniter import CroniterBadCronError, CroniterBadDateError, croniter

from pgjobs.cron_fields import fields_of, written_out
from pgjobs.errors import InvalidSchedule, shown
from pgjobs.options import FIRST_INSTANT

LONGEST_SPEC = 250  # characters
_ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_MOST_STEPS = 10_000  # of counting the ticks of an object that can only compute the next one
_MICROSECOND = timedelta(microseconds=1)
_DAY = timedelta(days=1)
_UNITS = {
    unit: Decimal(text)
    for unit, text in (
        ("h", "3600e6"),
        ("m", "60e6"),
        ("s", "1e6"),
        ("ms", "1e3"),
        ("us", "1"),
        ("µs", "1"),
        ("μs", "1"),
        ("ns", "1e-3"),
    )
}  # microseconds; fmt: skip
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(h|ms|m|s|us|µs|μs|ns)", re.ASCII)


@runtime_checkable
class Timetable(Protocol):
    """An object that can be a spec: `next` returns the first tick after an aware datetime, or None if there is none."""

    def next(self, after: datetime) -> datetime | None: ...


@dataclass(frozen=True, slots=True)
class Every:
    """Ticks at equal intervals of elapsed time. See `every`."""

    interval: timedelta

    def __post_init__(self) -> None:
        given: object = self.interval
        if not isinstance(given, timedelta) or given <= timedelta(0):
            raise InvalidSchedule(f"interval must be a timedelta > 0, not {shown(given)}")

    def next(self, after: datetime) -> datetime | None:
        return _plus(after, self.interval)

    def last(self, tick: datetime, until: datetime) -> datetime:
        return tick + (until - tick) // self.interval * self.interval

    def first_from(self, tick: datetime, start: datetime) -> datetime | None:
        return _plus(tick, -((tick - start) // self.interval) * self.interval) if tick < start else tick

    def __str__(self) -> str:
        seconds, rest = divmod(self.interval // _MICROSECOND, 1_000_000)
        return f"@every {seconds}{f'.{rest:06}'.rstrip('0') if rest else ''}s"


def every(interval: timedelta) -> Every:
    """A spec that ticks every `interval` of elapsed time. The first tick comes one interval after the schedule was
    first registered, or added to the table."""
    return Every(interval)


@dataclass(frozen=True)
class Cron:
    """A cron text in a time zone. The values of fields with an H are derived from `name`."""

    text: str
    zone: ZoneInfo
    name: str

    def next(self, after: datetime) -> datetime | None:
        try:
            return self._by_clock(after) if self._has_star else self._by_day(after)
        except OverflowError:  # past the last year
            return None

    def last(self, tick: datetime, until: datetime) -> datetime:
        """The latest tick up to `until`, if `tick` is one; found by bisection, since there may be many between."""
        low, high = tick, until
        while (following := self.next(low)) is not None and following <= until:
            low = following
            middle = low + (high - low) / 2
            later = self.next(middle)
            if later is not None and later <= until:
                low = later
            else:
                high = middle
        return low

    def first_from(self, tick: datetime, start: datetime) -> datetime | None:
        return self.next(start - _MICROSECOND) if tick < start else tick

    def __str__(self) -> str:
        return self.text

    @cached_property
    def _fields(self) -> str:
        return _ALIASES.get(self.text.lower(), self.text)

    @cached_property
    def _has_star(self) -> bool:
        return "*" in fields_of(self._fields)[1]

    @cached_property
    def _written_out(self) -> str:
        return written_out(self._fields)

    def _next_wall(self, wall: datetime) -> datetime | None:
        """The next time that fits, on a clock that is never put forward or back."""
        # a new object each time: it has state, and threads share a schedule
        ticks = croniter(self._written_out, wall, hash_id=self.name)
        try:
            found: datetime = ticks.get_next(datetime)
        except (CroniterBadDateError, ValueError, OverflowError):  # no such date, or past the last year
            return None
        return found

    def _by_day(self, after: datetime) -> datetime | None:
        wall: datetime | None = _wall(self.zone, after)
        while wall is not None and (wall := self._next_wall(wall)) is not None:
            tick = _first_instant(self.zone, wall)
            if tick is not None and tick > after:
                return tick
        return None

    def _by_clock(self, after: datetime) -> datetime | None:
        start, wall = after, _wall(self.zone, after)
        while (fit := self._next_wall(wall)) is not None:
            tick = fit.replace(tzinfo=UTC) - _offset(self.zone, start)
            change = _next_change(self.zone, start, tick)
            if change is None:
                return tick
            # the clock changes before it shows that time: search again from the time it then shows, inclusive
            start, wall = change, _wall(self.zone, change) - _MICROSECOND
        return None


@dataclass(frozen=True)
class CustomTimetable:
    """An object of the application with `next(after)`, whose results are checked."""

    timetable: Timetable

    def next(self, after: datetime) -> datetime | None:
        tick: object = self.timetable.next(after)
        if tick is None:
            return None
        if not isinstance(tick, datetime) or tick.utcoffset() is None:
            raise InvalidSchedule(f"next(after) of a schedule must return an aware datetime or None, not {tick!r}")
        if tick <= after:
            raise InvalidSchedule(f"next(after) of a schedule must return a later instant: {tick} is not after {after}")
        try:
            return tick.astimezone(UTC)
        except OverflowError:
            return None

    def last(self, tick: datetime, until: datetime) -> datetime:
        for _ in range(_MOST_STEPS):
            following = self.next(tick)
            if following is None or following > until:
                break
            tick = following
        return tick

    def first_from(self, tick: datetime, start: datetime) -> datetime | None:
        found: datetime | None = tick
        for _ in range(_MOST_STEPS):
            if found is None or found >= start:
                break
            found = self.next(found)
        return found


Ticks = Cron | Every | CustomTimetable


def parse(spec: object, *, zone: str = "UTC", name: str = "") -> Ticks:
    """Parse a spec. Raises InvalidSchedule if it has no meaning, or is a date that never comes."""
    parsed_zone = time_zone(zone)
    if isinstance(spec, str):
        text = spec.strip()
        return _parse_every(text) if text.lower().startswith("@every ") else _parse_cron(text, parsed_zone, name)
    if isinstance(spec, Every):
        return spec
    if isinstance(spec, timedelta):
        raise InvalidSchedule(f"a spec is not a timedelta: write every({spec!r})")
    if isinstance(spec, Timetable) and not isinstance(spec, type):
        return CustomTimetable(spec)
    raise InvalidSchedule(
        "a spec is a cron text, an alias like @daily, every(timedelta), or an object with next(after), "
        f"not {shown(spec)}"
    )


def time_zone(zone: object) -> ZoneInfo:
    key = zone.key if isinstance(zone, ZoneInfo) else zone
    if not isinstance(key, str) or not key:
        raise InvalidSchedule(f"a zone is the name of a time zone, as in Europe/Berlin, not {shown(zone)}")
    try:
        return ZoneInfo(key)
    except (LookupError, ValueError, OSError):
        raise InvalidSchedule(
            f"unknown time zone {key[:80]!r}: use a name like Europe/Berlin "
            "(if this machine has no time zone database: pip install tzdata)"
        ) from None


def _parse_every(text: str) -> Every:
    duration = "".join(text[len("@every ") :].split())
    if not duration or _DURATION.sub("", duration) or len(duration) > LONGEST_SPEC:
        raise InvalidSchedule(f"spec {text[:80]!r}: write an interval like @every 1h30m, with h, m, s, ms or us")
    microseconds = sum((Decimal(number) * _UNITS[unit] for number, unit in _DURATION.findall(duration)), Decimal(0))
    try:
        interval = timedelta(microseconds=int(microseconds))
    except OverflowError:
        interval = timedelta.max
    if not interval:
        raise InvalidSchedule(f"spec {text[:80]!r}: an interval is at least a microsecond")
    return Every(interval)


def _parse_cron(text: str, zone: ZoneInfo, name: str) -> Cron:
    cron = Cron(text, zone, name)
    fields = fields_of(cron._fields)
    if text.startswith("@") and text.lower() not in _ALIASES:
        raise InvalidSchedule(f"spec {text[:80]!r}: the aliases are {', '.join(_ALIASES)} and @every 1h30m")
    if len(text) > LONGEST_SPEC or len(fields) != 5:
        raise InvalidSchedule(
            f"spec {text[:80]!r}: a cron text has five fields: minute, hour, day of month, month, day of week "
            "(for seconds: every(timedelta(seconds=10)))"
        )
    if any(part.lower().startswith("r") for field in fields for part in field.split(",")):
        raise InvalidSchedule(
            f"spec {text!r}: a field R differs at each start; use H, whose value is derived from the name"
        )
    try:
        croniter(cron._written_out, datetime(2000, 1, 1), hash_id=name)
        if cron._next_wall(datetime(2000, 1, 1)) is None:
            raise InvalidSchedule("this date never comes")
    except CroniterBadCronError as error:
        raise InvalidSchedule(f"spec {text!r} is not a cron text: {error}") from None
    except InvalidSchedule as error:
        raise InvalidSchedule(f"spec {text!r}: {error}") from None
    except (ValueError, TypeError, LookupError, OverflowError) as error:
        raise InvalidSchedule(f"spec {text!r} is not a cron text: {error}") from error
    return cron


# --- clocks


def _plus(instant: datetime, interval: timedelta) -> datetime | None:
    try:
        return instant + interval
    except OverflowError:
        return None


def _offset(zone: ZoneInfo, instant: datetime) -> timedelta:
    offset = instant.astimezone(zone).utcoffset()
    assert offset is not None
    return offset


def _wall(zone: ZoneInfo, instant: datetime) -> datetime:
    """The time that the clocks of the zone show."""
    return instant.astimezone(zone).replace(tzinfo=None, fold=0)


def _first_instant(zone: ZoneInfo, wall: datetime) -> datetime | None:
    """When the clocks first show this time. If they jump over it, the instant of the jump; None if the zone skips the
    whole day."""
    instant = wall.replace(tzinfo=zone).astimezone(UTC)
    if _wall(zone, instant) == wall:
        return instant
    before = wall.replace(tzinfo=zone, fold=1).astimezone(UTC)
    return None if instant - before >= _DAY else _change(zone, before, instant)


def _next_change(zone: ZoneInfo, start: datetime, until: datetime) -> datetime | None:
    """The first change of the clocks after `start` and up to `until`, or None."""
    offset = _offset(zone, start)
    while start < until:
        step = min(start + _DAY, until)
        if _offset(zone, step) != offset:
            return _change(zone, start, step)
        start = step
    return None


def _change(zone: ZoneInfo, low: datetime, high: datetime) -> datetime:
    """The instant of the one change of the clocks after `low` and up to `high`; it is a whole second."""
    offset = _offset(zone, low)
    first, last = int((low - FIRST_INSTANT).total_seconds()), -int((FIRST_INSTANT - high) // timedelta(seconds=1))
    while last - first > 1:
        middle = (first + last) // 2
        if _offset(zone, FIRST_INSTANT + timedelta(seconds=middle)) == offset:
            first = middle
        else:
            last = middle
    return FIRST_INSTANT + timedelta(seconds=last)
