"""The log lines of single jobs, all of the logger `pgjobs.job`.

    what                                level                  how many
    ----------------------------------  ---------------------  ------------------------------------
    started, completed, snoozed         `job_log_level`        all of them
    cancelled; cut off by a stop        INFO                   all of them
    failed, and will be retried         WARNING, with the      so many a second and kind, then one
    discarded                           ERROR    exception     line with the number of the others

Each record has the fields of `job_fields`. The args of a job are never logged; the text of an exception may hold them.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from datetime import timedelta
from typing import Any

from pgjobs.clean_text import first_line, one_line, skip_pgjobs
from pgjobs.errors import JobStopped
from pgjobs.execution.outcome import Outcome
from pgjobs.job import Job, JobState
from pgjobs.log_limit import LogLimit, Withheld
from pgjobs.loggers import get_logger, job_fields, shown_seconds

log = get_logger("pgjobs.job")


class JobLog:
    """Logs the jobs of one worker pool, at `level` those that do well."""

    def __init__(self, level: int = logging.DEBUG) -> None:
        self.level = level
        self._limit: LogLimit[tuple[int, str]] = LogLimit()  # by level and kind
        self.refresh()

    def refresh(self) -> None:
        """Look whether jobs that do well are logged, and log what was withheld. A pool calls this every second, so that
        the threads that run jobs look at `any` alone."""
        self.any = log.isEnabledFor(self.level)
        self._log_withheld(self._limit.take())

    def flush(self) -> None:
        """Log all that was withheld, because the pool stops."""
        self._log_withheld(self._limit.take(all=True))

    def started(self, job: Job[Any]) -> None:
        self._log(self.level, job, "started, attempt %d of %d", job.attempt, job.max_attempts)

    def ended(
        self, job: Job[Any], state: JobState, outcome: Outcome, error: BaseException | None, run_seconds: float
    ) -> None:
        """An attempt has ended and its outcome is written."""
        attempt = (job.attempt, job.max_attempts)
        if error is None:
            self._log(self.level, job, "completed in %s", shown_seconds(run_seconds))
        elif outcome.snoozed:
            self._log(self.level, job, "snoozed, next attempt %s", _when(outcome))
        elif isinstance(error, JobStopped):
            self._log(logging.INFO, job, "attempt %d of %d cut off, it does not count: %s", *attempt, described(error))
        elif state is JobState.CANCELLED:
            self._log(logging.INFO, job, "attempt %d of %d cancelled: %s", *attempt, described(error))
        elif state is JobState.DISCARDED:
            self._log_failure(logging.ERROR, job, "discarded", error)
        else:
            self._log_failure(logging.WARNING, job, f"next attempt {_when(outcome)}", error)

    def _log(self, level: int, job: Job[Any], message: str, *values: object) -> None:
        with suppress(BaseException):  # a logging handler that fails must not look like a fault of the database
            if log.isEnabledFor(level):
                log.log(level, "job %d (%s) " + message, job.id, job.kind, *values, extra=job_fields(job))

    def _log_failure(self, level: int, job: Job[Any], then: str, error: BaseException) -> None:
        with suppress(BaseException):
            if not log.isEnabledFor(level):
                return
            text = described(error)
            admitted, withheld = self._limit.admit((level, job.kind), f"job {job.id}: {text}")
            self._log_withheld(withheld)
            if admitted:
                # without the frames of pgjobs
                exc_info = (type(error), error, skip_pgjobs(error.__traceback__))
                log.log(level, "job %d (%s) attempt %d of %d failed, %s: %s", job.id, job.kind, job.attempt,
                        job.max_attempts, then, text, exc_info=exc_info, extra=job_fields(job))  # fmt: skip

    def _log_withheld(self, withheld: list[Withheld[tuple[int, str]]]) -> None:
        for each in withheld:
            level, kind = each.subject or (logging.ERROR, "many")
            what = "discarded jobs" if level == logging.ERROR else "failed attempts"
            with suppress(BaseException):
                log.log(level, "%s: %d more %s in %s are not logged one by one; the latest: %s", kind, each.count, what,
                        shown_seconds(each.seconds), each.latest, extra={"kind": one_line(kind)})  # fmt: skip


def described(error: BaseException) -> str:
    """The error as the last line of its traceback has it, without further lines and the details of Postgres."""
    return f"{type(error).__name__}: {first_line(error)}".removesuffix(": ")


def _when(outcome: Outcome) -> str:
    if outcome.at is not None:
        return f"at {outcome.at:%Y-%m-%d %H:%M:%S%z}"
    if not outcome.delay or outcome.delay < timedelta(0):
        return "at once"
    return f"in {shown_seconds(outcome.delay.total_seconds())}"
