"""The same acts on a psycopg pool, a SQLAlchemy engine and a Django alias: the promises do not depend on the source."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgjobs import (
    Client,
    Handler,
    Hooks,
    Interrupted,
    InvalidSetting,
    Job,
    JobState,
    NewJob,
    PoolTooSmall,
    QueueSettings,
    WorkerPool,
    constant,
)
from pgjobs.execution.attempt import GracePeriods
from tests.acceptance.frameworks import APPS, LATER, App, Trial, backend, raw, trial
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
NOTHING: dict[str, Any] = {}


@pytest.fixture(params=APPS)
def source(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def made(source: str, fresh_database: str) -> Iterator[Trial]:
    with trial(APPS[source](fresh_database, "pgjobs"), fresh_database) as made:
        yield made


@pytest.fixture
def app(made: Trial) -> App:
    return made.app


# --- enqueue


def test_a_job_and_the_writes_beside_it_are_committed_together(made: Trial, app: App) -> None:
    with app.transaction() as tx:
        app.write(tx, "before")
        job = made.client.enqueue(tx, NOTHING, kind="test")
        made.client.enqueue_many(tx, [job_of("other"), job_of("other")])
        app.write(tx, "after")
        assert (made.jobs, made.effects) == ([], [])
    assert made.jobs == ["test", "other", "other"]
    assert sorted(made.effects) == ["after", "before"]
    assert made.job(job).state == JobState.AVAILABLE


def test_batches_are_refused_where_a_framework_ends_the_transaction(made: Trial, source: str) -> None:
    work_map = {"test": lambda tx, job: None}
    if source == "psycopg":
        WorkerPool(made.client, work_map, batch_size=2)
        return
    with pytest.raises(InvalidSetting, match=r"batch_size is 1 with a \w+Source, not 2"):
        WorkerPool(made.client, work_map, batch_size=2)
    with pytest.raises(InvalidSetting, match="not 3"):
        WorkerPool(made.client, work_map, queues={"default": 1, "many": QueueSettings(1, batch_size=3)})
    pool = WorkerPool(made.client, work_map)
    with pytest.raises(InvalidSetting, match="not 4"):
        pool.add_queue("many", QueueSettings(1, batch_size=4))
    assert pool.threads == 10


def job_of(kind: str) -> NewJob[Any]:
    return NewJob(NOTHING, kind=kind)


@pytest.mark.parametrize("act", ["enqueue", "enqueue_many"])
def test_a_job_enqueued_first_of_all_is_rolled_back_with_its_transaction(made: Trial, app: App, act: str) -> None:
    """The first statement of the transaction is the library's: a block of its own would commit it."""

    def fail() -> None:
        with app.transaction() as tx:
            if act == "enqueue":
                made.client.enqueue(tx, NOTHING, kind="test")
            else:
                made.client.enqueue_many(tx, [job_of("test")])
            app.write(tx, "after it")
            raise KeyError("rolled back")

    with pytest.raises(KeyError):
        fail()
    assert (made.jobs, made.effects) == ([], [])


def test_without_a_transaction_the_job_is_committed_at_once_whatever_is_open(made: Trial, app: App) -> None:
    with app.transaction() as tx:
        app.write(tx, "of the transaction")
        made.client.enqueue(None, NOTHING, kind="test")
        assert made.jobs == ["test"]
        assert made.effects == []


def test_control_by_hand_belongs_to_the_transaction(made: Trial, app: App) -> None:
    job = made.enqueue()
    with suppress(KeyError), app.transaction() as tx:
        assert made.client.cancel(job.id, tx).state == JobState.CANCELLED
        raise KeyError("rolled back")
    assert made.job(job).state == JobState.AVAILABLE


# --- the handler's transaction


def test_what_a_handler_writes_is_committed_with_the_job(made: Trial, app: App) -> None:
    seen = []

    def handler(tx: Any, job: Job[Any]) -> None:
        app.write(tx, "written")
        made.client.enqueue(tx, NOTHING, kind="follow-up")
        seen.append((made.effects, made.jobs, made.job(job).state))

    (job,) = made.run(handler)
    assert seen == [([], ["test-0"], JobState.RUNNING)], "nobody sees any of it before"
    assert job.state == JobState.COMPLETED
    assert made.effects == ["written"]
    assert made.jobs == ["test-0", "follow-up"]


def test_what_a_failing_handler_has_written_is_gone_and_its_attempt_on_record(made: Trial, app: App) -> None:
    def handler(tx: Any, job: Job[Any]) -> None:
        app.write(tx, "half done")
        made.client.enqueue(tx, NOTHING, kind="follow-up")
        app.run(tx, "SELECT 1")
        raise ValueError("no further")

    (job,) = made.run(handler)
    assert (job.state, job.attempt, job.last_error) == (JobState.RETRYABLE, 1, "no further")
    assert (made.effects, made.jobs) == ([], ["test-0"])


def test_an_sql_error_in_the_handler_is_the_attempts_failure(made: Trial, app: App) -> None:
    def handler(tx: Any, job: Job[Any]) -> None:
        app.write(tx, "half done")
        app.run(tx, "SELECT 1 / 0")

    (job,) = made.run(handler)
    assert job.state == JobState.RETRYABLE
    assert "division by zero" in (job.last_error or "")
    assert made.effects == []


def test_an_sql_error_that_the_handler_swallows_is_no_success(made: Trial, app: App) -> None:
    def handler(tx: Any, job: Job[Any]) -> None:
        app.run(tx, "INSERT INTO effect (note) VALUES ('half done')")
        with pytest.raises(Exception, match="division by zero"):
            app.run(tx, "SELECT 1 / 0")

    (job,) = made.run(handler)
    assert job.state == JobState.RETRYABLE
    assert "swallowed" in (job.last_error or "")
    assert made.effects == []


def test_a_write_that_violates_a_constraint_is_the_attempts_failure(made: Trial, app: App) -> None:
    """Whenever it is sent: what was pending when the handler returned, too."""

    def handler(tx: Any, job: Job[Any]) -> None:
        app.write(tx, "twice")

    first, second, third = made.run(handler, handler, lambda tx, job: app.write(tx, "next"))
    assert first.state == JobState.COMPLETED
    assert second.state == JobState.RETRYABLE
    assert "effect_note_key" in (second.last_error or "")
    assert third.state == JobState.COMPLETED
    assert made.effects == ["twice", "next"]


def test_a_constraint_that_fails_at_the_commit_is_the_attempts_failure(made: Trial, app: App) -> None:
    made.query("CREATE TABLE parent (note text PRIMARY KEY)")
    made.query("ALTER TABLE effect ADD FOREIGN KEY (note) REFERENCES parent DEFERRABLE INITIALLY DEFERRED")
    job, _ = made.run(lambda tx, job: app.write(tx, "orphan"), lambda tx, job: None)
    assert job.state == JobState.RETRYABLE
    assert "23503" in (job.last_error or "")
    assert made.effects == []


@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK", "COMMIT; BEGIN", "ROLLBACK; BEGIN"])
def test_a_handler_that_ends_the_transaction_in_sql_has_failed(made: Trial, app: App, end: str, fails: bool) -> None:
    def handler(tx: Any, job: Job[Any]) -> None:
        app.run(tx, end)
        if fails:
            raise ValueError("and that is not all")

    job, following = made.run(handler, lambda tx, job: app.write(tx, "next"))
    assert job.state == JobState.RETRYABLE
    assert ("and that is not all" if fails else "ended its transaction") in (job.last_error or "")
    assert following.state == JobState.COMPLETED
    assert made.effects == ["next"]
    assert no_transaction_is_open(made)


def test_a_handler_that_closes_the_drivers_connection_has_failed(made: Trial, app: App) -> None:
    def handler(tx: Any, job: Job[Any]) -> None:
        app.write(tx, "gone with it")
        raw(tx).close()

    job, following = made.run(handler, lambda tx, job: app.write(tx, "next"))
    assert (job.state, job.error_count) == (JobState.RETRYABLE, 1)
    assert following.state == JobState.COMPLETED
    assert made.effects == ["next"]


def test_a_connection_that_is_lost_is_the_attempts_failure(made: Trial, app: App) -> None:
    def handler(tx: Any, job: Job[Any]) -> None:
        app.write(tx, "gone with it")
        made.query("SELECT pg_terminate_backend(%s)", backend(app, tx))

    job, following = made.run(handler, lambda tx, job: app.write(tx, "next"))
    assert (job.state, job.error_count) == (JobState.RETRYABLE, 1)
    assert following.state == JobState.COMPLETED
    assert made.effects == ["next"]


@pytest.mark.parametrize("fails", [False, True], ids=["left", "raised"])
def test_a_job_locked_by_hand_commits_with_what_is_written_beside_it(made: Trial, app: App, fails: bool) -> None:
    job = made.enqueue()
    with suppress(KeyError), made.client.lock_job() as (tx, locked):
        assert locked is not None
        app.write(tx, "written")
        made.client.enqueue(tx, NOTHING, kind="follow-up", queue="other")
        if fails:
            raise KeyError("no further")
    assert made.job(job).state == (JobState.RETRYABLE if fails else JobState.COMPLETED)
    assert (made.effects, made.jobs) == (([], ["test"]) if fails else (["written"], ["test", "follow-up"]))
    with made.client.lock_job() as (_, locked):
        assert locked is None


def test_a_detached_handler_completes_its_job_in_a_transaction_of_the_application(made: Trial, app: App) -> None:
    def handler(_: None, job: Job[Any]) -> None:
        with app.transaction() as tx:
            app.write(tx, "written")
            job.complete(tx)
            assert made.job(job).state == JobState.RUNNING

    job = made.enqueue()
    assert WorkerPool(made.client, {"test": Handler(handler, detached=True)}).work_one()
    assert (made.job(job).state, made.job(job).last_error) == (JobState.COMPLETED, None)
    assert made.effects == ["written"]


def test_hooks_are_called_outside_of_the_jobs_transaction(made: Trial, app: App, source: str) -> None:
    class Audit(Hooks):
        def on_finish(self, job: Job[Any], error: BaseException | None) -> None:
            with app.transaction() as tx:
                app.write(tx, f"{job.state} by the hook")

    made.client = app.client = Client(made.client.source, hooks=[Audit()])
    made.run(lambda tx, job: app.write(tx, "one"), fail)
    assert made.effects == ["one", "completed by the hook", "retryable by the hook"]


def fail(tx: Any, job: Job[Any]) -> None:
    raise ValueError("no further")


# --- from job to job


def test_one_connection_serves_job_after_job_also_when_they_fail(made: Trial, app: App) -> None:
    """What a framework keeps of it for itself is not taken for a handler that kept it."""
    used = []

    def handler(tx: Any, job: Job[Any]) -> None:
        used.append(backend(app, tx))
        app.write(tx, f"effect {job.id}")
        made.client.enqueue(tx, NOTHING, kind="follow-up", queue="other")
        if len(used) % 2:
            raise ValueError("every other one")

    made.run(*[handler] * 6)
    assert len(used) == 6
    assert len(set(used)) == 1


def test_what_a_handler_sets_in_the_session_is_not_there_for_the_next(made: Trial, app: App) -> None:
    seen = []

    def soil(tx: Any, job: Job[Any]) -> None:
        app.run(tx, "SET search_path = pg_catalog")
        app.run(tx, "SET statement_timeout = '17min'")
        app.run(tx, "SET TIME ZONE 'Pacific/Chatham'")
        app.run(tx, "SELECT pg_advisory_lock(7)")

    def look(tx: Any, job: Job[Any]) -> None:
        seen.append([app.run(tx, f"SHOW {name}") for name in ("search_path", "statement_timeout", "timezone")])
        seen.append(app.run(tx, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"))

    jobs = made.run(look, soil, look)
    assert [job.last_error for job in jobs] == [None] * 3
    assert seen[:2] == seen[2:]


def test_a_thread_that_keeps_the_drivers_connection_cannot_write_into_the_next_job(made: Trial, app: App) -> None:
    kept: list[psycopg.Connection[Any]] = []
    used = []

    def keep(tx: Any, job: Job[Any]) -> None:
        used.append(backend(app, tx))
        kept.append(raw(tx))

    def handler(tx: Any, job: Job[Any]) -> None:
        used.append(backend(app, tx))
        with pytest.raises(psycopg.OperationalError, match="has ended, and with it its transaction"):
            kept[0].execute("INSERT INTO effect (note) VALUES ('smuggled in')")

    _, job = made.run(keep, handler)
    assert (job.state, job.last_error) == (JobState.COMPLETED, None)
    assert used[0] == used[1], "the connection was kept"
    assert made.effects == []


def test_a_handler_past_its_timeout_is_ended_by_a_cancel_of_its_statement(made: Trial, app: App) -> None:
    def handler(tx: Any, job: Job[Any]) -> None:
        app.write(tx, "half done")
        app.run(tx, "SELECT pg_sleep(60)")

    job, following = made.run(handler, lambda tx, job: app.write(tx, "next"), timeout=timedelta(seconds=1))
    assert (job.state, job.last_error) == (JobState.RETRYABLE, "timed out after 1 s")
    assert following.state == JobState.COMPLETED
    assert made.effects == ["next"]


ONE_CONNECTION: dict[str, tuple[str, dict[str, Any]]] = {
    "psycopg": ("psycopg", {}),
    "sqlalchemy": ("sqlalchemy", {"pool_size": 1, "max_overflow": 0}),
    "django": ("django", {}),
    "django with a pool": ("django", {"OPTIONS": {"pool": {"min_size": 1, "max_size": 1}}}),
}


@pytest.mark.parametrize("name", ONE_CONNECTION)
def test_a_handler_that_resists_is_cut_off_and_its_thread_and_connection_replaced(
    name: str, fresh_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its place in a pool is free for the next; and when it comes back, it writes nothing."""
    monkeypatch.setattr("pgjobs.execution.attempt.AFTER_TIMEOUT", GracePeriods(interrupted=0.2, severed=0.4, stuck=0.6))
    source, settings = ONE_CONNECTION[name]
    app: App = APPS[source](fresh_database, "pgjobs", **settings)
    release = threading.Event()
    threads: list[threading.Thread] = []
    failures: list[BaseException] = []

    def deaf(tx: Any, job: Job[Any]) -> None:
        threads.append(threading.current_thread())
        app.write(tx, "half done")
        while not release.is_set():
            with suppress(Interrupted):
                release.wait(60)
        try:
            app.run(tx, "INSERT INTO effect (note) VALUES ('too late')")
        except Exception as error:
            failures.append(error)
            raise

    handlers = {
        "test": Handler(deaf, timeout=timedelta(seconds=0.3)),
        "next": Handler(lambda tx, job: app.write(tx, "next")),
    }
    with trial(app, fresh_database) as made:
        job, following = made.enqueue(), made.enqueue("next")
        with WorkerPool(made.client, handlers, queues={"default": 1}, backoff=LATER):
            try:
                wait_until(lambda: made.job(following).state == JobState.COMPLETED)
                assert made.job(job).last_error == "timed out after 0.3 s"
            finally:
                release.set()
            threads[0].join(10)
            assert not threads[0].is_alive()
        assert len(failures) == 1
        assert made.effects == ["next"]
        assert no_transaction_is_open(made)


PREPARED = "SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'pgjobs%'"


@pytest.mark.prepared("it looks for prepared statements")
def test_pgjobs_prepares_its_statements_on_a_direct_connection(made: Trial, app: App) -> None:
    counts: list[int] = []
    made.run(lambda tx, job: counts.append(app.run(tx, PREPARED)))
    assert counts[0] > 0


@pytest.mark.parametrize(
    ("source", "settings"),
    [
        ("sqlalchemy", {"connect_args": {"prepare_threshold": None}}),
        ("django", {"OPTIONS": {"prepare_threshold": None}}),
    ],
    indirect=["source"],
)
def test_pgjobs_prepares_nothing_where_the_application_has_switched_it_off(
    source: str, settings: dict[str, Any], fresh_database: str
) -> None:
    counts: list[int] = []
    with trial(APPS[source](fresh_database, "pgjobs", **settings), fresh_database) as made:
        made.run(lambda tx, job: counts.append(made.app.run(tx, PREPARED)))
    assert counts == [0]


@pytest.mark.prepared("nothing is prepared that could be deallocated")
@pytest.mark.parametrize("drop", ["DEALLOCATE ALL", "DISCARD PLANS; DEALLOCATE ALL"])
def test_a_handler_that_deallocates_what_pgjobs_has_prepared_disturbs_nobody(made: Trial, app: App, drop: str) -> None:
    def handler(tx: Any, job: Job[Any]) -> None:
        app.write(tx, f"effect {job.id}")
        for statement in drop.split(";"):
            app.run(tx, statement)

    jobs = made.run(handler, lambda tx, job: app.write(tx, "next"), handler)
    assert [(job.state, job.attempt, job.last_error) for job in jobs] == [(JobState.COMPLETED, 1, None)] * 3
    assert made.effects == [f"effect {jobs[0].id}", "next", f"effect {jobs[2].id}"]


# --- many threads, and processes that die


def test_a_pool_of_threads_drains_two_hundred_jobs_and_gives_its_connections_back(made: Trial, app: App) -> None:
    def handler(tx: Any, job: Job[Any]) -> None:
        app.write(tx, f"{job.args['n']} of {job.attempt}")
        if job.args["n"] % 10 == 0 and job.attempt == 1:
            raise ValueError("every tenth fails at first")

    made.client.enqueue_many(None, [NewJob({"n": n}, kind="test") for n in range(200)])
    done = "SELECT count(*) FROM pgjobs.job WHERE state = 'completed'"
    with WorkerPool(made.client, {"test": handler}, queues={"default": 4}, backoff=constant(timedelta(0))):
        wait_until(lambda: made.query(done) == [(200,)], timeout=60)
        late = made.client.enqueue(None, {"n": 1001}, kind="test", delay=timedelta(milliseconds=50))
        wait_until(lambda: made.job(late).state == JobState.COMPLETED)
    assert sorted(made.effects) == sorted([f"{n} of {1 + (n % 10 == 0)}" for n in range(200)] + ["1001 of 1"])
    assert no_transaction_is_open(made)


def test_more_threads_than_connections_are_refused(source: str, fresh_database: str) -> None:
    settings: dict[str, dict[str, Any]] = {
        "psycopg": {},
        "sqlalchemy": {"pool_size": 2, "max_overflow": 1},
        "django": {"OPTIONS": {"pool": {"min_size": 1, "max_size": 3}}},
    }
    with trial(APPS[source](fresh_database, "pgjobs", **settings[source]), fresh_database) as made:
        pool = WorkerPool(made.client, {"test": lambda tx, job: None}, queues={"default": 9})
        with pytest.raises(PoolTooSmall, match=r"9 worker threads"):
            pool.start()
        if source != "psycopg":
            with WorkerPool(made.client, {"test": lambda tx, job: None}, queues={"default": 3}):
                job = made.enqueue()
                wait_until(lambda: made.job(job).state == JobState.COMPLETED)


WORKER = """
import os, signal, sys
from datetime import timedelta
import psycopg
from pgjobs import WorkerPool, constant
from tests.acceptance.frameworks import APPS

app = APPS[sys.argv[1]](sys.argv[2], "pgjobs")
beside = psycopg.connect(sys.argv[2], autocommit=True)

def handler(tx, job):
    app.write(tx, f"attempt {job.attempt}")
    app.run(tx, "SELECT 1")
    beside.execute("INSERT INTO start VALUES (%s, %s)", [job.attempt, os.getpid()])
    if job.attempt == 1:
        app.run(tx, "SELECT pg_sleep(60)")

WorkerPool(app.client, {"test": handler}, queues={"default": 1}, backoff=constant(timedelta(0))).run()
"""


def test_the_job_of_a_killed_worker_is_run_again_and_its_effect_is_there_once(made: Trial, source: str) -> None:
    made.query("CREATE TABLE start (attempt integer, pid integer)")
    job = made.enqueue()
    command = [sys.executable, "-c", WORKER, source, made.dsn]
    with subprocess.Popen(command, cwd=ROOT) as first:
        try:
            wait_until(lambda: made.query("SELECT attempt FROM start") == [(1,)], timeout=30)
        finally:
            first.kill()
    with subprocess.Popen(command, cwd=ROOT) as second:
        try:
            wait_until(lambda: made.job(job).state == JobState.COMPLETED, timeout=30)
            second.send_signal(signal.SIGTERM)
            assert second.wait(10) == 0
        finally:
            second.kill()
    assert made.query("SELECT * FROM start ORDER BY attempt") == [(1, first.pid), (2, second.pid)]
    assert made.effects == ["attempt 2"]
    done = made.job(job)
    assert done.attempt == 2
    assert [error.error.partition(":")[0] for error in done.errors] == ["worker vanished"]


@pytest.mark.parametrize("name", ["sqlalchemy", "django"])
def test_the_library_imports_no_framework(name: str) -> None:
    program = f"import pgjobs, sys; assert {name!r} not in sys.modules, sys.modules[{name!r}]"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def no_transaction_is_open(made: Trial) -> bool:
    """Whether all transactions of others on the database have ended, once the server has seen the last ones end."""
    found = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND state LIKE 'idle in transaction%'"
    )
    return bool(wait_until(lambda: made.query(found) == [(0,)]))
