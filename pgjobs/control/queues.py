"""client.queues: list the queues and their numbers, pause, resume and update them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from datetime import timedelta
from types import EllipsisType
from typing import Any, TypeVar

import psycopg

from pgjobs import checks
from pgjobs.control.jobs import PATIENCE, PAUSE
from pgjobs.control.queries import ControlQueries
from pgjobs.control.queue_queries import QueueQueries
from pgjobs.db.borrow import Tx, is_borrowed
from pgjobs.db.cursors import AnyConnection
from pgjobs.errors import InvalidOption, InvalidSetting, QueueLocked, QueueNotFound
from pgjobs.observe.queries import ObserveQueries
from pgjobs.options import check_queue
from pgjobs.results import FOR_EVER, KEPT, Queue, QueueStats

_ALL = "*"  # no queue can have this name

T = TypeVar("T")


class Queues:
    """Lists, counts, pauses, resumes and updates queues. Each call takes a `tx` like `enqueue`."""

    def __init__(
        self,
        schema: str,
        transaction: Callable[[Tx], AbstractContextManager[AnyConnection]],
        control: ControlQueries,
        observe: ObserveQueries,
    ) -> None:
        self._schema = schema
        self._transaction = transaction
        self._control = control
        self._observe = observe
        self._queues = QueueQueries(schema)

    def __repr__(self) -> str:
        return f"Queues(schema={self._schema!r})"

    def list(self, tx: Tx = None) -> tuple[Queue, ...]:
        """Every queue by its name: those that a worker works or has worked within the last day, those that are paused,
        and those in which jobs are available or run."""
        with self._transaction(tx) as conn:
            return tuple(self._observe.list_queues(conn))

    def get(self, name: str, tx: Tx = None) -> Queue | None:
        """The queue with this name as `list` has it, or None."""
        check_queue(name)
        return next((queue for queue in self.list(tx) if queue.name == name), None)

    def stats(self, names: Iterable[str] | None = None, tx: Tx = None) -> dict[str, QueueStats]:
        """The numbers of each queue, by its name: how many jobs wait, run and ended in the last minute, and how long
        the oldest has waited.

        `names` may contain queues that do not exist; without `names`, all queues are returned.
        """
        checked = None if names is None else [check_queue(name) for name in _several(names)]
        with self._transaction(tx) as conn:
            return {stats.name: stats for stats in self._observe.queue_stats(conn, checked)}

    def pause(self, name: str, tx: Tx = None) -> tuple[Queue, ...]:
        """Let no worker start a job of this queue; "*" is every queue there is. Jobs that run are not stopped.

        The pause begins with the commit of `tx`. A queue that is paused already keeps the time of its pause. Raises
        QueueNotFound, or QueueLocked when another transaction pauses or resumes the queue for more than a second.
        """
        return self._pause(name, tx, paused=True)

    def resume(self, name: str, tx: Tx = None) -> tuple[Queue, ...]:
        """Let the workers go on with this queue; "*" is every queue. Its idle workers are woken at once."""
        return self._pause(name, tx, paused=False)

    def update(
        self,
        name: str,
        tx: Tx = None,
        *,
        keep_completed: timedelta | EllipsisType | None = ...,
        keep_cancelled: timedelta | EllipsisType | None = ...,
        keep_discarded: timedelta | EllipsisType | None = ...,
    ) -> Queue:
        """Set how long the finished jobs of a queue stay in the table. An argument that is left out changes nothing.

        None means the time that the worker pool which deletes the jobs has as its setting; `timedelta.max` means for
        ever. The time is stored in the row of the queue, so that all processes obey it; a missing row is inserted.
        Raises QueueLocked as `pause` does.
        """
        check_queue(name)
        given = dict(zip(KEPT, (keep_completed, keep_cancelled, keep_discarded), strict=True))
        keep = {str(state): _checked_keep(f"keep_{state}", kept) for state, kept in given.items() if kept is not ...}
        if not keep:
            raise InvalidSetting(f"there is nothing to change of queue {name!r}: give keep_completed=... or another")
        return self._until_free(name, tx, lambda conn: self._queues.update_queue(conn, name, keep), "is changing")

    def _pause(self, name: str, tx: Tx, *, paused: bool) -> tuple[Queue, ...]:
        only = None if name == _ALL else check_queue(name)

        def pause(conn: AnyConnection) -> tuple[Queue, ...] | None:
            found = self._queues.pause_queues(conn, only, paused=paused)
            if only is not None and not found:
                raise QueueNotFound(name)
            free = tuple(queue for queue in found if queue is not None)
            return free if len(free) == len(found) else None

        return self._until_free(name, tx, pause, "is pausing or resuming")

    def _until_free(self, name: str, tx: Tx, change: Callable[[AnyConnection], T | None], other_does: str) -> T:
        """Call `change`, which returns None while another transaction holds a row, until it succeeds, for a second."""
        give_up = time.monotonic() + PATIENCE
        with self._transaction(tx) as conn:
            if not is_borrowed(tx):
                self._control.begin(conn, PATIENCE)
            while True:
                try:
                    changed = change(conn)
                except psycopg.errors.LockNotAvailable as error:
                    raise QueueLocked(f"another transaction is making queue {name!r}: try again") from error
                if changed is not None:
                    return changed
                if time.monotonic() >= give_up or self._control.snapshot_is_kept(conn):
                    raise QueueLocked(f"another transaction {other_does} queue {name!r}: try again")
                time.sleep(PAUSE)


def _several(names: object) -> Iterable[Any]:
    return checks.check_list("names", names, "names of queues", error=InvalidOption)  # type: ignore[arg-type]


def _checked_keep(name: str, keep: Any) -> timedelta | None:
    kept = checks.check_retention(name, keep)
    return None if kept is None else min(kept, FOR_EVER)
