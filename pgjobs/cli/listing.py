"""`pgjobs list`, `pgjobs show` and `pgjobs wait`: look at jobs."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from datetime import timedelta
from itertools import chain
from typing import Any

from pgjobs.cli.arguments import (
    VIEWER,
    VIEWER_OF_ARGS,
    Commands,
    add_database,
    add_json,
    add_secrets,
    duration,
    job_id,
    number,
)
from pgjobs.cli.database import connect
from pgjobs.cli.filters import add_filter, filter_of
from pgjobs.cli.job_output import all_fields, detail_lines, listed_fields, print_jobs
from pgjobs.cli.output import print_json, say, say_error
from pgjobs.client import Client
from pgjobs.errors import JobNotFinished, JobNotFound
from pgjobs.job import Job, JobState, has_args
from pgjobs.loggers import shown_seconds
from pgjobs.results import JobPage

_PAGE = 1000

#: Exit codes of `wait`.
NOT_COMPLETED, NOT_OVER = 3, 4


def add_parser(commands: Commands) -> None:
    _add_list(commands.add_parser("list", help="list jobs"))
    _add_show(commands.add_parser("show", help="show all that is known of a job"))
    _add_wait(commands.add_parser("wait", help="wait until jobs are over"))


# --- list


def _add_list(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "List jobs, the newest first. Args, metadata and outputs are not shown; `pgjobs show` has them."
    )
    parser.usage = "%(prog)s [options]"  # the generated one fills the screen at each slip
    add_filter(parser)
    parser.add_argument(
        "--order",
        choices=["id", "time"],
        default="id",
        help="time: by the end of finished jobs, the start of running ones, the due time of others; needs one --state",
    )
    parser.add_argument("--reverse", action="store_true", help="the oldest first")
    parser.add_argument(
        "--limit", type=number, default=50, metavar="N", help="how many, 0 for all (default: %(default)s)"
    )
    parser.add_argument("--cursor", metavar="TEXT", help="go on where another list ended, which says its cursor")
    add_json(parser, "one JSON object for each job, each on a line")
    add_database(parser, rights=VIEWER)
    parser.set_defaults(run=_list)


def _list(options: argparse.Namespace) -> int:
    which = filter_of(options)
    with connect(options) as app:
        pages = _pages(app.client, options, which)
        first = next(pages)
        last = [first]
        others = _remembering(pages, last)
        if options.json:
            for job in chain(first.jobs, others):
                print_json(listed_fields(job))
        elif not first.jobs:
            say("no jobs")
        else:
            print_jobs(first.jobs, others)
        if not all(map(has_args, first.jobs)):
            say("errors are not shown: this database role may not read them")
        if last[-1].next is not None:
            say(f"there are more jobs: --limit 0 for all, or go on with --cursor {last[-1].next}")
    return 0


def _pages(client: Client, options: argparse.Namespace, which: Any) -> Iterator[JobPage]:
    """The pages of the list, until the limit."""
    left, cursor = options.limit or None, options.cursor
    while True:
        size = _PAGE if left is None else min(left, _PAGE)
        page = client.list_jobs(which, order=options.order, descending=not options.reverse, limit=size, cursor=cursor)
        yield page
        left, cursor = None if left is None else left - len(page.jobs), page.next
        if cursor is None or left == 0:
            return


def _remembering(pages: Iterator[JobPage], last: list[JobPage]) -> Iterator[Job[Any]]:
    """The jobs of the pages; `last` gets the page that was read last."""
    for page in pages:
        last[:] = [page]
        yield from page.jobs


# --- show


def _add_show(parser: argparse.ArgumentParser) -> None:
    parser.description = "Show all that is known of jobs: args, metadata, output, and the errors of each attempt."
    parser.add_argument("ids", nargs="+", type=job_id, metavar="ID", help="the ids of the jobs")
    parser.add_argument("--no-args", action="store_false", dest="args", help="leave out the args")
    add_secrets(parser)
    add_json(parser, "one JSON object for each job, each on a line")
    add_database(parser, rights=VIEWER)
    parser.set_defaults(run=_show)


def _show(options: argparse.Namespace) -> int:
    missing: list[int] = []
    with connect(options) as app:
        for position, id in enumerate(options.ids):
            job = app.client.get(id)
            if job is None:
                missing.append(id)
                continue
            job = app.shown(job, secrets=options.show_secrets)
            if options.json:
                fields = all_fields(job)
                print_json(fields if options.args else {name: fields[name] for name in fields if name != "args"})
            else:
                lines = detail_lines(job, with_args=options.args)
                print("\n".join(["", *lines] if position else lines))
    for id in missing:
        say_error(JobNotFound(id))
    return 1 if missing else 0


# --- wait


def _add_wait(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Wait until the jobs are completed, cancelled or discarded. Exits with 0 if all were completed, with "
        f"{NOT_COMPLETED} if one was cancelled or discarded, and with {NOT_OVER} if the timeout came first."
    )
    parser.add_argument("ids", nargs="+", type=job_id, metavar="ID", help="the ids of the jobs")
    parser.add_argument("--timeout", type=duration, metavar="TIME", help="such as 30s or 5m (default: wait for ever)")
    add_secrets(parser)
    add_json(parser, "one JSON object for each job that is over, each on a line")
    add_database(parser, rights=VIEWER_OF_ARGS)
    parser.set_defaults(run=_wait)


def _wait(options: argparse.Namespace) -> int:
    code = 0
    give_up = None if options.timeout is None else time.monotonic() + options.timeout.total_seconds()
    with connect(options) as app:
        for id in options.ids:
            left = None if give_up is None else timedelta(seconds=max(give_up - time.monotonic(), 0.0))
            try:
                job = app.client.wait(id, timeout=left)
            except JobNotFinished as error:
                after = shown_seconds(options.timeout.total_seconds())
                say_error(f"job {id} is not over after {after}: it is {error.state}")
                code = max(code, NOT_OVER)
                continue
            if options.json:
                print_json(all_fields(app.shown(job, secrets=options.show_secrets)))
            else:
                print(_ended(job))
            code = max(code, 0 if job.state is JobState.COMPLETED else NOT_COMPLETED)
    return code


def _ended(job: Job[Any]) -> str:
    from pgjobs.cli.output import harmless

    reason = f": {harmless(job.last_error)}" if job.last_error and job.state is not JobState.COMPLETED else ""
    return f"job {job.id} is {job.state}{reason}"
