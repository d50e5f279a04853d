"""Enqueue."""

from __future__ import annotations

from pgjobs.dashboard.request import Page, Request, Response


def show(request: Request) -> Response:
    return request.render("empty.html")


PAGES = (Page("/enqueue", "enqueue", show),)
