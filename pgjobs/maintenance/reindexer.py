"""The rebuild of the indexes: all that is inserted, moved and deleted in a queue bloats them.

It cannot run inside a transaction and may take its time, so it has a thread and connections of its own. What an
interrupted rebuild leaves behind is an invalid index that costs every write and helps no read: it is removed at once.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, time, timedelta

import psycopg

from pgjobs.clean_text import one_line
from pgjobs.db.cursors import AnyConnection
from pgjobs.errors import InvalidSetting, shown
from pgjobs.loggers import get_logger
from pgjobs.maintenance.index_queries import IndexQueries

log = get_logger("pgjobs.reindex")

MIDNIGHT = time(0, tzinfo=UTC)
_TIMEOUT = 60.0  # seconds that the rebuild of one index may take
_CLEARING_TIMEOUT = 15.0  # the same for the removal of what it left
_DAY = timedelta(days=1)
_LATE = timedelta(hours=1)  # later than that it waits for the next day


def check_time(at: object) -> time | None:
    """Return what `reindex_at` may be, else raise InvalidSetting."""
    if at is None or (isinstance(at, time) and at.tzinfo is not None):
        return at
    raise InvalidSetting(
        f"reindex_at is a time of day with a time zone, as in time(3, tzinfo=UTC), or None for never; not {shown(at)}"
    )


def next_time(at: time, now: datetime) -> datetime:
    """When it is next that time of the day."""
    today = now.astimezone(at.tzinfo).date()
    times = (datetime.combine(today + days * _DAY, at).astimezone(UTC) for days in range(3))
    return next(when for when in times if when > now)


def is_time(at: time, now: datetime) -> bool:
    """Whether it has just become that time of the day."""
    return next_time(at, now - _LATE) <= now


def leftovers(name: str, indexes: Iterable[str]) -> list[str]:
    """What rebuilds of the index of this name have left."""
    pattern = re.compile(re.escape(name) + r"_cc(new|old)\d*")
    return [index for index in indexes if pattern.fullmatch(index)]


class Bounds:
    """Bounds statements that the server cannot bound: a setting of the session would stay behind in a pooler, and one
    of a transaction is not to be had."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.stopping = False
        self._enough = threading.Event()  # for the statement under way

    def stop(self) -> None:
        """Cut off the statement under way, and all that follow."""
        self.stopping = True
        self._enough.set()

    @contextmanager
    def bounded(self, conn: AnyConnection, seconds: float, *, also_when_stopping: bool = False) -> Iterator[None]:
        """Cancel the statement when its time is up, or when the pool stops."""
        enough, finished = threading.Event(), threading.Event()

        def watchdog() -> None:
            enough.wait(seconds)
            with suppress(psycopg.Error):
                while not finished.is_set() and not conn.closed:  # again: the first may come before the statement
                    conn.cancel_safe(timeout=2)
                    finished.wait(0.1)

        if not also_when_stopping:
            self._enough = enough
            if self.stopping:
                enough.set()
        watcher = threading.Thread(target=watchdog, name=f"{self._name}-watch", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            finished.set()
            enough.set()
            watcher.join()


class Reindex:
    """Rebuilds the indexes of the job table, one after the other."""

    def __init__(self, schema: str, connect: Callable[[], AnyConnection], *, at: time, name: str) -> None:
        self.at = at
        self._indexes = IndexQueries(schema)
        self._connect = connect
        self._name = name
        self._thread: threading.Thread | None = None
        self._bounds = Bounds(name)

    def start(self) -> None:
        """Rebuild them in a thread, if that is not being done."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def stop(self, timeout: float) -> None:
        """Cut a rebuild off. What it leaves is removed, also when that takes longer than this waits."""
        self._bounds.stop()
        if self._thread is not None:
            self._thread.join(timeout)

    def rebuild(self) -> list[str]:
        """Rebuild what can be; the names of those that were."""
        with self._connect() as conn:
            names = list(self._indexes.job_indexes(conn))
        left = {index for name in names for index in leftovers(name, names)}
        return [name for name in names if name not in left and not self._bounds.stopping and self._rebuild(name)]

    def _run(self) -> None:
        try:
            log.info("rebuilt: %s", ", ".join(self.rebuild()) or "no index")
        except Exception as error:  # no connection
            with suppress(Exception):
                log.warning("the indexes could not be rebuilt: %s", one_line(error))

    def _rebuild(self, name: str) -> bool:
        """Each on a connection of its own: a cancel that came late must not hit the next statement."""
        with self._connect() as conn:
            left = leftovers(name, self._indexes.job_indexes(conn))
            if left:
                log.warning(
                    "index %s is not rebuilt: there is %s, of a rebuild that is under way or was cut off; in the "
                    "latter case, DROP INDEX CONCURRENTLY it",
                    *(name, ", ".join(left)),
                )
                return False
            try:
                with self._bounds.bounded(conn, _TIMEOUT):
                    self._indexes.rebuild(conn, name)
                return True
            except psycopg.Error as error:
                log.warning("index %s could not be rebuilt: %s", name, one_line(error))
        self._clear(name)
        return False

    def _clear(self, name: str) -> None:
        """Remove what our own rebuild has left: before it there was nothing of the kind."""
        with self._connect() as conn:
            indexes = self._indexes.job_indexes(conn)
        for index in leftovers(name, indexes):
            if not indexes[index]:
                try:
                    with (
                        self._connect() as conn,
                        self._bounds.bounded(conn, _CLEARING_TIMEOUT, also_when_stopping=True),
                    ):
                        self._indexes.drop(conn, index)
                except psycopg.Error as error:
                    log.warning("index %s could not be removed, do so by hand: %s", index, one_line(error))
