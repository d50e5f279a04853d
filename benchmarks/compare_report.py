"""What `benchmarks.compare` has found: the table, the JSON and the charts."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import psycopg

from benchmarks.chart import bars
from benchmarks.contenders import Contender

ROWS = {
    "noop": "drain, no-op handler, jobs/s",
    "effect": "drain, the handler inserts one row, jobs/s",
    "p50": "pickup on an idle system, median, ms",
    "p99": "pickup on an idle system, 99th percentile, ms",
    "one": "enqueue, one per transaction, jobs/s",
    "ids": "enqueue in bulk, with ids, jobs/s",
    "no ids": "enqueue in bulk, without ids, jobs/s",
    "memory": "memory of the worker while it drains (no-op), MB",
}
SMALL = ("p50", "p99", "memory")  # where less is better
CHARTS = {
    "noop": "Drain, no-op handler",
    "effect": "Drain, the handler inserts one row",
    "p50": "From before the enqueue to the start of the handler, median",
}
_MINE = "pgjobs"
_DRAINS = ("noop", "effect")
#: The columns of the table of ratios: the head in two lines, the row, and our way.
_COLUMNS = (
    ("no-op", "one by one", "noop", ""),
    ("no-op", "batches", "noop", "batch"),
    ("inserts", "one by one", "effect", ""),
    ("inserts", "batches", "effect", "batch"),
    ("pickup", "p50", "p50", ""),
    ("pickup", "p99", "p99", ""),
    ("enqueue", "one", "one", ""),
    ("bulk", "with ids", "ids", ""),
    ("bulk", "without", "no ids", ""),
)

Key = tuple[str, str]  # contender, way


@dataclass
class Figures:
    """All that was measured."""

    rows: Mapping[str, str] = field(default_factory=lambda: ROWS)
    values: dict[str, dict[Key, list[float]]] = field(default_factory=lambda: {row: {} for row in ROWS})
    reasons: dict[str, dict[Key, str]] = field(default_factory=lambda: {row: {} for row in ROWS})
    versions: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    machine: dict[str, str] = field(default_factory=dict)
    atomic: set[Key] = field(default_factory=set)  # whose effects commit together with the finish of their jobs

    def add(self, row: str, name: str, way: str, value: float) -> None:
        self.values[row].setdefault((name, way), []).append(value)

    def refuse(self, rows: Sequence[str], name: str, way: str, reason: str) -> None:
        for row in rows:
            self.values[row].pop((name, way), None)
            self.reasons[row][name, way] = reason

    def refused(self, row: str, name: str, way: str) -> bool:
        return (name, way) in self.reasons[row]

    def medians(self, row: str) -> list[tuple[Key, float]]:
        """The best first."""
        found = [(key, median(values)) for key, values in self.values[row].items()]
        return sorted(found, key=lambda pair: pair[1], reverse=row not in SMALL)

    def describe(self, dsn: str, settings: Mapping[str, str]) -> None:
        names = ("server_version", "fsync", "synchronous_commit", "full_page_writes", *settings)
        with psycopg.connect(dsn) as conn:
            shown = {name: conn.execute("SELECT current_setting(%s)", [name]).fetchall()[0][0] for name in names}
        self.machine = {
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "Postgres": shown.pop("server_version"),
            **shown,
            "Python": platform.python_version(),
            "CPUs, shared with the server": str(os.cpu_count()),
        }

    def configuration(self, contenders: Mapping[str, Contender], jobs: int | None) -> str:
        """What the figures depend on; `jobs` are those of every run, if they are the same for all."""
        lines = [", ".join(f"{name} {value}" for name, value in self.machine.items()), ""]
        for name, contender in contenders.items():
            lines.append(f"{name} {self.versions[name]}")
            for way, drain in contender.drains.items():
                lines.append(f"    {way or 'drain'}: {json.dumps(drain.options)}, {jobs or drain.jobs:,} jobs")
            lines.append(f"    pickup: {json.dumps({**contender.pickup, **(contender.setup_pickup or {})})}")
            for kind, bulk in contender.bulk.items():
                lines.append(f"    bulk, {kind}: {json.dumps(bulk.options)}, {jobs or bulk.jobs:,} jobs")
        return "\n".join([*lines, *(f"{name}: not measured, {reason}" for name, reason in self.absent.items())])

    def __str__(self) -> str:
        return "\n".join([*self._tables(), _EXPLAINED, *self._ratios()])

    def _tables(self) -> list[str]:
        lines = [f"{'':<44}{'median':>9}{'min-max':>18}{'pgjobs /':>10}{'batch /':>10}"]
        for row, title in ROWS.items():
            found = self.medians(row)
            if not found and not self.reasons[row]:
                continue
            lines += ["", title]
            mine = [dict(found).get((_MINE, way)) for way in ("", "batch")]
            for key, value in found:
                low, high = min(self.values[row][key]), max(self.values[row][key])
                ratios = "".join(f"{own / value:>10.2f}" if own else f"{'-':>10}" for own in mine)
                spread = f"{shown(low)}-{shown(high)}"
                lines.append(f"  {label(key):<42}{shown(value):>9}{spread:>18}{ratios}")
            lines += [f"  {label(key):<42}  refused: {reason}" for key, reason in self.reasons[row].items()]
            lines += [f"  {name:<42}  not measured: {reason}" for name, reason in self.absent.items()]
        return lines

    def _ratios(self) -> list[str]:
        """Ours over all others', in one table: a line for each way to drain."""
        found = {row: dict(self.medians(row)) for row in ROWS}
        names = dict.fromkeys(name for row in ROWS for name, _ in found[row] if name != _MINE)
        ways = dict.fromkeys(key for row in _DRAINS for key in found[row] if key[0] != _MINE)
        keys = [*ways, *((name, "") for name in names if name not in {name for name, _ in ways})]
        first = {name: key for name, key in reversed([(key[0], key) for key in keys])}

        def cell(key: Key, row: str, way: str) -> str:
            # what has no ways stands in the first line of each
            same = (key[0], "") if row not in _DRAINS and first[key[0]] == key else key
            own, theirs = found[row].get((_MINE, way)), found[row].get(same)
            return f"{own / theirs:>12.2f}" if own and theirs else f"{'':>12}"

        if not keys:
            return []
        heads = [f"{'':<36}" + "".join(f"{column[line]:>12}" for column in _COLUMNS) for line in (0, 1)]
        lines = [
            f"{label(key) + self._mark(key):<36}" + "".join(cell(key, row, way) for *_, row, way in _COLUMNS)
            for key in keys
        ]
        return ["", "pgjobs over each", *heads, *(line.rstrip() for line in lines), _RATIOS_EXPLAINED]

    def _mark(self, key: Key) -> str:
        return " *" if key in self.atomic else ""

    def as_json(self) -> dict[str, Any]:
        def entry(row: str, key: Key) -> dict[str, Any]:
            return {"values": [float(f"{value:.4g}") for value in self.values[row][key]]}

        return {
            "settings": self.machine,
            "versions": self.versions,
            "absent": self.absent,
            "rows": {
                ROWS[row]: {label(key): {"median": float(f"{value:.4g}"), **entry(row, key)} for key, value in found}
                | {label(key): {"refused": reason} for key, reason in self.reasons[row].items()}
                for row in ROWS
                if (found := self.medians(row)) or self.reasons[row]
            },
        }


_EXPLAINED = """
pgjobs /: the figure of pgjobs, one job per transaction, over this one; batch /: that of its batch mode. Each figure is
the median of its runs, after every one of which each job was found finished once, and each effect written once."""

_RATIOS_EXPLAINED = """
* effects and finishes are one transaction there, as in pgjobs. Of pickup, less than 1 is faster; of all else, more."""


def label(key: Key) -> str:
    return ", ".join(filter(None, key))


def shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def write(figures: Figures, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "peers.json").write_text(json.dumps(figures.as_json(), indent=1) + "\n")
    for row, title in CHARTS.items():
        if found := figures.medians(row):
            unit = ROWS[row].rpartition(", ")[2]
            rows = [(label(key), value, key[0] == _MINE) for key, value in found]
            bars(directory / f"peers-{row}.svg", title, unit, rows)
