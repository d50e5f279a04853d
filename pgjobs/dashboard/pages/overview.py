"""The overview: what the queues do, and what needs attention."""

from __future__ import annotations

from pgjobs.dashboard.request import Page, Request, Response


def show(request: Request) -> Response:
    with request.reading() as conn:
        stats = request.client.queues.stats(tx=conn)
    return request.render("overview.html", stats=stats.values())


PAGES = (Page("/", "overview", show),)
