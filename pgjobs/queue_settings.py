"""How a worker pool works one queue: with how many threads, whether in batches, and how durably."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from datetime import timedelta
from typing import Any, Literal

from pgjobs.errors import InvalidSetting, shown

Durability = Literal["full", "relaxed"]
MOST_IN_A_BATCH = 1_000
MOST_THREADS = 10_000


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """The threads of one queue, with settings of its own: `queues={"logs": QueueSettings(4, batch_size=50)}`.

    What is left out is as the worker pool has it.
    """

    threads: int
    _: KW_ONLY
    batch_size: int | None = None
    batch_time: timedelta | None = None
    durability: Durability | None = None

    def __post_init__(self) -> None:
        check_threads(self.threads)
        if self.batch_size is not None:
            _check_batch_size(self.batch_size)
        if self.batch_time is not None:
            _check_batch_time(self.batch_time)
        if self.durability is not None:
            _check_durability(self.durability)


@dataclass(frozen=True, slots=True)
class Way:
    """How the jobs of a queue are run."""

    batch_size: int
    batch_time: timedelta
    async_commit: bool

    def of(self, threads: int | QueueSettings) -> Way:
        """The way of one queue, where this is the pool's."""
        if not isinstance(threads, QueueSettings):
            return self
        return way(
            self.batch_size if threads.batch_size is None else threads.batch_size,
            self.batch_time if threads.batch_time is None else threads.batch_time,
            ("relaxed" if self.async_commit else "full") if threads.durability is None else threads.durability,
        )


def way(batch_size: Any, batch_time: Any, durability: Any) -> Way:
    """How jobs are run, checked."""
    _check_batch_size(batch_size)
    _check_batch_time(batch_time)
    _check_durability(durability)
    return Way(batch_size, batch_time, durability == "relaxed")


def check_threads(threads: object) -> None:
    if not isinstance(threads, int) or isinstance(threads, bool) or not 1 <= threads <= MOST_THREADS:
        raise InvalidSetting(f"threads is a whole number from 1 to {MOST_THREADS}, not {shown(threads)}")


def _check_batch_size(batch_size: object) -> None:
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or not 1 <= batch_size <= MOST_IN_A_BATCH:
        raise InvalidSetting(f"batch_size is 1 to {MOST_IN_A_BATCH} jobs, not {shown(batch_size)}")


def _check_batch_time(batch_time: object) -> None:
    if not isinstance(batch_time, timedelta) or batch_time <= timedelta(0):
        raise InvalidSetting(f"batch_time is a timedelta longer than nothing, not {shown(batch_time)}")


def _check_durability(durability: object) -> None:
    if not isinstance(durability, str) or durability not in ("full", "relaxed"):
        raise InvalidSetting(f"durability is 'full' or 'relaxed', not {shown(durability)}")


def number(threads: int | QueueSettings) -> int:
    """How many threads there are."""
    return threads.threads if isinstance(threads, QueueSettings) else threads
