"""Ids that no sequence has given: of any sign, or the same in two queues, as a restore or a failover leaves them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pgjobs import AmbiguousJob, Client, Job, JobFilter, JobState, ManyJobs, NewJob, WorkerPool
from tests.conftest import Connect
from tests.waiting import wait_until

Made = Callable[..., None]
ALL = JobFilter.all()
SMALLEST = -(2**63)


@pytest.fixture
def made(client: Client, connect: Connect) -> Made:
    """Makes jobs by hand, with these ids."""
    conn = connect(autocommit=True)

    def make(*ids: int, queue: str = "default", state: str = "available") -> None:
        insert = sql.SQL(
            "INSERT INTO {} (id, queue, kind, state, finalized_at) OVERRIDING SYSTEM VALUE "
            "SELECT id, %s, 'thing', %s, CASE WHEN %s ~ '^[cd]' THEN now() END FROM unnest(%s::bigint[]) AS made (id)"
        ).format(sql.Identifier(client.schema, "job"))
        conn.execute(insert, [queue, state, state, list(ids)])

    return make


def states(client: Client) -> dict[tuple[int, str], str]:
    return {(job.id, job.queue): job.state.value for job in client.list_jobs(limit=10_000).jobs}


# --- of any sign

MANY: dict[str, Callable[[Client, JobFilter], ManyJobs]] = {
    "cancel": lambda client, filter: client.cancel_many(filter),
    "retry": lambda client, filter: client.retry_many(filter),
    "delete": lambda client, filter: client.delete_many(filter),
    "update": lambda client, filter: client.update_many(filter, priority=9),
}


@pytest.mark.finding("W16")
@pytest.mark.parametrize("call", MANY.values(), ids=MANY)
def test_a_call_for_all_jobs_is_for_those_with_ids_below_one_too(
    client: Client, made: Made, call: Callable[[Client, JobFilter], ManyJobs]
) -> None:
    """A `delete_many(all)` left jobs whose ids were made by hand and are 0 or less."""
    made(SMALLEST, -5, 0, 3)
    assert [job.id for job in call(client, ALL).done] == [SMALLEST, -5, 0, 3]


@pytest.mark.finding("W16")
@pytest.mark.parametrize("call", MANY.values(), ids=MANY)
def test_where_no_id_is_above_zero(client: Client, made: Made, call: Callable[[Client, JobFilter], ManyJobs]) -> None:
    """A call for many jobs began behind the id 0, and passed over all below it."""
    made(-7, -2)
    assert [job.id for job in call(client, JobFilter(ids=[-2, -7])).done] == [-7, -2]


@pytest.mark.finding("W16")
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("order", ["id", "time"])
def test_a_list_goes_on_behind_an_id_below_one(client: Client, made: Made, order: Any, descending: bool) -> None:
    """The cursor that a page ended with was refused by the next call."""
    made(SMALLEST, -5, 0, 3)
    filter, found, cursor = JobFilter(states=["available"]), [], None
    while True:
        page = client.list_jobs(filter, order=order, descending=descending, limit=1, cursor=cursor)
        found += [job.id for job in page.jobs]
        cursor = page.next
        if cursor is None:
            break
    assert sorted(found, reverse=descending) == sorted([SMALLEST, -5, 0, 3], reverse=descending)
    assert len(found) == 4


@pytest.mark.finding("W16")
def test_one_job_with_a_negative_id_is_worked_and_changed_like_any_other(client: Client, made: Made) -> None:
    """Ids below one, made by hand, were refused or passed over."""
    made(-5, 0)
    assert client.update(-5, priority=3).priority == 3
    assert client.cancel(0).state is JobState.CANCELLED
    with WorkerPool(client, {"thing": lambda tx, job: None}, queues={"default": 1}):
        wait_until(lambda: (job := client.get(-5)) and job.state is JobState.COMPLETED)
    assert client.delete(0).id == 0
    assert client.get(0) is None


@pytest.mark.finding("W16")
def test_a_sequence_below_zero(client: Client, connect: Connect) -> None:
    """The id of a single enqueue was read as if it had no sign."""
    conn = connect(autocommit=True)
    change = "ALTER SEQUENCE {} MINVALUE -10 RESTART -3"
    conn.execute(sql.SQL(change).format(sql.Identifier(client.schema, "job_id_seq")))
    assert [client.enqueue(None, {}, kind="thing").id for _ in range(2)] == [-3, -2]


# --- of two queues

ONE: dict[str, Callable[..., object]] = {
    "get": lambda client, id, tx: client.get(id, tx),
    "cancel": lambda client, id, tx: client.cancel(id, tx),
    "release": lambda client, id, tx: client.release(id, tx),
    "retry": lambda client, id, tx: client.retry(id, tx),
    "delete": lambda client, id, tx: client.delete(id, tx),
    "update": lambda client, id, tx: client.update(id, tx, priority=3),
    "update of nothing": lambda client, id, tx: client.update(id, tx),
    "wait": lambda client, id, tx: client.wait(id),
    "lock_job": lambda client, id, tx: client.lock_job(id=id).__enter__(),
}


@pytest.mark.finding("W12")
@pytest.mark.parametrize("state", ["available", "pending", "running", "completed"])
@pytest.mark.parametrize("call", ONE.values(), ids=ONE)
def test_an_id_that_two_queues_have_says_not_which_job_is_meant(
    client: Client, connect: Connect, made: Made, call: Callable[..., object], state: str
) -> None:
    """Two jobs of one id, as a failover to a logical replica leaves them, were cancelled and deleted together."""
    made(1, queue="mail", state=state)
    made(1, queue="print", state=state)
    before, requests = (
        states(client),
        sql.SQL("SELECT * FROM {}").format(sql.Identifier(client.schema, "cancel_request")),
    )
    for tx in (None, connect()):
        with pytest.raises(AmbiguousJob, match="'mail', 'print'") as raised:
            call(client, 1, tx)
        assert (raised.value.id, raised.value.queues) == (1, ("mail", "print"))
        if tx is not None:
            assert tx.execute("SELECT 1").fetchone() == (1,), "the caller's transaction stays usable"
            tx.commit()
    assert states(client) == before
    assert connect().execute(requests).fetchall() == []


@pytest.mark.finding("W12")
@pytest.mark.parametrize("batch", [1, 2, 1000])
def test_calls_for_many_jobs_tell_two_of_one_id_apart(
    client: Client, made: Made, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """Where a batch ended between two jobs of one id, the second was left out; and one of them stood for both."""
    from pgjobs.control import jobs

    monkeypatch.setattr(jobs, "BATCH", batch)
    made(1, 2, 3, queue="mail")
    made(1, 2, queue="print")
    cancelled = client.cancel_many(JobFilter(ids=[1], queues=["print"]))
    assert [(job.id, job.queue) for job in cancelled.done] == [(1, "print")]
    assert states(client)[1, "mail"] == "available"
    deleted = client.delete_many(ALL)
    assert {(job.id, job.queue) for job in deleted.done} == {
        (n, queue) for n in (1, 2) for queue in ("mail", "print")
    } | {(3, "mail")}
    assert len(deleted.done) == 5
    assert states(client) == {}


@pytest.mark.finding("W12")
def test_of_two_jobs_of_one_id_the_one_that_is_held_is_skipped(client: Client, connect: Connect, made: Made) -> None:
    """Two jobs of one id, in two queues, counted as one job for calls for many."""
    made(1, queue="mail")
    made(1, queue="print")
    holder = connect()
    holder.execute(
        sql.SQL("SELECT FROM {} WHERE queue = 'mail' FOR UPDATE").format(sql.Identifier(client.schema, "job"))
    )
    result = client.delete_many(ALL)
    assert ([job.queue for job in result.done], result.skipped) == (["print"], {1: "locked"})
    assert states(client) == {(1, "mail"): "available"}


@pytest.mark.finding("W12")
def test_a_job_that_is_waited_for_is_told_by_its_queue(client: Client, made: Made) -> None:
    """`wait(job)` could wait for another job of the same id."""
    made(1, queue="mail", state="completed")
    made(1, queue="print", state="available")
    job: Job[Any] = next(job for job in client.list_jobs().jobs if job.queue == "mail")
    assert client.wait(job).queue == "mail"


@pytest.mark.finding("W12")
def test_both_are_worked(client: Client, made: Made) -> None:
    """Two jobs of one id, in two queues, must not be in the way of each other."""
    made(1, queue="mail")
    made(1, queue="print")
    seen: list[str] = []

    def handler(tx: psycopg.Connection[Any], job: Job[Any]) -> None:
        seen.append(job.queue)

    with WorkerPool(client, {"thing": handler}, queues={"mail": 1, "print": 1}):
        wait_until(lambda: set(states(client).values()) == {"completed"})
    assert sorted(seen) == ["mail", "print"]


@pytest.mark.finding("W12")
@pytest.mark.parametrize("many", [False, True])
def test_an_enqueue_that_draws_a_taken_id_says_what_to_do(client: Client, made: Made, many: bool) -> None:
    """Ids that were behind those of the jobs made an enqueue fail with a raw UniqueViolation."""
    made(*range(1, 50))
    thing: dict[str, Any] = {"args": {}, "kind": "thing"}

    def enqueue() -> object:
        return client.enqueue_many(None, [NewJob(**thing)] * 3) if many else client.enqueue(None, **thing)

    with pytest.raises(psycopg.errors.UniqueViolation) as raised:
        enqueue()
    assert "pgjobs migrate" in " ".join(raised.value.__notes__)
    client.migrate()
    assert client.enqueue(None, **thing).id >= 50
