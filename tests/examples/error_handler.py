"""An error handler is told of each failed attempt, and may end the job there and then. Retells River's ErrorHandler."""

import os
import sys
from dataclasses import dataclass
from typing import Any

from psycopg import Connection

from pgjobs import Cancel, Client, ErrorHandler, Job, WorkerPool, WorkMap


@dataclass
class Fetch:
    url: str


def fetch(tx: Connection, job: Job[Fetch]) -> None:
    if job.args.url == "no url":
        raise ValueError("no such address")
    if job.args.url == "exit":
        sys.exit("out of memory")
    raise TimeoutError("the other side does not answer")


class Report(ErrorHandler):
    def handle_error(self, job: Job[Any], error: Exception) -> Cancel | None:
        print(f"Attempt {job.attempt} at {job.args.url} failed with {type(error).__name__}: {error}")
        return Cancel() if isinstance(error, ValueError) else None  # no later attempt would go better

    def handle_exit(self, job: Job[Any], error: BaseException) -> Cancel | None:
        print(f"Attempt {job.attempt} at {job.args.url} wanted to end the process: {error}")
        return Cancel()


with Client(os.environ["DATABASE_URL"], schema="examples") as client:
    client.migrate()
    pool = WorkerPool(client, WorkMap({Fetch: fetch}), error_handler=Report())
    for url in ["https://example.com", "no url", "exit"]:
        job = client.enqueue(None, Fetch(url))
        pool.work_one()
        after = client.get(job.id)
        assert after
        print(f"  {after.state}: {after.last_error}")
        client.delete(job.id)

# Output:
# Attempt 1 at https://example.com failed with TimeoutError: the other side does not answer
#   retryable: the other side does not answer
# Attempt 1 at no url failed with ValueError: no such address
#   cancelled: no such address
# Attempt 1 at exit wanted to end the process: out of memory
#   cancelled: SystemExit: out of memory
