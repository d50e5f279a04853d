"""The index for those who take the oldest job first: made when a pool first asks for that order, in the background.

Until it is there the claims work too, only slower the more jobs wait.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

import psycopg

from pgjobs.clean_text import one_line
from pgjobs.db.cursors import AnyConnection
from pgjobs.loggers import get_logger
from pgjobs.maintenance.index_queries import TIME_INDEX, IndexQueries
from pgjobs.maintenance.reindexer import Bounds

log = get_logger("pgjobs.time_index")

_TIMEOUT = 600.0  # seconds: it waits for every transaction that is open, so for handlers too
_CLEARING_TIMEOUT = 15.0  # for the removal of what it left
_SOON = 0.5  # seconds until the next try: the upkeep of the indexes has the same lock, for a moment; doubles
_AGAIN = 60.0  # seconds until the next try


class TimeIndex:
    """Sees to it that the index is there."""

    def __init__(self, schema: str, connect: Callable[[], AnyConnection], *, name: str) -> None:
        self._indexes = IndexQueries(schema)
        self._connect = connect
        self._bounds = Bounds(name)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Cut it off. What it leaves is removed, also when that takes longer than this waits."""
        self._stopping.set()
        self._bounds.stop()
        self._thread.join(timeout)

    def _run(self) -> None:
        pause = _SOON
        while not self._stopping.is_set():
            try:
                if self._settle():
                    return
            except Exception as error:  # no connection
                with suppress(Exception):
                    log.warning("the index %s could not be made: %s", TIME_INDEX, one_line(error))
            self._stopping.wait(min(pause, _AGAIN))
            pause *= 2

    def _settle(self) -> bool:
        """Make it if that is to be done. False when it may be necessary to try again."""
        with self._connect() as holder, self._connect() as conn, holder.transaction():
            valid = self._indexes.job_indexes(conn).get(TIME_INDEX)
            if valid:
                return True
            if not self._indexes.begin_making(holder):  # somebody else makes it
                return False
            if valid is False and self._indexes.job_indexes(conn).get(TIME_INDEX) is False:
                log.warning(
                    "index %s is not valid: it is being made, or that was cut off; in the latter case, DROP INDEX "
                    "CONCURRENTLY it",
                    TIME_INDEX,
                )
                return True
            return self._make(conn)

    def _make(self, conn: AnyConnection) -> bool:
        try:
            with self._bounds.bounded(conn, _TIMEOUT):
                self._indexes.make_time_index(conn)
        except psycopg.errors.InsufficientPrivilege as error:
            log.warning(
                "jobs are claimed by time without an index, slowly if many wait: %s; let the owner run: %s",
                *(one_line(error), self._indexes.making_time_index),
            )
        except psycopg.Error as error:
            log.warning("the index %s could not be made: %s", TIME_INDEX, one_line(error))
            self._clear()
            return False
        return True

    def _clear(self) -> None:
        """Remove what our own try has left: before it there was nothing."""
        with self._connect() as conn:
            if self._indexes.job_indexes(conn).get(TIME_INDEX) is False:
                try:
                    with self._bounds.bounded(conn, _CLEARING_TIMEOUT, also_when_stopping=True):
                        self._indexes.drop(conn, TIME_INDEX)
                except psycopg.Error as error:
                    log.warning("index %s could not be removed, do so by hand: %s", TIME_INDEX, one_line(error))
