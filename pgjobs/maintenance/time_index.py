"""Creates the index for `order="scheduled_at"`, in the background, when a pool with that order starts.

Without the index such claims work too; the more jobs wait, the slower they are.
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
from pgjobs.maintenance.reindexer import StatementTimeout

log = get_logger("pgjobs.time_index")

# seconds
_TIMEOUT = 600.0  # it waits for every open transaction, so for running handlers too
_DROP_TIMEOUT = 15.0
_FIRST_PAUSE = 0.5  # between two tries; doubles. The duty `indexes` holds the same lock, for a moment
_LONGEST_PAUSE = 60.0


class TimeIndex:
    """Tries to create the index until it is there."""

    def __init__(self, schema: str, connect: Callable[[], AnyConnection], *, name: str) -> None:
        self._indexes = IndexQueries(schema)
        self._connect = connect
        self._timeout = StatementTimeout(name)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Cancel it. The invalid index that it leaves is dropped even if that takes longer than `timeout`."""
        self._stopping.set()
        self._timeout.stop()
        self._thread.join(timeout)

    def _run(self) -> None:
        pause = _FIRST_PAUSE
        while not self._stopping.is_set():
            try:
                if self._try():
                    return
            except Exception as error:  # no connection
                with suppress(Exception):
                    log.warning("index %s could not be created: %s", TIME_INDEX, one_line(error))
            self._stopping.wait(min(pause, _LONGEST_PAUSE))
            pause *= 2

    def _try(self) -> bool:
        """Create the index if it is missing. False if another try is needed."""
        with self._connect() as holder, self._connect() as conn, holder.transaction():
            valid = self._indexes.job_indexes(conn).get(TIME_INDEX)
            if valid:
                return True
            if not self._indexes.lock_index_duty(holder):  # another process creates it
                return False
            if valid is False and self._indexes.job_indexes(conn).get(TIME_INDEX) is False:
                log.warning(
                    "index %s is not valid: its creation is running or was interrupted; if it was interrupted, run "
                    "DROP INDEX CONCURRENTLY for it",
                    TIME_INDEX,
                )
                return True
            return self._create(conn)

    def _create(self, conn: AnyConnection) -> bool:
        try:
            with self._timeout.bounded(conn, _TIMEOUT):
                self._indexes.create_time_index(conn)
        except psycopg.errors.InsufficientPrivilege as error:
            log.warning(
                "jobs are claimed by time without an index, slowly if many wait: %s; let the owner run: %s",
                *(one_line(error), self._indexes.time_index_sql),
            )
        except psycopg.Error as error:
            log.warning("index %s could not be created: %s", TIME_INDEX, one_line(error))
            self._drop_invalid()
            return False
        return True

    def _drop_invalid(self) -> None:
        """Drop the invalid index that our own try has left: before it there was none."""
        with self._connect() as conn:
            if self._indexes.job_indexes(conn).get(TIME_INDEX) is False:
                try:
                    with self._timeout.bounded(conn, _DROP_TIMEOUT, also_when_stopping=True):
                        self._indexes.drop(conn, TIME_INDEX)
                except psycopg.Error as error:
                    log.warning(
                        "index %s could not be dropped: %s; run DROP INDEX CONCURRENTLY for it",
                        *(TIME_INDEX, one_line(error)),
                    )
