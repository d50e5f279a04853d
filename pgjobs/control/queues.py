"""client.queues: which queues there are, how they do, and pausing them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from datetime import timedelta
from types import EllipsisType
from typing import Any

import psycopg
from psycopg_pool import ConnectionPool

from pgjobs import checks
from pgjobs.control.jobs import PATIENCE
from pgjobs.control.queries import ControlQueries
from pgjobs.control.queue_queries import FOR_EVER, KEPT, QueueQueries
from pgjobs.db.borrow import Borrowable
from pgjobs.db.cursors import AnyConnection
from pgjobs.errors import InvalidOption, InvalidSetting, QueueLocked, QueueNotFound
from pgjobs.figures import Queue, QueueStats
from pgjobs.options import check_queue

_PAUSE = 0.02  # seconds between two tries of what somebody holds
_ALL = "*"  # which no queue can be called
Tx = Borrowable | ConnectionPool[Any] | None


def _several(names: object) -> Iterable[Any]:
    return checks.check_list("names", names, "names of queues", error=InvalidOption)  # type: ignore[arg-type]


def _checked_keep(name: str, keep: Any) -> timedelta | None:
    kept = checks.check_retention(name, keep)
    return None if kept is None else min(kept, FOR_EVER)


class Queues:
    """What can be asked of queues, and done to them. Each call takes a `tx` like `enqueue`."""

    def __init__(self, schema: str, transaction: Callable[[Tx], AbstractContextManager[AnyConnection]]) -> None:
        self._schema, self._control = schema, ControlQueries(schema)
        self._queues = QueueQueries(schema)
        self._transaction = transaction

    def __repr__(self) -> str:
        return f"Queues(schema={self._schema!r})"

    def list(self, tx: Tx = None) -> tuple[Queue, ...]:
        """Every queue by its name: those that a worker works or has worked within the last day, those that are paused,
        and those in which jobs are available or run."""
        with self._transaction(tx) as conn:
            return tuple(self._queues.list_queues(conn))

    def stats(self, names: Iterable[str] | None = None, tx: Tx = None) -> dict[str, QueueStats]:
        """How each queue does, by its name: jobs waiting and running, how long the oldest has waited, ended per minute.

        Of the queues that are named, whether there are such or not, or of all.
        """
        asked = None if names is None else [check_queue(name) for name in _several(names)]
        with self._transaction(tx) as conn:
            return {figures.name: figures for figures in self._queues.queue_stats(conn, asked)}

    def pause(self, name: str, tx: Tx = None) -> tuple[Queue, ...]:
        """Let no worker start a job of this queue; "*" is every queue there is. Jobs that run are not stopped.

        It holds from the commit of `tx` on. A queue that is paused already stays paused since when it was. Raises
        QueueNotFound, or QueueLocked when somebody else is pausing or resuming it for more than a second.
        """
        return self._set(name, tx, paused=True)

    def resume(self, name: str, tx: Tx = None) -> tuple[Queue, ...]:
        """Let the workers go on with this queue; "*" is every queue. Its idle workers are called at once."""
        return self._set(name, tx, paused=False)

    def update(
        self,
        name: str,
        tx: Tx = None,
        *,
        keep_completed: timedelta | EllipsisType | None = ...,
        keep_cancelled: timedelta | EllipsisType | None = ...,
        keep_discarded: timedelta | EllipsisType | None = ...,
    ) -> Queue:
        """Set how long the jobs of a queue stay in the table after their end. What is not given stays as it is.

        None means the time that is set on the worker pool which cleans; `timedelta.max` means for ever. The row of the
        queue holds the time, so that all processes obey it; the row is made if there is none. Raises QueueLocked as
        `pause` does.
        """
        check_queue(name)
        given = dict(zip(KEPT, (keep_completed, keep_cancelled, keep_discarded), strict=True))
        keep = {str(state): _checked_keep(f"keep_{state}", kept) for state, kept in given.items() if kept is not ...}
        if not keep:
            raise InvalidSetting(f"there is nothing to change of queue {name!r}: give keep_completed=... or another")
        give_up = time.monotonic() + PATIENCE
        with self._transaction(tx) as conn:
            if tx is None or isinstance(tx, ConnectionPool):
                self._control.begin_control(conn)
            while True:
                try:
                    queue = self._queues.update_queue(conn, name, keep)
                except psycopg.errors.LockNotAvailable as error:
                    raise QueueLocked(f"queue {name!r} is being made by somebody else: try again") from error
                if queue is not None:
                    return queue
                if time.monotonic() >= give_up or self._control.snapshot_is_kept(conn):
                    raise QueueLocked(f"queue {name!r} is being changed by somebody else: try again")
                time.sleep(_PAUSE)

    def _set(self, name: str, tx: Tx, *, paused: bool) -> tuple[Queue, ...]:
        asked = None if name == _ALL else check_queue(name)
        give_up = time.monotonic() + PATIENCE
        with self._transaction(tx) as conn:
            if tx is None or isinstance(tx, ConnectionPool):
                self._control.begin_control(conn)
            while True:
                try:
                    found = self._queues.pause_queues(conn, asked, paused=paused)
                except psycopg.errors.LockNotAvailable as error:
                    raise QueueLocked(f"queue {name!r} is being made by somebody else: try again") from error
                if asked is not None and not found:
                    raise QueueNotFound(name)
                if None not in found:
                    return tuple(queue for queue in found if queue is not None)
                if time.monotonic() >= give_up or self._control.snapshot_is_kept(conn):
                    raise QueueLocked(f"queue {name!r} is being paused or resumed by somebody else: try again")
                time.sleep(_PAUSE)
