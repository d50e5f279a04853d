"""A job at times of the day, in a time zone, kept in the table and run by hand. Retells River's CronJob."""

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Event

from psycopg import Connection

from pgjobs import Client, Job, Schedule, WorkerPool, WorkMap


@dataclass
class Report:
    name: str


done = Event()


def report(tx: Connection, job: Job[Report]) -> None:
    print(f"report {job.args.name} for schedule {job.metadata['schedule']}")
    done.set()


nightly = Schedule("nightly", "30 2 * * *", Report("sales"), zone="America/New_York", queue="reports")

# in the night of 8 March 2026 there is no half past two in New York
tick = datetime(2026, 3, 7, tzinfo=UTC)
for _ in range(3):
    tick = nightly.next(tick) or tick
    print(tick)

with Client(os.environ["DATABASE_URL"], schema="examples") as client:
    client.migrate()
    client.schedules.add(nightly)  # every worker pool ticks it from now on, whatever its code
    with WorkerPool(client, WorkMap({Report: report}), queues={"reports": 1}):
        client.schedules.run_now("nightly")
        done.wait(timeout=10)
    for schedule in client.schedules.list():
        print(f"{schedule.name}: {schedule.spec} in {schedule.zone}")
    client.schedules.remove("nightly")

# Output:
# 2026-03-07 07:30:00+00:00
# 2026-03-08 07:00:00+00:00
# 2026-03-09 06:30:00+00:00
# report sales for schedule nightly
# nightly: 30 2 * * * in America/New_York
