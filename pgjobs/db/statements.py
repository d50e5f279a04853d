"""Loads the statements of the .sql files, by their names.

A file is written so that it can be pasted into psql. Loading replaces the schema pgjobs by the client's schema, inserts
the shared parts of sql/parts.sql, and makes each statement independent of the search_path: see qualify.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path

from pgjobs.db.qualify import qualify
from pgjobs.errors import InvalidSetting, shown

_PACKAGED = Path(__file__).parents[1] / "sql"  # inside an installed wheel
_CHECKOUT = Path(__file__).parents[2] / "sql"  # next to the package, in a checkout
ROOT = _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT

_OUR_SCHEMA = re.compile(r"\bpgjobs\.(?=[a-z])")
# Lower case only, so that the name means the same with and without quotes. At most 46 characters, so that names derived
# from it fit into the 63 bytes of an identifier.
_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,45}")


def check_schema(schema: object) -> str:
    """Return the name if it is a valid schema for pgjobs, else raise InvalidSetting."""
    if not isinstance(schema, str) or not _SCHEMA.fullmatch(schema) or schema.startswith("pg_"):
        raise InvalidSetting(
            f"schema {shown(schema, 60)}: use 1 to 46 lower-case letters, digits and underscores, not beginning with "
            "a digit or pg_"
        )
    return schema


@cache
def load(path: str, schema: str) -> dict[str, bytes]:
    """The statements of sql/<path> in this schema, by the name in their ``-- name:`` line.

    This line is sent too, so that pg_stat_activity and pg_stat_statements show the name.
    """
    quoted = f'"{check_schema(schema)}".'
    return {name: quoted.join(cut).encode() for name, cut in pieces(path).items()}


@cache
def pieces(path: str) -> dict[str, list[str]]:
    """The statements, cut where the schema goes in: to search them for each schema takes ten times as long."""
    return {name: _OUR_SCHEMA.split(statement) for name, statement in templates(path).items()}


@cache
def templates(path: str) -> dict[str, str]:
    """The statements of a file with their parts inserted, still in the schema pgjobs.

    Migrations are not qualified: they run with a search_path of pg_catalog alone.
    """
    known, is_migration = parts(), path.startswith("migrations/")
    texts = _blocks(path, "name")
    return {
        name: _filled(text if is_migration else qualify(text, f"sql/{path}, statement {name}"), known).strip()
        for name, text in texts.items()
    }


@cache
def parts() -> dict[str, str]:
    """The parts of sql/parts.sql by name. `{matches}` in a statement or a later part includes the part `matches`."""
    parts: dict[str, str] = {}
    for name, text in _blocks("parts.sql", "part").items():
        body = text.split("\n", 1)[1]
        parts[name] = _filled(qualify(body, f"sql/parts.sql, part {name}"), parts).strip()
    return parts


# `(%(ids)s::bigint[] IS NULL OR ...)`, where the parentheses in the dots are balanced, at most three deep.
_CONDITION = re.compile(
    rb"\(%\((\w+)\)s::[\w.\[\]]+ IS NULL\s+OR ((?:[^()]|\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\))*)\)"
)


def without_unused(statement: bytes, values: Mapping[str, object]) -> bytes:
    """The statement with each condition `(%(name)s IS NULL OR ...)` on these values decided: `true` if the value is
    None. The planner would do that too, but for a short statement it takes longer than the statement itself."""
    given = frozenset(name for name, value in values.items() if value is not None)
    return _without_unused(statement, given, frozenset(values))


@lru_cache(maxsize=256)
def _without_unused(statement: bytes, given: frozenset[str], names: frozenset[str]) -> bytes:
    def decided(match: re.Match[bytes]) -> bytes:
        name = match[1].decode()
        if name not in names:
            return match[0]
        return b"(%b)" % match[2] if name in given else b"true"

    return _CONDITION.sub(decided, statement)


def _blocks(path: str, word: str) -> dict[str, str]:
    """The file, split before each ``-- name:`` or ``-- part:`` line, by the name in that line."""
    text = (ROOT / path).read_text(encoding="utf-8")
    blocks = re.split(rf"^(?=-- {word}: )", text, flags=re.MULTILINE)[1:]
    return {block.split(maxsplit=3)[2]: block for block in blocks}


def _filled(text: str, parts: dict[str, str]) -> str:
    for name, part in parts.items():
        text = text.replace(f"{{{name}}}", part)
    return text
