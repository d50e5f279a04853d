"""Keeps a forked child from using the connections, pools and locks of its parent.

A child inherits the parent's sockets. A query that it sends on one reaches the parent's session, and closing the
connection tells the server to end that session. The parent's threads do not exist in the child, and a lock that one of
them held stays locked. So a child never uses an inherited connection, pool or lock, not even to close it.

A process is identified by its id together with a count of the forks that Python knows of. The id also detects forks
that bypass Python, as uwsgi makes them; the count also detects a child that got the id of a dead ancestor.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from os import getpid
from typing import Any, Generic, TypeVar

from pgjobs.errors import UsedAfterFork

T = TypeVar("T")

_forks = 0  # between the process that imported this module and the current one
_run_in_child: list[Callable[[], object]] = []
_left_alone: list[object] = []  # inherited objects; never destroyed, since that may wait for a lock of the parent


def _in_child() -> None:
    global _forks  # noqa: PLW0603  one count per process
    _forks += 1
    for function in _run_in_child:
        function()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def this_process() -> tuple[int, int]:
    """A value that differs from that of every ancestor of this process."""
    return getpid(), _forks


def run_in_child(function: Callable[[], object]) -> None:
    """Call the function in each child directly after the fork. It must not raise."""
    _run_in_child.append(function)


def leave_alone(inherited: object) -> None:
    """Keep an inherited object alive for ever, so that its destructor never runs in this process."""
    _left_alone.append(inherited)


class PerProcess(Generic[T]):
    """A value that each process makes for itself when it first reads it."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._made: tuple[int, int, T] | None = None
        # one for each process: an inherited lock may be locked
        self._making: dict[tuple[int, int], threading.Lock] = {}

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
    """Raise UsedAfterFork if a psycopg pool was opened before the fork, since its threads do not run in this process.

    psycopg_pool has no public way to ask. If a future version keeps its threads elsewhere, this finds nothing, and the
    caller waits for a connection until the pool's timeout.
    """
    runner = getattr(pool, "_sched_runner", None)
    if runner is not None and not runner.is_alive() and not pool.closed:
        raise opened_before_fork(pool)


def check_async_pool(pool: Any) -> None:
    """Raise UsedAfterFork if an asynchronous psycopg pool was opened on another event loop than the one that runs: in a
    forked child its connections are the parent's. As for `check_pool`, there is no public way to ask."""
    get_loop = getattr(getattr(pool, "_sched_runner", None), "get_loop", None)
    if get_loop is not None and not pool.closed and get_loop() is not asyncio.get_running_loop():
        raise UsedAfterFork(
            f"the psycopg_pool {pool.name!r} was opened on another event loop, perhaps before the process forked, and "
            "its connections belong to that: open it on the loop that uses it, in each process"
        )


def opened_before_fork(pool: Any) -> UsedAfterFork:
    return UsedAfterFork(
        f"the psycopg_pool {pool.name!r} was opened before the process forked, and its connections are the parent's: "
        "create it with open=False and open it in each child (gunicorn: the post_fork hook; uwsgi: @postfork; "
        "Celery: worker_process_init), or give the Client a connection string"
    )


def connection_of_parent() -> UsedAfterFork:
    return UsedAfterFork(
        "this connection was opened before the process forked, and belongs to the parent's session: open connections "
        "in the child, and close earlier ones before the fork (SQLAlchemy: engine.dispose(close=False) in the child; "
        "Django: connections.close_all() before the fork)"
    )
