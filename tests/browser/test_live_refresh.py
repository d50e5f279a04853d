"""The live refresh: what the user does to a page stays, and nothing old overwrites what is newer.

The clock of the browser is a fake one, so that a refresh comes when the test wants it.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from werkzeug.exceptions import InternalServerError
from werkzeug.wrappers import Response

from pgjobs import Client, JobFilter, NewJob
from pgjobs.dashboard import Dashboard
from pgjobs.dashboard.access import local_operator
from tests.browser.conftest import Served, Watched, serve
from tests.samples import Thing

pytestmark = pytest.mark.browser
Open = Callable[..., Watched]
SOON = 6000  # milliseconds: later than the next refresh


def expect(locator: Any) -> Any:
    """Playwright's assertions, which wait until they hold."""
    from playwright.sync_api import expect

    return expect(locator)


def frozen(open_page: Open, served: Served, path: str, **settings: Any) -> Watched:
    """A page whose clock the test moves."""
    watched = open_page(served, None, **settings)
    watched.page.clock.install()
    watched.open(path)
    return watched


def is_fetch(message: Any) -> bool:
    request = getattr(message, "request", message)
    return bool(request.resource_type == "fetch")


def refresh(watched: Watched) -> None:
    """Let the next refresh come, and its answer arrive."""
    with watched.page.expect_response(is_fetch):
        watched.page.clock.run_for(SOON)


class Gate:
    """A dashboard whose answers to a refresh may be held back, or replaced."""

    def __init__(self, client: Client) -> None:
        self._dashboard = Dashboard(client, auth=local_operator)
        self.answer: Callable[[], Any] | None = None  # instead of the page
        self.asked = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ.get("HTTP_SEC_FETCH_DEST") != "empty":  # not sent by the script
            return self._dashboard(environ, start_response)
        if self.answer is not None:
            answer: Iterable[bytes] = self.answer()(environ, start_response)
            return answer
        made = Response.from_app(self._dashboard, environ, buffered=True)
        self.asked.set()
        self.go_on.wait(20)
        return made(environ, start_response)


def box(watched: Watched, id: int) -> Any:
    return watched.page.get_by_label(f"Job {id}", exact=True)


def test_a_new_job_appears_and_what_the_user_did_stays(served: Served, client: Client, open_page: Open) -> None:
    jobs = client.enqueue_many(None, [Thing(n) for n in range(30)])
    watched = frozen(open_page, served, "/jobs")
    page = watched.page
    page.locator("summary").filter(has_text="More").click()
    page.locator("input[name=queue]").fill("half a na")
    box(watched, jobs[5].id).check()
    box(watched, jobs[6].id).focus()
    page.evaluate("scrollTo(0, 300)")
    top = page.evaluate("scrollY")
    new = client.enqueue(None, Thing(99))
    client.cancel(jobs[20].id)
    refresh(watched)
    expect(page.locator(f"tr[id^=job-{new.id}-]")).to_be_visible()
    expect(page.locator(f"tr[id^=job-{jobs[20].id}-]")).to_contain_text("cancelled")
    assert page.locator("input[name=queue]").input_value() == "half a na"
    assert page.locator("details.more").get_attribute("open") is not None
    assert [job.id for job in jobs if box(watched, job.id).is_checked()] == [jobs[5].id], "the tick stays at its job"
    assert page.evaluate("document.activeElement.value") == str(jobs[6].id)
    assert abs(page.evaluate("scrollY") - top) < 100
    assert page.locator("[data-count]").inner_text() == "(1)"
    watched.check()


def test_the_ticked_jobs_are_those_that_are_changed(served: Served, client: Client, open_page: Open) -> None:
    jobs = client.enqueue_many(None, [Thing(n) for n in range(5)])
    watched = frozen(open_page, served, "/jobs")
    box(watched, jobs[1].id).check()
    client.enqueue_many(None, [Thing(n) for n in range(5)])
    refresh(watched)
    expect(watched.page.locator("tbody tr")).to_have_count(10)
    watched.page.locator("#bulk").get_by_role("button", name="Cancel").click()
    expect(watched.page.locator("main")).to_contain_text("Cancel 1 job")
    watched.page.get_by_role("button", name="Cancel 1 job").click()
    expect(watched.page.get_by_role("status")).to_contain_text("1 job cancelled.")
    assert [job.id for job in client.list_jobs(JobFilter(states=["cancelled"])).jobs] == [jobs[1].id]
    assert not any(box(watched, job.id).is_checked() for job in jobs), "a second click would repeat the action"
    watched.page.go_back()
    watched.page.go_back()
    expect(watched.page.locator("tbody tr")).to_have_count(10)
    assert not any(box(watched, job.id).is_checked() for job in jobs)
    watched.check()


@pytest.mark.parametrize("what", ["an error", "a login", "nothing at all"])
def test_a_refresh_that_fails_leaves_the_page_says_so_and_recovers(client: Client, open_page: Open, what: str) -> None:
    client.enqueue(None, Thing(1))
    gate = Gate(client)
    with serve(client, gate) as served:
        watched = frozen(open_page, served, "/jobs")
        if what == "nothing at all":
            watched.page.context.set_offline(True)
            watched.page.clock.run_for(SOON)
        else:
            login = Response("<h1>Log in</h1>", content_type="text/html")
            gate.answer = InternalServerError if what == "an error" else lambda: login
            refresh(watched)
        expect(watched.page.locator("#stale")).to_contain_text("This page is as it was at")
        expect(watched.page.locator("tbody tr")).to_have_count(1)
        watched.page.context.set_offline(False)
        gate.answer = None
        client.enqueue(None, Thing(2))
        refresh(watched)
        expect(watched.page.locator("tbody tr")).to_have_count(2)
        expect(watched.page.locator("#stale")).to_have_count(0)
        watched.problems[:] = [each for each in watched.problems if "Failed to load" not in each]
        watched.check()


def test_a_refresh_in_flight_does_not_overwrite_a_newer_page(client: Client, open_page: Open) -> None:
    client.enqueue_many(None, [NewJob(Thing(1), queue="a"), NewJob(Thing(2), queue="b")])
    gate = Gate(client)
    with serve(client, gate) as served:
        watched = frozen(open_page, served, "/jobs")
        gate.go_on.clear()
        watched.page.clock.run_for(SOON)
        assert gate.asked.wait(10)
        watched.page.locator("input[name=queue]").fill("a")
        watched.page.keyboard.press("Enter")
        expect(watched.page.locator("tbody tr")).to_have_count(1)
        gate.go_on.set()
        refresh(watched)  # the next one
        expect(watched.page.locator("tbody tr")).to_have_count(1)
        watched.check()


def test_a_pause_lasts_and_survives_a_filter(served: Served, client: Client, open_page: Open) -> None:
    client.enqueue(None, Thing(1))
    watched = frozen(open_page, served, "/jobs")
    fetched: list[Any] = []
    watched.page.on("request", lambda request: fetched.append(request) if is_fetch(request) else None)
    watched.pause_refresh()
    expect(watched.page.get_by_text("Refresh is paused")).to_be_visible()
    watched.page.locator("input[name=kind]").fill("thing")
    watched.page.keyboard.press("Enter")
    expect(watched.page).to_have_url(re.compile("kind=thing"))
    expect(watched.page.get_by_text("Refresh is paused")).to_be_visible()
    watched.page.clock.run_for(60_000)
    assert fetched == []
    watched.page.get_by_text("Refresh is paused").click()
    expect(watched.page.get_by_role("link", name="Pause refresh")).to_be_visible()
    refresh(watched)
    watched.check()


def test_filters_stand_in_the_url_and_back_and_forward_work(served: Served, client: Client, open_page: Open) -> None:
    client.enqueue_many(None, [NewJob(Thing(n), queue="a" if n % 3 else "b") for n in range(9)])
    watched = open_page(served, "/jobs")
    page = watched.page
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url) if request.is_navigation_request() else None)
    page.locator("input[name=queue]").fill("b")
    page.keyboard.press("Enter")
    expect(page.locator("tbody tr")).to_have_count(3)
    assert len(sent) == 1, "Enter sends once"
    page.go_back()
    expect(page.locator("tbody tr")).to_have_count(9)
    page.go_forward()
    expect(page.locator("tbody tr")).to_have_count(3)
    page.reload()
    expect(page.locator("tbody tr")).to_have_count(3)
    assert page.locator("input[name=queue]").input_value() == "b"
    watched.check()


def test_what_was_done_is_said_once_and_only_in_known_words(served: Served, open_page: Open) -> None:
    watched = open_page(served, "/jobs?done=cancel-jobs.3.1&queue=a")
    expect(watched.page.locator(".toast")).to_have_text("3 jobs cancelled; 1 skipped.")
    expect(watched.page).to_have_url(re.compile(r"/jobs\?queue=a$"))
    watched.page.reload()
    expect(watched.page.locator(".toast")).to_have_count(0)
    watched.open("/jobs?done=cancel-jobs.3.1<b>x</b>")
    expect(watched.page.locator(".toast")).to_have_count(0)


def test_without_a_script_every_action_has_its_pages(served: Served, client: Client, open_page: Open) -> None:
    jobs = client.enqueue_many(None, [Thing(n) for n in range(4)])
    page = open_page(served, None, java_script_enabled=False).page
    page.goto(f"{served.origin}/jobs")
    for job in jobs[:2]:
        page.get_by_label(f"Job {job.id}", exact=True).check()
    page.locator("#bulk").get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Cancel 2 jobs").click()
    expect(page.locator(".toast")).to_have_text("2 jobs cancelled.")
    assert {job.id for job in client.list_jobs(JobFilter(states=["cancelled"])).jobs} == {job.id for job in jobs[:2]}


def test_a_range_is_ticked_with_shift_and_all_of_a_page_at_once(
    served: Served, client: Client, open_page: Open
) -> None:
    jobs = client.enqueue_many(None, [Thing(n) for n in range(6)])
    watched = open_page(served, "/jobs")
    count = watched.page.locator("[data-count]")
    box(watched, jobs[4].id).click()
    box(watched, jobs[1].id).click(modifiers=["Shift"])
    expect(count).to_have_text("(4)")
    watched.page.locator("[data-all]").check()
    expect(count).to_have_text("(6)")
    watched.page.locator("[data-all]").uncheck()
    expect(count).to_have_text("(0)")
    expect(watched.page.locator("#bulk").get_by_role("button", name="Retry")).to_be_disabled()
    watched.check()


def test_the_keyboard_reaches_the_content_and_shows_where_it_is(served: Served, open_page: Open) -> None:
    watched = open_page(served, "/queues")
    watched.page.keyboard.press("Tab")
    skip = watched.page.get_by_role("link", name="Skip to the content")
    expect(skip).to_be_focused()
    expect(skip).to_be_in_viewport()
    watched.page.keyboard.press("Enter")
    expect(watched.page).to_have_url(re.compile("#content$"))
    watched.page.keyboard.press("Tab")
    assert watched.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
