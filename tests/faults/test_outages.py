"""A database that is away or read-only for a while: said once, and once more when it is back."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import psycopg
import pytest

from pgjobs import Client, Schedule, WorkerPool
from pgjobs.embedded import EmbeddedPostgres
from pgjobs.outages import Outages, kind_of
from tests.faults.ledger import Ledger
from tests.waiting import wait_until

AWAY, READ_ONLY = "the database works again", "writing to the database works again"


@contextmanager
def ticking(ledger: Ledger) -> Iterator[list[str]]:
    """A pool with a schedule of every second; what it did."""
    done: list[str] = []
    with Client(ledger.dsn) as client:
        pool = WorkerPool(
            client,
            {"thing": lambda tx, job: done.append(job.args["name"])},
            queues={"default": 5, "other": 5},
            cron=[Schedule("often", "@every 1s", {"name": "tick"}, kind="thing")],
            poll_interval=timedelta(seconds=0.5),
        )
        with pool:
            wait_until(lambda: "tick" in done)
            yield done


def lines(caplog: pytest.LogCaptureFixture, *words: str) -> list[str]:
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.INFO]
    return [line for line in said if all(word in line for word in words)]


@pytest.mark.finding("E5")
def test_a_server_that_is_away_is_told_once(
    fault_server: EmbeddedPostgres, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    """The listener warned at every try and so did each duty and thread; nothing said when they worked again."""
    caplog.set_level(logging.DEBUG, logger="pgjobs")
    with ticking(ledger) as done:
        caplog.clear()
        fault_server.kill()
        try:
            wait_until(lambda: lines(caplog, "the connection to the database is lost", "not logged again"))
            tries = "not listening"
            wait_until(lambda: sum(tries in record.getMessage() for record in caplog.records) >= 3, timeout=20)
        finally:
            fault_server.start()
        before = len(done)
        wait_until(lambda: len(done) > before + 1, timeout=30)
        again = "listening again, after"
        wait_until(lambda: any(again in record.getMessage() for record in caplog.records), timeout=30)
        wait_until(lambda: lines(caplog, AWAY), timeout=30)
    said = [line for line in lines(caplog) if not line.startswith(("job ", "schedule ", "pgjobs: "))]
    assert len(said) == len(lines(caplog, "not logged again")) + len(lines(caplog, AWAY)) == 2, "\n".join(said)


@pytest.mark.finding("E5")
def test_a_server_that_is_read_only_is_told_once_and_schedules_tick_when_it_is_not(
    fault_server: EmbeddedPostgres, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    """A schedule that was due meanwhile was put aside for half a minute, and each second logged a failure."""
    caplog.set_level(logging.DEBUG, logger="pgjobs")
    with psycopg.connect(fault_server.dsn, autocommit=True) as admin, ticking(ledger) as done:
        caplog.clear()
        try:
            admin.execute("ALTER SYSTEM SET default_transaction_read_only = on")
            admin.execute("SELECT pg_reload_conf()")
            wait_until(lambda: lines(caplog, "read-only transaction"))
            failures = "cannot execute"
            wait_until(lambda: sum(failures in record.getMessage() for record in caplog.records) >= 6, timeout=20)
        finally:
            with psycopg.connect(fault_server.dsn) as writer:
                writer.read_only = False
                writer.autocommit = True
                writer.execute("SET default_transaction_read_only = off")
                writer.execute("ALTER SYSTEM RESET default_transaction_read_only")
                writer.execute("SELECT pg_reload_conf()")
        before, since = done.count("tick"), time.monotonic()
        wait_until(lambda: done.count("tick") > before + 1, timeout=20)
        assert time.monotonic() - since < 15, "it was not put aside"
        wait_until(lambda: lines(caplog, READ_ONLY), timeout=20)
        assert [row.error for row in ledger.client.schedules.list()] == [None]
    assert len(lines(caplog, "read-only transaction")) == len(lines(caplog, READ_ONLY)) == 1, lines(caplog)
    assert lines(caplog, "cannot tick") == []


def test_what_is_not_the_database_s_is_said_for_each(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    outages, log = Outages(), logging.getLogger("outages")
    for error in (ValueError("a"), ValueError("b"), KeyError("c"), psycopg.errors.LockNotAvailable("d")):
        outages.failed(log, "duty prune", error, "duty prune failed")
    outages.failed(log, "duty rescue", ValueError("e"), "duty rescue failed")
    outages.worked(log, "duty prune")
    outages.worked(log, "duty prune")
    outages.failed(log, "duty prune", ValueError("f"), "duty prune failed")
    said = [record.getMessage() for record in caplog.records]
    assert [line.split(" (")[0] for line in said] == [
        "duty prune failed: a",
        "duty prune failed: 'c'",
        "duty prune failed: d",
        "duty rescue failed: e",
        "duty prune works again after 0 s",
        "duty prune failed: f",
    ]


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (psycopg.OperationalError("connection refused"), True),
        (psycopg.errors.AdminShutdown("57P01"), True),
        (psycopg.errors.TooManyConnections("53300"), True),
        (psycopg.errors.ReadOnlySqlTransaction("25006"), True),
        (psycopg.errors.LockNotAvailable("55P03"), False),
        (psycopg.errors.QueryCanceled("57014"), False),
        (psycopg.errors.DiskFull("53100"), False),
        (ValueError("no"), False),
    ],
)
def test_which_errors_say_that_the_database_is_away(error: Exception, away: bool) -> None:
    assert (kind_of(error) is not None) is away
