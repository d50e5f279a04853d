"""Whether pgjobs stays as fast: beside a million rows, behind dead entries that vacuum may not touch, with many
threads, on slow disks.

    python -m benchmarks.growth
    python -m benchmarks.growth --rows 20000 --jobs 400 --rounds 1 --parts backlog plan

Only some thousand jobs are worked in a run; of each it is counted that it was done, and done once. Results also go to
benchmarks/results/growth.json, and charts beside it. The servers are embedded ones with fsync on. It takes less than
half an hour.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg

from benchmarks import backlog, crowd, many_threads, one_transaction, plans, waking
from benchmarks.chart import lines
from benchmarks.ground import LARGE, Size, configuration, progress, table
from benchmarks.report import RESULTS, Question, write_json
from benchmarks.slow_disk import slow_disk
from pgjobs.embedded import EmbeddedPostgres


def wake(size: Size) -> Iterator[Question]:
    """What waking costs those who enqueue, where commits must share flushes."""
    with slow_disk(LARGE) as server, table(server.dsn, "pgjobs", 0):
        yield waking.commits(server.dsn, "pgjobs", (16,), size.rounds, "+1 ms per flush")


PARTS: dict[str, Callable[[Size], Iterator[Question]]] = {
    "backlog": backlog.measure,
    "plan": plans.measure,
    "threads": many_threads.measure,
    "wake": wake,
    "crowd": crowd.measure,
    "one_transaction": one_transaction.measure,
}


def chart(
    path: Path, title: str, x: str, y: str, questions: list[Question], *, beginning: list[tuple[float, float]]
) -> None:
    """A line for each that the questions have points of, from what they all begin with."""
    series: dict[str, list[tuple[float, float]]] = {}
    for question in questions:
        for line, *point in question.points:
            series.setdefault(line, list(beginning)).append((point[0], point[1]))
    if series:
        lines(path, title, x, y, series, log_x=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of a backlog (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=4_000, help="worked in one run, one by one (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each arm (default: %(default)s)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory of the files (default: %(default)s)")
    given = parser.parse_args()
    with EmbeddedPostgres() as server, psycopg.connect(server.dsn) as conn:
        what = (
            configuration(conn) + f"\n{given.rows:,} rows, {given.jobs:,} jobs worked in a run, {given.rounds} rounds"
        )
    print(what, flush=True)
    size = Size(given.rows, given.jobs, given.rounds)
    asked: dict[str, list[Question]] = {}
    for part in given.parts:
        asked[part], began = [], time.monotonic()
        for question in PARTS[part](size):
            print(f"\n{question}", flush=True)
            asked[part].append(question)
        print(f"\n({part}: {time.monotonic() - began:.0f} s)", flush=True)
    progress("")
    write_json(
        given.results / "growth.json", what, [question for questions in asked.values() for question in questions]
    )
    beside, crowded = (given.results / f"growth-{name}.svg" for name in ("backlog", "threads"))
    chart(
        beside,
        "Drain rate beside a backlog, over that without",
        "rows",
        "ratio",
        asked.get("backlog", []),
        beginning=[(10_000, 1.0)],
    )
    chart(crowded, "Drain rate by threads", "threads", "jobs/s", asked.get("threads", []), beginning=[])


if __name__ == "__main__":
    main()
