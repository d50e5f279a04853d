"""One running attempt, and how it is made to end: ever more firmly, when its time is up, somebody cancels it, or the
pool stops.

    told       `job.cancelled` is true, and a statement that runs on its connection is cancelled
    raised     Interrupted is raised in its thread, as soon as that is back in Python
    severed    its connection is shut down: the row is free, and no COMMIT can start any more
    stuck      the thread is reported, and another one takes its place

Each step waits for the one before it to be ignored for a while. An exception raised from outside must not land in the
library's own code or in the next job, so the window for it is opened and closed around the handler alone.
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
from pgjobs.execution.interrupt import let_arrive, raise_in
from pgjobs.execution.outcome import NO_DATA, AttemptData, Outcome
from pgjobs.job import Job
from pgjobs.loggers import get_logger
from pgjobs.options import LAST_INSTANT
from pgjobs.work_map import Handler

log = get_logger("pgjobs.watch")

_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")

Reason = JobTimedOut | JobCancelled | JobStopped

_CANCEL_AGAIN = 0.25  # seconds after which a handler that goes on with the next statement is cancelled again


@dataclass(frozen=True, slots=True)
class GracePeriods:
    """When each step is taken, in seconds after the attempt was told to end."""

    raised: float
    severed: float
    stuck: float


AFTER_TIMEOUT = GracePeriods(raised=1.0, severed=5.0, stuck=10.0)
AT_STOP = GracePeriods(raised=0.2, severed=0.8, stuck=1.2)


# What the server allows a transaction beyond the job's timeout: by then a process that lives has severed it.
SERVER_GRACE = timedelta(seconds=AFTER_TIMEOUT.stuck)


class Attempt:
    """One start of a handler in this process. The worker's thread runs it; the watch may end it."""

    # as it begins: there is one for each job, and most end without having changed any of these
    started = False  # its handler was called
    args_fit = True  # the class that the handler wants
    outcome: Outcome | None = None  # when it did not complete
    completed = False  # by job.complete(tx); whether that was committed is not known
    run_seconds = 0.0  # of the handler
    reason: Reason | None = None  # why it is to end
    session: Any = None  # of a detached one: what its claim found of the connection
    on_severed: Callable[[Checkout], None] | None = None  # what its connection was also for
    tainted = False  # a cancel or an exception may still be on its way: its connection is not used again
    severed = False
    stuck = False
    over = False
    _context: Context | None = None
    _metadata: Mapping[str, Any] = MappingProxyType({})
    _output: str | None = None
    _told_at = NEVER
    _patience = AFTER_TIMEOUT
    _in_handler = False
    _raised = False

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
        self.checkout = checkout  # None: detached, without a connection
        self.handler = handler  # None: nobody handles its kind
        self.deciding = threading.Lock()
        self.thread = threading.current_thread()
        self._began = time.time()
        self.expires = NEVER if timeout is None else time.monotonic() + timeout.total_seconds()
        self._conn_id = (
            id(checkout.conn) if checkout else 0
        )  # no reference: who holds one is what the executor looks for
        self._complete = complete
        self._timeout = timeout
        self._lock = threading.Lock()
        self._process = os.getpid()

    def followed_by(self, job: Job[Any], timeout: timedelta | None, handler: Handler) -> Attempt:
        """The attempt at the next job of a batch, in the same thread and on the same connection; this one is over. What
        is made for both costs as much as all the rest of an attempt."""
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
        """Whether its handler is still at work, not its thread at the record of what became of it."""
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
        self._metadata = json.loads(text)  # a copy: what the handler changes later is not checked any more

    def record_output(self, output: object) -> None:
        self._check_running()
        text = codec.encode_output(output)
        # in ASCII, as metadata is: whatever encoding the handler leaves its session in
        self._output = text if text.isascii() else _NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], text)

    def complete(self, tx: Any) -> Job[Any]:
        self._check_running()
        conn = borrow(tx)
        if self._complete is not None:
            return self._complete(conn, self)
        if self.checkout is None or conn is not self.checkout.conn:
            raise InvalidTransaction(f"job {self.job.id} completes in its own transaction, when its handler returns")
        return self.job

    def _check_running(self) -> None:
        if self.over:
            raise NotRunning(f"job {self.job.id} is not being run any more: this attempt is over")

    # --- for the worker's thread

    @property
    def kept(self) -> AttemptData:
        """What is to be written with the outcome."""
        if not self._metadata and self._output is None:
            return NO_DATA
        return AttemptData(json.dumps(dict(self._metadata)) if self._metadata else None, self._output)

    @property
    def context(self) -> Context:
        """The context variables of all that the application's functions do around this attempt: a copy of those of its
        thread, which must not be entered twice at a time."""
        if self._context is None:
            self._context = own_context()
        return self._context

    def run(self, handler: Callable[[], object]) -> BaseException | None:
        """Call the handler, in a copy of the context variables; what it raised, or why it was told to end if it raised
        for that. When this returns, no exception from outside can arrive any more."""
        error: BaseException | None = None
        started = time.monotonic()
        try:
            try:
                context = own_context() if self._context is None else with_own_decimals(self._context.copy())
                self._in_handler = True  # without the lock: the watch may find it a moment later
                context.run(handler)
            except BaseException as raised:  # also SystemExit: a handler must not end the worker's thread
                error = raised
            if os.getpid() != self._process:  # a child that the handler forked has come back out of it
                os._exit(0 if error is None or (isinstance(error, SystemExit) and not error.code) else 1)
            self._close_window()
        except Interrupted as late:  # it arrived between the handler's end and the end of the window
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
        if self._raised:
            let_arrive()

    def abandon(self) -> None:
        """Give its connection up on behalf of a thread that does not come back: the pool makes another."""
        if self.checkout is not None:
            self.checkout.abandon(self._conn_id)

    def end(self) -> None:
        """It is finished: nothing will be done to it or its connection any more."""
        with self._lock:
            self.over = True
            if not self.severed:
                self.on_severed = None  # a job that the handler keeps does not keep all its neighbours

    # --- for the watch; nothing in here blocks

    def request_stop(self, reason: Reason, patience: GracePeriods | None = None) -> None:
        """It is to end. The first reason counts; a later call can only be less patient."""
        patience = patience or AFTER_TIMEOUT
        with self._lock:
            if self.reason is None or patience.stuck < self._patience.stuck:
                self._told_at = time.monotonic()
                self._patience = patience
            self.reason = self.reason or reason

    def escalate(self, now: float) -> float:
        """Take the step that is due; when to come again."""
        if self.reason is None and self._timeout is not None and now >= self.expires:
            self.request_stop(JobTimedOut(self._timeout))
        with self._lock:
            if self.over or self.stuck:
                return NEVER
            if self.reason is None:
                return self.expires
            return self._told_at + self._step(now - self._told_at)

    def _step(self, waited: float) -> float:
        """The steps that are due after so many seconds, in their order; after how many to come again. A watch that
        comes late, on a busy machine, leaves none out."""
        if self._in_handler and not self._raised and waited >= self._patience.raised:
            self._raised = self.tainted = True
            raise_in(self.thread, Interrupted)
        if waited >= self._patience.severed:
            return self._sever(waited)
        if self._in_handler and self.checkout is not None and self.checkout.in_statement:
            self.tainted = True
            canceller.get().ask(self.checkout, self._conn_id)
        due = (self._patience.raised, self._patience.severed, waited + _CANCEL_AGAIN)
        return min(later for later in due if later > waited)

    def _sever(self, waited: float) -> float:
        if not self.severed:
            self.severed = self.tainted = True
            if self.checkout is not None:
                self.checkout.shut_down(self._conn_id)
        self.stuck = waited >= self._patience.stuck
        return NEVER if self.stuck else self._patience.stuck


def own_context() -> Context:
    """A copy of the context variables of this thread, for functions of the application."""
    return with_own_decimals(copy_context())


def with_own_decimals(context: Context) -> Context:
    """The precision of decimals is kept in an object, which copies of a context share: this one has its own."""
    if len(context):  # what a thread of a pool starts with is empty
        context.run(_own_decimals)
    return context


def _own_decimals() -> None:
    setcontext(getcontext().copy())
