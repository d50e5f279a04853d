"""Input that means harm, or only happens to do it: refused before any SQL, or carried through as data."""

from __future__ import annotations

import ast
import enum
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb

import pgjobs
from pgjobs import (
    AttemptError,
    Client,
    InvalidArgs,
    InvalidHandler,
    InvalidJob,
    InvalidKind,
    InvalidOption,
    InvalidSetting,
    Job,
    JobState,
    NewJob,
    RetryAfter,
    Snooze,
    Unique,
    WorkerPool,
    WorkMap,
    constant,
)
from pgjobs.db.cursors import AnyConnection
from pgjobs.maintenance.duties import Maintenance
from pgjobs.maintenance.queries import MaintenanceQueries
from pgjobs.schedules.args_supplier import SuppliedJob
from pgjobs.schedules.queries import ScheduleQueries
from pgjobs.schedules.ticker import Ticker
from tests import by_hand
from tests.conftest import Connect
from tests.waiting import wait_until

LATER = constant(timedelta(hours=1))
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
SOURCE = Path(pgjobs.__file__).parent

HOSTILE = [
    "'; DROP TABLE job; --",
    '"; DROP TABLE job; --',
    "%s %(queue)s %% %",
    "{0} {queue} {{}}",
    "$1 $$ $pgjobs$",
    "\\'; E'\\x00'",
    "two\nlines\r\nand\x0bmore\x85still\u2028more",
    "\x1b[31mred\x1b[0m \x07 \x9b2J",
    "<script>alert(1)</script>",
    "pgjоbs",  # a Cyrillic o
    "\u202eright to left",
    "../../etc/passwd",
    "os.system",
    " ",
]


@dataclass
class Order:
    kind: ClassVar[str] = "order"
    id: int
    items: list[str]


@dataclass
class Table:
    """The jobs of one schema, seen through a connection in autocommit mode."""

    client: Client
    conn: AnyConnection

    def sql(self, text: str) -> sql.Composed:
        return sql.SQL(text).format(schema=sql.Identifier(self.client.schema))

    def query(self, text: str, *values: Any) -> list[Any]:
        cur = self.conn.execute(self.sql(text), values or None)
        return cur.fetchall() if cur.description else []

    def count(self) -> int:
        return int(self.query("SELECT count(*) FROM {schema}.job")[0][0])

    def insert(self, **columns: Any) -> int:
        """A row put in by hand."""
        names = sql.SQL(", ").join(sql.Identifier(name) for name in columns)
        values = sql.SQL(", ").join(sql.Placeholder() for _ in columns)
        statement = sql.SQL("INSERT INTO {}.job ({}) VALUES ({}) RETURNING id").format(
            sql.Identifier(self.client.schema), names, values
        )
        row = self.conn.execute(statement, list(columns.values())).fetchone()
        assert row is not None
        return int(row[0])

    def job(self, id: int) -> Job[Any]:
        found = self.client.get(id)
        assert found is not None
        return found


@pytest.fixture
def table(client: Client, connect: Connect) -> Table:
    return Table(client, connect(autocommit=True))


def work(client: Client, work_map: Any, queue: str = "default") -> bool:
    return WorkerPool(client, work_map, backoff=LATER).work_one(queue)


def assert_one_line_each(caplog: pytest.LogCaptureFixture) -> None:
    """No record of ours breaks its line, or sends a terminal anything but text."""
    for record in caplog.records:
        if record.name.startswith("pgjobs"):
            message = record.getMessage()
            assert len(message.splitlines()) <= 1, message
            assert not CONTROL.search(message), repr(message)


# F22, 337: args that cannot be stored.


class Color(enum.Enum):
    RED = 1


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def cyclic() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


UNSTORABLE: dict[str, Callable[[], Any]] = {
    "NUL": lambda: "a\0b",
    "lone surrogate": lambda: "\ud800",
    "NaN": lambda: float("nan"),
    "Infinity": lambda: float("inf"),
    "set": lambda: {1},
    "bytes": lambda: b"x",
    "datetime": lambda: datetime.now(UTC),
    "Decimal": lambda: Decimal(1),
    "Enum": lambda: Color.RED,
    "object": object,
    "a long number": lambda: 10**5000,
    "deep nesting": lambda: nested(2000),
    "a cycle": cyclic,
    "over 256 MB": lambda: "x" * 270_000_000,
    "over 1 MiB": lambda: "x" * 1_100_000,
    "a tuple as a key": lambda: {(1, 2): 3},
    "two keys that become one": lambda: {1: 2, "1": 3},
    "NUL in a key": lambda: {"a\0": 1},
    "a surrogate in a key": lambda: {"\udfff": 1},
}


FINE = {"fine": 1}
PLACES: dict[str, Callable[[Client, AnyConnection, dict[str, Any]], object]] = {
    "args": lambda client, tx, bad: client.enqueue(tx, bad, kind="ab"),
    "metadata": lambda client, tx, bad: client.enqueue(tx, FINE, kind="ab", metadata=bad),
    "many": lambda client, tx, bad: client.enqueue_many(tx, [NewJob(FINE, kind="ab"), NewJob(bad, kind="ab")]),
}


@pytest.mark.conformance(337)
@pytest.mark.parametrize(
    ("what", "where"),
    # a string over 256 MB once is enough
    [(what, where) for what in UNSTORABLE for where in PLACES if what != "over 256 MB" or where == "args"],
)
def test_what_cannot_be_stored_is_refused_by_its_path_before_any_sql(table: Table, what: str, where: str) -> None:
    client = table.client
    if what == "over 256 MB":
        client = Client(client.pool, schema=client.schema, max_args_bytes=2**40)
    bad = {"list": [0, UNSTORABLE[what]()]}
    with client.pool.connection() as tx:
        tx.execute("SELECT 1")
        sent = tx.execute("SELECT pg_current_xact_id_if_assigned()").fetchone()
        refused = InvalidOption if where == "metadata" else InvalidArgs
        with pytest.raises(refused, match=r"\$\.list\[1\]") as caught:
            PLACES[where](client, tx, bad)
        assert len(str(caught.value)) < 400
        assert tx.execute("SELECT pg_current_xact_id_if_assigned()").fetchone() == sent
        good = client.enqueue(tx, FINE, kind="ab")
    assert table.count() == 1
    assert table.job(good.id).args == FINE


@pytest.mark.conformance(340)
def test_ten_megabytes_and_exact_numbers_arrive_as_they_were_given(table: Table) -> None:
    client = Client(table.client.pool, schema=table.client.schema, max_args_bytes=20_000_000)
    args = {"text": "ü" * 5_000_000, "exact": 2**53 + 1, "huge": 10**40, "float": 0.1 + 0.2, "keys": {1: "one"}}
    arrived: list[Any] = []
    client.enqueue(None, args, kind="large")
    assert work(client, {"large": lambda tx, job: arrived.append(job.args)})
    assert arrived == [{**args, "keys": {"1": "one"}}]
    assert arrived[0]["float"] == 0.30000000000000004


# F23: what comes out of a failing handler, or into a row by hand, and has to be recorded.


UGLY = "NUL \0 surrogate \ud800 escape \x1b[31m bell \x07 C1 \x9b newline \n tab \t"


class Ugly(Exception):
    pass


Ugly.__name__ = "Ugly\n\x1b[31m"
Ugly.__qualname__ = Ugly.__name__


def raise_ugly(tx: AnyConnection, job: Job[Any]) -> None:
    raise Ugly(UGLY)


def raise_long(tx: AnyConnection, job: Job[Any]) -> None:
    raise ValueError(UGLY + "x" * 10_000_000)


def raise_ugly_from_ugly(tx: AnyConnection, job: Job[Any]) -> None:
    raise RetryAfter(timedelta(hours=1), UGLY) from Ugly(UGLY)


def raise_with_an_ugly_note(tx: AnyConnection, job: Job[Any]) -> None:
    error = ValueError("plain")
    error.add_note(UGLY)
    raise error


def raise_sql(tx: AnyConnection, job: Job[Any]) -> None:
    tx.execute("DO $$ BEGIN RAISE EXCEPTION E'two\\nlines \\x1b[31m' USING DETAIL = E'more\\n\\nlines'; END $$")


@pytest.mark.conformance(341)
@pytest.mark.parametrize("handler", [raise_ugly, raise_long, raise_ugly_from_ugly, raise_with_an_ugly_note, raise_sql])
def test_ugly_errors_are_recorded_clean_and_logged_on_one_line(
    table: Table, handler: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "pgjobs")
    id = table.insert(kind="ab")
    assert work(table.client, {"ab": handler})
    job = table.job(id)
    assert (job.state, job.attempt, len(job.errors)) == (JobState.RETRYABLE, 1, 1)
    error = job.errors[0]
    assert error.attempt == 1
    assert len(error.error) <= 8192
    assert len(error.trace or "") <= 32768
    assert not CONTROL.search(error.error + (error.trace or ""))
    assert handler.__name__ in (error.trace or "")
    assert [record for record in caplog.records if record.name.startswith("pgjobs")]
    assert_one_line_each(caplog)


@pytest.mark.conformance(341)
@pytest.mark.parametrize("text", HOSTILE)
def test_rows_with_hostile_texts_are_fetched_finished_and_logged_as_data(
    table: Table, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "pgjobs")
    columns = {
        "kind": text,
        "tags": [text, "plain"],
        "args": Jsonb({text: text}),
        "metadata": Jsonb({text: text}),
        "attempted_by": [text],
        "max_attempts": 3,
    }
    failing = table.insert(**columns, priority=1)
    passing = table.insert(**{**columns, "kind": "ab", "priority": 2})
    seen: list[Any] = []

    def handler(tx: AnyConnection, job: Job[Any]) -> None:
        seen.append((job.tags, job.args, dict(job.metadata), job.attempted_by[0]))

    assert work(table.client, {"ab": handler})
    failed = table.job(failing)
    assert (failed.kind, failed.state, failed.error_count) == (text, JobState.RETRYABLE, 1)
    assert "no handler for kind" in failed.errors[0].error
    assert work(table.client, {"ab": handler})
    assert seen == [((text, "plain"), {text: text}, {text: text}, text)]
    assert table.job(passing).state == JobState.COMPLETED
    assert table.count() == 2
    assert_one_line_each(caplog)


@pytest.mark.conformance(341)
@pytest.mark.parametrize("text", [text for text in HOSTILE if len(text) <= 64])
def test_rows_in_hostile_queues_are_promoted_and_rescued_as_data(
    table: Table, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "pgjobs")
    due = table.insert(kind="ab", queue=text, state="scheduled")
    lost = table.insert(
        kind=text,
        queue=text,
        state="running",
        attempt=1,
        attempted_at=datetime(2020, 1, 1, tzinfo=UTC),
        attempted_by=[text],
    )
    woken: list[str] = []
    maintenance = Maintenance(table.client.schema, keep={}, wake=lambda queue, jobs: woken.append(queue))
    maintenance.do(table.conn, "promote")
    maintenance.rescue(table.conn)
    assert woken == [text]
    assert table.job(due).state == JobState.AVAILABLE
    rescued = table.job(lost)
    assert (rescued.state, rescued.errors[0].attempt) == (JobState.RETRYABLE, 1)
    assert rescued.errors[0].error.startswith("worker vanished")
    assert not CONTROL.search(rescued.errors[0].error)
    assert_one_line_each(caplog)


@pytest.mark.parametrize(
    "id",
    [text for text in HOSTILE] + ["NUL \0", "surrogate \udc80", "x" * 10_000_000, "ünï"],
    ids=lambda id: repr(id)[:20],
)
def test_whatever_a_worker_is_called_it_works_and_can_be_named(
    table: Table, id: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Host names are not ours to choose: what cannot be stored or printed is replaced."""
    caplog.set_level(logging.DEBUG, "pgjobs")
    client = Client(table.client.pool, schema=table.client.schema, id=id)
    seen: list[int] = []
    job = client.enqueue(None, {"n": 1}, kind="ab")
    assert work(client, {"ab": lambda tx, job: seen.append(1)})
    done = table.job(job.id)
    assert done.state == JobState.COMPLETED
    assert done.attempted_by == (client.id,)
    assert client.id
    assert len(client.id) <= 255
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", client.id)
    assert_one_line_each(caplog)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_worker_pool_with_a_hostile_name_logs_single_lines(
    table: Table, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "pgjobs")
    with WorkerPool(table.client, {"ab": lambda tx, job: None}, queues={"default": 1}, name=name):
        pass
    assert_one_line_each(caplog)


# F24: args that do not fit.


MISFITS = [
    {},
    {"id": 1},
    {"id": "one", "items": []},
    {"id": 1, "items": "text"},
    {"id": 1, "items": [1]},
    {"id": None, "items": []},
    {"id": 1.5, "items": []},
    {"id": 10**400, "items": None},
    {"id": True, "items": []},
    {"__class__": "os.system", "items": []},
]


@pytest.mark.parametrize("args", MISFITS, ids=repr)
def test_args_that_do_not_fit_fail_the_attempt_without_calling_the_handler(table: Table, args: dict[str, Any]) -> None:
    """F24."""
    called: list[Any] = []
    id = table.insert(kind="order", args=Jsonb(args), max_attempts=2)
    work_map = {Order: lambda tx, job: called.append(job.args)}
    assert work(table.client, work_map)
    assert called == []
    job = table.job(id)
    assert (job.state, job.error_count) == (JobState.RETRYABLE, 1)
    assert "args do not fit Order: $" in (job.last_error or "")
    table.query("UPDATE {schema}.job SET state = 'available', scheduled_at = now()")
    assert work(table.client, work_map)
    assert table.job(id).state == JobState.DISCARDED


def test_fields_that_the_class_does_not_know_are_no_misfit(table: Table) -> None:
    called: list[Any] = []
    table.insert(kind="order", args=Jsonb({"id": 1, "items": ["a"], "added": "later", "__class__": "os.system"}))
    assert work(table.client, {Order: lambda tx, job: called.append(job.args)})
    assert called == [Order(1, ["a"])]


# F25: rows put in by hand.


EARLY, LATE = "0001-01-03 00:00:00+00", "9999-12-30 00:00:00+00"
REFUSED: list[dict[str, Any]] = [
    {"scheduled_at": "infinity"},
    {"scheduled_at": "-infinity"},
    {"scheduled_at": "10000-01-01 00:00:00+00"},
    {"scheduled_at": "9999-12-31 00:00:00+00"},
    {"scheduled_at": "0001-01-01 00:00:00+00 BC"},
    {"scheduled_at": "0001-01-01 00:00:00+00"},
    {"scheduled_at": None},
    {"created_at": "infinity"},
    {"attempted_at": "-infinity"},
    {"leased_until": "infinity"},
    {"state": "completed", "finalized_at": "infinity"},
    {"state": "completed"},
    {"finalized_at": "2024-01-01"},
    {"state": "done"},
    {"state": ""},
    {"state": None},
    {"kind": ""},
    {"kind": None},
    {"kind": "x" * 129},
    {"queue": ""},
    {"queue": "x" * 65},
    {"max_attempts": 0},
    {"max_attempts": -1},
    {"attempt": -1},
    {"attempt": 26},
    {"attempt": 25},
    {"attempt": 25, "state": "retryable"},
    {"priority": 32768},
    {"args": Jsonb([])},
    {"args": Jsonb("text")},
    {"args": Jsonb(None)},
    {"args": None},
    {"metadata": Jsonb([])},
    {"metadata": None},
    {"errors": Jsonb({})},
    {"errors": Jsonb(None)},
    {"errors": None},
    {"tags": [None]},
    {"tags": None},
    {"attempted_by": ["x", None]},
    {"unique_key": b"x"},
]


@pytest.mark.parametrize("columns", REFUSED, ids=lambda columns: repr(columns)[:50])
def test_the_table_refuses_rows_that_mean_nothing(table: Table, columns: dict[str, Any]) -> None:
    """F25."""
    with pytest.raises((psycopg.IntegrityError, psycopg.DataError)):
        table.insert(**{"kind": "ab", **columns})
    assert table.count() == 0


REFUSED_BESIDE = [
    "queue (name, paused_at) VALUES ('q', 'infinity')",
    "queue (name, updated_at) VALUES ('q', '-infinity')",
    "queue (name, updated_at) VALUES ('q', '12000-01-01')",
    "worker (id, host, pid, threads, version, started_at) VALUES ('w', 'h', 1, 1, 'v', 'infinity')",
    "worker (id, host, pid, threads, version, seen_at) VALUES ('w', 'h', 1, 1, 'v', '-infinity')",
    "cancel_request (job_id, queue, requested_at) VALUES (1, 'q', 'infinity')",
    "cancel_request (job_id, queue, reason) VALUES (1, 'q', repeat('x', 300000000))",
    *(
        f"job_progress (job_id, token, {columns}) VALUES (1, gen_random_uuid(), {values})"
        for columns, values in {
            "done": "'NaN'",
            "done, total": "1, 'infinity'",
            "done, note": "1, repeat('x', 201)",
            "done, updated_at": "-1, now()",
            "updated_at, done": "'infinity', 1",
        }.items()
    ),
]


@pytest.mark.finding("S3")
@pytest.mark.parametrize("row", REFUSED_BESIDE)
def test_the_other_tables_refuse_what_cannot_be_read_or_has_no_room(table: Table, row: str) -> None:
    """A queue paused since 'infinity' could not be listed, nor a process that began so; a reason of 300 MB in a request
    to cancel kept an attempt from its end, and had its job discarded."""
    with pytest.raises(psycopg.errors.CheckViolation):
        table.query("INSERT INTO {schema}." + row)
    assert table.client.queues.list() is not None
    assert table.client.workers() == []


def deep(depth: int, opened: str = "[", closed: str = "]") -> str:
    return opened * depth + "1" + closed * depth


READABLE: dict[str, dict[str, Any]] = {
    "the earliest instants": dict.fromkeys(["scheduled_at", "created_at", "attempted_at"], EARLY),
    "the worst priority": {"priority": 32767},
    "the best priority": {"priority": -32768},
    "empty args": {"args": "{}"},
    "deep args": {"args": '{"a":' + deep(3000) + "}"},
    "deep objects": {"args": '{"a":' + deep(3000, '{"a":', "}") + "}"},
    "deep metadata": {"metadata": '{"a":' + deep(3000) + "}"},
    "deep errors": {"errors": deep(3000)},
    "long numbers in args": {"args": '{"a":' + "9" * 5000 + "}"},
    "long numbers in metadata": {"metadata": '{"a":' + "9" * 5000 + "}"},
    "long numbers in errors": {"errors": '[{"attempt":' + "9" * 5000 + "}]"},
    "numbers beyond a float": {"args": '{"a": 1e400, "b": 1.5e400}', "errors": '[{"attempt": 1.5e400}]'},
    "fractions beyond a float": {"errors": '[{"attempt": ' + "9" * 400 + '.5, "at": "", "error": ""}]'},
    "odd errors": {"errors": '[1, null, "x", [], {"attempt": "x"}, {"attempt": 1, "at": "never", "error": {}}]'},
    "two hundred errors": {"errors": "[" + ",".join(['{"attempt": 1, "error": "x"}'] * 200) + "]"},
    "a long list of workers": {"attempted_by": ["x"] * 5000},
    "empty names": {"tags": ["", " "], "attempted_by": [""]},
    "long tags": {"tags": ["x" * 100_000]},
    "old and running": {"state": "running", "attempted_at": None},
}


@pytest.mark.parametrize("row", READABLE)
def test_a_row_that_the_table_takes_can_be_fetched_and_finished(table: Table, row: str) -> None:
    """T17, F25. And the one behind it too; whether the handler can read what is in it is the attempt's own affair."""
    columns = READABLE[row]
    odd = table.insert(**{"kind": "ab", "priority": -1, **columns})
    plain = table.insert(kind="ab", priority=0)
    if columns.get("state") == "running":
        table.query("UPDATE {schema}.job SET created_at = '2020-01-01' WHERE id = %s", odd)
        assert [
            job.id for job in MaintenanceQueries(table.client.schema).rescue(table.conn, 10, timedelta(seconds=3))
        ] == [odd]
        table.query("UPDATE {schema}.job SET state = 'available', scheduled_at = '2020-01-01' WHERE id = %s", odd)
    assert work(table.client, {"ab": lambda tx, job: None})
    assert work(table.client, {"ab": lambda tx, job: None})
    assert table.job(plain).state == JobState.COMPLETED
    finished = table.job(odd)
    assert finished.state in (JobState.COMPLETED, JobState.RETRYABLE)
    assert len(finished.attempted_by) <= 100
    if finished.state == JobState.RETRYABLE:
        [(error,)] = table.query("SELECT errors -> -1 ->> 'error' FROM {schema}.job WHERE id = %s", odd)
        assert "args cannot be read" in error


@pytest.mark.parametrize("row", READABLE)
def test_the_errors_of_a_row_can_always_be_shown(table: Table, row: str) -> None:
    job = table.job(table.insert(**{"kind": "ab", **READABLE[row]}))
    assert all(isinstance(error, AttemptError) for error in job.errors)
    assert job.error_count == len(job.errors)
    assert repr(job)


def test_a_policy_that_reads_unreadable_errors_still_ends_the_attempt(table: Table) -> None:
    id = table.insert(kind="ab", errors=READABLE["deep errors"]["errors"])

    def policy(job: Job[Any], error: BaseException) -> timedelta:
        return timedelta(hours=job.error_count)

    def handler(tx: AnyConnection, job: Job[Any]) -> None:
        raise ValueError("failed")

    WorkerPool(table.client, {"ab": handler}, backoff=policy).work_one()
    assert table.job(id).state in (JobState.RETRYABLE, JobState.DISCARDED)


# F26: dates and zones.


@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Etc/GMT+12", "Asia/Kathmandu", "<odd>-13:30"])
def test_instants_are_the_same_in_every_zone_of_the_server(table: Table, connect: Connect, zone: str) -> None:
    moved = connect(options=f"-c TimeZone={zone}")
    when = datetime(2038, 1, 20, 3, 14, 8, 123456, tzinfo=UTC)
    job = table.client.enqueue(moved, {"n": 1}, kind="ab", scheduled_at=when)
    moved.commit()
    assert job.scheduled_at == when
    assert job.scheduled_at.tzinfo is UTC
    for text in (EARLY, LATE):
        id = table.insert(kind="ab", scheduled_at=text)
        read = table.client.get(id, moved)
        assert read is not None
        assert read.scheduled_at == datetime.fromisoformat(text)
    claimed = connect(options=f"-c TimeZone={zone}", autocommit=True)
    early = by_hand.claim(table.client, claimed)
    assert early is not None
    assert early.scheduled_at == datetime.fromisoformat(EARLY)


@pytest.mark.parametrize("days", [60, 120, 180, 240, 300])  # some of them past the next change of the clocks
@pytest.mark.parametrize("style", ["postgres", "sql_standard"])
def test_a_day_of_delay_has_24_hours_wherever_the_session_is(
    table: Table, connect: Connect, days: int, style: str
) -> None:
    moved = connect(options=f"-c TimeZone=Europe/Berlin -c IntervalStyle={style}")
    delay = timedelta(days=days, microseconds=7)
    one = table.client.enqueue(moved, {"n": 1}, kind="ab", delay=delay)
    many = table.client.enqueue_many(moved, [NewJob({"n": n}, kind="ab", delay=delay) for n in range(3)])
    unique = table.client.enqueue(moved, {"n": 4}, kind="ab", delay=delay, unique=Unique(by_args=True))
    moved.commit()
    for job in (one, *many, unique):
        assert abs(job.scheduled_at - job.created_at - delay) < timedelta(minutes=1)


@pytest.mark.parametrize(
    "when",
    [
        datetime(2030, 1, 1),
        datetime(9999, 12, 31, tzinfo=UTC),
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-14))),
        datetime.min.replace(tzinfo=timezone(timedelta(hours=14))),
        datetime(2030, 1, 1).date(),
        "2030-01-01",
        1893456000,
        timedelta(hours=1),
    ],
    ids=repr,
)
def test_instants_that_are_naive_or_out_of_range_are_refused(table: Table, when: Any) -> None:
    with pytest.raises(InvalidOption):
        table.client.enqueue(None, {"n": 1}, kind="ab", scheduled_at=when)
    assert table.count() == 0


@pytest.mark.parametrize(
    "when",
    [
        datetime(9999, 12, 29, 23, 59, 59, 999999, tzinfo=UTC),
        datetime(9999, 12, 30, 13, 59, tzinfo=timezone(timedelta(hours=14))),
        datetime(1, 1, 3, tzinfo=UTC),
        datetime(1, 1, 2, 10, tzinfo=timezone(timedelta(hours=-14))),
        datetime(1900, 1, 1, tzinfo=timezone(timedelta(hours=0, minutes=53, seconds=28))),
    ],
    ids=repr,
)
def test_the_first_and_last_instants_are_stored_exactly(table: Table, when: datetime) -> None:
    job = table.client.enqueue(None, {"n": 1}, kind="ab", scheduled_at=when)
    assert table.job(job.id).scheduled_at == when


@pytest.mark.parametrize("delay", [timedelta.max, timedelta(days=3_000_000)], ids=repr)
def test_long_delays_are_cut(table: Table, delay: timedelta) -> None:
    job = table.client.enqueue(None, {"n": 1}, kind="ab", delay=delay)
    assert (job.state, job.scheduled_at.year > 9000) == (JobState.SCHEDULED, True)


@pytest.mark.parametrize("signal", [lambda: Snooze(timedelta.max), lambda: RetryAfter(timedelta.max)])
def test_long_delays_of_a_handler_are_cut(table: Table, signal: Callable[[], Exception]) -> None:
    def handler(tx: AnyConnection, job: Job[Any]) -> None:
        raise signal()

    job = table.client.enqueue(None, {"n": 1}, kind="ab")
    assert work(table.client, {"ab": handler})
    assert table.job(job.id).scheduled_at.year > 9000


@pytest.mark.parametrize("delay", [timedelta(microseconds=-1), timedelta.min, 60, "1 hour", 1e308], ids=repr)
def test_delays_that_are_none_are_refused(table: Table, delay: Any) -> None:
    with pytest.raises(InvalidOption):
        table.client.enqueue(None, {"n": 1}, kind="ab", delay=delay)
    assert table.count() == 0


# F27: names.


BAD_NAMES = [*HOSTILE, "", "x" * 129, "NUL\0", "\ud800", "ends with newline\n", "ab\n", "ünïcode", "ⓐⓑ"]
OPTIONS: dict[str, Callable[[str], dict[str, Any]]] = {
    "kind": lambda name: {"kind": name},
    "queue": lambda name: {"kind": "ab", "queue": name},
    "tag": lambda name: {"kind": "ab", "tags": ["fine", name]},
}


@pytest.mark.conformance(15)
@pytest.mark.conformance(21)
@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: repr(name)[:30])
@pytest.mark.parametrize("where", OPTIONS)
def test_hostile_names_are_refused_before_any_sql(table: Table, where: str, name: str) -> None:
    if (where != "tag" and name == "os.system") or (where == "tag" and name == "x" * 129):
        table.client.enqueue(None, {"n": 1}, **OPTIONS[where](name))  # names like any other
        return
    with table.client.pool.connection() as tx:
        with pytest.raises(InvalidJob) as caught:
            table.client.enqueue(tx, {"n": 1}, **OPTIONS[where](name))
        assert isinstance(caught.value, InvalidKind if where == "kind" else InvalidOption)
        assert len(str(caught.value)) < 500
        assert tx.info.transaction_status == psycopg.pq.TransactionStatus.IDLE, "nothing was sent"
    assert table.count() == 0


@pytest.mark.parametrize("name", [*BAD_NAMES, "drop table;", "my-jobs", "a.b", "123table", "Jobs", "pg_jobs", "x" * 47])
def test_a_schema_with_a_hostile_name_is_refused_at_construction(table: Table, name: str) -> None:
    with pytest.raises(InvalidSetting):
        Client(table.client.pool, schema=name)


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: repr(name)[:30])
def test_a_worker_pool_refuses_hostile_queues_and_kinds(table: Table, name: str) -> None:
    if name == "os.system":
        return
    with pytest.raises(InvalidOption):
        WorkerPool(table.client, {"ab": lambda tx, job: None}, queues={name: 1})
    with pytest.raises((InvalidHandler, InvalidKind)):
        WorkMap({name: lambda tx, job: None})


@pytest.mark.conformance(26)
@pytest.mark.parametrize("option", ["max_attempts", "priority"])
@pytest.mark.parametrize(
    "value", [-32769, 32768, 2**63, 10**5000, 1.0, "1", True, None.__class__], ids=lambda v: repr(type(v))
)
def test_numbers_out_of_range_are_refused_before_any_sql(table: Table, option: str, value: Any) -> None:
    with pytest.raises(InvalidOption):
        table.client.enqueue(None, {"n": 1}, kind="ab", **{option: value})
    assert table.count() == 0


@pytest.mark.conformance(26)
@pytest.mark.parametrize("value", [0, -1])
def test_fewer_than_one_attempt_is_refused_before_any_sql(table: Table, value: int) -> None:
    with pytest.raises(InvalidOption):
        table.client.enqueue(None, {"n": 1}, kind="ab", max_attempts=value)
    assert table.count() == 0


# S1: nothing in a row is executed.


@pytest.mark.parametrize("kind", ["os.system", "builtins.eval", "pgjobs.worker.WorkerPool", "__import__"])
def test_a_kind_that_names_a_function_does_nothing_but_fail(table: Table, kind: str, tmp_path: Path) -> None:
    target = tmp_path / "touched"
    id = table.insert(kind=kind, args=Jsonb({"command": f"touch {target}", "__reduce__": ["os.system"]}))
    assert work(table.client, {"ab": lambda tx, job: None})
    assert "no handler for kind" in (table.job(id).last_error or "")
    assert not target.exists()


def test_args_that_name_a_class_are_only_data(table: Table) -> None:
    seen: list[Any] = []
    args = {
        "__class__": "os.system",
        "py/object": "os.system",
        "$type": "x",
        "py/reduce": [{"py/function": "os.system"}],
    }
    table.insert(kind="ab", args=Jsonb(args))
    assert work(table.client, {"ab": lambda tx, job: seen.append(job.args)})
    assert seen == [args]


NAMED_BY_THE_USER = {SOURCE / "application.py"}  # imports the module that the command line names


def test_the_source_neither_unpickles_nor_evaluates_nor_imports_by_name() -> None:
    forbidden = {"eval", "exec", "compile", "__import__", "import_module", "loads_pickle"}
    for path in SOURCE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names}
                by_name = set() if path in NAMED_BY_THE_USER else {"importlib", "import_module"}
                assert not names & {"pickle", "marshal", "shelve", *by_name}, path
                assert getattr(node, "module", None) not in ("pickle", "marshal", "shelve"), path
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in forbidden, (path, node.lineno)


# S2: no SQL is built from input.


SQL_TEXT = re.compile(
    r"\b(SELECT|INSERT INTO|UPDATE|DELETE FROM|CREATE|DROP|ALTER|LISTEN|NOTIFY|SET LOCAL|SAVEPOINT)\s"
)
# What is put into SQL text: the schema and what derives from it (checked: a-z, 0-9 and _), the files of this package,
# a version of the tables.
COMPOSED = {
    "channel(schema)",
    "schema",
    "self._schema",
    "version",
    # of the fixtures of pgjobs.testing
    "sql.SQL('CREATE DATABASE {}').format(sql.Identifier(name))",
    "sql.SQL('DROP DATABASE IF EXISTS {} WITH (FORCE)').format(sql.Identifier(name))",
}


def composed_parts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """What is put into text that looks like SQL: in f-strings, by + and % and format()."""
    for node in ast.walk(tree):
        match node:
            case ast.JoinedStr() if SQL_TEXT.search("".join(texts_in(node))):
                for part in node.values:
                    if isinstance(part, ast.FormattedValue):
                        yield node.lineno, ast.unparse(part.value)
            case ast.BinOp(op=ast.Add() | ast.Mod()) if any(map(SQL_TEXT.search, texts_in(node))):
                yield node.lineno, ast.unparse(node)
            case ast.Call(func=ast.Attribute(attr="format", value=value)) if any(map(SQL_TEXT.search, texts_in(value))):
                yield node.lineno, ast.unparse(node)


def texts_in(node: ast.AST) -> list[str]:
    parts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
    return [part for part in parts if isinstance(part, str)]


def test_no_sql_text_is_built_from_input() -> None:
    for path in sorted(SOURCE.rglob("*.py")):
        if path.parent.name == "doctor" and path.stem != "queries":
            continue  # advice for people, which it does not send: the next test but one would find that
        for line, part in composed_parts(ast.parse(path.read_text())):
            assert part in COMPOSED, f"{path.name}:{line} puts {part} into SQL"


def test_the_look_for_built_sql_finds_it() -> None:
    for bad in (
        'conn.execute(f"SELECT * FROM job WHERE kind = {kind}")',
        'conn.execute("DELETE FROM job WHERE kind = " + kind)',
        'conn.execute("UPDATE job SET kind = %s" % kind)',
        '"DROP TABLE {}".format(name)',
    ):
        assert list(composed_parts(ast.parse(bad))), bad


def test_only_the_stores_touch_a_cursor() -> None:
    for path in sorted(SOURCE.rglob("*.py")):
        if path.stem.endswith("queries") or path.stem in ("repair", "channel", "cursors") or path.parent.name == "demo":
            continue
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        methods = [(call.func.attr, call.args) for call in calls if isinstance(call.func, ast.Attribute)]
        names = [name for name, given in methods if name != "copy" or given]  # without a statement it copies a dict
        # a method of MigrationQueries; the question for the facts of a server; cursors of Django that connect and send
        # nothing, and those of handlers
        harmless = {
            "migrate.py": {"execute"},
            "borrow.py": {"cursor"},
            "checkout.py": {"cursor"},
            "connections.py": {"cursor"},
            "startup_options.py": {"execute"},
            "fixtures.py": {"execute"},  # which make a database for tests
            "operations.py": {"execute"},  # of Django's schema editor, which runs our migrations
        }.get(path.name, set())
        assert not set(names) & ({"execute", "executemany", "copy", "stream", "cursor"} - harmless), path.name


# S3: the search_path is somebody else's.


# A schema that stands before pg_catalog and has what we use under the same names; each raises when it is called.
TRAPS = {
    "statement_timestamp()": "timestamptz",
    "clock_timestamp()": "timestamptz",
    "now()": "timestamptz",
    "pg_notify(text, text)": "void",
    "pg_notify(varchar, text)": "void",
    "cardinality(text[])": "integer",
    "jsonb_array_length(jsonb)": "integer",
    "jsonb_array_elements(jsonb)": "jsonb",
    "jsonb_build_object(text, jsonb)": "jsonb",
    "jsonb_build_object(text, timestamptz)": "jsonb",
    "jsonb_build_array(jsonb)": "jsonb",
    "jsonb_each_text(jsonb)": "text",
    "jsonb_object_agg(text, text)": "jsonb",
    "set_config(text, text, boolean)": "text",
    "current_setting(text)": "text",
    "pg_advisory_unlock_all()": "void",
    "attempt_lost()": "boolean",
    "power(double precision, double precision)": "double precision",
    "version()": "text",
    "pg_postmaster_start_time()": "timestamptz",
    "hashtextextended(text, bigint)": "bigint",
    "pg_advisory_xact_lock(bigint)": "void",
    "advisory_class()": "integer",
    "hashtext(text)": "integer",
    "pg_try_advisory_xact_lock_shared(integer, integer)": "boolean",
    "pg_try_advisory_lock(integer, integer)": "boolean",
    "pg_advisory_unlock(integer, integer)": "boolean",
    "pg_backend_pid()": "integer",
    "length(text)": "integer",
    "array_position(text[], text)": "integer",
    "jsonb_typeof(jsonb)": "text",
}
TRAPPED_TABLES = [
    "job",
    "maintenance",
    "migration",
    "queue",
    "schedule",
    "scheduler",
    "worker",
    "pg_settings",
    "pg_prepared_statements",
    "pg_class",
    "pg_namespace",
]


@pytest.fixture
def trapped(table: Table) -> Iterator[str]:
    """The options of a connection whose search_path begins with the trap."""
    trap = sql.Identifier(f"{table.client.schema}_trap")
    table.conn.execute(sql.SQL("CREATE SCHEMA {}").format(trap))
    for signature, returns in TRAPS.items():
        table.conn.execute(
            sql.SQL(
                "CREATE FUNCTION {}." + signature + " RETURNS " + returns + " LANGUAGE plpgsql VOLATILE AS "
                "$$ BEGIN RAISE EXCEPTION 'trapped' USING ERRCODE = 'TRAP1'; END $$"
            ).format(trap)
        )
    for name in TRAPPED_TABLES:
        table.conn.execute(sql.SQL("CREATE TABLE {}.{} (trap integer)").format(trap, sql.Identifier(name)))
    yield f"-c search_path={table.client.schema}_trap,pg_catalog"
    table.conn.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(trap))


def test_the_trap_catches_what_is_not_qualified(table: Table, connect: Connect, trapped: str) -> None:
    caught = connect(options=trapped, autocommit=True)
    with pytest.raises(psycopg.Error, match="trapped"):
        caught.execute("SELECT statement_timestamp()")
    with pytest.raises(psycopg.errors.UndefinedColumn):
        caught.execute("SELECT kind FROM job")


def test_schedules_on_a_connection_with_a_hostile_search_path(table: Table, connect: Connect, trapped: str) -> None:
    """By hand on the caller's; and ticked, whatever the pool's connections are like."""
    tx = connect(options=trapped)
    schedules = table.client.schedules
    schedules.add(pgjobs.Schedule("by.hand", "@yearly", {}, kind="ab", run_on_start=True), tx)
    schedules.change("by.hand", tx, spec="@monthly", args=NewJob({"n": 1}, kind="ab"))
    for act in (schedules.pause, schedules.resume, schedules.run_now):
        act("by.hand", tx)
    assert [found.spec for found in schedules.list(tx)] == ["@monthly"]
    tx.commit()

    hostile = connect(options=trapped, autocommit=True)
    store = ScheduleQueries(table.client.schema)
    ticker = Ticker(store, lambda: {}, lambda schedule: SuppliedJob())
    ticker.tick(hostile)
    table.query("UPDATE {schema}.schedule SET next_tick_at = clock_timestamp()")
    for _ in range(2):
        ticker.tick(hostile)
    store.heartbeat(hostile, uuid4(), "worker", ["by.hand"])
    assert table.query("SELECT args, schedule FROM {schema}.job") == [({"n": 1}, "by.hand")] * 2
    assert schedules.remove("by.hand", tx)
    tx.commit()


def test_enqueue_and_get_on_a_connection_with_a_hostile_search_path(
    table: Table, connect: Connect, trapped: str
) -> None:
    tx = connect(options=trapped)
    one = table.client.enqueue(tx, {"n": 1}, kind="ab")
    two = table.client.enqueue_many(tx, [NewJob({"n": 2}, kind="ab", delay=timedelta(hours=1))])[0]
    assert table.client.get(one.id, tx) == one
    tx.commit()
    assert [table.job(one.id).state, table.job(two.id).state] == [JobState.AVAILABLE, JobState.SCHEDULED]


def test_a_worker_pool_on_connections_with_a_hostile_search_path(
    table: Table, database: str, trapped: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Claim, finish, failure, promotion, rescue, cleaning and waking, all with the trap before pg_catalog."""
    caplog.set_level(logging.WARNING, "pgjobs")
    paths: set[str] = set()

    def handler(tx: AnyConnection, job: Job[Any]) -> None:
        row = tx.execute("SHOW search_path").fetchone()
        assert row is not None
        paths.add(row[0])
        if job.args["n"] == 2:
            raise Snooze(timedelta(milliseconds=1))
        if job.args["n"] == 3:
            raise ValueError("of the handler")

    lost = table.insert(
        kind="ab", args=Jsonb({"n": 4}), state="running", attempt=1, attempted_at="2020-01-01", attempted_by=["x"]
    )
    old = table.insert(kind="ab", state="completed", finalized_at="2020-01-01")
    dsn = psycopg.conninfo.make_conninfo(database, options=trapped)
    with Client(dsn, schema=table.client.schema) as client:
        due = client.enqueue(None, {"n": 5}, kind="ab", delay=timedelta(milliseconds=1))
        done = client.enqueue(None, {"n": 1}, kind="ab")
        failed = client.enqueue(None, {"n": 3}, kind="ab")
        with WorkerPool(client, {"ab": handler}, queues={"default": 1}, backoff=LATER):
            wait_until(lambda: client.get(old) is None)
            for id in (due.id, done.id, lost):
                wait_until(lambda id=id: table.job(id).state == JobState.COMPLETED)  # type: ignore[misc]
            wait_until(lambda: table.job(failed.id).state == JobState.RETRYABLE)
    assert table.job(lost).errors[0].error.startswith("worker vanished")
    assert "of the handler" in (table.job(failed.id).last_error or "")
    assert paths == {f"{table.client.schema}_trap,pg_catalog"}
    unexpected = [record.getMessage() for record in caplog.records if "trapped" in record.getMessage()]
    assert unexpected == []


@pytest.mark.no_decoys("drops the tables, and decoys depend on their type")
def test_migrations_on_a_connection_with_a_hostile_search_path(table: Table, database: str, trapped: str) -> None:
    """What the tables compute by themselves is fixed when they are made."""
    dsn = psycopg.conninfo.make_conninfo(database, options=trapped)
    schema = f"{table.client.schema}_two"
    with Client(dsn, schema=schema) as client:
        client.migrate()
        job = client.enqueue(None, {"n": 1}, kind="ab")
        assert work(client, {"ab": lambda tx, job: None})
        found = client.get(job.id)
        assert found is not None
        assert found.state == JobState.COMPLETED
        table.conn.execute(sql.SQL("INSERT INTO {}.job (kind) VALUES ('by hand')").format(sql.Identifier(schema)))
        client.migrate(direction="down", target=0)
    table.conn.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))
