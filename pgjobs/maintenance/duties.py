"""The duties that keep the queue moving, and the one thread that repeats them.

No process is the leader. A duty is a row with a time; whoever can lock that row when it is due does the duty, in short
transactions that the server bounds, and moves the time on. So a process that dies or hangs holds nobody up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager, suppress
from datetime import timedelta
from random import random
from typing import Any

import psycopg

from pgjobs.clean_text import one_line
from pgjobs.db.cursors import AnyConnection
from pgjobs.db.repair import SchemaRepair
from pgjobs.execution.queries import ExecutionQueries
from pgjobs.execution.set_aside import SetAside, concerns_a_row
from pgjobs.execution.unworkable import CANCEL, MOST_TRIES, PROMOTE, RESCUE, Act, Row, Unworkable
from pgjobs.job import Job, JobState
from pgjobs.loggers import get_logger
from pgjobs.maintenance.pruning import Pruning
from pgjobs.maintenance.queries import DutyMissing, MaintenanceQueries, Rescued, Selection
from pgjobs.maintenance.reindexer import Reindex, is_time, next_time
from pgjobs.workers.queries import WorkerQueries

log = get_logger("pgjobs.maintenance")

BATCH = 1000  # rows that one statement of a duty touches at most
LARGE_BATCH = 10_000  # the same where each row costs little, until the database proves too slow for that
_TIMEOUTS = 3  # in a row
# A claim and its lock leave in one message, so a running row this old without a lock has lost its worker.
RESCUE_GRACE = timedelta(seconds=3)
PROMOTE_EVERY = timedelta(seconds=1)  # at the latest; an enqueue that is due within twice that tells, see enqueuing.sql
_PROMOTE_AGAIN = timedelta(milliseconds=20)  # for a job that is due still because somebody holds it
_RESCUE_EVERY = timedelta(seconds=1)
_PRUNE_EVERY = timedelta(seconds=30)
# Who has done a rescue is late for the next one, by up to so much: what one process must leave, another may take.
_STAND_BACK = timedelta(seconds=0.5)
_FORGET_EVERY = timedelta(seconds=30)
_FORGET_AFTER = timedelta(minutes=1)
AFTER_FAILURE = timedelta(seconds=5)
# What the row of a duty may say at most; more is of a server whose clock was ahead, or of a hand.
_LONGEST = timedelta(minutes=5)
_LONGEST_OF_INDEXES = timedelta(hours=25)  # once in a day
AT_LEAST_EVERY = timedelta(seconds=1)  # look whether somebody else's duty is due
URGENT = ("promote", "rescue")  # the duties that somebody may be waiting for
# When to look again after a look that found nothing for them: a job that starts now is rescued after RESCUE_GRACE at
# the earliest, and one that is due within two seconds tells when it is enqueued, where that is heard.
GLANCE_EVERY = timedelta(seconds=1.75)
_SELDOM = timedelta(seconds=30)  # the same for the others
SOON = timedelta(0)
_EARLY = timedelta(milliseconds=1)  # by which the row says sooner: not to find it too early at the moment itself
_ONE_BY_ONE = MOST_TRIES  # rows of a transaction that puts each behind a savepoint


class Batches:
    """How many rows a duty takes at once: fewer, once several of its tries in a row were ended by the server's
    timeout, and then for as long as the process lives."""

    def __init__(self) -> None:
        self._timeouts = 0

    @contextmanager
    def next(self) -> Iterator[int]:
        """The size of the batch that the block deals with."""
        try:
            yield BATCH if self._timeouts >= _TIMEOUTS else LARGE_BATCH
        except psycopg.errors.QueryCanceled:
            self._timeouts += 1
            if self._timeouts == _TIMEOUTS:
                log.warning("%d timeouts in a row: batches of %d from now on", _TIMEOUTS, BATCH)
            raise
        if self._timeouts < _TIMEOUTS:
            self._timeouts = 0


class Maintenance:
    """The acts. Each is one call that does all there is to do now, and returns when it wants to be done again."""

    def __init__(
        self,
        schema: str,
        *,
        keep: Mapping[JobState, timedelta | None],
        wake: Callable[[str, int], None] = lambda queue, jobs: None,
        rescued: Callable[[Job[Any]], None] | None = None,
        reads_rescued: Callable[[], bool] = lambda: True,
        kinds: Callable[[], Iterable[str] | None] = lambda: None,
        reindex: Reindex | None = None,
    ) -> None:
        self._queries = MaintenanceQueries(schema)
        self._keep = keep
        self._wake = wake
        self._rescued = rescued
        self._reads_rescued = reads_rescued  # whether `rescued` wants more than what was changed: args, metadata
        self._kinds = kinds  # that this process knows; None is every kind
        self._workers = WorkerQueries(schema)
        self._repair = SchemaRepair(schema)
        self._rescue_batches = Batches()
        self._prune_batches = Batches()
        self._promoted: dict[str, int] = {}
        self.aside = SetAside()
        self._unworkable = Unworkable(ExecutionQueries(schema), self.aside)
        self._pruning = Pruning(schema, self._unworkable)
        self.duties: dict[str, Callable[[AnyConnection], timedelta]] = {
            "promote": self.promote,
            "rescue": self.rescue,
            "prune": self.prune,
            "workers": self.forget_workers,
        }
        self._reindex = reindex
        self._afterwards: list[Callable[[], None]] = []  # what a duty does when its time has been moved on
        if reindex is not None:
            self.duties["indexes"] = self.rebuild_indexes

    def promote(self, conn: AnyConnection) -> timedelta:
        """Make due jobs available; until exactly the next one is due."""
        rows = self._selected("promote")
        try:
            self._promoted, contested, due = self._queries.promote(conn, BATCH, *rows)
        except psycopg.Error as error:
            self._promote_bit_by_bit(conn, rows, error)
            return SOON
        self._note_work("promote", self._promoted)
        for id, queue in contested[:_ONE_BY_ONE]:
            self._promote_contested(conn, id, queue)
        if sum(self._promoted.values()) + len(contested) >= BATCH or len(contested) > _ONE_BY_ONE:
            return SOON
        if contested:  # which are due no longer
            due = self._queries.next_due(conn, *self._selected("promote"))
        if due is None:
            return PROMOTE_EVERY
        if due > SOON:
            return min(due, PROMOTE_EVERY)
        return _PROMOTE_AGAIN if -due > _PROMOTE_AGAIN else SOON  # due since a moment ago, or held by somebody

    def _selected(self, act: str) -> tuple[Selection] | tuple[()]:
        """What an act is to leave out, if there is anything."""
        aside = self.aside.rows(act)
        return (Selection(aside=aside),) if aside else ()

    def _note_work(self, act: str, done: Sized) -> None:
        if done:
            self.aside.worked(act)

    def _promote_bit_by_bit(self, conn: AnyConnection, rows: Sequence[Selection], error: psycopg.Error) -> None:
        self._promoted = {}

        def promote(ids: Sequence[int]) -> None:
            promoted, contested, _ = self._queries.promote(conn, len(ids), Selection(among=ids))
            for queue, jobs in promoted.items():
                self._promoted[queue] = self._promoted.get(queue, 0) + jobs
            for id, queue in contested if len(ids) == 1 else ():
                self._promote_contested(conn, id, queue)

        def find() -> list[Row]:
            return self._queries.rows_to_promote(conn, BATCH, *rows)

        self._unworkable.bit_by_bit(conn, Act("promote", find, promote, PROMOTE), error)

    def _promote_contested(self, conn: AnyConnection, id: int, queue: str) -> None:
        """Promote a job whose unique key a duplicate may have taken while it waited."""
        try:
            try:
                state = self._queries.settle_promotion(conn, id, queue)
            except (psycopg.errors.UniqueViolation, psycopg.errors.LockNotAvailable):  # the duplicate is being inserted
                self._queries.postpone_promotion(conn, id, queue)
                return
        except psycopg.Error as error:
            if not concerns_a_row(error):
                raise
            self._unworkable.deal_with(conn, "promote", (id, queue), error, PROMOTE)
            self.aside.say("promote")
            return
        if state is JobState.AVAILABLE:
            self._promoted[queue] = self._promoted.get(queue, 0) + 1
        elif state is not None:
            log.info("job %d discarded: another job has its unique key", id)

    def rescue(self, conn: AnyConnection) -> timedelta:
        """Finish the attempts of workers that vanished, and what is left of requests to cancel attempts that ended.

        An attempt counts, with an error that says so, and the job is tried again after 1 s, the next time after 2 s,
        up to a minute; or discarded, if that was its last one. But if its worker ran other jobs as well, any of them
        may be to blame: then a job that never failed before gets its attempt back, twice at most. So what kills its
        process is started `max_attempts` times when it is alone, and twice more when it never is. A last attempt of a
        kind that this process does not know is left for a day to one that does.
        """
        with self._rescue_batches.next() as batch:
            jobs = self._rescue(conn, batch)
            cancelled, settled = self._settle_requests(conn, batch)
        for job in jobs:
            count = f"attempt {job.attempt} counts" if job.token else "as it ran others too, the attempt is given back"
            log.warning("job %d rescued: its worker vanished; %s; now %s", job.id, count, job.state)
            self._tell_of(conn, job)
        if cancelled:
            log.info("%d jobs cancelled whose attempt ended while that was being asked for", cancelled)
        return SOON if jobs.more or max(len(jobs), settled) >= batch else _RESCUE_EVERY

    def _rescue(self, conn: AnyConnection, batch: int) -> Rescued:
        rows, kinds = self._selected("rescue"), self._kinds()
        try:
            jobs = self._queries.rescue(conn, batch, RESCUE_GRACE, kinds, *rows)
        except psycopg.Error as error:
            jobs = Rescued()
            jobs.more = True

            def rescue(ids: Sequence[int]) -> None:
                jobs.extend(self._queries.rescue(conn, len(ids), RESCUE_GRACE, kinds, Selection(among=ids)))

            def find() -> list[Row]:
                return self._queries.rows_to_rescue(conn, batch, RESCUE_GRACE, kinds, *rows)

            self._unworkable.bit_by_bit(conn, Act("rescue", find, rescue, RESCUE), error)
        self._note_work("rescue", jobs)
        return jobs

    def _tell_of(self, conn: AnyConnection, job: Job[Any]) -> None:
        """Tell of a rescued job. What it holds may be large, so it is read only for who wants it, one job at a time."""
        if self._rescued is None:
            return
        if self._reads_rescued():
            with suppress(psycopg.DataError, psycopg.ProgrammingError):
                job = self._queries.rescued_job(conn, job.id, job.queue) or job
        self._rescued(job)

    def _settle_requests(self, conn: AnyConnection, batch: int) -> tuple[int, int]:
        """How many jobs are cancelled, and requests dealt with."""
        act = "cancel requests"
        rows, cancelled, settled = self._selected(act), 0, 0
        try:
            return self._queries.settle_requests(conn, batch, *rows)
        except psycopg.Error as error:

            def settle(ids: Sequence[int]) -> None:
                nonlocal cancelled, settled
                counts = self._queries.settle_requests(conn, batch, Selection(among=ids))
                cancelled, settled = cancelled + counts[0], settled + counts[1]

            def find() -> list[Row]:
                return self._queries.rows_to_settle(conn, batch, *rows)

            self._unworkable.bit_by_bit(conn, Act(act, find, settle, CANCEL), error)
        return cancelled, batch  # there may be more

    def prune(self, conn: AnyConnection) -> timedelta:
        """Delete what has been over for longer than it is kept."""
        with self._prune_batches.next() as batch:
            return SOON if self._pruning.prune(conn, self._keep, batch) else _PRUNE_EVERY

    def forget_workers(self, conn: AnyConnection) -> timedelta:
        """Remove processes that vanished from the registry."""
        for id in self._workers.age_out(conn, _FORGET_AFTER):
            log.warning("worker %s is gone: it has not said for %s that it is there", one_line(id), _FORGET_AFTER)
        return _FORGET_EVERY

    def rebuild_indexes(self, conn: AnyConnection) -> timedelta:
        """Let the indexes be rebuilt if it is their time of the day: once in a day by one process. When nobody was
        there at that time, not until the next one.

        A rebuild is no part of a transaction. It begins when the duty's time has been moved on and that is committed,
        so that nobody else begins one.
        """
        assert self._reindex is not None
        now = self._queries.current_time(conn)
        if is_time(self._reindex.at, now):
            self._afterwards.append(self._reindex.start)
        return next_time(self._reindex.at, now) - now

    def do(self, conn: AnyConnection, duty: str) -> timedelta:
        """Do a duty if it is due and nobody else is at it; how long until it is due again."""
        try:
            longest = _LONGEST_OF_INDEXES if duty == "indexes" else _LONGEST
            remaining = self._queries.begin_duty(conn, duty, longest)
        except DutyMissing:  # somebody has emptied the table
            self._repair.insert_duties(conn, self._repair.missing_duties(conn))
            return SOON
        if remaining is None:  # somebody else is at it
            return AT_LEAST_EVERY
        if remaining > SOON:
            return min(remaining + _EARLY, AT_LEAST_EVERY if duty in URGENT else _SELDOM)
        self._afterwards.clear()
        after = self.duties[duty](conn)
        said, exact = time.monotonic(), SOON < after < AT_LEAST_EVERY
        self._queries.end_duty(conn, duty, max(SOON, after - _EARLY) if exact else after)
        for act in self._afterwards:
            act()
        self._wake_promoted()  # not before others can see them
        if exact:
            after = max(SOON, after - timedelta(seconds=time.monotonic() - said))
        return after + _STAND_BACK * random() if duty == "rescue" else after

    def _wake_promoted(self) -> None:
        promoted, self._promoted = self._promoted, {}
        for queue, jobs in promoted.items():
            self._wake(queue, jobs)

    def glance(self, conn: AnyConnection) -> set[str]:
        """Those of the duties of every second that would find anything."""
        return self._queries.glance(conn, GLANCE_EVERY + PROMOTE_EVERY)

    def hurry(self, conn: AnyConnection) -> None:
        """A job was enqueued that is due before the next promote was to be."""
        self._queries.hurry_promote(conn)

    def postpone(self, conn: AnyConnection, duty: str) -> None:
        """After a failure: move the duty's time on, so that not every process tries it hot."""
        self._queries.postpone_duty(conn, duty, AFTER_FAILURE)
