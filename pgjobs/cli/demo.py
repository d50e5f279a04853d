"""`pgjobs demo`."""

from __future__ import annotations

import argparse
from pathlib import Path

from pgjobs.cli.arguments import Commands


def add_parser(commands: Commands) -> None:
    parser = commands.add_parser("demo", help="index the standard library with two workers, and kill one of them")
    parser.description = (
        "Index the Python standard library with two worker processes, and kill one of them in the middle of a job: "
        "the writes of its handler are rolled back, and the other process runs the job again. At the end queries count "
        "what was lost and what was done twice. Takes about 15 seconds, on an embedded Postgres, or in the schemas "
        "pgjobs_demo and stdlib_index of your database, which it drops at the end."
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the database in this directory")
    parser.add_argument("--dsn", default=None, help="use this database (default: DATABASE_URL, else an embedded one)")
    parser.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> int:
    from pgjobs.demo import story  # works only on Unix

    return story.run(dsn=options.dsn, keep=options.keep)
