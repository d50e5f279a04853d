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
from typing import Any

from pgjobs import codec
from pgjobs.db.borrow import borrow
from pgjobs.db.checkout import NEVER, Checkout
from pgjobs.db.cursors import AnyConnection
from pgjobs.errors import Interrupted, InvalidTransaction, JobCancelled, JobStopped, JobTimedOut, NotRunning
from pgjobs.execution.canceller import canceller
from pgjobs.execution.interrupt import absorb_interrupt, raise_in_thread
from pgjobs.execution.outcome import NO_DATA, AttemptData, Outcome
from pgjobs.job import Job
from pgjobs.options import LAST_INSTANT
from pgjobs.work_map import Handler

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


class Attempt:
    """One start of a handler in this process. The worker's thread runs it; the watchdog may stop it."""

    # Defaults of the class: most attempts change none of these, and an attempt is made for every job.
    started = False  # the handler was called
    args_fit = True  # the args could be decoded for the handler
    outcome: Outcome | None = None  # None until it is decided, and for a job that completes
    completed = False  # by job.complete(tx), which may not be committed
    run_seconds = 0.0  # of the handler
    reason: Reason | None = None  # why it is to stop
    session: Any = None  # of a detached attempt: the session of the connection that claimed the job
    on_severed: Callable[[Checkout], None] | None = None  # called for the other jobs of a batch on the same connection
    tainted = False  # a cancel or an exception may arrive late: the connection must not be used again
    severed = False
    stuck = False
    ended = False
    _context: Context | None = None
    _metadata: Mapping[str, Any] = MappingProxyType({})
    _output: str | None = None
    _requested_at = NEVER
    _grace = AFTER_TIMEOUT
    _in_handler = False
    _interrupted = False

    def __init__(
        self,
        job: Job[Any],
        checkout: Checkout | None,
        timeout: timedelta | None,
        *,
        handler: Handler | None = None,
        complete: Callable[[AnyConnection, Attempt], Job[Any]] | None = None,
    ) -> None:
        self.job = job
        self.checkout = checkout  # None: a detached attempt, which has no connection
        self.handler = handler  # None: the kind has no handler
        self.deciding = threading.Lock()
        self.thread = threading.current_thread()
        self._began = time.time()
        self.expires = NEVER if timeout is None else time.monotonic() + timeout.total_seconds()
        self._conn_id = id(checkout.conn) if checkout else 0  # the checkout may get another one
        self._complete = complete
        self._timeout = timeout
        self._lock = threading.Lock()
        self._process = os.getpid()

    def followed_by(self, job: Job[Any], timeout: timedelta | None, handler: Handler) -> Attempt:
        """Make the attempt at the next job of a batch, in the same thread and on the same connection, after this one
        has ended. It shares the locks: to make them takes half of the time of a new attempt."""
        made: Attempt = object.__new__(Attempt)
        made.job = job
        made.checkout = self.checkout
        made.handler = handler
        made.deciding = self.deciding
        made.thread = self.thread
        made._began = time.time()
        made.expires = NEVER if timeout is None else time.monotonic() + timeout.total_seconds()
        made._conn_id = self._conn_id
        made._complete = None
        made._timeout = timeout
        made._lock = self._lock
        made._process = self._process
        return made

    @property
    def cancelled(self) -> bool:
        return self.reason is not None

    @property
    def in_handler(self) -> bool:
        """Whether the handler still runs; False when the thread is writing the outcome."""
        return self._in_handler

    @property
    def deadline(self) -> datetime | None:
        if self._timeout is None:
            return None
        began = datetime.fromtimestamp(self._began, UTC)
        return began + min(self._timeout, LAST_INSTANT - began)

    # --- for the handler

    def set_metadata(self, values: Mapping[str, Any]) -> None:
        self._check_running()
        text = codec.encode_metadata({**self._metadata, **values})
        self._metadata = json.loads(text)  # a copy: later changes by the handler would not be checked

    def record_output(self, output: object) -> None:
        self._check_running()
        text = codec.encode_output(output)
        # in ASCII, as metadata is, because the handler may have changed the session's encoding
        self._output = text if text.isascii() else _NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], text)

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
        if not self._metadata and self._output is None:
            return NO_DATA
        return AttemptData(json.dumps(dict(self._metadata)) if self._metadata else None, self._output)

    @property
    def context(self) -> Context:
        """The context in which hooks, policies and other functions of the application run for this attempt: a copy of
        the thread's context, because a context cannot be entered twice at a time."""
        if self._context is None:
            self._context = private_context()
        return self._context

    def run(self, handler: Callable[[], object]) -> BaseException | None:
        """Call the handler in a context of its own. Returns the exception that it raised; if a stop was requested, the
        reason of the stop instead. After this no exception of the watchdog can arrive."""
        error: BaseException | None = None
        started = time.monotonic()
        try:
            try:
                context = private_context() if self._context is None else with_copied_decimals(self._context.copy())
                self._in_handler = True  # without the lock: the watchdog may see it a moment later
                context.run(handler)
            except BaseException as raised:  # also SystemExit: a handler must not end the worker's thread
                error = raised
            if os.getpid() != self._process:  # the handler has forked, and this is the child
                os._exit(0 if error is None or (isinstance(error, SystemExit) and not error.code) else 1)
            self._close_window()
        except Interrupted as late:  # it arrived after the handler and before the window was closed
            self._close_window()
            error = late
        self.run_seconds = time.monotonic() - started
        if error is not None and self.reason is not None:
            self.reason.__cause__ = error
            return self.reason
        return error

    def _close_window(self) -> None:
        with self._lock:
            self._in_handler = False
        if self._interrupted:
            absorb_interrupt()

    def abandon(self) -> None:
        """Give up the connection of a stuck thread, so that the connection pool opens another one."""
        if self.checkout is not None:
            self.checkout.abandon(self._conn_id)

    def end(self) -> None:
        """The outcome is written: the watchdog leaves the attempt and its connection alone from now on."""
        with self._lock:
            self.ended = True
            if not self.severed:
                self.on_severed = None  # else a job that the application keeps would keep its whole batch

    # --- for the watchdog; nothing in here blocks

    def request_stop(self, reason: Reason, grace: GracePeriods | None = None) -> None:
        """Stop the attempt. The first reason counts; a later call can only shorten the grace periods."""
        grace = grace or AFTER_TIMEOUT
        with self._lock:
            if self.reason is None or grace.stuck < self._grace.stuck:
                self._requested_at = time.monotonic()
                self._grace = grace
            self.reason = self.reason or reason

    def escalate(self, now: float) -> float:
        """Take the steps that are due. Returns when the next one is due, by the monotonic clock."""
        if self.reason is None and self._timeout is not None and now >= self.expires:
            self.request_stop(JobTimedOut(self._timeout))
        with self._lock:
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
            self.severed = self.tainted = True
            if self.checkout is not None:
                self.checkout.shut_down(self._conn_id)
        self.stuck = waited >= self._grace.stuck
        return NEVER if self.stuck else self._grace.stuck


def private_context() -> Context:
    """Copy the context of this thread, so that variables set by the application's functions do not stay in it."""
    return with_copied_decimals(copy_context())


def with_copied_decimals(context: Context) -> Context:
    """Give the context a decimal context of its own: copies of a context would share the object with the precision."""
    if len(context):  # a thread of a pool starts with an empty context
        context.run(_copy_decimals)
    return context


def _copy_decimals() -> None:
    setcontext(getcontext().copy())
