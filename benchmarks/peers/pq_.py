"""pq. Options: threads; transactional, the way of its README to run a job and write a result with one commit."""

from __future__ import annotations

import threading
import time
from typing import Any

import psycopg2
from pq import PQ

from benchmarks.peers.meter import Meter, Stopwatch, arguments, beats


def in_transaction(url: str, handle: Any) -> None:
    queue = PQ(psycopg2.connect(url))["default"]
    while True:
        with queue as cursor:
            job = queue.get(block=False)
            if job is not None:
                handle(cursor, job.data)
        if job is None:
            time.sleep(0.05)


def waiting(url: str, handle: Any) -> None:
    for job in PQ(psycopg2.connect(url))["default"]:
        if job is not None:
            handle(None, job.data)


def work(url: str, options: dict[str, Any]) -> None:
    meter = Meter(options)

    def noop(cursor: Any, args: dict[str, Any]) -> None:
        meter.start(**args)

    def effect(cursor: Any, args: dict[str, Any]) -> None:
        meter.start(**args)
        cursor.execute("INSERT INTO effect (n) VALUES (%s)", [args["n"]])

    loop = in_transaction if options["transactional"] else waiting
    handler = effect if options["handler"] == "effect" else noop
    threads = [threading.Thread(target=loop, args=(url, handler)) for _ in range(options["threads"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main(command: str, url: str, options: dict[str, Any]) -> None:
    if command == "work":
        return work(url, options)
    pq = PQ(psycopg2.connect(url))
    queue = pq["default"]
    if command == "setup":
        pq.create()
    elif command == "fill":
        with queue:
            for n in range(options["jobs"]):
                queue.put({"n": n})
    elif command == "send":
        for n, pause in beats(options):
            time.sleep(pause)
            queue.put({"n": n, "sent": time.monotonic()})
    else:
        with Stopwatch():
            for n in range(options["jobs"]):
                queue.put({"n": n})
    return None


if __name__ == "__main__":
    main(*arguments())
