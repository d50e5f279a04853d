"""A handler that knows better than its backoff says when to try again, or that it is no use.

Retells gue's ErrRescheduleJobIn, ErrRescheduleJobAt and ErrDiscardJob.
"""

import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from threading import Event

from psycopg import Connection

from pgjobs import Client, Discard, Job, RetryAfter, RetryAt, WorkerPool, WorkMap


@dataclass
class Fetch:
    url: str


over = Event()


def fetch(tx: Connection, job: Job[Fetch]) -> None:
    print(f"attempt {job.attempt} on {job.args.url}")
    match job.attempt:
        case 1:
            raise RetryAfter(timedelta(milliseconds=100), "429 Too Many Requests")
        case 2:
            raise RetryAt(datetime.now(UTC) + timedelta(milliseconds=100), "503 Down for Maintenance")
        case _:
            over.set()
            raise Discard("410 Gone")


with Client(os.environ["DATABASE_URL"], schema="examples") as client:
    client.migrate()
    with WorkerPool(client, WorkMap({Fetch: fetch})):
        job = client.enqueue(None, Fetch("https://example.com/"))
        over.wait(timeout=10)

    after = client.get(job.id)
    assert after
    print(f"{after.state} at attempt {after.attempt} of {after.max_attempts}")
    for error in after.errors:
        print(f"{error.attempt}: {error.error.partition(' because ')[2] or error.error}")

# Output:
# attempt 1 on https://example.com/
# attempt 2 on https://example.com/
# attempt 3 on https://example.com/
# discarded at attempt 3 of 25
# 1: 429 Too Many Requests
# 2: 503 Down for Maintenance
# 3: 410 Gone
