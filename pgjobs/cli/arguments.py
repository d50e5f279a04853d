"""Arguments that several commands share, and the types of their values."""

from __future__ import annotations

import argparse
import json
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

from pgjobs.errors import shown
from pgjobs.options import FIRST_INSTANT, LAST_INSTANT

# what `ArgumentParser.add_subparsers` returns, for which argparse has no public name
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

A_DURATION = "a time such as 30s, 5m, 2h, 7d or 1h30m"
AN_INSTANT = (
    "a date or time such as 2026-03-07 or 2026-03-07T12:00, of this machine's time zone unless it names another"
)

#: Roles of `pgjobs roles`. The second may read whole jobs and schedules.
VIEWER = "pgjobs_viewer"
VIEWER_OF_ARGS = f"{VIEWER}, granted without --hide-args"

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}
_PARTS = re.compile(r"(\d+(?:\.\d+)?)(ms|s|min|m|h|d|w)", re.ASCII)
_DURATION = re.compile(rf"(?:{_PARTS.pattern})+|\d+(?:\.\d+)?", re.ASCII)
_LONGEST = timedelta(days=2_900_000).total_seconds()


# --- options


def add_database(parser: argparse.ArgumentParser, *, rights: str) -> None:
    """Add the options that name the database. `rights` names the role whose rights the command needs, for the message
    when they are lacking."""
    add_app(parser)
    parser.add_argument(
        "--dsn", default=None, help="the database (default: DATABASE_URL, else PGHOST, PGSERVICE and so on)"
    )
    add_schema(parser)
    parser.set_defaults(rights=rights)


def add_app(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--app",
        metavar="MODULE:NAME",
        help="take database, schema and args classes from this Client, WorkerPool, or function that returns one, as in "
        "shop.jobs:client (default: PGJOBS_APP)",
    )


def add_schema(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--schema", help="the schema of the tables (default: that of the app, else pgjobs)")


def add_json(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--json", action="store_true", help=f"print {what}, for programs")


def add_secrets(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--show-secrets",
        action="store_true",
        help="show secret fields of args too; without --app no field is known to be secret, and all are shown",
    )


def add_no_transaction(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-transaction",
        action="store_false",
        dest="transaction",
        help="for --sql: omit BEGIN and COMMIT, for a tool that adds its own",
    )


# --- types of values


def number(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > 9:
        raise argparse.ArgumentTypeError(f"must be a whole number, 0 or more, not {text!r}")
    return int(text)


def positive(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > 9 or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number, 1 or more, not {text!r}")
    return int(text)


def small_integer(text: str) -> int:
    """A number that may be negative. Whether it is in range is for the client to say."""
    if not re.fullmatch(r"-?\d{1,9}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}")
    return int(text)


def job_id(text: str) -> int:
    if not re.fullmatch(r"-?\d{1,19}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"the id of a job is a whole number, not {text!r}")
    return int(text)


def duration(text: str) -> timedelta:
    """A duration; a number without a unit is seconds."""
    if not _DURATION.fullmatch(text):
        raise argparse.ArgumentTypeError(f"must be {A_DURATION}, not {text!r}")
    parts = _PARTS.findall(text) or [(text, "s")]
    seconds = sum(float(amount) * _UNITS[unit] for amount, unit in parts)
    if seconds > _LONGEST:
        raise argparse.ArgumentTypeError(f"{text!r} is too long")
    return timedelta(seconds=seconds)


def instant(text: str) -> datetime:
    """An instant in the past or the future: `2h` is two hours ago, `+2h` in two hours."""
    return _instant(text, "2h for two hours ago, or +2h for in two hours", bare=-1)


def future(text: str) -> datetime:
    """The instant at which a job is to run: `+2h` is in two hours."""
    return _instant(text, "+2h for in two hours, or now", bare=None)


def _instant(text: str, others: str, *, bare: int | None) -> datetime:
    try:
        if text == "now":
            return datetime.now(UTC)
        if text.startswith("+") and _DURATION.fullmatch(text[1:]):
            return datetime.now(UTC) + duration(text[1:])
        if bare is not None and _PARTS.match(text) and _DURATION.fullmatch(text):
            return datetime.now(UTC) + bare * duration(text)
        when = datetime.fromisoformat(text).astimezone(UTC)
        if not FIRST_INSTANT <= when < LAST_INSTANT:
            raise OverflowError
    except (ValueError, OverflowError, OSError):
        raise argparse.ArgumentTypeError(f"must be {AN_INSTANT}, {others}; not {text!r}") from None
    return when


def json_value(text: str) -> Any:
    """A JSON value; `@file` reads it from a file, `-` from the standard input."""
    where = "the standard input" if text == "-" else shown(text, 80)
    try:
        if text == "-":
            text = sys.stdin.read()
        elif text.startswith("@"):
            text = Path(text[1:]).read_text(encoding="utf-8")
        return json.loads(text, parse_constant=_refuse)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{where} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"{where} is not JSON: {error}") from None


def json_object(text: str) -> dict[str, Any]:
    value = json_value(text)
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"must be a JSON object such as '{{\"name\": 1}}', not {text[:80]!r}")
    return value


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")
