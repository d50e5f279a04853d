"""PgQueuer: `setup DSN`, `enqueue DSN N` or `work DSN`."""

import sys
from typing import Any

import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgPoolDriver
from pgqueuer.queries import Queries

BATCH = 1000


async def main(command: str, dsn: str, jobs: str = "0") -> None:
    async with asyncpg.create_pool(dsn, min_size=2, max_size=20) as pool:
        driver = AsyncpgPoolDriver(pool)
        if command == "setup":
            await Queries(driver).install()
        elif command == "enqueue":
            number = int(jobs)
            await Queries(driver).enqueue(["effect"] * number, [b"%d" % n for n in range(number)], [0] * number)
        else:
            queuer = PgQueuer(driver)

            async def effect(job: Any) -> None:
                await pool.execute("INSERT INTO effect (n) VALUES ($1)", int(job.payload))

            queuer.entrypoint("effect")(effect)
            await queuer.run(batch_size=BATCH)


uvloop.run(main(*sys.argv[1:]))
