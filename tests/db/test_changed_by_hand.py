"""Rows that an UPDATE by hand has changed in the columns that nothing checks, because claims and finishes set them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import pytest

from pgjobs import Client, Job, JobFilter, JobState, PgjobsError, Snooze, Unique, WorkerPool
from pgjobs.maintenance.duties import Maintenance
from pgjobs.options import FIRST_INSTANT, LAST_INSTANT
from tests.conformance.conftest import Rows, duties, server, sql
from tests.samples import Tx
from tests.waiting import wait_until

__all__ = ["duties", "server", "sql"]

HOUR = timedelta(hours=1)
STATES = tuple(JobState)
FINAL = tuple(state for state in JobState if state.final)

# What a hand can write into a row whatever its state is.
BY_HAND = [
    "finalized_at = NULL",
    "finalized_at = now()",
    "finalized_at = 'infinity'",
    "finalized_at = '-infinity'",
    "finalized_at = '10000-01-01'",
    "finalized_at = '0044-03-15 BC'",
    "attempted_at = 'infinity'",
    "attempted_at = '-infinity'",
    "leased_until = 'infinity'",
    "leased_until = '-infinity'",
    "attempt = 99",
    "attempt = -7",
    "attempt = 2147483647",
    "attempt = -2147483648",
    "attempted_by = '{a,NULL}'",
    "attempted_by = '{{a,b},{c,NULL}}'",
    "attempted_by = '[5:6]={a,b}'",
    "metadata = '[]'",
    "metadata = '[\"excused\"]'",
    "metadata = '\"text\"'",
    "metadata = 'null'",
    "output = 'null'",
    "token = NULL",
]


@pytest.fixture
def make(client: Client, sql: Rows) -> Callable[..., int]:
    """One job that was changed by hand; its id."""

    def make(*changes: str, kind: str = "odd") -> int:
        ((id,),) = sql("INSERT INTO pgjobs.job (kind) VALUES (%s) RETURNING id", kind)
        for change in changes:
            sql(f"UPDATE pgjobs.job SET {change} WHERE id = %s", id)
        return int(id)

    return make


@pytest.fixture
def state(sql: Rows) -> Callable[[int], str | None]:
    def state(id: int) -> str | None:
        rows = sql("SELECT state FROM pgjobs.job WHERE id = %s", id)
        return rows[0][0] if rows else None

    return state


@pytest.fixture
def many(make: Callable[..., int]) -> list[int]:
    """A job of each state for each thing that a hand can write."""
    ended = {state: "now()" if state in FINAL else "NULL" for state in STATES}
    return [
        make(f"state = '{state}', finalized_at = {ended[state]}", change) for state, change in product(STATES, BY_HAND)
    ]


def all_pages(client: Client, filter: JobFilter | None, **how: Any) -> list[int]:
    """The ids of all jobs of a list, page by page."""
    ids: list[int] = []
    cursor = None
    while True:
        page = client.list_jobs(filter, limit=2, cursor=cursor, **how)
        ids += [job.id for job in page.jobs]
        assert len(ids) < 1000, "the list has no end"
        if page.next is None:
            return ids
        cursor = page.next


def test_whatever_a_hand_wrote_can_be_looked_at(client: Client, sql: Rows, many: list[int]) -> None:
    """A row with an infinite time made every list of its jobs fail."""
    for descending in (False, True):
        assert sorted(all_pages(client, None, descending=descending)) == many
        for state in STATES:
            ids = [id for (id,) in sql("SELECT id FROM pgjobs.job WHERE state = %s ORDER BY id", state)]
            filter = JobFilter(states=[state])
            assert sorted(all_pages(client, filter, descending=descending)) == ids
            by_time = all_pages(client, filter, order="time", descending=descending)
            assert len(set(by_time)) == len(by_time)
            assert set(by_time) <= set(ids)
            assert len(by_time) >= len(ids) - 6, "those without an end, and some whose time cannot be read"
            assert client.count(filter).total == len(ids)
    for id in many:
        job = client.get(id)
        assert job is not None
        assert (type(job.metadata), type(job.errors)) == (dict, tuple)
        assert all(isinstance(name, str) for name in job.attempted_by)
        assert job.context is None
    client.queues.stats()
    client.queues.list()


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("infinity", LAST_INSTANT),
        ("10000-01-01 UTC", LAST_INSTANT),
        ("-infinity", FIRST_INSTANT),
        ("0044-03-15 BC", FIRST_INSTANT),
        ("2026-01-02 03:04:05.678901 UTC", datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)),
    ],
)
@pytest.mark.parametrize("column", ["attempted_at", "finalized_at", "leased_until"])
def test_the_nearest_instant_stands_for_one_that_python_cannot_hold(
    client: Client, make: Callable[..., int], column: str, written: str, read: datetime
) -> None:
    job = client.get(make(f"{column} = '{written}'"))
    assert job is not None
    assert getattr(job, column) == read


@pytest.mark.parametrize("action", ["cancel", "retry", "delete", "update"])
def test_whatever_a_hand_wrote_can_be_controlled(client: Client, many: list[int], action: str) -> None:
    """Metadata that are no object failed a cancel, and a job that waits with an end was passed over."""
    act: dict[str, Callable[[JobFilter], Any]] = {
        "cancel": client.cancel_many,
        "retry": client.retry_many,
        "delete": client.delete_many,
        "update": lambda filter: client.update_many(filter, metadata={"a": 1}, max_attempts=50),
    }
    for state in STATES:
        result = act[action](JobFilter(states=[state], kinds=["odd"]))
        assert "refused" not in result.skipped.values(), (state, result.skipped)
    single: dict[str, Callable[[int], Any]] = {
        "cancel": client.cancel,
        "retry": client.retry,
        "delete": client.delete,
        "update": lambda id: client.update(id, metadata={"b": 1}),
    }
    for id in many:
        job = client.get(id)
        if job is not None:
            with suppress(PgjobsError):  # as for any job in its state, but no error of the database
                single[action](id)


def test_a_waiting_job_that_has_an_end_waits(client: Client, make: Callable[..., int]) -> None:
    """`UPDATE job SET state = 'available'` of a finished job left its end."""
    id = make("state = 'completed', finalized_at = now()", "state = 'available'")
    assert [job.id for job in client.cancel_many(JobFilter(kinds=["odd"])).done] == [id]


def test_whatever_a_hand_wrote_is_worked_and_stops_nobody(
    client: Client, sql: Rows, make: Callable[..., int], state: Callable[[int], str | None]
) -> None:
    """Every job that waits comes to an end, and so do the jobs behind it."""
    odd = [make(f"state = '{waits}'", change) for waits, change in product(("available", "retryable"), BY_HAND)]
    good = [make(kind="good") for _ in range(5)]
    seen: list[Job[Any]] = []

    def handler(tx: Tx, job: Job[Any]) -> None:
        seen.append(job)
        assert isinstance(job.metadata, dict)

    pool = WorkerPool(
        client, {"odd": handler, "good": handler}, queues={"default": 3}, poll_interval=timedelta(milliseconds=100)
    )
    with pool:
        wait_until(lambda: {state(id) for id in good} == {"completed"})
        wait_until(lambda: {state(id) for id in odd} <= set(FINAL))
    not_completed = sql("SELECT errors -> -1 ->> 'error' FROM pgjobs.job WHERE state <> 'completed'")
    assert all("cannot be worked" in error for (error,) in not_completed)
    assert len(not_completed) <= 2, "those whose attempts cannot be counted"
    assert len(seen) >= len(odd) + len(good) - 2


@pytest.mark.parametrize("ending", ["returns", "fails", "snoozes", "is cancelled"])
@pytest.mark.parametrize("change", BY_HAND)
def test_an_attempt_of_whatever_a_hand_wrote_comes_to_an_end(
    *, client: Client, make: Callable[..., int], state: Callable[[int], str | None], change: str, ending: str
) -> None:
    """Also if the handler adds to the metadata, though what was no object hides the addition."""
    id = make(f"{change}, max_attempts = 1" if "attempt" not in change else change)
    good = make(kind="good")

    def handler(tx: Tx, job: Job[Any]) -> None:
        job.set_metadata({"a": 1})
        if ending == "is cancelled":
            client.cancel(job.id)
        if ending != "returns":
            raise Snooze(HOUR) if ending == "snoozes" else ValueError("no")

    pool = WorkerPool(client, {"odd": handler, "good": lambda tx, job: None})
    for _ in range(4):
        pool.work_one()
    assert state(good) == "completed"
    assert state(id) in (*FINAL, "retryable", "scheduled")
    job = client.get(id)
    assert job is not None
    assert job.state == "discarded" or "metadata" in change or job.metadata["a"] == 1


# --- duties


def until_nothing(act: Callable[[Tx], timedelta], conn: Tx, most: int = 30) -> None:
    for _ in range(most):
        if act(conn) > timedelta(0):
            return
    raise AssertionError(f"still something to do after {most} rounds")


@pytest.mark.parametrize("duty", ["promote", "rescue", "prune"])
def test_no_duty_fails_for_whatever_a_hand_wrote(
    *, sql: Rows, server: Tx, duties: Maintenance, many: list[int], make: Callable[..., int],
    state: Callable[[int], str | None], duty: str,
) -> None:  # fmt: skip
    places = {
        "promote": "state = 'scheduled', scheduled_at = now() - interval '1 hour'",
        "rescue": "state = 'running', attempt = 1, attempted_at = now() - interval '1 hour', token = gen_random_uuid()",
        "prune": "state = 'completed', finalized_at = now() - interval '10 years'",
    }
    good = [make(places[duty], kind="good") for _ in range(5)]
    until_nothing(duties.duties[duty], server)
    then = {"promote": "available", "rescue": "retryable", "prune": None}[duty]
    assert {state(id) for id in good} == {then}
    if duty == "rescue":
        left = sql("""SELECT id, attempted_at, leased_until FROM pgjobs.job WHERE state = 'running'
            AND attempted_at < now() - interval '1 minute'""")
        assert left == []


@pytest.mark.parametrize("change", ["attempted_at = 'infinity'", "attempted_at = now() + interval '1 year'"])
def test_a_running_job_of_the_future_is_rescued(
    *, server: Tx, duties: Maintenance, make: Callable[..., int], state: Callable[[int], str | None], change: str
) -> None:
    """It was never old enough."""
    id = make("state = 'running', attempt = 1, token = gen_random_uuid()", change)
    until_nothing(duties.rescue, server)
    assert state(id) == "retryable"


def test_a_running_job_whose_lease_has_no_end_is_rescued_after_a_day(
    *, sql: Rows, server: Tx, duties: Maintenance, make: Callable[..., int], state: Callable[[int], str | None]
) -> None:
    """Until then its worker, if it lives, gives the lease an end again."""
    id = make("state = 'running', attempt = 1, token = gen_random_uuid(), attempted_at = now() - interval '23 hours'",
              "leased_until = 'infinity'")  # fmt: skip
    until_nothing(duties.rescue, server)
    assert state(id) == "running"
    sql("UPDATE pgjobs.job SET attempted_at = now() - interval '25 hours' WHERE id = %s", id)
    until_nothing(duties.rescue, server)
    assert state(id) == "retryable"


@pytest.mark.parametrize("final", FINAL)
@pytest.mark.parametrize("end", ["NULL", "'infinity'", "now() + interval '1 year'"])
def test_a_finished_job_without_an_end_is_given_one_and_pruned(
    *, client: Client, sql: Rows, server: Tx, duties: Maintenance, make: Callable[..., int],
    state: Callable[[int], str | None], final: JobState, end: str,
) -> None:  # fmt: skip
    """`UPDATE job SET state = 'completed'` left a row that was listed by no time and never pruned."""
    id = make(f"state = '{final}', finalized_at = {end}")
    until_nothing(duties.prune, server)
    ((age,),) = sql("SELECT now() - finalized_at FROM pgjobs.job WHERE id = %s", id)
    assert timedelta(0) <= age < HOUR
    assert [job.id for job in client.list_jobs(JobFilter(states=[final]), order="time").jobs] == [id]
    sql("UPDATE pgjobs.job SET finalized_at = now() - interval '10 years'")
    until_nothing(duties.prune, server)
    assert state(id) is None


def test_queues_with_their_own_retention_are_pruned_past_an_end_before_all_time(
    *, client: Client, sql: Rows, server: Tx, duties: Maintenance, make: Callable[..., int],
    state: Callable[[int], str | None],
) -> None:  # fmt: skip
    """The position in the index could not be read, which stopped the pruning of all queues."""
    client.queues.update("kept", keep_completed=timedelta(days=36500))
    kept = make("queue = 'kept'", "state = 'completed', finalized_at = '-infinity'")
    old = make("state = 'completed', finalized_at = now() - interval '10 years'")
    until_nothing(duties.prune, server)
    assert state(old) is None
    assert state(kept) is None, "it ended longer ago than any retention"


def test_a_crash_is_not_excused_for_ever_where_metadata_are_no_object(
    *, sql: Rows, server: Tx, duties: Maintenance, make: Callable[..., int], state: Callable[[int], str | None]
) -> None:
    """The excuses were counted in the metadata, where an array had no place for them."""
    running = """state = 'running', attempt = attempt + 1, attempted_at = now() - interval '1 hour',
        token = gen_random_uuid(), attempted_by = '{w}'"""
    ids = [make("metadata = '[]'") for _ in range(2)]
    for _ in range(3):
        sql(f"UPDATE pgjobs.job SET {running}")
        until_nothing(duties.rescue, server)
    for id in ids:
        ((attempt, excused),) = sql(
            "SELECT attempt, jsonb_array_length(metadata -> 'excused') FROM pgjobs.job WHERE id = %s", id
        )
        assert (attempt, excused) == (1, 2)


def test_a_duplicate_that_a_hand_has_changed_is_found(client: Client, sql: Rows) -> None:
    """An enqueue failed because of what stood in the job that has its key."""
    job: Job[Any] = client.enqueue(None, {"n": 1}, kind="odd", unique=Unique(by_args=True))
    for change in BY_HAND:
        sql(f"UPDATE pgjobs.job SET {change}")
        again: Job[Any] = client.enqueue(None, {"n": 1}, kind="odd", unique=Unique(by_args=True))
        assert (again.id, again.duplicate) == (job.id, True)


def test_a_notification_of_the_next_due_job_survives_a_time_that_has_no_distance(
    *, sql: Rows, server: Tx, duties: Maintenance, make: Callable[..., int], state: Callable[[int], str | None]
) -> None:
    """The time until an infinite instant cannot be computed, which stopped every promote."""
    sql("ALTER TABLE pgjobs.job DISABLE TRIGGER job_rules")
    make("state = 'scheduled', scheduled_at = 'infinity'")
    due = make("state = 'scheduled', scheduled_at = now() - interval '1 hour'")
    until_nothing(duties.promote, server)
    assert state(due) == "available"
