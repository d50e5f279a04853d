"""Schedule: when it ticks, and which job each tick enqueues. Uses no database."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, Unpack, cast, get_args
from zoneinfo import ZoneInfo

from pgjobs import checks
from pgjobs.errors import InvalidSchedule, shown
from pgjobs.options import FIRST_INSTANT, LAST_INSTANT, JobOptions, NewJob, Options, check_kind, options_given
from pgjobs.timetable import CustomTimetable, Ticks, Timetable, parse, time_zone

#: Which ticks are made up after a time without a running worker pool: the last one, all, or none.
CatchUp = Literal["last", "all", "skip"]

_NAME = re.compile(r"\w[\w\-\[\]<>/.·:+]*", re.ASCII)
_ON_TIME = timedelta(minutes=1)  # with catch_up="skip": a tick that is later than this was missed
LONGEST_WINDOW = timedelta(days=100_000)


class Schedule:
    """Enqueues a job at each tick; once, however many processes have the schedule.

        Schedule("nightly", "30 2 * * *", Report("sales"), zone="Europe/Berlin")
        Schedule("poll", every(timedelta(seconds=30)), lambda: Poll(limit=100), queue="io")

    `name` identifies it: up to 127 letters, digits and `- _ [ ] < > / . : +`.

    `spec` says when it ticks: a cron text of five fields, an alias (`@yearly`, `@monthly`, `@weekly`, `@daily`,
    `@hourly`), an interval (`every(timedelta)`, `"@every 1h30m"`), or an object with a method `next(after)`, which
    returns the next instant or None. The module `pgjobs.timetable` says what happens when the clocks of `zone` are put
    forward or back.

    `args` is an args instance, a dict together with `kind`, or a `NewJob`; or a function that returns one of these for
    each tick, or None to skip the tick. Several processes may call the function for the same tick, and the result of
    one of them is used: so it should compute and have no effects.

    `catch_up` says what happens to ticks that came while no worker pool ran: "last" makes up the last of them, "all"
    makes up each, "skip" none that is more than a minute late. Ticks older than `window` are never made up.
    `run_on_start` enqueues one more job, at once, when a worker pool starts while no other live process has the
    schedule. If two deploys define the schedule differently, the higher `version` wins; if the versions are equal, the
    deploy that started last.

    Options of the jobs (`queue`, `priority`, `tags`, ...) are keywords, as for `enqueue`.
    """

    def __init__(
        self,
        name: str,
        spec: str | Timetable,
        args: object,
        *,
        kind: str | None = None,
        zone: str | ZoneInfo = "UTC",
        catch_up: CatchUp = "last",
        window: timedelta | None = None,
        run_on_start: bool = False,
        version: int = 0,
        **options: Unpack[Options],
    ) -> None:
        self.name = check_name(name)
        self.args = args
        self.kind = None if kind is None else check_kind(kind)
        self.zone = time_zone(zone).key
        self.ticks: Ticks = parse(spec, zone=self.zone, name=name)
        self.catch_up = check_catch_up(catch_up)
        self.window = check_window(window)
        checks.check_bool("run_on_start", run_on_start, error=InvalidSchedule)
        self.run_on_start = run_on_start
        if type(version) is not int or not 0 <= version < 2**31:
            raise InvalidSchedule(f"schedule {name!r}: a version is a whole number from 0, not {shown(version)}")
        self.version = version
        self.options = options_given(options)
        _check_args(self)

    def __repr__(self) -> str:
        return f"Schedule({self.name!r}, {self.spec or 'custom'!r}, zone={self.zone!r})"

    @property
    def spec(self) -> str | None:
        """The spec as text; None if it is an object of the application."""
        return None if isinstance(self.ticks, CustomTimetable) else str(self.ticks)

    @property
    def computed(self) -> bool:
        """Whether a function computes the args for each tick."""
        return callable(self.args) and not _is_payload(self.args)

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The metadata of its jobs, as far as the schedule sets them."""
        own = self.args.options.metadata if isinstance(self.args, NewJob) else None
        return dict((own if own is not None else self.options.metadata) or {})

    def next(self, after: datetime) -> datetime | None:
        """The first tick after an aware datetime; None if there is none."""
        given: object = after
        if not isinstance(given, datetime) or given.utcoffset() is None:
            raise InvalidSchedule(f"after is an aware datetime, not {shown(after)}")
        return self.ticks.next(after)

    def job(self) -> NewJob[Any] | None:
        """The job of a tick; None if the function of the args skips it."""
        given = cast(Any, self.args)() if self.computed else self.args
        if given is None:
            return None
        new = given if isinstance(given, NewJob) else NewJob(given)
        options = new.options.over(self.options)
        chosen: Any = {option.name: getattr(options, option.name) for option in fields(JobOptions)}
        return NewJob(new.args, kind=new.kind if new.kind is not None else self.kind, **chosen)


def _is_payload(args: object) -> bool:
    return isinstance(args, NewJob | Mapping) or (is_dataclass(args) and not isinstance(args, type))


def _check_args(schedule: Schedule) -> None:
    """Refuse args of which no tick could make a job."""
    args, where = schedule.args, f"schedule {schedule.name!r}"
    if schedule.computed:
        wanted = "def args(), without parameters"
        checks.check_signature(f"{where}: {_name(args)}", cast(Any, args), wanted, (), error=InvalidSchedule)
        return
    if not _is_payload(args):
        given = "no args" if args is None else f"{shown(args)} as its args"
        raise InvalidSchedule(f"{where} has {given}: give an args instance, a NewJob, or a function that returns one")
    payload, kind = (args.args, args.kind or schedule.kind) if isinstance(args, NewJob) else (args, schedule.kind)
    if isinstance(payload, Mapping) and kind is None:
        raise InvalidSchedule(f"{where} has args in a dict, which do not say their kind: give kind= too")


def _name(function: object) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def check_name(name: object) -> str:
    if not isinstance(name, str) or not name or len(name) > 127 or not _NAME.fullmatch(name):
        raise InvalidSchedule(
            f"the name of a schedule {shown(name, 140)}: use 1 to 127 ASCII letters, digits and - _ [ ] < > / . : + "
            "and begin with a letter, digit or underscore"
        )
    return name


def check_catch_up(catch_up: object) -> CatchUp:
    if not isinstance(catch_up, str) or catch_up not in get_args(CatchUp):
        raise InvalidSchedule(f"catch_up is 'last', 'all' or 'skip', not {shown(catch_up)}")
    return cast(CatchUp, catch_up)


def check_window(window: object) -> timedelta | None:
    if window is not None and (not isinstance(window, timedelta) or window <= timedelta(0)):
        raise InvalidSchedule(f"window must be a timedelta > 0, or None for no limit; not {shown(window)}")
    return None if window is None else min(window, LONGEST_WINDOW)


@dataclass(frozen=True, slots=True)
class Due:
    """What to do with a schedule whose next tick is due."""

    tick: datetime | None  # enqueue the job of this tick; None: all ticks are too late
    next: datetime  # the tick after it
    missed: bool  # whether there are ticks that are not made up


def due(ticks: Ticks, first: datetime, now: datetime, catch_up: CatchUp, window: timedelta | None) -> Due:
    """Which tick to make now, if `first`, and perhaps more ticks after it, are due.

    "all" makes them up one by one, beginning with the first; "last" and "skip" make up the last one. A tick older than
    `window` is not made up.
    """
    if window is None and catch_up == "skip":
        window = _ON_TIME
    oldest = FIRST_INSTANT if window is None or now - FIRST_INSTANT < window else now - window
    tick = ticks.first_from(first, oldest) if catch_up == "all" else ticks.last(first, now)
    if tick is None or tick > now:
        return Due(None, bounded(tick), missed=True)
    following = ticks.next(tick)
    if catch_up != "all" and following is not None and following <= now:  # `last` gave up counting
        following = ticks.next(now)
    return Due(tick if tick >= oldest else None, bounded(following), missed=tick > first or tick < oldest)


def bounded(tick: datetime | None) -> datetime:
    """A tick that the table can hold; LAST_INSTANT stands for never."""
    return LAST_INSTANT if tick is None else min(tick, LAST_INSTANT)
