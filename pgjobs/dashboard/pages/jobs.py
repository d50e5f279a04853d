"""The list of jobs: filters, search, pages."""

from __future__ import annotations

from typing import Any

from pgjobs.dashboard.job_queries import MOST_COUNTED, JobQueries
from pgjobs.dashboard.job_view import read_jobs, short_args, time_of, when_label
from pgjobs.dashboard.problem import Problem, problem_of
from pgjobs.dashboard.render import number
from pgjobs.dashboard.request import Page, Request, Response
from pgjobs.dashboard.scan import Found, find
from pgjobs.dashboard.selection import TIMES, Selection, selection
from pgjobs.db.cursors import AnyConnection
from pgjobs.errors import InvalidFilter
from pgjobs.states import JobState

_PAGE = 50
_MORE = {"tag", "error", "priority", "id", "args", "metadata", "after", "before", "order", "dir"}  # folded away
_SECONDS = 0.15  # that a page looks for jobs that fit


def show(request: Request) -> Response:
    queries = JobQueries(request.client.schema)
    with request.reading() as conn:
        known = {"kinds": queries.known_kinds(conn), "queues": queries.known_queues(conn)}
        try:
            chosen = selection(request.args, request.now, request.user)
            found = find(conn, queries, chosen, limit=_PAGE, seconds=_SECONDS, cursor=request.args.get("cursor"))
        except (InvalidFilter, Problem) as error:
            return _refused(request, problem_of(error), known)
        jobs = read_jobs(request, conn, found.ids)
        count = _count(conn, queries, chosen, found, is_first="cursor" not in request.args)
        about_all = None if found.next is None or found.is_full else queries.about_all(conn)
    rows = [_row(request, jobs[place.id, place.queue]) for place in found.places if (place.id, place.queue) in jobs]
    looked_at = _looked_before(request) + found.looked_at
    return _page(
        request, known, chosen.values, rows=rows, chosen=chosen, found=found, count=count, looked_at=looked_at,
        about_all=about_all, refresh=30 if chosen.search.text else 5,
    )  # fmt: skip


def _refused(request: Request, problem: Problem, known: dict[str, Any]) -> Response:
    """The page with what was typed, and what is wrong with it."""
    many, given = ("state", "id"), request.args
    values = {name: given.getlist(name) if name in many else given[name] for name in given}
    return _page(request, known, values, status=problem.status, problem=problem, found=Found())


def _page(request: Request, known: dict[str, Any], values: dict[str, Any], **given: Any) -> Response:
    missing = dict.fromkeys(("chosen", "problem", "count", "about_all", "looked_at"))
    shown = {**missing, "rows": [], "states": list(JobState), "times": TIMES, "values": values, **known, **given}
    return request.render("jobs.html", has_more=bool(_MORE & values.keys()), **shown)


def _row(request: Request, job: Any) -> dict[str, Any]:
    return {
        "job": job,
        "when": time_of(job),
        "when_label": when_label(job),
        "args": short_args(request, job),
        "error": job.last_error.partition("\n")[0][:160] if job.last_error and request.user.sees_args else None,
    }


def _count(conn: AnyConnection, queries: JobQueries, chosen: Selection, found: Found, *, is_first: bool) -> str | None:
    """How many jobs fit, as a text; None if that would take too long."""
    if found.next is None and is_first:
        return number(len(found.places))
    if not chosen.search.is_empty or (found.next is not None and not found.is_full):
        return None  # to find a page has taken too long already
    jobs = queries.count(conn, chosen.filter, MOST_COUNTED + 1)
    if jobs is None:
        return None
    return f"{MOST_COUNTED:,}+" if jobs > MOST_COUNTED else number(jobs)


def _looked_before(request: Request) -> int:
    text = request.args.get("looked", "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 13 else 0


PAGES = (Page("/jobs", "jobs", show, role="viewer"),)
