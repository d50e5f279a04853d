"""Durations as Postgres reads them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from pgjobs.interval import interval_text


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (timedelta(0), "0 hours 0.000000 seconds"),
        (timedelta(microseconds=1), "0 hours 0.000001 seconds"),
        (timedelta(microseconds=-1), "-0 hours -0.000001 seconds"),
        (timedelta(days=1, microseconds=5), "24 hours 0.000005 seconds"),
        (timedelta(days=-1, seconds=1), "-23 hours -3599.000000 seconds"),
        (timedelta(days=999_999_999), "23999999976 hours 0.000000 seconds"),
    ],
)
def test_in_hours_and_seconds(duration: timedelta, text: str) -> None:
    assert interval_text(duration) == text


class Own(timedelta):
    """As libraries of dates have one."""

    def __floordiv__(self, other: object) -> int:  # type: ignore[override]
        raise AttributeError("divides only by its own kind")


def test_of_a_class_of_the_applications() -> None:
    assert interval_text(Own(minutes=90)) == "1 hours 1800.000000 seconds"
