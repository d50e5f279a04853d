"""Finds the .sql files, splits them into named statements, and puts them into a schema."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from pgjobs.errors import InvalidSetting

_PACKAGED = Path(__file__).parent / "sql"  # inside an installed wheel
_CHECKOUT = Path(__file__).parent.parent / "sql"  # beside the package, in a checkout
ROOT = _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT

# Lower case only, so that the name means the same with and without quotes, in psql too. At most 46 characters, so that
# names derived from it stay within the 63 bytes of an identifier.
_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,45}")


def check_schema(schema: object) -> str:
    """Return the name if it can be a schema of ours, else raise InvalidSetting."""
    if not isinstance(schema, str) or not _SCHEMA.fullmatch(schema) or schema.startswith("pg_"):
        raise InvalidSetting(
            f"schema {str(schema)[:60]!r}: use 1 to 46 lower-case letters, digits and underscores, not beginning with "
            "a digit or pg_"
        )
    return schema


@cache
def load(path: str, schema: str) -> dict[str, bytes]:
    """Return the statements of sql/<path> by the name in their ``-- name:`` line, in the given schema.

    The name stays in the text that is sent, so that it shows in pg_stat_activity and pg_stat_statements. Where one says
    `{matches}` the text of that part of sql/parts.sql is put.
    """
    text = _with_parts((ROOT / path).read_text(encoding="utf-8"))
    blocks = re.split(r"^(?=-- name: )", text, flags=re.MULTILINE)[1:]
    quoted = f'"{check_schema(schema)}".'
    # The files write pgjobs.job, so that they paste into psql; only here does the schema get its real name.
    return {
        block.split(maxsplit=3)[2]: re.sub(r"\bpgjobs\.(?=[a-z])", quoted, block.strip()).encode() for block in blocks
    }


def _with_parts(text: str) -> str:
    """The text with what it has in common with others put in; a part may have parts itself that stand before it."""
    parts: dict[str, str] = {}
    for block in re.split(r"^-- part: ", (ROOT / "parts.sql").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        name, body = block.split("\n", 1)
        parts[name] = _filled(body, parts).strip()
    return _filled(text, parts)


def _filled(text: str, parts: dict[str, str]) -> str:
    for name, part in parts.items():
        text = text.replace(f"{{{name}}}", part)
    return text


def channel(schema: str) -> str:
    """The notification channel of a schema; the payload is the name of a queue."""
    return f"pgjobs:{schema}"
