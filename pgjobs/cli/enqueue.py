"""`pgjobs enqueue`."""

from __future__ import annotations

import argparse
from typing import Any

from pgjobs.cli.arguments import (
    Commands,
    add_database,
    add_json,
    add_secrets,
    duration,
    future,
    json_object,
    positive,
    small_integer,
)
from pgjobs.cli.database import connect
from pgjobs.cli.job_output import all_fields
from pgjobs.cli.output import print_json
from pgjobs.unique import Unique
from pgjobs.work_map import payload


def add_parser(commands: Commands) -> None:
    parser = commands.add_parser("enqueue", help="enqueue a job")
    parser.description = (
        "Enqueue one job. With --app or PGJOBS_APP the args are checked against the args class of the kind, whose "
        "default options count, and an unknown kind is refused."
    )
    parser.usage = "%(prog)s [options] KIND [ARGS]"  # the generated one fills the screen at each slip
    parser.add_argument("kind", metavar="KIND", help="the kind of the job")
    parser.add_argument(
        "args",
        nargs="?",
        type=json_object,
        default={},
        metavar="ARGS",
        help="a JSON object; @FILE reads it from a file, - from the standard input (default: an empty object)",
    )
    parser.add_argument("--queue", metavar="NAME", help="default: the queue of the args class or the client")
    parser.add_argument("--priority", type=small_integer, metavar="N", help="lower runs first")
    when = parser.add_mutually_exclusive_group()
    when.add_argument("--delay", type=duration, metavar="TIME", help="run it after this time, such as 30s, 5m or 2h")
    when.add_argument("--at", type=future, dest="scheduled_at", metavar="WHEN", help="run it at this time")
    parser.add_argument("--max-attempts", type=positive, metavar="N", help="how often it may start")
    parser.add_argument("--tag", action="append", dest="tags", metavar="TAG", help="can be repeated")
    parser.add_argument("--metadata", type=json_object, metavar="JSON", help="a JSON object to store beside the args")
    parser.add_argument(
        "--unique",
        choices=["kind", "args"],
        help="only if there is no such job yet: of this kind, or of this kind with these args",
    )
    parser.add_argument("--pending", action="store_true", default=None, help="wait for `pgjobs release`")
    add_secrets(parser)
    add_json(parser, "the job as a JSON object")
    add_database(parser, rights="pgjobs_enqueuer")
    parser.set_defaults(run=_enqueue)


_OPTIONS = ("queue", "priority", "delay", "scheduled_at", "max_attempts", "tags", "metadata", "pending")


def _enqueue(options: argparse.Namespace) -> int:
    given: dict[str, Any] = {name: getattr(options, name) for name in _OPTIONS if getattr(options, name) is not None}
    if options.unique is not None:
        given["unique"] = Unique(by_args=options.unique == "args")
    with connect(options) as app:
        job: Any = app.client.enqueue(
            None, payload(app.work_map, options.kind, options.args), kind=options.kind, **given
        )
    if options.json:
        print_json({**all_fields(app.shown(job, secrets=options.show_secrets)), "duplicate": job.duplicate})
    else:
        what = "is there already" if job.duplicate else "enqueued"
        print(f"job {job.id} {what}: {job.kind} in {job.queue}, {job.state}")
    return 0
