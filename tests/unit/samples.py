"""A job made by hand, for tests that need one and no database."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pgjobs import Job, JobState

NOON = datetime(2025, 1, 2, 12, tzinfo=UTC)


def a_job(**changes: Any) -> Job[Any]:
    """A job in its first attempt, with `changes`."""
    fields: dict[str, Any] = {
        "id": 1,
        "state": JobState.RUNNING,
        "queue": "default",
        "kind": "thing",
        "priority": 0,
        "attempt": 1,
        "max_attempts": 25,
        "raw_args": "{}",
        "scheduled_at": NOON,
        "created_at": NOON,
    }
    return Job(**(fields | changes))
