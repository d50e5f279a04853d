"""Conversions of timedelta and datetime to the forms that the SQL uses."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_MILLISECOND = timedelta(milliseconds=1)
MOST_MILLISECONDS = 2**31 - 1
_LONGEST_SETTING = timedelta(milliseconds=MOST_MILLISECONDS)
_HOUR = 3_600_000_000


def interval_text(duration: timedelta) -> str:
    """The text of an `interval`, in hours and seconds.

    Not in days: a day of Postgres has 23 or 25 hours when the clocks change. Not in microseconds: Postgres 14 allows at
    most 2^31 of a unit, which is 36 minutes.
    """
    microseconds = timedelta.__floordiv__(duration, _MICROSECOND)  # a subclass may override the division
    sign = "-" if microseconds < 0 else ""  # on both parts: IntervalStyle decides how far a single sign reaches
    hours, rest = divmod(abs(microseconds), _HOUR)
    return f"{sign}{hours} hours {sign}{rest // 1_000_000}.{rest % 1_000_000:06d} seconds"


def milliseconds(duration: timedelta) -> int:
    """A duration as the server's settings take it: in whole milliseconds, at most 2^31 - 1."""
    return int(min(duration, _LONGEST_SETTING) / _MILLISECOND)


def microseconds(at: datetime) -> int:
    """Microseconds since 1970-01-01 UTC."""
    return (at - EPOCH) // _MICROSECOND


def instant(microseconds: int) -> datetime:
    """The inverse of `microseconds`."""
    return EPOCH + timedelta(microseconds=microseconds)


def span(microseconds: int | None) -> timedelta | None:
    """A duration from its microseconds."""
    return None if microseconds is None else timedelta(microseconds=microseconds)


def span_text(span: timedelta | None) -> str | None:
    """A duration by its two largest units, as in 5m12s."""
    if span is None:
        return None
    seconds = int(span.total_seconds())
    if seconds < 60:
        return f"{seconds}s"
    for large, small, unit, part in ((86400, 3600, "d", "h"), (3600, 60, "h", "m"), (60, 1, "m", "s")):
        if seconds >= large:
            whole, rest = divmod(seconds, large)
            return f"{whole}{unit}" + (f"{rest // small}{part}" if rest // small else "")
    raise AssertionError(seconds)
