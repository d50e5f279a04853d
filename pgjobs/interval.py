"""Durations and instants as Postgres is given them, and gives them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_HOUR = 3_600_000_000


def interval_text(duration: timedelta) -> str:
    """An `interval` of hours and seconds: a day of Postgres has 23 or 25 hours where the clocks change, and to
    version 14 more than 2^31 of a unit is too much, of which microseconds are 36 minutes."""
    microseconds = timedelta.__floordiv__(duration, _MICROSECOND)  # a subclass may have a division of its own
    sign = "-" if microseconds < 0 else ""  # said of both: what is left out means something else in each IntervalStyle
    hours, rest = divmod(abs(microseconds), _HOUR)
    return f"{sign}{hours} hours {sign}{rest // 1_000_000}.{rest % 1_000_000:06d} seconds"


def microseconds(at: datetime) -> int:
    """Microseconds since 1970."""
    return (at - EPOCH) // _MICROSECOND


def instant(microseconds: int) -> datetime:
    """The instant so many microseconds after 1970."""
    return EPOCH + timedelta(microseconds=microseconds)


def span(microseconds: int | None) -> timedelta | None:
    """A duration, of which Postgres gave the microseconds."""
    return None if microseconds is None else timedelta(microseconds=microseconds)
