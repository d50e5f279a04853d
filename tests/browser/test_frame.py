"""The frame of the pages: where one is, on wide screens and phones, and what pages of other sites can ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import pytest
from werkzeug.wrappers import Response

from pgjobs import Client
from pgjobs.dashboard import Dashboard
from pgjobs.dashboard.access import local_operator
from tests.browser.conftest import Served, Watched, serve
from tests.browser.test_hostile_texts import PHONE
from tests.browser.test_live_refresh import expect
from tests.samples import Thing

pytestmark = pytest.mark.browser
Open = Callable[..., Watched]


@pytest.mark.parametrize("settings", [{}, PHONE], ids=["wide", "phone"])
def test_the_navigation_shows_where_one_is(
    served: Served, client: Client, open_page: Open, settings: dict[str, Any]
) -> None:
    job = client.enqueue(None, Thing(1))
    watched = open_page(served, **settings)
    for path, title in {f"/jobs/{job.id}": "Jobs", "/queue?name=default": "Queues", "/audit": "Audit"}.items():
        watched.open(path)
        marked = watched.page.locator("nav [aria-current]")
        expect(marked).to_have_text(title)
        expect(marked).to_be_in_viewport(ratio=1)


def test_the_texts_of_charts_can_be_read_on_a_phone(hostile: Served, open_page: Open) -> None:
    watched = open_page(hostile, "/", **PHONE)
    sizes = watched.page.evaluate("""() => [...document.querySelectorAll('.chart text')].map((text) =>
        parseFloat(getComputedStyle(text).fontSize) * text.ownerSVGElement.getBoundingClientRect().width / 640)""")
    assert len(sizes) > 10
    assert min(sizes) >= 9
    places = watched.page.evaluate("""() => [...document.querySelectorAll('.chart text')].map((text) => {
        const {left, right, top} = text.getBoundingClientRect();
        return [top, left, right];
    })""")
    assert all(left >= 0 for _, left, _ in places), "cut off at the edge of the screen"
    for (top, _, right), (next_top, left, _) in pairwise(places):
        assert top != next_top or right < left, "two texts overlap"


def test_another_site_can_link_to_a_page_but_not_load_it(client: Client, open_page: Open) -> None:
    dashboard, answers = Dashboard(client, auth=local_operator), list[tuple[str, int]]()

    def watched(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        answer = Response.from_app(dashboard, environ)
        answers.append((environ.get("HTTP_SEC_FETCH_DEST", ""), answer.status_code))
        return answer(environ, start_response)

    with serve(client, watched) as served:
        loads = "".join(f"<{tag} src={served.origin}/jobs></{tag}>" for tag in ("img", "iframe", "script"))

        def foreign(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            page = Response(f"{loads}<a href={served.origin}/jobs>jobs</a>", content_type="text/html")
            return page(environ, start_response)

        with serve(client, foreign) as other:
            page = open_page(other, None).page
            page.goto(other.origin.replace("127.0.0.1", "localhost"))
            page.wait_for_load_state("networkidle")
            assert sorted(answers) == [("iframe", 403), ("image", 403), ("script", 403)]
            with page.expect_navigation() as went:
                page.get_by_role("link", name="jobs").click()
            assert went.value.status == 200


def test_many_tags_and_queues_are_folded(served: Served, client: Client, open_page: Open) -> None:
    job = client.enqueue(None, Thing(1), tags=[f"tag-{n}" for n in range(500)])
    served.query(
        "INSERT INTO {schema}.worker (id, host, pid, queues, threads, version) SELECT 'w', 'h', 1,"
        " jsonb_object_agg('queue-' || n, 2), 400, '1' FROM generate_series(1, 200) AS n"
    )
    watched = open_page(served, "/jobs")
    expect(watched.page.locator("tbody .tag")).to_have_count(10)
    expect(watched.page.locator("tbody tr")).to_contain_text("and 490 more")
    watched.open(f"/jobs/{job.id}")
    watched.page.locator("#more-tags summary").click()
    expect(watched.page.get_by_text("tag-499", exact=True)).to_be_visible()
    watched.open("/workers")
    expect(watched.page.get_by_text("and 180 more queues")).to_be_visible()


def go_to(page: Any, wanted: str, key: str = "Tab") -> None:
    """Press the key until the element has the focus, and look that each on the way shows that it has it."""
    for _ in range(80):
        page.keyboard.press(key)
        name, outline = page.evaluate("""() => {
            const element = document.activeElement;
            const label = element.ariaLabel || element.labels?.[0]?.innerText;
            const name = label || element.innerText || element.value || '';
            return [name.trim(), getComputedStyle(element).outlineStyle];
        }""")
        assert outline != "none", f"{name} does not show that it has the focus"
        if name == wanted:
            return
    raise AssertionError(f"the key {key} does not lead to {wanted}")


def test_a_job_is_found_ticked_and_cancelled_by_the_keyboard_alone(
    served: Served, client: Client, open_page: Open
) -> None:
    jobs = client.enqueue_many(None, [Thing(n) for n in range(3)])
    page = open_page(served, "/").page
    go_to(page, "Jobs")
    page.keyboard.press("Enter")
    page.wait_for_url("**/jobs")
    go_to(page, f"Job {jobs[1].id}")
    page.keyboard.press("Space")
    go_to(page, "Cancel", "Shift+Tab")
    page.keyboard.press("Enter")
    page.wait_for_url("**/jobs/confirm?**")
    go_to(page, "Cancel 1 job")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_have_text("1 job cancelled.")
    found = client.get(jobs[1].id)
    assert found is not None
    assert found.state == "cancelled"
