"""What is told of jobs, queues, schedules and worker processes, as values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from pgjobs.job import Job, JobState


@dataclass(frozen=True, slots=True)
class ScheduleRow:
    """A schedule as the table has it."""

    name: str
    kind: str | None  # None where code supplies it at each tick
    spec: str | None  # None for an object of the application's
    zone: str
    raw_args: str | None = field(repr=False)  # the JSON text; None where code supplies them
    raw_options: str | None = field(repr=False)
    catch_up: str
    window: timedelta | None
    paused_at: datetime | None
    next_tick_at: datetime | None  # None until somebody computes it; the last day of the year 9999 for never
    last_tick_at: datetime | None
    run_now_at: datetime | None  # when a run by hand was asked for that has not begun
    error: str | None  # what went wrong at the last tick
    in_code: bool  # ticks only in processes that registered it
    version: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue: one that a worker has worked within the last day, that is paused, or in which jobs wait or run.

    `updated_at` is when a worker last said that it works it, or somebody paused or resumed it; None for never.
    `keep_*` is how long its jobs are kept when they are over: None as the worker pools say, `timedelta.max` for ever.
    """

    name: str
    paused_at: datetime | None
    updated_at: datetime | None
    keep_completed: timedelta | None = None
    keep_cancelled: timedelta | None = None
    keep_discarded: timedelta | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerProcess:
    """One process that works jobs, as the registry has it; its `id` is what stands in a job's `attempted_by`."""

    id: str
    host: str
    pid: int
    queues: Mapping[str, int]  # threads by queue
    threads: int
    kinds: tuple[str, ...]  # that it has handlers for
    version: str  # of pgjobs
    code_version: str | None  # of the application, if its Client says so
    started_at: datetime
    seen_at: datetime


@dataclass(frozen=True, slots=True)
class ManyJobs:
    """What became of the jobs that fit: those it was done to, sorted by id, and by its id why one was left as it is.

    - "running": a worker has it
    - "locked": somebody else held its row for as long as the call waits
    - "conflict": another job has its unique key
    - "unfit": it is not discarded, or has used up as many attempts as it was to have
    - "referenced": a row of the application's refers to it and forbids that it goes
    - "refused": a trigger, CHECK or policy of the application forbids it, or what the row holds
    """

    done: tuple[Job[Any], ...]
    skipped: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class JobPage:
    """A part of a list; `next` is the cursor to what comes behind it, None when that is nothing."""

    jobs: tuple[Job[Any], ...]
    next: str | None


@dataclass(frozen=True, slots=True)
class JobCounts:
    """How many jobs there are, by queue and state; what there is none of is left out, and counts as 0."""

    jobs: Mapping[tuple[str, JobState], int]

    @property
    def total(self) -> int:
        return sum(self.jobs.values())

    def __post_init__(self) -> None:
        object.__setattr__(self, "jobs", Counter(dict(self.jobs)))

    @property
    def by_state(self) -> Counter[JobState]:
        """Of each state, also of those that no job is in."""
        counts = Counter(dict.fromkeys(JobState, 0))
        for (_, state), jobs in self.jobs.items():
            counts[state] += jobs
        return counts

    @property
    def by_queue(self) -> Counter[str]:
        """Of each queue that has any; 0 for every other name."""
        counts: Counter[str] = Counter()
        for (queue, _), jobs in self.jobs.items():
            counts[queue] += jobs
        return counts


@dataclass(frozen=True, slots=True)
class QueueStats:
    """How a queue does. `waiting` jobs could run now, the oldest for as long as `oldest_waiting`; done and failed are
    those that were completed and discarded in the last minute; `workers` are the processes that work it."""

    name: str
    paused_at: datetime | None
    waiting: int
    running: int
    oldest_waiting: timedelta | None
    done_per_minute: int
    failed_per_minute: int
    workers: int
