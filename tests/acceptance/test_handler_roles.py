"""Handlers that take another role, for row-level security: what they do is that role's, what pgjobs writes is not."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import ConnectionPool
from sqlalchemy import URL, create_engine, text

from pgjobs import Client, Handler, Job, JobState, NotRunning, QueueSettings, Snooze, WorkerPool, constant
from pgjobs.contrib.sqlalchemy import SQLAlchemySource
from tests.samples import Tx
from tests.waiting import wait_until

Act = Callable[[Any], object]
LATER = constant(timedelta(hours=1))


@dataclass
class Roles:
    """A worker that may do what pgjobs needs, and a tenant that sees its own rows of one table and nothing else."""

    dsn: str  # the worker's
    schema: str
    worker: str
    tenant: str
    admin: Client

    def sql(self, query: str) -> sql.Composed:
        names = {name: sql.Identifier(getattr(self, name)) for name in ("schema", "worker", "tenant")}
        return sql.SQL(query).format(**names)

    def effects(self) -> list[tuple[Any, ...]]:
        with self.admin.pool.connection() as conn:
            rows = conn.execute(self.sql("SELECT tenant, job FROM {schema}.effect ORDER BY job")).fetchall()
        return [tuple(row) for row in rows]


SETUP = """
CREATE ROLE {worker} LOGIN; CREATE ROLE {tenant}; GRANT {tenant} TO {worker};
GRANT USAGE ON SCHEMA {schema} TO {worker}, {tenant};
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {worker};
CREATE TABLE {schema}.effect (job bigint, tenant text DEFAULT current_user);
ALTER TABLE {schema}.effect ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON {schema}.effect USING (tenant = current_user) WITH CHECK (tenant = current_user);
GRANT SELECT, INSERT ON {schema}.effect TO {tenant};
"""


@pytest.fixture
def roles(client: Client, database: str) -> Iterator[Roles]:
    suffix = uuid.uuid4().hex[:8]
    worker, tenant = f"worker_{suffix}", f"tenant_{suffix}"
    made = Roles(make_conninfo(database, user=worker), client.schema, worker, tenant, client)
    with client.pool.connection() as conn:
        conn.execute(made.sql(SETUP))
    yield made
    with client.pool.connection() as conn:
        conn.execute(made.sql("DROP OWNED BY {worker}, {tenant}; DROP ROLE {worker}, {tenant}"))


def run(roles: Roles, client: Client, act: Act, *, fails: BaseException | None = None, **options: Any) -> Job[Any]:
    """Three jobs of one thread, the second of which does the act; that one as it is when all have been started."""
    started: list[int] = []

    def handler(tx: Any, job: Job[Any]) -> None:
        started.append(job.id)
        if job.id == jobs[1].id:
            act(tx)
            tx.execute(effect.encode())
            if fails is not None:
                raise fails

    effect = f'INSERT INTO "{roles.schema}".effect (job) VALUES (7)'
    jobs: list[Job[Any]] = [roles.admin.enqueue(None, {}, kind="any") for _ in range(3)]
    queues = {"default": QueueSettings(1, **options.pop("queue", {}))}
    with WorkerPool(client, {"any": handler}, queues=queues, backoff=LATER):
        wait_until(lambda: len(set(started)) == 3)
    found = [roles.admin.get(job.id) for job in jobs]
    assert [job and job.state for job in (found[0], found[2])] == [JobState.COMPLETED] * 2
    assert found[1] is not None
    return found[1]


def takes(roles: Roles, how: str) -> Act:
    return lambda tx: tx.execute(how.format(tenant=roles.tenant))


HOW = [
    'SET LOCAL ROLE "{tenant}"',
    'SET ROLE "{tenant}"',
    "SELECT set_config('role', '{tenant}', true)",
]


@pytest.fixture(params=["hot", "plain", "batch", "role of the connection", "role of the pool"])
def worker(request: pytest.FixtureRequest, roles: Roles) -> Iterator[tuple[Client, dict[str, Any]]]:
    """A client as the worker's role, and the settings of its queue."""
    kwargs: dict[str, Any] = {"prepare_threshold": None if request.param == "plain" else 5}
    configure, dsn = None, roles.dsn
    if request.param.startswith("role of"):  # the login itself may do nothing
        login = f"login_{roles.worker}"
        with roles.admin.pool.connection() as conn:
            query = "CREATE ROLE {0} LOGIN NOINHERIT; GRANT {1}, {2} TO {0}"
            names = [sql.Identifier(name) for name in (login, roles.worker, roles.tenant)]
            conn.execute(sql.SQL(query).format(*names))
            if request.param == "role of the connection":
                conn.execute(sql.SQL("ALTER ROLE {} SET role = {}").format(*names))
        dsn = make_conninfo(dsn, user=login)

        def take_role(conn: psycopg.Connection[Any]) -> None:
            conn.execute(roles.sql("SET ROLE {worker}"))
            conn.commit()

        configure = take_role if request.param == "role of the pool" else None
    with ConnectionPool(dsn, min_size=1, max_size=8, kwargs=kwargs, configure=configure, open=True) as pool:
        yield Client(pool, schema=roles.schema), {"batch_size": 5} if request.param == "batch" else {}
    if request.param.startswith("role of"):
        with roles.admin.pool.connection() as conn:
            conn.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(login)))


@pytest.mark.finding("W14")
@pytest.mark.parametrize("how", HOW)
def test_a_handler_that_takes_the_role_of_a_tenant_completes_its_job(
    roles: Roles, worker: tuple[Client, dict[str, Any]], how: str
) -> None:
    """One by one it always failed: its completion was written as the tenant, who has no rights on the jobs."""
    client, queue = worker
    job = run(roles, client, takes(roles, how), queue=queue)
    assert (job.state, job.errors) == (JobState.COMPLETED, ())
    assert roles.effects() == [(roles.tenant, 7)]


@pytest.mark.finding("W14")
@pytest.mark.parametrize("keeps", [False, True], ids=["keeps nothing", "keeps metadata and output"])
def test_a_tenant_that_may_not_even_see_the_schema_completes_its_job(
    roles: Roles, worker: tuple[Client, dict[str, Any]], keeps: bool
) -> None:
    """The first completion of each form on a connection was prepared as the tenant, and so it failed."""
    client, queue = worker
    with roles.admin.pool.connection() as conn:
        conn.execute(roles.sql("REVOKE USAGE ON SCHEMA {schema} FROM {tenant}"))

    def handler(tx: Any, job: Job[Any]) -> None:
        takes(roles, HOW[0])(tx)
        if keeps:
            job.set_metadata(seen=True)
            job.record_output("done")

    jobs: list[Job[Any]] = [roles.admin.enqueue(None, {}, kind="any") for _ in range(3)]
    with WorkerPool(client, {"any": handler}, queues={"default": QueueSettings(1, **queue)}, backoff=LATER):
        done = [roles.admin.wait(job, timeout=timedelta(seconds=30)) for job in jobs]
    assert [(job.state, job.errors) for job in done] == [(JobState.COMPLETED, ())] * 3


@pytest.mark.finding("W14")
@pytest.mark.parametrize(
    ("error", "state"),
    [(ValueError("of the handler"), JobState.RETRYABLE), (Snooze(timedelta(hours=1)), JobState.SCHEDULED)],
    ids=["error", "snooze"],
)
def test_a_handler_that_takes_a_role_and_fails_is_recorded(
    roles: Roles, worker: tuple[Client, dict[str, Any]], error: BaseException, state: JobState
) -> None:
    """What its transaction ends with must be that of the role that claimed."""
    client, queue = worker
    job = run(roles, client, takes(roles, HOW[0]), fails=error, queue=queue)
    assert (job.state, roles.effects()) == (state, [])
    assert [each.error for each in job.errors] == (["of the handler"] if state is JobState.RETRYABLE else [])


@pytest.mark.finding("W14")
def test_a_role_that_a_handler_commits_is_not_that_of_the_record(
    roles: Roles, worker: tuple[Client, dict[str, Any]]
) -> None:
    """The record of the attempt failed three times and was left to the rescue, and so was that of its neighbours."""
    client, queue = worker

    def commits(tx: Tx) -> None:
        tx.execute(roles.sql("SET ROLE {tenant}"))
        tx.execute("COMMIT")

    job = run(roles, client, commits, queue=queue)
    assert job.state is JobState.RETRYABLE
    assert "ended its transaction itself" in (job.last_error or "")


@pytest.mark.finding("W14")
def test_a_batch_whose_transaction_a_handler_ends_is_recorded_by_the_role_that_claimed(roles: Roles) -> None:
    """The role that the application sets in its sessions was gone by then, and the login may do nothing."""
    login = f"login_{roles.worker}"
    names = [sql.Identifier(name) for name in (login, roles.worker)]
    with roles.admin.pool.connection() as conn:
        conn.execute(sql.SQL("CREATE ROLE {0} LOGIN NOINHERIT; GRANT {1} TO {0}").format(*names))

    def configure(conn: Tx) -> None:
        conn.execute(roles.sql("SET ROLE {worker}"))
        conn.commit()

    dsn = make_conninfo(roles.dsn, user=login)
    try:
        with ConnectionPool(dsn, min_size=1, max_size=4, configure=configure, open=True) as pool:
            client = Client(pool, schema=roles.schema)
            job = run(roles, client, lambda tx: tx.execute("SELECT 1; COMMIT"), queue={"batch_size": 5})
        assert job.state is JobState.RETRYABLE
        assert "ended its transaction itself" in (job.last_error or "")
    finally:
        with roles.admin.pool.connection() as conn:
            conn.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(names[0]))


@pytest.mark.finding("W14")
@pytest.mark.parametrize("fails", [False, True])
def test_a_job_that_is_locked_by_hand_may_take_a_role_too(
    roles: Roles, worker: tuple[Client, dict[str, Any]], *, fails: bool
) -> None:
    """Its completion was written as the tenant."""
    client, _ = worker
    job: Job[Any] = roles.admin.enqueue(None, {}, kind="any", max_attempts=1)
    try:
        with client.lock_job() as (tx, locked):
            assert locked is not None
            tx.execute(roles.sql("SET LOCAL ROLE {tenant}"))
            if fails:
                raise ValueError("of the block")
    except ValueError:
        assert fails
    found = roles.admin.get(job.id)
    assert found is not None
    assert found.state is (JobState.DISCARDED if fails else JobState.COMPLETED)


@pytest.mark.finding("W14")
def test_a_session_of_sqlalchemy_may_take_a_role_too(roles: Roles) -> None:
    """Its completion was written as the tenant."""
    where: dict[str, Any] = dict(conninfo_to_dict(roles.dsn))
    engine = create_engine(URL.create("postgresql+psycopg", query={name: str(value) for name, value in where.items()}))
    try:
        client = Client(SQLAlchemySource(engine), schema=roles.schema)

        def handler(session: Any, job: Job[Any]) -> None:
            session.execute(text(f'SET LOCAL ROLE "{roles.tenant}"'))
            session.execute(text(f'INSERT INTO "{roles.schema}".effect (job) VALUES (7)'))

        job: Job[Any] = roles.admin.enqueue(None, {}, kind="any")
        assert WorkerPool(client, {"any": handler}).work_one()
        client.close()
        found = roles.admin.get(job.id)
        assert found is not None
        assert (found.state, found.errors) == (JobState.COMPLETED, ())
        assert roles.effects() == [(roles.tenant, 7)]
    finally:
        engine.dispose()


@pytest.mark.finding("W14")
def test_a_detached_handler_completes_its_job_in_a_transaction_with_a_role(
    roles: Roles, worker: tuple[Client, dict[str, Any]]
) -> None:
    """The completion was refused. Behind it the role is the tenant's again."""
    client, _ = worker
    seen: list[object] = []

    def handler(tx: None, job: Job[Any]) -> None:
        with client.pool.connection() as own:
            own.execute(roles.sql("SET LOCAL ROLE {tenant}"))
            job.complete(own)
            own.execute(roles.sql("INSERT INTO {schema}.effect (job) VALUES (7)"))
            seen.append(own.execute("SELECT current_user::text").fetchone())
        with client.pool.connection() as own:
            seen.append(own.execute("SELECT current_user::text").fetchone())

    job: Job[Any] = roles.admin.enqueue(None, {}, kind="any")
    assert WorkerPool(client, {"any": Handler(handler, detached=True)}).work_one()
    found = roles.admin.get(job.id)
    assert found is not None
    assert (found.state, found.errors) == (JobState.COMPLETED, ())
    assert seen == [(roles.tenant,), (roles.worker,)]
    assert roles.effects() == [(roles.tenant, 7)]


def test_a_completion_that_is_refused_leaves_a_detached_handler_in_its_role(
    roles: Roles, worker: tuple[Client, dict[str, Any]]
) -> None:
    """After NotRunning the transaction is usable, and what follows was done with the rights of the worker."""
    client, _ = worker
    seen: list[object] = []

    def handler(tx: None, job: Job[Any]) -> None:
        with client.pool.connection() as own:
            own.execute(roles.sql("SET LOCAL ROLE {tenant}"))
            job.complete(own)
            with pytest.raises(NotRunning):
                job.complete(own)
            seen.append(own.execute("SELECT current_user::text").fetchone())

    job: Job[Any] = roles.admin.enqueue(None, {}, kind="any")
    assert WorkerPool(client, {"any": Handler(handler, detached=True)}).work_one()
    found = roles.admin.get(job.id)
    assert found is not None
    assert (found.state, found.errors) == (JobState.COMPLETED, ())
    assert seen == [(roles.tenant,)]


@pytest.mark.finding("W14")
def test_a_role_with_any_name_is_undone(client: Client) -> None:
    """What undoes it names the role that claimed, which may be called anything."""
    names = ["100%; q'uo\"ted %(role)s", "r\N{LATIN SMALL LETTER O WITH DIAERESIS}le\\"]
    for name in names:
        with client.pool.connection() as conn:
            grants = "GRANT USAGE ON SCHEMA {1} TO {0}; GRANT ALL ON ALL TABLES IN SCHEMA {1} TO {0}"
            query = sql.SQL("CREATE ROLE {0}; " + grants)
            conn.execute(query.format(sql.Identifier(name), sql.Identifier(client.schema)))
        take = sql.SQL("SET ROLE {}").format(sql.Identifier(name))

        def configure(conn: Tx, take: sql.Composed = take) -> None:
            conn.execute(take)
            conn.commit()

        try:
            for threshold in (5, None):
                with ConnectionPool(
                    client.pool.conninfo, min_size=1, max_size=4, kwargs={"prepare_threshold": threshold},
                    configure=configure, open=True,
                ) as pool:  # fmt: skip
                    job: Job[Any] = client.enqueue(None, {}, kind="any")
                    handlers = {"any": lambda tx, job: tx.execute("SET LOCAL ROLE NONE")}
                    assert WorkerPool(Client(pool, schema=client.schema), handlers).work_one()
                    found = client.get(job.id)
                    assert found is not None
                    assert (found.state, found.errors) == (JobState.COMPLETED, ())
        finally:
            with client.pool.connection() as conn:
                conn.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(name)))
