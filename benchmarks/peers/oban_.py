"""Oban for Python. Options: limit."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import psycopg_pool
import uvloop
from oban import Oban, worker
from oban.schema import install

from benchmarks.peers.meter import Meter, Stopwatch, arguments, beats

POOL = 20

meter: Meter
effects: Any


@worker(queue="default")
class Noop:
    async def process(self, job: Any) -> None:
        meter.start(**job.args)


@worker(queue="default")
class Effect:
    async def process(self, job: Any) -> None:
        meter.start(**job.args)
        async with effects.connection() as conn:
            await conn.execute("INSERT INTO effect (n) VALUES (%s)", [job.args["n"]])


async def work(pool: Any, url: str, options: dict[str, Any]) -> None:
    global meter, effects  # noqa: PLW0603 (a worker is made from its class's name alone)
    meter = Meter(options)
    async with (
        psycopg_pool.AsyncConnectionPool(url, min_size=1, max_size=POOL, kwargs={"autocommit": True}) as effects,
        Oban(pool=pool, queues={"default": options["limit"]}),
    ):
        await asyncio.Event().wait()


async def main(command: str, url: str, options: dict[str, Any]) -> None:
    pool = await Oban.create_pool(url, max_size=POOL)
    if command == "setup":
        await install(pool)
    elif command == "work":
        await work(pool, url, options)
    else:
        await enqueue(Oban(pool=pool), pool, command, options)
    await pool.close()


async def enqueue(oban: Oban, pool: Any, command: str, options: dict[str, Any]) -> None:
    kind: Any = Effect if options["handler"] == "effect" else Noop
    if command == "send":
        for n, pause in beats(options):
            await asyncio.sleep(pause)
            await oban.enqueue(kind.new({"n": n, "sent": time.monotonic()}))
    elif command == "one":
        with Stopwatch():
            for n in range(options["jobs"]):
                await oban.enqueue(kind.new({"n": n}))
    else:
        with Stopwatch():
            await oban.enqueue_many(kind.new({"n": n}) for n in range(options["jobs"]))


if __name__ == "__main__":
    uvloop.run(main(*arguments()))
