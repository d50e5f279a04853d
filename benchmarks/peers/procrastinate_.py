"""procrastinate. Options: concurrency."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import procrastinate
import psycopg_pool
import uvloop

from benchmarks.peers.meter import Meter, Stopwatch, arguments, beats


async def work(app: procrastinate.App, effects: Any, options: dict[str, Any]) -> None:
    meter = Meter(options)

    async def noop(**args: Any) -> None:
        meter.start(**args)

    async def effect(**args: Any) -> None:
        meter.start(**args)
        async with effects.connection() as conn:
            await conn.execute("INSERT INTO effect (n) VALUES (%s)", [args["n"]])

    app.task(name="job")(effect if options["handler"] == "effect" else noop)
    await app.run_worker_async(concurrency=options["concurrency"])


async def main(command: str, url: str, options: dict[str, Any]) -> None:
    size = options.get("concurrency", 1)
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url, max_size=size + 4))
    effects = psycopg_pool.AsyncConnectionPool(url, min_size=1, max_size=size, open=False, kwargs={"autocommit": True})
    async with app.open_async(), effects:
        job = app.configure_task("job")
        if command == "setup":
            await app.schema_manager.apply_schema_async()
        elif command == "work":
            await work(app, effects, options)
        elif command == "send":
            for n, pause in beats(options):
                await asyncio.sleep(pause)
                await job.defer_async(n=n, sent=time.monotonic())
        elif command == "one":
            with Stopwatch():
                for n in range(options["jobs"]):
                    await job.defer_async(n=n)
        else:
            with Stopwatch():
                for first in range(0, options["jobs"], options["chunk"]):
                    numbers = range(first, min(first + options["chunk"], options["jobs"]))
                    await job.batch_defer_async(*({"n": n} for n in numbers))


if __name__ == "__main__":
    uvloop.run(main(*arguments()))
