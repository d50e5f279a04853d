"""The statements that change jobs by hand; sql/control.sql explains them and their results.

Those for many jobs are never prepared: the planner makes a plan for each filter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pgjobs.db import statements
from pgjobs.db.channel import channel
from pgjobs.db.cursors import AnyConnection, bound_cursor, job_cursor, literal_cursor, one
from pgjobs.db.rows import as_job, only
from pgjobs.job import Job
from pgjobs.job_filter import BIGGEST_ID, JobFilter
from pgjobs.states import JobState

_RESULT = 19  # the column behind those of a job
_WAITING = (JobState.AVAILABLE, JobState.SCHEDULED, JobState.RETRYABLE, JobState.PENDING)
_NOT_RUNNING = tuple(state for state in JobState if state != JobState.RUNNING)

#: The id and the queue of a job: after a restore, jobs of two queues may have the same id.
JobKey = tuple[int, str]

#: A job as a control statement leaves it, and the statement's result for it.
ControlResult = tuple[Job[Any], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeysetBatch:
    """Some of the jobs of a filter, in the order of their keys: at most `size` jobs, with a key behind `after` or in
    `among`, and with an id up to `newest`."""

    newest: int = BIGGEST_ID
    size: int | None = None
    after: JobKey | None = None
    among: Sequence[JobKey] | None = None

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of the SQL part `next_batch`."""
        after, after_queue = self.after or (None, None)
        among = self.among
        return {
            "newest": self.newest,
            "batch": self.size,
            "after": after,
            "after_queue": after_queue,
            "among": None if among is None else [id for id, _ in among],
            "names": None if among is None else [f"{id} {queue}" for id, queue in among],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """The new values of an update, checked and encoded; None leaves a value as it is."""

    metadata: str | None
    output: str | None
    priority: int | None
    scheduled_at: datetime | None
    max_attempts: int | None
    tags: list[str] | None


@dataclass(frozen=True, slots=True)
class Action:
    """A change to jobs: its statement and the parameters of the statement, without those of the filter.

    `running` says what happens to a running job: the action requests its end, leaves the job as it is, or is refused.
    """

    name: str
    statement: bytes
    from_states: Sequence[JobState]  # in which the action changes a job
    running: Literal["request", "leave", "refuse"]
    values: Mapping[str, Any]
    finished: bool = True  # whether a call for many jobs looks at finished jobs


class ControlQueries:
    """The statements of one schema."""

    def __init__(self, schema: str) -> None:
        self._channel = channel(schema)
        self._control = statements.load("control.sql", schema)

    def cancel(self, reason: str) -> Action:
        values = {"reason": reason}
        return Action("cancel", self._control["cancel"], _WAITING, "request", values, finished=False)

    def release(self) -> Action:
        return Action("release", self._control["release"], [JobState.PENDING], "leave", {})

    def retry(self, *, reset: bool) -> Action:
        running: Literal["leave", "refuse"] = "refuse" if reset else "leave"
        return Action("retry", self._control["retry"], _NOT_RUNNING, running, {"reset": reset})

    def delete(self) -> Action:
        return Action("delete", self._control["delete"], _NOT_RUNNING, "refuse", {})

    def update(self, changes: Changes) -> Action:
        values = {f"new_{name}": getattr(changes, name) for name in Changes.__slots__}
        return Action("update", self._control["update"], _NOT_RUNNING, "refuse", values)

    def apply(
        self,
        conn: AnyConnection,
        action: Action,
        filter: JobFilter,
        batch: KeysetBatch,
        *,
        single: bool = False,
        notify: bool = True,
    ) -> list[ControlResult]:
        """Apply an action to a batch of jobs. Returns each job as it is then, with its result.

        `single`: the filter is the id of one job. Raises AmbiguousJob, and changes nothing, when several queues have a
        job with this id.
        """
        conditions = filter.parameters
        values = {
            **conditions,
            **batch.parameters,
            **action.values,
            "over": single or action.finished,
            "from_states": list(action.from_states),
            "single": single,
            "notify": notify,
            "channel": self._channel,
        }
        with job_cursor(conn) as cur:
            # for one job the text is always the same, and to parse and plan it costs more than its execution
            prepare = None if single else False
            cur.execute(statements.without_unused(action.statement, conditions), values, prepare=prepare)
            rows = cur.fetchall()
        if single and filter.ids:
            only(filter.ids[0], rows)
        return [(as_job(row), row[_RESULT]) for row in rows]

    def batch_keys(self, conn: AnyConnection, filter: JobFilter, batch: KeysetBatch) -> list[JobKey]:
        with bound_cursor(conn) as cur:
            cur.execute(
                self._control["batch_keys"], {**filter.parameters, **batch.parameters, "over": True}, prepare=False
            )
            return [(id, queue) for id, queue in cur.fetchall()]

    def newest_id(self, conn: AnyConnection) -> int | None:
        """The greatest id; None when there is no job."""
        with bound_cursor(conn) as cur:
            cur.execute(self._control["newest_id"])
            newest: int | None = one(cur)[0]
            return newest

    def begin(self, conn: AnyConnection, patience: float) -> None:
        """Begin a transaction of our own, which waits at most `patience` seconds for a lock that it cannot skip."""
        with literal_cursor(conn) as cur:
            cur.execute(self._control["begin_control"], {"patience": f"{max(1, int(patience * 1000))}ms"})

    def snapshot_is_kept(self, conn: AnyConnection) -> bool:
        """Whether the open transaction would see nothing new in another try."""
        with bound_cursor(conn) as cur:
            cur.execute(self._control["snapshot_is_kept"])
            return bool(one(cur)[0])
