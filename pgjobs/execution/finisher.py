"""Finishes an attempt: decides its outcome and writes it.

    what has happened                               where the outcome is written
    ----------------------------------------------  --------------------------------------------------------------------
    the handler returned                            in its transaction, which commits its writes and the completion
    the handler failed, or that COMMIT failed       in its transaction, after its writes are rolled back
    the transaction or the connection is gone       in a new transaction, on a new connection if need be (late finish)
    the late finish fails too                       nowhere: the rescue finds the job

A severed attempt is finished by two threads: the one that runs its handler, which may never come back, and one that
reports it. Neither waits for the other before it writes, and the token lets one of them write, which then logs it. The
thread of the handler asks, if it comes too late, whether the other one has written.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from pgjobs.clean_text import hint, one_line
from pgjobs.db.checkout import Checkout
from pgjobs.db.cursors import AnyConnection
from pgjobs.errors import (
    AttemptLost,
    JobCancelled,
    JobStopped,
    NotRunning,
    TransactionBroken,
)
from pgjobs.execution.attempt import Attempt
from pgjobs.execution.claimer import Claimer
from pgjobs.execution.decider import Decider
from pgjobs.execution.late_finish import LateFinish, completed_result
from pgjobs.execution.outcome import COMPLETED, NO_DATA, Outcome
from pgjobs.execution.queries import FinishResult
from pgjobs.execution.report import Reporter, job_after
from pgjobs.execution.scripts import FinishRequest, NextClaim
from pgjobs.execution.transport import WRONG_NAMES
from pgjobs.job import Job, JobState
from pgjobs.loggers import get_logger, job_fields

log = get_logger("pgjobs.finish")


class Finisher:
    """Finishes attempts for the threads of one process."""

    def __init__(self, *, claimer: Claimer, decider: Decider, reporter: Reporter) -> None:
        self.claimer = claimer
        self.queries = claimer.queries
        self.decider = decider
        self.reporter = reporter
        self.late = LateFinish(claimer)

    def finish(
        self, checkout: Checkout, attempt: Attempt, error: BaseException | None, *, then: NextClaim | None = None
    ) -> tuple[BaseException | None, Job[Any] | None]:
        """Write the outcome of an attempt whose handler returned, or raised `error`. `then` is a claim to be sent in
        the same message. Returns the error that the attempt has failed with in the end, and the next job."""
        started, committed = time.monotonic(), False
        outcome, finished, next_job = COMPLETED, None, None
        try:
            ended = self._complete(checkout, attempt, then) if error is None or attempt.completed else None
            if isinstance(ended, tuple):
                if error is not None:
                    log.warning("job %d had completed when its handler raised: %s", attempt.job.id, one_line(error),
                                extra=job_fields(attempt.job))  # fmt: skip
                (finished, next_job), error = ended, None
            else:
                outcome, finished, error = self._write_failure(checkout, attempt, error, ended)
            committed = error is None
        except AttemptLost as lost:
            if _recorded_as_severed(attempt):
                log.debug("job %d: its outcome is written already, as it was severed", attempt.job.id)
            else:
                log.warning("%s: its outcome is not written; it was finished, rescued or changed in the meantime", lost,
                            extra=job_fields(attempt.job))  # fmt: skip
            checkout.spoiled = True
            error = error or lost
        finally:
            took = time.monotonic() - started
            if attempt.checkout is not None:
                checkout.error_details = self.decider.error_details
                checkout.after_transaction(committed=committed)
            if next_job is None and not checkout.spoiled and checkout.usable:
                checkout.restore()
        if finished is not None:
            # after `after_transaction`: a hook may use the framework, which must know the outcome
            self.reporter.report(attempt, outcome, finished, error, took)
        return error, next_job

    def record_severed(self, attempt: Attempt, checkout: Checkout) -> None:
        """Write the outcome of an attempt whose connection was shut down, although its handler may still run. Its row
        is no longer locked, so without an outcome the rescue would treat the job as that of a vanished worker."""
        assert attempt.reason is not None
        assert attempt.recording is not None
        outcome = self.decider.decide(attempt, attempt.reason)
        with suppress(AttemptLost):  # finished or rescued at the same moment
            with attempt.recording:
                finished = self.late.finish(checkout, attempt, outcome)
                attempt.recorded = finished is not None
            if finished is not None:
                self.reporter.report(attempt, outcome, finished, attempt.reason, 0.0)

    def complete_within(self, conn: AnyConnection, attempt: Attempt) -> Job[Any]:
        """Complete a detached job in a transaction of its handler: `job.complete(tx)`."""
        with self.queries.as_claimed(conn, attempt.session):
            if attempt.completed and not self._runs(conn, attempt.job):
                raise NotRunning(f"job {attempt.job.id} was completed already")
            cancel_requested = isinstance(attempt.reason, JobCancelled)
            finished = self.queries.complete_within(
                conn, attempt.job, COMPLETED, attempt.data, cancel_requested=cancel_requested
            )
        attempt.completed = True
        return job_after(attempt, COMPLETED, finished)

    def _runs(self, conn: AnyConnection, job: Job[Any]) -> bool:
        """Whether this transaction sees the job as running: then the transaction that completed it was rolled back."""
        found = self.queries.get_job(conn, job.id, job.queue)
        return found is not None and found.state is JobState.RUNNING and found.token == job.token

    # --- write

    def _complete(
        self, checkout: Checkout, attempt: Attempt, then: NextClaim | None
    ) -> tuple[FinishResult | None, Job[Any] | None] | BaseException:
        """Commit the handler's writes together with the completion, and claim the next job. Returns the error if the
        attempt cannot be completed."""
        job, claimer = attempt.job, self.claimer
        if attempt.checkout is None:
            return self._complete_detached(checkout, attempt)
        if not checkout.usable:
            return TransactionBroken("the handler left its connection closed, or in the middle of a command")
        how = FinishRequest(
            checkout.session,
            used=checkout.used,
            saved=checkout.saved,
            has_data=attempt.has_data,
            cancelled=isinstance(attempt.reason, JobCancelled),
            async_commit=job.queue in claimer.async_commit,
            counts=then is None or checkout.may_have_prepared,
        )
        try:
            finished = self.queries.complete(
                checkout.transport,
                job,
                how,
                attempt.data if attempt.has_data else NO_DATA,
                then=then,
                unprepared=job.kind in claimer.unprepared_kinds,
            )
        except (psycopg.Error, UnicodeEncodeError, AttemptLost) as error:
            return self._not_completed(job, then, error)
        checkout.spoiled = not finished.result.clean
        if then is None:
            return finished.result, None
        if finished.problem is not None:
            self._undo_claim(checkout, then, finished.problem)
            return finished.result, None
        return finished.result, claimer.claimed_next(checkout, then, finished.next)

    def _not_completed(
        self, job: Job[Any], then: NextClaim | None, error: psycopg.Error | UnicodeEncodeError | AttemptLost
    ) -> BaseException:
        """Why an attempt could not be completed."""
        # the error of a lost connection, or of a completion that found no row; not an error that has skipped the claim
        unknown = (
            error.__cause__ is None if isinstance(error, AttemptLost) else isinstance(error, psycopg.OperationalError)
        )
        if then is not None and unknown:
            self.claimer.lost_claims.add(then.request.queue, then.request.token)
        if isinstance(error, AttemptLost):
            return TransactionBroken("the handler changed the row of its own job, or gave up the lock on it")
        if isinstance(error, WRONG_NAMES) and self.queries.tag in str(error):
            self.claimer.unprepared_kinds.add(job.kind)
            stopped = JobStopped(
                "the handler deallocated the prepared statements of pgjobs; it runs again without them"
            )
            stopped.__cause__ = error
            return stopped
        return why_not_committed(error)

    def _undo_claim(self, checkout: Checkout, then: NextClaim, problem: Exception) -> None:
        """The claim that was sent with a finish has failed."""
        if checkout.used:
            checkout.spoiled = True  # the error has undone the reset of the session
        request = then.request
        try:
            self.claimer.lost_claims.unclaim(checkout, request.queue, request.token, problem)
        except psycopg.Error as error:
            log.debug("giving up the connection: %s", one_line(error))
            checkout.spoiled = True

    def _complete_detached(
        self, checkout: Checkout, attempt: Attempt
    ) -> tuple[FinishResult | None, None] | BaseException:
        if not attempt.completed:
            try:
                return self.late.finish(checkout, attempt, COMPLETED), None
            except AttemptLost:
                completed = self.late.find_completed(checkout, attempt)
                if completed is None:
                    raise
                return completed, None
        if not checkout.usable:
            checkout.replace()
        job = self.queries.get_job(checkout.conn, attempt.job.id, attempt.job.queue)
        if job is None or job.token != attempt.job.token:
            raise AttemptLost(f"job {attempt.job.id} no longer runs under attempt {attempt.job.attempt}")
        completed = completed_result(job)
        if completed is None:
            return TransactionBroken("the transaction of job.complete(tx) was not committed")
        return completed, None

    def _write_failure(
        self, checkout: Checkout, attempt: Attempt, error: BaseException | None, ended: BaseException | None
    ) -> tuple[Outcome, FinishResult | None, BaseException | None]:
        """Write the outcome of an attempt that has failed. `ended`: it could not be completed for this error."""
        if error is None:
            assert ended is not None
            error = _blamed(attempt, ended)
        outcome, undone = self.decider.decide(attempt, error), error is ended
        try:
            finished = self._record(checkout, attempt, outcome)
            if finished is not None and finished.state is JobState.AVAILABLE:
                self.claimer.marks.forget(attempt.job.queue)
            return outcome, finished, error
        except AttemptLost:
            completed = self.late.find_completed(checkout, attempt) if _unanswered(ended) else None
            if completed is None:
                raise
            undone = False
            return COMPLETED, completed, None
        finally:
            if undone:
                self.reporter.hooks("on_undone", attempt.job, error)

    def _record(self, checkout: Checkout, attempt: Attempt, outcome: Outcome) -> FinishResult | None:
        undoable = checkout.saved or not checkout.used  # always: the savepoint goes before what a handler sends
        if undoable and checkout.usable and checkout.conn.info.transaction_status != TransactionStatus.IDLE:
            try:
                async_commit = self.claimer.commits_async(attempt.job)
                how = FinishRequest(checkout.session, checkout.used, checkout.saved, async_commit=async_commit)
                finished = self.queries.fail(checkout.transport, attempt.job, outcome, how, attempt.data)
            except (psycopg.Error, AttemptLost, UnicodeEncodeError):
                # the savepoint or connection is gone, the row was changed, or the session's encoding lacks a character
                log.debug("job %d: its transaction is gone; writing the outcome in a new one", attempt.job.id)
            else:
                checkout.spoiled = not finished.clean
                return finished
        return self.late.finish(checkout, attempt, outcome)


def _blamed(attempt: Attempt, ended: BaseException) -> BaseException:
    """The error of an attempt that could not be completed: the reason of its stop, if a stop was requested."""
    if attempt.reason is None:
        return ended
    attempt.reason.__cause__ = ended
    return attempt.reason


def _recorded_as_severed(attempt: Attempt) -> bool:
    """Whether the thread that reports severed attempts has written the outcome of this one. If it is about to learn
    that it has, this waits for it: the thread of the handler may find the row changed before the other one has its
    answer."""
    if attempt.recording is None:
        return False
    with attempt.recording:
        return attempt.recorded


def _unanswered(ended: FinishResult | BaseException | None) -> bool:
    """Whether the COMMIT may have taken place, and only its answer was lost."""
    return isinstance(ended, BaseException) and isinstance(ended.__cause__, psycopg.OperationalError)


def why_not_committed(error: psycopg.Error | UnicodeEncodeError) -> TransactionBroken:
    sqlstate = None if isinstance(error, UnicodeEncodeError) else error.sqlstate
    match sqlstate:
        case "25P02":
            why = "an SQL error in the handler was swallowed, so its transaction was aborted"
        case "25P01" | "3B001":
            why = "the handler ended its transaction itself (COMMIT or ROLLBACK); only pgjobs may"
        case _:
            why = f"the handler's writes could not be committed: {error}"
    broken = TransactionBroken(why + (f" [{sqlstate}]" if sqlstate else "") + hint(error))
    broken.__cause__ = error
    return broken
