"""The low-level door: one job, locked for a block of the caller's."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pgjobs.db.checkout import Checkout
from pgjobs.errors import Signal, UndecodableArgs
from pgjobs.execution.attempt import Attempt
from pgjobs.execution.claimer import Claimer
from pgjobs.execution.finisher import Finisher
from pgjobs.job import Job, changed


@contextmanager
def locked(
    claimer: Claimer, finisher: Finisher, checkout: Checkout, queue: str, id: int | None
) -> Iterator[tuple[Any, Job[Any] | None]]:
    """The next job of the queue, or the one with this id, claimed and locked for as long as the block, which takes the
    place of the handler; two times None when there is none. What the block raises is recorded and raised, but for the
    signals."""
    job = claimer.claim(checkout, queue, id=id)
    if job is None:
        checkout.return_early()  # nothing holds a transaction open: what is written here could not be undone
        yield None, None
        return
    handler = claimer.handler_of(job.kind)
    attempt = Attempt(job, checkout, None, handler=handler)
    error: BaseException | None = None
    try:
        with checkout.handler_tx() as tx:
            yield tx, changed(job, running=attempt, decode=handler.decode if handler else job.decode)
    except BaseException as raised:
        error = raised
        attempt.args_fit = not isinstance(error, UndecodableArgs)
    try:
        error = attempt.context.run(finisher.finish, checkout, attempt, error)
    finally:
        attempt.end()
    if error is not None and not isinstance(error, Signal):
        raise error


def forget(error: BaseException | None) -> None:
    """Let go of what the frames of a recorded error hold, the connection among it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:  # a chain of causes may be a ring
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
