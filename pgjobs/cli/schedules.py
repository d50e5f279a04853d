"""`pgjobs schedules`: list, show, run, pause, resume and simulate schedules."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from pgjobs import timetable
from pgjobs.cli.app import App
from pgjobs.cli.arguments import VIEWER_OF_ARGS, Commands, add_database, add_json, add_secrets, number
from pgjobs.cli.database import connect
from pgjobs.cli.output import (
    Column,
    RawJson,
    harmless,
    print_all,
    print_json,
    say,
    say_error,
    span_text,
    time_text,
    when_text,
)
from pgjobs.errors import PgjobsError, ScheduleNotFound
from pgjobs.options import LAST_INSTANT
from pgjobs.results import ScheduleRow
from pgjobs.work_map import shown_args

_COLUMNS = (
    Column("NAME", elastic=True),
    Column("STATE"),
    Column("SPEC", elastic=True),
    Column("ZONE"),
    Column("KIND", elastic=True),
    Column("NEXT"),
    Column("LAST"),
    Column("DEFINED IN"),
    Column("ERROR", elastic=True),
)


def add_parser(commands: Commands) -> None:
    parser = commands.add_parser("schedules", help="list, run, pause, resume and simulate schedules")
    parser.description = "Schedules: durable cron."
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    _add_list(actions)
    _add_action(actions, "show", "show all that is known of schedules", _show, rights=VIEWER_OF_ARGS)
    _add_action(actions, "run", "let a worker pool enqueue their jobs once, now", _run_now)
    _add_action(actions, "pause", "enqueue no jobs at their ticks until they are resumed", _pause)
    _add_action(actions, "resume", "end a pause; the ticks of the pause are not made up", _resume)
    _add_simulate(actions)


# --- look


def _add_list(actions: Commands) -> None:
    parser = actions.add_parser("list", help="list the schedules")
    parser.description = "List the schedules by name."
    add_json(parser, "one JSON object for each schedule, each on a line")
    add_database(parser, rights=VIEWER_OF_ARGS)
    parser.set_defaults(run=_list)


def _list(options: argparse.Namespace) -> int:
    with connect(options) as app:
        rows = app.client.schedules.list()
    print_all(rows, _COLUMNS, _table_row, _listed_fields, as_json=options.json, none="no schedules")
    return 0


def _table_row(row: ScheduleRow) -> Sequence[object]:
    return (
        row.name,
        _state(row),
        row.spec or "custom",
        row.zone,
        row.kind or "computed",
        _next_text(row),
        when_text(row.last_tick_at),
        "code" if row.in_code else "table",
        row.error,
    )


def _state(row: ScheduleRow) -> str:
    return "active" if row.paused_at is None else "paused"


def _next_text(row: ScheduleRow) -> str | None:
    return "never" if row.next_tick_at is not None and row.next_tick_at >= LAST_INSTANT else when_text(row.next_tick_at)


def _listed_fields(row: ScheduleRow) -> dict[str, Any]:
    """The JSON of a schedule in a list, without args."""
    given = {field.name: getattr(row, field.name) for field in fields(row) if not field.name.startswith("raw_")}
    if row.next_tick_at is not None and row.next_tick_at >= LAST_INSTANT:
        given["next_tick_at"] = None
    return given


def _show(options: argparse.Namespace, app: App, name: str) -> None:
    row = app.client.schedules.get(name)
    if row is None:
        raise ScheduleNotFound(name)
    args = row.raw_args
    if args is not None and row.kind is not None and not options.show_secrets:
        args = shown_args(app.work_map, row.kind, args)
    if options.json:
        raw = {"args": args, "options": row.raw_options}
        print_json({**_listed_fields(row), **{key: text and RawJson(text) for key, text in raw.items()}})
        return
    values = {
        "state": _state(row),
        "spec": row.spec or "custom: an object of the application",
        "zone": row.zone,
        "kind": row.kind or "computed by code",
        "args": args or "computed by code",
        "options": _options_text(row.raw_options),
        "next": "never" if _next_text(row) == "never" else time_text(row.next_tick_at),
        "last": time_text(row.last_tick_at),
        "paused": time_text(row.paused_at),
        "run asked": time_text(row.run_now_at),
        "catch up": row.catch_up,
        "window": span_text(row.window),
        "defined in": "code" if row.in_code else "the table",
        "version": row.version or None,
        "error": row.error,
    }
    print(f"schedule {harmless(row.name)}")
    for key, value in values.items():
        if value is not None:
            print(f"  {key:<10} {harmless(value)}")


def _options_text(raw: str | None) -> str | None:
    """The options of the schedule's jobs, without those that say nothing."""
    given: Any = None if raw is None else json.loads(raw)
    if not isinstance(given, dict):  # written by hand
        return raw
    no_delay = not re.search("[1-9]", str(given.get("delay")))
    said = {name: value for name, value in given.items() if value and not (name == "delay" and no_delay)}
    return json.dumps(said, ensure_ascii=False) if said else None


# --- change


def _add_action(
    actions: Commands,
    name: str,
    help: str,
    act: Callable[[argparse.Namespace, App, str], None],
    rights: str = "pgjobs_operator",
) -> None:
    parser = actions.add_parser(name, help=help)
    parser.description = help.capitalize() + "."
    parser.add_argument("names", nargs="+", metavar="NAME", help="the names of the schedules")
    if act is _show:
        add_secrets(parser)
    add_json(parser, "one JSON object for each schedule, each on a line")
    add_database(parser, rights=rights)
    parser.set_defaults(run=_for_each, act=act)


def _for_each(options: argparse.Namespace) -> int:
    """Act on each schedule; a name that does not exist hinders no other."""
    code = 0
    with connect(options) as app:
        for name in options.names:
            try:
                options.act(options, app, name)
            except ScheduleNotFound as error:
                say_error(error)
                code = 1
    return code


def _run_now(options: argparse.Namespace, app: App, name: str) -> None:
    app.client.schedules.run_now(name)
    _print_changed(options, app, name, f"schedule {harmless(name)} will run once, as soon as a worker pool sees it")


def _pause(options: argparse.Namespace, app: App, name: str) -> None:
    app.client.schedules.pause(name)
    _print_changed(options, app, name, f"paused schedule {harmless(name)}")


def _resume(options: argparse.Namespace, app: App, name: str) -> None:
    app.client.schedules.resume(name)
    _print_changed(options, app, name, f"resumed schedule {harmless(name)}")


def _print_changed(options: argparse.Namespace, app: App, name: str, said: str) -> None:
    if not options.json:
        print(said)
    elif (row := app.client.schedules.get(name)) is not None:
        print_json(_listed_fields(row))


# --- simulate


def _add_simulate(actions: Commands) -> None:
    parser = actions.add_parser("simulate", help="print the next ticks of a schedule")
    parser.description = "Print when a schedule ticks, in its time zone and in UTC. Needs no database."
    parser.add_argument("spec", help="a cron expression such as '30 2 * * *' or @daily, or '@every 1h30m'")
    parser.add_argument("--zone", default="UTC", help="its time zone (default: %(default)s)")
    parser.add_argument("--from", dest="start", metavar="WHEN", help="a date or time in that zone (default: now)")
    parser.add_argument("--count", type=number, default=10, metavar="N", help="how many ticks (default: %(default)s)")
    parser.add_argument("--name", default="", help="the schedule's name, which determines the values of H fields")
    add_json(parser, "one JSON object for each tick, each on a line")
    parser.set_defaults(run=_simulate)


def _simulate(options: argparse.Namespace) -> int:
    zone = timetable.time_zone(options.zone)
    ticks = timetable.parse(options.spec, zone=zone.key, name=options.name)
    tick = _start(options.start, zone)
    for _ in range(options.count):
        tick = tick and ticks.next(tick)
        if tick is None:
            say("never again")
            break
        local = tick.astimezone(zone)
        if options.json:
            print_json({"at": tick, "local": local.isoformat()})
            continue
        print(f"{local:%a} {local.isoformat(' ')}  {tick.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z")
    return 0


def _start(text: str | None, zone: ZoneInfo) -> datetime | None:
    if text is None:
        return datetime.now(UTC)
    try:
        start = datetime.fromisoformat(text)
        return (start if start.tzinfo else start.replace(tzinfo=zone)).astimezone(UTC)
    except (ValueError, OverflowError):  # the UTC time may be outside of the years 1 to 9999
        raise PgjobsError(f"--from must be a date or a time such as 2026-03-07T12:00, not {text!r}") from None
