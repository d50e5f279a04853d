"""The work of the duty `prune`: deletes jobs that have been over for longer than they are kept.

If no queue has a retention of its own, a batch is the oldest jobs of a state, which the index on the state and the end
of a job gives. If a queue is kept for longer or shorter than the others, that index also holds the jobs of other
queues, which may be millions. Then each pass goes on reading the index from where it stopped, a batch of jobs at a
time. Once an hour it begins anew, for jobs that were locked, or whose end was committed much later than it was written.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import psycopg

from pgjobs.control.queue_queries import QueueQueries
from pgjobs.db.cursors import AnyConnection
from pgjobs.execution.set_aside import concerns_a_row
from pgjobs.execution.unworkable import MOST_TRIES, Act, Row, Unworkable
from pgjobs.maintenance.queries import MaintenanceQueries, PrunePart, Selection
from pgjobs.states import JobState

_ANEW_EVERY = 3600.0  # seconds
_OVERLAP = timedelta(minutes=1)  # by which a pass goes back: the end of a job is written before it is committed


@dataclass(frozen=True, slots=True)
class Pass:
    """The jobs of a state that go after a time: of one queue, or of all but some."""

    state: JobState
    keep: timedelta
    queue: str | None = None
    others: tuple[str, ...] = ()

    @property
    def is_simple(self) -> bool:
        return self.queue is None and not self.others

    @property
    def name(self) -> str:
        return f"prune {self.state}" if self.queue is None else f"prune {self.state} of queue {self.queue}"


@dataclass(slots=True)
class Place:
    """How far a pass has read the index, in this process."""

    ended_at: datetime | None = None
    id: int = 0
    began: float = field(default_factory=time.monotonic)
    is_through: bool = False


class Pruning:
    """Deletes what has been over for longer than it is kept."""

    def __init__(self, schema: str, unworkable: Unworkable) -> None:
        self._queries = MaintenanceQueries(schema)
        self._unworkable = unworkable
        self._queues = QueueQueries(schema)
        self._places: dict[Pass, Place] = {}

    def prune(self, conn: AnyConnection, keep: Mapping[JobState, timedelta | None], batch: int) -> bool:
        """Do a batch of each pass; `keep` is what holds for queues that say nothing. Whether to go on at once."""
        passes = self._passes(conn, keep)
        self._places = {which: self._places.get(which, Place()) for which in passes}
        return any([self._prune(conn, which, batch) for which in passes])

    def _passes(self, conn: AnyConnection, keep: Mapping[JobState, timedelta | None]) -> list[Pass]:
        own = self._queues.own_retention(conn)
        general = [
            Pass(state, kept, others=tuple(queue for queue, of, _ in own if of == state))
            for state, kept in keep.items()
            if kept is not None
        ]
        return general + [Pass(state, kept, queue) for queue, state, kept in own if kept < timedelta.max]

    def _prune(self, conn: AnyConnection, which: Pass, batch: int) -> bool:
        """Do a batch of a pass, without the rows that may not be deleted now; whether to go on at once."""
        act = which.name
        rows = Selection(aside=self._unworkable.aside.rows(act))
        try:
            return self._do(conn, which, batch, rows)
        except psycopg.Error as error:

            def prune(ids: Sequence[int]) -> None:
                self._prune_among(conn, which, ids)

            def find() -> list[Row]:
                if which.is_simple:
                    return self._queries.rows_to_prune(conn, which.state, which.keep, batch, rows)
                return self._queries.rows_to_prune_part(conn, self._part(which), batch, rows)

            try:
                self._unworkable.bit_by_bit(conn, Act(act, find, prune, None), error)
            except psycopg.Error as common:
                if not concerns_a_row(common):
                    raise
                return self._prune_some(conn, which) > 0
        return True

    def _do(self, conn: AnyConnection, which: Pass, batch: int, rows: Selection) -> bool:
        if which.is_simple:
            return self._queries.prune(conn, which.state, which.keep, batch, rows) >= batch
        return self._read_on(conn, which, batch, rows)

    def _prune_some(self, conn: AnyConnection, which: Pass) -> int:
        """Delete some jobs in no order, since the first in order must all stay. How many were deleted."""
        deleted = 0
        for id, _ in self._queries.some_jobs_to_prune(
            conn, which.state, which.keep, MOST_TRIES, queue=which.queue, others=which.others
        ):
            try:
                deleted += self._prune_among(conn, which, [id])
            except psycopg.Error as error:
                if not concerns_a_row(error):
                    raise
        return deleted

    def _prune_among(self, conn: AnyConnection, which: Pass, ids: Sequence[int]) -> int:
        """Those with these ids: other queues, which are kept for longer, may have jobs of the same."""
        among, queue, others = Selection(among=ids), which.queue, which.others
        return self._queries.prune(conn, which.state, which.keep, len(ids), among, queue=queue, others=others)

    def _part(self, which: Pass) -> PrunePart:
        place = self._places[which]
        return PrunePart(which.state, which.keep, which.queue, which.others, place.ended_at, place.id)

    def _read_on(self, conn: AnyConnection, which: Pass, batch: int, rows: Selection) -> bool:
        place = self._places[which]
        if place.is_through and time.monotonic() - place.began >= _ANEW_EVERY:
            place = self._places[which] = Place()
        seen, last = self._queries.prune_part(conn, self._part(which), batch, rows)
        if last is not None:
            place.ended_at, place.id = last
        if seen < batch:
            place.is_through = True
            if last is not None:
                place.ended_at, place.id = last[0] - _OVERLAP, 0
        return seen >= batch
