"""A million jobs that one transaction enqueues: what that costs the client, what another queue notices of it, and how
they are worked off."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

from benchmarks.bulk import SCHEMA, probing
from benchmarks.drain import Drain
from benchmarks.ground import LARGE, Size, WrongResult, own_server, table
from benchmarks.report import Question
from benchmarks.workload import DEADLINE

_THREADS = 8
_IDLE = 3.0  # seconds of probes with nothing beside them


def measure(size: Size) -> Iterator[Question]:
    with own_server(LARGE) as server, table(server.dsn, SCHEMA, size.rows) as (client, rows):
        command = [sys.executable, "-m", "benchmarks.bulk", "--dsn", server.dsn, "--way", "without"]
        with probing(client) as idle:
            time.sleep(_IDLE)
        with probing(client) as busy:
            done = subprocess.run([*command, "--jobs", str(size.rows)], check=True, capture_output=True, text=True)
        seconds, memory = map(float, done.stdout.split())
        there = rows.value("SELECT count(*) FROM {job} WHERE kind = 'mail' AND state = 'available'")
        if there != size.rows:
            raise WrongResult(f"{size.rows} jobs were enqueued, {there} are there")
        question = Question(
            "one transaction", f"{size.rows:,} jobs enqueued in one transaction", "each in its own unit"
        )
        question.tell("jobs/s", size.rows / seconds)
        question.tell("memory of the client, MB", memory)
        yield question
        pickup = Question("beside it", "Pickup in another queue meanwhile", "ms", waits=True)
        for name, waits in (("nothing beside", idle), ("while they are enqueued", busy)):
            pickup.tell(name, *(1000 * wait for wait in waits))
        yield pickup
        rows.settle()
        worked = Question("worked off", f"They are worked by {_THREADS} threads", "jobs/s")
        for name, wanted, options in size.modes:
            to_do = wanted if not options else size.rows - 2 * size.jobs
            run = Drain(
                client, rows, _THREADS, kind="mail", load=rows.settle, wanted=to_do, patience=DEADLINE, **options
            )
            worked.add(name, run)
        worked.measure(1)
        yield worked
