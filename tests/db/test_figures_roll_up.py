"""Figures of some hours ago are added up, so that a week can be read in a moment, and none is lost by that."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from pgjobs import Client, Figures
from pgjobs.maintenance.duties import Maintenance
from pgjobs.maintenance.queries import MaintenanceQueries
from pgjobs.observe.figures import number_of
from pgjobs.observe.stats import KEEP_FIGURES, LONG, OLD, OLDER, SHORT, FigureGroup
from tests.conftest import Connect
from tests.samples import HOUR
from tests.waiting import wait_until

Run = Callable[..., list[tuple[Any, ...]]]
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
NOW = datetime.now(UTC)
#: An hour of which figures are kept by 5 minutes, and one of which they are kept by the hour.
SOME_HOURS_AGO, DAYS_AGO = (NOW.replace(minute=0, second=0, microsecond=0) - age for age in (30 * HOUR, 90 * HOUR))
KEYS = [(queue, kind) for queue in ("default", "mail") for kind in ("send", "report", "bill")]
BOTH: tuple[tuple[FigureGroup, ...], ...] = ((), ("queue", "kind"))


class Table:
    """The table `figure`, and what the duty does with it."""

    def __init__(self, client: Client, connect: Connect) -> None:
        self.client = client
        self.queries = MaintenanceQueries(client.schema)
        self._connect = connect
        self.conn = connect(autocommit=True)

    def run(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        return run(self.client, self.conn, query, *values)

    def add(self, minute: datetime, queue: str = "default", kind: str = "send", completed: int = 1) -> None:
        counts = [*[0] * (completed % 40), completed]
        self.run(
            "INSERT INTO pgjobs.figure AS known (minute, queue, kind, completed, failed, run_seconds, wait_seconds, "
            "run_counts, wait_counts) VALUES (%s, %s, %s, %s, 1, %s, 0.5, %s, %s) ON CONFLICT (minute, queue, kind) "
            "DO UPDATE SET completed = known.completed + EXCLUDED.completed, failed = known.failed + 1, "
            "run_seconds = known.run_seconds + EXCLUDED.run_seconds, wait_seconds = known.wait_seconds + 0.5, "
            "run_counts = known.run_counts + EXCLUDED.run_counts, wait_counts = known.wait_counts + 1",
            *(minute, queue, kind, completed, completed * 0.25, number_of(counts), number_of([1])),
        )

    def fill(self, minutes: int = 300) -> None:
        """Add figures of minutes of the last week, but not of those that are about to be added up or pruned."""
        chosen = random.Random(7)
        for _ in range(minutes):
            age = chosen.choice([3 * HOUR, 40 * HOUR, 6 * DAY]) * chosen.random()
            age += chosen.choice([timedelta(0), OLD + HOUR, OLDER + HOUR]) if age < 40 * HOUR else timedelta(0)
            for queue, kind in chosen.sample(KEYS, 3):
                self.add((NOW - age).replace(second=0, microsecond=0), queue, kind, chosen.randrange(1, 50))

    def roll_up(self, batch: int = 1000, conn: psycopg.Connection[Any] | None = None) -> int:
        """As the duty does it, once. Returns how many rows it has deleted."""
        return sum(
            self.queries.roll_up_figures(conn or self.conn, old, older, period, batch)
            for old, older, period in ((OLD, OLDER, SHORT), (OLDER, KEEP_FIGURES, LONG))
        )

    def all(self) -> Figures:
        (figures,) = self.client.stats(since=8 * DAY, by=[])
        return figures

    @property
    def rows(self) -> list[tuple[datetime, int]]:
        found = self.run("SELECT minute, completed FROM pgjobs.figure ORDER BY minute, queue, kind")
        return [(minute.astimezone(UTC), completed) for minute, completed in found]


def run(client: Client, conn: psycopg.Connection[Any], query: str, *values: object) -> list[tuple[Any, ...]]:
    cursor = conn.execute(query.replace("pgjobs.", f'"{client.schema}".').encode(), values or None)
    return cursor.fetchall() if cursor.description else []


@pytest.fixture
def table(client: Client, connect: Connect) -> Table:
    return Table(client, connect)


def test_figures_of_an_age_are_kept_by_its_period_and_none_is_lost(table: Table) -> None:
    table.fill()
    before = table.all()
    assert table.roll_up() > 100
    assert table.all() == before
    assert table.roll_up() == 0
    for minute, _ in table.rows:
        period = MINUTE if NOW - minute < OLD else SHORT if NOW - minute < OLDER - HOUR else timedelta(0)
        if NOW - minute > OLDER + HOUR:
            period = LONG
        assert (minute - datetime.min.replace(tzinfo=UTC)) % (period or SHORT) == timedelta(0)


@pytest.mark.parametrize("step", [None, HOUR, DAY], ids=str)
@pytest.mark.parametrize("ago", [5 * HOUR, 7 * HOUR + 3 * MINUTE, 30 * HOUR, 3 * DAY + 17 * MINUTE, 6 * DAY], ids=str)
def test_readers_see_the_same_before_and_after(table: Table, ago: timedelta, step: timedelta | None) -> None:
    table.fill()
    before = [table.client.stats(since=NOW - ago, step=step, by=by) for by in BOTH]
    assert table.roll_up() > 100
    assert [table.client.stats(since=NOW - ago, step=step, by=by) for by in BOTH] == before


def test_a_shorter_step_than_the_figures_are_kept_by_gives_one_for_each_of_their_periods(table: Table) -> None:
    for n in range(60):
        for hour in (SOME_HOURS_AGO, DAYS_AGO):
            table.add(hour + n * MINUTE)
    table.roll_up()

    def found(hour: datetime, step: timedelta) -> list[tuple[timedelta, int]]:
        figures = table.client.stats(since=hour, step=step, by=[])
        return [(each.at - hour, each.completed) for each in figures if each.at < hour + HOUR]

    assert found(SOME_HOURS_AGO, MINUTE) == [(n * SHORT, 5) for n in range(12)]
    assert found(SOME_HOURS_AGO, 15 * MINUTE) == [(n * 15 * MINUTE, 15) for n in range(4)]
    assert found(DAYS_AGO, MINUTE) == found(DAYS_AGO, HOUR) == [(timedelta(0), 60)]
    within = table.client.stats(since=DAYS_AGO + 40 * MINUTE, step=HOUR, by=[])
    assert within[0].completed == 60, "it is rounded down to the hour"


def test_figures_that_come_late_are_added(table: Table) -> None:
    """Under a wrong clock, say."""
    for n in (0, 1, 7):
        table.add(DAYS_AGO + n * MINUTE)
    assert table.roll_up() == 2
    table.add(DAYS_AGO + 7 * MINUTE, completed=10)
    table.add(DAYS_AGO, completed=100)
    assert table.roll_up() == 1
    assert table.rows == [(DAYS_AGO, 113)]
    assert table.all().failed == 5


def test_one_call_has_a_bound(table: Table) -> None:
    for n in range(60):
        table.add(DAYS_AGO + n * MINUTE)
    deleted = [table.roll_up(batch=25) for _ in range(4)]
    assert deleted == [25, 25, 9, 0]
    assert table.rows == [(DAYS_AGO, 60)]


def test_a_row_that_is_locked_is_left_for_the_next_time(table: Table, connect: Connect) -> None:
    for n in range(10):
        table.add(DAYS_AGO + n * MINUTE)
    holder = connect()
    run(table.client, holder, "SELECT FROM pgjobs.figure WHERE minute = %s FOR UPDATE", DAYS_AGO + 3 * MINUTE)
    assert table.roll_up() == 8
    assert table.rows == [(DAYS_AGO, 9), (DAYS_AGO + 3 * MINUTE, 1)]
    holder.rollback()
    assert table.roll_up() == 1
    assert table.rows == [(DAYS_AGO, 10)]


def test_a_process_that_dies_meanwhile_changes_nothing(table: Table, connect: Connect) -> None:
    table.fill(50)
    before, conn = table.rows, connect()
    assert table.roll_up(conn=conn) > 10
    table.run("SELECT pg_terminate_backend(%s)", conn.info.backend_pid)
    with pytest.raises(psycopg.OperationalError):
        conn.commit()
    assert table.rows == before


def test_processes_that_do_it_at_once_while_others_write_lose_nothing(table: Table, connect: Connect) -> None:
    table.fill(100)
    before, ended = table.all(), threading.Event()
    problems: list[BaseException] = []

    def rolls_up() -> None:
        try:
            conn = connect(autocommit=True)
            while not ended.is_set():
                table.roll_up(batch=7, conn=conn)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=rolls_up) for _ in range(3)]
    for thread in threads:
        thread.start()
    late = random.Random(3)
    for _ in range(300):
        table.add(late.choice([SOME_HOURS_AGO, DAYS_AGO]) + late.randrange(60) * MINUTE, *late.choice(KEYS))
    wait_until(lambda: problems or table.queries.roll_up_figures(table.conn, OLDER, KEEP_FIGURES, LONG, 1) == 0)
    ended.set()
    for thread in threads:
        thread.join()
    assert not problems
    after = table.all()
    assert (after.completed, after.failed) == (before.completed + 300, before.failed + 300)
    assert after.run.count == before.run.count + 300
    assert after.wait.count == before.wait.count + 300
    assert after.run.total == pytest.approx(before.run.total + 75)
    while table.roll_up():
        pass
    assert table.all() == after


def test_the_duty_does_it(table: Table) -> None:
    table.fill(50)
    before = table.all()
    assert Maintenance(table.client.schema, keep={}).prune(table.conn) > timedelta(0)
    assert table.roll_up() == 0
    assert table.all() == before


def test_rows_that_cannot_be_added_up_keep_the_duty_from_nothing_else(
    table: Table, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """They were written by hand: no pool counts so many."""
    caplog.set_level(logging.WARNING, "pgjobs")
    for n in (1, 2):
        table.add(SOME_HOURS_AGO + n * MINUTE)
        table.add(DAYS_AGO + n * MINUTE)
        table.add(NOW - 8 * DAY - n * MINUTE)
    table.run("UPDATE pgjobs.figure SET completed = 2147483647 WHERE minute < %s", DAYS_AGO + DAY)
    duties, conn = Maintenance(table.client.schema, keep={}), connect(autocommit=True)
    for _ in range(2):
        assert duties.do(conn, "prune") > timedelta(0)
        table.run("UPDATE pgjobs.maintenance SET next_run_at = now()")
    assert [minute for minute, _ in table.rows] == [DAYS_AGO + MINUTE, DAYS_AGO + 2 * MINUTE, SOME_HOURS_AGO]
    (told,) = caplog.messages
    assert "old figures could not be added up: integer out of range" in told


def test_counts_that_were_written_by_hand_are_none(table: Table) -> None:
    for n, number in enumerate(["NaN", "-7", "1.5"]):
        table.add(NOW.replace(second=0, microsecond=0) - n * MINUTE, kind=f"kind-{n}")
        table.run("UPDATE pgjobs.figure SET run_counts = %s WHERE kind = %s", number, f"kind-{n}")
    assert [(each.completed, each.run.counts, each.wait.count) for each in table.client.stats()] == [(1, (), 1)] * 3
