"""What is Django's own: atomic() blocks, on_commit hooks and thread-local connections around the job's transaction."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import (
    DEFAULT_DB_ALIAS,
    IntegrityError,
    ProgrammingError,
    close_old_connections,
    connection,
    connections,
    transaction,
)
from django.db.backends.signals import connection_created
from django.db.transaction import TransactionManagementError

from pgjobs import Handler, InvalidSetting, InvalidTransaction, Job, JobState, WorkerPool, WorkerPoolError
from pgjobs.contrib.django import DjangoSource
from tests.acceptance.frameworks import DjangoApp, DjangoEffect, Trial, trial
from tests.waiting import wait_until

NOTHING: dict[str, Any] = {}
POOL = {"OPTIONS": {"pool": {"min_size": 1, "max_size": 4}}}


@pytest.fixture
def app(fresh_database: str) -> DjangoApp:
    return DjangoApp(fresh_database, "pgjobs")


@pytest.fixture
def made(app: DjangoApp, fresh_database: str) -> Iterator[Trial]:
    with trial(app, fresh_database) as made:
        yield made


@pytest.fixture(params=["connections", "pool"])
def either(request: pytest.FixtureRequest, fresh_database: str) -> Iterator[Trial]:
    """With a connection of each thread's own, and with Django's pool."""
    settings: dict[str, Any] = POOL if request.param == "pool" else {"CONN_MAX_AGE": None}
    with trial(DjangoApp(fresh_database, "pgjobs", **settings), fresh_database) as made:
        yield made


def write(note: str) -> None:
    DjangoEffect.objects.create(note=note)


def write_next(tx: Any, job: Job[Any]) -> None:
    write("next")


def state_of(wrapper: Any) -> dict[str, Any]:
    names = "autocommit in_atomic_block savepoint_ids atomic_blocks needs_rollback closed_in_transaction run_on_commit"
    return {name: getattr(wrapper, name) for name in names.split()}


OUTSIDE = {
    "autocommit": True,
    "in_atomic_block": False,
    "savepoint_ids": [],
    "atomic_blocks": [],
    "needs_rollback": False,
    "closed_in_transaction": False,
    "run_on_commit": [],
}

# --- enqueue

FORMS: dict[str, Callable[[], Any]] = {
    "alias": lambda: DEFAULT_DB_ALIAS,
    "proxy": lambda: connection,
    "connection": lambda: connections[DEFAULT_DB_ALIAS],
}


@pytest.mark.parametrize("form", FORMS)
def test_a_job_goes_the_way_of_its_atomic_block(either: Trial, form: str) -> None:
    tx = FORMS[form]()
    with transaction.atomic():
        either.client.enqueue(tx, NOTHING, kind="kept")
        assert either.jobs == []
        with suppress(KeyError), transaction.atomic():
            either.client.enqueue(tx, NOTHING, kind="dropped")
            raise KeyError
    with suppress(KeyError), transaction.atomic():
        either.client.enqueue(tx, NOTHING, kind="dropped-too")
        raise KeyError
    assert either.jobs == ["kept"]


def test_outside_of_atomic_a_job_is_committed_at_once(made: Trial) -> None:
    made.client.enqueue("default", NOTHING, kind="test")
    assert made.jobs == ["test"]
    assert state_of(connections["default"]) == OUTSIDE


def test_an_async_view_enqueues_in_the_function_that_it_gives_to_a_thread(made: Trial) -> None:
    def create(note: str, fails: bool) -> None:
        with transaction.atomic():
            write(note)
            made.client.enqueue("default", NOTHING, kind=note)
            if fails:
                raise ValueError(note)

    async def view() -> None:
        await sync_to_async(create)("kept", False)
        with pytest.raises(ValueError, match="dropped"):
            await sync_to_async(create)("dropped", True)
        with pytest.raises(InvalidTransaction, match="sync_to_async"):
            await made.client.aenqueue("default", NOTHING, kind="refused")  # type: ignore[call-overload]
        await sync_to_async(connections.close_all)()

    asyncio.run(view())
    assert (made.jobs, made.effects) == (["kept"], ["kept"])


def test_an_enqueue_leaves_a_block_that_is_to_be_rolled_back_alone(made: Trial) -> None:
    with transaction.atomic():
        transaction.set_rollback(True)
        with pytest.raises(TransactionManagementError):
            made.client.enqueue("default", NOTHING, kind="test")


def test_an_alias_that_there_is_not_is_refused(made: Trial) -> None:
    with pytest.raises(InvalidTransaction, match=r"'replica'.*'default'"):
        made.client.enqueue("replica", NOTHING, kind="test")
    with pytest.raises(InvalidSetting, match=r"'replica'.*'default'"):
        DjangoSource("replica")


def test_an_enqueue_connects_anew_where_django_would(fresh_database: str) -> None:
    with trial(DjangoApp(fresh_database, "pgjobs", CONN_MAX_AGE=None, CONN_HEALTH_CHECKS=True), fresh_database) as made:
        made.client.enqueue("default", NOTHING, kind="test-1")
        made.query("SELECT pg_terminate_backend(%s)", connections["default"].connection.info.backend_pid)
        close_old_connections()  # as at the end of a request: now the next statement checks its health
        made.client.enqueue("default", NOTHING, kind="test-2")
        assert made.jobs == ["test-1", "test-2"]


# --- the handler's block


def test_the_handler_is_given_the_connection_of_its_thread(made: Trial) -> None:
    seen = []

    def handler(tx: Any, job: Job[Any]) -> None:
        seen.append(tx is connections["default"])
        seen.append(tx.in_atomic_block)
        made.client.enqueue(tx, NOTHING, kind="follow-up", queue="other")
        raise KeyError

    made.run(handler)
    assert seen == [True, True]
    assert made.jobs == ["test-0"]


@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
def test_a_block_in_the_handler_is_a_savepoint(made: Trial, fails: bool) -> None:
    def handler(tx: Any, job: Job[Any]) -> None:
        with transaction.atomic():
            write("kept")
        with pytest.raises(IntegrityError), transaction.atomic():
            write("kept")
        with suppress(KeyError), transaction.atomic():
            write("dropped")
            raise KeyError
        write("after it")
        if fails:
            raise ValueError("no further")

    job, _ = made.run(handler, write_next)
    assert job.state == (JobState.RETRYABLE if fails else JobState.COMPLETED)
    assert made.effects == (["next"] if fails else ["kept", "after it", "next"])


def test_rows_can_be_locked_in_the_handler(made: Trial) -> None:
    write("to be locked")

    def handler(tx: Any, job: Job[Any]) -> None:
        effect = DjangoEffect.objects.select_for_update().get()
        assert made.query("SELECT * FROM effect FOR UPDATE SKIP LOCKED") == []
        effect.note = "changed"
        effect.save()

    (job,) = made.run(handler)
    assert job.last_error is None
    assert made.effects == ["changed"]


def test_a_cursor_of_the_server_works_in_the_handler(made: Trial) -> None:
    DjangoEffect.objects.bulk_create([DjangoEffect(note=f"{n:03}") for n in range(50)])
    seen: list[str] = []

    def handler(tx: Any, job: Job[Any]) -> None:
        seen.extend(effect.note for effect in DjangoEffect.objects.order_by("note").iterator(chunk_size=7))

    (job,) = made.run(handler)
    assert job.last_error is None
    assert seen == [f"{n:03}" for n in range(50)]


def mark_for_rollback() -> None:
    transaction.set_rollback(True)


def fail_without_a_savepoint() -> None:
    with suppress(IntegrityError), transaction.atomic(savepoint=False):
        write("half done")


def leave_a_block_open() -> None:
    transaction.atomic().__enter__()


@pytest.mark.parametrize("spoil", [mark_for_rollback, fail_without_a_savepoint, leave_a_block_open])
def test_what_django_would_not_commit_is_no_success(made: Trial, spoil: Callable[[], None]) -> None:
    def handler(tx: Any, job: Job[Any]) -> None:
        write("half done")
        spoil()

    job, following = made.run(handler, write_next)
    assert job.state == JobState.RETRYABLE
    assert "rollback" in (job.last_error or "") or "left an atomic() block open" in (job.last_error or "")
    assert following.state == JobState.COMPLETED
    assert made.effects == ["next"]


def commit() -> None:
    transaction.commit()


def roll_back() -> None:
    transaction.rollback()


def set_autocommit() -> None:
    transaction.set_autocommit(True)


def be_durable() -> None:
    with transaction.atomic(durable=True):
        pass


@pytest.mark.parametrize("forbidden", [commit, roll_back, set_autocommit, be_durable])
def test_what_is_forbidden_in_a_block_is_forbidden_in_a_handler(made: Trial, forbidden: Callable[[], None]) -> None:
    def handler(tx: Any, job: Job[Any]) -> None:
        write("half done")
        forbidden()

    job, _ = made.run(handler, write_next)
    assert job.state == JobState.RETRYABLE
    assert "atomic" in (job.last_error or "")
    assert made.effects == ["next"]


def close() -> None:
    connection.close()


@pytest.mark.parametrize("end", [close, close_old_connections])
def test_a_handler_that_closes_its_connection_has_failed(either: Trial, end: Callable[[], None]) -> None:
    taken: list[Any] = []

    def handler(tx: Any, job: Job[Any]) -> None:
        write("gone with it")
        before = tx.connection
        end()
        with pytest.raises(ProgrammingError):
            write("on another connection")
        if tx.pool is not None:  # somebody else has it now, and may keep it
            taken.append(tx.pool.getconn())
            assert taken[0] is before

    job, following = either.run(handler, write_next)
    assert (job.state, job.error_count) == (JobState.RETRYABLE, 1)
    assert following.state == JobState.COMPLETED
    assert either.effects == ["next"]
    for conn in taken:
        assert conn.execute("SELECT 1").fetchone() == (1,)
        connections["default"].pool.putconn(conn)


def test_a_block_that_a_detached_handler_leaves_open_is_closed(made: Trial) -> None:
    def handler(_: None, job: Job[Any]) -> None:
        transaction.atomic().__enter__()
        write("half done")

    job = made.enqueue()
    pool = WorkerPool(made.client, {"test": Handler(handler, detached=True), "next": write_next})
    assert pool.work_one()
    assert made.job(job).state == JobState.COMPLETED
    made.enqueue("next")
    assert pool.work_one()
    assert made.effects == ["next"]
    assert state_of(connections["default"]) == OUTSIDE


def test_a_transaction_that_a_detached_handler_leaves_open_is_rolled_back(made: Trial) -> None:
    def handler(_: None, job: Job[Any]) -> None:
        transaction.set_autocommit(False)
        write("half done")

    job = made.enqueue()
    pool = WorkerPool(made.client, {"test": Handler(handler, detached=True), "next": write_next})
    assert pool.work_one()
    assert made.job(job).state == JobState.COMPLETED
    made.enqueue("next")
    assert pool.work_one()
    assert made.effects == ["next"]
    assert state_of(connections["default"]) == OUTSIDE


# --- its end


@pytest.mark.parametrize("fails", ["no", "in the handler", "at the commit"])
def test_hooks_run_when_the_job_is_committed_and_only_then(made: Trial, fails: str) -> None:
    made.query("CREATE TABLE parent (note text PRIMARY KEY)")
    made.query("ALTER TABLE effect ADD FOREIGN KEY (note) REFERENCES parent DEFERRABLE INITIALLY DEFERRED")
    if fails != "at the commit":
        made.query("INSERT INTO parent VALUES ('written'), ('dropped'), ('by the hook')")
    heard: list[Any] = []

    def hook() -> None:
        heard.append((made.effects, made.query("SELECT state FROM pgjobs.job WHERE kind = 'test-0'")))
        with transaction.atomic():
            write("by the hook")

    def handler(tx: Any, job: Job[Any]) -> None:
        write("written")
        transaction.on_commit(hook)
        with suppress(KeyError), transaction.atomic():
            write("dropped")
            transaction.on_commit(lambda: heard.append("of a savepoint that was rolled back"))
            raise KeyError
        if fails == "in the handler":
            raise ValueError("no further")

    made.run(handler, lambda tx, job: None)
    assert heard == ([(["written"], [("completed",)])] if fails == "no" else [])
    assert made.effects == (["written", "by the hook"] if fails == "no" else [])


def test_a_hook_that_fails_changes_nothing(made: Trial, caplog: pytest.LogCaptureFixture) -> None:
    def handler(tx: Any, job: Job[Any]) -> None:
        write("written")
        transaction.on_commit(lambda: 1 / 0)

    with caplog.at_level(logging.ERROR):
        jobs = made.run(handler, write_next)
    assert [job.state for job in jobs] == [JobState.COMPLETED] * 2
    assert made.effects == ["written", "next"]
    assert "division by zero" in caplog.text


@pytest.mark.parametrize("ending", ["returns", "raises", "closes", "marks"])
def test_the_connection_is_as_before_when_the_job_is_over(either: Trial, ending: str) -> None:
    seen = []

    def handler(tx: Any, job: Job[Any]) -> None:
        write("written")
        transaction.on_commit(lambda: seen.append(state_of(tx)))
        match ending:
            case "raises":
                raise ValueError("no further")
            case "closes":
                tx.close()
            case "marks":
                transaction.set_rollback(True)

    either.run(handler)
    wrapper = connections["default"]
    assert seen == ([OUTSIDE] if ending == "returns" else [])
    assert state_of(wrapper) == OUTSIDE
    write("by the application")
    with transaction.atomic():
        write("and in a block")
    assert either.effects[-2:] == ["by the application", "and in a block"]
    assert wrapper.connection.autocommit


# --- the connections of the alias


@pytest.mark.parametrize(("age", "kept"), [(0, False), (None, True), (3600, True)])
def test_the_settings_decide_whether_an_idle_thread_keeps_its_connection(
    fresh_database: str, age: int | None, kept: bool
) -> None:
    with trial(DjangoApp(fresh_database, "pgjobs", CONN_MAX_AGE=age), fresh_database) as made:
        made.run(write_next)
        assert (connections["default"].connection is not None) == kept


def test_a_thread_that_goes_to_work_checks_the_health_of_its_connection_where_django_would(fresh_database: str) -> None:
    with trial(DjangoApp(fresh_database, "pgjobs", CONN_MAX_AGE=None, CONN_HEALTH_CHECKS=True), fresh_database) as made:
        made.run(write_next)
        made.query("SELECT pg_terminate_backend(%s)", connections["default"].connection.info.backend_pid)
        (job,) = made.run(lambda tx, job: write("on a new one"))
        assert job.state == JobState.COMPLETED


def test_a_connection_that_is_too_old_is_changed_between_two_jobs(
    fresh_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []

    def handler(tx: Any, job: Job[Any]) -> None:
        used.append(tx.connection.info.backend_pid)
        if len(used) == 2:
            tx.close_at = 0

    with trial(DjangoApp(fresh_database, "pgjobs", CONN_MAX_AGE=3600), fresh_database) as made:
        made.run(*[handler] * 3)
    assert used[0] == used[1] != used[2]


def test_the_time_zone_and_what_listeners_set_are_there_for_every_job(either: Trial) -> None:
    def configure(connection: Any, **kwargs: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET application_name = 'an application'")

    seen = []

    def handler(tx: Any, job: Job[Any]) -> None:
        with tx.cursor() as cursor:
            for name in ("timezone", "application_name"):
                cursor.execute(f"SHOW {name}")
                seen.append(cursor.fetchone()[0])
            cursor.execute("SET TIME ZONE 'Pacific/Chatham'")
            cursor.execute("SET application_name = 'soiled'")

    name = connections["default"].settings_dict["NAME"]
    either.query(f"ALTER DATABASE {name} SET timezone = 'Asia/Kathmandu'")
    connection_created.connect(configure)
    try:
        connections["default"].close()
        either.run(handler, handler, handler)
    finally:
        connection_created.disconnect(configure)
    assert seen == ["UTC", "an application"] * 3


def test_a_listener_that_discards_what_is_prepared_costs_no_handler_another_start(either: Trial) -> None:
    """The claim was prepared anew, and the finish of the next job was taken for prepared still."""
    starts: list[int] = []

    def discard(connection: Any, **_: Any) -> None:
        connection.connection.execute("DISCARD ALL")

    def handler(tx: Any, job: Job[Any]) -> None:
        starts.append(job.id)
        DjangoEffect.objects.create(note=str(job.id))
        if job.id % 2:
            with tx.cursor() as cursor:
                cursor.execute("DEALLOCATE ALL")

    connection_created.connect(discard)
    try:
        connections["default"].close()
        jobs = either.run(*[handler] * 8)
    finally:
        connection_created.disconnect(discard)
    assert [(job.state, job.attempt) for job in jobs] == [(JobState.COMPLETED, 1)] * 8
    assert starts == [job.id for job in jobs]


def test_a_handlers_other_connections_are_looked_after_as_between_requests(made: Trial) -> None:
    """With CONN_MAX_AGE = 0 they are closed; they would else be open for as long as the thread lives."""
    connections.settings["other"] = {**connections.settings["default"]}
    try:
        seen = []

        def handler(tx: Any, job: Job[Any]) -> None:
            with connections["other"].cursor() as cursor:
                cursor.execute("SELECT 1")
            seen.append(connections["other"].connection is not None)

        made.run(handler, lambda tx, job: seen.append(connections["other"].connection is not None))
        assert seen == [True, False]
    finally:
        connections["other"].close()
        del connections["other"]
        del connections.settings["other"]


def test_a_block_of_another_alias_does_not_outlive_its_job(made: Trial, caplog: pytest.LogCaptureFixture) -> None:
    connections.settings["other"] = {**connections.settings["default"]}
    other = connections["other"]

    def handler(tx: Any, job: Job[Any]) -> None:
        transaction.atomic(using="other").__enter__()
        with other.cursor() as cursor:
            cursor.execute("INSERT INTO effect (note) VALUES ('half done')")

    try:
        made.run(handler)
        assert state_of(other) == OUTSIDE
        assert "left an atomic() block open on 'other'" in caplog.text
        with transaction.atomic(using="other"):  # of the caller, around a job
            made.run(lambda tx, job: write("the job's"))
            assert other.in_atomic_block
    finally:
        other.close()
        del connections["other"]
        del connections.settings["other"]
    assert made.effects == ["the job's"]


def test_a_job_inside_an_open_transaction_of_the_application_is_refused(made: Trial) -> None:
    pool = WorkerPool(made.client, {"test": write_next})
    transaction.set_autocommit(False)
    try:
        write("of the application")
        with pytest.raises(WorkerPoolError, match="transaction open"):
            pool.work_one()
        transaction.commit()
    finally:
        transaction.set_autocommit(True)
    assert made.effects == ["of the application"]


def test_a_job_inside_a_block_of_the_application_is_refused(made: Trial) -> None:
    job = made.enqueue()
    pool = WorkerPool(made.client, {"test": write_next})
    with transaction.atomic():
        write("of the application")
        with pytest.raises(WorkerPoolError, match="atomic"):
            pool.work_one()
        write("and goes on")
    assert made.job(job).state == JobState.AVAILABLE
    assert made.effects == ["of the application", "and goes on"]


def test_settings_without_autocommit_work(fresh_database: str) -> None:
    with trial(DjangoApp(fresh_database, "pgjobs", AUTOCOMMIT=False, CONN_MAX_AGE=None), fresh_database) as made:
        jobs = made.run(write_next)
        assert [job.state for job in jobs] == [JobState.COMPLETED]
        assert connections["default"].connection is not None, "it was kept"
        assert not connections["default"].get_autocommit()
        made.client.enqueue("default", NOTHING, kind="follow-up")
        assert "follow-up" not in made.jobs
        transaction.commit()
        assert "follow-up" in made.jobs


def test_djangos_pool_gets_its_connections_back(fresh_database: str) -> None:
    with trial(DjangoApp(fresh_database, "pgjobs", **POOL), fresh_database) as made:
        pool = connections["default"].pool
        with WorkerPool(made.client, {"test": write_next}, queues={"default": 4}):
            job = made.enqueue()
            wait_until(lambda: made.job(job).state == JobState.COMPLETED)
            wait_until(lambda: pool.get_stats()["pool_available"] == pool.get_stats()["pool_size"])
        assert made.effects == ["next"]


def test_another_thread_cannot_use_the_connection_of_a_handler(made: Trial) -> None:
    failures: list[str] = []

    def smuggle(wrapper: Any) -> None:
        try:
            with wrapper.cursor() as cursor:
                cursor.execute("INSERT INTO effect (note) VALUES ('smuggled in')")
        except Exception as error:
            failures.append(str(error))

    def handler(tx: Any, job: Job[Any]) -> None:
        thread = threading.Thread(target=smuggle, args=(tx,))
        thread.start()
        thread.join()

    made.run(handler)
    assert len(failures) == 1
    assert "thread" in failures[0]
    assert made.effects == []
