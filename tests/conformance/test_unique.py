"""Unique jobs, in bulk and one by one; what becomes of a key when its job moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from dataclasses_json import config

from pgjobs import (
    Cancel,
    Client,
    Discard,
    InvalidOption,
    Job,
    JobState,
    NewJob,
    Unique,
    WorkerPool,
    decode_args,
    job_options,
)
from pgjobs.maintenance.duties import Maintenance
from pgjobs.states import StateName
from tests.conformance.conftest import Rows, Stored
from tests.samples import HOUR

Server = psycopg.Connection[Any]
DAY = timedelta(days=1)
REQUIRED: list[StateName] = ["available", "pending", "running", "scheduled"]
ALL_STATES: list[StateName] = [*REQUIRED, "retryable", "completed", "cancelled", "discarded"]


@dataclass
class Thing:
    n: int = 0
    note: str = ""


@dataclass
class Other:
    n: int = 0
    note: str = ""


@dataclass
class Renamed:
    customer: int = field(metadata=config(field_name="customerId"))
    note: str = ""


def run(client: Client, handler: Callable[..., object]) -> None:
    assert WorkerPool(client, {Thing: handler}).work_one()


def note(job: Job[Any]) -> str:
    return decode_args(Thing, job.raw_args).note


def same(first: Job[Any], second: Job[Any]) -> bool:
    """Whether the second is the first again, and says so."""
    assert not first.duplicate
    assert second.duplicate == (second.id == first.id)
    return second.duplicate


# --- what is the same


@pytest.mark.conformance(184)
def test_the_second_of_two_in_one_period_is_the_first(client: Client, stored: Stored, sql: Rows) -> None:
    once_a_day = Unique(by_period=DAY)
    noon = datetime(2030, 5, 4, 12, tzinfo=UTC)
    first = client.enqueue(None, Thing(1), unique=once_a_day, scheduled_at=noon)
    second = client.enqueue(None, Thing(2), unique=once_a_day, scheduled_at=noon + HOUR)
    assert same(first, second)
    assert second == stored(first), "the job that is there, as it is there"
    assert sql("SELECT count(*) FROM pgjobs.job") == [(1,)]


def test_without_anything_named_there_is_one_of_its_kind(client: Client) -> None:
    first = client.enqueue(None, Thing(1), unique=Unique())
    assert same(first, client.enqueue(None, Thing(2), queue="mail", unique=Unique()))
    assert not client.enqueue(None, Other(1), unique=Unique()).duplicate


def test_a_job_that_is_not_unique_is_nobody_s_duplicate(client: Client) -> None:
    plain = client.enqueue(None, Thing(1))
    assert not client.enqueue(None, Thing(1), unique=Unique(by_args=True)).duplicate
    assert client.enqueue(None, Thing(1)).id != plain.id


@pytest.mark.conformance(185)
def test_by_queue_the_same_job_in_another_queue_is_a_new_one(client: Client) -> None:
    per_queue = Unique(by_queue=True)
    first = client.enqueue(None, Thing(1), unique=per_queue)
    assert not same(first, client.enqueue(None, Thing(1), queue="mail", unique=per_queue))
    assert same(first, client.enqueue(None, Thing(1), unique=per_queue))


@pytest.mark.conformance(196)
def test_all_args_count_and_none_are_not_empty_ones(client: Client) -> None:
    by_args = Unique(by_args=True)
    empty: Job[Any] = client.enqueue(None, {}, kind="thing", unique=by_args)
    full = client.enqueue(None, {"n": 1, "note": "a"}, kind="thing", unique=by_args)
    assert not same(empty, full)
    assert not client.enqueue(None, {"n": 1, "note": "b"}, kind="thing", unique=by_args).duplicate
    assert not client.enqueue(None, {"n": None}, kind="thing", unique=by_args).duplicate
    assert same(full, client.enqueue(None, Thing(1, "a"), unique=by_args)), "a class and a dict of the same"
    assert same(empty, client.enqueue(None, {}, kind="thing", unique=by_args))


def test_some_fields_count_as_they_are_called_in_the_class(client: Client, sql: Rows) -> None:
    by_customer = Unique(by_args=["customer"])
    first = client.enqueue(None, Renamed(1, "a"), unique=by_customer)
    assert same(first, client.enqueue(None, Renamed(1, "b"), unique=by_customer))
    assert not same(first, client.enqueue(None, Renamed(2, "a"), unique=by_customer))
    as_json = client.enqueue(None, {"customerId": 1}, kind="renamed", unique=Unique(by_args=["customerId"]))
    assert same(first, as_json)


@pytest.mark.parametrize(
    ("args", "kind"), [(Thing(1), None), (Renamed(1), None), ({"n": 1}, "thing"), ({}, "thing")], ids=repr
)
def test_a_field_that_is_not_there_is_refused_since_it_would_make_all_jobs_one(
    client: Client, sql: Rows, args: Any, kind: str | None
) -> None:
    with pytest.raises(InvalidOption, match="customerId"):
        client.enqueue(None, args, kind=kind, unique=Unique(by_args=["customerId"]))
    assert sql("SELECT count(*) FROM pgjobs.job") == [(0,)]


def test_without_its_kind_two_kinds_with_the_same_args_are_the_same(client: Client) -> None:
    whatever = Unique(by_args=["n"], exclude_kind=True)
    first = client.enqueue(None, Thing(1), unique=whatever)
    second = client.enqueue(None, Other(1), unique=whatever)
    assert same(first, second)
    assert second.kind == "thing"
    assert not client.enqueue(None, Other(1), unique=Unique(by_args=["n"])).duplicate


@pytest.mark.conformance(187)
@pytest.mark.parametrize("left_out", REQUIRED)
def test_a_set_of_states_that_a_job_passes_through_is_complete(left_out: str) -> None:
    with pytest.raises(InvalidOption, match=f"lacks {left_out}"):
        Unique(by_state=[state for state in ALL_STATES if state != left_out])


@pytest.mark.conformance(187)
def test_all_that_a_set_of_states_lacks_is_named_and_an_unknown_one_is_refused() -> None:
    with pytest.raises(InvalidOption, match="lacks available, pending, scheduled"):
        Unique(by_state=["running"])
    with pytest.raises(InvalidOption, match="'done' is not a state"):
        Unique(by_state=[*ALL_STATES, "done"])  # type: ignore[list-item]
    with pytest.raises(InvalidOption, match="by_state"):
        Unique(by_state="available")  # type: ignore[arg-type]


@pytest.mark.conformance(185, 187)
def test_with_all_states_a_job_that_is_over_in_any_way_still_counts(client: Client, sql: Rows) -> None:
    for_ever = Unique(by_state=list(JobState))
    first = client.enqueue(None, Thing(), unique=for_ever)
    for state in ("completed", "cancelled", "discarded", "retryable", "running"):
        sql(
            "UPDATE pgjobs.job SET state = %s, finalized_at = CASE WHEN %s THEN now() END", state, JobState(state).final
        )
        assert same(first, client.enqueue(None, Thing(), unique=for_ever)), state


@pytest.mark.conformance(190)
def test_the_period_is_that_of_the_job_s_time_rounded_down(client: Client) -> None:
    two_hours = Unique(by_period=2 * HOUR)

    def at(hour: int, minute: int = 0) -> Job[Any]:
        when = datetime(2030, 1, 1, hour, minute, tzinfo=UTC)
        return client.enqueue(None, Thing(), unique=two_hours, scheduled_at=when)

    first = at(10)
    assert same(first, at(11, 59))
    assert not same(first, at(12))
    assert not same(first, at(9, 59))
    assert same(first, at(10, 30))


@pytest.mark.conformance(190)
def test_without_a_time_the_period_is_that_of_now_by_the_database(
    client: Client, sql: Rows, skew_clock: Callable[[timedelta], None]
) -> None:
    forty_days = Unique(by_period=40 * DAY)
    (now,) = sql("SELECT clock_timestamp()")[0]
    first = client.enqueue(None, Thing(), unique=forty_days)
    here = client.enqueue(None, Thing(), unique=forty_days, scheduled_at=first.scheduled_at)
    assert same(first, here), "no time and the time of now are in one period"
    skew_clock(1000 * DAY)
    assert abs(client.enqueue(None, Thing(1), unique=Unique(by_args=True)).scheduled_at - now) < HOUR
    assert not same(first, client.enqueue(None, Thing(), unique=forty_days, delay=40 * DAY)), "a delay is a time"


@pytest.mark.conformance(190)
def test_periods_of_a_week_begin_on_monday(client: Client) -> None:
    weekly = Unique(by_period=7 * DAY)
    monday = datetime(2030, 7, 1, tzinfo=UTC)
    assert monday.weekday() == 0
    first = client.enqueue(None, Thing(), unique=weekly, scheduled_at=monday)
    assert same(first, client.enqueue(None, Thing(), unique=weekly, scheduled_at=monday + 7 * DAY - HOUR))
    assert not same(first, client.enqueue(None, Thing(), unique=weekly, scheduled_at=monday - HOUR))


@pytest.mark.conformance(193)
def test_a_key_is_bytes_and_need_not_be_text(client: Client, sql: Rows) -> None:
    key = b"\xf4\x8d\x61\x24"
    insert = "INSERT INTO pgjobs.job (kind, unique_key, unique_states) VALUES ('thing', %s, %s)"
    sql(insert, key, REQUIRED)
    sql(insert, key + b"\0", REQUIRED)
    with pytest.raises(psycopg.errors.UniqueViolation):
        sql(insert, key, REQUIRED)
    assert sql("SELECT unique_key FROM pgjobs.job ORDER BY id") == [(key,), (key + b"\0",)]
    client.enqueue(None, Thing(), unique=Unique())
    with pytest.raises(UnicodeDecodeError):
        bytes(sql("SELECT unique_key FROM pgjobs.job ORDER BY id DESC LIMIT 1")[0][0]).decode()


# --- where the option comes from


@job_options(unique=Unique(by_args=["n"]))
@dataclass
class Once:
    n: int = 0
    note: str = ""


def test_an_args_class_may_be_unique_by_itself_and_a_call_may_switch_it_off(client: Client) -> None:
    first = client.enqueue(None, Once(1, "a"))
    assert same(first, client.enqueue(None, Once(1, "b")))
    assert not same(first, client.enqueue(None, Once(1, "a"), unique=False))
    assert not same(first, client.enqueue(None, Once(1, "a"), unique=Unique(by_args=["n", "note"])))


# --- in bulk


@pytest.mark.conformance(192, 197)
def test_in_a_batch_the_first_wins_and_each_gets_an_answer_in_its_place(client: Client, sql: Rows) -> None:
    by_n = Unique(by_args=["n"])
    there = client.enqueue(None, Thing(3), unique=by_n)
    given = [
        NewJob(Thing(5, "first"), unique=by_n),
        Thing(9, "not unique"),
        NewJob(Thing(3, "again"), unique=by_n),
        NewJob(Thing(5, "second"), unique=by_n, queue="mail"),
        NewJob(Thing(1, "other"), unique=by_n, delay=HOUR),
        NewJob(Thing(5, "third"), unique=by_n),
    ]
    jobs = client.enqueue_many(None, given)
    assert [job.duplicate for job in jobs] == [False, False, True, True, False, True]
    assert [note(job) for job in jobs] == ["first", "not unique", "", "first", "other", "first"]
    assert jobs[2].id == there.id
    assert jobs[0].id < jobs[1].id < jobs[4].id, "ids rise in the order given"
    assert sql("SELECT count(*) FROM pgjobs.job") == [(4,)]


@pytest.mark.conformance(12)
@pytest.mark.parametrize("size", [1, 2, 19, 20, 500])
@pytest.mark.parametrize("returning", [True, False])
def test_a_batch_of_any_size_is_stored_with_its_times(client: Client, sql: Rows, size: int, returning: bool) -> None:
    later = datetime(2040, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    given: list[Any] = [Thing(n, 'ä"\\') for n in range(size)]
    given += [
        NewJob(Thing(-1), scheduled_at=later, queue="later", priority=-7, max_attempts=3, tags=["one", "NULL"]),
        NewJob(Thing(-2), delay=HOUR, metadata={"a": [1.5, None]}),
        NewJob(Thing(-3), scheduled_at=datetime(2009, 1, 1, tzinfo=UTC)),
        NewJob(Thing(-4), pending=True),
    ]
    if returning:
        assert len(client.enqueue_many(None, given)) == size + 4
    else:
        assert client.enqueue_many(None, iter(given), returning=False) == size + 4
    assert sql(
        "SELECT count(*), count(DISTINCT scheduled_at), bool_and(scheduled_at = created_at), "
        "max(clock_timestamp() - scheduled_at) < '1 minute', min(state), max(attempt), array_agg(DISTINCT tags::text) "
        "FROM pgjobs.job WHERE (args ->> 'n')::integer >= 0"
    ) == [(size, 1, True, True, "available", 0, ["{}"])]
    assert sql("SELECT (args ->> 'n')::integer, state, scheduled_at FROM pgjobs.job WHERE queue = 'later'") == [
        (-1, "scheduled", later)
    ]
    assert sql("SELECT priority, max_attempts, tags FROM pgjobs.job WHERE queue = 'later'") == [
        (-7, 3, ["one", "NULL"])
    ]
    assert sql(
        "SELECT state, metadata -> 'a', scheduled_at - created_at FROM pgjobs.job WHERE args ->> 'n' = '-2'"
    ) == [("scheduled", [1.5, None], HOUR)]
    assert sql("SELECT state FROM pgjobs.job WHERE args ->> 'n' IN ('-3', '-4') ORDER BY id") == [
        ("available",),
        ("pending",),
    ]
    assert sql("SELECT count(*) FROM pgjobs.job WHERE args ->> 'note' = %s", 'ä"\\') == [(size,)]


@pytest.mark.parametrize("size", [5, 50])
def test_what_comes_back_from_a_batch_is_what_the_table_has(client: Client, stored: Stored, size: int) -> None:
    given = [NewJob(Thing(n, "é"), delay=n % 3 * HOUR, tags=["abc"] * (n % 2), priority=n) for n in range(size)]
    jobs = client.enqueue_many(None, given)
    assert [job.id for job in jobs] == list(range(jobs[0].id, jobs[0].id + size))
    for job in jobs:
        there = stored(job)
        for name in Job.__dataclass_fields__:
            if not name.startswith("raw_") and name != "decode":
                assert getattr(job, name) == getattr(there, name), name
        assert job.args == decode_args(Thing, there.raw_args)
        for name in ("metadata", "errors", "output"):
            assert getattr(job, name) == getattr(there, name), name


def test_a_count_leaves_duplicates_out(client: Client) -> None:
    by_n = Unique(by_args=["n"])
    given = [NewJob(Thing(n % 3), unique=by_n) for n in range(10)] + [NewJob(Thing(n)) for n in range(5)]
    assert client.enqueue_many(None, given, returning=False) == 8
    assert client.enqueue_many(None, given, returning=False) == 5


# --- the caller's transaction


@pytest.mark.conformance(198)
def test_a_duplicate_leaves_the_caller_s_transaction_as_it_was(client: Client, conn: Server, effects: str) -> None:
    client.enqueue(None, Thing(), unique=Unique())
    conn.execute(f"INSERT INTO {effects} VALUES ('before')".encode())
    assert client.enqueue(conn, Thing(), unique=Unique()).duplicate
    assert [job.duplicate for job in client.enqueue_many(conn, [NewJob(Thing(), unique=Unique())] * 2)] == [True, True]
    conn.execute(f"INSERT INTO {effects} VALUES ('after')".encode())
    assert not client.enqueue(conn, Other(), unique=Unique()).duplicate
    conn.commit()
    assert conn.execute(f"SELECT note FROM {effects}".encode()).fetchall() == [("before",), ("after",)]


def test_a_unique_job_of_a_transaction_that_is_rolled_back_was_never_there(client: Client, conn: Server) -> None:
    first = client.enqueue(conn, Thing(), unique=Unique())
    assert same(first, client.enqueue(conn, Thing(), unique=Unique())), "its own transaction sees it"
    conn.rollback()
    assert not client.enqueue(None, Thing(), unique=Unique()).duplicate


def test_a_running_job_may_enqueue_its_own_twin_and_is_told(client: Client) -> None:
    answers = []
    first = client.enqueue(None, Thing(), unique=Unique())
    run(client, lambda tx, job: answers.append(client.enqueue(tx, Thing(), unique=Unique())))
    assert same(first, answers[0])
    assert answers[0].state == JobState.RUNNING


# --- what frees a key


@pytest.mark.conformance(194)
@pytest.mark.parametrize("reason", [Cancel("no"), Discard("no")], ids=["cancelled", "discarded"])
def test_a_job_cancelled_or_discarded_by_its_handler_frees_its_key(client: Client, reason: Exception) -> None:
    first = client.enqueue(None, Thing(), unique=Unique())

    def handler(tx: Server, job: Job[Any]) -> None:
        raise reason

    run(client, handler)
    assert not same(first, client.enqueue(None, Thing(), unique=Unique()))


@pytest.mark.conformance(194)
def test_a_job_cancelled_or_deleted_by_hand_frees_its_key(client: Client) -> None:
    first = client.enqueue(None, Thing(), unique=Unique())
    client.cancel(first.id)
    second = client.enqueue(None, Thing(), unique=Unique())
    assert not same(first, second)
    client.delete(second.id)
    assert not client.enqueue(None, Thing(), unique=Unique()).duplicate


def test_a_completed_job_keeps_its_key_until_it_is_cleaned_unless_asked_otherwise(client: Client) -> None:
    while_unfinished = Unique(by_args=True, by_state=[*REQUIRED, "retryable"])
    kept = client.enqueue(None, Thing(1), unique=Unique(by_args=True))
    freed = client.enqueue(None, Thing(2), unique=while_unfinished)
    for _ in range(2):
        run(client, lambda tx, job: None)
    assert same(kept, client.enqueue(None, Thing(1), unique=Unique(by_args=True)))
    assert not same(freed, client.enqueue(None, Thing(2), unique=while_unfinished))


# --- a job that comes back to find its key taken


@pytest.fixture
def promote(duties: Maintenance, server: Server) -> Callable[[], timedelta]:
    return lambda: duties.promote(server)


def lost_its_key(client: Client, sql: Rows, *, states: list[StateName] = REQUIRED) -> tuple[Job[Any], Job[Any]]:
    """A job that waits to be retried and is due, and the duplicate that took its key meanwhile."""
    job = client.enqueue(None, Thing(), unique=Unique(by_state=states))
    sql("UPDATE pgjobs.job SET state = 'retryable', attempt = 1 WHERE id = %s", job.id)
    duplicate = client.enqueue(None, Thing(), unique=Unique(by_state=states))
    assert not duplicate.duplicate
    return job, duplicate


@pytest.mark.conformance(151)
@pytest.mark.parametrize("also", [[], ["discarded"]], ids=["", "discarded ones count"])
def test_a_due_job_whose_key_is_taken_is_discarded_and_its_neighbours_are_promoted(
    client: Client, promote: Callable[[], timedelta], stored: Stored, sql: Rows, also: list[StateName]
) -> None:
    before = client.enqueue(None, Other(), scheduled_at=datetime(2999, 1, 1, tzinfo=UTC))
    loser, duplicate = lost_its_key(client, sql, states=[*REQUIRED, *also])
    after = client.enqueue(None, Other(), scheduled_at=datetime(2999, 1, 1, tzinfo=UTC))
    sql("UPDATE pgjobs.job SET scheduled_at = now() WHERE state = 'scheduled'")
    promote()
    assert [stored(job).state for job in (before, after, duplicate)] == ["available"] * 3
    assert stored(loser).state == JobState.DISCARDED
    assert stored(loser).metadata["unique_key_conflict"] == "scheduler_discarded"
    assert stored(loser).finalized_at is not None
    assert same(duplicate, client.enqueue(None, Thing(), unique=Unique(by_state=[*REQUIRED, *also])))


@pytest.mark.conformance(152)
def test_of_two_due_jobs_with_one_key_one_is_promoted_and_one_discarded(
    client: Client, promote: Callable[[], timedelta], stored: Stored, sql: Rows
) -> None:
    first, second = lost_its_key(client, sql)
    sql("UPDATE pgjobs.job SET state = 'retryable', attempt = 1 WHERE id = %s", second.id)
    promote()
    assert [stored(first).state, stored(second).state] == [JobState.AVAILABLE, JobState.DISCARDED]
    assert stored(second).metadata["unique_key_conflict"] == "scheduler_discarded"
    assert "unique_key_conflict" not in stored(first).metadata
    assert promote() > timedelta(0)


def test_a_due_job_whose_twin_is_being_inserted_holds_nobody_up(
    client: Client, promote: Callable[[], timedelta], stored: Stored, sql: Rows, conn: Server
) -> None:
    states = Unique(by_state=REQUIRED)
    job = client.enqueue(None, Thing(), unique=states)
    sql("UPDATE pgjobs.job SET state = 'retryable', attempt = 1, scheduled_at = now() - interval '1 hour'")
    other = client.enqueue(None, Other(), scheduled_at=datetime(2999, 1, 1, tzinfo=UTC))
    sql("UPDATE pgjobs.job SET scheduled_at = now() WHERE id = %s", other.id)
    client.enqueue(conn, Thing(), unique=states)  # not committed: nobody can tell yet
    promote()
    assert stored(other).state == JobState.AVAILABLE
    assert stored(job).state == JobState.RETRYABLE
    assert stored(job).scheduled_at > stored(job).created_at, "it is looked at again a little later"
    conn.commit()
    sql("UPDATE pgjobs.job SET scheduled_at = now() WHERE id = %s", job.id)
    promote()
    assert stored(job).state == JobState.DISCARDED


# --- replace


def test_a_newer_call_replaces_what_it_says_in_a_duplicate_that_waits(client: Client, stored: Stored) -> None:
    by_n = Unique(by_args=["n"])
    first = client.enqueue(None, Thing(1, "old"), unique=by_n, delay=HOUR, priority=1, metadata={"a": 1})
    all_of_it = client.enqueue(
        None, Thing(1, "new"), unique=by_n, replace=True, priority=2, tags=["new"], metadata={"b": 2}, max_attempts=3
    )
    assert same(first, all_of_it)
    assert all_of_it == stored(first)
    assert (note(all_of_it), all_of_it.priority, all_of_it.tags, all_of_it.max_attempts) == (
        "new",
        2,
        ("new",),
        3,
    )
    assert all_of_it.metadata.items() >= {"a": 1, "b": 2}.items()
    assert all_of_it.state == JobState.AVAILABLE, "the new time is now"
    in_part = client.enqueue(None, Thing(1, "newer"), unique=by_n, replace=["scheduled_at"], delay=HOUR, priority=9)
    assert (in_part.state, in_part.priority, note(in_part)) == (JobState.SCHEDULED, 2, "new")
    urgent = client.enqueue(None, Thing(1), unique=by_n, replace=["priority"], priority=-5)
    assert (urgent.state, urgent.priority, urgent.scheduled_at) == (JobState.SCHEDULED, -5, in_part.scheduled_at)
    assert not client.enqueue(None, Thing(2), unique=by_n, replace=True).duplicate


def test_a_debounced_job_runs_once_with_the_last_args(client: Client, sql: Rows) -> None:
    seen = []
    by_n = Unique(by_args=["n"], by_state=[*REQUIRED, "retryable"])
    for text in "abc":
        client.enqueue(None, Thing(1, text), unique=by_n, replace=["args", "scheduled_at"], delay=HOUR)
    client.enqueue(None, Thing(1, "d"), unique=by_n, replace=["args", "scheduled_at"])
    run(client, lambda tx, job: seen.append(job.args.note))
    assert seen == ["d"]
    assert sql("SELECT count(*) FROM pgjobs.job") == [(1,)]


def test_a_duplicate_that_runs_or_is_over_is_not_replaced(client: Client, stored: Stored) -> None:
    def again() -> Job[Any]:
        return client.enqueue(None, Thing(1, "new"), unique=Unique(by_args=["n"]), replace=True)

    answers = []
    first = client.enqueue(None, Thing(1, "old"), unique=Unique(by_args=["n"]))
    run(client, lambda tx, job: answers.append(again()))
    answers.append(again())
    assert [(job.state, job.duplicate) for job in answers] == [("running", True), ("completed", True)]
    assert note(stored(first)) == "old"


def test_replacing_keeps_what_a_job_has_behind_it(client: Client, sql: Rows) -> None:
    first = client.enqueue(None, Thing(), unique=Unique())
    sql("UPDATE pgjobs.job SET state = 'retryable', attempt = 7, scheduled_at = now() + interval '1 hour'")
    job = client.enqueue(None, Thing(), unique=Unique(), replace=True, max_attempts=2)
    assert same(first, job)
    assert (job.state, job.attempt, job.max_attempts) == (JobState.AVAILABLE, 7, 8), "one attempt is left at least"


def test_in_a_batch_the_last_call_replaces(client: Client, sql: Rows) -> None:
    by_n = Unique(by_args=["n"])
    jobs = client.enqueue_many(
        None, [NewJob(Thing(1, text), unique=by_n, replace=True) for text in "abc"] + [NewJob(Thing(2), unique=by_n)]
    )
    assert [job.duplicate for job in jobs] == [False, True, True, False]
    assert sql("SELECT args ->> 'note' FROM pgjobs.job ORDER BY id") == [("c",), ("",)]


@pytest.mark.parametrize("replace", ["args", ["queue"], 5, [None]], ids=repr)
def test_what_cannot_be_replaced_is_refused(replace: Any) -> None:
    with pytest.raises(InvalidOption, match="replace"):
        NewJob(Thing(), unique=Unique(), replace=replace)


def test_replace_without_unique_is_refused(client: Client) -> None:
    with pytest.raises(InvalidOption, match="unique"):
        client.enqueue(None, Thing(), replace=True)


# --- pending


def test_a_pending_job_runs_when_it_is_released_and_not_before(client: Client, stored: Stored) -> None:
    job = client.enqueue(None, Thing(), pending=True)
    later = client.enqueue(None, Thing(), pending=True, delay=HOUR)
    assert (job.state, later.state) == (JobState.PENDING, JobState.PENDING)
    pool = WorkerPool(client, {Thing: lambda tx, job: None})
    assert not pool.work_one()
    assert client.release(job.id) == stored(job)
    assert stored(job).state == JobState.AVAILABLE
    assert client.release(later.id).state == JobState.SCHEDULED
    assert pool.work_one()
    assert not pool.work_one()
    assert client.release(job.id).state == JobState.COMPLETED, "one that does not wait for it stays as it is"


def test_a_pending_job_is_released_in_the_caller_s_transaction(client: Client, conn: Server, stored: Stored) -> None:
    job = client.enqueue(conn, Thing(), pending=True)
    conn.commit()
    assert client.release(job.id, conn).state == JobState.AVAILABLE
    conn.rollback()
    assert stored(job).state == JobState.PENDING


def test_a_pending_job_holds_its_key(client: Client) -> None:
    job = client.enqueue(None, Thing(), pending=True, unique=Unique())
    assert same(job, client.enqueue(None, Thing(), unique=Unique()))
    client.release(job.id)
    assert same(job, client.enqueue(None, Thing(), unique=Unique()))
