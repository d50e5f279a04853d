"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import os
from typing import TypeAlias

from pgjobs.errors import PgjobsError

# what `ArgumentParser.add_subparsers` returns, for which argparse has no public name
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

# libpq finds the database by any of these environment variables.
_DATABASE_VARIABLES = ("PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGUSER", "PGSERVICE")


def add_schema(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--schema", default="pgjobs", help="the schema of the tables (default: %(default)s)")


def add_dsn(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dsn", default=None, help="the database (default: DATABASE_URL, else PGHOST, PGSERVICE and so on)"
    )


def add_no_transaction(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-transaction",
        action="store_false",
        dest="transaction",
        help="for --sql: omit BEGIN and COMMIT, for a tool that adds its own",
    )


def dsn_of(options: argparse.Namespace) -> str:
    dsn: str | None = options.dsn or os.environ.get("DATABASE_URL")
    if dsn:
        return dsn
    if any(os.environ.get(name) for name in _DATABASE_VARIABLES):
        return "application_name=pgjobs"  # libpq reads the environment
    raise PgjobsError(f"which database? give --dsn, or set DATABASE_URL or one of {', '.join(_DATABASE_VARIABLES)}")


def number(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"must be a whole number, 0 or more, not {text!r}")
    return int(text)
