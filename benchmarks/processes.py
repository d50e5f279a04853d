"""Several processes beside one with as many threads in all.

    python -m benchmarks.processes
    python -m benchmarks.processes --split 1x8 8x1 --jobs 20000

Threads of one process share the interpreter's lock, processes do not; each process holds its own listener and its own
maintenance thread. All splits take turns. It takes some five minutes. Results also go to
benchmarks/results/processes.json.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import psycopg

from benchmarks.baseline import Process, Side, present_side
from benchmarks.ground import BATCHES, Table, WrongResult, configuration, database, progress, table
from benchmarks.report import RESULTS, Question, as_grid, write_json

_SPLITS = ("1x4", "2x2", "4x1", "1x8", "2x4", "4x2")


@dataclass(frozen=True)
class Split:
    """So many processes of so many threads each."""

    processes: int
    threads: int

    @classmethod
    def of(cls, text: str) -> Self:
        processes, _, threads = text.partition("x")
        if not (processes.isdecimal() and threads.isdecimal() and int(processes) and int(threads)):
            raise argparse.ArgumentTypeError(f"PROCESSESxTHREADS, as in 2x4, not {text!r}")
        return cls(int(processes), int(threads))

    def __str__(self) -> str:
        return f"{self.processes} x {self.threads}"

    @property
    def all_in_one(self) -> Split:
        return Split(1, self.processes * self.threads)


def drain(side: Side, rows: Table, split: Split, options: Mapping[str, Any]) -> float:
    """Jobs a second by all processes together."""
    with ExitStack() as stack:
        given = {"threads": split.threads, **options}
        workers = [stack.enter_context(Process(side, "share", rows.jobs, given)) for _ in range(split.processes)]
        rows.load()
        for worker in workers:
            worker.tell()
        rows.wait_until_done()
        for worker in workers:
            worker.tell()
        started = [job for worker in workers for job in worker.hear()["started"]]
    if len(started) != rows.jobs or len(set(started)) != rows.jobs:
        raise WrongResult(f"{len(started)} starts of {len(set(started))} jobs, of which there are {rows.jobs}")
    if options.get("handling") == "insert":
        rows.check_effects(rows.jobs)
    return rows.rate()


def questions(side: Side, rows: Table, splits: Sequence[Split], jobs: int) -> list[Question]:
    """One for each way to work."""
    ways: list[tuple[str, str, int, dict[str, Any]]] = [
        ("noop", "no-op", jobs, {}),
        ("insert", "inserts a row", jobs, {"handling": "insert"}),
    ]
    if BATCHES:
        batches = {"batch_size": 100}
        ways.append(("batch", "batches, no-op", 8 * jobs, batches))
        ways.append(("batch insert", "batches, inserts", 2 * jobs, {"handling": "insert", **batches}))
    asked = []
    for key, title, number, options in ways:
        question = Question(key, title, "jobs/s")
        for split in splits:
            over = [str(split.all_in_one)] if split.processes > 1 and split.all_in_one in splits else []
            question.add(str(split), partial(drain, side, rows.sized(number), split, options), over=over)
        asked.append(question)
    return asked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=8_000, help="of a run, one by one (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each split (default: %(default)s)")
    splits = [Split.of(text) for text in _SPLITS]
    parser.add_argument("--split", type=Split.of, nargs="+", default=splits, help=f"default: {' '.join(_SPLITS)}")
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory of the files (default: %(default)s)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, database() as (dsn, schema):
        side = present_side(Path(directory).resolve(), dsn, schema)
        with psycopg.connect(dsn, autocommit=True) as conn, table(dsn, schema, given.jobs) as (_, rows):
            what = configuration(conn) + f"\n{given.jobs:,} jobs a drain one by one, {given.rounds} rounds"
            print(what, flush=True)
            asked = questions(side, rows, given.split, given.jobs)
            for question in asked:
                question.measure(given.rounds)
    progress("")
    print("\n" + as_grid("processes x threads", asked))
    print("\njobs/s; in brackets over one process with as many threads in all")
    write_json(given.results / "processes.json", what, asked)


if __name__ == "__main__":
    main()
