"""Whether the work goes on: workers, queues, kinds, schedules and duties, and jobs that get nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from pgjobs.db.repair import DUTIES
from pgjobs.observe.doctor.check import Check, Problem, count, critical, name, notice, span, warning
from pgjobs.observe.doctor.finding import Severity
from pgjobs.observe.doctor.queries import Look

# For how long a job waits, or a duty, or a schedule, until nobody seems to care for it.
LEFT_ALONE = timedelta(minutes=1)
LONG_PAUSE = timedelta(hours=1)
MANY_SNOOZES = 1000
NO_LONGER_IN_CODE = timedelta(hours=1)
_SELDOM = timedelta(minutes=5)  # of duties that are done each half minute
_URGENT = ("promote", "rescue")
_LOOKED_AT = ("prune", "workers")  # the others may be left to a process that does not run

_START = "start worker pools: `pgjobs work MODULE:POOL`"


def _workers(look: Look) -> Iterator[Problem]:
    processes, _ = look.living()
    if processes:
        return
    waiting = [row for row in look.waiting_queues() if row[1] > LEFT_ALONE.total_seconds()]
    if waiting:
        yield critical(
            f"no worker process is alive, and jobs wait in {count(len(waiting), 'queue')}, the longest for "
            f"{span(waiting[0][1])}",
            f"{_START}; if they run, look at their log: they renew their row in the table worker each 5 seconds",
        )
    else:
        yield notice("no worker process is alive, but no job waits for one", _START)


def _queues(look: Look) -> Iterator[Problem]:
    processes, _ = look.living()
    for queue, waited, paused, workers in look.waiting_queues():
        if paused is not None:
            if paused > LONG_PAUSE.total_seconds():
                yield notice(
                    f"queue {name(queue)} has been paused for {span(paused)}, and jobs wait in it",
                    f"`pgjobs queues resume {name(queue)}`, if it is not meant to be",
                )
        elif processes and not workers and waited > LEFT_ALONE.total_seconds():
            yield warning(
                f"no worker process works queue {name(queue)}, in which a job has waited for {span(waited)}",
                "give a worker pool this queue (queues=), or correct the queue= of the enqueue",
            )


def _such_as(id: int, queue: str) -> str:
    return f"such as job {id} in queue {name(queue)}"


def _kinds(look: Look) -> Iterator[Problem]:
    advice = "deploy workers whose WorkMap has the kind, or correct its name; to handle all others: unknown_kinds="
    for kind, jobs, id, queue in look.unknown_kinds(LEFT_ALONE):
        yield warning(
            f"no worker process has a handler for kind {name(kind)}, of which {count(jobs, 'job')} at the head of "
            f"the queues wait, {_such_as(id, queue)}",
            advice,
        )
    for kind, jobs, id, queue in look.failed_kinds():
        yield warning(
            f"no worker process has a handler for kind {name(kind)}, for which {count(jobs, 'job')} failed, such as "
            f"job {id} in queue {name(queue)}",
            advice,
        )


def _snoozes(look: Look) -> Iterator[Problem]:
    for kind, jobs, most, id, queue in look.snoozing_jobs(MANY_SNOOZES):
        yield warning(
            f"{count(jobs, 'job')} of kind {name(kind)}, {_such_as(id, queue)}, snoozed up to {most} times",
            "a snooze uses no attempt: let the handler raise Cancel or Discard when what it waits for does not come",
        )


def _vanished(look: Look) -> Iterator[Problem]:
    for kind, jobs, most, id, queue in look.vanished_attempts():
        yield warning(
            f"{count(jobs, 'job')} of kind {name(kind)}, {_such_as(id, queue)}, had up to {most} "
            "attempts whose worker vanished",
            "look in the log of the system whether the process was killed for its memory, and for crashes of native "
            f"code; `pgjobs show {id}` has the times. `pgjobs cancel {id}` stops one",
        )


def _schedules(look: Look) -> Iterator[Problem]:
    processes, _ = look.living()
    for schedule, error, overdue, unseen, failing in look.schedules():
        if error is not None:
            yield warning(
                f"schedule {name(schedule)} cannot tick",
                f"`pgjobs schedules show {name(schedule)}` says why; correct it in the code, or in the row",
            )
        elif unseen is not None and unseen > NO_LONGER_IN_CODE.total_seconds():
            yield notice(
                f"for {span(unseen)} no worker process has had schedule {name(schedule)} in its code",
                f"start a worker pool with it (cron=), or `pgjobs schedules remove {name(schedule)}`",
            )
        elif processes and overdue is not None and overdue > LEFT_ALONE.total_seconds():
            yield warning(
                f"schedule {name(schedule)} has been due for {span(overdue)}",
                "look in the log of the workers for pgjobs.schedules; a transaction may have locked its row",
            )
        if failing:
            yield warning(
                f"the last three jobs of schedule {name(schedule)} were discarded",
                "`pgjobs list --state discarded` shows them, `pgjobs show ID` their errors",
            )


def _duties(look: Look) -> Iterator[Problem]:
    duties = look.duties()
    missing = [duty for duty in DUTIES if duty not in duties]
    if missing:
        yield critical(
            f"table maintenance has no rows for {', '.join(missing)}, as after a TRUNCATE",
            "start a worker pool, or run `pgjobs migrate`",
        )
    if not look.living()[0]:
        return  # the check workers says so
    due, running = look.work_of_duties(_SELDOM)
    needed = {"promote": due is not None, "rescue": running}
    for duty, overdue in duties.items():
        limit = LEFT_ALONE if duty in _URGENT else _SELDOM
        if (duty in _LOOKED_AT or needed.get(duty)) and overdue > limit.total_seconds():
            yield Problem(
                Severity.CRITICAL if duty in _URGENT else Severity.WARNING,
                f"the duty {duty} has been due for {span(overdue)}, and no worker process does it",
                "look in the log of the workers for pgjobs.maintenance; a transaction may have locked its row, or the "
                "role of the workers lacks a right",
            )
    if due is not None:
        yield warning(
            f"a job that is due for {span(due)} has not been made available",
            "look in the log of the workers for pgjobs.maintenance; a trigger, CHECK or policy of the application may "
            "refuse the change, or a transaction may have locked its row",
        )


CHECKS = (
    Check("workers", "worker processes are alive", "nothing runs, is retried or ticks without one", _workers),
    Check("queues", "each queue in which jobs wait is worked", "jobs in a queue that nobody works wait for ever",
          _queues),
    Check("kinds", "each kind that waits has a handler", "a job without a handler fails, or waits for ever", _kinds),
    Check("duties", "due jobs are made available, lost ones rescued, old ones removed",
          "retries, scheduled jobs, rescues and pruning depend on them", _duties),
    Check("schedules", "all schedules tick", "jobs that should be enqueued are not, or all fail", _schedules),
    Check("snoozes", "no job snoozes for ever", "it is never over, and no error says so", _snoozes),
    Check("vanished", "no job has taken several workers with it",
          "a job that kills its process takes the other jobs of that process along, again and again", _vanished),
)  # fmt: skip
