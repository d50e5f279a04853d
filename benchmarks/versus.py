"""The rows of `make bench`: how fast the present code is over two floors and, if one is given, over a baseline: another
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import lcm
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from benchmarks.baseline import Process, Side, copy_baseline, copy_present, present
from benchmarks.floors import (
    CHAIN,
    ENQUEUE,
    FIXED_DRAIN,
    FIXED_ENQUEUE,
    FIXED_INSERT,
    FixedFloor,
    Pgbench,
    fixed_floor,
)
from benchmarks.ground import Table, WrongResult, configuration, database, progress
from benchmarks.quiet import Quiet, postmaster, tree_time
from benchmarks.ratios import PER_JOB, Line, report, verdict
from benchmarks.report import percentile
from benchmarks.sources import Source

_TURNS = 20  # of each thread's loop, for which calls are counted


@dataclass(frozen=True)
class Act:
    """A kind of work, and how it is measured.

    `work` is its name in workload.WORK. `prepare` is called before a run. `figures` takes what the run says, checks the
    rows, and returns the figures by name; `units` says the unit of each.
    """

    work: str
    prepare: Callable[[Table], None]
    figures: Callable[[Table, Mapping[str, Any]], dict[str, float]]
    units: Mapping[str, str]
    processor: bool = True  # whether the report shows the processor time of a job too
    calls: bool = False  # whether it shows the calls of a job too


@dataclass(frozen=True)
class Floors:
    """What a row is measured over, by pgbench with as many clients as the row has threads."""

    clients: int
    fixed: Path  # the script of the fixed floor
    jobs: int
    chain: Path | None = None  # that of the present statements; batches have none

    def measure(self, dsn: str, table: Table, fixed: FixedFloor) -> dict[str, float]:
        """Both once, with the table of the present side."""
        found = {"fixed": fixed(self.fixed, self.clients, self.jobs)}
        if self.chain is not None:
            effect = self.fixed == FIXED_INSERT
            found["chain"] = Pgbench(dsn, table.sized(self.jobs), self.clients, self.chain, effect=effect)()
            table.empty()
        return found


@dataclass(frozen=True)
class Row:
    """What is measured; `options` are those of the work."""

    name: str
    part: str  # of `--parts`
    act: Act
    jobs: int
    options: Mapping[str, Any] = field(default_factory=dict)
    floors: Floors | None = None


# --- kinds of work


def _emptied(table: Table) -> None:
    table.empty()
    table.settle()


def _drained(table: Table, said: Mapping[str, Any]) -> dict[str, float]:
    if said["twice"] or said["started"] != table.jobs:
        raise WrongResult(f"{said['started']} starts for {table.jobs} jobs, more than one for {said['twice']}")
    return {"": table.rate()}


def _inserted(table: Table, said: Mapping[str, Any]) -> dict[str, float]:
    table.check_effects(table.jobs)
    return _drained(table, said)


def _waited(table: Table, said: Mapping[str, Any]) -> dict[str, float]:
    table.check_probes(table.jobs, len(said["waits"]))
    return {f" p{percent}": percentile(said["waits"], percent) for percent in (50, 99)}


def _enqueued(table: Table, said: Mapping[str, Any]) -> dict[str, float]:
    return {"": table.insert_rate()}


def _in_bulk(table: Table, said: Mapping[str, Any]) -> dict[str, float]:
    table.check_mails(said["made"])
    return {"": table.jobs / said["seconds"]}


_RATE = {"": "jobs/s"}
DRAIN = Act("drain", Table.load, _drained, _RATE, calls=True)
INSERT = Act("drain", Table.load, _inserted, _RATE, calls=True)
PICKUP = Act("pickup", _emptied, _waited, {" p50": "ms", " p99": "ms"}, processor=False)
ENQUEUE_ONE = Act("enqueue", _emptied, _enqueued, _RATE)
BULK = Act("bulk", _emptied, _in_bulk, _RATE)


# --- the rows


def rows(jobs: int, threads: Sequence[int]) -> list[Row]:
    """All rows of the report. `jobs` is the size of a drain of one job per transaction.

    For another kind of work, add a function to workload.WORK and an Act here.
    """
    each = lcm(4, *threads)  # pgbench gives every client the same number

    def sized(factor: float) -> int:
        return max(1, round(jobs * factor / each)) * each

    def drain(name: str, part: str, factor: float, threads: int, **options: Any) -> Row:
        inserts, single = options.get("handling") == "insert", "batch_size" not in options
        floors = Floors(
            threads, FIXED_INSERT if inserts else FIXED_DRAIN, sized(min(factor, 1)), CHAIN if single else None
        )
        return Row(name, part, INSERT if inserts else DRAIN, sized(factor), {"threads": threads, **options}, floors)

    def enqueue(name: str, threads: int, source: Source = "own pool") -> Row:
        floors = Floors(threads, FIXED_ENQUEUE, sized(0.5), ENQUEUE)
        return Row(name, "enqueue", ENQUEUE_ONE, sized(0.5), {"threads": threads, "source": source}, floors)

    return [
        *(drain(f"drain, {_threads(n)}", "drain", 0.5 if n == 1 else 1, n) for n in threads),
        drain("drain, handler inserts, 4 threads", "insert", 0.75, 4, handling="insert"),
        drain("batches of 100, 4 threads", "batch", 10, 4, batch_size=100),
        drain("batches of 100, handler inserts, 4 threads", "insert", 2, 4, handling="insert", batch_size=100),
        *_of_sources(drain),
        Row("pickup", "waits", PICKUP, min(200, jobs)),
        enqueue("enqueue one, 1 thread", 1),
        enqueue("enqueue one, 4 threads", 4),
        enqueue("enqueue one, user's pool, 4 threads", 4, "user's pool"),
        Row("bulk with ids", "bulk", BULK, sized(12.5), {"returning": True}),
        Row("bulk without ids", "bulk", BULK, sized(12.5), {"returning": False}),
    ]


def _of_sources(drain: Callable[..., Row]) -> Iterator[Row]:
    """Drains with connections of the application's; a framework's source has no batches."""
    sources: tuple[Source, ...] = ("user's pool", "SQLAlchemy", "Django")
    for source in sources:
        yield drain(f"drain, {source}, 4 threads", "sources", 0.5, 4, source=source)
        yield drain(f"drain, {source}, handler inserts, 4 threads", "sources", 0.5, 4, handling="insert", source=source)
    batches: dict[str, Any] = {"source": "user's pool", "batch_size": 100}
    yield drain("batches of 100, user's pool, 4 threads", "sources", 5, 4, **batches)
    inserting = "batches of 100, user's pool, handler inserts, 4 threads"
    yield drain(inserting, "sources", 1, 4, handling="insert", **batches)


def _threads(number: int) -> str:
    return "1 thread" if number == 1 else f"{number} threads"


# --- measure them


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
        if not row.act.calls:
            return
        jobs = _TURNS * row.options["threads"] * row.options.get("batch_size", 5)
        for arm, side in self._sides.items():
            progress(f"{row.name}: calls of {arm}")
            table = self._tables[arm].sized(jobs)
            with Process(side, "calls", jobs, row.options) as process:
                row.act.prepare(table)
                for unit, figure in process.run().items():
                    if unit in PER_JOB:
                        self._add(row.name, unit, arm, figure)
            table.empty()

    def _measure_floors(self, row: Row) -> None:
        assert row.floors is not None
        line = self._line(row.name, row.act.units[""])
        for floor, figure in row.floors.measure(self._dsn, self._tables["now"], self._fixed).items():
            line.floors.setdefault(floor, []).append(figure)

    def _measure_side(self, row: Row, arm: str) -> None:
        table = self._tables[arm].sized(row.jobs)
        with Process(self._sides[arm], row.act.work, row.jobs, row.options) as process:
            row.act.prepare(table)
            before = self._server_time()
            said = process.run()
            server = self._server_time() - before
        figures = row.act.figures(table, said)
        table.empty()  # what autovacuum finds to do here would be a part of the other side's run
        for figure, unit in row.act.units.items():
            self._add(row.name + figure, unit, arm, figures[figure])
        if row.act.processor:
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
