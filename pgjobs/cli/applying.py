"""Applies a change to the jobs that the options of a command name: one, some, or all that fit a filter."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from pgjobs.cli import progress
from pgjobs.cli.ask import confirm
from pgjobs.cli.filters import conditions, narrowed
from pgjobs.cli.job_output import print_jobs
from pgjobs.cli.output import count_of, print_json, say, say_error
from pgjobs.client import Client
from pgjobs.errors import JobNotFound
from pgjobs.job import Job, JobState
from pgjobs.job_filter import JobFilter
from pgjobs.results import ManyJobs

_STEP = 1000  # jobs of one call, between which the progress is shown
_SAMPLE = 10  # jobs that are shown of many


class Many(Protocol):
    """A call for all jobs that fit."""

    def __call__(self, filter: JobFilter, *, limit: int | None, dry_run: bool) -> ManyJobs: ...


class Verb(NamedTuple):
    name: str
    past: str
    help: str
    description: str
    asks: bool = False  # before it changes anything
    passes_over: tuple[JobState, ...] = ()  # leaves jobs in these states as they are
    looks_at: tuple[JobState, ...] = ()  # of all jobs that fit the options, unless ids or states are given


@dataclass
class Report:
    """What became of the jobs."""

    verb: Verb
    dry_run: bool = False
    done: list[int] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)  # of those: running jobs whose workers were told to end them
    skipped: dict[int, str] = field(default_factory=dict)
    missing: list[int] = field(default_factory=list)
    sample: list[Job[Any]] = field(default_factory=list)  # of those that were changed, or would be

    def add(self, many: ManyJobs) -> None:
        self.done += [job.id for job in many.done]
        self.asked += [job.id for job in many.done if job.state is JobState.RUNNING]
        self.skipped.update(many.skipped)
        self.sample = (self.sample + list(many.done))[:_SAMPLE]

    def show(self, *, as_json: bool) -> int:
        """Print it; the exit code is 1 if a job was skipped or is missing."""
        if as_json:
            print_json({
                "action": self.verb.name,
                "dry_run": self.dry_run,
                "jobs": len(self.done),
                "ids": self.done,
                "skipped": {str(id): reason for id, reason in self.skipped.items()},
                "missing": self.missing,
            })  # fmt: skip
        else:
            self._print()
        for id in self.missing:
            say_error(JobNotFound(id))
        return 1 if self.skipped or self.missing else 0

    def _print(self) -> None:
        if self.dry_run and self.sample:
            print_jobs(self.sample)
            if len(self.done) > len(self.sample):
                print(f"and {count_of(len(self.done) - len(self.sample), 'more job')}")
        if self.dry_run:
            print(f"would {self.verb.name} {count_of(len(self.done))}; nothing was changed")
        elif self.done or not self.skipped:
            which = f"job {self.done[0]}" if len(self.done) == 1 else count_of(len(self.done))
            print(f"{self.verb.past} {which}")
        if self.asked:
            print(f"of these, {count_of(len(self.asked))} ran: their workers were told to end them")
        for reason, jobs in Counter(self.skipped.values()).items():
            ids = [str(id) for id, why in self.skipped.items() if why == reason]
            more = ", ..." if len(ids) > _SAMPLE else ""
            say(f"skipped {count_of(jobs)} ({reason}): {', '.join(ids[:_SAMPLE])}{more}")


@dataclass
class Change:
    """One call of a verb for the jobs that the options name."""

    verb: Verb
    options: argparse.Namespace
    client: Client
    one: Callable[[int], Job[Any]]
    many: Many

    def run(self) -> int:
        options = self.options
        which = self._filter()
        report = Report(self.verb, dry_run=options.dry_run)
        if options.dry_run:
            report.add(self.many(which, limit=options.limit, dry_run=True))
            if report.sample:
                report.sample = self._as_they_are(report.sample)
        else:
            if self.verb.asks and not options.yes:
                self._confirm(which)
            if len(options.ids) == 1 and not conditions(options):
                self._one_job(options.ids[0], report)
            else:
                self._in_steps(which, report)
        self._find_missing(report)
        code = report.show(as_json=options.json)
        if not report.done and self._looks_at:
            say(f"looked only at jobs that are {' or '.join(self._looks_at)}: --state names others")
        return code

    @property
    def _looks_at(self) -> tuple[JobState, ...]:
        """The states that the verb adds to the options."""
        return () if self.options.ids or self.options.states is not None else self.verb.looks_at

    def _as_they_are(self, jobs: list[Job[Any]]) -> list[Job[Any]]:
        """A dry run returns the jobs as they would be. They are recognized by what they are now."""
        return list(self.client.list_jobs(JobFilter(ids=[job.id for job in jobs])).jobs)

    def _filter(self) -> JobFilter:
        given = conditions(self.options)
        if self.options.ids:
            given["ids"] = self.options.ids
        if self.options.all and given:
            self.options.parser.error("argument --all: not allowed with ids or options that say which jobs")
        if not given and not self.options.all:
            self.options.parser.error("which jobs? give ids, or options such as --state or --kind, or --all")
        if self._looks_at:
            given["states"] = list(self._looks_at)
        elif self.verb.passes_over and self.options.states is None:
            given["states"] = [state for state in JobState if state not in self.verb.passes_over]
        return JobFilter(**given) if given else JobFilter.all()

    def _confirm(self, which: JobFilter) -> None:
        jobs = min(self.client.count(which).total, self.options.limit or sys.maxsize)
        if jobs:
            confirm(f"this deletes {count_of(jobs)}, with args and errors", yes=False)

    def _one_job(self, id: int, report: Report) -> None:
        """The errors of a call for one job say more than the reasons of a call for many."""
        before = self.client.get(id) if self.verb.passes_over else None
        if before is None or before.state not in self.verb.passes_over:
            report.add(ManyJobs((self.one(id),), {}))

    def _in_steps(self, which: JobFilter, report: Report) -> None:
        """Change the jobs a thousand at a time, so that progress can be shown and memory is bounded. Jobs that are
        enqueued meanwhile are left alone."""
        newest = self.client.list_jobs(which, descending=True, limit=1).jobs
        if not newest:
            return
        total = self.client.count(which).total if progress.is_shown() else 0
        limit, cursor, seen = self.options.limit, None, 0
        with progress.bar(self.verb.name, total if limit is None else min(total, limit)) as show:
            try:
                while True:
                    page = self.client.list_jobs(which, limit=_STEP, cursor=cursor)
                    ids = [job.id for job in page.jobs if job.id <= newest[0].id]
                    left = None if limit is None else limit - len(report.done)
                    if not ids or left == 0:
                        return
                    report.add(self.many(narrowed(which, ids), limit=left, dry_run=False))
                    seen, cursor = seen + len(ids), page.next
                    show(seen)
                    if cursor is None:
                        return
            except KeyboardInterrupt:
                raise KeyboardInterrupt(f"after {count_of(len(report.done))} {self.verb.past}") from None

    def _find_missing(self, report: Report) -> None:
        """Say of each id that was given and not changed, why."""
        left = sorted(set(self.options.ids) - set(report.done) - set(report.skipped))
        if not left or self.options.limit is not None:
            return
        there: dict[int, Job[Any]] = {}
        for first in range(0, len(left), _STEP):
            found = self.client.list_jobs(JobFilter(ids=left[first : first + _STEP]), limit=_STEP).jobs
            there.update((job.id, job) for job in found)
        for id in left:
            if id in there:
                passed_over = there[id].state in self.verb.passes_over
                report.skipped[id] = str(there[id].state) if passed_over else "does not fit the options"
            else:
                report.missing.append(id)
