"""Metrics: the samples of figures, their sums, and the text that Prometheus reads."""

from __future__ import annotations

import json
import re
import threading
from bisect import bisect_left
from typing import Any

import pytest

from pgjobs.clean_text import one_line
from pgjobs.observe.figures import BOUNDS, AttemptFigures, FigureKey, Tally
from pgjobs.observe.metrics import (
    BUCKETS,
    METRICS,
    Samples,
    as_text,
    bounded,
    from_json,
    lasting,
    samples_of_figures,
    to_json,
    total,
)
from pgjobs.processes.messages import Report, State
from pgjobs.processes.metrics import ProcessMetrics
from tests.scrape import scraped

HOSTILE = ['quote"d', "back\\slash", "new\nline", "a\rb", "escape\x1b[31m", "ünï·cödé", "}", '",kind="x', "\ud800", " "]


def counted(*attempts: tuple[str, str, str, float, float]) -> Samples:
    figures = AttemptFigures({kind for _, kind, *_ in attempts})
    for attempt in attempts:
        figures.record(*attempt)
    return samples_of_figures(figures.snapshot())


def test_every_bucket_is_one_of_the_finer_buckets() -> None:
    """So the counts of the text are exact."""
    assert set(BUCKETS) <= set(BOUNDS)
    assert list(BUCKETS) == sorted(BUCKETS)


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.005, 0.0051, 0.074, 0.4, 1.0, 29.0, 1800.0, 1801.0, 1e9])
def test_a_duration_is_counted_in_each_bucket_that_it_fits(seconds: float) -> None:
    found = scraped(as_text(counted(("q", "mail", "completed", 0.2, seconds))))
    labels = (("kind", "mail"), ("outcome", "completed"), ("queue", "q"))
    name = "pgjobs_process_duration_seconds"
    for place, bound in enumerate(BUCKETS):
        text = str(int(bound)) if bound == int(bound) else repr(bound)
        at_most = found[f"{name}_bucket", tuple(sorted((*labels, ("le", text))))]
        assert at_most == (1 if place >= bisect_left(BUCKETS, seconds) else 0), bound
    assert found[f"{name}_bucket", tuple(sorted((*labels, ("le", "+Inf"))))] == 1
    assert found[f"{name}_count", labels] == 1
    assert found[f"{name}_sum", labels] == pytest.approx(seconds)


def test_attempts_whose_worker_vanished_are_rescued_ones() -> None:
    figures = AttemptFigures({"mail"})
    figures.record("q", "mail", "completed", 0.1, 0.1)
    figures.record_lost("q", "mail", "retried")
    found = scraped(as_text(samples_of_figures(figures.snapshot())))
    assert found["pgjobs_rescued_total", (("kind", "mail"), ("queue", "q"))] == 1
    assert found["pgjobs_attempts_total", (("kind", "mail"), ("outcome", "retried"), ("queue", "q"))] == 1


def test_an_attempt_that_ends_while_the_figures_are_read_is_not_a_rescued_one() -> None:
    """Its thread has counted it, but not yet the bucket of its duration."""
    half = {FigureKey("q", "mail", "completed"): Tally(attempts=1)}
    assert "pgjobs_rescued_total" not in as_text(samples_of_figures(half))


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_a_hostile_name_stays_inside_its_label(name: str) -> None:
    text = as_text(counted((name, name, "completed", 0.1, 0.1)))
    shown = one_line(name, 128)
    assert scraped(text)["pgjobs_attempts_total", (("kind", shown), ("outcome", "completed"), ("queue", shown))] == 1
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\x85\u2028]", text)
    assert text.encode(errors="replace")


def test_names_that_look_alike_in_a_label_are_one_series() -> None:
    """Prometheus refuses a text that has a series twice."""
    long = "x" * 200
    samples = counted(("q", long + "1", "completed", 1, 1), ("q", long + "2", "completed", 1, 1))
    found = scraped(as_text(samples))
    assert [value for (name, _), value in found.items() if name == "pgjobs_attempts_total"] == [2]


def test_only_so_many_kinds_have_series_of_their_own() -> None:
    figures = AttemptFigures({"mail"})
    for n in range(1000):
        figures.record("q", f"made.up.{n}", "discarded", 0.1, 0.1)
    figures.record("q", "mail", "completed", 0.1, 0.1)
    found = scraped(as_text(samples_of_figures(figures.snapshot())))
    attempts = {labels: value for (name, labels), value in found.items() if name == "pgjobs_attempts_total"}
    assert sum(attempts.values()) == 1001
    assert len(attempts) == 22


def test_only_so_many_queues_have_labels_of_their_own() -> None:
    labels = bounded({f"q{n}": n for n in range(1000)}, 3)
    assert {queue for queue, shown in labels.items() if shown == queue} == {"q997", "q998", "q999"}
    assert set(labels.values()) == {"q997", "q998", "q999", "(others)"}


def test_samples_are_the_same_after_a_journey_as_json() -> None:
    samples = counted(("q", "mail", "completed", 0.1, 0.1), ("q", "mail", "retried", 3, 4))
    assert from_json(json.loads(json.dumps(to_json(samples)))) == samples
    unknown: Any = [["pgjobs_of_a_newer_version", [], [1]]]
    assert from_json(unknown) == {}


def test_every_metric_is_named_as_prometheus_wants_it() -> None:
    for metric in METRICS:
        assert re.fullmatch(r"pgjobs_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.type == "counter")
        assert metric.help.endswith(".")
        assert "\n" not in metric.help


# --- the sum over processes


class Child:
    """What ProcessMetrics asks of a child."""

    silent = False
    reported_at = 0.0

    def __init__(self, state: State = State.STARTING) -> None:
        self.report = Report(state=state)
        self.channel = self
        self.asked: list[object] = []

    def offer(self, message: object) -> bool:
        self.asked.append(message)
        return True


def test_a_child_that_ends_leaves_its_counts_and_takes_its_gauges() -> None:
    metrics, first, second = ProcessMetrics(), Child(), Child()
    gauge: Samples = {("pgjobs_worker_threads", ("q", "busy")): [3]}
    samples = total([counted(("q", "mail", "completed", 0.1, 0.1)), gauge])

    def noted(child: Any) -> None:
        metrics.note(child, Report(state=State.READY, metrics=to_json(samples)))

    def told(*children: Any) -> dict[Any, float]:
        return scraped(metrics.text(children))

    attempts = ("pgjobs_attempts_total", (("kind", "mail"), ("outcome", "completed"), ("queue", "q")))
    threads = ("pgjobs_worker_threads", (("queue", "q"), ("state", "busy")))
    noted(first)
    noted(second)
    noted(second)  # the same numbers again
    assert told(first, second)[attempts] == 2
    assert told(first, second)[threads] == 6
    assert told(first, second)["pgjobs_processes", (("state", "starting"),)] == 2
    metrics.note_end(first)  # type: ignore[arg-type]
    assert told(second)[attempts] == 2
    assert told(second)[threads] == 3
    assert told(second)["pgjobs_database_up", ()] == 0, "no child can tell"
    metrics.note_end(second)  # type: ignore[arg-type]
    assert told() == {attempts: 2} | {key: value for key, value in told().items() if key[0] != attempts[0]}
    assert threads not in told()
    assert lasting(samples).keys() == samples.keys() - gauge.keys()


def test_the_child_that_reported_last_is_asked_and_once_until_it_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgjobs.processes.metrics.WAIT", 0)
    first, second, third = children = [Child(State.READY) for _ in range(3)]
    first.reported_at, second.reported_at, third.reported_at = 1, 2, 3
    third.silent = True
    metrics = ProcessMetrics()

    def asked_of_each() -> list[int]:
        metrics.text(children)  # type: ignore[arg-type]
        metrics.text(children)  # type: ignore[arg-type]
        return [len(child.asked) for child in children]

    assert asked_of_each() == [0, 1, 0]
    first.reported_at = 4
    assert asked_of_each() == [1, 1, 0]
    second.reported_at = 5
    assert asked_of_each() == [1, 2, 0]
    first.silent = second.silent = True
    assert asked_of_each() == [1, 2, 0]


def test_a_report_is_noted_while_the_text_is_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics, child = ProcessMetrics(), Child()

    def render(samples: Samples) -> str:
        report = Report(state=State.READY, metrics=[])
        noting = threading.Thread(target=metrics.note, args=(child, report), daemon=True)
        noting.start()
        noting.join(5)
        assert not noting.is_alive(), "it waits for the lock"
        return as_text(samples)

    monkeypatch.setattr("pgjobs.processes.metrics.as_text", render)
    assert "pgjobs_processes" in metrics.text([child])  # type: ignore[list-item]
