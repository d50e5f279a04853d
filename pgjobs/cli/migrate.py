"""`pgjobs migrate`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pgjobs.cli.arguments import Commands, add_database, add_json, add_no_transaction, number
from pgjobs.cli.ask import confirm
from pgjobs.cli.database import client_of, schema_of
from pgjobs.cli.output import print_json
from pgjobs.client import Client
from pgjobs.db import migrate, migration_plan


def add_parser(commands: Commands) -> None:
    parser = commands.add_parser("migrate", help="create the tables, or migrate them to another version")
    parser.description = (
        "Create the tables of pgjobs, or migrate them to another version. Running it again changes nothing."
    )
    parser.add_argument("direction", nargs="?", choices=["up", "down"], default="up", help="default: %(default)s")
    add_database(parser, rights="their owner")
    parser.add_argument(
        "--to",
        type=int,
        metavar="VERSION",
        help="migrate to this version; down to 0 drops everything, including all jobs",
    )
    parser.add_argument("--max-steps", type=number, metavar="N", help="take at most N steps (default for down: 1)")
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
    add_no_transaction(parser)
    add_json(parser, "one JSON object for each step, each on a line, or one for --check")
    parser.set_defaults(run=_migrate, parser=parser, changes=True)


def _migrate(options: argparse.Namespace) -> int:
    _refuse_useless_options(options)
    if options.sql:
        newest = max(migration_plan.versions())
        down = options.direction == "down"
        start = (newest if down else 0) if options.start is None else options.start
        target = (max(start - 1, 0) if down else newest) if options.to is None else options.to
        text = migrate.schema_sql(schema_of(options), start=start, target=target, transaction=options.transaction)
        print(text, end="")
        return 0
    request = {"direction": options.direction, "target": options.to, "max_steps": options.max_steps}
    with client_of(options) as app:
        client = app.client
        if options.check:
            return _check(client, as_json=options.json)
        if not (options.dry_run or options.yes or options.direction == "up"):
            _confirm_deletion(client.migrate(dry_run=True, **request), client.schema)
        steps = client.migrate(dry_run=options.dry_run, **request)
    if options.json:
        for step in steps:
            fields = {"version": step.version, "name": step.name, "direction": step.direction}
            print_json({**fields, "dry_run": options.dry_run})
        return 0
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
    if options.sql and options.json:
        options.parser.error("argument --json: not allowed with argument --sql")
    if options.sql and options.max_steps is not None:
        options.parser.error("argument --max-steps: not allowed with argument --sql, use --from and --to")
    if options.check and (options.direction == "down" or options.to is not None or options.max_steps is not None):
        options.parser.error("argument --check: not allowed with down, --to or --max-steps")


def _confirm_deletion(steps: Sequence[migration_plan.Step], schema: str) -> None:
    if all(step.version != 1 for step in steps):
        return
    confirm(f"this drops the tables in schema {schema!r}, with all jobs and schedules", yes=False)


def _check(client: Client, *, as_json: bool) -> int:
    missing = client.missing_migrations()
    if as_json:
        print_json({"missing": missing})
    elif missing:
        print(f"missing: {', '.join(map(str, missing))}")
    client.check_schema()  # raises, with advice, if versions are missing or the tables are too new
    if not as_json:
        print("ok")
    return 0
