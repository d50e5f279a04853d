"""What ranges and steps of a cron text mean, written out so that croniter has nothing to decide about them.

croniter 7.0.0 counts the steps of a range that passes the end of its field (`22-4/3`, `fri-mon/2`) wrongly, and takes
one that begins and ends at the same value (`9-9`) for the whole field, where every other cron takes it for that value.
So the first are replaced by the list of their values, the second are refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pgjobs.errors import InvalidSchedule

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_BLANKS = re.compile(r"\S+", re.ASCII)  # as croniter splits
# low-high or low-high/step, and #n of days of the week behind it
_RANGE = re.compile(r"(\w+)-(\w+)(?:/(\d+))?(#\w+)?", re.ASCII)
_STEP = re.compile(r"/(\d+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    least: int
    most: int
    names: tuple[str, ...] = ()  # of the values, from `least`
    unit: str = ""  # of an interval that would do in place of a long step

    @property
    def size(self) -> int:
        return self.most - self.least + 1

    def value(self, text: str) -> int | None:
        """The number that a name or digits stand for; None where croniter is to say what is wrong."""
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
    """The fields of a cron text, which blanks of ASCII separate."""
    return _BLANKS.findall(text)


def written_out(text: str) -> str:
    """The cron text of five fields with each range that passes the end of its field as a list of its values.

    Raises InvalidSchedule for a step longer than its field, and for a range that is not clear.
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
        return part  # croniter says what is wrong, if it is
    most = 7 if field is _WEEKDAY else field.most  # 7 is a Sunday too
    if not (field.least <= low <= most and field.least <= high <= most):
        raise InvalidSchedule(f"{part[:80]!r}: a {field.name} is {field.least} to {most}")
    if low == high or (low == 7 and high == 0 and field is _WEEKDAY):
        raise InvalidSchedule(
            f"{part[:80]!r} begins and ends at the same {field.name}: write {match[1]}, or * for each of them"
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
        return f"{problem}: list what is meant"
    return f"{problem}: write every(timedelta({field.unit}={step[:20]})) for an interval, or list what is meant"
