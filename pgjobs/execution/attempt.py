"""One running attempt, and the steps that stop it when its time is up, its job is cancelled or the pool stops.

    step         what is done                                                                     after a timeout
    -----------  -------------------------------------------------------------------------------  ---------------
    requested    `job.cancelled` is true, and the statement that its connection runs is cancelled  at once
    interrupted  Interrupted is raised in its thread, as soon as the thread is back in Python      1 s
    severed      its connection is shut down: the row is free, and no COMMIT can start any more    5 s
    stuck        the thread is reported, and another thread takes its place                        10 s

A step is taken if the attempt has not ended by then. The exception must not arrive in the library's own code or in the
next job, so it is raised only while the handler runs, and absorbed right after the handler if it is late.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextvars import Context, copy_context
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import getcontext, setcontext
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pgjobs import codec
from pgjobs.db.borrow import borrow
from pgjobs.db.checkout import NEVER, Checkout
from pgjobs.db.cursors import AnyConnection
from pgjobs.errors import Interrupted, InvalidTransaction, JobCancelled, JobStopped, JobTimedOut, NotRunning
from pgjobs.execution.canceller import canceller
from pgjobs.execution.interrupt import absorb_interrupt, raise_in_thread
from pgjobs.execution.outcome import NO_DATA, AttemptData, Outcome
from pgjobs.execution.requests import Session
from pgjobs.job import Job, reset_current_job, set_current_job
from pgjobs.options import LAST_INSTANT
from pgjobs.progress import Report
from pgjobs.return_values import check_handler_return
from pgjobs.work_map import Handler

if TYPE_CHECKING:
    from pgjobs.execution.plans import Plan

_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")

Reason = JobTimedOut | JobCancelled | JobStopped

_CANCEL_AGAIN = 0.25  # seconds; a handler may ignore a cancelled statement and run the next one


@dataclass(frozen=True, slots=True)
class GracePeriods:
    """When each step is taken, in seconds after the stop was requested."""

    interrupted: float
    severed: float
    stuck: float


AFTER_TIMEOUT = GracePeriods(interrupted=1.0, severed=5.0, stuck=10.0)
AT_STOP = GracePeriods(interrupted=0.2, severed=0.8, stuck=1.2)

# The server ends a transaction this long after the job's timeout: by then a process that works has severed it.
SERVER_GRACE = timedelta(seconds=AFTER_TIMEOUT.stuck)


class Slot:
    """What one worker thread has for its attempts, one after the other: its connection, the locks, which take half of
    the time of a new attempt to make, and the attempt that it runs now, which the watchdog reads."""

    def __init__(self, checkout: Checkout) -> None:
        self.checkout = checkout
        self.attempt: Attempt | None = None
        self.next_job: Job[Any] | None = None  # that was claimed together with the last finish
        self.thread = threading.current_thread()
        self.process = os.getpid()
        self.lock = threading.Lock()
        self.deciding = threading.Lock()


class Attempt:
    """One start of a handler in this process. The worker's thread runs it; the watchdog may stop it."""

    # Defaults of the class: most attempts change none of these, and an attempt is made for every job.
    started = False  # the handler was called
    args_fit = True  # the args could be decoded for the handler
    outcome: Outcome | None = None  # None until it is decided, and for a job that completes
    error: BaseException | None = None  # that it has failed with in the end
    completed = False  # by job.complete(tx), which may not be committed
    run_seconds = 0.0  # of the handler
    reason: Reason | None = None  # why it is to stop
    session: Session | None = None  # of a detached attempt: the session of the connection that claimed the job
    on_severed: Callable[[Checkout], None] | None = None  # called for the other jobs of a batch on the same connection
    tainted = False  # a cancel or an exception may arrive late: the connection must not be used again
    severed = False
    recording: threading.Lock | None = None  # of a severed attempt: held by the thread that reports it, as it writes
    recorded = False  # that thread has written the outcome
    stuck = False
    ended = False
    reported = False  # by the watchdog: that it was severed
    replaced = False  # by the watchdog: its thread is stuck, and another one has taken its place
    stopped_by = 0  # the call that has stopped all attempts, and this one among them
    progress: Report | None = None  # what the handler has said last; the heartbeat writes it
    has_data = False  # whether the handler has set metadata or output
    _deadline: datetime | None = None
    _complete: Callable[[AnyConnection, Attempt], Job[Any]] | None = None
    _metadata: Mapping[str, Any] = MappingProxyType({})
    _output: str | None = None
    _requested_at = NEVER
    _grace = AFTER_TIMEOUT
    _in_handler = False
    _interrupted = False

    def __init__(
        self, job: Job[Any], slot: Slot, context: Context, timeout: timedelta | None, plan: Plan | None
    ) -> None:
        self.job = job
        self.plan = plan  # None: the kind has no handler
        self.context = context  # of the handler, the hooks, policies and other functions of the application
        self.slot = slot
        self.checkout: Checkout | None = slot.checkout  # None: a detached attempt, which has no connection
        self._conn_id = id(slot.checkout.conn)  # the checkout may get another one later
        self._timeout = timeout
        self.began = began = time.monotonic()
        self.expires = NEVER if timeout is None else began + timeout.total_seconds()

    @property
    def thread(self) -> threading.Thread:
        return self.slot.thread

    def detach(self, complete: Callable[[AnyConnection, Attempt], Job[Any]], session: Session | None) -> None:
        """Make this a detached attempt; `complete` is its `job.complete(tx)`."""
        self.checkout, self._conn_id = None, 0
        self._complete, self.session = complete, session

    @property
    def handler(self) -> Handler | None:
        return None if self.plan is None else self.plan.handler

    @property
    def cancelled(self) -> bool:
        return self.reason is not None

    @property
    def in_handler(self) -> bool:
        """Whether the handler still runs; False when the thread is writing the outcome."""
        return self._in_handler

    @property
    def deadline(self) -> datetime | None:
        if self._timeout is not None and self._deadline is None:
            now = datetime.now(UTC)
            left = timedelta(seconds=min(self.expires - time.monotonic(), (LAST_INSTANT - now).total_seconds()))
            self._deadline = now + left
        return self._deadline

    # --- for the handler

    def set_metadata(self, values: Mapping[str, Any]) -> None:
        self._check_running()
        text = codec.encode_metadata({**self._metadata, **values})
        self.has_data = True
        self._metadata = json.loads(text)  # a copy: later changes by the handler would not be checked

    def record_output(self, output: object) -> None:
        self._check_running()
        text = codec.encode_output(output)
        self.has_data = True
        # in ASCII, as metadata is, because the handler may have changed the session's encoding
        self._output = text if text.isascii() else _NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], text)

    def set_progress(self, report: Report) -> None:
        self._check_running()
        self.progress = report  # without a lock: one store

    def complete(self, tx: Any) -> Job[Any]:
        self._check_running()
        conn = borrow(tx)
        if self._complete is not None:
            return self._complete(conn, self)
        if self.checkout is None or not self.checkout.is_tx(conn):
            raise InvalidTransaction(f"job {self.job.id} completes in its own transaction, when its handler returns")
        return self.job

    def _check_running(self) -> None:
        if self.ended:
            raise NotRunning(f"job {self.job.id} is not being run any more: this attempt has ended")

    # --- for the worker's thread

    @property
    def data(self) -> AttemptData:
        """The metadata and the output of the handler, which are written with the outcome."""
        if not self.has_data:
            return NO_DATA
        return AttemptData(json.dumps(dict(self._metadata)) if self._metadata else None, self._output)

    def run(self, function: Callable[[Any, Job[Any]], object], tx: Any, job: Job[Any]) -> BaseException | None:
        """Call the handler. Returns the exception that it raised; if a stop was requested, the reason of the stop
        instead. After this no exception of the watchdog can arrive."""
        error: BaseException | None = None
        before = set_current_job(job)
        try:
            try:
                self._in_handler = True  # without the lock: the watchdog may see it a moment later
                answer = function(tx, job)
                if answer is not None:
                    check_handler_return(answer, function)
            except BaseException as raised:  # also SystemExit: a handler must not end the worker's thread
                error = raised
            if os.getpid() != self.slot.process:  # the handler has forked, and this is the child
                os._exit(0 if error is None or (isinstance(error, SystemExit) and not error.code) else 1)
            self._close_window()
        except Interrupted as late:  # it arrived after the handler and before the window was closed
            self._close_window()
            error = late
        self.run_seconds = time.monotonic() - self.began
        reset_current_job(before)
        if error is not None and self.reason is not None:
            self.reason.__cause__ = error
            return self.reason
        return error

    def _close_window(self) -> None:
        self._in_handler = False
        self._wait_for_step()
        if self._interrupted:
            absorb_interrupt()

    def _wait_for_step(self) -> None:
        """Wait for a step that the watchdog takes at this moment. The thread has just stored that the handler, or the
        attempt, has ended. The watchdog stores a reason before it looks at that, so without a reason by now it takes
        no step; most attempts need no lock. The interpreter's lock keeps both in this order."""
        if self.reason is not None:
            with self.slot.lock:
                pass

    def abandon(self) -> None:
        """Give up the connection of a stuck thread, so that the connection pool opens another one."""
        if self.checkout is not None:
            self.checkout.abandon(self._conn_id)

    def end(self) -> None:
        """The outcome is written: the watchdog leaves the attempt and its connection alone from now on."""
        self.ended = True
        self._wait_for_step()
        vars(self.job)["running"] = _ENDED if self.reason is None else _STOPPED  # the job may be kept for long
        if not self.severed:
            self.on_severed = None  # else a job that the application keeps would keep its whole batch

    # --- for the watchdog; nothing in here blocks

    def request_stop(self, reason: Reason, grace: GracePeriods | None = None) -> None:
        """Stop the attempt. The first reason counts; a later call can only shorten the grace periods."""
        grace = grace or AFTER_TIMEOUT
        with self.slot.lock:
            if self.reason is None or grace.stuck < self._grace.stuck:
                self._requested_at = time.monotonic()
                self._grace = grace
            self.reason = self.reason or reason

    def escalate(self, now: float) -> float:
        """Take the steps that are due. Returns when the next one is due, by the monotonic clock."""
        if self.reason is None and self._timeout is not None and now >= self.expires:
            self.request_stop(JobTimedOut(self._timeout))
        with self.slot.lock:
            if self.ended or self.stuck:
                return NEVER
            if self.reason is None:
                return self.expires
            return self._requested_at + self._step(now - self._requested_at)

    def _step(self, waited: float) -> float:
        """Take the steps that are due so many seconds after the request; all of them, if the watchdog is late. Returns
        after how many seconds the next one is due."""
        if self._in_handler and not self._interrupted and waited >= self._grace.interrupted:
            self._interrupted = self.tainted = True
            raise_in_thread(self.thread, Interrupted)
        if waited >= self._grace.severed:
            return self._sever(waited)
        if self._in_handler and self.checkout is not None and self.checkout.in_statement:
            self.tainted = True
            canceller.get().cancel(self.checkout, self._conn_id)
        due = (self._grace.interrupted, self._grace.severed, waited + _CANCEL_AGAIN)
        return min(later for later in due if later > waited)

    def _sever(self, waited: float) -> float:
        if not self.severed:
            self.recording = threading.Lock()
            self.severed = self.tainted = True
            if self._in_handler:  # it may never come back: this is the time that is reported
                self.run_seconds = time.monotonic() - self.began
            if self.checkout is not None:
                self.checkout.shut_down(self._conn_id)
        self.stuck = waited >= self._grace.stuck
        return NEVER if self.stuck else self._grace.stuck


class _EndedAttempt:
    """What a job has in place of its attempt when that has ended."""

    deadline = None

    def __init__(self, *, cancelled: bool) -> None:
        self.cancelled = cancelled

    def set_metadata(self, values: Mapping[str, Any]) -> None:
        raise _ended()

    def record_output(self, output: object) -> None:
        raise _ended()

    def set_progress(self, report: Report) -> None:
        raise _ended()

    def complete(self, tx: Any) -> Job[Any]:
        raise _ended()


def _ended() -> NotRunning:
    return NotRunning("this job is not being run any more: its attempt has ended")


_ENDED, _STOPPED = _EndedAttempt(cancelled=False), _EndedAttempt(cancelled=True)


def private_context() -> Context:
    """Copy the context of this thread, so that variables set by the application's functions do not stay in it; with a
    decimal context of its own, because copies of a context share the object with the precision."""
    context = copy_context()
    if len(context):  # a thread of a pool starts with an empty context
        context.run(_copy_decimals)
    return context


def _copy_decimals() -> None:
    setcontext(getcontext().copy())
