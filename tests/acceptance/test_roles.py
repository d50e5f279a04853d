"""What `pgjobs roles --sql` grants: each role does its work as that role, and nothing else."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgjobs import (
    Cancel,
    Client,
    Handler,
    InvalidSetting,
    Job,
    JobFilter,
    JobState,
    NewJob,
    Progress,
    Schedule,
    Snooze,
    UndecodableArgs,
    Unique,
    WorkerPool,
    WorkMap,
    backoff,
    every,
    roles_sql,
)
from pgjobs.metrics import metrics_text
from tests.acceptance.dashboard_site import Site
from tests.conftest import Connect
from tests.scrape import scraped
from tests.waiting import wait_until

ROLES = ("enqueuer", "worker", "viewer", "operator")
DENIED = psycopg.errors.InsufficientPrivilege
ALL_ARGS = Unique(by_args=True)
BY_CARD = Unique(by_args=["number"])


@dataclass
class Card:
    number: int
    owner: str = "somebody"


@dataclass
class Roles:
    """The roles of one schema, and a way to be one of them."""

    client: Client
    dsn: str

    @property
    def names(self) -> dict[str, Any]:
        return {role: f"{self.client.schema}_{role}" for role in ROLES}

    def grant(self, **options: Any) -> None:
        with self.client.pool.connection() as conn:
            conn.execute(roles_sql(self.client.schema, transaction=False, **self.names, **options).encode())

    @contextmanager
    def client_as(self, role: str, **options: Any) -> Iterator[Client]:
        dsn = make_conninfo(self.dsn, options=f"-c role={self.names[role]}")
        with Client(dsn, schema=self.client.schema, **options) as client:
            yield client

    def run(self, role: str, statement: str) -> list[Any]:
        """Run one statement as this role, in a transaction that is rolled back."""
        with self.client.pool.connection() as conn, conn.transaction(force_rollback=True):
            conn.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(self.names[role])))
            cursor = conn.execute(sql.SQL(statement).format(s=sql.Identifier(self.client.schema)))
            return cursor.fetchall() if cursor.description else []

    def denied(self, role: str, statement: str) -> bool:
        try:
            self.run(role, statement)
        except DENIED:
            return True
        return False


@pytest.fixture
def roles(client: Client, database: str) -> Iterator[Roles]:
    made = Roles(client, database)
    made.grant()
    yield made
    with client.pool.connection() as conn:
        for name in made.names.values():
            conn.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
            conn.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def held(job: Job[Any]) -> Any:
    """What the job's args are in JSON."""
    return json.loads(job.raw_args)


# --- the enqueuer


@pytest.mark.finding("S6")
def test_the_enqueuer_enqueues_in_every_way(roles: Roles) -> None:
    """Every enqueue needed SELECT on the args of all jobs, and the grants that suffice were not written anywhere."""
    admin = roles.client
    with roles.client_as("enqueuer") as client:
        one = client.enqueue(None, Card(1), metadata={"b": 1, "aa": [2]}, priority=3)
        again = [client.enqueue(None, Card(1)) for _ in range(3)]  # from the second on it is prepared
        later = client.enqueue(None, Card(2), delay=timedelta(hours=1), tags=["tag"])
        pending = client.enqueue(None, Card(2), pending=True)
        with client.pool.connection() as tx:
            inside = [client.enqueue(tx, Card(3)), client.enqueue(tx, {"x": 1}, kind="loose")]
            many = client.enqueue_many(tx, [Card(number) for number in range(3)])
            copied = client.enqueue_many(tx, [Card(number) for number in range(30)])
        counted = client.enqueue_many(None, [Card(number) for number in range(30)], returning=False)
        by_sql = roles.run("enqueuer", "SELECT id, duplicate FROM {s}.enqueue('card', '{{\"number\": 4}}')")
        unique_by_sql = roles.run(
            "enqueuer", "SELECT duplicate FROM {s}.enqueue('card', '{{}}', uniqueness => '{{}}', delay => '1 hour')"
        )
    assert counted == 30
    assert by_sql[0][1] is False
    assert unique_by_sql == [(False,)]
    for job in [one, *again, later, pending, *inside, *many]:
        assert job == admin.get(job.id), "what comes back is what stands in the table"
    for job in copied:
        stored = admin.get(job.id)
        assert stored is not None
        assert (held(stored), stored.state) == (held(job), job.state)
    assert (later.state, pending.state) == (JobState.SCHEDULED, JobState.PENDING)


@pytest.mark.finding("S6")
def test_the_enqueuer_is_told_of_duplicates_and_not_of_what_others_gave_them(roles: Roles) -> None:
    """A unique enqueue read all columns of the job that has the key, the args of others among them."""
    admin = roles.client
    secret = admin.enqueue(None, Card(1, "her secret"), unique=BY_CARD, metadata={"note": "hers"})
    same = admin.enqueue(None, Card(2), unique=ALL_ARGS)
    with roles.client_as("enqueuer") as client:
        fresh = client.enqueue(None, Card(3), unique=BY_CARD)
        found = client.enqueue(None, Card(1, "mine"), unique=BY_CARD)
        known = client.enqueue(None, Card(2), unique=ALL_ARGS)
        batch = client.enqueue_many(None, [NewJob(Card(1), unique=BY_CARD), NewJob(Card(4), unique=BY_CARD)])
    assert fresh == admin.get(fresh.id)
    assert (found.id, found.duplicate, found.state, found.kind) == (secret.id, True, JobState.AVAILABLE, "card")
    assert "her secret" not in f"{found!r} {vars(found)}"
    assert found.metadata == {}
    with pytest.raises(UndecodableArgs, match="this database role may not read the args"):
        _ = found.args
    assert (known.id, known.duplicate, held(known)) == (same.id, True, {"number": 2, "owner": "somebody"})
    assert [(job.id == secret.id, job.duplicate) for job in batch] == [(True, True), (False, False)]
    assert held(admin.enqueue(None, Card(1, "mine"), unique=BY_CARD)) == {"number": 1, "owner": "her secret"}


def test_the_enqueuer_replaces_what_it_names(roles: Roles) -> None:
    admin = roles.client
    first = admin.enqueue(None, Card(1, "first"), unique=BY_CARD, metadata={"kept": True})
    with roles.client_as("enqueuer") as client:
        args = client.enqueue(None, Card(1, "second"), unique=BY_CARD, replace=["args"])
        assert (args.id, held(args)) == (first.id, {"number": 1, "owner": "second"})
        client.enqueue(None, Card(1), unique=BY_CARD, replace=["priority", "tags"], priority=5, tags=["urgent"])
        later = client.enqueue(None, Card(1), unique=BY_CARD, replace=["scheduled_at"], delay=timedelta(hours=1))
        assert later.state is JobState.SCHEDULED
        whole = client.enqueue(
            None, Card(1, "third"), unique=BY_CARD, replace=True, priority=6, metadata={"new": 1}, max_attempts=7
        )
    stored = admin.get(first.id)
    assert stored is not None
    assert (whole.id, held(stored), stored.priority, stored.max_attempts) == (first.id, held(whole), 6, 7)
    assert (stored.state, stored.tags) == (JobState.AVAILABLE, ())
    assert stored.metadata["kept"] is True
    assert stored.metadata["new"] == 1


@pytest.mark.finding("S6")
@pytest.mark.parametrize(
    "statement",
    [
        *(
            f"SELECT {column} FROM {{s}}.job"
            for column in ("args", "errors", "output", "token", "schedule", "tick", "*")
        ),
        "INSERT INTO {s}.job (kind, schedule, tick) VALUES ('card', 'nightly', now())",
        *(
            f"INSERT INTO {{s}}.job (kind, {column}) VALUES ('card', {value})"
            for column, value in {
                "schedule": "'nightly'",
                "tick": "now()",
                "attempt": "1",
                "errors": "'[]'",
                "output": "'1'",
                "attempted_by": "'{{worker}}'",
                "attempted_at": "now()",
                "finalized_at": "now()",
                "leased_until": "now()",
                "token": "gen_random_uuid()",
            }.items()
        ),
        *(
            f"UPDATE {{s}}.job SET {change}"
            for change in (
                *("attempt = 0", "errors = '[]'", "finalized_at = now()", "attempted_by = '{{}}'", "schedule = 'x'"),
                *("token = NULL", "output = '1'", "queue = 'other'", "kind = 'other'", "unique_key = NULL"),
            )
        ),
        "DELETE FROM {s}.job",
        "TRUNCATE {s}.job",
        "LOCK TABLE {s}.job IN ACCESS EXCLUSIVE MODE",
        *(
            f"SELECT FROM {{s}}.{table}"
            for table in (
                *("queue", "worker", "schedule", "scheduler", "cancel_request", "job_progress", "figure", "audit"),
                "maintenance",
            )
        ),
    ],
)
def test_the_enqueuer_can_do_nothing_else(roles: Roles, statement: str) -> None:
    """With INSERT on the whole table a role could swallow ticks of a schedule, or claim jobs that nobody ran."""
    assert roles.denied("enqueuer", statement), statement


@pytest.mark.finding("S6")
def test_an_enqueuer_without_the_parts_that_are_left_out(roles: Roles) -> None:
    """With INSERT on the whole table a role could take ids that other jobs would have drawn."""
    roles.grant(enqueue_many=False, replace=False)  # takes away what was granted before
    with roles.client_as("enqueuer") as client:
        assert client.enqueue(None, Card(1), unique=BY_CARD).duplicate is False
        assert client.enqueue(None, Card(1), unique=BY_CARD).duplicate is True
        assert client.enqueue_many(None, [Card(1), Card(2)], returning=False) == 2
        with pytest.raises(DENIED):
            client.enqueue_many(None, [Card(1), Card(2)])
        with pytest.raises(DENIED):
            client.enqueue(None, Card(1), unique=BY_CARD, replace=True)
    assert roles.denied("enqueuer", "INSERT INTO {s}.job (id, kind) OVERRIDING SYSTEM VALUE VALUES (99, 'card')")
    assert roles.denied("enqueuer", "SELECT nextval('{s}.job_id_seq')")
    assert roles.denied("enqueuer", "UPDATE {s}.job SET state = 'pending'")
    assert roles.denied("enqueuer", "SELECT metadata FROM {s}.job")


# --- the worker


def fails(tx: Any, job: Job[Any]) -> None:
    raise ValueError("it failed")


def cancels(tx: Any, job: Job[Any]) -> None:
    raise Cancel("not wanted")


def snoozes(tx: Any, job: Job[Any]) -> None:
    if job.error_count == 0 and "slept" not in job.metadata:
        job.set_metadata(slept=True)
        raise Snooze(timedelta(0))


def ends(tx: Any, job: Job[Any]) -> None:
    job.record_output({"done": True})


def detached(tx: Any, job: Job[Any]) -> None: ...


def waits(tx: Any, job: Job[Any]) -> None:
    wait_until(lambda: job.cancelled)
    raise Cancel("told so")


@pytest.mark.finding("S6")
def test_the_worker_works_through_all_endings(roles: Roles, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing said which rights a worker needs, so that it ran as the owner of the tables."""
    admin = roles.client

    handlers = {"ends": ends, "fails": fails, "cancels": cancels, "snoozes": snoozes, "waits": waits}
    work_map = WorkMap({**handlers, "detached": Handler(detached, detached=True)})
    made: dict[str, Job[Any]] = {kind: admin.enqueue(None, {}, kind=kind, max_attempts=1) for kind in work_map}
    future: Job[Any] = admin.enqueue(None, {}, kind="ends", delay=timedelta(seconds=0.5))
    vanished: Job[Any] = admin.enqueue(None, {}, kind="ends")
    old: Job[Any] = admin.enqueue(None, {}, kind="ends")
    with admin.pool.connection() as conn:
        update = sql.SQL("UPDATE {} SET {} WHERE id = %s")
        job = sql.Identifier(admin.schema, "job")
        lost = "state = 'running', attempt = 1, attempted_at = now() - interval '1 minute', token = gen_random_uuid()"
        conn.execute(update.format(job, sql.SQL(lost)), [vanished.id])
        over = "state = 'completed', attempt = 1, finalized_at = now() - interval '30 days'"
        conn.execute(update.format(job, sql.SQL(over)), [old.id])

    with (
        caplog.at_level(logging.WARNING, "pgjobs"),
        roles.client_as("worker") as client,
        WorkerPool(
            client, work_map, queues={"default": 4}, cron=[Schedule("s", every(timedelta(seconds=1)), {}, kind="ends")]
        ),
    ):

        def state(job: Job[Any]) -> JobState | None:
            now = admin.get(job.id)
            return None if now is None else now.state

        wait_until(lambda: state(made["waits"]) is JobState.RUNNING)
        admin.cancel(made["waits"].id)
        wait_until(lambda: all(getattr(state(job), "final", False) for job in [*made.values(), future, vanished]))
        wait_until(lambda: admin.get(old.id) is None)
        wait_until(lambda: any(job.metadata.get("schedule") == "s" for job in admin.list_jobs().jobs))
    ended = {kind: admin.get(job.id) for kind, job in made.items()}
    assert {kind: job and job.state for kind, job in ended.items()} == {
        "ends": JobState.COMPLETED,
        "fails": JobState.DISCARDED,
        "cancels": JobState.CANCELLED,
        "snoozes": JobState.COMPLETED,
        "waits": JobState.CANCELLED,
        "detached": JobState.COMPLETED,
    }
    assert not [line for line in caplog.messages if "permission" in line]


@pytest.mark.parametrize("role", ["enqueuer", "viewer", "operator"])
def test_a_worker_pool_does_not_start_without_the_rights_of_the_worker(roles: Roles, role: str) -> None:
    with roles.client_as(role) as client:
        pool = WorkerPool(client, {"test": lambda tx, job: None})
        with pytest.raises(psycopg.errors.InsufficientPrivilege) as refused:
            pool.start()
        assert not pool.running
        assert "prints what a role needs to enqueue, work, view or control" in refused.value.__notes__[0]


def test_the_worker_writes_progress_and_the_viewer_reads_it(roles: Roles) -> None:
    ends = threading.Event()

    def handler(tx: Any, job: Job[Any]) -> None:
        job.set_progress(3, total=10, note="a note")
        assert ends.wait(20)

    job: Job[Any] = roles.client.enqueue(None, {}, kind="long")
    columns = "job_id, done, total, updated_at IS NULL"
    with roles.client_as("worker") as client, WorkerPool(client, {"long": handler}):
        for role in ("viewer", "operator", "worker"):
            with roles.client_as(role) as reader:
                found = wait_until(lambda reader=reader: reader.get(job.id).progress)  # type: ignore[misc]
                assert isinstance(found, Progress)
                assert (found.done, found.total, found.note) == (3, 10, "a note")
        roles.grant(view_args=False)
        assert roles.run("viewer", f"SELECT {columns} FROM {{s}}.job_progress") == [(job.id, 3, 10, False)]
        ends.set()
    assert roles.run("worker", "SELECT note FROM {s}.job_progress") == []


def test_a_worker_without_the_right_to_write_progress_works_on(roles: Roles, caplog: pytest.LogCaptureFixture) -> None:
    """Roles of an earlier version have no grant on the table."""

    def told() -> list[str]:
        return [line for line in caplog.messages if "housekeeping" in line and "job_progress" in line]

    def handler(tx: Any, job: Job[Any]) -> None:
        job.set_progress(1)
        wait_until(told)

    with roles.client.pool.connection() as conn:
        table, worker = sql.Identifier(roles.client.schema, "job_progress"), sql.Identifier(roles.names["worker"])
        conn.execute(sql.SQL("REVOKE ALL ON {} FROM {}").format(table, worker))
    jobs: list[Job[Any]] = [roles.client.enqueue(None, {}, kind="long") for _ in range(3)]
    with roles.client_as("worker") as client, WorkerPool(client, {"long": handler}, queues={"default": 1}):
        for job in jobs:
            assert roles.client.wait(job, timeout=timedelta(seconds=20)).state is JobState.COMPLETED
    (line,) = told()
    assert "permission denied for table job_progress" in line
    assert roles.client.workers() == [], "the pool has signed off"


def test_the_worker_writes_figures_and_the_viewer_reads_them(roles: Roles) -> None:
    job: Job[Any] = roles.client.enqueue(None, {}, kind="short")
    with roles.client_as("worker") as client, WorkerPool(client, {"short": lambda tx, job: None}):
        roles.client.wait(job, timeout=timedelta(seconds=20))
    for role in ("viewer", "operator", "worker"):
        with roles.client_as(role) as reader:
            wait_until(reader.stats)
            assert [(figures.kind, figures.completed) for figures in reader.stats()] == [("short", 1)]
    for role in ("viewer", "operator", "enqueuer"):
        for statement in ("UPDATE {s}.figure SET completed = 7", "DELETE FROM {s}.figure", "TRUNCATE {s}.figure"):
            assert roles.denied(role, statement)


def test_a_worker_without_the_right_to_write_figures_works_on(roles: Roles, caplog: pytest.LogCaptureFixture) -> None:
    """Roles of an earlier version have no grant on the table."""
    with roles.client.pool.connection() as conn:
        table, worker = sql.Identifier(roles.client.schema, "figure"), sql.Identifier(roles.names["worker"])
        conn.execute(sql.SQL("REVOKE ALL ON {} FROM {}").format(table, worker))
    job: Job[Any] = roles.client.enqueue(None, {}, kind="short")
    with roles.client_as("worker") as client:
        pool = WorkerPool(client, {"short": lambda tx, job: None})
        with pool:
            assert roles.client.wait(job, timeout=timedelta(seconds=20)).state is JobState.COMPLETED
    wait_until(lambda: roles.client.workers() == [])
    told = [line for line in caplog.messages if "figures failed" in line]
    assert len(told) == 1
    assert "permission denied for table figure" in told[0]


@pytest.mark.finding("S6")
def test_a_handler_of_the_worker_controls_other_jobs(roles: Roles) -> None:
    """The worker could retry and delete other jobs in a handler, but not cancel one."""
    admin = roles.client
    others: list[Job[Any]] = [admin.enqueue(None, {}, kind="other", delay=timedelta(hours=1)) for _ in range(5)]
    canceled, many, retried, changed, deleted = (job.id for job in others)
    with roles.client_as("worker") as client:

        def controls(tx: Any, job: Job[Any]) -> None:
            client.cancel(canceled, tx)
            client.cancel_many(JobFilter(ids=[many]), tx=tx)
            client.retry(retried, tx)
            client.update(changed, tx, priority=3)
            client.delete(deleted, tx)
            client.enqueue(tx, {}, kind="another", delay=timedelta(hours=1))
            client.schedules.add(Schedule("s", every(timedelta(hours=1)), {}, kind="other"), tx)

        job: Job[Any] = admin.enqueue(None, {}, kind="controls", queue="control", max_attempts=1)
        with WorkerPool(client, {"controls": controls}, queues={"control": 1}):
            assert admin.wait(job, timeout=timedelta(seconds=20)).state is JobState.COMPLETED
    found = {job.id: job.state for job in admin.list_jobs().jobs}
    assert found[canceled] is found[many] is JobState.CANCELLED
    assert found[retried] is JobState.AVAILABLE
    assert deleted not in found


@pytest.mark.finding("S6")
def test_the_worker_has_the_right_to_each_of_its_duties(roles: Roles) -> None:
    """Duties delete rows of queues, schedules and processes that are gone, which no list of grants had."""
    from pgjobs.db.statements import load

    with roles.client_as("worker") as client, client.pool.connection() as conn:
        for file in ("maintenance.sql", "workers.sql", "schedules.sql", "control.sql"):
            for name, statement in load(file, client.schema).items():
                if name == "begin_duty":
                    continue
                for table, privilege in _needs(statement.decode()):
                    granted = conn.execute("SELECT has_table_privilege(%s, %s)", [table, privilege]).fetchone()
                    assert granted == (True,), f"{name} needs {privilege} on {table}"


def _needs(statement: str) -> Iterator[tuple[str, str]]:
    text = re.sub(r"--.*", "", statement)
    for pattern, privilege in {
        r"DELETE FROM (\S+\.\w+)": "DELETE",
        r"(?<!KEY )UPDATE (\S+\.\w+)": "UPDATE",
        r"INSERT INTO (\S+\.\w+)": "INSERT",
    }.items():
        for table in re.findall(pattern, text):
            yield table, privilege


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    "statement",
    [
        "TRUNCATE {s}.job",
        "DROP TABLE {s}.job",
        "ALTER TABLE {s}.job ADD COLUMN mine text",
        "CREATE TABLE {s}.mine ()",
        "CREATE TRIGGER mine AFTER INSERT ON {s}.job EXECUTE FUNCTION {s}.schedule_changed()",
        "CREATE TABLE pg_temp.mine (state {s}.job_state)",
        "INSERT INTO {s}.migration (version, name) VALUES (99, 'x')",
        "DELETE FROM {s}.migration",
        "DELETE FROM {s}.maintenance",
    ],
)
def test_no_role_changes_the_tables_themselves(roles: Roles, role: str, statement: str) -> None:
    assert roles.denied(role, statement)


# --- the viewer and the operator


def _looks(client: Client, id: int) -> None:
    assert client.get(id) is not None
    assert client.list_jobs().jobs
    assert client.list_jobs(JobFilter(states=["available"]), order="time").jobs
    assert client.count().total > 0
    client.queues.list()
    client.queues.stats()
    client.workers()
    client.stats()
    client.schedules.list()
    client.check_schema()
    assert client.missing_migrations() == []


@pytest.mark.finding("S6")
def test_the_viewer_looks_and_changes_nothing(roles: Roles) -> None:
    """There was no list of what somebody needs to look on."""
    job = roles.client.enqueue(None, Card(1, "her secret"))
    with roles.client_as("viewer") as client:
        _looks(client, job.id)
        for act in (client.cancel, client.retry, client.delete, client.release):
            with pytest.raises(DENIED):
                act(job.id)
        for call in (lambda: client.queues.pause("default"), lambda: client.enqueue(None, Card(1))):
            with pytest.raises(DENIED):
                call()
    roles.grant(view_args=False)
    with roles.client_as("viewer") as client:
        assert client.count().total > 0
        client.queues.list()
        client.queues.stats()
        client.workers()
        client.stats()
        client.check_schema()
        with pytest.raises(DENIED), client.pool.connection() as tx:
            client.get(job.id, tx)
    columns = [("job", "args"), ("job", "errors"), ("job", "output"), ("schedule", "args"), ("job_progress", "note")]
    columns.append(("audit", "target"))
    for table, column in columns:
        assert roles.denied("viewer", f"SELECT {column} FROM {{s}}.{table}")


def test_a_viewer_who_may_not_read_args_gets_jobs_without_them(roles: Roles) -> None:
    """`get` and `list_jobs` raised, as if such a viewer could not look at any job."""
    ends = threading.Event()

    def handler(tx: Any, job: Job[Any]) -> None:
        job.record_output("her secret")
        if job.attempt == 1:
            raise ValueError("her secret")
        job.set_progress(3, total=10, note="her secret")
        assert ends.wait(20)

    admin = roles.client
    later = admin.enqueue(None, Card(2), delay=timedelta(hours=1))
    waiting = [admin.enqueue(None, Card(number), queue="other", tags=["tag"]) for number in range(3)]
    card = admin.enqueue(None, Card(1, "her secret"), metadata={"a": 1})
    roles.grant(view_args=False)
    work_map = WorkMap({Card: Handler(handler, backoff=backoff.constant(timedelta(0)))})
    with WorkerPool(admin, work_map), roles.client_as("viewer", work_map=work_map) as client:
        wait_until(lambda: (found := admin.get(card.id)) and found.progress)
        whole, found = admin.get(card.id), client.get(card.id)
        assert whole is not None
        assert found is not None
        assert whole.progress is not None
        assert found.progress == replace(whole.progress, note=None)
        hidden = {"raw_args", "raw_errors", "raw_output", "decode", "progress"}
        for field in {field.name for field in fields(Job)} - hidden:
            assert getattr(found, field) == getattr(whole, field), field
        with pytest.raises(UndecodableArgs, match=f"may not read the args of job {card.id}"):
            found.args  # noqa: B018
        assert (found.errors, found.output, found.metadata["a"]) == ((), None, 1)
        assert "her secret" not in repr(vars(found))
        for filter, order, ids in (
            (None, "id", [later.id, *(job.id for job in waiting), card.id]),
            (JobFilter(states=["available"]), "time", [job.id for job in waiting]),
            (JobFilter(states=["running"], metadata={"a": 1}), "time", [card.id]),
        ):
            listed = client.list_jobs(filter, order=order).jobs  # type: ignore[arg-type]
            assert [job.id for job in listed] == ids
            assert [job.id for job in admin.list_jobs(filter, order=order).jobs] == ids  # type: ignore[arg-type]
            for job in listed:
                with pytest.raises(UndecodableArgs):
                    job.args  # noqa: B018
            assert "her secret" not in repr([vars(job) for job in listed])
        assert client.get(card.id, client.pool) == found
        page = client.list_jobs(limit=2)
        assert [job.id for job in client.list_jobs(limit=2, cursor=page.next).jobs] == [waiting[1].id, waiting[2].id]
        ends.set()


@pytest.mark.finding("S6")
def test_the_operator_controls_jobs_queues_and_schedules(roles: Roles) -> None:
    """There was no list of what somebody needs to cancel or retry a job."""
    admin = roles.client
    jobs = [admin.enqueue(None, Card(number)) for number in range(8)]
    running = admin.enqueue(None, Card(9))
    with admin.pool.connection() as conn:
        conn.execute(
            sql.SQL("UPDATE {} SET state = 'running', attempt = 1, token = gen_random_uuid() WHERE id = %s").format(
                sql.Identifier(admin.schema, "job")
            ),
            [running.id],
        )
    with roles.client_as("operator") as client:
        _looks(client, jobs[0].id)
        assert client.cancel(jobs[0].id, reason="why not").state is JobState.CANCELLED
        assert client.cancel(running.id).state is JobState.RUNNING
        assert client.retry(jobs[0].id).state is JobState.AVAILABLE
        assert client.update(jobs[1].id, priority=2, output=5, tags=["tag"], metadata={"a": 1}).priority == 2
        assert (
            client.update(jobs[1].id, scheduled_at=datetime(2099, 1, 1, tzinfo=UTC), max_attempts=3).max_attempts == 3
        )
        assert client.delete(jobs[2].id).id == jobs[2].id
        assert client.cancel_many(JobFilter(ids=[jobs[3].id])).done
        assert client.retry_many(JobFilter(ids=[jobs[3].id])).done
        assert client.update_many(JobFilter(ids=[jobs[3].id]), priority=1).done
        assert client.delete_many(JobFilter(ids=[jobs[3].id])).done
        client.queues.pause("default")
        client.queues.resume("default")
        client.schedules.add(Schedule("hourly", every(timedelta(hours=1)), {}, kind="card"))
        client.schedules.change("hourly", spec="@daily")
        client.schedules.pause("hourly")
        client.schedules.resume("hourly")
        client.schedules.run_now("hourly")
        assert client.schedules.remove("hourly")
        with pytest.raises(DENIED):
            client.enqueue(None, Card(1))
    for change in (
        "args = '{{}}'",
        "errors = '[]'",
        "kind = 'x'",
        "queue = 'x'",
        "schedule = 'x'",
        "attempted_by = '{{}}'",
    ):
        assert roles.denied("operator", f"UPDATE {{s}}.job SET {change}")
    for table in ("maintenance", "worker", "scheduler"):
        assert roles.denied("operator", f"DELETE FROM {{s}}.{table}")


# --- the list itself


@pytest.mark.finding("S6")
def test_no_table_and_no_column_is_forgotten(roles: Roles) -> None:
    """Who adds a table or a column decides who may read it, and for a column of a job who may write it."""
    columns = roles.run(
        "viewer",
        "SELECT c.relname || '.' || a.attname, "
        "has_column_privilege(c.oid, a.attname, 'SELECT') FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid "
        "WHERE c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = {s}::text) AND c.relkind = 'r' "
        "AND a.attnum > 0 AND NOT a.attisdropped".replace("{s}::text", f"'{roles.client.schema}'"),
    )
    assert len(columns) > 50
    assert [name for name, may_read in columns if not may_read] == [], "give it a line in sql/roles.sql"


def test_running_it_again_changes_nothing_and_only_the_roles_of_the_call(roles: Roles, connect: Connect) -> None:
    roles.grant()
    text = roles_sql(roles.client.schema, **{**roles.names, "viewer": None})
    assert roles.names["viewer"] not in text
    with connect(autocommit=True) as conn:
        conn.execute(text.encode())
    assert roles.run("viewer", "SELECT args FROM {s}.job") == []


@pytest.mark.parametrize("name", ['a"b', "", "pg_me", "public", "none", "a b", "a;b", "1a", "é", "a" * 64, 5])
def test_a_name_that_cannot_be_a_role_is_refused(name: Any) -> None:
    with pytest.raises(InvalidSetting, match="role "):
        roles_sql(worker=name)


def test_two_roles_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidSetting, match="a name of its own"):
        roles_sql(worker="app", enqueuer="app")


def test_a_call_for_many_jobs_says_that_a_right_is_lacking(roles: Roles) -> None:
    """It skipped each job as "refused", as if a trigger or a policy of the application had refused that one."""
    roles.grant()
    roles.client.enqueue(None, {}, kind="test")
    with roles.client_as("viewer") as viewer, pytest.raises(DENIED):
        viewer.cancel_many(JobFilter.all())


def test_the_roles_that_look_on_can_read_metrics(roles: Roles) -> None:
    for role in ("worker", "viewer", "operator"):
        with roles.client_as(role) as client:
            found = scraped(metrics_text(client))
            assert found["pgjobs_database_up", ()] == 1, role
            assert found["pgjobs_transaction_oldest_seconds", ()] >= 0


# --- the dashboard


@pytest.mark.parametrize("hide_args", [False, True])
def test_the_dashboard_of_a_viewer_shows_what_the_role_may_read(roles: Roles, hide_args: bool) -> None:
    job = roles.client.enqueue(None, Card(4711), max_attempts=1)
    roles.client.enqueue_many(None, [Card(4711)] * 3)
    with roles.client.lock_job(id=job.id):
        roles.grant(view_args=not hide_args)
        with roles.client_as("viewer") as client:
            site = Site(client, show_args=True)
            for path in (
                "/jobs",
                f"/jobs/{job.id}",
                "/jobs?kind=card&state=available",
                "/jobs/confirm?do=cancel&kind=card",
            ):
                page = site.page(path)
                assert "card" in page
                assert ("4711" in page) != hide_args or "confirm" in path
            assert site.get("/failures").status_code == (403 if hide_args else 200)
            assert site.get("/jobs?text=4711").status_code == (403 if hide_args else 200)
            assert site.post(f"/jobs/{job.id}/cancel").status_code == 403
            assert site.post("/jobs/act", {"do": "delete", "kind": "card"}).status_code == 403


def test_the_dashboard_of_an_operator_changes_jobs(roles: Roles) -> None:
    job = roles.client.enqueue(None, Card(1))
    roles.client.enqueue_many(None, [Card(n) for n in range(3)])
    with roles.client_as("operator") as client:
        site = Site(client)
        assert "1 job cancelled." in site.act(f"/jobs/{job.id}/cancel")
        assert "3 jobs deleted." in site.act("/jobs/act", {"do": "delete", "state": "available"})
