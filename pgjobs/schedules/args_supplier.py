"""Calls the functions of schedules whose args are computed for each tick."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from pgjobs.options import EncodedJob, NewJob
from pgjobs.schedule import Schedule

Encode = Callable[[NewJob[Any]], EncodedJob]
#: The checked job of one tick, or None to skip the tick; or what the function raised.
SuppliedJob = Future[EncodedJob | None]


class ArgsSupplier:
    """Calls each function in a thread of its own, so that a slow or hanging function delays nothing else.

    `on_supplied` is called in that thread when the job of a tick, or an error in its place, has come.
    """

    def __init__(self, encode: Encode, on_supplied: Callable[[], None], *, name: str) -> None:
        self._encode = encode
        self._on_supplied = on_supplied
        self._name = name

    def __call__(self, schedule: Schedule) -> SuppliedJob:
        """Start the function of the schedule. Does not wait for it."""
        future = SuppliedJob()
        future.add_done_callback(lambda _: self._on_supplied())
        threading.Thread(
            target=compute_job,
            args=(schedule, self._encode, future),
            name=f"{self._name}/schedule-{schedule.name}",
            daemon=True,
        ).start()
        return future


def compute_job(schedule: Schedule, encode: Encode, future: SuppliedJob) -> SuppliedJob:
    """Call the function of the schedule in this thread; returns the future with its result."""
    try:
        job = schedule.job()
        encoded = None if job is None else encode(job)
    except BaseException as error:  # a sys.exit() of the application must not end our thread
        future.set_exception(error)
    else:
        future.set_result(encoded)
    return future
