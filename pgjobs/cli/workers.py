"""`pgjobs workers`: the processes that work jobs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict

from pgjobs.cli.arguments import VIEWER, Commands, add_database, add_json
from pgjobs.cli.database import connect
from pgjobs.cli.output import Column, print_all, when_text
from pgjobs.results import WorkerProcess

_COLUMNS = (
    Column("ID", elastic=True),
    Column("HOST", elastic=True),
    Column("PID", right=True),
    Column("THREADS", right=True),
    Column("QUEUES", elastic=True),
    Column("KINDS", right=True),
    Column("VERSION"),
    Column("CODE", elastic=True),
    Column("STARTED"),
    Column("SEEN"),
)


def add_parser(commands: Commands) -> None:
    parser = commands.add_parser("workers", help="list the processes that work jobs")
    parser.description = (
        "List the processes that work jobs, the oldest first. A killed process stays listed for up to two minutes."
    )
    add_json(parser, "one JSON object for each process, each on a line")
    add_database(parser, rights=VIEWER)
    parser.set_defaults(run=_workers)


def _workers(options: argparse.Namespace) -> int:
    with connect(options) as app:
        workers = app.client.workers()
    print_all(workers, _COLUMNS, _row, asdict, as_json=options.json, none="no workers")
    return 0


def _row(worker: WorkerProcess) -> Sequence[object]:
    return (
        worker.id,
        worker.host,
        worker.pid,
        worker.threads,
        " ".join(f"{queue}={threads}" for queue, threads in worker.queues.items()),
        len(worker.kinds),
        worker.version,
        worker.code_version,
        when_text(worker.started_at),
        when_text(worker.seen_at),
    )
