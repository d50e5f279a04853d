"""What becomes of a call that changes a job by hand: try until it is settled, then give the job or raise."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import psycopg

from pgjobs import codec
from pgjobs.control.queries import Changes, ControlQueries, ControlResult
from pgjobs.db.cursors import AnyConnection
from pgjobs.errors import InvalidOption, JobLocked, JobNotFound, JobRunning, NotDiscarded, UniqueConflict
from pgjobs.job import Job
from pgjobs.options import JobOptions

PATIENCE = 1.0  # seconds for a row that somebody else holds
_PAUSE = 0.02  # between two tries

Act = Callable[[AnyConnection], ControlResult | None]


def carry_out(queries: ControlQueries, conn: AnyConnection, id: int, act: Act, *, running: bool) -> Job[Any]:
    """Do `act` on a job, again and again for a second while its row is held; the job as it is then.

    `running` says whether the act has an answer for a job that runs. Each try is a statement that neither waits nor
    fails, so that the transaction stays usable whatever is raised.
    """
    give_up = time.monotonic() + PATIENCE
    while True:
        found = _try(conn, id, act)
        if found is None:
            raise JobNotFound(id)
        job, verdict = found
        match verdict:
            case "running" if not running:
                raise JobRunning(f"job {id} is running: cancel it, or wait until it has ended")
            case "conflict":
                raise _conflict(id)
            case "unfit":
                raise _unfit(job, retried=running)
            case "busy":
                if time.monotonic() >= give_up or queries.snapshot_is_kept(conn):
                    raise JobLocked(f"job {id} is held by somebody else at the moment: try again")
                time.sleep(_PAUSE)
            case _:
                return job


def _try(conn: AnyConnection, id: int, act: Act) -> ControlResult | None:
    try:
        return act(conn)
    except psycopg.errors.LockNotAvailable as error:
        raise JobLocked(f"job {id} waits for what somebody else holds: {error}") from error
    except psycopg.errors.UniqueViolation as error:  # a duplicate that was inserted in the same moment
        if error.diag.constraint_name != "job_unique":
            raise
        raise _conflict(id) from error


def _unfit(job: Job[Any], *, retried: bool) -> NotDiscarded | InvalidOption:
    if retried:
        return NotDiscarded(f"job {job.id} is {job.state}: only a discarded one gets all its attempts again")
    return InvalidOption(f"max_attempts: job {job.id} has used {job.attempt} attempts already")


def _conflict(id: int) -> UniqueConflict:
    return UniqueConflict(f"job {id} cannot wait to run again: another job has its unique key now")


def changes(
    *,
    metadata: Mapping[str, Any] | None,
    output: object,
    priority: int | None,
    scheduled_at: datetime | None,
    max_attempts: int | None,
    tags: Sequence[str] | None,
) -> Changes | None:
    """Check and encode what an update shall change; None when that is nothing. `...` stands for no output: None is
    one."""
    options = JobOptions(
        metadata=metadata, priority=priority, scheduled_at=scheduled_at, max_attempts=max_attempts, tags=tags
    )
    if output is ... and options == JobOptions():
        return None
    return Changes(
        metadata=None if metadata is None else codec.encode_metadata(metadata),
        output=None if output is ... else codec.encode_output(output),
        priority=priority,
        scheduled_at=scheduled_at,
        max_attempts=max_attempts,
        tags=None if tags is None else list(tags),
    )
