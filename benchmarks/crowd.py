"""One process with 200 threads: with nothing to do, when one job comes, with a full queue, and when 10,000 jobs are due
at the same second."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from benchmarks import latency, memory
from benchmarks.drain import Drain
from benchmarks.ground import LARGE, Size, own_server, table
from benchmarks.report import Question

_THREADS = 200
_DUE = 10_000


def measure(size: Size) -> Iterator[Question]:
    with own_server({**LARGE, "shared_preload_libraries": memory.STATEMENTS}) as server:
        yield _idle(server.dsn)
    with own_server(LARGE) as server, table(server.dsn, "pgjobs", size.jobs) as (client, rows):
        full = Question("crowd", f"Drain by {_THREADS} threads", "jobs/s")
        for name, wanted, options in size.modes:
            for threads in (8, _THREADS):
                over = [f"{name}, 8 threads"] if threads > 8 else []
                run = Drain(client, rows.sized(wanted), threads, **options)
                full.add(f"{name}, {threads} threads", run, over=over)
        full.measure(size.rounds)
        yield full
        due = min(_DUE, size.rows)
        late = Question("same second", f"{due:,} jobs due at the same second, {_THREADS} threads", "ms", waits=True)
        late.add("start after the instant", partial(latency.same_instant, server.dsn, rows, _THREADS, due))
        late.measure(1)
        yield late


def _idle(dsn: str) -> Question:
    question = Question("idle crowd", f"{_THREADS} idle threads", "a second, but for the connections")
    with table(dsn, "pgjobs", 1) as (client, _), memory.IdleProcess(dsn, "pgjobs", _THREADS) as idle:
        for name, figure in idle.rates(10.0).items():
            question.tell(name, figure)
        quiet = idle.claims(2.0, lambda: None)
        woken = idle.claims(2.0, lambda: client.enqueue(None, {}, kind="noop"))
        question.tell("claims for one job that is enqueued", woken - quiet)
    return question
