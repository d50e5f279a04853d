"""The queues: what they do; pause, resume and empty them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from pgjobs import JobFilter, Queue, QueueNotFound
from pgjobs.dashboard import charts, form_values
from pgjobs.dashboard.batches import Batch, in_batches
from pgjobs.dashboard.job_queries import JobQueries
from pgjobs.dashboard.numbers import QueueNumbers
from pgjobs.dashboard.problem import Problem
from pgjobs.dashboard.request import Page, Request, Response, post_page
from pgjobs.db.cursors import AnyConnection
from pgjobs.observe.figures import NO_DURATIONS, Durations
from pgjobs.observe.stats import Figures
from pgjobs.states import JobState

_RECENT = timedelta(minutes=10)  # for the rates
_SPARK = timedelta(minutes=30)
_MINUTE = timedelta(minutes=1)
_EVERY = "*"  # for the calls of the client: every queue
_WAITING = (JobState.AVAILABLE, JobState.SCHEDULED, JobState.RETRYABLE)


@dataclass(frozen=True, slots=True)
class QueueLine:
    """A queue with its figures of the last ten minutes."""

    numbers: QueueNumbers
    figures: Figures | None
    spark: str

    @property
    def done_per_minute(self) -> float:
        return self.figures.completed / (_RECENT / _MINUTE) if self.figures else 0.0

    @property
    def failed_per_minute(self) -> float:
        return self.figures.failed / (_RECENT / _MINUTE) if self.figures else 0.0

    @property
    def run(self) -> Durations:
        return self.figures.run if self.figures else NO_DURATIONS

    @property
    def wait(self) -> Durations:
        return self.figures.wait if self.figures else NO_DURATIONS

    @property
    def until_empty(self) -> timedelta | None:
        """How long the waiting jobs take at the rate of the last minutes, if no more come; None if nothing is done."""
        if not self.numbers.waiting:
            return timedelta(0)
        rate = self.done_per_minute
        return timedelta(minutes=self.numbers.waiting.number / rate) if rate else None


def _lines(request: Request, conn: AnyConnection, name: str | None = None) -> list[QueueLine]:
    numbers = request.queries.queue_numbers(conn, name)
    recent = {each.queue: each for each in request.client.stats(queue=name, since=_RECENT, by=["queue"], tx=conn)}
    by_minute = request.client.stats(queue=name, since=_SPARK, step=_MINUTE, by=["queue"], tx=conn)
    return [QueueLine(each, recent.get(each.name), _spark(request, by_minute, each.name)) for each in numbers]


def _spark(request: Request, figures: Sequence[Figures], name: str) -> str:
    period = charts.Period("spark", "", _SPARK, _MINUTE, "")
    of_queue = [each for each in figures if each.queue == name]
    return charts.spark([step.completed + step.failed for step in charts.steps_of(of_queue, period, request.now)])


def show(request: Request) -> Response:
    with request.reading() as conn:
        lines = _lines(request, conn)
    return request.render("queues.html", lines=lines)


def show_one(request: Request) -> Response:
    name = request.text("name")
    period = charts.PERIODS.get(request.text("period", "hour"), charts.PERIODS["hour"])
    with request.reading() as conn:
        lines = _lines(request, conn, name)
        if not lines:
            raise QueueNotFound(name)
        figures = request.client.stats(queue=name, since=period.length, step=period.step, by=[], tx=conn)
        by_kind = request.client.stats(queue=name, since=period.length, by=["kind"], tx=conn)
        workers = [worker for worker in request.client.workers(conn) if name in worker.queues]
    steps = charts.steps_of(figures, period, request.now)
    return request.render(
        "queue.html",
        line=lines[0],
        by_kind=sorted(by_kind, key=lambda each: -(each.completed + each.failed)),
        workers=workers,
        period=period,
        periods=charts.PERIODS.values(),
        steps=steps,
        throughput=charts.throughput(steps, period),
        waits=charts.waits(steps, period),
    )


def pause(request: Request) -> Response:
    return _pause(request, "pause-queues", request.client.queues.pause)


def resume(request: Request) -> Response:
    return _pause(request, "resume-queues", request.client.queues.resume)


def _pause(request: Request, act: str, change: Callable[[str, AnyConnection], Sequence[Queue]]) -> Response:
    """Pause or resume one queue, or all; then back to the page of the queue, if the button was there."""
    name = _EVERY if request.form.get("all") == "1" else request.text("name")
    if name == _EVERY and request.form.get("all") != "1":  # a row that SQL has made
        raise Problem(400, "A queue called * cannot be paused alone: * stands for all queues.", "Nothing was changed.")
    with request.acting(act, queue=name) as action:
        action.count = len(change(name, action.tx))
    if request.form.get("back") == "queue" and name != _EVERY:
        return request.done("queue", act, action.count, name=name)
    return request.done("queues", act, action.count)


def confirm_empty(request: Request) -> Response:
    name = request.text("name")
    with request.reading() as conn:
        count = request.queries.count_waiting_of_queue(conn, name)
        newest = JobQueries(request.client.schema).newest_id(conn) or 0
    return request.render("empty_queue.html", name=name, count=count, newest=newest)


def empty(request: Request) -> Response:
    name, newest = request.text("name"), form_values.newest(request.form)

    def delete(tx: AnyConnection, most: int) -> Batch:
        ids = request.queries.waiting_of_queue(tx, name, newest, most)
        many = request.client.delete_many(JobFilter(ids=ids, queues=[name], states=_WAITING), tx)
        return Batch(many, is_full=len(ids) == most)  # not by the jobs deleted: a worker may have claimed some of them

    deleted = in_batches(request, "delete-jobs", {"queue": name, "states": _WAITING}, delete)
    # an empty queue without workers is not listed any more
    page, about = ("confirm_empty_queue", name) if deleted.more else ("queues", None)
    return request.done(page, "delete-jobs", deleted.jobs, reasons=deleted.left, name=about)


PAGES = (
    Page("/queues", "queues", show, role="viewer"),
    Page("/queue", "queue", show_one, role="viewer"),
    post_page("/queues/pause", "pause_queue", pause),
    post_page("/queues/resume", "resume_queue", resume),
    Page("/queues/empty", "confirm_empty_queue", confirm_empty, role="operator"),
    post_page("/queues/empty", "empty_queue", empty),
)
