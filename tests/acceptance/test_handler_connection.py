"""The connection that a handler gets is an object of its own: what it sets there, and what it keeps of it, ends with
its job, and the connection to the server goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row, tuple_row
from psycopg.types.string import TextLoader
from psycopg_pool import ConnectionPool

from pgjobs import Client, Handler, Job, JobState, QueueSettings, WorkerPool
from pgjobs.db.checkout import Checkout
from tests.samples import Tx
from tests.waiting import wait_until

Act = Callable[[Tx], object]

BATCHES = pytest.mark.parametrize("batch_size", [1, 5], ids=["one by one", "batch"])


class Labelled(psycopg.Connection[Any]):
    """A connection class of an application: it is made with more than psycopg's arguments, and has attributes."""

    closings = 0  # by close()

    def __init__(self, pgconn: Any, row_factory: Any = tuple_row, *, label: str = "made by the pool") -> None:
        super().__init__(pgconn, row_factory)
        self.label = label
        self.notes: list[str] = []

    def close(self) -> None:
        type(self).closings += not self.closed
        super().close()

    def shout(self, text: str) -> str:
        row = self.execute("SELECT upper(%s)", [text]).fetchone()
        assert row is not None
        return str(row[0])


class UpperLoader(TextLoader):
    def load(self, data: Any) -> str:
        return str(super().load(data)).upper()


def configure(conn: psycopg.Connection[Any]) -> None:
    conn.adapters.register_loader("name", UpperLoader)
    conn.execute("SET application_name = 'configured'")
    conn.commit()


class App:
    """A client whose connections are made in one of the ways that there are, and a table `effect`."""

    def __init__(self, client: Client, dsn: str) -> None:
        self.client = client
        self.dsn = dsn

    def sql(self, text: str) -> sql.Composed:
        return sql.SQL(text).format(s=sql.Identifier(self.client.schema))

    def write(self, tx: Tx, note: str) -> None:
        tx.execute(self.sql("INSERT INTO {s}.effect VALUES (%s)"), [note])

    @property
    def effects(self) -> list[str]:
        with psycopg.connect(self.dsn) as conn:
            return [note for (note,) in conn.execute(self.sql("SELECT note FROM {s}.effect"))]

    def work(self, *acts: Act, batch_size: int = 1) -> list[Job[Any]]:
        """Run the acts, one after the other as handlers on one thread, and return their jobs when all are over."""

        def handler(tx: Tx, job: Job[Any]) -> None:
            acts[job.args["act"]](tx)

        with self.client.pool.connection() as tx:
            jobs = [self.client.enqueue(tx, {"act": n}, kind="act", max_attempts=1) for n in range(len(acts))]
        queues = {"default": QueueSettings(1, batch_size=batch_size)}
        with WorkerPool(self.client, {"act": Handler(handler)}, queues=queues):
            wait_until(lambda: all(job.state.final for job in self.stored(jobs)), 20)
        return list(self.stored(jobs))

    def stored(self, jobs: list[Job[Any]]) -> Iterator[Job[Any]]:
        return (job for job in map(self.client.get, [job.id for job in jobs]) if job is not None)


@pytest.fixture(params=["own", "theirs", "configured"])
def app(request: pytest.FixtureRequest, client: Client, database: str) -> Iterator[App]:
    with client.pool.connection() as conn:
        conn.execute(sql.SQL("CREATE TABLE {}.effect (note text)").format(sql.Identifier(client.schema)))
    if request.param == "own":
        yield App(client, database)
        return
    options: dict[str, Any] = {"connection_class": Labelled}
    if request.param == "configured":
        options["configure"] = configure
    with ConnectionPool(database, min_size=3, max_size=3, open=True, **options) as pool:
        yield App(Client(pool, schema=client.schema), database)


# --- what a handler keeps


def execute(app: App, tx: Tx) -> Callable[[], object]:
    return lambda: app.write(tx, "smuggled in")


def execute_on_a_cursor(app: App, tx: Tx) -> Callable[[], object]:
    cursor = tx.cursor()
    return lambda: cursor.execute(app.sql("INSERT INTO {s}.effect VALUES ('smuggled in')"))


def execute_on_a_cursor_again(app: App, tx: Tx) -> Callable[[], object]:
    cursor = tx.execute("SELECT 1")
    return lambda: cursor.executemany(app.sql("INSERT INTO {s}.effect VALUES (%s)"), [["smuggled in"]] * 2)


def copy(app: App, tx: Tx) -> Callable[[], object]:
    cursor = tx.cursor()

    def go_on() -> None:
        with cursor.copy(app.sql("COPY {s}.effect FROM STDIN")) as lines:
            lines.write_row(["smuggled in"])

    return go_on


def enter_a_block(app: App, tx: Tx) -> Callable[[], object]:
    block = tx.transaction()

    def go_on() -> None:
        with block:
            app.write(tx, "smuggled in")

    return go_on


def leave_a_block(app: App, tx: Tx) -> Callable[[], object]:
    block = tx.transaction()
    block.__enter__()
    return lambda: block.__exit__(None, None, None)


def drop_a_block(app: App, tx: Tx) -> Callable[[], object]:
    block = tx.transaction(force_rollback=True)
    block.__enter__()
    return lambda: block.__exit__(None, None, None)


def send_a_pipeline(app: App, tx: Tx) -> Callable[[], object]:
    def go_on() -> None:
        with tx.pipeline():
            app.write(tx, "smuggled in")

    return go_on


def fetch_from_a_cursor_of_the_server(app: App, tx: Tx) -> Callable[[], object]:
    cursor = tx.cursor("kept")
    cursor.execute("SELECT generate_series(1, 10)")

    def go_on() -> None:
        try:
            cursor.fetchone()
        finally:
            cursor.close()  # as a `with` block would, without a complaint

    return go_on


def commit(app: App, tx: Tx) -> Callable[[], object]:
    return tx.commit


def rollback(app: App, tx: Tx) -> Callable[[], object]:
    return tx.rollback


def use_libpq(app: App, tx: Tx) -> Callable[[], object]:
    return lambda: tx.pgconn.exec_(b"SET search_path = stolen")


def make_a_cursor(app: App, tx: Tx) -> Callable[[], object]:
    return tx.cursor


def set_autocommit(app: App, tx: Tx) -> Callable[[], object]:
    return lambda: tx.set_autocommit(False)


WAYS = [
    execute, execute_on_a_cursor, execute_on_a_cursor_again, copy, enter_a_block, leave_a_block, drop_a_block,
    send_a_pipeline, fetch_from_a_cursor_of_the_server, commit, rollback, use_libpq, make_a_cursor, set_autocommit,
]  # fmt: skip


def in_this_thread(act: Callable[[], object]) -> object:
    return act()


def in_a_thread(act: Callable[[], object]) -> object:
    """What the act returns in another thread; or what it raises."""
    results: list[object] = []

    def run() -> None:
        try:
            results.append(act())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(20)
    (result,) = results
    if isinstance(result, BaseException):
        raise result
    return result


@BATCHES
@pytest.mark.parametrize("pause", ["before", "after"])
def test_a_thread_that_is_about_to_use_the_object_when_the_job_ends_sends_nothing(
    app: App, batch_size: int, pause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The savepoint before the first statement was set, and then the object was used although its job had ended."""
    inside, go_on, begin = threading.Event(), threading.Event(), Checkout._begin_use
    left: list[Any] = []

    def slow(checkout: Checkout, tx: Any) -> bool:
        if threading.current_thread() not in left:
            return begin(checkout, tx)
        used = begin(checkout, tx) if pause == "after" else False
        inside.set()
        assert go_on.wait(20)
        return used or begin(checkout, tx)

    def write_late(tx: Tx) -> None:
        for _ in range(2):
            with suppress(psycopg.Error):
                app.write(tx, "smuggled in")

    def leave_a_thread(tx: Tx) -> None:
        left.append(threading.Thread(target=write_late, args=[tx]))
        left[0].start()
        assert inside.wait(20)

    def let_it_go_on(tx: Tx) -> None:
        app.write(tx, "written")
        go_on.set()
        left[0].join(20)
        assert not left[0].is_alive()

    monkeypatch.setattr(Checkout, "_begin_use", slow)
    jobs = app.work(leave_a_thread, let_it_go_on, batch_size=batch_size)
    assert [job.state for job in jobs] == [JobState.DISCARDED, JobState.COMPLETED]
    assert "middle of a command" in (jobs[0].last_error or "")
    assert app.effects == ["written"]


@pytest.mark.parametrize("batch_size", [1, 8], ids=["one by one", "batch"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_nothing_that_a_handler_keeps_reaches_the_next_job(
    app: App, way: Callable[[App, Tx], Callable[[], object]], batch_size: int
) -> None:
    """Four times in a row on one connection: of a handler that returned and of one that raised, in the thread of the
    worker and in another."""
    kept: list[Callable[[], object]] = []
    errors: list[str] = []
    backends: list[int] = []

    def keep(tx: Tx, fails: bool) -> None:
        backends.append(tx.info.backend_pid)
        kept.append(way(app, tx))
        if fails:
            raise ArithmeticError

    def meet(tx: Tx, run: Callable[[Callable[[], object]], object]) -> None:
        backends.append(tx.info.backend_pid)
        app.write(tx, "mine")
        with pytest.raises(psycopg.OperationalError) as raised:
            run(kept[-1])
        errors.append(str(raised.value))
        app.write(tx, "mine too")

    each = [(fails, run) for fails in (False, True) for run in (in_this_thread, in_a_thread)]
    acts = [act for fails, run in each for act in (partial(keep, fails=fails), partial(meet, run=run))]
    jobs = app.work(*acts, batch_size=batch_size)
    kept_by, met_by = jobs[::2], jobs[1::2]
    assert [job.state for job in kept_by] == [JobState.DISCARDED if fails else JobState.COMPLETED for fails, _ in each]
    assert [(job.state, job.last_error) for job in met_by] == [(JobState.COMPLETED, None)] * len(each)
    assert app.effects == ["mine", "mine too"] * len(each)
    assert len(set(backends)) == 1, "the connection was kept"
    if way is not use_libpq:
        assert errors == [
            f"job {job.id} has ended, and with it its transaction: its connection object cannot be used any more"
            for job in kept_by
        ]


@BATCHES
def test_an_object_that_is_over_says_so_and_does_nothing(app: App, batch_size: int) -> None:
    kept: list[Tx] = []
    threshold: list[int | None] = []

    def meet(tx: Tx) -> None:
        (old,) = kept
        assert (old.closed, old.broken) == (True, False)
        assert old.info.status == psycopg.pq.ConnStatus.BAD
        assert "[BAD]" in repr(old)
        old.cancel()  # of the statement that runs now
        old.cancel_safe()
        old.close()
        old.add_notice_handler(print)
        old.prepare_threshold = 77
        assert tx.prepare_threshold == threshold[0]
        with suppress(psycopg.OperationalError), old:
            pass
        app.write(tx, "mine")

    def keep(tx: Tx) -> None:
        kept.append(tx)
        threshold.append(tx.prepare_threshold)

    jobs = app.work(keep, meet, batch_size=batch_size)
    assert [job.last_error for job in jobs] == [None, None]
    assert app.effects == ["mine"]


@BATCHES
def test_a_generator_in_a_traceback_ends_without_harm(app: App, batch_size: int) -> None:
    """It is closed whenever the error is forgotten, and its blocks end then."""
    kept: list[Generator[None]] = []

    def rows(tx: Tx) -> Generator[None]:
        with tx.transaction(), tx.cursor("kept") as cursor:
            cursor.execute("SELECT generate_series(1, 10)")
            yield

    def keep(tx: Tx) -> None:
        kept.append(rows(tx))
        next(kept[0])
        raise ArithmeticError

    def meet(tx: Tx) -> None:
        with tx.transaction():  # whose savepoint has the same name
            app.write(tx, "mine")
            with suppress(psycopg.OperationalError):
                kept[0].close()
        app.write(tx, "mine too")

    _, job = app.work(keep, meet, batch_size=batch_size)
    assert (job.state, job.last_error) == (JobState.COMPLETED, None)
    assert app.effects == ["mine", "mine too"]


@BATCHES
def test_a_block_that_is_left_open_costs_neither_its_job_nor_the_connection(app: App, batch_size: int) -> None:
    kept: list[Any] = []
    backends: list[int] = []

    def act(tx: Tx) -> None:
        backends.append(tx.info.backend_pid)
        kept.append(tx.transaction())
        kept[-1].__enter__()
        app.write(tx, "in a block")

    jobs = app.work(act, act, act, batch_size=batch_size)
    assert [job.state for job in jobs] == [JobState.COMPLETED] * 3
    assert app.effects == ["in a block"] * 3
    assert len(set(backends)) == 1


def test_a_job_of_ones_own_ends_with_its_block(app: App) -> None:
    with app.client.pool.connection() as tx:
        job = app.client.enqueue(tx, {"act": 0}, kind="act")
    with app.client.lock_job() as (tx, found):
        assert found is not None
        app.write(tx, "mine")
    with pytest.raises(psycopg.OperationalError, match=f"job {job.id} has ended"):
        app.write(tx, "smuggled in")
    assert app.effects == ["mine"]


@pytest.mark.parametrize("end", ["close", "with"])
def test_a_pool_whose_connections_return_by_close_does_not_get_a_handlers(
    client: Client, database: str, end: str
) -> None:
    def act(tx: Tx) -> None:
        if end == "close":
            tx.close()
        else:
            with tx:
                tx.execute("SELECT 1")

    Labelled.closings = 0
    options: dict[str, Any] = {"connection_class": Labelled, "close_returns": True}
    with ConnectionPool(database, min_size=3, max_size=3, open=True, **options) as pool:
        first, second = App(Client(pool, schema=client.schema), database).work(act, lambda tx: None)
        assert first.state == JobState.DISCARDED
        assert second.state == JobState.COMPLETED
        assert Labelled.closings >= 1
        wait_until(lambda: pool.get_stats()["pool_available"] == 3)
        for _ in range(6):
            with pool.connection() as conn:
                assert "_pgjobs_original" not in vars(conn)
                conn.execute("SELECT 1")


# --- what a handler sets


@BATCHES
def test_what_a_handler_sets_is_there_for_it_alone(app: App, batch_size: int) -> None:
    class Cursor(psycopg.Cursor[Any]):
        pass

    class ServerCursor(psycopg.ServerCursor[Any]):
        pass

    seen: list[Any] = []
    heard: list[str] = []

    def state(tx: Any) -> list[Any]:
        plain = psycopg.Cursor(tx, row_factory=tuple_row)
        (name,) = plain.execute("SELECT 'a name'::name").fetchone() or ()
        attributes = ("row_factory", "cursor_factory", "server_cursor_factory", "prepare_threshold", "prepared_max")
        return [name, getattr(tx, "mine", None), [getattr(tx, each) for each in attributes]]

    def soil(tx: Any) -> None:
        seen.append(state(tx))
        tx.row_factory, tx.cursor_factory, tx.server_cursor_factory = dict_row, Cursor, ServerCursor
        tx.prepare_threshold, tx.prepared_max, tx.mine = 1, 7, "mine"
        tx.add_notice_handler(lambda diagnostic: heard.append(diagnostic.message_primary))
        tx.adapters.register_loader("name", ReversedLoader)
        assert state(tx) == [
            "eman a", "mine", [dict_row, Cursor, ServerCursor, 1, 7]
        ]  # fmt: skip
        tx.execute("DO $$ BEGIN RAISE NOTICE 'for the one who asked'; END $$")

    def look(tx: Any) -> None:
        tx.execute("DO $$ BEGIN RAISE NOTICE 'for nobody'; END $$")
        seen.append(state(tx))

    def soil_unused(tx: Any) -> None:
        tx.row_factory = dict_row
        tx.prepare_threshold = 1
        tx.add_notice_handler(lambda diagnostic: heard.append(diagnostic.message_primary))

    jobs = app.work(look, soil, look, soil_unused, look, batch_size=batch_size)
    assert [job.last_error for job in jobs] == [None] * 5
    assert seen[1:] == seen[:1] * 3
    assert heard == ["for the one who asked"]
    for _ in range(4):
        with app.client.pool.connection() as conn:
            assert not conn.autocommit
            found = state(conn)
            found[2][3] = seen[0][2][3]  # not all connections of the pool have been worked on and may prepare
            assert found == seen[0]
            assert conn.prepare_threshold in (None, 5)


class ReversedLoader(TextLoader):
    def load(self, data: Any) -> str:
        return str(super().load(data))[::-1].lower()


# --- what a handler can do


@BATCHES
def test_all_of_psycopg_works(app: App, batch_size: int) -> None:
    names: list[str] = []

    def act(tx: Any) -> None:
        assert isinstance(tx, psycopg.Connection)
        assert tx.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
        assert tx.pgconn.backend_pid == tx.info.backend_pid
        assert tx.fileno() == tx.pgconn.socket
        assert not tx.closed
        with tx.cursor() as cursor:
            cursor.executemany("SELECT %s::int", [[1], [2]], returning=True)
        with tx.pipeline():
            first, second = tx.execute("SELECT 1"), tx.execute("SELECT 2")
        assert (first.fetchone(), second.fetchone()) == ((1,), (2,))
        with tx.transaction():
            app.write(tx, "kept")
            with tx.transaction(force_rollback=True):
                app.write(tx, "dropped")
        with tx.cursor("of the server") as cursor:
            cursor.itersize = 3
            cursor.execute("SELECT generate_series(1, 10)")
            assert [number for (number,) in cursor] == list(range(1, 11))
        with tx.cursor().copy(app.sql("COPY {s}.effect FROM STDIN")) as lines:
            lines.write_row(["copied"])
        assert list(tx.cursor().stream("SELECT generate_series(1, 3)")) == [(1,), (2,), (3,)]

    def attributes(tx: Any) -> None:
        names.append(type(tx).__qualname__)
        if isinstance(tx, Labelled):
            assert tx.label == "made by the pool"
            assert tx.shout("loud") == "LOUD"
            tx.notes.append("a note")
            name = tx.execute("SELECT 'a name'::name, current_setting('application_name')").fetchone()
            if app.client.pool._configure is not None:
                assert name == ("A NAME", "configured")

    jobs = app.work(act, attributes, act, attributes, batch_size=batch_size)
    assert [job.last_error for job in jobs] == [None] * 4
    assert sorted(app.effects) == ["copied", "copied", "kept", "kept"]
    assert set(names) <= {"OwnConnection", "Labelled"}


def test_a_handler_hears_its_notifications_once(app: App) -> None:
    """Those of its transaction come when that is committed; those of others while it listens."""
    heard: list[str] = []

    def listen(tx: Tx) -> None:
        tx.execute("LISTEN away")
        tx.commit()  # a session listens from its commit on; the attempt fails in the end
        with psycopg.connect(app.dsn, autocommit=True) as other:
            other.execute("SELECT pg_notify('away', 'one'), pg_notify('away', 'two')")
            other.execute("NOTIFY away, 'three'")
        heard.extend(each.payload for each in tx.notifies(timeout=10, stop_after=3))
        heard.extend(each.payload for each in tx.notifies(timeout=0))

    app.work(listen)
    assert heard == ["one", "two", "three"]


@pytest.mark.prepared("looks at what is prepared")
@BATCHES
def test_what_psycopg_prepares_serves_all_jobs_of_the_connection(app: App, batch_size: int) -> None:
    counts: list[int] = []

    def act(tx: Tx) -> None:
        app.write(tx, "prepared")
        app.client.enqueue(tx, {"act": 0}, kind="later", queue="other")
        query = "SELECT count(*) FROM pg_prepared_statements WHERE name LIKE '\\_pg3%'"
        (count,) = tx.execute(query, prepare=False).fetchone() or (0,)
        counts.append(count)

    app.work(*[act] * 30, batch_size=batch_size)
    assert 2 <= counts[-1] <= 5
    assert counts[-10:] == counts[-1:] * 10, "none is prepared anew"
