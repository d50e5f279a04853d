"""What the log says of jobs and of the pool, and what it never says."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import ConnectionPool

from pgjobs import (
    Cancel,
    Client,
    Discard,
    InvalidSetting,
    Job,
    JobState,
    QueueSettings,
    Schedule,
    Snooze,
    WorkerPool,
    constant,
    every,
)
from pgjobs.db.connection import has_ended
from pgjobs.db.own_pool import OwnPool
from pgjobs.db.source import own_pool
from pgjobs.execution.job_log import JobLog
from pgjobs.log_limit import LINES, LogLimit
from pgjobs.loggers import shown_seconds
from pgjobs.version import __version__
from tests.conformance.conftest import Gate, Rows, Stored
from tests.samples import HOUR, SECOND, Thing, nothing, shown
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
SECRET = "5ecret"
FIELDS = ("job_id", "kind", "queue", "attempt", "worker")


@dataclass
class Letter:
    to: str


def send(tx: Any, job: Job[Letter]) -> None:
    match job.args.to.split()[0]:
        case "fail":
            raise ValueError("no such account")
        case "discard":
            raise Discard("no such account")
        case "cancel":
            raise Cancel("not wanted")
        case "snooze":
            raise Snooze(5 * 60 * SECOND)
        case "empty":
            raise AssertionError


def of_jobs(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "pgjobs.job"]


def fields(record: logging.LogRecord) -> tuple[object, ...]:
    return tuple(getattr(record, name) for name in FIELDS)


@pytest.fixture
def run(client: Client, stored: Stored) -> Any:
    """Runs a job to the end of its first attempt in a pool with these settings."""

    def run(to: str, **settings: Any) -> Job[Letter]:
        options = {"max_attempts": settings.pop("max_attempts")} if "max_attempts" in settings else {}
        job = client.enqueue(None, Letter(f"{to} {SECRET}"), queue="mail", **options)
        settings = {"backoff": constant(HOUR), "queues": {"mail": 1}, **settings}
        with WorkerPool(client, {Letter: send}, **settings):
            wait_until(lambda: stored(job).state not in (JobState.AVAILABLE, JobState.RUNNING))
        return job

    return run


# --- a job


def test_a_job_that_does_well_is_logged_at_the_level_of_the_setting_alone(
    client: Client, run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pgjobs")
    run("well")
    run("snooze")
    assert of_jobs(caplog) == [], "the level is DEBUG"
    for level in (logging.INFO, "INFO"):
        caplog.clear()
        job = run("well", job_log_level=level)
        started, completed = of_jobs(caplog)
        assert started.getMessage() == f"job {job.id} (letter) started, attempt 1 of 25"
        assert completed.getMessage().startswith(f"job {job.id} (letter) completed in ")
        assert completed.getMessage().endswith("s")
        assert fields(started) == fields(completed) == (job.id, "letter", "mail", 1, client.id)
        assert started.levelno == completed.levelno == logging.INFO
    caplog.clear()
    job = run("snooze", job_log_level="INFO")
    assert [record.getMessage() for record in of_jobs(caplog)] == [
        f"job {job.id} (letter) started, attempt 1 of 25",
        f"job {job.id} (letter) snoozed, next attempt in 0:05:00",
    ]


@pytest.mark.parametrize(
    ("to", "expected"),
    [
        ("fail", (2, logging.WARNING, "attempt 1 of 2 failed, next attempt in 1:00:00: ValueError: no such account")),
        ("empty", (2, logging.WARNING, "attempt 1 of 2 failed, next attempt in 1:00:00: AssertionError")),
        ("fail", (1, logging.ERROR, "attempt 1 of 1 failed, discarded: ValueError: no such account")),
        ("discard", (2, logging.ERROR, "attempt 1 of 2 failed, discarded: Discard: no such account")),
        ("cancel", (2, logging.INFO, "attempt 1 of 2 cancelled: Cancel: not wanted")),
    ],
)
def test_a_job_that_fails_is_logged_with_its_error(
    client: Client, run: Any, caplog: pytest.LogCaptureFixture, to: str, expected: tuple[int, int, str]
) -> None:
    most, level, message = expected
    caplog.set_level(logging.INFO, "pgjobs")
    job = run(to, max_attempts=most)
    (record,) = of_jobs(caplog)
    assert record.levelno == level
    assert record.getMessage() == f"job {job.id} (letter) {message}"
    assert fields(record) == (job.id, "letter", "mail", 1, client.id)
    if level == logging.INFO:  # nobody has to look after it
        assert record.exc_info is None
        return
    assert record.exc_info is not None
    kind, error, trace = record.exc_info
    assert kind is type(error)
    assert [frame.name for frame in traceback.extract_tb(trace)] == ["send"], "without the frames of pgjobs"
    shown_record = logging.Formatter().format(record)
    assert "Traceback (most recent call last)" in shown_record
    assert SECRET not in shown_record
    assert SECRET not in str(vars(record)), "the args of a job are never logged"


def test_a_job_without_a_handler_and_one_with_args_that_do_not_fit_are_failed_attempts_too(
    client: Client, sql: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    client.enqueue(None, {}, kind="unknown")
    client.enqueue(None, {"from": SECRET}, kind="letter")
    with WorkerPool(client, {Letter: send}, queues={"default": 1}, backoff=constant(HOUR)):
        wait_until(lambda: sql("SELECT count(*) FROM pgjobs.job WHERE state = 'retryable'") == [(2,)])
    unknown, unfit = of_jobs(caplog)
    assert "UnknownKind: " in unknown.getMessage()
    assert "failed, next attempt in 1:00:00: " in unfit.getMessage()
    assert all(record.exc_info is not None for record in (unknown, unfit))


@pytest.mark.one_by_one("a batch that is lost runs again, job by job")
def test_a_job_whose_connection_is_lost_at_its_end_is_two_lines(
    client: Client, sql: Rows, stored: Stored, caplog: pytest.LogCaptureFixture
) -> None:
    """Not the frames of the libraries that noticed it: a restart of the server logs many of them."""

    def loses(tx: Any, job: Job[Thing]) -> None:
        (pid,) = tx.execute("SELECT pg_catalog.pg_backend_pid()").fetchone()
        sql("SELECT pg_catalog.pg_terminate_backend(%s, 10000)", pid)

    job = client.enqueue(None, Thing())
    with WorkerPool(client, {Thing: loses}, queues={"default": 1}, backoff=constant(HOUR)):
        wait_until(lambda: stored(job).state == JobState.RETRYABLE)
    (record,) = [record for record in of_jobs(caplog) if record.levelno >= logging.WARNING]
    assert "TransactionBroken: the handler's writes could not be committed: " in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_text is not None
    assert record.exc_text.startswith("pgjobs.errors.TransactionBroken: ")
    assert "\n" not in record.exc_text


@pytest.mark.parametrize("cause", [True, False], ids=["a cause", "no cause"])
def test_a_traceback_of_the_application_is_logged_if_only_a_cause_has_it(
    client: Client, stored: Stored, caplog: pytest.LogCaptureFixture, cause: bool
) -> None:
    @dataclass
    class Checked:
        text: str

        def __post_init__(self) -> None:
            if self.text == "wrong":
                raise ValueError("no such text")

    job = client.enqueue(None, {"text": "wrong" if cause else 5}, kind="checked")
    with WorkerPool(client, {Checked: nothing}, queues={"default": 1}, backoff=constant(HOUR)):
        wait_until(lambda: stored(job).state == JobState.RETRYABLE)
    (record,) = [record for record in of_jobs(caplog) if record.levelno >= logging.WARNING]
    assert record.exc_text is not None
    assert ("in __post_init__" in record.exc_text) == cause
    assert ("\n" in record.exc_text) == cause


def test_a_level_that_is_changed_while_the_pool_runs_is_noticed(
    client: Client, stored: Stored, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pgjobs")
    with WorkerPool(client, {Thing: nothing}, queues={"default": 1}):
        caplog.set_level(logging.DEBUG, "pgjobs")

        def is_logged() -> bool:
            job = client.enqueue(None, Thing())
            wait_until(lambda: stored(job).state is JobState.COMPLETED)
            return any("completed in" in record.getMessage() for record in of_jobs(caplog))

        wait_until(is_logged)


def test_lines_that_nobody_wants_are_not_even_made(
    client: Client, stored: Stored, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "pgjobs")
    made: list[str] = []
    monkeypatch.setattr(JobLog, "started", lambda *given: made.append("started"))
    monkeypatch.setattr(JobLog, "ended", lambda *given: made.append("ended"))
    with WorkerPool(client, {Thing: nothing}, queues={"default": 1}):
        job = client.enqueue(None, Thing())
        wait_until(lambda: stored(job).state is JobState.COMPLETED)
    assert made == []
    with WorkerPool(client, {Thing: nothing}, queues={"default": 1}, job_log_level=logging.INFO):
        job = client.enqueue(None, Thing())
        wait_until(lambda: stored(job).state is JobState.COMPLETED)
    assert made == ["started", "ended"]


def test_a_logging_handler_that_raises_harms_no_job(
    client: Client, sql: Rows, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "pgjobs")

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise SystemExit("the disk is full")

    broken, log = Broken(), logging.getLogger("pgjobs.job")
    log.addHandler(broken)
    try:
        client.enqueue_many(None, [Letter("well"), Letter("fail"), Letter("discard")])
        with WorkerPool(
            client, {Letter: send}, queues={"default": 1}, backoff=constant(HOUR), job_log_level=logging.INFO
        ):
            wait_until(lambda: sql("SELECT count(*) FROM pgjobs.job WHERE state IN ('available', 'running')") == [(0,)])
    finally:
        log.removeHandler(broken)
    states = sql("SELECT state FROM pgjobs.job ORDER BY id")
    assert states == [("completed",), ("retryable",), ("discarded",)]


@pytest.fixture
def broken_log() -> Iterator[None]:
    """Every record of pgjobs makes a handler of the application raise."""

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("the disk is full")

    broken, log, before = Broken(), logging.getLogger("pgjobs"), logging.getLogger("pgjobs").level
    log.addHandler(broken)
    log.setLevel(logging.DEBUG)
    yield
    log.setLevel(before)
    log.removeHandler(broken)


@pytest.mark.parametrize("batch_size", [1, 20])
def test_worker_threads_survive_a_log_that_is_broken(
    client: Client, sql: Rows, broken_log: None, batch_size: int
) -> None:
    """Those that work in batches ended, one after the other, with the first line after a failure."""
    left = "SELECT count(*) FROM pgjobs.job WHERE state IN ('available', 'running')"
    queues = {"default": QueueSettings(2, batch_size=batch_size)}
    with WorkerPool(client, {Letter: send}, queues=queues, backoff=constant(HOUR)) as pool:
        for round in range(1, 4):
            client.enqueue_many(None, [Letter("well"), Letter("fail"), Letter("discard"), Letter("fail")] * 5)
            client.enqueue(None, {}, kind="stranger")
            wait_until(lambda: sql(left) == [(0,)])
            assert sql("SELECT count(*) FROM pgjobs.job WHERE state = 'completed'") == [(5 * round,)]
        assert pool.healthy()


def test_schedules_tick_beside_one_that_fails_while_the_log_is_broken(
    client: Client, sql: Rows, broken_log: None
) -> None:
    """The line about the tick that failed ended the round of all schedules."""

    def fail() -> Letter:
        raise ValueError("no letter")

    often = every(timedelta(milliseconds=50))
    cron = [Schedule("failing", often, fail), Schedule("well", often, Letter("well"))]
    with WorkerPool(client, {Letter: send}, queues={"default": 1}, cron=cron):
        wait_until(lambda: sql("SELECT count(*) >= 5 FROM pgjobs.job WHERE state = 'completed'") == [(True,)])


@pytest.mark.parametrize("level", ["LOUD", None, True, 1.5, b"INFO"], ids=shown)
def test_a_level_that_is_none_is_refused(client: Client, level: Any) -> None:
    with pytest.raises(InvalidSetting, match="job_log_level is a level of logging"):
        WorkerPool(client, {Thing: nothing}, job_log_level=level)


# --- a storm


def test_a_storm_of_failures_is_a_few_lines_and_their_number(
    client: Client, sql: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    client.enqueue_many(None, [Letter("fail")] * 300 + [Letter("discard")] * 200)
    with WorkerPool(client, {Letter: send}, queues={"default": 4}, backoff=constant(HOUR)):
        wait_until(lambda: sql("SELECT count(*) FROM pgjobs.job WHERE state IN ('available', 'running')") == [(0,)], 60)
    for level, count, what in (
        (logging.WARNING, 300, "failed attempts"),
        (logging.ERROR, 200, "discarded jobs"),
    ):
        records = [record for record in of_jobs(caplog) if record.levelno == level]
        single = [record for record in records if hasattr(record, "job_id")]
        numbers = [record for record in records if not hasattr(record, "job_id")]
        assert len(single) + sum(map(withheld, numbers)) == count, "each of them is counted"
        assert LINES <= len(single) < 50
        assert all(f" more {what} in " in record.getMessage() for record in numbers)
        assert all("; the latest: job " in record.getMessage() for record in numbers)


def withheld(record: logging.LogRecord) -> int:
    assert isinstance(record.args, tuple)
    (count,) = (value for value in record.args if isinstance(value, int))
    return count


def test_a_limit_admits_so_many_lines_a_second_of_each_subject_and_fewer_in_a_long_storm() -> None:
    now = 0.0
    limit: LogLimit[str] = LogLimit(2, clock=lambda: now)
    assert [limit.admit("a", str(n)) for n in range(5)] == [(True, [])] * 2 + [(False, [])] * 3
    assert limit.admit("b", "") == (True, [])
    now = 0.9
    assert limit.take() == []
    now = 1.0
    (over,) = limit.take()
    assert (over.subject, over.count, over.seconds, over.latest) == ("a", 3, 1.0, "4")
    assert limit.take() == []
    assert [limit.admit("a", str(n))[0] for n in range(3)] == [True, False, False], "the storm goes on: one line"
    assert [limit.admit("b", str(n))[0] for n in range(3)] == [True, True, False]
    now = 10.9
    assert [each.subject for each in limit.take()] == ["b"]
    now = 11.0
    admitted, withheld = limit.admit("a", "")
    assert admitted
    assert [(each.count, each.seconds) for each in withheld] == [(2, 10.0)], "logged before the line after it"
    now = 60.0
    assert limit.take() == []
    assert [limit.admit("a", str(n))[0] for n in range(3)] == [True, True, False], "it was over"
    assert [(each.subject, each.count) for each in limit.take(all=True)] == [("a", 1)]


def test_a_limit_counts_any_number_of_subjects_in_bounded_memory() -> None:
    limit: LogLimit[int] = LogLimit(1, clock=lambda: 0.0)
    admitted = sum(limit.admit(number, "")[0] for number in range(10_000))
    (rest,) = limit.take(all=True)
    assert rest.subject is None
    assert admitted + rest.count == 10_000
    assert admitted < 200


def test_many_jobs_of_a_worker_that_vanished_are_a_few_lines_too(
    client: Client, sql: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    sql(
        "INSERT INTO pgjobs.job (kind, state, attempt, max_attempts, attempted_at, attempted_by)"
        " SELECT 'thing', 'running', 1, CASE WHEN n <= 3 THEN 1 ELSE 25 END, now() - interval '1 hour',"
        " CASE WHEN n <= 3 THEN ARRAY['alone-' || n] ELSE '{gone}' END"
        " FROM generate_series(1, 40) n"
    )
    with WorkerPool(client, {Thing: nothing}, queues={"default": 1}):
        wait_until(lambda: sql("SELECT count(*) FROM pgjobs.job WHERE state = 'running'") == [(0,)])
    records = [record for record in caplog.records if "rescued" in record.getMessage()]
    single = [record for record in records if hasattr(record, "job_id")]
    more = [record.args for record in records if record not in single]
    assert len(single) + sum(int(str(args[0])) for args in more if isinstance(args, tuple)) == 40
    assert len(records) < 30
    discarded = [record for record in single if record.levelno == logging.ERROR]
    assert len(discarded) == 3
    assert all("now discarded" in record.getMessage() for record in discarded)
    assert {getattr(record, "worker", None) for record in single} == {"gone", "alone-1", "alone-2", "alone-3"}


# --- a pool


def test_a_start_says_what_starts_and_where(client: Client, database: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pgjobs")
    dsn = make_conninfo(database, password=SECRET)
    with Client(dsn, schema=client.schema) as mine:
        pool = WorkerPool(
            mine,
            {Letter: send, Thing: nothing},
            queues={"mail": 3, "default": 1},
            cron=[Schedule("nightly", "0 3 * * *", Thing())],
        )
        with pool:
            said = " ".join(record.getMessage() for record in caplog.records if record.name == "pgjobs.worker")
    where = conninfo_to_dict(database)
    for wanted in (
        f"pgjobs {__version__}",
        f"pid {os.getpid()} ",
        f"database {where['dbname']} as {where['user']} on ",
        "(Postgres 1",
        f"schema {client.schema}",
        f"worker {mine.id}",
        "queues: mail (3 threads",
        ", default (1 thread",
        "kinds: letter, thing",
        "schedules: nightly",
    ):
        assert wanted in said
    lines = [record for record in caplog.records if record.name == "pgjobs.worker"]
    assert len(lines) == 3, "two at the start, one at the end"
    assert lines[-1].getMessage().startswith("pgjobs: stopped after ")
    assert {record.levelno for record in lines} == {logging.INFO}
    assert SECRET not in caplog.text


def test_a_pool_that_stops_says_what_it_waits_for_and_what_it_cuts_off(
    client: Client, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pgjobs")
    client.enqueue(None, Thing())
    with WorkerPool(client, {Thing: gate}, queues={"default": 1}, stop_timeout=SECOND / 10):
        assert gate.entered.acquire(timeout=10)
        caplog.clear()
    said = [record.getMessage() for record in caplog.records if record.name == "pgjobs.worker"]
    assert said[0].startswith("pgjobs: the stop waits up to 100 ms, until ")
    assert said[0].endswith(", for 1 running job: thing (1)")
    assert said[1].startswith("pgjobs: after 1")
    assert said[1].endswith(" the stop cuts off 1 running job: thing (1); this does not count as an attempt")
    assert said[-1].startswith("pgjobs: stopped after ")
    (line,) = of_jobs(caplog)
    assert line.levelno == logging.INFO
    assert "attempt 1 of 25 cut off, it does not count: JobStopped" in line.getMessage()


PROGRAM = """
import logging, sys, threading
from pgjobs import Client, WorkerPool
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")

def slow(tx, job):
    print("runs", flush=True)
    job.running and tx.execute("SELECT pg_sleep(60)")

WorkerPool(Client(sys.argv[1], schema=sys.argv[2]), {"slow": slow}, queues={"default": 1}).run()
"""


def test_signals_are_logged(client: Client, database: str) -> None:
    client.enqueue(None, {}, kind="slow")
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PROGRAM, database, client.schema]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "runs\n"
        process.send_signal(signal.SIGTERM)
        while "the stop waits up to 25 s" not in (line := process.stderr.readline()):
            assert line
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=20)[1].splitlines()
    assert "for 1 running job: slow (1)" in line
    assert rest[0] == "WARNING pgjobs.worker pgjobs: a second signal, SIGINT, so running handlers are cut off"
    assert rest[-1].startswith("INFO pgjobs.worker pgjobs: stopped after ")
    assert len(rest) == 3, "and one line of the job"


def test_an_exit_without_a_stop_says_in_one_line_what_it_waits_for(client: Client, database: str) -> None:
    client.enqueue(None, {}, kind="slow")
    program = PROGRAM.replace("WorkerPool(Client", "pool = WorkerPool(Client")
    program = program.replace(".run()", ".start()\nsys.stdin.read()")
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program, database, client.schema]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "runs\n"
        process.stdin.close()
        while "it waits up to 25 s" not in (line := process.stderr.readline()):
            assert line
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read().splitlines()
    assert line.startswith("WARNING pgjobs.worker pgjobs: the process exits without a stop() of this pool: it waits ")
    assert line.endswith(", for 1 running job: slow (1)\n")
    assert (
        rest[0]
        == "WARNING pgjobs.worker pgjobs: the stop cuts off 1 running job: slow (1); this does not count as an attempt"
    )
    assert "cut off, it does not count" in rest[1]
    assert rest[2].startswith("INFO pgjobs.worker pgjobs: stopped after ")
    assert len(rest) == 3


# --- the connections


@contextmanager
def unreachable_pool(make: type[ConnectionPool[Any]]) -> Iterator[None]:
    dsn = "host=127.0.0.1 port=1 dbname=nowhere"
    with OwnPool(dsn) if make is OwnPool else make(dsn, min_size=1, open=True, name="pgjobs") as pool:
        with pytest.raises(psycopg.Error):
            pool.getconn(timeout=0.5)
        yield


def test_the_warnings_of_psycopg_about_a_pool_of_ours_are_debug_messages(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "psycopg")  # which has a level of its own, WARNING

    def connecting() -> list[int]:
        return [record.levelno for record in caplog.records if record.getMessage().startswith("error connecting in")]

    with unreachable_pool(OwnPool):
        assert set(connecting()) == {logging.DEBUG}
    caplog.clear()
    with unreachable_pool(ConnectionPool):
        assert set(connecting()) == {logging.WARNING}, "a pool of the application's, whatever its name"
    caplog.clear()
    caplog.set_level(logging.INFO, "psycopg")
    with unreachable_pool(OwnPool):
        assert connecting() == []


@pytest.mark.parametrize("made_by", ["pgjobs", "a framework"])
def test_a_lost_connection_of_a_pool_of_ours_is_a_debug_message_too(
    database: str, caplog: pytest.LogCaptureFixture, made_by: str
) -> None:
    caplog.set_level(logging.DEBUG, "psycopg")
    with OwnPool(database) if made_by == "pgjobs" else own_pool(lambda: psycopg.connect(database)) as pool:
        conn = pool.getconn()
        with psycopg.connect(database, autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s)", [conn.info.backend_pid])
        wait_until(lambda: has_ended(conn))
        with pytest.raises(psycopg.OperationalError):
            conn.execute("SELECT")
        pool.putconn(conn)
        said = [record.levelno for record in caplog.records if "discarding closed" in record.getMessage()]
    assert said == [logging.DEBUG]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0004, "0.4 ms"),
        (0.012, "12 ms"),
        (0.9999, "1000 ms"),
        (1, "1 s"),
        (1.54, "1.5 s"),
        (15.6, "16 s"),
        (300, "0:05:00"),
    ],
)
def test_a_duration_is_shown_as_a_person_would_say_it(seconds: float, text: str) -> None:
    assert shown_seconds(seconds) == text


def test_the_pool_logs_in_its_own_threads_while_a_thread_waits(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """What was withheld is logged although no further job fails."""
    done = threading.Semaphore(0)

    def fail(tx: Any, job: Job[Any]) -> None:
        done.release()
        raise ValueError("broken")

    client.enqueue_many(None, [Thing(n) for n in range(LINES + 5)])
    with WorkerPool(client, {Thing: fail}, queues={"default": 1}, backoff=constant(HOUR)):
        for _ in range(LINES + 5):
            assert done.acquire(timeout=20)
        wait_until(lambda: any("more failed attempts" in record.getMessage() for record in of_jobs(caplog)))
