"""Who is to be woken when a job is enqueued.

A notification in every commit would let all commits of the server wait for each other, so those who enqueue notify only
when somebody sleeps: when they cannot have the lock of the queue, because a sleeper holds it. One process of all has
the post of a queue. When its threads have found nothing more to do it arms itself, which is to take that lock, and lets
one of them look again, for what was committed in between. A notification reaches all processes that listen. The one at
the post sends a thread to look. If that, or the next, soon finds nothing more, it was a single job, and all is as it
was before: whatever else is enqueued notifies. But when there are more of them, which a second notification tells or
that nobody has found nothing yet, it disarms itself, so that there are no further ones, until a thread finds nothing
again. When its threads are all at work it leaves the post, and calls the others, one of which takes it.

None of this waits for a lock. What cannot be had, because a transaction is open that has enqueued, is tried again
after a pause that grows, and a thread looks each time. A process that dies loses its locks, and the others take over
when they next poll.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from pgjobs.db.checkout import NEVER
from pgjobs.db.cursors import AnyConnection
from pgjobs.wakeup.idle_threads import IdleThreads
from pgjobs.wakeup.queries import WakeupQueries

_FIRST_PAUSE = 0.001  # seconds until what could not be armed is tried again; doubles
_LONGEST_PAUSE = 0.05
_LINGER = 0.005  # how long a post that was notified stays armed, unless it is notified again or all is done
_LOOK_UP = 0.01  # how often to see what has become of a thread that was called


class Posts:
    """The posts of this process. All of it is done by the thread that listens."""

    def __init__(
        self, queries: WakeupQueries, *, leaves_jobs: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._queries = queries
        self._leaves_jobs = leaves_jobs
        self._clock = clock
        self._class: int | None = None  # None where no locks can be held
        self._kept: dict[IdleThreads, str] = {}  # those that something must be done about, soon or when they are heard

    def begin(self, conn: AnyConnection) -> bool:
        """On a new connection. Says whether locks can be held on it: not behind a pooler."""
        pooled, advisory_class = self._queries.facts(conn)
        self._class = None if pooled else advisory_class
        if not pooled:
            self._queries.stay(conn)
        return not pooled

    def lose(self) -> None:
        """The connection is gone, and all locks with it."""
        for idle in self._kept:
            idle.post.lose()
        self._kept.clear()
        self._class = None

    def send(self, queue: str) -> bool:
        """A notification of the queue has come: if it is armed, send a thread to look. Says whether one was."""
        for idle, name in self._kept.items():
            if name == queue and idle.post.armed:
                post, now = idle.post, self._clock()
                again = post.disarm_at < NEVER and not post.looked
                post.disarm_at = now if again else now + _LINGER
                post.pause = post.due = 0.0
                idle.send(armed=True, now=now)
                return True
        return False

    def tend(self, conn: AnyConnection, called: Mapping[IdleThreads, str]) -> float:
        """Arm what is to be armed, leave what is to be left: of those who have called now, and earlier ones. How many
        seconds until there may be more to do, if nobody calls."""
        self._kept.update(called)
        if self._class is None:
            self.lose()
            return NEVER
        now = self._clock()
        spent = [idle for idle in self._kept if idle.post.is_spent(now)]
        if spent:
            self._disarm(conn, spent)
        leave = [idle for idle in self._kept if idle.post.held and (idle.closed or idle.post.is_over(now))]
        if leave:
            self._leave(conn, leave)
        arm = [idle for idle in self._kept if not idle.closed and idle.post.wants(now)]
        if arm:
            self._arm(conn, arm)
        for idle in [idle for idle in self._kept if idle.closed or not idle.post.kept]:
            del self._kept[idle]
        if spent or leave or arm:
            return 0.0  # a notification may have come with the answers
        return min((idle.post.rest(now, _LOOK_UP) for idle in self._kept if not idle.post.sleeps), default=NEVER)

    def leave_all(self, conn: AnyConnection) -> None:
        held = [idle for idle in self._kept if idle.post.held]
        if held:
            self._leave(conn, held)

    def _disarm(self, conn: AnyConnection, spent: Sequence[IdleThreads]) -> None:
        assert self._class is not None
        for idle in spent:  # first: a thread that finds nothing from here on says so
            idle.post.armed = False
            idle.post.disarm_at = NEVER
        self._queries.disarm(conn, self._class, [self._kept[idle] for idle in spent])

    def _leave(self, conn: AnyConnection, leave: list[IdleThreads]) -> None:
        assert self._class is not None
        self._queries.leave(conn, self._class, [(self._kept[idle], idle.post.armed) for idle in leave])
        for idle in leave:
            idle.post.held = idle.post.armed = False

    def _arm(self, conn: AnyConnection, arm: list[IdleThreads]) -> None:
        assert self._class is not None
        asked = [(self._kept[idle], idle.post.held) for idle in arm]
        answers = self._queries.take(conn, self._class, asked, leaves_jobs=self._leaves_jobs)
        now = self._clock()
        for idle, (held, armed) in zip(arm, answers, strict=True):
            post = idle.post
            post.held = held
            if armed:
                post.pause = 0.0
                post.disarm_at = NEVER
                idle.send(armed=True, now=now)
            elif not held:
                post.looked = False  # another process wakes us
            else:
                first = not post.pause
                post.pause = _FIRST_PAUSE if first else min(2 * post.pause, _LONGEST_PAUSE)
                post.due = now + post.pause
                if not first:
                    idle.send(armed=False, now=now)
