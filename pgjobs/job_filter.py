"""JobFilter, the jobs that a call is for, and the checks of its arguments. Nothing here uses a database."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime
from typing import Any

from pgjobs import checks, codec
from pgjobs.errors import EmptyFilter, InvalidFilter, InvalidOption, shown
from pgjobs.job import Job, JobState
from pgjobs.options import FIRST_INSTANT, LAST_INSTANT, kind_of
from pgjobs.states import StateName

BIGGEST_ID = 2**63 - 1
SMALLEST_ID = -(2**63)  # a row that is made by hand may have an id below zero
_OBJECTS = ("metadata", "args")  # found by what they contain
_DIGITS = re.compile(r"-?\d{1,100}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """The jobs that meet all the conditions; a condition that is left out is met by every job.

    A job meets a list when it has one of the values, so no job meets an empty list; `tags_all` needs all of the tags.
    In `kinds`, an args class stands for its kind. A job meets `metadata` or `args` when its metadata or args contain
    it, like the operator @> of Postgres. `..._after` is that instant or later, `..._before` is earlier than that
    instant; a job without such a time does not meet either.

    Calls that change many jobs refuse a filter without conditions: `JobFilter.all()` means really all jobs. Raises
    InvalidFilter for a value that no job can have.
    """

    ids: Sequence[int] | None = None
    kinds: Sequence[str | type] | None = None
    queues: Sequence[str] | None = None
    states: Sequence[JobState | StateName] | None = None
    priorities: Sequence[int] | None = None
    tags_any: Sequence[str] | None = None
    tags_all: Sequence[str] | None = None
    metadata: Mapping[str, Any] | None = None
    args: Mapping[str, Any] | None = None
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
        """All jobs."""
        return cls(really_all=True)

    def __post_init__(self) -> None:
        lists: dict[str, Callable[[object], object]] = {
            "ids": lambda value: _number(value, SMALLEST_ID, BIGGEST_ID),
            "priorities": lambda value: _number(value, -32768, 32767),
            "states": _state,
            "kinds": _kind,
            **dict.fromkeys(("queues", "tags_any", "tags_all"), _text),
        }
        for name, check in lists.items():
            object.__setattr__(self, name, _list_of(name, getattr(self, name), check))
        for field in fields(self):
            if field.name.endswith(("_after", "_before")):
                check_instant(field.name, getattr(self, field.name))
        for name in _OBJECTS:
            given = getattr(self, name)
            if given is not None:  # a copy, since the caller may change the mapping
                object.__setattr__(self, name, codec.decode_dict(_json(name, given)))
        checks.check_bool("really_all", self.really_all, error=InvalidFilter)
        if self.tags_all == () or self.metadata == {} or self.args == {}:
            raise InvalidFilter("empty tags_all, metadata or args would fit every job: leave it out")
        if self.really_all and self._has_conditions:
            raise InvalidFilter("JobFilter.all() is all jobs: it takes no other condition")

    def __repr__(self) -> str:
        """The conditions that are given."""
        if self.really_all:
            return "JobFilter.all()"
        given = [f"{name}={value!r}" for name, value in self._conditions.items() if value is not None]
        return f"JobFilter({', '.join(given)})"

    def check_not_empty(self) -> None:
        """Raise EmptyFilter when the filter has no condition."""
        if not self.really_all and not self._has_conditions:
            raise EmptyFilter("the filter is empty: give a condition, or JobFilter.all() for really all")

    @property
    def _conditions(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "really_all"}

    @property
    def _has_conditions(self) -> bool:
        return any(value is not None for value in self._conditions.values())

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of the SQL part `matches`."""
        conditions = self._conditions
        lists = {name: list(value) for name, value in conditions.items() if isinstance(value, tuple)}
        objects = {name: _json(name, conditions[name]) for name in _OBJECTS if conditions[name] is not None}
        return {**conditions, **lists, **objects}


def check_filter(filter: object) -> None:
    if not isinstance(filter, JobFilter):
        raise InvalidFilter(
            f"filter is a JobFilter, as in JobFilter(queues=['mail']), not {shown(filter)}: the tx comes after it"
        )


def check_id(id: object) -> None:
    """Refuse a value that is not the id of a job. A text of digits, as in a URL, is an id."""
    if isinstance(id, str) and _DIGITS.fullmatch(id):
        return
    if isinstance(id, bool) or not hasattr(type(id), "__index__"):
        given = "a job: give its job.id" if isinstance(id, Job) else f"{shown(id)}: give job.id"
        raise InvalidFilter(f"the id of a job is a whole number, not {given}")


def check_limit(limit: object) -> None:
    """Refuse a value that cannot limit a call for many jobs; None is no limit."""
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise InvalidFilter(f"limit is a whole number of jobs, or None for all; not {shown(limit, 40)}")


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
    """Any text that Postgres can store: a row that is made by hand may hold it."""
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f"a string without NUL, not {shown(value)}")
    value.encode()  # raises a ValueError for a lone surrogate
    return value


def _kind(value: object) -> str:
    return kind_of(value) if isinstance(value, type) and is_dataclass(value) else _text(value)


def _state(value: object) -> JobState:
    try:
        return JobState(value)  # type: ignore[arg-type]
    except ValueError:
        raise ValueError(f"{shown(value)} is not a state; there are {', '.join(JobState)}") from None


def check_instant(name: str, when: object) -> None:
    """Refuse a value that is neither None nor an aware datetime."""
    if when is None:
        return
    if not isinstance(when, datetime):
        raise InvalidFilter(f"{name} is a datetime, not {shown(when)}")
    if when.utcoffset() is None:
        raise InvalidFilter(f"{name} {when!r} has no time zone: use an aware datetime")
    if not FIRST_INSTANT <= when < LAST_INSTANT:
        raise InvalidFilter(f"{name} {when!r} is out of range: from {FIRST_INSTANT.date()} to {LAST_INSTANT.date()}")


def _json(name: str, value: object) -> str:
    if not isinstance(value, Mapping):
        raise InvalidFilter(f"{name} is a mapping, not {shown(value)}")
    try:
        return codec.encode_metadata(value)
    except InvalidOption as error:
        raise InvalidFilter(str(error).replace("metadata", name, 1)) from error.__cause__
