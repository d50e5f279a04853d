"""The states of a job."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

#: The states as text, where a JobState would do too.
StateName = Literal["available", "scheduled", "pending", "running", "retryable", "completed", "cancelled", "discarded"]


class JobState(StrEnum):
    """Where a job stands. The last three are final."""

    AVAILABLE = "available"
    SCHEDULED = "scheduled"
    PENDING = "pending"
    RUNNING = "running"
    RETRYABLE = "retryable"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    DISCARDED = "discarded"

    @property
    def final(self) -> bool:
        return self in _FINAL


_FINAL = frozenset({JobState.COMPLETED, JobState.CANCELLED, JobState.DISCARDED})
