"""Claims whose answer was lost: the job may run in the table without a handler."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

_FIRST_LOOK = 0.05  # seconds until a claim is looked for again whose answer never came; doubles


@dataclass(slots=True, eq=False)
class Orphan:
    """A claim whose answer never came."""

    queue: str
    token: UUID
    until: float  # when it is too late for it, by the monotonic clock
    due: float = 0.0  # when to look for it again
    pause: float = _FIRST_LOOK
