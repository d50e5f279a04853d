"""`pgjobs schedule`."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from pgjobs import timetable
from pgjobs.cli.arguments import Commands, number
from pgjobs.errors import PgjobsError


def add_parser(commands: Commands) -> None:
    parser = commands.add_parser("schedule", help="show when a schedule ticks")
    parser.description = "Schedules: durable cron."
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    simulate = actions.add_parser("simulate", help="print the next ticks of a schedule")
    simulate.description = "Print when a schedule ticks, in its time zone and in UTC. Needs no database."
    simulate.add_argument("spec", help="a cron expression such as '30 2 * * *' or @daily, or '@every 1h30m'")
    simulate.add_argument("--zone", default="UTC", help="its time zone (default: %(default)s)")
    simulate.add_argument("--from", dest="start", metavar="WHEN", help="a date or time in that zone (default: now)")
    simulate.add_argument("--count", type=number, default=10, metavar="N", help="how many ticks (default: %(default)s)")
    simulate.add_argument("--name", default="", help="the schedule's name, which determines the values of H fields")
    simulate.set_defaults(run=_simulate)


def _simulate(options: argparse.Namespace) -> int:
    zone = timetable.time_zone(options.zone)
    ticks = timetable.parse(options.spec, zone=zone.key, name=options.name)
    tick = _start(options.start, zone)
    for _ in range(options.count):
        tick = tick and ticks.next(tick)
        if tick is None:
            print("never again")
            break
        local = tick.astimezone(zone)
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
