"""procrastinate: `setup DSN`, `enqueue DSN N` or `work DSN`. Jobs of a worker without heartbeats are retried by a
periodic task, as its how-to on stalled jobs has it, here at the shortest interval that its cron allows."""

import asyncio
import sys
from typing import Any

import procrastinate
import psycopg_pool

CONCURRENCY = 30


async def main(command: str, dsn: str, jobs: str = "0") -> None:
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn, max_size=CONCURRENCY + 4))
    effects = psycopg_pool.AsyncConnectionPool(
        dsn, min_size=1, max_size=CONCURRENCY, open=False, kwargs={"autocommit": True}
    )

    async def effect(n: int) -> None:
        async with effects.connection() as conn:
            await conn.execute("INSERT INTO effect (n) VALUES (%s)", [n])

    async def retry_stalled(context: Any, timestamp: int) -> None:
        for job in await app.job_manager.get_stalled_jobs():
            await app.job_manager.retry_job(job)

    app.task(name="effect")(effect)
    task = app.task(name="retry_stalled", queueing_lock="retry_stalled", pass_context=True)(retry_stalled)
    app.periodic(cron="* * * * *")(task)
    async with app.open_async(), effects:
        if command == "setup":
            await app.schema_manager.apply_schema_async()
        elif command == "enqueue":
            await app.configure_task("effect").batch_defer_async(*({"n": n} for n in range(int(jobs))))
        else:
            await app.run_worker_async(concurrency=CONCURRENCY)


asyncio.run(main(*sys.argv[1:]))
