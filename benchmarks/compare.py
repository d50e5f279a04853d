"""pgjobs and its peers, measured side by side: drain rates, pickup, enqueue, memory.

    python -m benchmarks.compare                                         # about twenty minutes
    python -m benchmarks.compare --rows noop effect --queues pgjobs oban-python --rounds 1

The newest release of each peer is installed into a directory of the user's cache and tuned for what is measured
(contenders.py). One embedded server with fsync on; a database of its own for every run; the libraries take turns, so
that the ratios mean something on a machine that others use too. A drain is timed from the start of the first handler
until the last job is recorded as finished. After each run all jobs and effects are counted: where something is missing
or there twice, there is no figure but the reason.

Prints one table; a run of all of it writes the figures and the charts of the README to benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from queue import Empty, Queue
from statistics import quantiles
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from benchmarks.compare_report import Figures, write
from benchmarks.contenders import CONTENDERS, Contender, Installed, Way
from benchmarks.ground import look_long_up, progress
from benchmarks.install import CannotInstall
from benchmarks.report import RESULTS
from pgjobs.embedded import EmbeddedPostgres

ROOT = Path(__file__).parent.parent
SETTINGS = {"max_connections": "200", "shared_buffers": "512MB", "max_wal_size": "4GB"}
ROWS = ("noop", "effect", "pickup", "one", "bulk")
_PICKUPS, _WARM_UP = 200, 10
_ONE = Way(1_000, {})  # jobs that are enqueued one per transaction
_DEADLINE = 120.0  # seconds that one run may take


class Refused(Exception):
    """Why a run gives no figure."""


class Process:
    """A script at work, and the lines that it says."""

    def __init__(self, installed: Installed, command: str, url: str, options: Mapping[str, Any]) -> None:
        self._stderr = tempfile.TemporaryFile("a+b")  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            [*installed.command, command, url, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"},
        )
        self._lines: Queue[tuple[float, dict[str, Any]] | None] = Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(b"@"):
                self._lines.put((time.monotonic(), json.loads(line[1:])))
        self._lines.put(None)

    def hear(self, key: str, patience: float = _DEADLINE, meanwhile: Callable[[], None] = lambda: None) -> Any:
        """When it said the line with this key, and the line."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            try:
                line = self._lines.get(timeout=0.2)
            except Empty:
                meanwhile()
                continue
            if line is None:
                raise Refused(f"the process ended: {self._last_words()}")
            if key in line[1]:
                return line
        raise Refused(f"not within {patience:g} s: {key}. {self._last_words()}")

    def tell(self) -> None:
        assert self._process.stdin is not None
        try:
            os.write(self._process.stdin.fileno(), b"\n")
        except BrokenPipeError:
            raise Refused(f"the process ended: {self._last_words()}") from None

    def finish(self) -> None:
        """Wait for the end of one that ends by itself."""
        try:
            code = self._process.wait(_DEADLINE)
        except subprocess.TimeoutExpired:
            raise Refused(f"not done within {_DEADLINE:g} s") from None
        if code != 0:
            raise Refused(self._last_words())

    def memory(self) -> float:
        """Its resident memory, in MB."""
        said = subprocess.run(["ps", "-o", "rss=", "-p", str(self._process.pid)], capture_output=True, check=False)
        return int(said.stdout or 0) / 1024

    def kill(self) -> None:
        self._process.kill()
        with self._process:  # which closes its pipes, and waits
            self._reader.join()
        self._stderr.close()

    def _last_words(self) -> str:
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else "it said nothing"


class Bench:
    """One contender on the server: every run in a database that is a copy of one that is set up and empty."""

    def __init__(self, server: EmbeddedPostgres, contender: Contender, installed: Installed) -> None:
        self._contender = contender
        self._installed = installed
        self._server = server
        self._name = f"bench_{contender.name}"
        for template, options in (("", contender.setup), ("_pickup", contender.setup_pickup)):
            if options is not None:
                self._admin("CREATE DATABASE {}", self._name + template)
                with self._process("setup", self._name + template, options) as process:
                    process.finish()

    # --- what is measured

    def drain(self, handler: str, way: Way) -> dict[str, float]:
        """Work a full queue."""
        options = {"handler": handler, "chunk": 1_000, **way.options, "jobs": way.jobs}
        with self._database(self._name) as (conn, name):
            self._call("fill", name, options)
            conn.execute("VACUUM (ANALYZE)")
            conn.execute("CHECKPOINT")
            sizes: list[float] = []
            with self._process("work", name, options) as worker:
                first, _ = worker.hear("first")
                worker.hear("last", meanwhile=lambda: sizes.append(worker.memory()))
                seconds = self._all_done(conn, handler, way.jobs) - first
                sizes.append(worker.memory())
                self._check(conn, worker, handler, way.jobs)
        return {handler: way.jobs / seconds} | ({"memory": max(sizes)} if handler == "noop" else {})

    def pickup(self, jobs: int) -> dict[str, float]:
        """One job now and then, from before it is enqueued to the start of its handler."""
        jobs += _WARM_UP
        options = {"handler": "noop", **self._contender.pickup, "jobs": jobs, "warm_up": _WARM_UP}
        different = self._contender.setup_pickup is not None
        with (
            self._database(self._name + ("_pickup" if different else "")) as (conn, name),
            self._process("work", name, options) as worker,
            self._process("send", name, options) as sender,
        ):
            sender.hear("warm")
            worker.hear("first")  # it listens now
            sender.tell()
            worker.hear("last")
            self._all_done(conn, "noop", jobs)
            waits = [1000 * wait for n, wait in self._check(conn, worker, "noop", jobs) if n >= _WARM_UP]
        return {"p50": quantiles(waits, n=100)[49], "p99": quantiles(waits, n=100)[98]}

    def enqueue(self, row: str, way: Way) -> dict[str, float]:
        """Each in a transaction of its own, or in bulk."""
        command = "one" if row == "one" else "bulk"
        with self._database(self._name) as (conn, name):
            conn.execute("CHECKPOINT")
            seconds = self._call(command, name, {"handler": "noop", **way.options, "jobs": way.jobs})
            if (there := _count(conn, self._contender.unfinished)) != way.jobs:
                raise Refused(f"{way.jobs} jobs were enqueued, and {there} are there")
        return {row: way.jobs / seconds}

    # --- what came of it

    def _all_done(self, conn: psycopg.Connection[Any], handler: str, jobs: int) -> float:
        """When the table says that every job is finished, and every effect is there."""
        deadline = time.monotonic() + _DEADLINE
        while _count(conn, self._contender.unfinished) or (handler == "effect" and _count(conn, _EFFECTS) < jobs):
            if time.monotonic() > deadline:
                raise Refused(f"{_count(conn, self._contender.unfinished)} of {jobs} jobs were not finished in time")
            time.sleep(0.005)
        return time.monotonic()

    def _check(
        self, conn: psycopg.Connection[Any], worker: Process, handler: str, jobs: int
    ) -> Sequence[tuple[int, float]]:
        worker.tell()
        _, report = worker.hear("starts")
        if (report["starts"], report["distinct"]) != (jobs, jobs):
            raise Refused(f"{jobs} jobs, but {report['starts']} starts of {report['distinct']} different ones")
        done = self._contender.done
        if done is not None and (recorded := _count(conn, done)) != jobs:
            raise Refused(f"{jobs} jobs, but {recorded} are recorded as finished")
        if handler == "effect":
            effects, different = _count(conn, _EFFECTS), _count(conn, "SELECT count(DISTINCT n) FROM effect")
            if (effects, different) != (jobs, jobs):
                raise Refused(f"{jobs} jobs, but {effects} effects of {different} different ones")
        return [(n, wait) for n, wait in report["waits"]]

    # --- the means

    @contextmanager
    def _database(self, template: str) -> Iterator[tuple[psycopg.Connection[Any], str]]:
        name = f"{template}_run"
        self._admin("CREATE DATABASE {} TEMPLATE {}", name, template)
        try:
            with psycopg.connect(make_conninfo(self._server.dsn, dbname=name), autocommit=True) as conn:
                conn.execute("CREATE TABLE effect (n int NOT NULL)")
                yield conn, name
        finally:
            self._admin("DROP DATABASE {} WITH (FORCE)", name)

    @contextmanager
    def _process(self, command: str, database: str, options: Mapping[str, Any]) -> Iterator[Process]:
        process = Process(self._installed, command, self._server.dsn_for(database), options)
        try:
            yield process
        finally:
            process.kill()

    def _call(self, command: str, database: str, options: Mapping[str, Any]) -> float:
        with self._process(command, database, options) as process:
            seconds = 0.0 if command == "fill" else float(process.hear("seconds")[1]["seconds"])
            process.finish()
            return seconds

    def _admin(self, statement: str, *names: str) -> None:
        with psycopg.connect(self._server.dsn, autocommit=True) as conn:
            conn.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


_EFFECTS = "SELECT count(*) FROM effect"


def _count(conn: psycopg.Connection[Any], query: str) -> int:
    return int(conn.execute(query.encode()).fetchall()[0][0])


# --- all of it


@dataclass(frozen=True)
class Arm:
    """What takes its turn in every round."""

    name: str
    way: str
    rows: tuple[str, ...]  # that it gives figures for
    run: Callable[[], dict[str, float]]


def arms(bench: Bench, contender: Contender, rows: Sequence[str], jobs: int | None) -> Iterator[Arm]:
    def sized(way: Way) -> Way:
        return replace(way, jobs=jobs or way.jobs)

    for way, drain in contender.drains.items():
        if "noop" in rows:
            yield Arm(contender.name, way, ("noop", "memory"), partial(bench.drain, "noop", sized(drain)))
        if "effect" in rows:
            yield Arm(contender.name, way, ("effect",), partial(bench.drain, "effect", sized(drain)))
    if "pickup" in rows:
        yield Arm(contender.name, "", ("p50", "p99"), partial(bench.pickup, jobs or _PICKUPS))
    if "one" in rows:
        yield Arm(contender.name, "", ("one",), partial(bench.enqueue, "one", sized(_ONE)))
    for kind, bulk in contender.bulk.items() if "bulk" in rows else ():
        yield Arm(contender.name, "", (kind,), partial(bench.enqueue, kind, sized(bulk)))


def prepare(names: Sequence[str], server: EmbeddedPostgres, figures: Figures) -> dict[str, Bench]:
    """Install the contenders; one that cannot be had, or set up, is told by its row."""
    benches = {}
    for name in names:
        progress(f"installing {name}")
        contender = CONTENDERS[name]
        try:
            installed = contender.install()
            figures.versions[name] = installed.version
            figures.atomic |= {(name, way) for way, drain in contender.drains.items() if drain.atomic}
            benches[name] = Bench(server, contender, installed)
        except (CannotInstall, Refused) as error:
            figures.absent[name] = str(error)
    progress("")
    return benches


def measure(benches: Mapping[str, Bench], figures: Figures, rows: Sequence[str], rounds: int, jobs: int | None) -> None:
    runs = [arm for name, bench in benches.items() for arm in arms(bench, CONTENDERS[name], rows, jobs)]
    runs.sort(key=lambda arm: list(figures.rows).index(arm.rows[0]))  # those of one row after each other
    for round in range(rounds):
        for number, arm in enumerate(runs):
            progress(
                f"run {round * len(runs) + number + 1} of {rounds * len(runs)}: {arm.name} {arm.way} {arm.rows[0]}"
            )
            if figures.refused(arm.rows[0], arm.name, arm.way):
                continue
            try:
                for row, value in arm.run().items():
                    figures.add(row, arm.name, arm.way, value)
            except Refused as error:
                figures.refuse(arm.rows, arm.name, arm.way, str(error))
    progress("")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queues", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), help="default: all")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="default: all")
    parser.add_argument("--jobs", type=int, help="of every run (default: what takes each some two seconds)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind (default: %(default)s)")
    parser.add_argument("--results", type=Path, help="where to write (default: benchmarks/results, if it is all of it)")
    options = parser.parse_args()
    figures = Figures()
    with EmbeddedPostgres(tcp=True, settings=SETTINGS) as server:
        look_long_up(server.dsn_for("template1"))  # which each contender's database is made from
        figures.describe(server.dsn, SETTINGS)
        benches = prepare(options.queues, server, figures)
        print(figures.configuration({name: CONTENDERS[name] for name in benches}, options.jobs), flush=True)
        try:
            measure(benches, figures, options.rows, options.rounds, options.jobs)
        except KeyboardInterrupt:
            print("", figures, "", "interrupted: nothing was written", sep="\n")
            raise SystemExit(1) from None
    print("", figures, sep="\n")
    whole = options.jobs is None and len(options.queues) == len(CONTENDERS) and len(options.rows) == len(ROWS)
    if options.results or whole:
        write(figures, options.results or RESULTS)


if __name__ == "__main__":
    main()
