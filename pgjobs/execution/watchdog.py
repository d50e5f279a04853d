"""Watches over running attempts: ends one, ever more firmly, when its time is up, it is cancelled or the pool stops."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from uuid import UUID

from pgjobs.db.checkout import NEVER, Checkout
from pgjobs.errors import JobCancelled
from pgjobs.execution.attempt import Attempt, GracePeriods, Reason
from pgjobs.execution.interrupt import started

_LOOK_EVERY = 5.0  # seconds between two looks for connections that wait in vain


class Watchdog:
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
        self._all_end: tuple[Callable[[], Reason], GracePeriods] | None = (
            None  # also those that begin after that was said
        )
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
    def over(self, checkout: Checkout) -> Iterator[None]:
        """For as long as the block, see to it that nobody waits on this connection for an answer that does not come."""
        with self._lock:
            self._holds.add(checkout)
        try:
            yield
        finally:
            with self._lock:
                self._holds.discard(checkout)

    @property
    def tokens(self) -> list[UUID]:
        """Of the attempts that run now."""
        with self._lock:
            return [attempt.job.token for attempt in self._attempts if attempt.job.token is not None]

    @property
    def detached_tokens(self) -> list[UUID]:
        """Of those that hold no connection, and live by a lease."""
        with self._lock:
            detached = [attempt.job for attempt in self._attempts if attempt.checkout is None and not attempt.severed]
            return [job.token for job in detached if job.token is not None]

    def request_stop(
        self, token: UUID, reason: Reason, patience: GracePeriods | None = None, *, id: int | None = None
    ) -> None:
        """Tell the attempt with this token, at the job with this id if one is given, to end, if it still runs."""
        with self._lock:
            for attempt in self._attempts:
                if attempt.job.token == token and id in (None, attempt.job.id):
                    attempt.request_stop(reason, patience)
            self._changed.notify()

    def stop_those_without_lease(self, tokens: set[UUID]) -> None:
        """The leases of these attempts are over. Those that completed their jobs themselves need none any more."""
        with self._lock:
            for attempt in self._attempts:
                if attempt.job.token in tokens and not attempt.completed:
                    attempt.request_stop(JobCancelled("its lease ended before it did"))
            self._changed.notify()

    def request_stop_of_all(self, reason: Callable[[], Reason], patience: GracePeriods) -> None:
        """Tell every attempt that runs to end, and from now on those that begin: one that was claimed in this moment
        is not on the list yet."""
        with self._lock:
            self._all_end = reason, patience
            for attempt in self._attempts:
                self._cut_off(attempt, reason, patience)

    def _cut_off(self, attempt: Attempt, reason: Callable[[], Reason], patience: GracePeriods) -> None:
        self.cut_off += 1
        attempt.request_stop(reason(), patience)
        self._changed.notify()

    def _run(self) -> None:
        with self._lock:
            while self._thread is threading.current_thread():
                now = time.monotonic()
                self._next = min((attempt.escalate(now) for attempt in self._attempts), default=NEVER)
                self._report()
                self._end_silence(now)
                self._changed.wait(min(_LOOK_EVERY, max(0.0, self._next - time.monotonic())))

    def _end_silence(self, now: float) -> None:
        """Shut down the connections whose answer is overdue: the network may acknowledge all and pass nothing on."""
        for checkout in self._holds:
            if checkout.answer_due <= now:
                checkout.answer_due = NEVER
                checkout.shut_down(id(checkout.conn))
                started(self._on_silent, name="pgjobs/silent")

    def _report(self) -> None:
        """Hand on what was severed and what is stuck, each in a thread of its own: a report may take its time."""
        for attempt, reported in list(self._attempts.items()):
            if attempt.severed and not reported:
                self._attempts[attempt] = started(partial(self._on_severed, attempt), name="pgjobs/severed")
            # a thread whose handler is over comes back by itself, however long it waits for a connection
            left_behind = attempt.in_handler or self._all_end is not None
            if attempt.stuck and left_behind and started(partial(self._on_stuck, attempt), name="pgjobs/stuck"):
                del self._attempts[attempt]
