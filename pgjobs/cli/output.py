"""What the commands print: tables for people, JSON for programs.

On a terminal a table fits its width, and rich colours it if it is installed. In a pipe nothing is cut and nothing is
coloured, whether rich is installed or not. Text from the database may hold anything, so characters that command a
terminal or change the direction of the text are shown as escapes.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, TypeVar

from pgjobs.clean_text import one_line
from pgjobs.interval import span_text as span_text  # noqa: PLC0414  the commands import it from here

Item = TypeVar("Item")

_CHUNK = 1000  # rows whose widths are computed together
_GAP = "  "
_NARROWEST = 8  # of a column that may be cut
_LONGEST_CELL = 100_000
_STYLES = {
    **{"completed": "green", "running": "blue", "retryable": "yellow", "discarded": "red", "cancelled": "dim"},
    **{"pending": "dim", "paused": "yellow"},
}


@dataclass(frozen=True, slots=True)
class Column:
    head: str
    right: bool = False
    elastic: bool = False  # may be cut on a narrow terminal


# --- tables


def print_table(columns: Sequence[Column], rows: Iterable[Sequence[object]]) -> None:
    """Print rows as they come; of a long list each thousand has widths of its own."""
    left = iter(rows)
    print_chunk(columns, list(islice(left, _CHUNK)))
    while chunk := list(islice(left, _CHUNK)):
        print_chunk(columns, chunk, with_head=False)


def print_all(
    items: Sequence[Item],
    columns: Sequence[Column],
    row: Callable[[Item], Sequence[object]],
    fields: Callable[[Item], Mapping[str, Any]],
    *,
    as_json: bool,
    none: str,
) -> None:
    """Print a short list: JSON on a line each, or a table, or the remark that there is none."""
    if as_json:
        for item in items:
            print_json(fields(item))
    elif items:
        print_table(columns, map(row, items))
    else:
        say(none)


def print_chunk(columns: Sequence[Column], rows: Sequence[Sequence[object]], *, with_head: bool = True) -> None:
    console = rich_console() if sys.stdout.isatty() else None
    if console is not None:
        console.print(rich_table(columns, rows, with_head=with_head), soft_wrap=True)
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in plain_lines(columns, rows, width, with_head=with_head):
        print(line)


def plain_lines(
    columns: Sequence[Column], rows: Sequence[Sequence[object]], width: int | None, *, with_head: bool = True
) -> list[str]:
    """The lines of a table, no longer than `width` if possible; None is no limit."""
    lines = _aligned(columns, rows, width)
    return [_GAP.join(line).rstrip() for line in (lines if with_head else lines[1:])]


def rich_table(columns: Sequence[Column], rows: Sequence[Sequence[object]], *, with_head: bool = True) -> Any:
    """The same table as a coloured text of rich, for the width of the terminal."""
    from rich.text import Text

    head, *lines = _aligned(columns, rows, shutil.get_terminal_size().columns)
    printed = [Text(_GAP.join(head), style="bold")] if with_head else []
    for line in lines:
        cells = [Text(cell, style=_STYLES.get(cell.strip(), "")) for cell in line]
        printed.append(Text(_GAP).join(cells))
    return Text("\n").join(printed)


def rich_console(*, stderr: bool = False) -> Any:
    """A console of rich, or None if rich is not installed."""
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def _aligned(columns: Sequence[Column], rows: Sequence[Sequence[object]], width: int | None) -> list[list[str]]:
    """The head and the rows, with the cells of each column cut and padded to one width."""
    texts = _texts(rows)
    widths = _widths(columns, texts, width)
    return [
        [
            _padded(_cut(cell, size), size, right=column.right)
            for cell, size, column in zip(line, widths, columns, strict=True)
        ]
        for line in ([column.head for column in columns], *texts)
    ]


def _texts(rows: Sequence[Sequence[object]]) -> list[list[str]]:
    return [["" if cell is None else harmless(cell) for cell in row] for row in rows]


def _widths(columns: Sequence[Column], texts: Sequence[Sequence[str]], width: int | None) -> list[int]:
    widths = [max(text_width(column.head), *(text_width(line[at]) for line in texts), 0)
              for at, column in enumerate(columns)]  # fmt: skip
    if width is None:
        return widths
    elastic = [at for at, column in enumerate(columns) if column.elastic]
    surplus = sum(widths) + len(_GAP) * (len(widths) - 1) - width
    while surplus > 0 and elastic:
        widest = max(elastic, key=lambda at: widths[at])
        if widths[widest] <= _NARROWEST:
            break
        others = [widths[at] for at in elastic if widths[at] < widths[widest]]
        step = min(surplus, widths[widest] - max(_NARROWEST, *others, 0), widths[widest] - _NARROWEST)
        widths[widest] -= max(step, 1)
        surplus -= max(step, 1)
    return widths


def text_width(text: str) -> int:
    """The number of cells that a terminal needs for the text."""
    if text.isascii():
        return len(text)
    return sum(_cells(character) for character in text)


def _cells(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Cf", "Me", "Mn"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _cut(text: str, size: int) -> str:
    if text_width(text) <= size:
        return text
    kept, used = "", 1  # the ellipsis
    for character in text:
        used += _cells(character)
        if used > size:
            break
        kept += character
    return kept + "…"


def _padded(text: str, size: int, *, right: bool) -> str:
    space = " " * (size - text_width(text))
    return space + text if right else text + space


# --- text


def harmless(text: object) -> str:
    """Text of the database as one line that changes nothing but its own place on a terminal."""
    return one_line(str(text), _LONGEST_CELL)


def harmless_lines(text: str) -> list[str]:
    return [harmless(line.expandtabs(4)) for line in text.split("\n")]


def say(text: str) -> None:
    """A remark on the standard error, apart from the result."""
    print(text, file=sys.stderr)


def say_error(text: object) -> None:
    """An error after which the command goes on, or ends with its exit code, as one line."""
    say(f"pgjobs: error: {harmless(text)}")


def count_of(jobs: int, what: str = "job") -> str:
    return f"{jobs} {what}" if jobs == 1 else f"{jobs} {what}s"


def when_text(at: datetime | None, now: datetime | None = None) -> str | None:
    """How far from now, as in `5m12s ago` and `in 2h`."""
    if at is None:
        return None
    distance = (now or datetime.now(UTC)) - at
    return f"in {span_text(-distance)}" if distance < timedelta(0) else f"{span_text(distance)} ago"


def time_text(at: datetime | None) -> str | None:
    """The instant in the time zone of this machine, and how far it is from now."""
    if at is None:
        return None
    try:
        local = at.astimezone()
    except (OverflowError, OSError, ValueError):  # at the ends of the calendar
        local = at
    return f"{local.isoformat(' ', 'seconds')} ({when_text(at)})"


# --- JSON


def print_json(fields: Mapping[str, Any]) -> None:
    """One JSON object on one line, in ASCII. A RawJson stands for itself."""
    if not any(isinstance(value, RawJson) for value in fields.values()):  # as in long lists: at once is faster
        print(_json(dict(fields)))
        return
    print("{" + ", ".join(f"{json.dumps(name)}: {_json(value)}" for name, value in fields.items()) + "}")


@dataclass(frozen=True, slots=True)
class RawJson:
    """JSON text of the database. It is not decoded, since Python would change its largest numbers."""

    text: str


def _json(value: object) -> str:
    if isinstance(value, RawJson):
        return _NOT_PLAIN.sub(_escaped, value.text)
    return _encode(value)


# outside of ASCII, a JSON text has characters only within its strings
_NOT_PLAIN = re.compile(r"[^\x20-\x7e]")


def _escaped(match: re.Match[str]) -> str:
    return json.dumps(match[0])[1:-1] if match[0] != "\x7f" else "\\u007f"


def _plain(value: object) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)


_encode = json.JSONEncoder(default=_plain).encode
