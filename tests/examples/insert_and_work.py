"""Enqueue a job and work it, in one program. Retells River's InsertAndWork."""

import os
from dataclasses import dataclass
from threading import Event

from psycopg import Connection

from pgjobs import Client, Job, WorkerPool, WorkMap


@dataclass
class Sort:
    strings: list[str]


worked = Event()


def sort(tx: Connection, job: Job[Sort]) -> None:
    print("Sorted strings:", *sorted(job.args.strings))
    worked.set()


with Client(os.environ["DATABASE_URL"], schema="examples") as client:
    client.migrate()
    with WorkerPool(client, WorkMap({Sort: sort}), queues={"default": 100}):
        client.enqueue(None, Sort(["whale", "tiger", "bear"]))
        worked.wait(timeout=10)

# Output:
# Sorted strings: bear tiger whale
