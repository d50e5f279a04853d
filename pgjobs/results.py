"""Jobs in numbers and lists, queues, schedules and worker processes, as values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from pgjobs.job import Job, JobState

#: The states for which a queue may set how long their jobs are kept, in the order of the columns.
KEPT = (JobState.COMPLETED, JobState.CANCELLED, JobState.DISCARDED)
#: The interval that means "for ever" in the table, since infinite intervals are new in Postgres 17.
FOR_EVER = timedelta(days=1_000_000)


@dataclass(frozen=True, slots=True)
class ScheduleRow:
    """A row of the table `schedule`."""

    name: str
    kind: str | None  # None where code supplies it at each tick
    spec: str | None  # None for a timetable object of the application
    zone: str
    raw_args: str | None = field(repr=False)  # the JSON text; None where code supplies them
    raw_options: str | None = field(repr=False)
    catch_up: str
    window: timedelta | None
    paused_at: datetime | None
    next_tick_at: datetime | None  # None until a process computes it; the last day of the year 9999 for never
    last_tick_at: datetime | None
    run_now_at: datetime | None  # when a run by hand was requested that has not begun
    error: str | None  # of the last tick
    in_code: bool  # ticks only in processes that registered it
    version: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue that a worker has worked within the last day, that is paused, or in which jobs wait or run.

    `updated_at` is when a worker last noted that it works the queue, or when the queue was paused or resumed; None for
    never. `keep_*` is how long its finished jobs are kept: None as the worker pools say, `timedelta.max` for ever.
    """

    name: str
    paused_at: datetime | None
    updated_at: datetime | None
    keep_completed: timedelta | None = None
    keep_cancelled: timedelta | None = None
    keep_discarded: timedelta | None = None


def queue_of(row: Sequence[Any]) -> Queue:
    """A Queue from the columns that every statement about queues gives in this order."""
    return Queue(row[0], as_utc(row[1]), as_utc(row[2]), *map(kept_for, row[3:6]))


def kept_for(seconds: float | None) -> timedelta | None:
    """How long jobs are kept, from the seconds in a row, which may be made by hand."""
    if seconds is None:
        return None
    return timedelta.max if seconds >= FOR_EVER.total_seconds() else timedelta(seconds=max(seconds, 0.0))


def as_utc(instant: datetime | None) -> datetime | None:
    return None if instant is None else instant.astimezone(UTC)


@dataclass(frozen=True, slots=True)
class StuckThread:
    """A worker thread that is stuck in its handler: the attempt was ended, but the handler goes on. `stack` is where it
    is, without values."""

    thread: str
    job_id: int
    kind: str
    since: datetime
    stack: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerProcess:
    """A process that works jobs, as the table `worker` has it; a job's `attempted_by` holds its `id`."""

    id: str
    host: str
    pid: int
    queues: Mapping[str, int]  # threads by queue
    threads: int
    kinds: tuple[str, ...]  # of its handlers
    version: str  # of pgjobs
    code_version: str | None  # of the application, if its Client says so
    started_at: datetime
    seen_at: datetime
    stuck: tuple[StuckThread, ...] = ()  # ten at most


@dataclass(frozen=True, slots=True)
class ManyJobs:
    """The jobs that were changed, sorted by id; and for each job that was skipped, by its id, the reason.

    - "running": a worker runs the job
    - "locked": another transaction held its row for as long as the call waits
    - "conflict": another job has its unique key
    - "unfit": it is not discarded, or has used as many attempts as `max_attempts` would allow
    - "referenced": a row of the application refers to the job, so it cannot be deleted
    - "refused": a trigger, CHECK or policy of the application, or a value of the row, forbids the change

    After a dry run: the jobs as the call would leave them, and the reasons for which it would skip the others.
    """

    done: tuple[Job[Any], ...]
    skipped: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class JobPage:
    """A page of a list of jobs; `next` is the cursor to the next page, None on the last one."""

    jobs: tuple[Job[Any], ...]
    next: str | None


@dataclass(frozen=True, slots=True)
class JobCounts:
    """How many jobs there are, by queue and state. Pairs without a job are left out, and count as 0."""

    jobs: Mapping[tuple[str, JobState], int]

    @property
    def total(self) -> int:
        return sum(self.jobs.values())

    def __post_init__(self) -> None:
        object.__setattr__(self, "jobs", Counter(dict(self.jobs)))

    @property
    def by_state(self) -> Counter[JobState]:
        """The number of jobs in each state, states without a job included."""
        counts = Counter(dict.fromkeys(JobState, 0))
        for (_, state), jobs in self.jobs.items():
            counts[state] += jobs
        return counts

    @property
    def by_queue(self) -> Counter[str]:
        """The number of jobs in each queue that has jobs; 0 for every other name."""
        counts: Counter[str] = Counter()
        for (queue, _), jobs in self.jobs.items():
            counts[queue] += jobs
        return counts


@dataclass(frozen=True, slots=True)
class QueueStats:
    """The numbers of a queue. `waiting` jobs could run now; the oldest has waited for `oldest_waiting`. Done and failed
    jobs were completed and discarded in the last minute. `workers` is the number of processes that work the queue."""

    name: str
    paused_at: datetime | None
    waiting: int
    running: int
    oldest_waiting: timedelta | None
    done_per_minute: int
    failed_per_minute: int
    workers: int
