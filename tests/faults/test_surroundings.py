"""What stands around the workers: a pooler, a wrong clock, a second schema, great numbers, another version."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy.orm import Session

from pgjobs import Client, Job, JobState, NewJob, QueueSettings, Unique, WorkerPool, constant
from pgjobs.db.source import in_autocommit
from pgjobs.embedded import EmbeddedPostgres
from tests.acceptance.frameworks import Effect, SQLAlchemyApp, trial
from tests.conftest import new_database
from tests.faults.ledger import Ledger
from tests.faults.servers import FAKETIME, PGBOUNCER, pgbouncer, through
from tests.faults.workers import ROOT, Nursery
from tests.waiting import wait_until

_OTHERWISE = ("directly", "not at all")


@pytest.fixture
def pooler(ledger: Ledger) -> Iterator[str]:
    """The way to the ledger's database through PgBouncer in transaction mode, with four connections to the server."""
    with pgbouncer(ledger.dsn) as port:
        yield through(ledger.dsn, port)


@pytest.mark.skipif(PGBOUNCER is None, reason="there is no pgbouncer here")
@pytest.mark.parametrize("listen", ["through it", *(pytest.param(how, marks=pytest.mark.slow) for how in _OTHERWISE)])
def test_f17_jobs_retries_and_rescues_work_through_a_pooler_in_transaction_mode(
    ledger: Ledger, nursery: Nursery, pooler: str, listen: str
) -> None:
    """LISTEN is accepted there and hears nothing: the poll interval is what is left then."""
    worker = nursery.start(
        dsn=pooler,
        ledger=ledger.dsn,
        queues={"default": 3},
        poll=60 if listen == "directly" else 0.2,
        listen=listen != "not at all",
        listen_dsn=ledger.dsn if listen == "directly" else None,
    )
    jobs = [ledger.enqueue() for _ in range(30)] + [ledger.enqueue("return", first="fail now") for _ in range(3)]
    ledger.wait_drained()
    ledger.check()
    assert [len(ledger.starts(job)) for job in jobs] == [1] * 30 + [2] * 3
    later = ledger.enqueue(delay=timedelta(seconds=0.1))
    wait_until(lambda: ledger.effects(later) == [1], timeout=5)
    assert worker.alive
    assert "prepared statement" not in nursery.log
    assert nursery.log.count("connected through a pooler") == (listen == "through it"), "said once, where it matters"


@pytest.mark.slow
@pytest.mark.skipif(PGBOUNCER is None, reason="there is no pgbouncer here")
def test_f17_a_worker_that_is_killed_behind_a_pooler_frees_its_jobs(
    ledger: Ledger, nursery: Nursery, pooler: str
) -> None:
    jobs = [ledger.enqueue(first="sleep 60"), ledger.enqueue(first="sql 60")]
    dying = nursery.start(dsn=pooler, ledger=ledger.dsn, queues={"default": 2}, timeout=5)
    for job in jobs:
        ledger.wait_started(job)
    dying.kill()
    nursery.start(dsn=pooler, ledger=ledger.dsn, queues={"default": 2}, poll=0.2)
    ledger.wait_drained(timeout=40)
    ledger.check()
    assert [len(ledger.starts(job)) for job in jobs] == [2, 2]


@pytest.mark.skipif(PGBOUNCER is None, reason="there is no pgbouncer here")
def test_f17_nothing_is_prepared_behind_a_pooler(ledger: Ledger, pooler: str) -> None:
    """Neither by psycopg nor for pgjobs itself: statements that are sent often, for enqueues and by handlers."""
    seen: list[Any] = []

    def handler(tx: psycopg.Connection[Any], job: Job[Any]) -> None:
        row = tx.execute("SELECT count(*) FROM pg_prepared_statements").fetchone()
        seen.append((tx.prepare_threshold, row))

    with Client(pooler, schema="apart") as client:
        client.migrate()
        for _ in range(20):
            client.enqueue(None, {}, kind="any")
        with WorkerPool(client, {"any": handler}, queues={"default": 1}):
            wait_until(lambda: len(seen) == 20)
        with client.pool.connection() as conn, in_autocommit(conn):
            assert conn.prepare_threshold is None
            conn.execute("DROP SCHEMA apart CASCADE")
    assert set(seen) == {(None, (0,))}


@pytest.mark.skipif(PGBOUNCER is None, reason="there is no pgbouncer here")
def test_an_engine_of_sqlalchemy_behind_a_pooler_keeps_every_promise(fault_server: EmbeddedPostgres) -> None:
    """Eight threads on four connections to the server: a rollback, retries, and a job that a handler enqueues."""
    with new_database(fault_server.dsn) as dsn, pgbouncer(dsn) as port:
        settings: dict[str, Any] = {"pool_size": 8, "connect_args": {"prepare_threshold": None}}
        app = SQLAlchemyApp(through(dsn, port), "pgjobs", **settings)

        def handler(session: Session, job: Job[Any]) -> None:
            n = job.args["n"]
            session.add(Effect(note=f"{n} of {job.attempt}"))
            if n == 1:
                app.client.enqueue(session, {"n": 1000}, kind="test")
            if n % 10 == 0 and job.attempt == 1:
                session.flush()
                raise ValueError("every tenth fails at first")

        with trial(app, dsn) as made:
            with Session(app.engine) as session:
                session.add(Effect(note="rolled back"))
                app.client.enqueue(session, {"n": -1}, kind="test")
                session.rollback()
            app.client.enqueue_many(None, [NewJob({"n": n}, kind="test") for n in range(100)])
            quick: dict[str, Any] = {"backoff": constant(timedelta(0)), "poll_interval": timedelta(seconds=0.2)}
            with WorkerPool(app.client, {"test": handler}, queues={"default": 8}, **quick):
                wait_until(lambda: app.client.count().by_state[JobState.COMPLETED] == 101, timeout=60)
            assert sorted(made.effects) == sorted(f"{n} of {1 + (n % 10 == 0)}" for n in [*range(100), 1000])


@pytest.mark.skipif(PGBOUNCER is None, reason="there is no pgbouncer here")
def test_f17_asynchronous_code_enqueues_through_a_pooler(ledger: Ledger, pooler: str) -> None:
    """More connections than the pooler has to the server; each job goes the way of its transaction."""

    async def enqueue(number: int) -> None:
        async with await psycopg.AsyncConnection.connect(pooler, prepare_threshold=None) as conn:
            for commits in (True, False):
                await ledger.client.aenqueue(conn, {"n": number}, kind="plain")
                await ledger.client.aenqueue(conn, {"n": number}, kind="unique", unique=Unique(by_args=True))
                await ledger.client.aenqueue_many(conn, [NewJob({"n": n}, kind="many") for n in range(25)])
                await (conn.commit() if commits else conn.rollback())

    async def main() -> None:
        await asyncio.gather(*(enqueue(number) for number in range(12)))

    asyncio.run(main())
    counted = ledger.sql("SELECT kind, count(*) FROM {schema}.job GROUP BY 1 ORDER BY 1")
    assert counted == [("many", 300), ("plain", 12), ("unique", 12)]


@pytest.mark.conformance(346)
def test_f18_two_schemas_of_a_database_do_not_touch_each_other(ledger: Ledger, nursery: Nursery) -> None:
    """Neither takes, wakes, rescues or cleans for the other, nor waits for its duties."""
    other = Ledger(ledger.dsn, schema="pgjobs_2")
    try:
        nursery.start(dsn=ledger.dsn, poll=60)
        ours, theirs = [ledger.enqueue() for _ in range(5)], [other.enqueue() for _ in range(5)]
        ledger.wait_drained()
        before = other.sql("SELECT md5(string_agg(job::text, ' ' ORDER BY id)) FROM {schema}.job")
        duties = other.sql("SELECT duty, next_run_at FROM {schema}.maintenance ORDER BY duty")
        assert other.unfinished() == 5
        with psycopg.connect(ledger.dsn, autocommit=True) as ear:
            ear.execute(f'LISTEN "{other.client.queries.channel}"')
            more = ledger.enqueue()
            wait_until(lambda: ledger.effects(more) == [1])
            assert list(ear.notifies(timeout=0.2)) == []
        assert other.sql("SELECT md5(string_agg(job::text, ' ' ORDER BY id)) FROM {schema}.job") == before
        assert other.sql("SELECT duty, next_run_at FROM {schema}.maintenance ORDER BY duty") == duties
        with psycopg.connect(ledger.dsn) as holder:  # of all the duties of the first
            holder.execute('SELECT FROM "pgjobs".maintenance FOR UPDATE')
            nursery.start(dsn=ledger.dsn, schema="pgjobs_2")
            other.wait_drained()
            wait_until(lambda: other.sql("SELECT duty, next_run_at FROM {schema}.maintenance ORDER BY duty") > duties)
        assert [ledger.effects(job) for job in ours] == [other.effects(job) for job in theirs] == [[1]] * 5
        ledger.check()
        other.check()
    finally:
        other.close()


def test_f18_the_same_schema_in_two_databases(fault_server: EmbeddedPostgres, ledger: Ledger, nursery: Nursery) -> None:
    with new_database(fault_server.dsn) as dsn:
        other = Ledger(dsn)
        nursery.start(dsn=ledger.dsn, poll=60)
        ours, theirs = ledger.enqueue(), other.enqueue()
        ledger.wait_drained()
        assert other.unfinished() == 1
        nursery.start(dsn=dsn)
        other.wait_drained()
        assert (ledger.effects(ours), other.effects(theirs)) == ([1], [1])
        ledger.check()
        other.check()
        other.close()


@pytest.mark.parametrize(
    "last", [2**31 - 2, *(pytest.param(n, marks=pytest.mark.slow) for n in (2**53 - 1, 2**63 - 4))]
)
def test_f19_ids_may_be_as_great_as_they_come(ledger: Ledger, nursery: Nursery, last: int) -> None:
    ledger.sql(f"ALTER TABLE {{schema}}.job ALTER id RESTART {last}")
    jobs = [ledger.enqueue(), ledger.enqueue(first="fail once"), ledger.enqueue()]
    assert [job.id for job in jobs] == [last, last + 1, last + 2]
    nursery.start(dsn=ledger.dsn)
    ledger.wait_drained()
    ledger.check()
    assert [ledger.effects(job) for job in jobs] == [[1], [2], [1]]


@pytest.mark.skipif(FAKETIME is None, reason="there is no faketime here")
@pytest.mark.conformance(343)
@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["+1h", "-1h"])
def test_f28_a_worker_whose_clock_is_wrong_runs_every_job_at_its_time(
    ledger: Ledger, tmp_path: Path, wrong: str
) -> None:
    """By the clock of the database: none early, none late, and no live job is rescued."""
    clock = {"FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    with Nursery(tmp_path, prefix=[str(FAKETIME), "-f", wrong], env=clock) as nursery:
        worker = nursery.start(dsn=ledger.dsn, queues={"default": 3})
        wait_until(lambda: "default (3 threads)" in worker.log)
        running = ledger.enqueue("sleep 4.5")
        failing = ledger.enqueue(first="fail once")
        delayed = ledger.enqueue(delay=timedelta(seconds=2))
        ledger.wait_drained()
        ledger.check()
        logged = re.findall(r"(?m)^\d+-\d+-\d+ (\d+):", worker.log)
        now = ledger.sql("SELECT to_char(now() AT TIME ZONE 'UTC', 'HH24')::int")[0][0]
        assert int(logged[0]) != now, "the clock is indeed wrong"
    assert [ledger.effects(job) for job in (running, failing, delayed)] == [[1], [2], [1]]
    late = "SELECT count(*) FROM {schema}.start WHERE at > due + interval '3 s'"  # an hour it would be; early is I15
    assert ledger.sql(late) == [(0,)]
    backoff = (
        "SELECT at - (SELECT (errors -> 0 ->> 'at')::timestamptz FROM {schema}.job WHERE id = job) FROM {schema}.start"
    )
    pause = ledger.sql(backoff + " WHERE job = %s AND attempt = 2", failing.id)[0][0]
    assert timedelta(seconds=0.9) <= pause < timedelta(seconds=4)


@pytest.fixture
def next_version(tmp_path: Path) -> Path:
    """A copy of the library that is one migration further: a column and a table that this version does not know."""
    root = tmp_path / "next"
    for directory in ("pgjobs", "sql"):
        shutil.copytree(ROOT / directory, root / directory, ignore=shutil.ignore_patterns("__pycache__"))
    migrations = root / "sql" / "migrations"
    number = 1 + max(int(file.name[:4]) for file in migrations.glob("*.sql"))
    (migrations / f"{number:04}_next.sql").write_text(
        "-- name: up\n-- What a later version might add.\n"
        "ALTER TABLE pgjobs.job ADD later text;\nCREATE TABLE pgjobs.later (id bigint PRIMARY KEY);\n"
        "-- name: down\nDROP TABLE pgjobs.later;\nALTER TABLE pgjobs.job DROP later;\n"
    )
    return root


@pytest.mark.conformance(351)
def test_a_rolling_deploy_loses_and_doubles_nothing(
    ledger: Ledger, nursery: Nursery, next_version: Path, tmp_path: Path
) -> None:
    """Workers of this version and of the next on one schema, which is migrated while the old ones work."""
    old = nursery.start(dsn=ledger.dsn, queues={"default": 2})
    first = [ledger.enqueue("sleep 0.02") for _ in range(20)]
    with Nursery(tmp_path, root=next_version) as later:
        migrating = later.start(dsn=ledger.dsn, queues={"default": 2}, migrate=True)
        wait_until(lambda: ledger.sql("SELECT to_regclass('{schema}.later') IS NOT NULL") == [(True,)])
        second = [ledger.enqueue("sleep 0.02", first="fail once") for _ in range(20)]
        query = "SELECT DISTINCT pid FROM {schema}.effect WHERE job = ANY (%s)"
        ids = [job.id for job in first + second]
        wait_until(lambda: len(ledger.sql(query, ids)) == 2)
        ledger.wait_drained()
        ledger.check_rows()
        assert (old.alive, migrating.alive) == (True, True)
        assert [ledger.effects(job) for job in second] == [[2]] * 20


def on_all_servers(pooler: str, statement: str) -> list[Any]:
    """What a statement gives on each of the pooler's four connections to the server."""
    with ExitStack() as opened:
        conns = [opened.enter_context(psycopg.connect(pooler, prepare_threshold=None)) for _ in range(4)]
        cursors = [conn.execute(statement.encode()) for conn in conns]
        return [cursor.fetchall() if cursor.description else [] for cursor in cursors]


def break_off(tx: psycopg.Connection[Any]) -> None:
    raise ValueError("once")


ENDS: dict[str, Callable[[psycopg.Connection[Any]], object]] = {
    "returns": lambda tx: None,
    "raises": break_off,
    "is broken": lambda tx: tx.execute("SELECT 1/0"),
    "fails at its commit": lambda tx: tx.execute("INSERT INTO apart.child VALUES (4711)"),
}


@pytest.fixture
def apart(pooler: str) -> Iterator[Client]:
    """A client behind the pooler, in a schema with a table that refuses a row at the commit."""
    with Client(pooler, schema="apart") as client:
        client.migrate()
        with client.pool.connection() as conn:
            conn.execute("CREATE TABLE apart.parent (id bigint PRIMARY KEY)")
            conn.execute("CREATE TABLE apart.child (p bigint REFERENCES apart.parent DEFERRABLE INITIALLY DEFERRED)")
        yield client
        with client.pool.connection() as conn:
            conn.execute("DROP SCHEMA apart CASCADE")


@pytest.mark.finding("W15")
@pytest.mark.skipif(PGBOUNCER is None, reason="there is no pgbouncer here")
@pytest.mark.parametrize("batch_size", [1, 5])
@pytest.mark.parametrize("ends", ENDS)
def test_what_a_handler_prepares_behind_a_pooler_ends_with_its_job(
    apart: Client, pooler: str, ends: str, batch_size: int
) -> None:
    """It stayed on the server's connection, where the next one to use that name failed, whoever that was."""
    errors: list[str] = []

    def handler(tx: psycopg.Connection[Any], job: Job[Any]) -> None:
        try:
            tx.execute("PREPARE mine AS SELECT 1")
            tx.execute('PREPARE "a ""name; of mine" AS SELECT 2')
        except psycopg.Error as error:
            errors.append(str(error))
            raise
        if job.attempt == 1:
            ENDS[ends](tx)

    on_all_servers(pooler, "DEALLOCATE ALL")
    on_all_servers(pooler, "PREPARE theirs AS SELECT 3")
    jobs: list[Job[Any]] = [apart.enqueue(None, {}, kind="any") for _ in range(12)]

    def states() -> set[JobState]:
        return {found.state for job in jobs if (found := apart.get(job.id)) is not None}

    queues = {"default": QueueSettings(2, batch_size=batch_size)}
    with WorkerPool(apart, {"any": handler}, queues=queues, backoff=constant(timedelta(0))):
        wait_until(lambda: states() == {JobState.COMPLETED}, 30)
    left = on_all_servers(pooler, "SELECT name FROM pg_prepared_statements ORDER BY name")
    assert (errors, left) == ([], [[("theirs",)]] * 4), "what others have prepared stays"
