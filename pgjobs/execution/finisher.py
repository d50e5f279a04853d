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

A late finish is guarded by the token alone and waits for no lock longer than a second: if the row is locked, a dead
connection or a rescue holds the lock. If the answer to a COMMIT was lost, the job is read again to find out whether it
was committed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import psycopg
from psycopg.pq import TransactionStatus
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from pgjobs.backoff import Backoff
from pgjobs.clean_text import forget_details, hint, one_line
from pgjobs.db.checkout import Checkout
from pgjobs.db.cursors import AnyConnection
from pgjobs.errors import (
    AttemptLost,
    Cancel,
    CannotConnect,
    Discard,
    JobCancelled,
    JobStopped,
    NotRunning,
    TransactionBroken,
)
from pgjobs.events import Event, Events, JobStats
from pgjobs.execution.attempt import Attempt
from pgjobs.execution.claimer import Claimer
from pgjobs.execution.job_log import JobLog
from pgjobs.execution.outcome import COMPLETED, NO_DATA, Outcome, decide
from pgjobs.execution.queries import ExecutionQueries, FinishResult
from pgjobs.execution.report import event_kind, how_it_ended, job_after, waited
from pgjobs.execution.scripts import FinishRequest, NextClaim
from pgjobs.execution.transport import WRONG_NAMES, Transport
from pgjobs.hooks import ErrorHandler, HookCalls
from pgjobs.interval import microseconds
from pgjobs.job import Job, JobState
from pgjobs.loggers import get_logger, job_fields
from pgjobs.return_values import WarnOnce

log = get_logger("pgjobs.finish")

_LATE_FINISH_TRIES = 3
_MOST_DEAD = 100  # connections that died with the server: the pool hands out each one once; they do not count as tries
_NO_CONNECTION = (PoolTimeout, PoolClosed, TooManyRequests, CannotConnect)
_LOCK_NOT_AVAILABLE = "55P03"
_SOON = timedelta(seconds=2)
_COMPLETED = JobState.COMPLETED  # a global, since it is asked for every job
W = TypeVar("W")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finisher:
    """Finishes attempts for the threads of one process."""

    queries: ExecutionQueries
    claimer: Claimer
    backoff: Backoff
    error_handler: ErrorHandler | None = None
    hooks: HookCalls
    events: Events
    error_details: bool = True  # whether the DETAIL, HINT and CONTEXT of Postgres errors are stored and logged
    complaints: WarnOnce = field(default_factory=WarnOnce)
    job_log: JobLog = field(default_factory=JobLog)
    # called for each attempt that ends: queue, kind, how it ended, seconds waited and seconds run
    count: Callable[[str, str, str, float, float], None] | None = None
    # called when a job is due again before maintenance would look for it
    on_due_soon: Callable[[], None] = lambda: None

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
                checkout.error_details = self.error_details
                checkout.after_transaction(committed=committed)
            if next_job is None and not checkout.spoiled and checkout.usable:
                checkout.restore()
        if finished is not None:
            # after `after_transaction`: a hook may use the framework, which must know the outcome
            self.report(attempt, outcome, finished, error, took)
        return error, next_job

    def record_severed(self, attempt: Attempt, checkout: Checkout) -> None:
        """Write the outcome of an attempt whose connection was shut down, although its handler may still run. Its row
        is no longer locked, so without an outcome the rescue would treat the job as that of a vanished worker."""
        assert attempt.reason is not None
        assert attempt.recording is not None
        outcome = self.decide(attempt, attempt.reason)
        with suppress(AttemptLost):  # finished or rescued at the same moment
            with attempt.recording:
                finished = self.finish_late(checkout, attempt, outcome)
                attempt.recorded = finished is not None
            if finished is not None:
                self.report(attempt, outcome, finished, attempt.reason, 0.0)

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
                return self.finish_late(checkout, attempt, COMPLETED), None
            except AttemptLost:
                completed = self._find_completed(checkout, attempt)
                if completed is None:
                    raise
                return completed, None
        if not checkout.usable:
            checkout.replace()
        job = self.queries.get_job(checkout.conn, attempt.job.id, attempt.job.queue)
        if job is None or job.token != attempt.job.token:
            raise AttemptLost(f"job {attempt.job.id} no longer runs under attempt {attempt.job.attempt}")
        completed = _completed(job)
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
        outcome, undone = self.decide(attempt, error), error is ended
        try:
            finished = self._record(checkout, attempt, outcome)
            if finished is not None and finished.state is JobState.AVAILABLE:
                self.claimer.marks.forget(attempt.job.queue)
            return outcome, finished, error
        except AttemptLost:
            completed = self._find_completed(checkout, attempt) if _unanswered(ended) else None
            if completed is None:
                raise
            undone = False
            return COMPLETED, completed, None
        finally:
            if undone:
                self.hooks("on_undone", attempt.job, error)

    def _find_completed(self, checkout: Checkout, attempt: Attempt) -> FinishResult | None:
        """Find out whether a COMMIT whose answer was lost has completed the job."""
        job = self.write_late(
            checkout,
            attempt.job,
            lambda _, lost: self.queries.get_job(checkout.conn, attempt.job.id, attempt.job.queue),
            f"job {attempt.job.id}",
        )
        checkout.spoiled = True  # its session was not reset
        return None if job is None or job.token != attempt.job.token else _completed(job)

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
        return self.finish_late(checkout, attempt, outcome)

    def finish_late(
        self, checkout: Checkout, attempt: Attempt, outcome: Outcome, *, after_loss: bool = False
    ) -> FinishResult | None:
        """Write the outcome in a new transaction; None if that fails, which leaves the job to the rescue. `after_loss`:
        the job's connection was lost and is replaced already."""

        async_commit = self.claimer.commits_async(attempt.job)

        def write(transport: Transport, lost: bool) -> FinishResult:
            after = after_loss or (lost and attempt.checkout is not None)
            how = FinishRequest(checkout.session, async_commit=async_commit)
            return self.queries.finish_late(transport, attempt.job, outcome, how, attempt.data, after_loss=after)

        finished = self.write_late(
            checkout, attempt.job, write, f"job {attempt.job.id}", transactional=attempt.checkout is not None
        )
        if finished is not None:
            checkout.spoiled = not finished.clean
        return finished

    def write_late(
        self,
        checkout: Checkout,
        job: Job[Any],
        write: Callable[[Transport, bool], W],
        what: str,
        *,
        transactional: bool = True,
    ) -> W | None:
        """Call `write(transport, lost)` on this connection, or on new ones if it is lost. None if no try succeeds."""
        lost, left, dead = False, _LATE_FINISH_TRIES, _MOST_DEAD
        while True:
            try:
                if checkout.usable:
                    self.queries.abandon(self.claimer.transport_of(checkout), checkout.session, job.attempted_at)
                else:
                    lost = True
                    if transactional:
                        self.claimer.require_sync_commit()
                    checkout.replace()
                return write(self.claimer.transport_of(checkout), lost)
            except psycopg.Error as error:
                checkout.spoiled = True
                if checkout.conn.closed and not isinstance(error, _NO_CONNECTION):
                    dead -= 1
                else:
                    left -= 1
                # if the row is locked, a dead connection or a rescue holds the lock: this thread does not wait for it
                if not left or not dead or error.sqlstate == _LOCK_NOT_AVAILABLE:
                    log.error("%s: could not write the outcome; the rescue will: %s", what, one_line(error),
                              extra=job_fields(job))  # fmt: skip
                    return None

    # --- decide

    def decide(self, attempt: Attempt, error: BaseException) -> Outcome:
        """Decide the outcome, once: after a severed connection both the watchdog's report and the attempt's own thread
        come here."""
        with attempt.slot.deciding:
            if attempt.outcome is None:
                attempt.outcome = self._decide_with_error_handler(attempt, error)
            return attempt.outcome

    def _decide_with_error_handler(self, attempt: Attempt, error: BaseException) -> Outcome:
        if not self.error_details:
            forget_details(error)
        try:
            outcome = self._decide_by_policy(attempt, error)
        except BaseException as broken:  # the signal lacks its values, because its constructor was not called
            unclear = TypeError(f"{type(error).__name__} has no time to wait: {one_line(broken)}")
            unclear.__cause__ = error
            outcome = self._decide_by_policy(attempt, unclear)
        if self.error_handler is None or outcome.error is None or isinstance(error, Cancel | Discard | JobCancelled):
            return outcome
        match self.error_handler.judge(attempt.job, error, error_details=self.error_details):
            case Cancel():
                return replace(outcome, state=JobState.CANCELLED, delay=None, at=None)
            case Discard():
                return replace(outcome, state=JobState.DISCARDED, delay=None, at=None)
        return outcome

    def _decide_by_policy(self, attempt: Attempt, error: BaseException) -> Outcome:
        """Decide by the policy of the handler, then by that of the pool. If the args do not fit, only by that of the
        pool, because the policy of the handler may read them."""
        own_policy = attempt.handler.backoff if attempt.handler is not None and attempt.args_fit else None

        def complain(policy: Backoff, broken: BaseException) -> None:
            what = "backoff of its handler" if policy is own_policy else "backoff of the worker pool"
            instead = "using the worker pool's" if policy is own_policy else "using River's policy"
            self.complaints(attempt.job.kind, what, broken, instead=instead)

        policies = (self.backoff,) if own_policy is None else (own_policy, self.backoff)
        ran = timedelta(seconds=attempt.run_seconds)
        return decide(attempt.job, error, *policies, ran=ran, complain=complain)

    # --- report

    @property
    def reports(self) -> bool:
        """Whether completed attempts are reported, and not just counted."""
        return bool(self.hooks.any or self.events or self.job_log.any)

    def report(
        self, attempt: Attempt, outcome: Outcome, finished: FinishResult, error: BaseException | None, took: float
    ) -> None:
        """Report an outcome, once it is written, to the figures, the log, the hooks and the subscribers."""
        self.count_ended(attempt, outcome, finished.state)
        if error is None and not self.reports:
            return
        if error is not None or self.job_log.any:
            self.job_log.ended(attempt.job, finished.state, outcome, error, attempt.run_seconds)
        if outcome.at is not None or (outcome.delay is not None and outcome.delay < _SOON):
            self.on_due_soon()
        if not self.hooks and not self.events:
            return
        job = job_after(attempt, outcome, finished)
        if attempt.started:
            self.hooks("on_finish", job, error)
        stats = JobStats(
            timedelta(seconds=waited(attempt.job)), timedelta(seconds=attempt.run_seconds), timedelta(seconds=took)
        )
        event = Event(event_kind(job, outcome), job, stats)
        self.hooks("on_outcome", event, error)
        self.events.publish(event)

    def count_ended(self, attempt: Attempt, outcome: Outcome, state: JobState) -> None:
        """Count an attempt, once its outcome is written. `report` includes this."""
        if self.count is not None:
            job = attempt.job
            how = "completed" if state is _COMPLETED else how_it_ended(state, outcome)
            self.count(job.queue, job.kind, how, waited(job), attempt.run_seconds)


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


def _completed(job: Job[Any]) -> FinishResult | None:
    """The result that the finish would have had, if the job is completed."""
    if job.state is not JobState.COMPLETED or job.finalized_at is None:
        return None
    return FinishResult(job.state, microseconds(job.finalized_at), True)


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
