"""chancy. Options: concurrency of the asynchronous executor, send_outgoing_interval in seconds."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import psycopg_pool
import uvloop
from chancy import Chancy, Job, Queue, Worker

from benchmarks.peers.meter import Meter, Stopwatch, arguments, beats

POOL = 20

meter: Meter
effects: Any


async def noop(**args: Any) -> None:
    meter.start(**args)


async def effect(**args: Any) -> None:
    meter.start(**args)
    async with effects.connection() as conn:
        await conn.execute("INSERT INTO effect (n) VALUES (%s)", [args["n"]])


async def work(chancy: Chancy, url: str, options: dict[str, Any]) -> None:
    global meter, effects  # noqa: PLW0603 (a job is found by its function's name alone)
    meter = Meter(options)
    queue = Queue("default", executor=Chancy.Executor.Async, concurrency=options["concurrency"], eager_polling=True)
    await chancy.declare(queue, upsert=True)
    async with psycopg_pool.AsyncConnectionPool(url, min_size=1, max_size=POOL, kwargs={"autocommit": True}) as effects:
        worker = Worker(chancy)
        worker.send_outgoing_interval = options["send_outgoing_interval"]
        async with worker:
            await worker.wait_for_shutdown()


async def main(command: str, url: str, options: dict[str, Any]) -> None:
    quiet = logging.getLogger("chancy")
    quiet.setLevel(logging.ERROR)  # it says one line for each job
    async with Chancy(url, log=quiet, max_connection_pool_size=POOL) as chancy:
        job = Job.from_func(effect if options.get("handler") == "effect" else noop)
        if command == "setup":
            await chancy.migrate()
        elif command == "work":
            await work(chancy, url, options)
        elif command == "send":
            for n, pause in beats(options):
                await asyncio.sleep(pause)
                await chancy.push(job.with_kwargs(n=n, sent=time.monotonic()))
        elif command == "one":
            with Stopwatch():
                for n in range(options["jobs"]):
                    await chancy.push(job.with_kwargs(n=n))
        else:
            with Stopwatch():
                jobs = [job.with_kwargs(n=n) for n in range(options["jobs"])]
                async for _ in chancy.push_many(jobs, batch_size=options["chunk"]):
                    pass


if __name__ == "__main__":
    uvloop.run(main(*arguments()))
