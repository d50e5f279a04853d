"""What the log says of a listener that has lost its connection, beside the other parts of its worker pool."""

from __future__ import annotations

import logging

import psycopg
import pytest

from pgjobs import outages
from pgjobs.outages import Outages
from pgjobs.wakeup.listener import _Loss

AWAY = psycopg.OperationalError("connection refused")
LOG = logging.getLogger("pgjobs.test_listener_loss")


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Outages:
    monkeypatch.setattr(outages, "_CALM", 0.0)
    return Outages()


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [record.getMessage().split(":")[0] for record in caplog.records if record.levelno >= logging.INFO]
    caplog.clear()
    return [line.split(" after ")[0].strip(",") for line in lines]


@pytest.fixture(autouse=True)
def everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


def test_a_loss_that_the_next_try_ends_is_no_news(caplog: pytest.LogCaptureFixture, shared: Outages) -> None:
    loss = _Loss(shared)
    for _ in range(3):
        loss.failed(AWAY)
        loss.over()
    assert said(caplog) == []


def test_a_server_that_is_down_is_one_line_of_all_whoever_notices_it_first(
    caplog: pytest.LogCaptureFixture, shared: Outages
) -> None:
    loss = _Loss(shared)
    for _ in range(5):
        loss.failed(AWAY)
        shared.failed(LOG, "claiming", AWAY, "claiming failed")
    assert said(caplog) == ["the connection to the database is lost"]
    shared.worked(LOG, "claiming")
    loss.failed(AWAY)  # it looks again later than the others
    loss.over()
    assert said(caplog) == ["the database works again"]
    for _ in range(5):
        shared.failed(LOG, "claiming", AWAY, "claiming failed")
        loss.failed(AWAY)
    loss.over()
    assert said(caplog) == ["the connection to the database is lost", "the database works again"]


def test_a_listener_that_fails_alone_has_one_line_of_its_own(caplog: pytest.LogCaptureFixture, shared: Outages) -> None:
    """Else the log would say again and again that the server is down and that it works."""
    loss = _Loss(shared)
    for _ in range(10):
        loss.failed(AWAY)
        shared.worked(LOG, "claiming")
    assert said(caplog) == [
        "the connection to the database is lost",
        "the database works again",
        "not listening, only polling, until it can connect again",
    ]
    loss.over()
    assert said(caplog) == ["listening again"]


@pytest.mark.parametrize("error", [AWAY, ValueError("no such service")], ids=["away", "refused"])
def test_a_listener_with_a_server_of_its_own_speaks_for_itself(
    caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    loss = _Loss(None)
    for _ in range(5):
        loss.failed(error)
    assert said(caplog) == ["not listening, only polling, until it can connect again"]
    loss.over()
    assert said(caplog) == ["listening again"]
