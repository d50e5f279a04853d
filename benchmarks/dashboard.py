"""Milliseconds that the server takes for each page of the dashboard, and for `client.stats`: on a table of a million
jobs, and with figures of a week in each minute of which 40 pairs of a queue and a kind were busy. Meanwhile four
processes add figures, as worker pools do.

python -m benchmarks.dashboard                    on an embedded server, which is filled first: some minutes
python -m benchmarks.dashboard --dsn ... --schema ...   on a database that is filled already
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psycopg
from psycopg import sql
from werkzeug.test import Client as Browser

from pgjobs import AttemptFigures, Client
from pgjobs.dashboard import Dashboard
from pgjobs.dashboard.access import local_operator
from pgjobs.embedded import EmbeddedPostgres
from pgjobs.maintenance.duties import Maintenance
from pgjobs.observe.figures import number_of
from pgjobs.workers.figures_writer import FiguresWriter
from pgjobs.workers.queries import WorkerQueries
from tests.hostile_jobs import fill

TARGET = 300  # milliseconds
_REPEATS = 11
PAGES = {
    "Overview": "/",
    "Overview, of a day": "/?period=day",
    "Overview, of a week": "/?period=week",
    "Jobs": "/jobs",
    "Jobs, of one state": "/jobs?state=discarded",
    "Jobs, of one kind": "/jobs?kind=mail.send",
    "Jobs, of one kind, queue and state": "/jobs?kind=mail.send&queue=default&state=available",
    "Jobs, of one tag": "/jobs?tag=customer-5",
    "Jobs, of one error": "/jobs?error=ValueError&state=discarded",
    "Jobs, of a time": "/jobs?state=completed&time=finalized&after=2h&before=1h",
    "Jobs, args contain": "/jobs?" + urlencode({"args": '{"user": 500005}'}),
    "Jobs, a text anywhere": "/jobs?text=user500005",
    "All that match, to be confirmed": "/jobs/confirm?do=retry&state=discarded",
    "A job": "/jobs/{newest}",
    "Failures": "/failures",
    "Queues": "/queues",
    "A queue": "/queue?name=default",
    "A queue, of a week": "/queue?name=default&period=week",
    "Empty a queue, to be confirmed": "/queues/empty?name=default",
    "Schedules": "/schedules",
    "Workers": "/workers",
    "Enqueue": "/enqueue?kind=mail.send",
    "Health": "/health",
    "Maintenance": "/maintenance",
    "Prune, to be confirmed": "/maintenance/prune?state=completed&days=0",
    "Audit": "/audit",
    "Help": "/help/enqueue",
}


_DAY, _HOUR = timedelta(days=1), timedelta(hours=1)
STATS: dict[str, dict[str, Any]] = {
    "client.stats, an hour, by the minute": {"since": _HOUR, "step": timedelta(minutes=1), "by": []},
    "client.stats, a day": {"since": _DAY},
    "client.stats, a day, by the hour": {"since": _DAY, "step": _HOUR, "by": []},
    "client.stats, a week": {"since": 7 * _DAY},
    "client.stats, a week, by the hour": {"since": 7 * _DAY, "step": _HOUR, "by": []},
    "client.stats, a week, by the hour and pair": {"since": 7 * _DAY, "step": _HOUR},
}

# --- the figures of a week

_QUEUES = ("default", "mail", "reports", "images", "exports", "imports", "search", "billing")
_KINDS = ("mail.send", "report.build", "image.scale", "charge", "index")
_PAIRS = [(queue, kind) for queue in _QUEUES for kind in _KINDS]
_BELL = (1, 3, 8, 20, 30, 20, 8, 3, 1)  # attempts in neighbouring buckets
_PROCESSES, _WRITE_EVERY = 4, 10.0

_FIGURES = """
INSERT INTO {schema}.figure (minute, queue, kind, completed, failed, run_seconds, wait_seconds, run_counts, wait_counts)
SELECT date_trunc('minute', now()) - m * interval '1 min', queue, kind, 90, 4, 20, 50, run * (1 + m %% 5),
    wait * (1 + m %% 3)
FROM generate_series(0, %(minutes)s) AS m, ROWS FROM (
    unnest(%(queues)s::text[]), unnest(%(kinds)s::text[]), unnest(%(run)s::numeric[]), unnest(%(wait)s::numeric[])
) AS pair (queue, kind, run, wait)
ON CONFLICT DO NOTHING
"""


def fill_figures(conn: psycopg.Connection[Any], schema: str) -> int:
    """Add a row for each minute of a week and each pair. Returns how many rows there are."""
    numbers = range(len(_PAIRS))
    values = {
        "minutes": 7 * 24 * 60 - 1,
        "queues": [queue for queue, _ in _PAIRS],
        "kinds": [kind for _, kind in _PAIRS],
        "run": [number_of([*[0] * (5 + n), *_BELL]) for n in numbers],
        "wait": [number_of([4, 9, *[0] * (n % 25), *_BELL, 2, 2, 1]) for n in numbers],
    }
    table = sql.Identifier(schema, "figure")
    with psycopg.ClientCursor(conn) as cur:
        cur.execute(sql.SQL(_FIGURES).format(schema=sql.Identifier(schema)), values)
        cur.execute(sql.SQL("VACUUM (ANALYZE) {}").format(table))
        (rows,) = cur.execute(sql.SQL("SELECT count(*) FROM {}").format(table)).fetchone() or (0,)
    return int(rows)


def roll_up(conn: psycopg.Connection[Any], schema: str) -> list[float]:
    """Add up the figures as the duty `prune` does: the seconds of each of its runs, until there is no more to do."""
    prune, taken, more = Maintenance(schema, keep={}).prune, [], True
    while more:
        start = time.perf_counter()
        with conn.transaction():
            more = prune(conn) == timedelta(0)
        taken.append(time.perf_counter() - start)
    return taken


@contextmanager
def writing_figures(client: Client) -> Iterator[None]:
    """Meanwhile processes have run attempts of all pairs, and write their figures."""
    ended = threading.Event()
    counted = [AttemptFigures(_KINDS) for _ in range(_PROCESSES)]
    writers = [FiguresWriter(WorkerQueries(client.schema), figures) for figures in counted]

    def write() -> None:
        with client.source.connect() as conn:
            while not ended.wait(_WRITE_EVERY / _PROCESSES):
                for figures in counted:
                    for queue, kind in _PAIRS:
                        figures.record(queue, kind, "completed", 0.01, 0.2)
                writers.append(writers.pop(0))
                writers[0].write(conn, at_once=True)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


# --- measured


class Processor:
    """The processor time that this process and the server have taken so far: on a machine that does other work too, the
    time that passes says little. None where there is no /proc, or the server runs elsewhere."""

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self._conn = conn
        status = Path(f"/proc/{conn.info.backend_pid}/status")
        found = (
            re.search(r"PPid:\s+(\d+)", status.read_text()) if conn.info.host[:1] == "/" and status.exists() else None
        )
        self._server = Path(f"/proc/{found[1]}") if found else None

    def milliseconds(self) -> float | None:
        if self._server is None:
            return None
        ended = (
            self._server.joinpath("stat").read_text().rpartition(")")[2].split()[13:15]
        )  # its sessions that are gone
        seconds = time.process_time() + sum(map(int, ended)) / os.sysconf("SC_CLK_TCK")
        sessions = self._conn.execute("SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'")
        return 1000 * seconds + sum(_nanoseconds(pid) for (pid,) in sessions) / 1e6


def _nanoseconds(pid: int) -> int:
    with suppress(OSError):  # it has ended
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
    return 0


@dataclass
class Taken:
    """What a page took, in milliseconds, each time."""

    passed: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)


class Measured:
    """Measures pages one after the other."""

    def __init__(self, processor: Processor) -> None:
        self.taken: dict[str, Taken] = {}
        self._processor = processor

    @contextmanager
    def page(self, name: str) -> Iterator[None]:
        taken = self.taken.setdefault(name, Taken())
        before, start = self._processor.milliseconds(), time.perf_counter()
        yield
        taken.passed.append((time.perf_counter() - start) * 1000)
        after = self._processor.milliseconds()
        if before is not None and after is not None:
            taken.processor.append(after - before)


def measure(client: Client, conn: psycopg.Connection[Any]) -> dict[str, Taken]:
    """In rounds, so that a busy moment does not fall on one page alone."""
    newest = client.list_jobs(descending=True, limit=1).jobs[0].id
    measured = Measured(Processor(conn))
    for _ in range(_REPEATS):
        browser = Browser(Dashboard(client, auth=local_operator))  # a new one, which keeps no findings of the doctor
        for name, path in PAGES.items():
            url = path.replace("{newest}", str(newest))
            with measured.page(name):
                response = browser.get(url, environ_overrides={"REMOTE_ADDR": "::1"})
            assert response.status_code == 200, f"{path}: {response.status_code}"
        for name, options in STATS.items():
            with measured.page(name):
                assert client.stats(**options), name
    return measured.taken


def table(taken: dict[str, Taken]) -> str:
    rows = ["| page | processor | fastest | median | slowest |", "| --- | --- | --- | --- | --- |"]
    for name, each in taken.items():
        processor = f"{statistics.median(each.processor):.0f}" if each.processor else ""
        passed = (min(each.passed), statistics.median(each.passed), max(each.passed))
        rows.append(f"| {name} | {processor} | {' | '.join(f'{value:.0f}' for value in passed)} |")
    return "\n".join(rows)


@contextmanager
def filled(jobs: int) -> Iterator[str]:
    settings = {
        **{"shared_buffers": "512MB", "max_wal_size": "4GB"},
        **{"max_parallel_workers_per_gather": "0"},  # whose processor time could not be read
    }
    with EmbeddedPostgres(fsync=False, settings=settings) as server:
        with Client(server.dsn) as client:
            client.migrate()
        with psycopg.connect(server.dsn, autocommit=True) as conn:
            fill(conn, "pgjobs", jobs)
            rows, began = fill_figures(conn, "pgjobs"), time.perf_counter()
            taken = roll_up(conn, "pgjobs")
            print(f"{rows:,} rows of figures, added up in {time.perf_counter() - began:.1f} s; "
                  f"the longest of {len(taken)} runs took {max(taken):.2f} s")  # fmt: skip
            conn.execute("VACUUM (ANALYZE) pgjobs.figure")
        yield server.dsn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dsn", help="a database that is filled already")
    parser.add_argument("--schema", default="pgjobs")
    parser.add_argument("--jobs", type=int, default=1_000_000)
    options = parser.parse_args()
    with (
        filled(options.jobs) if options.dsn is None else nullcontext(options.dsn) as dsn,
        psycopg.connect(dsn, autocommit=True) as conn,
        Client(dsn, schema=options.schema) as client,
        writing_figures(client),
    ):
        taken = measure(client, conn)
    print(table(taken))
    slow = [name for name, each in taken.items() if statistics.median(each.processor or each.passed) > TARGET]
    print(f"over {TARGET} ms: {', '.join(slow) or 'none'}")


if __name__ == "__main__":
    main()
