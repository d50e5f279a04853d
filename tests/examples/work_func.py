"""Any function of two arguments is a handler, and a dict will do for args. Retells River's WorkFunc."""

import os
from typing import Any

from psycopg import Connection

from pgjobs import Client, Job, WorkerPool, WorkMap

work_map = WorkMap()


@work_map.handles("work_func")
def work(tx: Connection, job: Job[dict[str, Any]]) -> None:
    print("Message:", job.args["message"])


work_map["lambda"] = lambda tx, job: print("Message:", job.args["message"])

with Client(os.environ["DATABASE_URL"], schema="examples") as client:
    client.migrate()
    client.enqueue(None, {"message": "hello from a function!"}, kind="work_func")
    client.enqueue(None, {"message": "hello from a lambda!"}, kind="lambda")

    pool = WorkerPool(client, work_map)
    pool.work_one()
    pool.work_one()

# Output:
# Message: hello from a function!
# Message: hello from a lambda!
