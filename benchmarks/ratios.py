"""The rows of the report: their figures, ratios, confidence intervals and verdicts. No I/O."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import comb
from typing import Any

LOWEST = 0.97  # a row is slower when all of its interval lies below
WIDEST = 0.10  # an interval that is wider says little
PER_JOB = ("client us", "server us", "Python calls", "C calls")  # what one job takes; no row of these is judged
FLOORS = ("chain", "fixed")
_SURE = 0.95
_TIMES = ("ms", *PER_JOB)  # units of which less is better


@dataclass(frozen=True)
class Interval:
    """Where the true median of the ratios lies, by the sign test: between two of them, in the order of their size."""

    low: float
    high: float
    rank: int  # of `low` from below, and of `high` from above
    sure: float  # the share of all runs whose interval holds the true median


def interval(ratios: Sequence[float]) -> Interval:
    """The narrowest that is 95 % sure; of fewer than six ratios it is all of them, and less sure."""
    ranked, rounds = sorted(ratios), len(ratios)
    ranks = [rank for rank in range(1, rounds // 2 + 1) if _sure(rounds, rank) >= _SURE]
    rank = max(ranks, default=1)
    return Interval(ranked[rank - 1], ranked[-rank], rank, _sure(rounds, rank))


def _sure(rounds: int, rank: int) -> float:
    """How likely the true median has `rank` or more of so many ratios on each side."""
    return 1 - 2 * sum(comb(rounds, below) for below in range(rank)) * 0.5**rounds


@dataclass
class Line:
    """A row of the report: one figure for each round, of the present version, and of the baseline and the floors if
    there are any."""

    name: str
    unit: str
    now: list[float] = field(default_factory=list)
    baseline: list[float] = field(default_factory=list)
    floors: dict[str, list[float]] = field(default_factory=dict)

    @property
    def judged(self) -> bool:
        return self.unit not in PER_JOB

    @property
    def ratios(self) -> list[float]:
        """Of each round: now / baseline, of times baseline / now. So less than 1 is always slower."""
        pairs = zip(self.now, self.baseline, strict=True)
        return [before / now if self.unit in _TIMES else now / before for now, before in pairs]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    def over(self, floor: str) -> float | None:
        figures = self.floors.get(floor)
        return statistics.median(now / of for now, of in zip(self.now, figures, strict=True)) if figures else None

    @property
    def interval(self) -> Interval:
        return interval(self.ratios)

    @property
    def slower(self) -> bool:
        return self.judged and self.interval.high < LOWEST

    @property
    def wide(self) -> bool:
        return self.judged and self.interval.high - self.interval.low > WIDEST

    def as_json(self) -> dict[str, Any]:
        over = {floor: self.over(floor) for floor in self.floors}
        found: dict[str, Any] = {"name": self.name, "unit": self.unit, "now": self.now}
        found |= {"floors": self.floors, "over": {floor: round(ratio, 3) for floor, ratio in over.items() if ratio}}
        if self.baseline:
            low, high = self.interval.low, self.interval.high
            found |= {"baseline": self.baseline, "ratio": round(self.ratio, 3), "slower": self.slower}
            found |= {"interval": [round(low, 3), round(high, 3)]}
        return found


def verdict(lines: Sequence[Line], baseline: str, *, quiet: bool = True) -> str:
    """One sentence."""
    judged = [line for line in lines if line.judged]
    slower = [f"{line.name} ({line.ratio:.2f})" for line in judged if line.slower]
    if slower:
        said = f"Slower than {baseline}, the whole interval below {LOWEST}: {', '.join(slower)}"
    else:
        said = f"Not slower than {baseline}: none of {len(judged)} rows has its whole interval below {LOWEST}"
    doubts = [] if quiet else ["the machine was not quiet"]
    if (sure := judged[0].interval.sure) < _SURE:
        doubts.append(f"an interval of {len(judged[0].now)} rounds is {sure:.0%} sure")
    return said + (f" (but {', and '.join(doubts)})." if doubts else ".")


def report(lines: Sequence[Line]) -> str:
    """The table, what one job takes below it, and how to read both."""
    compared = bool(lines[0].baseline)
    width = max(len(line.name) for line in lines) + 2
    columns = f"{'baseline':>10}{'ratio':>8}{'interval':>15}" if compared else ""
    head = f"{'':<{width}}{'':<7}{'now':>10}{columns}" + "".join(f"{'over ' + floor:>12}" for floor in FLOORS)
    rows = [head, *(_row(line, width) for line in lines if line.judged)]
    return "\n".join([*rows, "", *_per_job(lines, width), *_notes(lines)])


def _row(line: Line, width: int) -> str:
    cells, marks = f"{_shown(line.now):>10}", ""
    if line.baseline:
        found = line.interval
        cells += f"{_shown(line.baseline):>10}{line.ratio:>8.2f}{found.low:>7.2f} to {found.high:.2f}"
        marks = ("  <-- SLOWER" if line.slower else "") + ("  (wide)" if line.wide else "")
    ratios = [line.over(floor) for floor in FLOORS]
    cells += "".join(f"{'' if ratio is None else f'{ratio:.2f}':>12}" for ratio in ratios)
    return f"{line.name:<{width}}{line.unit:<7}{cells}{marks}".rstrip()


def _per_job(lines: Sequence[Line], width: int) -> list[str]:
    """A row for all that one job takes: of each now, and if there is a baseline, that of the baseline and the ratio."""
    taken: dict[str, dict[str, Line]] = {}
    for line in lines:
        if not line.judged:
            taken.setdefault(line.name, {})[line.unit] = line
    if not taken:
        return []
    columns = [name for name in PER_JOB if any(name in found for found in taken.values())]
    size = 22 if lines[0].baseline else 14
    head = f"{'one job takes':<{width}}" + "".join(f"{column:>{size}}" for column in columns)
    rows = [
        f"{name:<{width}}" + "".join(f"{_cost(found.get(column)):>{size}}" for column in columns)
        for name, found in taken.items()
    ]
    return [head, *(row.rstrip() for row in rows), ""]


def _cost(line: Line | None) -> str:
    if line is None:
        return ""
    if not line.baseline:
        return _shown(line.now)
    return f"{_shown(line.now)} of {_shown(line.baseline)} {line.ratio:>6.2f}"


def _shown(figures: Sequence[float]) -> str:
    median = statistics.median(figures)
    return f"{median:,.0f}" if median >= 100 else f"{median:.3g}"


def _notes(lines: Sequence[Line]) -> list[str]:
    notes = ["over chain: over the bare statements of pgjobs on its table (floor.sql), as many clients of pgbench"]
    notes += ["over fixed: over one that only locks, updates and commits, on a table that never changes (fixed_floor/)"]
    if not lines[0].baseline:
        return notes
    rounds, found = len(lines[0].now), lines[0].interval
    between = (
        "the smallest to the largest" if found.rank == 1 else f"the {found.rank}. smallest to the {found.rank}. largest"
    )
    return [
        *notes,
        "ratio: median over the rounds of now / baseline, for times of baseline / now, so that less than 1 is slower",
        f"interval: {between} of {rounds} ratios; it holds the true median in {found.sure:.0%} of all runs (sign test)",
    ]
