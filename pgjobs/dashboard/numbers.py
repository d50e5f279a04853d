"""What the pages show in numbers, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pgjobs.states import JobState

#: Counts are exact up to here; above, a page shows "10,000+".
MOST = 10_000


@dataclass(frozen=True, slots=True)
class Count:
    """A number of jobs: exact, the least that there are, or an estimate."""

    number: int
    least: bool = False
    about: bool = False

    def __str__(self) -> str:
        if self.least:
            return f"{self.number:,}+"
        return f"about {self.number:,}" if self.about else f"{self.number:,}"

    @property
    def jobs(self) -> str:
        """With its noun: 1 job, 12 jobs."""
        return f"{self} job" if str(self) == "1" else f"{self} jobs"

    def __bool__(self) -> bool:
        return self.number > 0


def bounded(number: int, *, least: bool = False) -> Count:
    """The count of a statement that stops above 10,000; `least` says that it may have missed some before."""
    return Count(MOST, least=True) if number > MOST else Count(number, least=least)


@dataclass(frozen=True, slots=True)
class QueueNumbers:
    name: str
    paused_at: datetime | None
    waiting: Count
    running: int
    oldest_since: datetime | None  # since when the oldest job could run
    workers: int  # processes that live and work it
    keep: Mapping[JobState, timedelta | None]

    def oldest(self, now: datetime) -> timedelta | None:
        """How long the oldest job has waited; a job may be available before its time, and does not wait yet."""
        return None if self.oldest_since is None else max(now - self.oldest_since, timedelta(0))


@dataclass(frozen=True, slots=True)
class AuditRow:
    id: int
    at: datetime
    who: str
    act: str
    target: Mapping[str, Any] | None  # None for a database role that may not read it
    count: int


@dataclass(frozen=True, slots=True)
class TableSize:
    name: str
    bytes: int
    index_bytes: int
    rows: int
    dead_rows: int
    vacuumed_at: datetime | None
    analyzed_at: datetime | None


@dataclass(frozen=True, slots=True)
class IndexSize:
    name: str
    table: str
    bytes: int
    scans: int
    valid: bool
