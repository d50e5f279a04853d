"""Every action of the pages, by its buttons, among hostile texts. What it has done is looked up in the table."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import pytest

from pgjobs import Client, Job, NewJob, Schedule
from tests.browser.conftest import Served, Watched
from tests.browser.test_live_refresh import expect
from tests.hostile_jobs import CORPUS
from tests.samples import Thing

pytestmark = pytest.mark.browser
Open = Callable[..., Watched]

KIND = "by.hand"  # that no other job of the database has
WORST = CORPUS[2]
FAR = timedelta(days=400)


@pytest.fixture
def jobs(full: Client) -> list[Job[Any]]:
    """Three jobs of the test's own in the full database."""
    new = [NewJob({"n": n, WORST: WORST}, kind=KIND, tags=["red"], delay=FAR) for n in range(3)]
    return full.enqueue_many(None, new)


@pytest.fixture(autouse=True)
def no_others(full: Client) -> None:
    with full.pool.connection() as conn:
        conn.execute(f"DELETE FROM {full.schema}.job WHERE kind = '{KIND}'".encode())


def now(client: Client, job: Job[Any]) -> Job[Any]:
    found = client.get(job.id)
    assert found is not None
    return found


def press(watched: Watched, name: str, within: str = "main") -> None:
    """Press the button, or follow the link, with this name."""
    part = watched.page.locator(within)
    part.get_by_role("button", name=name, exact=True).or_(part.get_by_role("link", name=name, exact=True)).first.click()


def follow(watched: Watched, name: str, path: str) -> None:
    """Press what leads to another page, and look at that one once it is there."""
    press(watched, name)
    expect(watched.page).to_have_url(re.compile(re.escape(path)))
    watched.check()


def done(watched: Watched, text: str) -> None:
    """The page says what was done, and nothing foreign is on it."""
    expect(watched.page.locator(".toast").first).to_contain_text(text)
    watched.check()


def test_one_job_is_changed_run_cancelled_retried_and_deleted(
    hostile: Served, full: Client, jobs: list[Job[Any]], open_page: Open
) -> None:
    watched = open_page(hostile, f"/jobs/{jobs[0].id}")
    watched.page.locator("summary").filter(has_text="Edit").click()
    watched.page.locator("form.card input[name=priority]").fill("-7")
    watched.page.locator("form.card input[name=tags]").fill("green blue")
    press(watched, "Save")
    done(watched, "1 job changed.")
    assert (now(full, jobs[0]).priority, now(full, jobs[0]).tags) == (-7, ("green", "blue"))
    press(watched, "Run now")
    done(watched, "1 job made available again.")
    assert now(full, jobs[0]).state == "available"
    press(watched, "Cancel")
    done(watched, "1 job cancelled.")
    press(watched, "Retry")
    done(watched, "1 job made available again.")
    press(watched, "Delete")
    press(watched, "Delete 1 job")
    done(watched, "1 job deleted.")
    assert full.get(jobs[0].id) is None


def test_a_job_that_waits_for_a_release_is_released(hostile: Served, full: Client, open_page: Open) -> None:
    job = full.enqueue(None, {"n": 1}, kind=KIND, pending=True)
    watched = open_page(hostile, f"/jobs/{job.id}")
    press(watched, "Release")
    done(watched, "1 job released.")
    assert now(full, job).state == "available"


def test_all_that_match_are_counted_tried_and_then_changed(
    hostile: Served, full: Client, jobs: list[Job[Any]], open_page: Open
) -> None:
    after = f"{datetime.now(UTC) + FAR / 2:%Y-%m-%d}"
    which = {"kind": KIND, "state": "scheduled", "time": "scheduled", "after": after}
    watched = open_page(hostile, f"/jobs?{urlencode(which)}")
    expect(watched.page.locator("#found")).to_contain_text("3 jobs")
    press(watched, "Cancel all")
    expect(watched.page.locator("main")).to_contain_text("3 jobs fit")
    watched.check()
    press(watched, "Dry run")
    done(watched, "Dry run, nothing was changed: 3 jobs would be changed")
    assert {now(full, job).state for job in jobs} == {"scheduled"}
    late = full.enqueue(None, {"n": 4}, kind=KIND)
    press(watched, "Cancel 3 jobs")
    done(watched, "3 jobs cancelled.")
    assert {now(full, job).state for job in jobs} == {"cancelled"}
    assert now(full, late).state == "available", "the count was what was changed"


def test_a_job_is_enqueued_again_and_by_hand(
    hostile: Served, full: Client, jobs: list[Job[Any]], open_page: Open
) -> None:
    watched = open_page(hostile, f"/jobs/{jobs[0].id}")
    press(watched, "Enqueue again, with changes")
    press(watched, "Enqueue")
    done(watched, "1 job enqueued.")
    watched.open(f"/jobs/{jobs[0].id}")
    press(watched, "Enqueue again, with changes")
    args = watched.page.locator("textarea[name=args]")
    assert WORST in args.input_value().replace('\\"', '"')
    args.fill('{"n": 9007199254740993}')
    press(watched, "Enqueue")
    done(watched, "1 job enqueued.")
    found = full.list_jobs(descending=True, limit=2).jobs
    assert [job.args for job in found] == [{"n": 9007199254740993}, jobs[0].args]
    watched.open(f"/enqueue?{urlencode({'kind': KIND})}")
    watched.page.locator("textarea[name=args]").fill("[1")
    press(watched, "Enqueue")
    expect(watched.page.get_by_role("alert")).to_be_visible()
    assert watched.page.locator("textarea[name=args]").input_value() == "[1", "what was typed stays"


def test_a_group_of_failures_is_retried(hostile: Served, full: Client, open_page: Open) -> None:
    hostile.query(
        "INSERT INTO {schema}.job (kind, state, attempt, finalized_at, errors) VALUES (%s, 'discarded', 25, now(),"
        " jsonb_build_array(jsonb_build_object('attempt', 25, 'at', now(), 'error', %s::text)))",
        KIND,
        f"{WORST}: {WORST}",
    )
    watched = open_page(hostile, "/failures")
    row = watched.page.locator("tr").filter(has_text=KIND)
    row.get_by_role("link", name="Retry these").click()
    press(watched, "Retry 1 job")
    done(watched, "1 job made available again.")


def test_a_queue_is_paused_resumed_and_emptied(hostile: Served, full: Client, open_page: Open) -> None:
    full.enqueue_many(None, [NewJob({"n": n}, kind=KIND, queue="by.hand") for n in range(2)])
    watched = open_page(hostile, "/queue?name=by.hand")
    press(watched, "Pause")
    done(watched, "1 queue paused.")
    assert [queue.paused_at is not None for queue in full.queues.list() if queue.name == "by.hand"] == [True]
    watched.open("/queue?name=by.hand")
    press(watched, "Resume")
    done(watched, "1 queue resumed.")
    watched.open("/queue?name=by.hand")
    follow(watched, "Empty…", "/queues/empty")
    watched.page.locator("main form button").first.click()
    done(watched, "2 jobs deleted.")


def test_a_schedule_is_run_paused_resumed_and_removed(hostile: Served, full: Client, open_page: Open) -> None:
    name = "by.hand/nightly"
    full.schedules.remove(name)
    full.schedules.add(Schedule(name, "@daily", Thing(1)))
    page = f"/schedule?{urlencode({'name': name})}"
    watched = open_page(hostile, page)
    press(watched, "Run now")
    done(watched, "1 schedule told to run now.")
    watched.open(page)
    press(watched, "Pause")
    done(watched, "1 schedule paused.")
    watched.open("/schedules")
    watched.page.get_by_label(f"Choose {name}").check()
    press(watched, "Resume", "#chosen")
    done(watched, "1 schedule resumed.")
    watched.open(page)
    watched.page.locator("summary").filter(has_text="Remove this schedule").click()
    press(watched, f"Remove schedule {name}", "#remove")
    done(watched, "1 schedule removed.")
    assert full.schedules.get(name) is None


def test_finished_jobs_are_pruned_after_a_count(hostile: Served, full: Client, open_page: Open) -> None:
    hostile.query(
        "INSERT INTO {schema}.job (kind, state, finalized_at) VALUES (%s, 'cancelled', now() - interval '900 days')",
        KIND,
    )
    watched = open_page(hostile, "/maintenance")
    watched.page.locator("select[name=state]").select_option("cancelled")
    watched.page.locator("input[name=days]").fill("800")
    follow(watched, "Count them…", "/maintenance/prune")
    watched.page.locator("main form[method=post] button").first.click()
    done(watched, "1 finished job deleted.")
    expect(watched.page.locator("main")).to_be_visible()


def test_a_job_like_another_takes_over_its_metadata(hostile: Served, full: Client, open_page: Open) -> None:
    metadata, context = {"note": WORST}, {"tenant": 5}
    job = full.enqueue(
        None, {"n": 1}, kind=KIND, metadata=metadata, context=context, tags=["red"], priority=3, delay=FAR
    )
    watched = open_page(hostile, f"/jobs/{job.id}")
    follow(watched, "Enqueue again, with changes", "/enqueue")
    press(watched, "Enqueue")
    done(watched, "1 job enqueued.")
    (like,) = full.list_jobs(descending=True, limit=1).jobs
    assert (like.kind, like.priority, like.tags, like.context) == (KIND, 3, ("red",), {"tenant": 5})
    assert like.metadata["note"] == WORST


def test_a_table_is_vacuumed(hostile: Served, open_page: Open) -> None:
    watched = open_page(hostile, "/maintenance")
    watched.page.locator("#t-figure").get_by_role("button", name="Vacuum").click()
    done(watched, "1 table vacuumed.")
    expect(watched.page.locator("#t-figure")).to_contain_text("ago")
    watched.open("/audit")
    expect(watched.page.locator("tbody tr").first).to_contain_text("table vacuumed")


def test_what_was_counted_and_not_changed_is_said(
    hostile: Served, full: Client, jobs: list[Job[Any]], open_page: Open
) -> None:
    watched = open_page(hostile, f"/jobs/confirm?{urlencode({'do': 'cancel', 'kind': KIND})}")
    full.delete(jobs[1].id)
    press(watched, "Cancel 3 jobs")
    done(watched, "2 jobs cancelled; left as they were: 1 deleted or in another state since they were counted.")
