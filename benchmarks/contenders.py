"""The libraries that `benchmarks.compare` measures: how each is installed, tuned, and how its table is read.

Each is tuned as its own documentation advises for throughput (for pickup: for latency), and where that leaves a choice,
by trying. The options are handed to the scripts in peers/ and printed as they are.
"""

from __future__ import annotations

import inspect
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.install import interpreter, newest_node_home, package_version, python_home, python_version
from pgjobs import WorkerPool

SCRIPTS = Path(__file__).with_name("peers")
Options = Mapping[str, Any]


@dataclass(frozen=True)
class Installed:
    command: list[str]
    version: str


@dataclass(frozen=True)
class Way:
    """One way to work a full queue, or to fill it: the jobs of a run, some two seconds of them, and the options.

    `atomic`: what a handler writes is committed together with the finish of its job.
    """

    jobs: int
    options: Options
    atomic: bool = False


@dataclass(frozen=True)
class Contender:
    """One library."""

    name: str
    install: Callable[[], Installed]
    table: str
    finished: str | None  # the condition that a job of the table is done; None: its row is gone then
    drains: Mapping[str, Way]  # by what it is called; "" is the tuned one
    pickup: Options
    setup: Options = field(default_factory=dict)  # of the tables that are drained
    setup_pickup: Options | None = None  # of those that are picked up from, if that is different
    bulk: Mapping[str, Way] = field(default_factory=dict)  # "ids" and "no ids", if there is such a thing
    recorded: str | None = None  # counts the finished jobs where the library records them elsewhere

    @property
    def unfinished(self) -> str:
        return f"SELECT count(*) FROM {self.table}" + (f" WHERE NOT ({self.finished})" if self.finished else "")

    @property
    def done(self) -> str | None:
        return self.recorded or (f"SELECT count(*) FROM {self.table} WHERE {self.finished}" if self.finished else None)


def python_library(
    script: str, package: str, *others: str, extra: str = "", minimum: tuple[int, int] = (3, 11)
) -> Callable[[], Installed]:
    def install() -> Installed:
        python = python_home(f"newest-{package}", package + extra, *others, minimum=minimum, upgrade=True)
        version = f"{python_version(python, package)} on {interpreter(python)}"
        return Installed([str(python), str(SCRIPTS / script)], version)

    return install


def node_library(script: str, package: str) -> Callable[[], Installed]:
    def install() -> Installed:
        node, home, note = newest_node_home(f"newest-{package}", package)
        for name in (script, "meter.mjs"):
            shutil.copy(SCRIPTS / name, home)  # node looks for packages beside the script
        version = f"{package_version(home, package)} on {interpreter(node)}"
        return Installed([node, str(home / script)], version + (f" ({note})" if note else ""))

    return install


def pgjobs_itself() -> Installed:
    python = Path(sys.executable)
    version = f"{python_version(python, 'pgjobs-psycopg')} on {interpreter(python)}"
    return Installed([sys.executable, str(SCRIPTS / "pgjobs_.py")], version)


def _pgjobs_drains() -> dict[str, Way]:
    drains = {"": Way(14_000, {"threads": 8})}
    if "batch_size" in inspect.signature(WorkerPool).parameters:
        drains["batch"] = Way(120_000, {"threads": 4, "batch_size": 250})
    return drains


_GRAPHILE = {"concurrentJobs": 24, "maxPoolSize": 25}
_BURST = {"batchSize": 1000, "burstWhenBatchFull": True}

_ONE_BY_ONE = {"batchSize": 1, "transactional": True, "localConcurrency": 8, "burstWhenReadyExceeds": 1}

PGJOBS = Contender(
    "pgjobs",
    pgjobs_itself,
    "pgjobs.job",
    "state = 'completed'",
    _pgjobs_drains(),
    pickup={"threads": 8},
    bulk={"ids": Way(100_000, {"ids": True}), "no ids": Way(200_000, {"ids": False})},
)

PEERS = (
    Contender(
        "graphile-worker",
        node_library("graphile.mjs", "graphile-worker"),
        "graphile_worker._private_jobs",
        None,
        {
            "": Way(
                80_000,
                {
                    "worker": {
                        **_GRAPHILE,
                        "localQueue": {"size": 500},
                        "completeJobBatchDelay": 0,
                        "failJobBatchDelay": 0,
                    }
                },
            ),
            "unbatched": Way(8_000, {"worker": _GRAPHILE}),
        },
        pickup={"worker": _GRAPHILE},
        bulk={"ids": Way(50_000, {"chunk": 5_000})},
    ),
    Contender(
        "pg-boss",
        node_library("pgboss.mjs", "pg-boss"),
        "pgboss.job",
        "state = 'completed'",
        {
            "": Way(60_000, {"work": _BURST}),
            "transactional": Way(
                12_000, {"work": {"batchSize": 100, "burstWhenBatchFull": True, "transactional": True}}, atomic=True
            ),
            "transactional, one by one": Way(4_000, {"work": _ONE_BY_ONE}, atomic=True),
        },
        pickup={"boss": {"useListenNotify": True}, "work": {"batchSize": 1}},
        setup={"queue": {}},
        setup_pickup={"queue": {"notify": True}},
        bulk={"ids": Way(50_000, {"chunk": 5_000, "ids": True}), "no ids": Way(50_000, {"chunk": 5_000})},
    ),
    Contender(
        "pgqueuer",
        python_library("pgqueuer_.py", "pgqueuer", "uvloop", extra="[asyncpg]"),
        "pgqueuer",
        None,
        {"": Way(40_000, {"batch_size": 1000})},
        pickup={"batch_size": 10},
        bulk={"ids": Way(50_000, {"chunk": 5_000})},
        recorded="SELECT count(*) FROM pgqueuer_log WHERE status = 'successful'",
    ),
    Contender(
        "oban-python",
        python_library("oban_.py", "oban", minimum=(3, 12)),
        "oban_jobs",
        "state = 'completed'",
        {"": Way(12_000, {"limit": 1000})},
        pickup={"limit": 10},
        bulk={"ids": Way(5_000, {})},
    ),
    Contender(
        "chancy",
        python_library("chancy_.py", "chancy", "psycopg[binary,pool]", "uvloop"),
        "chancy_jobs",
        "state = 'succeeded'",
        {"": Way(8_000, {"concurrency": 1000, "send_outgoing_interval": 0.1})},
        pickup={"concurrency": 1000, "send_outgoing_interval": 0.1},
        bulk={"ids": Way(5_000, {"chunk": 1_000})},
    ),
    Contender(
        "huey",
        python_library("huey_.py", "huey", "psycopg[binary,pool]"),
        "huey_task",
        None,
        {"": Way(6_000, {"workers": 1})},
        pickup={"workers": 1},
    ),
    Contender(
        "pq",
        python_library("pq_.py", "pq", "psycopg2-binary"),
        "queue",
        "dequeued_at IS NOT NULL",
        {"in transaction": Way(3_000, {"threads": 8, "transactional": True}, atomic=True)},
        pickup={"threads": 1, "transactional": False},
    ),
    Contender(
        "procrastinate",
        python_library("procrastinate_.py", "procrastinate", "psycopg[binary,pool]", "uvloop"),
        "procrastinate_jobs",
        "status = 'succeeded'",
        {"": Way(1_600, {"concurrency": 30})},
        pickup={"concurrency": 30},
        bulk={"ids": Way(20_000, {"chunk": 1_000})},
    ),
)

CONTENDERS = {contender.name: contender for contender in (PGJOBS, *PEERS)}
