"""Maintenance: how large the tables are, when they were vacuumed, and old jobs to delete."""

from __future__ import annotations

from datetime import datetime, timedelta

from pgjobs import JobFilter
from pgjobs.dashboard.batches import Batch, in_batches
from pgjobs.dashboard.problem import Problem
from pgjobs.dashboard.request import Page, Request, Response, post_page
from pgjobs.db.cursors import AnyConnection
from pgjobs.db.repair import TABLES
from pgjobs.errors import shown
from pgjobs.results import KEPT
from pgjobs.states import JobState

_MOST_DAYS = 10_000
_PATIENCE = 3.0  # seconds that the answer waits for the end of a vacuum


def show(request: Request) -> Response:
    with request.reading() as conn:
        tables = request.queries.table_sizes(conn)
        indexes = request.queries.index_sizes(conn)
        duties = request.queries.duties(conn)
        vacuums = request.queries.running_vacuums(conn)
    return request.render(
        "maintenance.html",
        tables=tables,
        indexes=indexes,
        duties=duties,
        vacuums=vacuums,
        can_be_vacuumed=TABLES,
        states=KEPT,
        late=timedelta(minutes=5),
    )


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

    def delete(tx: AnyConnection, most: int) -> Batch:
        many = request.client.delete_many(JobFilter(states=[state], finalized_before=before), tx, limit=most)
        return Batch(many, is_full=len(many.done) + len(many.skipped) >= most)

    target = {"state": state, "finalized_before": before}
    deleted = in_batches(request, "prune-jobs", target, delete)
    if deleted.more:
        return request.done("confirm_prune", "prune-jobs", deleted.jobs, reasons=deleted.left, state=state, days=days)
    return request.done("maintenance", "prune-jobs", deleted.jobs, reasons=deleted.left)


def _before(request: Request, days: str) -> datetime:
    return request.now - timedelta(days=int(days))


def vacuum(request: Request) -> Response:
    """Starts it, and says how it ended if it takes only some seconds."""
    table = request.text("table")
    if table not in TABLES:
        raise Problem(400, f"pgjobs has no table {shown(table)}.", f"Its tables are {', '.join(TABLES)}.")
    with request.acting("start-vacuum", table=table) as action:
        if not request.queries.may_vacuum(action.tx, table):
            raise _may_not_vacuum(request, table)
    run = request.site.vacuums.start(table, request.user.name)
    if not run.ended.wait(_PATIENCE):
        return request.done("maintenance", "start-vacuum")
    if run.problem is not None:
        raise Problem(409 if run.is_locked else 500, f"Table {table} was {run.problem}.", "Try it later.")
    return request.done("maintenance", "vacuum-tables")


def _may_not_vacuum(request: Request, table: str) -> Problem:
    name = f"{request.client.schema}.{table}"
    return Problem(
        403,
        f"The database role of this dashboard may not vacuum table {name}.",
        f"Run VACUUM (ANALYZE) {name} as its owner; or, since Postgres 17, let the owner GRANT MAINTAIN on it.",
    )


PAGES = (
    Page("/maintenance", "maintenance", show, role="viewer"),
    Page("/maintenance/prune", "confirm_prune", confirm, role="operator"),
    post_page("/maintenance/prune", "prune", prune),
    post_page("/maintenance/vacuum", "vacuum", vacuum),
)
