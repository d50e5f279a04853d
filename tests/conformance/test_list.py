"""Looking at many jobs: which a filter finds, in which order, page by page; counting them; waiting for one's end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any

import pytest
from psycopg_pool import ConnectionPool

from pgjobs import (
    Client,
    InvalidFilter,
    Job,
    JobFilter,
    JobNotFinished,
    JobNotFound,
    JobPage,
    JobState,
    NewJob,
    WorkerPool,
)
from tests.conformance.conftest import Rows
from tests.conftest import Connect
from tests.samples import HOUR, Thing, Tx

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
Fill = Callable[..., list[int]]


@dataclass
class Other:
    n: int = 0


@pytest.fixture
def fill(sql: Rows) -> Fill:
    """Jobs in this state whose time is the n-th hour after noon; their ids."""

    def make(state: str, *hours: float, queue: str = "default", priority: int = 0) -> list[int]:
        return [
            sql(
                """INSERT INTO pgjobs.job
                    (state, kind, queue, priority, created_at, scheduled_at, attempted_at, finalized_at)
                SELECT state, 'thing', %s, %s, at, at,
                    CASE WHEN state NOT IN ('available', 'scheduled', 'pending') THEN at END,
                    CASE WHEN state IN ('completed', 'cancelled', 'discarded') THEN at END
                FROM (SELECT %s::text AS state, %s::timestamptz AS at) AS given RETURNING id""",
                *(queue, priority, state, NOON + timedelta(hours=hour)),
            )[0][0]
            for hour in hours
        ]

    return make


def ids(page: JobPage) -> list[int]:
    return [job.id for job in page.jobs]


def pages(client: Client, filter: JobFilter | None = None, **how: Any) -> list[list[int]]:
    """The ids of every page, by following the cursors."""
    found, cursor = [], None
    while True:
        page = client.list_jobs(filter, cursor=cursor, **how)
        found.append(ids(page))
        cursor = page.next
        if cursor is None:
            return found


# --- which


def test_nothing_is_an_empty_page(client: Client) -> None:
    assert client.list_jobs() == JobPage((), None)
    assert client.list_jobs(JobFilter(states=["completed"]), order="time") == JobPage((), None)


def test_a_job_is_listed_as_get_shows_it(client: Client) -> None:
    job = client.enqueue(None, Thing(7), tags=["one"], metadata={"a": 1}, priority=3, queue="mail")
    assert client.list_jobs().jobs == (job,) == (client.get(job.id),)
    assert client.list_jobs().jobs[0].raw_args == '{"n": 7}'


@pytest.fixture
def six(client: Client) -> list[Job[Any]]:
    return client.enqueue_many(
        None,
        [
            NewJob(Thing(0), queue="a", priority=1, tags=["red", "big"], metadata={"k": 1, "deep": {"x": [1, 2]}}),
            NewJob(Thing(1), queue="a", priority=2, tags=["red"], metadata={"k": 2}),
            NewJob(Other(2), queue="b", priority=1, tags=["big"]),
            NewJob(Other(3), queue="b", delay=HOUR),
            NewJob(Other(4), queue="c", delay=2 * HOUR, tags=["blue", "big", "red"]),
            NewJob(Thing(5), queue="d"),
        ],
    )


@pytest.mark.parametrize(
    ("filter", "found"),
    [
        (JobFilter(), {0, 1, 2, 3, 4, 5}),
        (JobFilter.all(), {0, 1, 2, 3, 4, 5}),
        (JobFilter(kinds=["thing"]), {0, 1, 5}),
        (JobFilter(kinds=["thing", "other"]), {0, 1, 2, 3, 4, 5}),
        (JobFilter(kinds=["thin", "THING", "thing "]), set()),
        (JobFilter(queues=["a", "c"]), {0, 1, 4}),
        (JobFilter(states=["scheduled"]), {3, 4}),
        (JobFilter(states=["scheduled", "available", "completed"]), {0, 1, 2, 3, 4, 5}),
        (JobFilter(states=["completed", "discarded"]), set()),
        (JobFilter(priorities=[1]), {0, 2}),
        (JobFilter(priorities=[-32768, 2]), {1}),
        (JobFilter(tags_any=["red", "blue"]), {0, 1, 4}),
        (JobFilter(tags_all=["red", "big"]), {0, 4}),
        (JobFilter(tags_any=["blue"], tags_all=["big"]), {4}),
        (JobFilter(metadata={"k": 1}), {0}),
        (JobFilter(metadata={"deep": {"x": [2]}}), {0}),
        (JobFilter(metadata={"k": "1"}), set()),
        (JobFilter(args={"n": 4}), {4}),
        (JobFilter(args={"n": 4}, kinds=["thing"]), set()),
        (JobFilter(args={"m": 4}), set()),
        (JobFilter(kinds=["thing"], queues=["a"], priorities=[2]), {1}),
        (JobFilter(kinds=["other"], queues=["a"]), set()),
        *((JobFilter(ids=[]), set()), (JobFilter(kinds=[]), set()), (JobFilter(queues=[]), set())),
        *((JobFilter(states=[]), set()), (JobFilter(priorities=[]), set()), (JobFilter(tags_any=[]), set())),
    ],
    ids=str,
)
def test_a_filter_finds_what_fits_all_of_it(
    client: Client, six: list[Job[Any]], filter: JobFilter, found: set[int]
) -> None:
    assert {job.args["n"] for job in client.list_jobs(filter).jobs} == found
    assert client.count(filter).total == len(found)


def test_jobs_are_found_by_their_ids(client: Client, six: list[Job[Any]]) -> None:
    chosen = [six[4].id, six[1].id, 10**12]
    assert ids(client.list_jobs(JobFilter(ids=chosen))) == [six[1].id, six[4].id]


@pytest.mark.parametrize("name", ["created", "scheduled", "attempted", "finalized"])
def test_jobs_are_found_by_each_of_their_times(client: Client, fill: Fill, name: str) -> None:
    first, second, third = fill("completed", 1, 2, 3)
    fill("available", 100)  # has no end and no start
    before: dict[str, Any] = {f"{name}_before": NOON + 50 * HOUR}
    since: dict[str, Any] = {f"{name}_after": NOON + 2 * HOUR}
    until: dict[str, Any] = {f"{name}_before": NOON + 2 * HOUR}
    assert ids(client.list_jobs(JobFilter(**before))) == [first, second, third]
    assert ids(client.list_jobs(JobFilter(**since, **before))) == [second, third], "that instant is in"
    assert ids(client.list_jobs(JobFilter(**until))) == [first], "that instant is out"


def test_rows_made_by_hand_are_found_by_what_they_are(client: Client, sql: Rows) -> None:
    hostile = '\'; DROP TABLE %s {matches} "job" --\n'
    sql("INSERT INTO pgjobs.job (kind, queue, tags) VALUES (%s, %s, %s)", hostile, hostile, [hostile, "a,b", "{}"])
    client.enqueue(None, Thing())
    for filter in (
        JobFilter(kinds=[hostile]),
        JobFilter(queues=[hostile]),
        JobFilter(tags_all=[hostile, "{}"]),
        JobFilter(tags_any=["a,b"]),
    ):
        assert [job.kind for job in client.list_jobs(filter).jobs] == [hostile]
    assert client.list_jobs(JobFilter(tags_any=["a", "b"])).jobs == ()


# --- in which order


def test_a_list_is_in_the_order_of_the_ids_however_jobs_were_changed(client: Client, six: list[Job[Any]]) -> None:
    client.update(six[2].id, priority=-5, scheduled_at=NOON)
    client.cancel(six[0].id)
    expected = [job.id for job in six]
    assert ids(client.list_jobs()) == expected
    assert ids(client.list_jobs(descending=True)) == expected[::-1]


@pytest.mark.parametrize("state", list(JobState))
@pytest.mark.parametrize("limit", [1, 2, 5, 100])
def test_a_list_by_time_is_in_the_order_of_the_time_of_the_state_then_of_the_ids(
    client: Client, fill: Fill, state: JobState, limit: int
) -> None:
    a, b, c, d, e = fill(state, 3, 1, 2, 1, 1)
    for other in JobState:
        if other != state:
            fill(other, 0, 1.5, 9)
    chosen = JobFilter(states=[state])
    up, down = [b, d, e, c, a], [a, c, e, d, b]
    assert pages(client, chosen, order="time", limit=limit) == [up[n : n + limit] for n in range(0, 5, limit)]
    assert pages(client, chosen, order="time", limit=limit, descending=True) == [
        down[n : n + limit] for n in range(0, 5, limit)
    ]


def test_available_jobs_are_listed_by_time_over_all_queues_and_priorities(client: Client, fill: Fill) -> None:
    made: list[tuple[float, int]] = []
    for hour in range(40):
        queue, priority = f"q{hour % 3}", (hour * 7) % 5 - 2
        made += [(hour // 2, id) for id in fill("available", hour // 2, queue=queue, priority=priority)]
    expected = [id for _, id in sorted(made)]
    chosen = JobFilter(states=["available"])
    assert [*chain(*pages(client, chosen, order="time", limit=7))] == expected
    assert [*chain(*pages(client, chosen, order="time", limit=7, descending=True))] == expected[::-1]
    some = JobFilter(states=["available"], queues=["q1"], priorities=[0, 1])
    wanted = [job.id for job in client.list_jobs(some, order="time").jobs]
    assert wanted == [id for id in expected if id in {job.id for job in client.list_jobs(some).jobs}] != []


# --- page by page


def test_pages_join_without_a_gap_though_jobs_come_and_go_in_between(client: Client) -> None:
    jobs = client.enqueue_many(None, [Thing(n) for n in range(10)])
    expected = [job.id for job in jobs]
    first = client.list_jobs(limit=4)
    assert ids(first) == expected[:4]
    client.delete(expected[1])  # of a page that was read already
    client.delete(expected[3])  # the one that the cursor points at
    new = client.enqueue(None, Thing())
    second = client.list_jobs(limit=4, cursor=first.next)
    assert ids(second) == expected[4:8]
    assert ids(client.list_jobs(limit=4, cursor=second.next)) == [*expected[8:], new.id]


def test_a_full_last_page_has_no_next(client: Client) -> None:
    client.enqueue_many(None, [Thing(n) for n in range(4)])
    assert [len(page) for page in pages(client, limit=2)] == [2, 2]
    assert client.list_jobs(limit=4).next is None


def test_a_page_has_a_hundred_jobs_and_may_have_ten_thousand(client: Client, sql: Rows) -> None:
    sql("INSERT INTO pgjobs.job (kind) SELECT 'thing' FROM generate_series(1, 10001)")
    assert [len(page) for page in pages(client, limit=10_000)] == [10_000, 1]
    assert len(client.list_jobs().jobs) == 100


@pytest.mark.parametrize(
    "how",
    [{"limit": 0}, {"order": "priority"}, {"order": "time"}, {"cursor": "id.up.x"}, {"cursor": "id.down.5"}],
    ids=str,
)
def test_what_cannot_be_listed_is_refused_before_anything_is_sent(how: dict[str, Any]) -> None:
    with pytest.raises(InvalidFilter):
        Client(ConnectionPool(open=False)).list_jobs(**how)


# --- on the caller's connection


def test_a_list_sees_the_callers_transaction_and_leaves_it_as_it_is(client: Client) -> None:
    with client.pool.connection() as tx:
        tx.execute("SET LOCAL DateStyle = 'SQL, DMY'; SET LOCAL TimeZone = 'Asia/Kathmandu'")
        tx.execute("SET LOCAL search_path = pg_temp; SET LOCAL IntervalStyle = sql_standard")
        tx.execute("CREATE FUNCTION pg_temp.count(bigint) RETURNS bigint LANGUAGE sql AS 'SELECT 666'")
        job = client.enqueue(tx, Thing(), scheduled_at=NOON.replace(year=2999))
        chosen = JobFilter(states=["scheduled"], scheduled_after=NOON.replace(year=2999))
        assert client.list_jobs(chosen, tx, order="time").jobs == (job,)
        page = client.list_jobs(chosen, tx.cursor(), order="time", descending=True)
        assert page.jobs[0].scheduled_at == NOON.replace(year=2999)
        assert client.count(chosen, tx).total == 1
        assert client.list_jobs(chosen).jobs == (), "nobody else sees it"
        tx.rollback()
    assert client.list_jobs().jobs == ()


def test_a_list_is_planned_for_its_own_filter_also_on_a_connection_that_prepares_everything(
    client: Client, connect: Connect
) -> None:
    job = client.enqueue(None, Thing())
    conn = connect(autocommit=True, prepare_threshold=0)
    for _ in range(10):
        assert client.list_jobs(JobFilter(kinds=["thing"]), conn).jobs == (job,)
        assert client.list_jobs(JobFilter(kinds=["other"]), conn).jobs == ()
    kept = "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '-- name: list_jobs%'"
    assert conn.execute(kept).fetchone() == (0,)


# --- counting


def test_counts_are_by_queue_and_state(client: Client, fill: Fill) -> None:
    assert client.count().jobs == {}
    assert client.count().by_state == dict.fromkeys(JobState, 0)
    fill("available", 1, 2, 3)
    fill("available", 1, queue="mail")
    fill("discarded", 1, 2, queue="mail")
    counts = client.count()
    assert counts.jobs == {
        ("default", JobState.AVAILABLE): 3,
        ("mail", JobState.AVAILABLE): 1,
        ("mail", JobState.DISCARDED): 2,
    }
    assert counts.total == 6
    assert counts.by_queue == {"default": 3, "mail": 3}
    assert counts.by_state[JobState.AVAILABLE] == 4
    assert client.count(JobFilter(queues=["mail"], states=["discarded"])).total == 2


# --- waiting


def test_wait_gives_the_job_when_it_is_over(client: Client) -> None:
    def finish(tx: Tx, job: Job[Any]) -> None: ...

    with WorkerPool(client, {Thing: finish}, queues={"default": 1}):
        job = client.enqueue(None, Thing())
        ended = client.wait(job, timeout=timedelta(seconds=20))
        assert (ended.id, ended.state) == (job.id, JobState.COMPLETED)
        assert client.wait(job.id) == ended, "also when it is over already, and by its id"


@pytest.mark.parametrize("state", ["completed", "cancelled", "discarded"])
def test_every_end_is_an_end(client: Client, fill: Fill, state: str) -> None:
    (id,) = fill(state, 1)
    assert client.wait(id, timeout=timedelta(0)).state == state


@pytest.mark.parametrize("state", ["available", "scheduled", "pending", "running", "retryable"])
def test_a_job_that_is_not_over_in_time_is_a_timeout(client: Client, fill: Fill, state: str) -> None:
    (id,) = fill(state, 1)
    with pytest.raises(JobNotFinished, match=f"job {id} has not finished after 0.05 s: it is {state}") as raised:
        client.wait(id, timeout=timedelta(milliseconds=50))
    assert isinstance(raised.value, TimeoutError)
    assert (raised.value.id, raised.value.state) == (id, state)


def test_a_job_that_there_is_not_is_not_waited_for(client: Client, fill: Fill) -> None:
    with pytest.raises(JobNotFound):
        client.wait(10**12)
    (id,) = fill("available", 1)
    threading.Timer(0.1, client.delete, [id]).start()
    with pytest.raises(JobNotFound):
        client.wait(id, timeout=timedelta(seconds=20))


def test_who_waits_holds_no_connection(client: Client, fill: Fill, monkeypatch: pytest.MonkeyPatch) -> None:
    (id,) = fill("available", 1)
    client.pool.resize(1, 1)
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        with client.pool.connection(timeout=5):  # the only one there is
            pauses.append(seconds)
        if len(pauses) == 12:
            client.cancel(id)

    monkeypatch.setattr("pgjobs.client.time.sleep", pause)
    assert client.wait(id).state == JobState.CANCELLED
    assert pauses[0] == 0.05
    assert pauses == sorted(pauses)
    assert pauses[-1] == 1.0
