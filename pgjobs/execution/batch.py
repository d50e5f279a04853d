"""Runs many jobs in one transaction: one claim, the handlers one after the other, one finish."""

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
from psycopg.pq import PipelineStatus

from pgjobs.answers import check_done
from pgjobs.clean_text import one_line
from pgjobs.db.checkout import Checkout
from pgjobs.db.cursors import AnyConnection
from pgjobs.errors import AttemptLost, JobCancelled, TransactionBroken
from pgjobs.execution.attempt import Attempt
from pgjobs.execution.batch_queries import BatchOutcome, BatchQueries, Claimed, milliseconds, must_run_alone
from pgjobs.execution.claimer import Claimer, claims_of
from pgjobs.execution.executor import Executor
from pgjobs.execution.finisher import why_not_committed
from pgjobs.execution.lock_job import forget
from pgjobs.execution.outcome import COMPLETED, NO_DATA, Outcome
from pgjobs.execution.queries import FinishResult
from pgjobs.execution.savepoints import MOST, Savepoints
from pgjobs.execution.set_aside import UnreadableRow, concerns_a_row
from pgjobs.execution.transport import HotPath
from pgjobs.job import Job, JobState, being_current, with_values
from pgjobs.loggers import get_logger
from pgjobs.queue_settings import MOST_IN_A_BATCH, Way
from pgjobs.work_map import Handler, HandlerFunction

log = get_logger("pgjobs.batch")

_ANSWER_WITHIN = 40.0  # seconds; the server gives a claim 30


class Batches:
    """What the threads of one process share to run jobs in batches."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.queries = BatchQueries(executor.claimer.queries)
        # How many jobs to ask for, by queue: the batch size, halved so often, and no more than there is room for. After
        # one that must run alone there may be more of them, and what a claim locks and does not take is in the way of
        # others. Each number has a statement of its own, so there are only few.
        self._halved: dict[str, int] = {}
        self._room: dict[str, int] = {}
        self._plans = _Plans(self.plan)
        self._planned = -1  # for so many changes of the WorkMap

    def run_next(
        self, checkout: Checkout, queue: str, way: Way, *, claimed: Callable[[], None], ends: Callable[[], bool]
    ) -> bool:
        """Claim the next jobs of the queue and run them to their end; says whether there were any.

        `claimed` is called before the first handler: where these jobs were, there may be more. `ends` says whether to
        start no more of them. Raises only what the connection raises before or after.
        """
        halved = self._halved.get(queue, 0)
        room = self._room.get(queue, MOST_IN_A_BATCH)
        while (ask := max(1, min(way.batch_size >> halved, room))) > 1:
            try:
                found = self._claim(checkout, queue, way, ask)
            except (psycopg.Error, UnreadableRow) as error:
                if not concerns_a_row(error):
                    raise
                halved = self._halved[queue] = halved + 1  # down to one, the claim of which finds out for which
                continue
            if found is not None:
                claimed()
                batch = Batch(self, checkout, queue, way, found)
                batch.run(ends)
                if len(found.jobs) + found.missed == ask:  # there are more
                    self._halved[queue] = max(0, halved - 1)
                self._room[queue] = batch.room
                return True
            break
        job = self.executor.run_next(checkout, queue, claimed=claimed)  # it must run alone, if there is any
        alone = job is not None and must_run_alone(job)
        self._halved[queue] = way.batch_size.bit_length() - 1 if alone else max(0, halved - 1)
        return job is not None

    def plans(self) -> _Plans:
        """How to run each kind, as the WorkMap is now."""
        changes = self.executor.claimer.work_map.changes
        if self._planned != changes:
            self._planned, self._plans = changes, _Plans(self.plan)
        return self._plans

    def plan(self, kind: str) -> _Plan | None:
        """How to run this kind; None when the executor must look at each job."""
        executor = self.executor
        handler = executor.claimer.handler_of(kind)
        if handler is None or executor.middleware or handler.middleware or executor.code_version is not None:
            return None
        if handler.timeout == "inherit":
            return _Plan(handler, executor.claimer.timeout)
        return None if callable(handler.timeout) else _Plan(handler, handler.timeout)

    # --- claim

    def _claim(self, checkout: Checkout, queue: str, way: Way, ask: int) -> Claimed | None:
        hooks = self.executor.hooks
        try:
            with checkout.answered_within(_ANSWER_WITHIN):
                found = self._look(checkout, queue, way, ask)
        except Exception as error:
            if not concerns_a_row(error):
                hooks("on_claim", None, error)
            raise
        if hooks and found is not None:
            for job in found.jobs:
                copy_context().run(hooks, "on_claim", job, None)
        return found

    def _look(self, checkout: Checkout, queue: str, way: Way, ask: int) -> Claimed | None:
        """Behind the mark first, as the claim of one does."""
        claimer = self.executor.claimer
        facts = claimer.facts(checkout)
        hot = claimer.hot_path_of(checkout, facts)
        claimer.take_back_orphans(checkout.conn)
        mark = claimer.mark(queue)
        more = {"limit": ask, "batch_time": milliseconds(way.batch_time)}
        try:
            found = self._take(claimer, checkout, hot, {**claimer.request(queue, None, mark, facts).values, **more})
            if found is None and mark is not None:
                claimer.look_at_all(queue)
                found = self._take(claimer, checkout, hot, {**claimer.request(queue, None, None, facts).values, **more})
        except psycopg.OperationalError as error:
            if not concerns_a_row(error):
                claimer.be_cautious()
            raise
        claimer.note(queue, found.jobs[-1] if found else None)
        if found is not None:
            checkout.session = found.session._replace(shared_since=found.jobs[0].attempted_at if facts.pooled else None)
        if found and claimer.aside:
            claimer.aside.worked(claims_of(queue))
        return found

    def _take(self, claimer: Claimer, checkout: Checkout, hot: HotPath | None, values: Any) -> Claimed | None:
        for again in (True, False):
            try:
                return self.queries.claim(checkout.conn, hot, claimer.order, values)
            except (AttemptLost, psycopg.Error) as error:
                deallocated = isinstance(error, psycopg.errors.InvalidSqlStatementName)
                claimer.take_back(checkout, values["queue"], values["token"], error)
                if hot is not None and again and deallocated:  # a handler did, of an earlier job
                    hot.forget()
                    continue
                if isinstance(error, AttemptLost):
                    return None
                raise
            except Exception as error:
                claimer.take_back(checkout, values["queue"], values["token"], error)
                raise UnreadableRow(f"a job of queue {values['queue']!r} cannot be read: {one_line(error)}") from error
        return None


@dataclass(frozen=True, slots=True)
class _Plan:
    """How a kind is run for which the executor would do nothing special."""

    handler: Handler
    timeout: timedelta | None


class _Plans(dict[str, _Plan | None]):
    """By kind; each is made when it is first asked for."""

    def __init__(self, make: Callable[[str], _Plan | None]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, kind: str) -> _Plan | None:
        made = self[kind] = self._make(kind)
        return made


class _Call:
    """The call of one handler after the other, each in a context of its own. It has no reference to the connection: an
    error that is kept keeps its callers."""

    __slots__ = ("checkout", "function", "job")

    function: HandlerFunction
    job: Job[Any]

    def __init__(self, checkout: Checkout) -> None:
        self.checkout = checkout

    def __call__(self) -> None:
        job = self.job
        being_current(job)
        answer = self.function(self.checkout.conn, job)
        if answer is not None:
            check_done(answer, self.function)


def _within(attempt: Attempt, act: Callable[..., object], *given: object) -> None:
    """Do what may call functions of others, in the context of this attempt: its own thread alone enters that."""
    if threading.current_thread() is attempt.thread:
        attempt.context.run(act, *given)
    else:
        act(*given)


def _rounded(room: int) -> int:
    """Down to one of a few numbers."""
    return MOST << (room // MOST).bit_length() - 1 if room >= MOST else 1 << room.bit_length() - 1


@dataclass
class Batch:
    """The jobs of one claim, and what has become of them."""

    batches: Batches
    checkout: Checkout
    queue: str
    way: Way
    found: Claimed
    ran: list[Attempt] = field(default_factory=list)  # whose handlers are over
    errors: dict[int, BaseException] = field(default_factory=dict)  # of those that did not complete, by job
    started: int = 0  # of the jobs, in their order
    room: int = MOST_IN_A_BATCH  # how many jobs like these a transaction has savepoints for
    _watched: Attempt | None = None  # the last one, until the batch is finished
    _clean: bytes | None = None  # the message that makes the session clean
    _clean_until: int = 0  # the hot path forgets what is prepared, for so many times
    _lost: bool = False  # whether the connection was lost, and with it perhaps the server and the claim
    _kept: bool = False  # whether somebody has kept the connection
    _tainted: bool = False
    _over: bool = False  # whether something is on record for each
    _fault: str = ""  # what the job did that has ended the transaction
    _ending: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.executor = self.batches.executor
        self.finisher = self.executor.finisher
        self.jobs = self.found.jobs
        self._plans = self.batches.plans()
        self._call = _Call(self.checkout)
        self._on_start = self.executor.hooks if self.executor.hooks else None

    def run(self, ends: Callable[[], bool]) -> None:
        """Run the jobs and finish them. The connection is then one for the next batch."""
        checkout = self.checkout
        began = time.monotonic()
        # what the application sets up in its sessions cannot be made again within a transaction
        most = 1 if checkout.configures else MOST
        try:
            savepoints = Savepoints(checkout.conn, self.executor.claimer.queries.tag, self._between)
            try:
                self._run_jobs(savepoints, most, ends)
                if savepoints.used:
                    self.room = _rounded(most * self.started // savepoints.used)
                self._kept = self._kept or savepoints.block_left_open
            finally:
                savepoints.detach()
            finishing = time.monotonic()
            problem = self._commit(savepoints, finishing)
            if problem is not None:
                if checkout.usable:
                    with suppress(psycopg.Error):  # then what is written now says so too
                        self.executor.claimer.queries.abandon(checkout.conn, checkout.session)
                self._fall_back(checkout, problem, self._culprit(savepoints, problem), finishing)
                checkout.spoiled = (
                    True  # what outlives a rollback in the session, or was committed with it, is still there
                )
            self._unwatch()
            checkout.spoiled = checkout.spoiled or self._tainted
            if checkout.usable and not checkout.spoiled:
                if savepoints.used:
                    checkout.restore()
                else:
                    checkout.python_state.restore()  # nobody has sent anything
        except BaseException:
            checkout.spoiled = True  # whatever state it is in: not for the next batch
            raise
        finally:
            self._unwatch()
        log.debug("%s: %d jobs in %.3f s", self.queue, len(self.ran), time.monotonic() - began)
        if checkout.spoiled or self._kept:
            checkout.replace()

    # --- the handlers

    def _run_jobs(self, savepoints: Savepoints, most: int, ends: Callable[[], bool]) -> None:
        checkout = self.checkout
        references = checkout.references()
        last_start = time.monotonic() + self.way.batch_time.total_seconds()
        for job in self.jobs:
            if ends():
                return
            before = self._watched
            if before is not None:
                if time.monotonic() >= last_start or savepoints.used >= most:
                    return
                before.end()  # nothing will be done to it any more, or to its connection
                if before.tainted:
                    return
            attempt = self._run_job(job, savepoints, before)
            # a cancel or an exception may still be on its way, or somebody may write into the next job
            self._kept = checkout.references() > references or savepoints.block_left_open
            if savepoints.broken or attempt.tainted or self._kept:
                return

    def _run_job(self, job: Job[Any], savepoints: Savepoints, before: Attempt | None) -> Attempt:
        executor, plan = self.executor, self._plans[job.kind]
        if plan is None:
            attempt = copy_context().run(executor.attempt, self.checkout, job)
        else:
            attempt = (
                Attempt(job, self.checkout, plan.timeout, handler=plan.handler)
                if before is None
                else before.followed_by(job, plan.timeout, plan.handler)
            )
        attempt.on_severed = self._on_severed
        self._watched = attempt
        self.started += 1
        savepoints.start(job.id)
        executor.watchdog.add(attempt, instead_of=before)
        error: BaseException | None = None
        if executor.watchdog.unwanted:
            error = executor.watchdog.unwanted.get((job.id, job.token))  # cancelled since the claim
        if error is None:
            error = attempt.context.run(executor.start, attempt) if plan is None else self._start(attempt, plan.handler)
        if attempt.tainted:
            self.checkout.wait_for_cancels()  # so that none hits what is sent next
        ended = savepoints.end(error)
        if ended is not error and attempt.reason is not None:  # what made it end may be to blame
            attempt.reason.__cause__ = ended
            ended = attempt.reason
        if ended is not None and savepoints.culprit is None:
            attempt.context.run(self.finisher.decide, attempt, ended)
            self.errors[job.id] = ended
            forget(ended)
        self.ran.append(attempt)
        self.checkout.python_state.restore_in_transaction()
        return attempt

    def _start(self, attempt: Attempt, handler: Handler) -> BaseException | None:
        """What the executor does for an attempt at a kind that needs nothing special, at less cost."""
        given = vars(attempt.job)
        decode = given["decode"] = handler.decode
        values = dict(given)
        try:
            values["args"] = decode(given["raw_args"])
        except BaseException as error:  # args that do not fit are this attempt's failure
            attempt.args_fit = False
            return error
        values["running"] = attempt
        call = self._call
        call.function, call.job = handler.function, with_values(values)
        if self._on_start is not None:
            attempt.context.run(self._on_start, "on_start", attempt.job)
        attempt.started = True
        return attempt.run(call)

    def _unwatch(self) -> None:
        """Nothing will be done any more to the attempt that was the last, or to its connection."""
        attempt, self._watched = self._watched, None
        if attempt is not None:
            attempt.end()
            self.executor.watchdog.remove(attempt)
            self._tainted = attempt.tainted

    def _between(self) -> bytes:
        pipelined = self.checkout.conn.pgconn.pipeline_status != PipelineStatus.OFF  # nothing can be prepared in one
        hot: HotPath | None = None if pipelined else self.checkout.hot_path
        forgotten = hot.forgotten if hot is not None else 0
        if self._clean is None or self._clean_until != forgotten:
            self._clean_until = forgotten
            self._clean = self.batches.queries.between_jobs(
                self.checkout.conn, hot, self.found.bounds, self.checkout.session
            )
        return self._clean

    # --- the end

    def _commit(self, savepoints: Savepoints, finishing: float) -> Exception | None:
        """Commit the batch, or say why it cannot be."""
        checkout, queries = self.checkout, self.batches.queries
        if savepoints.broken or (self._watched is not None and self._watched.severed):
            self._fault = savepoints.fault
            return TransactionBroken("another job of its batch has ended or broken their transaction")
        record = self._record(self.ran, self.jobs[self.started :])
        try:
            if checkout.hot_path is not None and not (record.failed or record.kept or record.asked):
                release = savepoints.release if savepoints.used else None
                written, clean = queries.finish_hot(checkout.hot_path, record, release)
            else:
                written, clean = queries.finish(checkout.conn, record, savepoints.release)
        except (psycopg.Error, AttemptLost) as error:
            return error
        self._over = True
        checkout.spoiled = not clean
        if record.rest or any(each.state is JobState.AVAILABLE for each in written.failed):
            self.executor.claimer.look_again(self.queue)
        self._tell_all(written.completed, written.failed, time.monotonic() - finishing)
        return None

    def _record(self, ran: Sequence[Attempt], rest: Sequence[Job[Any]]) -> BatchOutcome:
        token = self.jobs[0].token
        assert token is not None
        record = BatchOutcome(self.queue, token, self.way.async_commit, rest=[job.id for job in rest])
        for attempt in ran:
            id, kept = attempt.job.id, attempt.kept
            if id not in self.errors:
                record.done.append(id)
                if isinstance(attempt.reason, JobCancelled):
                    record.asked.append(attempt.job)
                if kept is not NO_DATA:
                    record.kept.append((id, kept))
            else:
                assert attempt.outcome is not None
                record.failed.append((attempt.job, attempt.outcome, kept))
        return record

    def _tell_all(self, completed: FinishResult, failed: Sequence[FinishResult], took: float) -> None:
        finisher, others = self.finisher, iter(failed)
        if not self.errors and not finisher.hooks and not finisher.events:
            return
        for attempt in self.ran:
            error = self.errors.get(attempt.job.id)
            if error is None:
                _within(attempt, finisher.request_stop, attempt, COMPLETED, completed, None, took)
            elif attempt.outcome is not None:
                _within(attempt, finisher.request_stop, attempt, attempt.outcome, next(others), error, took)

    # --- when nothing of it is committed

    def _culprit(self, savepoints: Savepoints, problem: Exception) -> Attempt | None:
        """The job that the batch could not be committed for, if that can be told."""
        by_id = {attempt.job.id: attempt for attempt in self.ran}
        ended = isinstance(problem, psycopg.Error) and problem.sqlstate in ("25P01", "3B001")
        culprit = savepoints.culprit if savepoints.broken else savepoints.last if ended else None
        if culprit is not None:
            return by_id[culprit]
        return self.ran[0] if len(self.ran) == 1 else None

    def _fall_back(self, checkout: Checkout, problem: Exception, culprit: Attempt | None, finishing: float) -> None:
        """Record what can be told of each job: once, by whoever is first, the thread of the handlers or the one that
        reports that their connection was shut down."""
        with self._ending:
            if self._over:
                return
            if culprit is not None and culprit.job.id not in self.errors:
                self._blame(culprit, problem)
            took = time.monotonic() - finishing
            self._lost = checkout is not self.checkout or not checkout.usable
            self._complete_late(checkout, culprit, took)
            self._record_failed(checkout, took)
            self._over = self._undo(checkout, problem, took)
            self.executor.claimer.look_again(self.queue)

    def _blame(self, culprit: Attempt, problem: Exception) -> None:
        """Make what has become of the batch the failure of this one."""
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
            _within(culprit, self.executor.hooks, "on_undone", culprit.job, error)
        self.errors[culprit.job.id] = error
        _within(culprit, self.finisher.decide, culprit, error)

    def _complete_late(self, checkout: Checkout, culprit: Attempt | None, took: float) -> None:
        """If a handler has committed the transaction that was not its own, the writes of the jobs before it are there,
        so these jobs are done."""
        xid, queries = self.found.xid, self.batches.queries
        before = self.ran if culprit is None else self.ran[: self.ran.index(culprit)]
        early = [attempt for attempt in before if attempt.job.id not in self.errors]
        if xid is None or not early:
            return
        record = self._record(early, [])

        def write(conn: AnyConnection, lost: bool) -> dict[int, FinishResult]:
            if not queries.was_committed(conn, record, xid, lost=lost or self._lost):
                return {}
            return queries.complete_late(conn, record)

        finished = self.finisher.write_late(checkout, write, f"{len(early)} jobs of {self.queue!r}") or {}
        for attempt in early:
            if attempt.job.id in finished:
                _within(attempt, self.finisher.request_stop, attempt, COMPLETED, finished[attempt.job.id], None, took)
        self.ran = [attempt for attempt in self.ran if attempt.job.id not in finished]

    def _record_failed(self, checkout: Checkout, took: float) -> None:
        """What failed by itself did so whatever has become of the others."""
        for attempt in self.ran:
            error = self.errors.get(attempt.job.id)
            if error is None or attempt.outcome is None:
                continue
            with suppress(AttemptLost):  # it was severed, and that is on record
                finished = self.finisher.finish_late(checkout, attempt, attempt.outcome, after_loss=self._lost)
                if finished is not None:
                    _within(attempt, self.finisher.request_stop, attempt, attempt.outcome, finished, error, took)

    def _undo(self, checkout: Checkout, problem: Exception, took: float) -> bool:
        """Give back what was not started; let the others run again, each by itself. Says whether that is on record."""
        done = [attempt for attempt in self.ran if attempt.job.id not in self.errors]
        record = self._record(done, self.jobs[self.started :])
        why = f"the batch of {self.started} jobs that it ran in could not be committed; it runs again, alone: "
        state = problem.sqlstate if isinstance(problem, psycopg.Error) else None
        error = TransactionBroken(why + one_line(problem) + (f" [{state}]" if state else ""))

        def write(conn: AnyConnection, lost: bool) -> tuple[dict[int, FinishResult], dict[int, FinishResult]]:
            claimed_at = self.jobs[0].attempted_at if lost or self._lost else None
            return self.batches.queries.undo(conn, record, str(error), restore_before=claimed_at)

        written = self.finisher.write_late(checkout, write, f"{len(done)} jobs of {self.queue!r}")
        if written is None:
            return False
        undone, completed = written
        again = Outcome(JobState.AVAILABLE, delay=timedelta(0), error=str(error))
        for attempt in done:
            id = attempt.job.id
            if id in undone:
                _within(attempt, self.executor.hooks, "on_undone", attempt.job, error)
                _within(attempt, self.finisher.request_stop, attempt, again, undone[id], error, took)
            elif id in completed:  # the answer to the COMMIT was lost
                _within(attempt, self.finisher.request_stop, attempt, COMPLETED, completed[id], None, took)
        return True

    def _on_severed(self, checkout: Checkout) -> None:
        """The connection was shut down under a handler, whose outcome is on record. The thread of that may never come
        back; the other jobs do not wait for it."""
        problem = TransactionBroken("the connection was shut down under another job of its batch, which did not end")
        self._fall_back(checkout, problem, None, time.monotonic())
