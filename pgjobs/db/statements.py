"""Finds the .sql files, splits them into named statements, and puts these into a schema and under no search_path."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from pgjobs.db.qualify import qualify
from pgjobs.errors import InvalidSetting, shown

_PACKAGED = Path(__file__).parents[1] / "sql"  # inside an installed wheel
_CHECKOUT = Path(__file__).parents[2] / "sql"  # beside the package, in a checkout
ROOT = _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT

_OUR_SCHEMA = re.compile(r"\bpgjobs\.(?=[a-z])")
# Lower case only, so that the name means the same with and without quotes, in psql too. At most 46 characters, so that
# names derived from it stay within the 63 bytes of an identifier.
_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,45}")


def check_schema(schema: object) -> str:
    """Return the name if it can be a schema of ours, else raise InvalidSetting."""
    if not isinstance(schema, str) or not _SCHEMA.fullmatch(schema) or schema.startswith("pg_"):
        raise InvalidSetting(
            f"schema {shown(schema, 60)}: use 1 to 46 lower-case letters, digits and underscores, not beginning with "
            "a digit or pg_"
        )
    return schema


@cache
def load(path: str, schema: str) -> dict[str, bytes]:
    """Return the statements of sql/<path> by the name in their ``-- name:`` line, in the given schema.

    The name stays in the text that is sent, so that it shows in pg_stat_activity and pg_stat_statements. Where one says
    `{matches}` the text of that part of sql/parts.sql is put.
    """
    quoted = f'"{check_schema(schema)}".'
    # The files write pgjobs.job, so that they paste into psql; only here does the schema get its real name.
    return {name: _OUR_SCHEMA.sub(quoted, statement).encode() for name, statement in templates(path).items()}


@cache
def templates(path: str) -> dict[str, str]:
    """The statements of a file, each of which means the same under any search_path.

    But migrations are as they are written: they run under a search_path of their own.
    """
    known, is_migration = parts(), path.startswith("migrations/")
    texts = _blocks(path, "name")
    return {
        name: _filled(text if is_migration else qualify(text, f"sql/{path}, statement {name}"), known).strip()
        for name, text in texts.items()
    }


@cache
def parts() -> dict[str, str]:
    """What statements have in common, by name; a part may have parts itself that stand before it."""
    parts: dict[str, str] = {}
    for name, text in _blocks("parts.sql", "part").items():
        body = text.split("\n", 1)[1]
        parts[name] = _filled(qualify(body, f"sql/parts.sql, part {name}"), parts).strip()
    return parts


def _blocks(path: str, word: str) -> dict[str, str]:
    """The text of a file by the names in its ``-- name:`` lines, which are the first lines of the texts."""
    text = (ROOT / path).read_text(encoding="utf-8")
    blocks = re.split(rf"^(?=-- {word}: )", text, flags=re.MULTILINE)[1:]
    return {block.split(maxsplit=3)[2]: block for block in blocks}


def _filled(text: str, parts: dict[str, str]) -> str:
    for name, part in parts.items():
        text = text.replace(f"{{{name}}}", part)
    return text
