"""The rows of `make bench`: the kinds of work, how each is measured, and what it is measured over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import lcm
from pathlib import Path
from typing import Any

from benchmarks.floors import CHAIN, ENQUEUE, FIXED_DRAIN, FIXED_ENQUEUE, FIXED_INSERT, FixedFloor, Pgbench
from benchmarks.ground import Table, WrongResult
from benchmarks.report import percentile
from benchmarks.sources import Source


@dataclass(frozen=True)
class Kind:
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
    kind: Kind
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
DRAIN = Kind("drain", Table.load, _drained, _RATE, calls=True)
INSERT = Kind("drain", Table.load, _inserted, _RATE, calls=True)
PICKUP = Kind("pickup", _emptied, _waited, {" p50": "ms", " p99": "ms"}, processor=False)
ENQUEUE_ONE = Kind("enqueue", _emptied, _enqueued, _RATE)
BULK = Kind("bulk", _emptied, _in_bulk, _RATE)


# --- the rows


def rows(jobs: int, threads: Sequence[int]) -> list[Row]:
    """All rows of the report. `jobs` is the size of a drain of one job per transaction.

    For another kind of work, add a function to workload.WORK and a Kind here.
    """
    each = lcm(4, *threads)  # pgbench gives every client the same number

    def sized(factor: float) -> int:
        return max(1, round(jobs * factor / each)) * each

    def drain(name: str, part: str, factor: float, threads: int, **options: Any) -> Row:
        inserts, single = options.get("handling") == "insert", "batch_size" not in options
        floors = None
        if options.get("durability") != "relaxed":  # the floors wait for the disk
            fixed = FIXED_INSERT if inserts else FIXED_DRAIN
            floors = Floors(threads, fixed, sized(min(factor, 1)), CHAIN if single else None)
        return Row(name, part, INSERT if inserts else DRAIN, sized(factor), {"threads": threads, **options}, floors)

    def enqueue(name: str, threads: int, source: Source = "own pool") -> Row:
        floors = Floors(threads, FIXED_ENQUEUE, sized(0.5), ENQUEUE)
        return Row(name, "enqueue", ENQUEUE_ONE, sized(0.5), {"threads": threads, "source": source}, floors)

    return [
        *(drain(f"drain, {_threads(n)}", "drain", 0.5 if n == 1 else 1, n) for n in threads),
        # what remains without the wait for the disk, which every version has alike
        drain("drain, durability relaxed, 1 thread", "relaxed", 1, 1, durability="relaxed"),
        drain("drain, durability relaxed, 4 threads", "relaxed", 1.5, 4, durability="relaxed"),
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
