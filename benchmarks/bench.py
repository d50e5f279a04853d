"""How fast pgjobs is, as ratios inside one run on one machine: over two floors of pgbench, and over another version.

    python -m benchmarks.bench                       # on an embedded Postgres with fsync on, or on DATABASE_URL
    python -m benchmarks.bench --parts drain enqueue
    python -m benchmarks.bench --baseline v0.1.0     # over another version too: a git revision, or a wheel

First one table of all rates (rows.py): each over the bare statements of pgjobs in one round trip (the claim chain),
and over the fixed floor, which does not move when pgjobs changes; below it what one job takes, in processor time and in
calls. Then a table for each other question. After every run it is counted that each job was done, and done once, and so
for each effect: what went wrong ends the program.

Results also go to benchmarks/results/bench.json, and a chart beside it. Work on a database that is given stays in
schemas of its own, which are dropped at the end.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import enqueuing, latency, memory, telemetry, waking
from benchmarks.chart import bars
from benchmarks.ground import BATCHES, Table, configuration, database, progress, table
from benchmarks.ratios import Line
from benchmarks.report import RESULTS, Question, write_json
from benchmarks.rows import rows
from benchmarks.versus import Measured, compare, measure
from pgjobs import Client
from pgjobs.embedded import EmbeddedPostgres, EmbeddedPostgresError


@dataclass
class Bench:
    """Where it is measured, and how much."""

    dsn: str
    client: Client
    table: Table
    rounds: int
    stack: ExitStack  # holds what has to be there until the end

    def sized(self, factor: float) -> Table:
        """The same table with more jobs or fewer, a multiple of every number of threads."""
        return self.table.sized(max(1, round(self.table.jobs * factor / 24)) * 24)


def waits(bench: Bench) -> list[Question]:
    """How long a job waits on an idle system."""
    probes = min(200, bench.table.jobs)
    pickup = Question("pickup", "Pickup on an idle system, from before the enqueue to the handler", "ms", waits=True)
    pickup.add("pgjobs, one every 20 to 60 ms", partial(latency.pickup, bench.dsn, bench.table, probes))
    scheduled = Question("scheduled", "Start of a scheduled job after its instant", "ms", waits=True)
    scheduled.add("pgjobs, 25 a second", partial(latency.scheduled, bench.dsn, bench.table, probes))
    return [pickup, scheduled]


def bulk(bench: Bench) -> list[Question]:
    """Enqueue many jobs in one transaction."""
    many = Question("enqueue_many", "Enqueue many in one transaction", "jobs/s")
    more = bench.sized(12.5)
    many.add("COPY of ready bytes", enqueuing.bare_copy(bench.client, more))
    for name, returning in (("with ids", True), ("without", False)):
        run = partial(enqueuing.many, bench.client, more, returning=returning)
        many.add(f"enqueue_many {name}", run, over=["COPY of ready bytes"])
    return [many]


def wake(bench: Bench) -> list[Question]:
    """What waking costs clients that enqueue."""
    return [waking.commits(bench.dsn, bench.table.schema, (8, 16), bench.rounds, "this disk")]


def watched(bench: Bench) -> list[Question]:
    """What telemetry costs."""
    return [question for threads in (1, 4) for question in telemetry.questions(bench.dsn, bench.table, threads)]


def process(bench: Bench) -> list[Question]:
    """What a worker process needs."""
    size = Question("memory", "Memory of a worker process with 8 threads, while it drains", "MB at most")
    for name, what in [("one per transaction", "drain"), *([("batches", "batches")] if BATCHES else [])]:
        size.add(name, partial(memory.draining, what, bench.dsn, bench.table.schema, 8, bench.sized(2).jobs))
    return [size]


def idle(bench: Bench) -> list[Question]:
    """An idle process with 200 threads, on a server of its own that counts statements."""
    question = Question("idle", "A process with 200 idle threads", "a second, but for the connections")
    settings = {"shared_preload_libraries": memory.STATEMENTS, "max_connections": "300"}
    try:
        server = bench.stack.enter_context(EmbeddedPostgres(settings=settings))
    except EmbeddedPostgresError as error:
        question.notes.append(f"not measured: {error}")
        return [question]
    with table(server.dsn, "pgjobs", 1):
        pass
    with memory.IdleProcess(server.dsn, "pgjobs", 200) as process:
        for name, figure in process.rates(10.0).items():
            question.tell(name, figure)
    return [question]


#: The parts that are rows, over the floors and perhaps over a baseline (rows.py); the others have a table each.
ROWS = ("drain", "relaxed", "insert", "batch", "sources", "enqueue")
PARTS: dict[str, Callable[[Bench], list[Question]]] = {
    "waits": waits,
    "bulk": bulk,
    "wake": wake,
    "telemetry": watched,
    "process": process,
    "idle": idle,
}


def chart(path: Path, lines: list[Line]) -> None:
    """The rates of one job in each transaction, over the fixed floor, whose bar would be 1 long."""
    ratios = [(line.name, line.over("fixed")) for line in lines if "chain" in line.floors]
    bars(path, "pgjobs over the fixed floor", "ratio", [(name, ratio, True) for name, ratio in ratios if ratio])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=8_000, help="jobs of one run of a drain (default: %(default)s)")
    parser.add_argument("--rounds", type=int, help="runs of each arm (default: 3, with --baseline 5)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 4, 8], help="of the drain; default: 1 4 8")
    every = [*ROWS, *PARTS]
    parser.add_argument("--parts", nargs="+", choices=every, default=every, help="default: all")
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory of the files (default: %(default)s)")
    parser.add_argument("--baseline", help="a git revision or a wheel that each row is measured over, in turns")
    given = parser.parse_args()
    if given.baseline is not None:
        over_baseline(given.baseline, given)
    else:
        over_floors(given)


def over_baseline(baseline: str, given: argparse.Namespace) -> None:
    asked = [row for row in rows(given.jobs, given.threads) if row.part in given.parts]
    if not asked:
        raise SystemExit("none of these parts has a row that is measured over a baseline")
    compare(baseline, asked, given.rounds or 5, given.results)


def over_floors(given: argparse.Namespace) -> None:
    rounds = given.rounds or 3
    questions: list[Question] = []
    with ExitStack() as stack:
        dsn, schema = stack.enter_context(database())
        client, jobs = stack.enter_context(table(dsn, schema, given.jobs))
        what = configuration(jobs.conn) + f"\n{given.jobs:,} jobs a drain, {rounds} rounds"
        print(what, flush=True)
        asked = [row for row in rows(given.jobs, given.threads) if row.part in given.parts and row.part in ROWS]
        measured = measure(dsn, schema, asked, rounds, None) if asked else Measured([], [], None)
        if asked:
            print(f"\n{measured}", flush=True)
        bench = Bench(dsn, client, jobs, rounds, stack)
        for part in given.parts:
            for question in PARTS[part](bench) if part in PARTS else ():
                question.measure(rounds)
                print(f"\n{question}", flush=True)
                questions.append(question)
    progress("")
    write_json(given.results / "bench.json", what, questions, **measured.as_json())
    if asked:
        chart(given.results / "bench.svg", measured.lines)


if __name__ == "__main__":
    main()
