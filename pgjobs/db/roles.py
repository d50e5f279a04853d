"""The SQL that creates the database roles of an application: enqueuer, worker, viewer and operator."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from pgjobs.db import statements
from pgjobs.errors import InvalidSetting

_ROLE = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,62}")
_GRANT = re.compile(r"^GRANT (.*?)\s+ON\s+(?:(SCHEMA|SEQUENCE|FUNCTION)\s+)?(.*?)\s+TO\s", re.MULTILINE | re.DOTALL)
_OUTSIDE_PARENTHESES = re.compile(r",\s*(?![^(]*\))")
_TYPE = re.compile(r"\b(?:text|jsonb|timestamptz)\b")  # those that the grammar does not look up in pg_catalog itself

#: What each kind of role is granted at least.
LEAST = {
    "enqueuer": ("grant_enqueuer",),
    "worker": ("grant_worker",),
    "viewer": ("grant_viewer",),
    "operator": ("grant_viewer", "grant_view_of_args", "grant_operator"),
}


class Right(NamedTuple):
    """A privilege on an object, or on a column of a table."""

    sort: str  # "schema", "table", "column", "sequence" or "function"
    privilege: str
    object: str
    part: str  # the column; else empty


def roles_sql(
    schema: str = "pgjobs",
    *,
    enqueuer: str | None = "pgjobs_enqueuer",
    worker: str | None = "pgjobs_worker",
    viewer: str | None = "pgjobs_viewer",
    operator: str | None = "pgjobs_operator",
    enqueue_many: bool = True,
    replace: bool = True,
    view_args: bool = True,
    transaction: bool = True,
) -> str:
    """The SQL that grants each of these roles the rights that it needs on the tables of the schema, and revokes all
    others. It creates missing roles, without LOGIN; None leaves a role out.

    Run it as the owner of the tables or as a superuser, and again after each migration. Without `enqueue_many` the
    enqueuer cannot choose ids; without `replace` it cannot change waiting jobs; without `view_args` the viewer does not
    see args, errors and output, and can count jobs but not list them. With `transaction=False` the SQL has no BEGIN and
    COMMIT.
    """
    grants = {
        enqueuer: ["grant_enqueuer", *["grant_enqueue_many"] * enqueue_many, *["grant_replace"] * replace],
        worker: ["grant_worker"],
        viewer: ["grant_viewer", *["grant_view_of_args"] * view_args],
        operator: ["grant_viewer", "grant_view_of_args", "grant_operator"],
    }
    named = [name for name in (enqueuer, worker, viewer, operator) if name is not None]
    if len(set(named)) < len(named):
        raise InvalidSetting("each role needs a name of its own: grant both roles to a login role that needs both")
    files = statements.load("roles.sql", statements.check_schema(schema))
    parts = [
        _filled(files[block], schema, _checked(role))
        for role, blocks in grants.items()
        if role is not None
        for block in ["make_role", *blocks]
    ]
    return "\n\n".join(["BEGIN;", *parts, "COMMIT;"] if transaction else parts) + "\n"


def _filled(block: bytes, schema: str, role: str) -> str:
    return block.decode().replace("{role}", role).replace("{schema}", f'"{schema}"')


def _checked(role: object) -> str:
    if not isinstance(role, str) or not _ROLE.fullmatch(role) or role.startswith("pg_") or role in ("public", "none"):
        raise InvalidSetting(
            f"role {str(role)[:80]!r}: use 1 to 63 letters, digits, - _ and . ; not beginning with a digit or pg_, "
            "and neither public nor none"
        )
    return role


def least_rights(schema: str, kind: str) -> list[Right]:
    """The rights that `roles_sql` grants to this kind of role, whatever its options are."""
    files = statements.load("roles.sql", schema)
    text = "\n".join(_filled(files[block], schema, "role") for block in ("make_role", *LEAST[kind]))
    return [
        right
        for privileges, sort, objects in _GRANT.findall(text)
        for right in _rights(privileges, sort.lower() or "table", _OUTSIDE_PARENTHESES.split(objects))
    ]


def _rights(privileges: str, sort: str, objects: list[str]) -> Iterator[Right]:
    for each in _OUTSIDE_PARENTHESES.split(privileges):
        privilege, _, columns = each.strip().partition(" (")
        for name in objects:
            target = name.strip().replace('"', "") if sort == "schema" else _TYPE.sub(r"pg_catalog.\g<0>", name.strip())
            if columns:
                for column in columns.rstrip(")").replace('"', "").split(","):
                    yield Right("column", privilege, target, column.strip())
            else:
                yield Right(sort, privilege, target, "")
