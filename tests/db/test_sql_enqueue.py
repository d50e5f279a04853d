"""pgjobs.enqueue, the function for triggers, psql and other languages: what `client.enqueue` does, in SQL."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import Connection

from pgjobs import Client, InvalidJob, Job, JobState, Unique
from pgjobs.options import JobOptions
from tests.conftest import Connect
from tests.db.test_races import Table, table
from tests.waking import sleep_on

__all__ = ["table"]  # a fixture

Call = Callable[..., tuple[int, bool]]


@pytest.fixture
def call(table: Table) -> Call:
    """Calls the function with these arguments by name, each with its type; the id, and whether it is a duplicate."""

    def enqueue(kind: str | None = "thing", **options: Any) -> tuple[int, bool]:
        named = "".join(f", {name} => %s" for name in options)
        values = [json.dumps(value) if isinstance(value, dict) else value for value in options.values()]
        ((id, duplicate),) = table.query(f"SELECT id, duplicate FROM {{schema}}.enqueue(%s{named})", kind, *values)
        return id, duplicate

    return enqueue


def test_a_job_without_options_is_as_the_client_makes_it(client: Client, table: Table, call: Call) -> None:
    ours: Job[Any] = client.enqueue(None, {"n": 1}, kind="thing")
    id, duplicate = call("thing", args={"n": 1})
    theirs = client.get(id)
    assert theirs is not None
    assert not duplicate
    apart = {"id", "scheduled_at", "created_at", "decode"}
    for field in fields(Job):
        if field.name not in apart:
            assert getattr(theirs, field.name) == getattr(ours, field.name), field.name
    assert theirs.scheduled_at == theirs.created_at >= ours.created_at


def test_all_options(client: Client, call: Call) -> None:
    when = datetime(2040, 1, 1, tzinfo=UTC)
    id, _ = call(
        "mail.welcome",
        queue="mail",
        priority=-3,
        scheduled_at=when,
        max_attempts=2,
        tags=["one", "NULL"],
        metadata={"context": {"user": 7}},
    )
    job = client.get(id)
    assert job is not None
    assert (job.kind, job.queue, job.priority, job.scheduled_at, job.max_attempts) == (
        "mail.welcome",
        "mail",
        -3,
        when,
        2,
    )
    assert (job.state, job.tags, job.context) == (JobState.SCHEDULED, ("one", "NULL"), {"user": 7})
    delayed = client.get(call(delay=timedelta(hours=1))[0])
    assert delayed is not None
    assert (delayed.state, delayed.scheduled_at - delayed.created_at) == (JobState.SCHEDULED, timedelta(hours=1))
    pending = client.get(call(pending=True)[0])
    assert pending is not None
    assert pending.state == JobState.PENDING


def test_the_function_knows_every_option_but_two(table: Table) -> None:
    """`context` is written into the metadata, and `replace` is the client's alone."""
    ((names,),) = table.query("SELECT proargnames FROM pg_proc WHERE oid::regproc = '{schema}.enqueue'::regproc")
    taken = {option.name for option in fields(JobOptions)} - {"context", "replace", "unique"}
    assert set(names) == taken | {"kind", "args", "uniqueness", "notify", "id", "duplicate"}


NOT_UNIQUE: list[dict[str, Any]] = [
    {"by_state": ["running"]},
    {"by_state": ["available", "pending", "running", "scheduled", "done"]},
    {"by_args": ["m"]},
    {"by_args": []},
    {"by_args": [1]},
    {"by_period": "1 ms"},
    {"exclude_kind": True},
    {"by_period": "400000 days"},
]


def enqueue_as_asked(client: Client, args: Any, uniqueness: dict[str, Any] | None = None, **options: Any) -> None:
    """What the function is asked in SQL, asked of the client."""
    periods = {"1 ms": timedelta(milliseconds=1), "400000 days": timedelta(days=400_000)}
    if uniqueness is not None:
        by = {name: periods.get(value, value) if name == "by_period" else value for name, value in uniqueness.items()}
        options["unique"] = Unique(**by)
    client.enqueue(None, args, **options)


@pytest.mark.parametrize(
    "options",
    [
        *(
            {"kind": kind}
            for kind in ("", None, "a", "with space", "with,comma", ":leading", "trailing\n", "é", "a" * 129)
        ),
        *({"queue": queue} for queue in ("", "q q", "q" * 65, "ü")),
        *({"priority": priority} for priority in (-32769, 32768)),
        *({"max_attempts": attempts} for attempts in (0, -1, 32768)),
        {"delay": timedelta(seconds=-1)},
        {"delay": timedelta(0), "scheduled_at": datetime(2030, 1, 1, tzinfo=UTC)},
        *({"tags": [tag]} for tag in ("a", "aa", "-aaa", "aaa-", "commas,never", "special@x$", "a" * 256, None)),
        {"metadata": {"a": "x" * 65536}},
        {"args": {"a": "x" * 1048577}},
        *({"uniqueness": uniqueness} for uniqueness in NOT_UNIQUE),
    ],
    ids=lambda options: repr(options)[:60],
)
def test_what_the_client_refuses_the_function_refuses_and_names_it_too(
    client: Client, table: Table, call: Call, options: dict[str, Any]
) -> None:
    asked = {"args": {"n": 1}, "kind": "thing", **options}
    with pytest.raises(psycopg.errors.InvalidParameterValue) as in_sql:
        call(**asked)
    with pytest.raises(InvalidJob) as in_python:
        enqueue_as_asked(client, **asked)
    assert in_sql.value.diag.message_primary is not None
    said = in_sql.value.diag.message_primary
    words = ["by_state", "by_period", "exclude_kind", "by_args", "metadata", "args", "max_attempts", "priority"]
    words += ["delay", "tag", "queue", "kind"]
    about = next(word for word in words if word in str(in_python.value))
    assert about in said
    assert table.query("SELECT count(*) FROM {schema}.job") == [(0,)]


@pytest.mark.parametrize(
    "uniqueness",
    [
        [],
        "text",
        5,
        {"by_arg": True},
        {"by_queue": "yes"},
        {"by_args": "n"},
        {"by_state": "available"},
        {"by_period": "1 month"},
    ],
    ids=repr,
)
def test_what_only_json_can_say_wrongly_is_refused_too(call: Call, uniqueness: object) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="uniqueness"):
        call(uniqueness=json.dumps(uniqueness))


@pytest.mark.parametrize(
    "unique",
    [
        Unique(),
        Unique(by_args=True),
        Unique(by_args=["n"], by_queue=True),
        Unique(by_period=timedelta(days=7, microseconds=1)),
        Unique(by_args=["n"], exclude_kind=True, by_state=list(JobState)),
    ],
    ids=lambda unique: unique.to_json()[:60],
)
def test_a_unique_job_of_the_one_is_a_duplicate_for_the_other(client: Client, call: Call, unique: Unique) -> None:
    when = datetime(2040, 1, 1, tzinfo=UTC)
    ours: Job[Any] = client.enqueue(None, {"n": 1}, kind="thing", unique=unique, scheduled_at=when)
    assert call("thing", args={"n": 1.0}, uniqueness=unique.to_json(), scheduled_at=when) == (ours.id, True)
    client.cancel(ours.id)
    if "cancelled" in unique.by_state:
        return
    theirs, duplicate = call("thing", args={"n": 1}, uniqueness=unique.to_json(), scheduled_at=when)
    assert not duplicate
    again: Job[Any] = client.enqueue(None, {"n": 1}, kind="thing", unique=unique, scheduled_at=when)
    assert (again.id, again.duplicate) == (theirs, True)


def test_what_is_left_out_of_uniqueness_has_the_same_default(client: Client, table: Table, call: Call) -> None:
    id, _ = call("thing", uniqueness={"by_args": None, "by_period": None})
    assert client.enqueue(None, {}, kind="thing", unique=Unique()).id == id
    ((states,),) = table.query("SELECT unique_states FROM {schema}.job")
    assert sorted(states) == sorted(Unique().by_state)


def test_it_notifies_like_the_client(client: Client, table: Table, call: Call, connect: Connect) -> None:
    listening = connect(autocommit=True)
    sleep_on(listening, client, "mail", "quiet", "later", "pending", "over")
    call(queue="nobody-sleeps-here")
    call(queue="mail")
    call(queue="quiet", notify=False)
    call(queue="later", delay=timedelta(hours=1))
    call(queue="pending", pending=True)
    call(queue="over")
    heard = []
    for notice in listening.notifies():
        heard.append(notice.payload)
        if notice.payload == "over":
            break
    assert heard == ["mail", "over"]


def test_a_trigger_enqueues_in_its_transaction(client: Client, table: Table, connect: Connect) -> None:
    table.query("CREATE TABLE {schema}.account (email text)")
    table.query(
        "CREATE FUNCTION {schema}.welcome() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "PERFORM {schema}.enqueue('mail.welcome', jsonb_build_object('email', NEW.email), uniqueness => "
        "'{{\"by_args\": true}}'); RETURN NEW; END $$"
    )
    table.query(
        "CREATE TRIGGER welcome AFTER INSERT ON {schema}.account FOR EACH ROW EXECUTE FUNCTION {schema}.welcome()"
    )
    tx: Connection[Any] = connect()
    tx.execute(table.sql("INSERT INTO {schema}.account VALUES ('a@b.c'), ('a@b.c'), ('d@e.f')"))
    tx.rollback()
    tx.execute(table.sql("INSERT INTO {schema}.account VALUES ('a@b.c'), ('a@b.c'), ('d@e.f')"))
    tx.commit()
    assert table.query("SELECT args ->> 'email' FROM {schema}.job ORDER BY id") == [("a@b.c",), ("d@e.f",)]


def test_a_search_path_that_is_somebody_else_s_changes_nothing(client: Client, table: Table, connect: Connect) -> None:
    trap = f"{client.schema}_trap"
    functions = (
        "statement_timestamp() RETURNS timestamptz",
        "jsonb_typeof(jsonb) RETURNS text",
        "sha256(bytea) RETURNS bytea",
        "unique_key(text, text, jsonb, timestamptz, jsonb) RETURNS bytea",
        "pg_notify(text, text) RETURNS void",
        "length(text) RETURNS integer",
        "hashtext(text) RETURNS integer",
        "pg_try_advisory_xact_lock_shared(integer, integer) RETURNS boolean",
    )
    table.query(f"CREATE SCHEMA {trap}")
    try:
        for function in functions:
            body = "$$ BEGIN RAISE EXCEPTION 'trapped'; END $$"
            table.query(f"CREATE FUNCTION {trap}.{function} LANGUAGE plpgsql AS {body}")
        tx = connect(options=f"-c search_path={trap},pg_catalog", autocommit=True)
        with pytest.raises(psycopg.errors.RaiseException, match="trapped"):
            tx.execute("SELECT length('x')")
        statement = "SELECT id FROM {schema}.enqueue('thing', uniqueness => '{{\"by_period\": \"1 day\"}}')"
        row = tx.execute(table.sql(statement)).fetchone()
        assert row is not None
        assert client.get(row[0]) is not None
    finally:
        table.query(f"DROP SCHEMA {trap} CASCADE")
