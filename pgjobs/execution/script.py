"""The statements of one message, and the values in them.

A script is made once and sent many times; transport.py sends it. Which statements the scripts of an attempt have is
decided in scripts.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from pgjobs.db.cursors import AnyConnection
from pgjobs.interval import interval_text

Values = Mapping[str, Any]
Literals = Mapping[str, bytes]
_NO_VALUES: Literals = {}


@dataclass(frozen=True, slots=True, eq=False)
class Statement:
    """A statement to be prepared, with the names of its parameters in order; or a command such as COMMIT, which cannot
    be prepared."""

    name: bytes  # a number is added to it
    sql: bytes
    parameters: tuple[str, ...]
    command: bool


def numbered(name: str, statement: bytes, fixed: Literals = _NO_VALUES) -> Statement:
    """Make a `Statement` of a statement of the .sql files. The `fixed` values are written into its text: the server
    takes two or three microseconds for each parameter."""
    parameters: list[str] = []

    def number(match: re.Match[bytes]) -> bytes:
        if not match[1]:
            return b"%"
        parameter = match[1].decode()
        if parameter in fixed:
            return fixed[parameter]
        if parameter not in parameters:
            parameters.append(parameter)
        return b"$%d" % (parameters.index(parameter) + 1)

    sql = re.sub(rb"%%|%\((\w+)\)s", number, without_comments(statement))
    command = re.match(rb"SELECT|WITH|UPDATE|INSERT|DELETE|CALL", sql) is None
    return Statement(name.encode(), sql, tuple(parameters), command)


def commands(statements: bytes) -> list[bytes]:
    """Split a text of the .sql files into its commands."""
    return [command for command in without_comments(statements).split(b";\n") if command]


def without_comments(sql: bytes) -> bytes:
    """A statement, or a part of one, of the .sql files, without its comments and its semicolon."""
    return re.sub(rb"^ *--.*\n", b"", sql, flags=re.MULTILINE).strip().rstrip(b";")


class Script:
    """Statements that go in one message, each with a label by which its answer is found.

    `fixed` are the values that are the same whenever the script runs: they are written into the text of a statement
    that is prepared. The other parameters are given at each run. `undo_role` is run before a statement is prepared: a
    handler's role may lack the privileges.
    """

    def __init__(
        self, steps: Sequence[tuple[str, bytes]], fixed: Values = _NO_VALUES, *, undo_role: Script | None = None
    ) -> None:
        self.at = {label: place for place, (label, _) in enumerate(steps)}  # of several alike the last
        self.steps = steps
        self.fixed = fixed
        self.undo_role = undo_role
        self.ascii = all((text_of(value) or "").isascii() for value in fixed.values())
        self._singles: list[tuple[bytes, tuple[str, ...]]] | None = None

    def __len__(self) -> int:
        return len(self.steps)

    def key(self, conn: AnyConnection) -> object:
        """A key of its template: the bytes of a text beyond ASCII depend on the encoding that the session has now."""
        return self if self.ascii else (self, conn.info.encoding)

    def statements(self, tag: str, literal: Callable[[Any], bytes]) -> list[Statement]:
        """The statements with the fixed values in their text."""
        fixed = {name: literal(value) for name, value in self.fixed.items()}
        return [numbered(f"{tag}_{label}", sql, fixed) for label, sql in self.steps]

    def singles(self, literal: Callable[[Any], bytes]) -> list[tuple[bytes, tuple[str, ...]]]:
        """Each statement with the names of its parameters. A command can have none: its values are literals."""
        if self._singles is not None:
            return self._singles
        made = []
        for label, sql in self.steps:
            single = numbered(label, sql)
            if single.command and single.parameters:
                single = numbered(label, sql, {name: literal(self.fixed[name]) for name in single.parameters})
            made.append((single.sql, single.parameters))
        if self.ascii:
            self._singles = made
        return made


def text_of(value: Any) -> str | None:
    """A value as text, as the server reads it."""
    match value:
        case str() | None:
            return value
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case UUID():
            return value.hex
        case datetime():
            return value.isoformat()
        case timedelta():
            return interval_text(value)
    return array_text(value)


def array_text(values: Sequence[str | int]) -> str:
    """An array in the text form of Postgres."""
    quoted = (str(value).replace("\\", "\\\\").replace('"', '\\"') for value in values)
    return "{" + ",".join(f'"{text}"' for text in quoted) + "}"
