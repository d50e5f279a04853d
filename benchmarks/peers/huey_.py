"""huey with PostgresHuey. Options: workers (threads)."""

from __future__ import annotations

import logging
import time
from typing import Any

import psycopg_pool
from huey import PostgresHuey

from benchmarks.peers.meter import Meter, Stopwatch, arguments, beats

command, url, options = arguments()
logging.getLogger("huey").setLevel(logging.ERROR)  # it says one line for each job
huey = PostgresHuey(dsn=url)
meter: Meter
effects: Any


@huey.task()  # type: ignore[untyped-decorator]
def noop(**args: Any) -> None:
    meter.start(**args)


@huey.task()  # type: ignore[untyped-decorator]
def effect(**args: Any) -> None:
    meter.start(**args)
    with effects.connection() as conn:
        conn.execute("INSERT INTO effect (n) VALUES (%s)", [args["n"]])


job = effect if options.get("handler") == "effect" else noop
if command == "work":
    meter = Meter(options)
    workers = options["workers"]
    with psycopg_pool.ConnectionPool(
        url, min_size=workers, max_size=workers, kwargs={"autocommit": True}, open=True
    ) as effects:
        huey.create_consumer(workers=workers, periodic=False).run()
elif command == "send":
    for n, pause in beats(options):
        time.sleep(pause)
        job(n=n, sent=time.monotonic())
elif command != "setup":  # which making the storage does
    with Stopwatch():
        for n in range(options["jobs"]):
            job(n=n)
