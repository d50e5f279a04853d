"""What an enqueue sends to the server, and what becomes of it when Ctrl-C comes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.conftest import Connect
from tests.waiting import wait_until

Query = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def query(connect: Connect, schema: str) -> Query:
    """Runs SQL from outside, in which {s} stands for the schema."""
    conn = connect(autocommit=True)

    def run(text: str, *parameters: object) -> list[tuple[Any, ...]]:
        done = conn.execute(sql.SQL(text).format(s=sql.Identifier(schema)), parameters or None)
        return done.fetchall() if done.description else []

    return run


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """It raises, though the background job of a shell ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def sent(conn: psycopg.Connection[Any], work: Callable[[], object], path: Path) -> list[str]:
    """The kinds of the messages that are sent on the connection meanwhile."""
    with path.open("w+b") as trace:
        conn.pgconn.trace(trace.fileno())
        work()
        conn.pgconn.untrace()
        trace.seek(0)
        lines = [line.split(b"\t") for line in trace.read().splitlines()]
        return [line[3].decode() for line in lines if line[1:2] == [b"F"]]


def interrupt_an_insert(insert: Callable[[], object], schema: str, connect: Connect, query: Query) -> None:
    """Insert a job, which waits for a lock, and send Ctrl-C while it does."""
    holder = connect()
    holder.execute(sql.SQL("LOCK TABLE {}.job IN SHARE MODE").format(sql.Identifier(schema)))
    waits = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ILIKE %s"

    def interrupt() -> None:
        wait_until(lambda: query(waits, f"%INSERT INTO%{schema}%"))
        os.kill(os.getpid(), signal.SIGINT)

    presses = threading.Thread(target=interrupt)
    presses.start()
    with pytest.raises(KeyboardInterrupt):
        insert()
    presses.join()
    holder.rollback()
