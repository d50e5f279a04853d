"""Adds the figures of a worker pool to the table `figure`, every 10 seconds and when the pool stops.

Only what has been counted since the last write is added, and after a failure it is added with the next one. If a COMMIT
was sent and its answer is lost, it may be added twice. If the process is killed, what it has counted since its last
write is lost, and that is 10 seconds of figures. The time of a figure is that of its write.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from psycopg.pq import TransactionStatus

from pgjobs.db.cursors import AnyConnection, rollback
from pgjobs.observe.figures import AttemptFigures, FigureKey, Tally
from pgjobs.workers.queries import FigureRow, WorkerQueries

WRITE_EVERY = 10.0  # seconds
_MOST_ROWS = 1000  # of one statement


class FiguresWriter:
    """The writer of one worker pool. Only its maintenance thread calls `write`. `clock` returns the time in seconds."""

    def __init__(
        self, queries: WorkerQueries, figures: AttemptFigures, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._queries = queries
        self._figures = figures
        self._clock = clock
        self._written: dict[FigureKey, Tally] = {}
        self._write_at = clock() + WRITE_EVERY

    def write(self, conn: AnyConnection, *, at_once: bool = False) -> bool:
        """Add what is new, if that is due or `at_once`. Returns whether there was anything."""
        now = self._clock()
        if now < self._write_at and not at_once:
            return False
        self._write_at = now + WRITE_EVERY  # also after a failure
        counted = self._figures.snapshot()
        new = [key for key, tally in counted.items() if tally != self._written_of(key)]
        for start in range(0, len(new), _MOST_ROWS):
            some = {key: counted[key] for key in new[start : start + _MOST_ROWS]}
            self._add(conn, {key: tally.plus(self._written_of(key), -1) for key, tally in some.items()})
            self._written.update(some)
        return bool(new)

    @property
    def unwritten(self) -> int:
        """How many attempts are counted and not in the table. May be asked on any thread."""
        return sum(tally.attempts - self._written_of(key).attempts for key, tally in self._figures.snapshot().items())

    def _written_of(self, key: FigureKey) -> Tally:
        return self._written.get(key, Tally())

    def _add(self, conn: AnyConnection, tallies: Mapping[FigureKey, Tally]) -> None:
        rows: dict[tuple[str, str], FigureRow] = {}
        for key, tally in tallies.items():
            rows.setdefault((key.queue, key.kind), FigureRow()).add(key.outcome, tally)
        try:
            self._queries.add_figures(conn, rows)
        except Exception:
            if conn.info.transaction_status == TransactionStatus.INERROR:
                rollback(conn)
            raise
