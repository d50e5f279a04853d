"""The same job twice on one day is one job. Retells River's UniqueJob."""

import os
from dataclasses import dataclass
from datetime import timedelta
from threading import Event

from psycopg import Connection

from pgjobs import Client, Job, Unique, WorkerPool, WorkMap, job_options


@job_options(unique=Unique(by_args=["account"], by_period=timedelta(days=1)))
@dataclass
class ReconcileAccount:
    account: int
    reason: str


done = Event()


def reconcile(tx: Connection, job: Job[ReconcileAccount]) -> None:
    print(f"reconciled account {job.args.account}: {job.args.reason}")
    done.set()


with Client(os.environ["DATABASE_URL"], schema="examples") as client:
    client.migrate()
    with client.pool.connection() as tx:
        first = client.enqueue(tx, ReconcileAccount(1, "an order came in"))
        second = client.enqueue(tx, ReconcileAccount(1, "and another one"))
        print(f"the second is the first: {second.id == first.id}, a duplicate: {second.duplicate}")

    with WorkerPool(client, WorkMap({ReconcileAccount: reconcile})):
        done.wait(timeout=10)
    client.delete(first.id)  # a completed one counts until it is cleaned away; not so in this example

# Output:
# the second is the first: True, a duplicate: True
# reconciled account 1: an order came in
