"""The duty `prune`: deletes jobs that ended longer ago than they are kept, old figures and the old audit, and adds up
the figures of some hours ago.

How long jobs are kept is a list of rules, one per state, and one per state and queue where a queue has a retention of
its own. There are two ways to find the jobs of a rule:

- If no queue has its own retention, they are the oldest jobs of a state: the first ones in the index on state and end.
- Otherwise the same index also has jobs of other queues, which stay and may be millions. So each batch reads on from
  where the last one stopped. Once an hour it starts again, for jobs that were locked then, and for jobs whose end was
  committed much later than it was written.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import psycopg
from psycopg.errors import QueryCanceled
from psycopg.pq import TransactionStatus

from pgjobs.clean_text import one_line
from pgjobs.db.cursors import AnyConnection
from pgjobs.execution.set_aside import concerns_a_row
from pgjobs.execution.unworkable import MOST_TRIES, Operation, Row, Unworkable
from pgjobs.loggers import get_logger
from pgjobs.maintenance.batch_size import BatchSize
from pgjobs.maintenance.queries import START, MaintenanceQueries, Position, RetentionRule, Selection
from pgjobs.observe.queries import ObserveQueries
from pgjobs.observe.stats import KEEP_FIGURES, LONG, OLD, OLDER, SHORT
from pgjobs.states import JobState

log = get_logger("pgjobs.maintenance")

_RESTART_EVERY = 3600.0  # seconds
_OVERLAP = timedelta(minutes=1)  # reread at the end of the index: the end of a job is written before it is committed

_KEEP_AUDIT = timedelta(days=90)
_ROLLED_UP = ((OLD, OLDER, SHORT), (OLDER, KEEP_FIGURES, LONG))  # from which age on, up to which, and the period
_DATE_FINISHED = "dating of finished jobs"  # the name of the operation in the log


@dataclass(slots=True)
class _Scan:
    """How far the index was read for a rule, in this process."""

    position: Position = START
    started_at: float = field(default_factory=time.monotonic)
    at_end: bool = False


class Pruner:
    """`keep` is how long jobs are kept, by state, in queues without their own retention; None is for ever."""

    def __init__(
        self,
        queries: MaintenanceQueries,
        observe: ObserveQueries,
        unworkable: Unworkable,
        keep: Mapping[JobState, timedelta | None],
    ) -> None:
        self._queries = queries
        self._observe = observe
        self._unworkable = unworkable
        self._keep = keep
        self._batch_size = BatchSize()
        self._scans: dict[RetentionRule, _Scan] = {}
        self._roll_up_failed = False

    def prune(self, conn: AnyConnection) -> timedelta | None:
        """Delete a batch of the jobs of each rule, of old figures and of the audit, and roll up figures. Zero if there
        may be more, else None."""
        rules = self._rules(conn)
        self._scans = {rule: self._scans.get(rule, _Scan()) for rule in rules}
        with self._batch_size.next() as batch:
            more = [*(self._prune(conn, rule, batch) for rule in rules), self._date_finished(conn, batch)]
            more.append(self._queries.prune_figures(conn, KEEP_FIGURES, batch) >= batch)
            more.append(self._queries.prune_audit(conn, _KEEP_AUDIT, batch) >= batch)
            more.append(self._roll_up_figures(conn, batch))
        return timedelta(0) if any(more) else None

    def _roll_up_figures(self, conn: AnyConnection, batch: int) -> bool:
        """Add up a batch of the figures of each age. Returns whether there may be more. If a row stops a statement, or
        is locked for long, the rest of the duty goes on: these figures only take more room."""
        more = False
        for old, older, period in _ROLLED_UP:
            try:
                more |= self._queries.roll_up_figures(conn, old, older, period, batch) >= batch
            except psycopg.Error as error:
                if conn.info.transaction_status != TransactionStatus.INTRANS or isinstance(error, QueryCanceled):
                    raise
                level = logging.DEBUG if self._roll_up_failed else logging.WARNING
                log.log(level, "old figures could not be added up: %s (not logged again)", one_line(error))
                self._roll_up_failed = True
        return more

    def _date_finished(self, conn: AnyConnection, batch: int) -> bool:
        """Give an end to the finished jobs that have none. Returns whether there may be more."""
        rows = Selection(set_aside=self._unworkable.set_aside.rows(_DATE_FINISHED))
        try:
            return self._queries.date_finished(conn, batch, rows) >= batch
        except psycopg.Error as error:

            def date(ids: Sequence[int]) -> None:
                self._queries.date_finished(conn, len(ids), Selection(among=ids))

            def find() -> list[Row]:
                return self._queries.rows_to_date(conn, batch, rows)

            self._unworkable.bisect(conn, Operation(_DATE_FINISHED, find, date, None), error)
        return True

    def _rules(self, conn: AnyConnection) -> list[RetentionRule]:
        own = self._observe.own_retention(conn)
        general = [
            RetentionRule(state, kept, other_queues=tuple(queue for queue, of, _ in own if of == state))
            for state, kept in self._keep.items()
            if kept is not None
        ]
        return general + [RetentionRule(state, kept, queue) for queue, state, kept in own if kept < timedelta.max]

    def _prune(self, conn: AnyConnection, rule: RetentionRule, batch: int) -> bool:
        """Delete a batch of the jobs of a rule. If a row stops the statement, delete the others. Returns whether there
        may be more."""
        operation = f"prune {rule.state}" if rule.queue is None else f"prune {rule.state} of queue {rule.queue}"
        rows = Selection(set_aside=self._unworkable.set_aside.rows(operation))
        try:
            if _is_simple(rule):
                return self._queries.prune(conn, rule, batch, rows) >= batch
            return self._read_on(conn, rule, batch, rows)
        except psycopg.Error as error:

            def prune(ids: Sequence[int]) -> None:
                self._queries.prune(conn, rule, len(ids), Selection(among=ids))

            def find() -> list[Row]:
                if _is_simple(rule):
                    return self._queries.rows_to_prune(conn, rule, batch, rows)
                return self._queries.rows_to_prune_after(conn, rule, self._scans[rule].position, batch, rows)

            try:
                self._unworkable.bisect(conn, Operation(operation, find, prune, None), error)
            except psycopg.Error as common:
                if not concerns_a_row(common):
                    raise
                return self._prune_some(conn, rule) > 0
        return True

    def _prune_some(self, conn: AnyConnection, rule: RetentionRule) -> int:
        """Delete some jobs in no order, because none of the oldest can be deleted. Returns how many."""
        deleted = 0
        for id, _ in self._queries.some_jobs_to_prune(conn, rule, MOST_TRIES):
            try:
                deleted += self._queries.prune(conn, rule, 1, Selection(among=[id]))
            except psycopg.Error as error:
                if not concerns_a_row(error):
                    raise
        return deleted

    def _read_on(self, conn: AnyConnection, rule: RetentionRule, batch: int, rows: Selection) -> bool:
        scan = self._scans[rule]
        if scan.at_end and time.monotonic() - scan.started_at >= _RESTART_EVERY:
            scan = self._scans[rule] = _Scan()
        seen, scan.position = self._queries.prune_after(conn, rule, scan.position, batch, rows)
        if seen < batch:
            scan.at_end = True
            ended_at, _ = scan.position
            if seen and ended_at is not None:
                scan.position = (ended_at - _OVERLAP, 0)
        return seen >= batch


def _is_simple(rule: RetentionRule) -> bool:
    return rule.queue is None and not rule.other_queues
