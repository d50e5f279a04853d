"""The row of this process in the table of workers."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from pgjobs.clean_text import clean, one_line
from pgjobs.db.cursors import AnyConnection
from pgjobs.job import Job
from pgjobs.version import __version__
from pgjobs.workers.queries import WorkerQueries

_REFRESH_EVERY = 5.0  # seconds

_MOST_STUCK = 10  # threads whose stacks are written
_LONGEST_STACK = 8 * 1024
_LONGEST_NAME = 255


class Description(NamedTuple):
    """What a worker pool works now."""

    queues: Mapping[str, int]  # threads by queue
    kinds: Iterable[str]  # that it has handlers for
    stuck: Iterable[tuple[str, Job[Any], float, str]] = ()  # threads in their handlers: name, job, seconds since, stack


class Registration:
    """The row of one client, which all its worker pools share. Their maintenance threads refresh it."""

    def __init__(self, schema: str, id: str, code_version: str | None) -> None:
        self._queries = WorkerQueries(schema)
        self._code_version = code_version
        self.reset_for_process(id)

    def reset_for_process(self, id: str) -> None:
        """Called for a new client, and in a forked child: no pool runs in this process yet."""
        self._id = id
        self._pools: dict[object, Callable[[], Description]] = {}
        self._refresh_at = 0.0  # by the monotonic clock
        self._lock = threading.Lock()

    def register(self, pool: object, describe: Callable[[], Description]) -> None:
        """The pool starts. The next refresh writes the row."""
        with self._lock:
            self._pools[pool] = describe
            self._refresh_at = 0.0

    def refresh(self, conn: AnyConnection) -> None:
        """Write the row if it is due."""
        with self._lock:
            if self._pools and time.monotonic() >= self._refresh_at:
                self._refresh_at = time.monotonic() + _REFRESH_EVERY
                self._queries.register(conn, self._row())

    def deregister(self, pool: object, conn: AnyConnection) -> None:
        """The pool has stopped. Removes the row with the last pool."""
        with self._lock:
            self._pools.pop(pool, None)
            if self._pools:
                self._queries.register(conn, self._row())
            else:
                self._queries.deregister(conn, self._id)

    def _row(self) -> dict[str, object]:
        queues: Counter[str] = Counter()
        kinds: set[str] = set()
        stuck: list[dict[str, object]] = []
        for describe in self._pools.values():
            pool = describe()
            queues.update(pool.queues)
            kinds.update(pool.kinds)
            for thread, job, seconds, stack in pool.stuck:
                name = one_line(thread, _LONGEST_NAME)  # the handler may have changed it
                about = {"thread": name, "job": job.id, "kind": job.kind, "seconds": round(seconds, 3)}
                stuck.append({**about, "stack": clean(stack, _LONGEST_STACK)})
        return {
            "id": self._id,
            "host": one_line(socket.gethostname(), _LONGEST_NAME),
            "pid": os.getpid(),
            "queues": dict(queues),
            "threads": queues.total(),
            "kinds": sorted(kinds),
            "stuck": stuck[:_MOST_STUCK],
            "version": __version__,
            "code_version": self._code_version,
        }
