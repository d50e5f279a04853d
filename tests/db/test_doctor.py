"""The doctor: a healthy database has no finding, and no check hinders another or changes anything."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from pgjobs import (
    Client,
    InvalidSetting,
    Job,
    JobFilter,
    NewJob,
    PgjobsError,
    Schedule,
    Severity,
    Snooze,
    WorkerPool,
    constant,
)
from pgjobs.observe import doctor
from pgjobs.observe.doctor import check, queries
from tests.db.findings import COULD_NOT_LOOK, documented
from tests.samples import Tx
from tests.waiting import wait_until

# --- all is well


def test_a_healthy_busy_database_has_no_finding(there: Client) -> None:
    def handler(tx: Tx, job: Job[Any]) -> None:
        if job.attempt == 1 and job.args["how"] == "fail":
            raise ValueError("once")
        if job.args["how"] == "snooze" and not job.metadata.get("snoozes"):
            raise Snooze(timedelta(milliseconds=10))

    cron = [Schedule("often", "@every 1s", {"how": "tick"}, kind="thing")]
    hows = ("complete", "fail", "snooze")
    with WorkerPool(there, {"thing": handler}, queues={"default": 4}, backoff=constant(timedelta(0)), cron=cron):
        wait_until(there.workers)
        for _ in range(5):
            there.enqueue_many(None, [NewJob({"how": hows[n % 3]}, kind="thing") for n in range(300)])
            assert there.doctor() == []
        wait_until(lambda: there.count(JobFilter(states=["completed"])).total >= 1500, timeout=60)
        assert there.doctor() == []
        assert {finding.severity for finding in there.doctor(include_ok=True)} == {Severity.OK}


def test_the_guide_lists_all_checks() -> None:
    assert list(documented()) == [check.name for check in doctor.CHECKS]


# --- each check is independent of the others, and changes nothing


def test_a_check_that_fails_is_a_finding_and_hinders_no_other(own_client: Client, fresh_database: str) -> None:
    with psycopg.connect(fresh_database) as holder:
        holder.execute("LOCK TABLE pgjobs.schedule IN ACCESS EXCLUSIVE MODE")
        findings = own_client.doctor(include_ok=True)
    (schedules,) = [finding for finding in findings if finding.check == "schedules"]
    assert schedules.what.startswith(f"{COULD_NOT_LOOK}: LockNotAvailable: ")
    assert schedules.severity is Severity.WARNING
    assert {finding.check for finding in findings} == {check.name for check in doctor.CHECKS}


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("UPDATE pgjobs.job SET priority = 1", "cannot execute UPDATE in a read-only transaction"),
        ("SET LOCAL statement_timeout = 10; SELECT pg_sleep(5)", "the server took more than 5 s to answer"),
    ],
    ids=["write", "slow"],
)
def test_the_server_keeps_a_check_from_writing_and_from_lasting(
    own_client: Client, monkeypatch: pytest.MonkeyPatch, sql: str, said: str
) -> None:
    def find(look: queries.Look) -> Iterator[check.Problem]:
        yield check.Problem(Severity.NOTICE, "so far", "nothing")
        look.conn.execute(sql.encode())

    monkeypatch.setattr(doctor, "CHECKS", [check.Check("schema", "fine", "why", find)])
    first, second = sorted(own_client.doctor(), key=lambda finding: finding.severity.rank)
    assert first.what == "so far"
    assert second.what.startswith(COULD_NOT_LOOK)
    assert said in second.what


def test_a_lost_connection_is_an_error(own_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(look: queries.Look) -> Iterator[check.Problem]:
        look.conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        yield check.Problem(Severity.NOTICE, "not reached", "nothing")

    monkeypatch.setattr(doctor, "CHECKS", [check.Check("schema", "fine", "why", find)])
    with pytest.raises(psycopg.OperationalError):
        own_client.doctor()


def test_wrong_arguments(own_client: Client) -> None:
    with pytest.raises(InvalidSetting, match="threads must be a whole number, 0 or more, not -1"):
        own_client.doctor(threads=-1)
    with pytest.raises(PgjobsError, match="include_ok"):
        own_client.doctor(include_ok="yes")  # type: ignore[arg-type]
