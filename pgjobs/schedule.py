"""Schedule: what ticks when, and what each tick enqueues. Pure: no database in here."""

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
from pgjobs.timetable import Own, Ticks, Timetable, parse, time_zone

#: What becomes of ticks that nobody was there for: the last of them is made up, all are, or none is.
CatchUp = Literal["last", "all", "skip"]

_NAME = re.compile(r"\w[\w\-\[\]<>/.·:+]*", re.ASCII)
_ON_TIME = timedelta(minutes=1)  # with catch_up="skip": what is no later than this was not missed
LONGEST_WINDOW = timedelta(days=100_000)


class Schedule:
    """A job at each tick of a clock, once however many processes have the schedule.

        Schedule("nightly", "30 2 * * *", Report("sales"), zone="Europe/Berlin")
        Schedule("poll", every(timedelta(seconds=30)), lambda: Poll(limit=100), queue="io")

    `name` tells it from others: letters, digits and `- _ [ ] < > / . : +`, less than 128. `spec` is a cron text of five
    fields, an alias (`@yearly`, `@monthly`, `@weekly`, `@daily`, `@hourly`), an interval (`every(timedelta)`,
    `"@every 1h30m"`), or an object whose `next(after)` gives the next instant or None. The module `pgjobs.timetable`
    says what happens when the clocks of `zone` are put forward or back.

    `args` is an args instance, a dict together with `kind`, a `NewJob`, or a function that gives one of these for each
    tick, or None to skip it. The function may be called by several processes for one tick, of which one's answer
    counts: let it compute, not act.

    `catch_up` is for ticks that came while no process was there: "last" makes up the last of them, "all" each, "skip"
    none that is more than a minute old. Whichever, what is older than `window` is not made up. `run_on_start` enqueues
    once more, at once, when the first live process registers the schedule. Of two deploys that say different things
    under one name the higher `version` wins; of equal ones the one that started last.

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
        if args is None:
            raise InvalidSchedule(f"schedule {name!r} has no args: give an args instance, a NewJob, or a function")
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

    def __repr__(self) -> str:
        return f"Schedule({self.name!r}, {self.spec or 'of its own'!r}, zone={self.zone!r})"

    @property
    def spec(self) -> str | None:
        """The spec as text; None for an object of the application's."""
        return None if isinstance(self.ticks, Own) else str(self.ticks)

    @property
    def computed(self) -> bool:
        """Whether the args are made anew for each tick."""
        return callable(self.args) and not _is_payload(self.args)

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the schedule itself says about the metadata of its jobs."""
        own = self.args.options.metadata if isinstance(self.args, NewJob) else None
        return dict((own if own is not None else self.options.metadata) or {})

    def next(self, after: datetime) -> datetime | None:
        """The first tick after an instant (aware); None when there is none any more."""
        given: object = after
        if not isinstance(given, datetime) or given.utcoffset() is None:
            raise InvalidSchedule(f"after is an aware datetime, not {shown(after)}")
        return self.ticks.next(after)

    def job(self) -> NewJob[Any] | None:
        """What a tick enqueues; None when its function wants to skip it."""
        given = cast(Any, self.args)() if self.computed else self.args
        if given is None:
            return None
        new = given if isinstance(given, NewJob) else NewJob(given)
        options = new.options.over(self.options)
        chosen: Any = {option.name: getattr(options, option.name) for option in fields(JobOptions)}
        return NewJob(new.args, kind=new.kind if new.kind is not None else self.kind, **chosen)


def _is_payload(args: object) -> bool:
    return isinstance(args, NewJob | Mapping) or (is_dataclass(args) and not isinstance(args, type))


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
        raise InvalidSchedule(f"a window is a timedelta longer than nothing, or None for any age; not {shown(window)}")
    return None if window is None else min(window, LONGEST_WINDOW)


@dataclass(frozen=True, slots=True)
class Due:
    """What to do about a schedule whose next tick has come."""

    tick: datetime | None  # the one to make; None: they are all too late
    next: datetime  # the tick after it
    missed: bool  # whether there are ticks that nobody makes up


def due(ticks: Ticks, first: datetime, now: datetime, catch_up: CatchUp, window: timedelta | None) -> Due:
    """Which tick to make now, when `first` and perhaps more after it have come.

    "all" makes up one after the other, the others only the last. What is older than `window` is not made up.
    """
    if window is None and catch_up == "skip":
        window = _ON_TIME
    oldest = FIRST_INSTANT if window is None or now - FIRST_INSTANT < window else now - window
    tick = ticks.first_from(first, oldest) if catch_up == "all" else ticks.last(first, now)
    if tick is None or tick > now:
        return Due(None, bounded(tick), missed=True)
    following = ticks.next(tick)
    if catch_up != "all" and following is not None and following <= now:  # more than could be counted
        following = ticks.next(now)
    return Due(tick if tick >= oldest else None, bounded(following), missed=tick > first or tick < oldest)


def bounded(tick: datetime | None) -> datetime:
    """A tick that the table can hold; the last instant of all stands for never."""
    return LAST_INSTANT if tick is None else min(tick, LAST_INSTANT)
