"""What is SQLAlchemy's own: Sessions that flush, commit and roll back inside the job's transaction."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest
from sqlalchemy import create_engine, event, select, text
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool

from pgjobs import (
    Client,
    InvalidSetting,
    InvalidTransaction,
    Job,
    JobFilter,
    JobState,
    NewJob,
    WorkerPool,
)
from pgjobs.contrib.sqlalchemy import SQLAlchemySource
from tests.acceptance.frameworks import Effect, SQLAlchemyApp, Trial, backend, trial
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
NOTHING: dict[str, Any] = {}


@pytest.fixture
def app(fresh_database: str) -> SQLAlchemyApp:
    return SQLAlchemyApp(fresh_database, "pgjobs")


@pytest.fixture
def made(app: SQLAlchemyApp, fresh_database: str) -> Iterator[Trial]:
    with trial(app, fresh_database) as made:
        yield made


def write(session: Session, note: str) -> None:
    session.add(Effect(note=note))


def write_next(session: Session, job: Job[Any]) -> None:
    write(session, "next")


# --- enqueue


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("form", ["Session", "scoped_session", "Connection"])
def test_a_job_goes_the_way_of_its_transaction(made: Trial, app: SQLAlchemyApp, form: str, end: str) -> None:
    """Also when the enqueue is the first that SQLAlchemy hears of a transaction: else its commit() would do nothing."""
    tx: Any = {
        "Session": lambda: Session(app.engine),
        "scoped_session": lambda: scoped_session(sessionmaker(app.engine)),
        "Connection": app.engine.connect,
    }[form]()
    made.client.enqueue(tx, NOTHING, kind="test")
    assert made.jobs == []
    getattr(tx, end)()
    tx.close()
    assert made.jobs == (["test"] if end == "commit" else [])


def test_a_savepoint_of_the_session_takes_its_job_along(made: Trial, app: SQLAlchemyApp) -> None:
    with Session(app.engine) as session:
        made.client.enqueue(session, NOTHING, kind="kept")
        with session.begin_nested() as savepoint:
            made.client.enqueue(session, NOTHING, kind="dropped")
            savepoint.rollback()
        session.commit()
    assert made.jobs == ["kept"]


def test_an_enqueue_flushes_nothing(made: Trial, app: SQLAlchemyApp) -> None:
    with Session(app.engine) as session:
        write(session, "pending")
        made.client.enqueue(session, NOTHING, kind="test")
        assert session.new
        session.commit()
    assert (made.jobs, made.effects) == (["test"], ["pending"])


def test_a_session_goes_on_after_an_enqueue(made: Trial, app: SQLAlchemyApp) -> None:
    with Session(app.engine) as session:
        made.client.enqueue(session, NOTHING, kind="one-1")
        session.commit()
        made.client.enqueue(session, NOTHING, kind="two-2")
        session.rollback()
        made.client.enqueue(session, NOTHING, kind="three")
        session.commit()
    assert made.jobs == ["one-1", "three"]


def test_a_session_goes_on_after_a_dry_run(made: Trial, app: SQLAlchemyApp) -> None:
    made.client.enqueue(None, NOTHING, kind="before")
    with Session(app.engine) as session:
        assert len(made.client.delete_many(JobFilter.all(), session, dry_run=True).done) == 1
        write(session, "mine")
        made.client.enqueue(session, NOTHING, kind="mine")
        assert len(made.client.delete_many(JobFilter.all(), session, dry_run=True).done) == 2
        session.commit()
    assert (made.jobs, made.effects) == (["before", "mine"], ["mine"])


def test_another_driver_is_refused_with_what_to_write_instead() -> None:
    engine = create_engine("sqlite://")
    with pytest.raises(InvalidSetting, match=r"postgresql\+psycopg"):
        SQLAlchemySource(engine)
    with Session(engine) as session, pytest.raises(InvalidTransaction, match=r"sqlite3.*postgresql\+psycopg"):
        Client("postgresql://nowhere").enqueue(session, NOTHING, kind="test")
    engine.dispose()
    with pytest.raises(InvalidSetting, match="Engine"):
        SQLAlchemySource("postgresql://nowhere")  # type: ignore[arg-type]


def test_an_asynchronous_engine_is_refused_with_what_to_give() -> None:
    engine = create_async_engine("postgresql+psycopg://")
    for given in (engine, engine.sync_engine):
        with pytest.raises(InvalidSetting, match=r"engine must be synchronous.*create_engine.*aenqueue"):
            SQLAlchemySource(given)  # type: ignore[arg-type]


# --- the handler's Session


def test_what_is_pending_when_the_handler_returns_is_committed_with_the_job(made: Trial) -> None:
    def change(session: Session, job: Job[Any]) -> None:
        found = session.scalars(select(Effect)).one()
        found.note = "changed"
        write(session, "added")

    def delete(session: Session, job: Job[Any]) -> None:
        session.delete(session.scalars(select(Effect).where(Effect.note == "changed")).one())

    jobs = made.run(lambda session, job: write(session, "new"), change, delete)
    assert [job.state for job in jobs] == [JobState.COMPLETED] * 3
    assert made.effects == ["added"]


def test_a_flush_that_fails_at_the_end_is_the_attempts_failure_in_full(made: Trial) -> None:
    def handler(session: Session, job: Job[Any]) -> None:
        write(session, "first")
        session.flush()
        write(session, "first")

    job, _ = made.run(handler, write_next)
    assert job.state == JobState.RETRYABLE
    assert (job.last_error or "").startswith("(psycopg.errors.UniqueViolation)")
    assert made.effects == ["next"]


def test_what_listeners_add_while_it_is_flushed_is_flushed_too(made: Trial, app: SQLAlchemyApp) -> None:
    def after_flush(session: Session, flush: Any) -> None:
        if "after" not in session.info:
            session.info["after"] = True
            write(session, "after")

    def handler(session: Session, job: Job[Any]) -> None:
        event.listen(session, "before_commit", lambda session: write(session, "before the commit"))
        event.listen(session, "after_flush_postexec", after_flush)
        write(session, "by the handler")

    made.run(handler)
    assert sorted(made.effects) == ["after", "before the commit", "by the handler"]


@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
def test_a_commit_in_the_handler_commits_nothing_before_the_job(made: Trial, fails: bool) -> None:
    seen = []

    def handler(session: Session, job: Job[Any]) -> None:
        write(session, "one")
        session.commit()
        seen.append(made.effects)
        write(session, "two")
        session.commit()
        made.client.enqueue(session, NOTHING, kind="follow-up", queue="other")
        session.commit()
        write(session, "three")
        if fails:
            raise ValueError("no further")

    job, _ = made.run(handler, write_next)
    assert seen == [[]]
    assert job.state == (JobState.RETRYABLE if fails else JobState.COMPLETED)
    assert made.effects == (["next"] if fails else ["one", "two", "three", "next"])
    assert made.jobs.count("follow-up") == (0 if fails else 1)


def drop_by_rollback(session: Session) -> None:
    write(session, "dropped")
    session.flush()
    session.rollback()


def drop_by_close(session: Session) -> None:
    write(session, "dropped")
    session.flush()
    session.close()


def drop_by_error(session: Session) -> None:
    write(session, "kept")
    session.commit()
    write(session, "kept")
    with pytest.raises(IntegrityError):
        session.flush()
    session.rollback()


def drop_by_savepoint(session: Session) -> None:
    with session.begin_nested() as savepoint:
        write(session, "dropped")
        session.flush()
        savepoint.rollback()


def drop_by_begin(session: Session) -> None:
    with suppress(ZeroDivisionError), session.begin():
        write(session, "dropped")
        raise ZeroDivisionError


@pytest.mark.parametrize("drop", [drop_by_rollback, drop_by_close, drop_by_error, drop_by_savepoint, drop_by_begin])
def test_a_handler_may_drop_what_it_wrote_and_go_on(made: Trial, drop: Callable[[Session], None]) -> None:
    """The lock on the job and what follows are not touched by it."""

    def handler(session: Session, job: Job[Any]) -> None:
        drop(session)
        row = made.query("SELECT id FROM pgjobs.job WHERE id = %s FOR UPDATE SKIP LOCKED", job.id)
        assert row == [], "the row is still locked"
        write(session, "after it")

    job, _ = made.run(handler, write_next)
    assert (job.state, job.last_error) == (JobState.COMPLETED, None)
    assert [note for note in made.effects if note != "kept"] == ["after it", "next"]


def test_a_failed_flush_that_the_handler_swallows_is_no_success(made: Trial) -> None:
    """SQLAlchemy has rolled back to its savepoint then: the job would complete without the handler's writes."""

    def handler(session: Session, job: Job[Any]) -> None:
        write(session, "half done")
        session.flush()
        write(session, "half done")
        with pytest.raises(IntegrityError):
            session.flush()

    job, _ = made.run(handler, write_next)
    assert job.state == JobState.RETRYABLE
    assert "flush failed" in (job.last_error or "")
    assert made.effects == ["next"]


@pytest.mark.parametrize("end", ["commit", "rollback", "close", "invalidate", "detach"])
def test_a_handler_that_ends_the_connections_transaction_has_failed(made: Trial, end: str) -> None:
    def handler(session: Session, job: Job[Any]) -> None:
        session.execute(text("SELECT 1"))
        getattr(session.connection(), end)()

    job, following = made.run(handler, write_next)
    assert (job.state, job.error_count) == (JobState.RETRYABLE, 1)
    assert following.state == JobState.COMPLETED
    assert made.effects == ["next"]


def test_a_connection_that_a_handler_closes_is_not_given_to_others(made: Trial, app: SQLAlchemyApp) -> None:
    """It went back to the engine in the middle of the job, for any thread to take."""
    used = []

    def handler(session: Session, job: Job[Any]) -> None:
        used.append(backend(app, session))
        session.connection().close()
        with app.engine.connect() as taken:
            used.append(taken.scalar(text("SELECT pg_backend_pid()")))

    def following(session: Session, job: Job[Any]) -> None:
        used.append(backend(app, session))
        write(session, "next")

    job, _ = made.run(handler, following)
    assert job.state == JobState.RETRYABLE
    assert used[0] != used[1]
    assert used[0] == used[2], "the connection was kept"
    assert made.effects == ["next"]
    assert app.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def test_a_session_that_goes_to_another_connection_is_no_success(made: Trial, app: SQLAlchemyApp) -> None:
    class Elsewhere(Session):
        def get_bind(self, *args: Any, **kwargs: Any) -> Any:
            return app.engine

    client = Client(SQLAlchemySource(app.engine, session=Elsewhere))
    job = client.enqueue(None, NOTHING, kind="test")
    WorkerPool(client, {"test": lambda session, job: write(session, "elsewhere")}).work_one()
    client.close()
    assert "another connection than the job's" in (made.job(job).last_error or "")
    assert made.effects == []


def test_the_applications_sessionmaker_makes_the_session(made: Trial, app: SQLAlchemyApp) -> None:
    factory = sessionmaker(app.engine, expire_on_commit=False, info={"made by": "factory"}, twophase=True)
    client = Client(SQLAlchemySource(app.engine, session=factory))
    seen = []

    def handler(session: Session, job: Job[Any]) -> None:
        seen.append((session.info, session.expire_on_commit))
        write(session, "written")

    client.enqueue(None, NOTHING, kind="test")
    WorkerPool(client, {"test": handler}).work_one()
    client.close()
    assert seen == [({"made by": "factory"}, False)]
    assert made.effects == ["written"]


def test_a_session_that_cannot_be_made_is_the_attempts_failure(made: Trial, app: SQLAlchemyApp) -> None:
    made_before: list[Session] = []

    def factory(**settings: Any) -> Session:
        made_before.append(Session(**settings))
        if len(made_before) == 1:
            raise ValueError("not today")
        return made_before[-1]

    made.client = Client(SQLAlchemySource(app.engine, session=factory))
    first, second = made.run(write_next, write_next)
    made.client.close()
    assert (first.state, first.last_error) == (JobState.RETRYABLE, "not today")
    assert second.state == JobState.COMPLETED


@pytest.mark.parametrize("shared", ["of a scoped_session", "a scoped_session", "None"])
def test_a_session_that_is_not_of_the_job_is_refused_at_its_first_job(
    made: Trial, app: SQLAlchemyApp, shared: str
) -> None:
    """It was closed at the end of the job, and what the handler had written through it was not of the job."""
    called, scoped = [], scoped_session(sessionmaker(app.engine))
    other = {"of a scoped_session": scoped(), "a scoped_session": scoped, "None": None}[shared]
    write(scoped(), "by the caller")
    client = Client(SQLAlchemySource(app.engine, session=lambda **_: cast(Session, other)))
    job = client.enqueue(None, NOTHING, kind="test")
    WorkerPool(client, {"test": lambda session, job: called.append(job)}).work_one()
    client.close()
    assert made.job(job).state == JobState.RETRYABLE
    assert "it must make a new Session for each job" in (made.job(job).last_error or "")
    assert called == []
    assert len(scoped().new) == 1
    scoped.remove()
    assert app.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def test_a_cursor_of_the_server_works_in_the_handler(made: Trial) -> None:
    seen: list[int] = []

    def handler(session: Session, job: Job[Any]) -> None:
        rows = session.execute(text("SELECT generate_series(1, 50)"), execution_options={"yield_per": 7})
        seen.extend(rows.scalars())

    (job,) = made.run(handler)
    assert job.last_error is None
    assert seen == list(range(1, 51))


# --- its end


@pytest.mark.parametrize("fails", [False, True], ids=["commits", "fails at the commit"])
def test_listeners_hear_of_the_end_when_it_is_certain(made: Trial, fails: bool) -> None:
    made.query("CREATE TABLE parent (note text PRIMARY KEY)")
    made.query("ALTER TABLE effect ADD FOREIGN KEY (note) REFERENCES parent DEFERRABLE INITIALLY DEFERRED")
    if not fails:
        made.query("INSERT INTO parent VALUES ('written')")
    heard = []

    def handler(session: Session, job: Job[Any]) -> None:
        event.listen(session, "after_commit", lambda session: heard.append(("committed", made.effects)))
        event.listen(session, "after_rollback", lambda session: heard.append(("rolled back", made.effects)))
        write(session, "written")

    made.run(handler)
    assert heard == ([("rolled back", [])] if fails else [("committed", ["written"])])


def test_listeners_do_not_hear_twice_of_what_the_handler_committed_itself(made: Trial) -> None:
    heard: list[str] = []

    def handler(session: Session, job: Job[Any]) -> None:
        event.listen(session, "after_commit", lambda session: heard.append("committed"))
        write(session, "written")
        session.commit()

    made.run(handler)
    assert heard == ["committed"]


def test_a_listener_that_fails_after_the_commit_changes_nothing(made: Trial, caplog: pytest.LogCaptureFixture) -> None:
    def handler(session: Session, job: Job[Any]) -> None:
        event.listen(session, "after_commit", lambda session: 1 / 0)
        write(session, "written")

    with caplog.at_level(logging.ERROR):
        jobs = made.run(handler, write_next)
    assert [job.state for job in jobs] == [JobState.COMPLETED] * 2
    assert made.effects == ["written", "next"]
    assert "division by zero" in caplog.text


SMUGGLE = "INSERT INTO effect (note) VALUES ('smuggled in')"


def keep_session(session: Session) -> Callable[[], object]:
    return lambda: session.execute(text(SMUGGLE))


def keep_session_to_flush(session: Session) -> Callable[[], object]:
    def flush() -> None:
        session.add(Effect(note="smuggled in"))
        session.commit()

    return flush


def keep_connection(session: Session) -> Callable[[], object]:
    connection = session.connection()
    return lambda: connection.execute(text(SMUGGLE))


def keep_nested(session: Session) -> Callable[[], object]:
    return session.begin_nested().rollback


def keep_pooled(session: Session) -> Callable[[], object]:
    pooled = session.connection().connection
    return lambda: pooled.cursor().execute(SMUGGLE)


def keep_cursor(session: Session) -> Callable[[], object]:
    cursor = session.connection().connection.cursor()
    return lambda: cursor.execute(SMUGGLE)


def keep_rows(session: Session) -> Callable[[], object]:
    rows = session.execute(text("SELECT generate_series(1, 50)"), execution_options={"yield_per": 7})
    return rows.all


@pytest.mark.parametrize("thread", [False, True], ids=["same thread", "other thread"])
@pytest.mark.parametrize(
    "keep",
    [keep_session, keep_session_to_flush, keep_connection, keep_nested, keep_pooled, keep_cursor, keep_rows],
    ids=lambda keep: keep.__name__,
)
def test_what_is_kept_of_sqlalchemys_cannot_write_into_the_next_job(
    made: Trial, app: SQLAlchemyApp, keep: Callable[[Session], Callable[[], object]], *, thread: bool
) -> None:
    kept: list[Callable[[], object]] = []
    used, failures = [], []

    def first(session: Session, job: Job[Any]) -> None:
        used.append(backend(app, session))
        kept.append(keep(session))

    def smuggle() -> None:
        try:
            kept[0]()
        except (SQLAlchemyError, psycopg.Error) as error:
            failures.append(str(error))

    def following(session: Session, job: Job[Any]) -> None:
        used.append(backend(app, session))
        write(session, "before it")
        session.flush()
        if thread:
            other = threading.Thread(target=smuggle)
            other.start()
            other.join(20)
        else:
            smuggle()
        write(session, "after it")

    jobs = made.run(first, following)
    assert [job.last_error for job in jobs] == [None, None]
    assert used[0] == used[1], "the connection was kept"
    assert len(failures) == 1
    assert made.effects == ["before it", "after it"]


def test_a_listener_after_the_commit_writes_nothing_on_the_jobs_connection(made: Trial, app: SQLAlchemyApp) -> None:
    """It would be a transaction of its own, or belong to the next job."""
    failures: list[str] = []

    def handler(session: Session, job: Job[Any]) -> None:
        connection = session.connection()

        @event.listens_for(session, "after_commit")
        def smuggle(session: Session) -> None:
            try:
                connection.execute(text(SMUGGLE))
            except (SQLAlchemyError, psycopg.Error) as error:
                failures.append(str(error))

    job, following = made.run(handler, write_next)
    assert [job.last_error, following.last_error] == [None, None]
    assert len(failures) == 1
    assert made.effects == ["next"]


@pytest.mark.parametrize("level", ["SERIALIZABLE", "AUTOCOMMIT"])
def test_an_engine_whose_options_set_the_isolation_works(made: Trial, app: SQLAlchemyApp, level: Any) -> None:
    """SQLAlchemy sets it on each Connection that it makes, which psycopg refuses inside of a transaction."""
    engine = app.engine.execution_options(isolation_level=level)
    made.client = Client(SQLAlchemySource(engine))

    def fails(session: Session, job: Job[Any]) -> None:
        write(session, "dropped")
        session.flush()
        raise ArithmeticError

    jobs = made.run(write_next, fails, lambda session, job: write(session, "another"))
    made.client.close()
    assert [job.state for job in jobs] == [JobState.COMPLETED, JobState.RETRYABLE, JobState.COMPLETED]
    assert made.effects == ["next", "another"]
    with app.engine.connect() as connection:
        conn: Any = connection.connection.driver_connection
        assert not conn.autocommit
        assert conn.isolation_level is None


def test_listeners_of_the_engine_hear_of_each_jobs_connection(made: Trial, app: SQLAlchemyApp) -> None:
    heard: list[str] = []
    event.listen(app.engine, "engine_connect", lambda connection: heard.append("connect"))
    event.listen(app.engine, "before_cursor_execute", lambda *given: heard.append(given[2]))

    def handler(session: Session, job: Job[Any]) -> None:
        heard.append("handler")
        session.execute(text("SELECT 1"))

    made.run(handler, handler)
    assert heard[:1] == ["connect"]
    told = [each for each in heard if each in ("handler", "SELECT 1")]
    assert told == ["handler", "SELECT 1"] * 2


def test_an_object_that_is_kept_costs_no_connection(made: Trial, app: SQLAlchemyApp) -> None:
    kept: list[Effect] = []
    used = []

    def handler(session: Session, job: Job[Any]) -> None:
        used.append(backend(app, session))
        kept.append(Effect(note=f"effect {job.id}"))
        session.add(kept[-1])

    made.run(handler, handler)
    assert used[0] == used[1]


# --- the engine's connections


def test_what_the_application_sets_on_connect_is_there_for_every_job(made: Trial, app: SQLAlchemyApp) -> None:
    @event.listens_for(app.engine, "connect")
    def configure(conn: Any, record: Any) -> None:
        autocommit, conn.autocommit = conn.autocommit, True
        conn.execute("SET application_name = 'an application'")
        conn.autocommit = autocommit

    seen = []

    def handler(session: Session, job: Job[Any]) -> None:
        seen.append(session.scalar(text("SHOW application_name")))
        session.execute(text("SET application_name = 'soiled'"))

    made.run(handler, handler)
    assert seen == ["an application"] * 2


def test_a_connection_goes_back_to_the_engine_as_it_came(made: Trial, app: SQLAlchemyApp) -> None:
    made.run(write_next)
    with app.engine.connect() as connection:
        conn: Any = connection.connection.driver_connection
        assert not conn.autocommit
        connection.execute(text("INSERT INTO effect (note) VALUES ('not committed')"))
    assert made.effects == ["next"]
    assert app.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def test_an_idle_pool_holds_no_connection_of_the_engine(made: Trial, app: SQLAlchemyApp) -> None:
    with WorkerPool(made.client, {"test": write_next}, queues={"default": 3}):
        job = made.enqueue()
        wait_until(lambda: made.job(job).state == JobState.COMPLETED)
        wait_until(lambda: app.engine.pool.checkedout() == 0)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "settings", [{"poolclass": NullPool}, {"isolation_level": "SERIALIZABLE"}, {"pool_pre_ping": True}], ids=str
)
def test_engines_of_other_settings_work(fresh_database: str, settings: dict[str, Any]) -> None:
    app = SQLAlchemyApp(fresh_database, "pgjobs", **settings)
    with trial(app, fresh_database) as made:
        first, second = made.run(write_next, write_next)
        assert (first.state, second.state) == (JobState.COMPLETED, JobState.RETRYABLE)
        assert made.effects == ["next"]
        with WorkerPool(made.client, {"test": lambda session, job: write(session, "by a pool")}):
            job = made.enqueue()
            wait_until(lambda: made.job(job).state == JobState.COMPLETED)


def test_an_engine_without_a_free_connection_is_waited_for(
    fresh_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = SQLAlchemyApp(fresh_database, "pgjobs", pool_size=1, max_overflow=0, pool_timeout=0.1)
    with trial(app, fresh_database) as made:
        job = made.enqueue()
        connection = app.engine.connect()
        with WorkerPool(made.client, {"test": write_next}, queues={"default": 1}):
            wait_until(lambda: "QueuePool limit" in caplog.text)
            assert "Traceback" not in caplog.text, "it is taken for what it is"
            assert made.job(job).state == JobState.AVAILABLE
            connection.close()
            wait_until(lambda: made.job(job).state == JobState.COMPLETED)


# --- what it refuses, with the cure


class OfAsync(AsyncSession):
    pass


@pytest.mark.parametrize(
    ("session", "cure"),
    [
        (scoped_session(sessionmaker()), "give the sessionmaker that it was made of"),
        (async_sessionmaker(), "give a sessionmaker"),
        (AsyncSession, "give a sessionmaker"),
        (OfAsync, "give a sessionmaker"),
        (Session(), "must be a sessionmaker or a subclass of Session, not <sqlalchemy.orm.session.Session"),
        (None, "must be a sessionmaker or a subclass of Session, not None"),
    ],
    ids=["scoped_session", "async_sessionmaker", "AsyncSession", "its subclass", "a Session", "None"],
)
def test_what_makes_no_session_for_each_job_is_refused(app: SQLAlchemyApp, session: Any, cure: str) -> None:
    with pytest.raises(InvalidSetting, match=re.escape(cure)):
        SQLAlchemySource(app.engine, session=session)


def test_an_engine_for_async_code_is_refused() -> None:
    engine: Any = create_async_engine("postgresql+psycopg://nowhere.invalid/none")
    for refused in (engine, engine.sync_engine):
        with pytest.raises(
            InvalidSetting, match=r"synchronous.* not .*: give create_engine\(\.\.\.\) with the same URL"
        ):
            SQLAlchemySource(refused)


def test_a_url_in_place_of_an_engine_is_refused_without_its_password() -> None:
    url: Any = "postgresql+psycopg://me:passw0rd@nowhere.invalid/none"
    with pytest.raises(InvalidSetting, match=r"not a str: give create_engine") as refused:
        SQLAlchemySource(url)
    assert "passw0rd" not in str(refused.value)


# --- savepoints and AUTOCOMMIT


def test_savepoints_in_the_handler_keep_and_drop_what_is_in_them(made: Trial) -> None:
    def handler(session: Session, job: Job[Any]) -> None:
        with session.begin_nested():
            write(session, "kept")
            made.client.enqueue(session, NOTHING, kind="kept", queue="other")
            with suppress(IntegrityError), session.begin_nested():
                made.client.enqueue(session, NOTHING, kind="dropped", queue="other")
                write(session, "dropped")
                write(session, "dropped")
        write(session, "after them")

    job, _ = made.run(handler, write_next)
    assert (job.state, job.last_error) == (JobState.COMPLETED, None)
    assert made.effects == ["kept", "after them", "next"]
    assert made.jobs.count("kept") == 1
    assert made.jobs.count("dropped") == 0


def test_an_enqueue_commits_at_once_where_the_application_commits_each_statement(
    made: Trial, app: SQLAlchemyApp
) -> None:
    """As its own statements do: there is no transaction that the job could belong to."""
    engine = app.engine.execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("INSERT INTO effect (note) VALUES ('written')"))
        made.client.enqueue(connection, NOTHING, kind="test")
        assert (made.jobs, made.effects) == (["test"], ["written"])
        connection.rollback()
    assert (made.jobs, made.effects) == (["test"], ["written"])


# --- what its errors say

PASSWORD = "hunter2"  # not in the line that fails, which stands in the traceback


@pytest.mark.parametrize(
    ("engine", "client", "shows"),
    [({}, {}, True), ({"hide_parameters": True}, {}, False), ({}, {"error_details": False}, False)],
    ids=["by default", "hide_parameters", "error_details"],
)
def test_the_parameters_of_a_failed_statement_are_recorded_unless_they_are_hidden(
    fresh_database: str,
    caplog: pytest.LogCaptureFixture,
    engine: dict[str, Any],
    client: dict[str, Any],
    *,
    shows: bool,
) -> None:
    app = SQLAlchemyApp(fresh_database, "pgjobs", **engine)
    with trial(app, fresh_database) as made:
        made.client = Client(SQLAlchemySource(app.engine), **client)

        def handler(session: Session, job: Job[Any]) -> None:
            session.execute(text("SELECT 1 / (length(:password) - 7)"), {"password": PASSWORD})

        (job,) = made.run(handler)
        made.client.close()
        assert job.last_error is not None
        assert "division by zero" in job.last_error
        recorded = f"{job.errors}{caplog.text}"
        assert (PASSWORD in recorded) is shows


# --- many jobs, and processes that die


def test_a_thousand_jobs_take_no_more_connections_than_threads_and_leave_none(fresh_database: str) -> None:
    app = SQLAlchemyApp(fresh_database, "pgjobs", pool_size=8, max_overflow=0)
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    seen: list[int] = []

    def count() -> int:
        ((found,),) = on_server.query(others)
        assert isinstance(found, int)
        return found

    def is_drained() -> bool:
        seen.append(count())
        return bool(on_server.query("SELECT count(*) FROM pgjobs.job WHERE state = 'completed'") == [(1000,)])

    with trial(app, fresh_database) as on_server:
        on_server.client.enqueue_many(None, [NewJob(NOTHING, kind="test") for _ in range(1000)])
        handlers = {"test": lambda session, job: write(session, f"effect {job.id}")}
        with WorkerPool(on_server.client, handlers, queues={"default": 8}):
            wait_until(is_drained, timeout=60)
        assert len(set(on_server.effects)) == 1000
        assert app.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        on_server.client.close()
        app.engine.dispose()
        wait_until(lambda: count() == 0)
    assert max(seen) <= 8 + 3, "those of the engine; the listener, upkeep and an enqueue"


POISON = """
import os, sys
from datetime import timedelta
from pgjobs import WorkerPool
from tests.acceptance.frameworks import SQLAlchemyApp

app = SQLAlchemyApp(sys.argv[1], "pgjobs")

def handler(session, job):
    app.write(session, f"attempt {job.attempt}")
    session.flush()
    os._exit(9)

WorkerPool(app.client, {"test": handler}, queues={"default": 1}).run()
"""


def test_a_job_that_kills_its_process_each_time_is_discarded_without_an_effect(made: Trial) -> None:
    job = made.enqueue(max_attempts=2)
    for attempt in (1, 2):
        command = [sys.executable, "-c", POISON, made.dsn]
        assert subprocess.run(command, cwd=ROOT, check=False, timeout=60).returncode == 9
        assert made.job(job).attempt == attempt
    with WorkerPool(made.client, {"test": write_next}):
        wait_until(lambda: made.job(job).state == JobState.DISCARDED, timeout=30)
    assert [error.error.partition(":")[0] for error in made.job(job).errors] == ["worker vanished"] * 2
    assert made.effects == []
