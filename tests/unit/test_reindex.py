"""When the indexes are rebuilt, and what counts as left over from that."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from pgjobs import InvalidSetting
from pgjobs.maintenance import reindexer
from pgjobs.maintenance.reindexer import MIDNIGHT, check_time, is_time, leftovers, next_time

NEW_YORK = ZoneInfo("America/New_York")


@pytest.mark.conformance(283)
@pytest.mark.parametrize(
    ("at", "now", "expected"),
    [
        (MIDNIGHT, "2026-05-01 00:00:00", "2026-05-02 00:00"),
        (MIDNIGHT, "2026-05-01 23:59:59", "2026-05-02 00:00"),
        (time(3, 30, tzinfo=UTC), "2026-05-01 03:29:59", "2026-05-01 03:30"),
        (time(3, 30, tzinfo=UTC), "2026-12-31 03:30:00", "2027-01-01 03:30"),
        (time(1, tzinfo=timezone(timedelta(hours=14))), "2026-05-01 10:59:00", "2026-05-01 11:00"),
        (time(1, tzinfo=timezone(timedelta(hours=14))), "2026-05-01 11:00:00", "2026-05-02 11:00"),
        (time(0, tzinfo=NEW_YORK), "2026-05-01 03:59:00", "2026-05-01 04:00"),
        (time(0, tzinfo=NEW_YORK), "2026-12-01 04:59:00", "2026-12-01 05:00"),
        (time(2, 30, tzinfo=NEW_YORK), "2026-03-08 00:00:00", "2026-03-08 07:30"),  # a time that there is not
        (time(1, 30, tzinfo=NEW_YORK), "2026-11-01 05:30:00", "2026-11-02 06:30"),  # one that there is twice
    ],
)
def test_the_next_time(at: time, now: str, expected: str) -> None:
    found = next_time(at, datetime.fromisoformat(now + "+00:00"))
    assert found == datetime.fromisoformat(expected + "+00:00")
    assert found.tzinfo is UTC


@pytest.mark.parametrize(
    ("now", "expected"),
    [("00:00:00", True), ("00:59:59", True), ("01:00:01", False), ("23:59:59", False), ("12:00:00", False)],
)
def test_an_hour_later_it_is_no_longer_the_time(now: str, expected: bool) -> None:
    assert is_time(MIDNIGHT, datetime.fromisoformat(f"2026-05-01 {now}+00:00")) is expected


@pytest.mark.conformance(283)
def test_the_rebuild_of_an_index_may_take_a_minute() -> None:
    assert reindexer._TIMEOUT == 60


@pytest.mark.parametrize("at", [time(3), "03:00", 3, timedelta(hours=3), datetime(2026, 1, 1, tzinfo=UTC)])
def test_a_time_of_day_needs_a_time_zone(at: Any) -> None:
    with pytest.raises(InvalidSetting, match="reindex_at"):
        check_time(at)
    assert check_time(None) is None
    assert check_time(MIDNIGHT) is MIDNIGHT


@pytest.mark.conformance(283)
def test_what_is_left_over_is_known_by_its_name() -> None:
    left = ["job_due_ccnew", "job_due_ccnew31", "job_due_ccold1"]
    others = ["job_due", "job_due_ccnewa", "job_due_cc", "job_due2_ccnew", "my_job_due_ccnew", "job_due_ccnew_ccold_"]
    assert leftovers("job_due", [*left, *others]) == left
