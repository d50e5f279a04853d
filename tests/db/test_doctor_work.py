"""What the doctor finds about the work: each finding is provoked, and found."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from pgjobs import Client, Discard, Job, JobFilter, Schedule, Severity, Snooze, WorkerPool, constant
from pgjobs.observe.doctor import horizon, work
from tests.db.conftest import Run
from tests.db.findings import COULD_NOT_LOOK, found, one
from tests.samples import HOUR, Tx, nothing
from tests.waiting import wait_until

AN_HOUR_AGO = "scheduled_at = now() - interval '1 hour'"
SOON = timedelta(milliseconds=50)


@pytest.fixture
def waiting(own_client: Client, run: Run) -> Job[Any]:
    """A job that has waited in queue "mail" for an hour."""
    job: Job[Any] = own_client.enqueue(None, {}, kind="thing", queue="mail")
    run(f"UPDATE pgjobs.job SET {AN_HOUR_AGO}")
    return job


def pool(client: Client, **settings: Any) -> WorkerPool:
    return WorkerPool(client, {"thing": nothing}, **settings)


# --- workers, queues, kinds


def test_no_worker_and_nothing_to_do(own_client: Client) -> None:
    assert "no job waits" in one(own_client, "workers", Severity.NOTICE)
    with pool(own_client):
        wait_until(own_client.workers)
        assert found(own_client, "workers") == []


def test_no_worker_while_jobs_wait(own_client: Client, waiting: Job[Any]) -> None:
    said = one(own_client, "workers", Severity.CRITICAL)
    assert said == "no worker process is alive, and jobs wait in 1 queue, the longest for 1h"


def test_a_worker_that_has_not_been_seen_for_a_minute_is_not_alive(own_client: Client, run: Run) -> None:
    run("INSERT INTO pgjobs.worker (id, host, pid, threads, version) VALUES ('w', 'h', 1, 1, '1')")
    assert found(own_client, "workers") == []
    run("UPDATE pgjobs.worker SET seen_at = now() - interval '61 seconds'")
    one(own_client, "workers", Severity.NOTICE)


def test_a_queue_that_no_process_works(own_client: Client, waiting: Job[Any]) -> None:
    with pool(own_client):
        wait_until(own_client.workers)
        said = one(own_client, "queues", Severity.WARNING)
        assert said == "no worker process works queue 'mail', in which a job has waited for 1h"
    with pool(own_client, queues={"mail": 1}):
        wait_until(lambda: own_client.count(JobFilter(states=["completed"])).total)
        assert found(own_client, "queues") == []


def test_a_queue_that_is_paused_for_long(own_client: Client, run: Run, waiting: Job[Any]) -> None:
    run("INSERT INTO pgjobs.queue (name, paused_at) VALUES ('mail', now() - interval '3 hours')")
    assert one(own_client, "queues", Severity.NOTICE) == "queue 'mail' has been paused for 3h, and jobs wait in it"
    run("UPDATE pgjobs.queue SET paused_at = now()")
    assert found(own_client, "queues") == []


def test_a_kind_that_all_workers_leave(own_client: Client, run: Run, waiting: Job[Any]) -> None:
    run("UPDATE pgjobs.job SET kind = 'other'")
    with pool(own_client, queues={"mail": 1}, unknown_kinds="leave"):
        wait_until(own_client.workers)
        said = one(own_client, "kinds", Severity.WARNING)
    assert "no worker process has a handler for kind 'other'" in said
    assert f"such as job {waiting.id} in queue 'mail'" in said


def test_a_kind_whose_jobs_fail_for_lack_of_a_handler(own_client: Client) -> None:
    own_client.enqueue(None, {}, kind="other")
    with pool(own_client, backoff=constant(HOUR)):
        wait_until(lambda: own_client.count(JobFilter(states=["retryable"])).total)
        assert "kind 'other', for which 1 job failed, such as job" in one(own_client, "kinds", Severity.WARNING)


# --- jobs that get nowhere


def test_jobs_that_snooze_again_and_again(own_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "MANY_SNOOZES", 3)

    def snooze(tx: Tx, job: Job[Any]) -> None:
        raise Snooze(HOUR if job.metadata.get("snoozes", 0) == job.args["times"] - 1 else SOON)

    with WorkerPool(own_client, {"thing": snooze}):
        jobs = [own_client.enqueue(None, {"times": times}, kind="thing") for times in (2, 3)]
        wait_until(lambda: own_client.count(JobFilter(metadata={"snoozes": 3})).total == 1)
        wait_until(lambda: own_client.count(JobFilter(metadata={"snoozes": 2})).total == 1)
    said = one(own_client, "snoozes", Severity.WARNING)
    assert said == (f"1 job of kind 'thing', such as job {jobs[1].id} in queue 'default', snoozed up to 3 times")


def test_jobs_whose_worker_vanished_several_times(own_client: Client, run: Run) -> None:
    job: Job[Any] = own_client.enqueue(None, {}, kind="thing", delay=HOUR, max_attempts=2)

    def vanish(attempt: int) -> None:
        run(
            "UPDATE pgjobs.job SET state = 'running', attempt = %s, attempted_at = now() - interval '1 hour', "
            "attempted_by = '{w}', token = gen_random_uuid() WHERE id = %s",
            *(attempt, job.id),
        )
        wait_until(lambda: run("SELECT jsonb_array_length(errors) FROM pgjobs.job") == [(attempt,)])

    with WorkerPool(own_client, {"thing": nothing}, queues={"other": 1}):
        vanish(1)
        assert found(own_client, "vanished") == [], "once may be a deployment"
        vanish(2)
    said = one(own_client, "vanished", Severity.WARNING)
    assert said == (
        f"1 job of kind 'thing', such as job {job.id} in queue 'default', had up to 2 attempts whose worker vanished"
    )


def test_a_job_that_runs_in_one_transaction_for_long(own_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(horizon, "OLD_TRANSACTION", timedelta(0))
    done = threading.Event()

    def wait(tx: Tx, job: Job[Any]) -> None:
        done.wait(30)

    with WorkerPool(own_client, {"thing": wait}):
        job: Job[Any] = own_client.enqueue(None, {}, kind="thing")
        wait_until(lambda: own_client.count(JobFilter(states=["running"])).total)
        said = one(own_client, "long-jobs", Severity.NOTICE)
        done.set()
    assert said.startswith(f"job {job.id} of kind 'thing' in queue 'default' has run for 0s in one transaction")
    assert found(own_client, "long-jobs") == []


# --- schedules and duties


def test_a_schedule_that_cannot_tick(own_client: Client, run: Run) -> None:
    own_client.schedules.add(Schedule("often", "@every 1s", {}, kind="thing"))
    run("UPDATE pgjobs.schedule SET spec = 'nonsense', next_tick_at = NULL")
    with pool(own_client):
        wait_until(lambda: run("SELECT error IS NOT NULL FROM pgjobs.schedule") == [(True,)])
    assert "schedule 'often' cannot tick" in one(own_client, "schedules", Severity.WARNING)


def test_a_schedule_that_is_overdue(own_client: Client, run: Run, fresh_database: str) -> None:
    own_client.schedules.add(Schedule("often", "@every 1s", {}, kind="thing"))
    run("UPDATE pgjobs.schedule SET next_tick_at = now() - interval '1 hour', planned_for = spec || ' ' || zone")
    with psycopg.connect(fresh_database) as holder:
        holder.execute("SELECT FROM pgjobs.schedule FOR UPDATE")
        with pool(own_client):
            wait_until(own_client.workers)
            assert one(own_client, "schedules", Severity.WARNING) == "schedule 'often' has been due for 1h"


def test_a_schedule_that_is_in_no_code_any_more(own_client: Client, run: Run) -> None:
    with pool(own_client, cron=[Schedule("often", "@every 1h", {}, kind="thing")]):
        assert found(own_client, "schedules") == []
    run("UPDATE pgjobs.schedule SET seen_at = now() - interval '2 hours'")
    said = one(own_client, "schedules", Severity.NOTICE)
    assert said == "for 2h no worker process has had schedule 'often' in its code"


def test_a_schedule_whose_jobs_are_all_discarded(own_client: Client) -> None:
    def discard(tx: Tx, job: Job[Any]) -> None:
        raise Discard("never")

    own_client.schedules.add(Schedule("often", "@every 1s", {}, kind="thing"))
    with WorkerPool(own_client, {"thing": discard}):
        wait_until(lambda: own_client.count(JobFilter(states=["discarded"])).total >= 3)
    own_client.schedules.pause("often")
    assert found(own_client, "schedules") == []
    own_client.schedules.resume("often")
    said = [finding.what for finding in found(own_client, "schedules")]
    assert "the last three jobs of schedule 'often' were discarded" in said


def test_a_duty_without_a_row(own_client: Client, run: Run) -> None:
    run("DELETE FROM pgjobs.maintenance WHERE duty = 'rescue'")
    assert "has no rows for rescue" in one(own_client, "duties", Severity.CRITICAL)


@pytest.fixture
def held_duties(own_client: Client, fresh_database: str, run: Run) -> Iterator[None]:
    """A worker pool runs, but a transaction holds the rows of all duties, which have been due for an hour."""
    run("UPDATE pgjobs.maintenance SET next_run_at = now() - interval '1 hour'")
    with psycopg.connect(fresh_database) as holder:
        holder.execute("SELECT FROM pgjobs.maintenance FOR UPDATE")
        with pool(own_client):
            wait_until(own_client.workers)
            yield
            holder.rollback()


@pytest.mark.usefixtures("held_duties")
def test_duties_that_no_process_does(own_client: Client, run: Run) -> None:
    said = {finding.what: finding.severity for finding in found(own_client, "duties")}
    assert said == {
        f"the duty {duty} has been due for 1h, and no worker process does it": Severity.WARNING
        for duty in ("prune", "workers")
    }, "the others have nothing to do"


@pytest.mark.usefixtures("held_duties")
def test_due_jobs_that_are_not_made_available(own_client: Client, run: Run) -> None:
    own_client.enqueue(None, {}, kind="thing", delay=HOUR)
    run(f"UPDATE pgjobs.job SET {AN_HOUR_AGO}")
    said = {finding.what: finding.severity for finding in found(own_client, "duties")}
    assert said["the duty promote has been due for 1h, and no worker process does it"] is Severity.CRITICAL
    assert said["a job that is due for 1h has not been made available"] is Severity.WARNING


# --- rows that were made by hand


def test_absurd_rows_hinder_no_check(own_client: Client, run: Run) -> None:
    own_client.schedules.add(Schedule("often", "@every 1s", {}, kind="thing"))
    with pool(own_client):
        wait_until(own_client.workers)
        for state in ("available", "scheduled", "retryable"):
            for _ in range(2):
                own_client.enqueue(None, {}, kind="thing", queue="mail", delay=HOUR)
            run("ALTER TABLE pgjobs.job DISABLE TRIGGER job_rules")
            run(
                "UPDATE pgjobs.job SET state = %s, errors = '{}', metadata = '[1]', attempt = 3, scheduled_at = "
                "CASE WHEN id %% 2 = 0 THEN '-infinity'::timestamptz ELSE 'infinity' END WHERE state = 'scheduled'",
                state,
            )
        run("UPDATE pgjobs.job SET queue = E'\\e[31m', kind = E'a\\nb' WHERE state = 'available'")
        run("UPDATE pgjobs.maintenance SET next_run_at = 'infinity' WHERE duty = 'indexes'")
        findings = own_client.doctor()
    assert [finding for finding in findings if finding.what.startswith(COULD_NOT_LOOK)] == []
    assert all(finding.what.isprintable() and finding.advice.isprintable() for finding in findings)
