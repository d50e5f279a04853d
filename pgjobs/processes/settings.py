"""What `pgjobs work` was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSettings:
    """What each child is told. Durations are in seconds and sizes in bytes, since this travels as JSON."""

    target: str  # module:pool_or_factory
    queues: Mapping[str, int | None] | None = None  # threads by queue, None for those of the pool; None for all queues
    stop_timeout: float | None = None  # None: the pool's
    start_timeout: float = 60.0  # in which the application must be loaded
    max_jobs: int | None = None
    max_rss: int | None = None
    max_age: float | None = None
    burst: bool = False
    wait: bool = True  # for missing tables and an unreachable database
    reload: bool = False
    metrics: bool = False  # report the metrics of the pool
    log_level: str = "INFO"
    log_format: str = "text"
    program: str = "pgjobs"  # the program whose command `migrate` makes the tables of the pool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        return cls(**values)
