"""The hooks and the middleware that trace and measure jobs."""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.metrics import MeterProvider, get_meter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from pgjobs.client import Client
from pgjobs.contrib.opentelemetry.instruments import SYSTEM, Instruments, observe, type_of
from pgjobs.contrib.opentelemetry.propagation import carrying, origin
from pgjobs.events import Event, EventKind
from pgjobs.hooks import Hooks
from pgjobs.job import Job, JobState, current_job
from pgjobs.options import EncodedJob
from pgjobs.version import __version__
from pgjobs.worker_pool import WorkerPool

_MOST_OPEN = 100_000  # spans of attempts; more have been lost

#: An attempt: the id and the token of its job.
Key = tuple[int, object]

_OUTCOMES = {
    EventKind.COMPLETED: "completed",
    EventKind.CANCELLED: "cancelled",
    EventKind.SNOOZED: "snoozed",
    EventKind.INTERRUPTED: "interrupted",
}


class OpenTelemetry(Hooks):
    """Hooks that trace and measure the jobs of a client, and of its worker pools.

    `traces=False` or `metrics=False` leaves one of them out. Without `tracer_provider` and `meter_provider` those of
    the application are used. `record_exceptions=False` keeps the text and the traceback of exceptions out of spans.
    """

    def __init__(
        self,
        *,
        traces: bool = True,
        metrics: bool = True,
        record_exceptions: bool = True,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        self.send = _Send(self._sending)
        self._tracer = trace.get_tracer("pgjobs", __version__, tracer_provider) if traces else None
        self._meter = get_meter("pgjobs", __version__, meter_provider)
        self._instruments = Instruments(self._meter) if metrics else None
        self._record_exceptions = record_exceptions
        self._open: dict[Key, Span] = {}  # of attempts whose outcome is not written, by id and token of the job
        self._of_thread = threading.local()

    def observe(self, client: Client, *pools: WorkerPool) -> None:
        """Add the gauges of the client's queues, and of the threads of worker pools in this process. Call it once. They
        are read when the SDK collects, at most every ten seconds."""
        observe(self._meter, client, pools)

    # --- sent

    @contextmanager
    def _sending(self, jobs: Sequence[EncodedJob]) -> Iterator[_Sending]:
        """The span of an insert. The jobs to insert carry its context."""
        queues = {job.queue for job in jobs}
        queue = next(iter(queues)) if len(queues) == 1 else None
        sending = _Sending(jobs)
        began, failed = time.perf_counter(), None
        try:
            if self._tracer is None:
                yield sending
                return
            alone = len(jobs) == 1
            with self._tracer.start_as_current_span(
                "send" if queue is None else f"send {queue}",
                kind=SpanKind.PRODUCER if alone else SpanKind.CLIENT,
                attributes={**SYSTEM, "messaging.operation.name": "send", "messaging.operation.type": "send"},
                record_exception=False,  # its text may quote args
            ) as span:
                if queue is not None:
                    span.set_attribute("messaging.destination.name", queue)
                sending.jobs = carrying(jobs, alone)
                yield sending
                sending.describe(span)
        except BaseException as error:
            failed = error
            raise
        finally:
            if self._instruments is not None:
                self._instruments.sent(time.perf_counter() - began, queue, failed)

    def on_enqueue(self, job: Job[Any]) -> None:
        if self._instruments is not None:
            self._instruments.count("messaging.client.sent.messages", job)

    # --- processed

    def on_claim(self, job: Job[Any] | None, error: BaseException | None) -> None:
        """End the spans of attempts that this thread has lost: a batch has one token, and no claim comes before all of
        its outcomes are written."""
        keys = self._keys
        if not keys or job is None or current_job() is not None:  # a handler may itself work a job
            return
        for key in [key for key in keys if key[1] != job.token]:
            keys.discard(key)
            span = self._open.pop(key, None)
            if span is not None:
                _end(span, "lost", None)

    def on_start(self, job: Job[Any]) -> None:
        if self._tracer is None:
            return
        span, ambient = self._start(self._tracer, job)
        key = (job.id, job.token)
        if len(self._open) < _MOST_OPEN:
            self._open[key] = span
            self._keys.add(key)
        context.attach(trace.set_span_in_context(span, ambient))  # in the attempt's own context, which ends with it

    def _start(self, tracer: trace.Tracer, job: Job[Any]) -> tuple[Span, Context]:
        """Start the span of an attempt. Returns it with the context in which it begins."""
        ambient, links = origin(job)
        span = tracer.start_span(
            f"process {job.queue}",
            ambient,
            SpanKind.CONSUMER,
            {
                **SYSTEM,
                "messaging.operation.name": "process",
                "messaging.operation.type": "process",
                "messaging.destination.name": job.queue,
                "messaging.message.id": str(job.id),
                "pgjobs.job.kind": job.kind,
                "pgjobs.job.attempt": job.attempt,
                "pgjobs.job.max_attempts": job.max_attempts,
            },
            links,
        )
        return span, ambient

    def on_outcome(self, event: Event, error: BaseException | None) -> None:
        job, outcome = event.job, _outcome(event)
        failed = error if event.kind is EventKind.FAILED else None
        if self._instruments is not None:
            self._instruments.ended(event, outcome, failed)
        key = (job.id, job.token)
        span = self._open.pop(key, None)
        self._keys.discard(key)
        if span is None and failed is not None and self._tracer is not None:  # no handler could be called
            span, _ = self._start(self._tracer, job)
        if span is not None:
            span.set_attribute("pgjobs.queue.wait", event.stats.queue_wait.total_seconds())
            if failed is not None and self._record_exceptions:
                span.record_exception(failed)
            _end(span, outcome, failed)

    @property
    def _keys(self) -> set[Key]:
        """The attempts that this thread has started, and whose outcomes it has not written."""
        keys: set[Key] = vars(self._of_thread).setdefault("keys", set())
        return keys

    def on_rescue(self, job: Job[Any]) -> None:
        if self._instruments is not None:
            self._instruments.count("pgjobs.rescued", job)

    def on_stuck(self, job: Job[Any], stack: str, stuck: int) -> None:
        if self._instruments is not None:
            self._instruments.count("pgjobs.stuck", job)


class _Send:
    """The middleware around inserts, synchronous and asynchronous ones."""

    def __init__(self, sending: Callable[[Sequence[EncodedJob]], AbstractContextManager[_Sending]]) -> None:
        self._sending = sending

    def __call__(
        self, tx: Any, jobs: Sequence[EncodedJob], insert: Callable[[Sequence[EncodedJob]], list[Job[Any]]]
    ) -> list[Job[Any]]:
        with self._sending(jobs) as sending:
            sending.inserted = insert(sending.jobs)
            return sending.inserted

    async def around_async(
        self, tx: Any, jobs: Sequence[EncodedJob], insert: Callable[[Sequence[EncodedJob]], Awaitable[list[Job[Any]]]]
    ) -> list[Job[Any]]:
        with self._sending(jobs) as sending:
            sending.inserted = await insert(sending.jobs)
            return sending.inserted


@dataclass
class _Sending:
    """The jobs of an insert, before and after it."""

    jobs: Sequence[EncodedJob]
    inserted: Sequence[Job[Any]] = field(default_factory=list)

    def describe(self, span: Span) -> None:
        if len(self.inserted) != 1:
            span.set_attribute("messaging.batch.message_count", len(self.inserted))
            return
        (job,) = self.inserted
        span.set_attributes({"messaging.message.id": str(job.id), "pgjobs.job.kind": job.kind})
        if job.duplicate:
            span.set_attribute("pgjobs.duplicate", True)


def _outcome(event: Event) -> str:
    """How an attempt has ended, in one of the words of observe/figures.py."""
    discarded = event.job.state is JobState.DISCARDED
    return _OUTCOMES.get(event.kind) or ("discarded" if discarded else "retried")


def _end(span: Span, outcome: str, error: BaseException | None) -> None:
    span.set_attribute("pgjobs.outcome", outcome)
    if error is not None:
        span.set_attribute("error.type", type_of(error))
        span.set_status(Status(StatusCode.ERROR, type_of(error)))
    span.end()
