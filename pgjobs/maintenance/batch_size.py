"""How many rows one statement of a duty changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from pgjobs.loggers import get_logger

log = get_logger("pgjobs.maintenance")

BATCH = 1000
LARGE_BATCH = 10_000  # for statements that do little per row
_MOST_TIMEOUTS = 3  # in a row


class BatchSize:
    """Starts large. After three timeouts of the server in a row it is smaller, until the process ends."""

    def __init__(self) -> None:
        self._timeouts = 0

    @contextmanager
    def next(self) -> Iterator[int]:
        """The size of the batch that the block works. A timeout in the block counts."""
        try:
            yield BATCH if self._timeouts >= _MOST_TIMEOUTS else LARGE_BATCH
        except psycopg.errors.QueryCanceled:
            self._timeouts += 1
            if self._timeouts == _MOST_TIMEOUTS:
                log.warning("%d timeouts in a row: batches of %d from now on", _MOST_TIMEOUTS, BATCH)
            raise
        if self._timeouts < _MOST_TIMEOUTS:
            self._timeouts = 0
