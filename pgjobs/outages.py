"""Logs once that something fails, and once that it works again, instead of at every try."""

from __future__ import annotations

import logging
import threading
import time

import psycopg

from pgjobs.clean_text import one_line

_AWAY = "the database"
_READ_ONLY = "writing to the database"
_GONE_STATES = ("57P01", "57P02", "57P03", "57P05", "53300")  # shut down, crashed, starting, idle, full
_CALM = 1.0  # seconds without a failure: of a server that was restarted each old connection fails once


def kind_of(error: BaseException) -> str | None:
    """Says whether the error means that the database is down or read-only, whatever was tried; else None."""
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        return _READ_ONLY
    if isinstance(error, psycopg.OperationalError):
        state = error.sqlstate
        return _AWAY if state is None or state.startswith("08") or state in _GONE_STATES else None
    return None


class Outages:
    """The failures that one worker pool has logged; when the database is down, all of its threads notice."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since: dict[tuple[str, str], float] = {}  # what fails and how: since when
        self._latest = 0.0  # failure

    def failed(
        self, log: logging.Logger, what: str, error: BaseException, text: str, *, exc_info: bool = False
    ) -> None:
        """Log a failure of `what`, if it worked before or failed for another reason."""
        whole = kind_of(error)
        state = error.sqlstate if isinstance(error, psycopg.Error) else None
        key = (whole, "") if whole else (what, state or type(error).__name__)
        with self._lock:
            self._latest = time.monotonic()
            first = key not in self._since
            if first:
                self._since[key] = self._latest
        if first:
            log.warning("%s: %s (not said again until it works)", text, one_line(error), exc_info=exc_info)
        else:
            log.debug("%s: %s", text, one_line(error))

    def worked(self, log: logging.Logger, what: str, *, wrote: bool = False) -> None:
        """Note that `what` has worked; `wrote` says that it would not have worked on a read-only database."""
        if not self._since:
            return
        now = time.monotonic()
        over = {what, _AWAY, _READ_ONLY} if wrote else {what, _AWAY}
        with self._lock:
            calm = now - self._latest >= _CALM
            keys = [key for key in self._since if key[0] in over and (calm or key[0] == what)]
            since = {key[0]: self._since.pop(key) for key in keys}
        for name, began in since.items():
            log.info("%s works again after %.0f s", name, now - began)
