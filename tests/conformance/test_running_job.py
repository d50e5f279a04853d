"""What a handler may ask of its job, and leave behind in it; what comes along from the enqueue."""

from __future__ import annotations

import contextvars
import json
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from pgjobs import (
    Client,
    Discard,
    Handler,
    InvalidOption,
    Job,
    JobState,
    NewJob,
    NotRunning,
    Snooze,
    WorkerPool,
    constant,
    current_job,
)
from pgjobs.codec import METADATA_LIMIT, OUTPUT_LIMIT
from tests.conformance.conftest import Rows, Stored
from tests.samples import Thing, Tx
from tests.waiting import wait_until

Function = Callable[[Any, Job[Any]], object]
LATER = constant(timedelta(hours=1))


@pytest.fixture
def run(client: Client, stored: Stored) -> Callable[..., Job[Any]]:
    """Runs one job with this handler; the job as it is then."""

    def work(function: Function, *, detached: bool = False, **options: Any) -> Job[Any]:
        job = client.enqueue(None, Thing(), **options)
        pool = WorkerPool(client, {Thing: Handler(function, detached=detached)}, backoff=LATER)
        assert pool.work_one()
        return stored(job)

    return work


Run = Callable[..., Job[Any]]


def added(job: Job[Any]) -> dict[str, Any]:
    """The metadata, but for what pgjobs has put there."""
    return {key: value for key, value in job.metadata.items() if key not in ("class", "snoozes")}


# --- metadata and output

ENDINGS = [
    (None, JobState.COMPLETED),
    (ValueError("failed"), JobState.RETRYABLE),
    (SystemExit(1), JobState.RETRYABLE),
    (Snooze(timedelta(hours=1)), JobState.SCHEDULED),
    (Discard("why"), JobState.DISCARDED),
]


@pytest.mark.parametrize("detached", [False, True], ids=["transactional", "detached"])
@pytest.mark.parametrize(("error", "state"), ENDINGS, ids=repr)
def test_metadata_and_output_are_written_however_the_attempt_ends(
    run: Run, error: BaseException | None, state: JobState, *, detached: bool
) -> None:
    def handler(tx: Any, job: Job[Any]) -> None:
        job.set_metadata({"from the mapping": 1, "replaced": "new"})
        job.set_metadata(rows=3)
        job.record_output({"file": "first"})
        job.record_output(["the last", 1, None])
        if error is not None:
            raise error

    job = run(handler, detached=detached, metadata={"kept": True, "replaced": "old"})
    assert job.state == state
    assert added(job) == {"kept": True, "replaced": "new", "from the mapping": 1, "rows": 3}
    assert job.output == ["the last", 1, None]


def test_what_a_job_completed_by_its_handler_leaves_is_written_with_the_completion(client: Client, run: Run) -> None:
    def handler(tx: None, job: Job[Any]) -> None:
        job.set_metadata(rows=3)
        job.record_output("done")
        with client.pool.connection() as own:
            completed = job.complete(own)
        assert (added(completed), completed.output) == ({"rows": 3}, "done")

    job = run(handler, detached=True)
    assert (job.state, added(job), job.output) == (JobState.COMPLETED, {"rows": 3}, "done")


@pytest.mark.parametrize("output", [None, False, 0, "", [], {}, {"nested": [1.5, "text"]}], ids=repr)
def test_every_json_value_is_an_output(run: Run, output: object) -> None:
    job = run(lambda tx, job: job.record_output(output))
    assert job.output == output
    assert job.raw_output is not None, "null is an output too"


def test_an_output_stays_until_another_replaces_it(client: Client, sql: Rows, stored: Stored) -> None:
    outputs: list[object] = ["first", ..., "third"]

    def handler(tx: Tx, job: Job[Any]) -> None:
        output = outputs.pop(0)
        if output is not ...:
            job.record_output(output)
        raise Snooze(timedelta(0))

    job = client.enqueue(None, Thing())
    pool = WorkerPool(client, {Thing: handler})
    seen = []
    while outputs:
        assert pool.work_one()
        seen.append(stored(job).output)
    assert seen == ["first", "first", "third"]


@pytest.mark.parametrize("where", ["transactional", "detached"])
def test_the_jobs_row_is_not_written_while_its_handler_runs(client: Client, run: Run, sql: Rows, *, where: str) -> None:
    """R15: a unique duplicate's enqueue would wait for it."""
    rows: list[Any] = []

    def handler(tx: Any, job: Job[Any]) -> None:
        look = "SELECT xmin, cmin, ctid, metadata::text, output::text FROM pgjobs.job"
        rows.append(sql(look))
        job.set_metadata(rows=3)
        job.record_output("much")
        rows.append(sql(look))
        if tx is not None:
            rows.append(tx.execute(look.replace("pgjobs.", f'"{client.schema}".').encode()).fetchall())

    job = run(handler, detached=where == "detached")
    assert rows == [rows[0]] * (2 if where == "detached" else 3)
    assert job.output == "much"


BAD = {
    "object": object(),
    "nan": float("nan"),
    "nul": "NUL \0",
    "surrogate": "lone \ud800",
    "nested": {"x": [object()]},
    "digits": 10**5000,
}


@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
def test_what_json_cannot_hold_is_refused_in_the_handler_and_changes_nothing(run: Run, value: object) -> None:
    def handler(tx: Tx, job: Job[Any]) -> None:
        job.set_metadata(good=1)
        job.record_output("good")
        with pytest.raises(InvalidOption, match="metadata cannot be stored"):
            job.set_metadata(bad=value)
        with pytest.raises(InvalidOption, match="output cannot be stored"):
            job.record_output(value)
        tx.execute("SELECT 1")

    job = run(handler)
    assert (job.state, added(job), job.output) == (JobState.COMPLETED, {"good": 1}, "good")


def test_a_value_that_is_refused_and_not_caught_is_the_attempts_failure(run: Run) -> None:
    job = run(lambda tx, job: job.set_metadata(bad=object()))
    assert job.state == JobState.RETRYABLE
    assert "metadata cannot be stored: $.bad" in (job.last_error or "")


def test_metadata_is_capped_over_all_calls_of_an_attempt(run: Run) -> None:
    """64 KiB; the text is counted, with what JSON adds to it."""
    room = METADATA_LIMIT - len('{"a":"","b":""}')

    def handler(tx: Tx, job: Job[Any]) -> None:
        job.set_metadata(a="x" * (room - 10))
        with pytest.raises(InvalidOption, match="more than the 65536 allowed"):
            job.set_metadata(b="y" * 11)
        job.set_metadata(b="y" * 10)

    job = run(handler)
    assert METADATA_LIMIT == 64 * 1024
    assert {key: len(value) for key, value in added(job).items()} == {"a": room - 10, "b": 10}


def test_output_is_capped(run: Run) -> None:
    """32 MiB."""

    def handler(tx: Tx, job: Job[Any]) -> None:
        with pytest.raises(InvalidOption, match="more than the"):
            job.record_output("x" * (OUTPUT_LIMIT - 1))
        job.record_output("x" * (OUTPUT_LIMIT - 2))

    job = run(handler)
    assert OUTPUT_LIMIT == 32 * 1024 * 1024
    assert len(job.output) == OUTPUT_LIMIT - 2


def test_what_is_changed_after_it_was_set_is_not_written(run: Run) -> None:
    """It would not have been checked."""

    def handler(tx: Tx, job: Job[Any]) -> None:
        rows: list[Any] = [1]
        job.set_metadata(rows=rows)
        job.record_output(rows)
        rows.append(object())

    job = run(handler)
    assert (job.state, added(job), job.output) == (JobState.COMPLETED, {"rows": [1]}, [1])


@pytest.mark.parametrize(
    "ask",
    [
        lambda job: job.set_metadata(a=1),
        lambda job: job.record_output(1),
        lambda job: job.complete(None),
        lambda job: job.cancelled,
        lambda job: job.deadline,
    ],
    ids=["set_metadata", "record_output", "complete", "cancelled", "deadline"],
)
def test_only_the_handler_that_runs_it_may_ask_this_of_a_job(
    client: Client, stored: Stored, ask: Callable[[Job[Any]], object]
) -> None:
    job = client.enqueue(None, Thing())
    for one in (job, stored(job)):
        with pytest.raises(NotRunning):
            ask(one)


@pytest.mark.parametrize("detached", [False, True], ids=["transactional", "detached"])
def test_a_job_that_was_kept_beyond_its_attempt_takes_nothing_more(client: Client, run: Run, *, detached: bool) -> None:
    kept: list[Job[Any]] = []
    run(lambda tx, job: kept.append(job), detached=detached)
    with pytest.raises(NotRunning):
        kept[0].set_metadata(late=True)
    with pytest.raises(NotRunning):
        kept[0].record_output("late")
    with client.pool.connection() as tx, pytest.raises(NotRunning):
        kept[0].complete(tx)


# --- which job this is


@pytest.mark.conformance(247)
def test_a_handler_can_tell_its_job_without_being_given_it(client: Client, run: Run) -> None:
    seen: list[Any] = []

    def deep_inside() -> None:
        job = current_job()
        seen.append(job and (job.id, job.kind, job.attempt))

    assert current_job() is None
    job = run(lambda tx, job: deep_inside())
    deep_inside()

    def failing(tx: Tx, job: Job[Any]) -> None:
        deep_inside()
        raise ValueError

    run(failing)
    deep_inside()
    assert seen == [(job.id, "thing", 1), None, (job.id + 1, "thing", 1), None]


@pytest.mark.conformance(247)
def test_each_thread_has_a_current_job_of_its_own(client: Client) -> None:
    together = threading.Barrier(3)
    seen: list[bool] = []

    def handler(tx: Tx, job: Job[Thing]) -> None:
        together.wait(20)
        seen.append(current_job() == job)
        child = threading.Thread(target=lambda: seen.append(current_job() is None), daemon=True)
        child.start()
        child.join()
        seen.append(contextvars.copy_context().run(current_job) == job)  # as a thread gets it that is given the context
        together.wait(20)

    queues = ["a", "b", "c"]
    client.enqueue_many(None, [NewJob(Thing(), queue=queue) for queue in queues])
    with WorkerPool(client, {Thing: handler}, queues=dict.fromkeys(queues, 1)):
        wait_until(lambda: len(seen) == 9)
    assert seen == [True] * 9


def test_middleware_knows_the_current_job_too(client: Client) -> None:
    seen: list[bool] = []

    def middleware(tx: Tx, job: Job[Any], run: Callable[[], object]) -> None:
        seen.append(current_job() == job)
        run()

    client.enqueue(None, Thing())
    assert WorkerPool(client, {Thing: lambda tx, job: None}, middleware=[middleware]).work_one()
    assert seen == [True]


# --- what comes along from the enqueue


@pytest.mark.conformance(31)
def test_a_context_that_was_given_reaches_the_handler_and_none_is_none(
    client: Client, database: str, stored: Stored
) -> None:
    seen: list[Any] = []
    pool = WorkerPool(client, {Thing: lambda tx, job: seen.append(job.context)})
    given = client.enqueue(None, Thing(), context={"user": 7})
    none = client.enqueue(None, Thing())
    empty = client.enqueue(None, Thing(), context={})
    listed = client.enqueue_many(None, [NewJob(Thing(), context={"user": 8}), Thing()])
    while pool.work_one():
        pass
    assert seen == [{"user": 7}, None, {}, {"user": 8}, None]
    jobs = [stored(job).context for job in (given, none, empty, *listed)]
    assert jobs == seen


@pytest.mark.conformance(31)
def test_the_context_of_the_client_is_asked_for_at_each_enqueue_that_brings_none(client: Client) -> None:
    users: list[Any] = [{"user": 1}, None, {"user": 2}]
    asking = Client(client.pool, schema=client.schema, context=lambda: users.pop(0))
    jobs = [
        asking.enqueue(None, Thing()),
        asking.enqueue(None, Thing(), context={"user": 9}),
        asking.enqueue(None, Thing()),
        asking.enqueue(None, Thing()),
    ]
    assert [job.context for job in jobs] == [{"user": 1}, {"user": 9}, None, {"user": 2}]
    assert users == []


@pytest.mark.parametrize(
    "context", ["text", 5, [1], {"x": object()}, {"big": "x" * METADATA_LIMIT}], ids=lambda context: repr(context)[:20]
)
def test_a_context_that_cannot_be_stored_is_refused_before_any_sql(client: Client, sql: Rows, context: Any) -> None:
    with pytest.raises(InvalidOption):
        client.enqueue(None, Thing(), context=context)
    assert sql("SELECT count(*) FROM pgjobs.job") == [(0,)]


def test_a_context_survives_failures_and_metadata_of_the_handler(client: Client, sql: Rows, stored: Stored) -> None:
    seen: list[Any] = []

    def handler(tx: Tx, job: Job[Any]) -> None:
        seen.append(job.context)
        job.set_metadata(rows=1)
        raise ValueError("failed")

    job = client.enqueue(None, Thing(), context={"user": 7})
    pool = WorkerPool(client, {Thing: handler}, backoff=constant(timedelta(0)))
    assert pool.work_one()
    assert pool.work_one()
    assert seen == [{"user": 7}] * 2
    assert stored(job).context == {"user": 7}


@pytest.mark.parametrize("error", [None, ValueError("failed"), Snooze(timedelta(hours=1))], ids=repr)
def test_the_version_of_the_code_is_noted_where_a_job_is_enqueued_and_where_it_is_processed(
    client: Client, stored: Stored, error: Exception | None
) -> None:
    def handler(tx: Tx, job: Job[Any]) -> None:
        if error:
            raise error

    old = Client(client.pool, schema=client.schema, code_version="1f3a9c2")
    new = Client(client.pool, schema=client.schema, code_version="v2\nx")
    job = old.enqueue(None, Thing(), metadata={"mine": 1})
    assert json.loads(stored(job).raw_metadata)["code_version_enqueued"] == "1f3a9c2"
    assert "code_version_processed" not in stored(job).metadata
    assert WorkerPool(new, {Thing: handler}, backoff=LATER).work_one()
    assert added(stored(job)) == {
        "mine": 1,
        "code_version_enqueued": "1f3a9c2",
        "code_version_processed": "v2\nx",
    }


def test_without_a_version_none_is_noted(run: Run) -> None:
    assert added(run(lambda tx, job: None)) == {}
