"""One row that cannot be worked stops no queue and no duty: what it holds, or what the application's triggers, CHECKs,
policies and foreign keys make of it."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgjobs import Client, Hooks, Job, JobFilter, QueueSettings, WorkerPool, WorkMap
from pgjobs.execution import queries
from pgjobs.execution.claimer import Claimer
from pgjobs.execution.queries import ExecutionQueries
from pgjobs.execution.set_aside import is_application_code
from pgjobs.maintenance.duties import Maintenance
from pgjobs.results import ManyJobs
from pgjobs.schedules.args_supplier import SuppliedJob
from pgjobs.schedules.queries import ScheduleQueries
from pgjobs.schedules.ticker import Ticker
from tests import by_hand, modes
from tests.conformance.conftest import Rows, duties, server, sql
from tests.samples import Tx
from tests.waiting import wait_until

__all__ = ["duties", "server", "sql"]

DUTIES = ("promote", "rescue", "prune")

# Rows that each act takes; the last column says where the others are to be afterwards.
DUE = "state = 'scheduled', scheduled_at = now() - interval '1 hour'"
VANISHED = "state = 'running', attempt = 1, attempted_at = now() - interval '1 hour', token = gen_random_uuid()"
OLD = "state = 'completed', finalized_at = now() - interval '10 years'"
PLACES = {"promote": (DUE, "available"), "rescue": (VANISHED, "retryable"), "prune": (OLD, None)}


@pytest.fixture
def make(client: Client, sql: Rows) -> Callable[..., list[int]]:
    """Jobs of a kind that are brought to a place; their ids."""

    def make(jobs: int, kind: str = "good", place: str = "") -> list[int]:
        rows = sql("INSERT INTO pgjobs.job (kind) SELECT %s FROM generate_series(1, %s) RETURNING id", kind, jobs)
        ids = [id for (id,) in rows]
        if place:
            sql(f"UPDATE pgjobs.job SET {place} WHERE id = ANY (%s)", ids)
        return ids

    return make


@pytest.fixture
def state(sql: Rows) -> Callable[[int], str | None]:
    def state(id: int) -> str | None:
        rows = sql("SELECT state FROM pgjobs.job WHERE id = %s", id)
        return rows[0][0] if rows else None

    return state


def forbid(sql: Rows, when: str, event: str = "UPDATE", raising: str = "RAISE EXCEPTION 'frozen: %', OLD.id") -> None:
    """A trigger of the application's that stops what fits `when`."""
    sql(
        f"""CREATE OR REPLACE FUNCTION pgjobs.app() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF {when} THEN {raising}; END IF;
            RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END; END $$"""
    )
    sql("DROP TRIGGER IF EXISTS app ON pgjobs.job")
    sql(f"CREATE TRIGGER app BEFORE {event} ON pgjobs.job FOR EACH ROW EXECUTE FUNCTION pgjobs.app()")


def last_error(sql: Rows, id: int) -> str:
    ((error,),) = sql("SELECT errors -> -1 ->> 'error' FROM pgjobs.job WHERE id = %s", id)
    return str(error)


def until_nothing(act: Callable[[Tx], timedelta], conn: Tx, most: int = 30) -> None:
    """Do an act again for as long as it says that there is more to do now."""
    for _ in range(most):
        if act(conn) > timedelta(0):
            return
    raise AssertionError(f"still something to do after {most} rounds")


# --- what a row holds


@pytest.mark.finding("S3")
@pytest.mark.parametrize(
    ("states", "key", "duplicate"),
    [
        ("ARRAY['available','pending','running','scheduled',NULL]", "'k'", True),
        ("ARRAY[NULL,'available','pending','running','scheduled']", "'k'", True),
        ("ARRAY['available','pending','running','scheduled',NULL,'discarded']", "'k'", True),
        ("ARRAY['available','pending','running','scheduled']", "incompressible(12000)", False),
        ("ARRAY['available','pending','running','scheduled',NULL]", "incompressible(9000)", False),
        ("ARRAY['available','pending','running','scheduled','discarded']", "incompressible(2800)", False),
    ],
)
def test_a_key_that_cannot_be_had_or_indexed_discards_its_job_alone(
    *, sql: Rows, server: Tx, duties: Maintenance, make: Any, state: Any, states: str, key: str, duplicate: bool
) -> None:
    """A unique key of 12 kB, or NULL among the states that it covers, stopped the promote of all queues."""
    sql("""CREATE FUNCTION pgjobs.incompressible(bytes integer) RETURNS bytea LANGUAGE sql AS
        $$ SELECT string_agg(sha256(n::text::bytea), '') FROM generate_series(1, bytes / 32) AS n $$""")
    key = key.replace("incompressible", "pgjobs.incompressible")
    insert = f"""INSERT INTO pgjobs.job (kind, state, scheduled_at, unique_key, unique_states)
        VALUES ('bad', %s, now() - interval '1 hour', {key}, {states}) RETURNING id"""
    ((bad,),) = sql(insert, "retryable")
    if duplicate:
        sql(insert, "available")
    others = make(5, place=DUE)
    until_nothing(duties.promote, server)
    assert [state(id) for id in others] == ["available"] * 5
    assert state(bad) == "discarded"
    if not duplicate:
        assert "index row" in last_error(sql, bad)


HUGE = {  # what makes the append fail, by what it holds; each stored in a few megabytes
    "errors": "jsonb_build_array(repeat('x', 268435300))",
    "many errors": "(SELECT ('[' || repeat('1,', 16000000) || '1]')::jsonb)",
}


@pytest.mark.finding("S3")
@pytest.mark.parametrize("what", HUGE)
def test_errors_of_256_mb_cost_only_their_own_job(
    *, sql: Rows, server: Tx, duties: Maintenance, make: Any, state: Any, what: str
) -> None:
    """A running job whose errors can take no more stopped the rescue of all others."""
    (bad,) = make(1, "bad", VANISHED)
    others = make(3, place=VANISHED)
    sql(f"UPDATE pgjobs.job SET errors = {HUGE[what]} WHERE id = %s", bad)
    until_nothing(duties.rescue, server)
    assert [state(id) for id in others] == ["retryable"] * 3
    assert state(bad) == "discarded"
    assert "cannot be worked" in last_error(sql, bad)


@pytest.mark.finding("S3")
@pytest.mark.parametrize(
    "bad",
    [
        "attempted_by = '[2147483646:2147483646]={a}'",
        "attempted_by = '[-2147483648:-2147483648]={a}'",
        "attempted_by = '[-5:-5]={a}'",
        "attempt = 2147483647, max_attempts = 2147483647",
        "attempt = 2147483646, max_attempts = 2147483647",
        "token = NULL",
        "token = NULL, attempted_at = NULL, created_at = now() - interval '1 day'",
        """metadata = jsonb_build_object('excused', jsonb_build_array(repeat('x', 200000000)))""",
        'metadata = \'{"excused": {"a": 1}}\'',
    ],
)
def test_a_running_row_of_any_values_is_rescued_or_discarded(
    *, sql: Rows, server: Tx, duties: Maintenance, make: Any, state: Any, bad: str
) -> None:
    """One running row with absurd values stopped the rescue of all."""
    (odd,) = make(1, "bad", f"{VANISHED}, {bad}" if "token" not in bad and "attempt =" not in bad else VANISHED)
    sql(f"UPDATE pgjobs.job SET {bad} WHERE id = %s", odd)
    others = make(3, place=f"{VANISHED}, attempted_by = '{{w}}'")
    until_nothing(duties.rescue, server)
    assert [state(id) for id in others] == ["retryable"] * 3
    assert state(odd) in ("discarded", "retryable")


def test_a_rule_of_our_own_is_told_from_one_of_the_application(sql: Rows, make: Any) -> None:
    """Only what our own trigger says about the row itself is the fault of its values."""
    with pytest.raises(psycopg.errors.CheckViolation) as own:
        sql("INSERT INTO pgjobs.job (kind) VALUES ('')")
    assert not is_application_code(own.value)
    make(1, "bad")
    forbid(sql, "OLD.kind = 'bad'", raising="INSERT INTO pgjobs.job (kind) VALUES ('')")
    with pytest.raises(psycopg.errors.CheckViolation) as theirs:
        sql("UPDATE pgjobs.job SET state = 'pending'")
    assert theirs.value.diag.constraint_name == own.value.diag.constraint_name == "job_names"
    assert is_application_code(theirs.value)


# --- what the application makes of a row

STOPPERS: dict[str, Callable[[Rows, str], None]] = {
    "trigger": lambda sql, event: forbid(sql, "OLD.kind = 'bad'", event),
    "division in a trigger": lambda sql, event: forbid(
        sql, "OLD.kind = 'bad'", event, raising="PERFORM 1 / (OLD.priority * 0)"
    ),
    "foreign key": lambda sql, event: _refer(sql),
    "check": lambda sql, event: _check(sql, "kind <> 'bad' OR state = ANY ('{scheduled,running,completed}')"),
    "check that fails itself": lambda sql, event: _check(
        sql,
        "(CASE WHEN kind = 'bad' AND state = ANY ('{available,retryable}') THEN 1 / (priority * 0) END) IS NULL",
    ),
}


def _refer(sql: Rows, when: str = "") -> None:
    key = f"FOREIGN KEY (job, queue) REFERENCES pgjobs.job (id, queue) {when}"
    sql(f"CREATE TABLE pgjobs.mine (job bigint, queue text, {key})")
    sql("INSERT INTO pgjobs.mine SELECT id, queue FROM pgjobs.job WHERE kind = 'bad'")


def _check(sql: Rows, rule: str) -> None:
    sql(f"ALTER TABLE pgjobs.job ADD CONSTRAINT app CHECK ({rule})")


def _let(sql: Rows) -> None:
    """Take away what stops a row."""
    sql("DROP TRIGGER IF EXISTS app ON pgjobs.job")
    sql("ALTER TABLE pgjobs.job DROP CONSTRAINT IF EXISTS app")
    sql("DROP TABLE IF EXISTS pgjobs.mine")


@pytest.mark.no_decoys("its own CHECK or policy is bound to a decoy")
@pytest.mark.finding("S3")
@pytest.mark.parametrize(
    ("duty", "stopper"),
    [(duty, stopper) for duty in DUTIES for stopper in STOPPERS if ("check" in stopper) <= (duty != "prune")
     and (stopper == "foreign key") <= (duty == "prune")],
)  # fmt: skip
def test_a_row_that_the_application_stops_is_passed_over_and_never_discarded(
    *, sql: Rows, server: Tx, duties: Maintenance, make: Any, state: Any, duty: str, stopper: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """A trigger or CHECK of the application that refuses one row stopped the duty for all rows."""
    place, then = PLACES[duty]
    before, (bad,), after = make(20, place=place), make(1, "bad", place), make(20, place=place)
    was = state(bad)
    STOPPERS[stopper](sql, "DELETE" if duty == "prune" else "UPDATE")
    caplog.set_level(logging.WARNING, "pgjobs")
    until_nothing(duties.duties[duty], server)
    assert {state(id) for id in before + after} == {then}
    assert state(bad) == was
    lines = [record.getMessage() for record in caplog.records if f"job {bad} " in record.getMessage()]
    assert len([line for line in lines if "passed over" in line]) == 1
    assert not [line for line in lines if "discarded" in line]
    _let(sql)
    wait_until(lambda: (duties.duties[duty](server), state(bad) == then)[1])


@pytest.mark.finding("S3")
@pytest.mark.parametrize("within", [True, False], ids=["in the duty's transaction", "each by itself"])
@pytest.mark.parametrize("duty", DUTIES)
def test_many_rows_that_are_stopped_between_others_keep_none_of_them(
    *, sql: Rows, server: Tx, duties: Maintenance, make: Any, state: Any, duty: str, within: bool
) -> None:
    """And the transaction of the duty stays usable, with no more savepoints than a server likes."""
    place, then = PLACES[duty]
    good = [id for _ in range(10) for id in make(10, place=place) + make(0, "bad", place)]
    bad = make(12, "bad", place)
    forbid(sql, "OLD.kind = 'bad'", "UPDATE OR DELETE")
    act = duties.duties[duty]
    for _ in range(60):
        if within:
            with server.transaction():
                act(server)
        else:
            act(server)
        if {state(id) for id in good} == {then}:
            break
    assert {state(id) for id in good} == {then}
    assert None not in {state(id) for id in bad}
    assert sql("SELECT count(*) FROM pgjobs.job WHERE state = 'discarded'") == [(0,)]


@pytest.mark.finding("S3")
@pytest.mark.parametrize("duty", ["promote", "rescue"])
def test_what_stops_every_row_sets_none_aside_and_is_logged_once(
    *, sql: Rows, server: Tx, duties: Maintenance, make: Any, state: Any, duty: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A trigger that fails for all must not make the process walk through a million rows."""
    place, then = PLACES[duty]
    ids = make(3000, place=place)
    sql("CREATE TABLE pgjobs.tries (n integer); INSERT INTO pgjobs.tries VALUES (0)")
    sql("CREATE SEQUENCE pgjobs.calls")
    sequence = sql("SELECT 'pgjobs.calls'::regclass::oid::text")[0][0]
    forbid(sql, f"nextval('{sequence}'::regclass) > 0")
    caplog.set_level(logging.WARNING, "pgjobs")
    for _ in range(3):
        with pytest.raises(psycopg.errors.RaiseException):
            duties.duties[duty](server)
    ((tried,),) = sql("SELECT last_value FROM pgjobs.calls")
    assert tried < 100
    assert len(caplog.messages) == 1, "the cause is logged once"
    assert "rows fail alike, so none is set aside: frozen" in caplog.messages[0]
    _let(sql)
    until_nothing(duties.duties[duty], server)
    assert {state(id) for id in ids} == {then}


@pytest.mark.finding("S3")
def test_a_read_only_database_or_a_missing_privilege_is_no_fault_of_a_row(
    sql: Rows, server: Tx, duties: Maintenance, make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """What is the server's is raised at once."""
    make(3, place=DUE)
    caplog.set_level(logging.WARNING, "pgjobs")
    server.execute("SET default_transaction_read_only = on")
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        duties.promote(server)
    assert caplog.messages == []


@pytest.mark.finding("S3")
def test_a_request_to_cancel_that_cannot_be_settled_stops_no_other(
    *, sql: Rows, server: Tx, duties: Maintenance, make: Any, state: Any
) -> None:
    """A waiting job whose row the application protects, or whose metadata can take no more, stopped all requests."""
    frozen, full, fine = make(3)
    sql("""UPDATE pgjobs.job SET kind = 'bad' WHERE id = %s""", frozen)
    sql("UPDATE pgjobs.job SET metadata = jsonb_build_object('x', repeat('x', 268435400)) WHERE id = %s", full)
    for id in (frozen, full, fine):
        sql("INSERT INTO pgjobs.cancel_request (job_id, queue, token) VALUES (%s, 'default', gen_random_uuid())", id)
    forbid(sql, "OLD.kind = 'bad'")
    until_nothing(duties.rescue, server)
    assert (state(frozen), state(full), state(fine)) == ("available", "discarded", "cancelled")


# --- memory

RESCUES = """
import resource, sys
from pgjobs import Client, Hooks, WorkerPool
import psycopg
from pgjobs.maintenance.duties import Maintenance
from pgjobs.control.jobs import ManyJobs
from pgjobs.schedules.queries import ScheduleQueries
from pgjobs.execution.queries import ExecutionQueries
from pgjobs.execution.set_aside import is_application_code
from pgjobs.schedules.ticker import Ticker
seen = []
with Client(sys.argv[1], schema=sys.argv[2]) as client, psycopg.connect(sys.argv[1], autocommit=True) as conn:
    rescued = (lambda job: seen.append((job.id, len(job.raw_args)))) if sys.argv[3] == "hook" else None
    duties = Maintenance(client.schema, keep={}, rescued=rescued)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    while duties.rescue(conn).total_seconds() == 0:
        pass
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(grown // (1024 if sys.platform == "linux" else 1024 * 1024), len(seen))
"""


@pytest.mark.finding("S3")
@pytest.mark.parametrize("told", ["nobody", "hook"])
def test_a_rescue_takes_no_more_memory_for_large_jobs(
    client: Client, sql: Rows, database: str, make: Any, told: str
) -> None:
    """The rescue of 25 jobs of 100 MB took 4.7 GB, and died of its time limit for ever."""
    make(15, place=VANISHED)
    sql("UPDATE pgjobs.job SET args = jsonb_build_object('x', repeat('x', 20000000)), errors = "
        "jsonb_build_array(jsonb_build_object('error', repeat('y', 10000000)))")  # fmt: skip
    run = subprocess.run(
        [sys.executable, "-c", RESCUES, database, client.schema, told], capture_output=True, text=True, check=True
    )
    megabytes, jobs = map(int, run.stdout.split())
    assert megabytes < 30
    assert jobs == (15 if told == "hook" else 0)
    assert sql("SELECT DISTINCT state FROM pgjobs.job") == [("retryable",)]


# --- claims

WAYS = [
    pytest.param(size, order, plain, id=f"{size} {order}{' plain' if plain else ''}")
    for size in (1, 20)
    for order in ("priority", "scheduled_at")
    for plain in (False, True)
]


class Worked:
    """A worker pool and what it has worked."""

    def __init__(self, client: Client, size: int, order: Any) -> None:
        self.ids: list[int] = []
        self.pool = WorkerPool(
            client,
            dict.fromkeys(("good", "bad"), lambda tx, job: self.ids.append(job.id)),
            queues={"default": QueueSettings(threads=2, batch_size=size)},
            order=order,
            poll_interval=timedelta(milliseconds=100),
        )


@pytest.fixture
def worker(client: Client, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Worked]:
    def worker(size: int = 1, order: str = "priority", plain: bool = False) -> Worked:
        if plain:
            modes.without_prepared(monkeypatch.setattr)
        return Worked(client, size, order)

    return worker


UNCLAIMABLE = [
    "attempted_by = '[2147483646:2147483646]={a}'",
    "attempted_by = '[-2147483648:-2147483648]={a}'",
    "attempted_by = '[5:6]={a,b}'",
    "tags = '[2147483646:2147483646]={a}'",
    "attempt = 2147483646, max_attempts = 2147483647",
    "attempted_by = (SELECT array_agg('x'::text) FROM generate_series(1, 300000))",
]


@pytest.mark.finding("S3")
@pytest.mark.parametrize(("size", "order", "plain"), WAYS)
def test_whatever_a_waiting_row_holds_its_queue_is_worked(
    *, sql: Rows, make: Any, state: Any, worker: Any, size: int, order: str, plain: bool
) -> None:
    """A row with attempted_by = '[2147483646:2147483646]={a}' stopped every claim of its queue."""
    first, bad = make(3), make(len(UNCLAIMABLE), "bad")
    for id, values in zip(bad, UNCLAIMABLE, strict=True):
        sql(f"UPDATE pgjobs.job SET {values} WHERE id = %s", id)
    last = make(30)
    with worker(size, order, plain).pool:
        wait_until(lambda: all(state(id) == "completed" for id in first + bad + last))
    ((longest,),) = sql("SELECT max(cardinality(attempted_by)) FROM pgjobs.job")
    assert longest <= 100


@pytest.mark.finding("S3")
@pytest.mark.parametrize("column", ["created_at", "scheduled_at"])
@pytest.mark.parametrize(("size", "order", "plain"), WAYS)
def test_a_job_that_cannot_be_read_is_discarded_and_its_queue_worked(
    *, sql: Rows, make: Any, state: Any, worker: Any, size: int, order: str, plain: bool, column: str
) -> None:
    """A row from before a rule of the table, which the client cannot read, was claimed again and again."""
    sql("ALTER TABLE pgjobs.job DISABLE TRIGGER job_rules")
    first, (bad,) = make(3), make(1, "bad", f"{column} = '-infinity'")
    last = make(30)
    with worker(size, order, plain).pool:
        wait_until(lambda: all(state(id) == "completed" for id in first + last))
        wait_until(lambda: state(bad) == "discarded")
    assert "cannot be read" in last_error(sql, bad)


def test_a_job_that_another_worker_has_claimed_meanwhile_is_not_discarded(
    *, sql: Rows, make: Any, state: Any, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that stalled after it had claimed an unreadable job discarded the attempt that came after the rescue."""
    sql("ALTER TABLE pgjobs.job DISABLE TRIGGER job_rules")
    (bad,) = make(1, "bad", "created_at = '-infinity'")
    select_claimed_id = ExecutionQueries.select_claimed_id

    def late(self: ExecutionQueries, conn: Tx, queue: str, token: UUID) -> int | None:
        found = select_claimed_id(self, conn, queue, token)
        sql(
            """UPDATE pgjobs.job SET token = gen_random_uuid(), attempt = 2, leased_until = now() + interval '1 hour'
            WHERE id = %s""",
            bad,
        )
        return found

    monkeypatch.setattr(ExecutionQueries, "select_claimed_id", late)
    assert not WorkerPool(client, {"good": lambda tx, job: None}).work_one()
    assert state(bad) == "running"


def test_a_job_that_there_was_no_memory_for_is_not_discarded(
    *, make: Any, state: Any, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the worker's process was taken for one of the row."""
    (good,) = make(1)

    def none_left(*_: object) -> Job[Any]:
        raise MemoryError

    pool = WorkerPool(client, {"good": lambda tx, job: None})
    with monkeypatch.context() as patched:
        patched.setattr(queries, "claimed_job", none_left)
        with pytest.raises(MemoryError):
            pool.work_one()
    assert state(good) == "available"
    assert pool.work_one()
    assert state(good) == "completed"


@pytest.mark.slow
@pytest.mark.finding("S3")
@pytest.mark.parametrize("size", [1, 20])
def test_a_job_that_the_server_cannot_send_is_discarded_and_its_queue_worked(
    *, sql: Rows, make: Any, state: Any, worker: Any, size: int
) -> None:
    """Args whose text is longer than Postgres can send stopped every claim of their queue."""
    first, (bad,) = make(3), make(1, "bad")
    # each character is six in the text of the JSON
    sql("UPDATE pgjobs.job SET args = jsonb_build_object('x', repeat(chr(1), 190000000)) WHERE id = %s", bad)
    last = make(30)
    with worker(size).pool:
        wait_until(lambda: all(state(id) == "completed" for id in first + last), timeout=100)
    assert state(bad) == "discarded"
    assert "cannot be worked" in last_error(sql, bad)


AT_CLAIM: dict[str, Callable[[Rows], None]] = {
    "every update": lambda sql: forbid(sql, "OLD.kind = 'bad'"),
    "to running": lambda sql: forbid(sql, "OLD.kind = 'bad' AND NEW.state = 'running'"),
    "any error": lambda sql: forbid(sql, "OLD.kind = 'bad'", raising="PERFORM 1 / (OLD.priority * 0)"),
    "check": lambda sql: _check(sql, "kind <> 'bad' OR state <> 'running'"),
}


@pytest.mark.no_decoys("its own CHECK or policy is bound to a decoy")
@pytest.mark.finding("S3")
@pytest.mark.parametrize("stopper", AT_CLAIM)
@pytest.mark.parametrize(("size", "order", "plain"), WAYS)
def test_a_job_that_the_application_stops_is_passed_over_by_claims(
    *, sql: Rows, make: Any, state: Any, worker: Any, size: int, order: str, plain: bool, stopper: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """A trigger or CHECK that refuses one job stopped its queue; it is worked when it is let."""
    first, (bad,), last = make(3), make(1, "bad"), make(30)
    AT_CLAIM[stopper](sql)
    caplog.set_level(logging.WARNING, "pgjobs")
    worked = worker(size, order, plain)
    with worked.pool:
        wait_until(lambda: all(state(id) == "completed" for id in first + last))
        more = make(5)
        wait_until(lambda: all(state(id) == "completed" for id in more))
        assert state(bad) == "available"
        assert [line for line in caplog.messages if f"job {bad} fails" in line][1:] == []
        _let(sql)
        wait_until(lambda: state(bad) == "completed")
    assert sorted(worked.ids) == sorted(first + last + more + [bad])
    assert sql("SELECT attempt, errors FROM pgjobs.job WHERE id = %s", bad) == [(1, [])]


# What a trigger may do beside raising an error of its own: keep the row without a word, or fail as a server does.
QUIET = "RETURN NULL"
ALSO_RAISED = {
    "returns NULL": QUIET,
    "a lock": "RAISE EXCEPTION 'held' USING ERRCODE = '55P03'",
    "no currval": "PERFORM currval(pg_get_serial_sequence(TG_TABLE_SCHEMA || '.job', 'id'))",
    "another server": "RAISE EXCEPTION 'away' USING ERRCODE = '08001'",
    "a conflict": "RAISE EXCEPTION 'conflict' USING ERRCODE = '40001'",
}


@pytest.mark.finding("S3")
@pytest.mark.parametrize("what", ALSO_RAISED)
@pytest.mark.parametrize("duty", DUTIES)
def test_a_trigger_that_fails_as_a_server_does_stops_its_own_row_alone_in_duties(
    *, sql: Rows, server: Tx, duties: Maintenance, make: Any, state: Any, duty: str, what: str
) -> None:
    """What a trigger raised with the code of a lock, a conflict or a lost server stopped the duty for all rows."""
    place, then = PLACES[duty]
    before, (bad,), after = make(20, place=place), make(1, "bad", place), make(20, place=place)
    was = state(bad)
    forbid(sql, "OLD.kind = 'bad'", "DELETE" if duty == "prune" else "UPDATE", ALSO_RAISED[what])
    until_nothing(duties.duties[duty], server)
    assert {state(id) for id in before + after} == {then}
    assert state(bad) == was


@pytest.mark.finding("S3")
@pytest.mark.parametrize("what", ALSO_RAISED)
@pytest.mark.parametrize("size", [1, 20])
@pytest.mark.parametrize("plain", [False, True])
def test_a_trigger_that_keeps_a_job_or_fails_as_a_server_does_stops_no_queue(
    *, sql: Rows, make: Any, state: Any, worker: Any, size: int, plain: bool, what: str
) -> None:
    """A job that a trigger kept by RETURN NULL stopped its queue without a word, and so did one whose trigger raised
    with the code of a lock, a conflict or a lost server."""
    first, (bad,), last = make(3), make(1, "bad"), make(30)
    forbid(sql, "OLD.kind = 'bad'", raising=ALSO_RAISED[what])
    with worker(size, "priority", plain).pool:
        wait_until(lambda: all(state(id) == "completed" for id in first + last))
        assert state(bad) == "available"
        _let(sql)
        wait_until(lambda: state(bad) == "completed")


def forbid_at_commit(sql: Rows, event: str) -> None:
    """A rule of the application's that is deferred to the commit, as Django makes all its foreign keys."""
    sql("""CREATE OR REPLACE FUNCTION pgjobs.app() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF OLD.kind = 'bad' THEN RAISE EXCEPTION 'frozen: %', OLD.id; END IF; RETURN NULL; END $$""")
    sql(f"""CREATE CONSTRAINT TRIGGER app AFTER {event} ON pgjobs.job DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION pgjobs.app()""")


@pytest.mark.finding("S3")
@pytest.mark.parametrize(("duty", "rule"), [*((duty, "trigger") for duty in DUTIES), ("prune", "foreign key")])
def test_a_rule_that_is_deferred_to_the_commit_stops_its_own_row_alone_in_duties(
    *, sql: Rows, server: Tx, duties: Maintenance, make: Any, state: Any, duty: str, rule: str
) -> None:
    """A deferred foreign key or trigger failed with the commit, so that its row stopped the duty for all."""
    place, then = PLACES[duty]
    before, (bad,), after = make(20, place=place), make(1, "bad", place), make(20, place=place)
    was = state(bad)
    if rule == "trigger":
        forbid_at_commit(sql, "DELETE" if duty == "prune" else "UPDATE")
    else:
        _refer(sql, "DEFERRABLE INITIALLY DEFERRED")
    for _ in range(30):
        sql("UPDATE pgjobs.maintenance SET next_run_at = now() WHERE duty = %s", duty)
        duties.do(server, duty)
        if {state(id) for id in before + after} == {then}:
            break
    assert {state(id) for id in before + after} == {then}
    assert state(bad) == was


@pytest.mark.finding("S3")
@pytest.mark.parametrize("size", [1, 20])
@pytest.mark.parametrize("plain", [False, True])
def test_a_rule_that_is_deferred_to_the_commit_stops_no_queue(
    *, sql: Rows, make: Any, state: Any, worker: Any, size: int, plain: bool
) -> None:
    """A deferred trigger that refused one job at the commit of its claim stopped the queue."""
    first, (bad,), last = make(3), make(1, "bad"), make(30)
    forbid_at_commit(sql, "UPDATE")
    with worker(size, "priority", plain).pool:
        wait_until(lambda: all(state(id) == "completed" for id in first + last))
        assert state(bad) == "available"
        _let(sql)
        wait_until(lambda: state(bad) == "completed")


@pytest.mark.finding("S3")
@pytest.mark.parametrize("bad", [6, 60, 300])
@pytest.mark.parametrize("size", [1, 20])
def test_however_many_jobs_are_stopped_those_behind_them_are_claimed(
    *, sql: Rows, make: Any, state: Any, worker: Any, bad: int, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Six jobs that a trigger refused, at the head of their queue, stopped all behind them."""
    stopped, good = make(bad, "bad"), make(30)
    forbid(sql, "OLD.kind = 'bad'")
    caplog.set_level(logging.WARNING, "pgjobs")
    with worker(size).pool:
        wait_until(lambda: all(state(id) == "completed" for id in good), timeout=60)
    assert {state(id) for id in stopped} == {"available"}
    assert len([line for line in caplog.messages if "fails" in line]) < 20


@pytest.mark.finding("S3")
def test_a_job_that_comes_behind_many_stopped_ones_is_claimed(
    *, sql: Rows, make: Any, state: Any, worker: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A queue whose jobs were all stopped was not looked into again for a minute."""
    make(8, "bad")
    forbid(sql, "OLD.kind = 'bad'")
    caplog.set_level(logging.WARNING, "pgjobs")
    with worker().pool:
        wait_until(lambda: any("fail alike" in line for line in caplog.messages))
        good = make(3)
        wait_until(lambda: all(state(id) == "completed" for id in good), timeout=20)


@pytest.mark.no_decoys("its own CHECK or policy is bound to a decoy")
@pytest.mark.finding("S3")
@pytest.mark.parametrize("size", [1, 20])
def test_a_policy_of_the_application_stops_its_own_rows_alone(
    *, client: Client, sql: Rows, make: Any, state: Any, size: int, database: str
) -> None:
    """Row-level security that lets a role write no job of one kind stopped the queue for the role."""
    role = f"{client.schema}_worker"
    first, (bad,), last = make(3), make(1, "bad"), make(30)
    sql(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
    try:
        sql(f"GRANT USAGE ON SCHEMA {client.schema} TO {role}")
        sql(f"GRANT ALL ON ALL TABLES IN SCHEMA {client.schema} TO {role}")
        sql("ALTER TABLE pgjobs.job ENABLE ROW LEVEL SECURITY")
        sql("CREATE POLICY reads ON pgjobs.job FOR SELECT USING (true)")
        sql("CREATE POLICY writes ON pgjobs.job FOR UPDATE USING (true) WITH CHECK (kind <> 'bad')")
        dsn = make_conninfo(database, user=role, password="x")
        with Client(dsn, schema=client.schema) as restricted, Worked(restricted, size, "priority").pool:
            wait_until(lambda: all(state(id) == "completed" for id in first + last))
        assert state(bad) == "available"
    finally:
        sql(f"DROP OWNED BY {role}")
        sql(f"DROP ROLE {role}")


@pytest.mark.finding("S3")
@pytest.mark.parametrize("size", [1, 20])
def test_what_stops_every_claim_is_logged_once_and_sets_no_job_aside(
    *, sql: Rows, make: Any, state: Any, worker: Any, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A trigger that fails for all: the queue waits for its end, and nothing of it is discarded."""
    ids = make(200)
    forbid(sql, "NEW.state = 'running'")
    caplog.set_level(logging.WARNING, "pgjobs")
    with worker(size).pool:
        wait_until(lambda: any("fail alike" in line for line in caplog.messages))
        _let(sql)
        wait_until(lambda: all(state(id) == "completed" for id in ids), timeout=20)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("pgjobs")]
    assert len([line for line in lines if "fail alike" in line]) == 1
    assert len(lines) < 4


@pytest.mark.finding("S3")
def test_a_batch_of_large_jobs_is_no_larger_than_some_megabytes(client: Client, sql: Rows, make: Any) -> None:
    """A batch held all the args of its jobs at once, whatever they were."""
    make(40)
    sql("UPDATE pgjobs.job SET args = jsonb_build_object('x', (SELECT string_agg(md5(n::text), '')"
        " FROM generate_series(1, 10000) AS n))")  # fmt: skip

    class Noted(Hooks):
        def on_claim(self, job: Job[Any] | None, error: BaseException | None) -> None:
            if job is not None:
                tokens.setdefault(str(job.token), []).append(len(job.raw_args))

    tokens: dict[str, list[int]] = {}
    with Client(client.pool, schema=client.schema, hooks=[Noted()]) as noted:
        pool = WorkerPool(
            noted, {"good": lambda tx, job: None}, queues={"default": QueueSettings(threads=1, batch_size=40)}
        )
        with pool:
            wait_until(lambda: sum(map(len, tokens.values())) == 40)
    batches = [sum(sizes) for sizes in tokens.values()]
    assert max(batches) < 4_000_000
    assert max(map(len, tokens.values())) > 1


@pytest.mark.finding("S3")
def test_a_claim_that_cannot_be_undone_stops_no_other_claim(
    *, sql: Rows, make: Any, client: Client, server: Tx, state: Any
) -> None:
    """The attempt of a claim whose answer was lost was looked for before every claim; what failed then failed all."""
    claimer = Claimer(client.queries, WorkMap({}), "tester")
    (lost,) = make(1)
    token = uuid4()
    by_hand.must_claim(client, server, token=token)
    server.execute("ROLLBACK")
    forbid(sql, f"OLD.id = {lost}")
    claimer.lost_claims.add("default", token)
    claimer.lost_claims.unclaim_due(server, at_once=True)
    _let(sql)
    claimer.lost_claims.unclaim_due(server, at_once=True)
    assert state(lost) == "available"


# --- schedules

SCHEDULE = """INSERT INTO pgjobs.schedule (name, kind, spec, zone, next_tick_at, planned_for, created_at, "window")
    VALUES (%s, %s, '0 0 1 1 *', 'UTC', now() - interval '90 s', '0 0 1 1 * UTC', now(), NULL)"""


def _unread_schedule(sql: Rows, values: str) -> None:
    """As it may be from before the rules of the table."""
    sql("ALTER TABLE pgjobs.schedule DROP CONSTRAINT schedule_times, DROP CONSTRAINT schedule_window")
    sql(f"UPDATE pgjobs.schedule SET {values} WHERE name = 'bad'")


def _protect_schedule(sql: Rows) -> None:
    forbid(sql, "OLD.name = 'bad'", "DELETE", "RAISE EXCEPTION 'frozen'")
    sql("CREATE TRIGGER app BEFORE UPDATE ON pgjobs.schedule FOR EACH ROW EXECUTE FUNCTION pgjobs.app()")


UNREADABLE_SCHEDULES = ["planned_for = NULL, created_at = 'infinity'", "planned_for = NULL, created_at = '-infinity'"]
AT_TICK: dict[str, Callable[[Rows], object]] = {
    **{values: partial(lambda values, sql: _unread_schedule(sql, values), values) for values in UNREADABLE_SCHEDULES},
    "its job": lambda sql: forbid(sql, "NEW.kind = 'bad'", "INSERT", "RAISE EXCEPTION 'frozen'"),
    "its row": _protect_schedule,
    "too large a job": lambda sql: sql(
        """UPDATE pgjobs.schedule SET options = jsonb_build_object('metadata', jsonb_build_object('x',
            repeat('x', 268435400))) WHERE name = 'bad'"""
    ),
}


@pytest.mark.finding("S3")
@pytest.mark.parametrize("stopper", AT_TICK)
def test_a_schedule_that_cannot_tick_stops_no_other(
    *, client: Client, sql: Rows, server: Tx, stopper: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A schedule whose row could not be read, or whose job too large, stopped the ticks of all."""
    for name in ("bad", "good", "\x1b[31mnightly\nERROR forged"):
        sql(SCHEDULE, name, name[:4])
    AT_TICK[stopper](sql)
    caplog.set_level(logging.DEBUG, "pgjobs")
    ticker = Ticker(ScheduleQueries(client.schema), lambda: {}, lambda schedule: SuppliedJob())
    for _ in range(3):
        ticker.tick(server)
    assert sorted(sql("SELECT kind FROM pgjobs.job")) == sorted([("good",), ("\x1b[31",)])
    assert len([line for line in caplog.messages if "schedule bad fails" in line]) == 1
    assert not [line for line in caplog.messages if "\x1b" in line or "\n" in line]


@pytest.mark.finding("S3")
def test_however_many_schedules_fail_alike_the_others_tick(
    *, client: Client, sql: Rows, server: Tx, caplog: pytest.LogCaptureFixture
) -> None:
    """Six schedules whose options had the same fault stopped the ticks of all others."""
    for number in range(25):
        sql(SCHEDULE, f"bad{number}", "bad")
    sql("""UPDATE pgjobs.schedule SET options = '{"tags": 5}'""")
    sql(SCHEDULE, "good", "good")
    caplog.set_level(logging.WARNING, "pgjobs")
    ticker = Ticker(ScheduleQueries(client.schema), lambda: {}, lambda schedule: SuppliedJob())
    for _ in range(4):
        ticker.tick(server)
    assert sql("SELECT kind FROM pgjobs.job") == [("good",)]
    assert len([line for line in caplog.messages if "fail" in line]) < 10


# --- control of many

MANY: dict[str, Callable[[Client, JobFilter], ManyJobs]] = {
    "cancel": lambda client, filter: client.cancel_many(filter),
    "retry": lambda client, filter: client.retry_many(filter),
    "delete": lambda client, filter: client.delete_many(filter),
    "update": lambda client, filter: client.update_many(filter, metadata={"a": 1}),
}


@pytest.mark.finding("S3")
@pytest.mark.parametrize("name", MANY)
def test_a_call_for_many_jobs_passes_over_those_that_the_application_protects(
    *, client: Client, sql: Rows, make: Any, name: str
) -> None:
    """One job that a trigger of the application protects failed the call for all."""
    first, (bad,), last = make(3), make(1, "bad"), make(3)
    forbid(sql, "OLD.kind = 'bad'", "UPDATE OR DELETE")
    done = MANY[name](client, JobFilter.all())
    assert [job.id for job in done.done] == first + last
    assert done.skipped == {bad: "refused"}


@pytest.mark.finding("S3")
@pytest.mark.parametrize("name", MANY)
def test_a_call_for_many_jobs_that_are_all_protected_says_why(
    *, client: Client, sql: Rows, make: Any, name: str
) -> None:
    """And does not try each of a million."""
    make(2000)
    forbid(sql, "true", "UPDATE OR DELETE")
    with pytest.raises(psycopg.errors.RaiseException, match="frozen"):
        MANY[name](client, JobFilter.all())


@pytest.mark.finding("S3")
@pytest.mark.parametrize("bad", [
    "attempt = 2147483647, max_attempts = 2147483647, state = 'discarded', finalized_at = now()",
    "metadata = jsonb_build_object('x', repeat('x', 268435400))",
    "unique_key = 'k', unique_states = ARRAY['available','pending','running','scheduled',NULL]",
])  # fmt: skip
@pytest.mark.parametrize("name", MANY)
def test_a_call_for_many_jobs_does_what_it_can_whatever_the_rows_hold(
    *, client: Client, sql: Rows, make: Any, name: str, bad: str
) -> None:
    """One job whose metadata can take no more, or whose attempts, failed the call for all."""
    (odd,) = make(1, "bad", bad)
    others = make(3)
    done = MANY[name](client, JobFilter.all())
    assert {job.id for job in done.done} >= set(others)
    assert {job.id for job in done.done} | set(done.skipped) | ({odd} if name == "cancel" else set()) == {odd, *others}
