"""The context of the sender, in the metadata of a job."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanContext
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from pgjobs.job import Job
from pgjobs.options import EncodedJob

_PARENT_WITHIN = timedelta(hours=1)
_W3C = TraceContextTextMapPropagator()
_FIELDS = ("traceparent", "tracestate")
_LINKED = "tracelink"  # in the metadata of a job that was sent with others: its attempts are only linked


def carrier() -> dict[str, str]:
    """The context of the current span, as metadata for a stored schedule: its jobs will be linked to that span."""
    carried: dict[str, str] = {}
    _W3C.inject(carried)
    return carried


def carrying(jobs: Sequence[EncodedJob], alone: bool) -> list[EncodedJob]:
    """The jobs with the context of the current span in their metadata, where they have none yet."""
    carried: dict[str, Any] = {**carrier()}
    if not carried:  # neither an SDK nor a span
        return list(jobs)
    if not alone:
        carried[_LINKED] = True
    made: dict[str, str] = {}  # by the metadata, which most jobs of a call share
    for job in jobs:
        if job.metadata not in made:
            metadata = json.loads(job.metadata)
            made[job.metadata] = job.metadata if "traceparent" in metadata else json.dumps({**metadata, **carried})
    return [replace(job, metadata=made[job.metadata]) for job in jobs]


def origin(job: Job[Any]) -> tuple[Context, list[Link]]:
    """The context in which the span of an attempt begins: that of the sender, or an empty one and a link to it."""
    if '"traceparent"' not in job.raw_metadata:
        return Context(), []
    metadata = job.metadata
    fields = {name: metadata[name] for name in _FIELDS if isinstance(metadata.get(name), str)}
    sender = _W3C.extract(fields, Context())
    sent_by: SpanContext = trace.get_current_span(sender).get_span_context()
    if not sent_by.is_valid:
        return Context(), []
    is_first = len(job.attempted_by) <= 1 and job.attempt <= 1
    waited = (job.attempted_at or job.created_at) - job.created_at
    if is_first and waited < _PARENT_WITHIN and not metadata.get(_LINKED) and metadata.get("periodic") is not True:
        return sender, []
    return Context(), [Link(sent_by)]
