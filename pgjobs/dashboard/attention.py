"""What needs attention, in words: what is wrong, and where to look."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from pgjobs.dashboard.numbers import QueueNumbers
from pgjobs.dashboard.render import span, visible
from pgjobs.observe.stats import Figures
from pgjobs.results import ScheduleRow, WorkerProcess

_LONG_WAIT = timedelta(minutes=5)  # for a job that could run
_LATE_TICK = timedelta(minutes=2)
_FEW_ATTEMPTS = 20  # of fewer, no share is computed
_MANY_FAILED = 0.1  # of the attempts of an hour


@dataclass(frozen=True, slots=True)
class Note:
    """Something that needs attention: a text, and the page with more, by its name and the values of its address."""

    text: str
    page: str
    values: Mapping[str, Any] = field(default_factory=dict)
    critical: bool = False


def notes(
    queues: Sequence[QueueNumbers],
    hour: Sequence[Figures],
    workers: Sequence[WorkerProcess],
    schedules: Sequence[ScheduleRow],
    now: datetime,
    *,
    with_errors: bool = True,
) -> list[Note]:
    """`hour` are the figures of the last hour, by queue. `with_errors`: quote errors, which may quote args."""
    found = [*_of_queues(queues, now), *_of_attempts(hour), *_of_workers(workers)]
    found += _of_schedules(schedules, now, with_errors=with_errors)
    return sorted(found, key=lambda note: not note.critical)


def _of_queues(queues: Sequence[QueueNumbers], now: datetime) -> Iterator[Note]:
    for queue in queues:
        about, name = {"name": queue.name}, visible(queue.name)
        oldest = queue.oldest(now)
        if queue.paused_at is not None:
            text = f"Queue {name} has been paused for {span(now - queue.paused_at)}"
            yield Note(f"{text}; waiting in it: {queue.waiting.jobs}." if queue.waiting else f"{text}.", "queue", about)
        elif queue.waiting and queue.workers == 0:
            text = f"No worker works queue {name}, which has {queue.waiting.jobs} waiting."
            yield Note(text, "queue", about, critical=True)
        elif oldest is not None and oldest > _LONG_WAIT:
            yield Note(f"The oldest job in queue {name} has waited for {span(oldest)}.", "queue", about)


def _of_attempts(hour: Sequence[Figures]) -> Iterator[Note]:
    discarded = sum(each.discarded for each in hour)
    if discarded:
        were = "1 job was" if discarded == 1 else f"{discarded:,} jobs were"
        yield Note(f"{were} discarded in the last hour, and will not run again.", "failures")
    for each in hour:
        attempts = each.completed + each.failed
        if attempts >= _FEW_ATTEMPTS and each.failed > _MANY_FAILED * attempts:
            share = f"{each.failed / attempts:.0%} of the attempts in queue {each.queue} failed in the last hour."
            yield Note(share, "failures", {"queue": each.queue})


def _of_workers(workers: Sequence[WorkerProcess]) -> Iterator[Note]:
    for worker in workers:
        if worker.stuck:
            stuck = len(worker.stuck)
            threads = "1 thread is" if stuck == 1 else f"{stuck} threads are"
            text = f"{threads} stuck in a handler, in worker {visible(worker.id)}."
            yield Note(text, "workers", critical=True)


def _of_schedules(schedules: Sequence[ScheduleRow], now: datetime, *, with_errors: bool) -> Iterator[Note]:
    for row in schedules:
        about = {"name": row.name}
        if row.error is not None:
            why = f": {row.error}" if with_errors else "."
            yield Note(f"Schedule {visible(row.name)} cannot tick{why}", "schedule", about, critical=True)
        elif row.paused_at is None and row.next_tick_at is not None and now - row.next_tick_at > _LATE_TICK:
            late = f"Schedule {visible(row.name)} is late by {span(now - row.next_tick_at)}: no worker ticks it."
            yield Note(late, "schedule", about, critical=True)
