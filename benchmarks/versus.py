"""How fast the present code is over two floors and, if one is given, over a baseline: another
version of pgjobs, measured in turns in the same run.

    make bench BASELINE=v0.1.0 ARGS="--rounds 9"        # a git revision, or a wheel

Every figure is measured by a process of its own, which has the pgjobs of its side on the path and works in that side's
schema. Each round goes through all rows; the sides change their order from round to round. The calls of one job are
counted once, in a short run apart.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from benchmarks.baseline import Process, Side, copy_baseline, copy_present, present
from benchmarks.floors import FixedFloor, fixed_floor
from benchmarks.ground import Table, configuration, database, progress
from benchmarks.quiet import Quiet, postmaster, tree_time
from benchmarks.ratios import PER_JOB, Line, report, verdict
from benchmarks.rows import Row

_TURNS = 20  # of each thread's loop, for which calls are counted


class Comparison:
    """The sides on one server, "now" and perhaps "baseline", and the figures of each row so far."""

    def __init__(
        self, dsn: str, tables: Mapping[str, Table], sides: Mapping[str, Side], fixed: FixedFloor, server: int | None
    ) -> None:
        self._dsn, self._tables, self._sides, self._fixed, self._server = dsn, tables, sides, fixed, server
        self._lines: dict[tuple[str, str], Line] = {}

    @property
    def lines(self) -> list[Line]:
        return sorted(self._lines.values(), key=lambda line: not line.judged)

    def measure(self, row: Row, *, backwards: bool) -> None:
        """One round of a row: the floors and each side, one after the other."""
        arms = ["floors"] * (row.floors is not None) + list(self._sides)
        for arm in reversed(arms) if backwards else arms:
            progress(f"{row.name}: {arm}")
            if arm == "floors":
                self._measure_floors(row)
            else:
                self._measure_side(row, arm)

    def count(self, row: Row) -> None:
        """The calls for one job of each side."""
        if not row.kind.calls:
            return
        jobs = _TURNS * row.options["threads"] * row.options.get("batch_size", 5)
        for arm, side in self._sides.items():
            progress(f"{row.name}: calls of {arm}")
            table = self._tables[arm].sized(jobs)
            with Process(side, "calls", jobs, row.options) as process:
                row.kind.prepare(table)
                for unit, figure in process.run().items():
                    if unit in PER_JOB:
                        self._add(row.name, unit, arm, figure)
            table.empty()

    def _measure_floors(self, row: Row) -> None:
        assert row.floors is not None
        line = self._line(row.name, row.kind.units[""])
        for floor, figure in row.floors.measure(self._dsn, self._tables["now"], self._fixed).items():
            line.floors.setdefault(floor, []).append(figure)

    def _measure_side(self, row: Row, arm: str) -> None:
        table = self._tables[arm].sized(row.jobs)
        with Process(self._sides[arm], row.kind.work, row.jobs, row.options) as process:
            row.kind.prepare(table)
            before = self._server_time()
            said = process.run()
            server = self._server_time() - before
        figures = row.kind.figures(table, said)
        table.empty()  # what autovacuum finds to do here would be a part of the other side's run
        for figure, unit in row.kind.units.items():
            self._add(row.name + figure, unit, arm, figures[figure])
        if row.kind.processor:
            self._add(row.name, "client us", arm, said["processor"] * 1e6 / row.jobs)
            if self._server is not None:
                self._add(row.name, "server us", arm, server * 1e6 / row.jobs)

    def _server_time(self) -> float:
        return 0.0 if self._server is None else tree_time(self._server)

    def _add(self, name: str, unit: str, arm: str, value: float) -> None:
        line = self._line(name, unit)
        (line.now if arm == "now" else line.baseline).append(value)

    def _line(self, name: str, unit: str) -> Line:
        return self._lines.setdefault((name, unit), Line(name, unit))


@contextmanager
def _sides(
    conn: psycopg.Connection[Any], dsn: str, schema: str, folder: Path, names: Mapping[str, str]
) -> Iterator[tuple[dict[str, Table], dict[str, Side]]]:
    """The versions, "now" and perhaps "baseline", with their tables, each in a schema of its own."""
    schemas = {arm: f"{schema}_{'now' if arm == 'now' else 'old'}" for arm in names}  # names of one length
    sides = {arm: Side(name, (folder / arm, folder / "bench"), dsn, schemas[arm]) for arm, name in names.items()}
    try:
        for side in sides.values():
            side.migrate()
        yield {arm: Table(conn, schemas[arm], 0) for arm in sides}, sides
    finally:
        for name in schemas.values():
            conn.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(name)))


@dataclass(frozen=True)
class Measured:
    """All rows of a run."""

    lines: list[Line]
    warnings: list[str]
    sentence: str | None  # that judges it over the baseline

    def __str__(self) -> str:
        ends = [*(f"warning: {warning}" for warning in self.warnings), *([self.sentence] if self.sentence else [])]
        return "\n".join([report(self.lines), *([""] if ends else []), *ends])

    def as_json(self) -> dict[str, Any]:
        judged = {"verdict": self.sentence} if self.sentence else {}
        return {"warnings": self.warnings, **judged, "rows": [line.as_json() for line in self.lines]}


def measure(dsn: str, schema: str, asked: Sequence[Row], rounds: int, baseline: str | None) -> Measured:
    """Every row over its floors and, if one is given, over the baseline."""
    load = os.getloadavg()[0]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())).resolve()
        names = {"now": present()}
        if baseline is not None:
            names["baseline"] = copy_baseline(baseline, folder)
        copy_present(folder)
        conn = stack.enter_context(psycopg.connect(dsn, autocommit=True))
        print(f"{' over '.join(names.values())}, in turns with the floors, {rounds} rounds", flush=True)
        tables, sides = stack.enter_context(_sides(conn, dsn, schema, folder, names))
        fixed = stack.enter_context(fixed_floor(conn, dsn, f"{schema}_fixed"))
        server = postmaster(conn)
        comparison, quiet = Comparison(dsn, tables, sides, fixed, server), Quiet(load, server)
        for row in asked:
            comparison.count(row)
        quiet.look()
        began = time.monotonic()
        for round in range(rounds):
            for row in asked:
                comparison.measure(row, backwards=round % 2 == 1)
            quiet.look()
            _tell(round + 1, rounds, time.monotonic() - began)
    return _judged(comparison.lines, quiet.warnings(), baseline)


def _judged(lines: list[Line], warnings: list[str], baseline: str | None) -> Measured:
    if baseline is None:
        return Measured(lines, warnings, None)
    if wide := [line.name for line in lines if line.wide]:
        warnings.append(f"the rounds differ too much to tell a few percent: {'; '.join(wide)}")
    return Measured(lines, warnings, verdict(lines, baseline, quiet=not warnings))


def compare(baseline: str, asked: Sequence[Row], rounds: int, results: Path) -> None:
    """Measure, print and write it all."""
    with database() as (dsn, schema):
        with psycopg.connect(dsn) as conn:
            what = configuration(conn)
        print(what, flush=True)
        measured = measure(dsn, schema, asked, rounds, baseline)
    print(f"\n{measured}", flush=True)
    results.mkdir(exist_ok=True)
    written = {"configuration": what.splitlines(), "baseline": baseline, **measured.as_json()}
    (results / "baseline.json").write_text(json.dumps(written, indent=1) + "\n")


def _tell(done: int, rounds: int, seconds: float) -> None:
    progress("")
    left = seconds / done * (rounds - done)
    print(f"round {done} of {rounds} is over after {seconds:.0f} s, {left:.0f} s to go", flush=True)
