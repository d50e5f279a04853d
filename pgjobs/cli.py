"""The command line program `pgjobs`."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import psycopg

from pgjobs import guide, timetable
from pgjobs.client import Client
from pgjobs.db import migrate, migration_plan
from pgjobs.db.roles import roles_sql
from pgjobs.errors import PgjobsError

# libpq finds the database by any of these environment variables.
_DATABASE_VARIABLES = ("PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGUSER", "PGSERVICE")
_ROLES = ("enqueuer", "worker", "viewer", "operator")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 0 for success, 1 for an error, 2 for wrong usage, 130 after Ctrl-C, 141
    after a broken pipe."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except (PgjobsError, psycopg.Error) as error:
        print(f"pgjobs: {error}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("pgjobs: interrupted; the unfinished step changed nothing", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _discard_output()
        return 141
    except OSError as error:  # such as a full disk
        print(f"pgjobs: {error}", file=sys.stderr)
        _discard_output()
        return 1
    return code


def _discard_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python fails to flush stdout when it exits


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pgjobs", description="A job queue on Postgres.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_migrate(commands.add_parser("migrate", help="create the tables, or migrate them to another version"))
    _add_roles(commands.add_parser("roles", help="print the SQL with the privileges of database roles"))
    _add_schedule(commands.add_parser("schedule", help="show when a schedule ticks"))
    _add_guide(commands.add_parser("guide", help="print a page of the guide, or list its topics"))
    _add_demo(commands.add_parser("demo", help="index the standard library with two workers, and kill one of them"))
    return parser


def _add_migrate(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Create the tables of pgjobs, or migrate them to another version. Running it again changes nothing."
    )
    parser.add_argument("direction", nargs="?", choices=["up", "down"], default="up", help="default: %(default)s")
    parser.add_argument(
        "--dsn", default=None, help="the database (default: DATABASE_URL, else PGHOST, PGSERVICE and so on)"
    )
    _add_schema(parser)
    parser.add_argument(
        "--to",
        type=int,
        metavar="VERSION",
        help="migrate to this version; down to 0 drops everything, including all jobs",
    )
    parser.add_argument("--max-steps", type=_number, metavar="N", help="take at most N steps (default for down: 1)")
    parser.add_argument("--yes", action="store_true", help="delete all jobs without asking")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--dry-run", action="store_true", help="change nothing, print the steps")
    instead.add_argument(
        "--check", action="store_true", help="change nothing, fail unless the tables have the right version"
    )
    instead.add_argument("--sql", action="store_true", help="change nothing, print the SQL for psql or another tool")
    parser.add_argument(
        "--from", type=int, default=None, dest="start", metavar="VERSION", help="for --sql: start from this version"
    )
    _add_no_transaction(parser)
    parser.set_defaults(run=_migrate, parser=parser)


def _add_schema(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--schema", default="pgjobs", help="the schema of the tables (default: %(default)s)")


def _add_no_transaction(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-transaction",
        action="store_false",
        dest="transaction",
        help="for --sql: omit BEGIN and COMMIT, for a tool that adds its own",
    )


def _migrate(options: argparse.Namespace) -> int:
    _refuse_useless_options(options)
    if options.sql:
        newest = max(migration_plan.versions())
        down = options.direction == "down"
        start = (newest if down else 0) if options.start is None else options.start
        target = (max(start - 1, 0) if down else newest) if options.to is None else options.to
        text = migrate.schema_sql(options.schema, start=start, target=target, transaction=options.transaction)
        print(text, end="")
        return 0
    request = {"direction": options.direction, "target": options.to, "max_steps": options.max_steps}
    with Client(_dsn(options), schema=options.schema) as client:
        if options.check:
            return _check(client)
        if not (options.dry_run or options.yes or options.direction == "up"):
            _confirm_deletion(client.migrate(dry_run=True, **request), options.schema)
        steps = client.migrate(dry_run=options.dry_run, **request)
    for step in steps:
        print(f"would apply: {step}" if options.dry_run else step)
    if not steps:
        print("nothing to do")
    return 0


def _refuse_useless_options(options: argparse.Namespace) -> None:
    """Refuse options that have no effect together with the others."""
    only_sql = {"--from": options.start is not None, "--no-transaction": not options.transaction}
    for name in (name for name, given in only_sql.items() if given and not options.sql):
        options.parser.error(f"argument {name}: allowed only with --sql")
    if options.sql and options.max_steps is not None:
        options.parser.error("argument --max-steps: not allowed with argument --sql, use --from and --to")
    if options.check and (options.direction == "down" or options.to is not None or options.max_steps is not None):
        options.parser.error("argument --check: not allowed with down, --to or --max-steps")


def _confirm_deletion(steps: Sequence[migration_plan.Step], schema: str) -> None:
    if all(step.version != 1 for step in steps):
        return
    warning = f"this drops the tables in schema {schema!r}, with all jobs and schedules"
    if not sys.stdin.isatty():
        raise PgjobsError(f"{warning}: add --yes to do that")
    try:
        answer = input(f"{warning}. Go on? [y/N] ")
    except EOFError:  # Ctrl-D
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise PgjobsError("nothing was changed")


def _check(client: Client) -> int:
    missing = client.missing_migrations()
    if missing:
        print(f"missing: {', '.join(map(str, missing))}")
    client.check_schema()  # raises, with advice, if versions are missing or the tables are too new
    print("ok")
    return 0


def _dsn(options: argparse.Namespace) -> str:
    dsn: str | None = options.dsn or os.environ.get("DATABASE_URL")
    if dsn:
        return dsn
    if any(os.environ.get(name) for name in _DATABASE_VARIABLES):
        return "application_name=pgjobs"  # libpq reads the environment
    raise PgjobsError(f"which database? give --dsn, or set DATABASE_URL or one of {', '.join(_DATABASE_VARIABLES)}")


def _add_roles(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Print the SQL that grants roles the privileges they need on the tables and revokes all others. "
        "Run it as the owner of the tables, and again after each migration. Missing roles are created, without login."
    )
    parser.add_argument("--sql", action="store_true", required=True, help="print the SQL for psql or another tool")
    _add_schema(parser)
    for role in _ROLES:
        parser.add_argument(f"--{role}", default=f"pgjobs_{role}", metavar="NAME", help="default: %(default)s")
    parser.add_argument(
        "--without", action="append", default=[], choices=_ROLES, help="omit this role; can be repeated"
    )
    parser.add_argument(
        "--no-enqueue-many",
        action="store_false",
        dest="enqueue_many",
        help="the enqueuer may not set ids, which bulk inserts need",
    )
    parser.add_argument(
        "--no-replace", action="store_false", dest="replace", help="the enqueuer may not replace waiting jobs"
    )
    parser.add_argument(
        "--hide-args", action="store_false", dest="view_args", help="the viewer may not read args, errors and output"
    )
    _add_no_transaction(parser)
    parser.set_defaults(run=_print_roles)


def _print_roles(options: argparse.Namespace) -> int:
    names = {role: None if role in options.without else getattr(options, role) for role in _ROLES}
    text = roles_sql(
        options.schema,
        **names,
        enqueue_many=options.enqueue_many,
        replace=options.replace,
        view_args=options.view_args,
        transaction=options.transaction,
    )
    print(text, end="")
    return 0


def _add_schedule(parser: argparse.ArgumentParser) -> None:
    parser.description = "Schedules: durable cron."
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    simulate = actions.add_parser("simulate", help="print the next ticks of a schedule")
    simulate.description = "Print when a schedule ticks, in its time zone and in UTC. Needs no database."
    simulate.add_argument("spec", help="a cron expression such as '30 2 * * *' or @daily, or '@every 1h30m'")
    simulate.add_argument("--zone", default="UTC", help="its time zone (default: %(default)s)")
    simulate.add_argument("--from", dest="start", metavar="WHEN", help="a date or time in that zone (default: now)")
    simulate.add_argument(
        "--count", type=_number, default=10, metavar="N", help="how many ticks (default: %(default)s)"
    )
    simulate.add_argument("--name", default="", help="the schedule's name, which determines the values of H fields")
    simulate.set_defaults(run=_simulate)


def _simulate(options: argparse.Namespace) -> int:
    zone = timetable.time_zone(options.zone)
    ticks = timetable.parse(options.spec, zone=zone.key, name=options.name)
    tick = _start(options.start, zone)
    for _ in range(options.count):
        tick = tick and ticks.next(tick)
        if tick is None:
            print("never again")
            break
        local = tick.astimezone(zone)
        print(f"{local:%a} {local.isoformat(' ')}  {tick.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z")
    return 0


def _start(text: str | None, zone: ZoneInfo) -> datetime | None:
    if text is None:
        return datetime.now(UTC)
    try:
        start = datetime.fromisoformat(text)
        return (start if start.tzinfo else start.replace(tzinfo=zone)).astimezone(UTC)
    except (ValueError, OverflowError):  # the UTC time may be outside of the years 1 to 9999
        raise PgjobsError(f"--from must be a date or a time such as 2026-03-07T12:00, not {text!r}") from None


def _number(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"must be a whole number, 0 or more, not {text!r}")
    return int(text)


def _add_guide(parser: argparse.ArgumentParser) -> None:
    parser.description = "Print a page of the guide, through a pager on a terminal. Without a topic, list the topics."
    parser.add_argument("topic", nargs="?", help=", ".join(guide.TOPICS))
    parser.set_defaults(run=_guide)


def _guide(options: argparse.Namespace) -> int:
    if options.topic is None:
        print(_topics())
        return 0
    page = guide.read(options.topic)
    if sys.stdout.isatty():
        import pydoc  # slow to import, and used only here

        pydoc.pager(page)
    else:
        print(page, end="")
    return 0


def _topics() -> str:
    indent = " " * (max(map(len, guide.TOPICS)) + 2)
    lines = textwrap.TextWrapper(width=min(shutil.get_terminal_size().columns, 100), subsequent_indent=indent)
    listed = [lines.fill(f"{topic:{len(indent)}}{guide.summary(topic)}") for topic in guide.TOPICS]
    return "\n".join([*listed, "", "`pgjobs guide TOPIC` prints one of them."])


def _add_demo(parser: argparse.ArgumentParser) -> None:
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
