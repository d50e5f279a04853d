"""The page on telemetry names what there is: metrics, labels and units, in its tables, rules and dashboard."""

from __future__ import annotations

import json
import re

import pytest

from pgjobs.contrib.opentelemetry import GAUGES, INSTRUMENTS
from pgjobs.observe.figures import OUTCOMES
from pgjobs.observe.metrics import METRICS
from tests.documents import ROOT, Document

PAGE = Document("telemetry", ROOT / "pgjobs" / "guide" / "telemetry.md")
BY_NAME = {metric.name: metric for metric in METRICS}
RULES, DASHBOARD = (block.code for block in PAGE.blocks("text")[1:])
EXPRESSIONS = [
    *re.findall(r"expr: (?:>\n)?((?:(?!\s*(?:annotations|for):).+\n)+)", RULES),
    *(target["expr"] for panel in json.loads(DASHBOARD)["panels"] for target in panel["targets"]),
]
# As the page writes the labels of OpenTelemetry.
SHORT = {
    "messaging.destination.name": "queue",
    "pgjobs.job.kind": "kind",
    "pgjobs.outcome": "outcome",
    "error.type": "error",
    "messaging.operation.name": "operation",
    "pgjobs.state": "state",
    "pgjobs.duty": "duty",
}


def table(head: str) -> list[list[str]]:
    """The rows of the table whose first column is so called."""
    (found,) = re.findall(rf"^\| {head} \|.*\n\|[- |]+\|\n((?:\|.*\|\n)+)", PAGE.text, re.MULTILINE)
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in found.splitlines()]


def test_the_table_of_metrics_is_that_of_the_code() -> None:
    rows = table("metric")
    assert rows == [
        [f"`{m.name}`", m.type, ", ".join(f"`{label}`" for label in m.labels) or "none", m.help] for m in METRICS
    ]


def test_the_table_of_instruments_is_that_of_the_code() -> None:
    known = {name: (unit, labels) for name, (unit, labels) in INSTRUMENTS.items()}
    known |= {name: (unit, labels) for name, (unit, labels, _) in GAUGES.items()}
    rows = table("instrument")
    assert [[name, unit, labels] for name, unit, labels, _ in rows] == [
        [f"`{name}`", unit, ", ".join(SHORT[label] for label in labels) or "none"]
        for name, (unit, labels) in known.items()
    ]
    for name, _, _, in_prometheus in rows:
        assert in_prometheus == "none" or in_prometheus.strip("`") in BY_NAME
        if name.strip("`") in GAUGES:
            assert in_prometheus.strip("`") == GAUGES[name.strip("`")][2]
    assert all(f"`{label}`" in PAGE.prose for label in SHORT)


def test_it_names_every_outcome() -> None:
    assert {outcome for outcome in OUTCOMES if f"`{outcome}`" not in PAGE.prose} == set()


def test_every_name_of_a_metric_exists() -> None:
    names = set(re.findall(r"\bpgjobs_[a-z_]+", PAGE.text))
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in names} == BY_NAME.keys()


def test_there_is_an_expression_in_each_rule_and_panel() -> None:
    assert RULES.count("- alert:") == RULES.count("expr:") == RULES.count("annotations:") >= 10
    assert len(EXPRESSIONS) == RULES.count("- alert:") + DASHBOARD.count('"refId"')
    assert {panel["id"] for panel in json.loads(DASHBOARD)["panels"]} == set(range(1, 9))


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=lambda expression: " ".join(expression.split())[:60])
def test_an_expression_uses_labels_that_its_metrics_have(expression: str) -> None:
    metrics = [
        BY_NAME[re.sub(r"_(bucket|sum|count)$", "", name)] for name in re.findall(r"\bpgjobs_[a-z_]+", expression)
    ]
    assert metrics
    grouped = {label for labels in re.findall(r"\bby \(([^)]*)\)", expression) for label in labels.split(", ")}
    for metric in metrics:
        assert grouped <= {*metric.labels, "le"}
        assert (metric.type == "counter") <= bool(re.search(r"(rate|increase)\(", expression))
    for name, labels in re.findall(r"\b(pgjobs_[a-z_]+)\{([^}]*)\}", expression):
        for label, values in re.findall(r'(\w+)=~?"([^"]*)"', labels):
            assert label in BY_NAME[name].labels
            assert label != "outcome" or set(values.split("|")) <= set(OUTCOMES)
    assert expression.count("(") == expression.count(")")
