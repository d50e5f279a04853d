"""Every route of the dashboard has a role, and only users of that role reach it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from werkzeug.routing import Map, Rule

from pgjobs import Client, Schedule
from pgjobs.dashboard import User
from pgjobs.dashboard.app import _url_map
from pgjobs.dashboard.pages import NAV, PAGES, SECTION_OF
from pgjobs.dashboard.request import Page
from tests.acceptance.dashboard_site import Site
from tests.acceptance.test_dashboard import audit
from tests.samples import Thing

#: Who reaches which route. A new one is added here by hand, after some thought about who may see or do what it does.
ROUTES = {
    "everyone": """
        GET /static/<name>
    """,
    "viewer": """
        GET /
        GET /audit
        GET /failures
        GET /health
        GET /help
        GET /help/<topic>
        GET /jobs
        GET /jobs/<int(signed=True):id>
        GET /maintenance
        GET /metrics
        GET /queue
        GET /queues
        GET /schedule
        GET /schedules
        GET /schedules/simulate
        GET /workers
    """,
    "operator": """
        GET /enqueue
        GET /jobs/confirm
        GET /maintenance/prune
        GET /queues/empty
        POST /enqueue
        POST /jobs/<int(signed=True):id>/cancel
        POST /jobs/<int(signed=True):id>/edit
        POST /jobs/<int(signed=True):id>/release
        POST /jobs/<int(signed=True):id>/retry
        POST /jobs/act
        POST /jobs/dry-run
        POST /maintenance/prune
        POST /maintenance/vacuum
        POST /queues/empty
        POST /queues/pause
        POST /queues/resume
        POST /schedules/pause
        POST /schedules/remove
        POST /schedules/resume
        POST /schedules/run
    """,
}
WHO: dict[str, Any] = {
    "nobody": lambda environ: None,
    "viewer": lambda environ: User("eve"),
    "operator": lambda environ: User("ada", "operator"),
}


def routes(role: str) -> list[str]:
    return ROUTES[role].strip().split("\n        ")


def role_of(rule: Rule) -> str:
    if rule.endpoint == "static":
        return "everyone"
    return {page.name: str(page.role) for page in PAGES}[rule.endpoint]


def rules() -> Iterator[tuple[str, str, Rule]]:
    """Each method and path that is answered."""
    for rule in _url_map().iter_rules():
        for method in sorted((rule.methods or set()) - {"HEAD"}):  # as GET
            yield method, rule.rule, rule


@pytest.mark.parametrize("role", ROUTES)
def test_each_route_has_the_role_that_was_thought_of(role: str) -> None:
    found = sorted(f"{method} {path}" for method, path, rule in rules() if role_of(rule) == role)
    assert found == sorted(routes(role))


@pytest.mark.parametrize("who", WHO)
def test_who_reaches_which_route(client: Client, who: str) -> None:
    job = client.enqueue(None, Thing(1))
    client.schedules.add(Schedule("s", "@daily", Thing(1)))
    site = Site(client, auth=WHO[who])
    values = {"id": job.id, "topic": "enqueue", "name": "pgjobs.css"}
    for method, path, rule in rules():
        address = Map([Rule(path, endpoint="page")]).bind("localhost").build("page", values, append_unknown=False)
        send = site.get if method == "GET" else site.post
        status = send(address).status_code
        reached = {"everyone": True, "viewer": who != "nobody", "operator": who == "operator"}[role_of(rule)]
        assert (status != 403) == reached, f"{method} {address}: {status}"
        assert status < 500
        if method == "GET":
            head = site._browser.head(address, environ_overrides={"REMOTE_ADDR": "127.0.0.1"})
            assert (head.status_code, head.data) == (status, b"")
    assert who == "operator" or audit(client) == []


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_page_without_a_role_cannot_be_made(method: str) -> None:
    def view(*given: Any) -> Any: ...

    with pytest.raises(TypeError, match="role"):
        Page("/new", "new", view, method)  # type: ignore[call-arg]
    for role in ["admin", None, *(["viewer"] if method == "POST" else [])]:
        with pytest.raises(ValueError, match="cannot be a page for the role"):
            Page("/new", "new", view, method, role=role)  # type: ignore[arg-type]


def test_each_page_belongs_to_one_that_the_navigation_has(client: Client) -> None:
    assert {page.name for page in PAGES} == SECTION_OF.keys()
    assert {name for name, _ in NAV} == set(SECTION_OF.values())
    job = client.enqueue(None, Thing(1))
    site = Site(client)
    for path, title in {f"/jobs/{job.id}": "Jobs", "/queue?name=default": "Queues", "/help/enqueue": "Help"}.items():
        (marked,) = [line for line in site.page(path).splitlines() if "aria-current" in line and "<a href" in line]
        assert f'aria-current="true">{title}</a>' in marked
    assert 'aria-current="page">Jobs</a>' in site.page("/jobs")
