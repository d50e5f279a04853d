"""A handler that finds nobody wants its job any more cancels it. What it wrote is undone. Retells River's JobCancel."""

import os
from dataclasses import dataclass

from psycopg import Connection

from pgjobs import Cancel, Client, Job, WorkerPool, WorkMap


@dataclass
class Remind:
    customer: str


def remind(tx: Connection, job: Job[Remind]) -> None:
    tx.execute("INSERT INTO examples.reminder VALUES (%s)", [job.args.customer])
    raise Cancel(f"{job.args.customer} has closed the account")


with Client(os.environ["DATABASE_URL"], schema="examples") as client:
    client.migrate()
    with client.pool.connection() as tx:
        tx.execute("CREATE TABLE IF NOT EXISTS examples.reminder (customer text)")
        job = client.enqueue(tx, Remind("Ada"))

    WorkerPool(client, WorkMap({Remind: remind})).work_one()

    after = client.get(job.id)
    assert after
    print(f"{after.state} at attempt {after.attempt} of {after.max_attempts}: {after.last_error}")
    with client.pool.connection() as tx:
        print("reminders:", tx.execute("SELECT * FROM examples.reminder").fetchall())

# Output:
# cancelled at attempt 1 of 25: Ada has closed the account
# reminders: []
