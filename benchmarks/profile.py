"""Where the microseconds of one job go.

    python -m benchmarks.profile                       # 1 and 4 threads, one job per transaction and batch mode
    python -m benchmarks.profile --threads 8 --jobs 20000 --handler insert

Three looks at the same drain, each in a run of its own, since looking costs time: the processor time of this process
and of each kind of server process, per job; the functions of the client (cProfile by the processor's clock, so that
waiting counts nothing, scaled to what the first run measured); the statements of the server (pg_stat_statements).
The server is always one of its own.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import re
import resource
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from benchmarks import quiet
from benchmarks.drain import Drain
from benchmarks.floors import Pgbench
from benchmarks.ground import BATCHES, Table, WrongResult, configuration, own_server, table
from benchmarks.workload import Handling
from pgjobs import Client
from pgjobs.embedded import EmbeddedPostgres

_STATEMENTS = "pg_stat_statements"
_WORKER = "/worker-"  # stands in the names of the threads that work jobs


@dataclass(frozen=True)
class Way:
    """What is looked at."""

    threads: int
    handling: Handling
    batch_size: int | None = None

    def __str__(self) -> str:
        batch = "one job per transaction" if self.batch_size is None else f"batches of {self.batch_size}"
        return f"{self.threads} threads, {batch}, handler: {self.handling}"

    @property
    def options(self) -> dict[str, Any]:
        return {} if self.batch_size is None else {"batch_size": self.batch_size}


# --- processor time


def floor(server: EmbeddedPostgres, table: Table, way: Way) -> None:
    """The same of the bare statements. Their backends are gone at the end, so the postmaster knows what they took."""
    run = Pgbench(server.dsn, table, way.threads, effect=way.handling == "insert")
    before, mine = _gone_processes(server.pid), _own_children()
    rate = run()
    server_cost, client_cost = _gone_processes(server.pid) - before, _own_children() - mine
    print(f"{rate:,.0f} jobs/s by the pgbench floor. Processor time in us per job: "
          f"pgbench {client_cost / table.jobs:.1f}, backends {server_cost / table.jobs:.1f}")  # fmt: skip


def _gone_processes(postmaster: int) -> float:
    fields = Path(f"/proc/{postmaster}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) * 1e6 / os.sysconf("SC_CLK_TCK")


def _own_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (used.ru_utime + used.ru_stime) * 1e6


@dataclass
class Reading:
    """Processor time so far, in microseconds."""

    client: float
    server: dict[str, float]  # by kind of process

    @classmethod
    def now(cls, postmaster: int) -> Reading:
        server = defaultdict[str, float](float)
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                if int(stat.read_text().rpartition(")")[2].split()[1]) == postmaster:
                    server[_role(stat.parent)] += quiet.processor_time(stat.parent) * 1e6
            except (OSError, IndexError):  # it has just ended
                continue
        return cls(time.process_time() * 1e6, server)


def _role(process: Path) -> str:
    """The kind of a server process, by its title; all processes that serve clients are one kind."""
    title = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    role = title.removeprefix("postgres: ")
    return "backends" if role.startswith("pgjobs ") else re.sub(r"\W*\d.*", "", role)


def processor_time(server: EmbeddedPostgres, client: Client, table: Table, way: Way) -> float:
    """Print it; that of the client per job."""
    warm = table.jobs // 10
    readings: list[Reading] = []

    def noted(started: int) -> None:
        if started in (warm, table.jobs):
            readings.append(Reading.now(server.pid))

    drain = Drain(client, table, way.threads, handling=way.handling, noted=noted, **way.options)
    rate = drain()
    first, last = readings
    jobs = table.jobs - warm
    mine = (last.client - first.client) / jobs
    theirs = {role: (last.server[role] - first.server[role]) / jobs for role in last.server}
    shown = ", ".join(f"{role} {cost:.1f}" for role, cost in sorted(theirs.items(), key=lambda x: -x[1]) if cost >= 0.1)
    print(f"{rate:,.0f} jobs/s, {1e6 / rate:.0f} us each. Processor time in us per job: client {mine:.1f}, {shown}")
    return mine


# --- functions of the client


def functions(client: Client, table: Table, way: Way, cost: float, top: int) -> None:
    started: list[int] = []
    drain = Drain(client, table, 1, handling=way.handling, noted=started.append, **way.options)
    stats = _profiled(drain)
    files: dict[str, float] = defaultdict(float)
    lines: list[tuple[float, float, float, str]] = []
    per_job = cost / sum(own for _, _, own, _, _ in stats.values())
    for (path, _, name), (_, calls, own, total, callers) in stats.items():
        if path == "~" and callers:  # a built-in
            for (caller, _, _), (_, _, share, _) in callers.items():
                files[_short(caller)] += share
        else:
            files[_short(path)] += own
        label = name if path == "~" else f"{_short(path)}:{name}"
        lines.append((own * per_job, total * per_job, calls / len(started), label))
    print(f"\nclient by file, us per job, of {cost:.1f}; built-ins and libpq count for the file that calls them:")
    for path, own in sorted(files.items(), key=lambda item: -item[1])[:top]:
        print(f"  {own * per_job:6.1f}  {path}")
    print("\nclient by function; libpq counts for the function that calls it:\n     own   total  calls/job")
    for own, total, calls, label in sorted(lines, reverse=True)[: 2 * top]:
        print(f"  {own:6.2f} {total:7.2f} {calls:10.2f}  {label}")


def _profiled(drain: Drain) -> dict[Any, Any]:
    """The profile of the one thread that works."""
    profiler = cProfile.Profile(time.thread_time)

    def begin(*_: object) -> None:
        """Called at the first event of each new thread."""
        sys.setprofile(None)
        if _WORKER in threading.current_thread().name:
            profiler.enable()

    threading.setprofile(begin)
    try:
        drain()
    finally:
        threading.setprofile(None)
    if not profiler.getstats():
        raise WrongResult(f"no thread with {_WORKER} in its name has worked: worker threads have other names now")
    stats: dict[Any, Any] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    return stats


def _short(path: str) -> str:
    """A path from its package on."""
    for part in ("site-packages/", "/lib/python3."):
        if part in path:
            path = path.partition(part)[2]
            return re.sub(r"^\d+/", "", path)
    return "/".join(Path(path).parts[-2:])


# --- statements of the server


@contextmanager
def statements_known(server: EmbeddedPostgres) -> Iterator[bool]:
    try:
        with psycopg.connect(server.dsn, autocommit=True) as conn:
            conn.execute(f"CREATE EXTENSION IF NOT EXISTS {_STATEMENTS}")
            conn.execute(f"SELECT FROM {_STATEMENTS} LIMIT 1")
    except psycopg.Error:
        yield False
    else:
        yield True


def statements(client: Client, table: Table, way: Way, top: int) -> None:
    def load() -> None:
        table.load()
        table.conn.execute(f"SELECT {_STATEMENTS}_reset()")

    Drain(client, table, way.threads, handling=way.handling, load=load, **way.options)()
    rows = table.conn.execute(
        f"""SELECT total_exec_time * 1000 / %(jobs)s, total_plan_time * 1000 / %(jobs)s, calls / %(jobs)s::float8,
                (shared_blks_hit + shared_blks_read) / %(jobs)s::float8, shared_blks_dirtied / %(jobs)s::float8,
                wal_bytes / %(jobs)s, regexp_replace(query, '\\s+', ' ', 'g')
            FROM {_STATEMENTS} WHERE query !~ 'FROM {_STATEMENTS}' ORDER BY 1 DESC LIMIT %(top)s""",
        {"jobs": table.jobs, "top": top},
    ).fetchall()
    print("\nserver by statement, per job:\n  exec us  plan us   calls  pages  dirtied  WAL bytes")
    for execution, planning, calls, pages, dirtied, wal, query in rows:
        if execution < 0.1:
            break
        print(f"{execution:9.1f}{planning:9.1f}{calls:8.3f}{pages:7.1f}{dirtied:9.2f}{wal:11.0f}  {query[:90]}")


# --- the command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000, help="jobs of one run (default: %(default)s)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 4], help="default: 1 4")
    parser.add_argument("--batch-size", type=int, nargs="*", default=[100] if BATCHES else [], help="default: 100")
    parser.add_argument("--handler", choices=("noop", "insert"), default="noop")
    parser.add_argument("--top", type=int, default=15, help="how many lines (default: %(default)s)")
    given = parser.parse_args()
    ways = [
        Way(threads, given.handler, size)
        for size in ([None, *given.batch_size] if BATCHES else [None])
        for threads in given.threads
    ]
    with (
        own_server({"shared_preload_libraries": ""}) as server,
        table(server.dsn, "pgjobs", given.jobs) as (client, rows),
    ):
        print(configuration(rows.conn))
        if not BATCHES:
            print("no batch mode: WorkerPool has no batch_size")
        for way in ways:
            print(f"\n--- {way}")
            if way.batch_size is None:
                floor(server, rows, way)
            cost = processor_time(server, client, rows, way)
            functions(client, rows, way, cost, given.top)
    with own_server({"shared_preload_libraries": _STATEMENTS}) as server:
        with table(server.dsn, "pgjobs", given.jobs) as (client, rows), statements_known(server) as known:
            for way in ways if known else []:
                print(f"\n--- {way}")
                statements(client, rows, way, given.top)
        if not known:
            print(f"\nno {_STATEMENTS} on this server: its statements are not known one by one")


if __name__ == "__main__":
    main()
