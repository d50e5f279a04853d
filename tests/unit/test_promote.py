"""When a promote wants to be done again."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from pgjobs.maintenance.duties import Maintenance
from pgjobs.maintenance.queries import MaintenanceQueries


@pytest.mark.parametrize(
    ("due", "again"),
    [
        (300.0, 300.0),
        (5000.0, 1000.0),
        (-0.2, 0.0),  # it became due since the promote looked
        (-50.0, 20.0),  # that did see it, so somebody holds it
    ],
)
def test_a_job_that_has_just_become_due_does_not_wait_for_another_look(
    due: float, again: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    promoted: tuple[dict[str, int], list[Any], timedelta] = ({}, [], timedelta(milliseconds=due))
    monkeypatch.setattr(MaintenanceQueries, "promote", lambda *_: promoted)
    conn: Any = None
    assert Maintenance("pgjobs", keep={}).promote(conn) == timedelta(milliseconds=again)
