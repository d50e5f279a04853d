"""How fast the present code is over a baseline: another version, measured in turns in the same run.

    make bench BASELINE=v0.1.0 ARGS="--rounds 9"        # a git revision, or a wheel

Every figure is measured by a process of its own, which has the pgjobs of its side on the path and works in that side's
schema. Each round goes through all rows; the sides change their order from round to round.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import lcm
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from benchmarks.baseline import Process, Side, copy_baseline, copy_present, present
from benchmarks.floors import CHAIN, ENQUEUE, Pgbench
from benchmarks.ground import Table, WrongResult, configuration, database, progress
from benchmarks.quiet import Quiet, postmaster, tree_time
from benchmarks.ratios import Line, report, verdict
from benchmarks.report import percentile

Floor = Callable[[str, Table], Callable[[], float]]  # given a dsn and the table of the present side: measures it once


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


@dataclass(frozen=True)
class Row:
    """What is measured over the baseline; `options` are those of the work."""

    name: str
    part: str  # of `--parts`
    act: Act
    jobs: int
    options: Mapping[str, Any] = field(default_factory=dict)
    floor: Floor | None = None


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
DRAIN = Act("drain", Table.load, _drained, _RATE)
INSERT = Act("drain", Table.load, _inserted, _RATE)
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

    def chain(clients: int, *, effect: bool = False) -> Floor:
        return lambda dsn, table: Pgbench(dsn, table, clients, "prepared", CHAIN, effect=effect)

    def insert(clients: int) -> Floor:
        return lambda dsn, table: Pgbench(dsn, table, clients, "prepared", ENQUEUE)

    inserting, batches = {"threads": 4, "handling": "insert"}, {"threads": 4, "batch_size": 100}
    return [
        *(
            Row(f"drain, {_threads(n)}", "drain", DRAIN, sized(0.5 if n == 1 else 1), {"threads": n}, chain(n))
            for n in threads
        ),
        Row("drain, handler inserts, 4 threads", "insert", INSERT, sized(0.75), inserting, chain(4, effect=True)),
        Row("batches of 100, 4 threads", "batch", DRAIN, sized(10), batches),
        Row("batches of 100, handler inserts, 4 threads", "insert", INSERT, sized(2), inserting | batches),
        Row("pickup", "waits", PICKUP, min(200, jobs)),
        *(
            Row(f"enqueue one, {_threads(n)}", "enqueue", ENQUEUE_ONE, sized(0.5), {"threads": n}, insert(n))
            for n in (1, 4)
        ),
        Row("bulk with ids", "enqueue", BULK, sized(12.5), {"returning": True}),
        Row("bulk without ids", "enqueue", BULK, sized(12.5), {"returning": False}),
    ]


def _threads(number: int) -> str:
    return "1 thread" if number == 1 else f"{number} threads"


# --- measure them


class Comparison:
    """Both sides on one server, and the figures of each row so far."""

    def __init__(self, dsn: str, tables: Mapping[str, Table], sides: Mapping[str, Side], server: int | None) -> None:
        self._dsn, self._tables, self._sides, self._server = dsn, tables, sides, server
        self._lines: dict[tuple[str, str], Line] = {}

    @property
    def lines(self) -> list[Line]:
        return list(self._lines.values())

    def measure(self, row: Row, *, backwards: bool) -> None:
        """One round of a row: the floor and both sides, one after the other."""
        arms = ["floor"] * (row.floor is not None) + ["now", "baseline"]
        for arm in reversed(arms) if backwards else arms:
            progress(f"{row.name}: {arm}")
            if arm == "floor":
                self._floor(row)
            else:
                self._side(row, arm)

    def _floor(self, row: Row) -> None:
        assert row.floor is not None
        table = self._tables["now"].sized(row.jobs)
        figure = row.floor(self._dsn, table)()
        table.empty()
        self._line(row, "", "jobs/s").floor.append(figure)

    def _side(self, row: Row, arm: str) -> None:
        table = self._tables[arm].sized(row.jobs)
        with Process(self._sides[arm], row.act.work, row.jobs, row.options) as process:
            row.act.prepare(table)
            before = self._server_time()
            said = process.run()
            server = self._server_time() - before
        figures = row.act.figures(table, said)
        table.empty()  # what autovacuum finds to do here would be a part of the other side's run
        for figure, unit in row.act.units.items():
            self._add(row, arm, figure, unit, figures[figure])
        if row.act.processor:
            self._add(row, arm, ": client", "us/job", said["processor"] * 1e6 / row.jobs)
            if self._server is not None:
                self._add(row, arm, ": server", "us/job", server * 1e6 / row.jobs)

    def _server_time(self) -> float:
        return 0.0 if self._server is None else tree_time(self._server)

    def _add(self, row: Row, arm: str, figure: str, unit: str, value: float) -> None:
        line = self._line(row, figure, unit)
        (line.now if arm == "now" else line.baseline).append(value)

    def _line(self, row: Row, figure: str, unit: str) -> Line:
        fresh = Line(row.name + figure, unit, judged=unit != "us/job")
        return self._lines.setdefault((row.name, figure), fresh)


@contextmanager
def _sides(dsn: str, schema: str, folder: Path, baseline: str) -> Iterator[tuple[dict[str, Table], dict[str, Side]]]:
    """Both versions with their tables, each in a schema of its own."""
    names = {"now": present(), "baseline": baseline}
    schemas = {"now": f"{schema}_now", "baseline": f"{schema}_old"}  # names of one length
    sides = {arm: Side(names[arm], (folder / arm, folder / "bench"), dsn, schemas[arm]) for arm in names}
    with psycopg.connect(dsn, autocommit=True) as conn:
        try:
            for side in sides.values():
                side.migrate()
            yield {arm: Table(conn, schemas[arm], 0) for arm in sides}, sides
        finally:
            for name in schemas.values():
                conn.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(name)))


def compare(baseline: str, asked: Sequence[Row], rounds: int, results: Path) -> None:
    """Measure, print and write it all."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory).resolve()
        name = copy_baseline(baseline, folder)
        copy_present(folder)
        with database() as (dsn, schema), _sides(dsn, schema, folder, name) as (tables, sides):
            conn = tables["now"].conn
            what = f"{configuration(conn)}\n{sides['now'].name} over {name}, in turns, {rounds} rounds"
            print(what, flush=True)
            server = postmaster(conn)
            comparison, quiet = Comparison(dsn, tables, sides, server), Quiet(load, server)
            quiet.look()
            began = time.monotonic()
            for round in range(rounds):
                for row in asked:
                    comparison.measure(row, backwards=round % 2 == 1)
                quiet.look()
                _tell(round + 1, rounds, time.monotonic() - began)
    lines = sorted(comparison.lines, key=lambda line: not line.judged)
    warnings = quiet.warnings()
    if wide := [line.name for line in lines if line.wide]:
        warnings.append(f"the rounds differ too much to tell a few percent: {'; '.join(wide)}")
    sentence = verdict(lines, baseline, quiet=not warnings)
    print("", report(lines), "", *(f"warning: {warning}" for warning in warnings), sentence, sep="\n", flush=True)
    written = {"configuration": what.splitlines(), "warnings": warnings, "verdict": sentence}
    results.mkdir(exist_ok=True)
    (results / "baseline.json").write_text(
        json.dumps({**written, "rows": [line.as_json() for line in lines]}, indent=1) + "\n"
    )


def _tell(done: int, rounds: int, seconds: float) -> None:
    progress("")
    left = seconds / done * (rounds - done)
    print(f"round {done} of {rounds} is over after {seconds:.0f} s, {left:.0f} s to go", flush=True)
