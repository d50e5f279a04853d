"""pgjobs: `setup DSN`, `enqueue DSN N` or `work DSN`."""

import sys
from typing import Any

from pgjobs import Client, Job, NewJob, WorkerPool

THREADS = 8


def effect(tx: Any, job: Job[Any]) -> None:
    tx.execute("INSERT INTO effect (n) VALUES (%s)", [job.args["n"]])


def main(command: str, dsn: str, jobs: str = "0") -> None:
    client = Client(dsn)
    if command == "setup":
        client.migrate()
    elif command == "enqueue":
        client.enqueue_many(None, [NewJob({"n": n}, kind="effect") for n in range(int(jobs))])
    else:
        WorkerPool(client, {"effect": effect}, queues={"default": THREADS}).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
