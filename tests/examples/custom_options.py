"""Options of a job: the call wins over the args class, the class over the client. Retells River's CustomInsertOpts."""

import os
from dataclasses import dataclass

from psycopg import Connection

from pgjobs import Client, Job, JobOptions, WorkerPool, WorkMap, job_options


@job_options(queue="urgent", priority=-10, tags=["pager"])
@dataclass
class Alert:
    text: str


@dataclass
class Export:
    rows: int

    def job_options(self) -> JobOptions:  # or computed from the args
        return JobOptions(queue="long" if self.rows > 1_000_000 else "default")


def show(tx: Connection, job: Job[object]) -> None:
    print(f"{job.args}: queue {job.queue}, priority {job.priority}, {job.max_attempts} attempts, tags {list(job.tags)}")


with Client(os.environ["DATABASE_URL"], schema="examples", max_attempts=3) as client:
    client.migrate()
    client.enqueue(None, Alert("disk is full"))
    client.enqueue(None, Alert("disk is nearly full"), priority=0, max_attempts=1)
    client.enqueue(None, Export(rows=10))
    client.enqueue(None, Export(rows=5_000_000))

    pool = WorkerPool(client, WorkMap({Alert: show, Export: show}))
    for queue in ("urgent", "urgent", "default", "long"):
        pool.work_one(queue)

# Output:
# Alert(text='disk is full'): queue urgent, priority -10, 3 attempts, tags ['pager']
# Alert(text='disk is nearly full'): queue urgent, priority 0, 1 attempts, tags ['pager']
# Export(rows=10): queue default, priority 0, 3 attempts, tags []
# Export(rows=5000000): queue long, priority 0, 3 attempts, tags []
