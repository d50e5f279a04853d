"""The worker threads of a pool: what each does all its life, and what becomes of one that does not come back."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import psycopg
from psycopg_pool import PoolClosed

from pgjobs.clean_text import forget_details, one_line
from pgjobs.db.checkout import Checkout
from pgjobs.db.source import PoolSource
from pgjobs.execution.attempt import Attempt
from pgjobs.execution.batch import Batches
from pgjobs.execution.executor import Executor
from pgjobs.job import Job
from pgjobs.loggers import Lines, get_logger
from pgjobs.outages import Outages
from pgjobs.queue_settings import Way
from pgjobs.wakeup.idle_threads import IdleThreads
from pgjobs.wakeup.listener import Listener
from pgjobs.wakeup.queries import WakeupQueries

log = get_logger("pgjobs.worker")

_FIRST_PAUSE = 0.1  # seconds that a thread waits after an error of the database; doubles
_LONGEST_PAUSE = 5.0
_LOOK_WITHIN = 40.0  # seconds for the answer to a look; as for a claim


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """What a worker thread is there for."""

    queue: str
    idle: IdleThreads
    way: Way


class WorkerThreads:
    """The worker threads of all queues of a pool. It outlives a stop, as a thread does that is stuck in its handler."""

    def __init__(
        self,
        name: str,
        source: PoolSource,
        executor: Executor,
        *,
        poll_interval: timedelta,
        fetch_cooldown: timedelta,
        outages: Outages | None = None,
    ) -> None:
        self._outages = outages or Outages()
        self.name = name
        self.stopping = threading.Event()
        self.listener: Listener | None = None
        self._source = source
        self._hooks = executor.hooks
        self._executor = executor
        self._batches = Batches(executor)
        self._wakeup_queries = WakeupQueries(executor.claimer.queries.schema)
        self._poll_interval = poll_interval.total_seconds()
        self._cooldown = fetch_cooldown.total_seconds()
        self.on_closed: Callable[[], None] = lambda: None  # called when the source has no connections any more
        self.begin_anew()

    def begin_anew(self) -> None:
        """As it is when it is made; and in a forked child, where none of the threads are."""
        self._changed = threading.Condition()  # a thread has ended, or is stuck
        self._working: dict[threading.Thread, Place] = {}
        # with its job, and since when; without a job where the handler is over
        self._stuck: dict[threading.Thread, tuple[Job[Any] | None, float]] = {}
        self._started = 0  # since the last muster

    def reset(self) -> None:
        """The pool starts: count the names of its threads from 0."""
        self.stopping.clear()
        self._started = 0

    def start(self, place: Place) -> None:
        """One looks whether there is work, and calls the others if there is: they need no connections for nothing."""
        seen = place.idle.calls
        for nth in range(place.idle.threads):
            self._start_thread(place, seen if nth else None)

    def _start_thread(self, place: Place, seen: int | None = None) -> None:
        """A thread that looks for work first; or waits first, for a call after `seen`."""
        with self._changed:
            name = f"{self.name}/worker-{self._started}"
            self._started += 1
            thread = threading.Thread(target=self._work, args=(place, seen), name=name, daemon=True)
            thread.start()
            self._working[thread] = place

    def wait(self, timeout: float | None, *, of: Place | None = None) -> bool:
        """Wait until every thread, or every one of a queue, has ended or is stuck, or is the one that asks; says
        whether that is so."""

        def over() -> bool:
            busy = {thread for thread, place in self._working.items() if of in (None, place)}
            return not busy - self._stuck.keys() - {threading.current_thread()}

        with self._changed:
            return self._changed.wait_for(over, timeout)

    @property
    def includes_me(self) -> bool:
        return threading.current_thread() in self._working

    @property
    def any_stuck(self) -> bool:
        return bool(self._stuck)

    # --- the life of a thread

    def _work(self, place: Place, seen: int | None) -> None:
        """Work while there are jobs, else wait without a connection."""
        queue, idle = place.queue, place.idle
        pause, me, polls = _FIRST_PAUSE, threading.current_thread(), False
        if seen is not None and not self._ends(idle):
            polls = idle.wait(seen, self._poll_interval)
        while not self._ends(idle):
            try:
                seen = self.work_while_jobs(place, polls=polls)
            except BaseException as error:  # whatever the database or a handler's leftovers do, the thread lives
                self._report(queue, pause, error)
                self.stopping.wait(pause)
                pause, polls = min(2 * pause, _LONGEST_PAUSE), False
            else:
                self._outages.worked(log, f"claiming from queue {queue}", wrote=not polls)
                pause = _FIRST_PAUSE
                if not self._ends(idle):  # else `seen` may be younger than the call that ends all waiting
                    self._ask_to_be_woken(queue, idle, seen)
                    polls = idle.wait(seen, self._poll_interval)
        with self._changed:
            stuck = self._stuck.pop(me, None)
            del self._working[me]
            self._changed.notify_all()
        if stuck is not None and stuck[0] is not None:
            job, since = stuck
            log.warning("%s: no longer stuck; another thread has taken its place", me.name)
            self._hooks("on_unstuck", job, timedelta(seconds=time.monotonic() - since))

    def _report(self, queue: str, pause: float, error: BaseException) -> None:
        if isinstance(error, PoolClosed):
            self.on_closed()
        known = isinstance(error, psycopg.Error)
        if known and self.stopping.is_set():
            return  # there is no next claim
        forget_details(error)
        with suppress(Exception):  # a handler of the log that fails
            text = f"{queue}: next claim in {pause:.1f} s"
            if self._executor.claimer.aside.was_said(error):
                log.debug("%s: %s", text, one_line(error))
            else:
                self._outages.failed(log, f"claiming from queue {queue}", error, text, exc_info=not known)

    def _ask_to_be_woken(self, queue: str, idle: IdleThreads, seen: int) -> None:
        listener = self.listener
        if listener is not None and idle.found_nothing(seen):
            listener.call(idle, queue)

    def work_while_jobs(self, place: Place, *, polls: bool = False) -> int:
        """Work until the queue is found empty; the call count from before that look. One that `polls` was not called,
        so there is hardly anything: it looks first, which costs less than a claim."""
        queue, idle = place.queue, place.idle

        def goes_on() -> bool:
            return not (self._cooldown or self._ends(idle))

        with self._source.checkout() as checkout, self._executor.watchdog.guard(checkout):
            try:
                seen = idle.calls
                if polls and not self._sees_any(checkout, queue):
                    return seen
                while True:
                    seen = idle.calls
                    if self._ends(idle):
                        return seen
                    if not self._run_next(checkout, place, goes_on):
                        return seen
                    if self._cooldown:
                        self.stopping.wait(self._cooldown)
            finally:
                self._executor.unclaim_next(checkout)

    def _sees_any(self, checkout: Checkout, queue: str) -> bool:
        """Whether there is anything to claim."""
        claimer = self._executor.claimer
        kinds = list(claimer.work_map) if claimer.unknown_kinds == "leave" else None
        try:
            with checkout.answered_within(_LOOK_WITHIN):
                return self._wakeup_queries.sees_any(checkout.conn, queue, kinds)
        except Exception as error:
            if isinstance(error, psycopg.OperationalError):
                claimer.require_sync_commit()
            self._hooks("on_claim", None, error)
            raise

    def _run_next(self, checkout: Checkout, place: Place, goes_on: Callable[[], bool]) -> bool:
        """Run the next job, or the next batch; says whether there was any."""
        queue, idle, way = place.queue, place.idle, place.way
        if way.batch_size > 1:
            return self._batches.run_next(checkout, queue, way, claimed=idle.claimed, ends=partial(self._ends, idle))
        return self._executor.run_next(checkout, queue, claimed=idle.claimed, go_on=goes_on) is not None

    def _ends(self, idle: IdleThreads) -> bool:
        """Whether this thread is to take no more jobs."""
        if self.stopping.is_set() or idle.closed:
            return True
        return bool(self._stuck) and threading.current_thread() in self._stuck

    # --- one that does not come back

    def on_stuck(self, attempt: Attempt) -> None:
        """Its row is free and its outcome recorded; what is left is a thread that does not come back."""
        if not attempt.in_handler:
            self._leave_behind(attempt)
            return
        frame = sys._current_frames().get(attempt.thread.ident or 0)
        stack = "".join(traceback.format_stack(frame)) if frame else "it has just ended\n"
        log.error("job %d (%s): its handler ignores that it is to end; %s is stuck at:\n%s",
                  attempt.job.id, one_line(attempt.job.kind), attempt.thread.name, Lines(stack))  # fmt: skip
        attempt.abandon()
        with self._changed:
            place = self._working.get(attempt.thread)
            if place is not None:
                self._stuck[attempt.thread] = (attempt.job, time.monotonic())
                self._changed.notify_all()
            stuck = len(self._stuck)
        self._hooks("on_stuck", attempt.job, stack, stuck)
        if place is not None and not self.stopping.is_set() and not place.idle.closed:
            self._start_thread(place)

    def _leave_behind(self, attempt: Attempt) -> None:
        """The pool stops, and the handler is over; its thread waits for a connection, and ends when that is over."""
        log.warning("job %d: its handler is over, but there is no connection to record its outcome on: the stop does "
                    "not wait for %s", attempt.job.id, attempt.thread.name)  # fmt: skip
        with self._changed:
            if attempt.thread in self._working:
                self._stuck[attempt.thread] = (None, time.monotonic())
                self._changed.notify_all()
