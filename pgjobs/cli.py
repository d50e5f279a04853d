"""The command `pgjobs`."""

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

# By any of these libpq knows where the database is.
_PLACES = ("PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGUSER", "PGSERVICE")
_ROLES = ("enqueuer", "worker", "viewer", "operator")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0 when it did what was asked, 1 when it could not, 2 for wrong usage, 130 when
    it was interrupted, 141 when nothing reads its output any more."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except (PgjobsError, psycopg.Error) as error:
        print(f"pgjobs: {error}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("pgjobs: interrupted; a step that was not finished has changed nothing", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _write_no_more()
        return 141
    except OSError as error:  # a full disk behind the output, a directory that cannot be made
        print(f"pgjobs: {error}", file=sys.stderr)
        _write_no_more()
        return 1
    return code


def _write_no_more() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python fails at the flush of its end


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pgjobs", description=__doc__ and "A job queue on Postgres.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_migrate(commands.add_parser("migrate", help="make the tables, or bring them to another version"))
    _add_roles(commands.add_parser("roles", help="print what database roles need to enqueue, work, view or control"))
    _add_schedule(commands.add_parser("schedule", help="say when a schedule would tick"))
    _add_guide(commands.add_parser("guide", help="print a page of the guide, or list its topics"))
    _add_demo(commands.add_parser("demo", help="index the standard library with two workers, and kill one half way"))
    return parser


def _add_migrate(parser: argparse.ArgumentParser) -> None:
    parser.description = "Make the tables of pgjobs, or bring them to another version. Doing it twice changes nothing."
    parser.add_argument("direction", nargs="?", choices=["up", "down"], default="up", help="default: %(default)s")
    parser.add_argument(
        "--dsn", default=None, help="the database; DATABASE_URL when left out, else what PGHOST, PGSERVICE and such say"
    )
    _add_schema(parser)
    parser.add_argument(
        "--to",
        type=int,
        metavar="VERSION",
        help="stop at this version; down to 0 takes everything down, the jobs with it",
    )
    parser.add_argument("--max-steps", type=_number, metavar="N", help="at most so many steps (down: 1 unless said)")
    parser.add_argument("--yes", action="store_true", help="do not ask before all jobs are deleted")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--dry-run", action="store_true", help="change nothing, say what would be done")
    instead.add_argument("--check", action="store_true", help="change nothing, fail unless the tables fit")
    instead.add_argument("--sql", action="store_true", help="print the SQL instead, for psql or another tool")
    parser.add_argument("--from", type=int, default=None, dest="start", metavar="VERSION", help="for --sql: begin here")
    _add_no_transaction(parser)
    parser.set_defaults(run=_migrate, parser=parser)


def _add_schema(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--schema", default="pgjobs", help="the schema that holds the tables (default: %(default)s)")


def _add_no_transaction(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-transaction",
        action="store_false",
        dest="transaction",
        help="for --sql: without BEGIN and COMMIT, for a tool that has its own",
    )


def _migrate(options: argparse.Namespace) -> int:
    _refuse_what_means_nothing(options)
    if options.sql:
        newest = max(migration_plan.versions())
        down = options.direction == "down"
        start = (newest if down else 0) if options.start is None else options.start
        target = (max(start - 1, 0) if down else newest) if options.to is None else options.to
        text = migrate.schema_sql(options.schema, start=start, target=target, transaction=options.transaction)
        print(text, end="")
        return 0
    steps_asked = {"direction": options.direction, "target": options.to, "max_steps": options.max_steps}
    with Client(_dsn(options), schema=options.schema) as client:
        if options.check:
            return _check(client)
        if not (options.dry_run or options.yes or options.direction == "up"):
            _ask_before_all_jobs_go(client.migrate(dry_run=True, **steps_asked), options.schema)
        steps = client.migrate(dry_run=options.dry_run, **steps_asked)
    for step in steps:
        print(f"would apply: {step}" if options.dry_run else step)
    if not steps:
        print("nothing to do")
    return 0


def _refuse_what_means_nothing(options: argparse.Namespace) -> None:
    """An option that the others make meaningless is a mistake."""
    parts = {"--from": options.start is not None, "--no-transaction": not options.transaction}
    for name in (name for name, given in parts.items() if given and not options.sql):
        options.parser.error(f"argument {name}: is a part of --sql")
    if options.sql and options.max_steps is not None:
        options.parser.error("argument --max-steps: not allowed with argument --sql, which takes --from and --to")
    if options.check and (options.direction == "down" or options.to is not None or options.max_steps is not None):
        options.parser.error("argument --check: looks at all versions, and takes no direction, --to and --max-steps")


def _ask_before_all_jobs_go(steps: Sequence[migration_plan.Step], schema: str) -> None:
    if all(step.version != 1 for step in steps):
        return
    warning = f"this drops the tables in schema {schema!r}, with all jobs and schedules"
    if not sys.stdin.isatty():
        raise PgjobsError(f"{warning}: say --yes if that is meant")
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
    client.check_schema()  # says what to do; newer tables lack nothing, and do not fit either
    print("ok")
    return 0


def _dsn(options: argparse.Namespace) -> str:
    dsn: str | None = options.dsn or os.environ.get("DATABASE_URL")
    if dsn:
        return dsn
    if any(os.environ.get(name) for name in _PLACES):
        return "application_name=pgjobs"  # libpq finds the rest by itself
    raise PgjobsError(f"which database? give --dsn, or set DATABASE_URL or one of {', '.join(_PLACES)}")


def _add_roles(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Print the SQL that gives roles what they need on the tables, and takes from them what else they have there. "
        "Run it as the owner of the tables, also after each migration. Missing roles are made, without a login."
    )
    parser.add_argument("--sql", action="store_true", required=True, help="print the SQL, for psql or another tool")
    _add_schema(parser)
    for role in _ROLES:
        parser.add_argument(f"--{role}", default=f"pgjobs_{role}", metavar="NAME", help="default: %(default)s")
    parser.add_argument(
        "--without", action="append", default=[], choices=_ROLES, help="leave this one out; may be said again"
    )
    parser.add_argument(
        "--no-enqueue-many", action="store_false", dest="enqueue_many", help="the enqueuer may not name ids"
    )
    parser.add_argument(
        "--no-replace", action="store_false", dest="replace", help="the enqueuer may not change jobs that wait"
    )
    parser.add_argument(
        "--hide-args", action="store_false", dest="view_args", help="the viewer sees no args, errors and output"
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
    acts = parser.add_subparsers(required=True, metavar="ACT")
    simulate = acts.add_parser("simulate", help="print the next ticks, also over a change of the clocks")
    simulate.description = "Print when a schedule would tick: in its zone, and in UTC. Needs no database."
    simulate.add_argument("spec", help="a cron text as '30 2 * * *', @daily, or '@every 1h30m'")
    simulate.add_argument("--zone", default="UTC", help="its time zone (default: %(default)s)")
    simulate.add_argument(
        "--from", dest="start", metavar="WHEN", help="a date or an instant in that zone; default: now"
    )
    simulate.add_argument("--count", type=_number, default=10, metavar="N", help="how many (default: %(default)s)")
    simulate.add_argument("--name", default="", help="the schedule's name, from which fields with an H are drawn")
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
    except (ValueError, OverflowError):  # in the zone it may lie outside of the years 1 to 9999
        raise PgjobsError(f"--from is a date or an instant as 2026-03-07T12:00, not {text!r}") from None


def _number(text: str) -> int:
    """A number of steps or ticks."""
    if not text.isdecimal() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"a whole number, 0 or more, and not {text!r}")
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
        import pydoc  # it imports much, for this alone

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
        "what its handler wrote is rolled back, and the other process runs the job again. At the end queries count "
        "what was lost and what was done twice. It takes about 15 seconds, on an embedded Postgres, or in the schemas "
        "pgjobs_demo and stdlib_index of a database that is given, which it drops at the end."
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the database in this directory")
    parser.add_argument("--dsn", default=None, help="use this database instead of an embedded one (or DATABASE_URL)")
    parser.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> int:
    from pgjobs.demo import story  # it and the embedded Postgres need what only Unix has

    return story.run(dsn=options.dsn, keep=options.keep)
