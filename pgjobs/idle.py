"""How the threads of one queue wait for work."""

from __future__ import annotations

import threading
import time
from typing import Any

from pgjobs.checkout import NEVER
from pgjobs.errors import InvalidSetting

_MOST_THREADS = 10_000
_SOON = 0.01  # seconds in which a post is left that nobody can be sent from
_SLOW = 1.0  # the same when somebody was sent, who ought to be back by then


class Post:
    """How it stands with those who are to wake the threads of one queue; see posts.py. The threads say when they have
    looked, the listener does the rest."""

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


class IdleThreads:
    """The threads of one queue, and how the idle ones wait."""

    def __init__(self, threads: Any) -> None:
        if not isinstance(threads, int) or isinstance(threads, bool) or not 1 <= threads <= _MOST_THREADS:
            raise InvalidSetting(f"a queue has 1 to {_MOST_THREADS} threads, not {threads!r}")
        self.threads = threads
        self.closed = False  # no more jobs of this queue
        self.calls = 0  # how often it was called; a thread that missed a call looks again before it waits
        self.post = Post()
        self._changed = threading.Condition()
        self._idle = 0  # threads that wait
        self._called = 0  # of them, those that were called and have not woken up yet
        self._clock_watched = False  # one idle thread waits no longer than the poll interval

    def wake(self) -> bool:
        """Call one idle thread. When it finds a job it calls the next: many jobs wake many threads, one job one. Says
        whether there is one that will look."""
        with self._changed:
            self.calls += 1
            if self._called < self._idle:
                self._called += 1
                self._changed.notify()
            return self._called > 0

    def send(self, *, armed: bool, now: float) -> None:
        """Have a thread look, later than now, at what may have been enqueued without a notification."""
        post = self.post
        post.armed = armed
        post.since = self.calls + 1
        post.looked = False
        post.deadline = now + _SLOW  # before anybody is called, who may know better
        if not self.wake():
            post.deadline = now + _SOON

    def claimed(self) -> None:
        """A thread has found a job: call the next."""
        post = self.post
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
        if post.looked or seen < post.since:
            return False
        post.looked = True
        return not post.armed

    def wake_all(self) -> None:
        with self._changed:
            self.calls += 1
            self._called = self._idle
            self._changed.notify_all()

    def close(self) -> None:
        """Let the threads end when they are done with their jobs."""
        self.closed = True
        self.wake_all()

    def wait(self, seen: int, poll_interval: float) -> None:
        """Wait for a call that came after `seen`; one of the idle threads no longer than the poll interval."""
        with self._changed:
            if self.calls != seen:
                return
            self._idle += 1
            if not self._wait_for_call(poll_interval):
                self._called -= 1
            self._idle -= 1
            if self._idle and not self._clock_watched:
                self._changed.notify()  # somebody else must watch the clock now

    def _wait_for_call(self, poll_interval: float) -> bool:
        """Says whether the poll interval was over, rather than a call received."""
        while not self._called:
            if self._clock_watched:
                self._changed.wait()
                continue
            self._clock_watched = True
            called = self._changed.wait(poll_interval)
            self._clock_watched = False
            if not called:
                return not self._called
        return False
