"""Milliseconds that the server takes for each page of the dashboard, and for `client.stats`: on a table of a million
jobs, and with figures of a week in each minute of which 40 pairs of a queue and a kind were busy. Meanwhile four
processes add figures, as worker pools do.

python -m benchmarks.dashboard                    on an embedded server, which is filled first: some minutes
python -m benchmarks.dashboard --dsn ... --schema ...   on a database that is filled already
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import psycopg
from psycopg import sql
from werkzeug.test import Client as Browser

from pgjobs import AttemptFigures, Client
from pgjobs.dashboard import Dashboard
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


def measure(client: Client) -> dict[str, list[float]]:
    """The milliseconds of each page, in rounds, so that a busy moment does not fall on one page alone."""
    browser = Browser(Dashboard(client))
    newest = client.list_jobs(descending=True, limit=1).jobs[0].id
    taken: dict[str, list[float]] = {name: [] for name in (*PAGES, *STATS)}
    for _ in range(_REPEATS):
        for name, path in PAGES.items():
            start = time.perf_counter()
            response = browser.get(path.replace("{newest}", str(newest)), environ_overrides={"REMOTE_ADDR": "::1"})
            taken[name].append((time.perf_counter() - start) * 1000)
            assert response.status_code == 200, f"{path}: {response.status_code}"
        for name, options in STATS.items():
            start = time.perf_counter()
            assert client.stats(**options), name
            taken[name].append((time.perf_counter() - start) * 1000)
    return taken


def table(taken: dict[str, list[float]]) -> str:
    rows = [
        f"| {name} | {min(times):.0f} | {statistics.median(times):.0f} | {max(times):.0f} |"
        for name, times in taken.items()
    ]
    return "\n".join(["| page | fastest | median | slowest |", "| --- | --- | --- | --- |", *rows])


@contextmanager
def filled(jobs: int) -> Iterator[str]:
    settings = {"shared_buffers": "512MB", "max_wal_size": "4GB"}
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
    if options.dsn is not None:
        with Client(options.dsn, schema=options.schema) as client, writing_figures(client):
            taken = measure(client)
    else:
        with filled(options.jobs) as dsn, Client(dsn) as client, writing_figures(client):
            taken = measure(client)
    print(table(taken))
    slow = [name for name, times in taken.items() if statistics.median(times) > TARGET]
    print(f"over {TARGET} ms: {', '.join(slow) or 'none'}")


if __name__ == "__main__":
    main()
