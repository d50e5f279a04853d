"""The log lines of a worker pool as a whole: what it is when it starts, what a stop waits for, and what it cut off."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import psycopg

from pgjobs.clean_text import one_line
from pgjobs.db.cursors import AnyConnection
from pgjobs.errors import InvalidSetting, shown
from pgjobs.execution.attempt import Attempt
from pgjobs.loggers import get_logger, shown_seconds
from pgjobs.queue_settings import RunSettings
from pgjobs.version import __version__

log = get_logger("pgjobs.worker")

_MOST_NAMES = 30  # of kinds and of schedules in the line of a start


def check_level(level: Any) -> int:
    """The number of a logging level, which may be given by its name."""
    number = logging.getLevelNamesMapping().get(level) if isinstance(level, str) else level
    if isinstance(number, int) and not isinstance(number, bool):
        return number
    raise InvalidSetting(f"job_log_level is a level of logging, such as logging.INFO or 'INFO', not {shown(level)}")


class PoolLog:
    """Logs for the pool of this name."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.exits = False  # the process exits, and nothing has stopped the pool

    def starting(
        self,
        conn: AnyConnection,
        *,
        schema: str,
        worker: str,
        queues: Mapping[str, tuple[int, RunSettings]],
        kinds: Collection[str],
        schedules: Collection[str],
    ) -> None:
        """`conn` is connected to the database of the pool; it runs no statement here."""
        if not log.isEnabledFor(logging.INFO):
            return
        log.info("%s: starts with pgjobs %s: pid %d on %s, %s, schema %s, worker %s", self._name, __version__,
                 os.getpid(), socket.gethostname(), _database(conn), schema, worker)  # fmt: skip
        log.info("%s: queues: %s; kinds: %s; schedules: %s", self._name,
                 ", ".join(_queue(queue, *each) for queue, each in queues.items()),
                 _names(kinds), _names(schedules))  # fmt: skip

    def signal(self, number: int) -> None:
        log.info("%s: %s, so it stops", self._name, signal.Signals(number).name)

    def second_signal(self, number: int) -> None:
        log.warning("%s: a second signal, %s, so running handlers are cut off", self._name, signal.Signals(number).name)

    def waiting(self, attempts: Iterable[Attempt], seconds: float | None) -> None:
        """A stop begins."""
        jobs = _jobs(attempts)
        if not jobs or seconds == 0:
            return
        if self.exits:
            log.warning("%s: the process exits without a stop() of this pool: it waits %s for %s",
                        self._name, _limit(seconds), jobs)  # fmt: skip
        else:
            log.info("%s: the stop waits %s for %s", self._name, _limit(seconds), jobs)

    def cut_off(self, attempts: Iterable[Attempt], after: float) -> None:
        """`after` is how many seconds the stop has waited."""
        jobs = _jobs(attempts)
        if jobs:
            waited = f"after {shown_seconds(after)} " if after else ""
            log.warning("%s: %sthe stop cuts off %s; this does not count as an attempt", self._name, waited,
                        jobs)  # fmt: skip

    def figures_unwritten(self, attempts: int) -> None:
        """The stop ends, and so many attempts are counted but not in the table of figures."""
        log.warning("%s: the figures of %s are not in the table: their last write failed, or took too long. What "
                    "became of the jobs is written", self._name,
                    "1 attempt" if attempts == 1 else f"{attempts:,} attempts")  # fmt: skip

    def stopped(self, after: float) -> None:
        log.info("%s: stopped after %s", self._name, shown_seconds(after))


def _limit(seconds: float | None) -> str:
    if seconds is None:
        return "without limit"
    with suppress(OverflowError, ValueError):
        until = datetime.now() + timedelta(seconds=seconds)
        return f"up to {shown_seconds(seconds)}, until {until:%H:%M:%S},"
    return "without limit"


def _jobs(attempts: Iterable[Attempt]) -> str:
    """ "3 running jobs: report (2), mail (1)"; an empty text for none."""
    kinds = Counter(attempt.job.kind for attempt in attempts)
    if not kinds:
        return ""
    count = kinds.total()
    each = [f"{one_line(kind, 100)} ({number})" for kind, number in kinds.most_common(_MOST_NAMES)]
    return f"{count} running job{'s' if count > 1 else ''}: {_listed(each, len(kinds))}"


def _queue(name: str, threads: int, settings: RunSettings) -> str:
    batches = f", batches of {settings.batch_size}" if settings.batch_size > 1 else ""
    return f"{name} ({threads} thread{'s' if threads > 1 else ''}{batches})"


def _names(names: Collection[str]) -> str:
    return _listed([one_line(name, 100) for name in list(names)[:_MOST_NAMES]], len(names)) or "none"


def _listed(names: list[str], of: int) -> str:
    more = of - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def _database(conn: AnyConnection) -> str:
    """Where the connection leads to, without the password."""
    with suppress(psycopg.Error):
        info = conn.info
        version = info.server_version
        return (
            f"database {info.dbname} as {info.user} on {info.host or 'localhost'}:{info.port} "
            f"(Postgres {version // 10000}.{version % 10000})"
        )
    return "a database"
