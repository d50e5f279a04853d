"""The thread that stops attempts when their time is up, their job is cancelled or the pool stops.

The steps that it takes are those of attempt.py. It waits for the clock alone: no call to the database, a handler or a
hook is made in this thread, so none of them can hold it up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue
from uuid import UUID

from pgjobs.db.checkout import NEVER, Checkout
from pgjobs.errors import JobCancelled
from pgjobs.execution.attempt import Attempt, GracePeriods, Reason, Slot
from pgjobs.execution.interrupt import start_thread

_CHECK_EVERY = 5.0  # seconds between two checks for connections whose answer is overdue


class Watchdog:
    """The attempts that run in this process, and the thread that watches them while there is a user: the pool, or a
    caller that runs a job in its own thread."""

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
        self.reset_for_process()

    def reset_for_process(self) -> None:
        """Start without attempts and threads: called for a new watchdog, and in a forked child, which inherits none."""
        self._slots: set[Slot] = set()
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._reported = threading.Condition(self._lock)  # a severed attempt
        self._reporting = 0  # how many severed attempts are being reported
        self._next = NEVER
        self._stop_all: tuple[Callable[[], Reason], GracePeriods] | None = None  # holds for attempts added later, too
        self._stops = 0  # calls of `request_stop_all`
        self.stopped = 0  # attempts that `request_stop_all` has stopped since the start
        self.cancelled: dict[tuple[int, UUID | None], JobCancelled] = {}  # a batch does not start these jobs
        self._started = False  # by the pool
        self._users = 0
        self._thread: threading.Thread | None = None  # while there are users
        # Set at the exit of the process, when no more threads can be started: the thread that stops the pool makes the
        # calls of these reports.
        self.reports: SimpleQueue[Callable[[], object]] | None = None

    def start(self) -> None:
        """Watch from now on, because the pool starts."""
        with self._lock:
            self._stop_all, self.stopped = None, 0
            self._add_user()
            self._started = True

    def stop(self) -> None:
        """The pool has stopped."""
        with self._lock:
            started, self._started = self._started, False
            thread = self._remove_user() if started else None
        if thread is not None:
            thread.join()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Watch until the block ends."""
        with self._lock:
            self._add_user()
        try:
            yield
        finally:
            with self._lock:
                thread = self._remove_user()
            if thread is not None:
                thread.join()

    @property
    def alive(self) -> bool:
        """Whether its thread watches."""
        thread = self._thread
        return thread is not None and thread.is_alive()

    def _add_user(self) -> None:
        self._users += 1
        if self._users == 1:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            try:
                self._thread.start()
            except BaseException:
                self._users = 0
                raise

    def _remove_user(self) -> threading.Thread | None:
        """If that was the last user, the thread ends; returns it then, to be joined."""
        self._users -= 1
        if self._users:
            return None
        thread, self._thread, self._stop_all = self._thread, None, None
        self._changed.notify()
        return thread

    # --- what is watched

    @contextmanager
    def guard(self, checkout: Checkout) -> Iterator[Slot]:
        """Watch this thread until the block ends: the attempts that it runs, one after the other, in its slot, and its
        connection, which is shut down if an answer is overdue (`checkout.answer_due`)."""
        slot = Slot(checkout)
        with self._lock:
            self._slots.add(slot)
        try:
            yield slot
        finally:
            with self._lock:
                self._slots.discard(slot)

    def add(self, slot: Slot, attempt: Attempt) -> None:
        """Watch this attempt in the slot, in place of the one before.

        No lock is taken, as a rule: this stores the attempt and then looks whether all are to stop, or whether the
        thread sleeps too long. The other side changes those first, and then looks at the slots. So one of the two sees
        what the other has done."""
        slot.attempt = attempt
        if self._stop_all is None and attempt.expires >= self._next:
            return
        with self._lock:
            if self._stop_all is not None:
                self._stop_attempt(attempt, *self._stop_all)
            if attempt.expires < self._next:
                self._changed.notify()

    @property
    def attempts(self) -> list[Attempt]:
        """The attempts that run now."""
        with self._lock:
            found = [slot.attempt for slot in self._slots]
        return [attempt for attempt in found if attempt is not None and not attempt.replaced]

    @property
    def tokens(self) -> list[UUID]:
        """The tokens of the attempts that run now."""
        return [attempt.job.token for attempt in self.attempts if attempt.job.token is not None]

    @property
    def detached_tokens(self) -> list[UUID]:
        """The tokens of the detached attempts that run now: they have no connection, and their leases are extended."""
        detached = [attempt.job for attempt in self.attempts if attempt.checkout is None and not attempt.severed]
        return [job.token for job in detached if job.token is not None]

    # --- stopping attempts

    def request_stop(
        self, token: UUID, reason: Reason, grace: GracePeriods | None = None, *, id: int | None = None
    ) -> None:
        """Stop the attempt with this token, if it still runs; of a batch, only the attempt at the job with this id."""
        with self._lock:
            for attempt in self.attempts:
                if attempt.job.token == token and id in (None, attempt.job.id):
                    attempt.request_stop(reason, grace)
            self._changed.notify()

    def stop_expired_leases(self, tokens: set[UUID]) -> None:
        """Stop the attempts with these tokens, whose leases have expired. An attempt that has completed its own job is
        not stopped: it needs no lease any more."""
        with self._lock:
            for attempt in self.attempts:
                if attempt.job.token in tokens and not attempt.completed:
                    attempt.request_stop(JobCancelled("its lease ended before it did"))
            self._changed.notify()

    @property
    def stopping_all(self) -> bool:
        """Whether all attempts are told to end, those that start later included."""
        return self._stop_all is not None

    def request_stop_all(self, reason: Callable[[], Reason], grace: GracePeriods) -> None:
        """Stop every running attempt, and every attempt that is added later: a job may have been claimed a moment
        ago, and its attempt not added yet."""
        with self._lock:
            self._stops += 1
            self._stop_all = reason, grace
            for attempt in self.attempts:
                self._stop_attempt(attempt, reason, grace)

    def _stop_attempt(self, attempt: Attempt, reason: Callable[[], Reason], grace: GracePeriods) -> None:
        if attempt.stopped_by == self._stops:
            return
        attempt.stopped_by = self._stops
        self.stopped += 1
        attempt.request_stop(reason(), grace)
        self._changed.notify()

    # --- the thread

    def _run(self) -> None:
        with self._lock:
            while self._thread is threading.current_thread():
                now = time.monotonic()
                self._next = NEVER  # an attempt that is added from here on notifies
                self._next = min((attempt.escalate(now) for attempt in self.attempts), default=NEVER)
                self._report()
                self._shut_down_silent(now)
                self._changed.wait(min(_CHECK_EVERY, max(0.0, self._next - time.monotonic())))

    def _report(self) -> None:
        """Report attempts that were severed or are stuck, each in a thread of its own, because a report may block."""
        for attempt in self.attempts:
            if attempt.severed and not attempt.reported:
                attempt.reported = self._start(partial(self._report_severed, attempt), name="pgjobs/severed")
                self._reporting += attempt.reported
            # a thread whose handler has ended comes back by itself, however long it waits for a connection
            replaces = attempt.in_handler or self._stop_all is not None
            if attempt.stuck and replaces:
                attempt.replaced = self._start(partial(self._on_stuck, attempt), name="pgjobs/stuck")

    def _report_severed(self, attempt: Attempt) -> None:
        try:
            self._on_severed(attempt)
        finally:
            with self._lock:
                self._reporting -= 1
                self._reported.notify_all()

    def wait_for_reports(self, timeout: float) -> bool:
        """Wait until the outcomes of severed attempts are written: the process may end next, and those threads with
        it. Returns whether they are."""
        with self._lock:
            return self._reported.wait_for(lambda: not self._reporting, timeout)

    def _start(self, report: Callable[[], object], *, name: str) -> bool:
        if self.reports is None:
            return start_thread(report, name=name)
        self.reports.put(report)
        return True

    def _shut_down_silent(self, now: float) -> None:
        """Shut down the connections whose answer is overdue: a network may acknowledge packets and deliver none."""
        for slot in self._slots:
            checkout = slot.checkout
            if checkout.answer_due <= now:
                checkout.answer_due = NEVER
                checkout.shut_down(id(checkout.conn))
                self._start(self._on_silent, name="pgjobs/silent")
