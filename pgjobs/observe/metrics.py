"""Metrics: their names, the samples of one process, their sums over processes, and the text that Prometheus reads.

A sample belongs to a metric and to values of its labels. Counters and histograms only grow while a process lives; they,
and gauges of a process, are added up over processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

from pgjobs.clean_text import one_line
from pgjobs.observe.figures import BOUNDS, OTHER_KINDS, Durations, FigureKey, Tally

#: The upper bounds of the buckets of all histograms, in seconds.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0, 300.0, 1800.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_LONGEST_LABEL = 128  # characters, as many as a kind may have
_PLACES = [BOUNDS.index(bound) for bound in BUCKETS]

#: The values of a metric's labels, in the order of its `labels`.
Labels = tuple[str, ...]
#: By the name of the metric and its labels: one number, or for a histogram the sum and then the count of each bucket,
#: with one more bucket for what is above.
Samples = dict[tuple[str, Labels], list[float]]


@dataclass(frozen=True, slots=True)
class Metric:
    """What is measured."""

    name: str
    type: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str


METRICS = (
    Metric("pgjobs_attempts_total", "counter", ("queue", "kind", "outcome"), "Attempts that have ended."),
    Metric("pgjobs_process_duration_seconds", "histogram", ("queue", "kind", "outcome"), "How long the handlers ran."),
    Metric(
        "pgjobs_queue_wait_seconds",
        "histogram",
        ("queue", "kind"),
        "How long jobs could have run before they were claimed.",
    ),
    Metric("pgjobs_rescued_total", "counter", ("queue", "kind"), "Attempts whose worker vanished."),
    Metric(
        "pgjobs_worker_threads", "gauge", ("queue", "state"), "Worker threads that run a job (busy) or wait (idle)."
    ),
    Metric("pgjobs_stuck_threads", "gauge", (), "Threads whose handler does not end although it was cut off."),
    Metric("pgjobs_processes", "gauge", ("state",), "Processes of `pgjobs work`."),
    Metric("pgjobs_database_up", "gauge", (), "1 if the database answers; else the metrics below are missing."),
    Metric("pgjobs_jobs", "gauge", ("queue", "state"), "Jobs that are waiting (available and due) or running."),
    Metric("pgjobs_queue_oldest_seconds", "gauge", ("queue",), "How long the oldest waiting job has waited."),
    Metric("pgjobs_duty_age_seconds", "gauge", ("duty",), "By how long a duty of maintenance is overdue."),
    Metric("pgjobs_transaction_oldest_seconds", "gauge", (), "Age of the oldest transaction in this database."),
)
_BY_NAME = {metric.name: metric for metric in METRICS}


def label(value: object) -> str:
    """A name for a label: queues and kinds come from a table that other programs can write to."""
    return one_line(value, _LONGEST_LABEL)


def samples_of_figures(figures: Mapping[FigureKey, Tally]) -> Samples:
    """The samples of the attempts that a worker pool has counted."""
    samples: Samples = {}
    for key, tally in figures.items():
        queue, kind = label(key.queue), label(key.kind)
        add(samples, "pgjobs_attempts_total", (queue, kind, key.outcome), [tally.attempts])
        add(samples, "pgjobs_process_duration_seconds", (queue, kind, key.outcome), _histogram(tally.run))
        add(samples, "pgjobs_queue_wait_seconds", (queue, kind), _histogram(tally.wait))
        if tally.lost:
            add(samples, "pgjobs_rescued_total", (queue, kind), [tally.lost])
    return samples


def add(samples: Samples, name: str, labels: Labels, values: list[float]) -> None:
    """Add a sample to what there is of its metric and labels."""
    known = samples.get((name, labels))
    samples[name, labels] = values if known is None else [a + b for a, b in zip(known, values, strict=True)]


def total(parts: Iterable[Samples]) -> Samples:
    """The sums of samples."""
    sums: Samples = {}
    for samples in parts:
        for (name, labels), values in samples.items():
            add(sums, name, labels, values)
    return sums


def lasting(samples: Samples) -> Samples:
    """The samples that count on after their process has ended: all but gauges."""
    return {key: values for key, values in samples.items() if _BY_NAME[key[0]].type != "gauge"}


def as_text(samples: Samples) -> str:
    """The samples in the text format of Prometheus, in the order of METRICS. Metrics without a sample are left out."""
    lines: list[str] = []
    by_name: dict[str, list[tuple[Labels, list[float]]]] = {}
    for (name, labels), values in sorted(samples.items()):
        by_name.setdefault(name, []).append((labels, values))
    for metric in METRICS:
        found = by_name.get(metric.name, [])
        if found:
            lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.type}"]
        for labels, values in found:
            lines += _lines(metric, labels, values)
    return "".join(f"{line}\n" for line in lines)


def to_json(samples: Samples) -> list[Any]:
    return [[name, list(labels), values] for (name, labels), values in samples.items()]


def from_json(values: Iterable[Any]) -> Samples:
    return {(name, tuple(labels)): numbers for name, labels, numbers in values if name in _BY_NAME}


def bounded(by_queue: Mapping[str, float], most: int) -> dict[str, str]:
    """The label of each queue. At most so many have a label of their own, those with the largest numbers; the others
    share one: a program that makes up names must not make the number of series grow."""
    largest = sorted(by_queue, key=lambda queue: (-by_queue[queue], queue))[:most]
    return {queue: label(queue) if queue in largest else OTHER_KINDS for queue in by_queue}


def _histogram(durations: Durations) -> list[float]:
    """The sum and the counts of BUCKETS, whose bounds are bounds of the finer buckets too."""
    below = [0, *accumulate(durations.counts)]  # below[n]: how many are in the first n buckets
    at_most = [below[min(place + 1, len(below) - 1)] for place in _PLACES]
    counts = [after - before for before, after in zip([0, *at_most], [*at_most, below[-1]], strict=True)]
    return [durations.total, *counts]


def _lines(metric: Metric, labels: Labels, values: list[float]) -> list[str]:
    pairs = list(zip(metric.labels, labels, strict=True))
    if metric.type != "histogram":
        return [f"{metric.name}{_braced(pairs)} {_number(values[0])}"]
    seconds, *counts = values
    *at_most, count = accumulate(counts)
    return [
        *(
            f"{metric.name}_bucket{_braced([*pairs, ('le', _number(bound))])} {_number(number)}"
            for bound, number in zip(BUCKETS, at_most, strict=True)
        ),
        f"{metric.name}_bucket{_braced([*pairs, ('le', '+Inf')])} {_number(count)}",
        f"{metric.name}_sum{_braced(pairs)} {_number(seconds)}",
        f"{metric.name}_count{_braced(pairs)} {_number(count)}",
    ]


def _braced(pairs: Iterable[tuple[str, str]]) -> str:
    text = ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs)
    return f"{{{text}}}" if text else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))
