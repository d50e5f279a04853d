"""How fast pgjobs is, as ratios inside one run on one machine: beside pgbench, and beside itself.

    python -m benchmarks.bench                       # on an embedded Postgres with fsync on, or on DATABASE_URL
    python -m benchmarks.bench --parts drain enqueue
    python -m benchmarks.bench --baseline v0.1.0     # over another version: a git revision, or a wheel; versus.py

One table for each question; the arms of a table take turns. After every run it is counted that each job was done, and
done once, and so for each effect: what went wrong ends the program. The floors are the bare statements, in one round
trip for each job, run by pgbench on the same tables (floor.sql). It takes less than ten minutes, all of it.

Results also go to benchmarks/results/bench.json, and a chart beside it. Work on a database that is given stays in a
schema of its own, which is dropped at the end.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import enqueuing, latency, memory, waking
from benchmarks.chart import bars
from benchmarks.drain import Drain
from benchmarks.floors import CHAIN, ENQUEUE, PROTOCOLS, Pgbench
from benchmarks.ground import BATCHES, Table, configuration, database, progress, table
from benchmarks.report import RESULTS, Question, write_json
from benchmarks.versus import compare, rows
from benchmarks.workload import Handling
from pgjobs import Client
from pgjobs.embedded import EmbeddedPostgres, EmbeddedPostgresError

_NO_BATCHES = "no batch mode in this version"
_BATCH = 100


@dataclass
class Bench:
    """Where it is measured, and how much."""

    dsn: str
    client: Client
    table: Table
    threads: list[int]
    rounds: int
    stack: ExitStack  # holds what has to be there until the end

    def sized(self, factor: float) -> Table:
        """The same table with more jobs or fewer, a multiple of every number of threads."""
        return self.table.sized(max(1, round(self.table.jobs * factor / 24)) * 24)


def drain(bench: Bench) -> list[Question]:
    """One job per transaction, beside the floor."""
    question = Question("drain", "Drain, one job per transaction, no-op handler", "jobs/s")
    for threads in bench.threads:
        _add_drains(question, bench, threads, "noop")
    question.notes.append("ratio: over the better floor of as many clients")
    return [question]


def batch(bench: Bench) -> list[Question]:
    """Batch mode, beside one job per transaction."""
    question = Question("batch", f"Drain, batches of {_BATCH}, no-op handler", "jobs/s")
    question.add("one per transaction, 4 threads", Drain(bench.client, bench.table, 4))
    for threads in (1, 4) if BATCHES else ():
        run = Drain(bench.client, bench.sized(10), threads, batch_size=_BATCH)
        question.add(f"batches, {threads} threads", run, over=["one per transaction, 4 threads"])
    if not BATCHES:
        question.notes.append(_NO_BATCHES)
    return [question]


def insert(bench: Bench) -> list[Question]:
    """A handler that inserts one row through its tx."""
    question = Question("insert", "Drain, handler inserts one row through tx", "jobs/s")
    for threads in (4, 8):
        floors = _add_drains(question, bench, threads, "insert")
        if BATCHES:
            run = Drain(bench.client, bench.sized(3), threads, handling="insert", batch_size=_BATCH)
            question.add(f"batches of {_BATCH}, {threads} threads", run, over=floors)
    question.notes.append("the floor has the INSERT in its one round trip; a handler needs one of its own")
    if not BATCHES:
        question.notes.append(_NO_BATCHES)
    return [question]


def _add_drains(question: Question, bench: Bench, threads: int, handling: Handling) -> list[str]:
    """The floors of so many clients, whose names come back, and the drain over them."""
    floors = []
    for protocol in PROTOCOLS:
        floors.append(f"pgbench {protocol}, {threads} clients")
        run = Pgbench(bench.dsn, bench.table, threads, protocol, CHAIN, effect=handling == "insert")
        question.add(floors[-1], run)
    question.add(
        f"pgjobs, {threads} threads", Drain(bench.client, bench.table, threads, handling=handling), over=floors
    )
    return floors


def waits(bench: Bench) -> list[Question]:
    """How long a job waits on an idle system."""
    probes = min(200, bench.table.jobs)
    pickup = Question("pickup", "Pickup on an idle system, from before the enqueue to the handler", "ms", waits=True)
    pickup.add("pgjobs, one every 20 to 60 ms", partial(latency.pickup, bench.dsn, bench.table, probes))
    scheduled = Question("scheduled", "Start of a scheduled job after its instant", "ms", waits=True)
    scheduled.add("pgjobs, 25 a second", partial(latency.scheduled, bench.dsn, bench.table, probes))
    return [pickup, scheduled]


def enqueue(bench: Bench) -> list[Question]:
    """Enqueue, one in each transaction and many in one."""
    single = Question("enqueue", "Enqueue, one job per transaction", "jobs/s")
    fewer = bench.sized(0.5)
    for threads in (1, 4):
        floors = [f"pgbench {protocol}, {threads} clients" for protocol in PROTOCOLS]
        for protocol, name in zip(PROTOCOLS, floors, strict=True):
            single.add(name, Pgbench(bench.dsn, fewer, threads, protocol, ENQUEUE))
        run = partial(enqueuing.one_by_one, bench.client, fewer, threads)
        single.add(f"client's pool, {threads} threads", run, over=floors)
        own = bench.stack.enter_context(enqueuing.own_pool(bench.dsn, fewer, threads))
        run = partial(enqueuing.one_by_one, own, fewer, threads)
        single.add(f"application's pool, {threads} threads", run, over=floors)
    many = Question("enqueue_many", "Enqueue many in one transaction", "jobs/s")
    more = bench.sized(12.5)
    many.add("COPY of ready bytes", enqueuing.bare_copy(bench.client, more))
    for name, returning in (("with ids", True), ("without", False)):
        run = partial(enqueuing.many, bench.client, more, returning=returning)
        many.add(f"enqueue_many {name}", run, over=["COPY of ready bytes"])
    return [single, many]


def wake(bench: Bench) -> list[Question]:
    """What waking costs those who enqueue."""
    return [waking.commits(bench.dsn, bench.table.schema, (8, 16), bench.rounds, "this disk")]


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


PARTS: dict[str, Callable[[Bench], list[Question]]] = {
    "drain": drain,
    "batch": batch,
    "insert": insert,
    "waits": waits,
    "enqueue": enqueue,
    "wake": wake,
    "process": process,
    "idle": idle,
}


def chart(path: Path, questions: list[Question]) -> None:
    """All ratios, ours beside a floor's 1."""
    ratios = [(f"{question.key}: {arm.name}", question.ratio(arm)) for question in questions for arm in question.arms]
    bars(path, "pgjobs over its floors", "ratio", [(name, ratio, True) for name, ratio in ratios if ratio is not None])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=8_000, help="jobs of one run of a drain (default: %(default)s)")
    parser.add_argument("--rounds", type=int, help="runs of each arm (default: 3, with --baseline 5)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 4, 8], help="of the drain; default: 1 4 8")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
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
    asked: list[Question] = []
    with ExitStack() as stack:
        dsn, schema = stack.enter_context(database())
        client, jobs = stack.enter_context(table(dsn, schema, given.jobs))
        bench = Bench(dsn, client, jobs, given.threads, rounds, stack)
        what = configuration(jobs.conn) + f"\n{given.jobs:,} jobs a drain, {rounds} rounds"
        print(what, flush=True)
        for part in given.parts:
            for question in PARTS[part](bench):
                question.measure(rounds)
                print(f"\n{question}", flush=True)
                asked.append(question)
    progress("")
    write_json(given.results / "bench.json", what, asked)
    chart(given.results / "bench.svg", asked)


if __name__ == "__main__":
    main()
