"""What objects show of themselves: enough to tell them apart, and nothing that does not belong into a log."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pgjobs import Client, JobCounts, JobFilter, JobOptions, JobState, NewJob, Schedule, WorkerPool


@dataclass
class Thing:
    secret: str = ""


@pytest.fixture
def client() -> Client:
    client = Client("postgresql://me:passw0rd@nowhere.invalid/none", schema="jobs", id="web-1")
    client.close()
    return client


@pytest.mark.finding("E10")
def test_a_client_and_what_belongs_to_it_show_no_password(client: Client) -> None:
    """They showed where they lie in memory."""
    pool = WorkerPool(client, {Thing: print}, queues={"mail": 2}, cron=[Schedule("x", "@daily", Thing())])
    assert repr(client) == "Client(schema='jobs', id='web-1')"
    assert repr(client.queues) == "Queues(schema='jobs')"
    assert repr(client.schedules) == "Schedules(schema='jobs')"
    assert repr(pool) == "WorkerPool('pgjobs', queues={'mail': 2}, not running)"
    assert repr(pool.schedules) == "CodeSchedules('x')"


@pytest.mark.finding("E10")
@pytest.mark.parametrize(
    ("filter", "shown"),
    [
        (JobFilter(), "JobFilter()"),
        (JobFilter.all(), "JobFilter.all()"),
        (JobFilter(queues=["mail"], priorities=[]), "JobFilter(queues=('mail',), priorities=())"),
        (
            JobFilter(created_after=datetime(2026, 1, 1, tzinfo=UTC)),
            "JobFilter(created_after=datetime.datetime(2026, 1, 1, 0, 0, tzinfo=datetime.timezone.utc))",
        ),
    ],
    ids=str,
)
def test_a_filter_shows_what_is_given(filter: JobFilter, shown: str) -> None:
    """It showed a row of None."""
    assert repr(filter) == shown


@pytest.mark.finding("E10")
def test_a_new_job_shows_no_args() -> None:
    """What args, metadata and context hold may not belong into a log."""
    assert repr(NewJob(Thing("s3cret"))) == "NewJob(Thing(...))"
    new: NewJob[Any] = NewJob({"key": "s3cret"}, kind="x", queue="mail", metadata={"a": "s3cret"}, delay=timedelta(1))
    assert repr(new) == "NewJob({...}, kind='x', queue='mail', delay=datetime.timedelta(days=1), metadata=...)"
    assert repr(JobOptions(priority=1)) == "JobOptions(priority=1)"


@pytest.mark.finding("W16")
def test_what_there_is_none_of_counts_as_none() -> None:
    """`by_queue["none"]` was a KeyError."""
    counts = JobCounts({("mail", JobState.COMPLETED): 2, ("mail", JobState.RUNNING): 1})
    assert counts.by_queue["none"] == 0
    assert counts.by_queue == {"mail": 3}
    assert counts.by_state["completed"] == 2  # type: ignore[index]
    assert counts.by_state[JobState.CANCELLED] == 0
    assert set(counts.by_state) == set(JobState)
    assert counts.jobs["none", JobState.RUNNING] == 0
    assert counts.total == 3
    assert JobCounts({}).by_queue["none"] == JobCounts({}).total == 0
