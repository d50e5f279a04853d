"""The worker threads of a pool. Each works one queue; a thread that is stuck in its handler is replaced."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections import Counter
from contextlib import suppress
from datetime import timedelta
from functools import partial
from types import FrameType
from typing import Any

import psycopg
from psycopg_pool import PoolClosed

from pgjobs.clean_text import forget_details, one_line
from pgjobs.db.checkout import Checkout
from pgjobs.execution import attempt as attempt_module
from pgjobs.execution.attempt import Attempt, Slot
from pgjobs.execution.batch import Batches
from pgjobs.execution.executor import Executor
from pgjobs.job import Job
from pgjobs.loggers import Lines, get_logger, job_fields
from pgjobs.wakeup.idle_threads import IdleThreads
from pgjobs.wakeup.queries import WakeupQueries
from pgjobs.workers.context import PoolContext, QueueWorkers

log = get_logger("pgjobs.worker")

_FIRST_PAUSE = 0.1  # seconds that a thread waits after an error of the database; doubles
_LONGEST_PAUSE = 5.0
_CALLS_HANDLER = (attempt_module.__file__, "run")
_LOOK_WITHIN = 40.0  # seconds for the answer to a poll, as for a claim


class _StopEvent(threading.Event):
    """An event with an attribute, since the worker threads look at it twice for each job."""

    on = False

    def set(self) -> None:
        self.on = True
        super().set()

    def clear(self) -> None:
        self.on = False
        super().clear()


class WorkerThreads:
    """The worker threads of all queues of a pool. It outlives a stop, because a thread may be stuck in its handler."""

    def __init__(
        self, context: PoolContext, executor: Executor, *, poll_interval: timedelta, fetch_cooldown: timedelta
    ) -> None:
        self.stopping = _StopEvent()
        self._context = context
        self._source = context.source
        self._hooks = executor.hooks
        self._executor = executor
        self._batches = Batches(executor)
        self._wakeup_queries = WakeupQueries(context.schema)
        self._poll_interval = poll_interval.total_seconds()
        self._cooldown = fetch_cooldown.total_seconds()
        self.reset_for_process()

    def reset_for_process(self) -> None:
        """Start without threads: called for a new pool, and in a forked child."""
        self._changed = threading.Condition()  # a thread has ended, or is stuck
        self._working: dict[threading.Thread, QueueWorkers] = {}
        # with its job, since when, and its stack; without a job if its handler is over
        self._stuck: dict[threading.Thread, tuple[Job[Any] | None, float, str]] = {}
        self._started = 0  # since the last reset
        self._left_behind: frozenset[threading.Thread] = frozenset()  # stuck since before the last reset

    def reset(self) -> None:
        """The pool starts: count the names of its threads from 0."""
        self.stopping.clear()
        self._started = 0
        with self._changed:
            self._left_behind = frozenset(self._stuck)

    def start(self, workers: QueueWorkers) -> None:
        """Start the threads of a queue. The first looks for jobs; only if there are any, it wakes the others, each of
        which takes a connection."""
        seen = workers.idle.wake_count
        for nth in range(workers.threads):
            self._start_thread(workers, seen if nth else None)

    def _start_thread(self, workers: QueueWorkers, seen: int | None = None) -> None:
        """Start a thread that works at once, or first waits for a wake-up after the count `seen`."""
        with self._changed:
            name = f"{self._context.name}/worker-{self._started}"
            self._started += 1
            thread = threading.Thread(target=self._work, args=(workers, seen), name=name, daemon=True)
            thread.start()
            self._working[thread] = workers

    def wait(self, timeout: float | None, *, of: QueueWorkers | None = None) -> bool:
        """Wait until all threads, or all of one queue, have ended or are stuck, except the current thread. Returns
        whether they have."""

        def over() -> bool:
            busy = {thread for thread, workers in self._working.items() if of in (None, workers)}
            return not busy - self._stuck.keys() - {threading.current_thread()}

        with self._changed:
            return self._changed.wait_for(over, timeout)

    @property
    def includes_current(self) -> bool:
        return threading.current_thread() in self._working

    @property
    def any_stuck(self) -> bool:
        return bool(self._stuck)

    @property
    def stuck_count(self) -> int:
        """How many threads are stuck."""
        return len(self._stuck)

    @property
    def stuck(self) -> list[tuple[str, Job[Any], float, str]]:
        """The threads that are stuck in their handlers: the name, the job, the seconds since, and the stack."""
        with self._changed:
            stuck = list(self._stuck.items())
        now = time.monotonic()
        return [(thread.name, job, now - since, stack) for thread, (job, since, stack) in stuck if job is not None]

    @property
    def any_stuck_since_start(self) -> bool:
        """Whether a thread is stuck that this start of the pool has made."""
        with self._changed:
            return bool(self._stuck.keys() - self._left_behind)

    @property
    def complete(self) -> bool:
        """Whether each queue has as many threads that live as it should have."""
        with self._changed:
            alive = Counter(workers for thread, workers in self._working.items() if thread.is_alive())
        return all(alive[workers] >= workers.threads for workers in self._context.queue_workers.values())

    # --- the life of a thread

    def _work(self, workers: QueueWorkers, seen: int | None) -> None:
        """Work while there are jobs; else wait, without a connection."""
        queue, idle = workers.queue, workers.idle
        pause, polls = _FIRST_PAUSE, False
        if seen is not None and not self._ends(idle):
            polls = idle.wait(seen, self._poll_interval)
        while not self._ends(idle):
            try:
                seen = self.work_while_jobs(workers, polls=polls)
            except BaseException as error:  # the thread survives every error of the database and of a handler
                self._log_failure(queue, pause, error)
                self.stopping.wait(pause)
                pause, polls = min(2 * pause, _LONGEST_PAUSE), False
            else:
                self._context.outages.worked(log, f"claiming from queue {queue}", wrote=not polls)
                pause = _FIRST_PAUSE
                if not self._ends(idle):  # else it could wait for ever: the wake-up that ends it may have come already
                    self._report_empty(queue, idle, seen)
                    polls = idle.wait(seen, self._poll_interval)
        self._note_ended(threading.current_thread())

    def _note_ended(self, thread: threading.Thread) -> None:
        with self._changed:
            stuck = self._stuck.pop(thread, None)
            del self._working[thread]
            self._changed.notify_all()
        job, since, _ = stuck or (None, 0.0, "")
        if job is not None:
            replaced = "" if self.stopping.is_set() else "; another thread has taken its place"
            log.warning("%s: no longer stuck in job %d (%s)%s", thread.name, job.id, job.kind, replaced,
                        extra=job_fields(job))  # fmt: skip
            self._hooks("on_unstuck", job, timedelta(seconds=time.monotonic() - since))

    def _log_failure(self, queue: str, pause: float, error: BaseException) -> None:
        if isinstance(error, PoolClosed):
            self._context.client_closed()
        of_database = isinstance(error, psycopg.Error)
        if of_database and self.stopping.is_set():
            return  # there is no next claim
        forget_details(error)
        with suppress(Exception):  # a log handler of the application may fail
            text = f"{queue}: next claim in {pause:.1f} s"
            if self._executor.claimer.set_aside.was_logged(error):
                log.debug("%s: %s", text, one_line(error))
            else:
                what = f"claiming from queue {queue}"
                self._context.outages.failed(log, what, error, text, exc_info=not of_database)

    def _report_empty(self, queue: str, idle: IdleThreads, seen: int) -> None:
        listener = self._context.listener
        if listener is not None and idle.found_empty(seen):
            listener.report(idle, queue)

    def work_while_jobs(self, workers: QueueWorkers, *, polls: bool = False) -> int:
        """Work until the queue is empty. Returns the wake-up count at the start of the search that found it empty.

        `polls` says that nothing woke this thread, so there is hardly ever a job: it looks before it claims, which is
        cheaper."""
        run = self._run_batch if workers.settings.batch_size > 1 else self._run_next
        with self._source.checkout() as checkout, self._executor.watchdog.guard(checkout) as slot:
            try:
                seen = workers.idle.wake_count
                if polls and not self._any_claimable(checkout, workers.queue):
                    return seen
                while True:
                    seen = workers.idle.wake_count
                    if self._ends(workers.idle) or not run(slot, workers):
                        return seen
                    if self._cooldown:
                        self.stopping.wait(self._cooldown)
            finally:
                self._executor.unclaim_next(slot)

    def _any_claimable(self, checkout: Checkout, queue: str) -> bool:
        claimer = self._executor.claimer
        kinds = list(claimer.work_map) if claimer.unknown_kinds == "leave" else None
        try:
            with checkout.answered_within(_LOOK_WITHIN):
                return self._wakeup_queries.any_claimable(checkout.conn, queue, kinds)
        except Exception as error:
            if isinstance(error, psycopg.OperationalError):
                claimer.require_sync_commit()
            self._hooks("on_claim", None, error)
            raise

    def _run_next(self, slot: Slot, workers: QueueWorkers) -> bool:
        """Run the next job. Returns whether there was one."""
        job = slot.next_job or self._executor.claim(slot.checkout, workers.queue)
        if job is None:
            return False
        workers.idle.found_job()
        slot.next_job = self._executor.run(slot, job, partial(self._goes_on, workers.idle))
        return True

    def _run_batch(self, slot: Slot, workers: QueueWorkers) -> bool:
        """Run the next batch. Returns whether there was one."""
        idle = workers.idle
        ends = partial(self._ends, idle)
        return self._batches.run_next(slot, workers.queue, workers.settings, claimed=idle.found_job, ends=ends)

    def _goes_on(self, idle: IdleThreads) -> bool:
        """Whether the next job may be claimed in the message of a finish."""
        return not (self._cooldown or self._ends(idle))

    def _ends(self, idle: IdleThreads) -> bool:
        """Whether the current thread is to take no more jobs."""
        if self.stopping.on or idle.closed:
            return True
        return bool(self._stuck) and threading.current_thread() in self._stuck

    # --- a thread that is stuck

    def on_stuck(self, attempt: Attempt) -> None:
        """The job's row is free and its outcome recorded, but its thread does not return: start another instead."""
        if not attempt.in_handler:
            self._leave_behind(attempt)
            return
        frame = sys._current_frames().get(attempt.thread.ident or 0)
        stack = _stack_of_handler(frame) if frame else "it has just ended\n"
        log.error("job %d (%s): its handler ignores that it is to end; %s is stuck at:\n%s",
                  attempt.job.id, attempt.job.kind, attempt.thread.name, Lines(stack),
                  extra=job_fields(attempt.job))  # fmt: skip
        attempt.abandon()
        with self._changed:
            workers = self._working.get(attempt.thread)
            if workers is not None:
                self._stuck[attempt.thread] = (attempt.job, time.monotonic(), stack)
                self._changed.notify_all()
            stuck = len(self._stuck)
        self._hooks("on_stuck", attempt.job, stack, stuck)
        if workers is not None and not self.stopping.is_set() and not workers.idle.closed:
            self._start_thread(workers)

    def _leave_behind(self, attempt: Attempt) -> None:
        """The pool stops, and a thread whose handler is over waits for a connection: do not wait for this thread."""
        log.warning("job %d: its handler is over, but there is no connection to record its outcome on: the stop does "
                    "not wait for %s", attempt.job.id, attempt.thread.name, extra=job_fields(attempt.job))  # fmt: skip
        with self._changed:
            if attempt.thread in self._working:
                self._stuck[attempt.thread] = (None, time.monotonic(), "")
                self._changed.notify_all()


def _stack_of_handler(frame: FrameType) -> str:
    """The stack of a thread as text, from the handler's first line on."""
    frames = traceback.extract_stack(frame)
    calls = [place for place, each in enumerate(frames, 1) if (each.filename, each.name) == _CALLS_HANDLER]
    return "".join(traceback.format_list(frames[calls[0] if calls else 0 :]))
