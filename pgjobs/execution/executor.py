"""Runs one job in the calling thread: claim, lock, handler, finish. The flow is drawn in `__init__.py`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from pgjobs.db.checkout import Checkout
from pgjobs.errors import UnknownKind
from pgjobs.execution.attempt import Attempt, Slot, private_context
from pgjobs.execution.claimer import Claimer
from pgjobs.execution.finisher import Finisher
from pgjobs.execution.lock_job import clear_frames
from pgjobs.execution.plans import Plan, Plans
from pgjobs.execution.scripts import NextClaim
from pgjobs.execution.watchdog import Watchdog
from pgjobs.hooks import HookCalls, Middleware, with_middleware
from pgjobs.job import Job

_SOON = 1.0  # seconds after the claim; a rescue takes no job that was claimed less than some seconds ago


class Executor:
    """Runs jobs for the threads of one process."""

    def __init__(
        self,
        *,
        claimer: Claimer,
        finisher: Finisher,
        watchdog: Watchdog,
        hooks: HookCalls,
        middleware: Sequence[Middleware] = (),
        code_version: str | None = None,
    ) -> None:
        self.claimer = claimer
        self.finisher = finisher
        self.watchdog = watchdog
        self.hooks = hooks
        self.job_log = finisher.reporter.job_log
        self.code_version = code_version
        self._plans = Plans(claimer, middleware)

    def claim(self, checkout: Checkout, queue: str) -> Job[Any] | None:
        """Claim the next job of the queue. It is locked in the transaction that is open then."""
        try:
            return self.claimer.claim(checkout, queue)
        except Exception as error:
            self.hooks("on_claim", None, error)
            raise

    def run(self, slot: Slot, job: Job[Any], goes_on: Callable[[], bool] | None = None) -> Job[Any] | None:
        """Run the handler of a claimed job, and write the outcome. If `goes_on` returns True after the handler, the
        next job of the queue is claimed in the same message, and returned: the caller must run it, or undo its claim.

        Whatever the handler does is an outcome: only errors of the connection, before or after it, are raised. Context
        variables that the application's functions set are not seen by the next job.
        """
        attempt = self.attempt(slot, job)
        return attempt.context.run(self._run, slot, attempt, goes_on)

    def unclaim_next(self, slot: Slot) -> None:
        """Undo the claim of the job that was claimed together with the last finish, if there is one: it is not run."""
        job, slot.next_job = slot.next_job, None
        if job is not None:
            self.claimer.unclaim(slot.checkout, job)

    def attempt(self, slot: Slot, job: Job[Any]) -> Attempt:
        """Make the attempt at a job, with a context of its own."""
        plan, context = self._plans.of(job.kind), private_context()
        if plan is None:
            attempt = Attempt(job, slot, context, self.claimer.timeout, None)
        else:
            vars(job)["decode"] = plan.decode  # the job is frozen, but has not been handed out yet
            timeout = plan.timeout
            if plan.asks_timeout:
                timeout = context.run(self.claimer.timeout_of, job, plan.handler)
            attempt = Attempt(job, slot, context, timeout, plan)
            if plan.handler.detached and job.leased_until is not None:
                attempt.detach(self.finisher.complete_within, slot.checkout.session)
        if self.code_version is not None:
            attempt.set_metadata({"code_version_processed": self.code_version})
        return attempt

    def _run(self, slot: Slot, attempt: Attempt, goes_on: Callable[[], bool] | None) -> Job[Any] | None:
        checkout = slot.checkout
        if self.hooks.any:
            self.hooks("on_claim", attempt.job, None)
        self.watchdog.add(slot, attempt)
        try:
            error, next_job = self._start_and_finish(checkout, attempt, goes_on)
        except BaseException:
            checkout.spoiled = True  # its state is unknown: not for the next job
            raise
        finally:
            attempt.end()
            slot.attempt = None
            if attempt.tainted and attempt.checkout is not None:
                checkout.spoiled = True
        if checkout.spoiled:
            if next_job is not None:
                self.claimer.unclaim(checkout, next_job)
            checkout.replace()
            next_job = None
        if error is not None:
            attempt.error = error
            clear_frames(error)
            if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                raise error  # Ctrl-C in the thread that called work_one()
        return next_job

    def _start_and_finish(
        self, checkout: Checkout, attempt: Attempt, goes_on: Callable[[], bool] | None
    ) -> tuple[BaseException | None, Job[Any] | None]:
        """Call the handler and write the outcome. Returns the error of the attempt, and the next job."""
        if attempt.checkout is None:
            self.claimer.queries.roll_back(checkout.transport)  # from here on the lease keeps the job
            checkout.return_early()
            return self.finisher.finish(checkout, attempt, self.start(attempt))
        error = self.start(attempt)
        checkout.end_tx(attempt.job.id)
        then = None if error is not None or goes_on is None else self._then(checkout, attempt, goes_on)
        return self.finisher.finish(checkout, attempt, error, then=then)

    def _then(self, checkout: Checkout, attempt: Attempt, goes_on: Callable[[], bool]) -> NextClaim | None:
        """The claim to be sent with the completion, if there may be one."""
        if checkout.wraps_tx or (checkout.used and checkout.configures):
            return None  # what the framework or the owner does after a job must not reach the next transaction
        if checkout.session is None or checkout.session.shared or attempt.tainted or not goes_on():
            return None
        # a rescue finds no job that was claimed a moment ago: so the finish may be repeated after a failed claim
        together = not (checkout.used or attempt.has_data or attempt.reason) and attempt.run_seconds < _SOON
        return self.claimer.next_claim(checkout, attempt.job.queue, together=together)

    def start(self, attempt: Attempt) -> BaseException | None:
        """Call the handler; this is called in the context of the attempt. Returns the exception of the handler, or the
        error for which it could not be called."""
        plan, checkout, job = attempt.plan, attempt.checkout, attempt.job
        try:
            if plan is None:
                self.hooks("on_unknown_kind", job)
                raise UnknownKind(job.kind)
            args = plan.decode(job.raw_args)  # before the handler, which may rely on them
        except BaseException as error:  # args that do not fit, or an error in the code that decodes them
            attempt.args_fit = False
            return error
        if self.hooks.any:
            self.hooks("on_start", job)
        if self.job_log.any:
            self.job_log.started(job)
        own = vars(job)  # the job is frozen, but the handler has not seen it yet
        own["running"], own["args"] = attempt, args
        attempt.started = True
        if checkout is None or checkout.wraps_tx or plan.middleware or plan.handler.detached:
            return attempt.run(partial(_call_wrapped, plan, checkout), None, job)
        return attempt.run(plan.function, checkout.start_tx(), job)


def _call_wrapped(plan: Plan, checkout: Checkout | None, _: None, job: Job[Any]) -> None:
    """Call the handler inside its middleware, with the `tx` of a framework."""
    if checkout is None or plan.handler.detached:
        with_middleware(plan.middleware, None, job, plan.function)()
        return
    with checkout.handler_tx() as tx:
        with_middleware(plan.middleware, tx, job, plan.function)()
