"""What may not leak, what may not grow without bound, and what may not forge a line of the log."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg
import pytest
import sqlalchemy
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg_pool import ConnectionPool

from pgjobs import (
    Client,
    ErrorHandler,
    Handler,
    Hooks,
    InvalidArgs,
    InvalidJob,
    InvalidSetting,
    Job,
    NewJob,
    QueueSettings,
    Snooze,
    WorkerPool,
    cli,
    constant,
)
from pgjobs.clean_text import ERROR_LIMIT, TRACE_LIMIT
from pgjobs.contrib.sqlalchemy import SQLAlchemySource
from pgjobs.execution.attempt import GracePeriods
from pgjobs.maintenance.queries import MaintenanceQueries
from pgjobs.options import JobOptions
from tests.waiting import wait_until

Function = Callable[[Any, Job[Any]], object]
MARKER = "s3cr3t-m4rk3r"
LATER = constant(timedelta(hours=1))
QUICK = GracePeriods(interrupted=0.2, severed=0.4, stuck=0.6)  # the same steps as by default, sooner


@dataclass
class Card:
    number: str
    owner: str = "somebody"


def nothing(tx: Any, job: Job[Any]) -> None: ...


def rows(client: Client, query: str, *values: object) -> list[Any]:
    with client.pool.connection() as conn:
        cursor = conn.execute(sql.SQL(query).format(schema=sql.Identifier(client.schema)), values or None)
        return cursor.fetchall() if cursor.description else []


# --- S5: args stay where they are


def deep(args: Card) -> None:
    """Fails with the args in the variables of every frame."""
    number = args.number
    raise ValueError(f"the card of {args.owner} was declined ({len(number)} digits)")


def fails(tx: Any, job: Job[Card]) -> None:
    args = job.args
    deep(args)


def exits(tx: Any, job: Job[Card]) -> None:
    number = job.args.number
    raise SystemExit(len(number))


def snoozes(tx: Any, job: Job[Card]) -> None:
    raise Snooze(timedelta(seconds=1)) from ValueError("not yet")


def breaks(tx: Any, job: Job[Card]) -> None:
    tx.execute("COMMIT")


def loses(tx: Any, job: Job[Card]) -> None:
    tx.close()


def bad_backoff(job: Job[Any], error: BaseException) -> timedelta:
    raise RuntimeError(f"no delay for {job!r}")


class BadHooks(Hooks):
    def on_start(self, job: Job[Any]) -> None:
        raise RuntimeError(f"a broken hook on {job!r}")


class BadJudge(ErrorHandler):
    def handle_error(self, job: Job[Any], error: Exception) -> None:
        raise RuntimeError(f"a broken judge of {job!r}")


def bad_middleware(tx: Any, job: Job[Card], run: Callable[[], object]) -> None:
    args = job.args
    run()
    deep(args)


SCENES: dict[str, dict[str, Any]] = {
    "success": {"handler": nothing},
    "failure": {"handler": fails},
    "exit": {"handler": exits},
    "snooze": {"handler": snoozes},
    "a broken transaction": {"handler": breaks},
    "a lost connection": {"handler": loses},
    "detached": {"handler": Handler(fails, detached=True)},
    "a broken policy": {"handler": fails, "backoff": bad_backoff},
    "a broken judge": {"handler": fails, "error_handler": BadJudge()},
    "broken middleware": {"handler": nothing, "middleware": [bad_middleware]},
    "an unknown kind": {"kind": "nobody.knows"},
    "an unknown queue mate": {"kind": "nobody.knows", "unknown_kinds": fails},
    "undecodable args": {"args": {"number": {"of": MARKER}}},
    "undecodable args of another field": {"args": {"number": MARKER, "owner": [MARKER]}},
    "a missing field": {"args": {"nmuber": MARKER}},
}


@pytest.fixture
def everything(caplog: pytest.LogCaptureFixture) -> Callable[[Client], str]:
    """All that is logged at the level of debug, and all that is recorded beside the args themselves."""
    caplog.set_level(logging.DEBUG)

    def collect(client: Client) -> str:
        texts = [caplog.text, *(record.getMessage() for record in caplog.records)]
        texts += [str(row) for row in rows(client, "SELECT (to_jsonb(job) - 'args')::text FROM {schema}.job AS job")]
        for (id,) in rows(client, "SELECT id FROM {schema}.job"):
            job = client.get(id)
            texts += [repr(job), str(job), repr(job and job.errors)]
        return "\n".join(texts)

    return collect


@pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES)
def test_s5_args_are_in_no_log_no_repr_and_no_record(
    client: Client, everything: Callable[[Client], str], scene: dict[str, Any]
) -> None:
    settings = dict(scene)
    handler, args, kind = (settings.pop(name, None) for name in ("handler", "args", "kind"))
    observed = Client(client.pool, schema=client.schema, hooks=[BadHooks()])
    observed.enqueue(None, args or {"number": MARKER}, kind=kind or "card")
    pool = WorkerPool(observed, {Card: handler or nothing}, **{"backoff": LATER, **settings})
    with observed.subscribe() as events:
        assert pool.work_one()
        seen = [repr(events.get(timedelta(0))) for _ in range(len(events))]
    assert seen
    assert MARKER not in everything(client) + "".join(seen)


def test_s5_args_are_not_in_what_is_said_of_a_stuck_thread_or_a_stop(
    client: Client, everything: Callable[[Client], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgjobs.execution.attempt.AFTER_TIMEOUT", QUICK)
    release = threading.Event()

    def deaf(tx: Any, job: Job[Card]) -> None:
        number = job.args.number
        while number and not release.is_set():
            try:
                release.wait(0.05)
            except BaseException:
                continue

    client.enqueue_many(None, [Card(MARKER), Card(MARKER)])
    with WorkerPool(client, {Card: deaf}, queues={"default": 1}, timeout=timedelta(seconds=0.1), backoff=LATER) as pool:
        wait_until(lambda: "is stuck at" in everything(client))
        pool.stop(timedelta(0))
        release.set()
    assert MARKER not in everything(client)


def test_s5_args_are_not_in_the_record_of_a_rescue_or_of_lock_job(
    client: Client, everything: Callable[[Client], str]
) -> None:
    client.enqueue(None, Card(MARKER))
    with pytest.raises(ValueError, match="declined"), client.lock_job() as (_, job):  # noqa: PT012
        assert job is not None
        deep(Card(**job.args))
    client.enqueue(None, Card(MARKER))
    rows(
        client,
        "UPDATE {schema}.job SET state = 'running', attempt = 1, attempted_at = now() - interval '1 hour',"
        " token = gen_random_uuid() WHERE state = 'available'",
    )
    with client.pool.connection() as conn:
        assert len(MaintenanceQueries(client.schema).rescue(conn, 10, timedelta(0))) == 1
    assert MARKER not in everything(client)


def test_s5_what_is_refused_at_enqueue_is_told_to_the_caller_alone(
    client: Client, everything: Callable[[Client], str]
) -> None:
    with pytest.raises(InvalidArgs):
        client.enqueue(None, {"number": MARKER, "bad": object()}, kind="card")
    assert MARKER not in everything(client)


# --- S6: nothing grows without bound


def test_s6_an_error_and_its_trace_are_capped(client: Client) -> None:
    def recurse(depth: int) -> None:
        if not depth:
            raise ValueError("x" * 10_000_000)
        recurse(depth - 1)

    def handler(tx: Any, job: Job[Any]) -> None:
        try:
            recurse(200)
        except ValueError as error:
            raise RuntimeError("y" * 1_000_000) from error

    job = client.enqueue(None, Card("1"))
    assert WorkerPool(client, {Card: handler}).work_one()
    found = client.get(job.id)
    assert found is not None
    ((entry),) = found.errors
    assert (ERROR_LIMIT, TRACE_LIMIT) == (8 * 1024, 32 * 1024)
    assert len(entry.error) <= ERROR_LIMIT
    assert len(entry.trace or "") <= TRACE_LIMIT


def test_s6_a_job_keeps_a_hundred_errors_the_first_and_the_latest(client: Client) -> None:
    job = client.enqueue(None, Card("1"), max_attempts=500)
    pool = WorkerPool(client, {Card: fails}, backoff=constant(timedelta(0)))
    for _ in range(103):
        assert pool.work_one()
    found = client.get(job.id)
    assert found is not None
    numbers = [entry.attempt for entry in found.errors]
    assert len(numbers) == 100
    assert (numbers[0], numbers[-1]) == (1, 103)
    assert numbers == sorted(set(numbers))


CAPS: dict[str, tuple[int, Callable[[int], dict[str, Any]]]] = {
    "args": (1024 * 1024, lambda size: {"args": {"a": "x" * (size - len('{"a":""}'))}}),
    "metadata": (64 * 1024, lambda size: {"metadata": {"a": "x" * (size - len('{"a":""}'))}}),
    "context": (64 * 1024, lambda size: {"context": {"a": "x" * (size - len('{"context":{"a":""}}'))}}),
    "tag": (255, lambda size: {"tags": ["x" * size]}),
    "queue": (64, lambda size: {"queue": "x" * size}),
    "kind": (128, lambda size: {"kind": "x" * size}),
}


@pytest.mark.parametrize("name", CAPS)
def test_s6_what_a_job_may_hold_has_a_limit_and_what_fits_is_stored_whole(client: Client, name: str) -> None:
    size, made = CAPS[name]

    def enqueue(size: int) -> Job[Any]:
        options = {"args": {}, "kind": "card", **made(size)}
        return client.enqueue(None, options.pop("args"), **options)

    job = enqueue(size)
    found = client.get(job.id)
    assert found is not None
    ((option, wanted),) = made(size).items()
    assert getattr(found, option) == (tuple(wanted) if option == "tags" else wanted)
    with pytest.raises(InvalidJob):
        enqueue(size + 1)
    assert rows(client, "SELECT count(*) FROM {schema}.job") == [(1,)]


def test_s6_the_limit_of_args_is_a_setting(client: Client) -> None:
    small = Client(client.pool, schema=client.schema, max_args_bytes=20)
    small.enqueue(None, {"a": "x" * 12}, kind="card")
    with pytest.raises(InvalidArgs):
        small.enqueue(None, {"a": "x" * 13}, kind="card")
    with pytest.raises(InvalidArgs):
        small.enqueue_many(None, [NewJob({"a": "x" * 13}, kind="card")])
    assert JobOptions().max_attempts is None


# --- S7: one line per record, and no passwords

HOSTILE = "line one\nline two\r\x1b[31mred\x00\u2028\u202eend 2026-01-01 INFO forged"
UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e]")


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What the library has logged: the message of each record, without a traceback that may stand behind it."""
    caplog.set_level(logging.DEBUG, logger="pgjobs")
    return lambda: [record.getMessage() for record in caplog.records if record.name.startswith("pgjobs")]


class Hostile(Exception):
    def __str__(self) -> str:
        return HOSTILE


def raises_hostile(tx: Any, job: Job[Any]) -> None:
    raise Hostile


def test_s7_each_record_of_the_log_is_one_line_whatever_names_and_errors_hold(
    client: Client, lines: Callable[[], list[str]]
) -> None:
    text = HOSTILE.replace("\x00", "")
    hostile = Client(client.pool, schema=client.schema, id=HOSTILE)
    rows(
        client,
        "INSERT INTO {schema}.job (kind, tags, attempted_by, args)"
        """ VALUES (%s, ARRAY[%s], ARRAY[%s], '{{}}'), ('card', '{{}}', '{{}}', '{{"number": "1"}}')""",
        *(text, text, text),
    )
    rows(
        client,
        "INSERT INTO {schema}.job (kind, state, attempt, attempted_at, attempted_by)"
        " VALUES (%s, 'running', 1, now() - interval '1 hour', ARRAY[%s])",
        *(text, text),
    )
    pool = WorkerPool(
        hostile,
        {Card: raises_hostile, "hostile.commit": lambda tx, job: tx.execute("SELECT 1/0")},
        name=HOSTILE,
        backoff=LATER,
        queues={"default": 1},
    )
    hostile.enqueue(None, {}, kind="hostile.commit")
    with pool:
        wait_until(lambda: rows(client, "SELECT count(*) FROM {schema}.job WHERE state = 'retryable'") == [(4,)])
        hostile.cancel(1, reason=HOSTILE)
    assert len(lines()) >= 4
    assert [line for line in lines() if UNFIT.search(line)] == []
    assert any("forged" in line for line in lines()), "the text itself is there"


def test_s7_a_stuck_threads_stack_is_the_only_text_of_several_lines(
    client: Client, lines: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgjobs.execution.attempt.AFTER_TIMEOUT", QUICK)
    release = threading.Event()

    def deaf(tx: Any, job: Job[Card]) -> None:
        while not release.is_set():
            try:
                release.wait(0.05)
            except BaseException:
                continue

    text = HOSTILE.replace("\x00", "")
    rows(client, "INSERT INTO {schema}.job (kind) VALUES (%s)", text)
    pool = WorkerPool(
        client, {Card: nothing}, unknown_kinds=deaf, name=HOSTILE, queues={"default": 1}, timeout=timedelta(seconds=0.1)
    )
    with pool:
        wait_until(lambda: any("is stuck at" in line for line in lines()))
        release.set()
    several = [line for line in lines() if UNFIT.search(line)]
    assert len(several) == 1
    first, *stack = several[0].splitlines()
    assert first.endswith("is stuck at:")
    assert all(line.startswith("  ") for line in stack), "and each line of it is indented"


PASSWORD = "pa55w0rd"


def test_s7_the_password_of_a_listener_that_cannot_connect_is_not_logged(
    client: Client, lines: Callable[[], list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    dsn = make_conninfo(host="127.0.0.1", port="1", user="me", password=PASSWORD, dbname="x")
    with WorkerPool(client, {Card: nothing}, listen_dsn=dsn):
        wait_until(lambda: any("not listening" in line for line in lines()))
    assert PASSWORD not in caplog.text


BROKEN = [
    f"host=localhost password={PASSWORD} {PASSWORD}",
    f"postgresql://me:{PASSWORD}@[localhost/x",
    f"postgresql://me:{PASSWORD}@localhost:port:{PASSWORD}/x?{PASSWORD}=1",
    f"password='{PASSWORD}",
]


@pytest.mark.parametrize("dsn", BROKEN)
def test_s7_a_connection_string_that_cannot_be_read_is_refused_without_its_password(
    client: Client, caplog: pytest.LogCaptureFixture, dsn: str
) -> None:
    caplog.set_level(logging.DEBUG)
    for attempt in (lambda: Client(dsn), lambda: WorkerPool(client, {Card: nothing}, listen_dsn=dsn)):
        with pytest.raises(InvalidSetting) as refused:
            attempt()
        assert PASSWORD not in f"{refused.value} {refused.value.__cause__}"
        assert refused.value.__suppress_context__
    assert PASSWORD not in caplog.text


def test_s7_the_password_of_a_database_that_cannot_be_reached_is_neither_raised_nor_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    with Client(make_conninfo(host="127.0.0.1", port="1", user="me", password=PASSWORD, dbname="x")) as client:
        with pytest.raises(psycopg.OperationalError) as refused:
            WorkerPool(client, {Card: nothing}).start()
        assert PASSWORD not in str(refused.value)
        assert PASSWORD not in repr(client)
    assert PASSWORD not in caplog.text


TAIL = "t41l-0f-1t"
AMBIGUOUS = [
    f"postgresql://me:pa@{TAIL}@127.0.0.1:1/x",
    f"postgres://me:pa@{TAIL}@127.0.0.1:1/x?connect_timeout=1",
    f"postgresql://me@corp:{TAIL}@127.0.0.1/x",
    f"postgresql://me:pa/{TAIL}@127.0.0.1:1/x",
    f"postgresql://me:pa@ss/{TAIL}@127.0.0.1:1/x",
    f"postgresql://me:pa@12?sslmode={TAIL}@127.0.0.1/x",
    f"postgresql://me:{TAIL}/x",
    f"postgresql://me:pa@?{TAIL}@127.0.0.1/x",
    f"postgresql://me:pa%{TAIL}@127.0.0.1/x",
    f"postgresql+psycopg://me:pa@{TAIL}@127.0.0.1:1/x",
    f"host=127.0.0.1 password=pa {TAIL}=x",
    f"host=127.0.0.1 port={TAIL}",
]


@pytest.mark.finding("S5")
@pytest.mark.parametrize("dsn", AMBIGUOUS)
def test_a_password_that_is_not_escaped_is_refused_and_no_part_of_it_shown(
    client: Client, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], dsn: str
) -> None:
    """With an @ in its password the tail was taken for the host, and shown in exceptions and log lines."""
    caplog.set_level(logging.DEBUG)
    for attempt in (
        lambda: Client(dsn),
        lambda: WorkerPool(client, {Card: nothing}, listen_dsn=dsn),
        lambda: Client(dsn.encode()),  # type: ignore[arg-type]
    ):
        with pytest.raises(InvalidSetting) as refused:
            attempt()
        assert TAIL not in f"{refused.value} {refused.value.__cause__}"
    assert cli.main(["migrate", "--dsn", dsn]) == 1
    out, err = capsys.readouterr()
    assert TAIL not in out + err + caplog.text


@pytest.mark.finding("S5")
def test_nor_of_one_in_a_pool_or_an_engine_of_the_application() -> None:
    """A pool of the application's led to the same errors, in the log of the listener."""
    dsn = f"postgresql://me:pa@{TAIL}@127.0.0.1:1/x"
    with ConnectionPool(dsn, open=False) as pool, pytest.raises(InvalidSetting) as refused:
        Client(pool)
    assert TAIL not in str(refused.value)
    with pytest.raises(InvalidSetting) as refused:
        SQLAlchemySource(sqlalchemy.create_engine(dsn.replace("postgresql", "postgresql+psycopg")))
    assert TAIL not in str(refused.value)


@pytest.mark.parametrize(
    "dsn",
    [
        f"postgresql://me:pa%40{TAIL}@127.0.0.1:1/x",
        f"postgresql://me%40corp:{TAIL}@127.0.0.1:1,127.0.0.2:2/x",
        f"postgresql:///x?host=127.0.0.1&port=1&user=me@corp&password=pa@{TAIL}",
        f"postgresql+psycopg://me:{TAIL}@127.0.0.1:1/x",
        f"host=127.0.0.1 port=1 user=me password=pa@{TAIL}",
        f"postgresql://me:{TAIL}#:?[@127.0.0.1:1/x",
    ],
)
def test_what_means_one_thing_is_taken(dsn: str) -> None:
    with Client(dsn) as client, pytest.raises(psycopg.OperationalError, match=r"127\.0\.0\.1") as refused:
        client.migrate()
    assert TAIL not in str(refused.value)


# --- what Postgres says of the row that failed


def duplicates(tx: Any, job: Job[Card]) -> None:
    tx.execute("CREATE TEMP TABLE card (number text PRIMARY KEY, owner text NOT NULL) ON COMMIT DROP")
    tx.execute("INSERT INTO card VALUES (%s, 'x')", [job.args.number])
    tx.execute("INSERT INTO card VALUES (%s, 'x')", [job.args.number])


def wraps(tx: Any, job: Job[Card]) -> None:
    try:
        duplicates(tx, job)
    except psycopg.Error as error:
        raise RuntimeError(f"the card could not be kept: {error}") from error


def groups(tx: Any, job: Job[Card]) -> None:
    try:
        duplicates(tx, job)
    except psycopg.Error as error:
        error.add_note(f"seen: {error}")
        raise ExceptionGroup("some", [error]) from None


def whole_row(tx: Any, job: Job[Card]) -> None:
    tx.execute("CREATE TEMP TABLE card (number text, owner text NOT NULL) ON COMMIT DROP")
    tx.execute("INSERT INTO card VALUES (%s, NULL)", [job.args.number])


def copies(tx: Any, job: Job[Card]) -> None:
    tx.execute("CREATE TEMP TABLE card (number text, owner int) ON COMMIT DROP")
    with tx.cursor() as cursor, cursor.copy("COPY card FROM STDIN") as copy:
        copy.write(f"{job.args.number}\tx\n")


def defers(tx: Any, job: Job[Card]) -> None:
    tx.execute("CREATE TABLE IF NOT EXISTS deferred (number text UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    tx.execute("INSERT INTO deferred VALUES (%s), (%s)", [job.args.number] * 2)


def fails_late(tx: Any, job: Job[Card]) -> None:
    raise ValueError("no")


def failing_policy(job: Job[Any], error: BaseException) -> timedelta:
    with psycopg.connect(DATABASES[-1]) as tx:
        duplicates(tx, job)
    return timedelta(0)


class FailingHooks(Hooks, ErrorHandler):
    def on_finish(self, job: Job[Any], error: BaseException | None) -> None:
        failing_policy(job, ValueError())

    def handle_error(self, job: Job[Any], error: Exception) -> None:
        failing_policy(job, error)


DATABASES: list[str] = []
WITH_DETAILS: dict[str, dict[str, Any]] = {
    "a key": {"handler": duplicates},
    "a row": {"handler": whole_row},
    "a line of a COPY": {"handler": copies},
    "wrapped by the handler": {"handler": wraps},
    "in a group": {"handler": groups},
    "at the commit": {"handler": defers},
    "detached": {"handler": Handler(lambda tx, job: failing_policy(job, ValueError()), detached=True)},
    "in a policy": {"handler": fails_late, "backoff": failing_policy},
    "in a hook and an error handler": {"handler": fails_late, "error_handler": FailingHooks()},
}


@pytest.mark.finding("S5")
@pytest.mark.parametrize("batch_size", [1, 5])
@pytest.mark.parametrize("scene", WITH_DETAILS.values(), ids=WITH_DETAILS)
def test_the_details_of_an_error_are_left_out_where_that_is_asked(
    client: Client,
    everything: Callable[[Client], str],
    database: str,
    scene: dict[str, Any],
    batch_size: int,
) -> None:
    """Whole failing rows, args among them, reached a job's errors and the log, and nothing could keep them out."""
    DATABASES.append(database)
    hooks = [FailingHooks()] if "error_handler" in scene else []
    settings = {"backoff": LATER, **scene}
    handler = settings.pop("handler")
    with Client(database, schema=client.schema, error_details=False, hooks=hooks) as discreet:
        job = discreet.enqueue(None, Card(MARKER), max_attempts=1)
        queues = {"default": QueueSettings(1, batch_size=batch_size)}
        with WorkerPool(discreet, {Card: handler}, queues=queues, **settings):
            ended = discreet.wait(job)
    assert ended.error_count == 1
    assert MARKER not in everything(client)


@pytest.mark.finding("S5")
def test_by_default_they_are_kept(client: Client, everything: Callable[[Client], str]) -> None:
    """They tell which row failed."""
    job = client.enqueue(None, Card(MARKER), max_attempts=1)
    with WorkerPool(client, {Card: duplicates}):
        ended = client.wait(job)
    assert f"DETAIL:  Key (number)=({MARKER}) already exists." in ended.errors[0].error
    assert f"DETAIL:  Key (number)=({MARKER}) already exists." in str(ended.errors[0].trace)


@pytest.mark.finding("S5")
def test_what_sqlalchemy_prints_of_the_parameters_is_left_out_too(
    client: Client, everything: Callable[[Client], str], database: str
) -> None:
    """An error of SQLAlchemy prints the values of the statement beside the text of Postgres."""

    def handler(session: Any, job: Job[Card]) -> None:
        session.execute(sqlalchemy.text("CREATE TEMP TABLE card (number text PRIMARY KEY) ON COMMIT DROP"))
        for _ in range(2):
            session.execute(sqlalchemy.text("INSERT INTO card VALUES (:number)"), {"number": job.args.number})

    engine = sqlalchemy.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(database))
    source = SQLAlchemySource(engine)
    with Client(source, schema=client.schema, error_details=False) as discreet:
        job: Job[Any] = discreet.enqueue(None, Card(MARKER), max_attempts=1)
        with WorkerPool(discreet, {Card: handler}, queues={"default": 1}):
            ended = discreet.wait(job)
    engine.dispose()
    assert "hidden due to hide_parameters" in ended.errors[0].error
    assert "already exists" not in ended.errors[0].error
    assert MARKER not in everything(client)


@pytest.mark.parametrize("value", [None, 0, "no"])
def test_error_details_is_true_or_false(database: str, value: Any) -> None:
    with pytest.raises(InvalidSetting, match="error_details must be True or False"):
        Client(database, error_details=value)
