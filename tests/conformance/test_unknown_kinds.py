"""Kinds without a handler, and rows that nobody can decode: never lost, never in the way."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pgjobs import Client, Handler, Hooks, InvalidSetting, Job, JobState, WorkerPool, WorkerPoolError, WorkMap, constant
from tests import inside
from tests.conformance.conftest import Rows, Stored
from tests.samples import Thing, Tx, nothing
from tests.waiting import wait_until

LATER = constant(timedelta(hours=1))


class Told(Hooks):
    """What the hooks were told, by name."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.unknown: list[Job[Any]] = []

    def on_start(self, job: Job[Any]) -> None:
        self.names.append("start")

    def on_finish(self, job: Job[Any], error: BaseException | None) -> None:
        self.names.append("finish")

    def on_unknown_kind(self, job: Job[Any]) -> None:
        self.unknown.append(job)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def observed(client: Client, told: Told) -> Client:
    """A client on the same tables, with hooks."""
    return Client(client.pool, schema=client.schema, hooks=[told])


def enqueue(client: Client, kind: str, **options: Any) -> Job[Any]:
    args: dict[str, Any] = {}
    return client.enqueue(None, args, kind=kind, **options)


@pytest.mark.conformance(94)
def test_an_unknown_kind_is_one_failed_attempt_and_told_by_its_own_hook_alone(
    observed: Client, told: Told, stored: Stored
) -> None:
    job = enqueue(observed, "my.job")
    assert WorkerPool(observed, {Thing: nothing}).work_one()
    found = stored(job)
    assert (found.state, found.attempt, found.error_count) == (JobState.RETRYABLE, 1, 1)
    assert found.last_error == "no handler for kind 'my.job': register one in the WorkMap"
    assert [job.id for job in told.unknown] == [job.id]
    assert told.names == []


@pytest.mark.conformance(95)
@pytest.mark.parametrize("given", ["function", "handler"])
def test_a_handler_of_unknown_kinds_runs_them_as_any_other_and_the_hook_stays_silent(
    observed: Client, told: Told, stored: Stored, effects: str, sql: Rows, *, given: str
) -> None:
    seen: list[tuple[str, Any]] = []

    def fallback(tx: Tx, job: Job[Any]) -> None:
        tx.execute(f"INSERT INTO {effects} VALUES ('written')".encode())
        seen.append((job.kind, job.args))

    job = observed.enqueue(None, {"n": 1}, kind="my.job")
    handler = fallback if given == "function" else Handler(fallback)
    pool = WorkerPool(observed, {Thing: nothing}, unknown_kinds=handler)
    assert pool.work_one()
    assert seen == [("my.job", {"n": 1})]
    assert stored(job).state == JobState.COMPLETED
    assert sql("SELECT count(*) FROM pgjobs.effect") == [(1,)]
    assert (told.unknown, told.names) == ([], ["start", "finish"])


@pytest.mark.conformance(95)
def test_the_settings_of_a_handler_of_unknown_kinds_are_its_own(client: Client, stored: Stored) -> None:
    deadlines: list[Any] = []

    def fallback(tx: Tx, job: Job[Any]) -> None:
        deadlines.append(job.deadline)
        raise ValueError("failed")

    job = enqueue(client, "my.job")
    handler = Handler(fallback, timeout=None, backoff=constant(timedelta(days=3)))
    assert WorkerPool(client, {Thing: nothing}, unknown_kinds=handler).work_one()
    assert deadlines == [None]
    assert stored(job).scheduled_at - stored(job).errors[0].at == timedelta(days=3)


def test_a_pool_may_have_a_handler_of_unknown_kinds_and_no_other(client: Client, stored: Stored) -> None:
    job = enqueue(client, "my.job")
    with WorkerPool(client, {}, unknown_kinds=nothing, queues={"default": 1}):
        wait_until(lambda: stored(job).state == JobState.COMPLETED)
    for nobody in ("error", "leave"):
        with pytest.raises(WorkerPoolError, match="WorkMap is empty"):
            WorkerPool(client, {}, unknown_kinds=nobody).start()


@pytest.mark.parametrize("unknown", ["ignore", "", Handler(nothing, detached=True), None, 5])
def test_what_cannot_take_unknown_kinds_is_refused_at_construction(client: Client, unknown: Any) -> None:
    with pytest.raises((InvalidSetting, ValueError)):
        WorkerPool(client, {Thing: nothing}, unknown_kinds=unknown)


# --- leave


def test_left_kinds_are_not_touched_and_do_not_stand_in_the_way(observed: Client, told: Told, sql: Rows) -> None:
    """Thousands of them wait in front, all more urgent."""
    sql("INSERT INTO pgjobs.job (kind, priority) SELECT 'foreign', -1 FROM generate_series(1, 3000)")
    before = sql("SELECT md5(string_agg(job::text, '' ORDER BY id)) FROM pgjobs.job AS job")
    ours = [enqueue(observed, "thing") for _ in range(3)]
    pool = WorkerPool(observed, {Thing: nothing}, unknown_kinds="leave")
    assert [pool.work_one() for _ in range(4)] == [True, True, True, False]
    assert sql("SELECT state FROM pgjobs.job WHERE id = ANY (%s)", [job.id for job in ours]) == [("completed",)] * 3
    after = sql("SELECT md5(string_agg(job::text, '' ORDER BY id)) FROM pgjobs.job AS job WHERE kind = 'foreign'")
    assert after == before
    assert told.unknown == []


def test_two_pools_that_know_different_kinds_drain_one_queue_between_them(client: Client, sql: Rows) -> None:
    sql(
        "INSERT INTO pgjobs.job (kind, priority, args) SELECT CASE WHEN random() < 0.5 THEN 'left.one' ELSE 'right.one'"
        " END, (random() * 3)::integer, jsonb_build_object('n', n) FROM generate_series(1, 2000) AS n"
    )
    runs: dict[str, list[int]] = {"left.one": [], "right.one": []}

    def pool(kind: str) -> WorkerPool:
        def handler(tx: Tx, job: Job[dict[str, int]]) -> None:
            assert job.kind == kind
            runs[kind].append(job.id)

        return WorkerPool(client, {kind: handler}, unknown_kinds="leave", queues={"default": 2}, name=kind)

    with pool("left.one"), pool("right.one"):
        wait_until(lambda: sql("SELECT count(*) FROM pgjobs.job WHERE state <> 'completed'") == [(0,)], timeout=60)
    assert sorted(runs["left.one"] + runs["right.one"]) == list(range(1, 2001)), "each once"
    assert sql("SELECT count(*) FROM pgjobs.job WHERE attempt <> 1 OR errors <> '[]'") == [(0,)]


def test_a_left_kind_is_taken_once_the_work_map_has_it(client: Client, stored: Stored) -> None:
    job = enqueue(client, "later.on")
    work_map = WorkMap({Thing: nothing})
    with WorkerPool(
        client, work_map, unknown_kinds="leave", queues={"default": 1}, poll_interval=timedelta(seconds=0.05)
    ):
        other = enqueue(client, "thing")
        wait_until(lambda: stored(other).state == JobState.COMPLETED)
        assert (stored(job).state, stored(job).attempt) == (JobState.AVAILABLE, 0)
        work_map["later.on"] = nothing
        wait_until(lambda: stored(job).state == JobState.COMPLETED)
    assert stored(job).attempt == 1


def test_a_left_kind_wakes_nobody_for_long(client: Client, stored: Stored) -> None:
    """Its notification finds nothing to do, and the next one for a known kind is heard."""
    with WorkerPool(client, {Thing: nothing}, unknown_kinds="leave", poll_interval=timedelta(hours=1)) as pool:
        wait_until(lambda: inside.listens(pool))
        foreign = enqueue(client, "foreign")
        known = enqueue(client, "thing")
        wait_until(lambda: stored(known).state == JobState.COMPLETED)
    assert (stored(foreign).state, stored(foreign).attempt) == (JobState.AVAILABLE, 0)


# --- rows that cannot be decoded

UNDECODABLE = {
    "a wrong type": '{"n": "text"}',
    "too deep for Python": '{"n": ' + "[" * 3000 + "]" * 3000 + "}",
    "more digits than Python reads": '{"n": 1e5000}',
}


@pytest.mark.parametrize("raw", UNDECODABLE.values(), ids=UNDECODABLE.keys())
def test_a_row_that_cannot_be_decoded_is_recorded_and_set_aside_while_others_are_worked(
    client: Client, sql: Rows, stored: Stored, raw: str
) -> None:
    called: list[int] = []

    def handler(tx: Tx, job: Job[Thing]) -> None:
        called.append(job.id)

    ((id,),) = sql(
        "INSERT INTO pgjobs.job (kind, priority, args, max_attempts) VALUES ('thing', -1, %s, 2) RETURNING id", raw
    )
    fine = client.enqueue(None, Thing())
    pool = WorkerPool(client, {Thing: handler}, backoff=constant(timedelta(0)))
    assert [pool.work_one() for _ in range(4)] == [True, True, True, False]
    bad = client.get(id)
    assert bad is not None
    assert (bad.state, bad.attempt) == (JobState.DISCARDED, 2)
    assert [(error.attempt, error.error[:19]) for error in bad.errors] == [
        (1, "args do not fit Thi"),
        (2, "args do not fit Thi"),
    ]
    assert called == [fine.id]
    assert stored(fine).state == JobState.COMPLETED


def test_a_renamed_kind_keeps_its_handler_under_the_old_name(client: Client, stored: Stored) -> None:
    ran: list[tuple[str, Any]] = []

    def run(tx: Tx, job: Job[Thing]) -> None:
        ran.append((job.kind, job.args))
        if job.kind == "thing.before":
            raise ValueError

    work_map = WorkMap({Thing: Handler(run, backoff=LATER)})
    work_map["thing.before"] = work_map[Thing]
    knowing = Client(client.pool, schema=client.schema, work_map=work_map)
    jobs = [knowing.enqueue(None, Thing(1)), knowing.enqueue(None, {"n": 2}, kind="thing.before")]
    pool = WorkerPool(knowing, work_map)
    assert pool.work_one()
    assert pool.work_one()
    assert ran == [("thing", Thing(1)), ("thing.before", Thing(2))]
    assert stored(jobs[1]).state is JobState.RETRYABLE
    assert stored(jobs[1]).scheduled_at > datetime.now(UTC) + timedelta(minutes=50), "the settings of the handler"
    found = knowing.get(jobs[1].id)
    assert found is not None
    assert found.args == Thing(2)
