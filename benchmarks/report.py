"""Questions, the arms that are measured to answer them, and how the answers are shown."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.ground import progress

RESULTS = Path(__file__).with_name("results")


@dataclass
class Arm:
    """One thing that is measured. A run gives one figure, or many waits; `over` are the arms whose best median its own
    is divided by."""

    name: str
    run: Callable[[], float | Sequence[float]] | None  # None: its figure is known
    over: tuple[str, ...] = ()
    figures: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.figures)


@dataclass
class Question:
    """Some arms that take turns, so that their ratios mean something on a machine whose speed drifts."""

    key: str
    title: str
    unit: str
    arms: list[Arm] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    waits: bool = False  # what is asked for are percentiles of all runs
    points: list[tuple[str, float, float]] = field(default_factory=list)  # for a chart: the line, x and y

    def add(self, name: str, run: Callable[[], float | Sequence[float]], *, over: Iterable[str] = ()) -> None:
        self.arms.append(Arm(name, run, tuple(over)))

    def tell(self, name: str, *figures: float, over: Iterable[str] = ()) -> None:
        """Add figures that were measured already."""
        self.arms.append(Arm(name, None, tuple(over), list(figures)))

    def measure(self, rounds: int) -> None:
        for round in range(rounds):
            for arm in self.arms:
                if arm.run is None:
                    continue
                progress(f"{self.key}, round {round + 1} of {rounds}: {arm.name}")
                found = arm.run()
                arm.figures += [found] if isinstance(found, (int, float)) else found
        progress("")

    def ratio(self, arm: Arm) -> float | None:
        floors = [other.median for other in self.arms if other.name in arm.over]
        return arm.median / max(floors) if floors else None

    def __str__(self) -> str:
        width = max([len(arm.name) for arm in self.arms] + [20])
        columns = ("p50", "p99", "max", "of") if self.waits else ("median", "min", "max", "ratio")
        head = f"{self.title} ({self.unit})\n{'':<{width}}" + "".join(f"{column:>12}" for column in columns)
        rows = [f"{arm.name:<{width}}" + "".join(f"{cell:>12}" for cell in self._cells(arm)) for arm in self.arms]
        return "\n".join([head, *rows, *(f"  {note}" for note in self.notes)])

    def _cells(self, arm: Arm) -> list[str]:
        if self.waits:
            return [_shown(percentile(arm.figures, percent)) for percent in (50, 99, 100)] + [f"{len(arm.figures)}"]
        ratio = self.ratio(arm)
        shown = [_shown(arm.median), _shown(min(arm.figures)), _shown(max(arm.figures))]
        return [*shown, "" if ratio is None else f"{ratio:.2f}"]

    def as_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "unit": self.unit,
            "notes": self.notes,
            "arms": [self._arm(arm) for arm in self.arms],
        }

    def _arm(self, arm: Arm) -> dict[str, Any]:
        if self.waits:
            cuts = {f"p{percent}": percentile(arm.figures, percent) for percent in (50, 99, 100)}
            return {"name": arm.name, "of": len(arm.figures), **cuts}
        ratio = self.ratio(arm)
        known = {"name": arm.name, "median": arm.median, "figures": arm.figures}
        return known if ratio is None else {**known, "over": arm.over, "ratio": round(ratio, 3)}


def as_grid(head: str, questions: Sequence[Question]) -> str:
    """A table in Markdown: a row for each name of an arm, a column for each question; ratios in brackets."""
    names = dict.fromkeys(arm.name for question in questions for arm in question.arms)
    rows = [[head, *(question.title for question in questions)]]
    for name in names:
        found = [next((arm for arm in question.arms if arm.name == name), None) for question in questions]
        rows.append([name, *(_in_grid(question, arm) for question, arm in zip(questions, found, strict=True))])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(map(str.ljust, row, widths))} |" for row in rows)


def _in_grid(question: Question, arm: Arm | None) -> str:
    if arm is None:
        return ""
    ratio = question.ratio(arm)
    return _shown(arm.median) + ("" if ratio is None else f" ({ratio:.2f})")


def percentile(figures: Sequence[float], percent: int) -> float:
    """The smallest figure that so many percent do not exceed."""
    ranked = sorted(figures)
    return ranked[min(len(ranked) - 1, max(0, -(-len(ranked) * percent // 100) - 1))]


def _shown(figure: float) -> str:
    return f"{figure:,.0f}" if abs(figure) >= 100 else f"{figure:.3g}"


def write_json(path: Path, what: str, questions: Sequence[Question], **others: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    answers = {question.key: question.as_json() for question in questions}
    path.write_text(json.dumps({"configuration": what.splitlines(), "questions": answers, **others}, indent=1) + "\n")
