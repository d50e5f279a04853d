"""Enqueue many jobs in one exchange with the server. Retells River's BatchInsert."""

import os
from dataclasses import dataclass

from psycopg import Connection

from pgjobs import Client, Job, NewJob, WorkerPool, WorkMap


@dataclass
class Resize:
    picture: str


def resize(tx: Connection, job: Job[Resize]) -> None:
    print("Resized", job.args.picture)


with Client(os.environ["DATABASE_URL"], schema="examples") as client:
    client.migrate()

    with client.pool.connection() as tx:  # all of them are there with its commit, or none
        jobs = client.enqueue_many(
            tx,
            [
                Resize("a.png"),
                Resize("b.png"),
                Resize("c.png"),
                NewJob(Resize("cover.png"), priority=-1, max_attempts=3),  # with options of its own; runs first
            ],
        )
    print("Enqueued", len(jobs), "jobs")

    pool = WorkerPool(client, WorkMap({Resize: resize}))
    while pool.work_one():  # on this thread, one after the other, until there are no more
        pass

# Output:
# Enqueued 4 jobs
# Resized cover.png
# Resized a.png
# Resized b.png
# Resized c.png
