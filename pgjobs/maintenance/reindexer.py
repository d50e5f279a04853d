"""Rebuilds the indexes of the job table once a day, since the inserts, updates and deletes of a queue bloat them.

REINDEX CONCURRENTLY cannot run inside a transaction and may take long, so it has its own thread and connections. If it
is interrupted it leaves an invalid index, which slows down writes and serves no query: it is dropped at once.
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
_DROP_TIMEOUT = 15.0  # seconds that dropping an invalid index may take
_DAY = timedelta(days=1)
_LATE = timedelta(hours=1)  # a rebuild that is later than this waits for the next day


def check_time(at: object) -> time | None:
    """Check the setting `reindex_at`."""
    if at is None or (isinstance(at, time) and at.tzinfo is not None):
        return at
    raise InvalidSetting(
        f"reindex_at is a time of day with a time zone, as in time(3, tzinfo=UTC), or None for never; not {shown(at)}"
    )


def next_time(at: time, now: datetime) -> datetime:
    """The next instant at this time of day."""
    today = now.astimezone(at.tzinfo).date()
    times = (datetime.combine(today + days * _DAY, at).astimezone(UTC) for days in range(3))
    return next(when for when in times if when > now)


def is_time(at: time, now: datetime) -> bool:
    """Whether it is this time of day, or less than an hour later."""
    return next_time(at, now - _LATE) <= now


def leftovers(name: str, indexes: Iterable[str]) -> list[str]:
    """The invalid indexes among these that an interrupted rebuild of the named index has left."""
    pattern = re.compile(re.escape(name) + r"_cc(new|old)\d*")
    return [index for index in indexes if pattern.fullmatch(index)]


class StatementTimeout:
    """Bounds statements from the client. The server cannot: they run outside of a transaction, and statement_timeout of
    the session would stay set behind a connection pooler."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.stopping = False
        self._cancel = threading.Event()  # the present statement

    def stop(self) -> None:
        """Cancel the present statement and all further ones."""
        self.stopping = True
        self._cancel.set()

    @contextmanager
    def bounded(self, conn: AnyConnection, seconds: float, *, also_when_stopping: bool = False) -> Iterator[None]:
        """Cancel the statement of the block after so many seconds, or on `stop`."""
        cancel, finished = threading.Event(), threading.Event()

        def watch() -> None:
            cancel.wait(seconds)
            with suppress(psycopg.Error):
                while not finished.is_set() and not conn.closed:  # again: the first may come before the statement
                    conn.cancel_safe(timeout=2)
                    finished.wait(0.1)

        if not also_when_stopping:
            self._cancel = cancel
            if self.stopping:
                cancel.set()
        watcher = threading.Thread(target=watch, name=f"{self._name}-watch", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            finished.set()
            cancel.set()
            watcher.join()


class Reindex:
    """Rebuilds the indexes of the job table, one after the other, each day at the time `at`.

    The duty `indexes` calls `check_time` in its transaction, and `start_if_time` when that is committed. If no process
    runs at the time, there is no rebuild that day.
    """

    def __init__(self, schema: str, connect: Callable[[], AnyConnection], *, at: time, name: str) -> None:
        self.at = at
        self._indexes = IndexQueries(schema)
        self._connect = connect
        self._name = name
        self._thread: threading.Thread | None = None
        self._timeout = StatementTimeout(name)
        self._is_time = False

    def check_time(self, conn: AnyConnection) -> timedelta:
        """Note whether it is time for a rebuild. Returns how long until the next one."""
        now = self._indexes.current_time(conn)
        self._is_time = is_time(self.at, now)
        return next_time(self.at, now) - now

    def start_if_time(self) -> None:
        if self._is_time:
            self.start()

    def start(self) -> None:
        """Rebuild in a thread, unless a rebuild runs already."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def stop(self, timeout: float) -> None:
        """Cancel a rebuild. The index that it leaves is dropped even if that takes longer than `timeout`."""
        self._timeout.stop()
        if self._thread is not None:
            self._thread.join(timeout)

    def rebuild(self) -> list[str]:
        """Rebuild all indexes that can be rebuilt. Returns their names."""
        with self._connect() as conn:
            names = list(self._indexes.job_indexes(conn))
        left = {index for name in names for index in leftovers(name, names)}
        return [name for name in names if name not in left and not self._timeout.stopping and self._rebuild(name)]

    def _run(self) -> None:
        try:
            log.info("rebuilt: %s", ", ".join(self.rebuild()) or "no index")
        except Exception as error:  # no connection
            with suppress(Exception):
                log.warning("the indexes could not be rebuilt: %s", one_line(error))

    def _rebuild(self, name: str) -> bool:
        """Rebuild one index, on a connection of its own: a late cancel must not hit the next statement."""
        with self._connect() as conn:
            left = leftovers(name, self._indexes.job_indexes(conn))
            if left:
                log.warning(
                    "index %s is not rebuilt: there is %s, so another rebuild is running or was interrupted; if it was "
                    "interrupted, run DROP INDEX CONCURRENTLY for it",
                    *(name, ", ".join(left)),
                )
                return False
            try:
                with self._timeout.bounded(conn, _TIMEOUT):
                    self._indexes.rebuild(conn, name)
                return True
            except psycopg.Error as error:
                log.warning("index %s could not be rebuilt: %s", name, one_line(error))
        self._drop_leftovers(name)
        return False

    def _drop_leftovers(self, name: str) -> None:
        """Drop the invalid index that our own rebuild has left: before the rebuild there was none."""
        with self._connect() as conn:
            indexes = self._indexes.job_indexes(conn)
        for index in leftovers(name, indexes):
            if not indexes[index]:
                try:
                    with (
                        self._connect() as conn,
                        self._timeout.bounded(conn, _DROP_TIMEOUT, also_when_stopping=True),
                    ):
                        self._indexes.drop(conn, index)
                except psycopg.Error as error:
                    log.warning(
                        "index %s could not be dropped: %s; run DROP INDEX CONCURRENTLY for it", index, one_line(error)
                    )
