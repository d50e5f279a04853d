"""One job."""

from __future__ import annotations

from pgjobs.dashboard.request import Page, Request, Response


def show(request: Request, id: int) -> Response:
    return request.render("empty.html")


PAGES = (Page("/jobs/<int(signed=True):id>", "job", show),)
