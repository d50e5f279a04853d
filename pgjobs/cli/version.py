"""`pgjobs version`."""

from __future__ import annotations

import argparse
import platform

import psycopg

from pgjobs.cli.arguments import Commands, add_json
from pgjobs.cli.output import print_json
from pgjobs.version import __version__


def add_parser(commands: Commands) -> None:
    parser = commands.add_parser("version", help="print the version of pgjobs")
    parser.description = "Print the versions of pgjobs, Python, psycopg and libpq."
    add_json(parser, "them as one JSON object")
    parser.set_defaults(run=_version)


def _version(options: argparse.Namespace) -> int:
    number = psycopg.pq.version()
    versions = {
        "pgjobs": __version__,
        "python": platform.python_version(),
        "psycopg": psycopg.__version__,
        "libpq": f"{number // 10_000}.{number % 10_000}",
    }
    if options.json:
        print_json(versions)
    else:
        print("pgjobs {pgjobs} (Python {python}, psycopg {psycopg}, libpq {libpq})".format(**versions))
    return 0
