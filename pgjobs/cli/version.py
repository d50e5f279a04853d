"""`pgjobs version`."""

from __future__ import annotations

import argparse
import platform

import psycopg

from pgjobs.cli.arguments import Commands
from pgjobs.version import __version__


def add_parser(commands: Commands) -> None:
    parser = commands.add_parser("version", help="print the version of pgjobs")
    parser.description = "Print the versions of pgjobs, Python, psycopg and libpq."
    parser.set_defaults(run=_version)


def _version(options: argparse.Namespace) -> int:
    libpq = psycopg.pq.version()
    print(
        f"pgjobs {__version__} (Python {platform.python_version()}, psycopg {psycopg.__version__}, "
        f"libpq {libpq // 10_000}.{libpq % 10_000})"
    )
    return 0
