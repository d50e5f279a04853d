"""Finds the jobs of a selection, window by window, for a bounded time."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace

from pgjobs.dashboard.job_queries import JobKey, JobPlace, JobQueries, Window
from pgjobs.dashboard.selection import Selection
from pgjobs.db.cursors import AnyConnection
from pgjobs.errors import InvalidFilter
from pgjobs.interval import microseconds
from pgjobs.job_filter import BIGGEST_ID, JobFilter
from pgjobs.observe.listing import Listing, listing
from pgjobs.options import FIRST_INSTANT

_NO_TIME = FIRST_INSTANT
_FIRST, _LARGEST = 1_000, 20_000  # jobs of a window
_LONG = 0.05  # seconds: a window that took longer is not followed by a larger one


@dataclass
class Found:
    """The jobs that were found, and how many were looked at. `next` is the cursor from which the search goes on; None
    when it has come to the end."""

    places: list[JobPlace] = field(default_factory=list)
    looked_at: int = 0
    next: str | None = None
    is_full: bool = False  # it ended because it had found enough

    @property
    def ids(self) -> list[int]:
        return [place.id for place in self.places]


def find(
    conn: AnyConnection,
    queries: JobQueries,
    chosen: Selection,
    *,
    limit: int,
    seconds: float,
    cursor: str | None = None,
    newest: int = BIGGEST_ID,
) -> Found:
    """The next jobs of the selection, at most `limit`, from the cursor on; none with an id above `newest`. It ends
    after about so many seconds, and says from where to go on."""
    found = Found()
    if chosen.filter.ids is not None:  # they are looked at at once
        states = queries.fitting(conn, chosen.filter, chosen.search)
        found.places = [JobPlace(*key, states[key], _NO_TIME) for key in sorted(states) if key[0] <= newest][:limit]
        found.looked_at = len(chosen.filter.ids)
        return found
    end = time.monotonic() + seconds
    for window, fits, size in _windows(conn, queries, chosen, _start(chosen, cursor), limit):
        for place in window:
            is_wanted = place.key in fits and place.id <= newest
            if is_wanted and len(found.places) == limit:
                found.is_full = True
                return found
            if is_wanted:
                found.places.append(place)
            found.looked_at += 1
            found.next = _cursor(chosen, place)
        if len(window) < size:
            found.next = None
        elif time.monotonic() >= end:
            break
    return found


def _windows(
    conn: AnyConnection, queries: JobQueries, chosen: Selection, start: Listing, limit: int
) -> Iterator[tuple[list[JobPlace], Collection[JobKey], int]]:
    """The windows of a selection from a place on, each with the keys of those of its jobs that fit, and the number of
    jobs that it would have if it was not the last one."""
    size = limit + 1 if chosen.is_served else max(_FIRST, limit + 1)
    window = Window(order=chosen.order, size=size, after_id=start.after_id, after_time=start.after)
    while True:
        began = time.monotonic()
        places = queries.window(conn, chosen.window_filter, window)
        yield places, _fitting(conn, queries, chosen, places), window.size
        if len(places) < window.size:
            return
        larger = window.size if time.monotonic() - began > _LONG else min(window.size * 4, _LARGEST)
        last = places[-1]
        window = replace(window, size=larger, after_id=last.id, after_time=replace(start, after_time=last.at).after)


def _fitting(conn: AnyConnection, queries: JobQueries, chosen: Selection, places: list[JobPlace]) -> Collection[JobKey]:
    """The keys of those jobs of a window that fit."""
    if chosen.is_served or not places:
        return {place.key for place in places}
    if chosen.needs_only_state:
        return {place.key for place in places if place.state in (chosen.filter.states or ())}
    ids = [place.id for place in places]
    if chosen.column == "id":
        return queries.fitting(conn, chosen.filter, chosen.search, between=(min(ids), max(ids)))
    return queries.fitting(conn, chosen.only(ids), chosen.search)


def _start(chosen: Selection, cursor: str | None) -> Listing:
    """Where the cursor, which may come out of a URL, points to. Raises InvalidFilter if it is no cursor."""
    if chosen.column == "id":
        return listing(JobFilter(), "id", chosen.descending, 1, cursor)
    if cursor is not None and not cursor.startswith("time."):
        raise InvalidFilter("the cursor belongs to a list in another order")
    return listing(JobFilter(states=["completed"]), "time", chosen.descending, 1, cursor)


def _cursor(chosen: Selection, place: JobPlace) -> str:
    head = "id" if chosen.column == "id" else "time"
    cursor = f"{head}.{'down' if chosen.descending else 'up'}.{place.id}"
    return cursor if head == "id" else f"{cursor}.{microseconds(place.at)}"
