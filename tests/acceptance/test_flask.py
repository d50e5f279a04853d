"""The extension for Flask with Flask-SQLAlchemy: `db.session` is the transaction, in requests and in handlers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from datetime import timedelta
from typing import Any

import pytest
from flask import current_app, g
from flask_sqlalchemy import SQLAlchemy
from flask_sqlalchemy.session import Session as TheirSession
from flask_sqlalchemy.track_modifications import before_models_committed, models_committed
from sqlalchemy import event, select, text
from sqlalchemy.orm import Mapped, Session, mapped_column

from pgjobs import InvalidTransaction, Job, JobState, NewJob, PoolTooSmall, UnknownKind
from pgjobs.contrib.flask import Pgjobs
from tests.acceptance.flask_shop import Effect, Note, Shop, add, db, make_app, shop, tables, url
from tests.samples import Thing
from tests.waiting import wait_until


@pytest.fixture
def made(fresh_database: str) -> Iterator[Shop]:
    with shop(fresh_database) as made:
        yield made


def handle(made: Shop, function: Callable[[Session, Job[Note]], object]) -> None:
    made.jobs.handles(Note)(function)


# --- enqueue


@pytest.mark.parametrize("end", ["commit", "rollback", "nothing", "error"])
@pytest.mark.parametrize("place", ["first", "later"])
def test_a_job_goes_the_way_of_the_request(made: Shop, place: str, end: str) -> None:
    handle(made, lambda session, job: None)

    @made.app.post("/")
    def view() -> str:
        if place == "later":
            add("beside it")
            db.session.flush()
        made.jobs.enqueue(Note(), priority=3)
        add("after it")
        assert made.stored == []
        if end == "error":
            raise KeyError
        if end != "nothing":
            getattr(db.session, end)()
        return "done"

    made.app.config["PROPAGATE_EXCEPTIONS"] = False
    answer = made.app.test_client().post("/")
    assert answer.status_code == (500 if end == "error" else 200)
    committed = end == "commit"
    assert made.stored == ([("note", "available")] if committed else [])
    assert "after it" in made.effects if committed else made.effects == []


def test_many_jobs_go_the_way_of_the_request(made: Shop) -> None:
    with made.app.app_context():
        jobs = made.jobs.enqueue_many([Note("a"), NewJob(Thing(1), priority=2)], queue="mail")
        assert [job.kind for job in jobs] == ["note", "thing"]
        assert made.jobs.enqueue_many([Note("b")], returning=False) == 1
        assert made.stored == []
        db.session.commit()
    assert made.stored == [("note", "available"), ("thing", "available"), ("note", "available")]


def test_a_job_may_have_another_transaction(made: Shop) -> None:
    with made.app.app_context():
        add("of the request")
        made.jobs.enqueue(Note(), tx=None)
        assert made.stored == [("note", "available")], "it has a transaction of its own"
        with Session(db.engine) as other:
            made.jobs.enqueue(Thing(), tx=other)
            assert len(made.stored) == 1
            other.commit()
        assert made.stored == [("note", "available"), ("thing", "available")]
    assert made.effects == []


def test_a_kind_without_a_handler_is_refused_at_enqueue(made: Shop) -> None:
    handle(made, lambda session, job: None)
    with made.app.app_context():
        with pytest.raises(UnknownKind, match="thing"):
            made.jobs.enqueue(Thing())
        made.jobs.handles(Thing)(lambda session, job: None)  # a handler may come later
        made.jobs.enqueue(Thing())
        db.session.commit()
    assert made.stored == [("thing", "available")]


def test_kinds_that_are_left_to_other_apps_may_be_enqueued(fresh_database: str) -> None:
    with shop(fresh_database, PGJOBS_UNKNOWN_KINDS="leave") as made:
        handle(made, lambda session, job: None)
        with made.app.app_context():
            made.jobs.enqueue(Thing())
            made.jobs.enqueue({"a": 1}, kind="by.name")
            db.session.commit()
        assert [kind for kind, _ in made.stored] == ["thing", "by.name"]


# --- the handler's session


def test_in_a_handler_db_session_is_the_session_of_the_job(made: Shop) -> None:
    seen: list[Any] = []

    def handler(session: Session, job: Job[Note]) -> None:
        seen.append((db.session() is session, current_app.name, job.args.text))
        add(job.args.text)
        db.session.flush()
        seen.append(made.effects)
        add("pending")

    handle(made, handler)
    assert made.run(Note("flushed")).state == JobState.COMPLETED
    assert seen == [(True, "shop", "flushed"), []]
    assert made.effects == ["flushed", "pending"]
    assert made.query("SELECT DISTINCT app FROM effect") == [("shop",)], "defaults are made in the app context"


def test_a_handler_that_raises_leaves_one_error_and_no_write(made: Shop) -> None:
    def handler(session: Session, job: Job[Note]) -> None:
        add("pending")
        db.session.flush()
        made.jobs.enqueue(Note("next"))
        raise ValueError("no further")

    handle(made, handler)
    job = made.run()
    assert (job.state, [error.error for error in job.errors]) == (JobState.RETRYABLE, ["no further"])
    assert (made.effects, len(made.stored)) == ([], 1)


@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
def test_a_commit_in_the_handler_commits_nothing_before_the_job(made: Shop, fails: bool) -> None:
    seen = []

    def handler(session: Session, job: Job[Note]) -> None:
        add("committed by hand")
        made.jobs.enqueue(Note("next"))
        db.session.commit()
        seen.append((made.effects, len(made.stored)))
        add("after it")
        if fails:
            raise ValueError

    handle(made, handler)
    job = made.run()
    assert seen == [([], 1)]
    assert job.state == (JobState.RETRYABLE if fails else JobState.COMPLETED)
    assert made.effects == ([] if fails else ["committed by hand", "after it"])
    assert len(made.stored) == (1 if fails else 2)


def test_a_rollback_in_the_handler_drops_what_it_wrote_and_it_goes_on(made: Shop) -> None:
    def handler(session: Session, job: Job[Note]) -> None:
        add("dropped")
        db.session.rollback()
        add("kept")

    handle(made, handler)
    assert made.run().state == JobState.COMPLETED
    assert made.effects == ["kept"]


def test_a_handler_may_remove_the_session_at_its_end(made: Shop) -> None:
    def handler(session: Session, job: Job[Note]) -> None:
        add("committed by hand")
        db.session.commit()
        db.session.remove()

    handle(made, handler)
    assert made.run().state == JobState.COMPLETED
    assert made.effects == ["committed by hand"]


@pytest.mark.parametrize(
    ("place", "end"),
    [
        *[("handler", end) for end in ("commit", "flush", "nothing")],
        *[("app context", end) for end in ("commit", "flush")],
    ],
)
def test_a_session_that_the_handler_gets_after_a_remove_writes_nothing(made: Shop, place: str, end: str) -> None:
    """Its writes are on another connection: they stayed when the job failed, and were written again by the retry."""

    def handler(session: Session, job: Job[Note]) -> None:
        add("of the job")
        with made.app.app_context() if place == "app context" else nullcontext():
            db.session.commit()
            db.session.remove()
            add("of no job")
            if end != "nothing":
                getattr(db.session, end)()

    handle(made, handler)
    job = made.run()
    assert job.state == JobState.RETRYABLE
    assert "db.session.remove()" in (job.last_error or "")
    assert made.effects == []
    with made.app.app_context():
        assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def test_a_session_after_a_remove_is_refused_also_if_the_handler_swallows_it(made: Shop) -> None:
    def handler(session: Session, job: Job[Note]) -> None:
        add("of the job")
        db.session.remove()
        for _ in range(2):
            with suppress(InvalidTransaction):
                add("of no job")
                db.session.commit()

    handle(made, handler)
    job = made.run()
    assert job.state == JobState.RETRYABLE
    assert "db.session.remove()" in (job.last_error or "")
    assert made.effects == []


def test_a_session_of_the_handlers_own_works_apart(made: Shop) -> None:
    """Of the engine, or made as db.session is; and so does a thread that the handler starts."""

    def in_thread() -> None:
        with made.app.app_context():
            add("by a thread")
            db.session.commit()
            db.session.remove()
            add("later")
            db.session.commit()

    def handler(session: Session, job: Job[Note]) -> None:
        for note, other in (("of the engine", Session(db.engine)), ("of db", db.session.session_factory())):
            with other:
                other.add(Effect(note=note))
                other.commit()
        thread = threading.Thread(target=in_thread)
        thread.start()
        thread.join()
        add("of the job")
        raise ValueError

    handle(made, handler)
    assert made.run().last_error == "ValueError"
    assert made.effects == ["of the engine", "of db", "by a thread", "later"]


@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
def test_an_app_context_that_the_handler_pushes_has_the_session_of_the_job(made: Shop, fails: bool) -> None:
    """As in handlers that were written for queues without one: its writes stayed when the job failed."""

    def handler(session: Session, job: Job[Note]) -> None:
        add("before")
        with made.app.app_context():
            assert db.session() is session
            add("within")
            made.jobs.enqueue(Note("next"))
            db.session.commit()
        with made.app.app_context():
            assert db.session.scalars(select(Effect.note).order_by(Effect.id)).all() == ["before", "within"]
            add("pending")
        assert db.session() is session
        assert (made.effects, len(made.stored)) == ([], 1)
        if fails:
            raise ValueError

    handle(made, handler)
    job = made.run()
    assert job.state == (JobState.RETRYABLE if fails else JobState.COMPLETED)
    assert made.effects == ([] if fails else ["before", "within", "pending"])
    assert len(made.stored) == (1 if fails else 2)


def test_a_handler_of_another_app_context_does_not_touch_the_callers_session(made: Shop) -> None:
    """As in a test that looks at the database before and after."""
    seen: list[Any] = []

    def handler(session: Session, job: Job[Note]) -> None:
        seen.append(g.get("of_caller"))
        add("by the handler")

    handle(made, handler)
    job = made.enqueue()
    with made.app.app_context():
        g.of_caller = "set"
        mine = db.session()
        add("mine")
        assert made.jobs.worker_pool().work_one()
        assert db.session() is mine
        assert [effect.note for effect in mine.new if isinstance(effect, Effect)] == ["mine"]
        assert db.session.scalars(select(Effect.note).order_by(Effect.id)).all() == ["by the handler", "mine"]
    assert seen == [None]
    assert made.job(job).state == JobState.COMPLETED


def test_a_view_is_tested_with_its_job(made: Shop) -> None:
    handle(made, lambda session, job: add(f"for {job.args.text}"))

    @made.app.post("/<name>")
    def view(name: str) -> str:
        add(name)
        made.jobs.enqueue(Note(name))
        db.session.commit()
        return "done"

    assert made.app.test_client().post("/ada").text == "done"
    assert made.pool().work_one()
    assert made.effects == ["ada", "for ada"]


# --- listeners, and the end of the context


def test_listeners_of_the_session_run_in_the_app_context(made: Shop) -> None:
    heard: list[tuple[str, int | None, str, list[str]]] = []
    names = ("before_flush", "before_commit", "after_commit")

    def listener(name: str) -> Callable[..., None]:
        return lambda session, *_: heard.append((name, g.get("of_job"), current_app.name, made.effects))

    listeners = [(name, listener(name)) for name in names]
    for name, function in listeners:
        event.listen(db.session, name, function)

    def handler(session: Session, job: Job[Note]) -> None:
        g.of_job = job.id
        add("written")

    handle(made, handler)
    try:
        job = made.run()
    finally:
        for name, function in listeners:
            event.remove(db.session, name, function)
    assert heard == [
        ("before_commit", job.id, "shop", []),
        ("before_flush", job.id, "shop", []),
        ("after_commit", None, "shop", ["written"]),
    ]


def test_the_signals_of_changed_models_are_sent(fresh_database: str) -> None:
    heard: list[tuple[str, str, list[str]]] = []

    def before(sender: Any, changes: Any) -> None:
        heard.append(("before", sender.name, [operation for _, operation in changes]))

    def after(sender: Any, changes: Any) -> None:
        heard.append(("after", sender.name, [operation for _, operation in changes]))

    with (
        shop(fresh_database, SQLALCHEMY_TRACK_MODIFICATIONS=True) as made,
        before_models_committed.connected_to(before),
        models_committed.connected_to(after),
    ):
        handle(made, lambda session, job: add("written"))
        made.run()
    assert heard == [("before", "shop", ["insert"]), ("after", "shop", ["insert"])]


def test_teardown_functions_are_called_when_a_handler_has_ended(made: Shop) -> None:
    heard: list[tuple[str | None, BaseException | None]] = []

    @made.app.teardown_appcontext
    def teardown(error: BaseException | None) -> None:
        if "of_job" in g:
            heard.append((g.of_job, error))

    def handler(session: Session, job: Job[Note]) -> None:
        g.of_job = job.args.text
        if job.args.text == "bad":
            raise ValueError("bad")

    handle(made, handler)
    made.run(Note("good"))
    made.run(Note("bad"))
    assert [text for text, _ in heard] == ["good", "bad"]
    assert heard[0][1] is None
    assert isinstance(heard[1][1], ValueError)


def test_a_teardown_function_that_fails_after_the_commit_changes_nothing(
    made: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    @made.app.teardown_appcontext
    def teardown(error: BaseException | None) -> None:
        if made.effects:  # the job is committed
            calls.append(1)
            if len(calls) == 1:
                raise ValueError("not today")

    handle(made, lambda session, job: add("written"))
    pool, job = made.pool(), made.enqueue()
    with pool:
        wait_until(lambda: calls)
    assert made.job(job).state == JobState.COMPLETED
    assert "an app context could not be left after a job: not today" in caplog.text


# --- other binds, sessions of the application's, threads


class Elsewhere(db.Model):  # type: ignore[name-defined,misc]
    __bind_key__ = "other"
    __tablename__ = "elsewhere"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.mark.parametrize("act", ["write", "read"])
def test_a_table_of_another_bind_is_refused_with_the_cure(fresh_database: str, act: str) -> None:
    def handler(session: Session, job: Job[Note]) -> None:
        add("of the job")
        if act == "write":
            db.session.add(Elsewhere())
        else:
            db.session.scalars(select(Elsewhere)).all()

    with shop(fresh_database, SQLALCHEMY_BINDS={"other": url(fresh_database)}) as made:
        handle(made, handler)
        job = made.run()
        assert job.state == JobState.RETRYABLE
        assert "'other' is another bind: for that use `with Session(db.engines[key])" in (job.last_error or "")
        assert made.effects == []


def test_a_session_of_its_own_reaches_another_bind(fresh_database: str) -> None:
    def handler(session: Session, job: Job[Note]) -> None:
        add("of the job")
        with Session(db.engines["other"]) as other:
            other.add(Elsewhere())
            other.commit()

    with shop(fresh_database, SQLALCHEMY_BINDS={"other": url(fresh_database)}) as made:
        made.query("CREATE TABLE elsewhere (id serial PRIMARY KEY)")
        handle(made, handler)
        assert made.run().state == JobState.COMPLETED
        assert made.effects == ["of the job"]
        assert made.query("SELECT count(*) FROM elsewhere") == [(1,)]


def test_the_session_of_a_job_is_made_as_the_application_has_it(fresh_database: str) -> None:
    class Mine(TheirSession):
        def greet(self) -> str:
            return "hello"

    own = SQLAlchemy(session_options={"class_": Mine, "expire_on_commit": False, "info": {"made": "here"}})
    app, jobs = make_app(SQLALCHEMY_DATABASE_URI=url(fresh_database)), Pgjobs(db=own)
    own.init_app(app)
    jobs.init_app(app)
    seen: list[Any] = []

    @jobs.handles(Note)
    def handler(session: Mine, job: Job[Note]) -> None:
        seen.append((session.greet(), session.expire_on_commit, session.info, own.session() is session))

    with tables(fresh_database), app.app_context():
        jobs.enqueue(Note())
        own.session.commit()
        assert jobs.worker_pool().work_one()
        jobs.client.close()
        own.engine.dispose()
    assert seen == [("hello", False, {"made": "here"}, True)]


def test_a_detached_handler_has_an_app_context_and_a_session_of_that(made: Shop) -> None:
    seen: list[Any] = []

    @made.jobs.handles(Note, detached=True)
    def handler(tx: None, job: Job[Note]) -> None:
        seen.append((tx, current_app.name))
        add("committed by hand")
        db.session.commit()
        seen.append(made.effects)
        made.jobs.enqueue(Thing(), tx=None)
        job.complete(db.session)
        db.session.commit()

    made.jobs.handles(Thing)(lambda session, job: None)
    assert made.run().state == JobState.COMPLETED
    assert seen == [(None, "shop"), ["committed by hand"]]
    with made.app.app_context():
        assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def test_a_handler_that_is_cut_off_leaves_no_session_behind(made: Shop) -> None:
    def handler(session: Session, job: Job[Note]) -> None:
        add(job.args.text)
        db.session.flush()
        if job.args.text == "slow":
            db.session.execute(text("SELECT pg_sleep(60)"))

    handle(made, handler)
    slow = made.run(Note("slow"), timeout=timedelta(seconds=0.2))
    assert slow.state == JobState.RETRYABLE
    assert "timed out" in (slow.last_error or "")
    assert made.run(Note("next")).state == JobState.COMPLETED
    assert made.effects == ["next"]
    assert db.session.registry.registry == {}


def test_an_engine_with_too_few_connections_is_refused(fresh_database: str) -> None:
    options = {"pool_size": 2, "max_overflow": 1}
    with shop(fresh_database, SQLALCHEMY_ENGINE_OPTIONS=options, PGJOBS_QUEUES={"default": 4}) as made:
        handle(made, lambda session, job: None)
        with pytest.raises(PoolTooSmall, match="4 worker threads"):
            made.pool().start()


def test_a_thousand_jobs_use_no_more_connections_than_threads_and_leave_none(fresh_database: str) -> None:
    threads, running = threading.local(), set()

    def handler(session: Session, job: Job[Note]) -> None:
        threads.name = threading.current_thread().name
        running.add(threads.name)
        add(job.args.text)

    options = {"pool_size": 8, "max_overflow": 0}
    with shop(fresh_database, SQLALCHEMY_ENGINE_OPTIONS=options, PGJOBS_QUEUES={"default": 8}) as made:
        handle(made, handler)
        with made.app.app_context():
            assert made.jobs.enqueue_many([Note(f"note {n}") for n in range(1000)], returning=False) == 1000
            db.session.commit()
        counts = []

        def done() -> bool:
            counts.append(made.connections)
            return made.query("SELECT count(*) FROM pgjobs.job WHERE state <> 'completed'") == [(0,)]

        with made.pool():
            wait_until(done, timeout=60)
        assert len(made.effects) == 1000
        assert len(running) == 8
        assert max(counts) <= 8 + 4, "those of the engine, the listener, maintenance and the enqueue"
        made.close()
        wait_until(lambda: made.connections == 0)
