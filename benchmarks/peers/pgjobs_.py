"""pgjobs. Options: threads, and with a batch_size batch mode."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from benchmarks.peers.meter import Meter, Stopwatch, arguments, beats
from pgjobs import Client, Job, WorkerPool, WorkMap


@dataclass
class Args:
    n: int


@dataclass
class Probe:
    n: int
    sent: float


def work(client: Client, options: dict[str, Any]) -> None:
    meter = Meter(options)

    def noop(tx: Any, job: Job[Args]) -> None:
        meter.start(job.args.n)

    def effect(tx: Any, job: Job[Args]) -> None:
        meter.start(job.args.n)
        tx.execute("INSERT INTO effect (n) VALUES (%s)", [job.args.n])

    def probe(tx: Any, job: Job[Probe]) -> None:
        meter.start(job.args.n, job.args.sent)

    work_map = WorkMap({Args: effect if options["handler"] == "effect" else noop, Probe: probe})
    batch = {"batch_size": options["batch_size"]} if "batch_size" in options else {}
    pool = WorkerPool(client, work_map, queues={"default": options["threads"]}, **batch)
    pool.run()


def main(command: str, url: str, options: dict[str, Any]) -> None:
    with Client(url) as client:
        if command == "setup":
            client.migrate()
        elif command == "work":
            work(client, options)
        elif command == "send":
            for n, pause in beats(options):
                time.sleep(pause)
                client.enqueue(None, Probe(n, time.monotonic()))
        elif command == "one":
            with Stopwatch():
                for n in range(options["jobs"]):
                    client.enqueue(None, Args(n))
        else:
            with Stopwatch():
                jobs = (Args(n) for n in range(options["jobs"]))
                if options.get("ids", True):
                    client.enqueue_many(None, jobs)
                else:
                    client.enqueue_many(None, jobs, returning=False)


if __name__ == "__main__":
    main(*arguments())
