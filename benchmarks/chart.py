"""Charts as SVG, which a README shows: bars beside their labels, and lines over an axis. For light and for dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

_STYLE = """
  text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #57606a }
  .title { font-weight: 600; fill: #24292f }
  .mine { font-weight: 600; fill: #24292f }
  .bar { fill: #afb8c1 }
  .bar.high { fill: #1f75cb }
  .grid { stroke: #d0d7de; stroke-width: 1 }
  .line { fill: none; stroke-width: 2 }
  @media (prefers-color-scheme: dark) {
    text { fill: #9198a1 }
    .title, .mine { fill: #f0f6fc }
    .bar { fill: #57606a }
    .bar.high { fill: #4493f8 }
    .grid { stroke: #3d444d }
  }"""
_COLOURS = ("#1f75cb", "#d4722a", "#2e9e62", "#b3568f", "#7f7f7f", "#8a6fd1", "#b8962e", "#3aa0a8")
_WIDTH = 760
_LETTER = 7.2  # the width of one, about: SVG cannot measure text
_SMALL = 13


def bars(path: Path, title: str, unit: str, rows: Iterable[tuple[str, float, bool]], *, log: bool = False) -> None:
    """One horizontal bar for each (label, value, whether it is highlighted), in the order given.

    With `log` the lengths are logarithms, for values that are powers of ten apart; the numbers stand beside the bars.
    """
    given = list(rows)
    left = 20 + _LETTER * max((len(label) for label, _, _ in given), default=0)
    room = _WIDTH - left - 20 - _LETTER * max((len(_number(value)) for _, value, _ in given), default=0)
    scale = _scale([value for _, value, _ in given], log, from_zero=True)
    parts = [_text(10, 22, f"{title}, {unit}" + (" (log scale)" if log else ""), "title")]
    for number, (label, value, highlight) in enumerate(given):
        top = 40 + 26 * number
        high, mine = (" high", "mine") if highlight else ("", "")
        length = max(scale(value) * room, 1)
        parts += [
            _text(left - 8, top + 14, label, mine, anchor="end"),
            f'<rect class="bar{high}" x="{left:.1f}" y="{top}" width="{length:.1f}" height="19" rx="2"/>',
            _text(left + length + 6, top + 14, _number(value), mine),
        ]
    _write(path, 48 + 26 * len(given), title, parts)


def lines(
    path: Path,
    title: str,
    x_label: str,
    y_label: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    log_x: bool = False,
    log_y: bool = False,
) -> None:
    """One line for each named series of (x, y), its name at its end. The y axis begins at 0 unless `log_y`."""
    left, top, height, right = 70, 62, 260, _WIDTH - 30 - _LETTER * max((len(name) for name in series), default=0)
    xs, ys = ([point[axis] for points in series.values() for point in points] for axis in (0, 1))
    x_ticks, y_ticks = _ticks(xs, log_x, from_zero=False), _ticks(ys, log_y, from_zero=True)
    x_scale, y_scale = _scale([*xs, *x_ticks], log_x), _scale([*ys, *y_ticks], log_y)

    def x_at(x: float) -> float:
        return left + x_scale(x) * (right - left)

    def y_at(y: float) -> float:
        return top + height - y_scale(y) * height

    parts = [_text(10, 22, title, "title"), _text(10, 46, y_label)]
    for y in y_ticks:
        parts += [
            f'<path class="grid" d="M{left} {y_at(y):.1f}H{right:.1f}"/>',
            _text(left - 8, y_at(y) + 4, _number(y), anchor="end"),
        ]
    parts += [_text(x_at(x), top + height + 20, _number(x), anchor="middle") for x in x_ticks]
    parts.append(_text((left + right) / 2, top + height + 42, x_label, anchor="middle"))
    names: list[tuple[float, str, str]] = []
    for number, (name, points) in enumerate(series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        places = [(x_at(x), y_at(y)) for x, y in sorted(points)]
        steps = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        parts.append(f'<path class="line" stroke="{colour}" d="M{steps}"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        names.append((places[-1][1] + 4, name, colour))
    lowest = -math.inf
    for y, name, colour in sorted(names):
        lowest = max(y, lowest + _SMALL + 2)  # names of lines that end together stand below each other
        parts.append(f'<text x="{right + 8:.1f}" y="{lowest:.1f}" style="fill: {colour}">{escape(name)}</text>')
    _write(path, top + height + 56, title, parts)


def _scale(values: Sequence[float], log: bool, *, from_zero: bool = False) -> Callable[[float], float]:
    """From a value to its place between 0 and 1."""
    positive = [value for value in values if value > 0] or [1.0]
    if log:
        # the smallest bar must be seen to have a length
        low, high = math.log10(min(positive) / (2 if from_zero else 1)), math.log10(max(positive))
        return lambda value: (math.log10(value) - low) / (high - low or 1) if value > 0 else 0.0
    low, high = 0.0 if from_zero else min(values, default=0.0), max(values, default=1.0)
    return lambda value: (value - low) / (high - low or 1)


def _ticks(values: Sequence[float], log: bool, *, from_zero: bool) -> list[float]:
    """Some round numbers that the values lie between."""
    if log:
        positive = [value for value in values if value > 0] or [1.0]
        first, last = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
        return [float(10**power) for power in range(first, last + 1)]
    low, high = 0.0 if from_zero else min(values, default=0.0), max(values, default=1.0)
    rough = (high - low) / 5 or 1
    unit = 10 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [number * step for number in range(first, last + 1)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def _text(x: float, y: float, text: str, kind: str = "", *, anchor: str = "start") -> str:
    kind = f' class="{kind}"' if kind else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _write(path: Path, height: int, title: str, parts: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" role="img">'
    path.write_text(
        "\n".join([head, f"<title>{escape(title)}</title>", f"<style>{_STYLE}\n</style>", *parts, "</svg>\n"])
    )
