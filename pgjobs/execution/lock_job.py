"""Runs one job inside a block of the caller's: `client.lock_job()`."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pgjobs.db.checkout import Checkout
from pgjobs.errors import Signal, UndecodableArgs
from pgjobs.execution.attempt import Attempt, Slot, private_context
from pgjobs.execution.claimer import Claimer
from pgjobs.execution.finisher import Finisher
from pgjobs.execution.plans import Plans
from pgjobs.forking import connection_of_parent
from pgjobs.job import Job, changed


@contextmanager
def lock_job(
    claimer: Claimer, finisher: Finisher, checkout: Checkout, queue: str, id: int | None
) -> Iterator[tuple[Any, Job[Any] | None]]:
    """Claim and lock the next job of the queue, or the job with this id; the block takes the place of its handler.

    Yields `tx` and the job; None and None if there is no job. An exception of the block is recorded as the outcome and
    raised again, unless it is a signal such as Snooze.
    """
    job = claimer.claim(checkout, queue) if id is None else claimer.claim_by_id(checkout, queue, id)
    if job is None:
        checkout.return_early()  # without a transaction, the writes of the block could not be undone
        yield None, None
        return
    plan = Plans(claimer, ()).of(job.kind)
    slot = Slot(checkout)
    attempt = Attempt(job, slot, private_context(), None, plan)
    error: BaseException | None = None
    try:
        with checkout.handler_tx() as tx:
            yield tx, changed(job, running=attempt, decode=plan.decode if plan else job.decode)
    except BaseException as raised:
        error = raised
        attempt.args_fit = not isinstance(error, UndecodableArgs)
    if os.getpid() != slot.process:  # the block has forked, and this is the child
        raise connection_of_parent() from error
    checkout.end_tx(job.id)
    try:
        error, _ = attempt.context.run(finisher.finish, checkout, attempt, error)
    finally:
        attempt.end()
    if error is not None and not isinstance(error, Signal):
        raise error


def clear_frames(error: BaseException | None) -> None:
    """Release the local variables in the frames of a recorded error and its causes, which may be large."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:  # a chain of causes may be a ring
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
