"""The OPTIONS of a PgjobsBackend in `settings.TASKS`, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any, Literal

from pgjobs import checks
from pgjobs.backoff import Backoff
from pgjobs.contrib.django.settings import imported
from pgjobs.contrib.keywords import meant
from pgjobs.errors import InvalidSetting, shown
from pgjobs.job import Job
from pgjobs.outages import kind_of

# How often a task may start if the options do not say it. A task that raises has failed, so it starts again only when
# its worker has died, has lost the database, or does not have the code of the task yet.
_STARTS = 5
_MOST_ATTEMPTS = 32767


class UnknownTask(InvalidSetting):
    """The code of a stored task cannot be imported in this process."""


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """How the tasks of one backend run.

    - `max_attempts`: how often a task may start. 1: never again, whatever happens. More: a task that raises runs again.
      None: a task that raises has failed, and one whose worker dies runs again.
    - `backoff`: when a task that raised runs again, a function of (job, error) or the path of one. None: that of
      `settings.PGJOBS`, if there is a `max_attempts`.
    - `timeout`: how long an attempt may take; None is no limit, "inherit" the timeout of the worker pool.
    - `detached`: run outside of any transaction, for tasks that take minutes.
    - `using`: the alias of the database that holds the tasks; None is that of `settings.PGJOBS`.
    """

    max_attempts: int | None = None
    backoff: Backoff | None = None
    timeout: timedelta | Literal["inherit"] | None = "inherit"
    detached: bool = False
    using: str | None = None

    def __post_init__(self) -> None:
        if self.max_attempts is not None:
            checks.check_number("max_attempts", self.max_attempts, 1, _MOST_ATTEMPTS)
        checks.check_function("backoff", self.backoff, checks.A_BACKOFF)
        if self.timeout != "inherit":
            checks.check_timeout(self.timeout)
        checks.check_bool("detached", self.detached)
        checks.check_text("using", self.using, or_none=True)

    @property
    def starts(self) -> int | None:
        """The `max_attempts` of a job; None is that of the client."""
        if self.max_attempts is None:
            return _STARTS if self.backoff is None else None
        return self.max_attempts

    def retry_at(self, job: Job[Any], error: BaseException, default: Backoff) -> timedelta | datetime | None:
        """When the task runs again after this error: what its backoff returns, or `default`; None for never."""
        if self.max_attempts is None and self.backoff is None and not _of_surroundings(error):
            return None
        return (self.backoff or default)(job, error)


def read_options(given: object) -> TaskOptions:
    """The options of a backend. Raises InvalidSetting."""
    if not isinstance(given, Mapping):
        raise InvalidSetting(f"OPTIONS must be a dict, not {shown(given)}")
    known = [field.name for field in fields(TaskOptions)]
    for name in given:
        if name not in known:
            raise InvalidSetting(f"there is no option {shown(name)}: {meant(name, known)}")
    return TaskOptions(**{**given, "backoff": imported("the option backoff", given.get("backoff"))})


def _of_surroundings(error: BaseException) -> bool:
    """Whether the attempt failed for a reason that lies outside of the task: the database is down, or this process has
    older code than the one that enqueued the task."""
    cause = error.__cause__  # Django and TransactionBroken wrap the error of the driver
    if isinstance(error, UnknownTask) or kind_of(error) is not None:
        return True
    return cause is not None and kind_of(cause) is not None
