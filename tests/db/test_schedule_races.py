"""Schedules under races and outages: each test is named after the rule, or the fault, that it is about."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgjobs import Client, Job, Schedule, ScheduleRow, WorkerPool, every
from pgjobs.db.cursors import AnyConnection
from pgjobs.maintenance.duties import Maintenance
from pgjobs.maintenance.thread import MaintenanceThread
from pgjobs.schedules.args_supplier import SuppliedJob, compute_job
from pgjobs.schedules.queries import DueSchedule, ScheduleQueries, TickPlan
from pgjobs.schedules.registered import CodeSchedules
from pgjobs.schedules.ticker import LOOK_EVERY, Ticker
from tests import inside
from tests.conftest import Connect
from tests.samples import HOUR, SECOND
from tests.waiting import wait_until


@dataclass
class Report:
    number: int = 0


def nothing(tx: AnyConnection, job: Job[Any]) -> None: ...


@dataclass
class Table:
    """The tables of one schema, through a connection in autocommit mode."""

    client: Client
    conn: AnyConnection
    connect: Connect

    def query(self, text: str, *values: Any) -> list[Any]:
        cur = self.conn.execute(sql.SQL(text).format(schema=sql.Identifier(self.client.schema)), values or None)
        return cur.fetchall() if cur.description else []

    def process(self, *schedules: Schedule) -> Callable[[], timedelta]:
        """Registers schedules as a process does that has them in its code; the act that ticks them."""
        store, encode = ScheduleQueries(self.client.schema), inside.encoder(self.client)
        code = CodeSchedules(store, self.client.source, encode, schedules, worker="by hand")
        code.start(lambda: None)
        ticker = Ticker(store, lambda: code.by_name, lambda schedule: compute_job(schedule, encode, SuppliedJob()))
        return partial(ticker.tick, self.connect(autocommit=True))

    def come(self, *names: str, ago: timedelta = timedelta(0)) -> datetime:
        """Lets the next ticks of these have come, or those of all."""
        ((now,),) = self.query("SELECT clock_timestamp()")
        query = "UPDATE {schema}.schedule SET next_tick_at = %s WHERE name = ANY (%s) OR %s = '{{}}'"
        self.query(query, now - ago, list(names), list(names))
        tick: datetime = now - ago
        return tick

    def numbers(self) -> list[int]:
        return [number for (number,) in self.query("SELECT args -> 'number' FROM {schema}.job ORDER BY id")]

    def row(self, name: str) -> ScheduleRow:
        found = self.client.schedules.get(name)
        assert found is not None
        return found


@pytest.fixture
def table(client: Client, connect: Connect) -> Table:
    return Table(client, connect(autocommit=True), connect)


# R6: who holds a row and hangs stops nobody else.


def test_r6_a_schedule_that_somebody_holds_stops_no_other_and_nobody_waits_for_it(
    table: Table, connect: Connect
) -> None:
    tick = table.process(*(Schedule(name, every(HOUR), Report(n)) for n, name in enumerate(["held", "free"])))
    table.come()
    holder = connect()
    holder.execute(f"SELECT FROM \"{table.client.schema}\".schedule WHERE name = 'held' FOR UPDATE")
    tick()
    assert table.numbers() == [1]
    waits = [tick() for _ in range(3)]
    assert all(timedelta(milliseconds=1) < wait <= SECOND for wait in waits[:1]), "it is not tried hot"
    holder.close()
    wait_until(lambda: tick() and table.numbers() == [1, 0])


def test_r6_the_server_bounds_what_a_tick_does(table: Table) -> None:
    """It leaves in one message, so that no process can hang in the middle of it; and what it meets is bounded."""
    table.query("CREATE TABLE {schema}.bound (name text, value text)")
    table.query(
        """CREATE FUNCTION {schema}.note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        EXECUTE format('INSERT INTO %%I.bound SELECT name, setting FROM pg_settings WHERE name IN (%%L, %%L, %%L, %%L)',
            TG_TABLE_SCHEMA, 'idle_in_transaction_session_timeout', 'statement_timeout', 'lock_timeout',
            'transaction_isolation');
        RETURN NEW; END $$""".replace("%%", "%")
    )
    table.query("CREATE TRIGGER note BEFORE INSERT ON {schema}.job FOR EACH ROW EXECUTE FUNCTION {schema}.note()")
    tick = table.process(Schedule("report", every(HOUR), Report()))
    table.come()
    tick()
    assert dict(table.query("SELECT name, value FROM {schema}.bound")) == {
        "idle_in_transaction_session_timeout": "5000",
        "statement_timeout": "30000",
        "lock_timeout": "5000",
        "transaction_isolation": "read committed",
    }


# R16: one that fails is moved on, and not tried hot.


def test_r16_a_schedule_that_cannot_tick_stops_no_other_says_why_and_is_left_alone_for_a_while(
    table: Table, caplog: pytest.LogCaptureFixture
) -> None:
    insert = "INSERT INTO {schema}.schedule (name, kind, spec, zone, options) VALUES (%s, 'report', %s, %s, %s::jsonb)"
    table.query(insert, "a.spec", "nonsense", "UTC", None)
    table.query(insert, "a.zone", "@daily", "Nowhere", None)
    table.query(insert, "an.option", "@every 1h", "UTC", '{"queue": ""}')
    table.query(insert, "another.option", "@every 1h", "UTC", '{"priority": "high"}')
    tick = table.process(Schedule("good", every(HOUR), Report(1)))
    with caplog.at_level(logging.WARNING, logger="pgjobs.cron"):
        tick()
        table.come("an.option", "another.option", "good")
        tick()
        assert table.numbers() == [1]
        for name, why in (
            ("a.spec", "five fields"),
            ("a.zone", "Nowhere"),
            ("an.option", "job_names"),
            ("another.option", "high"),
        ):
            assert why in (table.row(name).error or "")
        written = len(caplog.records)
        assert tick() > SECOND, "until one of the others wants something"
        assert len(caplog.records) == written == 4
    table.query("UPDATE {schema}.schedule SET spec = '@daily' WHERE name = 'a.spec'")
    again = table.process()
    again()
    assert table.row("a.spec").next_tick_at is not None
    assert table.row("a.spec").error is None


def test_r16_an_act_that_fails_is_tried_again_later(table: Table, caplog: pytest.LogCaptureFixture) -> None:
    tried = threading.Semaphore(0)

    def broken(conn: AnyConnection) -> timedelta:
        tried.release()
        raise psycopg.OperationalError("not today")

    thread = MaintenanceThread(
        Maintenance(table.client.schema, keep={}), table.client.source, name="maintenance", tick=broken
    )
    thread.start()
    assert tried.acquire(timeout=10)
    wait_until(lambda: "the connection to the database is lost: not today" in caplog.text)
    thread.run_soon("tick")
    assert tried.acquire(timeout=10), "the thread lives"
    assert thread.stop(10)


# R17: code that hangs, code that is missing, specs that are edited, deploys that differ.


def test_r17_a_function_that_hangs_holds_up_its_own_schedule_in_its_own_process_alone(
    table: Table, caplog: pytest.LogCaptureFixture
) -> None:
    hangs, let_go = threading.Event(), threading.Event()

    def hang() -> Report:
        hangs.set()
        let_go.wait(60)
        return Report(-1)

    def cron(args: Any) -> list[Schedule]:
        return [
            Schedule("hangs", every(HOUR), args),
            Schedule("asks", every(HOUR), lambda: Report(2)),
            Schedule("fixed", every(HOUR), Report(3)),
        ]

    with WorkerPool(table.client, {Report: nothing}, cron=cron(hang), queues={"none": 1}) as pool:
        table.come("hangs")
        inside.tick_soon(pool)
        assert hangs.wait(10)
        later = table.client.enqueue(None, Report(), delay=SECOND / 50)
        table.come("asks", "fixed")
        inside.tick_soon(pool)
        ((locked,),) = table.query("SELECT count(*) FROM (SELECT FROM {schema}.schedule FOR UPDATE NOWAIT) AS free")
        assert locked == 3, "nothing is held meanwhile"
        wait_until(lambda: {2, 3} <= set(table.numbers()))
        wait_until(lambda: table.query("SELECT 1 FROM {schema}.job WHERE id = %s AND state = 'available'", later.id))
        other = table.process(*cron(lambda: Report(1)))
        wait_until(lambda: other() and 1 in table.numbers())
        let_go.set()
        wait_until(lambda: not any("schedule-hangs" in thread.name for thread in threading.enumerate()))
        table.come("asks")
        inside.tick_soon(pool)
        wait_until(lambda: table.numbers().count(2) == 2)
    assert sorted(table.numbers()) == [0, 1, 2, 2, 3], "its answer came too late, and the tick is not made twice"


def test_r17_a_function_that_takes_longer_than_the_interval_is_not_asked_for_ever(table: Table) -> None:
    """Its answer is to the tick that it was asked for, though the next ones have come meanwhile."""

    def slow() -> Report:
        with psycopg.connect(str(table.client.pool.conninfo), autocommit=True) as conn:
            conn.execute("SELECT pg_sleep(0.15)")  # three intervals
        return Report(1)

    cron = [Schedule("slow", every(SECOND / 20), slow)]
    with WorkerPool(table.client, {Report: nothing}, queues={"none": 1}, cron=cron):
        wait_until(lambda: len(table.numbers()) >= 3)


def test_r17_an_answer_that_comes_when_another_has_made_the_tick_is_for_nothing(table: Table) -> None:
    schedule = Schedule("report", every(HOUR), lambda: Report(1))
    other = table.process(schedule)
    answers: list[SuppliedJob] = []
    asked: list[datetime | None] = []

    def supply(schedule: Schedule) -> SuppliedJob:
        answers.append(SuppliedJob())
        return answers[-1]

    def tick() -> None:
        before = len(answers)
        ticker.tick(table.conn)
        if len(answers) > before:
            asked.append(ticker.pending["report"].plan.tick)

    ticker = Ticker(ScheduleQueries(table.client.schema), lambda: {"report": schedule}, supply)
    first = table.come("report")
    tick()
    tick()
    assert asked == [first], "the function is asked once"
    other()
    second = table.come("report")
    tick()
    assert asked == [first], "and has one thread, whatever becomes of the schedule"
    compute_job(Schedule("report", every(HOUR), Report(2)), inside.encoder(table.client), answers[0])
    tick()
    assert asked == [first, second]
    assert table.numbers() == [1]


def test_r17_a_function_that_hangs_is_logged_once_a_minute_and_left_out_in_between(
    table: Table, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    schedule = Schedule("report", every(HOUR), lambda: Report(1))
    table.process(schedule)
    supplied, now = list[SuppliedJob](), 100.0
    monkeypatch.setattr("pgjobs.schedules.ticker.time", SimpleNamespace(monotonic=lambda: now))

    def supply(schedule: Schedule) -> SuppliedJob:
        supplied.append(SuppliedJob())
        return supplied[-1]

    ticker = Ticker(ScheduleQueries(table.client.schema), lambda: {"report": schedule}, supply)
    table.come("report")
    ticker.tick(table.conn)
    for minutes in (1, 2):
        now += 59
        assert ticker.tick(table.conn) == LOOK_EVERY, "it is left out"
        assert caplog.text.count("has not answered") == minutes - 1
        now += 2
        ticker.tick(table.conn)
        assert caplog.text.count("has not answered") == minutes
    assert len(supplied) == 1, "the function is called once"
    compute_job(schedule, inside.encoder(table.client), supplied[0])
    ticker.tick(table.conn)
    assert table.numbers() == [1]


def test_r17_a_function_for_which_there_is_no_thread_is_called_later(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = Schedule("report", every(HOUR), lambda: Report(1))
    table.process(schedule)
    now, refusals = 100.0, [RuntimeError("can't start new thread")]
    monkeypatch.setattr("pgjobs.schedules.ticker.time", SimpleNamespace(monotonic=lambda: now))

    def supply(schedule: Schedule) -> SuppliedJob:
        if refusals:
            raise refusals.pop()
        return compute_job(schedule, inside.encoder(table.client), SuppliedJob())

    ticker = Ticker(ScheduleQueries(table.client.schema), lambda: {"report": schedule}, supply)
    table.come("report")
    for seconds in (0, 29):
        now += seconds
        ticker.tick(table.conn)
        assert table.row("report").error == "can't start new thread"
        assert table.numbers() == []
    now += 2
    ticker.tick(table.conn)
    assert table.row("report").error is None
    assert table.numbers() == [1]


def test_r17_a_run_by_hand_does_not_hide_a_change_of_spec(table: Table) -> None:
    tick = table.process()
    table.client.schedules.add(Schedule("report", "@yearly", Report(1)))
    before = table.row("report").next_tick_at
    table.client.schedules.change("report", spec="@hourly")
    table.client.schedules.run_now("report")
    for _ in range(3):
        tick()
    assert table.numbers() == [1]
    assert table.row("report").next_tick_at != before


def test_r17_a_process_without_the_code_never_takes_the_tick(table: Table) -> None:
    with_code = table.process(
        Schedule("code", every(HOUR), lambda: Report(1)), Schedule("fixed", every(HOUR), Report(2))
    )
    without = table.process()
    table.come()
    table.client.schedules.run_now("code")
    assert without() == LOOK_EVERY, "it is not even due there"
    assert table.numbers() == []
    with_code()
    with_code()
    assert sorted(table.numbers()) == [1, 1, 2]
    assert table.row("code").in_code


def test_r17_a_function_that_raises_skips_its_tick_and_says_so(table: Table, caplog: pytest.LogCaptureFixture) -> None:
    answers: Iterator[Any] = iter([ValueError("no figures"), SystemExit(3), "no args", Report(1)])

    def supply() -> object:
        given = next(answers)
        if isinstance(given, BaseException):
            raise given
        return given

    tick = table.process(Schedule("report", every(HOUR), supply))
    for error in ("no figures", "SystemExit: 3", "a job is a dataclass instance", None):
        at = table.come("report")
        tick()
        found = table.row("report")
        assert found.next_tick_at == at + HOUR, "the schedule goes on"
        assert (error in (found.error or "")) if error else found.error is None
        assert (found.last_tick_at == at) == (error is None or found.error is not None)
    assert table.numbers() == [1]
    assert caplog.text.count("is skipped") == 3
    assert "is skipped: ValueError: no figures" in caplog.text, "its type too: a KeyError says only 'name'"


def test_r17_a_change_of_spec_or_zone_in_the_code_has_another_next_tick_and_no_other_change_has(table: Table) -> None:
    def next_tick(**changes: Any) -> datetime:
        setting: dict[str, Any] = {"spec": "0 12 1 1 *", "args": Report(1), **changes}
        table.process(Schedule("report", **setting))
        tick = table.row("report").next_tick_at
        assert tick is not None
        return tick

    first = next_tick()
    table.query("UPDATE {schema}.schedule SET next_tick_at = next_tick_at - interval '1 day'")
    kept = table.row("report").next_tick_at
    assert kept != first
    assert next_tick() == kept
    assert next_tick(args=Report(2), window=HOUR, priority=4) == kept
    assert table.row("report").raw_args == '{"number": 2}'
    assert next_tick(zone="Asia/Tokyo").astimezone(UTC).hour == 3
    assert next_tick(zone="Asia/Tokyo", spec="30 12 1 1 *").minute == 30
    table.come("report")
    (tomorrow,) = table.query("SELECT clock_timestamp() + interval '1 day'")[0]
    assert next_tick(spec=every(HOUR)) < tomorrow


def test_r17_of_two_deploys_the_newer_version_wins_whoever_starts_last(table: Table) -> None:
    def deploy(version: int, spec: str) -> Callable[[], timedelta]:
        return table.process(Schedule("report", spec, lambda: Report(version), version=version, run_on_start=True))

    old = deploy(1, "@daily")
    old()
    new = deploy(2, "@weekly")
    old_again = deploy(1, "@daily")
    found = table.row("report")
    assert (found.spec, found.version, found.run_now_at) == ("@weekly", 2, None), "no flapping, and no second start"
    table.come("report")
    assert old() == LOOK_EVERY, "its function is that of an older deploy"
    assert old_again() == LOOK_EVERY
    new()
    assert table.numbers() == [1, 2]


# F30, I6: outages. Each tick once, whatever dies when.


def ticks_of(table: Table, name: str) -> list[datetime]:
    return [tick for (tick,) in table.query("SELECT tick FROM {schema}.job WHERE schedule = %s ORDER BY tick", name)]


@pytest.mark.parametrize(
    "then", ["RAISE EXCEPTION 'no'", "PERFORM pg_terminate_backend(pg_backend_pid()), pg_sleep(5)"]
)
@pytest.mark.parametrize("on", ["job", "schedule"])
def test_f30_a_tick_that_dies_between_job_and_bookkeeping_has_done_neither(table: Table, on: str, then: str) -> None:
    tick = table.process(Schedule("report", every(HOUR), Report(1), catch_up="all"))
    first = table.come("report", ago=2.5 * HOUR)
    table.query(
        "CREATE FUNCTION {schema}.die() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN " + then + "; RETURN NULL; END $$"
    )
    event = {"job": "INSERT", "schedule": "UPDATE OF last_tick_at"}[on]
    table.query(f"CREATE TRIGGER die AFTER {event} ON {{schema}}.{on} FOR EACH ROW EXECUTE FUNCTION {{schema}}.die()")
    before = table.row("report")
    try:
        tick()
    except psycopg.OperationalError:
        assert "terminate" in then
    else:
        assert "RAISE" in then
    assert (table.numbers(), table.row("report").next_tick_at) == ([], before.next_tick_at)
    table.query(f"DROP TRIGGER die ON {{schema}}.{on}")
    other = table.process(Schedule("report", every(HOUR), Report(1), catch_up="all"))
    for _ in range(5):
        other()
    assert ticks_of(table, "report") == [first, first + HOUR, first + 2 * HOUR]


def test_f30_a_tick_whose_process_dies_after_it_is_not_made_again(table: Table) -> None:
    """Nor is one whose bookkeeping was undone by hand: a tick has one job."""
    schedule = Schedule("report", every(HOUR), Report(1))
    table.process(schedule)
    first = table.come()
    for _ in range(3):
        table.process(schedule)()
    assert ticks_of(table, "report") == [first]
    table.query("UPDATE {schema}.schedule SET next_tick_at = %s", first)
    table.process(schedule)()
    assert ticks_of(table, "report") == [first]
    assert table.row("report").next_tick_at == first + HOUR, "and it goes on"
    with pytest.raises(psycopg.errors.UniqueViolation):
        table.query("INSERT INTO {schema}.job (kind, schedule, tick) VALUES ('report', 'report', %s)", first)


def test_f30_many_processes_at_once_make_each_tick_once(table: Table) -> None:
    schedules = [Schedule(f"s{n}", every(HOUR), Report(n), catch_up="all") for n in range(5)]
    acts = [table.process(*schedules) for _ in range(8)]
    first = table.come(ago=9.5 * HOUR)
    gate = threading.Barrier(len(acts))
    failures: list[BaseException] = []

    def repeat(act: Callable[[], timedelta]) -> None:
        try:
            gate.wait(30)
            due = "SELECT 1 FROM {schema}.schedule WHERE next_tick_at < now() LIMIT 1"
            with psycopg.connect(table.conn.info.dsn, password=table.conn.info.password, autocommit=True) as conn:
                mine = Table(table.client, conn, table.connect)
                wait_until(lambda: act() and not mine.query(due), timeout=60)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=repeat, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert failures == []
    for schedule in schedules:
        assert ticks_of(table, schedule.name) == [first + n * HOUR for n in range(10)]


def test_f30_two_that_saw_the_same_tick_cannot_both_make_it(table: Table, connect: Connect) -> None:
    """The second finds that the schedule has moved on, and that its answer is for nothing."""
    table.process(Schedule("report", every(HOUR), lambda: Report()))  # noqa: PLW0108
    table.come("report")
    store = ScheduleQueries(table.client.schema)
    one, two = connect(autocommit=True), connect(autocommit=True)
    seen: list[DueSchedule] = [store.due(conn, {"report": 0}, [], 10)[0][0] for conn in (one, two)]
    assert seen[0].next_tick_at is not None
    assert seen[0].next_tick_at == seen[1].next_tick_at
    tick = seen[0].next_tick_at
    new = Schedule("x", "@daily", Report(1)).job()
    assert new is not None
    plan = TickPlan(tick=tick, next=tick + HOUR, last_tick=tick, job=inside.encoder(table.client)(new))
    first = store.write_tick(one, seen[0], plan)
    assert first is not None
    assert first.id == 1
    assert store.write_tick(two, seen[1], plan) is None
    assert table.numbers() == [1]


@pytest.mark.parametrize(
    "change", ["spec = '@weekly'", "paused_at = now()", "zone = 'Asia/Tokyo'", "run_now_at = now()"]
)
def test_f30_what_is_changed_between_the_look_and_the_tick_wins(table: Table, change: str) -> None:
    """The function of the args may have taken long; its answer is dropped, and the schedule looked at anew."""

    def supply() -> Report:
        table.query(f"UPDATE {{schema}}.schedule SET {change}")
        return Report(1)

    tick = table.process(Schedule("report", "@daily", supply))
    at = table.come("report")
    tick()
    assert table.numbers() == []
    assert table.row("report").next_tick_at == at, "not moved by who did not know"


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_f30_the_isolation_that_connections_default_to_changes_nothing(
    table: Table, database: str, connect: Connect, level: str
) -> None:
    options = f"-c default_transaction_isolation={level.replace(' ', chr(92) + ' ')}"
    with Client(make_conninfo(database, options=options), schema=table.client.schema) as client:
        strict = Table(client, table.conn, partial(connect, options=options))
        schedule = Schedule("report", every(HOUR), Report(1), run_on_start=True)
        gate = threading.Barrier(4)
        failures: list[BaseException] = []

        def work() -> None:
            try:
                gate.wait(30)
                act = strict.process(schedule)
                for _ in range(3):
                    act()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert failures == []
        wait_until(lambda: strict.process(schedule)() and table.numbers())
    assert table.numbers() == [1]
