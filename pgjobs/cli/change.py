"""`pgjobs retry`, `cancel`, `delete`, `release` and `update`: change one job, some, or all that fit a filter."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

from pgjobs.cli.applying import Change, Report, Verb
from pgjobs.cli.arguments import (
    Commands,
    add_database,
    add_json,
    future,
    job_id,
    json_object,
    json_value,
    positive,
    small_integer,
)
from pgjobs.cli.database import connect
from pgjobs.cli.filters import add_filter
from pgjobs.client import Client
from pgjobs.errors import JobNotFound
from pgjobs.job import Job, JobState
from pgjobs.results import ManyJobs

_RETRY = Verb(
    "retry",
    "retried",
    "let failed jobs run again now",
    "Let jobs run now, each with one attempt more if it has used them all. Without ids and without --state only failed "
    "jobs: those that wait for their next attempt (retryable), and those that have none left (discarded).",
    passes_over=(JobState.RUNNING,),
    looks_at=(JobState.RETRYABLE, JobState.DISCARDED),
)
_CANCEL = Verb(
    "cancel",
    "cancelled",
    "cancel jobs",
    "Cancel jobs. One that waits is cancelled at once; the worker of one that runs is told to end it. Jobs that are "
    "over stay as they are.",
    passes_over=tuple(state for state in JobState if state.final),
)
_DELETE = Verb(
    "delete", "deleted", "delete jobs", "Delete jobs that do not run, with args and errors. Asks first.", asks=True
)
_RELEASE = Verb(
    "release", "released", "let pending jobs run", "Let jobs run that were enqueued with --pending or pending=True."
)
_UPDATE = Verb("update", "updated", "change waiting or finished jobs", "Change jobs that do not run.")


def add_parser(commands: Commands) -> None:
    retry = _add_verb(commands, _RETRY, _retry)
    retry.add_argument("--reset", action="store_true", help="give discarded jobs all their attempts again")
    cancel = _add_verb(commands, _CANCEL, _cancel)
    cancel.add_argument("--reason", default="", metavar="TEXT", help="stored with the job")
    delete = _add_verb(commands, _DELETE, _delete)
    delete.add_argument("--yes", action="store_true", help="delete without asking")
    _add_update(_add_verb(commands, _UPDATE, _update))
    _add_release(commands)


def _add_verb(commands: Commands, verb: Verb, run: Callable[..., int]) -> argparse.ArgumentParser:
    parser = commands.add_parser(verb.name, help=verb.help)
    parser.description = f"{verb.description} Give ids, or options that say which jobs, or --all."
    parser.usage = "%(prog)s [options] [ID ...]"  # the generated one fills the screen at each slip
    parser.add_argument("ids", nargs="*", type=job_id, metavar="ID", help="the ids of the jobs")
    add_filter(parser)
    really_all = f"all jobs that are {' or '.join(verb.looks_at)}" if verb.looks_at else "really all jobs"
    parser.add_argument("--all", action="store_true", help=really_all)
    parser.add_argument(
        "--limit", type=positive, metavar="N", help="change at most this number of jobs, the oldest first"
    )
    parser.add_argument("--dry-run", action="store_true", help="change nothing, and say which jobs would be changed")
    add_json(parser, "one JSON object with the ids of the jobs, and why others were skipped")
    add_database(parser, rights="pgjobs_operator")
    parser.set_defaults(run=run, parser=parser, changes=True)
    return parser


def _add_update(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("changes")
    group.add_argument("--set-priority", type=small_integer, metavar="N", help="lower runs first")
    group.add_argument("--set-time", type=future, metavar="WHEN", help="run it then; +5m is in five minutes")
    group.add_argument("--set-max-attempts", type=positive, metavar="N", help="how often it may start in all")
    group.add_argument("--set-tag", action="append", metavar="TAG", help="replace its tags; can be repeated")
    group.add_argument(
        "--set-metadata", type=json_object, metavar="JSON", help="merge this JSON object into its metadata"
    )
    group.add_argument("--set-output", type=json_value, default=..., metavar="JSON", help="replace its output")


# --- the verbs


def _retry(options: argparse.Namespace) -> int:
    return _change(_RETRY, options, Client.retry, Client.retry_many, reset=options.reset)


def _cancel(options: argparse.Namespace) -> int:
    return _change(_CANCEL, options, Client.cancel, Client.cancel_many, reason=options.reason)


def _delete(options: argparse.Namespace) -> int:
    return _change(_DELETE, options, Client.delete, Client.delete_many)


def _update(options: argparse.Namespace) -> int:
    given = {
        "priority": options.set_priority,
        "scheduled_at": options.set_time,
        "max_attempts": options.set_max_attempts,
        "tags": options.set_tag,
        "metadata": options.set_metadata,
    }
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if options.set_output is not ...:
        changes["output"] = options.set_output
    if not changes:
        options.parser.error("what is to change? give --set-priority or another of the changes")
    return _change(_UPDATE, options, Client.update, Client.update_many, **changes)


def _change(
    verb: Verb,
    options: argparse.Namespace,
    one: Callable[..., Job[Any]],
    many: Callable[..., ManyJobs],
    **how: Any,
) -> int:
    """Call a method of the client for one job, or one for many jobs; `how` is the same for both."""
    with connect(options) as app:
        return Change(
            verb, options, app.client, one=partial(one, app.client, **how), many=partial(many, app.client, **how)
        ).run()


# --- release, which is for ids alone


def _add_release(commands: Commands) -> None:
    parser = commands.add_parser(_RELEASE.name, help=_RELEASE.help)
    parser.description = _RELEASE.description
    parser.add_argument("ids", nargs="+", type=job_id, metavar="ID", help="the ids of the jobs")
    add_json(parser, "one JSON object with the ids of the jobs")
    add_database(parser, rights="pgjobs_operator")
    parser.set_defaults(run=_release, changes=True)


def _release(options: argparse.Namespace) -> int:
    report = Report(_RELEASE)
    with connect(options) as app:
        for id in options.ids:
            try:
                before = app.client.get(id)
                job = app.client.release(id)
            except JobNotFound:
                report.missing.append(id)
                continue
            if before is not None and before.state is JobState.PENDING:
                report.add(ManyJobs((job,), {}))
            else:
                report.skipped[id] = f"{job.state}, not pending"
    return report.show(as_json=options.json)
