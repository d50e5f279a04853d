"""pgjobs. Options: threads, and with a batch_size batch mode."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.peers.meter import Meter, Stopwatch, arguments, beats
from pgjobs import Client, Job, NewJob, WorkerPool


def work(client: Client, options: dict[str, Any]) -> None:
    meter = Meter(options)

    def noop(tx: Any, job: Job[Any]) -> None:
        meter.start(job.args)

    def effect(tx: Any, job: Job[Any]) -> None:
        meter.start(job.args)
        tx.execute("INSERT INTO effect (n) VALUES (%s)", [job.args["n"]])

    handler = effect if options["handler"] == "effect" else noop
    batch = {"batch_size": options["batch_size"]} if "batch_size" in options else {}
    pool = WorkerPool(client, {"job": handler}, queues={"default": options["threads"]}, **batch)
    # On a server that has just started, claims wait for the disk for some minutes. Here the steady state counts.
    pool._executor.claimer._cautious_until = 0.0
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
                client.enqueue(None, {"n": n, "sent": time.monotonic()}, kind="job")
        elif command == "one":
            with client.pool.connection() as tx, Stopwatch():
                for n in range(options["jobs"]):
                    client.enqueue(tx, {"n": n}, kind="job")
                    tx.commit()
        else:
            with Stopwatch():
                jobs = (NewJob({"n": n}, kind="job") for n in range(options["jobs"]))
                if options.get("ids", True):
                    client.enqueue_many(None, jobs)
                else:
                    client.enqueue_many(None, jobs, returning=False)


if __name__ == "__main__":
    main(*arguments())
