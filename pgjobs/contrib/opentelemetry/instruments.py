"""The names, units and labels of all instruments, and the instruments.

The names of the messaging conventions of OpenTelemetry are literal, since its constants are not stable yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from pgjobs.client import Client
from pgjobs.events import Event
from pgjobs.job import Job
from pgjobs.metrics import gauges_of
from pgjobs.observe.figures import OTHER_KINDS
from pgjobs.observe.metrics import BUCKETS, label
from pgjobs.worker_pool import WorkerPool

SYSTEM = {"messaging.system": "pgjobs"}

_MOST_NAMES = 200  # queues, kinds and types of errors that have labels of their own

#: The instruments: the unit of each, and its labels, without `messaging.system` which all of them have.
INSTRUMENTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "messaging.client.sent.messages": ("{message}", ("messaging.destination.name", "pgjobs.job.kind")),
    "messaging.client.consumed.messages": ("{message}", ("messaging.destination.name", "pgjobs.job.kind")),
    "messaging.client.operation.duration": (
        "s",
        ("messaging.operation.name", "messaging.destination.name", "error.type"),
    ),
    "messaging.process.duration": (
        "s",
        ("messaging.destination.name", "pgjobs.job.kind", "pgjobs.outcome", "error.type"),
    ),
    "pgjobs.queue.wait": ("s", ("messaging.destination.name", "pgjobs.job.kind")),
    "pgjobs.rescued": ("{job}", ("messaging.destination.name", "pgjobs.job.kind")),
    "pgjobs.stuck": ("{job}", ("messaging.destination.name", "pgjobs.job.kind")),
}
#: The gauges that `observe` adds: the unit, the labels, and the metric of observe/metrics.py.
GAUGES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "pgjobs.database.up": ("1", (), "pgjobs_database_up"),
    "pgjobs.jobs": ("{job}", ("messaging.destination.name", "pgjobs.state"), "pgjobs_jobs"),
    "pgjobs.queue.oldest": ("s", ("messaging.destination.name",), "pgjobs_queue_oldest_seconds"),
    "pgjobs.duty.age": ("s", ("pgjobs.duty",), "pgjobs_duty_age_seconds"),
    "pgjobs.transaction.oldest": ("s", (), "pgjobs_transaction_oldest_seconds"),
    "pgjobs.worker.threads": ("{thread}", ("messaging.destination.name", "pgjobs.state"), "pgjobs_worker_threads"),
}


class Instruments:
    """The counters and histograms."""

    def __init__(self, meter: Meter) -> None:
        histograms = [name for name, (unit, _) in INSTRUMENTS.items() if unit == "s"]
        self._counters = {name: meter.create_counter(name, INSTRUMENTS[name][0]) for name in INSTRUMENTS
                          if name not in histograms}  # fmt: skip
        self._histograms = {
            name: meter.create_histogram(name, "s", explicit_bucket_boundaries_advisory=BUCKETS) for name in histograms
        }
        self._names: dict[str, dict[str, str]] = {}  # by label

    def count(self, name: str, job: Job[Any]) -> None:
        self._counters[name].add(1, self._labels(job))

    def sent(self, seconds: float, queue: str | None, error: BaseException | None) -> None:
        labels = {**SYSTEM, "messaging.operation.name": "send"}
        if queue is not None:
            labels["messaging.destination.name"] = self._bounded("queue", queue)
        self._histograms["messaging.client.operation.duration"].record(seconds, self._with_error(labels, error))

    def ended(self, event: Event, outcome: str, error: BaseException | None) -> None:
        job, stats = event.job, event.stats
        labels = self._labels(job)
        self._counters["messaging.client.consumed.messages"].add(1, labels)
        self._histograms["pgjobs.queue.wait"].record(stats.queue_wait.total_seconds(), labels)
        labels = self._with_error({**labels, "pgjobs.outcome": outcome}, error)
        self._histograms["messaging.process.duration"].record(stats.run.total_seconds(), labels)

    def _labels(self, job: Job[Any]) -> dict[str, str]:
        return {
            **SYSTEM,
            "messaging.destination.name": self._bounded("queue", job.queue),
            "pgjobs.job.kind": self._bounded("kind", job.kind),
        }

    def _with_error(self, labels: dict[str, str], error: BaseException | None) -> dict[str, str]:
        return labels if error is None else {**labels, "error.type": self._bounded("error", type_of(error))}

    def _bounded(self, what: str, name: str) -> str:
        """The name as a label. A job may have any kind: only so many have a label of their own."""
        names = self._names.setdefault(what, {})
        known = names.get(name)
        if known is None:
            if len(names) >= _MOST_NAMES:
                return OTHER_KINDS
            known = names.setdefault(name, label(name))
        return known


def type_of(error: BaseException) -> str:
    """The name of its class, as a label."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def observe(meter: Meter, client: Client, pools: Sequence[WorkerPool]) -> None:
    """Add the gauges of the client's queues, and of the threads of the pools."""
    for name, (unit, labels, metric) in GAUGES.items():
        if name == "pgjobs.worker.threads":
            meter.create_observable_gauge(name, [_threads(pools, labels)], unit)
        else:
            meter.create_observable_gauge(name, [_gauge(client, metric, labels)], unit)


def _gauge(client: Client, metric: str, labels: tuple[str, ...]) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(options: CallbackOptions) -> Iterable[Observation]:
        for (name, values), (number, *_) in gauges_of(client).samples().items():
            if name == metric:
                yield Observation(number, {**SYSTEM, **dict(zip(labels, values, strict=True))})

    return observe


def _threads(
    pools: Sequence[WorkerPool], labels: tuple[str, ...]
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(options: CallbackOptions) -> Iterable[Observation]:
        for pool in pools:
            for state, threads in (("busy", pool.busy_threads), ("idle", pool.idle_threads)):
                for queue, number in threads.items():
                    yield Observation(number, {**SYSTEM, **dict(zip(labels, (label(queue), state), strict=True))})

    return observe
