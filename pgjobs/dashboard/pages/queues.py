"""The queues: what they do, pause and resume."""

from __future__ import annotations

from pgjobs.dashboard.request import Page, Request, Response


def show(request: Request) -> Response:
    with request.reading() as conn:
        stats = request.client.queues.stats(tx=conn)
    return request.render("queues.html", queues=list(stats.values()))


def pause(request: Request) -> Response:
    name = request.text("name")
    with request.acting("pause-queues", queue=name) as action:
        action.count = len(request.client.queues.pause(name, action.tx))
    return request.done("queues", "pause-queues", action.count)


def resume(request: Request) -> Response:
    name = request.text("name")
    with request.acting("resume-queues", queue=name) as action:
        action.count = len(request.client.queues.resume(name, action.tx))
    return request.done("queues", "resume-queues", action.count)


PAGES = (
    Page("/queues", "queues", show),
    Page("/queues/pause", "pause_queue", pause, "POST"),
    Page("/queues/resume", "resume_queue", resume, "POST"),
)
