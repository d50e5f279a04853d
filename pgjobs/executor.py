"""Runs one job: claim, lock, handler, decide, finish."""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from pgjobs.attempt import Attempt, Watch
from pgjobs.backoff import Backoff
from pgjobs.checkout import Checkout
from pgjobs.claim import Claimer
from pgjobs.errors import AttemptLost, TransactionBroken
from pgjobs.job import Job
from pgjobs.outcome import COMPLETED, Outcome, decide, one_line
from pgjobs.store import Store
from pgjobs.work_map import Handler, WorkMap

log = logging.getLogger("pgjobs.executor")

_LATE_FINISH_TRIES = 3
_LOCK_NOT_AVAILABLE = "55P03"


class Executor:
    """What the threads of one process share to run jobs. Nothing in here is about threads."""

    def __init__(
        self,
        store: Store,
        work_map: WorkMap,
        claimer: Claimer,
        watch: Watch,
        *,
        backoff: Backoff,
        timeout: timedelta | None,
    ) -> None:
        self._store = store
        self._work_map = work_map
        self._claimer = claimer
        self._watch = watch
        self._backoff = backoff
        self._timeout = timeout

    def run_next(self, held: Checkout, queue: str, *, claimed: Callable[[], None] = lambda: None) -> Job[Any] | None:
        """Claim the next job of the queue and run it to its end. The job as it was claimed, or None if there was none.

        `claimed` is called before the handler: where one job was, there may be more. Whatever a handler does is an
        outcome; raises only what the connection raises before or after.
        """
        job = self._claimer.claim(held, queue)
        if job is None:
            return None
        claimed()
        references = held.references()
        self._run(held, job)
        if held.spoiled or held.references() > references:
            held.renew()
        return job

    def _run(self, held: Checkout, job: Job[Any]) -> None:
        attempt = Attempt(job, held, self._timeout_of(job))
        self._watch.add(attempt)
        try:
            error = attempt.run(lambda: self._handle(attempt))
            self._finish(held, attempt, error)
        except BaseException:
            held.spoiled = True  # whatever state it is in: not for the next job
            raise
        finally:
            attempt.end()
            self._watch.remove(attempt)
            held.spoiled = held.spoiled or attempt.tainted
        _forget(error)
        if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            raise error  # somebody pressed Ctrl-C at a work_one()

    def _handle(self, attempt: Attempt) -> None:
        """Call the handler."""
        handler = self._work_map.find(attempt.job.kind)
        attempt.job = replace(attempt.job, decode=handler.decode)
        job = replace(attempt.job, running=attempt)
        job.args  # noqa: B018  decoded here: args that do not fit are this attempt's failure
        with attempt.held.handing_over() as tx:
            handler.function(tx, job)

    def record_severed(self, attempt: Attempt, held: Checkout) -> None:
        """Record the outcome of an attempt whose connection was shut down, whatever its handler still does: from here
        on its row is free, and it must not look as if its worker had vanished."""
        assert attempt.reason is not None
        outcome = self._decide(attempt.job, attempt.reason)
        with suppress(AttemptLost):  # it was finished, or rescued, in this very moment
            self._finish_late(held, attempt.job, outcome)
            self._report(attempt.job, outcome, attempt.reason)

    def _finish(self, held: Checkout, attempt: Attempt, error: BaseException | None) -> None:
        """Write the outcome: in the job's transaction while that lives, else in one of its own."""
        committed = False
        try:
            if error is None:
                error = self._complete(held, attempt.job)
                committed = error is None
                if error is not None and attempt.severed:
                    error = attempt.reason
            if error is not None:
                self._fail(held, attempt.job, error)
        except AttemptLost as lost:
            log.warning("%s: its outcome stands already: it was finished for it, rescued, or changed", lost)
            held.spoiled = True
        finally:
            held.settle(committed=committed)
            if not held.spoiled:
                held.restore()

    def _complete(self, held: Checkout, job: Job[Any]) -> BaseException | None:
        """Commit the handler's writes and the completion together, or say why they cannot be."""
        if not held.usable:
            return TransactionBroken("the handler left its connection closed, or in the middle of a command")
        try:
            held.spoiled = not self._store.complete(held.conn, job, COMPLETED)
        except AttemptLost:
            return TransactionBroken("the handler changed the row of its own job, or gave up the lock on it")
        except psycopg.Error as error:
            return _why_not_committed(error)
        return None

    def _decide(self, job: Job[Any], error: BaseException) -> Outcome:
        handler = self._work_map.get(job.kind)
        policy = (handler and handler.backoff) or self._backoff
        try:
            return decide(job, error, policy)
        except Exception as broken:  # a signal made by hand, without what it should say
            broken.__cause__ = error
            return decide(job, broken, policy)

    def _report(self, job: Job[Any], outcome: Outcome, error: BaseException) -> None:
        with suppress(Exception):  # a handler of the log that fails must not look like a fault of the database
            log.log(
                logging.INFO if outcome.error is None else logging.WARNING,
                "job %d (%s) attempt %d of %d: %s: %s",
                job.id,
                one_line(job.kind),
                job.attempt,
                job.max_attempts,
                outcome.state,
                one_line(outcome.error or error),
            )

    def _fail(self, held: Checkout, job: Job[Any], error: BaseException) -> None:
        outcome = self._decide(job, error)
        self._record(held, job, outcome)
        self._report(job, outcome, error)

    def _record(self, held: Checkout, job: Job[Any], outcome: Outcome) -> None:
        if held.usable and held.conn.info.transaction_status != TransactionStatus.IDLE:
            try:
                held.spoiled = not self._store.fail(held.conn, job, outcome)
                return
            except (psycopg.Error, AttemptLost):  # the savepoint is gone, or the connection, or the row was changed
                log.debug("job %d: its transaction is gone; recording the outcome in a new one", job.id)
        self._finish_late(held, job, outcome)

    def _finish_late(self, held: Checkout, job: Job[Any], outcome: Outcome) -> None:
        """The second path. What cannot be recorded now is left to the rescue, which counts the attempt too."""
        lost = False
        for left in reversed(range(_LATE_FINISH_TRIES)):
            try:
                if held.usable:
                    self._store.rollback(held.conn)
                else:
                    lost = True
                    self._claimer.be_cautious()
                    held.renew()
                held.spoiled = not self._store.finish_late(held.conn, job, outcome, after_loss=lost)
                return
            except psycopg.Error as error:
                held.spoiled = True
                # a row that is still locked is held by the dead connection, or by a rescue: not worth a thread's wait
                if not left or error.sqlstate == _LOCK_NOT_AVAILABLE:
                    log.error("job %d: its outcome could not be recorded, the rescue will: %s", job.id, one_line(error))
                    return

    def _timeout_of(self, job: Job[Any]) -> timedelta | None:
        handler: Handler | None = self._work_map.get(job.kind)
        if handler is None or handler.timeout == "inherit":
            return self._timeout
        if not callable(handler.timeout):
            return handler.timeout
        try:
            return handler.timeout(replace(job, decode=handler.decode))
        except Exception as error:  # the user's code, and args that may not fit
            log.warning("job %d: its timeout cannot be told, the pool's holds: %s", job.id, one_line(error))
            return self._timeout


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
