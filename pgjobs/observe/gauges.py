"""What the database says of queues, duties and transactions, as samples for metrics.

It is read on a thread of its own and kept for some seconds, so that no reader waits for a slow database, and many
readers cost no more than one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from pgjobs.clean_text import one_line
from pgjobs.db.cursors import AnyConnection
from pgjobs.loggers import get_logger
from pgjobs.observe.metrics import Samples, add, bounded, label
from pgjobs.observe.queries import ObserveQueries

log = get_logger("pgjobs.metrics")

KEEP = 10.0  # seconds
WAIT = 1.0  # seconds that a reader waits for new samples
_MOST_QUEUES = 200  # that have labels of their own
#: What is known when the database does not answer.
NO_DATABASE: Samples = {("pgjobs_database_up", ()): [0.0]}


class Gauges:
    """Reads the gauges of one schema. `transaction` opens a transaction."""

    def __init__(
        self, queries: ObserveQueries, transaction: Callable[[], AbstractContextManager[AnyConnection]]
    ) -> None:
        self._queries = queries
        self._transaction = transaction
        self._changed = threading.Condition()
        self._reading = False
        self._read_at = float("-inf")
        self._samples = NO_DATABASE

    def samples(self, wait: float = WAIT) -> Samples:
        """The gauges, not older than KEEP. If the database gives none within `wait` seconds, only that it is down."""
        with self._changed:
            self.refresh()
            self._changed.wait_for(lambda: self._is_fresh, wait)
            return self.fresh() or NO_DATABASE

    def fresh(self) -> Samples | None:
        """The gauges if they are not older than KEEP; else None."""
        with self._changed:
            return self._samples if self._is_fresh else None

    @property
    def _is_fresh(self) -> bool:
        return time.monotonic() - self._read_at < KEEP

    def refresh(self) -> None:
        """Begin to read the gauges, unless they are fresh or being read. Does not wait."""
        with self._changed:
            if self._is_fresh or self._reading:
                return
            self._reading = True
        try:
            threading.Thread(target=self._read, name="pgjobs/metrics", daemon=True).start()
        except RuntimeError:  # no more threads
            self._reading = False

    def _read(self) -> None:
        samples = NO_DATABASE
        try:
            with self._transaction() as conn:
                samples = read_gauges(conn, self._queries)
        except Exception as error:  # the database is away: its pool says so, and so does the sample
            log.debug("the metrics of the database could not be read: %s", one_line(error))
        finally:
            with self._changed:
                self._samples, self._read_at, self._reading = samples, time.monotonic(), False
                self._changed.notify_all()


def read_gauges(conn: AnyConnection, queries: ObserveQueries) -> Samples:
    """The gauges, read on a connection."""
    samples: Samples = {("pgjobs_database_up", ()): [1.0]}
    queries.limit_time(conn)
    stats = queries.queue_stats(conn, None)
    labels = bounded({each.name: each.waiting + each.running for each in stats}, _MOST_QUEUES)
    oldest: dict[str, float] = {}
    for each in stats:
        queue = labels[each.name]
        add(samples, "pgjobs_jobs", (queue, "waiting"), [each.waiting])
        add(samples, "pgjobs_jobs", (queue, "running"), [each.running])
        waited = 0.0 if each.oldest_waiting is None else each.oldest_waiting.total_seconds()
        oldest[queue] = max(waited, oldest.get(queue, 0.0))
    for queue, seconds in oldest.items():
        add(samples, "pgjobs_queue_oldest_seconds", (queue,), [seconds])
    for duty, seconds in queries.overdue_duties(conn).items():
        add(samples, "pgjobs_duty_age_seconds", (label(duty),), [seconds])
    add(samples, "pgjobs_transaction_oldest_seconds", (), [queries.oldest_transaction(conn)])
    return samples
