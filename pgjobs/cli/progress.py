"""A progress bar on the standard error, if that is a terminal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pgjobs.cli.output import rich_console


def is_shown() -> bool:
    return sys.stderr.isatty()


@contextmanager
def bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar that grows to `total`; call what the block gets with the number of jobs that are done. Elsewhere than on a
    terminal nothing is shown."""
    if not is_shown():
        yield lambda done: None
        return
    console = rich_console(stderr=True)
    with _plain_bar(title, total) if console is None else _rich_bar(console, title, total) as show:
        yield show


@contextmanager
def _rich_bar(console: object, title: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:  # type: ignore[arg-type]
        task = progress.add_task(title, total=total)
        yield lambda done: progress.update(task, completed=done)


@contextmanager
def _plain_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    def show(done: int) -> None:
        size = max(10, min(40, shutil.get_terminal_size().columns - 45))
        share = min(done / total, 1.0) if total else 1.0
        filled = "#" * round(size * share)
        print(f"\r\x1b[K{title}  {filled:.<{size}}  {done} of {total}", end="", file=sys.stderr, flush=True)

    try:
        show(0)
        yield show
    finally:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
