"""A job at an interval, and once at the start, with args made anew each time. Retells River's PeriodicJob."""

import os
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from threading import Semaphore

from psycopg import Connection

from pgjobs import Client, Job, Schedule, WorkerPool, WorkMap, every


@dataclass
class Measure:
    number: int


numbers = count(1)
measured = Semaphore(0)


def measure(tx: Connection, job: Job[Measure]) -> None:
    if job.args.number <= 3:
        print(f"measurement {job.args.number} of {job.metadata['schedule']}")
        measured.release()


# the interval is short because this is an example
thermometer = Schedule(
    "thermometer", every(timedelta(milliseconds=100)), lambda: Measure(next(numbers)), run_on_start=True
)

with Client(os.environ["DATABASE_URL"], schema="examples") as client:
    client.migrate()
    with WorkerPool(client, WorkMap({Measure: measure}), queues={"default": 1}, cron=[thermometer]) as pool:
        for _ in range(3):
            measured.acquire(timeout=10)
        pool.schedules.remove("thermometer")
    client.schedules.remove("thermometer")  # the table would remember it for 30 days

# Output:
# measurement 1 of thermometer
# measurement 2 of thermometer
# measurement 3 of thermometer
