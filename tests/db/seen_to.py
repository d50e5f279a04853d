"""Whether a worker pool does all that it is there for."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import psycopg

from pgjobs import Client, Job, JobState, Schedule, Snooze, WorkerPool, constant
from tests.db.conftest import Run
from tests.waiting import wait_until

SOON = timedelta(seconds=0.2)


def seen_to(client: Client, run: Run) -> None:
    """Whether jobs are promoted, rescued and retried, and ticks come, on a worker pool that starts now."""
    times: list[str] = []

    def handler(tx: psycopg.Connection[Any], job: Job[Any]) -> None:
        times.append(job.args["name"])
        if job.args["name"] == "fail" and job.attempt == 1:
            raise ValueError("once")
        if job.args["name"] == "snooze" and times.count("snooze") == 1:
            raise Snooze(SOON)

    pool = WorkerPool(client, {"thing": handler}, queues={"default": 2}, backoff=constant(SOON), cron=[
        Schedule("often", "@every 1s", {"name": "tick"}, kind="thing")])  # fmt: skip
    jobs = [client.enqueue(None, {"name": name}, kind="thing") for name in ("complete", "fail", "snooze")]
    jobs.append(client.enqueue(None, {"name": "later"}, kind="thing", delay=SOON))
    lost = client.enqueue(None, {"name": "lost"}, kind="thing", pending=True)
    run(
        "UPDATE pgjobs.job SET state = 'running', attempt = 1, token = gen_random_uuid(), "
        "attempted_at = now() - interval '1 minute' WHERE id = %s",
        lost.id,
    )
    with pool:
        for job in (*jobs, lost):
            wait_until(lambda id=job.id: (found := client.get(id)) and found.state is JobState.COMPLETED, timeout=20)  # type: ignore[misc]
        wait_until(lambda: "tick" in times)
    found = client.get(lost.id)
    assert found is not None
    assert len(found.errors) == 1
