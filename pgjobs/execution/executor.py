"""Runs one job: claim, lock, handler, finish. Nothing in here is about threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pgjobs.db.checkout import Checkout
from pgjobs.errors import UnknownKind
from pgjobs.execution.attempt import Attempt, own_context
from pgjobs.execution.claimer import Claimer
from pgjobs.execution.finisher import Finisher
from pgjobs.execution.lock_job import forget
from pgjobs.execution.watchdog import Watchdog
from pgjobs.hooks import HookCalls, Middleware, with_middleware
from pgjobs.job import Job, changed, set_current_job
from pgjobs.return_values import check_handler_return


@dataclass(frozen=True, slots=True, kw_only=True)
class Executor:
    """What the threads of one process share to run jobs."""

    claimer: Claimer
    finisher: Finisher
    watchdog: Watchdog
    hooks: HookCalls
    middleware: Sequence[Middleware] = ()
    code_version: str | None = None

    def run_next(
        self,
        checkout: Checkout,
        queue: str,
        *,
        claimed: Callable[[], None] = lambda: None,
        go_on: Callable[[], bool] = lambda: False,
    ) -> Job[Any] | None:
        """Claim the next job of the queue and run it to its end. The job as it was claimed, or None if there was none.

        `claimed` is called before the handler: where one job was, there may be more. `go_on` says after it whether
        another call follows, which then finds the next job claimed already. Whatever a handler does is an outcome;
        raises only what the connection raises before or after. What the application's functions set in context
        variables meanwhile is gone after it.
        """
        return own_context().run(self._run_next, checkout, queue, claimed, go_on)

    def _run_next(
        self, checkout: Checkout, queue: str, claimed: Callable[[], None], go_on: Callable[[], bool]
    ) -> Job[Any] | None:
        job = self._claim(checkout, queue)
        if job is None:
            return None
        claimed()
        references = checkout.references()
        self._run(checkout, self.attempt(checkout, job), lambda: checkout.references() <= references and go_on())
        if checkout.spoiled or checkout.references() > references:
            self.claimer.leave(checkout)
            checkout.replace()
        return job

    def leave(self, checkout: Checkout) -> None:
        """No call follows: what is claimed already is given back."""
        self.claimer.leave(checkout)

    def _claim(self, checkout: Checkout, queue: str) -> Job[Any] | None:
        try:
            job = self.claimer.claim(checkout, queue)
        except Exception as error:
            self.hooks("on_claim", None, error)
            raise
        if job is not None:
            self.hooks("on_claim", job, None)
        return job

    def attempt(self, checkout: Checkout, job: Job[Any]) -> Attempt:
        handler = self.claimer.handler_of(job.kind)
        timeout = self.claimer.timeout_of(job, handler)
        if handler is not None and handler.detached and job.leased_until is not None:
            attempt = Attempt(job, None, timeout, handler=handler, complete=self.finisher.complete_within)
            attempt.session = checkout.session
        else:
            attempt = Attempt(job, checkout, timeout, handler=handler)
        if self.code_version is not None:
            attempt.set_metadata({"code_version_processed": self.code_version})
        return attempt

    def _run(self, checkout: Checkout, attempt: Attempt, go_on: Callable[[], bool]) -> None:
        self.watchdog.add(attempt)
        try:
            if attempt.checkout is None:
                self.finisher.rollback(checkout)  # the lease holds the job from here on
                checkout.return_early()
            error = self.start(attempt)
            going_on = error is None and not attempt.tainted and not checkout.in_block and go_on()
            self.finisher.finish(checkout, attempt, error, go_on=going_on)
        except BaseException:
            checkout.spoiled = True  # whatever state it is in: not for the next job
            raise
        finally:
            attempt.end()
            self.watchdog.remove(attempt)
            checkout.spoiled = checkout.spoiled or (attempt.tainted and attempt.checkout is not None)
        forget(error)
        if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            raise error  # somebody pressed Ctrl-C at a work_one()

    def start(self, attempt: Attempt) -> BaseException | None:
        """Call the handler; what it raised, or why it could not be called."""
        try:
            run = self._prepare(attempt)
        except BaseException as error:  # args that do not fit are this attempt's failure, and so is the code that reads
            attempt.args_fit = False
            return error
        self.hooks("on_start", attempt.job)
        attempt.started = True
        return attempt.run(run)

    def _prepare(self, attempt: Attempt) -> Callable[[], None]:
        handler = attempt.handler
        if handler is None:
            self.hooks("on_unknown_kind", attempt.job)
            raise UnknownKind(attempt.job.kind)
        if attempt.job.decode is not handler.decode:  # another handler was registered since the claim
            attempt.job = changed(attempt.job, decode=handler.decode)
        job = changed(attempt.job, running=attempt)
        job.decode_args()  # here, before the handler
        checkout = None if handler.detached else attempt.checkout
        middleware = (*self.middleware, *handler.middleware)
        function = handler.function

        def call() -> None:
            set_current_job(job)  # for as long as the context of this call
            if checkout is None:
                with_middleware(middleware, None, job, function)()
                return
            with checkout.handler_tx() as tx:
                if middleware:
                    with_middleware(middleware, tx, job, function)()
                    return
                answer = function(tx, job)
                if answer is not None:
                    check_handler_return(answer, function)

        return call
