"""`pgjobs stats`: what the queues do at the moment. See history.py for the past."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from pgjobs.cli import history
from pgjobs.cli.arguments import VIEWER, Commands, add_database, add_json, duration
from pgjobs.cli.database import connect
from pgjobs.cli.output import (
    Column,
    harmless,
    plain_lines,
    print_chunk,
    print_json,
    rich_console,
    rich_table,
    say,
    span_text,
)
from pgjobs.client import Client
from pgjobs.job import JobState
from pgjobs.job_filter import JobFilter
from pgjobs.results import JobCounts, QueueStats

_COLUMNS = (
    Column("QUEUE", elastic=True),
    Column("STATE"),
    Column("WAITING", right=True),
    Column("OLDEST", right=True),
    Column("RUNNING", right=True),
    Column("DONE/MIN", right=True),
    Column("DISCARDED/MIN", right=True),
    Column("WORKERS", right=True),
)
_COUNTED = tuple(state for state in JobState if state not in (JobState.AVAILABLE, JobState.RUNNING))
_INTERVAL = timedelta(seconds=2)
_SHORTEST = 0.1  # seconds between two figures


def add_parser(commands: Commands) -> None:
    parser = commands.add_parser("stats", help="show what the queues do: jobs that wait, run, are done and failed")
    parser.description = (
        "Show for each queue how many jobs wait and run, how long the oldest has waited, how many were completed and "
        "discarded in the last minute, and how many processes work it. A failed attempt that is followed by another "
        "one is not counted; --states shows how many jobs wait for that (retryable). With --since, --step, --kind or "
        "--by, show instead what became of the attempts of the last hour, or of another time in the last 7 days."
    )
    parser.usage = "%(prog)s [options] [QUEUE ...]"  # the generated one fills the screen at each slip
    parser.add_argument("names", nargs="*", metavar="QUEUE", help="default: all queues")
    parser.add_argument("--states", action="store_true", help="count the jobs in all states too, which reads every job")
    parser.add_argument(
        "--watch",
        nargs="?",
        type=duration,
        const=_INTERVAL,
        metavar="TIME",
        help="show new figures every 2s, or so often, until Ctrl-C",
    )
    history.add_arguments(parser)
    add_json(parser, "one JSON object for each queue, or for each row of the past, each on a line; times in seconds")
    add_database(parser, rights=VIEWER)
    parser.set_defaults(run=_stats, parser=parser)


def _stats(options: argparse.Namespace) -> int:
    with connect(options) as app:
        if history.is_wanted(options):
            history.print_history(app.client, options)
            return 0
        if options.watch is not None:
            _watch(app.client, options)
        figures = _Figures.read(app.client, options)
        if options.json:
            figures.print_json()
        elif figures.rows:
            print_chunk(figures.columns, figures.rows)
        else:
            say("no queues")
        for name in sorted(set(options.names) - {queue.name for queue in app.client.queues.list()}):
            say(f"queue {harmless(name)}: no worker has worked it lately, and no job waits in it")
    return 0


class _Figures:
    """The figures of one moment."""

    def __init__(self, stats: Sequence[QueueStats], counts: JobCounts | None) -> None:
        self.at = datetime.now(UTC)
        self._stats = stats
        self._counts = counts
        counted = () if counts is None else tuple(Column(state.upper(), right=True) for state in _COUNTED)
        self.columns = (*_COLUMNS, *counted)
        self.rows = [self._row(each) for each in stats]
        if len(stats) > 1:
            self.rows.append(self._total())

    @classmethod
    def read(cls, client: Client, options: argparse.Namespace) -> _Figures:
        names = options.names or None
        stats = list(client.queues.stats(names).values())
        counts = client.count(JobFilter(queues=names)) if options.states else None
        if counts is not None and names is None:  # queues in which nothing waits or runs
            left = sorted(counts.by_queue.keys() - {each.name for each in stats})
            stats += [QueueStats(name, None, 0, 0, None, 0, 0, 0) for name in left]
        return cls(stats, counts)

    def _row(self, each: QueueStats) -> Sequence[object]:
        return (
            each.name,
            "active" if each.paused_at is None else "paused",
            each.waiting,
            span_text(each.oldest_waiting),
            each.running,
            each.done_per_minute,
            each.failed_per_minute,
            each.workers,
            *self._counted(each.name),
        )

    def _total(self) -> Sequence[object]:
        oldest = [each.oldest_waiting for each in self._stats if each.oldest_waiting is not None]
        return (
            "(all)",
            None,
            sum(each.waiting for each in self._stats),
            span_text(max(oldest, default=None)),
            sum(each.running for each in self._stats),
            sum(each.done_per_minute for each in self._stats),
            sum(each.failed_per_minute for each in self._stats),
            None,  # a process may work several queues
            *([] if self._counts is None else [self._counts.by_state[state] for state in _COUNTED]),
        )

    def _counted(self, queue: str) -> Sequence[int]:
        return [] if self._counts is None else [self._counts.jobs.get((queue, state), 0) for state in _COUNTED]

    def print_json(self) -> None:
        for each in self._stats:
            fields: dict[str, Any] = {
                "at": self.at,
                "name": each.name,
                "paused_at": each.paused_at,
                "waiting": each.waiting,
                "running": each.running,
                "oldest_waiting": each.oldest_waiting,
                "done_per_minute": each.done_per_minute,
                "failed_per_minute": each.failed_per_minute,
                "workers": each.workers,
            }
            print_json({**fields, **dict(zip(map(str, _COUNTED), self._counted(each.name), strict=False))})


# --- live


def _watch(client: Client, options: argparse.Namespace) -> None:
    """Show the figures again and again, until Ctrl-C; while the database is away, why."""
    interval = max(options.watch.total_seconds(), _SHORTEST)
    with _screen(as_json=options.json) as show:
        while True:
            try:
                show(_Figures.read(client, options))
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                show(f"no figures: {harmless(error)}")
            time.sleep(interval)


Show = Callable[["_Figures | str"], None]


def _screen(*, as_json: bool) -> AbstractContextManager[Show]:
    """A function that shows figures, or the reason why there are none, in place of those before."""
    if as_json or not sys.stdout.isatty():
        return nullcontext(_print_json if as_json else _print_block)
    console = rich_console()
    return nullcontext(_print_page) if console is None else _live(console)


def _print_json(figures: _Figures | str) -> None:
    if isinstance(figures, str):
        say(figures)
    else:
        figures.print_json()
        sys.stdout.flush()


def _print_block(figures: _Figures | str) -> None:
    if isinstance(figures, str):
        say(figures)
    else:
        print(
            f"{figures.at:%Y-%m-%d %H:%M:%S}Z",
            *plain_lines(figures.columns, figures.rows, None),
            "",
            sep="\n",
            flush=True,
        )


def _print_page(figures: _Figures | str) -> None:
    width = shutil.get_terminal_size().columns
    lines = [figures] if isinstance(figures, str) else plain_lines(figures.columns, figures.rows, width)
    print("\x1b[H\x1b[J" + "\n".join([_heading(), *lines]), flush=True)


def _heading() -> str:
    return f"{datetime.now():%H:%M:%S}, Ctrl-C to end"


@contextmanager
def _live(console: Any) -> Iterator[Show]:
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    with Live(console=console, auto_refresh=False, screen=False) as live:

        def show(figures: _Figures | str) -> None:
            if not sys.stdout.isatty():  # the terminal is gone, and rich would go on without a word
                raise BrokenPipeError
            body = Text(figures) if isinstance(figures, str) else rich_table(figures.columns, figures.rows)
            live.update(Group(Text(_heading(), style="dim"), body), refresh=True)

        yield show
