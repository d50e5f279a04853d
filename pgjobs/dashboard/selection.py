"""Which jobs a page shows or an action is for: the values in the URL, and the filter and search that they stand for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from werkzeug.datastructures import MultiDict

from pgjobs.dashboard import form_values
from pgjobs.dashboard.access import User
from pgjobs.dashboard.job_queries import Search
from pgjobs.dashboard.problem import Problem
from pgjobs.errors import EmptyFilter
from pgjobs.job_filter import JobFilter
from pgjobs.states import JobState

#: The values of a URL that say which jobs, and in which order.
NAMES = (
    "state", "kind", "queue", "tag", "priority", "id", "args", "metadata", "text", "error", "time", "after", "before",
    "order", "dir",
)  # fmt: skip
_MANY = ("state", "id")
#: What a range of time may be about, as people say it.
TIMES = {
    "created": "enqueued",
    "scheduled": "due",
    "attempted": "last started",
    "finalized": "ended",
}
_COLUMNS = {state: "finalized_at" for state in JobState if state.final} | {
    JobState.RUNNING: "attempted_at",
    JobState.AVAILABLE: "scheduled_at",
    JobState.SCHEDULED: "scheduled_at",
    JobState.RETRYABLE: "scheduled_at",
}
_WHAT_MAY_BE_HIDDEN = ("args", "metadata", "text")
_WHAT_FINDS_SECRETS = ("args", "text")


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The jobs that fit a filter and a search, in an order. `values` are those of the URL, without the empty ones."""

    filter: JobFilter
    search: Search
    column: str  # the order: id, or the time of a state
    descending: bool
    values: dict[str, Any]

    @property
    def order(self) -> str:
        return f"{self.column} {'down' if self.descending else 'up'}"

    @property
    def is_empty(self) -> bool:
        """Whether it has no condition: all jobs."""
        return self.filter == JobFilter() and self.search.is_empty

    @property
    def window_filter(self) -> JobFilter:
        """The conditions that the index of the order serves. The others are applied to the jobs that it gives."""
        filter = self.filter
        if self.column == "id" or filter.states is None:
            return JobFilter()
        given = {name: getattr(filter, name) for side in ("after", "before") if (name := self._range(side))}
        queues = filter.queues if filter.states == (JobState.AVAILABLE,) else None
        return JobFilter(states=filter.states, queues=queues, **given)

    def _range(self, side: str) -> str:
        """The field of the filter with this end of the range of the time by which the jobs are ordered."""
        name = f"{self.column.removesuffix('_at')}_{side}"
        return name if self.column != "attempted_at" else ""  # a running job without one is listed by another time

    @property
    def is_served(self) -> bool:
        """Whether the index of the order serves all conditions, so that every job of a window fits."""
        return self.search.is_empty and self.window_filter == self.filter

    @property
    def needs_only_state(self) -> bool:
        """Whether, of the jobs of a window, only their states say which of them fit."""
        return self.search.is_empty and replace(self.filter, states=None) == replace(self.window_filter, states=None)

    def only(self, ids: list[int], queue: str | None = None) -> JobFilter:
        """Its filter for the jobs with these ids alone, or for those of them in one queue."""
        queues = self.filter.queues if queue is None else [queue]
        return replace(self.filter, ids=ids, queues=queues, really_all=False)

    @property
    def fixed_values(self) -> dict[str, Any]:
        """The values, with the instants in place of times such as 2h: those go on when a form is sent later."""
        about = self.values.get("time", "created")
        ends = {side: getattr(self.filter, f"{about}_{side}") for side in ("after", "before") if side in self.values}
        return self.values | {side: at.isoformat() for side, at in ends.items() if at is not None}


def selection(values: MultiDict[str, str], now: datetime, user: User) -> Selection:
    """The selection of a URL or form. Raises Problem or InvalidFilter."""
    given = _given(values)
    if not user.sees_args and any(name in given for name in _WHAT_MAY_BE_HIDDEN):
        raise Problem(403, "You may not see args, so you cannot search in them.", "Use the other fields.")
    if not user.may_search_args and any(name in given for name in _WHAT_FINDS_SECRETS):
        raise Problem(
            403,
            "Only operators may search for a text anywhere, or in args: such a search also finds secret fields.",
            "Use the other fields.",
        )
    for name, value in given.items():
        if any("\0" in text for text in ([value] if isinstance(value, str) else value)):
            raise form_values.InvalidInput(name.capitalize(), "Postgres has no texts with the character NUL.")
    filter = _filter(given, now)
    column = _column(filter, given.get("order"))
    waits = column in ("scheduled_at", "attempted_at")  # what is due first, or runs longest, comes first
    direction = given.get("dir")
    return Selection(
        filter=filter,
        search=Search(error=given.get("error"), text=given.get("text"), any_error=user.sees_args),
        column=column,
        descending=direction == "down" or (direction != "up" and not waits),
        values=given,
    )


def check_not_empty(chosen: Selection) -> None:
    """An action must say which jobs it is for."""
    if chosen.is_empty:
        raise EmptyFilter("no job is chosen: tick some, or filter the list")


def _given(values: MultiDict[str, str]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for name in NAMES:
        texts = [text for text in dict.fromkeys(values.getlist(name)) if text != ""]
        if texts:
            given[name] = texts if name in _MANY else texts[-1]
    return given


def _filter(given: dict[str, Any], now: datetime) -> JobFilter:
    def one(name: str) -> list[str] | None:
        return [given[name]] if name in given else None

    ids = [form_values.number("Id", text) or 0 for text in given.get("id", ())]
    priority = form_values.number("Priority", given.get("priority", ""))
    return JobFilter(
        ids=ids or None,
        states=given.get("state"),
        kinds=one("kind"),
        queues=one("queue"),
        tags_all=form_values.words(given.get("tag", "")),
        priorities=None if priority is None else [priority],
        args=form_values.json_object("Args", given.get("args", "")) or None,
        metadata=form_values.json_object("Metadata", given.get("metadata", "")) or None,
        **_times(given, now),
    )


def _times(given: dict[str, Any], now: datetime) -> dict[str, Any]:
    about = given.get("time", "created")
    if about not in TIMES:
        raise form_values.InvalidInput("Time", f"it is one of {', '.join(TIMES)}.")
    return {
        f"{about}_{side}": form_values.instant(side.capitalize(), given.get(side, ""), now, past=True)
        for side in ("after", "before")
    }


def _column(filter: JobFilter, order: str | None) -> str:
    """By what the jobs are ordered: by the time of their state, where they have one state and an index has it."""
    if order == "id" or filter.states is None or len(filter.states) != 1:
        return "id"
    return _COLUMNS.get(JobState(filter.states[0]), "id")
