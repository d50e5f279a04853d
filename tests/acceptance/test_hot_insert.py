"""An enqueue in a transaction of its own: what it sends, what it gives back, and what may go wrong meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.pq import TransactionStatus
from psycopg_pool import ConnectionPool, NullConnectionPool

from pgjobs import Client, EnqueueMiddleware, Hooks, Job, JobState, decode_args
from pgjobs.db.connection import has_ended
from pgjobs.enqueuing import single_insert
from tests.acceptance.inserts import Query, ctrl_c, interrupt_an_insert, query, sent
from tests.conftest import Connect
from tests.waiting import wait_until

__all__ = ["ctrl_c", "query"]

PREPARED = "SELECT name FROM pg_prepared_statements WHERE statement ILIKE '%%INSERT INTO%%job%%'"
EXTREMES: list[dict[str, Any]] = [
    {"priority": -32768, "max_attempts": 1, "queue": "a"},
    {"priority": 32767, "max_attempts": 32767, "queue": "q" * 64},
    {"metadata": {"who": "Ω \" ' \\ %s %% $1 🐘"}, "context": {"user": 7}},
    {"tags": ["red", "green"]},
    {"delay": timedelta(minutes=5)},
    {"scheduled_at": datetime(2000, 1, 1, tzinfo=UTC)},
    {"pending": True},
]


@dataclass
class Letter:
    text: str
    number: int = 1


@pytest.fixture
def own(client: Client) -> Client:
    """A client whose pool holds one connection, so that it is always the same."""
    client.pool.resize(0, 1)
    return client


@pytest.fixture
def theirs(client: Client, database: str) -> Iterator[Callable[..., Client]]:
    """Clients of pools of the application, of one connection each."""
    pools: list[ConnectionPool[Any]] = []

    def make(**kwargs: Any) -> Client:
        pools.append(ConnectionPool(database, min_size=1, max_size=1, kwargs=kwargs, open=True))
        return Client(pools[-1], schema=client.schema)

    yield make
    for pool in pools:
        pool.close()


def prepared(client: Client) -> list[str]:
    """What is prepared on the connection of the pool that inserts jobs."""
    with client.pool.connection() as conn:
        return [name for (name,) in conn.execute(PREPARED, prepare=False).fetchall()]


def sent_by(client: Client, work: Callable[[], object], path: Path) -> list[str]:
    """What the one connection of the pool sends meanwhile: the kinds of its messages."""
    with client.pool.connection() as conn:
        pass
    return sent(conn, work, path)


def is_gone(query: Query, pid: int) -> bool:
    return not query("SELECT pid FROM pg_stat_activity WHERE pid = %s", pid)


@pytest.mark.parametrize("text", ["", "plain", "Ω \" ' \\ \n %s %% $1 🐘 \x7f", "long " * 180_000, "🐘" * 20_000])
def test_what_comes_back_is_what_the_table_says(own: Client, text: str) -> None:
    for number in range(4):  # as it is, when it is prepared, and prepared
        job = own.enqueue(None, Letter(text, number))
        assert job == own.get(job.id)
        assert decode_args(Letter, job.raw_args) == Letter(text, number)
        assert abs(datetime.now(UTC) - job.created_at) < timedelta(minutes=1)
        assert job.created_at.tzinfo is UTC
        assert job.scheduled_at.tzinfo is UTC


@pytest.mark.parametrize("options", EXTREMES, ids="-".join)
def test_so_it_does_with_any_options(own: Client, connect: Connect, options: dict[str, Any]) -> None:
    tx = connect()
    for _ in range(3):
        for job in (
            own.enqueue(None, {"n": 1}, kind="any", **options),
            own.enqueue(tx, {"n": 1}, kind="any", **options),
        ):
            tx.commit()
            assert job == own.get(job.id)
            for name in options.keys() & {"priority", "max_attempts", "queue", "scheduled_at"}:
                assert getattr(job, name) == options[name]
            waits = options.keys() & {"delay", "pending"}
            assert (job.state is JobState.AVAILABLE) == (not waits)


def test_an_enqueue_on_a_tx_that_was_given_comes_back_as_the_table_says_and_commits_nothing(
    own: Client, connect: Connect, query: Query
) -> None:
    tx = connect(row_factory=psycopg.rows.dict_row)
    for number in range(8):  # psycopg prepares it meanwhile
        job = own.enqueue(tx, Letter("Ω", number))
        assert query("SELECT count(*) FROM {s}.job") == [(number,)]
        tx.commit()
        assert job == own.get(job.id)
    assert tx.execute("SELECT 1 AS one").fetchone() == {"one": 1}


def test_it_is_one_exchange_and_is_prepared_the_second_time(own: Client, tmp_path: Path) -> None:
    exchange = ["Bind", "Describe", "Execute", "Sync"]
    rounds = [sent_by(own, lambda: own.enqueue(None, Letter("x")), tmp_path / "trace") for _ in range(4)]
    assert rounds[0] == ["Parse", *exchange]
    assert rounds[1] == ["Parse", "Sync", *exchange]
    assert rounds[2] == rounds[3] == exchange
    assert len(prepared(own)) == 1


@pytest.mark.parametrize("threshold", [None, 5])
def test_with_a_pool_in_place_of_a_tx_it_is_one_exchange_too(
    client: Client, theirs: Callable[..., Client], tmp_path: Path, threshold: int | None
) -> None:
    """On connections of that pool, which are prepared only if they are anyhow."""
    other = theirs(prepare_threshold=threshold)
    exchange = ["Bind", "Describe", "Execute", "Sync"]
    rounds = [sent_by(other, lambda: client.enqueue(other.pool, Letter("x")), tmp_path / "trace") for _ in range(3)]
    assert rounds[0] == ["Parse", *exchange]
    assert rounds[2] == (exchange if threshold is not None else ["Parse", *exchange])


def test_two_clients_of_a_pool_and_a_schema_share_what_is_prepared(theirs: Callable[..., Client]) -> None:
    one = theirs()
    other = Client(one.pool, schema=one.schema)
    for client in (one, other, one, other):
        client.enqueue(None, Letter("x"))
    assert len(prepared(one)) == 1


@pytest.mark.parametrize("statement", ["DEALLOCATE ALL", "DO $$ BEGIN EXECUTE 'deallocate all'; END $$"])
def test_it_goes_on_after_somebody_has_deallocated(own: Client, query: Query, statement: str) -> None:
    for _ in range(3):
        for _ in range(3):
            own.enqueue(None, Letter("x"))
        assert len(prepared(own)) == 1
        with own.pool.connection() as conn:
            conn.execute(statement.encode())
        assert prepared(own) == []
    own.enqueue(None, Letter("x"))
    assert query("SELECT count(*) FROM {s}.job") == [(10,)]


@pytest.mark.parametrize("threshold", [None, 0, 5])
def test_a_pool_of_the_application_stays_as_it_was(theirs: Callable[..., Client], threshold: int | None) -> None:
    client = theirs(prepare_threshold=threshold, row_factory=psycopg.rows.dict_row)
    client.pool.wait()
    for number in range(4):
        job = client.enqueue(None, Letter("x", number))
        found = client.get(job.id)
        assert found == job
    with client.pool.connection() as conn:
        assert conn.info.transaction_status == TransactionStatus.IDLE
        assert (conn.prepare_threshold, conn.autocommit, conn.row_factory) == (
            threshold,
            False,
            psycopg.rows.dict_row,
        )
        names = [row["name"] for row in conn.execute(PREPARED, prepare=False).fetchall()]
    assert len([name for name in names if name.startswith("pgjobs_in_")]) == (threshold is not None)


def test_an_enqueue_on_a_connection_of_the_clients_own_pool_is_prepared(own: Client) -> None:
    for _ in range(8):
        with own.pool.connection() as tx:
            own.enqueue(tx, Letter("x"))
    assert len(prepared(own)) == 1


def test_who_wants_nothing_prepared_on_a_connection_of_that_pool_is_left_alone(own: Client) -> None:
    for _ in range(2):
        own.enqueue(None, Letter("x"), delay=timedelta(hours=1))
        with own.pool.connection() as tx:
            tx.prepare_threshold = None
            own.enqueue(tx, Letter("x"))
            assert tx.prepare_threshold is None


@pytest.mark.no_decoys("has a trigger or a rule of its own that finds one")
def test_what_the_database_refuses_is_raised_and_the_next_one_is_inserted(own: Client, query: Query) -> None:
    query("ALTER TABLE {s}.job ADD CHECK (priority <> 77)")
    for _ in range(3):
        with pytest.raises(psycopg.errors.CheckViolation) as raised:
            own.enqueue(None, Letter("x"), priority=77)
        assert raised.value.diag.table_name == "job"
        own.enqueue(None, Letter("x"))
    assert query("SELECT count(*) FROM {s}.job") == [(3,)]


def test_a_trigger_that_inserts_nothing_is_an_error(own: Client, query: Query) -> None:
    query("CREATE FUNCTION {s}.never() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
    query("CREATE TRIGGER never BEFORE INSERT ON {s}.job FOR EACH ROW EXECUTE FUNCTION {s}.never()")
    for _ in range(3):
        with pytest.raises(psycopg.DataError, match="gave no row"):
            own.enqueue(None, Letter("x"))


def test_a_connection_that_was_lost_while_it_was_idle_is_replaced(own: Client, query: Query) -> None:
    for _ in range(3):
        own.enqueue(None, Letter("x"))
        with own.pool.connection() as conn:
            pid = conn.info.backend_pid
        query("SELECT pg_terminate_backend(%s)", pid)
        wait_until(partial(has_ended, conn))  # the word of it has arrived
        own.enqueue(None, Letter("x"))
    assert query("SELECT count(*) FROM {s}.job") == [(6,)]


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("before", [0, 1, 3])
def test_ctrl_c_cancels_one_that_waits_for_a_lock(own: Client, connect: Connect, query: Query, before: int) -> None:
    """Nothing of it comes later, when the lock is gone, and the connection can be used."""
    for _ in range(before):
        own.enqueue(None, Letter("x"))
    interrupt_an_insert(lambda: own.enqueue(None, Letter("x")), own.schema, connect, query)
    for _ in range(3):
        own.enqueue(None, Letter("x"))
    assert query("SELECT count(*) FROM {s}.job") == [(before + 3,)]


def test_many_threads_enqueue_at_once(client: Client, query: Query) -> None:
    ids: list[int] = []
    start = threading.Barrier(8)

    def work(first: int) -> None:
        start.wait()
        ids.extend(client.enqueue(None, Letter("x", number)).id for number in range(first, 400, 8))

    threads = [threading.Thread(target=work, args=[n]) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ids)) == 400
    assert query("SELECT count(DISTINCT args -> 'number') FROM {s}.job") == [(400,)]


def test_a_job_enqueued_for_a_listener_notifies_it_once(own: Client, connect: Connect, query: Query) -> None:
    """Whoever sleeps holds the lock of the queue."""
    ear = connect(autocommit=True)
    ear.execute(sql.SQL("LISTEN {}").format(sql.Identifier(own.queries.channel)))
    lock = "SELECT pg_advisory_lock({}.advisory_class(), hashtext('mail'))"
    ear.execute(sql.SQL(lock).format(sql.Identifier(own.schema)))
    for number in range(3):
        own.enqueue(None, Letter("x", number), queue="mail")
        own.enqueue(None, Letter("x", number), queue="other")
        heard = [notify.payload for notify in ear.notifies(timeout=10, stop_after=1)]
        heard += [notify.payload for notify in ear.notifies(timeout=0)]
        assert heard == ["mail"]


def test_hooks_are_told_and_middleware_stands_around_it(database: str, client: Client) -> None:
    told: list[int] = []

    class Told(Hooks):
        def on_enqueue(self, job: Job[Any]) -> None:
            told.append(job.id)

    def around(tx: Any, jobs: Any, insert: Any) -> Any:
        assert tx.info.transaction_status != TransactionStatus.UNKNOWN
        return insert(jobs)

    middleware: list[list[EnqueueMiddleware]] = [[], [around]]
    for each in middleware:
        with Client(database, schema=client.schema, hooks=[Told()], middleware=each) as other:
            told.clear()
            assert [other.enqueue(None, Letter("x")).id for _ in range(3)] == told


def test_who_is_interrupted_while_it_is_prepared_leaves_the_connection_in_order(
    own: Client, query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait, calls = single_insert._wait, count(1)

    def interrupted(conn: psycopg.Connection[Any], send: Callable[[], None]) -> Any:
        result = wait(conn, send)
        if next(calls) == 2:  # the first insert was the first
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(single_insert, "_wait", interrupted)
    own.enqueue(None, Letter("x"))
    with pytest.raises(KeyboardInterrupt):
        own.enqueue(None, Letter("x"))
    for _ in range(3):
        own.enqueue(None, Letter("x"))
    assert query("SELECT count(*) FROM {s}.job") == [(4,)]


# --- what an application makes of its pools, its table and its types


class Queue(str, Enum):  # noqa: UP042  (whose str() is not its value)
    MAIL = "mail"


class Level(int, Enum):
    URGENT = -5


def test_a_member_of_an_enumeration_is_stored_as_its_value(own: Client) -> None:
    for _ in range(3):
        job: Job[Any] = own.enqueue(None, {}, kind=Queue.MAIL, queue=Queue.MAIL, priority=Level.URGENT)
        stored = own.get(job.id)
        assert stored == job
        assert (repr(stored.queue), repr(stored.kind), repr(stored.priority)) == ("'mail'", "'mail'", "-5")
        assert type(job.queue) is str


@pytest.mark.no_decoys("has a trigger or a rule of its own that finds one")
@pytest.mark.parametrize("through", ["prepared", "unprepared"])
def test_what_fails_at_the_commit_is_raised(
    client: Client, own: Client, theirs: Callable[..., Client], query: Query, through: str
) -> None:
    """The server has sent the row by then."""
    query(
        """
        CREATE FUNCTION {s}.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            RAISE EXCEPTION 'refused' USING ERRCODE = '23514'; END $$;
        CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON {s}.job DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW WHEN (NEW.kind = 'refused') EXECUTE FUNCTION {s}.refuse()
        """
    )
    sender = own if through == "prepared" else theirs(prepare_threshold=None)
    for _ in range(3):
        with pytest.raises(psycopg.errors.CheckViolation, match="refused"):
            sender.enqueue(None, {}, kind="refused")
        assert sender.enqueue(None, Letter("x")).state == JobState.AVAILABLE
    assert query("SELECT count(*) FROM {s}.job") == [(3,)]


@pytest.mark.parametrize("kind", [ConnectionPool, NullConnectionPool])
@pytest.mark.parametrize("options", [{}, {"tags": ["red"]}], ids=["plain", "with a tag"])
@pytest.mark.parametrize("given", ["to the client", "to the call"])
def test_a_check_of_the_pool_that_begins_a_transaction_takes_no_job_with_it(
    client: Client, database: str, *, kind: type[ConnectionPool[Any]], options: Any, given: str
) -> None:
    def check(conn: psycopg.Connection[Any]) -> None:
        conn.execute("SELECT 1")

    with kind(database, min_size=0, max_size=1, check=check, open=True) as pool:
        sender, tx = (Client(pool, schema=client.schema), None) if given == "to the client" else (client, pool)
        for _ in range(3):
            job = sender.enqueue(tx, Letter("x"), **options)
            assert client.get(job.id) == job


def test_a_pool_that_has_its_own_way_to_give_connections_is_asked_for_them(
    client: Client, database: str, query: Query
) -> None:
    query("ALTER TABLE {s}.job ADD COLUMN tenant text DEFAULT current_setting('app.tenant', true)")

    class OfTenant(ConnectionPool[Any]):
        @contextmanager
        def connection(self, timeout: float | None = None) -> Iterator[psycopg.Connection[Any]]:
            with super().connection(timeout) as conn:
                conn.execute("SELECT set_config('app.tenant', 'blue', true)")
                yield conn

    with OfTenant(database, min_size=1, max_size=1, open=True) as pool:
        client.enqueue(pool, Letter("x"))
        Client(pool, schema=client.schema).enqueue(None, Letter("x"))
    assert query("SELECT tenant FROM {s}.job") == [("blue",), ("blue",)]


def test_what_is_deallocated_whenever_the_connection_comes_back_is_prepared_no_more(
    client: Client, database: str
) -> None:
    def reset(conn: psycopg.Connection[Any]) -> None:
        conn.execute("DISCARD ALL", prepare=False)

    with ConnectionPool(database, min_size=1, max_size=1, reset=reset, kwargs={"autocommit": True}, open=True) as pool:
        sender = Client(pool, schema=client.schema)
        notices: list[str] = []
        send = single_insert.SingleInsert._send

        def noted(self: single_insert.SingleInsert, *args: Any) -> Any:
            try:
                return send(self, *args)
            except psycopg.errors.InvalidSqlStatementName as error:
                notices.append(str(error))
                raise

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(single_insert.SingleInsert, "_send", noted)
            jobs = [sender.enqueue(None, Letter("x")) for _ in range(30)]
        assert len({job.id for job in jobs}) == 30
        assert len(notices) == 10, "each is an error in the server's log"


def test_what_a_trigger_makes_of_a_job_comes_back(own: Client, query: Query) -> None:
    query(
        """
        CREATE FUNCTION {s}.move() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            NEW.queue := 'moved'; NEW.priority := 7; NEW.max_attempts := 3; RETURN NEW; END $$;
        CREATE TRIGGER move BEFORE INSERT ON {s}.job FOR EACH ROW EXECUTE FUNCTION {s}.move()
        """
    )
    for tx in (None, None, None, own.pool):
        job = own.enqueue(tx, Letter("x"))
        assert job == own.get(job.id)
        assert (job.queue, job.priority, job.max_attempts) == ("moved", 7, 3)
    with own.pool.connection() as conn:
        job = own.enqueue(conn, Letter("x"))
    assert job == own.get(job.id)
