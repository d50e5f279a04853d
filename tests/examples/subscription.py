"""A subscription hears how each attempt of this process ends. Retells River's Subscription."""

import os
from dataclasses import dataclass
from datetime import timedelta

from psycopg import Connection

from pgjobs import Cancel, Client, EventKind, Job, Snooze, WorkerPool, WorkMap


@dataclass
class Task:
    ending: str


def work(tx: Connection, job: Job[Task]) -> None:
    match job.args.ending:
        case "failure":
            raise RuntimeError("it went wrong")
        case "cancel":
            raise Cancel("nobody wants it any more")
        case "snooze":
            raise Snooze(timedelta(hours=1))


with Client(os.environ["DATABASE_URL"], schema="examples") as client:
    client.migrate()
    everything = client.subscribe()
    failures = client.subscribe([EventKind.FAILED])

    jobs = client.enqueue_many(None, [Task("success"), Task("failure"), Task("cancel"), Task("snooze")])
    with WorkerPool(client, WorkMap({Task: work}), queues={"default": 1}):  # leaving it closes the subscriptions
        heard = [next(iter(everything)) for _ in jobs]

    for event in heard:
        print(f"{event.kind}: {event.job.args.ending}; it took time: {event.stats.run > timedelta(0)}")
    print("Of failures alone:", [event.job.last_error for event in failures])
    for job in jobs:
        client.delete(job.id)

# Output:
# job_completed: success; it took time: True
# job_failed: failure; it took time: True
# job_cancelled: cancel; it took time: True
# job_snoozed: snooze; it took time: True
# Of failures alone: ['it went wrong']
