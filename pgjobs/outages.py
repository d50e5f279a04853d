"""Logs an operation that fails again and again only twice: when it first fails, and when it works again."""

from __future__ import annotations

import logging
import threading
import time

import psycopg

from pgjobs.clean_text import first_line, one_line

_DOWN = "the database"
_READ_ONLY = "writing to the database"
_TEXTS = {_DOWN: "the connection to the database is lost", _READ_ONLY: "the database is read-only"}
_DOWN_STATES = ("57P01", "57P02", "57P03", "57P05", "53300")  # shut down, crashed, starting, idle timeout, full
# The database works again after this many seconds without a failure: when a server was restarted, each old connection
# fails once more.
_CALM = 1.0


def kind_of(error: BaseException) -> str | None:
    """What fails, if the error means that the database is down or read-only, whatever was tried; else None."""
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        return _READ_ONLY
    if isinstance(error, psycopg.OperationalError):
        state = error.sqlstate
        return _DOWN if state is None or state.startswith("08") or state in _DOWN_STATES else None
    return None


class Outages:
    """The failures that a worker pool has logged. Its threads share them, as all notice that the database is down."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since: dict[tuple[str, str], float] = {}  # by what fails and why, the time of the first failure
        self._latest = 0.0  # time of the latest failure

    @property
    def current(self) -> str | None:
        """What does not work, if the database is down or read-only; else None."""
        return next((what for what, _ in list(self._since) if what in (_DOWN, _READ_ONLY)), None)

    @property
    def database_is_down(self) -> bool:
        """Whether that was logged, and nothing has worked since."""
        return (_DOWN, "") in self._since

    def failed(
        self, log: logging.Logger, what: str, error: BaseException, text: str, *, exc_info: bool = False
    ) -> None:
        """Log a failure of `what`, if `what` worked before or failed for another reason."""
        database = kind_of(error)
        state = error.sqlstate if isinstance(error, psycopg.Error) else None
        key = (database, "") if database else (what, state or type(error).__name__)
        with self._lock:
            self._latest = time.monotonic()
            first = key not in self._since
            if first:
                self._since[key] = self._latest
        if first:
            text = _TEXTS[database] if database else text
            log.warning("%s: %s (not logged again until it works)", text, first_line(error), exc_info=exc_info)
        else:
            log.debug("%s: %s", text, one_line(error))

    def worked(self, log: logging.Logger, what: str, *, wrote: bool = False) -> None:
        """Log that `what` works again, if it failed before. `wrote` says that it wrote to the database."""
        if not self._since:
            return
        now = time.monotonic()
        recovered = {what, _DOWN, _READ_ONLY} if wrote else {what, _DOWN}
        with self._lock:
            calm = now - self._latest >= _CALM
            keys = [key for key in self._since if key[0] in recovered and (calm or key[0] == what)]
            since = {key[0]: self._since.pop(key) for key in keys}
        for name, began in since.items():
            log.info("%s works again after %.0f s", name, now - began)
