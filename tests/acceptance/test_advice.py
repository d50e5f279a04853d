"""What an error says beside Postgres' own words when tables or rights are missing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pgjobs import Client, JobFilter, NewJob, Unique

pytestmark = pytest.mark.finding("E3")
THING: dict[str, Any] = {"args": {}, "kind": "thing"}


def locks(client: Client) -> None:
    with client.lock_job():
        pass


def enqueue_borrowed(client: Client) -> None:
    with client.pool.connection() as tx:
        client.enqueue(tx, **THING)


def enqueue_asynchronously(client: Client) -> None:
    async def enqueue() -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as tx:
            await client.aenqueue(tx, **THING)

    with client.pool.connection() as conn:
        dsn = conn.info.dsn
    asyncio.run(enqueue())


CALLS: dict[str, Callable[[Client], object]] = {
    "enqueue": lambda client: client.enqueue(None, **THING),
    "enqueue on a tx": enqueue_borrowed,
    "aenqueue": lambda client: asyncio.run(client.aenqueue(None, **THING)),
    "aenqueue on a tx": enqueue_asynchronously,
    "aget": lambda client: asyncio.run(client.aget(1)),
    "await_job": lambda client: asyncio.run(client.await_job(1)),
    "unique": lambda client: client.enqueue(None, **THING, unique=Unique()),
    "delayed": lambda client: client.enqueue(None, **THING, pending=True),
    "many": lambda client: client.enqueue_many(None, [NewJob(**THING)] * 30),
    "many counted": lambda client: client.enqueue_many(None, [NewJob(**THING)] * 30, returning=False),
    "cancel": lambda client: client.cancel(1),
    "retry": lambda client: client.retry(1),
    "cancel_many": lambda client: client.cancel_many(JobFilter(ids=[1])),
    "get": lambda client: client.get(1),
    "wait": lambda client: client.wait(1),
    "list": lambda client: client.list_jobs(),
    "count": lambda client: client.count(),
    "workers": lambda client: client.workers(),
    "figures": lambda client: client.queues.stats(),
    "pause": lambda client: client.queues.pause("default"),
    "schedules": lambda client: client.schedules.list(),
    "lock_job": locks,
}


def notes(call: Callable[[], object]) -> str:
    with pytest.raises(psycopg.Error) as raised:
        call()
    return " ".join(getattr(raised.value, "__notes__", ()))


@pytest.mark.parametrize("name", list(CALLS))
def test_without_tables_every_call_says_how_to_make_them(name: str, database: str, schema: str) -> None:
    """A call on a database without the tables raised a raw UndefinedTable."""
    with Client(database, schema=schema) as client:
        said = notes(lambda: CALLS[name](client))
    assert f"`pgjobs migrate --schema {schema}` or client.migrate()" in said
    assert said.count("client.migrate()") == 1


@pytest.fixture
def query(client: Client) -> Callable[[str], None]:
    def run(text: str) -> None:
        with client.pool.connection() as conn:
            conn.execute(sql.SQL(text).format(s=sql.Identifier(client.schema)))

    return run


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ("ALTER TABLE {s}.job DROP COLUMN priority", "enqueue"),
        ("DROP FUNCTION {s}.advisory_class() CASCADE", "enqueue"),
        ("ALTER FUNCTION {s}.unique_states(jsonb) RENAME TO gone", "unique"),
        ("DROP TABLE {s}.worker", "workers"),
    ],
)
def test_tables_of_an_older_version_are_recognised(
    client: Client, query: Callable[[str], None], change: str, name: str
) -> None:
    """A call on older tables raised a raw UndefinedColumn or UndefinedFunction."""
    query(change)
    assert "older than this code" in notes(lambda: CALLS[name](client))


@pytest.fixture
def stranger(client: Client, query: Callable[[str], None], database: str) -> Iterator[Client]:
    """A client whose role has no right at all."""
    role = f"{client.schema}_stranger"
    query(f"CREATE ROLE {role}")
    with Client(psycopg.conninfo.make_conninfo(database, options=f"-c role={role}"), schema=client.schema) as other:
        yield other
    query(f"DROP ROLE {role}")


@pytest.mark.parametrize("name", list(CALLS))
def test_a_role_without_the_right_is_told_where_the_grants_are(name: str, stranger: Client) -> None:
    """A role without a right was told which table, and not what a role needs."""
    said = notes(lambda: CALLS[name](stranger))
    assert f"`pgjobs roles --sql --schema {stranger.schema}`" in said


def fails_in_lock_job(client: Client) -> None:
    with client.lock_job() as (tx, job):
        assert job is not None
        tx.execute("SELECT 1 FROM no_such_table")


def test_errors_of_the_application_get_no_such_advice(
    client: Client, database: str, query: Callable[[str], None]
) -> None:
    """The advice is about the tables of pgjobs: an error of a middleware, a handler or a trigger has other causes."""

    def middleware(tx: Any, jobs: Any, insert: Any) -> Any:
        tx.execute("SELECT 1 FROM no_such_table")
        return insert(jobs)

    with Client(database, schema=client.schema, middleware=[middleware]) as other:
        assert notes(lambda: other.enqueue(None, **THING)) == ""

    client.enqueue(None, **THING)
    with Client(database, schema=client.schema, work_map={"thing": lambda tx, job: None}) as other:
        assert notes(lambda: fails_in_lock_job(other)) == ""

    query(
        "CREATE FUNCTION {s}.audit() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN INSERT INTO no_such_table VALUES (1); RETURN NEW; END'"
    )
    query("CREATE TRIGGER audit BEFORE INSERT ON {s}.job FOR EACH ROW EXECUTE FUNCTION {s}.audit()")
    assert notes(lambda: client.enqueue(None, **THING)) == ""
