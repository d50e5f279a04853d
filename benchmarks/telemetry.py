"""What telemetry costs: nothing of it, the metrics of Prometheus, and the metrics and traces of OpenTelemetry, with its
SDK and without an exporter.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

from benchmarks.drain import Drain
from benchmarks.ground import Table
from benchmarks.report import Question
from benchmarks.workload import one_by_one
from pgjobs import Client
from pgjobs.metrics import metrics_text

_SCRAPE_EVERY = 1.0  # seconds; a server of Prometheus asks every 15 or 60
OFF, SCRAPED, METRICS, TRACES = "off", "Prometheus, scraped each second", "OpenTelemetry, metrics", "OpenTelemetry, all"


def questions(dsn: str, table: Table, threads: int) -> list[Question]:
    """Of jobs that do nothing, one per transaction, and of single enqueues."""
    shown = "1 thread" if threads == 1 else f"{threads} threads"
    drain = Question(f"telemetry_{threads}", f"Telemetry: drain, {shown}", "jobs/s")
    enqueue = Question(f"telemetry_enqueue_{threads}", f"Telemetry: enqueue one, {shown}", "jobs/s")
    for name in (OFF, SCRAPED, METRICS, TRACES):
        over = () if name == OFF else (OFF,)
        drain.add(name, partial(_drained, dsn, table, threads, name), over=over)
        if name != SCRAPED:
            enqueue.add(name, partial(_enqueued, dsn, table, threads, name), over=over)
    return [drain, enqueue]


def _drained(dsn: str, table: Table, threads: int, name: str) -> float:
    with _client(dsn, table, name) as client:
        drain = Drain(client, table, threads)
        with _scraping(partial(metrics_text, client, drain.pool)) if name == SCRAPED else nullcontext():
            return drain()


def _enqueued(dsn: str, table: Table, threads: int, name: str) -> float:
    table.empty()
    with _client(dsn, table, name) as client:
        one_by_one(client, table.jobs, threads)
    return table.insert_rate()


@contextmanager
def _client(dsn: str, table: Table, name: str) -> Iterator[Client]:
    with Client(dsn, schema=table.schema, **_options(name)) as client:
        yield client


def _options(name: str) -> dict[str, Any]:
    if name not in (METRICS, TRACES):
        return {}
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider

    from pgjobs.contrib.opentelemetry import OpenTelemetry

    telemetry = OpenTelemetry(
        traces=name == TRACES,
        tracer_provider=TracerProvider(shutdown_on_exit=False),
        meter_provider=MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False),
    )
    return {"hooks": [telemetry], "middleware": [telemetry.send] if name == TRACES else []}


@contextmanager
def _scraping(read: Callable[[], object]) -> Iterator[None]:
    ended = threading.Event()

    def scrape() -> None:
        while not ended.wait(_SCRAPE_EVERY):
            read()

    thread = threading.Thread(target=scrape, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
