"""When a failed job runs again: after a constant delay, after a growing one, never, or as a function says."""

import os
from datetime import timedelta
from threading import Semaphore
from typing import Any

from psycopg import Connection

from pgjobs import Client, Job, WorkerPool, WorkMap, constant, exponential, never

AnyJob = Job[dict[str, Any]]
work_map = WorkMap()
over = Semaphore(0)


@work_map.handles("ping", backoff=constant(timedelta(milliseconds=10)))
def ping(tx: Connection, job: AnyJob) -> None:
    succeed_at(3, job)


@work_map.handles("upload", backoff=exponential(timedelta(milliseconds=10), factor=1.6, jitter=0.2))
def upload(tx: Connection, job: AnyJob) -> None:
    succeed_at(2, job)


@work_map.handles("charge", backoff=never())
def charge(tx: Connection, job: AnyJob) -> None:
    over.release()
    raise ConnectionError("the bank does not answer, and may have taken the money")


def unless_it_is_gone(job: Job[Any], error: BaseException) -> timedelta | None:
    return None if isinstance(error, FileNotFoundError) else timedelta(minutes=job.attempt)


@work_map.handles("import", backoff=unless_it_is_gone)
def import_file(tx: Connection, job: AnyJob) -> None:
    over.release()
    raise FileNotFoundError("prices.csv")


def succeed_at(attempt: int, job: AnyJob) -> None:
    if job.attempt < attempt:
        raise ConnectionError("no answer")
    over.release()


with Client(os.environ["DATABASE_URL"], schema="examples") as client:
    client.migrate()
    with WorkerPool(client, work_map):  # its own backoff=, River's policy by default, is for all other handlers
        jobs: list[AnyJob] = [client.enqueue(None, {}, kind=kind) for kind in work_map]
        for _ in jobs:
            over.acquire(timeout=10)

    for job in jobs:
        after = client.get(job.id)
        assert after
        print(f"{after.kind}: {after.state} at attempt {after.attempt}, last error: {after.last_error}")

# Output:
# ping: completed at attempt 3, last error: no answer
# upload: completed at attempt 2, last error: no answer
# charge: discarded at attempt 1, last error: the bank does not answer, and may have taken the money
# import: discarded at attempt 1, last error: prices.csv
