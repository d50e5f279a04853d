"""What becomes of a call that changes many jobs: batch by batch, passing over what cannot be had."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import psycopg

from pgjobs.control.filter_queries import FilterQueries, Place, Turn
from pgjobs.control.jobs import PATIENCE
from pgjobs.control.queries import ControlResult
from pgjobs.db.cursors import AnyConnection
from pgjobs.execution.set_aside import MOST_ALIKE, concerns_a_row
from pgjobs.figures import ManyJobs
from pgjobs.job import Job
from pgjobs.job_filter import JobFilter

BATCH = 1000  # jobs of one statement, and of one transaction of our own
_PAUSE = 0.02  # seconds between two tries of what somebody holds


@dataclass
class Many:
    """One call that does `act` to the jobs that fit `filter`, the oldest first, but to no more than `limit`.

    `transaction` gives the connection of a batch: one that commits behind it, or again and again the caller's, which is
    `borrowed`. `running` says whether the act has an answer for a job that runs, `insist` whether a second look at what
    somebody holds can show anything new.
    """

    queries: FilterQueries
    filter: JobFilter
    act: Callable[[AnyConnection, Turn], list[ControlResult]]
    transaction: Callable[[], AbstractContextManager[AnyConnection]]
    limit: int | None
    borrowed: bool
    running: bool
    retry_busy: bool
    _done: dict[Place, Job[Any]] = field(default_factory=dict)
    _skipped: dict[Place, str] = field(default_factory=dict)
    _busy: set[Place] = field(default_factory=set)
    _patience: float = field(default_factory=lambda: PATIENCE)  # seconds that are left to wait, in all

    def carry_out(self) -> ManyJobs:
        with self.transaction() as conn:
            newest = self.queries.newest_id(conn)
        if newest is None:
            return ManyJobs((), {})
        after: Place | None = None
        while batch := self._batch():
            after = self._do(Turn(newest=newest, batch=batch, after=after))
            if after is None:
                break
        self._try_busy_again(newest)
        self._skipped.update(dict.fromkeys(self._busy, "locked"))
        skipped = {id: why for (id, _), why in sorted(self._skipped.items())}
        return ManyJobs(tuple(self._done[place] for place in sorted(self._done)), skipped)

    def _batch(self) -> int:
        if self.limit is None:
            return BATCH
        return min(BATCH, self.limit - len(self._done) - len(self._busy))

    def _do(self, turn: Turn) -> Place | None:
        """Do a batch; behind which place the next one begins, None when there is none."""
        try:
            places = self._sort(self._try(turn))
        except psycopg.Error as error:
            if self.borrowed or not _may_be_of_one(error):  # borrowed: the caller's transaction is aborted
                raise
            places = self._one_by_one(turn)
        return places[-1] if len(places) == turn.batch else None

    def _try(self, turn: Turn) -> list[ControlResult]:
        with self.transaction() as conn:
            if not self.borrowed:
                self.queries.begin_many(conn, self._patience)
            began = time.monotonic()
            try:
                return self.act(conn, turn)
            except psycopg.errors.LockNotAvailable:
                self._patience -= time.monotonic() - began
                raise

    def _one_by_one(self, turn: Turn) -> Sequence[Place]:
        """One of a batch would have to be waited for, or may not be what it shall be: only that one is left out."""
        with self.transaction() as conn:
            places = self.queries.places_in_turn(conn, self.filter, turn)
        refused = 0  # in succession
        for place in places:
            try:
                self._sort(self._try(Turn(newest=turn.newest, batch=1, among=[place])))
                refused = 0
            except psycopg.Error as error:
                why = _why_not(error)
                refused = refused + 1 if why == "refused" else 0
                if why is None or refused > MOST_ALIKE:  # the fault is not of one
                    raise
                self._skipped[place] = why
        return places

    def _sort(self, verdicts: Sequence[ControlResult]) -> Sequence[Place]:
        """Note what became of each; their places."""
        for job, verdict in verdicts:
            place = (job.id, job.queue)
            if verdict == "done" or (verdict == "running" and self.running):
                self._done[place] = job
            elif verdict == "busy":
                self._busy.add(place)
            else:
                self._skipped[place] = verdict
        return [(job.id, job.queue) for job, _ in verdicts]

    def _try_busy_again(self, newest: int) -> None:
        """What somebody held may be free now, for as long as there is patience."""
        give_up = time.monotonic() + self._patience
        while self.retry_busy and self._busy and time.monotonic() < give_up:
            time.sleep(_PAUSE)
            among, self._busy = sorted(self._busy), set()
            for first in range(0, len(among), BATCH):
                self._do(Turn(newest=newest, batch=BATCH, among=among[first : first + BATCH]))


def _may_be_of_one(error: psycopg.Error) -> bool:
    return isinstance(error, psycopg.errors.LockNotAvailable) or concerns_a_row(error)


def _why_not(error: psycopg.Error) -> str | None:
    """Why one job was left as it is; None when the error says nothing of it."""
    if isinstance(error, psycopg.errors.LockNotAvailable):
        return "locked"
    if isinstance(error, psycopg.errors.UniqueViolation) and error.diag.constraint_name == "job_unique":
        return "conflict"  # a duplicate that was inserted in the same moment
    if isinstance(error, psycopg.errors.ForeignKeyViolation):
        return "referenced"
    return "refused" if concerns_a_row(error) else None
