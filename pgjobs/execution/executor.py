"""Runs one job in the calling thread: claim, lock, handler, finish."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pgjobs.db.checkout import Checkout
from pgjobs.errors import UnknownKind
from pgjobs.execution.attempt import Attempt, private_context
from pgjobs.execution.claimer import Claimer
from pgjobs.execution.finisher import Finisher
from pgjobs.execution.lock_job import clear_frames
from pgjobs.execution.watchdog import Watchdog
from pgjobs.hooks import HookCalls, Middleware, with_middleware
from pgjobs.job import Job, changed, set_current_job
from pgjobs.return_values import check_handler_return


@dataclass(frozen=True, slots=True, kw_only=True)
class Executor:
    """Runs jobs for the threads of one process."""

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
        """Claim the next job of the queue, run its handler and write the outcome. Returns the job as it was claimed, or
        None.

        `claimed` is called before the handler: there may be more jobs, for other threads. `go_on` is called after the
        handler; if it returns True, another call must follow, for which the next job may be claimed already. Whatever
        the handler does is an outcome: only errors of the connection, before or after it, are raised. Context variables
        that the application's functions set are not seen by the next job.
        """
        return private_context().run(self._run_next, checkout, queue, claimed, go_on)

    def _run_next(
        self, checkout: Checkout, queue: str, claimed: Callable[[], None], go_on: Callable[[], bool]
    ) -> Job[Any] | None:
        job = self._claim(checkout, queue)
        if job is None:
            return None
        claimed()
        self._run(checkout, self.attempt(checkout, job), go_on)
        if checkout.spoiled:
            self.claimer.unclaim_next(checkout)
            checkout.replace()
        return job

    def unclaim_next(self, checkout: Checkout) -> None:
        """No call of `run_next` follows: undo the claim of the next job, if there is one."""
        self.claimer.unclaim_next(checkout)

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
                self.finisher.rollback(checkout)  # from here on the lease keeps the job
                checkout.return_early()
            error = self.start(attempt)
            checkout.end_tx(attempt.job.id)
            going_on = error is None and not attempt.tainted and go_on()
            self.finisher.finish(checkout, attempt, error, go_on=going_on)
        except BaseException:
            checkout.spoiled = True  # its state is unknown: not for the next job
            raise
        finally:
            attempt.end()
            self.watchdog.remove(attempt)
            checkout.spoiled = checkout.spoiled or (attempt.tainted and attempt.checkout is not None)
        clear_frames(error)
        if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            raise error  # Ctrl-C in the thread that called work_one()

    def start(self, attempt: Attempt) -> BaseException | None:
        """Call the handler. Returns its exception, or the error for which it could not be called."""
        try:
            run = self._prepare(attempt)
        except BaseException as error:  # args that do not fit, or an error in the code that decodes them
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
        job.decode_args()  # before the handler, which may rely on them
        checkout = None if handler.detached else attempt.checkout
        middleware = (*self.middleware, *handler.middleware)
        function = handler.function

        def call() -> None:
            set_current_job(job)  # in the context of this call
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
