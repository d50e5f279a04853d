"""Runs single jobs for tests as a worker thread does: claim, hooks, middleware, handler, timeout, outcome."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from pgjobs.backoff import Backoff
from pgjobs.client import Client
from pgjobs.db.checkout import Checkout
from pgjobs.execution.attempt import Attempt, Slot
from pgjobs.execution.claimer import Claimer
from pgjobs.execution.decider import Decider
from pgjobs.execution.executor import Executor
from pgjobs.execution.finisher import Finisher
from pgjobs.execution.report import Reporter
from pgjobs.execution.watchdog import Watchdog
from pgjobs.hooks import ErrorHandler, Middleware
from pgjobs.job import Job
from pgjobs.work_map import WorkMap


class Runner(Executor):
    """An executor that knows its last attempt."""

    last: Attempt

    def attempt(self, slot: Slot, job: Job[Any]) -> Attempt:
        self.last = super().attempt(slot, job)
        return self.last

    def run_job(self, checkout: Checkout, queue: str, id: int) -> Attempt | None:
        """Run the waiting job with this id, also before its time. Returns its attempt, which has ended; None if it
        cannot be claimed."""
        with self.watchdog.running(), self.watchdog.guard(checkout) as slot:
            job = self.claimer.claim_by_id(checkout, queue, id)
            if job is None:
                return None
            self.run(slot, job)
            return self.last


def runner(
    client: Client,
    work_map: WorkMap,
    *,
    middleware: Sequence[Middleware],
    error_handler: ErrorHandler | None,
    backoff: Backoff | None,
    timeout: timedelta | None,
) -> Runner:
    """A runner with these settings of a worker pool."""
    claimer = Claimer(client.queries, work_map, worker=client.id, timeout=timeout)
    return Runner(
        claimer=claimer,
        finisher=Finisher(
            claimer=claimer,
            decider=Decider(
                backoff=backoff or client.backoff, error_handler=error_handler, error_details=client.error_details
            ),
            reporter=Reporter(hooks=client.hooks, events=client.events),
        ),
        # It cancels the statement of a handler and interrupts its thread. It cannot cut the connection of a test.
        watchdog=Watchdog(on_severed=_nothing, on_stuck=_nothing, on_silent=lambda: None, name="pgjobs/testing"),
        hooks=client.hooks,
        middleware=middleware,
        code_version=client.code_version,
    )


def _nothing(attempt: Attempt) -> None:
    """The thread of the test writes the outcome, when it comes back from the handler."""
