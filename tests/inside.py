"""What tests see of a running pool that it does not publish: the one place that knows its private names."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg

from pgjobs import Client, WorkerPool
from pgjobs.execution.attempt import Attempt, GracePeriods, Reason
from pgjobs.execution.claimer import Claimer
from pgjobs.maintenance.time_index import TimeIndex
from pgjobs.options import EncodedJob
from pgjobs.queue_settings import RunSettings
from pgjobs.wakeup.idle_threads import WakeupState
from pgjobs.wakeup.listener import Listener


def stopping(pool: WorkerPool) -> threading.Event:
    """Set when a stop has begun."""
    return pool._stopping


def begin_stop(pool: WorkerPool) -> None:
    """The first step of a stop, which waits for no thread."""
    pool._begin_stop()


def is_being_started_or_stopped(pool: WorkerPool) -> bool:
    return pool._control.locked()


def is_cut_off(pool: WorkerPool) -> bool:
    """Whether a stop has told all handlers to end."""
    return pool._watchdog._stop_all is not None


def at_work(pool: WorkerPool) -> list[str]:
    """The queue of each worker thread that has not ended."""
    return [workers.queue for workers in pool._threads._working.values()]


def waiting(pool: WorkerPool, queue: str = "default") -> int:
    """How many threads of a queue wait for work."""
    return pool._context.queue_workers[queue].idle._idle


def all_wait(pool: WorkerPool, *, asleep: bool = False) -> bool:
    """Whether every thread waits for work; `asleep`: and it leads each queue, with NOTIFY on."""
    idle = [workers.idle for workers in pool._context.queue_workers.values()]
    return all(each._idle == each.threads and (each.wakeup.asleep or not asleep) for each in idle)


def wakeup(pool: WorkerPool, queue: str = "default") -> WakeupState:
    return pool._context.queue_workers[queue].idle.wakeup


def listener(pool: WorkerPool) -> Listener:
    assert pool._context.listener is not None
    return pool._context.listener


def listens(pool: WorkerPool) -> bool:
    """Whether notifications reach it."""
    return pool._context.listener is not None and pool._context.listener.listening


def listens_directly(pool: WorkerPool) -> bool:
    """Whether notifications reach it, and no pooler stands between."""
    return pool._context.listening()


def claimer(pool: WorkerPool) -> Claimer:
    return pool._executor.claimer


def forget_the_start_of_the_server(pool: WorkerPool) -> None:
    """Claim as when the server has been up for long."""
    claimer(pool).sync_until = 0.0


def extend_leases(pool: WorkerPool, conn: psycopg.Connection[Any]) -> None:
    """Look after the detached attempts now, not in some seconds."""
    pool._heartbeat.extend_leases_at = 0.0
    pool._heartbeat.look_after_attempts(conn)


def refresh_queues(pool: WorkerPool) -> None:
    """Let its next heartbeat refresh the rows of its queues, not that in a minute."""
    pool._heartbeat.refresh_queues_at = 0.0


def encoder(client: Client) -> Callable[..., EncodedJob]:
    """Makes of args and options the values of a row."""
    return client._encoder.encode


def tick_soon(pool: WorkerPool) -> None:
    """Look at the schedules now, as when one is due earlier than was known."""
    pool._context.tick_soon()


# --- its parts, on the thread of the test


@contextmanager
def on_one_connection(pool: WorkerPool) -> Iterator[Callable[[], bool]]:
    """`work_one`, but always on the same connection, as long as nothing is wrong with it."""
    executor = pool._executor
    with (
        pool._watchdog.running(),
        pool._client.source.checkout() as checkout,
        pool._watchdog.guard(checkout) as slot,
    ):

        def work_one() -> bool:
            job = executor.claim(checkout, "default")
            if job is not None:
                executor.run(slot, job)
            return job is not None

        yield work_one


def work_while_jobs(pool: WorkerPool, queue: str) -> None:
    """What a worker thread does until it has found nothing."""
    pool._threads.work_while_jobs(pool._build_queue_workers(queue, 1))


def work_one_batch(pool: WorkerPool, size: int) -> None:
    settings = RunSettings(size, timedelta(minutes=1), False)
    with (
        pool._watchdog.running(),
        pool._client.source.checkout() as checkout,
        pool._watchdog.guard(checkout) as slot,
    ):
        pool._threads._batches.run_next(slot, "default", settings, claimed=lambda: None, ends=lambda: False)


# --- the watch over running handlers, and the index by time


def attempts(pool: WorkerPool) -> list[Attempt]:
    return pool._watchdog.attempts


def request_stop(pool: WorkerPool, token: UUID, reason: Reason, grace: GracePeriods) -> None:
    """Tell the attempt with this token to end."""
    pool._watchdog.request_stop(token, reason, grace)


def is_watched(pool: WorkerPool) -> bool:
    """Whether there is a thread that watches over running handlers."""
    return pool._watchdog._thread is not None


def time_index(pool: WorkerPool) -> TimeIndex | None:
    return pool._background.time_index


def time_index_thread(pool: WorkerPool) -> threading.Thread:
    assert pool._background.time_index is not None
    return pool._background.time_index._thread
