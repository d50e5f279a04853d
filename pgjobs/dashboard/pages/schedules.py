"""The schedules: when they tick; pause, resume, run and remove them; the ticks that a text would have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from pgjobs import InvalidSchedule, JobFilter, ScheduleNotFound, timetable
from pgjobs.dashboard.acts import ACTS
from pgjobs.dashboard.problem import Problem
from pgjobs.dashboard.request import Page, Request, Response, post_page
from pgjobs.db.cursors import AnyConnection
from pgjobs.job import Job
from pgjobs.options import LAST_INSTANT

_TICKS = 10  # that are shown
_HISTORY = 20
_LONGEST_SPEC = 250

Change = Callable[[str, AnyConnection], object]


def show(request: Request) -> Response:
    with request.reading() as conn:
        schedules = request.client.schedules.list(conn)
    return request.render("schedules.html", schedules=schedules, never=LAST_INSTANT)


def show_one(request: Request) -> Response:
    name = request.text("name")
    with request.reading() as conn:
        row = request.client.schedules.get(name, conn)
        if row is None:
            raise ScheduleNotFound(name)
        history = _history(request, conn, name)
    try:
        ticks = [] if row.spec is None else next_ticks(row.spec, row.zone, row.name, request.now)
    except InvalidSchedule:  # SQL may have written any text: the row says what is wrong with it
        ticks = []
    return request.render(
        "schedule.html", row=row, ticks=ticks, history=history, never=LAST_INSTANT, zone=_zone(row.zone)
    )


def _history(request: Request, conn: AnyConnection, name: str) -> Sequence[Job[Any]]:
    """The newest jobs of the schedule, the newest first."""
    ids = request.queries.jobs_of_schedule(conn, name, _HISTORY)
    if not ids:
        return ()
    jobs = request.client.list_jobs(JobFilter(ids=ids), conn, limit=_HISTORY).jobs
    return sorted(jobs, key=lambda job: ids.index(job.id))


def _zone(name: str) -> ZoneInfo | None:
    try:
        return timetable.time_zone(name)
    except InvalidSchedule:
        return None


def next_ticks(spec: str, zone: str, name: str, now: datetime) -> list[datetime]:
    """The next ticks of a text, fewer if it never ticks again. Raises InvalidSchedule."""
    if len(spec) > _LONGEST_SPEC:
        raise InvalidSchedule(f"a schedule has at most {_LONGEST_SPEC} characters, not {len(spec)}")
    ticks = timetable.parse(spec, zone=zone, name=name)
    found: list[datetime] = []
    while len(found) < _TICKS:
        tick = ticks.next(found[-1] if found else now)
        if tick is None:
            break
        found.append(tick)
    return found


def simulate(request: Request) -> Response:
    spec, zone, name = request.text("spec", ""), request.text("zone", "UTC"), request.text("name", "")
    ticks, wrong = [], None
    try:
        ticks = next_ticks(spec, zone, name, request.now) if spec else []
    except InvalidSchedule as error:
        wrong = str(error)
    return request.render("simulate.html", spec=spec, zone_name=zone, zone=_zone(zone), ticks=ticks, wrong=wrong)


# --- changes


def _change(act: str, change: Callable[[Request], Change]) -> Callable[[Request], Response]:
    """A view that changes the schedules whose names the form has, all in one transaction."""

    def view(request: Request) -> Response:
        names = request.form.getlist("name")
        if not names:
            raise Problem(400, "No schedule is chosen.", "Go back, and choose some.")
        with request.acting(act, schedules=names) as action:
            for name in names:
                change(request)(name, action.tx)
            action.count = len(names)
        if request.form.get("back") == "schedule" and act != "remove-schedules":
            return request.done("schedule", act, len(names), name=names[0])
        return request.done("schedules", act, len(names))

    assert act in ACTS
    return view


PAGES = (
    Page("/schedules", "schedules", show, role="viewer"),
    Page("/schedule", "schedule", show_one, role="viewer"),
    Page("/schedules/simulate", "simulate", simulate, role="viewer"),
    post_page("/schedules/pause", "pause_schedules", _change("pause-schedules", lambda r: r.client.schedules.pause)),
    post_page(
        "/schedules/resume", "resume_schedules", _change("resume-schedules", lambda r: r.client.schedules.resume)
    ),
    post_page("/schedules/run", "run_schedules", _change("run-schedules", lambda r: r.client.schedules.run_now)),
    post_page(
        "/schedules/remove", "remove_schedules", _change("remove-schedules", lambda r: r.client.schedules.remove)
    ),
)
