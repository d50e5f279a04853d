"""Milliseconds that the server takes for each page of the dashboard, on a table of a million jobs.

python -m benchmarks.dashboard                    on an embedded server, which is filled first: a minute
python -m benchmarks.dashboard --dsn ... --schema ...   on a database that tests.hostile_jobs has filled
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlencode

import psycopg
from werkzeug.test import Client as Browser

from pgjobs import Client
from pgjobs.dashboard import Dashboard
from pgjobs.dashboard.access import local_operator
from pgjobs.embedded import EmbeddedPostgres
from tests.hostile_jobs import fill

TARGET = 300  # milliseconds
_REPEATS = 7
PAGES = {
    "Overview": "/",
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


def measure(client: Client) -> dict[str, list[float]]:
    """The milliseconds of each page, in rounds, so that a busy moment does not fall on one page alone."""
    browser = Browser(Dashboard(client, auth=local_operator))
    newest = client.list_jobs(descending=True, limit=1).jobs[0].id
    taken: dict[str, list[float]] = {name: [] for name in PAGES}
    for _ in range(_REPEATS):
        for name, path in PAGES.items():
            start = time.perf_counter()
            response = browser.get(path.replace("{newest}", str(newest)), environ_overrides={"REMOTE_ADDR": "::1"})
            taken[name].append((time.perf_counter() - start) * 1000)
            assert response.status_code == 200, f"{path}: {response.status_code}"
    return taken


def table(taken: dict[str, list[float]]) -> str:
    rows = [f"| {name} | {statistics.median(times):.0f} | {max(times):.0f} |" for name, times in taken.items()]
    return "\n".join(["| page | median | slowest |", "| --- | --- | --- |", *rows])


@contextmanager
def filled(jobs: int) -> Iterator[str]:
    settings = {"shared_buffers": "512MB", "max_wal_size": "4GB"}
    with EmbeddedPostgres(fsync=False, settings=settings) as server:
        with Client(server.dsn) as client:
            client.migrate()
        with psycopg.connect(server.dsn, autocommit=True) as conn:
            fill(conn, "pgjobs", jobs)
        yield server.dsn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dsn", help="a database that is filled already")
    parser.add_argument("--schema", default="pgjobs")
    parser.add_argument("--jobs", type=int, default=1_000_000)
    options = parser.parse_args()
    if options.dsn is not None:
        with Client(options.dsn, schema=options.schema) as client:
            taken = measure(client)
    else:
        with filled(options.jobs) as dsn, Client(dsn) as client:
            taken = measure(client)
    print(table(taken))
    slow = [name for name, times in taken.items() if statistics.median(times) > TARGET]
    print(f"over {TARGET} ms: {', '.join(slow) or 'none'}")


if __name__ == "__main__":
    main()
