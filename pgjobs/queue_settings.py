"""How a worker pool works one queue: with how many threads, in which batches, and how durably."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from datetime import timedelta
from typing import Any, Literal

from pgjobs.errors import InvalidSetting, shown

Durability = Literal["full", "relaxed"]
MOST_IN_A_BATCH = 1_000
MOST_THREADS = 10_000


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """The threads of one queue, with its own settings: `queues={"logs": QueueSettings(threads=4, batch_size=50)}`.

    A setting that is left out is the worker pool's.
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
class RunSettings:
    """How the jobs of a worker pool, or of one of its queues, are run."""

    batch_size: int
    batch_time: timedelta
    async_commit: bool

    def for_queue(self, threads: int | QueueSettings) -> RunSettings:
        """The settings of a queue, where these are the pool's."""
        if not isinstance(threads, QueueSettings):
            return self
        return RunSettings(
            self.batch_size if threads.batch_size is None else threads.batch_size,
            self.batch_time if threads.batch_time is None else threads.batch_time,
            self.async_commit if threads.durability is None else threads.durability == "relaxed",
        )


def check_run_settings(batch_size: Any, batch_time: Any, durability: Any) -> RunSettings:
    _check_batch_size(batch_size)
    _check_batch_time(batch_time)
    _check_durability(durability)
    return RunSettings(batch_size, batch_time, durability == "relaxed")


def check_queues(queues: Any) -> Mapping[str, int | QueueSettings]:
    if queues is None:
        return {"default": 10}
    if not isinstance(queues, Mapping):
        raise InvalidSetting(f"queues is a mapping from name to threads, as in {{'default': 10}}, not {shown(queues)}")
    if not queues:
        raise InvalidSetting("queues is empty: give at least one, as in {'default': 10}")
    return queues


def check_thread_counts(threads: Any) -> None:
    """The argument of `WorkerPool.select_queues`."""
    if not isinstance(threads, Mapping) or not threads:
        raise InvalidSetting(
            f"select_queues takes names of queues and threads, as in {{'mail': 2}}, not {shown(threads)}"
        )
    for number in threads.values():
        if number is not None:
            check_threads(number)


def check_threads(threads: object) -> None:
    if not isinstance(threads, int) or isinstance(threads, bool) or not 1 <= threads <= MOST_THREADS:
        raise InvalidSetting(f"threads is a whole number from 1 to {MOST_THREADS}, not {shown(threads)}")


def thread_count(threads: int | QueueSettings) -> int:
    return threads.threads if isinstance(threads, QueueSettings) else threads


def _check_batch_size(batch_size: object) -> None:
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or not 1 <= batch_size <= MOST_IN_A_BATCH:
        raise InvalidSetting(f"batch_size is 1 to {MOST_IN_A_BATCH} jobs, not {shown(batch_size)}")


def _check_batch_time(batch_time: object) -> None:
    if not isinstance(batch_time, timedelta) or batch_time <= timedelta(0):
        raise InvalidSetting(f"batch_time is a timedelta > 0, not {shown(batch_time)}")


def _check_durability(durability: object) -> None:
    if not isinstance(durability, str) or durability not in ("full", "relaxed"):
        raise InvalidSetting(f"durability is 'full' or 'relaxed', not {shown(durability)}")
