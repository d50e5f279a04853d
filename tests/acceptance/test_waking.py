"""Waking without polling: nothing that is enqueued is overlooked, though those who enqueue notify but once."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from pgjobs import Client, Job, WorkerPool
from pgjobs.posts import Posts
from pgjobs.worker import WorkerPool as Pool
from tests.waiting import wait_until

HOUR = timedelta(hours=1)
Tx = psycopg.Connection[Any]


@contextmanager
def delays(chance: float) -> Iterator[None]:
    """Now and then a pause between a look and what follows from it, and around what the listener does."""

    def delayed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            pause()
            try:
                return function(*args, **options)
            finally:
                pause()

        return call

    def pause() -> None:
        if random.random() < chance:
            time.sleep(random.choice([0, 0.001, 0.003, 0.015]))

    with pytest.MonkeyPatch.context() as patch:
        for owner, names in (
            (Posts, ("_arm", "_leave", "disarm", "send", "tend")),
            (Pool, ("_ask_to_be_woken", "_work_while_jobs")),
        ):
            for name in names:
                patch.setattr(owner, name, delayed(getattr(owner, name)))
        yield


def enqueue_some(client: Client, jobs: int) -> None:
    """By itself, several in a transaction, or in one that stays open a while."""
    while jobs > 0:
        with client.pool.connection() as tx:
            for _ in range(min(jobs, random.choice([1, 1, 1, 1, 3]))):
                client.enqueue(tx, {"n": jobs}, kind="thing")
                jobs -= 1
            if random.random() < 0.1:
                time.sleep(random.choice([0.002, 0.02, 0.1]))
        time.sleep(random.choice([0, 0, 0, 0.0005, 0.002, 0.012, 0.03]))


def storm(dsn: str, schema: str, *, rounds: int, pools: int, threads: int, enqueuers: int, jobs: int) -> None:
    """Pools that never poll, and many who enqueue. Each round ends when all jobs have been started, within seconds."""

    def handler(tx: Tx, job: Job[Any]) -> None:
        time.sleep(random.choice([0, 0, 0, 0.001, 0.01, 0.025]))

    with ExitStack() as stack:
        client = stack.enter_context(Client(dsn, schema=schema))
        client.pool.resize(1, enqueuers)
        conn = stack.enter_context(psycopg.connect(dsn, autocommit=True))
        made = []
        for _ in range(pools):
            own = stack.enter_context(Client(dsn, schema=schema))
            made.append(WorkerPool(own, {"thing": handler}, queues={"default": threads}, poll_interval=HOUR))
            stack.enter_context(made[-1])
        unfinished = f"""SELECT count(*) FROM "{schema}".job WHERE state <> 'completed'"""
        for _ in range(rounds):
            callers = [threading.Thread(target=enqueue_some, args=(client, jobs)) for _ in range(enqueuers)]
            for caller in callers:
                caller.start()
            for caller in callers:
                caller.join()
            try:
                wait_until(lambda: conn.execute(unfinished).fetchall() == [(0,)], timeout=20)
            except AssertionError:
                state = conn.execute(unfinished).fetchall(), [vars(pool._queues["default"].post) for pool in made]
                raise AssertionError(f"overlooked: {state}") from None
            conn.execute(f'TRUNCATE "{schema}".job')


@pytest.mark.parametrize(("pools", "threads"), [(1, 1), (1, 4), (4, 1), (3, 3)])
@pytest.mark.parametrize("chance", [0, 0.3])
def test_nothing_is_overlooked_though_nobody_polls(
    client: Client, database: str, pools: int, threads: int, chance: float
) -> None:
    with delays(chance):
        storm(database, client.schema, rounds=2, pools=pools, threads=threads, enqueuers=4, jobs=40)
