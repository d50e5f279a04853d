"""What the demo prints with: paragraphs, tables, and a bar on a terminal."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Sequence


def say(text: str) -> None:
    """A paragraph. The lines of a numbered section stand behind its number."""
    indent = "   " if text[:1].isdigit() or text[:1] == " " else ""
    width = min(100, shutil.get_terminal_size().columns)
    print(textwrap.fill(text, width, subsequent_indent=indent, break_on_hyphens=False), end="\n\n", flush=True)


def print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns of numbers to the right, columns of text to the left."""
    texts = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    columns = [
        [
            (cell.rjust if all(re.fullmatch(r"[\d.,]+", text) for text in column[1:]) else cell.ljust)(width)
            for cell in column
        ]
        for column in zip(head, *texts, strict=True)
        for width in [max(map(len, column))]
    ]
    for line in zip(*columns, strict=True):
        print("   ", "  ".join(line).rstrip())
    print(flush=True)


class Progress:
    """A bar on a terminal; elsewhere one line at the end."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._text = ""
        self._live = sys.stdout.isatty()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *raised: object) -> None:
        print("\n" if self._live else f"    {self._title}: {self._text}\n", flush=True)

    def show(self, share: float, text: str) -> None:
        """`share` of the work is done; the text says the same in numbers."""
        self._text = text
        if self._live:
            width = max(10, min(50, shutil.get_terminal_size().columns - 45))
            bar = ("#" * round(width * min(share, 1.0))).ljust(width, ".")
            print(f"\r\x1b[K    {self._title}  {bar}  {self._text}", end="", flush=True)
