"""The states of a job."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

#: The states as text. Every parameter that takes a JobState takes these too.
StateName = Literal["available", "scheduled", "pending", "running", "retryable", "completed", "cancelled", "discarded"]


class JobState(StrEnum):
    """The state of a job. The last three are final.

    available   may be claimed now                     retryable   failed, and waits for its next attempt
    scheduled   waits for its `scheduled_at`           completed   the handler returned, and its writes are committed
    pending     waits for `client.release`             cancelled   by `client.cancel` or by `raise Cancel(...)`
    running     an attempt runs                        discarded   failed, and has no further attempt
    """

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
