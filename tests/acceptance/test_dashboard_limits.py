"""S15 and Prometheus: the dashboard answers no user without end, and many scrapes cost no more than one."""

from __future__ import annotations

import hmac
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pgjobs import Client
from pgjobs.dashboard import User
from pgjobs.metrics import CONTENT_TYPE
from pgjobs.observe import gauges
from tests.acceptance.dashboard_site import Site
from tests.acceptance.test_dashboard import audit
from tests.samples import Thing

PAUSE = "/queues/pause", {"name": "default"}


def by_header(environ: dict[str, Any]) -> User:
    return User(environ["HTTP_X_USER"], "operator")


def test_a_user_who_acts_without_end_is_told_to_wait(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgjobs.dashboard.app.ACTIONS_LIMIT", (2, 0.01))
    client.enqueue(None, Thing(1))
    site = Site(client)
    assert [site.post(*PAUSE).status_code for _ in range(2)] == [303, 303]
    refused = site.post(*PAUSE)
    assert refused.status_code == 429
    assert 1 < int(refused.headers["Retry-After"]) <= 100
    assert "Nothing was changed. Wait" in refused.text
    assert len(audit(client)) == 2
    assert site.get("/queues").status_code == 200, "pages are counted apart"


def test_pages_are_limited_by_user_and_static_files_are_not(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgjobs.dashboard.app.PAGES_LIMIT", (3, 0.01))
    site = Site(client, auth=by_header)

    def status(user: str, path: str) -> int:
        return site.get(path, headers={"X-User": user}).status_code

    assert [status("ada", path) for path in ("/", "/queues", "/metrics", "/jobs")] == [200, 200, 200, 429]
    assert status("eve", "/") == 200
    assert {status("ada", "/static/pgjobs.css") for _ in range(20)} == {200}


def test_what_is_refused_anyway_is_not_counted(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A foreign page must not use up what a user may send."""
    monkeypatch.setattr("pgjobs.dashboard.app.ACTIONS_LIMIT", (1, 0.01))
    client.enqueue(None, Thing(1))
    site = Site(client)
    for _ in range(10):
        assert site.post(*PAUSE, headers={"Origin": "https://evil.example"}).status_code == 403
    assert site.post(*PAUSE).status_code == 303


# --- metrics


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine the database may need more than the second that a scrape waits."""
    monkeypatch.setattr("pgjobs.metrics.WAIT", 20.0)


@pytest.mark.usefixtures("patient")
def test_prometheus_reads_what_the_database_says(client: Client) -> None:
    client.enqueue_many(None, [Thing(n) for n in range(3)])
    answer = Site(client).get("/metrics")
    assert (answer.status_code, answer.content_type) == (200, CONTENT_TYPE)
    assert answer.headers["Cache-Control"] == "no-store"
    assert "pgjobs_database_up 1\n" in answer.text
    assert 'pgjobs_jobs{queue="default",state="waiting"} 3\n' in answer.text


def test_a_head_request_has_no_body(client: Client) -> None:
    answer = Site(client)._browser.head("/metrics", environ_overrides={"REMOTE_ADDR": "127.0.0.1"})
    assert (answer.status_code, answer.content_type, answer.data) == (200, CONTENT_TYPE, b"")
    assert Site(client).post("/metrics").status_code == 405


@pytest.mark.usefixtures("patient")
def test_many_scrapes_read_the_database_once(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, read = [], gauges.read_gauges

    def counted(*given: Any) -> Any:
        reads.append(given)
        return read(*given)

    monkeypatch.setattr(gauges, "read_gauges", counted)
    sites = [Site(client), Site(client)]
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda n: sites[n % 2].get("/metrics").text, range(40)))
    assert all("pgjobs_database_up 1\n" in text for text in answers)
    assert len(reads) == 1


def test_a_database_that_is_gone_is_a_metric_too() -> None:
    with Client("postgresql://localhost:1/gone?connect_timeout=1") as client:
        client.source.pool.timeout = 0.2
        answer = Site(client).get("/metrics")
    assert answer.status_code == 200
    assert "pgjobs_database_up 0\n" in answer.text


def test_who_may_read_the_metrics_is_what_auth_says(client: Client) -> None:
    def auth(environ: dict[str, Any]) -> User | None:
        given = environ.get("HTTP_AUTHORIZATION", "").encode("latin-1")
        is_prometheus = environ["PATH_INFO"] == "/metrics" and hmac.compare_digest(given, b"Bearer 5ecret")
        return User("prometheus", sees_args=False) if is_prometheus else None

    site, token = Site(client, auth=auth), {"Authorization": "Bearer 5ecret"}
    assert site.get("/metrics", headers=token).status_code == 200
    assert site.get("/metrics").status_code == 403
    assert site.get("/metrics", headers={"Authorization": "Bearer \xe9"}).status_code == 403
    assert site.get("/", headers=token).status_code == 403
