"""Two versions of pgjobs measured in turns: the ratio of each row, how sure it is, and what follows. No I/O."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import comb
from typing import Any

LOWEST = 0.97  # a row is slower when all of its interval lies below
WIDEST = 0.10  # an interval that is wider says little
_SURE = 0.95
_TIMES = ("ms", "us/job")  # units of which less is better


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
    """A row of the report: one figure for each round, of both versions, and of the floor if there is one."""

    name: str
    unit: str
    judged: bool = True
    now: list[float] = field(default_factory=list)
    baseline: list[float] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """Of each round: now / baseline, of times baseline / now. So less than 1 is always slower."""
        pairs = zip(self.now, self.baseline, strict=True)
        return [before / now if self.unit in _TIMES else now / before for now, before in pairs]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def over_floor(self) -> float | None:
        return (
            statistics.median(now / floor for now, floor in zip(self.now, self.floor, strict=True))
            if self.floor
            else None
        )

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
        found = self.interval
        return {
            "name": self.name,
            "unit": self.unit,
            "ratio": round(self.ratio, 3),
            "interval": [round(found.low, 3), round(found.high, 3)],
            "slower": self.slower,
            "now": self.now,
            "baseline": self.baseline,
            "floor": self.floor,
        }


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
    """The table, the processor time below it, and how to read both."""
    width = max(len(line.name) for line in lines) + 2
    columns = f"{'now':>10}{'baseline':>10}{'ratio':>8}{'interval':>15}{'over floor':>12}"
    rows = [f"{'':<{width}}{'':<7}{columns}", *(_row(line, width) for line in lines if line.judged)]
    unjudged = [_row(line, width) for line in lines if not line.judged]
    if unjudged:
        rows += ["", "processor time, of which no row is judged", *unjudged]
    return "\n".join([*rows, "", *_notes(lines)])


def _row(line: Line, width: int) -> str:
    found, over = line.interval, line.over_floor
    cells = f"{_shown(line.now):>10}{_shown(line.baseline):>10}{line.ratio:>8.2f}"
    cells += f"{found.low:>7.2f} to {found.high:.2f}{'' if over is None else f'{over:.2f}':>12}"
    marks = ("  <-- SLOWER" if line.slower else "") + ("  (wide)" if line.wide else "")
    return f"{line.name:<{width}}{line.unit:<7}{cells}{marks}".rstrip()


def _shown(figures: Sequence[float]) -> str:
    median = statistics.median(figures)
    return f"{median:,.0f}" if median >= 100 else f"{median:.3g}"


def _notes(lines: Sequence[Line]) -> list[str]:
    rounds, found = len(lines[0].now), lines[0].interval
    between = (
        "the smallest to the largest" if found.rank == 1 else f"the {found.rank}. smallest to the {found.rank}. largest"
    )
    return [
        "ratio: median over the rounds of now / baseline, for times of baseline / now, so that less than 1 is slower",
        f"interval: {between} of {rounds} ratios; it holds the true median in {found.sure:.0%} of all runs (sign test)",
    ]
