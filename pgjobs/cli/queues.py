"""`pgjobs queues`: list, pause, resume and update queues."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from datetime import timedelta

from pgjobs.cli.arguments import A_DURATION, VIEWER, Commands, add_database, add_json, duration
from pgjobs.cli.database import connect
from pgjobs.cli.output import Column, count_of, print_all, say, span_text, when_text
from pgjobs.client import Client
from pgjobs.results import KEPT, Queue

_COLUMNS = (
    Column("QUEUE", elastic=True),
    Column("STATE"),
    Column("SINCE"),
    Column("KEEP COMPLETED", right=True),
    Column("KEEP CANCELLED", right=True),
    Column("KEEP DISCARDED", right=True),
    Column("LAST WORKED OR CHANGED"),
)
_AS_POOL, _FOR_EVER = "pool", "forever"


def add_parser(commands: Commands) -> None:
    parser = commands.add_parser("queues", help="list, pause, resume and update queues")
    parser.description = "Queues: list them, pause and resume them, and set how long their finished jobs are kept."
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    _add_list(actions)
    _add_pause(actions, "pause", "let no worker start a job of these queues; jobs that run are not stopped", _pause)
    _add_pause(actions, "resume", "let the workers go on with these queues", _resume)
    _add_update(actions)


# --- list


def _add_list(actions: Commands) -> None:
    parser = actions.add_parser("list", help="list the queues; `pgjobs stats` has their load")
    parser.description = (
        "List the queues that a worker works or has worked within the last day, that are paused, or in which jobs wait "
        "or run. `pgjobs stats` shows their load."
    )
    add_json(parser, "one JSON object for each queue, each on a line")
    add_database(parser, rights=VIEWER)
    parser.set_defaults(run=_list)


def _list(options: argparse.Namespace) -> int:
    with connect(options) as app:
        _print(app.client.queues.list(), as_json=options.json)
    return 0


def _print(queues: Sequence[Queue], *, as_json: bool) -> None:
    print_all(queues, _COLUMNS, _row, _fields, as_json=as_json, none="no queues")


def _fields(queue: Queue) -> dict[str, object]:
    return {
        "name": queue.name,
        "paused_at": queue.paused_at,
        "updated_at": queue.updated_at,
        **{f"keep_{state}": _kept_text(kept, as_json=True) for state, kept in _kept(queue).items()},
    }


def _row(queue: Queue) -> Sequence[object]:
    return (
        queue.name,
        "active" if queue.paused_at is None else "paused",
        when_text(queue.paused_at),
        *(_kept_text(kept) for kept in _kept(queue).values()),
        when_text(queue.updated_at),
    )


def _kept(queue: Queue) -> dict[str, timedelta | None]:
    times = (queue.keep_completed, queue.keep_cancelled, queue.keep_discarded)
    return dict(zip(map(str, KEPT), times, strict=True))


def _kept_text(kept: timedelta | None, *, as_json: bool = False) -> object:
    if kept is None:
        return None if as_json else _AS_POOL
    if kept == timedelta.max:
        return _FOR_EVER
    return kept if as_json else span_text(kept)


# --- pause and resume


def _add_pause(actions: Commands, name: str, help: str, run: Callable[[argparse.Namespace], int]) -> None:
    parser = actions.add_parser(name, help=help)
    parser.description = help.capitalize() + "."
    parser.add_argument("names", nargs="*", metavar="NAME", help="the names of the queues")
    parser.add_argument("--all", action="store_true", help="every queue there is")
    parser.add_argument("--dry-run", action="store_true", help="change nothing, and list the queues that are meant")
    add_json(parser, "one JSON object for each queue, each on a line")
    add_database(parser, rights="pgjobs_operator")
    parser.set_defaults(run=run, parser=parser)


def _pause(options: argparse.Namespace) -> int:
    return _for_each(options, "pause", lambda client, name: client.queues.pause(name))


def _resume(options: argparse.Namespace) -> int:
    return _for_each(options, "resume", lambda client, name: client.queues.resume(name))


def _for_each(options: argparse.Namespace, action: str, change: Callable[[Client, str], Sequence[Queue]]) -> int:
    if bool(options.names) == options.all:
        options.parser.error("which queues? give names, or --all")
    with connect(options) as app:
        if options.dry_run:
            queues = [queue for queue in app.client.queues.list() if options.all or queue.name in options.names]
        else:
            queues = [queue for name in options.names or ["*"] for queue in change(app.client, name)]
        _print(queues, as_json=options.json)
    if options.dry_run:
        say(f"would {action} {count_of(len(queues), 'queue')}; nothing was changed")
    return 0


# --- update


def _add_update(actions: Commands) -> None:
    parser = actions.add_parser("update", help="set how long the finished jobs of a queue are kept")
    parser.description = (
        f"Set how long the finished jobs of a queue are kept: {A_DURATION}; {_FOR_EVER}; or {_AS_POOL}, as the worker "
        "pools say."
    )
    parser.add_argument("name", metavar="NAME", help="the name of the queue, which need not exist yet")
    for state in KEPT:
        parser.add_argument(f"--keep-{state}", type=_keep, default=..., metavar="TIME", help=f"of {state} jobs")
    add_json(parser, "the queue as a JSON object")
    add_database(parser, rights="pgjobs_operator")
    parser.set_defaults(run=_update, parser=parser)


def _keep(text: str) -> timedelta | None:
    if text == _AS_POOL:
        return None
    return timedelta.max if text == _FOR_EVER else duration(text)


def _update(options: argparse.Namespace) -> int:
    keep = {f"keep_{state}": getattr(options, f"keep_{state}") for state in KEPT}
    if all(kept is ... for kept in keep.values()):
        options.parser.error("what is to change? give --keep-completed, --keep-cancelled or --keep-discarded")
    with connect(options) as app:
        _print([app.client.queues.update(options.name, **keep)], as_json=options.json)
    return 0
