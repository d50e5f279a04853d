"""S13: a text of a job is a text on every page, whatever is in it, and in whatever field or URL it stands."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from pgjobs.dashboard.selection import NAMES
from tests.browser.conftest import Served, Watched
from tests.hostile_jobs import CORPUS

pytestmark = pytest.mark.browser
Open = Callable[..., Watched]

DESKTOP: dict[str, Any] = {}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
DARK = {"color_scheme": "dark"}
SCREENSHOTS = os.environ.get("PGJOBS_TEST_SCREENSHOTS")

WORST = CORPUS[2]
ALL = " ".join(text for text in CORPUS if len(text) < 60)  # in one value
PAGES = {
    "overview": "/",
    "jobs": "/jobs",
    "jobs-discarded": "/jobs?state=discarded",
    "jobs-of-kind": f"/jobs?{urlencode({'kind': WORST, 'queue': WORST, 'tag': WORST})}",
    "confirm": f"/jobs/confirm?{urlencode({'do': 'retry', 'kind': WORST})}",
    "failures": "/failures",
    "queues": "/queues",
    "queue": f"/queue?{urlencode({'name': WORST})}",
    "empty-queue": f"/queues/empty?{urlencode({'name': WORST})}",
    "workers": "/workers",
    "schedules": "/schedules",
    "schedule": f"/schedule?{urlencode({'name': WORST})}",
    "simulate": f"/schedules/simulate?{urlencode({'spec': '*/5 * * * *', 'zone': 'Europe/Berlin'})}",
    "enqueue": "/enqueue",
    "enqueue-kind": f"/enqueue?{urlencode({'kind': WORST, 'show': 'args'})}",
    "health": "/health",
    "maintenance": "/maintenance",
    "prune": "/maintenance/prune?state=completed&days=0",
    "audit": "/audit",
    "help": "/help",
    "guide": "/help/enqueue",
}
PARAMETERS = {
    "/": ["period", "live", "done"],
    "/jobs": [*NAMES, "cursor", "looked", "show"],
    "/jobs/confirm": ["do", "kind", "queue", "id", "text", "args", "newest", "state"],
    "/failures": ["kind", "queue", "done", "period"],
    "/queue": ["name", "period"],
    "/queues/empty": ["name"],
    "/schedule": ["name"],
    "/schedules/simulate": ["spec", "zone", "name"],
    "/enqueue": ["kind", "like", "args", "queue", "tags"],
    "/maintenance/prune": ["state", "days"],
    "/audit": ["before", "who", "act", "cursor"],
}


def look(watched: Watched, name: str, look_of: str) -> None:
    if SCREENSHOTS:
        Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
        watched.page.screenshot(path=f"{SCREENSHOTS}/{name}-{look_of}.png", full_page=True, timeout=60_000)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_full_of_hostile_texts_is_only_text(hostile: Served, open_page: Open, name: str) -> None:
    for look_of, settings in {"light": DESKTOP, "dark": DARK, "phone": PHONE}.items():
        watched = open_page(hostile, PAGES[name], **settings)
        look(watched, name, look_of)


@pytest.mark.parametrize("state", ["available", "scheduled", "running", "retryable", "completed", "discarded"])
def test_the_page_of_a_hostile_job_is_only_text(hostile: Served, open_page: Open, state: str) -> None:
    jobs = hostile.query(
        "SELECT DISTINCT ON (kind) id FROM (SELECT id, kind FROM {schema}.job WHERE state = %s::{schema}.job_state"
        " ORDER BY id DESC LIMIT 30) AS job",
        state,
    )
    assert jobs
    watched = open_page(hostile, None)
    for (id,) in jobs:
        watched.open(f"/jobs/{id}")
    look(watched, f"job-{state}", "light")
    phone = open_page(hostile, f"/jobs/{jobs[0][0]}", **PHONE, **DARK)
    look(phone, f"job-{state}", "phone-dark")


@pytest.mark.parametrize("path", PARAMETERS)
def test_hostile_values_in_a_url_are_only_text(hostile: Served, open_page: Open, path: str) -> None:
    watched = open_page(hostile, None)
    for name in PARAMETERS[path]:
        for value in (ALL, "\x00", "9" * 400):
            response = watched.page.goto(f"{hostile.origin}{path}?{urlencode({name: value})}")
            assert response.status < 500, f"{path} {name}={value[:20]!r}: {response.status}"
            # the browser itself says in the console that a page has an error status
            watched.problems[:] = [each for each in watched.problems if "Failed to load resource" not in each]
            watched.check()


def test_a_hostile_path_is_only_text(hostile: Served, open_page: Open) -> None:
    watched = open_page(hostile, None)
    for text in CORPUS:
        response = watched.page.goto(f"{hostile.origin}/help/{quote(text, safe='')}")
        assert response.status in (404, 405)
        watched.problems.clear()  # the console names each page with an error status
        watched.check()
