"""Unique jobs under concurrency: who waits for whom, who is told what, and what moves cannot collide."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import IsolationLevel
from psycopg.pq import TransactionStatus

from pgjobs import Client, Discard, Job, JobState, NewJob, Snooze, Unique, UniqueConflict, WorkerPool, constant
from pgjobs.db.cursors import AnyConnection
from pgjobs.enqueuing import queries
from pgjobs.states import StateName
from pgjobs.unique import REQUIRED, STATES
from tests import by_hand
from tests.conftest import Connect
from tests.db.test_races import NO_DELAY, Table, failure, table
from tests.waiting import wait_until

__all__ = ["table"]  # a fixture

UNIQUE = Unique()


@dataclass
class Thing:
    n: int = 0
    note: str = ""


@pytest.fixture
def waits(connect: Connect) -> Callable[[AnyConnection], bool]:
    """Whether a connection waits for a lock."""
    beside = connect(autocommit=True)

    def look(conn: AnyConnection) -> bool:
        query = "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s"
        row = beside.execute(query, [conn.info.backend_pid]).fetchone()
        return row is not None and row[0] is True

    return look


# --- a duplicate that is being inserted


@pytest.mark.parametrize("ending", ["commit", "rollback"])
def test_an_uncommitted_twin_is_waited_for_and_then_decides(
    client: Client, connect: Connect, waits: Callable[[AnyConnection], bool], ending: str
) -> None:
    first, second = connect(), connect()
    theirs = client.enqueue(first, Thing(), unique=UNIQUE)
    with ThreadPoolExecutor(1) as threads:
        ours = threads.submit(client.enqueue, second, Thing(), unique=UNIQUE)
        wait_until(lambda: waits(second))
        assert not ours.done()
        getattr(first, ending)()
        job = ours.result(30)
    assert job.duplicate == (ending == "commit")
    assert (job.id == theirs.id) == (ending == "commit")
    second.execute("SELECT 1")
    second.commit()


def test_who_cannot_wait_sets_a_lock_timeout(client: Client, connect: Connect) -> None:
    first, second = connect(), connect()
    client.enqueue(first, Thing(), unique=UNIQUE)
    second.execute("SET LOCAL lock_timeout = '10ms'")
    with pytest.raises(psycopg.errors.LockNotAvailable):
        client.enqueue(second, Thing(), unique=UNIQUE)


def test_a_running_job_is_a_twin_that_nobody_waits_for(client: Client, table: Table, connect: Connect) -> None:
    first = client.enqueue(None, Thing(), unique=UNIQUE)
    table.must_claim(connect(autocommit=True))  # holds the lock of the row
    impatient = connect()
    impatient.execute("SET LOCAL lock_timeout = '10ms'")
    second = client.enqueue(impatient, Thing(), unique=UNIQUE, replace=True)
    assert (second.id, second.duplicate, second.state) == (first.id, True, JobState.RUNNING)


def test_a_twin_that_ends_between_the_insert_and_the_look_does_not_count(
    client: Client, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The insert finds the duplicate, which is deleted before it can be read: so the job is inserted after all."""
    send, looks = queries.send, list[int]()

    def send_late(conn: AnyConnection, request: queries.Request) -> queries.Rows:
        if request.reads_jobs and "keys" in request.parameters:
            looks.append(len(request.parameters["keys"]))
            if len(looks) == 1:
                table.query("DELETE FROM {schema}.job")
        return send(conn, request)

    first = client.enqueue(None, Thing(), unique=UNIQUE)
    monkeypatch.setattr("pgjobs.enqueuing.enqueuer.send", send_late)
    second, _ = client.enqueue_many(None, [NewJob(Thing(), unique=UNIQUE), Thing(1)])
    assert (second.duplicate, second.id > first.id) == (False, True)
    assert looks == [1]
    assert table.query("SELECT count(*) FROM {schema}.job") == [(2,)]


def test_what_another_has_committed_since_the_transaction_began_is_a_duplicate(
    client: Client, connect: Connect
) -> None:
    tx = connect()
    tx.execute("SELECT 1")
    first = client.enqueue(None, Thing(), unique=UNIQUE)
    assert client.enqueue(tx, Thing(), unique=UNIQUE).id == first.id
    assert tx.info.transaction_status == TransactionStatus.INTRANS


@pytest.mark.parametrize("level", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE], ids=lambda it: it.name)
def test_r23_at_repeatable_read_a_twin_since_the_snapshot_is_a_serialization_failure(
    client: Client, connect: Connect, level: IsolationLevel
) -> None:
    """As the README says; one from before the snapshot is a duplicate there too."""
    known = client.enqueue(None, Thing(1), unique=Unique(by_args=True))
    tx = connect()
    tx.isolation_level = level
    tx.execute("SELECT 1")
    assert client.enqueue(tx, Thing(1), unique=Unique(by_args=True)).id == known.id
    client.enqueue(None, Thing(2), unique=Unique(by_args=True))
    with pytest.raises(psycopg.errors.SerializationFailure):
        client.enqueue(tx, Thing(2), unique=Unique(by_args=True))


def test_r23_batches_in_opposite_orders_do_not_deadlock(
    client: Client, connect: Connect, waits: Callable[[AnyConnection], bool]
) -> None:
    """Both insert in the order of the keys. So the second waits at its first job that the first has, and holds none
    that the first still wants."""
    jobs = [NewJob(Thing(n), unique=Unique(by_args=["n"])) for n in range(30)]
    one, two = connect(), connect()
    ids = [job.id for job in client.enqueue_many(one, jobs[10:])]
    with ThreadPoolExecutor(1) as threads:
        theirs = threads.submit(client.enqueue_many, two, jobs[::-1])
        wait_until(lambda: waits(two))
        one.commit()
        answers = theirs.result(30)
    assert [job.duplicate for job in answers] == [True] * 20 + [False] * 10
    assert [job.id for job in answers[:20]] == ids[::-1]


def test_r23_keys_are_inserted_in_their_order_whatever_order_is_given(client: Client, table: Table) -> None:
    client.enqueue_many(None, [NewJob(Thing(n), unique=Unique(by_args=["n"])) for n in range(50)])
    in_place = [row for (row,) in table.query("SELECT unique_key FROM {schema}.job ORDER BY ctid")]
    assert in_place == sorted(in_place)
    assert in_place != [row for (row,) in table.query("SELECT unique_key FROM {schema}.job ORDER BY id")]


# --- R10: moves


def test_r10_the_table_takes_no_states_in_which_a_move_could_collide(table: Table) -> None:
    insert = "INSERT INTO {schema}.job (kind, unique_key, unique_states) VALUES ('thing', 'key', %s)"
    for state in REQUIRED:
        with pytest.raises(psycopg.errors.CheckViolation):
            table.query(insert, [other for other in STATES if other != state])
    table.query(insert, list(REQUIRED))


@pytest.mark.parametrize("states", [REQUIRED, STATES], ids=["fewest", "all"])
@pytest.mark.parametrize("ending", ["retry", "snooze", "discard", "rescue"])
def test_r10_a_running_job_has_its_key_so_no_end_of_its_attempt_can_collide(
    client: Client, table: Table, connect: Connect, states: tuple[StateName, ...], ending: str
) -> None:
    unique = Unique(by_state=states)
    job = client.enqueue(None, Thing(), unique=unique)

    def handler(tx: AnyConnection, job: Job[Any]) -> None:
        assert client.enqueue(None, Thing(), unique=unique).duplicate
        raise {"retry": ValueError("no"), "snooze": Snooze(NO_DELAY), "discard": Discard("no")}[ending]

    if ending == "rescue":
        table.must_claim(lost := connect(autocommit=True))
        assert client.enqueue(None, Thing(), unique=unique).duplicate
        lost.close()
        wait_until(lambda: [found.id for found in table.rescue()] == [job.id])
    else:
        assert WorkerPool(client, {Thing: handler}, backoff=constant(timedelta(hours=1))).work_one()
    expected = {"retry": "retryable", "snooze": "available", "discard": "discarded", "rescue": "retryable"}[ending]
    assert table.job(job).state == expected
    assert client.enqueue(None, Thing(), unique=unique).duplicate == (expected in states)


def test_r10_a_claim_is_not_undone_for_a_job_whose_key_is_taken(client: Client, table: Table, connect: Connect) -> None:
    """It was rescued, and a duplicate came: it stays as the rescue left it, and waits for promote to settle it."""
    unique = Unique(by_state=REQUIRED)
    job = client.enqueue(None, Thing(), unique=unique)
    worker = connect(autocommit=True)
    claimed = table.must_claim(worker)
    assert claimed.token is not None
    worker.execute("ROLLBACK")  # the lock is lost
    assert [found.state for found in table.rescue()] == [JobState.RETRYABLE]
    assert not client.enqueue(None, Thing(), unique=unique).duplicate
    assert not table.store.unclaim(worker, queue="default", token=claimed.token)
    assert (table.job(job).state, table.job(job).attempt) == (JobState.RETRYABLE, 1)


def test_r10_a_job_whose_key_is_taken_cannot_be_locked_by_its_id(client: Client, table: Table) -> None:
    unique = Unique(by_state=REQUIRED)
    job = client.enqueue(None, Thing(), unique=unique)
    table.query("UPDATE {schema}.job SET state = 'retryable', attempt = 1")
    duplicate = client.enqueue(None, Thing(), unique=unique)
    with pytest.raises(UniqueConflict), client.lock_job(id=job.id):
        pass
    assert (table.job(job).state, table.job(job).attempt) == (JobState.RETRYABLE, 1)
    with client.lock_job(id=duplicate.id) as (_, locked):
        assert locked is not None


def test_a_late_record_of_a_failure_finds_no_twin_either(client: Client, table: Table, connect: Connect) -> None:
    unique = Unique(by_state=REQUIRED)
    job = client.enqueue(None, Thing(), unique=unique)
    worker = connect(autocommit=True)
    claimed = table.must_claim(worker)
    worker.execute("ROLLBACK")
    assert client.enqueue(None, Thing(), unique=unique).duplicate
    assert by_hand.finish_late(table.client, worker, claimed, failure(claimed)).state == JobState.RETRYABLE
    assert table.job(job).state == JobState.RETRYABLE


def test_a_replacement_waits_for_a_claim_under_way_and_then_finds_it_running(
    client: Client, table: Table, connect: Connect, waits: Callable[[AnyConnection], bool]
) -> None:
    job = client.enqueue(None, Thing(1, "old"), unique=Unique(by_args=["n"]))
    claiming, ours = connect(), connect()
    claiming.execute(table.sql("UPDATE {schema}.job SET state = 'running', attempt = 1"))
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(client.enqueue, ours, Thing(1, "new"), unique=Unique(by_args=["n"]), replace=True)
        wait_until(lambda: waits(ours))
        claiming.commit()
        assert answer.result(30).state == JobState.RUNNING
    ours.commit()
    assert json.loads(table.job(job).raw_args)["note"] == "old"


def test_many_threads_that_want_one_job_get_one(client: Client, table: Table) -> None:
    gate = threading.Barrier(8)

    def enqueue(n: int) -> Job[Any]:
        gate.wait(30)
        return client.enqueue(None, Thing(), unique=UNIQUE)

    with ThreadPoolExecutor(8) as threads:
        jobs = list(threads.map(enqueue, range(8)))
    assert sorted(job.duplicate for job in jobs) == [False] + [True] * 7
    assert len({job.id for job in jobs}) == 1
    assert table.query("SELECT count(*) FROM {schema}.job") == [(1,)]


# --- the key

KEY = "SELECT {schema}.unique_key('thing', 'default', %s::jsonb, now(), %s::jsonb)"
NUMBERS = st.decimals(-1000, 1000, allow_nan=False, places=3).map(str) | st.sampled_from(
    ["0", "0.0", "-0", "1", "1.0", "1.00", "10", "100", "1e2", "1.50", "1.5", "15", "0.10", "1e-3", "-1.0"]
)
TEXTS = st.text(alphabet='ab"\\10.,:{} é\n', max_size=6).map(json.dumps)
VALUES: st.SearchStrategy[str] = st.recursive(
    NUMBERS | TEXTS | st.sampled_from(["true", "false", "null", '"1.0"', '"1"', '"\\\\"']),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda parts: f"[{', '.join(parts)}]")
        | st.dictionaries(st.sampled_from(['"a"', '"b"', '"1.0"', '"1"']), inner, max_size=3).map(
            lambda fields: "{" + ",".join(f"{key}:{value}" for key, value in fields.items()) + "}"
        )
    ),
    max_leaves=5,
)


def test_two_args_have_one_key_exactly_when_postgres_says_that_they_are_equal(table: Table) -> None:
    """Whatever the order of the keys, the zeros behind a number, the blanks, the escapes."""
    by_args = Unique(by_args=True).to_json()
    compare = "SELECT %s::jsonb = %s::jsonb"

    @given(VALUES, VALUES)
    def check(one: str, other: str) -> None:
        args = [f'{{"v": {value}}}' for value in (one, other)]
        keys = [table.query(KEY, each, by_args) for each in args]
        assert [(keys[0] == keys[1],)] == table.query(compare, *args), args

    check()
    for one, other in [("1.0", "1"), ("1.50", "1.5"), ("100", "1e2"), ("[10.0]", "[10]"), ('"\\u00e9"', '"é"')]:
        assert table.query(KEY, f'{{"v":{one}}}', by_args) == table.query(KEY, f'{{ "v" : {other} }}', by_args)
    for one, other in [("10", "1"), ("100", "10"), ('"1.0"', '"1"'), ('"1.0"', "1"), ('"\\\\1.0"', '"\\\\1"')]:
        assert table.query(KEY, f'{{"v":{one}}}', by_args) != table.query(KEY, f'{{"v":{other}}}', by_args)


@pytest.mark.parametrize(
    "setting",
    [
        "TimeZone = 'Australia/Lord_Howe'",
        "IntervalStyle = sql_standard",
        "DateStyle = German",
        "extra_float_digits = -15",
        "standard_conforming_strings = off",
        "search_path = ''",
    ],
)
def test_no_setting_of_a_session_changes_a_key(client: Client, table: Table, connect: Connect, setting: str) -> None:
    unique = Unique(by_args=True, by_period=timedelta(days=1, seconds=0.5), by_queue=True)
    args = {"text": "\\1.0", "number": 1.5, "large": 1e25}
    job: Job[Any] = client.enqueue(None, args, kind="thing", unique=unique)
    tx = connect(autocommit=True)
    tx.execute(f"SET {setting}".encode())
    again: Job[Any] = client.enqueue(tx, args, kind="thing", unique=unique, scheduled_at=job.scheduled_at)
    assert again.id == job.id
    row = tx.execute(
        table.sql("SELECT id, duplicate FROM {schema}.enqueue('thing', %s, uniqueness => %s, scheduled_at => %s)"),
        [json.dumps(args), unique.to_json(), job.scheduled_at],
    ).fetchone()
    assert row == (job.id, True)
