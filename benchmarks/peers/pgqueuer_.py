"""PgQueuer. Options: batch_size."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgPoolDriver
from pgqueuer.queries import Queries

from benchmarks.peers.meter import Meter, Stopwatch, arguments, beats


async def work(effects: Any, driver: Any, options: dict[str, Any]) -> None:
    meter, queuer = Meter(options), PgQueuer(driver)

    async def noop(job: Any) -> None:
        meter.start(**json.loads(job.payload))

    async def effect(job: Any) -> None:
        args = json.loads(job.payload)
        meter.start(**args)
        await effects.execute("INSERT INTO effect (n) VALUES ($1)", args["n"])

    queuer.entrypoint("job")(effect if options["handler"] == "effect" else noop)
    await queuer.run(batch_size=options["batch_size"])


async def main(command: str, url: str, options: dict[str, Any]) -> None:
    async with (
        asyncpg.create_pool(url, min_size=2, max_size=20) as pool,
        asyncpg.create_pool(url, min_size=1, max_size=20) as effects,
    ):
        driver = AsyncpgPoolDriver(pool)
        queries = Queries(driver)
        if command == "setup":
            await queries.install()
        elif command == "work":
            await work(effects, driver, options)
        elif command == "send":
            for n, pause in beats(options):
                await asyncio.sleep(pause)
                await queries.enqueue("job", json.dumps({"n": n, "sent": time.monotonic()}).encode())
        elif command == "one":
            with Stopwatch():
                for n in range(options["jobs"]):
                    await queries.enqueue("job", json.dumps({"n": n}).encode())
        else:
            with Stopwatch():
                for first in range(0, options["jobs"], options["chunk"]):
                    numbers = range(first, min(first + options["chunk"], options["jobs"]))
                    payloads: list[bytes | None] = [json.dumps({"n": n}).encode() for n in numbers]
                    await queries.enqueue(["job"] * len(numbers), payloads, [0] * len(numbers))


if __name__ == "__main__":
    uvloop.run(main(*arguments()))
