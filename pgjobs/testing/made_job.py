"""A running job without a worker, for a handler that a test calls by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, TypeVar, cast

from pgjobs import codec
from pgjobs.job import Job, JobState, changed
from pgjobs.progress import Report

Args = TypeVar("Args", covariant=True)  # noqa: PLC0105  as in Job


@dataclass
class Recorded:
    """What a handler has done with the job that it was given."""

    job: Job[Any] = field(repr=False)
    cancelled: bool = False
    deadline: datetime | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)  # from `set_metadata`
    output: Any = None  # from `record_output`
    progress: Report | None = None  # from the last `set_progress`: done, total, note
    completed_on: Any = None  # the `tx` of `job.complete(tx)`

    def set_metadata(self, values: Mapping[str, Any]) -> None:
        self.metadata = json.loads(codec.encode_metadata({**self.metadata, **values}))

    def record_output(self, output: object) -> None:
        self.output = json.loads(codec.encode_output(output))

    def set_progress(self, report: Report) -> None:
        self.progress = report

    def complete(self, tx: Any) -> Job[Any]:
        self.completed_on = tx
        return changed(self.job, state=JobState.COMPLETED)


class MadeJob(Job[Args], Generic[Args]):
    """A running job from `make_job`."""

    @property
    def recorded(self) -> Recorded:
        """What the handler has recorded with this job: `metadata`, `output`, `progress` and `completed_on`."""
        return cast(Recorded, self.running)


def as_running(job: Job[Args], *, attempt: int = 1, cancelled: bool = False, deadline: datetime | None = None) -> Any:
    """The job as a MadeJob in this attempt, with args that are read from JSON when they are asked for."""
    values = vars(changed(job, state=JobState.RUNNING, attempt=attempt, attempted_at=job.created_at))
    made: MadeJob[Args] = object.__new__(MadeJob)
    object.__setattr__(made, "__dict__", {**values, "running": Recorded(job, cancelled, deadline)})
    return made
