"""Handlers that do not end in time, each resisting one step more; and stops that do not wait."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pgjobs import (
    Client,
    Handler,
    Interrupted,
    InvalidHandler,
    InvalidSetting,
    Job,
    JobState,
    NewJob,
    NotRunning,
    QueueSettings,
    WorkerPool,
    constant,
)
from pgjobs.db.checkout import Checkout
from pgjobs.db.cursors import AnyConnection
from pgjobs.errors import JobStopped
from pgjobs.execution.attempt import AT_STOP, Attempt, GracePeriods, Slot, private_context
from pgjobs.execution.interrupt import raise_in_thread
from tests import inside
from tests.waiting import wait_until

NOTHING: dict[str, Any] = {}
SOON = timedelta(seconds=0.3)
LATER = constant(timedelta(hours=1))
QUICK = GracePeriods(interrupted=0.2, severed=0.6, stuck=1.0)  # the same steps as by default, sooner


class Trial:
    """One job whose handler writes an effect and then resists."""

    def __init__(self, client: Client) -> None:
        self.client = client
        with client.pool.connection() as conn:
            conn.execute(self.sql("CREATE TABLE {}.effect (job bigint)"))
        self.release = threading.Event()  # lets a handler go that would stay for ever
        self.started = threading.Event()
        self.ended = threading.Event()
        self.saw: list[object] = []
        self.ignored: tuple[type[BaseException], ...] = ()  # what does not even end the handler while it still writes

    def sql(self, text: str) -> sql.Composed:
        return sql.SQL(text).format(sql.Identifier(self.client.schema))

    def handler(self, resist: Callable[[AnyConnection, Job[Any]], object]) -> Callable[[AnyConnection, Job[Any]], None]:
        def handle(tx: AnyConnection, job: Job[Any]) -> None:
            try:
                with suppress(*self.ignored):
                    tx.execute(self.sql("INSERT INTO {}.effect VALUES (%s)"), [job.id])
                self.started.set()
                resist(tx, job)
            except BaseException as error:
                self.saw.append(type(error))
                raise
            finally:
                self.ended.set()

        return handle

    def pool(self, resist: Callable[[AnyConnection, Job[Any]], object], **settings: Any) -> WorkerPool:
        following = Handler(self.handler(lambda tx, job: None), timeout=None)
        handlers = {"slow": Handler(self.handler(resist)), "next": following}
        return WorkerPool(
            self.client, handlers, **{"queues": {"default": 1}, "backoff": LATER, "timeout": SOON, **settings}
        )

    def enqueue(self, kind: str = "slow", **options: Any) -> Job[Any]:
        return self.client.enqueue(None, NOTHING, kind=kind, **options)

    def job(self, job: Job[Any]) -> Job[Any]:
        found = self.client.get(job.id)
        assert found is not None
        return found

    def effects(self) -> list[int]:
        with self.client.pool.connection() as conn:
            return [id for (id,) in conn.execute(self.sql("SELECT job FROM {}.effect ORDER BY job")).fetchall()]


@pytest.fixture
def trial(client: Client, monkeypatch: pytest.MonkeyPatch) -> Trial:
    monkeypatch.setattr("pgjobs.execution.attempt.AFTER_TIMEOUT", QUICK)
    return Trial(client)


def flag(tx: AnyConnection, job: Job[Any]) -> None:
    """Looks at the flag, as a good handler does."""
    while not job.cancelled:
        threading.Event().wait(0.01)
    raise RuntimeError("I was told to end")


def statement(tx: AnyConnection, job: Job[Any]) -> None:
    """Sits in one long statement."""
    tx.execute("SELECT pg_sleep(60)")


def statements(tx: AnyConnection, job: Job[Any]) -> None:
    """Goes on with the next statement when one is cancelled."""
    for _ in range(600):
        with tx.transaction(), pytest.MonkeyPatch.context():
            try:
                with tx.transaction():
                    tx.execute("SELECT pg_sleep(0.1)")
            except psycopg.errors.QueryCanceled:
                continue


def loop(tx: AnyConnection, job: Job[Any]) -> None:
    """Never leaves Python, and catches what can be caught by accident."""
    while True:
        try:
            sum(range(1000))
        except Exception:
            continue


@pytest.mark.conformance(121)
@pytest.mark.parametrize("resist", [flag, statement, statements, loop])
def test_a_handler_past_its_timeout_is_ended_and_the_attempt_has_failed(
    trial: Trial, resist: Callable[[AnyConnection, Job[Any]], None]
) -> None:
    job, following = trial.enqueue(), trial.enqueue("next")
    with trial.pool(resist):
        wait_until(lambda: trial.job(following).state == JobState.COMPLETED)
        wait_until(lambda: trial.job(job).state == JobState.RETRYABLE)
    found = trial.job(job)
    assert (found.state, found.attempt) == (JobState.RETRYABLE, 1)
    assert [error.error for error in found.errors] == ["timed out after 0.3 s"]
    assert trial.effects() == [following.id], "what it wrote is gone, the next job on the thread is not disturbed"
    if resist is loop:
        assert trial.saw == [Interrupted], "and its connection need not be shut down for that"


def c_call(trial: Trial) -> Callable[[AnyConnection, Job[Any]], object]:
    """Sits in C code that lets other threads run, until it is let go: no exception can be raised in there."""
    trial.ignored = (Interrupted, psycopg.errors.QueryCanceled)

    def resist(tx: AnyConnection, job: Job[Any]) -> None:
        trial.release.wait(30)

    return resist


def deaf(trial: Trial) -> Callable[[AnyConnection, Job[Any]], object]:
    """Catches everything, and goes on until it is let go; then it tries to commit what it wrote."""
    trial.ignored = (Interrupted, psycopg.errors.QueryCanceled)

    def resist(tx: AnyConnection, job: Job[Any]) -> None:
        until = time.monotonic() + 30
        for _ in range(2):  # one exception is raised in here, and may arrive anywhere
            with suppress(BaseException):
                while not trial.release.is_set() and time.monotonic() < until:
                    trial.release.wait(0.05)

    return resist


@pytest.mark.conformance(121)
@pytest.mark.parametrize("kind", [c_call, deaf])
def test_a_handler_that_cannot_be_ended_loses_its_row_and_its_place(
    trial: Trial, kind: Callable[[Trial], Callable[[AnyConnection, Job[Any]], object]], caplog: pytest.LogCaptureFixture
) -> None:
    """T19, F5: its row is free, its outcome on record, its slot replaced; its late COMMIT cannot happen."""
    job, following = trial.enqueue(), trial.enqueue("next")
    with caplog.at_level(logging.WARNING, logger="pgjobs"), trial.pool(kind(trial)) as pool:
        wait_until(lambda: trial.job(following).state == JobState.COMPLETED)
        wait_until(lambda: trial.job(job).state == JobState.RETRYABLE)
        assert not trial.release.is_set()
        found = trial.job(job)
        assert (found.state, found.attempt) == (JobState.RETRYABLE, 1)
        assert [error.error for error in found.errors] == ["timed out after 0.3 s"]
        wait_until(lambda: "is stuck at" in caplog.text)
        assert "in resist" in caplog.text, "the stack of the thread is in the log"
        trial.release.set()
        wait_until(lambda: "no longer stuck" in caplog.text)
        assert pool.running
    assert trial.effects() == [following.id]
    assert trial.job(job).error_count == 1


def test_a_handler_that_returns_after_its_time_but_before_the_end_has_succeeded(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgjobs.execution.attempt.AFTER_TIMEOUT", GracePeriods(interrupted=30, severed=40, stuck=50))
    job = trial.enqueue()

    def resist(tx: AnyConnection, job: Job[Any]) -> None:
        while not job.cancelled:
            threading.Event().wait(0.01)

    with trial.pool(resist, timeout=timedelta(seconds=2)):  # a write that is not over by then is cancelled
        wait_until(lambda: trial.job(job).state == JobState.COMPLETED)
    assert trial.effects() == [job.id]


@pytest.mark.conformance(120)
@pytest.mark.parametrize(
    ("of_the_pool", "of_the_handler", "expected"),
    [
        (timedelta(minutes=1), "inherit", timedelta(minutes=1)),
        (timedelta(minutes=1), timedelta(hours=1), timedelta(hours=1)),
        (timedelta(minutes=1), None, None),
        (None, "inherit", None),
        (None, timedelta(seconds=5), timedelta(seconds=5)),
        (timedelta(minutes=1), lambda job: timedelta(seconds=job.args["n"]), timedelta(seconds=7)),
    ],
)
def test_the_timeout_of_the_handler_wins_over_that_of_the_pool(
    client: Client, of_the_pool: timedelta | None, of_the_handler: Any, expected: timedelta | None
) -> None:
    deadlines: list[datetime | None] = []
    bounds: list[str] = []

    def handler(tx: AnyConnection, job: Job[Any]) -> None:
        deadlines.append(job.deadline)
        assert not job.cancelled
        setting = "transaction_timeout" if tx.info.server_version >= 170000 else "idle_in_transaction_session_timeout"
        row = tx.execute("SELECT current_setting(%s)", [setting]).fetchone()
        assert row is not None
        bounds.append(row[0])

    client.enqueue(None, {"n": 7}, kind="timed")
    before = datetime.now(UTC)
    pool = WorkerPool(client, {"timed": Handler(handler, timeout=of_the_handler)}, timeout=of_the_pool)
    assert pool.work_one()
    (deadline,) = deadlines
    if expected is None:
        assert deadline is None
    else:
        assert deadline is not None
        assert timedelta(0) <= deadline - before - expected < timedelta(seconds=5)
    known_before = None if callable(of_the_handler) else expected
    with client.pool.connection() as conn:
        row = conn.execute(
            "SELECT %s::interval", [known_before + timedelta(seconds=10) if known_before else timedelta(0)]
        ).fetchone()
        assert row is not None
        server = conn.execute("SELECT %s::interval", [bounds[0] if bounds[0] != "0" else "0"]).fetchone()
        assert server == row, "the server's own bound is ten seconds longer"


@pytest.mark.conformance(120)
def test_the_default_timeout_is_a_minute(client: Client) -> None:
    """T11: so that no job holds the vacuum of the whole database up for long unless it says so."""
    seen: list[timedelta] = []

    def handler(tx: AnyConnection, job: Job[Any]) -> None:
        assert job.deadline is not None
        seen.append(job.deadline - datetime.now(UTC))

    client.enqueue(None, NOTHING, kind="timed")
    WorkerPool(client, {"timed": handler}).work_one()
    assert timedelta(seconds=55) < seen[0] <= timedelta(minutes=1)


@pytest.mark.parametrize("timeout", [timedelta(0), timedelta(seconds=-1)])
def test_a_timeout_of_nothing_is_refused(client: Client, timeout: timedelta) -> None:
    with pytest.raises(InvalidSetting, match="timeout"):
        WorkerPool(client, {"timed": print}, timeout=timeout)
    with pytest.raises(InvalidHandler, match="timeout"):
        Handler(print, timeout=timeout)


def timeout_that_raises(error: BaseException) -> Any:
    def timeout(job: Job[Any]) -> timedelta:
        raise error

    return timeout


WRONG_TIMEOUTS: dict[str, Any] = {
    "raises": timeout_that_raises(KeyError("n")),
    "exits": timeout_that_raises(SystemExit(1)),
    "is interrupted": timeout_that_raises(KeyboardInterrupt()),
    "asks for args that are not there": lambda job: job.args["nothing"],
    "number": lambda job: 30,
    "text": lambda job: "30 s",
    "true": lambda job: True,
    "no time": lambda job: timedelta(0),
    "negative": lambda job: timedelta(seconds=-1),
    "class": lambda job: timedelta,
}


@pytest.mark.finding("W9")
@pytest.mark.parametrize("batch_size", [1, 5])
@pytest.mark.parametrize("timeout", WRONG_TIMEOUTS.values(), ids=WRONG_TIMEOUTS)
def test_where_a_timeout_cannot_be_told_the_pools_holds_and_it_is_said_once(
    client: Client, timeout: Any, batch_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    """An attempt whose timeout was a number died outside of every guard, and its job stood as running."""
    seen: list[object] = []
    handler = Handler(lambda tx, job: seen.append(job.deadline), timeout=timeout)
    jobs = client.enqueue_many(None, [NewJob(NOTHING, kind="timed") for _ in range(3)])
    queues = {"default": QueueSettings(1, batch_size=batch_size)}
    with WorkerPool(client, {"timed": handler}, queues=queues, timeout=None):
        wait_until(lambda: all(state_of(client, job).final for job in jobs))
    assert {state_of(client, job) for job in jobs} == {JobState.COMPLETED}
    assert seen == [None] * 3
    said = [record.getMessage() for record in caplog.records if record.name == "pgjobs.return_values"]
    assert len(said) == 1
    assert said[0].startswith("kind timed: the timeout of its handler")


@pytest.mark.finding("W9")
@pytest.mark.parametrize(
    ("answer", "expected"),
    [("inherit", timedelta(minutes=3)), (None, None), (timedelta.max, timedelta(days=365 * 7000))],
    ids=["inherit", "none", "the longest"],
)
def test_a_function_of_a_timeout_may_give_what_a_handler_may(
    client: Client, answer: Any, expected: timedelta | None, caplog: pytest.LogCaptureFixture
) -> None:
    """One that gave "inherit" ended outside of every guard."""
    seen: list[datetime | None] = []
    client.enqueue(None, NOTHING, kind="timed")
    handler = Handler(lambda tx, job: seen.append(job.deadline), timeout=lambda job: answer)
    assert WorkerPool(client, {"timed": handler}, timeout=timedelta(minutes=3)).work_one()
    (deadline,) = seen
    if expected is None:
        assert deadline is None
    else:
        assert deadline is not None
        assert deadline > datetime.now(UTC) + expected - timedelta(minutes=1)
    assert not [record for record in caplog.records if record.name == "pgjobs.return_values"]


@pytest.mark.finding("W9")
@pytest.mark.parametrize("where", ["handler", "pool"])
def test_the_longest_timeout_bounds_nothing_and_breaks_nothing(client: Client, where: str) -> None:
    """The bound for the server could not be computed, so no claim worked."""
    job = client.enqueue(None, NOTHING, kind="timed")
    handler = Handler(lambda tx, job: job.deadline, timeout=timedelta.max if where == "handler" else "inherit")
    timeout = timedelta.max if where == "pool" else timedelta(minutes=1)
    assert WorkerPool(client, {"timed": handler}, timeout=timeout).work_one()
    assert state_of(client, job) == JobState.COMPLETED


def state_of(client: Client, job: Job[Any]) -> JobState:
    found = client.get(job.id)
    assert found is not None
    return found.state


def test_only_a_running_handler_can_ask_whether_it_is_to_end(client: Client) -> None:
    job = client.enqueue(None, NOTHING, kind="timed")
    with pytest.raises(NotRunning, match=str(job.id)):
        _ = job.cancelled
    with pytest.raises(NotRunning):
        _ = job.deadline


@pytest.fixture
def attempt(client: Client) -> Iterator[Attempt]:
    with client.source.checkout() as checkout:
        job, short = client.enqueue(None, NOTHING, kind="timed"), timedelta(microseconds=1)
        yield Attempt(job, Slot(checkout), private_context(), short, None)


def run(attempt: Attempt, handler: Callable[[], object]) -> BaseException | None:
    return attempt.run(lambda tx, job: handler() and None, None, attempt.job)


def tell_and_raise(attempt: Attempt) -> None:
    attempt.escalate(time.monotonic())
    attempt.escalate(time.monotonic() + QUICK.interrupted)


def test_t19_what_is_raised_in_a_handler_is_over_when_it_is_over(trial: Trial, attempt: Attempt) -> None:
    error = run(attempt, lambda: tell_and_raise(attempt))
    assert isinstance(error, TimeoutError)
    assert isinstance(error.__cause__, Interrupted)
    assert attempt.tainted, "a cancel may still be on its way: the connection is not used again"


def test_t19_nothing_is_raised_once_the_handler_is_over(trial: Trial, attempt: Attempt) -> None:
    assert run(attempt, lambda: None) is None
    tell_and_raise(attempt)
    sum(range(100))  # it would land here
    assert attempt.cancelled
    assert not attempt.tainted


def test_t19_what_arrives_while_the_window_is_being_closed_lands_in_there(trial: Trial, attempt: Attempt) -> None:
    checkout = threading.Event()

    def at_the_last_moment() -> None:
        with attempt.slot.lock:
            checkout.set()
            closing = Attempt._wait_for_step.__code__
            wait_until(lambda: sys._current_frames()[attempt.thread.ident or 0].f_code is closing)
            attempt._interrupted = True
            raise_in_thread(attempt.thread, Interrupted)

    def handler() -> None:
        attempt.request_stop(JobStopped("stopped"), QUICK)
        threading.Thread(target=at_the_last_moment, daemon=True).start()
        checkout.wait()

    error = run(attempt, handler)
    sum(range(100))  # it would land here
    assert error in (None, attempt.reason)


def test_t19_an_interpreter_that_is_traced_goes_on_after_an_interrupt() -> None:
    """CPython 3.11 thinks that an exception is due for ever once one was taken back, and a traced call waits for it."""
    program = (
        "import sys, time\n"
        "from datetime import UTC, datetime, timedelta\n"
        "from pgjobs import Interrupted, Job, JobState\n"
        "from pgjobs.execution.attempt import AFTER_TIMEOUT, Attempt, Slot, private_context\n"
        "from types import SimpleNamespace\n"
        "now = datetime.now(UTC)\n"
        "job = Job(id=1, state=JobState.RUNNING, queue='default', kind='slow', priority=0, attempt=1, max_attempts=1,\n"
        "    raw_args='{}', scheduled_at=now, created_at=now)\n"
        "slot = Slot(SimpleNamespace(conn=None))\n"
        "attempt = Attempt(job, slot, private_context(), timedelta(microseconds=1), None)\n"
        "attempt.checkout = None\n"
        "def resist(tx, job):\n"
        "    attempt.escalate(time.monotonic())\n"
        "    attempt.escalate(time.monotonic() + AFTER_TIMEOUT.interrupted)\n"
        "assert isinstance(attempt.run(resist, None, job).__cause__, Interrupted)\n"
        "sys.settrace(lambda *event: None)\n"
        "print((lambda: 'goes on')())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "goes on\n"


def test_a_watch_that_comes_late_leaves_no_step_out(
    trial: Trial, attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while in which the machine was busy, or the process stopped, all of them are due at once."""
    raised: list[object] = []
    monkeypatch.setattr("pgjobs.execution.attempt.raise_in_thread", lambda thread, exception: raised.append(exception))
    attempt.request_stop(JobStopped("stopped"), QUICK)
    run(attempt, lambda: attempt.escalate(time.monotonic() + QUICK.stuck))
    assert raised == [Interrupted]
    assert attempt.severed
    assert attempt.stuck


def test_the_watch_comes_again_for_each_step_in_time(
    trial: Trial, attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgjobs.execution.attempt.raise_in_thread", lambda thread, exception: None)
    again: list[float] = []

    def handler() -> None:
        attempt.request_stop(JobStopped("stopped"), GracePeriods(interrupted=0.01, severed=0.02, stuck=0.03))
        for after in (0.0, 0.011, 0.021, 0.031):
            again.append(attempt.escalate(attempt._requested_at + after) - attempt._requested_at)

    run(attempt, handler)
    assert again == pytest.approx([0.01, 0.02, 0.03, float("inf")])


@pytest.mark.parametrize("name", ["pgjobs/cancel", "pgjobs/severed", "pgjobs/stuck"])
def test_the_watch_outlives_a_system_that_refuses_a_thread(
    trial: Trial, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A limit on processes counts threads. What was to be done in one is done when there is one again."""
    monkeypatch.setattr("pgjobs.execution.watchdog._CHECK_EVERY", 0.05)
    start, refused = threading.Thread.start, list[str]()

    def refuse(thread: threading.Thread) -> None:
        if thread.name == name and not refused:
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    job, behind = trial.enqueue(), trial.enqueue("next")
    resist = deaf(trial) if name == "pgjobs/stuck" else lambda tx, job: tx.execute("SELECT pg_sleep(60)")
    if name == "pgjobs/severed":
        monkeypatch.setattr("pgjobs.db.checkout.Checkout.cancel_statement", Checkout.cancel_ends)
    pool = trial.pool(resist).start()
    wait_until(lambda: trial.job(job).state == JobState.RETRYABLE)
    wait_until(lambda: trial.job(behind).state == JobState.COMPLETED)
    assert refused
    trial.release.set()
    pool.stop()


def test_the_time_of_a_job_that_one_thread_runs_by_itself_does_not_depend_on_another_thread(trial: Trial) -> None:
    """The one that is done first does not end the watch over the other."""
    first, both = threading.Event(), threading.Event()

    def slow(tx: AnyConnection, job: Job[Any]) -> None:
        first.set()
        assert both.wait(20)

    def slower(tx: AnyConnection, job: Job[Any]) -> None:
        both.set()
        other.join(20)
        tx.execute("SELECT pg_sleep(10)")

    trial.enqueue("slow", queue="slow")
    job = trial.enqueue("slower")
    kinds = {"slow": Handler(slow, timeout=None), "slower": Handler(slower, timeout=timedelta(seconds=2))}
    pool = WorkerPool(trial.client, kinds, backoff=LATER)
    other = threading.Thread(target=pool.work_one, args=("slow",))
    other.start()
    assert first.wait(20)
    assert pool.work_one()
    assert not other.is_alive()
    assert trial.job(job).state == JobState.RETRYABLE
    assert not inside.is_watched(pool), "nobody needs it any more"


def test_a_pool_that_starts_while_a_thread_runs_a_job_by_itself_watches_over_its_own_when_that_is_over(
    trial: Trial,
) -> None:
    free, runs = threading.Event(), threading.Event()

    def wait(tx: AnyConnection, job: Job[Any]) -> None:
        runs.set()
        assert free.wait(20)

    trial.enqueue("wait", queue="other")
    kinds: dict[str, Any] = {"wait": Handler(wait, timeout=None), "slow": trial.handler(statement)}
    pool = WorkerPool(trial.client, kinds, queues={"default": 1}, backoff=LATER, timeout=SOON)
    alone = threading.Thread(target=pool.work_one, args=("other",))
    alone.start()
    assert runs.wait(20)
    with pool:
        free.set()
        alone.join(20)
        job = trial.enqueue()
        wait_until(lambda: trial.job(job).state == JobState.RETRYABLE)
    assert not inside.is_watched(pool)


def test_a_severed_job_is_free_and_on_record_long_before_its_thread_is_given_up(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgjobs.execution.attempt.AFTER_TIMEOUT", GracePeriods(interrupted=0.1, severed=0.2, stuck=60))
    job = trial.enqueue()
    pool = trial.pool(deaf(trial)).start()
    wait_until(lambda: trial.job(job).state == JobState.RETRYABLE)
    assert not trial.ended.is_set()
    trial.release.set()
    assert pool.stop() is True
    assert [error.error for error in trial.job(job).errors] == ["timed out after 0.3 s"]
    assert trial.effects() == []


def test_r7_the_server_ends_the_transaction_of_a_process_that_hangs_as_a_whole(trial: Trial) -> None:
    """The bound is the job's timeout plus a grace; here the grace is nothing."""
    program = (
        "import sys, threading\n"
        "from datetime import timedelta\n"
        "import pgjobs.execution.claimer\n"
        "from pgjobs import Client, WorkerPool\n"
        "pgjobs.execution.claimer._GRACE = 0\n"
        "client = Client(sys.argv[1], schema=sys.argv[2])\n"
        "def slow(tx, job):\n"
        "    print('started', flush=True)\n"
        "    threading.Event().wait(60)\n"
        "WorkerPool(client, {'slow': slow}, timeout=timedelta(seconds=3)).run()\n"
    )
    job = trial.enqueue(max_attempts=1)
    dsn = str(trial.client.pool.conninfo)
    free = trial.sql("SELECT id FROM {}.job WHERE state = 'running' FOR UPDATE SKIP LOCKED")
    with (
        psycopg.connect(dsn, autocommit=True) as conn,
        subprocess.Popen(
            [sys.executable, "-c", program, dsn, trial.client.schema], stdout=subprocess.PIPE, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
            os.kill(process.pid, signal.SIGSTOP)
            assert conn.execute(free).fetchall() == []
            wait_until(lambda: conn.execute(free).fetchall() == [(job.id,)], timeout=20)
        finally:
            process.kill()


# --- stops


@pytest.mark.conformance(252)
@pytest.mark.parametrize(
    "kind",
    [lambda trial: statement, lambda trial: loop, c_call, deaf],
    ids=["statement", "loop", "c_call", "deaf"],
)
def test_a_stop_returns_in_time_whatever_handlers_do_and_gives_their_attempts_back(
    trial: Trial, kind: Callable[[Trial], Callable[[AnyConnection, Job[Any]], object]]
) -> None:
    job = trial.enqueue()
    pool = trial.pool(kind(trial), timeout=None).start()
    assert trial.started.wait(10)
    before = time.monotonic()
    assert pool.stop(SOON) is False
    took = time.monotonic() - before
    assert took < SOON.total_seconds() + 5.0, "it promises two seconds more, but the machine may be busy"
    wait_until(lambda: trial.job(job).state == JobState.AVAILABLE)  # it is free, and somebody else records that
    trial.release.set()
    found = trial.job(job)
    assert (found.state, found.attempt, found.errors) == (JobState.AVAILABLE, 0, ())
    assert trial.effects() == []
    assert trial.ended.wait(10)
    with trial.pool(lambda tx, job: None, timeout=None):
        wait_until(lambda: trial.job(job).state == JobState.COMPLETED)
    assert trial.effects() == [job.id]


@pytest.mark.conformance(252)
def test_a_job_that_ends_within_the_time_of_the_stop_is_not_cut_off(trial: Trial) -> None:
    job = trial.enqueue()
    pool = trial.pool(lambda tx, job: trial.release.wait(10), timeout=None).start()
    assert trial.started.wait(10)
    threading.Timer(0.1, trial.release.set).start()
    assert pool.stop(timedelta(minutes=1)) is True
    assert trial.job(job).state == JobState.COMPLETED
    assert trial.effects() == [job.id]


def test_stop_and_cancel_does_not_wait(trial: Trial) -> None:
    job = trial.enqueue()
    pool = trial.pool(statement, timeout=None).start()
    assert trial.started.wait(10)
    assert pool.stop_and_cancel() is False
    wait_until(lambda: trial.job(job).state == JobState.AVAILABLE)
    assert (trial.job(job).state, trial.job(job).attempt) == (JobState.AVAILABLE, 0)


def test_a_handler_may_stop_its_own_pool(trial: Trial) -> None:
    pools: list[WorkerPool] = []
    job = trial.enqueue()
    pools.append(trial.pool(lambda tx, job: pools[0].stop(), timeout=None).start())
    wait_until(lambda: trial.job(job).state == JobState.COMPLETED)
    wait_until(lambda: not pools[0].running)


@pytest.mark.conformance(125)
def test_a_thread_is_stuck_ten_seconds_after_its_timeout_by_default() -> None:
    from pgjobs.execution.attempt import AFTER_TIMEOUT

    assert GracePeriods(interrupted=1.0, severed=5.0, stuck=10.0) == AFTER_TIMEOUT


@pytest.mark.conformance(252)
def test_a_stop_gives_a_thread_up_in_less_than_the_two_seconds_that_it_promises() -> None:
    assert GracePeriods(interrupted=0.2, severed=0.8, stuck=1.2) == AT_STOP
