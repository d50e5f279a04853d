"""Sentry: each failed attempt is one event, whatever Sentry makes of the log."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
import sentry_sdk
from sentry_sdk.envelope import Envelope
from sentry_sdk.integrations.dedupe import DedupeIntegration
from sentry_sdk.integrations.logging import LoggingIntegration
from sentry_sdk.transport import Transport

from pgjobs import Cancel, Client, Discard, InvalidSetting, Job, NewJob, Snooze, WorkerPool, constant
from pgjobs.contrib.sentry import Sentry
from tests.samples import Thing, Tx
from tests.waiting import wait_until

LATER = constant(timedelta(hours=1))
SECRET = "5ecret" + " args"


@dataclass
class Login:
    """Args with a secret."""

    user: str
    password: str
    pin: str = field(default="5ecret" + " pin", metadata={"secret": True})


class InMemory(Transport):
    """Keeps what is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[dict[str, Any]] = []

    def capture_envelope(self, envelope: Envelope) -> None:
        event = envelope.get_event()
        if event is not None:
            self.events.append(json.loads(json.dumps(event, default=str)))


@contextmanager
def sentry(*, event_level: int = logging.ERROR, **options: Any) -> Iterator[list[dict[str, Any]]]:
    """Sentry, set up as an application does, and the events that it sends."""
    transport = InMemory()
    integrations = options.pop("integrations", [LoggingIntegration(event_level=event_level), DedupeIntegration()])
    sentry_sdk.init(
        dsn="http://key@localhost/1", transport=transport, default_integrations=False, integrations=integrations,
        auto_session_tracking=False,
        release="1",
        server_name="here", **options,
    )  # fmt: skip
    try:
        yield transport.events
    finally:
        sentry_sdk.get_client().close(timeout=0)
        sentry_sdk.init()  # without a dsn it does nothing


@contextmanager
def watched(client: Client, **options: Any) -> Iterator[Client]:
    with Client(client.pool, schema=client.schema, hooks=[Sentry(**options)]) as watched:
        yield watched


def raising(error: BaseException) -> Callable[[Tx, Job[Any]], None]:
    def handler(tx: Tx, job: Job[Any]) -> None:
        local = "5ec" + "ret in a local variable"  # an event has the lines of the source
        assert local
        raise error

    return handler


@pytest.mark.parametrize("event_level", [logging.ERROR, logging.WARNING])
@pytest.mark.parametrize("dedupe", [True, False])
@pytest.mark.parametrize(("kind", "level"), [(ValueError, "warning"), (Discard, "error")])
def test_a_failed_attempt_is_one_event(
    *, client: Client, event_level: int, dedupe: bool, kind: type[Exception], level: str
) -> None:
    integrations = [LoggingIntegration(event_level=event_level), *[DedupeIntegration()] * dedupe]
    with sentry(integrations=integrations) as events, watched(client) as observed:
        job = observed.enqueue(None, Thing())
        assert WorkerPool(observed, {Thing: raising(kind("no"))}, backoff=LATER).work_one()
    (event,) = events
    assert event["level"] == level
    assert event["transaction"] == "thing"
    tags = {"job.id": str(job.id), "job.kind": "thing", "job.queue": "default", "job.attempt": "1"}
    assert event["tags"] == tags
    (exception,) = event["exception"]["values"]
    assert (exception["type"], exception["value"]) == (kind.__name__, "no")
    assert exception["mechanism"]["type"] == "pgjobs"
    assert [frame["function"] for frame in exception["stacktrace"]["frames"]] == ["handler"]
    assert event["contexts"]["job"]["max_attempts"] == 25


def test_with_an_older_sdk_it_is_one_event_too(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(DedupeIntegration, "reset_last_seen")
    with sentry(event_level=logging.WARNING) as events, watched(client) as observed:
        observed.enqueue(None, Thing())
        assert WorkerPool(observed, {Thing: raising(ValueError("no"))}, backoff=LATER).work_one()
    assert [event.get("logger") for event in events] == [None]


def test_each_attempt_is_an_event_and_the_log_a_breadcrumb_of_it(client: Client) -> None:
    with sentry() as events, watched(client) as observed:
        observed.enqueue(None, Thing(), max_attempts=2)
        pool = WorkerPool(
            observed, {Thing: raising(KeyError("x"))}, queues={"default": 1}, backoff=constant(timedelta(0))
        )
        with pool:
            wait_until(lambda: len(events) == 2)
    assert [(event["tags"]["job.attempt"], event["level"]) for event in events] == [("1", "warning"), ("2", "error")]
    assert "breadcrumbs" in events[0]
    assert "failed, next attempt" in events[0]["breadcrumbs"]["values"][-1]["message"]


@pytest.mark.parametrize("batch_size", [1, 10])
def test_jobs_of_many_threads_keep_their_tags(client: Client, batch_size: int) -> None:
    def handler(tx: Tx, job: Job[Thing]) -> None:
        raise ValueError(f"job {job.id}")

    with sentry() as events, watched(client) as observed:
        jobs = observed.enqueue_many(None, [Thing(n) for n in range(8)])
        queues = {"default": 4}
        with WorkerPool(observed, {Thing: handler}, queues=queues, backoff=LATER, batch_size=batch_size):
            wait_until(lambda: len(events) == 8)
    found = {event["tags"]["job.id"]: event["exception"]["values"][-1]["value"] for event in events}
    assert found == {str(job.id): f"job {job.id}" for job in jobs}


@pytest.mark.parametrize("error", [Cancel("no"), Snooze(timedelta(1))], ids=repr)
def test_what_has_not_failed_is_not_reported(client: Client, error: BaseException) -> None:
    with sentry(event_level=logging.WARNING) as events, watched(client) as observed:
        observed.enqueue(None, Thing())
        assert WorkerPool(observed, {Thing: raising(error)}).work_one()
    assert events == []


def test_attempts_before_the_last_can_be_left_out(client: Client) -> None:
    with sentry() as events, watched(client, retried=False) as observed:
        observed.enqueue(None, Thing(), max_attempts=2)
        with WorkerPool(
            observed, {Thing: raising(KeyError("x"))}, queues={"default": 1}, backoff=constant(timedelta(0))
        ):
            wait_until(lambda: events)
    assert [event["tags"]["job.attempt"] for event in events] == ["2"]


def test_args_and_local_variables_are_left_out_unless_asked_for(client: Client) -> None:
    def failing(observed: Client) -> None:
        observed.enqueue(None, Login("ada", SECRET))
        assert WorkerPool(observed, {Login: raising(ValueError("no"))}, backoff=LATER).work_one()

    with sentry() as events:
        with watched(client) as observed:
            failing(observed)
        assert "5ecret" not in json.dumps(events)
        assert '"ada"' not in json.dumps(events)
        events.clear()
        with watched(client, args=True, redact=["password"]) as observed:
            failing(observed)
    (event,) = events
    assert event["contexts"]["job"]["args"] == {"user": "ada", "password": "[secret]", "pin": "[secret]"}
    assert SECRET not in json.dumps(events)
    assert "5ecret pin" not in json.dumps(events)
    assert "5ecret in a local variable" in json.dumps(events)


def test_a_client_without_it_is_reported_from_the_log_as_before(client: Client) -> None:
    with sentry() as events, watched(client) as observed:
        observed.enqueue(None, Thing())
        assert WorkerPool(observed, {Thing: raising(ValueError("with"))}, backoff=LATER).work_one()
        client.enqueue(None, Thing())
        assert WorkerPool(client, {Thing: raising(Discard("without"))}).work_one()
    assert [event["exception"]["values"][-1]["value"] for event in events] == ["with", "without"]
    assert [event.get("logger") for event in events] == [None, "pgjobs.job"]


def test_the_log_record_is_marked_and_still_reaches_the_log(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    with sentry(event_level=logging.WARNING), watched(client) as observed:
        observed.enqueue(None, Thing())
        assert WorkerPool(observed, {Thing: raising(ValueError("no"))}, backoff=LATER).work_one()
    (record,) = (record for record in caplog.records if record.name == "pgjobs.job")
    assert record.reported is True  # type: ignore[attr-defined]


def test_a_job_of_lock_job_is_one_event_too(client: Client) -> None:
    with sentry() as events, watched(client) as observed:
        observed.enqueue(None, Thing())
        with pytest.raises(ValueError, match="no"), observed.lock_job():
            raise ValueError("no")
    assert len(events) == 1


def test_a_storm_sends_so_many_events_a_second(client: Client) -> None:
    with sentry() as events, watched(client) as observed:
        observed.enqueue_many(None, [Thing(n) for n in range(100)])
        pool = WorkerPool(observed, {Thing: raising(ValueError("no"))}, queues={"default": 4}, backoff=LATER)
        with pool:
            wait_until(pool.drained)
    assert 1 <= len(events) < 100


def test_a_storm_of_one_error_hides_neither_another_kind_nor_another_error(client: Client) -> None:
    def handler(tx: Tx, job: Job[Any]) -> None:
        if job.args["n"] == 150:
            raise KeyError("rare")
        raise ValueError(f"job {job.id}")

    with sentry() as events, watched(client) as observed:
        storm = [NewJob({"n": n}, kind="storm") for n in range(200)]
        observed.enqueue_many(None, [*storm, NewJob({"n": 0}, kind="other")])
        pool = WorkerPool(observed, {"storm": handler, "other": handler}, queues={"default": 2}, backoff=LATER)
        with pool:
            wait_until(pool.drained)
    found = Counter((event["transaction"], event["exception"]["values"][-1]["type"]) for event in events)
    assert found["storm", "KeyError"] == found["other", "ValueError"] == 1
    assert 1 <= found["storm", "ValueError"] < 200


def test_without_sentry_set_up_it_does_nothing(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    with watched(client) as observed:
        observed.enqueue(None, Thing())
        assert WorkerPool(observed, {Thing: raising(ValueError("no"))}, backoff=LATER).work_one()
    assert "the hook" not in caplog.text


def test_other_values_are_refused() -> None:
    wrong: Any = 1
    with pytest.raises(InvalidSetting, match="redact"):
        Sentry(redact=[wrong])
    with pytest.raises(InvalidSetting, match="retried"):
        Sentry(retried=wrong)
