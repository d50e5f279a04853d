"""Actions for many jobs: a page that says what would be changed, a dry run, and the change."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from pgjobs.dashboard import form_values
from pgjobs.dashboard.acts import MOVED, REASONS
from pgjobs.dashboard.batches import MOST_IDS
from pgjobs.dashboard.job_queries import JobQueries
from pgjobs.dashboard.problem import Problem
from pgjobs.dashboard.request import Action, Page, Request, Response, post_page
from pgjobs.dashboard.scan import Found, find
from pgjobs.dashboard.selection import Selection, check_not_empty, selection
from pgjobs.db.advice import advised
from pgjobs.db.cursors import AnyConnection
from pgjobs.job_filter import JobFilter
from pgjobs.results import ManyJobs
from pgjobs.states import JobState

_MOST = 10_000  # jobs of one request; the page that follows offers to go on
_BATCH = 1_000
_LONGEST = 1_000  # characters of a condition in the audit
_LOOK, _WORK = 0.5, 10.0  # seconds: to find the jobs for a confirmation, and for the change

_WAITING = frozenset({JobState.AVAILABLE, JobState.SCHEDULED, JobState.RETRYABLE, JobState.PENDING})
_RUNNING = frozenset({JobState.RUNNING})


class Act(NamedTuple):
    """An action: its words, its name in the audit, and the states of the jobs that it changes."""

    title: str
    audit: str
    states: frozenset[JobState]
    effect: str
    danger: bool = False


ACTS = {
    "cancel": Act("Cancel", "cancel-jobs", _WAITING | _RUNNING, "will not run; those that run are asked to end", True),
    "retry": Act("Retry", "retry-jobs", frozenset(JobState) - _RUNNING, "run again now, whatever their state"),
    "delete": Act("Delete", "delete-jobs", frozenset(JobState) - _RUNNING, "are gone, with their errors", True),
}


@dataclass
class Done:
    """How many jobs of a request were changed, and how many were left as they are, by the reason."""

    changed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def left(self) -> int:
        return self.reasons.total()

    def add(self, many: ManyJobs) -> None:
        self.changed += len(many.done)
        self.reasons.update(many.skipped.values())


def confirm(request: Request) -> Response:
    """Says which jobs would be changed."""
    if "ticked" in request.args and "id" not in request.args:
        raise Problem(400, "No job is ticked.", "Go back, and tick the jobs that you mean.")
    return _page(request, dry=None)


def dry_run(request: Request) -> Response:
    """Makes the change and rolls it back, and says what would have become of it."""
    act = _act(request)
    with advised(request.client.schema), request.client.source.transaction() as conn:
        request.now = request.queries.begin_acting(conn)
        chosen = _chosen(request)
        _, dry = _change(request, conn, act, chosen, dry_run=True)
    return _page(request, dry=dry)


def act(request: Request) -> Response:
    """Makes the change, for at most so many jobs."""
    act = _act(request)
    with request.acting(act.audit) as action:
        chosen = _chosen(request)
        action.target |= _target(chosen)
        found, done = _change(request, action.tx, act, chosen, dry_run=False)
        _describe(action, found, done)
    if found.next is not None:
        return request.done(
            "confirm", act.audit, done.changed, done.left, reasons=done.reasons, do=request.form.get("do"),
            cursor=found.next, newest=request.form.get("newest"), all=request.form.get("all"), **chosen.values,
        )  # fmt: skip
    back = {name: value for name, value in chosen.values.items() if name != "id"}
    return request.done("jobs", act.audit, done.changed, done.left, reasons=done.reasons, **back)


def _change(request: Request, conn: AnyConnection, act: Act, chosen: Selection, *, dry_run: bool) -> tuple[Found, Done]:
    """Change the jobs of the selection. What was counted and does not fit any more is told from what was changed: a
    job may be claimed, end or be deleted at any moment."""
    most = _most(request)
    queries = JobQueries(request.client.schema)
    found = find(
        conn, queries, chosen, limit=_MOST if most is None else most, seconds=_WORK,
        cursor=request.values.get("cursor"), newest=form_values.newest(request.values),
    )  # fmt: skip
    done = Done()
    for queue, ids in _batches(found):
        done.add(_apply(request, act, chosen.only(ids, queue), conn, dry_run=dry_run))
    counted = len(found.places) if most is None or found.next is not None else max(most, len(found.places))
    done.reasons[MOVED] = counted - done.changed - done.left
    return found, done


def _batches(found: Found) -> Iterator[tuple[str, list[int]]]:
    """The ids of the jobs that were found, queue by queue: two queues may have jobs with the same id."""
    by_queue: dict[str, list[int]] = defaultdict(list)
    for place in found.places:
        by_queue[place.queue].append(place.id)
    for queue, ids in by_queue.items():
        for first in range(0, len(ids), _BATCH):
            yield queue, ids[first : first + _BATCH]


def _target(chosen: Selection) -> dict[str, Any]:
    """What the audit says of the conditions. It has the ids that were found, not all that were asked for."""
    values = {name: value for name, value in chosen.values.items() if name != "id"}
    return {name: value[:_LONGEST] if isinstance(value, str) else value for name, value in values.items()}


def _describe(action: Action, found: Found, done: Done) -> None:
    action.count = done.changed
    action.target["ids"] = found.ids[:MOST_IDS]
    if done.left:
        action.target["left"] = {reason: jobs for reason, jobs in done.reasons.items() if jobs}


def _page(request: Request, *, dry: Done | None) -> Response:
    act, queries = _act(request), JobQueries(request.client.schema)
    with request.reading() as conn:
        chosen = selection(request.values, request.now, request.user)
        found = find(
            conn, queries, chosen, limit=_MOST, seconds=_LOOK, cursor=request.values.get("cursor"),
            newest=form_values.newest(request.values),
        )  # fmt: skip
        newest = form_values.newest(request.values) if "newest" in request.values else queries.newest_id(conn) or 0
    states = Counter(JobState(place.state) for place in found.places)
    return request.render(
        "confirm.html",
        act=act,
        name=request.values["do"],
        chosen=chosen,
        found=found,
        changed=sum(jobs for state, jobs in states.items() if state in act.states),
        counted=" ".join(state for state in states if state in act.states),
        states=states,
        newest=newest,
        cursor=request.values.get("cursor"),
        dry=dry,
        reasons=REASONS,
    )


def _act(request: Request) -> Act:
    found = ACTS.get(request.values.get("do", ""))
    if found is None:
        raise Problem(400, "It is not said what to do with these jobs.", "Go back, and press one of the buttons.")
    return found


def _chosen(request: Request) -> Selection:
    chosen = selection(request.form, request.now, request.user)
    if request.form.get("all") != "1":
        check_not_empty(chosen)
    if "counted" not in request.form:
        return chosen
    counted = request.form["counted"].split()  # the states of the jobs that the user was told would be changed
    states = [state for state in JobState if state in counted and state in (chosen.filter.states or JobState)]
    return replace(chosen, filter=replace(chosen.filter, states=states, really_all=False))


def _most(request: Request) -> int | None:
    """How many jobs the page that asked for a confirmation has counted: no more are changed."""
    given = request.form.get("most", "")
    return min(int(given), _MOST) if given.isascii() and given.isdecimal() and len(given) < 10 else None


def _apply(request: Request, act: Act, filter: JobFilter, tx: AnyConnection, *, dry_run: bool) -> ManyJobs:
    client = request.client
    given: dict[str, Any] = {"dry_run": dry_run}
    match act.title:
        case "Cancel":
            return client.cancel_many(filter, tx, reason=cancel_reason(request), **given)
        case "Retry":
            return client.retry_many(filter, tx, reset=request.form.get("reset") == "1", **given)
        case _:
            return client.delete_many(filter, tx, **given)


def cancel_reason(request: Request) -> str:
    return f"by {request.user.name} on the dashboard"


PAGES = (
    Page("/jobs/confirm", "confirm", confirm, role="operator"),
    post_page("/jobs/dry-run", "dry_run", dry_run),
    post_page("/jobs/act", "act", act),
)
