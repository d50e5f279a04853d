"""The overview: how many jobs there are, what was done lately, and what needs attention."""

from __future__ import annotations

from datetime import timedelta

from pgjobs.dashboard import charts
from pgjobs.dashboard.attention import notes
from pgjobs.dashboard.request import Page, Request, Response

_HOUR = timedelta(hours=1)


def show(request: Request) -> Response:
    client = request.client
    period = charts.PERIODS.get(request.text("period", "hour"), charts.PERIODS["hour"])
    with request.reading() as conn:
        states = request.queries.count_states(conn)
        queues = request.queries.queue_numbers(conn)
        hour = client.stats(since=_HOUR, by=["queue"], tx=conn)
        figures = client.stats(since=period.length, step=period.step, by=[], tx=conn)
        workers = client.workers(conn)
        schedules = client.schedules.list(conn)
    steps = charts.steps_of(figures, period, request.now)
    return request.render(
        "overview.html",
        states=states,
        oldest=max((each for queue in queues if (each := queue.oldest(request.now)) is not None), default=None),
        workers=workers,
        notes=notes(queues, hour, workers, schedules, request.now, with_errors=request.user.sees_args),
        period=period,
        periods=charts.PERIODS.values(),
        steps=steps,
        throughput=charts.throughput(steps, period),
        waits=charts.waits(steps, period),
    )


PAGES = (Page("/", "overview", show, role="viewer"),)
