"""The whole life of a queue, through all that the library sends; for tests that look at how it sends that."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg

from pgjobs import (
    Cancel,
    Client,
    Discard,
    Handler,
    Job,
    JobFilter,
    JobState,
    NewJob,
    Schedule,
    Snooze,
    Unique,
    WorkerPool,
    WorkMap,
    constant,
    every,
)
from pgjobs.maintenance.duties import Maintenance
from pgjobs.maintenance.queries import MaintenanceQueries
from pgjobs.maintenance.reindexer import MIDNIGHT, Reindex
from tests.samples import HOUR
from tests.waiting import wait_until

Conn = psycopg.Connection[Any]
NO_TIME = timedelta(0)
WAITS = [JobState.AVAILABLE, JobState.SCHEDULED, JobState.PENDING]


@dataclass
class Deed:
    what: str
    n: int = 0


def do(tx: Conn | None, job: Job[Deed]) -> None:
    """A handler that ends in every way; it has no operator of its own."""
    if tx is None:
        end(job)
        return
    tx.execute("SELECT 1")
    if job.args.what == "complete":
        job.complete(tx)
    elif job.args.what == "sever" and job.attempt == 1:
        tx.close()
    else:
        end(job)


def end(job: Job[Deed]) -> None:
    match job.args.what:
        case "keep":
            job.set_metadata(seen=True)
            job.record_output([1, 2])
        case "fail" if job.attempt == 1:
            raise RuntimeError("once")
        case "snooze":
            raise Snooze(timedelta(days=1))
        case "discard":
            raise Discard("no good")
        case "cancel":
            raise Cancel("not wanted")
        case "wait":
            job.set_progress(1, total=2, note="waits")
            wait_until(lambda: job.cancelled)
            raise Cancel("asked for")


@dataclass
class FreeDeed(Deed):
    """One that is done outside of a transaction."""


@dataclass
class Idle:
    n: int = 0


def untouched(tx: Conn | None, job: Job[Any]) -> None: ...


ENDS = {
    "nothing": JobState.COMPLETED,
    "keep": JobState.COMPLETED,
    "fail": JobState.COMPLETED,
    "snooze": JobState.SCHEDULED,
    "discard": JobState.DISCARDED,
    "cancel": JobState.CANCELLED,
    "complete": JobState.COMPLETED,
    "sever": JobState.COMPLETED,
}


def enqueue_in_every_way(client: Client, conn: Conn) -> None:
    """Alone and many, in a transaction and without, with a key, with a time; `conn` is the application's."""
    keyed: dict[str, Any] = {"unique": Unique(by_args=True, by_queue=True, by_period=HOUR)}
    for tx in (None, conn):
        client.enqueue(tx, Deed("waits"), queue="alone")
        client.enqueue(tx, Deed("waits"), queue="alone", tags=["some-tag"], priority=3, metadata={"a": 1})
        client.enqueue(tx, Deed("waits"), queue="alone", delay=HOUR)
        client.enqueue(tx, Deed("waits"), queue="alone", pending=True, notify=False)
        client.enqueue(tx, Deed("unique"), queue="alone", **keyed)
        assert client.enqueue(tx, Deed("unique"), queue="alone", **keyed).duplicate
        newer = client.enqueue(tx, Deed("unique"), queue="alone", replace=True, priority=9, tags=["new-tag"], **keyed)
        assert newer.duplicate
        client.enqueue_many(tx, [NewJob(Deed("waits", n), queue="many", delay=n * HOUR) for n in range(5)])
        client.enqueue_many(tx, [NewJob(Deed("unique", n % 2), queue="many", **keyed) for n in range(4)])
        client.enqueue_many(tx, [NewJob(Deed("waits", n), queue="many", tags=["some-tag"]) for n in range(30)])
        client.enqueue_many(
            tx, (NewJob(Deed("waits", n), queue="many", delay=n * HOUR) for n in range(30)), returning=False
        )
        conn.commit()
    conn.execute(f"""SELECT "{client.schema}".enqueue('deed', '{{"what": "waits"}}', 'sql', delay => '1 hour')""")
    uniqueness = '{"by_args": ["what"], "by_period": "1 hour", "by_queue": true}'
    for _ in range(2):
        conn.execute(
            f"""SELECT "{client.schema}".enqueue('deed', '{{"what": "x"}}', 'sql', uniqueness => '{uniqueness}')"""
        )
    conn.commit()


def look_in_every_way(client: Client, tx: Conn | None) -> None:
    now = datetime.now(UTC)
    spans: dict[str, Any] = {
        f"{clock}_{side}": now
        for clock in ("created", "scheduled", "attempted", "finalized")
        for side in ("after", "before")
    }
    full = JobFilter(
        ids=[1], kinds=["deed"], queues=["many"], priorities=[0], tags_any=["some-tag"], tags_all=["some-tag"],
        metadata={"a": 1}, args={"a": 1}, **spans,
    )  # fmt: skip
    for filter in (JobFilter(), full, JobFilter(states=["completed", "discarded"])):
        client.list_jobs(filter, tx)
        client.count(filter, tx)
    for state in JobState:
        for descending in (False, True):
            if state != JobState.PENDING:
                page = client.list_jobs(JobFilter(states=[state]), tx, order="time", descending=descending, limit=1)
                client.list_jobs(
                    JobFilter(states=[state]), tx, order="time", descending=descending, cursor=page.next, limit=1
                )
            page = client.list_jobs(JobFilter(states=[state]), tx, descending=descending, limit=1)
            client.list_jobs(JobFilter(states=[state]), tx, descending=descending, cursor=page.next, limit=1)
    client.queues.list(tx)
    client.queues.stats(None, tx)
    client.queues.stats(["many"], tx)
    client.workers(tx)
    client.schedules.list(tx)
    client.get(1, tx)


def control_in_every_way(client: Client, conn: Conn) -> None:
    """One job by its id, and many by a filter, of those that wait."""
    for tx in (None, conn):
        for act in (client.cancel, client.delete):
            act(client.enqueue(tx, Deed("waits"), queue="hand", delay=HOUR).id, tx)
        job = client.enqueue(tx, Deed("waits"), queue="hand", pending=True, unique=Unique(by_queue=True))
        client.update(
            job.id, tx, priority=2, scheduled_at=datetime.now(UTC) + HOUR, tags=["tag"], metadata={"a": 2}, output=1
        )
        client.release(job.id, tx)
        client.retry(client.cancel(job.id, tx, "no").id, tx)
        filter = JobFilter(queues=["hand"], states=[*WAITS, JobState.CANCELLED])
        client.update_many(filter, tx, priority=1, metadata={"b": 1})
        client.cancel_many(filter, tx, reason="enough")
        client.retry_many(filter, tx)
        assert client.delete_many(filter, tx).done
        client.queues.pause("many", tx)
        client.queues.pause("*", tx)
        client.queues.resume("*", tx)
        conn.commit()
    with client.lock_job(queue="many") as (_, locked):
        assert locked is not None


def schedule_in_every_way(client: Client, tx: Conn) -> None:
    client.schedules.add(Schedule("by-hand", "@hourly", Deed("nothing"), run_on_start=True), tx)
    client.schedules.change("by-hand", tx, spec="@daily", window=HOUR)
    client.schedules.pause("by-hand", tx)
    client.schedules.resume("by-hand", tx)
    client.schedules.run_now("by-hand", tx)
    client.schedules.get("by-hand", tx)
    client.schedules.remove("by-hand", tx)
    tx.commit()


def do_the_duties(client: Client, conn: Conn, admin: Conn) -> None:
    """The upkeep of what the `admin` has made of some jobs: of a worker that vanished, of what is due and over."""
    table = f'"{client.schema}".job'
    jobs = client.enqueue_many(
        None, [NewJob(Deed("nothing", n), queue="upkeep", unique=Unique(by_args=True)) for n in range(6)]
    )
    admin.execute(
        f"""UPDATE {table} SET state = 'running', attempt = 1, token = gen_random_uuid(),
        attempted_at = now() - interval '1 hour', attempted_by = '{{gone}}' WHERE id = ANY (%s)""",
        [[job.id for job in jobs[:2]]],
    )
    admin.execute(f"UPDATE {table} SET state = 'retryable', scheduled_at = now() WHERE id = %s", [jobs[2].id])
    admin.execute(f"UPDATE {table} SET state = 'completed', finalized_at = now() WHERE id = %s", [jobs[3].id])
    client.cancel(jobs[0].id)
    keep: dict[JobState, timedelta | None] = {state: NO_TIME for state in JobState if state.final}
    duties = Maintenance(client.schema, keep=keep)
    for name, duty in duties.duties.items():
        MaintenanceQueries(client.schema).begin_duty(conn, name)
        duty(conn)
        MaintenanceQueries(client.schema).end_duty(conn, name, NO_TIME)
        MaintenanceQueries(client.schema).postpone_duty(conn, name, NO_TIME)
    client.queries.extend_leases(conn, [uuid4()], HOUR)
    client.queries.cancelled_attempts(conn, [uuid4()])
    MaintenanceQueries(client.schema).anything_due(conn, HOUR)
    MaintenanceQueries(client.schema).bring_promote_forward(conn)
    states = admin.execute(
        f"SELECT state FROM {table} WHERE id = ANY (%s) ORDER BY id", [[job.id for job in jobs]]
    ).fetchall()
    assert [state for (state,) in states] == ["retryable", "available", "available", "available"]
    reindex = Reindex(client.schema, client.source.connect, at=MIDNIGHT, name="reindex")
    try:
        assert "job_fetch" in reindex.rebuild()
    finally:
        reindex.stop(10)


def work_in_every_way(workers: Client, enqueuer: Client, **settings: Any) -> None:
    """Let a pool run jobs that end in every way, one of them twice at once, and stop it."""
    queue = f"work.{time.monotonic_ns()}"
    handlers = WorkMap({Deed: do, FreeDeed: Handler(do, detached=True), Idle: untouched})
    pool = WorkerPool(
        workers, handlers, queues={queue: 2}, backoff=constant(NO_TIME), poll_interval=timedelta(seconds=0.2),
        lease=timedelta(seconds=5), **settings,
        cron=[Schedule("in-code", every(HOUR), Deed("nothing"), run_on_start=True, queue=queue)],
    )  # fmt: skip
    with pool:
        plain = enqueuer.enqueue_many(None, [NewJob(Idle(), queue=queue) for _ in range(4)])
        ends = [(job, JobState.COMPLETED) for job in plain]
        for what, end in [*ENDS.items(), *ENDS.items()]:
            ends.append((enqueuer.enqueue(None, Deed(what), queue=queue), end))
            if what not in ("complete", "sever"):
                ends.append((enqueuer.enqueue(None, FreeDeed(what), queue=queue), end))
        waiting = enqueuer.enqueue(None, Deed("wait"), queue=queue)
        wait_until(lambda: (found := enqueuer.get(waiting.id)) and found.progress)
        enqueuer.cancel(waiting.id, None, "asked for")
        for job, end in ends:
            wait_until(reached(enqueuer, job, end), timeout=30)
        wait_until(reached(enqueuer, waiting, JobState.CANCELLED))
        wait_until(lambda: enqueuer.count(JobFilter(queues=[queue], metadata={"schedule": "in-code"})).total)
        pool.schedules.remove("in-code")
        later = enqueuer.enqueue(None, Deed("nothing"), queue=queue, delay=timedelta(seconds=0.3))
        wait_until(reached(enqueuer, later, JobState.COMPLETED))


def reached(client: Client, job: Job[Any], wanted: JobState) -> Callable[[], bool]:
    return lambda: state(client, job) is wanted


def state(client: Client, job: Job[Any]) -> JobState | None:
    found = client.get(job.id)
    return None if found is None else found.state
