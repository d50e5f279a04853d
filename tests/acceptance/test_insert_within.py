"""An enqueue in the caller's transaction: what is sent, how the transaction begins, and what may go wrong meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel, sql
from psycopg.pq import PipelineStatus, TransactionStatus

from pgjobs import Client
from pgjobs.enqueuing import single_insert
from tests.acceptance.inserts import Query, ctrl_c, interrupt_an_insert, query, sent
from tests.conftest import Connect

__all__ = ["ctrl_c", "query"]

Connection = psycopg.Connection[Any]
EXCHANGE = ["Bind", "Describe", "Execute"]


@dataclass
class Letter:
    text: str


LETTER = Letter("x")


@pytest.fixture(params=[True, False], ids=["pipeline", "no pipeline"])
def _either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Libpq before version 14 has no pipeline mode."""
    monkeypatch.setattr(single_insert, "_HAS_PIPELINE", request.param)


def count(query: Query) -> int:
    ((number,),) = query("SELECT count(*) FROM {s}.job")
    return int(number)


@pytest.mark.skipif(not psycopg.Pipeline.is_supported(), reason="libpq is older than version 14")
def test_the_transaction_begins_in_the_message_of_the_insert(client: Client, connect: Connect, tmp_path: Path) -> None:
    conn = connect(prepare_threshold=2)
    rounds = []
    for _ in range(5):
        rounds.append(sent(conn, lambda: client.enqueue(conn, LETTER), tmp_path / "trace"))
        rounds.append(sent(conn, lambda: client.enqueue(conn, LETTER), tmp_path / "trace"))
        conn.commit()
    assert rounds[0] == [*["Parse", *EXCHANGE] * 2, "Sync"], "BEGIN and the insert"
    assert rounds[1] == ["Parse", *EXCHANGE, "Sync"], "the transaction has begun"
    assert rounds[2] == ["Query", "Parse", "Sync", *EXCHANGE, "Sync"], "it is prepared, once on a connection"
    assert rounds[4] == ["Parse", *EXCHANGE, *EXCHANGE, "Sync"]
    assert rounds[5] == [*EXCHANGE, "Sync"]


@pytest.mark.usefixtures("_either_way")
@pytest.mark.parametrize("threshold", [0, 2, None])
def test_the_transaction_begins_as_the_connection_says(
    client: Client, connect: Connect, query: Query, threshold: int | None
) -> None:
    conn = connect(prepare_threshold=threshold)
    conn.isolation_level = IsolationLevel.SERIALIZABLE
    conn.deferrable = True
    for number in range(4):
        job = client.enqueue(conn, Letter(str(number)))
        assert conn.info.transaction_status == TransactionStatus.INTRANS
        assert conn.execute("SHOW transaction_isolation").fetchone() == ("serializable",)
        assert conn.execute("SHOW transaction_deferrable").fetchone() == ("on",)
        assert count(query) == number
        conn.commit()
        assert client.get(job.id) == job
    conn.isolation_level = conn.deferrable = None
    client.enqueue(conn, LETTER)
    conn.rollback()
    assert count(query) == 4


def test_a_connection_in_autocommit_mode_commits_at_once(client: Client, connect: Connect, query: Query) -> None:
    conn = connect(autocommit=True, prepare_threshold=1)
    for number in range(4):
        client.enqueue(conn, LETTER)
        assert conn.info.transaction_status == TransactionStatus.IDLE
        assert count(query) == number + 1
    with conn.transaction(force_rollback=True):
        client.enqueue(conn, LETTER)
    assert count(query) == 4


@pytest.mark.no_decoys("has a trigger or a rule of its own that finds one")
@pytest.mark.usefixtures("_either_way")
def test_an_error_aborts_the_transaction_as_that_of_any_statement(
    client: Client, connect: Connect, query: Query
) -> None:
    query("ALTER TABLE {s}.job ADD CHECK (priority <> 77)")
    conn = connect(prepare_threshold=2)
    for number in range(4):
        with pytest.raises(psycopg.errors.CheckViolation) as raised:
            client.enqueue(conn, LETTER, priority=77)
        assert raised.value.diag.table_name == "job"
        assert conn.info.transaction_status == TransactionStatus.INERROR
        assert conn.pgconn.pipeline_status == PipelineStatus.OFF
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            client.enqueue(conn, LETTER)
        conn.rollback()
        client.enqueue(conn, LETTER)
        conn.commit()
        assert count(query) == number + 1


@pytest.mark.parametrize(
    ("ours", "end"),
    # psycopg 3.2 does not notice a DEALLOCATE ALL; on connections of our own pool, pgjobs does
    [(True, "ROLLBACK"), (True, "DROP"), (True, "DEALLOCATE ALL"), (False, "ROLLBACK"), (False, "DROP")],
)
def test_what_psycopg_deallocates_is_not_missed(
    client: Client, connect: Connect, query: Query, *, ours: bool, end: str
) -> None:
    """It deallocates all that it has prepared after a rollback, for example."""
    client.pool.resize(0, 1)
    given = connect(prepare_threshold=1)
    for _ in range(4):
        with client.pool.connection() if ours else given as conn:
            for _ in range(7):
                client.enqueue(conn, LETTER)
                conn.commit()
            if end == "ROLLBACK":
                client.enqueue(conn, LETTER)
                conn.rollback()
            elif end == "DROP":
                conn.execute("CREATE TEMP TABLE beside ()")
                conn.execute("DROP TABLE beside")
                conn.commit()
            else:
                conn.execute("DEALLOCATE ALL")
                conn.commit()
            client.enqueue(conn, LETTER)
            if not ours:
                conn.commit()
                given = connect(prepare_threshold=1)
    assert count(query) == 4 * 8


@pytest.mark.usefixtures("ctrl_c", "_either_way")
@pytest.mark.parametrize("before", [0, 1, 3])
def test_ctrl_c_cancels_an_insert_that_waits(client: Client, connect: Connect, query: Query, before: int) -> None:
    conn = connect(prepare_threshold=1)
    for _ in range(before):
        client.enqueue(conn, LETTER)
        conn.commit()
    interrupt_an_insert(lambda: client.enqueue(conn, LETTER), client.schema, connect, query)
    assert conn.info.transaction_status == TransactionStatus.INERROR
    conn.rollback()
    for _ in range(3):
        client.enqueue(conn, LETTER)
    conn.commit()
    assert count(query) == before + 3


@pytest.mark.parametrize("function", ["_begin_and", "_results"])
@pytest.mark.parametrize("number", [1, 2], ids=["when it is sent", "while it waits"])
def test_ctrl_c_within_the_code_that_sends_leaves_the_connection_in_order(
    client: Client, connect: Connect, query: Query, monkeypatch: pytest.MonkeyPatch, *, function: str, number: int
) -> None:
    """It ends the generator, which psycopg cannot resume then."""
    send = getattr(single_insert, function)

    def interrupted(*args: Any) -> Any:
        generator = send(*args)
        for _ in range(number):
            yield next(generator)
        generator.throw(KeyboardInterrupt)

    conn, holder = connect(prepare_threshold=None), connect()
    for _ in range(2):
        if function == "_results":
            conn.execute("SELECT 1")
        holder.execute(sql.SQL("LOCK TABLE {}.job IN SHARE MODE").format(sql.Identifier(client.schema)))
        with monkeypatch.context() as patch:
            patch.setattr(single_insert, function, interrupted)
            with pytest.raises(KeyboardInterrupt):
                client.enqueue(conn, LETTER)
        holder.rollback()
        assert conn.info.transaction_status == TransactionStatus.INERROR
        assert conn.pgconn.pipeline_status == PipelineStatus.OFF
        conn.rollback()
        client.enqueue(conn, LETTER)
        conn.commit()
    assert count(query) == 2


@pytest.mark.usefixtures("_either_way")
def test_a_connection_that_is_lost_is_an_error_and_stays_closed(client: Client, connect: Connect, query: Query) -> None:
    for before in range(3):
        conn = connect(prepare_threshold=1)
        for _ in range(before):
            client.enqueue(conn, LETTER)
            conn.commit()
        query("SELECT pg_terminate_backend(%s, 10000)", conn.info.backend_pid)
        with pytest.raises(psycopg.OperationalError):
            client.enqueue(conn, LETTER)
        assert conn.closed
        with pytest.raises(psycopg.OperationalError, match=r"closed|lost"):
            client.enqueue(conn, LETTER)
    assert count(query) == 0 + 1 + 2


def test_a_statement_longer_than_the_socket_takes_at_once_is_sent(
    client: Client, connect: Connect, query: Query
) -> None:
    conn = connect(prepare_threshold=1)
    for _ in range(3):
        job = client.enqueue(conn, Letter("🐘" * 200_000))
        conn.commit()
        assert client.get(job.id) == job
    assert count(query) == 3
