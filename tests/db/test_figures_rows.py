"""The rows of the figures: what a process adds and when, which steps are read, and what is pruned."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import errors

from pgjobs import AttemptFigures, Client, Figures, InvalidFilter
from pgjobs.maintenance.queries import MaintenanceQueries
from pgjobs.observe.figures import number_of
from pgjobs.observe.stats import KEEP_FIGURES
from pgjobs.workers.figures_writer import FiguresWriter
from pgjobs.workers.queries import WorkerQueries
from tests.conftest import Connect
from tests.samples import HOUR

Run = Callable[..., list[tuple[Any, ...]]]
MINUTE = timedelta(minutes=1)
NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)  # a Monday
#: An hour that ended some hours ago, but whose figures are kept by the minute.
RECENT = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - 3 * HOUR


@pytest.fixture
def run(client: Client, connect: Connect) -> Run:
    """Runs SQL that commits at once; in it `pgjobs.` stands for the schema of the test."""
    conn = connect(autocommit=True)

    def run(query: str, *values: object) -> list[tuple[Any, ...]]:
        cursor = conn.execute(query.replace("pgjobs.", f'"{client.schema}".').encode(), values or None)
        return cursor.fetchall() if cursor.description else []

    return run


class Process:
    """A worker process: what it counts, its clock, and what it writes."""

    def __init__(self, client: Client, conn: psycopg.Connection[Any], *known: str) -> None:
        self.conn = conn
        self.figures = AttemptFigures(known)
        self.time = 0.0
        self.writer = FiguresWriter(WorkerQueries(client.schema), self.figures, lambda: self.time)

    def ran(self, kind: str = "mail", outcome: str = "completed", *, run: float = 0.1, wait: float = 1.0) -> None:
        self.figures.record("default", kind, outcome, wait, run)

    def writes(self, after: float = 10.0) -> None:
        self.time += after
        self.writer.write(self.conn)


@pytest.fixture
def process(client: Client, connect: Connect) -> Process:
    return Process(client, connect(autocommit=True), "mail", "bill")


@pytest.fixture
def other(client: Client, connect: Connect) -> Process:
    return Process(client, connect(autocommit=True), "mail", "bill")


def all_of(client: Client, **options: Any) -> Figures:
    (figures,) = client.stats(by=[], **options)
    return figures


# --- written


def test_what_is_new_is_added_every_ten_seconds(client: Client, process: Process, run: Run) -> None:
    process.ran()
    process.writes(after=9.9)
    assert client.stats() == []
    process.writes(after=0.1)
    assert all_of(client).completed == 1
    run("TRUNCATE pgjobs.figure")
    process.writes()
    assert client.stats() == [], "nothing is new"
    process.ran(run=3)
    process.ran(outcome="retried")
    process.writes()
    figures = all_of(client)
    assert (figures.completed, figures.failed, figures.run.count, figures.run.total) == (1, 1, 2, 3.1)


def test_each_ending_stands_in_its_column(client: Client, process: Process) -> None:
    for times in (1, 2, 3):
        for n, outcome in enumerate(["completed", "retried", "discarded", "cancelled", "snoozed", "interrupted"], 1):
            for _ in range(n):
                process.ran(outcome=outcome)
        process.writes()
        found = all_of(client)
        assert (found.completed, found.failed, found.discarded) == (times, 5 * times, 3 * times)
        assert (found.cancelled, found.snoozed, found.interrupted) == (4 * times, 5 * times, 6 * times)
        assert found.run.count == found.wait.count == 21 * times
        assert found.run.total == pytest.approx(2.1 * times)
        assert found.wait.total == pytest.approx(21 * times)


def test_processes_add_to_the_same_row(client: Client, process: Process, other: Process, run: Run) -> None:
    for n in range(100):
        process.ran(run=0.001 * n, wait=0.0)
        other.ran(run=10.0 * n, wait=0.1 * n)
    process.writes()
    other.writes()
    both = AttemptFigures({"mail"})
    for n in range(100):
        both.record("default", "mail", "completed", 0.0, 0.001 * n)
        both.record("default", "mail", "completed", 0.1 * n, 10.0 * n)
    (expected,) = both.snapshot().values()
    found = all_of(client)
    assert found.completed == 200
    assert (found.run.counts, found.wait.counts) == (expected.run.counts, expected.wait.counts)
    assert found.run.total == pytest.approx(expected.run.total)
    assert run("SELECT count(*) FROM pgjobs.figure") in ([(1,)], [(2,)]), "two if the minute has changed"


def test_what_could_not_be_written_is_written_later_and_once(
    client: Client, process: Process, connect: Connect, run: Run
) -> None:
    holder = connect()
    process.ran()
    holder.execute(f'LOCK TABLE "{client.schema}".figure IN EXCLUSIVE MODE'.encode())
    with pytest.raises(errors.LockNotAvailable):
        process.writes()
    process.ran()
    process.writes(after=5)  # not yet: it would hold up the heartbeat every second
    holder.rollback()
    assert client.stats() == []
    process.writes(after=5)
    process.writes()
    assert all_of(client).completed == 2


def test_processes_that_add_to_many_rows_at_once_do_not_wait_in_a_circle(client: Client, connect: Connect) -> None:
    kinds = [f"kind-{n}" for n in range(40)]
    processes = [Process(client, connect(autocommit=True), *kinds) for _ in range(6)]
    problems: list[BaseException] = []

    def write(process: Process, order: list[str]) -> None:
        try:
            for _ in range(10):
                for kind in order:
                    process.ran(kind)
                process.writes()
        except BaseException as error:
            problems.append(error)

    threads = [
        threading.Thread(target=write, args=(process, kinds if n % 2 else kinds[::-1]))
        for n, process in enumerate(processes)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not [problem for problem in problems if isinstance(problem, errors.DeadlockDetected)]
    for process in processes:  # a write may have waited too long
        process.writes()
    assert all_of(client).completed == 6 * 10 * 40


# --- read


def test_figures_by_step_queue_and_kind(client: Client, run: Run) -> None:
    run(
        "INSERT INTO pgjobs.figure (minute, queue, kind, completed, failed, run_seconds, run_counts) VALUES "
        "(%s, 'mail', 'welcome', 3, 1, 2, %s), (%s, 'mail', 'welcome', 2, 0, 4, %s), (%s, 'mail', 'bye', 1, 0, 1, %s), "
        "(%s, 'slow', 'report', 7, 0, 700, %s)",
        *(RECENT, number_of([4])),
        *(RECENT + 4 * MINUTE, number_of([0, 2])),
        *(RECENT + 4 * MINUTE, number_of([1])),
        *(RECENT + 5 * MINUTE, number_of([0, 0, 7])),
    )

    def found(**options: Any) -> list[tuple[Any, ...]]:
        figures = client.stats(**{"since": RECENT, **options})
        return [((each.at - RECENT) // MINUTE, each.queue, each.kind, each.completed, each.failed) for each in figures]

    assert found() == [
        (0, "mail", "bye", 1, 0),
        (0, "mail", "welcome", 5, 1),
        (0, "slow", "report", 7, 0),
    ]
    assert found(step=MINUTE, queue="mail") == [
        (0, "mail", "welcome", 3, 1),
        (4, "mail", "bye", 1, 0),
        (4, "mail", "welcome", 2, 0),
    ]
    assert found(step=5 * MINUTE, by=["queue"]) == [(0, "mail", None, 6, 1), (5, "slow", None, 7, 0)]
    assert found(step=5 * MINUTE, by=[]) == [(0, None, None, 6, 1), (5, None, None, 7, 0)]
    assert found(by=["kind"], kind="report") == [(0, None, "report", 7, 0)]
    assert found(since=RECENT + 4 * MINUTE, by=[]) == [(4, None, None, 10, 0)]
    assert found(since=RECENT + 4 * MINUTE, by=[], step=HOUR) == [(0, None, None, 10, 0)]
    assert found(since=RECENT + timedelta(minutes=5, seconds=59), by=[]) == [(5, None, None, 7, 0)], "the minute counts"
    assert found(queue="none") == found(kind="none") == []
    (mail,) = client.stats(since=RECENT, queue="mail", by=[])
    assert (mail.run.counts, mail.run.total, mail.run.mean) == ((5, 2), 7, timedelta(seconds=1))
    assert mail.wait.counts == ()
    assert mail.wait.p95 is None


def test_steps_of_a_day_begin_at_midnight_and_of_a_week_on_monday(client: Client, run: Run) -> None:
    run("INSERT INTO pgjobs.figure (minute, queue, kind) VALUES ('2026-03-05 17:00Z', 'q', 'k')")
    for days, first in (1, 5), (7, 2):
        (figures,) = client.stats(since=NOON, step=timedelta(days=days))
        assert figures.at == datetime(2026, 3, first, tzinfo=UTC)


def test_since_counts_back_from_now(client: Client, run: Run) -> None:
    run(
        "INSERT INTO pgjobs.figure (minute, queue, kind, completed) SELECT date_trunc('minute', now()) - n * interval "
        "'1 minute', 'q', 'k', 1 FROM generate_series(1, 600) AS n"
    )
    assert all_of(client).completed in (60, 61)
    assert all_of(client, since=timedelta(minutes=10)).completed in (10, 11)
    assert all_of(client, since=timedelta(days=2_900_000)).completed == 600
    steps = client.stats(since=timedelta(hours=2), step=timedelta(minutes=30))
    assert [each.completed for each in steps[1:-1]] == [30] * (len(steps) - 2)


def test_a_caller_reads_in_its_own_transaction(client: Client, process: Process) -> None:
    process.ran()
    process.writes()
    with client.pool.connection() as tx:
        tx.execute(f'DELETE FROM "{client.schema}".figure'.encode())
        assert client.stats(tx=tx) == []
        tx.rollback()
        assert all_of(client, tx=tx).completed == 1


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"since": datetime(2026, 3, 2)}, "since .* has no time zone"),
        ({"since": timedelta(seconds=-1)}, "since must be"),
        ({"since": 3600}, "since must be .*not 3600"),
        ({"since": None}, "since must be"),
        ({"step": timedelta(seconds=30)}, "step must be whole minutes"),
        ({"step": timedelta(seconds=90)}, "step must be whole minutes"),
        ({"step": timedelta(days=8)}, "step must be whole minutes"),
        ({"step": 60}, "step must be a timedelta"),
        ({"by": "queue"}, r"by must be a list"),
        ({"by": ["state"]}, "by has 'queue' and 'kind', and not 'state'"),
        ({"queue": 7}, "queue must be a str"),
        ({"kind": "a\0b"}, "kind holds NUL"),
    ],
)
def test_wrong_arguments_are_refused_before_any_sql(client: Client, options: dict[str, Any], problem: str) -> None:
    with client.pool.connection() as tx:
        with pytest.raises(InvalidFilter, match=problem):
            client.stats(tx=tx, **options)
        assert tx.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


# --- pruned


def test_figures_are_pruned_after_seven_days(client: Client, connect: Connect, run: Run) -> None:
    run(
        "INSERT INTO pgjobs.figure (minute, queue, kind) SELECT date_trunc('minute', now()) - n * interval '1 hour', "
        "'q', 'k' FROM generate_series(0, 200) AS n"
    )
    conn, queries = connect(autocommit=True), MaintenanceQueries(client.schema)
    assert queries.prune_figures(conn, KEEP_FIGURES, 10) == 10
    assert queries.prune_figures(conn, KEEP_FIGURES, 1000) == 200 - 168 - 10
    assert queries.prune_figures(conn, KEEP_FIGURES, 1000) == 0
    assert run("SELECT min(minute) > now() - interval '7 days 1 hour', count(*) FROM pgjobs.figure") == [(True, 169)]
