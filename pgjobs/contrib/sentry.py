"""Sentry: each failed attempt is one event, with the job's id, kind, queue and attempt.

    sentry_sdk.init(...)
    client = Client("postgresql://localhost/app", hooks=[Sentry()])

The logger `pgjobs.job` logs each failure too. Sentry's LoggingIntegration makes no second event of such a record: it is
marked with `reported = True`, and stays a breadcrumb.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import is_dataclass
from typing import Any

import sentry_sdk
from sentry_sdk.integrations.dedupe import DedupeIntegration
from sentry_sdk.scope import add_global_event_processor
from sentry_sdk.utils import event_from_exception

from pgjobs import checks, codec
from pgjobs.clean_text import one_line, skip_pgjobs
from pgjobs.errors import InvalidSetting, UndecodableArgs
from pgjobs.events import Event, EventKind
from pgjobs.hooks import Hooks
from pgjobs.job import Job, JobState
from pgjobs.log_limit import LogLimit
from pgjobs.secret_fields import HIDDEN

__all__ = ["Sentry"]

_JOB_LOG = "pgjobs.job"

_lock = threading.Lock()
_reporting: set[str] = set()  # the ids of clients whose failures a Sentry reports
_installed = False


class Sentry(Hooks):
    """Hooks that report failed attempts to Sentry, each once.

    An attempt that will be retried is an event of level warning, a discarded job one of level error. `retried=False`
    reports discarded jobs alone. Cancelled, snoozed and interrupted attempts have not failed. At most ten events a
    second are sent of each kind, level and class of error, so that a storm of one error hides no other.

    `args=True` adds the args of the job, and the local variables of each frame if Sentry collects them; without it both
    are left out, since they may be confidential. In the args, secret fields and those that `redact` names are replaced.
    The local variables are those of your handlers, which Sentry's own scrubber looks through.
    """

    def __init__(self, *, retried: bool = True, args: bool = False, redact: Iterable[str] = ()) -> None:
        checks.check_bool("retried", retried)
        checks.check_bool("args", args)
        self._redact = frozenset(checks.check_list("redact", redact, "names of fields"))
        if not all(isinstance(name, str) for name in self._redact):
            raise InvalidSetting("redact must be names of fields, as in redact=['password']")
        self._retried = retried
        self._args = args
        self._limit: LogLimit[tuple[str, str, type[BaseException]]] = LogLimit()
        _install()

    def on_claim(self, job: Job[Any] | None, error: BaseException | None) -> None:
        if job is not None:
            _reporting.add(_worker_of(job))

    def on_outcome(self, event: Event, error: BaseException | None) -> None:
        if event.kind is not EventKind.FAILED or error is None:
            return
        job, final = event.job, event.job.state is JobState.DISCARDED
        if not final and not self._retried:
            return
        level = "error" if final else "warning"
        admitted, _ = self._limit.admit((level, job.kind, type(error)), "")
        if admitted:
            self._capture(job, error, level, attempt=event.job.attempt)

    def _capture(self, job: Job[Any], error: BaseException, level: str, *, attempt: int) -> None:
        options = dict(sentry_sdk.get_client().options)
        if not self._args:
            options["include_local_variables"] = False
        event, hint = event_from_exception(
            (type(error), error, skip_pgjobs(error.__traceback__)),
            client_options=options,
            mechanism={"type": "pgjobs", "handled": False},
        )
        event["level"] = "error" if level == "error" else "warning"
        event["transaction"] = job.kind
        details: dict[str, Any] = {"id": job.id, "kind": job.kind, "queue": job.queue, "attempt": attempt,
                                   "max_attempts": job.max_attempts, "state": str(job.state)}  # fmt: skip
        if self._args:
            details["args"] = _redacted(_args_of(job), self._redact)
        with sentry_sdk.new_scope() as scope:
            tags = {"job.id": job.id, "job.kind": job.kind, "job.queue": job.queue, "job.attempt": attempt}
            scope.set_tags({name: str(value) for name, value in tags.items()})
            scope.set_context("job", details)
            if _worker_of(job) in _reporting:
                _forget_last(hint)
            sentry_sdk.capture_event(event, hint=hint)


def _worker_of(job: Job[Any]) -> str:
    """The id of the client that runs it, as log records have it."""
    return one_line(job.attempted_by[-1]) if job.attempted_by else ""


def _install() -> None:
    """Let Sentry ask about its events, once in this process."""
    global _installed  # noqa: PLW0603  Sentry keeps its processors for the life of the process
    with _lock:
        if not _installed:
            _installed = True
            add_global_event_processor(_drop_logged)


def _drop_logged(event: Any, hint: Mapping[str, Any] | None) -> Any:
    """Drop the event that the LoggingIntegration has made of a failure that a Sentry reports itself."""
    record = (hint or {}).get("log_record")
    if record is None or record.name != _JOB_LOG or not record.exc_info:
        return event
    if getattr(record, "worker", None) not in _reporting:
        return event
    record.reported = True
    return None


def _args_of(job: Job[Any]) -> Any:
    """The args as JSON values, without those of secret fields."""
    try:
        args = job.args
    except UndecodableArgs:  # then it is not known which fields are secret
        return HIDDEN
    return json.loads(codec.redacted(type(args), job.raw_args) if is_dataclass(args) else job.raw_args)


def _forget_last(hint: dict[str, Any]) -> None:
    """Sentry has seen the exception in the event of the log record, and would drop ours as a duplicate."""
    reset: Callable[[], None] | None = getattr(DedupeIntegration, "reset_last_seen", None)
    if reset is not None:
        reset()
    else:  # an older SDK
        hint.pop("exc_info", None)


def _redacted(value: Any, names: frozenset[str]) -> Any:
    if isinstance(value, dict):
        return {key: HIDDEN if key in names else _redacted(each, names) for key, each in value.items()}
    if isinstance(value, list):
        return [_redacted(each, names) for each in value]
    return value
