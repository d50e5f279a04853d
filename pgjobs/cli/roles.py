"""`pgjobs roles`."""

from __future__ import annotations

import argparse

from pgjobs.cli.arguments import Commands, add_app, add_no_transaction, add_schema
from pgjobs.cli.database import schema_of
from pgjobs.db.roles import roles_sql

_ROLES = ("enqueuer", "worker", "viewer", "operator")


def add_parser(commands: Commands) -> None:
    parser = commands.add_parser("roles", help="print the SQL with the privileges of database roles")
    parser.description = (
        "Print the SQL that grants roles the privileges they need on the tables and revokes all others. "
        "Run it as the owner of the tables, and again after each migration. Missing roles are created, without login."
    )
    parser.add_argument("--sql", action="store_true", required=True, help="print the SQL for psql or another tool")
    add_app(parser)
    add_schema(parser)
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
    add_no_transaction(parser)
    parser.set_defaults(run=_print_roles)


def _print_roles(options: argparse.Namespace) -> int:
    names = {role: None if role in options.without else getattr(options, role) for role in _ROLES}
    text = roles_sql(
        schema_of(options),
        **names,
        enqueue_many=options.enqueue_many,
        replace=options.replace,
        view_args=options.view_args,
        transaction=options.transaction,
    )
    print(text, end="")
    return 0
