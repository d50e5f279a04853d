"""Which jobs are meant: a filter, and the page of a list with the cursor to the next one. No database in here."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from pgjobs import checks, codec
from pgjobs.errors import EmptyFilter, InvalidFilter, InvalidOption, shown
from pgjobs.job import Job, JobState
from pgjobs.options import FIRST_INSTANT, LAST_INSTANT
from pgjobs.states import StateName

Order = Literal["id", "time"]

BIGGEST_ID = 2**63 - 1
_SMALLEST_ID = -(2**63)  # those that are made by hand may be of any sign
_MOST_JOBS = 10_000  # of one page
_CURSOR = re.compile(r"(id|time)\.(up|down)\.(-?\d{1,19})(?:\.(-?\d{1,18}))?", re.ASCII)
_DIGITS = re.compile(r"-?\d+", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which jobs are meant: those that fit everything that is given. What is left out does not matter.

    A list fits a job that has one of its values, so an empty list fits none; `tags_all` wants all of its tags.
    `metadata` fits where the job's metadata contains it, like the operator @> of Postgres. `..._after` is that instant
    and later, `..._before` is earlier than it; a job that has no such time does not fit.

    Calls that change many jobs refuse a filter that says nothing: `JobFilter.all()` says that really all are meant.
    Raises InvalidFilter for what no job can have.
    """

    ids: Sequence[int] | None = None
    kinds: Sequence[str] | None = None
    queues: Sequence[str] | None = None
    states: Sequence[JobState | StateName] | None = None
    priorities: Sequence[int] | None = None
    tags_any: Sequence[str] | None = None
    tags_all: Sequence[str] | None = None
    metadata: Mapping[str, Any] | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    scheduled_after: datetime | None = None
    scheduled_before: datetime | None = None
    attempted_after: datetime | None = None
    attempted_before: datetime | None = None
    finalized_after: datetime | None = None
    finalized_before: datetime | None = None
    really_all: bool = False  # see all()

    @classmethod
    def all(cls) -> JobFilter:
        """Every job there is."""
        return cls(really_all=True)

    def __post_init__(self) -> None:
        lists: dict[str, Callable[[object], object]] = {
            "ids": lambda value: _number(value, _SMALLEST_ID, BIGGEST_ID),
            "priorities": lambda value: _number(value, -32768, 32767),
            "states": _state,
            **dict.fromkeys(("kinds", "queues", "tags_any", "tags_all"), _text),
        }
        for name, check in lists.items():
            object.__setattr__(self, name, _list_of(name, getattr(self, name), check))
        for field in fields(self):
            if field.name.endswith(("_after", "_before")):
                _check_instant(field.name, getattr(self, field.name))
        if self.metadata is not None:  # kept as a copy: the caller's may change
            object.__setattr__(self, "metadata", codec.decode_dict(_metadata_json(self.metadata)))
        checks.check_bool("really_all", self.really_all, error=InvalidFilter)
        if self.tags_all == () or self.metadata == {}:
            raise InvalidFilter("tags_all or metadata that is empty would fit every job: leave it out")
        if self.really_all and self._says_something:
            raise InvalidFilter("JobFilter.all() is all jobs: nothing else can be said beside it")

    def __repr__(self) -> str:
        """What is given, and no more."""
        if self.really_all:
            return "JobFilter.all()"
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "really_all"}
        return f"JobFilter({', '.join(f'{name}={value!r}' for name, value in values.items() if value is not None)})"

    def check_not_empty(self) -> None:
        """Raise EmptyFilter when nothing is said."""
        if not self.really_all and not self._says_something:
            raise EmptyFilter("the filter is empty: say which jobs, or JobFilter.all() for really all")

    @property
    def _says_something(self) -> bool:
        return any(getattr(self, field.name) is not None for field in fields(self) if field.name != "really_all")

    @property
    def metadata_json(self) -> str | None:
        return None if self.metadata is None else _metadata_json(self.metadata)


@dataclass(frozen=True, slots=True)
class JobPage:
    """A part of a list; `next` is the cursor to what comes behind it, None when that is nothing."""

    jobs: tuple[Job[Any], ...]
    next: str | None


@dataclass(frozen=True, slots=True)
class JobCounts:
    """How many jobs there are, by queue and state; what there is none of is left out, and counts as 0."""

    jobs: Mapping[tuple[str, JobState], int]

    @property
    def total(self) -> int:
        return sum(self.jobs.values())

    def __post_init__(self) -> None:
        object.__setattr__(self, "jobs", Counter(dict(self.jobs)))

    @property
    def by_state(self) -> Counter[JobState]:
        """Of each state, also of those that no job is in."""
        counts = Counter(dict.fromkeys(JobState, 0))
        for (_, state), jobs in self.jobs.items():
            counts[state] += jobs
        return counts

    @property
    def by_queue(self) -> Counter[str]:
        """Of each queue that has any; 0 for every other name."""
        counts: Counter[str] = Counter()
        for (queue, _), jobs in self.jobs.items():
            counts[queue] += jobs
        return counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """In which order jobs are listed, how many, and from where on: after a job with this id and time."""

    order: Order
    descending: bool
    limit: int
    after_id: int | None = None
    after_time: datetime | None = None

    def page(self, jobs: Sequence[Job[Any]]) -> JobPage:
        """The page from what was read, which is one job more than the limit when there are more."""
        shown = tuple(jobs[: self.limit])
        return JobPage(shown, self._cursor(shown[-1]) if len(jobs) > self.limit else None)

    def _cursor(self, job: Job[Any]) -> str:
        place = f"{self.order}.{'down' if self.descending else 'up'}.{job.id}"
        return place if self.order == "id" else f"{place}.{(_time_of(job) - _EPOCH) // _MICROSECOND}"


def listing(filter: JobFilter, order: str, descending: bool, limit: object, cursor: str | None) -> Listing:
    """Check what a list is asked for; raises InvalidFilter."""
    if order not in ("id", "time"):
        raise InvalidFilter(f"order is 'id' or 'time', not {shown(order, 40)}")
    if order == "time" and (filter.states is None or len(filter.states) != 1):
        raise InvalidFilter(
            "order='time' is by the time of one state: say which, as in JobFilter(states=['completed'])"
        )
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= _MOST_JOBS:
        raise InvalidFilter(f"limit is a whole number from 1 to {_MOST_JOBS}, not {shown(limit, 40)}")
    checks.check_bool("descending", descending, error=InvalidFilter)
    wanted = Listing(order="id" if order == "id" else "time", descending=descending, limit=limit)
    return wanted if cursor is None else _after(wanted, cursor)


def check_id(id: object) -> None:
    """Of a call that is about one job. Digits will do, as an address of the web has them."""
    if isinstance(id, str) and _DIGITS.fullmatch(id):
        return
    if isinstance(id, bool) or not hasattr(type(id), "__index__"):
        given = "a job: give its job.id" if isinstance(id, Job) else f"{shown(id)}: give job.id"
        raise InvalidFilter(f"the id of a job is a whole number, not {given}")


def check_limit(limit: object) -> None:
    """Of a call that changes many jobs; None is no limit."""
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise InvalidFilter(f"limit is a whole number of jobs, or None for all; not {shown(limit, 40)}")


def _after(wanted: Listing, cursor: object) -> Listing:
    """The list from where the cursor points. It may come out of a URL, so anything may stand in it."""
    match = _CURSOR.fullmatch(cursor) if isinstance(cursor, str) else None
    if (
        match is None
        or (match[1] == "time") != (match[4] is not None)
        or not _SMALLEST_ID <= int(match[3]) <= BIGGEST_ID
    ):
        raise InvalidFilter(f"{shown(cursor, 60)} is no cursor: give the `next` of a page")
    if (match[1], match[2] == "down") != (wanted.order, wanted.descending):
        raise InvalidFilter(f"the cursor {shown(cursor, 60)} is of a list in another order")
    try:
        time = None if match[4] is None else _EPOCH + int(match[4]) * _MICROSECOND
    except OverflowError:
        raise InvalidFilter(f"{shown(cursor, 60)} is no cursor: its time is no date") from None
    return Listing(
        order=wanted.order,
        descending=wanted.descending,
        limit=wanted.limit,
        after_id=int(match[3]),
        after_time=time,
    )


def _time_of(job: Job[Any]) -> datetime:
    """Since when, or until when, the job is in its state: what lists are ordered by; see list_jobs in the SQL."""
    if job.state == JobState.RUNNING:
        return job.attempted_at or job.created_at
    return job.finalized_at or job.scheduled_at


def _list_of(name: str, values: object, check: Callable[[object], object]) -> tuple[object, ...] | None:
    if values is None:
        return None
    if isinstance(values, str | bytes | Mapping) or not hasattr(values, "__iter__"):
        raise InvalidFilter(f"{name} is a list, not {shown(values)}")
    try:
        return tuple(check(value) for value in values)
    except ValueError as error:
        raise InvalidFilter(f"{name}: {error}") from None


def _number(value: object, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"a whole number from {least} to {most}, not {shown(value)}")
    return value


def _text(value: object) -> str:
    """Any text that Postgres can hold: jobs may have been made by hand."""
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f"a string without NUL, not {shown(value)}")
    value.encode()  # a lone surrogate raises a ValueError too
    return value


def _state(value: object) -> JobState:
    try:
        return JobState(value)  # type: ignore[arg-type]
    except ValueError:
        raise ValueError(f"{shown(value)} is no state; there are {', '.join(JobState)}") from None


def _check_instant(name: str, when: object) -> None:
    if when is None:
        return
    if not isinstance(when, datetime):
        raise InvalidFilter(f"{name} is a datetime, not {shown(when)}")
    if when.utcoffset() is None:
        raise InvalidFilter(f"{name} {when!r} has no time zone: use an aware datetime")
    if not FIRST_INSTANT <= when < LAST_INSTANT:
        raise InvalidFilter(f"{name} {when!r} is out of range: from year 1 to {LAST_INSTANT.date()}")


def _metadata_json(metadata: object) -> str:
    if not isinstance(metadata, Mapping):
        raise InvalidFilter(f"metadata is a mapping, not {shown(metadata)}")
    try:
        return codec.encode_metadata(metadata)
    except InvalidOption as error:
        raise InvalidFilter(str(error)) from error.__cause__
