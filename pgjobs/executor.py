"""Runs one job: claim, lock, handler, decide, finish."""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import psycopg
from psycopg.pq import TransactionStatus

from pgjobs.backoff import Backoff
from pgjobs.errors import AttemptLost, TransactionBroken
from pgjobs.job import Job
from pgjobs.outcome import Outcome, decide, one_line
from pgjobs.store import Store
from pgjobs.transaction import Checkout, PoolSource
from pgjobs.work_map import Handler, WorkMap

log = logging.getLogger("pgjobs.executor")

# After a lost connection or a server start, claims wait for the disk for so long: a job that crashes the server
# must not take the count of its attempt with it.
_CAUTIOUS = timedelta(minutes=5)
_LATE_FINISH_TRIES = 3
_LOCK_NOT_AVAILABLE = "55P03"


class Executor:
    """What the threads of one process share to run jobs. Nothing in here is about threads."""

    def __init__(self, store: Store, source: PoolSource, work_map: WorkMap, *, worker: str, backoff: Backoff) -> None:
        self._store = store
        self._source = source
        self._work_map = work_map
        self._worker = worker
        self._backoff = backoff
        self._cautious_until = float("inf")  # until the server was asked how long it has been up
        self._check_interval = "0"
        self._facts = threading.Lock()

    def run_next(
        self,
        held: Checkout,
        queue: str,
        *,
        order: str = "priority",
        claimed: Callable[[], None] = lambda: None,
    ) -> Job[Any] | None:
        """Claim the next job of the queue and run it to its end. The job as it was claimed, or None if there was none.

        `claimed` is called before the handler: where one job was, there may be more. Whatever a handler does is an
        outcome; raises only what the connection raises before or after.
        """
        try:
            job = self._claim(held, queue, order)
        except psycopg.OperationalError:
            self.be_cautious()
            raise
        if job is None:
            return None
        claimed()
        conn = held.conn
        references = sys.getrefcount(conn)
        error = self._handle(held, job)
        self._finish(held, job, error)
        _forget(error)
        # Was the connection kept by somebody, a thread perhaps? It could write into the next job.
        if held.spoiled or (held.conn is conn and sys.getrefcount(conn) > references):
            held.renew()
        return job

    def be_cautious(self) -> None:
        """A connection was lost: let claims wait for the disk for a while."""
        self._cautious_until = time.monotonic() + _CAUTIOUS.total_seconds()

    def _claim(self, held: Checkout, queue: str, order: str) -> Job[Any] | None:
        if self._cautious_until == float("inf"):
            self._ask_server(held)
        token = uuid4()
        try:
            job = self._store.claim(
                held.conn,
                queue=queue,
                token=token,
                worker=self._worker,
                order=order,
                synchronous_commit=time.monotonic() < self._cautious_until,
                check_interval=self._check_interval,
            )
        except (AttemptLost, psycopg.Error) as error:
            if held.usable:
                self._store.rollback(held.conn)
                if self._store.release_claim(held.conn, queue=queue, token=token):
                    log.warning("a claimed job could not be locked, its attempt is given back: %s", one_line(error))
            if isinstance(error, AttemptLost):
                return None
            raise
        return job

    def _ask_server(self, held: Checkout) -> None:
        with self._facts:
            uptime, can_check = self._store.server_facts(held.conn)
            self._check_interval = "500ms" if can_check else "0"
            self._cautious_until = time.monotonic() + (_CAUTIOUS - uptime).total_seconds()

    def _handle(self, held: Checkout, job: Job[Any]) -> BaseException | None:
        """Call the handler; what it raised, if anything."""
        try:
            handler = self._work_map.find(job.kind)
            job = replace(job, decode=handler.decode)
            job.args  # noqa: B018  decoded here: args that do not fit are this attempt's failure
            handler.function(held.conn, job)
        except BaseException as error:  # also SystemExit: a handler must not end the worker's thread
            return error
        return None

    def _finish(self, held: Checkout, job: Job[Any], error: BaseException | None) -> None:
        """Write the outcome: in the job's transaction while that lives, else in one of its own."""
        try:
            if error is None:
                error = self._complete(held, job)
            if error is not None:
                self._fail(held, job, error)
        except AttemptLost as lost:
            log.warning("%s: it was rescued or changed meanwhile, and what its handler wrote is dropped", lost)
            held.spoiled = True
        finally:
            if not held.spoiled:
                held.restore()

    def _complete(self, held: Checkout, job: Job[Any]) -> BaseException | None:
        """Commit the handler's writes and the completion together, or say why they cannot be."""
        if not held.usable:
            return TransactionBroken("the handler left its connection closed, or in the middle of a command")
        try:
            outcome = decide(job, None, self._backoff)
            held.spoiled = not self._store.complete(held.conn, job, outcome)
        except psycopg.Error as error:
            return _why_not_committed(error)
        return None

    def _fail(self, held: Checkout, job: Job[Any], error: BaseException) -> None:
        outcome = decide(job, error, self._backoff_of(job))
        log.log(
            logging.INFO if outcome.error is None else logging.WARNING,
            "job %d (%s) attempt %d of %d: %s: %s",
            job.id,
            one_line(job.kind),
            job.attempt,
            job.max_attempts,
            outcome.state,
            one_line(outcome.error or ""),
        )
        if held.usable and held.conn.info.transaction_status != TransactionStatus.IDLE:
            try:
                held.spoiled = not self._store.fail(held.conn, job, outcome)
                return
            except psycopg.Error:  # the savepoint is gone, or the connection
                log.debug("job %d: its transaction is gone; recording the outcome in a new one", job.id)
        self._finish_late(held, job, outcome)

    def _finish_late(self, held: Checkout, job: Job[Any], outcome: Outcome) -> None:
        """The second path. What cannot be recorded now is left to the rescue, which counts the attempt too."""
        for left in reversed(range(_LATE_FINISH_TRIES)):
            try:
                if held.usable:
                    self._store.rollback(held.conn)
                else:
                    self.be_cautious()
                    held.renew()
                held.spoiled = not self._store.finish_late(held.conn, job, outcome)
                return
            except psycopg.Error as error:
                held.spoiled = True
                # a row that is still locked is held by the dead connection, or by a rescue: not worth a thread's wait
                if not left or error.sqlstate == _LOCK_NOT_AVAILABLE:
                    log.error("job %d: its outcome could not be recorded, the rescue will: %s", job.id, one_line(error))
                    return

    def _backoff_of(self, job: Job[Any]) -> Backoff:
        handler: Handler | None = self._work_map.get(job.kind)
        return (handler and handler.backoff) or self._backoff


def _forget(error: BaseException | None) -> None:
    """Let go of what the frames of a recorded error hold, the connection among it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:  # a chain of causes may be a ring
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _why_not_committed(error: psycopg.Error) -> TransactionBroken:
    match error.sqlstate:
        case "25P02":
            why = "an SQL error in the handler was swallowed, so its transaction was aborted"
        case "25P01" | "3B001":
            why = "the handler ended its transaction itself (COMMIT or ROLLBACK); only pgjobs may"
        case _:
            why = f"the handler's writes could not be committed: {error}"
    broken = TransactionBroken(why + (f" [{error.sqlstate}]" if error.sqlstate else ""))
    broken.__cause__ = error
    return broken
