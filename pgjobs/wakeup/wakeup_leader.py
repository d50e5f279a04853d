"""When a transaction that enqueues sends a NOTIFY: only while a worker sleeps, and once.

A NOTIFY in every commit would make all commits of the server wait for each other. So each queue has two advisory locks,
and the listener's connection of one process, the *wake-up leader* of the queue, holds them:

- The *leader's lock* is kept as long as the process leads. All other processes leave the queue to it.
- The *queue's lock* switches NOTIFY on. A transaction that enqueues tries to share it, until its end: if it cannot,
  a worker sleeps and it sends a NOTIFY; if it can, no worker sleeps and it sends none. The leader cannot have this
  lock while a transaction is open that sent no NOTIFY. So when the leader has it, and then one of its threads searches
  the queue once more and finds nothing, no job is overlooked.

    state        locks   NOTIFY  threads         what happens next
    not leading  none    -       any             a thread finds the queue empty -> lead, or leave it to another process
    busy         leader  off     search or work  a thread finds the queue empty -> searching
    searching    both    on      one searches    it finds the queue empty -> asleep
                                                 5 ms after a notification, or at the second one -> busy
    asleep       both    on      all asleep      a notification wakes one thread -> searching

    busy and searching: no thread finds the queue empty for 1 s (10 ms if none was free to search) -> resign

A notification reaches every process that listens, and each wakes one idle thread. A leader that resigns releases its
locks and notifies the other processes, one of which then leads.

None of this waits for a lock: a lock that cannot be had is tried again after a pause that grows, and a thread searches
the queue each time. No job depends on all this: every poll interval one idle thread per queue and process looks for
jobs even without a notification, so a lost connection, lock or notification costs one interval at most. A process that
dies loses its locks, and another process leads after its next poll.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from pgjobs.db.checkout import NEVER
from pgjobs.db.cursors import AnyConnection
from pgjobs.wakeup.idle_threads import IdleThreads
from pgjobs.wakeup.queries import WakeupQueries

_FIRST_PAUSE = 0.001  # seconds until the next attempt to switch NOTIFY on; doubles
_LONGEST_PAUSE = 0.05
_LINGER = 0.005  # seconds that NOTIFY stays on after a first notification
_RECHECK = 0.01  # seconds between two looks at what a woken thread has found


class WakeupLeader:
    """This process as the leader of its queues. Only the listener's thread calls it."""

    def __init__(
        self, queries: WakeupQueries, *, leaves_jobs: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._queries = queries
        self._leaves_jobs = leaves_jobs
        self._clock = clock
        self._class: int | None = None  # of the advisory locks; None while the connection cannot hold any
        self._active: dict[IdleThreads, str] = {}  # with the name of the queue

    def connected(self, conn: AnyConnection) -> bool:
        """Use a new connection. Returns whether it can hold session locks: it cannot behind a pooler."""
        pooled, advisory_class = self._queries.facts(conn)
        self._class = None if pooled else advisory_class
        if not pooled:
            self._queries.disable_idle_timeout(conn)
        return not pooled

    def connection_lost(self) -> None:
        for idle in self._active:
            idle.wakeup.reset()
        self._active.clear()
        self._class = None

    def notified(self, queue: str) -> bool:
        """A notification of the queue has come. Wakes a thread if NOTIFY is on; returns whether it was."""
        for idle, name in self._active.items():
            if name == queue and idle.wakeup.notify_on:
                state, now = idle.wakeup, self._clock()
                second = state.notify_off_at < NEVER and not state.found_empty
                state.notify_off_at = now if second else now + _LINGER
                state.retry_pause = state.retry_at = 0.0
                idle.search_again(notify_on=True, now=now)
                return True
        return False

    def update(self, conn: AnyConnection, reported: Mapping[IdleThreads, str]) -> float:
        """Take each queue to its next state, including the queues that were `reported` since the last call. Returns how
        many seconds later to call again, unless there is a new report."""
        self._active.update(reported)
        if self._class is None:
            self.connection_lost()
            return NEVER
        now = self._clock()
        expired = [idle for idle in self._active if idle.wakeup.notify_expired(now)]
        if expired:
            self._notify_off(conn, expired)
        resigning = [
            idle for idle in self._active if idle.wakeup.should_resign(now) or (idle.closed and idle.wakeup.leads)
        ]
        if resigning:
            self._resign(conn, resigning)
        candidates = [idle for idle in self._active if not idle.closed and idle.wakeup.should_lead(now)]
        if candidates:
            self._lead(conn, candidates)
        for idle in [idle for idle in self._active if idle.closed or not idle.wakeup.active]:
            del self._active[idle]
        if expired or resigning or candidates:
            return 0.0  # a notification may have come with the answers
        waiting = (idle.wakeup for idle in self._active if not idle.wakeup.asleep)
        return min((state.seconds_until_due(now, _RECHECK) for state in waiting), default=NEVER)

    def resign_all(self, conn: AnyConnection) -> None:
        led = [idle for idle in self._active if idle.wakeup.leads]
        if led:
            self._resign(conn, led)

    def _notify_off(self, conn: AnyConnection, expired: Sequence[IdleThreads]) -> None:
        assert self._class is not None
        for idle in expired:  # before the lock goes: a thread that finds the queue empty from here on must report it
            idle.wakeup.notify_on = False
            idle.wakeup.notify_off_at = NEVER
        self._queries.notify_off(conn, self._class, [self._active[idle] for idle in expired])

    def _resign(self, conn: AnyConnection, resigning: Sequence[IdleThreads]) -> None:
        assert self._class is not None
        queues = [(self._active[idle], idle.wakeup.notify_on) for idle in resigning]
        self._queries.resign(conn, self._class, queues)
        for idle in resigning:
            idle.wakeup.leads = idle.wakeup.notify_on = False

    def _lead(self, conn: AnyConnection, candidates: Sequence[IdleThreads]) -> None:
        """Lead these queues and switch NOTIFY on, if both locks can be had."""
        assert self._class is not None
        queues = [(self._active[idle], idle.wakeup.leads) for idle in candidates]
        answers = self._queries.lead(conn, self._class, queues, leaves_jobs=self._leaves_jobs)
        now = self._clock()
        for idle, (leads, notify_on) in zip(candidates, answers, strict=True):
            state = idle.wakeup
            state.leads = leads
            if notify_on:
                state.retry_pause = 0.0
                state.notify_off_at = NEVER
                idle.search_again(notify_on=True, now=now)
            elif not leads:
                state.found_empty = False  # another process leads, and notifies this one when it resigns
            else:
                first = not state.retry_pause
                state.retry_pause = _FIRST_PAUSE if first else min(2 * state.retry_pause, _LONGEST_PAUSE)
                state.retry_at = now + state.retry_pause
                if not first:
                    idle.search_again(notify_on=False, now=now)
