"""The geometry of the charts, which templates draw as SVG. Every bar and point has its values as text, too."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pgjobs.observe.stats import Figures

WIDTH, HEIGHT = 640, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 4, 10, 24
_MOST_X_MARKS = 8
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Period:
    """What charts cover: the last `length`, in steps, which divide a day and are counted from midnight UTC."""

    name: str
    title: str
    length: timedelta
    step: timedelta
    label: str  # how the time of a step is written
    refresh: int = 5  # seconds between two refreshes of its page: a long period is more work for the database


PERIODS = {
    "hour": Period("hour", "last hour, by minute", timedelta(hours=1), timedelta(minutes=1), "%H:%M"),
    "day": Period("day", "last day, by hour", timedelta(days=1), timedelta(hours=1), "%H:%M", 30),
    "week": Period("week", "last week, by hour", timedelta(days=7), timedelta(hours=1), "%d %b", 120),
}


@dataclass(frozen=True, slots=True)
class Step:
    """A step of time, with its figures; None if no attempt ended in it."""

    at: datetime
    figures: Figures | None

    @property
    def completed(self) -> int:
        return self.figures.completed if self.figures else 0

    @property
    def failed(self) -> int:
        return self.figures.failed if self.figures else 0

    def wait(self, percent: float) -> float | None:
        """This percentile of the seconds that jobs waited; None if none was claimed."""
        found = self.figures.wait.percentile(percent) if self.figures else None
        return None if found is None else found.total_seconds()


def steps_of(figures: Sequence[Figures], period: Period, now: datetime) -> list[Step]:
    """All steps up to now; those without figures are filled in."""
    by_time = {each.at: each for each in figures}
    last = _EPOCH + (now - _EPOCH) // period.step * period.step
    times = [last - period.step * back for back in range(period.length // period.step)]
    return [Step(at, by_time.get(at)) for at in reversed(times)]


@dataclass(frozen=True, slots=True)
class Mark:
    """A mark of an axis: its place, and its text."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Bar:
    """The attempts of a step: the completed ones, with the failed ones on top."""

    step: Step
    x: float
    width: float
    done_y: float
    done_height: float
    failed_y: float
    failed_height: float


@dataclass(frozen=True, slots=True)
class Frame:
    """The axes of a chart."""

    x_marks: Sequence[Mark]
    y_marks: Sequence[Mark]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    bottom: int = HEIGHT - _BOTTOM


@dataclass(frozen=True, slots=True)
class Throughput:
    frame: Frame
    bars: Sequence[Bar]


@dataclass(frozen=True, slots=True)
class Waits:
    """Lines of the median and the 95th percentile: the points of SVG polylines. A step without figures ends a line."""

    frame: Frame
    median: Sequence[str]
    p95: Sequence[str]


def throughput(steps: Sequence[Step], period: Period) -> Throughput:
    most = nice(max((step.completed + step.failed for step in steps), default=0))
    slot = (WIDTH - _LEFT - _RIGHT) / len(steps)
    bars = []
    for nth, step in enumerate(steps):
        done, failed = (_height(value, most) for value in (step.completed, step.failed))
        bottom = float(HEIGHT - _BOTTOM)
        bars.append(Bar(
            step=step, x=_round(_LEFT + nth * slot + slot * 0.1), width=_round(slot * 0.8),
            done_y=_round(bottom - done), done_height=_round(done),
            failed_y=_round(bottom - done - failed), failed_height=_round(failed),
        ))  # fmt: skip
    return Throughput(_frame(steps, period, most, _amount), bars)


def waits(steps: Sequence[Step], period: Period) -> Waits:
    found = [value for step in steps if (value := step.wait(95)) is not None]
    most = nice(max(found, default=0), least=0.001)
    frame = _frame(steps, period, most, _seconds)
    return Waits(frame, _lines(steps, 50, most), _lines(steps, 95, most))


def spark(values: Sequence[float]) -> str:
    """The points of a small line, 100 wide and 20 high."""
    most = max(values, default=0) or 1
    last = max(len(values) - 1, 1)
    return " ".join(f"{_round(nth * 100 / last)},{_round(19 - 18 * value / most)}" for nth, value in enumerate(values))


def nice(value: float, least: float = 1) -> float:
    """A round number that is not below the value: 1, 2 or 5 times a power of ten."""
    if value <= least:
        return least
    power = 10.0 ** math.floor(math.log10(value))
    return next(times * power for times in (1, 2, 5, 10) if times * power >= value * (1 - 1e-9))


def _lines(steps: Sequence[Step], percent: float, most: float) -> list[str]:
    slot = (WIDTH - _LEFT - _RIGHT) / len(steps)
    lines: list[list[str]] = [[]]
    for nth, step in enumerate(steps):
        value = step.wait(percent)
        if value is None:
            lines.append([])
            continue
        x, y = _LEFT + (nth + 0.5) * slot, HEIGHT - _BOTTOM - _height(value, most)
        lines[-1].append(f"{_round(x)},{_round(y)}")
    # a single point is drawn as a short line
    return [" ".join(line if len(line) > 1 else [line[0], _moved(line[0])]) for line in lines if line]


def _moved(point: str) -> str:
    x, y = point.split(",")
    return f"{float(x) + 2:g},{y}"


def _frame(steps: Sequence[Step], period: Period, most: float, text: Callable[[float], str]) -> Frame:
    slot = (WIDTH - _LEFT - _RIGHT) / len(steps)
    every = math.ceil(len(steps) / _MOST_X_MARKS)
    x_marks = [
        Mark(_round(_LEFT + (nth + 0.5) * slot), format(step.at, period.label))
        for nth, step in enumerate(steps)
        if nth % every == every // 2
    ]
    y_marks = [Mark(_round(HEIGHT - _BOTTOM - _height(value, most)), text(value)) for value in (0, most / 2, most)]
    return Frame(x_marks, y_marks)


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def _seconds(value: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if value >= 2 * size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} s" if value >= 1 or value == 0 else f"{value * 1000:.3g} ms"


def _height(value: float, most: float) -> float:
    return (HEIGHT - _BOTTOM - _TOP) * min(value / most, 1.0)


def _round(value: float) -> float:
    return round(value, 1)
