"""Schedules: from code and in the table, added, changed, paused, removed and run by hand while everything runs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from pgjobs import (
    Client,
    Hooks,
    InvalidArgs,
    InvalidSchedule,
    Job,
    JobState,
    NewJob,
    Schedule,
    ScheduleNotFound,
    ScheduleRow,
    Unique,
    WorkerPool,
    every,
)
from pgjobs.schedules.args_supplier import SuppliedJob, compute_job
from pgjobs.schedules.queries import ScheduleQueries
from pgjobs.schedules.registered import CodeSchedules
from pgjobs.schedules.ticker import LOOK_EVERY, Ticker
from tests import inside
from tests.conformance.conftest import Rows
from tests.conftest import Connect
from tests.samples import HOUR, SECOND, Tx, nothing
from tests.waiting import wait_until
from tests.waking import sleepers

NEVER = datetime(9999, 12, 30, tzinfo=UTC)


@dataclass
class Report:
    number: int = 0


@dataclass
class Process:
    """What a worker process does about schedules, by hand: registers those of its code, and ticks."""

    client: Client
    conn: Tx
    schedules: CodeSchedules
    ticker: Ticker

    def start(self) -> Process:
        self.schedules.start(lambda: None)
        return self

    def tick(self) -> timedelta:
        return self.ticker.tick(self.conn)

    def stop(self) -> None:
        deregister = self.schedules.deregistration()
        self.schedules.stop()
        deregister()


Start = Callable[..., Process]


@pytest.fixture
def process(client: Client, connect: Connect) -> Start:
    """Starts a process with some schedules in its code."""

    def start(*schedules: Schedule) -> Process:
        store, encode = ScheduleQueries(client.schema), inside.encoder(client)
        code = CodeSchedules(store, client.source, encode, schedules, worker="by hand")
        ticker = Ticker(store, lambda: code.by_name, lambda schedule: compute_job(schedule, encode, SuppliedJob()))
        return Process(client, connect(autocommit=True), code, ticker).start()

    return start


@pytest.fixture
def jobs(sql: Rows) -> Callable[..., list[Any]]:
    """The numbers in the args of the jobs of one schedule, or of all, in the order they were made."""

    def read(name: str | None = None) -> list[Any]:
        query = "SELECT args -> 'number' FROM pgjobs.job WHERE %s::text IS NULL OR schedule = %s ORDER BY id"
        return [number for (number,) in sql(query, name, name)]

    return read


Jobs = Callable[..., list[Any]]


def come(sql: Rows, name: str, ago: timedelta = timedelta(0)) -> datetime:
    """Lets the next tick of a schedule have come a moment, or so long, ago."""
    query = "UPDATE pgjobs.schedule SET next_tick_at = clock_timestamp() - %s WHERE name = %s RETURNING next_tick_at"
    tick: datetime = sql(query, ago, name)[0][0]
    return tick


def row(client: Client, name: str) -> ScheduleRow:
    found = client.schedules.get(name)
    assert found is not None
    return found


# --- ticks


@pytest.mark.conformance(155)
def test_intervals_tick_from_the_start_each_in_its_beat(client: Client, sql: Rows) -> None:
    """A second tick never comes early, and a late one does not move those after it."""
    cron = [
        Schedule("fast", every(SECOND / 2), Report(1), catch_up="all"),
        Schedule("slow", every(1.5 * SECOND), Report(2), catch_up="all"),
    ]
    ticks = "SELECT tick FROM pgjobs.job WHERE schedule = %s ORDER BY tick"
    with WorkerPool(client, {Report: nothing}, cron=cron):
        ((start,),) = sql("SELECT next_tick_at - interval '500 ms' FROM pgjobs.schedule WHERE name = 'fast'")
        wait_until(lambda: sql(ticks, "slow"))
        wait_until(lambda: len(sql(ticks, "fast")) >= 3)
    fast, slow = ([tick for (tick,) in sql(ticks, name)] for name in ("fast", "slow"))
    assert [tick - start for tick in fast[:3]] == [SECOND / 2, SECOND, 1.5 * SECOND], "and none at the start"
    assert slow[0] - start == 1.5 * SECOND
    assert all(later - earlier == SECOND / 2 for earlier, later in pairwise(fast))
    assert sql("SELECT count(*) FROM pgjobs.job WHERE created_at < tick") == [(0,)]


@pytest.mark.conformance(158)
def test_a_unique_job_stays_one_row_over_three_ticks(client: Client, process: Start, sql: Rows, jobs: Jobs) -> None:
    once = Unique(by_args=True)
    code = process(Schedule("code", every(HOUR), NewJob(Report(1), unique=once)))
    client.schedules.add(Schedule("table", every(HOUR), NewJob(Report(2), unique=once, pending=True)))
    code.tick()
    for _ in range(3):
        for name in ("code", "table"):
            tick = come(sql, name)
            code.tick()
            next_tick = row(client, name).next_tick_at
            assert next_tick is not None
            assert next_tick > tick, "the tick is over, with a job or without"
    assert sorted(jobs()) == [1, 2]
    assert sql("SELECT state FROM pgjobs.job WHERE schedule = 'table'") == [("pending",)]
    assert client.enqueue(None, Report(1), unique=once).duplicate, "the key is that of an enqueue"


@pytest.mark.conformance(159)
def test_a_function_is_asked_at_each_tick_and_none_skips_it(process: Start, sql: Rows, jobs: Jobs) -> None:
    answers: Iterator[Any] = iter([Report(1), None, NewJob(Report(2), queue="reports"), Report(3)])
    worker = process(Schedule("report", "@hourly", lambda: next(answers)))
    for expected in ([1], [1], [1, 2], [1, 2, 3]):
        come(sql, "report")
        worker.tick()
        assert jobs() == expected
        ((next_tick, error),) = sql("SELECT next_tick_at > now(), error FROM pgjobs.schedule")
        assert next_tick, "a tick that was skipped is over too"
        assert error is None
    assert sql("SELECT queue FROM pgjobs.job ORDER BY id") == [("default",), ("reports",), ("default",)]


@pytest.mark.conformance(160)
@pytest.mark.parametrize("computed", [False, True])
def test_a_job_says_which_schedule_made_it_beside_what_the_caller_says(
    client: Client, process: Start, sql: Rows, computed: bool
) -> None:
    new = NewJob(Report(1), metadata={"mine": [1, 2], "periodic": "no"}, tags=["night"], priority=3, max_attempts=7)
    worker = process(Schedule("report", "@hourly", (lambda: new) if computed else new, queue="reports"))
    tick = come(sql, "report")
    worker.tick()
    job = client.get(1)
    assert job is not None
    own = {key: value for key, value in job.metadata.items() if key != "class"}
    assert own == {"mine": [1, 2], "periodic": True, "schedule": "report", "tick": tick.astimezone(UTC).isoformat()}
    assert job.metadata["class"].endswith(".Report")
    assert (job.kind, job.queue, job.tags, job.priority, job.max_attempts) == ("report", "reports", ("night",), 3, 7)
    assert (job.state, job.scheduled_at) == (JobState.AVAILABLE, tick)
    assert sql("SELECT schedule, tick FROM pgjobs.job") == [("report", tick)]


def test_a_delay_counts_from_the_tick(client: Client, process: Start, sql: Rows) -> None:
    worker = process(Schedule("report", "@hourly", Report(), delay=HOUR))
    tick = come(sql, "report")
    worker.tick()
    job = client.get(1)
    assert job is not None
    assert (job.state, job.scheduled_at) == (JobState.SCHEDULED, tick + HOUR)


@pytest.mark.conformance(161)
def test_a_schedule_of_a_microsecond_starves_no_other(client: Client, jobs: Jobs, sql: Rows) -> None:
    cron = [Schedule("rapid", every(timedelta(microseconds=1)), Report(0))]
    cron += [Schedule(f"calm-{n}", every(SECOND / 5), Report(n)) for n in range(1, 101)]
    with WorkerPool(client, {Report: nothing}, queues={"default": 1}, cron=cron) as pool:
        wait_until(lambda: set(jobs()) == set(range(101)), timeout=30)
        wait_until(lambda: len(jobs("rapid")) > 3)
        began = time.monotonic()
        pool.stop()
        assert time.monotonic() - began < 5
    made = sql("SELECT schedule, tick, count(*) FROM pgjobs.job GROUP BY 1, 2 HAVING count(*) > 1")
    assert made == []


@pytest.mark.conformance(167)
def test_without_schedules_the_act_sleeps_and_stops_at_once(client: Client, process: Start, sql: Rows) -> None:
    assert process().tick() == LOOK_EVERY
    assert sql("SELECT count(*) FROM pgjobs.scheduler") == [(0,)], "nor does it say that it has none"
    with WorkerPool(client, {Report: nothing}) as pool:
        began = time.monotonic()
        pool.stop()
        assert time.monotonic() - began < 2


@pytest.mark.conformance(168)
def test_a_schedule_that_never_ticks_is_kept_and_runs_when_asked(client: Client, process: Start, jobs: Jobs) -> None:
    class Never:
        def next(self, after: datetime) -> datetime | None:
            return None

    worker = process(Schedule("never", Never(), Report(1)))
    worker.tick()
    assert worker.tick() == LOOK_EVERY
    assert row(client, "never").next_tick_at == NEVER
    assert NEVER.year - datetime.now(UTC).year > 1000
    assert jobs() == []
    client.schedules.run_now("never")
    worker.tick()
    assert jobs() == [1]
    assert row(client, "never").next_tick_at == NEVER


@pytest.mark.conformance(170)
def test_a_schedule_of_a_millisecond_runs_and_is_itself_no_job(client: Client, sql: Rows) -> None:
    ran: list[str] = []
    cron = [Schedule("tiny", "@every 1ms", {}, kind="the.kind")]
    with WorkerPool(client, {"the.kind": lambda tx, job: ran.append(job.kind)}, cron=cron):
        wait_until(lambda: len(ran) >= 2)
    assert set(ran) == {"the.kind"}
    assert sql("SELECT DISTINCT kind FROM pgjobs.job") == [("the.kind",)]
    assert sql("SELECT name, kind FROM pgjobs.schedule") == [("tiny", "the.kind")]


@pytest.mark.conformance(174)
def test_one_job_twice_with_other_args_runs_twice_per_tick(process: Start, sql: Rows, jobs: Jobs) -> None:
    worker = process(Schedule("one", "@hourly", Report(1)), Schedule("two", "@hourly", Report(2)))
    for _ in range(2):
        come(sql, "one")
        come(sql, "two")
        worker.tick()
    assert sorted(jobs()) == [1, 1, 2, 2]


@pytest.mark.conformance(175)
def test_a_tick_that_is_forced_by_hand_is_like_any_other(client: Client, process: Start, sql: Rows) -> None:
    """Empty args stay an object, and what the schedule is stays what it was."""
    worker = process(Schedule("forced", "@yearly", {}, kind="the.kind", version=4))
    before = row(client, "forced")
    for _ in range(2):
        come(sql, "forced")
        worker.tick()
    with WorkerPool(client, {"the.kind": nothing}):
        wait_until(lambda: sql("SELECT state, errors, args FROM pgjobs.job") == [("completed", [], {})] * 2)
    after = row(client, "forced")
    assert (after.next_tick_at, after.version, after.raw_args, after.error) == (before.next_tick_at, 4, "{}", None)


@pytest.mark.conformance(182)
@pytest.mark.parametrize(
    ("catch_up", "window", "expected"),
    [
        ("last", None, 1),
        ("all", None, 4),
        ("skip", None, 0),
        ("last", timedelta(minutes=10), 0),
        ("all", 90 * timedelta(minutes=1), 1),
    ],
)
def test_ticks_that_were_missed_are_made_up_as_the_schedule_says_and_told(
    *,
    process: Start,
    sql: Rows,
    jobs: Jobs,
    caplog: pytest.LogCaptureFixture,
    catch_up: Any,
    window: timedelta | None,
    expected: int,
) -> None:
    worker = process(Schedule("missed", every(HOUR), Report(), catch_up=catch_up, window=window))
    first = come(sql, "missed", 3.5 * HOUR)
    with caplog.at_level(logging.WARNING, logger="pgjobs.cron"):
        for _ in range(10):
            worker.tick()
    assert len(jobs()) == expected
    ((next_tick,),) = sql("SELECT next_tick_at FROM pgjobs.schedule")
    assert next_tick == first + 4 * HOUR, "and then it goes on in its beat"
    ticks = sorted(tick for (tick,) in sql("SELECT tick FROM pgjobs.job"))
    assert ticks == [first + n * HOUR for n in range(4)][4 - expected :]
    assert ("missed" in caplog.text) == (expected < 4)


@pytest.mark.conformance(183)
def test_the_zone_of_a_schedule_wins_over_those_of_machine_and_server(
    client: Client, process: Start, sql: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        worker = process(
            Schedule("cairo", "30 2 * * *", Report(), zone="Africa/Cairo"), Schedule("utc", "30 2 * * *", Report())
        )
        worker.conn.execute("SET TimeZone = 'America/New_York'")
        for name, offset in (("cairo", 2), ("utc", 0)):
            come(sql, name)
            worker.tick()
            tick = row(client, name).next_tick_at
            assert tick is not None
            assert tick.astimezone(UTC).hour in {(2 - offset) % 24, (2 - offset - 1) % 24 if offset else 2}
    finally:
        monkeypatch.undo()
        time.tzset()
    with pytest.raises(InvalidSchedule, match="Mars"):
        Schedule("mars", "@daily", Report(), zone="Mars/Olympus")
    with pytest.raises(InvalidSchedule, match="Mars"):
        client.schedules.change("utc", zone="Mars/Olympus")


# --- registered by code


@contextmanager
def pool_of(client: Client, *cron: Schedule) -> Iterator[WorkerPool]:
    with WorkerPool(client, {Report: nothing}, queues={"default": 1}, cron=cron) as pool:
        yield pool


@pytest.mark.conformance(162)
def test_schedules_are_added_and_removed_while_the_pool_runs(client: Client, jobs: Jobs) -> None:
    with pool_of(client) as pool:
        pool.schedules.add(Schedule("one", "@yearly", Report(1), run_on_start=True))
        wait_until(lambda: jobs() == [1], timeout=5)
        pool.schedules.add(Schedule("two", "@yearly", lambda: Report(2), run_on_start=True))
        wait_until(lambda: jobs() == [1, 2], timeout=5)
        pool.schedules.add(*(Schedule(f"more-{n}", every(HOUR), Report(3)) for n in range(3)))
        assert {schedule.name for schedule in pool.schedules} == {"one", "two", "more-0", "more-1", "more-2"}
        assert pool.schedules.remove("two") is True
        assert pool.schedules.remove("two") is False
        assert pool.schedules.remove("unknown") is False
        assert pool.schedules.remove("more-0", "unknown", "more-1") is True
        assert {schedule.name for schedule in pool.schedules} == {"one", "more-2"}
        assert pool.schedules.clear() is True
        assert pool.schedules.clear() is False
        assert len(pool.schedules) == 0
        pool.schedules.add(Schedule("one", "@yearly", Report(4), run_on_start=True))
        wait_until(lambda: jobs() == [1, 2, 4], timeout=5)


def test_a_schedule_that_was_removed_from_the_pool_ticks_there_no_more(process: Start, sql: Rows, jobs: Jobs) -> None:
    worker = process(Schedule("gone", every(HOUR), Report(1)), Schedule("stays", every(HOUR), Report(2)))
    worker.schedules.remove("gone")
    come(sql, "gone")
    come(sql, "stays")
    worker.tick()
    assert jobs() == [2]
    assert sql("SELECT name FROM pgjobs.schedule ORDER BY 1") == [("gone",), ("stays",)], "others may have it"


@pytest.mark.conformance(163)
def test_threads_that_add_remove_and_clear_at_once_break_nothing(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    failures: list[BaseException] = []

    def stress(number: int, pool: WorkerPool) -> None:
        try:
            for n in range(50):
                pool.schedules.add(Schedule(f"{number}.{n}", "@every 1ms", Report(number)))
                if n % 3:
                    pool.schedules.remove(f"{number}.{n}")
                else:
                    pool.schedules.clear()
        except BaseException as error:
            failures.append(error)

    with caplog.at_level(logging.WARNING, logger="pgjobs"), pool_of(client) as pool:
        threads = [threading.Thread(target=stress, args=(number, pool)) for number in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
        pool.schedules.clear()
        assert len(pool.schedules) == 0
        job = client.enqueue(None, Report())
        wait_until(lambda: client.get(job.id).state == JobState.COMPLETED)  # type: ignore[union-attr]
    assert failures == []
    assert [record.getMessage() for record in caplog.records if "schedule" not in record.getMessage()] == []


@pytest.mark.conformance(164)
def test_a_second_schedule_of_one_name_is_refused_by_its_name(client: Client) -> None:
    twice = [Schedule("twice", "@daily", Report(1)), Schedule("twice", "@hourly", Report(2))]
    with pytest.raises(InvalidSchedule, match="'twice'"):
        WorkerPool(client, {Report: nothing}, cron=twice)
    with pool_of(client, twice[0]) as pool, pytest.raises(InvalidSchedule, match="'twice'"):
        pool.schedules.add(Schedule("other", "@daily", Report()), twice[1])
    assert "other" not in pool.schedules, "all or none"
    client.schedules.add(Schedule("in.the.table", "@daily", Report()))
    with pytest.raises(InvalidSchedule, match=r"'in\.the\.table'"):
        client.schedules.add(Schedule("in.the.table", "@daily", Report()))


@pytest.mark.conformance(165)
def test_the_next_tick_outlives_the_process(client: Client, process: Start, sql: Rows) -> None:
    """What is known keeps its next tick, what is new gets one, what no code has any more is left alone at first."""
    first = process(*(Schedule(name, every(3 * HOUR), Report()) for name in ("one", "two", "old")))
    for hours, name in ((1, "one"), (2, "two")):
        sql(
            "UPDATE pgjobs.schedule SET next_tick_at = date_trunc('hour', now()) + %s WHERE name = %s",
            hours * HOUR,
            name,
        )
    before: dict[str, datetime] = dict(sql("SELECT name, next_tick_at FROM pgjobs.schedule"))
    first.stop()
    second = process(*(Schedule(name, every(3 * HOUR), Report()) for name in ("one", "two", "new")))
    second.tick()
    after: dict[str, datetime] = dict(sql("SELECT name, next_tick_at FROM pgjobs.schedule"))
    assert {name: after.get(name) for name in before} == before
    ((in_three_hours,),) = sql(
        "SELECT %s BETWEEN now() + interval '2 h 59 min' AND now() + interval '3 h'", after["new"]
    )
    assert in_three_hours


@pytest.mark.conformance(165)
def test_what_no_code_has_had_for_thirty_days_is_forgotten_and_what_some_has_is_kept_alive(
    client: Client, process: Start, sql: Rows
) -> None:
    gone = process(Schedule("gone", "@daily", Report()), Schedule("recent", "@daily", Report()))
    gone.stop()
    worker = process(Schedule("alive", "@daily", Report()))
    client.schedules.add(Schedule("in.the.table", "@daily", Report()))
    sql("UPDATE pgjobs.schedule SET seen_at = now() - interval '31 days' WHERE name IN ('gone', 'alive')")
    sql("UPDATE pgjobs.schedule SET seen_at = now() - interval '29 days' WHERE name = 'recent'")
    worker.schedules._next_heartbeat = 0.0
    worker.schedules.heartbeat(worker.conn)
    assert {name for (name,) in sql("SELECT name FROM pgjobs.schedule")} == {"alive", "recent", "in.the.table"}
    assert sql("SELECT now() - seen_at < interval '1 minute' FROM pgjobs.schedule WHERE name = 'alive'") == [(True,)]


def test_run_on_start_runs_for_the_first_live_process_alone(process: Start, sql: Rows, jobs: Jobs) -> None:
    schedule = Schedule("start", "@yearly", Report(1), run_on_start=True)
    first, second = process(schedule), process(schedule)
    first.tick()
    second.tick()
    third = process(schedule)
    third.tick()
    assert jobs() == [1]
    first.stop()
    second.stop()
    process(schedule).tick()
    assert jobs() == [1], "the third lives"
    sql("UPDATE pgjobs.scheduler SET seen_at = now() - interval '1 minute'")
    process(schedule).tick()
    assert jobs() == [1, 1], "all were killed"


def test_what_was_changed_by_hand_stays_until_the_code_says_something_else(client: Client, process: Start) -> None:
    process(Schedule("report", "@daily", Report(1))).stop()
    client.schedules.change("report", spec="@hourly", args=Report(2), window=HOUR)
    process(Schedule("report", "@daily", Report(1))).stop()
    assert (row(client, "report").spec, row(client, "report").raw_args) == ("@hourly", '{"number": 2}')
    process(Schedule("report", "@weekly", Report(1))).stop()
    after = row(client, "report")
    assert (after.spec, after.raw_args, after.window) == ("@weekly", '{"number": 1}', None)


def test_a_change_of_spec_or_zone_shows_the_next_tick_at_once_and_no_other_change_moves_it(
    client: Client, process: Start
) -> None:
    """Without a worker that runs the table kept the tick of the former spec."""
    client.schedules.add(Schedule("report", "0 3 * * *", Report(1)))
    three = row(client, "report").next_tick_at
    five = client.schedules.change("report", spec="0 5 * * *").next_tick_at
    assert three is not None
    assert five is not None
    assert (five.hour, five.minute, five > three - timedelta(days=1)) == (5, 0, True)
    assert client.schedules.change("report", spec="0 5 * * *", window=HOUR, catch_up="all").next_tick_at == five
    tokyo = client.schedules.change("report", zone="Asia/Tokyo").next_tick_at
    assert tokyo is not None
    assert tokyo.hour == 20, "five o'clock there"
    process().tick()
    assert row(client, "report").next_tick_at == tokyo, "and a worker has nothing to correct"


def test_what_a_client_adds_to_every_job_is_no_change_of_the_schedule(
    database: str, client: Client, connect: Connect
) -> None:
    def deploy(code_version: str, **setting: Any) -> ScheduleRow:
        with Client(database, schema=client.schema, code_version=code_version) as newer:
            store = ScheduleQueries(client.schema)
            schedule = Schedule("report", "@daily", Report(1), **setting)
            CodeSchedules(store, newer.source, inside.encoder(newer), [schedule], worker=newer.id).start(lambda: None)
        return row(client, "report")

    deploy("one")
    client.schedules.change("report", spec="@hourly")
    assert deploy("two").spec == "@hourly"
    assert deploy("two", metadata={"own": 1}).spec == "@daily"


def test_a_schedule_whose_job_cannot_be_stored_keeps_the_pool_from_starting(client: Client) -> None:
    pool = WorkerPool(client, {Report: nothing}, cron=[Schedule("bad", "@daily", {"a": {1}}, kind="the.kind")])
    with pytest.raises(InvalidArgs):
        pool.start()
    assert not pool.running
    with pytest.raises(InvalidSchedule):
        WorkerPool(client, {Report: nothing}, cron=["@daily"])  # type: ignore[list-item]


# --- in the table


@pytest.mark.conformance(169)
def test_what_code_must_supply_is_no_schedule_of_a_client_that_works_no_jobs(client: Client) -> None:
    class Own:
        def next(self, after: datetime) -> datetime | None:
            return None

    for schedule in (Schedule("code", "@daily", lambda: Report()), Schedule("code", Own(), Report())):  # noqa: PLW0108
        with pytest.raises(InvalidSchedule, match="only a worker pool"):
            client.schedules.add(schedule)
    assert client.schedules.list() == []


def test_a_schedule_of_the_table_is_ticked_by_any_process(
    client: Client, process: Start, sql: Rows, jobs: Jobs
) -> None:
    client.schedules.add(Schedule("table", every(HOUR), Report(1), queue="reports"))
    assert row(client, "table").next_tick_at is not None, "known since it was added, also when nobody works"
    come(sql, "table")
    process().tick()
    assert jobs("table") == [1]
    assert sql("SELECT queue FROM pgjobs.job") == [("reports",)]


def test_a_schedule_made_by_sql_ticks_from_when_it_was_made(
    client: Client, process: Start, sql: Rows, jobs: Jobs
) -> None:
    sql("INSERT INTO pgjobs.schedule (name, kind, spec) VALUES ('plain', 'the.kind', '@every 1h')")
    sql(
        """INSERT INTO pgjobs.schedule (name, kind, spec, zone, args, options, created_at) VALUES ('full', 'the.kind',
        '@every 1h', 'Europe/Berlin', '{"number": 1}', '{"queue": "reports", "priority": 7, "tags": ["one", "two"],
        "max_attempts": 2, "metadata": {"mine": 1}}', now() - interval '90 minutes')"""
    )
    worker = process()
    worker.tick()
    worker.tick()
    assert jobs() == [1]
    job = client.get(1)
    assert job is not None
    assert (job.queue, job.priority, job.tags, job.max_attempts) == ("reports", 7, ("one", "two"), 2)
    assert job.metadata["mine"] == 1
    come(sql, "plain")
    worker.tick()
    plain = client.get(2)
    assert plain is not None
    assert (plain.raw_args, plain.queue, plain.priority, plain.max_attempts) == ("{}", "default", 0, 25)


@pytest.mark.parametrize("how", ["code", "sql"])
def test_another_spec_or_zone_has_another_next_tick(client: Client, process: Start, sql: Rows, how: str) -> None:
    """R17, at run time."""
    client.schedules.add(Schedule("report", "0 12 1 1 *", Report()))
    worker = process()
    for column, value in (("spec", "0 12 1 2 *"), ("zone", "Asia/Tokyo")):
        before = row(client, "report").next_tick_at
        if how == "code":
            changes: dict[str, Any] = {column: value}
            client.schedules.change("report", **changes)
        else:
            sql(f"UPDATE pgjobs.schedule SET {column} = %s WHERE name = 'report'", value)
        worker.tick()
        assert row(client, "report").next_tick_at != before
    after = row(client, "report").next_tick_at
    assert after is not None
    assert (after.month, after.day, after.hour) == (2, 1, 3)


def test_change_leaves_what_is_not_given(client: Client) -> None:
    client.schedules.add(Schedule("report", "@daily", Report(1), window=HOUR, catch_up="all", queue="reports"))
    before = row(client, "report")
    after = client.schedules.change("report", args=NewJob(Report(2), queue="other"))
    assert (after.raw_args, after.spec, after.window, after.catch_up) == ('{"number": 2}', "@daily", HOUR, "all")
    assert after.next_tick_at == before.next_tick_at
    assert '"other"' in (after.raw_options or "")
    after = client.schedules.change("report", window=None, catch_up="skip", spec=every(HOUR))
    assert (after.window, after.catch_up, after.spec) == (None, "skip", "@every 3600s")
    for wrong in ({"spec": "nonsense"}, {"catch_up": "some"}, {"window": -HOUR}, {"zone": "Nowhere"}):
        with pytest.raises(InvalidSchedule):
            client.schedules.change("report", **wrong)
    assert client.schedules.get("report") == after


def test_a_paused_schedule_lets_its_ticks_go_by(client: Client, process: Start, sql: Rows, jobs: Jobs) -> None:
    worker = process(Schedule("report", every(HOUR), Report(1), catch_up="all"))
    client.schedules.pause("report")
    paused_at = row(client, "report").paused_at
    client.schedules.pause("report")
    assert row(client, "report").paused_at == paused_at is not None
    come(sql, "report", 3.5 * HOUR)
    for _ in range(5):
        worker.tick()
    client.schedules.resume("report")
    for _ in range(5):
        worker.tick()
    assert jobs() == [], "none is made up"
    come(sql, "report")
    worker.tick()
    assert jobs() == [1]


@pytest.mark.parametrize("how", ["code", "sql"])
@pytest.mark.parametrize("computed", [False, True])
def test_a_run_by_hand_comes_once_and_moves_no_tick(
    *, client: Client, process: Start, sql: Rows, jobs: Jobs, how: str, computed: bool
) -> None:
    worker = process(Schedule("report", "@yearly", (lambda: Report(1)) if computed else Report(1)))
    client.schedules.pause("report")
    before = row(client, "report").next_tick_at
    for _ in range(2):
        if how == "code":
            client.schedules.run_now("report")
        else:
            sql("UPDATE pgjobs.schedule SET run_now_at = now() WHERE name = 'report'")
    worker.tick()
    worker.tick()
    assert jobs() == [1]
    after = row(client, "report")
    assert (after.next_tick_at, after.run_now_at) == (before, None)


def test_what_is_done_by_hand_is_done_in_the_callers_transaction(client: Client, connect: Connect) -> None:
    client.schedules.add(Schedule("kept", "@daily", Report()))
    before = client.schedules.list()
    tx = connect()
    client.schedules.add(Schedule("new", "@daily", Report()), tx)
    client.schedules.change("kept", tx, spec="@hourly")
    client.schedules.pause("kept", tx)
    client.schedules.resume("kept", tx)
    client.schedules.run_now("kept", tx)
    assert client.schedules.remove("kept", tx)
    assert [found.name for found in client.schedules.list(tx)] == ["new"]
    tx.rollback()
    assert client.schedules.list() == before


def test_a_name_that_no_schedule_has_is_not_found(client: Client) -> None:
    assert client.schedules.get("unknown") is None
    assert client.schedules.remove("unknown") is False
    acts: Mapping[str, Callable[[str], object]] = {
        "pause": client.schedules.pause,
        "resume": client.schedules.resume,
        "run_now": client.schedules.run_now,
        "change": lambda name: client.schedules.change(name, spec="@daily"),
    }
    for act in acts.values():
        with pytest.raises(ScheduleNotFound, match="unknown"):
            act("unknown")


@pytest.mark.parametrize("how", ["code", "sql"])
def test_a_running_pool_learns_at_once_of_what_is_done_by_hand(
    *, client: Client, sql: Rows, jobs: Jobs, conn: Tx, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgjobs.schedules.ticker.LOOK_EVERY", HOUR)
    conn.autocommit = True
    with pool_of(client):
        wait_until(lambda: sleepers(conn, client) == 1)
        client.schedules.add(Schedule("slow", "@yearly", Report(2)))
        for times in (1, 2, 3):  # the first may come of the look at the start
            if how == "code":
                client.schedules.run_now("slow")
            else:
                sql("UPDATE pgjobs.schedule SET run_now_at = now() WHERE name = 'slow'")
            wait_until(lambda times=times: jobs("slow") == [2] * times, timeout=5)  # type: ignore[misc]
        if how == "code":
            client.schedules.add(Schedule("fast", every(SECOND / 20), Report(1)))
        else:
            sql("INSERT INTO pgjobs.schedule (name, kind, spec) VALUES ('fast', 'report', '@every 50ms')")
        wait_until(lambda: len(jobs("fast")) >= 2, timeout=5)


def test_a_pool_that_does_not_listen_ticks_too(client: Client, jobs: Jobs) -> None:
    cron = [Schedule("fast", every(SECOND / 20), Report(1))]
    ran = threading.Semaphore(0)
    pool = WorkerPool(client, {Report: lambda tx, job: ran.release()}, cron=cron, listen=False, poll_interval=HOUR)
    with pool:
        assert all(ran.acquire(timeout=5) for _ in range(3)), "and calls its own threads"
    assert len(jobs()) >= 3


class Heard(Hooks):
    """The jobs that were enqueued."""

    def __init__(self) -> None:
        self.jobs: list[Job[Any]] = []

    def on_enqueue(self, job: Job[Any]) -> None:
        self.jobs.append(job)
        raise RuntimeError("harms no schedule")


def test_hooks_hear_of_the_jobs_of_schedules_but_middleware_does_not_stand_around_them(
    client: Client, jobs: Jobs
) -> None:
    def refuse(tx: Any, jobs: Any, insert: Any) -> Any:
        raise PermissionError

    heard = Heard()
    watching = Client(client.pool, schema=client.schema, hooks=[heard], middleware=[refuse])
    once = Unique(by_args=True)
    cron = [
        Schedule("literal", "@yearly", Report(1), run_on_start=True),
        Schedule("computed", "@yearly", lambda: Report(2), run_on_start=True),
        Schedule("skipped", every(SECOND / 20), NewJob(Report(3), unique=once, pending=True)),
    ]
    client.schedules.add(Schedule("table", "@yearly", Report(4)))
    client.schedules.run_now("table")
    with WorkerPool(watching, {Report: nothing}, cron=cron, queues={"default": 1}):
        wait_until(lambda: len(heard.jobs) == 4)
        tick = row(client, "skipped").last_tick_at
        wait_until(lambda: row(client, "skipped").last_tick_at not in (None, tick))
    assert sorted(job.args.number for job in heard.jobs) == [1, 2, 3, 4], "and of no duplicate"
    assert sorted(jobs()) == [1, 2, 3, 4]
    assert {job.metadata["schedule"] for job in heard.jobs} == {"literal", "computed", "skipped", "table"}
