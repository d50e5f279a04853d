"""8 to 64 threads, on the disk of this machine and on one whose flushes take a millisecond longer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from benchmarks.drain import Drain
from benchmarks.floors import Pgbench
from benchmarks.ground import LARGE, Size, Table, own_server, table
from benchmarks.report import Question
from benchmarks.slow_disk import slow_disk
from pgjobs.embedded import EmbeddedPostgres

_THREADS = (8, 16, 32, 64)


def measure(size: Size) -> Iterator[Question]:
    with own_server(LARGE) as server:
        yield _on(server, "this disk", size)
    with slow_disk(LARGE) as server:
        yield _on(server, "+1 ms per flush", size)


def _on(server: EmbeddedPostgres, disk: str, size: Size) -> Question:
    question = Question(f"threads, {disk}", f"Drain by many threads, {disk}", "jobs/s")
    jobs = -(-size.jobs // max(_THREADS)) * max(_THREADS)
    with table(server.dsn, "pgjobs", jobs) as (client, rows):
        for threads in _THREADS:
            floor = f"pgbench prepared, {threads} clients"
            question.add(floor, Pgbench(server.dsn, rows, threads))
            for name, wanted, options in size.modes:
                load = partial(_load, rows, 2 * wanted)
                over = [floor] if name == "one by one" else [f"one by one, {threads} threads"]
                run = Drain(client, rows, threads, load=load, wanted=wanted, **options)
                question.add(f"{name}, {threads} threads", run, over=over)
        question.measure(size.rounds)
    for arm in question.arms:
        line, _, clients = arm.name.partition(", ")
        question.points.append((f"{line}, {disk}", float(clients.split()[0]), arm.median))
    return question


def _load(rows: Table, jobs: int) -> None:
    rows.empty()
    rows.fill(jobs)
    rows.settle()
