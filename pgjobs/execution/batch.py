"""Runs many jobs in one transaction: one claim, the handlers one after the other, one finish.

A failed handler is rolled back to its savepoint, and the others go on. If the transaction itself cannot be committed,
the batch falls back to a record of each job:

    a job whose handler                                            is
    -------------------------------------------------------------  -------------------------------------------------
    ended or broke the transaction                                 failed
    failed by itself                                               failed, with its own error
    ran before a handler that committed the transaction            completed: its writes are committed
    ran, and its writes are lost                                   available again, and must run alone
    was not started                                                available again, with its claim undone
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import psycopg

from pgjobs.clean_text import one_line
from pgjobs.db.checkout import Checkout
from pgjobs.errors import AttemptLost, JobCancelled, TransactionBroken
from pgjobs.execution.attempt import Attempt, Slot
from pgjobs.execution.batch_queries import BatchOutcome, BatchQueries, Claimed, must_run_alone
from pgjobs.execution.executor import Executor
from pgjobs.execution.failed_claims import claims_of
from pgjobs.execution.finisher import why_not_committed
from pgjobs.execution.lock_job import clear_frames
from pgjobs.execution.outcome import COMPLETED, Outcome
from pgjobs.execution.queries import FinishResult
from pgjobs.execution.requests import ClaimRequest
from pgjobs.execution.savepoints import MOST, Savepoints
from pgjobs.execution.set_aside import UnreadableRow, concerns_a_row
from pgjobs.execution.transport import Transport
from pgjobs.job import Job, JobState
from pgjobs.loggers import get_logger
from pgjobs.queue_settings import MOST_IN_A_BATCH, RunSettings

log = get_logger("pgjobs.batch")


class Batches:
    """Runs batches for the threads of one process."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.queries = BatchQueries(executor.claimer.queries)
        # By queue. A claim asks for the batch size, halved `_halved` times, and for at most `_room` jobs: so many can
        # have savepoints in one transaction. After a job that must run alone it asks for one job: more such jobs may
        # follow, and a larger claim would lock the jobs behind them for nothing. Each size has a prepared statement of
        # its own, so there are only few sizes.
        self._halved: dict[str, int] = {}
        self._room: dict[str, int] = {}

    def run_next(
        self,
        slot: Slot,
        queue: str,
        settings: RunSettings,
        *,
        claimed: Callable[[], None],
        ends: Callable[[], bool],
    ) -> bool:
        """Claim the next jobs of the queue, run their handlers and write the outcomes. Returns whether there were any.

        `claimed` is called before the first handler: there may be more jobs, for other threads. No more handlers are
        started once `ends` returns True. Raises only errors of the connection, before or after the handlers.
        """
        halved = self._halved.get(queue, 0)
        room = self._room.get(queue, MOST_IN_A_BATCH)
        while (ask := max(1, min(settings.batch_size >> halved, room))) > 1:
            try:
                found = self._claim(slot.checkout, queue, settings, ask)
            except (psycopg.Error, UnreadableRow) as error:
                if not concerns_a_row(error):
                    raise
                halved = self._halved[queue] = halved + 1  # until a claim of one job finds the row
                continue
            if found is not None:
                claimed()
                batch = Batch(self, slot, queue, settings, found)
                batch.run(ends)
                if len(found.jobs) + found.missed == ask:  # there may be more
                    self._halved[queue] = max(0, halved - 1)
                self._room[queue] = batch.room
                return True
            break
        job = self.executor.claim(slot.checkout, queue)  # a job that must run alone, or none
        if job is not None:
            claimed()
            self.executor.run(slot, job)
        alone = job is not None and must_run_alone(job)
        self._halved[queue] = settings.batch_size.bit_length() - 1 if alone else max(0, halved - 1)
        return job is not None

    # --- claim

    def _claim(self, checkout: Checkout, queue: str, settings: RunSettings, ask: int) -> Claimed | None:
        hooks, claimer = self.executor.hooks, self.executor.claimer

        def send(request: ClaimRequest) -> Claimed | None:
            return self.queries.claim(checkout.transport, request, ask, settings.batch_time, by_tcp=checkout.by_tcp)

        try:
            found = claimer.behind_mark(checkout, queue, send, alone=False)
        except Exception as error:
            if not concerns_a_row(error):
                hooks("on_claim", None, error)
            raise
        claimer.marks.record_claim(queue, found.jobs[-1] if found else None)
        if found is None:
            return None
        found.session = found.session._replace(shared=claimer.queries.is_pooled(checkout.conn))
        checkout.session = found.session
        if claimer.set_aside:
            claimer.set_aside.worked(claims_of(queue))
        if hooks.any:
            for job in found.jobs:
                copy_context().run(hooks, "on_claim", job, None)
        return found


def _call_in_context(attempt: Attempt, function: Callable[..., object], *given: object) -> None:
    """Call a function in the context of the attempt, which only the attempt's own thread may enter."""
    if threading.current_thread() is attempt.thread:
        attempt.context.run(function, *given)
    else:
        function(*given)


def _rounded(room: int) -> int:
    """Round down to one of a few numbers."""
    return MOST << (room // MOST).bit_length() - 1 if room >= MOST else 1 << room.bit_length() - 1


@dataclass
class Batch:
    """The jobs of one claim, and their outcomes."""

    batches: Batches
    slot: Slot
    queue: str
    settings: RunSettings
    found: Claimed
    ran: list[Attempt] = field(default_factory=list)  # whose handlers have ended
    errors: dict[int, BaseException] = field(default_factory=dict)  # of failed jobs, by id
    started: int = 0  # how many of the jobs, in their order
    room: int = MOST_IN_A_BATCH  # how many jobs like these a transaction has savepoints for
    _watched: Attempt | None = None  # the attempt that the watchdog has, until the batch is finished
    _clean: bytes | None = None  # the message that resets the session between two handlers
    _lost: bool = False  # whether the connection was lost, perhaps with the server and the claim
    _tainted: bool = False
    _recorded: bool = False  # whether an outcome is written for each job
    _fault: str = ""  # how a handler has ended the transaction
    _record_lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.executor = self.batches.executor
        self.checkout = self.slot.checkout
        finisher = self.executor.finisher
        self.decider, self.reporter, self.late = finisher.decider, finisher.reporter, finisher.late
        self.jobs = self.found.jobs

    def run(self, ends: Callable[[], bool]) -> None:
        """Run the jobs and finish them. The connection is ready for the next batch then."""
        checkout = self.checkout
        began = time.monotonic()
        # the owner's settings of the session cannot be made again within a transaction
        most = 1 if checkout.configures else MOST
        try:
            savepoints = Savepoints(checkout.conn, checkout.transport, self.executor.claimer.queries.tag, self._between)
            with checkout.batch(savepoints.begin):
                self._run_jobs(savepoints, most, ends)
            if savepoints.used:
                self.room = _rounded(most * self.started // savepoints.used)
            finishing = time.monotonic()
            problem = self._commit(savepoints, finishing)
            if problem is not None:
                if checkout.usable:
                    with suppress(psycopg.Error):  # the next statement will raise it too
                        self.executor.claimer.queries.abandon(
                            checkout.transport, checkout.session, self.jobs[0].attempted_at
                        )
                self._fall_back(checkout, problem, self._culprit(savepoints, problem), finishing)
                checkout.spoiled = True  # the session may have settings that a rollback does not undo
            self._unwatch()
            checkout.spoiled = checkout.spoiled or self._tainted
            if checkout.usable and not checkout.spoiled and savepoints.used:
                checkout.restore()
        except BaseException:
            checkout.spoiled = True  # its state is unknown: not for the next batch
            raise
        finally:
            self._unwatch()
        log.debug("%s: %d jobs in %.3f s", self.queue, len(self.ran), time.monotonic() - began)
        if checkout.spoiled:
            checkout.replace()

    # --- the handlers

    def _run_jobs(self, savepoints: Savepoints, most: int, ends: Callable[[], bool]) -> None:
        last_start = time.monotonic() + self.settings.batch_time.total_seconds()
        for job in self.jobs:
            if ends():
                return
            previous = self._watched
            if previous is not None:
                if previous.began + previous.run_seconds >= last_start or savepoints.used >= most:
                    return
                previous.end()  # from here on the watchdog leaves the connection alone
                if previous.tainted:
                    return
            attempt = self._run_job(job, savepoints)
            if savepoints.broken or attempt.tainted:  # a late cancel or interrupt could hit the next job
                return

    def _run_job(self, job: Job[Any], savepoints: Savepoints) -> Attempt:
        executor, slot = self.executor, self.slot
        watchdog, checkout = executor.watchdog, slot.checkout
        self._watched = attempt = executor.attempt(slot, job)
        attempt.on_severed = self._on_severed
        self.started += 1
        watchdog.add(slot, attempt)
        error: BaseException | None = None
        if watchdog.cancelled:
            error = watchdog.cancelled.get((job.id, job.token))  # cancelled since the claim
        if error is None:
            error = attempt.context.run(executor.start, attempt)
        if attempt.tainted:
            checkout.wait_for_cancels()  # else one could hit the next statement
        ended = savepoints.end(job.id, error, quiet=checkout.end_tx(job.id))
        if ended is not None:
            self._note_failure(attempt, error, ended, savepoints)
        self.ran.append(attempt)
        return attempt

    def _note_failure(
        self, attempt: Attempt, error: BaseException | None, ended: BaseException, savepoints: Savepoints
    ) -> None:
        """The attempt has failed with the error `ended`; that of its handler was `error`."""
        if ended is not error and attempt.reason is not None:  # the stop may be the cause
            attempt.reason.__cause__ = ended
            ended = attempt.reason
        if savepoints.culprit is None:
            attempt.context.run(self.decider.decide, attempt, ended)
            self.errors[attempt.job.id] = ended
            clear_frames(ended)

    def _unwatch(self) -> None:
        """Take the last attempt from the watchdog, which leaves its connection alone from now on."""
        attempt, self._watched = self._watched, None
        if attempt is not None:
            attempt.end()
            self.slot.attempt = None
            self._tainted = attempt.tainted

    def _between(self) -> bytes:
        if self._clean is None:
            session, transport = self.found.session, self.checkout.transport
            settings = self.executor.claimer.settings
            since = self.jobs[0].attempted_at if session.shared else None
            self._clean = self.batches.queries.between_jobs(transport, settings, session, self.found.bound, since=since)
        return self._clean

    # --- the end

    def _commit(self, savepoints: Savepoints, finishing: float) -> Exception | None:
        """Commit the batch. Returns the error if that fails."""
        checkout, queries = self.checkout, self.batches.queries
        if savepoints.broken or (self._watched is not None and self._watched.severed):
            self._fault = savepoints.fault
            return TransactionBroken("another job of its batch has ended or broken their transaction")
        record = self._record(self.ran, self.jobs[self.started :])
        try:
            written, clean = queries.finish(checkout.transport, record, savepoints.release, used=savepoints.used > 0)
        except (psycopg.Error, AttemptLost) as error:
            return error
        self._recorded = True
        checkout.spoiled = not clean
        if record.rest or any(each.state is JobState.AVAILABLE for each in written.failed):
            self.executor.claimer.marks.forget(self.queue)
        self._report_all(written.completed, written.failed, time.monotonic() - finishing)
        return None

    def _record(self, ran: Sequence[Attempt], rest: Sequence[Job[Any]]) -> BatchOutcome:
        token = self.jobs[0].token
        assert token is not None
        record = BatchOutcome(self.queue, token, self.settings.async_commit, rest=[job.id for job in rest])
        for attempt in ran:
            id = attempt.job.id
            if id in self.errors:
                assert attempt.outcome is not None
                record.failed.append((attempt.job, attempt.outcome, attempt.data))
                continue
            record.done.append(id)
            if isinstance(attempt.reason, JobCancelled):
                record.cancel_requested.append(attempt.job)
            if attempt.has_data:
                record.data.append((id, attempt.data))
        return record

    def _report_all(self, completed: FinishResult, failed: Sequence[FinishResult], took: float) -> None:
        reporter, others = self.reporter, iter(failed)
        if not (self.errors or reporter.reports_completed):
            for attempt in self.ran:
                reporter.count_ended(attempt, COMPLETED, completed.state)
            return
        for attempt in self.ran:
            error = self.errors.get(attempt.job.id)
            if error is None:
                _call_in_context(attempt, reporter.report, attempt, COMPLETED, completed, None, took)
            elif attempt.outcome is not None:
                _call_in_context(attempt, reporter.report, attempt, attempt.outcome, next(others), error, took)

    # --- when the batch cannot be committed

    def _culprit(self, savepoints: Savepoints, problem: Exception) -> Attempt | None:
        """The job that has ended or broken the transaction, if it is known."""
        by_id = {attempt.job.id: attempt for attempt in self.ran}
        ended = isinstance(problem, psycopg.Error) and problem.sqlstate in ("25P01", "3B001")
        culprit = savepoints.culprit if savepoints.broken else savepoints.last if ended else None
        if culprit is not None:
            return by_id[culprit]
        return self.ran[0] if len(self.ran) == 1 else None

    def _fall_back(self, checkout: Checkout, problem: Exception, culprit: Attempt | None, finishing: float) -> None:
        """Write an outcome for each job, once: the thread of the handlers and the thread that reports a severed
        connection may both come here."""
        with self._record_lock:
            if self._recorded:
                return
            if culprit is not None and culprit.job.id not in self.errors:
                self._blame(culprit, problem)
            took = time.monotonic() - finishing
            self._lost = checkout is not self.checkout or not checkout.usable
            self._complete_late(checkout, culprit, took)
            self._record_failed(checkout, took)
            self._recorded = self._undo(checkout, problem, took)
            self.executor.claimer.marks.forget(self.queue)

    def _blame(self, culprit: Attempt, problem: Exception) -> None:
        """Make the error of the batch the failure of this job."""
        error: BaseException
        if isinstance(problem, AttemptLost):
            error = TransactionBroken("the handler changed the row of its own job, or gave up the lock on it")
        elif isinstance(problem, psycopg.Error):
            error = why_not_committed(problem)
        else:
            error = TransactionBroken(self._fault)
        if culprit.reason is not None:
            culprit.reason.__cause__ = error
            error = culprit.reason
        else:
            _call_in_context(culprit, self.executor.hooks, "on_undone", culprit.job, error)
        self.errors[culprit.job.id] = error
        _call_in_context(culprit, self.decider.decide, culprit, error)

    def _complete_late(self, checkout: Checkout, culprit: Attempt | None, took: float) -> None:
        """If a handler has committed the transaction of the batch, complete the jobs before it: their writes are
        committed too."""
        xid, queries = self.found.xid, self.batches.queries
        before = self.ran if culprit is None else self.ran[: self.ran.index(culprit)]
        early = [attempt for attempt in before if attempt.job.id not in self.errors]
        if xid is None or not early:
            return
        record = self._record(early, [])

        def write(transport: Transport, lost: bool) -> dict[int, FinishResult]:
            if not queries.was_committed(transport, record, xid, lost=lost or self._lost):
                return {}
            return queries.complete_late(transport, record)

        finished = self.late.write(checkout, self.jobs[0], write, f"{len(early)} jobs of {self.queue!r}") or {}
        for attempt in early:
            if attempt.job.id in finished:
                _call_in_context(
                    attempt, self.reporter.report, attempt, COMPLETED, finished[attempt.job.id], None, took
                )
        self.ran = [attempt for attempt in self.ran if attempt.job.id not in finished]

    def _record_failed(self, checkout: Checkout, took: float) -> None:
        """Write the outcomes of the jobs that failed by themselves."""
        for attempt in self.ran:
            error = self.errors.get(attempt.job.id)
            if error is None or attempt.outcome is None:
                continue
            with suppress(AttemptLost):  # its connection was severed, and its outcome is written
                finished = self.late.finish(checkout, attempt, attempt.outcome, after_loss=self._lost)
                if finished is not None:
                    _call_in_context(attempt, self.reporter.report, attempt, attempt.outcome, finished, error, took)

    def _undo(self, checkout: Checkout, problem: Exception, took: float) -> bool:
        """Undo the claims of the jobs that were not started, and make the others available again, each to run alone.
        Returns whether that is written."""
        done = [attempt for attempt in self.ran if attempt.job.id not in self.errors]
        record = self._record(done, self.jobs[self.started :])
        why = f"the batch of {self.started} jobs that it ran in could not be committed; it runs again, alone: "
        state = problem.sqlstate if isinstance(problem, psycopg.Error) else None
        error = TransactionBroken(why + one_line(problem) + (f" [{state}]" if state else ""))

        def write(transport: Transport, lost: bool) -> tuple[dict[int, FinishResult], dict[int, FinishResult]]:
            claimed_at = self.jobs[0].attempted_at if lost or self._lost else None
            return self.batches.queries.undo(transport, record, str(error), restore_before=claimed_at)

        written = self.late.write(checkout, self.jobs[0], write, f"{len(done)} jobs of {self.queue!r}")
        if written is None:
            return False
        undone, completed = written
        again = Outcome(JobState.AVAILABLE, delay=timedelta(0), error=str(error))
        for attempt in done:
            id = attempt.job.id
            if id in undone:
                _call_in_context(attempt, self.executor.hooks, "on_undone", attempt.job, error)
                _call_in_context(attempt, self.reporter.report, attempt, again, undone[id], error, took)
            elif id in completed:  # the answer to the COMMIT was lost
                _call_in_context(attempt, self.reporter.report, attempt, COMPLETED, completed[id], None, took)
        return True

    def _on_severed(self, checkout: Checkout) -> None:
        """The connection was shut down under a handler, whose outcome is written. Its thread may never come back, so
        the other jobs of the batch are recorded now."""
        problem = TransactionBroken("the connection was shut down under another job of its batch, which did not end")
        self._fall_back(checkout, problem, None, time.monotonic())
