"""The two ways to send a script, as one message of EXECUTEs and as a pipeline: the same values and the same errors."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.pq import TransactionStatus
from psycopg_pool import ConnectionPool

from pgjobs import Client, Handler, Job, JobState, WorkerPool, constant
from pgjobs.db.connection import shut_down
from pgjobs.execution.script import Script
from pgjobs.execution.transport import Transport
from tests import modes
from tests.conftest import Connect
from tests.samples import SECOND, Tx
from tests.waiting import wait_until

ODD = {
    "quotes": """'single' "double" $$ $1 ''""",
    "backslashes": r"\ \\ \' \n \u0041 E'\x41'",
    "percent": "100% %s %(id)s %% %",
    "not ASCII": "ü \N{EURO SIGN} \N{CJK UNIFIED IDEOGRAPH-6F22} \N{PILE OF POO}",
    "layout": "a\tb\r\n;c -- d /* e",
}
ALL_ODD = " ".join(ODD.values())
BREAKS = b"SELECT 1 / (pg_catalog.length(%(zero)s::text) - 1)"
AT_ONCE = constant(timedelta(0))


@pytest.fixture(params=["prepared", "plain"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def sender(way: str, connect: Connect) -> Transport:
    """A transport on a connection of its own."""
    return transport_on(connect(autocommit=True), way)


def transport_on(conn: Tx, way: str) -> Transport:
    conn.execute("CREATE TEMP TABLE kept (text text)")
    return Transport(conn, f"test_{uuid.uuid4().hex[:8]}", prepares=way == "prepared" and not modes.PLAIN)


def script(*statements: bytes, **fixed: Any) -> Script:
    return Script([(f"step{number}", statement) for number, statement in enumerate(statements)], fixed)


def keep(text: str) -> bytes:
    return b"INSERT INTO kept VALUES ('%b')" % text.encode()


def kept(transport: Transport) -> list[str]:
    return [text for (text,) in transport._conn.execute("SELECT text FROM kept ORDER BY text").fetchall()]


BEGIN, COMMIT, CHAIN = b"BEGIN", b"COMMIT", b"COMMIT AND CHAIN"


# --- values


@pytest.mark.parametrize("conforming", ["on", "off"])
@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_a_text_arrives_as_it_is(way: str, connect: Connect, text: str, conforming: str) -> None:
    """As a value of a statement, fixed or not; as one of a command; beside a percent sign and a comment of ours."""
    conn = connect(autocommit=True, options=f"-c standard_conforming_strings={conforming}")
    transport = transport_on(conn, way)
    looks = script(
        b"BEGIN",
        b"SET LOCAL test.fixed = %(fixed)s",
        b"-- a comment's own 100%%\nSELECT %(fixed)s::text, %(given)s::text, '50%%', %(id)s::bigint",
        b"SELECT pg_catalog.current_setting('test.fixed'), %(given)s::text || %(given)s::text",
        b"COMMIT",
        fixed=text,
    )
    for given in (text, "plain", text):
        results, error = transport.run(looks, {b"id": b"7"}, {"given": given})
        assert error is None
        assert transport.row(results[2]) == (text, given, "50%", 7)
        assert transport.row(results[3]) == (text, given * 2)


def test_values_of_every_type_arrive_as_they_are(sender: Transport) -> None:
    at, token = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC), uuid.uuid4()
    values: dict[str, Any] = {
        "none": None, "true": True, "number": -5, "unique": token, "at": at,
        "days": timedelta(hours=7, microseconds=-1),
        "texts": ["a,b", 'c"d', "e\\f", "{g}", "", "NULL", ALL_ODD], "nothing": [],
    }  # fmt: skip
    types = {
        "none": "text", "true": "boolean", "number": "integer", "unique": "uuid", "at": "timestamptz",
        "days": "interval", "texts": "text[]", "nothing": "text[]",
    }  # fmt: skip
    columns = ", ".join(f"%({name})s::{type} AS {name}" for name, type in types.items())
    wanted = f"SELECT pg_catalog.to_jsonb(given) FROM (SELECT {columns}) AS given".encode()
    query = "SELECT to_jsonb(given) FROM (SELECT %s::text AS none, %s AS true, %s AS number, %s AS unique, %s AS at,"
    query += " %s::interval AS days, %s::text[] AS texts, %s::text[] AS nothing) AS given"
    given = list(values.values())
    expected = sender._conn.execute(query.encode(), given).fetchone()
    assert expected is not None
    for fixed, texts in ((values, {}), ({}, values)):
        results, error = sender.run(Script([("look", wanted)], fixed), {}, texts)
        assert error is None
        (text,) = sender.row(results[0])
        assert json.loads(text) == expected[0]


def test_a_message_longer_than_any_buffer_and_its_answer_pass_each_other(sender: Transport) -> None:
    """Who only writes while the server only writes waits for ever."""
    long = "ü" * 3_000_000
    echo = script(b"SELECT %(text)s::text", b"SELECT pg_catalog.repeat('x', 9000000), %(text)s::text", b"SELECT 1")
    results, error = sender.run(echo, {}, {"text": long})
    assert error is None
    assert sender.row(results[0]) == (long,)
    assert sender.row(results[1]) == ("x" * 9_000_000, long)


@pytest.mark.parametrize("encoding", ["LATIN1", "UTF8", "EUC_JP"])
def test_a_text_is_sent_in_the_encoding_that_the_session_has_now(sender: Transport, encoding: str) -> None:
    text = "\N{CJK UNIFIED IDEOGRAPH-6F22}" if encoding == "EUC_JP" else "ü"
    looks = script(b"SELECT %(fixed)s::text, %(given)s::text, pg_catalog.length(%(fixed)s::text)", fixed=text)
    for now in ("UTF8", encoding, "UTF8"):
        sender._conn.execute(f"SET client_encoding = '{now}'".encode())
        results, error = sender.run(looks, {}, {"given": text})
        assert error is None
        assert sender.row(results[0]) == (text, text, 1)


# --- errors


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_error_skips_all_that_follows_and_the_commit_with_it(sender: Transport, place: int) -> None:
    steps = [keep("one"), keep("two"), COMMIT, keep("three")]
    steps.insert(place, BREAKS)
    results, error = sender.run(script(BEGIN, *steps), {}, {"zero": "0"})
    assert len(results) == 1 + place
    assert isinstance(error, psycopg.errors.DivisionByZero)
    assert sender._conn.info.transaction_status == TransactionStatus.INERROR
    sender._conn.execute("ROLLBACK")
    assert kept(sender) == []


def test_an_error_behind_a_commit_leaves_what_was_committed_and_undoes_what_follows(sender: Transport) -> None:
    results, error = sender.run(script(BEGIN, keep("one"), CHAIN, keep("two"), BREAKS, COMMIT), {}, {"zero": "0"})
    assert len(results) == 4
    assert isinstance(error, psycopg.errors.DivisionByZero)
    sender._conn.execute("ROLLBACK")
    assert kept(sender) == ["one"]


def test_after_an_error_the_same_scripts_work(sender: Transport) -> None:
    """Where it was sent as a pipeline, that is over; where it was prepared, that is still known."""
    divides = script(BEGIN, b"SELECT 10 / %(by)s::integer", keep("done"), COMMIT)
    for by in ("0", "5", "0", "2"):
        results, error = sender.run(divides, {}, {"by": by})
        if by == "0":
            assert isinstance(error, psycopg.errors.DivisionByZero)
            assert sender.run(script(b"ROLLBACK"))[1] is None
        else:
            assert (error, sender.row(results[1])) == (None, (10 // int(by),))
            assert sender._conn.info.transaction_status == TransactionStatus.IDLE
    assert kept(sender) == ["done", "done"]


def test_the_results_of_several_scripts_come_apart_also_where_one_fails(sender: Transport) -> None:
    begins, fails, ends = script(BEGIN, keep("one")), script(b"SELECT 5", BREAKS, b"SELECT 6"), script(COMMIT)
    results, error = sender.run_many([(begins, {}, {}), (fails, {}, {"zero": "1"}), (ends, {}, {})])
    assert isinstance(error, psycopg.errors.DivisionByZero)
    assert list(map(len, results)) == [2, 1, 0]
    sender._conn.execute("ROLLBACK")
    results, error = sender.run_many([(begins, {}, {}), (fails, {}, {"zero": "12"}), (ends, {}, {})])
    assert error is None
    assert list(map(len, results)) == [2, 3, 1]
    assert [sender.row(result) for result in results[1]] == [(5,), (1,), (6,)]
    assert kept(sender) == ["one"]


def test_what_must_not_be_prepared_is_sent_so_in_an_aborted_transaction_too(sender: Transport) -> None:
    """Nothing can be prepared there."""
    with suppress(psycopg.errors.DivisionByZero):
        sender._conn.execute("BEGIN; SELECT 1 / 0")
    ends = script(b"ROLLBACK", BEGIN, b"SELECT %(text)s::text", COMMIT)
    results, error = sender.run(ends, {}, {"text": ALL_ODD}, unprepared=True)
    assert error is None
    assert sender.row(results[2]) == (ALL_ODD,)
    assert sender._conn.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_a_connection_that_ends_in_the_middle_is_an_operational_error_with_the_reason_of_the_server(
    sender: Transport, place: int
) -> None:
    steps = [BEGIN, keep("one"), COMMIT]
    steps.insert(place, b"SELECT pg_catalog.pg_terminate_backend(pg_catalog.pg_backend_pid())")
    with pytest.raises(psycopg.OperationalError) as caught:
        sender.run(script(*steps))
    assert caught.value.sqlstate == "57P01"
    assert sender._conn.closed


@pytest.mark.parametrize("when", ["before", "while it waits"])
def test_a_connection_that_is_shut_down_is_an_operational_error_and_not_waited_for(
    sender: Transport, when: str, connect: Connect
) -> None:
    sleeps = script(BEGIN, b"SELECT pg_catalog.pg_sleep(60)", COMMIT)
    if when == "before":
        shut_down(sender._conn)
    else:
        beside = connect(autocommit=True)
        pid = sender._conn.info.backend_pid

        def shut_down_when_it_sleeps() -> None:
            query = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'"
            wait_until(lambda: beside.execute(query, [pid]).fetchall())
            shut_down(sender._conn)

        threading.Thread(target=shut_down_when_it_sleeps, daemon=True).start()
    with pytest.raises(psycopg.OperationalError):
        sender.run(sleeps)


def test_notices_between_the_answers_are_no_answers(sender: Transport) -> None:
    notes: list[str | None] = []
    sender._conn.add_notice_handler(lambda notice: notes.append(notice.message_primary))
    raises = b"DO $$ BEGIN RAISE NOTICE 'seen'; END $$"
    results, error = sender.run(script(raises, b"SELECT 1", raises, b"COMMIT", b"SELECT 2"))
    assert error is None
    assert [sender.row(results[place]) for place in (1, 4)] == [(1,), (2,)]
    assert notes.count("seen") == 2


# --- jobs


@pytest.fixture
def odd(way: str, database: str, client: Client) -> Iterator[Client]:
    """A client whose name is as odd as its sessions: `standard_conforming_strings` is off by the role's settings."""
    kwargs = {
        "prepare_threshold": 5 if way == "prepared" else None,
        "options": "-c standard_conforming_strings=off -c escape_string_warning=off",
    }
    with ConnectionPool(database, min_size=4, max_size=8, kwargs=kwargs, open=True) as pool:
        yield Client(pool, schema=client.schema, id=" ".join(ODD["quotes" if way == "plain" else "percent"].split()))


@pytest.mark.parametrize("text", [*ODD.values(), ALL_ODD], ids=[*ODD, "all"])
def test_what_a_handler_keeps_is_stored_as_it_is(odd: Client, text: str) -> None:
    """In the finish that takes the next claim with it, of a failed attempt and of a completed one, whether or not the
    handler has used its connection."""
    seen: list[Any] = []

    def handler(tx: Tx, job: Job[Any]) -> None:
        if job.args["uses"]:
            seen.append(tx.execute("SELECT %s::text", [text]).fetchone())
        job.set_metadata({text: text, "list": [text]})
        job.record_output({"out": text})
        if job.attempt == 1 and job.args["fails"]:
            raise ValueError(text)

    args: list[dict[str, Any]] = [
        {"fails": fails, "text": text, "uses": uses} for uses in (False, True) for fails in (False, True, False)
    ]
    jobs: list[Job[Any]] = [odd.enqueue(None, each, kind="odd·kind", queue="odd·queue") for each in args]
    with WorkerPool(odd, {"odd·kind": handler}, queues={"odd·queue": 1}, backoff=AT_ONCE):
        wait_until(lambda: all(stored(odd, job).state.final for job in jobs))
    for job, given in zip(jobs, args, strict=True):
        found = stored(odd, job)
        assert (found.state, found.attempt) == (JobState.COMPLETED, 1 + given["fails"])
        assert found.args == given
        assert {name: found.metadata[name] for name in (text, "list")} == {text: text, "list": [text]}
        assert found.output == {"out": text}
        assert [error.error for error in found.errors] == [text.replace("\r", "\ufffd")] * given["fails"]
        assert set(found.attempted_by) == {odd.id}
    assert seen == [(text,)] * 4, "three jobs used it, one of them twice"


@pytest.mark.parametrize("kind", ["odd·kind", "a[b]<c>/d.e:f+g"])
def test_a_kind_of_odd_characters_has_its_timeout_and_its_lease(odd: Client, kind: str) -> None:
    """They stand in the text of the claim and of the lock."""
    found: list[Any] = []

    def look(tx: Tx, job: Job[Any]) -> None:
        bound = "current_setting('transaction_timeout', true)"
        idle = "current_setting('idle_in_transaction_session_timeout')"
        found.append(tx.execute(f"SELECT {bound}, {idle}".encode()).fetchone())

    leases: list[bool] = []
    work_map: dict[str, Any] = {
        kind: Handler(look, timeout=17 * SECOND),
        kind + "2": Handler(lambda tx, job: leases.append(job.leased_until is not None), detached=True),
        "other": look,
    }
    pool = WorkerPool(odd, work_map, unknown_kinds="leave", timeout=None)
    jobs: list[Job[Any]] = [odd.enqueue(None, {}, kind=each) for each in (kind, kind + "2", "other", "nobody")]
    while pool.work_one():
        pass
    assert [stored(odd, job).state for job in jobs] == [JobState.COMPLETED] * 3 + [JobState.AVAILABLE]
    assert leases == [True]
    first, second = found
    assert "27s" in first, "the timeout and the grace of the server"
    assert "27s" not in second


def stored(client: Client, job: Job[Any]) -> Job[Any]:
    found = client.get(job.id)
    assert found is not None
    return found


ROLES = """
CREATE ROLE {login} LOGIN; CREATE ROLE {worker}; CREATE ROLE {tenant};
GRANT {worker}, {tenant} TO {login};
ALTER ROLE {login} SET role TO {worker};
ALTER ROLE {login} SET standard_conforming_strings TO off;
GRANT USAGE ON SCHEMA {schema} TO {worker}, {tenant};
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {worker};
CREATE TABLE {schema}.effect (job bigint, role text DEFAULT current_user);
GRANT SELECT, INSERT ON {schema}.effect TO {tenant};
"""


@pytest.fixture(params=["%s 100% %(role)s", "o''d 'd", 'do"uble "', "back\\slash \\'", "ü \N{EURO SIGN} %", "a b;c--"])
def named(request: pytest.FixtureRequest, client: Client, database: str) -> Iterator[dict[str, sql.Identifier]]:
    suffix = uuid.uuid4().hex[:8]
    names = {name: sql.Identifier(f"{name} {suffix} {request.param}") for name in ("login", "worker", "tenant")}
    names["schema"] = sql.Identifier(client.schema)
    with client.pool.connection() as conn:
        conn.execute(sql.SQL(ROLES).format(**names))
    yield names
    with client.pool.connection() as conn:
        drop = "DROP OWNED BY {login}, {worker}, {tenant}; DROP ROLE {login}, {worker}, {tenant}"
        conn.execute(sql.SQL(drop).format(**names))


HOWS = ["SET ROLE {tenant}", "SET LOCAL ROLE {tenant}", "RESET ROLE; SET ROLE {tenant}"]


def test_the_outcome_is_written_by_the_role_of_the_claim_whatever_that_is_called(
    *, client: Client, database: str, named: dict[str, sql.Identifier], way: str
) -> None:
    """The login may do nothing by itself; the handler's role may not write jobs. Each way to take the role twice in a
    row, and where the attempt fails."""

    def handler(tx: Tx, job: Job[Any]) -> None:
        tx.execute(sql.SQL(HOWS[job.args["how"]]).format(**named))
        tx.execute(sql.SQL("INSERT INTO {schema}.effect VALUES ({id})").format(**named, id=job.id))
        if job.args["fails"] and job.attempt == 1:
            raise ValueError("failed")

    args = [{"how": how, "fails": fails} for how in range(len(HOWS)) for fails in (False, False, True, True)]
    jobs: list[Job[Any]] = [client.enqueue(None, each, kind="any") for each in args]
    dsn = make_conninfo(database, user=named["login"]._obj[0])
    kwargs = {"prepare_threshold": 5 if way == "prepared" else None}
    with ConnectionPool(dsn, min_size=4, max_size=8, kwargs=kwargs, open=True) as pool:
        theirs = Client(pool, schema=client.schema)
        with WorkerPool(theirs, {"any": handler}, queues={"default": 1}, backoff=AT_ONCE):
            wait_until(lambda: all(stored(client, job).state.final for job in jobs))
    for job, given in zip([stored(client, job) for job in jobs], args, strict=True):
        fails = given["fails"]
        assert (job.state, job.attempt, job.error_count) == (JobState.COMPLETED, 1 + fails, int(fails)), given
    with client.pool.connection() as conn:
        rows = conn.execute(sql.SQL("SELECT job, role FROM {schema}.effect ORDER BY job").format(**named)).fetchall()
    assert rows == [(job.id, named["tenant"]._obj[0]) for job in jobs]
