"""When a promote wants to be done again."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from unittest.mock import Mock

import pytest

from pgjobs.execution.queries import Store
from pgjobs.maintenance.duties import Maintenance


@pytest.mark.parametrize(
    ("due", "again"),
    [
        (300.0, 300.0),
        (5000.0, 1000.0),
        (-0.2, 0.0),  # it became due since the promote looked
        (-50.0, 20.0),  # that did see it, so somebody holds it
    ],
)
def test_a_job_that_has_just_become_due_does_not_wait_for_another_look(due: float, again: float) -> None:
    store = Mock(Store)
    store.schema = "pgjobs"
    store.promote.return_value = ({}, [], timedelta(milliseconds=due))
    conn: Any = None
    assert Maintenance(store, keep={}).promote(conn) == timedelta(milliseconds=again)
