"""A client, a work map, two workers, and jobs enqueued in a transaction. Retells the example of gue's README."""

import os
from dataclasses import dataclass
from datetime import timedelta
from threading import Semaphore

from psycopg import Connection

from pgjobs import Client, Job, WorkerPool, WorkMap


@dataclass
class PrintName:
    name: str


printed = Semaphore(0)


def print_name(tx: Connection, job: Job[PrintName]) -> None:
    print(f"Hello {job.args.name}!")
    printed.release()


with Client(os.environ["DATABASE_URL"], schema="examples") as client:
    client.migrate()
    with WorkerPool(client, WorkMap({PrintName: print_name}), queues={"name_printer": 2}):
        client.enqueue(None, PrintName("Ada"), queue="name_printer")
        printed.acquire(timeout=10)

        # In the application's own transaction, to be run half a second from now.
        with client.pool.connection() as tx:
            tx.execute("CREATE TABLE IF NOT EXISTS examples.customer (name text)")
            tx.execute("INSERT INTO examples.customer VALUES ('Grace')")
            client.enqueue(tx, PrintName("Grace"), queue="name_printer", delay=timedelta(seconds=0.5))

        # What is rolled back was never enqueued.
        with client.pool.connection() as tx:
            client.enqueue(tx, PrintName("Nobody"), queue="name_printer")
            tx.rollback()

        printed.acquire(timeout=10)

# Output:
# Hello Ada!
# Hello Grace!
