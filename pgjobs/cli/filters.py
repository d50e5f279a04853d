"""The options that say which jobs a command is for."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from pgjobs.cli.arguments import instant, json_object, small_integer
from pgjobs.job import JobState
from pgjobs.job_filter import JobFilter

_TIMES = {
    "created": "were enqueued",
    "scheduled": "are due",
    "attempted": "last started",
    "finalized": "ended",
}


def add_filter(parser: argparse.ArgumentParser) -> None:
    """Options for the fields of a JobFilter."""
    group = parser.add_argument_group(
        "which jobs",
        "A job must fit all of these options; of an option that is given several times, one value is enough. WHEN is a "
        "date or time such as 2026-03-07T12:00, or 2h for two hours ago, or +2h for in two hours.",
    )
    _add_repeated(group, "--queue", "queues", "NAME", "in this queue")
    _add_repeated(group, "--kind", "kinds", "KIND", "of this kind")
    _add_repeated(group, "--state", "states", "STATE", f"in this state: {', '.join(JobState)}")
    group.add_argument(
        "--priority", dest="priorities", action="append", type=small_integer, metavar="N", help="of this priority"
    )
    _add_repeated(group, "--tag", "tags_all", "TAG", "with this tag; if repeated, with all of them")
    _add_repeated(group, "--any-tag", "tags_any", "TAG", "with one of these tags")
    group.add_argument("--metadata", type=json_object, metavar="JSON", help="whose metadata contains this JSON object")
    group.add_argument("--args", type=json_object, metavar="JSON", help="whose args contain this JSON object")
    for name, what in _TIMES.items():
        group.add_argument(f"--{name}-after", type=instant, metavar="WHEN", help=f"that {what} then or later")
        group.add_argument(f"--{name}-before", type=instant, metavar="WHEN", help=f"that {what} before then")


def _add_repeated(group: Any, option: str, field: str, metavar: str, help: str) -> None:
    group.add_argument(option, dest=field, action="append", metavar=metavar, help=help)


_FIELDS = ("queues", "kinds", "states", "priorities", "tags_all", "tags_any", "metadata", "args")
_INSTANTS = tuple(f"{name}_{side}" for name in _TIMES for side in ("after", "before"))


def conditions(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of a JobFilter that are given."""
    given = {name: getattr(options, name) for name in (*_FIELDS, *_INSTANTS)}
    return {name: value for name, value in given.items() if value is not None}


def filter_of(options: argparse.Namespace, **more: Any) -> JobFilter:
    """The filter of the options; one that fits all jobs if there are none."""
    return JobFilter(**conditions(options), **more)


def narrowed(filter: JobFilter, ids: list[int]) -> JobFilter:
    """The same filter, for these jobs alone."""
    return replace(filter, really_all=False, ids=ids)
