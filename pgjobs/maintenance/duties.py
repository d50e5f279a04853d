"""The duties that keep the queue moving, and the one thread that repeats them.

No process is the leader. A duty is a row with a time; whoever can lock that row when it is due does the duty, in short
transactions that the server bounds, and moves the time on. So a process that dies or hangs holds nobody up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from functools import partial
from queue import Empty, SimpleQueue
from random import random
from typing import Any

import psycopg
from psycopg_pool import PoolClosed

from pgjobs.clean_text import one_line
from pgjobs.db.bookkeeping import Bookkeeping
from pgjobs.db.checkout import Checkout
from pgjobs.db.cursors import AnyConnection
from pgjobs.db.source import PoolSource
from pgjobs.execution.queries import DutyMissing, Rescued, Selection, Store
from pgjobs.execution.set_aside import SetAside, concerns_a_row
from pgjobs.execution.unworkable import CANCEL, MOST_TRIES, PROMOTE, RESCUE, Act, Row, Unworkable
from pgjobs.job import Job, JobState
from pgjobs.loggers import get_logger
from pgjobs.maintenance.pruning import Cleaning
from pgjobs.maintenance.reindexer import Reindex, is_time, next_time
from pgjobs.outages import Outages
from pgjobs.workers.queries import Workers

log = get_logger("pgjobs.maintenance")

BATCH = 1000  # rows that one statement of a duty touches at most
LARGE_BATCH = 10_000  # the same where each row costs little, until the database proves too slow for that
_TIMEOUTS = 3  # in a row
# A claim and its lock leave in one message, so a running row this old without a lock has lost its worker.
RESCUE_GRACE = timedelta(seconds=3)
PROMOTE_EVERY = timedelta(seconds=1)  # at the latest; an enqueue that is due within twice that tells, see enqueue.sql
_PROMOTE_AGAIN = timedelta(milliseconds=20)  # for a job that is due still because somebody holds it
_RESCUE_EVERY = timedelta(seconds=1)
_CLEAN_EVERY = timedelta(seconds=30)
# Who has done a rescue is late for the next one, by up to so much: what one process must leave, another may take.
_STAND_BACK = timedelta(seconds=0.5)
_FORGET_EVERY = timedelta(seconds=30)
_FORGET_AFTER = timedelta(minutes=1)
AFTER_FAILURE = timedelta(seconds=5)
# What the row of a duty may say at most; more is of a server whose clock was ahead, or of a hand.
_LONGEST = timedelta(minutes=5)
_LONGEST_OF_INDEXES = timedelta(hours=25)  # once in a day
_AT_LEAST_EVERY = timedelta(seconds=1)  # look whether somebody else's duty is due
_HURRIED = ("promote", "rescue")  # the duties that somebody may be waiting for
# When to look again after a look that found nothing for them: a job that starts now is rescued after RESCUE_GRACE at
# the earliest, and one that is due within two seconds tells when it is enqueued, where that is heard.
_GLANCE_EVERY = timedelta(seconds=1.75)
_SELDOM = timedelta(seconds=30)  # the same for the others
_SOON = timedelta(0)
_EARLY = timedelta(milliseconds=1)  # by which the row says sooner: not to find it too early at the moment itself
_ONE_BY_ONE = MOST_TRIES  # rows of a transaction that puts each behind a savepoint
_BESIDE_EVERY = 1.0  # seconds
_BESIDE = "looking for jobs to cancel, and saying that this process is there,"
_ANSWER_WITHIN = 40.0  # seconds for what is quick; the server gives each statement 30
_SLOW_ANSWER_WITHIN = 600.0  # for duties of many statements


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
        store: Store,
        *,
        keep: Mapping[JobState, timedelta | None],
        wake: Callable[[str, int], None] = lambda queue, jobs: None,
        rescued: Callable[[Job[Any]], None] | None = None,
        reads_rescued: Callable[[], bool] = lambda: True,
        kinds: Callable[[], Iterable[str] | None] = lambda: None,
        reindex: Reindex | None = None,
    ) -> None:
        self._store = store
        self._keep = keep
        self._wake = wake
        self._rescued = rescued
        self._reads_rescued = reads_rescued  # whether `rescued` wants more than what was changed: args, metadata
        self._kinds = kinds  # that this process knows; None is every kind
        self._workers = Workers(store.schema)
        self._books = Bookkeeping(store.schema)
        self._rescue_batches = Batches()
        self._clean_batches = Batches()
        self._promoted: dict[str, int] = {}
        self.aside = SetAside()
        self._unworkable = Unworkable(store, self.aside)
        self._cleaning = Cleaning(store, self._unworkable)
        self.duties: dict[str, Callable[[AnyConnection], timedelta]] = {
            "promote": self.promote,
            "rescue": self.rescue,
            "clean": self.clean,
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
            self._promoted, contested, due = self._store.promote(conn, BATCH, *rows)
        except psycopg.Error as error:
            self._promote_bit_by_bit(conn, rows, error)
            return _SOON
        self._note_work("promote", self._promoted)
        for id, queue in contested[:_ONE_BY_ONE]:
            self._promote_contested(conn, id, queue)
        if sum(self._promoted.values()) + len(contested) >= BATCH or len(contested) > _ONE_BY_ONE:
            return _SOON
        if contested:  # which are due no longer
            due = self._store.next_due(conn, *self._selected("promote"))
        if due is None:
            return PROMOTE_EVERY
        if due > _SOON:
            return min(due, PROMOTE_EVERY)
        return _PROMOTE_AGAIN if -due > _PROMOTE_AGAIN else _SOON  # due since a moment ago, or held by somebody

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
            promoted, contested, _ = self._store.promote(conn, len(ids), Selection(among=ids))
            for queue, jobs in promoted.items():
                self._promoted[queue] = self._promoted.get(queue, 0) + jobs
            for id, queue in contested if len(ids) == 1 else ():
                self._promote_contested(conn, id, queue)

        def find() -> list[Row]:
            return self._store.rows_to_promote(conn, BATCH, *rows)

        self._unworkable.bit_by_bit(conn, Act("promote", find, promote, PROMOTE), error)

    def _promote_contested(self, conn: AnyConnection, id: int, queue: str) -> None:
        """Promote a job whose unique key a twin may have taken while it waited."""
        try:
            try:
                state = self._store.settle_promotion(conn, id, queue)
            except (psycopg.errors.UniqueViolation, psycopg.errors.LockNotAvailable):  # the twin is being inserted
                self._store.postpone_promotion(conn, id, queue)
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
        return _SOON if jobs.more or max(len(jobs), settled) >= batch else _RESCUE_EVERY

    def _rescue(self, conn: AnyConnection, batch: int) -> Rescued:
        rows, kinds = self._selected("rescue"), self._kinds()
        try:
            jobs = self._store.rescue(conn, batch, RESCUE_GRACE, kinds, *rows)
        except psycopg.Error as error:
            jobs = Rescued()
            jobs.more = True

            def rescue(ids: Sequence[int]) -> None:
                jobs.extend(self._store.rescue(conn, len(ids), RESCUE_GRACE, kinds, Selection(among=ids)))

            def find() -> list[Row]:
                return self._store.rows_to_rescue(conn, batch, RESCUE_GRACE, kinds, *rows)

            self._unworkable.bit_by_bit(conn, Act("rescue", find, rescue, RESCUE), error)
        self._note_work("rescue", jobs)
        return jobs

    def _tell_of(self, conn: AnyConnection, job: Job[Any]) -> None:
        """Tell of a rescued job. What it holds may be large, so it is read only for who wants it, one job at a time."""
        if self._rescued is None:
            return
        if self._reads_rescued():
            with suppress(psycopg.DataError, psycopg.ProgrammingError):
                job = self._store.rescued_job(conn, job.id, job.queue) or job
        self._rescued(job)

    def _settle_requests(self, conn: AnyConnection, batch: int) -> tuple[int, int]:
        """How many jobs are cancelled, and requests dealt with."""
        act = "cancel requests"
        rows, cancelled, settled = self._selected(act), 0, 0
        try:
            return self._store.settle_requests(conn, batch, *rows)
        except psycopg.Error as error:

            def settle(ids: Sequence[int]) -> None:
                nonlocal cancelled, settled
                counts = self._store.settle_requests(conn, batch, Selection(among=ids))
                cancelled, settled = cancelled + counts[0], settled + counts[1]

            def find() -> list[Row]:
                return self._store.rows_to_settle(conn, batch, *rows)

            self._unworkable.bit_by_bit(conn, Act(act, find, settle, CANCEL), error)
        return cancelled, batch  # there may be more

    def clean(self, conn: AnyConnection) -> timedelta:
        """Delete what has been over for longer than it is kept."""
        with self._clean_batches.next() as batch:
            return _SOON if self._cleaning.clean(conn, self._keep, batch) else _CLEAN_EVERY

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
        now = self._store.current_time(conn)
        if is_time(self._reindex.at, now):
            self._afterwards.append(self._reindex.start)
        return next_time(self._reindex.at, now) - now

    def do(self, conn: AnyConnection, duty: str) -> timedelta:
        """Do a duty if it is due and nobody else is at it; how long until it is due again."""
        try:
            longest = _LONGEST_OF_INDEXES if duty == "indexes" else _LONGEST
            remaining = self._store.begin_duty(conn, duty, longest)
        except DutyMissing:  # somebody has emptied the table
            self._books.put_back_duties(conn, self._books.missing_duties(conn))
            return _SOON
        if remaining is None:  # somebody else is at it
            return _AT_LEAST_EVERY
        if remaining > _SOON:
            return min(remaining + _EARLY, _AT_LEAST_EVERY if duty in _HURRIED else _SELDOM)
        self._afterwards.clear()
        after = self.duties[duty](conn)
        said, exact = time.monotonic(), _SOON < after < _AT_LEAST_EVERY
        self._store.end_duty(conn, duty, max(_SOON, after - _EARLY) if exact else after)
        for act in self._afterwards:
            act()
        self._wake_promoted()  # not before others can see them
        if exact:
            after = max(_SOON, after - timedelta(seconds=time.monotonic() - said))
        return after + _STAND_BACK * random() if duty == "rescue" else after

    def _wake_promoted(self) -> None:
        promoted, self._promoted = self._promoted, {}
        for queue, jobs in promoted.items():
            self._wake(queue, jobs)

    def glance(self, conn: AnyConnection) -> set[str]:
        """Those of the duties of every second that would find anything."""
        return self._store.glance(conn, _GLANCE_EVERY + PROMOTE_EVERY)

    def hurry(self, conn: AnyConnection) -> None:
        """A job was enqueued that is due before the next promote was to be."""
        self._store.hurry_promote(conn)

    def postpone(self, conn: AnyConnection, duty: str) -> None:
        """After a failure: move the duty's time on, so that not every process tries it hot."""
        self._store.postpone_duty(conn, duty, AFTER_FAILURE)


class MaintenanceThread:
    """Repeats the duties until it is stopped."""

    def __init__(
        self,
        maintenance: Maintenance,
        source: PoolSource,
        *,
        name: str,
        beside: Callable[[AnyConnection], None] = lambda conn: None,
        tick: Callable[[AnyConnection], timedelta] = lambda conn: _AT_LEAST_EVERY,
        at_end: Callable[[], None] = lambda: None,
        over: Callable[[Checkout], AbstractContextManager[object]] = lambda held: nullcontext(),
        is_told: Callable[[], bool] = lambda: True,
        outages: Outages | None = None,
        on_closed: Callable[[], None] = lambda: None,
    ) -> None:
        self._maintenance = maintenance
        self._acts: dict[str, Callable[[AnyConnection], timedelta]] = {
            **{duty: partial(maintenance.do, duty=duty) for duty in maintenance.duties},
            "tick": tick,  # no duty of one process: each looks after the schedules that it has
        }
        self._hurried: SimpleQueue[str] = SimpleQueue()
        self._exact: set[str] = set()  # acts that have said for which moment there is something to do
        self._source = source
        self._beside = beside  # what concerns this process alone; called every second, and when called for
        self._at_end = at_end
        self._over = over  # watches over a connection
        self._on_closed = on_closed  # called when the source has no connections any more
        self._is_told = is_told  # whether it hears of jobs that are due soon
        self._outages = outages or Outages()
        self._called = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._repeat, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Stop after the act under way. Waits for nothing."""
        self._stopping = True
        self._called.set()

    def stop(self, timeout: float | None = None) -> bool:
        """Stop after the act under way. Says whether the thread has ended."""
        self.end()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def is_current(self) -> bool:
        """Whether this is asked on the thread itself, by a hook."""
        return self._thread is threading.current_thread()

    def call(self) -> None:
        """Something is to be looked at now."""
        self._called.set()

    def hurry(self, act: str) -> None:
        """There may be something for this act before its time. May be called from any thread."""
        self._hurried.put(act)
        self._called.set()

    def _repeat(self) -> None:
        due = dict.fromkeys(self._acts, 0.0)
        while not self._stopping:
            hurried = self._taken_hurries()
            due.update(dict.fromkeys(hurried, 0.0))
            ready = [duty for duty, when in due.items() if when <= time.monotonic()]
            sure = hurried | self._exact  # for these a look would only take time
            in_vain = self._in_vain(set(ready) - sure) - sure
            pause = _GLANCE_EVERY if self._is_told() else _AT_LEAST_EVERY
            due.update(dict.fromkeys(in_vain, time.monotonic() + pause.total_seconds()))
            for duty in ready:
                if duty not in in_vain and not self._stopping:
                    due[duty] = time.monotonic() + self._next(duty).total_seconds()
            self._look_beside()
            self._called.wait(max(0.0, min(*due.values(), time.monotonic() + _BESIDE_EVERY) - time.monotonic()))
            self._called.clear()
        with suppress(Exception):  # the rows of those who could not take their leave age out
            self._at_end()

    def _next(self, duty: str) -> timedelta:
        """Do an act; when to do it again."""
        after = self._attempt(duty, self._acts[duty])
        (self._exact.add if after < _AT_LEAST_EVERY else self._exact.discard)(duty)
        return after

    def _in_vain(self, ready: set[str]) -> set[str]:
        """Those of the acts that would find nothing, ready or not, so that an idle queue costs one look."""
        if not ready.intersection(_HURRIED):
            return set()
        try:
            with self._connection() as conn:
                return set(_HURRIED) - self._maintenance.glance(conn)
        except psycopg.Error:  # the acts will say what is wrong
            return set()

    def _taken_hurries(self) -> set[str]:
        hurried = set()
        with suppress(Empty):
            while True:
                hurried.add(self._hurried.get_nowait())
        if "promote" in hurried:
            self._attempt("promote", self._hurry_promote)
        return hurried

    def _hurry_promote(self, conn: AnyConnection) -> timedelta:
        self._maintenance.hurry(conn)
        return _SOON

    @contextmanager
    def _connection(self, duty: str = "") -> Iterator[AnyConnection]:
        within = _ANSWER_WITHIN if duty in ("", "promote", "rescue", "tick") else _SLOW_ANSWER_WITHIN
        with self._source.own_checkout() as held, self._over(held), held.answered_within(within):
            yield held.conn

    def _look_beside(self) -> None:
        try:
            with self._connection() as conn:
                self._beside(conn)
            self._outages.worked(log, _BESIDE)
        except PoolClosed:
            self._on_closed()
        except Exception as error:
            with suppress(Exception):
                self._outages.failed(log, _BESIDE, error, f"{_BESIDE} failed")

    def _attempt(self, duty: str, act: Callable[[AnyConnection], timedelta]) -> timedelta:
        """Do one act, whatever may come of it; when to try it again."""
        try:
            with self._connection(duty) as conn:
                after = act(conn)
            # a tick may have found nothing to do, and written nothing
            self._outages.worked(log, f"duty {duty}", wrote=duty in self._maintenance.duties)
            return after
        except PoolClosed:
            self._on_closed()
            return AFTER_FAILURE
        except Exception as error:  # the thread outlives every error of the database
            with suppress(Exception):  # a handler of the log that fails
                text = f"duty {duty} failed and is tried again in {AFTER_FAILURE}"
                if self._maintenance.aside.was_said(error):
                    log.debug("%s: %s", text, one_line(error))
                else:
                    self._outages.failed(log, f"duty {duty}", error, text)
        if duty not in self._maintenance.duties:
            return AFTER_FAILURE
        try:
            with self._connection() as conn:
                self._maintenance.postpone(conn, duty)
        except psycopg.Error as error:
            log.debug("duty %s could not be postponed: %s", duty, one_line(error))
        return AFTER_FAILURE
