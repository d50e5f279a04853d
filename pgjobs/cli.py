"""The command `pgjobs`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import psycopg

from pgjobs import demo, migrate, timetable
from pgjobs.client import Client
from pgjobs.errors import PgjobsError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0 when it did what was asked, 1 when it could not, 2 for wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except (PgjobsError, psycopg.Error) as error:
        print(f"pgjobs: {error}", file=sys.stderr)
        return 1
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pgjobs", description=__doc__ and "A job queue on Postgres.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_migrate(commands.add_parser("migrate", help="make the tables, or bring them to another version"))
    _add_schedule(commands.add_parser("schedule", help="say when a schedule would tick"))
    _add_demo(commands.add_parser("demo", help="index the standard library with two workers, and kill one half way"))
    return parser


def _add_migrate(parser: argparse.ArgumentParser) -> None:
    parser.description = "Make the tables of pgjobs, or bring them to another version. Doing it twice changes nothing."
    parser.add_argument("direction", nargs="?", choices=["up", "down"], default="up", help="default: %(default)s")
    parser.add_argument("--dsn", default=None, help="the database; DATABASE_URL when left out")
    parser.add_argument("--schema", default="pgjobs", help="the schema that holds the tables (default: %(default)s)")
    parser.add_argument(
        "--to",
        type=int,
        metavar="VERSION",
        help="stop at this version; down to 0 takes everything down, the jobs with it",
    )
    parser.add_argument("--max-steps", type=int, metavar="N", help="at most so many steps (down: 1 unless said)")
    parser.add_argument("--dry-run", action="store_true", help="change nothing, say what would be done")
    parser.add_argument("--check", action="store_true", help="change nothing, fail unless the tables fit")
    parser.add_argument("--sql", action="store_true", help="print the SQL instead, for psql or another tool")
    parser.add_argument("--from", type=int, default=None, dest="start", metavar="VERSION", help="for --sql: begin here")
    parser.set_defaults(run=_migrate)


def _migrate(options: argparse.Namespace) -> int:
    if options.sql:
        newest = max(migrate.versions())
        down = options.direction == "down"
        start = (newest if down else 0) if options.start is None else options.start
        target = (max(start - 1, 0) if down else newest) if options.to is None else options.to
        print(migrate.schema_sql(options.schema, start=start, target=target), end="")
        return 0
    with Client(_dsn(options), schema=options.schema) as client:
        if options.check:
            return _check(client)
        steps = client.migrate(
            direction=options.direction, target=options.to, max_steps=options.max_steps, dry_run=options.dry_run
        )
    for step in steps:
        print(f"would apply: {step}" if options.dry_run else step)
    if not steps:
        print("nothing to do")
    return 0


def _check(client: Client) -> int:
    missing = client.missing_migrations()
    if missing:
        print(f"missing: {', '.join(map(str, missing))}")
        return 1
    client.check_schema()  # newer tables lack nothing, and do not fit either
    print("ok")
    return 0


def _dsn(options: argparse.Namespace) -> str:
    dsn: str | None = options.dsn or os.environ.get("DATABASE_URL")
    if not dsn:
        raise PgjobsError("which database? give --dsn, or set DATABASE_URL")
    return dsn


def _add_schedule(parser: argparse.ArgumentParser) -> None:
    parser.description = "Schedules: durable cron."
    acts = parser.add_subparsers(required=True, metavar="ACT")
    simulate = acts.add_parser("simulate", help="print the next ticks, also over a change of the clocks")
    simulate.description = "Print when a schedule would tick: in its zone, and in UTC. Needs no database."
    simulate.add_argument("spec", help="a cron text as '30 2 * * *', @daily, or '@every 1h30m'")
    simulate.add_argument("--zone", default="UTC", help="its time zone (default: %(default)s)")
    simulate.add_argument(
        "--from", dest="start", metavar="WHEN", help="a date or an instant in that zone; default: now"
    )
    simulate.add_argument("--count", type=int, default=10, metavar="N", help="how many (default: %(default)s)")
    simulate.add_argument("--name", default="", help="the schedule's name, from which fields with an H are drawn")
    simulate.set_defaults(run=_simulate)


def _simulate(options: argparse.Namespace) -> int:
    zone = timetable.time_zone(options.zone)
    ticks = timetable.parse(options.spec, zone=zone.key, name=options.name)
    try:
        start = datetime.fromisoformat(options.start) if options.start else datetime.now(UTC)
    except ValueError:
        raise PgjobsError(f"--from is a date or an instant as 2026-03-07T12:00, not {options.start!r}") from None
    tick: datetime | None = (start if start.tzinfo else start.replace(tzinfo=zone)).astimezone(UTC)
    for _ in range(options.count):
        tick = tick and ticks.next(tick)
        if tick is None:
            print("never again")
            break
        local = tick.astimezone(zone)
        print(f"{local:%a} {local.isoformat(' ')}  {tick.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z")
    return 0


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.description = demo.__doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the database in this directory")
    parser.add_argument("--dsn", default=None, help="use this database instead of an embedded one (or DATABASE_URL)")
    parser.set_defaults(run=lambda options: demo.run(dsn=options.dsn, keep=options.keep))
