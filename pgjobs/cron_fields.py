"""Rewrites the ranges of a cron text that croniter misreads.

croniter 7.0.0 miscounts the steps of a range that passes the end of its field (`22-4/3`, `fri-mon/2`), and takes a
range that begins and ends at the same value (`9-9`) for the whole field; every other cron takes it for that value. So
the first kind is replaced by the list of its values, and the second kind is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pgjobs.errors import InvalidSchedule

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_BLANKS = re.compile(r"\S+", re.ASCII)  # as croniter splits
# low-high or low-high/step; a day of the week may have #n after it
_RANGE = re.compile(r"(\w+)-(\w+)(?:/(\d+))?(#\w+)?", re.ASCII)
_STEP = re.compile(r"/(\d+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    least: int
    most: int
    names: tuple[str, ...] = ()  # of the values, beginning with `least`
    unit: str = ""  # of the interval to propose in place of a step that is too long

    @property
    def size(self) -> int:
        return self.most - self.least + 1

    def value(self, text: str) -> int | None:
        """The number that a name or digits stand for; None if they stand for none, which croniter then reports."""
        if text in self.names:
            return self.least + self.names.index(text)
        return int(text) if text.isdigit() and len(text) <= 9 else None


_DAY = _Field("day of month", 1, 31, unit="days")
_WEEKDAY = _Field("day of week", 0, 6, _WEEKDAYS, unit="days")
_FIELDS = (
    _Field("minute", 0, 59, unit="minutes"),
    _Field("hour", 0, 23, unit="hours"),
    _DAY,
    _Field("month", 1, 12, _MONTHS),
    _WEEKDAY,
)


def fields_of(text: str) -> list[str]:
    """The fields of a cron text, separated by ASCII blanks."""
    return _BLANKS.findall(text)


def written_out(text: str) -> str:
    """The cron text of five fields, with a list of values in place of each range that passes the end of its field.

    Raises InvalidSchedule for a step longer than its field, and for a range that other crons read differently.
    """
    fields = zip(_FIELDS, fields_of(text.lower()), strict=True)
    return " ".join(_field_written_out(field, parts) for field, parts in fields)


def _field_written_out(field: _Field, text: str) -> str:
    for step in _STEP.findall(text):
        if len(step) > 9 or int(step) > field.size:
            raise InvalidSchedule(_too_long(field, text, step))
    return ",".join(_part_written_out(field, part) for part in text.split(","))


def _part_written_out(field: _Field, part: str) -> str:
    match = _RANGE.fullmatch(part)
    low, high = (field.value(match[1]), field.value(match[2])) if match else (None, None)
    if field is _DAY and match and match[2] == "l":
        high = field.most
    step = int(match[3] or 1) if match else 0
    if match is None or low is None or high is None or not step:
        return part  # if it is wrong, croniter reports it
    most = 7 if field is _WEEKDAY else field.most  # 0 and 7 are Sunday
    if not (field.least <= low <= most and field.least <= high <= most):
        raise InvalidSchedule(f"{part[:80]!r}: a {field.name} is {field.least} to {most}")
    if low == high or (low == 7 and high == 0 and field is _WEEKDAY):
        raise InvalidSchedule(
            f"{part[:80]!r} begins and ends at the same {field.name}: write {match[1]}, or * for every value"
        )
    if low < high <= field.most:
        return part
    if field is _WEEKDAY:
        low %= 7
    return ",".join(f"{value}{match[4] or ''}" for value in _values(field, low, high, step, part))


def _values(field: _Field, low: int, high: int, step: int, part: str) -> list[int]:
    if high < low:
        if field is _DAY and step > 1:
            raise InvalidSchedule(
                f"{part[:80]!r}: the days depend on the length of the month: list the days, as in 28,30,1,3"
            )
        high += field.size
    values = [field.least + (value - field.least) % field.size for value in range(low, high + 1, step)]
    return list(dict.fromkeys(values))


def _too_long(field: _Field, text: str, step: str) -> str:
    problem = f"{text[:80]!r}: a step of {step[:20]} is longer than the field, which has {field.size} values"
    if not field.unit:
        return f"{problem}: list the values"
    return f"{problem}: write every(timedelta({field.unit}={step[:20]})) for an interval, or list the values"
