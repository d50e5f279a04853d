"""How many threads, and which batches, on servers like the real ones: with a slower disk, and with a network between.

    python -m benchmarks.real
    python -m benchmarks.real --places both --threads 8 16 --seconds 5

This machine has a fast disk and its server beside it. Real servers are a millisecond away, and their disks take a
millisecond longer for each flush; what a job waits for then is no longer the processor. So the same drains are measured
on a server whose flushes take 1 ms longer (slow_disk.py), over a proxy that holds back what passes for 0.5 ms in each
direction (proxy.py), and over both. It takes a quarter of an hour. Results also go to benchmarks/results/real.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.drain import Drain
from benchmarks.ground import BATCHES, LARGE, Table, configuration, own_server, progress
from benchmarks.proxy import further_away, ping
from benchmarks.report import RESULTS, Arm, Question, as_grid, write_json
from benchmarks.slow_disk import commit_time, means, slow_disk
from benchmarks.workload import Handling
from pgjobs import Client
from pgjobs.embedded import EmbeddedPostgres

_AWAY = 0.5  # ms in each direction
_ENOUGH = 0.9  # of the most that any number of threads gives
_WORTH = 1.5  # times as many: what batches should give for what they cost otherwise
_SCHEMA = "pgjobs"
_FASTEST, _FASTEST_BATCHES = 12_000, 40_000  # jobs a second that a full queue is to last for


_HANDLINGS: dict[Handling, str] = {"noop": "no-op", "insert": "inserts a row"}


@dataclass(frozen=True)
class Place:
    """Where the server is."""

    disk: Callable[[dict[str, str]], AbstractContextManager[EmbeddedPostgres]]
    away: bool

    @contextmanager
    def server(self) -> Iterator[tuple[str, str]]:
        """The dsn of a server, for those who look, and for those who work."""
        with ExitStack() as stack:
            dsn = stack.enter_context(self.disk(LARGE)).dsn
            yield dsn, stack.enter_context(further_away(dsn, _AWAY)) if self.away else dsn


PLACES = {
    "here": Place(own_server, away=False),
    "flush": Place(slow_disk, away=False),
    "away": Place(own_server, away=True),
    "both": Place(slow_disk, away=True),
}
TITLES = {
    "here": "this machine",
    "flush": "+1 ms per flush",
    "away": "+1 ms away",
    "both": "+1 ms per flush and +1 ms away",
}


@dataclass(frozen=True)
class Way:
    """How jobs are worked."""

    batch_size: int  # 1: one job in each transaction
    handling: Handling

    def __str__(self) -> str:
        batch = "one by one" if self.batch_size == 1 else f"batches of {self.batch_size}"
        return f"{batch}, {_HANDLINGS[self.handling]}"

    @property
    def options(self) -> dict[str, Any]:
        return {} if self.batch_size == 1 else {"batch_size": self.batch_size}


@dataclass(frozen=True)
class Size:
    threads: list[int]  # one by one
    batches: list[int]
    batch_threads: list[int]
    seconds: float  # of a run
    rounds: int

    @property
    def ways(self) -> Iterator[Way]:
        for size in (1, *self.batches) if BATCHES else (1,):
            for handling in _HANDLINGS:
                yield Way(size, handling)


def measure(name: str, size: Size) -> dict[Way, Question]:
    """A question for each way, with an arm for each number of threads; all ways take turns."""
    questions: dict[Way, Question] = {}
    with (
        PLACES[name].server() as (dsn, working),
        Client(working, schema=_SCHEMA) as client,
        psycopg.connect(dsn, autocommit=True) as conn,
    ):
        client.migrate()
        print(f"\n{TITLES[name]}: ping {ping(working):.2f} ms, commit {commit_time(working):.2f} ms", flush=True)
        rows = Table(conn, _SCHEMA, 0)
        for way in size.ways:
            question = questions[way] = Question(f"{name}: {way}", str(way), "jobs/s")
            jobs = round(size.seconds * (_FASTEST if way.batch_size == 1 else _FASTEST_BATCHES))
            options = {"handling": way.handling, "wanted": jobs, "patience": size.seconds, **way.options}
            for threads in size.threads if way.batch_size == 1 else size.batch_threads:
                question.add(f"{threads}", Drain(client, rows.sized(jobs), threads, **options))
        for _ in range(size.rounds):
            for question in questions.values():
                question.measure(1)
    return questions


def advice(questions: Mapping[Way, Question]) -> list[str]:
    """Which to choose in this place: a sentence for each handling."""
    said: list[str] = []
    for handling, what in _HANDLINGS.items():
        arms = questions[Way(1, handling)].arms
        most = max(arm.median for arm in arms)
        enough = next(arm for arm in arms if arm.median >= _ENOUGH * most)
        share = "the most" if enough.median == most else f"{enough.median / most:.0%} of the most"
        text = f"{what}: one by one, {_threads(enough)} give {share}, {enough.median:,.0f} jobs/s"
        batches = [
            (f"{way.batch_size} on {_threads(arm)}", arm.median / most)
            for way, question in questions.items()
            if way.handling == handling and way.batch_size > 1
            for arm in question.arms
        ]
        said.append(text + (f"; {_of_batches(batches)}" if batches else ""))
    return said


def _of_batches(found: Sequence[tuple[str, float]]) -> str:
    """`found` has the batches, the smallest first, and how many times the most of one by one each gives."""
    best, times = max(found, key=lambda pair: pair[1])
    text = f"the best batches, of {best}, give {times:.1f} times the most one by one"
    worth = next((pair for pair in found if pair[1] > _WORTH), None)
    return text if worth is None or worth[0] == best else f"{text}, and those of {worth[0]} {worth[1]:.1f} times"


def _threads(arm: Arm) -> str:
    return "1 thread" if arm.name == "1" else f"{arm.name} threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--places", nargs="+", choices=PLACES, default=list(PLACES), help="default: all")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 4, 16, 32], help="one by one; default: 1 4 16 32")
    parser.add_argument("--batches", type=int, nargs="+", default=[20, 100], help="sizes; default: 20 100")
    parser.add_argument("--batch-threads", type=int, nargs="+", default=[1, 4, 16], help="in batches; default: 1 4 16")
    parser.add_argument("--seconds", type=float, default=3, help="of a run (default: %(default)g)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each arm (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory of the files (default: %(default)s)")
    given = parser.parse_args()
    size = Size(given.threads, given.batches, given.batch_threads, given.seconds, given.rounds)
    with own_server() as server, psycopg.connect(server.dsn) as conn:
        what = f"{configuration(conn)}\n{size.seconds:g} s a run, {size.rounds} rounds; slower flushes: {means()}"
    print(what, flush=True)
    asked: list[Question] = []
    for name in given.places:
        began = time.monotonic()
        questions = measure(name, size)
        progress("")
        print("\n" + as_grid("threads", list(questions.values())) + "\n")
        print(*(f"{TITLES[name]}, {sentence}" for sentence in advice(questions)), sep="\n")
        print(f"({time.monotonic() - began:.0f} s)", flush=True)
        asked += questions.values()
    write_json(given.results / "real.json", what, asked)


if __name__ == "__main__":
    main()
