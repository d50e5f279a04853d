"""The drain rate beside a million other rows, or behind them, over that without.

Both take turns, in two schemas of one database.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import psycopg

from benchmarks.drain import Drain
from benchmarks.ground import BATCHES, LARGE, Size, Table, own_server, table
from benchmarks.report import Question
from pgjobs import Client, WorkerPool

_THREADS = 8
_MADE_WITHIN = 10.0  # seconds
_PATIENCE = 30.0  # seconds for one run: a rate that is lower than that is known by then
_IN_FRONT = "statement_timestamp() - interval '1 hour'"
_FUTURE = "statement_timestamp() + interval '1 day'"


@dataclass(frozen=True)
class Backlog:
    """How a table is loaded with `rows` more than those that are worked."""

    name: str
    add: Callable[[Table, int], None]
    pool: dict[str, Any] = field(default_factory=dict)  # options of the worker pool
    columns: dict[str, str] = field(default_factory=dict)  # of the jobs that are worked, as for Table.fill
    pinned: bool = False  # whether a transaction that began before is open all the time
    sizes: tuple[float, ...] = (1.0,)  # of how many rows, as shares of the whole

    def load(self, table: Table, worked: int, rows: int) -> None:
        table.empty()
        if rows:
            self.add(table, rows)
        table.fill(worked, **self.columns)
        table.settle()


@contextmanager
def old_snapshot(dsn: str) -> Iterator[None]:
    """A transaction that might still want to see all that is deleted while the block runs."""
    with psycopg.connect(dsn) as conn:
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        conn.execute("SELECT 1")
        yield


def dead_entries(table: Table, rows: int, **columns: str) -> None:
    """Entries of the fetch index that vacuum could remove, if no old transaction were open."""
    before = table.value("SELECT COALESCE(max(id), 0) FROM {job}")
    table.fill(rows, scheduled_at=_IN_FRONT, **columns)
    table.execute("DELETE FROM {job} WHERE id > %s", before)


def _beside(**columns: str) -> Callable[[Table, int], None]:
    return lambda table, rows: table.fill(rows, **columns)


FIVE_PRIORITIES = {"priority": "n %% 5"}
FIFTY_QUEUES = {**FIVE_PRIORITIES, "queue": "'queue-' || n %% 50"}

BACKLOGS = (
    Backlog("waiting", _beside()),
    Backlog("future", _beside(state="'scheduled'", scheduled_at=_FUTURE)),
    Backlog("better-priority future", _beside(state="'scheduled'", scheduled_at=_FUTURE, priority="-1")),
    Backlog("completed", _beside(state="'completed'", attempt="1", finalized_at="statement_timestamp()")),
    Backlog("dead entries in front, old snapshot", dead_entries, pinned=True, sizes=(0.1, 1.0)),
    Backlog(
        "unknown kinds in front, left alone",
        _beside(kind="'foreign'", scheduled_at=_IN_FRONT),
        pool={"unknown_kinds": "leave"},
    ),
    Backlog(
        'waiting, 5 priorities, order="scheduled_at"',
        _beside(**FIVE_PRIORITIES),
        pool={"order": "scheduled_at"},
        columns=FIVE_PRIORITIES,
    ),
    Backlog("waiting in 50 queues, 5 priorities", _beside(**FIFTY_QUEUES), columns=FIVE_PRIORITIES),
)


def measure(size: Size) -> Iterator[Question]:
    with own_server(LARGE) as server:
        for backlog in BACKLOGS:
            for share in backlog.sizes:
                yield _measured(size, server.dsn, backlog, round(share * size.rows))


def _be_ready(client: Client, table: Table, options: dict[str, Any]) -> None:
    """Let a pool make the index that it makes when it is first started with this order, where it does."""
    if options.get("order") != "scheduled_at":
        return
    ends, given_up = "%(queue, scheduled_at, id)%", time.monotonic() + _MADE_WITHIN
    query = "SELECT count(*) FROM pg_indexes WHERE schemaname = %s AND indexdef LIKE %s"
    with WorkerPool(client, {"noop": lambda tx, job: None}, queues={"default": 1}, **options):
        while not table.value(query, client.schema, ends) and time.monotonic() < given_up:
            time.sleep(0.1)


def _measured(size: Size, dsn: str, backlog: Backlog, rows: int) -> Question:
    question = Question(f"{rows} {backlog.name}", f"Drain by {_THREADS} threads, {rows:,} {backlog.name}", "jobs/s")
    needed = sum(2 * size.rounds * wanted for _, wanted, _ in size.modes)
    with ExitStack() as stack:
        client, without = stack.enter_context(table(dsn, "without", 0))
        grown_client, grown = stack.enter_context(table(dsn, "grown", 0))
        grown.empty()
        for made in (client, grown_client):
            _be_ready(made, grown, backlog.pool)
        stack.enter_context(old_snapshot(dsn) if backlog.pinned else nullcontext())
        backlog.load(grown, needed, rows)
        for name, wanted, options in size.modes:
            pool = {"wanted": wanted, "patience": _PATIENCE, **options, **backlog.pool}
            run = Drain(client, without, _THREADS, load=partial(backlog.load, without, 2 * wanted, 0), **pool)
            question.add(f"{name}, without", run)
            run = Drain(grown_client, grown, _THREADS, load=grown.settle, **pool)
            question.add(f"{name}, with", run, over=[f"{name}, without"])
        question.measure(size.rounds)
        grown.empty()
    for arm in question.arms:
        ratio = question.ratio(arm)
        if ratio is not None:
            line = f"{backlog.name}, {arm.name.removesuffix(', with')}" if BATCHES else backlog.name
            question.points.append((line, rows, ratio))
    return question
