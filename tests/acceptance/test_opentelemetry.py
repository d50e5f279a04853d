"""OpenTelemetry: traces from the sender to the handler, and metrics, in the exporters in memory of its SDK."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from pgjobs import (
    Cancel,
    Client,
    Discard,
    Handler,
    Job,
    JobState,
    Schedule,
    Snooze,
    Unique,
    WorkerPool,
    WorkMap,
    constant,
)
from pgjobs.contrib.opentelemetry import GAUGES, INSTRUMENTS, OpenTelemetry, carrier
from pgjobs.metrics import metrics_text
from tests.samples import Thing, Tx, nothing
from tests.waiting import wait_until

NOW = constant(timedelta(0))


@dataclass
class Recorded:
    """What the exporters in memory have."""

    traces: InMemorySpanExporter
    reader: InMemoryMetricReader
    tracer: trace.Tracer
    telemetry: OpenTelemetry

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.traces.get_finished_spans() if span.name == name]

    def span(self, name: str) -> ReadableSpan:
        (span,) = self.spans(name)
        return span

    def points(self) -> dict[str, dict[frozenset[tuple[str, Any]], Any]]:
        """By the name of the instrument and the labels, its data point."""
        data = self.reader.get_metrics_data()
        return {
            metric.name: {frozenset((point.attributes or {}).items()): point for point in metric.data.data_points}
            for resource in (data.resource_metrics if data is not None else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


def recording(**options: Any) -> Recorded:
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    meters = MeterProvider([reader], shutdown_on_exit=False)
    telemetry = OpenTelemetry(tracer_provider=provider, meter_provider=meters, **options)
    return Recorded(exporter, reader, provider.get_tracer("application"), telemetry)


@pytest.fixture
def recorded() -> Recorded:
    return recording()


@pytest.fixture
def traced(client: Client, recorded: Recorded) -> Client:
    return watched(client, recorded)


def watched(client: Client, recorded: Recorded) -> Client:
    telemetry = recorded.telemetry
    return Client(client.pool, schema=client.schema, hooks=[telemetry], middleware=[telemetry.send])


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def context_of(span: ReadableSpan) -> tuple[int, int]:
    return span.context.trace_id, span.context.span_id


def parent_of(span: ReadableSpan) -> tuple[int, int] | None:
    return None if span.parent is None else (span.parent.trace_id, span.parent.span_id)


def links_of(span: ReadableSpan) -> list[tuple[int, int]]:
    return [(link.context.trace_id, link.context.span_id) for link in span.links]


# --- one trace


def test_one_trace_leads_from_the_request_to_the_spans_of_the_handler(traced: Client, recorded: Recorded) -> None:
    def handler(tx: Tx, job: Job[Thing]) -> None:
        with recorded.tracer.start_as_current_span("in the handler"):
            traced.enqueue(tx, {}, kind="next.one")

    pool = WorkerPool(traced, WorkMap({Thing: handler, "next.one": nothing}), queues={"default": 1})
    with recorded.tracer.start_as_current_span("the request"), traced.pool.connection() as tx:
        job = traced.enqueue(tx, Thing())
    with pool:
        wait_until(lambda: len(recorded.spans("process default")) == 2)
    request, inside = recorded.span("the request"), recorded.span("in the handler")
    (sent, sent_next), (ran, ran_next) = recorded.spans("send default"), recorded.spans("process default")
    chain = [request, sent, ran, inside, sent_next, ran_next]
    assert [parent_of(span) for span in chain] == [None, *map(context_of, chain[:-1])]
    assert {span.context.trace_id for span in chain} == {request.context.trace_id}
    assert (sent.kind, ran.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    common = {"messaging.system": "pgjobs", "messaging.destination.name": "default"}
    common |= {"messaging.message.id": str(job.id), "pgjobs.job.kind": "thing"}
    named = {"messaging.operation.name": "send", "messaging.operation.type": "send"}
    assert attributes(sent) == common | named
    found = attributes(ran)
    assert found.pop("pgjobs.queue.wait") >= 0
    assert found == common | {
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "pgjobs.job.attempt": 1,
        "pgjobs.job.max_attempts": 25,
        "pgjobs.outcome": "completed",
    }


def test_the_spans_of_the_next_job_do_not_belong_to_the_one_before(traced: Client, recorded: Recorded) -> None:
    def handler(tx: Tx, job: Job[Thing]) -> None:
        recorded.tracer.start_span(f"in {job.args.n}").end()

    for n in range(3):
        traced.enqueue(None, Thing(n))
    with WorkerPool(traced, {Thing: handler}, queues={"default": 1}):
        wait_until(lambda: len(recorded.spans("process default")) == 3)
    spans = {attributes(span)["messaging.message.id"]: span for span in recorded.spans("process default")}
    for n in range(3):
        assert parent_of(recorded.span(f"in {n}")) == context_of(spans[str(n + 1)])
    assert not trace.get_current_span().get_span_context().is_valid


def test_in_batches_each_job_has_its_own_span(traced: Client, recorded: Recorded) -> None:
    def handler(tx: Tx, job: Job[Thing]) -> None:
        recorded.tracer.start_span(f"in {job.args.n}").end()
        if job.args.n == 2:
            raise ValueError("no")

    sent = [traced.enqueue(None, Thing(n)) for n in range(5)]
    with WorkerPool(traced, {Thing: handler}, queues={"default": 1}, batch_size=10, backoff=constant(timedelta(1))):
        wait_until(lambda: len(recorded.spans("process default")) == 5)
    spans = {int(attributes(span)["messaging.message.id"]): span for span in recorded.spans("process default")}
    senders = {int(attributes(span)["messaging.message.id"]): span for span in recorded.spans("send default")}
    for job in sent:
        assert parent_of(spans[job.id]) == context_of(senders[job.id])
        assert parent_of(recorded.span(f"in {job.args.n}")) == context_of(spans[job.id])
    outcomes = [attributes(spans[job.id])["pgjobs.outcome"] for job in sent]
    assert outcomes == ["completed", "completed", "retried", "completed", "completed"]


def test_from_asynchronous_code_it_is_one_trace_too(traced: Client, recorded: Recorded, database: str) -> None:
    async def request() -> None:
        conn = await psycopg.AsyncConnection.connect(database)
        async with conn:
            with recorded.tracer.start_as_current_span("the request"):
                await traced.aenqueue(conn, Thing(1))
                await traced.aenqueue_many(conn, [Thing(2), Thing(3)])
                await traced.aenqueue(None, Thing(4))

    asyncio.run(request())
    pool = WorkerPool(traced, {Thing: nothing})
    while pool.work_one():
        pass
    request_span = recorded.span("the request")
    one, many, alone = recorded.spans("send default")
    assert {parent_of(span) for span in (one, many, alone)} == {context_of(request_span)}
    assert [span.kind for span in (one, many, alone)] == [SpanKind.PRODUCER, SpanKind.CLIENT, SpanKind.PRODUCER]
    first, second, third, fourth = recorded.spans("process default")
    assert [parent_of(span) for span in (first, fourth)] == [context_of(one), context_of(alone)]
    assert [links_of(span) for span in (second, third)] == [[context_of(many)]] * 2


# --- links


def only_linked(span: ReadableSpan, to: ReadableSpan) -> bool:
    return (
        parent_of(span) is None
        and links_of(span) == [context_of(to)]
        and (span.context.trace_id != to.context.trace_id)
    )


def test_a_retry_and_what_comes_after_a_snooze_are_linked(traced: Client, recorded: Recorded) -> None:
    raised: list[BaseException] = [ValueError("once"), Snooze(timedelta(0))]

    def handler(tx: Tx, job: Job[Thing]) -> None:
        if raised:
            raise raised.pop()

    traced.enqueue(None, Thing())
    with WorkerPool(traced, {Thing: handler}, queues={"default": 1}, backoff=NOW):
        wait_until(lambda: len(recorded.spans("process default")) == 3)
    sent = recorded.span("send default")
    snoozed, failed, completed = recorded.spans("process default")
    assert parent_of(snoozed) == context_of(sent)
    assert only_linked(failed, sent)
    assert only_linked(completed, sent)
    outcomes = [attributes(span)["pgjobs.outcome"] for span in (snoozed, failed, completed)]
    assert outcomes == ["snoozed", "retried", "completed"]


def test_the_jobs_of_one_call_are_linked(traced: Client, recorded: Recorded) -> None:
    traced.enqueue_many(None, [Thing(n) for n in range(3)])
    traced.enqueue_many(None, [Thing(n) for n in range(500)], queue="b", returning=False)
    pool = WorkerPool(traced, {Thing: nothing})
    while pool.work_one():
        pass
    sent = recorded.span("send default")
    assert (sent.kind, attributes(sent)["messaging.batch.message_count"]) == (SpanKind.CLIENT, 3)
    assert attributes(recorded.span("send b"))["messaging.batch.message_count"] == 500
    assert all(only_linked(span, sent) for span in recorded.spans("process default"))
    assert len(recorded.spans("process default")) == 3


def test_a_job_that_has_waited_for_long_is_linked(traced: Client, recorded: Recorded, client: Client) -> None:
    traced.enqueue(None, Thing())
    with client.pool.connection() as conn:
        conn.execute(f"UPDATE \"{client.schema}\".job SET created_at = created_at - interval '61 minutes'".encode())
    assert WorkerPool(traced, {Thing: nothing}).work_one()
    assert only_linked(recorded.span("process default"), recorded.span("send default"))


def test_the_jobs_of_a_schedule_are_linked_to_what_made_it(traced: Client, recorded: Recorded) -> None:
    with recorded.tracer.start_as_current_span("made"):
        metadata = carrier()
    schedule = Schedule("often", "@every 1s", Thing(), metadata=metadata)
    with WorkerPool(traced, {Thing: nothing}, queues={"default": 1}, cron=[schedule]):
        wait_until(lambda: recorded.spans("process default"))
    assert only_linked(recorded.spans("process default")[0], recorded.span("made"))


def test_a_job_of_a_schedule_begins_a_trace_of_its_own(traced: Client, recorded: Recorded) -> None:
    with WorkerPool(traced, {Thing: nothing}, queues={"default": 1}, cron=[Schedule("x", "@every 1s", Thing())]):
        wait_until(lambda: recorded.spans("process default"))
    span = recorded.spans("process default")[0]
    assert (parent_of(span), links_of(span)) == (None, [])


# --- what else spans say


@pytest.mark.parametrize(
    ("error", "outcome", "status"),
    [
        (ValueError("secret 5ecret"), "retried", StatusCode.ERROR),
        (Discard("why"), "discarded", StatusCode.ERROR),
        (Cancel("why"), "cancelled", StatusCode.UNSET),
        (Snooze(timedelta(1)), "snoozed", StatusCode.UNSET),
    ],
    ids=repr,
)
def test_a_span_says_how_its_attempt_ended(
    traced: Client, recorded: Recorded, error: BaseException, outcome: str, status: StatusCode
) -> None:
    def handler(tx: Tx, job: Job[Thing]) -> None:
        raise error

    traced.enqueue(None, Thing())
    assert WorkerPool(traced, {Thing: handler}).work_one()
    span = recorded.span("process default")
    assert attributes(span)["pgjobs.outcome"] == outcome
    assert span.status.status_code == status
    failed = status is StatusCode.ERROR
    assert ("error.type" in attributes(span)) == failed
    assert [event.name for event in span.events] == ["exception"] * failed


def test_the_text_of_exceptions_can_be_left_out(client: Client) -> None:
    recorded = recording(record_exceptions=False)
    traced = watched(client, recorded)

    def handler(tx: Tx, job: Job[Thing]) -> None:
        raise ValueError("5ecret")

    traced.enqueue(None, Thing())
    assert WorkerPool(traced, {Thing: handler}).work_one()
    span = recorded.span("process default")
    assert attributes(span)["error.type"] == "ValueError"
    assert "5ecret" not in span.to_json()


def test_an_attempt_without_a_handler_has_a_span_too(traced: Client, recorded: Recorded) -> None:
    traced.enqueue(None, {}, kind="nobody.knows")
    assert WorkerPool(traced, {Thing: nothing}).work_one()
    span = recorded.span("process default")
    assert parent_of(span) == context_of(recorded.span("send default"))
    assert attributes(span)["error.type"] == "pgjobs.errors.UnknownKind"


def test_a_duplicate_is_named_so_and_carries_the_first_sender(traced: Client, recorded: Recorded) -> None:
    for _ in range(2):
        traced.enqueue(None, Thing(), unique=Unique())
    assert WorkerPool(traced, {Thing: nothing}).work_one()
    first, second = recorded.spans("send default")
    assert attributes(second)["pgjobs.duplicate"] is True
    assert "pgjobs.duplicate" not in attributes(first)
    assert parent_of(recorded.span("process default")) == context_of(first)


def test_an_insert_that_fails_ends_its_span_without_the_values(traced: Client, recorded: Recorded) -> None:
    with traced.pool.connection() as conn:
        conn.execute(f'ALTER TABLE "{traced.schema}".job ADD CHECK (args <> \'{{"n": 77}}\')'.encode())
    with pytest.raises(psycopg.errors.CheckViolation):
        traced.enqueue(None, Thing(77))
    span = recorded.span("send default")
    assert span.status.status_code is StatusCode.ERROR
    assert span.events == ()


def test_an_attempt_that_was_lost_ends_its_span_when_the_thread_goes_on(traced: Client, recorded: Recorded) -> None:
    def handler(tx: None, job: Job[Thing]) -> None:
        if job.args.n == 1:
            with traced.pool.connection() as conn:
                conn.execute(f'UPDATE "{traced.schema}".job SET token = gen_random_uuid() WHERE id = {job.id}'.encode())

    lost, after = (traced.enqueue(None, Thing(n)) for n in (1, 2))
    work_map = WorkMap({Thing: Handler(handler, detached=True)})
    with WorkerPool(traced, work_map, queues={"default": 1}):
        wait_until(lambda: len(recorded.spans("process default")) == 2)
    outcomes = {attributes(span)["messaging.message.id"]: attributes(span)["pgjobs.outcome"]
                for span in recorded.spans("process default")}  # fmt: skip
    assert outcomes == {str(lost.id): "lost", str(after.id): "completed"}


def test_a_trace_that_is_not_sampled_stays_so(client: Client) -> None:
    recorded = recording()
    off = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    traced = watched(client, recorded)
    with off.get_tracer("application").start_as_current_span("the request"):
        job = traced.enqueue(None, Thing())
    assert int(job.metadata["traceparent"][-2:], 16) & 1 == 0
    assert WorkerPool(traced, {Thing: nothing}).work_one()
    assert recorded.traces.get_finished_spans() == ()


@pytest.mark.parametrize(
    "metadata",
    [
        {"traceparent": "nonsense"},
        {"traceparent": 7},
        {"traceparent": "00-" + "0" * 32 + "-" + "0" * 16 + "-01"},
        {"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01", "tracestate": "x" * 9000},
        {"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01", "tracestate": ["x"]},
    ],
    ids=str,
)
def test_a_context_that_was_made_by_hand_harms_no_job(
    traced: Client, recorded: Recorded, metadata: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    job = traced.enqueue(None, Thing(), metadata=metadata)
    assert job.metadata["traceparent"] == metadata["traceparent"], "it stays as the caller says"
    assert WorkerPool(traced, {Thing: nothing}).work_one()
    assert attributes(recorded.span("process default"))["pgjobs.outcome"] == "completed"
    assert "failed" not in caplog.text


def test_without_an_sdk_jobs_are_as_without_telemetry(client: Client) -> None:
    telemetry = OpenTelemetry()
    plain = Client(client.pool, schema=client.schema, hooks=[telemetry], middleware=[telemetry.send])
    telemetry.observe(plain)
    job = plain.enqueue(None, Thing(1))
    assert "traceparent" not in job.metadata
    assert job.args == Thing(1)
    assert WorkerPool(plain, {Thing: nothing}).work_one()


# --- metrics


def test_metrics_add_up_with_the_table(traced: Client, recorded: Recorded) -> None:
    def handler(tx: Tx, job: Job[Thing]) -> None:
        if job.args.n % 4 == 1 and job.attempt == 1:
            raise KeyError("once")
        if job.args.n % 4 == 2:
            raise Discard("why")

    pool = WorkerPool(traced, {Thing: handler}, queues={"default": 4}, backoff=NOW)
    recorded.telemetry.observe(traced, pool)
    traced.enqueue_many(None, [Thing(n) for n in range(200)])
    with pool:
        wait_until(pool.drained, 30)
        wait_until(lambda: pool.idle_threads == {"default": 4})
        points = recorded.points()
    labels = {("messaging.system", "pgjobs"), ("messaging.destination.name", "default"), ("pgjobs.job.kind", "thing")}
    assert points["messaging.client.sent.messages"][frozenset(labels)].value == 200
    assert points["messaging.client.consumed.messages"][frozenset(labels)].value == 250
    assert points["pgjobs.queue.wait"][frozenset(labels)].count == 250
    durations = points["messaging.process.duration"]
    assert {key - labels: point.count for key, point in durations.items()} == {
        frozenset({("pgjobs.outcome", "completed")}): 150,
        frozenset({("pgjobs.outcome", "retried"), ("error.type", "KeyError")}): 50,
        frozenset({("pgjobs.outcome", "discarded"), ("error.type", "pgjobs.errors.Discard")}): 50,
    }
    (send,) = points["messaging.client.operation.duration"].values()
    assert send.count == 1
    threads = {dict(key)["pgjobs.state"]: point.value for key, point in points["pgjobs.worker.threads"].items()}
    assert threads == {"busy": 0, "idle": 4}
    (up,) = points["pgjobs.database.up"].values()
    assert up.value == 1
    assert points.keys() >= GAUGES.keys() - {"pgjobs.jobs", "pgjobs.queue.oldest"}
    for name, found in points.items():
        known = INSTRUMENTS.get(name, GAUGES.get(name))
        assert known is not None, name
        assert {label for key in found for label, _ in key} <= {"messaging.system", *known[1]}


def test_made_up_kinds_have_a_bounded_number_of_labels(client: Client) -> None:
    recorded = recording(traces=False)
    measured = watched(client, recorded)
    measured.enqueue_many(None, [Thing(n) for n in range(3)])
    for start in range(0, 300, 100):
        for n in range(start, start + 100):
            measured.hooks("on_enqueue", job_of_kind(measured, f"made.up.{n}"))
    points = recorded.points()["messaging.client.sent.messages"]
    assert len(points) == 201
    assert sum(point.value for point in points.values()) == 303


def job_of_kind(client: Client, kind: str) -> Job[Any]:
    now = datetime.now(UTC)
    return Job(id=1, state=JobState.AVAILABLE, queue="default", kind=kind, priority=0, attempt=0, max_attempts=1,
               raw_args="{}", scheduled_at=now, created_at=now)  # fmt: skip


def test_what_was_rescued_is_counted(traced: Client, recorded: Recorded) -> None:
    with traced.pool.connection() as conn:
        insert = f'INSERT INTO "{traced.schema}".job (kind, state, attempt, max_attempts, attempted_at)'
        conn.execute(f"{insert} VALUES ('thing', 'running', 1, 1, now() - interval '1 hour')".encode())
    with WorkerPool(traced, {Thing: nothing}, queues={"idle": 1}):
        wait_until(lambda: "pgjobs.rescued" in recorded.points())
    (point,) = recorded.points()["pgjobs.rescued"].values()
    assert point.value == 1


def test_each_part_can_be_left_out(client: Client) -> None:
    for options, spans, metrics in (({"metrics": False}, 2, False), ({"traces": False}, 0, True)):
        recorded = recording(**options)
        watching = watched(client, recorded)
        watching.enqueue(None, Thing())
        assert WorkerPool(watching, {Thing: nothing}).work_one()
        assert len(recorded.traces.get_finished_spans()) == spans
        assert bool(recorded.points()) is metrics


@dataclass
class Login:
    """Args that nobody may see."""

    password: str


def test_args_are_neither_in_spans_nor_in_metrics(traced: Client, recorded: Recorded) -> None:
    marker = "5ecret" + " marker"

    def handler(tx: Tx, job: Job[Login]) -> None:
        if job.attempt == 1:
            raise ValueError("no")

    pool = WorkerPool(traced, {Login: handler}, queues={"default": 1}, backoff=NOW)
    traced.enqueue(None, Login(marker))
    traced.enqueue_many(None, [Login(marker)] * 2)
    traced.enqueue(None, {"password": [marker]}, kind="login")
    with pool:
        wait_until(pool.drained, 30)
        wait_until(lambda: pool.idle_threads == {"default": 1})
    spans = recorded.traces.get_finished_spans()
    assert len(spans) == 3 + 3 * 2 + 25, "the args of the last job do not fit its class, at any attempt"
    assert not any(marker in span.to_json() for span in spans)
    data = recorded.reader.get_metrics_data()
    assert data is not None
    assert marker not in data.to_json()
    assert marker not in metrics_text(traced, pool)
