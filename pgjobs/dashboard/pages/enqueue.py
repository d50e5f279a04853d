"""Enqueue a job by hand: a new one, or one like another."""

from __future__ import annotations

import json
from typing import Any

from pgjobs import codec
from pgjobs.dashboard import form_values
from pgjobs.dashboard.args_form import args_fields, example
from pgjobs.dashboard.job_queries import JobQueries
from pgjobs.dashboard.job_view import read_jobs, short_args
from pgjobs.dashboard.json_text import pretty, with_secrets
from pgjobs.dashboard.problem import Problem, problem_of
from pgjobs.dashboard.request import Page, Request, Response, post_page
from pgjobs.dashboard.scan import find
from pgjobs.dashboard.selection import selection
from pgjobs.db.cursors import AnyConnection
from pgjobs.errors import JobNotFound, PgjobsError
from pgjobs.job import Job, has_args
from pgjobs.unique import Unique
from pgjobs.work_map import payload, shown_args

_EXAMPLES = 5  # past jobs of the kind
_SECONDS = 0.1  # that they are looked for
_LARGEST = 8 * 1024 * 1024  # characters of args that are shown to be edited
#: In the metadata, what pgjobs has noted of a job, and what belongs to its schedule or trace: a like job gets its own.
_OF_ONE_JOB = {
    "class", "code_version_enqueued", "code_version_processed", "cancel_attempted_at", "cancel_reason", "excused",
    "periodic", "schedule", "snoozes", "tick", "traceparent", "tracestate", "tracelink", "unique_key_conflict",
}  # fmt: skip
_FIELDS = ("kind", "args", "queue", "priority", "when", "max_attempts", "tags", "metadata", "unique", "pending", "like")


def show(request: Request) -> Response:
    with request.reading() as conn:
        values = {name: request.args.get(name, "") for name in _FIELDS}
        if values["like"]:
            values |= _like(request, _original(request, conn, values["like"]))
        elif values["kind"] and not values["args"]:
            values["args"] = example(request.site.work_map, values["kind"])
        return _form(request, conn, values)


def _form(request: Request, conn: AnyConnection, values: dict[str, str], problem: Problem | None = None) -> Response:
    queries, kind = JobQueries(request.client.schema), values["kind"]
    handled = () if request.site.work_map is None else request.site.work_map
    return request.render(
        "enqueue.html",
        status=problem.status if problem else 200,
        values=values,
        problem=problem,
        kinds=sorted({*queries.known_kinds(conn), *handled}),
        queues=queries.known_queues(conn),
        fields=args_fields(request.site.work_map, kind) if kind else None,
        examples=_examples(request, conn, kind) if kind else [],
    )


def _examples(request: Request, conn: AnyConnection, kind: str) -> list[tuple[Job[Any], str | None]]:
    """The newest jobs of the kind, with their args where the user may see them."""
    values = request.args.copy()
    values.clear()
    values["kind"] = kind
    chosen = selection(values, request.now, request.user)
    found = find(conn, JobQueries(request.client.schema), chosen, limit=_EXAMPLES, seconds=_SECONDS)
    jobs = read_jobs(request, conn, found.ids)
    return [(job, short_args(request, job)) for job in sorted(jobs.values(), key=lambda job: -job.id)]


# --- like another job


def _original(request: Request, conn: AnyConnection, like: str) -> Job[Any]:
    id = form_values.number("Like", like) or 0
    for job in read_jobs(request, conn, [id]).values():
        if has_args(job):
            return job
    raise JobNotFound(id)


def _like(request: Request, job: Job[Any]) -> dict[str, str]:
    """The values of a form for a job like this one; its secrets, and all args and metadata where the user may not see
    them, stay hidden."""
    args = metadata = ""
    if request.user.sees_args:
        args, _ = pretty(shown_args(request.site.work_map, job.kind, job.raw_args), _LARGEST)
        kept = _kept_metadata(job)
        metadata = json.dumps(kept, indent=2, ensure_ascii=False) if kept else ""
    return {
        "kind": job.kind,
        "args": args,
        "queue": job.queue,
        "priority": str(job.priority),
        "max_attempts": str(job.max_attempts),
        "tags": " ".join(job.tags),
        "metadata": metadata,
    }


def _kept_metadata(job: Job[Any]) -> dict[str, Any]:
    """What a job like this one has in its metadata, the `context` of the application included."""
    return {name: value for name, value in job.metadata.items() if name not in _OF_ONE_JOB}


def _args(request: Request, job: Job[Any] | None, values: dict[str, str]) -> dict[str, Any]:
    """The args of the form. Of a job like another one of the same kind they have the secrets of that; empty
    ones are its args."""
    given = form_values.json_object("Args", values["args"])
    if job is None:
        return given or {}
    if job.kind != values["kind"]:  # its secrets stay out of a kind that may show them
        if given is None:
            raise form_values.InvalidInput("Args", "write the args: the kind differs from that of the other job.")
        return given
    original = codec.decode_dict(job.raw_args)
    if given is None:
        return original
    shown = json.loads(shown_args(request.site.work_map, job.kind, job.raw_args))
    made: dict[str, Any] = with_secrets(given, shown, original)
    return made


# --- enqueue


def enqueue(request: Request) -> Response:
    values = {name: request.form.get(name, "") for name in _FIELDS}
    try:
        with request.acting("enqueue-jobs", kind=values["kind"]) as action:
            like = _original(request, action.tx, values["like"]) if values["like"] else None
            args = payload(request.site.work_map, values["kind"], _args(request, like, values))
            options = _options(request, like, values)
            job: Any = request.client.enqueue(action.tx, args, kind=values["kind"], **options)
            action.target |= {"job": job.id, "duplicate": True} if job.duplicate else {"job": job.id}
            action.count = 0 if job.duplicate else 1
    except (PgjobsError, Problem) as error:
        with request.reading() as conn:
            return _form(request, conn, values, problem_of(error))
    return request.done("job", "enqueue-jobs", action.count, int(job.duplicate), id=job.id)


def _options(request: Request, like: Job[Any] | None, values: dict[str, str]) -> dict[str, Any]:
    """The options that are filled in."""
    unique = {"kind": Unique(), "args": Unique(by_args=True)}.get(values["unique"])
    metadata = _metadata(request, like, values)
    context = metadata.pop("context") if isinstance(metadata.get("context"), dict) else None
    given = {
        "queue": values["queue"].strip() or None,
        "priority": form_values.number("Priority", values["priority"]),
        "scheduled_at": form_values.instant("When", values["when"], request.now, past=False),
        "max_attempts": form_values.number("Attempts", values["max_attempts"]),
        "tags": form_values.words(values["tags"]),
        "metadata": metadata or None,
        "context": context,
        "unique": unique,
        "pending": True if values["pending"] == "1" else None,
    }
    return {name: value for name, value in given.items() if value is not None}


def _metadata(request: Request, like: Job[Any] | None, values: dict[str, str]) -> dict[str, Any]:
    """Those of the form. A user who may not see those of the other job takes them over unseen."""
    given = form_values.json_object("Metadata", values["metadata"])
    if given is None and like is not None and not request.user.sees_args and like.kind == values["kind"]:
        return _kept_metadata(like)
    return given or {}


PAGES = (
    Page("/enqueue", "enqueue", show, role="operator"),
    post_page("/enqueue", "enqueue_job", enqueue),
)
