"""The low-water mark of a queue: the newest claimed place, behind which the next claim starts."""

from __future__ import annotations

from typing import NamedTuple

from pgjobs.execution.queries import Mark


class LowWaterMark(NamedTuple):
    """The job of a queue that was claimed last: what stands before it in the index is most likely dead."""

    mark: Mark
    until: float  # when to look at all again, by the monotonic clock
