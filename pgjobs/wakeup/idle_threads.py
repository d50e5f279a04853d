"""How the idle worker threads of one queue wait for work.

`IdleThreads` wakes the thread that fell asleep last, because its data is still in the caches of the processor: when
there is little work, the same few threads do it. The thread that would be woken last ends its wait when the poll
interval is over, and polls on behalf of all of them.

`WakeupState` belongs to the wake-up leader; see wakeup_leader.py. It is here because the worker threads change it too,
under the lock of their IdleThreads.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from pgjobs.db.checkout import NEVER
from pgjobs.queue_settings import check_threads

# Seconds until a leader resigns, unless one of its threads finds the queue empty:
_RESIGN_SOON = 0.01  # when no thread could be woken, because all are at work
_RESIGN_AFTER = 1.0  # when a thread was woken


class WakeupState:
    """Whether this process leads one queue, and whether NOTIFY is on for it. See the table in wakeup_leader.py.

    The worker threads set `found_empty`; the listener's thread sets everything else.
    """

    def __init__(self) -> None:
        self.leads = False  # holds the leader's lock
        self.notify_on = False  # holds the queue's lock too, so transactions that enqueue notify
        self.found_empty = False  # a worker has found the queue empty, in a search that counts
        self.counts_from = 0  # a search counts if it began when this was the wake-up count, or later
        self.resign_at = 0.0
        self.notify_off_at = NEVER  # set when a notification arrives
        self.retry_pause = 0.0  # seconds between two attempts to switch NOTIFY on
        self.retry_at = 0.0

    def reset(self) -> None:
        """The connection is lost, and the locks with it."""
        self.leads = self.notify_on = self.found_empty = False
        self.retry_pause = self.retry_at = 0.0
        self.notify_off_at = NEVER

    @property
    def asleep(self) -> bool:
        """Whether there is nothing to do until a notification arrives."""
        return self.notify_on and self.found_empty

    @property
    def active(self) -> bool:
        """Whether the listener's thread must update this state again and again."""
        return self.leads or self.found_empty

    def should_lead(self, now: float) -> bool:
        """Whether to try now to lead the queue and to switch NOTIFY on."""
        return self.found_empty and not self.notify_on and now >= self.retry_at

    def should_resign(self, now: float) -> bool:
        """Whether all threads of the queue seem to be at work, so that another process should lead."""
        return self.leads and not self.found_empty and now >= self.resign_at

    def notify_expired(self, now: float) -> bool:
        """Whether to switch NOTIFY off: no worker has reported an empty queue in time after a notification."""
        return self.notify_on and not self.found_empty and now >= self.notify_off_at

    def seconds_until_due(self, now: float, recheck: float) -> float:
        """Seconds until there is something to do: `recheck` at most while a thread searches, because a thread that
        finds a job reports nothing."""
        if self.found_empty:
            return max(0.0, self.retry_at - now)
        return min(max(0.0, min(self.resign_at, self.notify_off_at) - now), recheck)


class _Sleeper:
    """One thread that waits."""

    def __init__(self) -> None:
        self._asleep = threading.Lock()
        self._asleep.acquire()
        self.woken = False
        self.polls = False  # this thread watches the poll interval

    def wake(self) -> None:
        self.woken = True
        self.interrupt()

    def interrupt(self) -> None:
        """End the present sleep, or the next. The caller holds the lock of the IdleThreads."""
        if self._asleep.locked():
            self._asleep.release()

    def sleep(self, poll_interval: float) -> bool:
        """Sleep until interrupted, or for the poll interval; returns whether it was interrupted."""
        return self._asleep.acquire(timeout=min(poll_interval, threading.TIMEOUT_MAX) if self.polls else -1)


class IdleThreads:
    """The threads of one queue, and the sleep of the idle ones among them."""

    def __init__(self, threads: Any) -> None:
        check_threads(threads)
        self.threads: int = threads
        self.closed = False  # its threads take no more jobs
        self.wake_count = 0  # a thread that missed a wake-up since its search began searches again
        self.wakeup = WakeupState()
        self._lock = threading.RLock()
        self._idle = 0  # threads that wait, including those that were woken and do not run yet
        self._sleepers: list[_Sleeper] = []  # the waiting threads that were not woken; the last is woken first
        self._poller: _Sleeper | None = None  # the sleeper that watches the poll interval

    def wake(self) -> bool:
        """Wake one idle thread. If it finds a job it wakes the next, so one job wakes one thread, and many jobs many.
        Returns whether a thread is going to search."""
        with self._lock:
            self.wake_count += 1
            if self._sleepers:
                self._sleepers.pop().wake()
            return self._idle > len(self._sleepers)

    def search_again(self, *, notify_on: bool, now: float) -> None:
        """Make a thread search the queue once more, for jobs that may have been enqueued without a notification."""
        state = self.wakeup
        with self._lock:
            state.counts_from = self.wake_count + 1
            state.found_empty = False
            state.notify_on = notify_on
            state.resign_at = now + _RESIGN_AFTER  # before the wake-up: the thread may find the queue empty at once
            if not self.wake():
                state.resign_at = now + _RESIGN_SOON

    def found_job(self) -> None:
        """A thread has claimed a job: wake the next thread."""
        state = self.wakeup
        with self._lock:
            if (state.leads or state.found_empty) and not state.asleep:
                self._note_job(state)
                return
            self.wake_count += 1
            if self._sleepers:
                self._sleepers.pop().wake()

    def _note_job(self, state: WakeupState) -> None:
        """Tell the leader that the queue is not empty, and wake the next thread."""
        state.found_empty = False
        state.retry_pause = state.retry_at = 0.0
        now = time.monotonic()
        state.resign_at = now + _RESIGN_AFTER
        if not self.wake():
            state.resign_at = now + _RESIGN_SOON

    def found_empty(self, seen: int) -> bool:
        """A thread has found no job, in a search that began when the wake-up count was `seen`. Returns whether to
        report that to the listener."""
        state = self.wakeup
        with self._lock:
            if state.found_empty or seen < state.counts_from:
                return False
            state.found_empty = True
            return not state.notify_on

    @property
    def idle(self) -> int:
        """How many threads wait for work."""
        return self._idle

    def wake_all(self) -> None:
        with self._lock:
            self.wake_count += 1
            while self._sleepers:
                self._sleepers.pop().wake()

    def close(self) -> None:
        """End the threads when they have finished their jobs."""
        self.closed = True
        self.wake_all()

    def wait(self, seen: int, poll_interval: float) -> bool:
        """Sleep until woken; return at once if there was a wake-up since the count was `seen`. One of the idle threads
        sleeps for the poll interval at most. Returns whether this thread did so, and must poll now."""
        me = _Sleeper()
        with self._lock:
            if self.wake_count != seen:
                return False
            self._idle += 1
            self._sleepers.append(me)
            self._ensure_poller()
        interrupted = True
        while interrupted and not me.woken:  # interrupted, but not woken: it has become the poller
            interrupted = me.sleep(poll_interval)
        with self._lock:
            self._idle -= 1
            if not me.woken:
                self._sleepers.remove(me)
            if self._poller is me:
                self._poller = None
                self._ensure_poller()
            return not me.woken

    def _ensure_poller(self) -> None:
        if self._poller is None and self._sleepers:
            self._poller = self._sleepers[0]
            self._poller.polls = True
            self._poller.interrupt()
