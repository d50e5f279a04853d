"""How apps and the extension for Flask come together: settings, factories, two apps, apps without Flask-SQLAlchemy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from flask import Flask, current_app, g
from flask_sqlalchemy import SQLAlchemy
from psycopg_pool import ConnectionPool

from pgjobs import Handler, InvalidSetting, Job, JobState, QueueSettings, Schedule, WorkerPool, WorkMap, constant
from pgjobs.contrib.flask import Pgjobs
from pgjobs.contrib.flask.settings import set_defaults
from pgjobs.db.cursors import AnyConnection
from tests.acceptance.flask_shop import Note, Shop, add, db, make_app, plain_shop, shop, tables, url
from tests.conftest import new_database
from tests.samples import Thing, nothing
from tests.waiting import wait_until

NOWHERE = "postgresql://nowhere/app"


# --- without Flask-SQLAlchemy


@pytest.fixture
def plain(fresh_database: str) -> Iterator[Shop]:
    with plain_shop(fresh_database) as made:
        yield made


def write(tx: AnyConnection, text: str) -> None:
    tx.execute("INSERT INTO effect (note, app) VALUES (%s, %s)", [text, current_app.name])


def write_note(tx: AnyConnection, job: Job[Note]) -> None:
    write(tx, job.args.text)


def test_a_handler_gets_a_connection_and_an_app_context(plain: Shop) -> None:
    @plain.jobs.handles(Note)
    def handler(tx: AnyConnection, job: Job[Note]) -> None:
        write(tx, job.args.text)
        plain.jobs.enqueue(Thing(1))
        assert len(plain.stored) == 1, "it belongs to the job's transaction"

    plain.jobs.handles(Thing)(nothing)
    assert plain.run().state == JobState.COMPLETED
    assert plain.query("SELECT note, app FROM effect") == [("written", "shop")]
    assert plain.stored == [("note", "completed"), ("thing", "available")]


def test_a_handler_that_raises_leaves_no_write_and_no_job(plain: Shop) -> None:
    @plain.jobs.handles(Note)
    def handler(tx: AnyConnection, job: Job[Note]) -> None:
        write(tx, job.args.text)
        plain.jobs.enqueue(Note("next"))
        raise ValueError("no further")

    job = plain.run()
    assert [error.error for error in job.errors] == ["no further"]
    assert (plain.effects, plain.stored) == ([], [("note", "retryable")])


def test_a_job_outside_of_a_handler_has_a_transaction_of_its_own_or_the_callers(plain: Shop) -> None:
    with plain.app.app_context():
        plain.jobs.enqueue(Note())
        assert len(plain.stored) == 1
        with plain.jobs.client.pool.connection() as tx:
            write(tx, "with the job")
            plain.jobs.enqueue(Note(), tx=tx)
            tx.rollback()
        assert (len(plain.stored), plain.effects) == (1, [])
        with plain.jobs.client.pool.connection() as tx:
            write(tx, "with the jobs")
            plain.jobs.enqueue_many([Note(), Note()], tx=tx)
        assert (len(plain.stored), plain.effects) == (3, ["with the jobs"])


def test_a_pool_of_the_application_may_be_the_database(fresh_database: str) -> None:
    with (
        ConnectionPool(fresh_database, min_size=0, max_size=4, open=True) as pool,
        plain_shop(fresh_database, PGJOBS_DSN=pool) as made,
    ):
        made.jobs.handles(Note)(write_note)
        assert made.run().state == JobState.COMPLETED
        assert made.client.pool is pool


def test_jobs_of_one_batch_have_an_app_context_each(plain: Shop) -> None:
    seen: list[Any] = []

    @plain.jobs.handles(Note)
    def handler(tx: AnyConnection, job: Job[Note]) -> None:
        seen.append(g.get("of_another"))
        g.of_another = True
        write(tx, job.args.text)

    for n in range(6):
        plain.enqueue(Note(f"note {n}"))
    with plain.pool(queues={"default": QueueSettings(threads=1, batch_size=5)}):
        wait_until(lambda: plain.stored == [("note", "completed")] * 6)
    assert seen == [None] * 6
    assert len(plain.effects) == 6


def test_jobs_in_another_database_than_that_of_flask_sqlalchemy(fresh_database: str) -> None:
    """PGJOBS_DSN decides: handlers get connections, also if the models are in a database of another kind."""
    app = make_app(SQLALCHEMY_DATABASE_URI="sqlite://", PGJOBS_DSN=fresh_database)
    db.init_app(app)
    jobs = Pgjobs(app)
    jobs.handles(Note)(write_note)
    with tables(fresh_database) as look, app.app_context():
        jobs.enqueue(Note())
        assert jobs.worker_pool().work_one()
        jobs.client.close()
        db.engine.dispose()
        assert look.execute("SELECT state::text FROM pgjobs.job").fetchall() == [("completed",)]


# --- apps


def test_two_apps_have_the_same_extension_and_a_database_each(server_dsn: str, fresh_database: str) -> None:
    jobs = Pgjobs()
    with (
        new_database(server_dsn) as other_database,
        shop(fresh_database, name="one", jobs=jobs) as one,
        shop(other_database, name="two", jobs=jobs) as two,
    ):
        jobs.handles(Note)(lambda session, job: add(f"{current_app.name} {job.args.text}"))
        for made in (one, two):
            with made.app.app_context():
                jobs.enqueue(Note(f"of {made.app.name}"))
                db.session.commit()
        assert one.client is not two.client
        with one.pool(), two.pool():
            wait_until(lambda: one.effects and two.effects)
        assert (one.effects, two.effects) == (["one of one"], ["two of two"])
        assert one.query("SELECT app FROM effect") == [("one",)]


def test_a_handler_may_push_the_context_of_another_app(server_dsn: str, fresh_database: str) -> None:
    """There, db.session is of that app, and works apart, also after a remove()."""
    jobs = Pgjobs()
    with (
        new_database(server_dsn) as another,
        shop(fresh_database, name="first", jobs=jobs) as first,
        shop(another, name="second", jobs=jobs) as second,
    ):

        @jobs.handles(Note)
        def handler(tx: Any, job: Job[Note]) -> None:
            with second.app.app_context():
                for note in ("before", "after"):
                    add(note)
                    db.session.commit()
                    db.session.remove()
            add("of the job")

        assert first.run().state == JobState.COMPLETED
        assert (first.effects, second.effects) == (["of the job"], ["before", "after"])


def test_a_factory_may_make_the_app_again(fresh_database: str) -> None:
    """As each test of an application does."""
    jobs = Pgjobs()
    jobs.handles(Note)(lambda session, job: add("written"))
    with shop(fresh_database, jobs=jobs) as made:
        made.run()
    app = make_app(SQLALCHEMY_DATABASE_URI=url(fresh_database))
    db.init_app(app)
    jobs.init_app(app, db)
    with app.app_context():
        assert jobs.client.count().total == 1
        jobs.client.close()
        db.engine.dispose()


def test_the_client_is_made_once_and_at_its_first_use(fresh_database: str) -> None:
    app = make_app(PGJOBS_DSN=NOWHERE)
    jobs = Pgjobs(app)
    app.config["PGJOBS_DSN"] = fresh_database
    app.config["PGJOBS_SCHEMA"] = "elsewhere"
    with app.app_context():
        client = jobs.client
        assert jobs.client is client
        assert client.schema == "elsewhere"
        assert app.extensions["pgjobs"] is jobs
        client.migrate()
        client.close()


def test_without_an_app_context_there_is_no_client() -> None:
    jobs = Pgjobs(make_app(PGJOBS_DSN=NOWHERE))
    for act in (
        lambda: jobs.client,
        lambda: jobs.enqueue(Note()),
        lambda: jobs.enqueue_many([Note()]),
        jobs.worker_pool,
    ):
        with pytest.raises(RuntimeError, match="outside of application context"):
            act()


def test_an_app_of_another_extension_is_refused() -> None:
    jobs, other = Pgjobs(), Pgjobs(make_app(PGJOBS_DSN=NOWHERE))
    assert other is not jobs
    with (
        make_app("empty").app_context(),
        pytest.raises(InvalidSetting, match="the app 'empty' has no Pgjobs: call init_app"),
    ):
        _ = jobs.client
    app = make_app(PGJOBS_DSN=NOWHERE)
    other.init_app(app)
    with app.app_context(), pytest.raises(InvalidSetting, match="the app 'shop' has another Pgjobs"):
        _ = jobs.client


def test_a_second_init_of_an_app_is_refused() -> None:
    app = make_app(PGJOBS_DSN=NOWHERE)
    jobs = Pgjobs(app)
    with pytest.raises(InvalidSetting, match="has a Pgjobs already: call init_app once for each app"):
        jobs.init_app(app)
    with pytest.raises(InvalidSetting, match="has a Pgjobs already"):
        Pgjobs(app)


# --- the database


def with_both() -> None:
    app = make_app(SQLALCHEMY_DATABASE_URI="postgresql+psycopg://nowhere", PGJOBS_DSN=NOWHERE)
    db.init_app(app)
    use(Pgjobs(app, db), app)


def with_neither() -> None:
    app = make_app()
    use(Pgjobs(app), app)


def with_a_db_of_another_app() -> None:
    app = make_app(SQLALCHEMY_DATABASE_URI="postgresql+psycopg://nowhere")
    use(Pgjobs(app, db), app)


def with_another_database() -> None:
    app = make_app(SQLALCHEMY_DATABASE_URI="sqlite://")
    db.init_app(app)
    try:
        use(Pgjobs(app, db), app)
    finally:
        with app.app_context():
            db.engine.dispose()


def with_binds_alone() -> None:
    app = make_app(SQLALCHEMY_BINDS={"other": "postgresql+psycopg://nowhere"})
    db.init_app(app)
    use(Pgjobs(app, db), app)


def with_no_db() -> None:
    Pgjobs(make_app(), SQLAlchemy)  # type: ignore[arg-type]


def with_an_extension_of_the_same_name() -> None:
    app = make_app()
    app.extensions["sqlalchemy"] = object()
    use(Pgjobs(app), app)


def with_no_app() -> None:
    Pgjobs(db)  # type: ignore[arg-type]


def use(jobs: Pgjobs, app: Flask) -> None:
    with app.app_context():
        jobs.enqueue(Note())


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (with_both, "PGJOBS_DSN and db both name a database: .*leave out PGJOBS_DSN"),
        (with_neither, "have no database: set PGJOBS_DSN to a connection string, or use Flask-SQLAlchemy"),
        (with_a_db_of_another_app, r"the db of Pgjobs does not belong to <Flask 'shop'>: call db.init_app\(app\)"),
        (with_another_database, r"with postgresql\+psycopg://, not sqlite://, or set PGJOBS_DSN"),
        (with_binds_alone, "set SQLALCHEMY_DATABASE_URI"),
        (with_no_db, "db must be the SQLAlchemy of flask_sqlalchemy, not <class"),
        (with_an_extension_of_the_same_name, "not <object object.*: without it, set PGJOBS_DSN"),
        (with_no_app, "app must be a Flask, not <SQLAlchemy>"),
    ],
)
def test_a_wrong_database_is_refused_with_what_to_do(made: Callable[[], None], message: str) -> None:
    with pytest.raises(InvalidSetting, match=message):
        made()


def test_the_database_of_flask_sqlalchemy_is_found(fresh_database: str) -> None:
    """Whatever the order of the two: without it a job would not be part of the request's transaction."""
    app, jobs = make_app(SQLALCHEMY_DATABASE_URI=url(fresh_database)), Pgjobs()
    jobs.init_app(app)
    db.init_app(app)
    with tables(fresh_database) as look, app.app_context():
        jobs.enqueue(Note())
        db.session.rollback()
        assert look.execute("SELECT count(*) FROM pgjobs.job").fetchone() == (0,)
        jobs.handles(Note)(lambda session, job: add("written"))
        jobs.enqueue(Note())
        db.session.commit()
        assert jobs.worker_pool().work_one()
        assert look.execute("SELECT note FROM effect").fetchall() == [("written",)]
        jobs.client.close()
        db.engine.dispose()


# --- settings


def test_the_settings_are_those_of_client_and_worker_pool() -> None:
    def middleware(tx: Any, job: Job[Any], run: Callable[[], Any]) -> object:
        return run()

    schedule = Schedule("nightly", "@daily", Note())
    app = make_app(
        PGJOBS_DSN=NOWHERE,
        PGJOBS_SCHEMA="elsewhere",
        PGJOBS_ID="web-1",
        PGJOBS_QUEUES={"default": 3, "mail": 1},
        PGJOBS_STOP_TIMEOUT=90,
        PGJOBS_CRON=[schedule],
        PGJOBS_MIDDLEWARE=[middleware],
        PGJOBS_NAME="shop",
        PGJOBS_BACKOFF=constant(timedelta(seconds=1)),
    )
    jobs = Pgjobs(app)
    jobs.handles(Note)(nothing)
    with app.app_context():
        assert (jobs.client.schema, jobs.client.id) == ("elsewhere", "web-1")
        pool = jobs.worker_pool()
        assert (pool.threads, pool.stop_timeout, pool.name) == (4, timedelta(seconds=90), "shop")
        assert list(pool.schedules.by_name) == ["nightly"]
        assert list(pool.work_map) == ["note"]
        pool = jobs.worker_pool(queues={"mail": 7}, stop_timeout=None)
        assert (pool.threads, pool.stop_timeout, pool.name) == (7, None, "shop")


def test_settings_that_are_missing_get_the_defaults() -> None:
    config: dict[str, Any] = {"PGJOBS_SCHEMA": "elsewhere"}
    set_defaults(config)
    assert config["PGJOBS_SCHEMA"] == "elsewhere"
    assert config["PGJOBS_DSN"] is None
    assert config["PGJOBS_STOP_TIMEOUT"] == timedelta(seconds=25)
    assert config["PGJOBS_ENQUEUE_MIDDLEWARE"] == () == config["PGJOBS_MIDDLEWARE"]


def use_with(app: Flask, config: dict[str, Any]) -> None:
    jobs = Pgjobs(app)
    app.config.update(config)
    with app.app_context():
        _ = jobs.client


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_an_unknown_setting_is_refused_with_the_one_that_is_meant(late: bool) -> None:
    wrong: dict[str, Any] = {"PGJOBS_QUEUE_S": {"default": 1}}
    app = make_app(PGJOBS_DSN=NOWHERE, **({} if late else wrong))
    with pytest.raises(InvalidSetting, match="there is no setting PGJOBS_QUEUE_S: is PGJOBS_QUEUES meant"):
        use_with(app, wrong)
    with pytest.raises(InvalidSetting, match="no setting PGJOBS_XYZW: they are PGJOBS_DSN, PGJOBS_SCHEMA, "):
        Pgjobs(make_app(PGJOBS_XYZW=1))


def test_a_wrong_value_is_refused_when_the_pool_is_made() -> None:
    app = make_app(PGJOBS_DSN=NOWHERE, PGJOBS_STOP_TIMEOUT="soon")
    jobs = Pgjobs(app)
    jobs.handles(Note)(nothing)
    with app.app_context(), pytest.raises(InvalidSetting, match="stop_timeout"):
        jobs.worker_pool()


# --- handlers


def test_handlers_of_a_work_map_run_in_the_app_context_inside_their_own_middleware(fresh_database: str) -> None:
    order: list[str] = []

    def middleware(tx: Any, job: Job[Any], run: Callable[[], Any]) -> object:
        order.append(f"middleware in {current_app.name}")
        return run()

    work_map = WorkMap({Note: Handler(lambda session, job: order.append("handler"), middleware=[middleware])})
    with shop(fresh_database, jobs=Pgjobs(work_map=work_map)) as made:
        made.run()
        work_map[Thing] = lambda session, job: add("later")
        assert made.run(Thing()).state == JobState.COMPLETED
    assert order == ["middleware in shop", "handler"]


def test_a_pool_that_the_application_makes_runs_handlers_in_the_app_context(fresh_database: str) -> None:
    with shop(fresh_database) as made:
        made.jobs.handles(Note)(lambda session, job: add("written"))
        made.enqueue()
        with made.app.app_context():
            pool = WorkerPool(made.jobs.client, made.jobs.work_map)
        assert pool.work_one()
        assert made.effects == ["written"]


def test_args_come_back_in_their_class(plain: Shop) -> None:
    plain.jobs.handles(Note)(nothing)
    job = plain.enqueue(Note("text"))
    assert plain.job(job).args == Note("text")


def test_a_connection_that_a_handler_leaks_is_dead(plain: Shop) -> None:
    leaked: list[AnyConnection] = []

    @plain.jobs.handles(Note)
    def handler(tx: AnyConnection, job: Job[Note]) -> None:
        leaked.append(tx)

    plain.run()
    with pytest.raises(psycopg.Error):
        leaked[0].execute("SELECT 1")
