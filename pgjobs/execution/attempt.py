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

import ctypes
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import Context, copy_context
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import getcontext, setcontext
from functools import partial
from types import MappingProxyType
from typing import Any
from uuid import UUID

from pgjobs import codec
from pgjobs.db.checkout import NEVER, Checkout
from pgjobs.db.cursors import AnyConnection
from pgjobs.db.source import borrow
from pgjobs.errors import Interrupted, InvalidTransaction, JobCancelled, JobStopped, JobTimedOut, NotRunning
from pgjobs.execution.canceller import canceller
from pgjobs.execution.outcome import NOTHING_KEPT, Kept, Outcome
from pgjobs.job import Job
from pgjobs.loggers import get_logger
from pgjobs.options import LAST_INSTANT
from pgjobs.work_map import Handler

log = get_logger("pgjobs.watch")

Reason = JobTimedOut | JobCancelled | JobStopped
_LOOK_EVERY = 5.0  # seconds between two looks for connections that wait in vain
_CANCEL_AGAIN = 0.25  # seconds after which a handler that goes on with the next statement is cancelled again
_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")


@dataclass(frozen=True, slots=True)
class Patience:
    """When each step is taken, in seconds after the attempt was told to end."""

    raised: float
    severed: float
    stuck: float


AFTER_TIMEOUT = Patience(raised=1.0, severed=5.0, stuck=10.0)
AT_STOP = Patience(raised=0.2, severed=0.8, stuck=1.2)
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
        held: Checkout | None,
        timeout: timedelta | None,
        *,
        handler: Handler | None = None,
        complete: Callable[[AnyConnection, Attempt], Job[Any]] | None = None,
    ) -> None:
        self.job = job
        self.held = held  # None: detached, without a connection
        self.handler = handler  # None: nobody handles its kind
        self.deciding = threading.Lock()
        self.thread = threading.current_thread()
        self._began = time.time()
        self.expires = NEVER if timeout is None else time.monotonic() + timeout.total_seconds()
        self._conn_id = id(held.conn) if held else 0  # no reference: who holds one is what the executor looks for
        self._complete = complete
        self._timeout = timeout
        self._lock = threading.Lock()
        self._process = os.getpid()

    def followed_by(self, job: Job[Any], timeout: timedelta | None, handler: Handler) -> Attempt:
        """The attempt at the next job of a batch, in the same thread and on the same connection; this one is over. What
        is made for both costs as much as all the rest of an attempt."""
        made: Attempt = object.__new__(Attempt)
        made.job = job
        made.held = self.held
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
        if self.held is None or conn is not self.held.conn:
            raise InvalidTransaction(f"job {self.job.id} completes in its own transaction, when its handler returns")
        return self.job

    def _check_running(self) -> None:
        if self.over:
            raise NotRunning(f"job {self.job.id} is not being run any more: this attempt is over")

    # --- for the worker's thread

    @property
    def kept(self) -> Kept:
        """What is to be written with the outcome."""
        if not self._metadata and self._output is None:
            return NOTHING_KEPT
        return Kept(json.dumps(dict(self._metadata)) if self._metadata else None, self._output)

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
            _let_arrive()

    def abandon(self) -> None:
        """Give its connection up on behalf of a thread that does not come back: the pool makes another."""
        if self.held is not None:
            self.held.abandon(self._conn_id)

    def end(self) -> None:
        """It is finished: nothing will be done to it or its connection any more."""
        with self._lock:
            self.over = True
            if not self.severed:
                self.on_severed = None  # a job that the handler keeps does not keep all its neighbours

    # --- for the watch; nothing in here blocks

    def tell(self, reason: Reason, patience: Patience) -> None:
        """It is to end. The first reason counts; a later call can only be less patient."""
        with self._lock:
            if self.reason is None or patience.stuck < self._patience.stuck:
                self._told_at = time.monotonic()
                self._patience = patience
            self.reason = self.reason or reason

    def press(self, now: float) -> float:
        """Take the step that is due; when to come again."""
        if self.reason is None and self._timeout is not None and now >= self.expires:
            self.tell(JobTimedOut(self._timeout), AFTER_TIMEOUT)
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
            _raise_in(self.thread, Interrupted)
        if waited >= self._patience.severed:
            return self._sever(waited)
        if self._in_handler and self.held is not None and self.held.in_statement:
            self.tainted = True
            canceller.get().ask(self.held, self._conn_id)
        due = (self._patience.raised, self._patience.severed, waited + _CANCEL_AGAIN)
        return min(later for later in due if later > waited)

    def _sever(self, waited: float) -> float:
        if not self.severed:
            self.severed = self.tainted = True
            if self.held is not None:
                self.held.shut_down(self._conn_id)
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


def _raise_in(thread: threading.Thread, exception: type[BaseException]) -> None:
    """Let the thread raise this when it next runs Python code."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(exception))


def _started(act: Callable[[], object], *, name: str) -> bool:
    """Whether it has a thread of its own now: the system may refuse that for a while, by a limit on processes."""
    try:
        threading.Thread(target=act, name=name, daemon=True).start()
    except (RuntimeError, MemoryError) as error:
        log.error("%s: no thread for it: %s", name, error)
        return False
    return True


def _let_arrive() -> None:
    """What was raised in this thread and is still on its way arrives now. It is not taken back: for CPython 3.11 one
    would then be due for ever, and under a debugger or a coverage tool, no call would get past its first line."""
    with suppress(Interrupted):
        for _ in range(100):  # the interpreter looks each time it goes back
            pass


class Watch:
    """The thread that sees to it that attempts end when they are to. It waits for nothing but the time, so nothing
    that happens to the database or to a handler can hold it up."""

    def __init__(
        self,
        *,
        on_severed: Callable[[Attempt], None],
        on_stuck: Callable[[Attempt], None],
        on_silent: Callable[[], None],
        name: str,
    ) -> None:
        self._on_severed = on_severed
        self._on_stuck = on_stuck
        self._name = name
        self._on_silent = on_silent
        self.begin_anew()

    def begin_anew(self) -> None:
        """As it is when it is made; and in a forked child, which has none of the threads and attempts."""
        self._attempts: dict[Attempt, bool] = {}  # with whether its severing was reported
        self._holds: set[Checkout] = set()
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._next = NEVER
        self._all_end: tuple[Callable[[], Reason], Patience] | None = None  # also those that begin after that was said
        self.cut_off = 0  # so many attempts since the start, because all were to end
        self.unwanted: dict[tuple[int, UUID | None], JobCancelled] = {}  # a batch starts none of these any more
        self._started = False  # by the pool
        self._users = 0  # the pool, and those who run a job on a thread of their own
        self._thread: threading.Thread | None = None  # while there are any

    def start(self) -> None:
        """The pool starts."""
        with self._lock:
            self._all_end, self.cut_off = None, 0
            self._enter()
            self._started = True

    def stop(self) -> None:
        """The pool has stopped."""
        with self._lock:
            started, self._started = self._started, False
            thread = self._leave() if started else None
        if thread is not None:
            thread.join()

    def _enter(self) -> None:
        self._users += 1
        if self._users == 1:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            try:
                self._thread.start()
            except BaseException:
                self._users = 0
                raise

    def _leave(self) -> threading.Thread | None:
        """The thread that ends, if that was the last user."""
        self._users -= 1
        if self._users:
            return None
        thread, self._thread, self._all_end = self._thread, None, None
        self._changed.notify()
        return thread

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run for as long as the block, if it does not run already."""
        with self._lock:
            self._enter()
        try:
            yield
        finally:
            with self._lock:
                thread = self._leave()
            if thread is not None:
                thread.join()

    def add(self, attempt: Attempt, *, instead_of: Attempt | None = None) -> None:
        """Watch over an attempt until it is removed."""
        with self._lock:
            if instead_of is not None:
                self._attempts.pop(instead_of, None)
            self._attempts[attempt] = False
            if self._all_end is not None:
                self._cut_off(attempt, *self._all_end)
            elif attempt.expires < self._next:
                self._changed.notify()

    def remove(self, attempt: Attempt) -> None:
        with self._lock:
            self._attempts.pop(attempt, None)

    @contextmanager
    def over(self, held: Checkout) -> Iterator[None]:
        """For as long as the block, see to it that nobody waits on this connection for an answer that does not come."""
        with self._lock:
            self._holds.add(held)
        try:
            yield
        finally:
            with self._lock:
                self._holds.discard(held)

    @property
    def tokens(self) -> list[UUID]:
        """Of the attempts that run now."""
        with self._lock:
            return [attempt.job.token for attempt in self._attempts if attempt.job.token is not None]

    @property
    def detached_tokens(self) -> list[UUID]:
        """Of those that hold no connection, and live by a lease."""
        with self._lock:
            detached = [attempt.job for attempt in self._attempts if attempt.held is None and not attempt.severed]
            return [job.token for job in detached if job.token is not None]

    def tell(self, token: UUID, reason: Reason, patience: Patience, *, id: int | None = None) -> None:
        """Tell the attempt with this token, at the job with this id if one is given, to end, if it still runs."""
        with self._lock:
            for attempt in self._attempts:
                if attempt.job.token == token and id in (None, attempt.job.id):
                    attempt.tell(reason, patience)
            self._changed.notify()

    def tell_of_lost_leases(self, tokens: set[UUID]) -> None:
        """The leases of these attempts are over. Those that completed their jobs themselves need none any more."""
        with self._lock:
            for attempt in self._attempts:
                if attempt.job.token in tokens and not attempt.completed:
                    attempt.tell(JobCancelled("its lease ended before it did"), AFTER_TIMEOUT)
            self._changed.notify()

    def tell_all(self, reason: Callable[[], Reason], patience: Patience) -> None:
        """Tell every attempt that runs to end, and from now on those that begin: one that was claimed in this moment
        is not on the list yet."""
        with self._lock:
            self._all_end = reason, patience
            for attempt in self._attempts:
                self._cut_off(attempt, reason, patience)

    def _cut_off(self, attempt: Attempt, reason: Callable[[], Reason], patience: Patience) -> None:
        self.cut_off += 1
        attempt.tell(reason(), patience)
        self._changed.notify()

    def _run(self) -> None:
        with self._lock:
            while self._thread is threading.current_thread():
                now = time.monotonic()
                self._next = min((attempt.press(now) for attempt in self._attempts), default=NEVER)
                self._report()
                self._end_silence(now)
                self._changed.wait(min(_LOOK_EVERY, max(0.0, self._next - time.monotonic())))

    def _end_silence(self, now: float) -> None:
        """Shut down the connections whose answer is overdue: the network may acknowledge all and pass nothing on."""
        for held in self._holds:
            if held.answer_due <= now:
                held.answer_due = NEVER
                held.shut_down(id(held.conn))
                _started(self._on_silent, name="pgjobs/silent")

    def _report(self) -> None:
        """Hand on what was severed and what is stuck, each in a thread of its own: a report may take its time."""
        for attempt, reported in list(self._attempts.items()):
            if attempt.severed and not reported:
                self._attempts[attempt] = _started(partial(self._on_severed, attempt), name="pgjobs/severed")
            # a thread whose handler is over comes back by itself, however long it waits for a connection
            left_behind = attempt.in_handler or self._all_end is not None
            if attempt.stuck and left_behind and _started(partial(self._on_stuck, attempt), name="pgjobs/stuck"):
                del self._attempts[attempt]
