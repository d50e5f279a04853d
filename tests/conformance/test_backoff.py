"""When a failed job runs again: what the policies say is what the table has, on the database's clock."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pgjobs import (
    Backoff,
    Client,
    Handler,
    Job,
    JobState,
    RetryAfter,
    Snooze,
    WorkerPool,
    constant,
    exponential,
    never,
    only_for,
    river,
)
from pgjobs.maintenance.duties import Maintenance
from tests.conformance.conftest import Rows, Stored
from tests.samples import HOUR, SECOND, Thing, Tx


def fails(tx: Tx, job: Job[Thing]) -> None:
    raise ValueError("failed")


def wait_of(job: Job[Any]) -> timedelta:
    """How long a job waits from its failure on."""
    return job.scheduled_at - job.errors[-1].at


def run(
    client: Client, backoff: Backoff | None, stored: Stored, *, attempt: int = 1, sql: Rows | None = None
) -> Job[Any]:
    """Let a job fail in this attempt; the job as it is then."""
    job = client.enqueue(None, Thing(), max_attempts=32767)
    if sql is not None:
        sql("UPDATE pgjobs.job SET attempt = %s WHERE id = %s", attempt - 1, job.id)
    assert WorkerPool(client, {Thing: fails}, backoff=backoff).work_one()
    return stored(job)


@pytest.mark.conformance(107)
@pytest.mark.parametrize("attempt", [1, 2, 10, 24])
def test_a_job_waits_by_rivers_policy_unless_another_is_given(
    client: Client, stored: Stored, sql: Rows, attempt: int
) -> None:
    job = run(client, None, stored, attempt=attempt, sql=sql)
    assert (job.state, job.attempt) == (JobState.RETRYABLE, attempt)
    assert 0.9 * attempt**4 <= wait_of(job).total_seconds() < 1.1 * attempt**4


@pytest.mark.conformance(108)
@pytest.mark.parametrize(
    "backoff", [river(), constant(timedelta.max), exponential(maximum=timedelta.max)], ids=["river", "constant", "exp"]
)
def test_the_longest_delay_can_be_stored_and_read_back(
    client: Client, stored: Stored, sql: Rows, backoff: Backoff
) -> None:
    job = run(client, backoff, stored, attempt=32766, sql=sql)
    assert job.state == JobState.RETRYABLE
    assert 9000 < job.scheduled_at.year <= 9999


@pytest.mark.conformance(108)
def test_the_longest_snooze_can_be_stored_and_read_back(client: Client, stored: Stored) -> None:
    def handler(tx: Tx, job: Job[Thing]) -> None:
        raise Snooze(timedelta.max)

    job = client.enqueue(None, Thing())
    assert WorkerPool(client, {Thing: handler}).work_one()
    assert stored(job).state == JobState.SCHEDULED
    assert 9000 < stored(job).scheduled_at.year <= 9999


@pytest.mark.conformance(108)
def test_the_longest_delay_of_an_enqueue_can_be_stored_and_read_back(client: Client, stored: Stored) -> None:
    job = stored(client.enqueue(None, Thing(), delay=timedelta.max))
    assert 9000 < job.scheduled_at.year <= 9999


@pytest.mark.conformance(114)
def test_a_policy_of_ones_own_moves_the_job_on_from_its_failure(client: Client, stored: Stored, sql: Rows) -> None:
    def hours(job: Job[Any], error: BaseException) -> timedelta:
        return job.attempt * HOUR

    first = run(client, hours, stored)
    assert abs(first.scheduled_at - first.created_at - HOUR) < SECOND
    second = run(client, hours, stored, attempt=2, sql=sql)
    assert abs(second.scheduled_at - second.created_at - 2 * HOUR) < SECOND


@pytest.mark.conformance(114)
def test_a_policy_may_name_the_instant_itself(client: Client, stored: Stored) -> None:
    when = datetime(2040, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
    job = run(client, lambda job, error: when, stored)
    assert (job.state, job.scheduled_at) == (JobState.RETRYABLE, when)


@pytest.mark.conformance(114)
def test_the_policy_of_a_handler_wins_over_that_of_the_pool(client: Client, stored: Stored) -> None:
    job = client.enqueue(None, Thing())
    handler = Handler(fails, backoff=constant(2 * HOUR))
    assert WorkerPool(client, {Thing: handler}, backoff=constant(HOUR)).work_one()
    assert wait_of(stored(job)) == 2 * HOUR


@pytest.mark.conformance(115)
def test_an_exponential_policy_moves_the_job_forward(client: Client, stored: Stored) -> None:
    job = run(client, exponential(factor=1.6), stored)
    assert job.state == JobState.RETRYABLE
    assert timedelta(seconds=0.8) <= wait_of(job) <= timedelta(seconds=1.2)


@pytest.mark.conformance(115)
def test_never_ends_the_job_at_its_first_error(client: Client, stored: Stored) -> None:
    job = run(client, never(), stored)
    assert (job.state, job.attempt, job.error_count) == (JobState.DISCARDED, 1, 1)
    assert job.finalized_at is not None


@pytest.mark.conformance(115, 117)
def test_a_constant_policy_gives_the_same_time_after_every_attempt(client: Client, stored: Stored, sql: Rows) -> None:
    for attempt in (1, 2, 10, 100):
        job = run(client, constant(timedelta(minutes=1)), stored, attempt=attempt, sql=sql)
        assert wait_of(job) == timedelta(minutes=1)


@pytest.mark.conformance(119)
def test_only_the_listed_errors_are_tried_again(client: Client, stored: Stored) -> None:
    assert run(client, only_for(ValueError, policy=constant(HOUR)), stored).state == JobState.RETRYABLE
    assert run(client, only_for(OSError, policy=constant(HOUR)), stored).state == JobState.DISCARDED


@pytest.mark.conformance(118)
@pytest.mark.parametrize("skew", [-HOUR, HOUR], ids=["slow", "fast"])
def test_a_wrong_clock_of_the_worker_moves_no_retry_and_no_snooze(
    client: Client, sql: Rows, skew_clock: Callable[[timedelta], None], stored: Stored, skew: timedelta
) -> None:
    skew_clock(skew)

    def handler(tx: Tx, job: Job[Thing]) -> None:
        raise [ValueError("failed"), RetryAfter(10 * SECOND), Snooze(10 * SECOND)][job.args.n]

    jobs = [client.enqueue(None, Thing(n)) for n in range(3)]
    pool = WorkerPool(client, {Thing: handler}, backoff=constant(10 * SECOND))
    while pool.work_one():
        pass
    (now,) = sql("SELECT clock_timestamp()")[0]
    for job in map(stored, jobs):
        assert 8 * SECOND < job.scheduled_at - now <= 10 * SECOND
        assert job.attempted_at is not None
        assert abs(now - job.attempted_at) < 2 * SECOND
        assert all(abs(now - error.at) < 2 * SECOND for error in job.errors)


@pytest.mark.conformance(118)
@pytest.mark.parametrize("skew", [-HOUR, HOUR], ids=["slow", "fast"])
def test_a_wrong_clock_of_the_application_moves_no_delay_and_makes_nothing_due(
    *,
    client: Client,
    sql: Rows,
    server: Tx,
    duties: Maintenance,
    skew_clock: Callable[[timedelta], None],
    skew: timedelta,
) -> None:
    skew_clock(skew)
    client.enqueue(None, Thing(), delay=timedelta(minutes=10))
    due = client.enqueue(None, Thing())
    assert due.state == JobState.AVAILABLE
    (wait,) = sql("SELECT max(scheduled_at) - clock_timestamp() FROM pgjobs.job")[0]
    assert timedelta(minutes=9, seconds=58) < wait <= timedelta(minutes=10)
    duties.promote(server)
    duties.prune(server)
    pool = WorkerPool(client, {Thing: lambda tx, job: None})
    assert (pool.work_one(), pool.work_one()) == (True, False)
