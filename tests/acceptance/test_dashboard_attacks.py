"""What an attacker would send to the dashboard: broken, forged and endless values, and requests of other sites."""

from __future__ import annotations

import io

import pytest

from pgjobs import Client, Schedule
from pgjobs.dashboard import User
from pgjobs.dashboard.pages import PAGES
from pgjobs.dashboard.request import Page, Request, Response
from pgjobs.dashboard.selection import NAMES
from tests.acceptance.dashboard_site import LOCAL, Site
from tests.acceptance.test_dashboard_security import FORM, address
from tests.samples import Thing

#: What a value may be, as it stands in a URL.
VALUES = {
    "NUL": "%00",
    "bad UTF-8": "%ff%fe%c0%80",
    "a lone surrogate": "%ed%a0%80",
    "CRLF": "a%0d%0aSet-Cookie:%20x=1",
    "a large number": "9" * 400,
    "a negative number": "-9223372036854775809",
    "other digits": "%d9%a5",
    "deep JSON": "%5b" * 2_000,
    "a deep object": "%7b%22a%22:" * 1_000,
    "huge JSON number": "%7b%22a%22:" + "1" * 5_000 + "%7d",
    "a format": "%25s%25(id)s%7b0%7d",
    "a cursor of ids": "id.down.9223372036854775808",
    "a cursor of time": "time.up.5.99999999999999999999",
    "long": "x" * 4_000,
}
JOBS = [*NAMES, "cursor", "looked", "newest", "most", "counted", "do", "all", "ticked", "reset", "show", "live", "done"]
ENQUEUE = ["kind", "args", "queue", "priority", "when", "max_attempts", "tags", "metadata", "unique", "pending", "like"]
#: The values that pages read, by the names of the pages.
FIELDS = {
    "overview": ["period", "live", "done"],
    "jobs act": JOBS,
    "confirm dry_run": ["do", "newest", "most", "counted", "cursor"],
    "job": ["show", "done"],
    "cancel_job retry_job release_job": ["reset"],
    "edit_job": ["priority", "max_attempts", "scheduled_at", "tags", "tags_before", "metadata"],
    "queue": ["name", "period"],
    "pause_queue resume_queue": ["name", "back", "all"],
    "confirm_empty_queue empty_queue": ["name", "newest"],
    "schedule": ["name"],
    "simulate": ["spec", "zone", "name"],
    "pause_schedules resume_schedules run_schedules remove_schedules": ["name", "back"],
    "enqueue enqueue_job": ENQUEUE,
    "confirm_prune prune": ["state", "days"],
    "vacuum": ["table"],
    "audit": ["before", "show"],
}


def fields_of(page: Page) -> list[str]:
    return next((fields for names, fields in FIELDS.items() if page.name in names.split()), ["live"])


@pytest.fixture
def site(client: Client) -> Site:
    client.enqueue(None, Thing(1))
    client.schedules.add(Schedule("default", "@daily", Thing(1)))
    return Site(client)


@pytest.fixture(autouse=True)
def no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgjobs.dashboard.app.PAGES_LIMIT", (100_000, 1.0))
    monkeypatch.setattr("pgjobs.dashboard.app.ACTIONS_LIMIT", (100_000, 1.0))


@pytest.mark.parametrize("value", VALUES)
def test_no_value_of_a_url_or_form_breaks_a_page(client: Client, site: Site, value: str) -> None:
    """It is answered, or refused with a page that says so: an error of the server would be an unexpected one."""
    job = client.list_jobs().jobs[0].id
    good = {**FORM, "spec": "@daily", "table": "audit", "state": "completed", "name": "none"}
    for page in PAGES:
        path = address(page.path, id=job, topic="enqueue")
        for field in fields_of(page):
            query = "&".join([*(f"{n}={v}" for n, v in good.items() if n != field), f"{field}={VALUES[value]}"])
            if page.method == "GET":
                answer = site.get(f"{path}?{query}")
            else:
                answer = site.post(path, query, content_type="application/x-www-form-urlencoded")  # type: ignore[arg-type]
            assert answer.status_code < 500, f"{page.method} {path} {field}: {answer.status_code} {answer.text}"
            assert "Set-Cookie" not in answer.headers
            assert "\r" not in answer.headers.get("Location", "")


@pytest.mark.parametrize(
    "path",
    ["/jobs/\0", "/\xff", "/jobs/1/../edit", "//evil.example/jobs", "/\\evil.example", "/jobs//", "/help/\0",
     "/help/../../etc/passwd", "/help/" + "x" * 5_000, "/jobs/" + "9" * 5_000, "/static/../../app.py", "/;/jobs",
     "/jobs;x=1", "/JOBS", "jobs", "*"],
)  # fmt: skip
def test_a_path_that_is_none_leads_nowhere(site: Site, path: str) -> None:
    answer = site._browser.get("/", environ_overrides={**LOCAL, "PATH_INFO": path})
    assert answer.status_code == (200 if path == "jobs" else 404)
    assert "evil.example" not in answer.text.partition("<main")[0]


@pytest.mark.parametrize("prefix", ["/a\r\nSet-Cookie: x=1", '/"><script>', "//evil.example"])
def test_a_hostile_prefix_stays_a_path(site: Site, prefix: str) -> None:
    answer = site._browser.post(
        "/queues/pause", data={"name": "default"}, headers={"Sec-Fetch-Site": "same-origin"},
        environ_overrides={**LOCAL, "SCRIPT_NAME": prefix},
    )  # fmt: skip
    assert answer.status_code == 303
    assert answer.headers["Location"].startswith("/")
    assert not answer.headers["Location"].startswith("//")
    page = site._browser.get("/queues", environ_overrides={**LOCAL, "SCRIPT_NAME": prefix}).text
    assert "<script>" not in page.replace("<script src", "")
    assert 'href="//' not in page


def test_a_form_of_parts_and_a_body_that_ends_early_are_answered(site: Site) -> None:
    pause = "/queues/pause"
    file = {"name": (io.BytesIO(b"x" * 1_000), "../../etc/passwd\r\nX: 1")}
    assert site.post(pause, data=file).status_code == 400, "a file is no value"
    assert site.post(pause, data={"name": "default"}, content_type="multipart/form-data").status_code == 303
    many = "&".join(f"n{n}=1" for n in range(200_000))
    assert site.post(pause, data=many, content_type="application/x-www-form-urlencoded").status_code == 400  # type: ignore[arg-type]
    for kind in ("application/json", "text/plain", "multipart/form-data", "nonsense"):
        assert site.post(pause, data=b"name=default", content_type=kind).status_code == 400  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get"])
def test_a_method_that_is_not_taken_is_answered_with_those_that_are(site: Site, method: str) -> None:
    for path, allowed in {"/queues": "GET, HEAD", "/queues/pause": "POST", "/enqueue": "GET, HEAD, POST"}.items():
        answer = site._browser.open(path, method=method, environ_overrides={**LOCAL, "REQUEST_METHOD": method})
        if method == "get":
            assert answer.status_code in (200, 405)
        else:
            assert (answer.status_code, answer.headers["Allow"]) == (405, allowed), path


def embedded(site: str, mode: str, dest: str) -> dict[str, str]:
    return {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": dest}


@pytest.mark.parametrize("site_of", ["cross-site", "same-site"])
def test_another_site_cannot_read_pages_in_the_background(site: Site, site_of: str) -> None:
    """The time of a search would tell it what the jobs contain; and each would cost the database."""
    for mode, dest in (("no-cors", "image"), ("cors", "empty"), ("navigate", "iframe"), ("no-cors", "script")):
        answer = site.get("/jobs?text=hunter", headers=embedded(site_of, mode, dest))
        assert answer.status_code == 403
        assert "in the background" in answer.text
    assert site.get("/jobs", headers=embedded(site_of, "navigate", "document")).status_code == 200, "by a link"
    assert site.get("/jobs", headers=embedded("none", "navigate", "document")).status_code == 200
    assert site.get("/jobs", headers=embedded("same-origin", "cors", "empty")).status_code == 200


@pytest.mark.parametrize(
    "statement",
    [
        "SET TRANSACTION READ WRITE",
        "SET LOCAL transaction_read_only = off",
        "SELECT set_config('transaction_read_only', 'off', true)",
        "SELECT nextval('pgjobs.job_id_seq')",
        "UPDATE pgjobs.queue SET paused_at = now()",
        "DO $$ BEGIN INSERT INTO pgjobs.queue (name) VALUES ('new'); END $$",
        "CREATE TEMPORARY TABLE x (y int)",
    ],
)
def test_a_page_cannot_write_nor_make_its_transaction_writable(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, statement: str
) -> None:
    def tries(request: Request) -> Response:
        with request.reading() as conn:
            conn.execute(statement.replace("pgjobs.", f'"{client.schema}".').encode())
        return request.render("empty.html")

    monkeypatch.setattr("pgjobs.dashboard.app._BY_NAME", {"overview": Page("/", "overview", tries, role="viewer")})
    answer = Site(client, auth=lambda environ: User("eve", "operator")).get("/")
    assert answer.status_code == 500
    assert "The database refused a statement" in answer.text
    assert any("refused a statement" in line for line in caplog.messages)
