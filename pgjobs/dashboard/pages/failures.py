"""Failed jobs, grouped by kind and by the class of their last error."""

from __future__ import annotations

from pgjobs.dashboard.job_queries import JobQueries
from pgjobs.dashboard.request import Page, Request, Response


def show(request: Request) -> Response:
    queries = JobQueries(request.client.schema)
    with request.reading() as conn:
        failures = queries.failures(conn, any_error=request.user.sees_args)
        ids = [group.newest_id for group in failures.groups]
        samples = queries.last_errors(conn, ids) if request.user.sees_args else {}
    return request.render("failures.html", failures=failures, samples=samples, refresh=10)


PAGES = (Page("/failures", "failures", show, role="viewer"),)
