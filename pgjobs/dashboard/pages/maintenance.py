"""Maintenance: how large the tables are, when they were vacuumed, and old jobs to delete."""

from __future__ import annotations

from datetime import datetime, timedelta

from pgjobs import JobFilter
from pgjobs.dashboard import batches
from pgjobs.dashboard.problem import Problem
from pgjobs.dashboard.request import Page, Request, Response
from pgjobs.db.cursors import AnyConnection
from pgjobs.results import KEPT
from pgjobs.states import JobState

_MOST_DAYS = 10_000


def show(request: Request) -> Response:
    with request.reading() as conn:
        tables = request.queries.table_sizes(conn)
        indexes = request.queries.index_sizes(conn)
        duties = request.queries.duties(conn)
    late = timedelta(minutes=5)
    return request.render("maintenance.html", tables=tables, indexes=indexes, duties=duties, states=KEPT, late=late)


def _wanted(request: Request) -> tuple[JobState, str]:
    """The state and the age in days of the jobs to delete."""
    state, days = request.text("state"), request.text("days")
    if state not in KEPT:
        raise Problem(400, "Only completed, cancelled and discarded jobs can be pruned.", "Choose one of these states.")
    if not (days.isascii() and days.isdecimal() and int(days[:9]) <= _MOST_DAYS and len(days) <= 9):
        raise Problem(400, f"The age is a whole number of days, 0 to {_MOST_DAYS:,}.", "Go back, and correct it.")
    return JobState(state), days


def confirm(request: Request) -> Response:
    state, days = _wanted(request)
    with request.reading() as conn:
        count = request.queries.count_ended_before(conn, state, _before(request, days))
    return request.render("prune.html", state=state, days=days, count=count)


def prune(request: Request) -> Response:
    state, days = _wanted(request)
    with request.reading():  # for the time of the database
        before = _before(request, days)

    def delete(tx: AnyConnection, most: int) -> int:
        return len(request.client.delete_many(JobFilter(states=[state], finalized_before=before), tx, limit=most).done)

    target = {"state": state, "finalized_before": before}
    deleted, more = batches.in_batches(request, "prune-jobs", target, delete)
    if more:
        return request.done("confirm_prune", "prune-jobs", deleted, state=state, days=days)
    return request.done("maintenance", "prune-jobs", deleted)


def _before(request: Request, days: str) -> datetime:
    return request.now - timedelta(days=int(days))


PAGES = (
    Page("/maintenance", "maintenance", show),
    Page("/maintenance/prune", "confirm_prune", confirm),
    Page("/maintenance/prune", "prune", prune, "POST"),
)
