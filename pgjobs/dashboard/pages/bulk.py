"""Actions for many jobs: a page that says what would be changed, a dry run, and the change."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from pgjobs.dashboard import form_values
from pgjobs.dashboard.job_queries import JobQueries
from pgjobs.dashboard.problem import Problem
from pgjobs.dashboard.request import Action, Page, Request, Response
from pgjobs.dashboard.scan import Found, find
from pgjobs.dashboard.selection import Selection, check_not_empty, selection
from pgjobs.db.advice import advised
from pgjobs.db.cursors import AnyConnection
from pgjobs.results import ManyJobs
from pgjobs.states import JobState

_MOST = 10_000  # jobs of one request; the page that follows offers to go on
_BATCH = 1_000
_MOST_IDS = 1_000  # in the audit
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
#: Why a job is skipped; see ManyJobs.
REASONS = {
    "running": "run at the moment",
    "locked": "are held by another transaction",
    "conflict": "have a unique key that another job has now",
    "unfit": "are not discarded, or have used up the attempts they would get",
    "referenced": "are referred to by a row of the application",
    "refused": "are refused by a trigger, rule or value of the application",
}


@dataclass
class Done:
    """What became of the jobs of a request."""

    changed: int = 0
    skipped: int = 0
    reasons: Counter[str] | None = None

    def add(self, many: ManyJobs) -> None:
        self.changed += len(many.done)
        self.skipped += len(many.skipped)
        self.reasons = (self.reasons or Counter()) + Counter(many.skipped.values())


def confirm(request: Request) -> Response:
    """Says which jobs would be changed."""
    if not request.may_change:
        raise Problem(403, "You may look, but not change anything.", "Ask an operator to do this.")
    if "ticked" in request.args and "id" not in request.args:
        raise Problem(400, "No job is ticked.", "Go back, and tick the jobs that you mean.")
    return _page(request, dry=None)


def dry_run(request: Request) -> Response:
    """Makes the change and rolls it back, and says what would have become of it."""
    act, queries = _act(request), JobQueries(request.client.schema)
    chosen = _chosen(request)
    dry = Done()
    with advised(request.client.schema), request.client.source.transaction() as conn:
        request.queries.begin_acting(conn)
        found = _find(request, conn, queries, chosen, _WORK)
        for first in range(0, len(found.ids), _BATCH):
            ids = found.ids[first : first + _BATCH]
            dry.add(_apply(request, act, chosen, ids, conn, dry_run=True))
    return _page(request, dry=dry)


def act(request: Request) -> Response:
    """Makes the change, for at most so many jobs."""
    act, queries = _act(request), JobQueries(request.client.schema)
    chosen = _chosen(request)
    done = Done()
    with request.acting(act.audit, **_target(chosen)) as action:
        found = _find(request, action.tx, queries, chosen, _WORK)
        for first in range(0, len(found.ids), _BATCH):
            ids = found.ids[first : first + _BATCH]
            done.add(_apply(request, act, chosen, ids, action.tx))
        _describe(action, found, done)
    if found.next is not None:
        return request.done(
            "confirm", act.audit, done.changed, done.skipped, do=request.form.get("do"), cursor=found.next,
            newest=request.form.get("newest"), all=request.form.get("all"), **chosen.values,
        )  # fmt: skip
    back = {name: value for name, value in chosen.values.items() if name != "id"}
    return request.done("jobs", act.audit, done.changed, done.skipped, **back)


def _target(chosen: Selection) -> dict[str, Any]:
    """What the audit says of the conditions. It has the ids that were found, not all that were asked for."""
    values = {name: value for name, value in chosen.values.items() if name != "id"}
    return {name: value[:_LONGEST] if isinstance(value, str) else value for name, value in values.items()}


def _describe(action: Action, found: Found, done: Done) -> None:
    action.count = done.changed
    action.target["ids"] = found.ids[:_MOST_IDS]
    if done.skipped:
        action.target["skipped"] = done.skipped


def _page(request: Request, *, dry: Done | None) -> Response:
    act, queries = _act(request), JobQueries(request.client.schema)
    with request.reading() as conn:
        chosen = selection(request.values, request.now, request.user)
        found = _find(request, conn, queries, chosen, _LOOK)
        states = queries.count_states(conn, found.ids)
        newest = form_values.newest(request.values) if "newest" in request.values else queries.newest_id(conn) or 0
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


def _find(request: Request, conn: AnyConnection, queries: JobQueries, chosen: Selection, seconds: float) -> Found:
    """The jobs that this request is for: no more than the page that asked for a confirmation has counted, and none that
    was enqueued after it."""
    given = request.form.get("most", "")
    most = min(int(given), _MOST) if given.isascii() and given.isdecimal() and len(given) < 10 else _MOST
    cursor = request.values.get("cursor")
    return find(
        conn, queries, chosen, limit=most, seconds=seconds, cursor=cursor, newest=form_values.newest(request.values)
    )


def _apply(
    request: Request, act: Act, chosen: Selection, ids: list[int], tx: AnyConnection, *, dry_run: bool = False
) -> ManyJobs:
    filter, client = chosen.only(ids), request.client
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
    Page("/jobs/confirm", "confirm", confirm),
    Page("/jobs/dry-run", "dry_run", dry_run, "POST"),
    Page("/jobs/act", "act", act, "POST"),
)
