"""How the threads of one queue wait for work."""

from __future__ import annotations

import threading
import time
from typing import Any

from pgjobs.db.checkout import NEVER
from pgjobs.queue_settings import check_threads

_SOON = 0.01  # seconds in which a post is left that nobody can be sent from
_SLOW = 1.0  # the same when somebody was sent, who ought to be back by then


class Post:
    """How it stands with those who are to wake the threads of one queue; see wakeup_leader.py. The threads say when
    they have looked, the listener does the rest."""

    def __init__(self) -> None:
        self.held = False  # this process is the one that sees to it that somebody is woken
        self.armed = False  # who enqueues notifies
        self.looked = False  # a thread has found nothing, not earlier than it was asked to look
        self.since = 0  # the call that asked it to
        self.deadline = 0.0  # when the post is left if nobody has looked
        self.disarm_at = NEVER  # when it is disarmed, if nobody has looked; once it was notified
        self.pause = 0.0  # between two tries to arm
        self.due = 0.0  # when the next one is

    def lose(self) -> None:
        self.held = self.armed = self.looked = False
        self.pause = self.due = 0.0
        self.disarm_at = NEVER

    @property
    def sleeps(self) -> bool:
        """Whether there is nothing to do until a notification comes."""
        return self.armed and self.looked

    @property
    def kept(self) -> bool:
        """Whether there is, or will be, something to do for it at all."""
        return self.held or self.looked

    def wants(self, now: float) -> bool:
        """Whether to arm it is to be tried now."""
        return self.looked and not self.armed and now >= self.due

    def is_over(self, now: float) -> bool:
        """Whether all its threads are at work, for all that can be told."""
        return self.held and not self.looked and now >= self.deadline

    def is_spent(self, now: float) -> bool:
        """Whether it is to be disarmed: it was notified, and nobody has found nothing since."""
        return self.armed and not self.looked and now >= self.disarm_at

    def rest(self, now: float, look_up: float) -> float:
        """Seconds until something is to be done. Its threads say when they have found nothing, not when they stay."""
        if self.looked:
            return max(0.0, self.due - now)
        return min(max(0.0, min(self.deadline, self.disarm_at) - now), look_up)


class _Sleeper:
    """One thread that waits."""

    def __init__(self) -> None:
        self._bell = threading.Lock()
        self._bell.acquire()
        self.called = False
        self.watches = False  # the clock

    def call(self) -> None:
        self.called = True
        self.ring()

    def ring(self) -> None:
        """One at a time: under the lock of all."""
        if self._bell.locked():  # else it rings already
            self._bell.release()

    def sleep(self, poll_interval: float) -> bool:
        """Until it is rung, or the poll interval is over; says whether it was rung."""
        return self._bell.acquire(timeout=min(poll_interval, threading.TIMEOUT_MAX) if self.watches else -1)


class IdleThreads:
    """The threads of one queue, and how the idle ones wait.

    The one that came last is called first: what it needs is still in the caches of the processor. So of many threads a
    few do what little there is to do. One of the others watches the clock for all, the one that is called last.
    """

    def __init__(self, threads: Any) -> None:
        check_threads(threads)
        self.threads = threads
        self.closed = False  # no more jobs of this queue
        self.calls = 0  # how often it was called; a thread that missed a call looks again before it waits
        self.post = Post()
        self._changing = threading.RLock()
        self._idle = 0  # threads that wait
        self._sleepers: list[_Sleeper] = []  # of them, those that were not called; from the end
        self._watcher: _Sleeper | None = None  # the first of them, that waits no longer than the poll interval

    def wake(self) -> bool:
        """Call one idle thread. When it finds a job it calls the next: many jobs wake many threads, one job one. Says
        whether there is one that will look."""
        with self._changing:
            self.calls += 1
            if self._sleepers:
                self._sleepers.pop().call()
            return self._idle > len(self._sleepers)

    def send(self, *, armed: bool, now: float) -> None:
        """Have a thread look, later than now, at what may have been enqueued without a notification."""
        post = self.post
        with self._changing:
            post.since = self.calls + 1
            post.looked = False
            post.armed = armed
            post.deadline = now + _SLOW  # before anybody is called, who may know better
            if not self.wake():
                post.deadline = now + _SOON

    def claimed(self) -> None:
        """A thread has found a job: call the next."""
        post = self.post
        with self._changing:
            if post.sleeps or not post.kept:
                self.wake()
                return
            now = time.monotonic()
            post.looked = False
            post.pause = post.due = 0.0
            post.deadline = now + _SLOW
            if not self.wake():
                post.deadline = now + _SOON

    def found_nothing(self, seen: int) -> bool:
        """A thread has found no job, in a look that began when `seen` was the count of calls. Says whether the listener
        has to know."""
        post = self.post
        with self._changing:
            if post.looked or seen < post.since:
                return False
            post.looked = True
            return not post.armed

    def wake_all(self) -> None:
        with self._changing:
            self.calls += 1
            while self._sleepers:
                self._sleepers.pop().call()

    def close(self) -> None:
        """Let the threads end when they are done with their jobs."""
        self.closed = True
        self.wake_all()

    def wait(self, seen: int, poll_interval: float) -> bool:
        """Wait for a call that came after `seen`; one of the idle threads no longer than the poll interval. Says
        whether that was over."""
        me = _Sleeper()
        with self._changing:
            if self.calls != seen:
                return False
            self._idle += 1
            self._sleepers.append(me)
            self._watch_clock()
        rung = True
        while rung and not me.called:  # rung, but not called, to watch the clock
            rung = me.sleep(poll_interval)
        with self._changing:
            self._idle -= 1
            if not me.called:
                self._sleepers.remove(me)
            if self._watcher is me:
                self._watcher = None
                self._watch_clock()
            return not me.called

    def _watch_clock(self) -> None:
        """See to it that some idle thread does."""
        if self._watcher is None and self._sleepers:
            self._watcher = self._sleepers[0]
            self._watcher.watches = True
            self._watcher.ring()
