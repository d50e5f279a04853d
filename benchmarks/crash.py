"""What one `kill -9` leaves behind: effects that are committed though their job is not recorded as finished.

    python -m benchmarks.crash                                      # ten kills each
    python -m benchmarks.crash --kills 2 --queues pgjobs pgqueuer

Each job writes one row. In the midst of 5,000 of them the worker is killed. An effect whose job is not finished is
written again when that job is run again, and when that is stands beside it: the seconds from the kill until a second
worker, started at once, has finished all jobs that the first one had claimed. That is measured on the first kills of
each, since some take minutes or hours; one that is not over when the patience is says so.

Peers are installed into a directory of the user's cache, never beside pgjobs, each tuned as its documentation advises.
The server is embedded, with fsync on.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from benchmarks.install import CannotInstall, node_home, python_home
from pgjobs.embedded import EmbeddedPostgres

SCRIPTS = Path(__file__).with_name("peers")


@dataclass(frozen=True)
class Queue:
    """One library, and how its table is read."""

    name: str
    command: Callable[[], list[str]]
    unfinished: str  # query for the numbers of the jobs that are not recorded as finished
    claimed: str  # the condition that a worker has claimed one


def ours() -> list[str]:
    return [sys.executable, str(SCRIPTS / "crash_pgjobs.py")]


def python_peer(script: str, *packages: str) -> Callable[[], list[str]]:
    return lambda: [str(python_home(script.removesuffix(".py"), *packages)), str(SCRIPTS / script)]


def node_peer(script: str, *packages: str) -> Callable[[], list[str]]:
    def install() -> list[str]:
        try:
            node, home = node_home(script.removesuffix(".mjs"), *packages)
        except CannotInstall as error:
            raise SystemExit(f"{packages[0]}: {error}; leave it out with --queues") from None
        shutil.copy(SCRIPTS / script, home)  # node looks for packages beside the script
        return [node, str(home / script)]

    return install


QUEUES = {
    queue.name: queue
    for queue in (
        Queue(
            "pgjobs", ours, "SELECT (args ->> 'n')::int FROM pgjobs.job WHERE state <> 'completed'", "state = 'running'"
        ),
        Queue(
            "procrastinate",
            python_peer("crash_procrastinate.py", "procrastinate==3.10.0", "psycopg[binary,pool]==3.3.9"),
            "SELECT (args ->> 'n')::int FROM procrastinate_jobs WHERE task_name = 'effect' AND status <> 'succeeded'",
            "status = 'doing'",
        ),
        Queue(
            "pgqueuer",
            python_peer("crash_pgqueuer.py", "pgqueuer[asyncpg]==1.6.0", "uvloop==0.23.0"),
            "SELECT convert_from(payload, 'UTF8')::int FROM pgqueuer WHERE entrypoint = 'effect'",
            "status = 'picked'",
        ),
        Queue(
            "graphile-worker",
            node_peer("crash_graphile.mjs", "graphile-worker@0.17.3"),
            "SELECT (payload ->> 'n')::int FROM graphile_worker._private_jobs WHERE true",
            "locked_at IS NOT NULL",
        ),
    )
}


@dataclass
class Result:
    """What the kills of one queue have left."""

    queue: str
    unrecorded: list[int] = field(default_factory=list)  # effects without a finished job, after each kill
    cut_off: list[int] = field(default_factory=list)  # jobs that were claimed
    again: list[float | None] = field(default_factory=list)  # seconds until all of those were finished
    doubled: list[int] = field(default_factory=list)  # effects that are there twice then

    def __str__(self) -> str:
        found = f"{statistics.median(self.unrecorded):g} ({min(self.unrecorded)}-{max(self.unrecorded)})"
        doubled = f"{max(self.doubled)}" if self.doubled else "-"
        cut_off = f"{statistics.median(self.cut_off):g}"
        return f"{self.queue:<16}{len(self.unrecorded):>6}{found:>22}{cut_off:>10}{self._again():>18}{doubled:>10}"

    def _again(self) -> str:
        times = [seconds for seconds in self.again if seconds is not None]
        if not self.again:
            return "-"
        late = "" if len(times) == len(self.again) else "not in time"
        return ", ".join(filter(None, [f"{min(times):.1f}-{max(times):.1f}" if times else "", late]))


HEAD = f"{'':<16}{'kills':>6}{'unrecorded (min-max)':>22}{'claimed':>10}{'again after s':>18}{'doubled':>10}"


class Crash:
    """One run: fill a queue, let a worker begin, kill it."""

    def __init__(self, queue: Queue, server: EmbeddedPostgres, jobs: int) -> None:
        self._queue = queue
        self._command = queue.command()
        self._jobs = jobs
        self._server = server
        self._name = "crash"
        self._dsn = make_conninfo(server.dsn, dbname=self._name)
        self._url = server.dsn_for(self._name)

    def run(self, result: Result, share: float, patience: float | None) -> None:
        """Kill the worker when this share of the jobs has had its effect."""
        self._admin("DROP DATABASE IF EXISTS {} WITH (FORCE)")
        self._admin("CREATE DATABASE {}")
        with psycopg.connect(self._dsn, autocommit=True) as self._conn:
            self._conn.execute("CREATE TABLE effect (n int NOT NULL, at timestamptz DEFAULT clock_timestamp())")
            self._call("setup")
            self._call("enqueue", str(self._jobs))
            with self._worker() as worker:
                self._wait(lambda: self._count("SELECT count(*) FROM effect") >= share * self._jobs, 120)
                worker.kill()
                killed = time.monotonic()
            self._wait(self._nobody_else, 10)
            effects = self._numbers("SELECT n FROM effect")
            claimed = self._numbers(f"{self._queue.unfinished} AND {self._queue.claimed}")
            result.unrecorded.append(len(set(effects) & set(self._numbers(self._queue.unfinished))))
            result.cut_off.append(len(claimed))
            if len(effects) >= self._jobs:
                raise SystemExit(f"{self._queue.name} was done before it was killed: give it more --jobs")
            if patience is not None:
                result.again.append(self._again(set(claimed), killed, patience))
                twice = "SELECT count(*) FROM (SELECT FROM effect GROUP BY n HAVING count(*) > 1) AS twice"
                result.doubled.append(self._count(twice))

    def _again(self, claimed: set[int], killed: float, patience: float) -> float | None:
        """Let another worker go on; how long it took until what the first one had claimed was finished."""
        with self._worker() as worker:
            try:
                self._wait(lambda: not claimed & set(self._numbers(self._queue.unfinished)), patience)
            except TimeoutError:
                return None
            finally:
                worker.kill()
        return time.monotonic() - killed

    def _nobody_else(self) -> bool:
        """Whether the server has done with all that the dead worker had sent."""
        return (
            self._count(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )
            == 0
        )

    def _worker(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*self._command, "work", self._url], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def _call(self, *arguments: str) -> None:
        command, *rest = arguments
        done = subprocess.run([*self._command, command, self._url, *rest], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{self._queue.name} {command} failed:\n{done.stderr}")

    def _admin(self, statement: str) -> None:
        with psycopg.connect(self._server.dsn, autocommit=True) as conn:
            conn.execute(sql.SQL(statement).format(sql.Identifier(self._name)))

    def _numbers(self, query: str) -> list[int]:
        return [row[0] for row in self._rows(query)]

    def _count(self, query: str) -> int:
        return int(self._rows(query)[0][0])

    def _rows(self, query: str) -> Sequence[tuple[Any, ...]]:
        return self._conn.execute(query.encode()).fetchall()

    @staticmethod
    def _wait(condition: Callable[[], bool], patience: float) -> None:
        deadline = time.monotonic() + patience
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(0.005)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="of each (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=5_000, help="in each run (default: %(default)s)")
    parser.add_argument(
        "--again", type=int, default=2, help="kills whose aftermath is waited for (default: %(default)s)"
    )
    parser.add_argument("--patience", type=float, default=120, help="seconds to wait for it (default: %(default)s)")
    parser.add_argument("--queues", nargs="+", choices=QUEUES, default=list(QUEUES), help="default: all")
    options = parser.parse_args()
    chance = random.Random(1)
    shares = [chance.uniform(0.1, 0.5) for _ in range(options.kills)]
    results = [Result(name) for name in options.queues]
    with EmbeddedPostgres(tcp=True, settings={"max_connections": "200"}) as server:
        runs = [Crash(QUEUES[result.queue], server, options.jobs) for result in results]
        for number, share in enumerate(shares):
            for run, result in zip(runs, results, strict=True):
                run.run(result, share, options.patience if number < options.again else None)
    print(HEAD, *results, sep="\n")
    print(
        f"\n{options.jobs:,} jobs, killed after 10 to 50 % of them. unrecorded: effects without a finished job. again:"
        f"\nuntil another worker has finished what the killed one had claimed, {options.patience:g} s at most."
    )


if __name__ == "__main__":
    main()
