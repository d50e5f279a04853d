"""What a run leaves behind."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from pgjobs import (
    Cancel,
    Client,
    Discard,
    Handler,
    Job,
    JobState,
    QueueSettings,
    RetryAfter,
    RetryAt,
    Snooze,
    WorkerPool,
    constant,
)
from pgjobs.clean_text import ERROR_LIMIT, TRACE_LIMIT
from pgjobs.execution.queries import FinishResult
from tests.conformance.conftest import Rows, Stored
from tests.samples import SECOND, Thing, Tx
from tests.waiting import wait_until

HandlerFunction = Callable[[Tx, Job[Any]], object]


def raising(*errors: BaseException | None) -> HandlerFunction:
    """A handler that raises these, one per run, and from then on the last one again."""
    left = list(errors)

    def handler(tx: Tx, job: Job[Thing]) -> None:
        error = left.pop(0) if len(left) > 1 else left[0]
        if error is not None:
            raise error

    return handler


@pytest.fixture
def run(client: Client, stored: Stored, sql: Rows) -> Callable[..., Job[Any]]:
    """Runs a job so many times, each time as soon as it can be; the job as it is then."""

    def work(handler: HandlerFunction, times: int = 1, **options: Any) -> Job[Any]:
        job = client.enqueue(None, Thing(), **options)
        pool = WorkerPool(client, {Thing: handler})
        for _ in range(times):
            sql(
                "UPDATE pgjobs.job SET state = 'available', scheduled_at = clock_timestamp()"
                " WHERE id = %s AND state IN ('retryable', 'scheduled')",
                job.id,
            )
            with ThreadPoolExecutor(1) as worker:  # on the main thread a KeyboardInterrupt is somebody's Ctrl-C
                assert worker.submit(pool.work_one).result()
        return stored(job)

    return work


Run = Callable[..., Job[Any]]


@pytest.mark.conformance(71)
def test_a_job_whose_handler_returns_is_completed_now(run: Run, sql: Rows) -> None:
    job = run(raising(None))
    (now,) = sql("SELECT clock_timestamp()")[0]
    assert (job.state, job.attempt, job.errors) == (JobState.COMPLETED, 1, ())
    assert job.finalized_at is not None
    assert job.attempted_at is not None
    assert job.attempted_at <= job.finalized_at <= now
    assert now - job.finalized_at < 2 * SECOND


@pytest.mark.conformance(71)
@pytest.mark.parametrize("answer", [False, None, 0, "text", [], {"done": False}], ids=repr)
def test_what_a_handler_returns_means_nothing(run: Run, answer: object) -> None:
    assert run(lambda tx, job: answer).state == JobState.COMPLETED


@pytest.mark.conformance(72)
def test_a_job_whose_handler_raises_is_retryable_with_one_error(run: Run, sql: Rows) -> None:
    """Every exception of Python has a traceback, so it is kept also for plain errors."""
    job = run(raising(ValueError("went wrong")))
    (now,) = sql("SELECT clock_timestamp()")[0]
    assert (job.state, job.attempt, job.finalized_at) == (JobState.RETRYABLE, 1, None)
    (error,) = job.errors
    assert (error.attempt, error.error) == (1, "went wrong")
    assert now - error.at < 2 * SECOND
    assert "ValueError: went wrong" in (error.trace or "")
    assert 0.9 <= (job.scheduled_at - error.at).total_seconds() < 1.1


@pytest.mark.conformance(73)
def test_a_second_failure_adds_its_own_error_and_waits_longer(run: Run) -> None:
    job = run(raising(ValueError("first"), ValueError("second")), times=2)
    assert (job.state, job.attempt, job.finalized_at) == (JobState.RETRYABLE, 2, None)
    assert [(error.attempt, error.error) for error in job.errors] == [(1, "first"), (2, "second")]
    assert 0.9 * 16 <= (job.scheduled_at - job.errors[-1].at).total_seconds() < 1.1 * 16


CRASHES = [SystemExit(1), KeyboardInterrupt("at the keyboard"), GeneratorExit(), MemoryError("no more")]


@pytest.mark.conformance(76, 103)
@pytest.mark.parametrize("crash", CRASHES, ids=lambda crash: type(crash).__name__)
def test_a_crash_is_a_failure_whose_trace_begins_with_the_handler(
    client: Client, run: Run, crash: BaseException
) -> None:
    job = run(raising(crash))
    assert (job.state, job.attempt, job.error_count) == (JobState.RETRYABLE, 1, 1)
    assert (str(crash) or type(crash).__name__) in (job.last_error or "")
    header, first, *_ = (job.errors[0].trace or "").splitlines()
    assert header == "Traceback (most recent call last):"
    assert first.startswith(f'  File "{__file__}"')
    assert first.endswith(", in handler")
    assert "/pgjobs/" not in (job.errors[0].trace or "")


@pytest.mark.conformance(77)
@pytest.mark.parametrize("crash", CRASHES, ids=lambda crash: type(crash).__name__)
def test_a_crash_in_the_last_attempt_discards_the_job(run: Run, crash: BaseException) -> None:
    job = run(raising(crash), max_attempts=1)
    assert (job.state, job.attempt, job.error_count) == (JobState.DISCARDED, 1, 1)
    assert job.finalized_at is not None


def thread_names() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


@pytest.mark.conformance(103)
def test_a_thread_outlives_what_its_handlers_raise(client: Client, stored: Stored) -> None:
    crashed = client.enqueue(None, Thing(1), priority=-1)
    fine = client.enqueue(None, Thing(2))

    def handler(tx: Tx, job: Job[Thing]) -> None:
        if job.args.n == 1:
            raise SystemExit("the text of the crash")

    done = threading.Event()
    pool = WorkerPool(client, {Thing: handler, "last": lambda tx, job: done.set()}, queues={"default": 1})
    client.enqueue(None, {}, kind="last", priority=1)
    with pool:
        assert done.wait(10)
        assert [name for name in thread_names() if "/worker-" in name] == ["pgjobs/worker-0"]
    assert "the text of the crash" in (stored(crashed).last_error or "")
    assert stored(fine).state == JobState.COMPLETED


def in_a_child_thread(error: BaseException) -> HandlerFunction:
    def child() -> None:
        raise error

    def handler(tx: Tx, job: Job[Thing]) -> None:
        with ThreadPoolExecutor(1) as threads:
            threads.submit(child).result()

    return handler


@pytest.mark.conformance(105)
@pytest.mark.parametrize(
    "handler",
    [
        raising(SystemExit(0)),
        raising(KeyboardInterrupt()),
        in_a_child_thread(ValueError("of a child")),
        in_a_child_thread(SystemExit("of a child")),
    ],
    ids=["exit", "interrupt", "error in a child", "exit in a child"],
)
def test_each_way_out_leaves_the_job_retryable_with_one_error(
    client: Client, run: Run, sql: Rows, handler: HandlerFunction
) -> None:
    job = run(handler)
    assert (job.state, job.attempt) == (JobState.RETRYABLE, 1)
    (error,) = job.errors
    assert error.attempt == 1
    assert error.error
    assert error.at is not None
    assert run(raising(None)).state == JobState.COMPLETED, "other jobs run"


@pytest.mark.conformance(83)
def test_snoozes_do_not_count_for_the_backoff(run: Run) -> None:
    snoozed = run(raising(Snooze(SECOND)), times=10)
    assert (snoozed.state, snoozed.attempt, snoozed.errors) == (JobState.SCHEDULED, 0, ())
    failed = run(raising(*[Snooze(SECOND)] * 10, *[ValueError("failed")] * 10), times=20)
    assert (failed.attempt, failed.error_count) == (10, 10)
    assert [error.attempt for error in failed.errors] == list(range(1, 11))
    assert 0.9 * 10**4 <= (failed.scheduled_at - failed.errors[-1].at).total_seconds() < 1.1 * 10**4


@pytest.mark.conformance(83)
def test_a_snooze_waits_its_time_and_gives_the_attempt_back_even_if_it_was_the_last(run: Run, sql: Rows) -> None:
    job = run(raising(Snooze(timedelta(minutes=5))), max_attempts=1)
    (now,) = sql("SELECT clock_timestamp()")[0]
    assert (job.state, job.attempt, job.errors, job.finalized_at) == (JobState.SCHEDULED, 0, (), None)
    assert timedelta(minutes=4, seconds=58) < job.scheduled_at - now <= timedelta(minutes=5)


@pytest.mark.conformance(83)
def test_a_snooze_of_no_time_makes_the_job_available_at_once(run: Run) -> None:
    assert run(raising(Snooze(timedelta(0)))).state == JobState.AVAILABLE


@pytest.mark.finding("E10")
def test_the_snoozes_of_a_job_are_counted_in_its_metadata_and_kept_over_retries(run: Run) -> None:
    """Nothing told how often a job had been put off."""
    errors = [Snooze(SECOND), ValueError("failed"), Snooze(SECOND), RetryAfter(SECOND), Snooze(SECOND), None]
    for times, count in enumerate([1, 1, 2, 2, 3, 3], start=1):
        job = run(raising(*errors), times=times, metadata={"mine": [1]})
        assert job.metadata["snoozes"] == count
        assert job.metadata["mine"] == [1]
    assert (job.state, job.attempt, job.error_count) == (JobState.COMPLETED, 3, 2)


@pytest.mark.finding("E10")
@pytest.mark.parametrize("stored_count", ["text", None, [], {"a": 1}, True])
def test_what_stands_in_the_place_of_the_count_and_is_none_begins_anew(run: Run, stored_count: object) -> None:
    """A count that could not be read would have cost the record of the attempt."""
    job = run(raising(Snooze(SECOND)), times=2, metadata={"snoozes": stored_count})
    assert (job.state, job.metadata["snoozes"]) == (JobState.SCHEDULED, 2)


@pytest.mark.finding("E10")
@pytest.mark.parametrize("detached", [False, True])
def test_a_snooze_is_counted_beside_what_its_handler_keeps_and_told(
    client: Client, stored: Stored, *, detached: bool
) -> None:
    """Nothing told how often a job had been put off."""

    def handler(tx: Tx | None, job: Job[Thing]) -> None:
        job.set_metadata(page=job.metadata.get("page", 0) + 1)
        raise Snooze(timedelta(0))

    events = client.subscribe()
    job = client.enqueue(None, Thing())
    pool = WorkerPool(client, {Thing: Handler(handler, detached=detached)})
    for count in (1, 2, 3):
        assert pool.work_one()
        assert stored(job).metadata == {**job.metadata, "page": count, "snoozes": count}
        told = events.get(SECOND)
        assert told is not None
        assert told.job.metadata == stored(job).metadata


@pytest.mark.finding("E10")
def test_the_snoozes_of_a_batch_are_counted_one_by_one(client: Client, stored: Stored) -> None:
    """Nothing told how often a job had been put off."""

    def handler(tx: Tx, job: Job[Thing]) -> None:
        tx.execute("SELECT 1")
        if job.metadata.get("snoozes", 0) < job.args.n:
            raise Snooze(timedelta(0))

    jobs = client.enqueue_many(None, [Thing(n % 3) for n in range(12)])
    with WorkerPool(client, {Thing: handler}, queues={"default": QueueSettings(1, batch_size=12)}):
        wait_until(lambda: all(stored(job).state.final for job in jobs), 20)
    assert [stored(job).metadata.get("snoozes", 0) for job in jobs] == [n % 3 for n in range(12)]
    assert {stored(job).attempt for job in jobs} == {1}


@pytest.mark.conformance(85)
def test_an_unknown_kind_fails_its_attempt_and_no_other_job(client: Client, run: Run, stored: Stored) -> None:
    unknown: Job[Any] = client.enqueue(None, {}, kind="nobody.knows")
    assert run(raising(None), times=2).state == JobState.COMPLETED
    job = stored(unknown)
    assert (job.state, job.attempt, job.error_count) == (JobState.RETRYABLE, 1, 1)
    assert "nobody.knows" in (job.last_error or "")
    assert job.scheduled_at > unknown.scheduled_at


@pytest.mark.conformance(85)
def test_an_unknown_kind_is_discarded_when_no_attempt_is_left(client: Client, run: Run, stored: Stored) -> None:
    unknown: Job[Any] = client.enqueue(None, {}, kind="nobody.knows", max_attempts=1)
    run(raising(None), times=2)
    assert stored(unknown).state == JobState.DISCARDED


@pytest.mark.conformance(271)
def test_args_that_do_not_fit_fail_the_attempt_and_the_handler_is_not_called(client: Client, stored: Stored) -> None:
    job = client.enqueue(None, {"n": "not a number"}, kind="thing")
    called: list[Any] = []
    assert WorkerPool(client, {Thing: lambda tx, job: called.append(job)}).work_one()
    assert called == []
    assert (stored(job).state, stored(job).error_count) == (JobState.RETRYABLE, 1)
    assert "$.n" in (stored(job).last_error or "")


@pytest.mark.conformance(88)
@pytest.mark.parametrize("raises", [False, True], ids=["returns", "raises"])
def test_a_record_that_cannot_be_written_at_first_is_tried_again(
    client: Client, run: Run, monkeypatch: pytest.MonkeyPatch, raises: bool
) -> None:
    """The handler's connection is gone, and two more fail; a returned handler's writes went with the first."""
    right, tries = client.queries.finish_late, []

    def finish_late(*args: Any, **options: Any) -> FinishResult:
        tries.append(args)
        if len(tries) < 3:
            raise psycopg.OperationalError("still not")
        return right(*args, **options)

    def handler(tx: Tx, job: Job[Thing]) -> None:
        tx.close()
        if raises:
            raise ValueError("failed")

    monkeypatch.setattr(client.queries, "finish_late", finish_late)
    job = run(handler)
    assert (job.state, job.attempt, job.error_count) == (JobState.RETRYABLE, 1, 1)
    assert len(tries) == 3


@pytest.mark.conformance(88)
def test_a_record_that_cannot_be_written_at_all_is_left_to_the_rescue(
    client: Client, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finish_late(*args: Any, **options: Any) -> FinishResult:
        raise psycopg.OperationalError("never")

    monkeypatch.setattr(client.queries, "finish_late", finish_late)
    job = run(lambda tx, job: tx.close())
    assert (job.state, job.attempt, job.errors) == (JobState.RUNNING, 1, ())


@pytest.mark.conformance(89)
@pytest.mark.parametrize("state", JobState)
def test_the_table_has_an_end_exactly_in_the_final_states(client: Client, sql: Rows, state: JobState) -> None:
    right, wrong = ("now()", "NULL") if state.final else ("NULL", "now()")
    insert = "INSERT INTO pgjobs.job (kind, state, finalized_at) VALUES ('thing', '%s', %s)"
    sql(insert % (state, right))
    with pytest.raises(psycopg.errors.CheckViolation, match="job_finalized"):
        sql(insert % (state, wrong))


@pytest.mark.conformance(91)
def test_a_message_of_several_lines_is_kept_as_it_is(run: Run) -> None:
    job = run(raising(ValueError("world\nended")))
    assert (job.error_count, job.last_error) == (1, "world\nended")
    assert job.scheduled_at > job.created_at


@pytest.mark.conformance(93)
def test_the_record_of_an_error_is_bounded(run: Run, sql: Rows) -> None:
    job = run(raising(ValueError("x" * 1_000_000)))
    (error,) = job.errors
    assert len(error.error) == pytest.approx(ERROR_LIMIT, abs=100)
    assert len(error.trace or "") == pytest.approx(TRACE_LIMIT, abs=100)
    assert error.trace is not None
    assert error.trace.startswith("Traceback")


@pytest.mark.conformance(96)
def test_a_job_that_is_over_is_not_taken_again(client: Client, run: Run, sql: Rows) -> None:
    for handler in (raising(None), raising(Discard()), raising(Cancel())):
        assert run(handler).state.final
    sql("UPDATE pgjobs.job SET scheduled_at = now() - interval '1 hour'")
    assert not WorkerPool(client, {Thing: raising(None)}).work_one()


@pytest.mark.conformance(97)
def test_retry_after_waits_as_long_as_the_handler_says(run: Run) -> None:
    job = run(raising(RetryAfter(timedelta(hours=2), "R")))
    assert (job.state, job.error_count) == (JobState.RETRYABLE, 1)
    assert job.last_error == "retry in 2:00:00 because R"
    assert job.scheduled_at - job.errors[0].at == timedelta(hours=2)


@pytest.mark.conformance(98)
def test_retry_at_waits_until_the_handler_s_instant(run: Run) -> None:
    when = datetime.now(UTC) + timedelta(hours=3)
    job = run(raising(RetryAt(when, "R")))
    assert (job.state, job.error_count, job.scheduled_at) == (JobState.RETRYABLE, 1, when)
    assert (job.last_error or "").endswith("because R")


@pytest.mark.conformance(98)
def test_retry_at_the_end_of_time_is_recorded_too(run: Run) -> None:
    job = run(raising(RetryAt(datetime.max.replace(tzinfo=UTC), "R")))
    assert (job.state, job.error_count) == (JobState.RETRYABLE, 1)
    assert job.scheduled_at.year == 9999


@pytest.mark.conformance(97, 98)
@pytest.mark.parametrize("signal", [RetryAfter(SECOND), RetryAt(datetime(2040, 1, 1, tzinfo=UTC))], ids=repr)
def test_a_retry_that_the_handler_asks_for_counts_and_is_bounded(run: Run, signal: Exception) -> None:
    job = run(raising(signal), times=2, max_attempts=2)
    assert (job.state, job.attempt, job.error_count) == (JobState.DISCARDED, 2, 2)


@pytest.mark.conformance(97)
def test_retry_after_no_time_makes_the_job_available_at_once(run: Run) -> None:
    job = run(raising(RetryAfter(timedelta(0))))
    assert (job.state, job.error_count, job.finalized_at) == (JobState.AVAILABLE, 1, None)


@pytest.mark.conformance(101)
def test_a_job_that_always_fails_runs_as_often_as_it_may_and_no_more(client: Client, run: Run, sql: Rows) -> None:
    runs: list[int] = []

    def handler(tx: Tx, job: Job[Thing]) -> None:
        runs.append(job.attempt)
        raise ValueError(f"failure {job.attempt}")

    job = run(handler, times=2, max_attempts=2)
    assert runs == [1, 2]
    assert (job.state, job.attempt) == (JobState.DISCARDED, 2)
    assert [(error.attempt, error.error) for error in job.errors] == [(1, "failure 1"), (2, "failure 2")]
    assert job.finalized_at is not None
    assert not WorkerPool(client, {Thing: handler}).work_one()


@pytest.mark.conformance(102)
def test_a_discarded_job_is_over_and_keeps_reason_and_cause(client: Client, run: Run) -> None:
    def handler(tx: Tx, job: Job[Thing]) -> None:
        try:
            raise KeyError("the cause")
        except KeyError as error:
            raise Discard("of no use") from error

    job = run(handler)
    assert (job.state, job.attempt, job.error_count) == (JobState.DISCARDED, 1, 1)
    assert job.finalized_at is not None
    assert "of no use" in (job.last_error or "")
    assert "the cause" in (job.last_error or "")
    assert "KeyError" in (job.errors[0].trace or "")
    assert not WorkerPool(client, {Thing: handler}).work_one()


@pytest.mark.conformance(102)
@pytest.mark.parametrize(("signal", "state"), [(Discard(), "discarded"), (Cancel(), "cancelled")], ids=repr)
def test_a_job_may_be_ended_without_a_reason(run: Run, signal: Exception, state: str) -> None:
    job = run(raising(signal))
    assert (job.state, job.attempt, job.error_count) == (state, 1, 1)
    assert job.finalized_at is not None


def test_a_cancelled_job_is_over_and_keeps_the_reason(run: Run) -> None:
    job = run(raising(Cancel("nobody waits for it")))
    assert (job.state, job.last_error) == (JobState.CANCELLED, "nobody waits for it")


# --- the row and its errors are the history


@pytest.mark.conformance(284)
def test_a_successful_job_stands_in_its_row_without_errors(run: Run) -> None:
    job = run(raising(None))
    assert (job.state, job.errors, job.attempt) == (JobState.COMPLETED, (), 1)
    assert job.finalized_at is not None
    assert job.finalized_at > job.created_at


@pytest.mark.conformance(285)
def test_failures_before_the_success_stay_on_record_with_the_args(run: Run) -> None:
    job = run(raising(ValueError("first"), ValueError("second"), None), times=3)
    assert (job.state, job.attempt) == (JobState.COMPLETED, 3)
    assert [(error.attempt, error.error) for error in job.errors] == [(1, "first"), (2, "second")]
    assert job.errors[0].at < job.errors[1].at
    assert job.raw_args == '{"n": 0}'


@pytest.mark.conformance(286)
def test_a_crash_before_the_success_stays_on_record(run: Run) -> None:
    job = run(raising(SystemExit("the crash"), None), times=2)
    assert job.state == JobState.COMPLETED
    assert job.errors[0].attempt == 1
    assert "the crash" in job.errors[0].error


@pytest.mark.conformance(288)
def test_errors_are_pruned_by_count_in_the_middle(client: Client, sql: Rows, stored: Stored) -> None:
    """By age the row as a whole is cleaned; by size each text is cut."""
    job = client.enqueue(None, Thing(), max_attempts=1000)
    pool = WorkerPool(client, {Thing: raising(ValueError("the latest"))}, backoff=constant(timedelta(0)))
    sql(
        """UPDATE pgjobs.job SET attempt = 99, errors = (
            SELECT jsonb_agg(jsonb_build_object('attempt', n, 'at', now(), 'error', 'failure ' || n) ORDER BY n)
            FROM generate_series(1, 99) AS n)"""
    )
    assert pool.work_one()
    assert [error.attempt for error in stored(job).errors] == list(range(1, 101)), "a hundred are kept"
    assert pool.work_one()
    kept = [error.attempt for error in stored(job).errors]
    assert len(kept) == 100
    assert (kept[:40], kept[-40:]) == (list(range(1, 41)), list(range(62, 102)))


@pytest.mark.conformance(74)
def test_a_retry_with_a_short_delay_does_not_wait_for_the_next_look_at_what_is_due(
    client: Client, stored: Stored, sql: Rows
) -> None:
    """It is retryable like any other, and brings the look forward: here that would else be an hour away. River makes
    such a job available at once instead."""
    handler = raising(ValueError("once"), None)

    def late(tx: Tx, job: Job[Thing]) -> None:
        sql("UPDATE pgjobs.maintenance SET next_run_at = clock_timestamp() + interval '1 hour' WHERE duty = 'promote'")
        handler(tx, job)

    with WorkerPool(client, {Thing: late}, queues={"default": 1}, backoff=constant(SECOND / 5)):
        job = client.enqueue(None, Thing())
        wait_until(lambda: stored(job).state is JobState.COMPLETED, 20)
    assert (stored(job).attempt, stored(job).error_count) == (2, 1)
