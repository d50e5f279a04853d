"""S11 to S16: no request of a stranger, of a viewer or of a foreign page changes anything, and none learns too much."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from werkzeug.routing import Map, Rule

import pgjobs.dashboard
from pgjobs import Client, NewJob, Schedule
from pgjobs.dashboard import User
from pgjobs.dashboard.pages import PAGES
from tests.acceptance.dashboard_site import SAME_ORIGIN, Site
from tests.conftest import Connect
from tests.samples import Thing

METHODS = ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"]
FOREIGN: dict[str, dict[str, str]] = {
    "cross-site": {"Sec-Fetch-Site": "cross-site"},
    "same-site": {"Sec-Fetch-Site": "same-site"},
    "none": {"Sec-Fetch-Site": "none"},
    "cross-site, claims the origin": {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"},
    "another origin": {"Origin": "https://evil.example"},
    "another port": {"Origin": "http://localhost:8081"},
    "null": {"Origin": "null"},
    "a broken origin": {"Origin": "http://[localhost"},
    "a referrer alone": {"Referer": "http://localhost/queues"},
    "nothing": {},
}
#: What the forms send; each page takes what it knows.
FORM = {
    "name": "default", "do": "cancel", "all": "1", "id": "1", "kind": "thing", "args": "{}", "state": "available",
    "days": "0", "priority": "3", "newest": "9223372036854775807", "tags": "a", "count": "1",
}  # fmt: skip


def address(path: str, **values: Any) -> str:
    """The address of a page, with these values in its path."""
    rules = Map([Rule(path, endpoint="page")])
    return rules.bind("localhost").build("page", values, append_unknown=False)


@pytest.fixture
def job(client: Client) -> int:
    """A job of the tables, which have also a schedule and a queue."""
    client.enqueue_many(None, [NewJob(Thing(n), queue="mail") for n in range(3)])
    client.schedules.add(Schedule("nightly", "@daily", Thing(1)))
    return client.enqueue(None, Thing(9)).id


@pytest.fixture
def rows(client: Client, connect: Connect) -> Any:
    """All that stands in the tables."""
    conn: psycopg.Connection[Any] = connect(autocommit=True)

    def rows() -> dict[str, list[Any]]:
        names = conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", [client.schema]).fetchall()
        return {
            name: conn.execute(
                sql.SQL("SELECT t::text FROM {} AS t ORDER BY 1").format(sql.Identifier(client.schema, name))
            ).fetchall()
            for (name,) in names
        }

    return rows


def actions(job: int) -> list[str]:
    found = [address(page.path, id=job) for page in PAGES if page.method == "POST"]
    assert len(found) > 10
    return found


def test_each_action_is_one_that_an_operator_could_do(client: Client, job: int, rows: Any) -> None:
    """Otherwise the tests below would prove nothing."""
    site, before, changing = Site(client), rows(), 0
    for path in actions(job):
        answer = site.post(path, {**FORM, "name": "nightly" if path.startswith("/schedule") else "default"})
        assert answer.status_code not in (403, 404, 405, 421, 500), f"{path}: {answer.text}"
        now = rows()
        changing += now != before
        before = now
    assert changing >= 6


@pytest.mark.parametrize("who", ["viewer", "read-only", "nobody"])
def test_who_may_not_change_anything_cannot_by_any_request(client: Client, job: int, rows: Any, who: str) -> None:
    settings: dict[str, dict[str, Any]] = {
        "viewer": {"auth": lambda environ: User("eve")},
        "read-only": {"read_only": True},
        "nobody": {"auth": lambda environ: None},
    }
    site, before = Site(client, **settings[who]), rows()
    for path in [*actions(job), *(address(page.path, id=job, topic="enqueue") for page in PAGES)]:
        for method in METHODS:
            answer = site._browser.open(
                path, method=method, data=FORM, headers=SAME_ORIGIN, environ_overrides={"REMOTE_ADDR": "127.0.0.1"}
            )
            assert answer.status_code in (403, 405), f"{method} {path}: {answer.status_code}"
        site.get(path, query_string=FORM)  # a GET with the values of the form
        site.get(path, headers={"X-HTTP-Method-Override": "POST"})
    assert rows() == before


@pytest.mark.parametrize("foreign", FOREIGN)
def test_a_foreign_page_cannot_act(client: Client, job: int, rows: Any, foreign: str) -> None:
    site, before = Site(client), rows()
    for path in actions(job):
        assert site.post(path, FORM, headers=FOREIGN[foreign]).status_code == 403, path
    assert rows() == before


def test_a_page_of_its_own_acts_also_on_plain_http_under_a_name(client: Client, job: int) -> None:
    """There browsers send no Sec-Fetch-Site."""
    site = Site(client, allowed_hosts=["jobs.example"])
    headers = {"Host": "jobs.example:8080", "Origin": "http://jobs.example:8080"}
    assert site.post("/queues/pause", {"name": "default"}, headers=headers).status_code == 303


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "localhost.evil.example", "127.0.0.1.evil.example", "", "a@localhost"]
)
def test_a_forged_host_sees_and_changes_nothing(client: Client, job: int, rows: Any, host: str) -> None:
    """As by DNS rebinding, where Origin and Host agree and the browser says same-origin."""
    site, before = Site(client), rows()
    headers = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
    for path in actions(job):
        assert site.post(path, FORM, headers=headers).status_code == 421
    for page in PAGES:
        answer = site.get(address(page.path, id=job, topic="enqueue"), headers=headers)
        assert answer.status_code == 421
        assert client.schema not in answer.text
    assert rows() == before


def test_every_answer_denies_frames_scripts_of_others_and_caches(client: Client, job: int) -> None:
    site = Site(client)
    answers = [site.get(address(page.path, id=job, topic="enqueue"), query_string=FORM) for page in PAGES]
    answers += [site.get("/none"), site.post("/queues/pause"), site.post("/queues/pause", {"name": "default"})]
    for answer in answers:
        policy = answer.headers["Content-Security-Policy"]
        assert policy == "default-src 'self'; frame-ancestors 'none'; form-action 'self'; base-uri 'none'"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Referrer-Policy"] != "no-referrer", "the Origin of a form would be null"
        assert "Access-Control-Allow-Origin" not in answer.headers
        assert "Set-Cookie" not in answer.headers


def test_no_page_has_what_the_policy_forbids() -> None:
    package = Path(pgjobs.dashboard.__file__).parent
    for path in package.glob("templates/*.html"):
        text = path.read_text()
        assert not re.search(r"\sstyle=|<style|\son[a-z]+=|javascript:|data:|https?://", text), path.name
        assert not re.search(r"\|\s*safe\b|autoescape", text), path.name
        assert len(re.findall(r"<script", text)) == (path.name == "base.html"), path.name


@pytest.mark.parametrize(
    "name",
    [
        "../app.py", "..%2Fapp.py", "%2e%2e/app.py", "....//app.py", "/etc/passwd", "pgjobs.css%00.js",
        "PGJOBS.CSS", "__init__.py", "base.html", "", ".", "pgjobs.css/../icon.svg/x", "\\app.py",
    ],
)  # fmt: skip
def test_static_files_are_those_of_the_list_alone(client: Client, name: str) -> None:
    answer = Site(client).get(f"/static/{name}")
    assert answer.status_code in (404, 405), name
    assert "import" not in answer.text


def test_static_files_that_are_on_the_list_may_be_kept_by_their_version(client: Client) -> None:
    site = Site(client)
    for address_ in set(re.findall(r'(?:href|src)="(/static/[^"]+)"', site.page("/help"))):
        answer = site.get(address_.replace("&amp;", "&"))
        assert answer.status_code == 200
        assert "immutable" in answer.headers["Cache-Control"]
        assert site.get(address_.partition("?")[0]).headers["Cache-Control"] == "no-store"


def test_the_dashboard_of_this_machine_answers_no_one_behind_a_proxy(client: Client) -> None:
    site = Site(client)
    for header in ("X-Forwarded-For", "Forwarded", "X-Real-IP", "Via", "X-Forwarded-Host"):
        assert site.get("/", headers={header: "203.0.113.9"}).status_code == 403, header
