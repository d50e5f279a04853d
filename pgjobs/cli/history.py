"""`pgjobs stats --since`: what became of the attempts of some time, and how long they took."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from pgjobs.cli.arguments import duration, instant
from pgjobs.cli.output import Column, print_all, span_text
from pgjobs.client import Client
from pgjobs.observe.figures import Durations
from pgjobs.observe.stats import FigureGroup, Figures

_SINCE = timedelta(hours=1)
_LONGEST = timedelta(days=7)  # the figures are kept for so long
_GROUPS: dict[str, tuple[FigureGroup, ...]] = {
    "both": ("queue", "kind"),
    "queue": ("queue",),
    "kind": ("kind",),
    "none": (),
}
_COUNTS = ("completed", "failed", "discarded", "cancelled", "snoozed", "interrupted")
_TIMES = ("mean", "p50", "p95", "p99")
# what a table has room for; RUN and WAIT are the means
_COUNT_COLUMNS = {"DONE": "completed", "FAILED": "failed", "DISCARDED": "discarded"}
_TIME_COLUMNS = {"": "mean", " P95": "p95", " P99": "p99"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    history = parser.add_argument_group(
        "of the past",
        "How many attempts ended in which way, how long they ran and their jobs had waited. Figures of more than 6 "
        "hours ago are kept by 5 minutes, and of more than 2 days ago by the hour.",
    )
    history.add_argument(
        "--since", type=_since, metavar="TIME", help="a duration such as 1h, or a date or time (default: 1h)"
    )
    history.add_argument("--step", type=_step, metavar="TIME", help="for each 5m, say, and not for the whole time")
    history.add_argument("--kind", help="of this kind of job alone")
    history.add_argument(
        "--by", choices=_GROUPS, help="by queue or kind alone, or not at all (default: both queue and kind)"
    )


def is_wanted(options: argparse.Namespace) -> bool:
    return any(value is not None for value in (options.since, options.step, options.kind, options.by))


def print_history(client: Client, options: argparse.Namespace) -> None:
    groups = _GROUPS[options.by or "both"]
    if options.watch is not None or options.states:
        options.parser.error("--watch and --states are of the present: leave out --since, --step, --kind and --by")
    if len(options.names) > 1 and "queue" not in groups:
        options.parser.error(f"several queues would not be told apart with --by {options.by}")
    figures = [
        each
        for queue in options.names or [None]
        for each in client.stats(
            queue=queue,
            kind=options.kind,
            since=_SINCE if options.since is None else options.since,
            step=options.step,
            by=groups,
        )
    ]
    figures.sort(key=lambda each: (each.at, each.queue or "", each.kind or ""))
    columns = (*([] if options.step is None else [Column("FROM")]), *_columns(groups))
    print_all(
        figures,
        columns,
        lambda each: _row(each, groups, options.step),
        _fields,
        as_json=options.json,
        none="no attempt has ended in this time",
    )


def _since(text: str) -> timedelta | datetime:
    """A duration before now, which the database computes, or an instant."""
    try:
        return duration(text)
    except argparse.ArgumentTypeError:
        return instant(text)


def _step(text: str) -> timedelta:
    step = duration(text)
    if step % timedelta(minutes=1) or not timedelta(0) < step <= _LONGEST:
        raise argparse.ArgumentTypeError(f"must be whole minutes, such as 1m, 15m or 1h, up to 7d, not {text!r}")
    return step


def _columns(groups: Sequence[str]) -> Sequence[Column]:
    return (
        *(Column(group.upper(), elastic=True) for group in groups),
        *(Column(head, right=True) for head in _COUNT_COLUMNS),
        *(Column(what + head, right=True) for what in ("RUN", "WAIT") for head in _TIME_COLUMNS),
    )


def _row(each: Figures, groups: Sequence[str], step: timedelta | None) -> Sequence[object]:
    return (
        *([] if step is None else [f"{each.at.astimezone():%Y-%m-%d %H:%M}"]),
        *(getattr(each, group) for group in groups),
        *(getattr(each, name) for name in _COUNT_COLUMNS.values()),
        *(_short(getattr(durations, name)) for durations in (each.run, each.wait) for name in _TIME_COLUMNS.values()),
    )


def _short(span: timedelta | None) -> str | None:
    if span is None or span >= timedelta(minutes=1):
        return span_text(span)
    seconds = span.total_seconds()
    return f"{seconds * 1000:.3g}ms" if seconds < 0.9995 else f"{seconds:.3g}s"


def _fields(each: Figures) -> dict[str, Any]:
    return {
        "from": each.at,
        "queue": each.queue,
        "kind": each.kind,
        **{name: getattr(each, name) for name in _COUNTS},
        "run": _times(each.run),
        "wait": _times(each.wait),
    }


def _times(durations: Durations) -> dict[str, float | None]:
    spans = {name: getattr(durations, name) for name in _TIMES}
    return {name: None if span is None else span.total_seconds() for name, span in spans.items()}
