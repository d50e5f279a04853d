"""Writes an outcome in a new transaction, because that of the attempt is gone: a late finish.

It is guarded by the token alone and waits for no lock longer than a second: if the row is locked, a dead connection or
a rescue holds the lock. If the answer to a COMMIT was lost, the job is read again to find out whether it was committed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import psycopg
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from pgjobs.clean_text import one_line
from pgjobs.db.checkout import Checkout
from pgjobs.errors import CannotConnect
from pgjobs.execution.attempt import Attempt
from pgjobs.execution.claimer import Claimer
from pgjobs.execution.outcome import Outcome
from pgjobs.execution.queries import FinishResult
from pgjobs.execution.scripts import FinishRequest
from pgjobs.execution.transport import Transport
from pgjobs.interval import microseconds
from pgjobs.job import Job, JobState
from pgjobs.loggers import get_logger, job_fields

log = get_logger("pgjobs.finish")

_TRIES = 3
_MOST_DEAD = 100  # connections that died with the server: the pool hands out each one once; they do not count as tries
_NO_CONNECTION = (PoolTimeout, PoolClosed, TooManyRequests, CannotConnect)
_LOCK_NOT_AVAILABLE = "55P03"
W = TypeVar("W")


@dataclass(frozen=True, slots=True)
class LateFinish:
    """Late finishes for the threads of one process."""

    claimer: Claimer

    def finish(
        self, checkout: Checkout, attempt: Attempt, outcome: Outcome, *, after_loss: bool = False
    ) -> FinishResult | None:
        """Write the outcome of an attempt; None if that fails, which leaves the job to the rescue. `after_loss`: the
        job's connection was lost and is replaced already."""
        queries, async_commit = self.claimer.queries, self.claimer.commits_async(attempt.job)

        def write(transport: Transport, lost: bool) -> FinishResult:
            after = after_loss or (lost and attempt.checkout is not None)
            how = FinishRequest(checkout.session, async_commit=async_commit)
            return queries.finish_late(transport, attempt.job, outcome, how, attempt.data, after_loss=after)

        transactional = attempt.checkout is not None
        finished = self.write(checkout, attempt.job, write, f"job {attempt.job.id}", transactional=transactional)
        if finished is not None:
            checkout.spoiled = not finished.clean
        return finished

    def write(
        self,
        checkout: Checkout,
        job: Job[Any],
        write: Callable[[Transport, bool], W],
        what: str,
        *,
        transactional: bool = True,
    ) -> W | None:
        """Call `write(transport, lost)` on this connection, or on new ones if it is lost. None if no try succeeds."""
        claimer = self.claimer
        lost, left, dead = False, _TRIES, _MOST_DEAD
        while True:
            try:
                if checkout.usable:
                    claimer.queries.abandon(claimer.transport_of(checkout), checkout.session, job.attempted_at)
                else:
                    lost = True
                    if transactional:
                        claimer.require_sync_commit()
                    checkout.replace()
                return write(claimer.transport_of(checkout), lost)
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

    def find_completed(self, checkout: Checkout, attempt: Attempt) -> FinishResult | None:
        """Find out whether a COMMIT whose answer was lost has completed the job."""
        job, queries = attempt.job, self.claimer.queries
        found = self.write(
            checkout, job, lambda _, lost: queries.get_job(checkout.conn, job.id, job.queue), f"job {job.id}"
        )
        checkout.spoiled = True  # its session was not reset
        return None if found is None or found.token != job.token else completed_result(found)


def completed_result(job: Job[Any]) -> FinishResult | None:
    """The result that the finish would have had, if the job is completed."""
    if job.state is not JobState.COMPLETED or job.finalized_at is None:
        return None
    return FinishResult(job.state, microseconds(job.finalized_at), True)
