"""What each process makes for itself, and what it leaves alone because the process that it was forked from made it.

A child has the parent's sockets: whatever it sends on one reaches the parent's session, and what it closes with a
farewell to the server ends that session. The parent's threads are not there, and a lock that one of them held stays
locked. So a child uses nothing of this kind that it has inherited, not even to close it.

A process is told by its id, which also tells a fork that Python was not told of (uwsgi makes such), and by the forks
that Python knows of, for ids come round again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from os import getpid
from typing import Any, Generic, TypeVar

from pgjobs.errors import UsedAfterFork

T = TypeVar("T")

_forks = 0  # between the process that has imported this and the present one
_at_fork: list[Callable[[], object]] = []
_left_alone: list[object] = []  # what was inherited; never destroyed, since that may wait for a lock of the parent's


def _in_child() -> None:
    global _forks  # noqa: PLW0603  the process has but one count
    _forks += 1
    for act in _at_fork:
        act()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def this_process() -> tuple[int, int]:
    """What tells this process from those that it was forked from."""
    return getpid(), _forks


def run_in_child(act: Callable[[], object]) -> None:
    """Call this, which raises nothing, in each child as soon as it is forked."""
    _at_fork.append(act)


def leave_alone(inherited: object) -> None:
    """Never touch this again, not even to destroy it."""
    _left_alone.append(inherited)


class PerProcess(Generic[T]):
    """A value that each process makes for itself, when it needs it first."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._made: tuple[int, int, T] | None = None
        self._making: dict[tuple[int, int], threading.Lock] = {}  # by process: a lock may be inherited locked

    def get(self) -> T:
        made = self._made
        if made is not None and made[0] == getpid() and made[1] == _forks:
            return made[2]
        return self._get_slowly()

    def _get_slowly(self) -> T:
        process = this_process()
        with self._making.setdefault(process, threading.Lock()):
            made = self._made
            if made is not None:
                if made[:2] == process:
                    return made[2]
                leave_alone(made[2])
            value = self._make()
            self._made = (*process, value)
            return value


def check_pool(pool: Any) -> None:
    """Raise UsedAfterFork if a psycopg pool was opened before the fork: its threads are not in this process.

    psycopg_pool has no public word for that. Where it does not keep its threads as it does now, nothing is found, and
    a caller waits for a connection as long as the pool lets it.
    """
    runner = getattr(pool, "_sched_runner", None)
    if runner is not None and not runner.is_alive() and not pool.closed:
        raise opened_before_fork(pool)


def opened_before_fork(pool: Any) -> UsedAfterFork:
    return UsedAfterFork(
        f"this psycopg_pool, {pool.name!r}, was opened before the process forked, and its connections are the "
        "parent's: make it with open=False and open it in each child (gunicorn: the post_fork hook; uwsgi: "
        "@postfork; Celery: worker_process_init), or give the Client a connection string"
    )


def connection_of_parent() -> UsedAfterFork:
    return UsedAfterFork(
        "this connection was opened before the process forked, and is the parent's: what is sent on it would become "
        "part of the parent's session. Open connections in the child, and close those that were opened earlier before "
        "the fork (SQLAlchemy: engine.dispose(close=False) in the child; Django: connections.close_all() before the "
        "fork)"
    )
