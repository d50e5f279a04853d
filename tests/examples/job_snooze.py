"""A handler that finds it is too early puts its job off. No attempt is used up. Retells River's JobSnooze."""

import os
from dataclasses import dataclass
from datetime import timedelta
from threading import Event

from psycopg import Connection

from pgjobs import Client, Job, Snooze, WorkerPool, WorkMap


@dataclass
class SendInvoice:
    number: int


answers = iter(["not printed yet", "not printed yet", "printed"])
sent = Event()


def send_invoice(tx: Connection, job: Job[SendInvoice]) -> None:
    answer = next(answers)
    print(f"attempt {job.attempt}: invoice {job.args.number} is {answer}")
    if answer != "printed":
        raise Snooze(timedelta(milliseconds=100))
    sent.set()


with Client(os.environ["DATABASE_URL"], schema="examples") as client:
    client.migrate()
    with WorkerPool(client, WorkMap({SendInvoice: send_invoice})):
        job = client.enqueue(None, SendInvoice(42))
        sent.wait(timeout=10)

    after = client.get(job.id)
    assert after
    print(f"{after.state} at attempt {after.attempt}, with {after.error_count} errors")

# Output:
# attempt 1: invoice 42 is not printed yet
# attempt 1: invoice 42 is not printed yet
# attempt 1: invoice 42 is printed
# completed at attempt 1, with 0 errors
