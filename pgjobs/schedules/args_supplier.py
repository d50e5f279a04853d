"""Asks the application for the args of a tick, in a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from pgjobs.clean_text import error_text, forget_details, one_line
from pgjobs.loggers import get_logger
from pgjobs.options import EncodedJob, NewJob
from pgjobs.schedule import Schedule
from pgjobs.schedules.queries import DueSchedule, Move

log = get_logger("pgjobs.cron")


@dataclass(frozen=True, slots=True)
class Answer:
    """What code supplied for one tick: a checked job, None to skip it, or why there is none."""

    row: EncodedJob | None = None
    error: BaseException | None = None


#: Asks a schedule for the job of one tick; None while there is no answer yet.
Ask = Callable[[Schedule, datetime], Answer | None]


def with_answer(seen: DueSchedule, move: Move, answer: Answer) -> Move:
    if answer.row is not None:
        return replace(move, row=answer.row)
    if answer.error is None:
        return replace(move, tick=None)
    forget_details(answer.error)
    log.warning("schedule %s: its tick of %s is skipped: %s", seen.name, move.tick, one_line(answer.error))
    return replace(move, tick=None, error=f"tick of {move.tick}: {error_text(answer.error)}")


def answer(schedule: Schedule, encode: Callable[[NewJob[Any]], EncodedJob]) -> Answer:
    """Ask here and now, whatever the application's code does."""
    try:
        job = schedule.job()
        return Answer() if job is None else Answer(encode(job))
    except BaseException as error:  # a sys.exit() too: it must not end a thread of ours
        return Answer(error=error)


class Asking:
    """Asks schedules for their args, each in a thread of its own that ends with the answer."""

    def __init__(
        self, encode: Callable[[NewJob[Any]], EncodedJob], answered: Callable[[str], None], *, name: str
    ) -> None:
        self._encode = encode
        self._answered = answered
        self._name = name
        self._lock = threading.Lock()
        self._calls: dict[str, _Call] = {}

    def __call__(self, schedule: Schedule, tick: datetime) -> Answer | None:
        with self._lock:
            call = self._calls.get(schedule.name)
            if call is not None and call.answer is None:
                log.warning("schedule %s: the function of its args has not answered for %.0f s", schedule.name,
                            time.monotonic() - call.began)  # fmt: skip
                return None
            if call is not None:
                del self._calls[schedule.name]
                if (call.schedule, call.tick) == (schedule, tick):
                    return call.answer
            call = self._calls[schedule.name] = _Call(schedule, tick, time.monotonic())
        threading.Thread(
            target=self._run, args=(call,), name=f"{self._name}/schedule-{schedule.name}", daemon=True
        ).start()
        return None

    def _run(self, call: _Call) -> None:
        call.answer = answer(call.schedule, self._encode)
        self._answered(call.schedule.name)


@dataclass(slots=True)
class _Call:
    schedule: Schedule
    tick: datetime
    began: float
    answer: Answer | None = None
