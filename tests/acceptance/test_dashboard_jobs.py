"""The dashboard's pages of jobs: found, looked at, changed and enqueued by hand."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import unescape
from typing import Any
from urllib.parse import quote

import pytest

from pgjobs import Cancel, Client, Discard, Job, JobFilter, JobState, NewJob, WorkerPool
from pgjobs.dashboard import User
from tests.acceptance.dashboard_site import Site
from tests.acceptance.test_dashboard import audit
from tests.conformance.conftest import Rows
from tests.conformance.conftest import sql as sql_fixture
from tests.samples import HOUR, Thing, Tx, nothing
from tests.waiting import wait_until

HUGE = 2**70 + 1
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'; DROP TABLE job; --",
    "{{ 7 * 7 }} {% raw %}",
    "</textarea></pre></td></tr></table><h1>hi",
    "javascript:alert(1)",
    "\u202eright to left\u2066",
    "%s %(id)s",
]


@dataclass
class Login:
    user: str
    password: str = field(metadata={"secret": True})
    tries: int = 3


def login(tx: Tx, job: Job[Login]) -> None:
    raise ValueError(f"no such user {job.args.user}")


def ids_on(page: str) -> list[int]:
    """The jobs of a list, from the top."""
    return [int(id) for id in re.findall(r'<tr id="job-(-?\d+)-', page)]


def text_of(page: str) -> str:
    """What a reader sees, in one line."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", page)).split())


def fail_all(client: Client, work_map: dict[Any, Any]) -> None:
    pool = WorkerPool(client, work_map)
    while pool.work_one():
        pass


sql = sql_fixture


# --- find


def test_jobs_are_found_by_several_conditions_together(client: Client) -> None:
    jobs = client.enqueue_many(
        None,
        [
            NewJob(Thing(1), queue="a", tags=["red", "big"], metadata={"k": HUGE}),
            NewJob(Thing(2), queue="a", tags=["red"]),
            NewJob(Thing(3), queue="b", priority=-5),
            NewJob({"n": 1}, kind="other", queue="a", delay=HOUR),
        ],
    )
    one, two, three, four = (job.id for job in jobs)
    site = Site(client)
    assert ids_on(site.page("/jobs")) == [four, three, two, one]
    for query, found in {
        "kind=thing&queue=a": {one, two},
        "kind=thing&queue=a&state=scheduled": set(),
        "state=available&state=scheduled&queue=a": {one, two, four},
        "state=available&queue=b": {three},
        "state=available&state=scheduled": {one, two, three, four},
        "state=available&state=running": {one, two, three},
        "state=scheduled": {four},
        "state=retryable": set(),
        "tag=red+big": {one},
        "priority=-5": {three},
        f"id={two}": {two},
        'args={"n": 1}': {one, four},
        'args={"n": 1}&kind=other': {four},
        f'metadata={{"k": {HUGE}}}': {one},
        f'metadata={{"k": {HUGE - 1}}}': set(),
        "text=OTHER": {four},
        "time=scheduled&after=%2B30m": {four},
        "time=created&after=1h&before=1min": set(),
        "time=created&after=2001-01-01&kind=thing": {one, two, three},
    }.items():
        assert set(ids_on(site.page(f"/jobs?{query}"))) == found, query


def test_a_list_goes_on_by_pages_in_both_orders_and_misses_no_job(client: Client) -> None:
    client.enqueue_many(None, [NewJob(Thing(n % 7), priority=n % 3) for n in range(130)])
    site = Site(client)
    for query in (
        "",
        "state=available",
        "state=available&dir=down",
        "dir=up",
        'args={"n": 3}',
        "kind=thing&queue=default",
    ):
        path, seen = f"/jobs?{query}", list[int]()
        while path:
            page = site.page(path)
            seen += ids_on(page)
            match = re.search(r'href="([^"]*)">Next page', page)
            path = unescape(match[1]) if match else ""
        expected = 130 if "args" not in query else 19
        assert len(seen) == len(set(seen)) == expected, query
        assert seen == sorted(seen, reverse="up" not in query and query not in ("state=available",)) or "state" in query


def test_a_search_says_how_far_it_has_looked_and_goes_on(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgjobs.dashboard.pages.jobs._SECONDS", 0.0)
    needle = client.enqueue(None, Thing(77))
    client.enqueue_many(None, [Thing(1)] * 1100)
    site = Site(client)
    page = site.page("/jobs?text=77")
    assert ids_on(page) == []
    assert "looked at 1,000" in text_of(page)
    match = re.search(r'href="([^"]*)">Go on looking', page)
    assert match is not None
    page = site.page(unescape(match[1]))
    assert ids_on(page) == [needle.id]
    assert "Go on looking" not in page


def test_a_count_is_exact_or_says_that_there_are_more(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgjobs.dashboard.pages.jobs.MOST_COUNTED", 60)
    client.enqueue_many(None, [Thing(n % 2) for n in range(120)])
    site = Site(client)
    assert "60+ jobs" in text_of(site.page("/jobs"))
    assert " 60 jobs" in text_of(site.page('/jobs?args={"n": 1}'))
    assert "120 jobs" not in text_of(site.page("/jobs"))


@pytest.mark.parametrize(
    "query",
    ["args={", "args=5", "metadata=[1]", "state=done", "id=x", "priority=99999999", "time=ever&after=1h", "after=soon",
     "cursor=x", "cursor=time.up.5.5", "text=%00", "error=%00", "args={\"a\": NaN}"],
)  # fmt: skip
def test_a_condition_that_cannot_be_is_answered_on_the_page_with_what_was_typed(client: Client, query: str) -> None:
    response = Site(client).get(f"/jobs?{query}&kind=kept")
    assert response.status_code == 400
    assert 'role="alert"' in response.text
    assert 'value="kept"' in response.text


# --- one job


def test_a_job_shows_its_attempts_and_hides_its_args_until_it_is_asked(client: Client) -> None:
    job = client.enqueue(None, Login("ada", "hunter2"), max_attempts=1)
    fail_all(client, {Login: login})
    site = Site(client, work_map={Login: login})
    page = site.page(f"/jobs/{job.id}")
    assert "no such user ada" in page
    assert "ValueError" in page
    assert client.id in page
    assert "tries" not in page
    page = unescape(site.page(f"/jobs/{job.id}?show=args"))
    assert '"tries": 3' in page
    assert '"password": "[secret]"' in page
    assert "hunter2" not in page + site.page("/jobs?show=args") + site.page("/failures")


def test_a_user_who_may_not_see_args_sees_none_anywhere(client: Client) -> None:
    job = client.enqueue(None, Thing(4711), metadata={"m": "4711"}, max_attempts=1)
    fail_all(client, {Thing: lambda tx, job: 1 / 0})
    site = Site(client, auth=lambda environ: User("eve", "operator", sees_args=False), show_args=True)
    for path in ("/jobs?show=args", f"/jobs/{job.id}?show=args", "/failures", f"/enqueue?like={job.id}&show=args"):
        page = site.page(path)
        assert "4711" not in page.replace(f"{job.id}", ""), path
        assert "division" not in page, path
    for query in ("text=4711", 'args={"n": 4711}', 'metadata={"m": "4711"}'):
        assert site.get(f"/jobs?{query}").status_code == 403
        assert site.post("/jobs/act", {"do": "delete", **dict([query.split("=")])}).status_code == 403


def test_a_viewer_cannot_find_out_secrets_by_a_search(client: Client) -> None:
    client.enqueue(None, Login("ada", "hunter2"))
    site = Site(client, work_map={Login: login}, auth=lambda environ: User("eve"))
    for query in ("text=hunter2", "text=nothing", 'args={"password": "hunter2"}'):
        for path in ("/jobs?", "/jobs/confirm?do=delete&"):
            response = site.get(path + query)
            assert response.status_code == 403
            assert ids_on(response.text) == []
    assert "Only operators may search for a text anywhere, or in args" in site.get("/jobs?text=x").text
    assert len(ids_on(site.page("/jobs?kind=login"))) == 1
    assert len(ids_on(Site(client).page("/jobs?text=hunter2"))) == 1
    read_only = Site(client, read_only=True)
    assert read_only.get("/jobs?text=hunter2").status_code == 403


def test_numbers_are_shown_as_they_are_stored(client: Client, sql: Rows) -> None:
    job = client.enqueue(None, {"n": HUGE, "x": 0.1}, kind="thing")
    sql('UPDATE pgjobs.job SET output = \'{"exact": 1.50000000000000000000000001, "big": 1e400}\'')
    page = site_text = unescape(Site(client, show_args=True).page(f"/jobs/{job.id}"))
    assert f'"n": {HUGE}' in page
    assert "1.50000000000000000000000001" in site_text
    assert "1" + "0" * 400 in page


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_text_on_every_page(client: Client, sql: Rows, text: str) -> None:
    client.enqueue(None, Thing(1))
    trace = f"Traceback (most recent call last):\n{text}"
    sql(
        """
        UPDATE pgjobs.job SET kind = evil, queue = left(evil, 64), tags = ARRAY[evil],
            args = jsonb_build_object(evil, evil), metadata = jsonb_build_object(evil, evil), output = to_jsonb(evil),
            state = 'discarded', attempt = 1, finalized_at = now(), attempted_at = now(), attempted_by = ARRAY[evil],
            errors = jsonb_build_array(jsonb_build_object('attempt', 1, 'at', now(), 'error', evil, 'trace', trace))
        FROM (VALUES (%s::text, %s::text)) AS given (evil, trace)
        """,
        text,
        trace,
    )
    site, where = Site(client, show_args=True), quote(text)
    (job,) = client.list_jobs().jobs
    for path in (
        "/jobs", f"/jobs/{job.id}", "/failures", f"/enqueue?kind={where}", f"/enqueue?like={job.id}",
        f"/jobs?kind={where}&text={where}&tag=x&error={where}", f"/jobs/confirm?do=cancel&kind={where}",
    ):  # fmt: skip
        page = site.page(path)
        for mark in ("<script>alert", "<img src", "<h1>hi", 'href="javascript', " 49 "):
            assert mark not in page, path
    assert ids_on(site.page(f"/jobs?kind={where}&queue={where}&text={where}")) == [job.id]


def test_a_running_job_shows_its_progress_and_the_age_of_its_transaction(client: Client) -> None:
    started, end = threading.Event(), threading.Event()

    def work(tx: Tx, job: Job[Thing]) -> None:
        job.set_progress(3, total=10, note="page 3")
        started.set()
        end.wait(30)

    job = client.enqueue(None, Thing())
    site = Site(client)
    with running(client, work):
        try:
            assert started.wait(10)
            page = text_of(str(wait_until(lambda: "page 3" in (page := site.page(f"/jobs/{job.id}")) and page)))
            assert "3 of 10" in page
            assert re.search(r"Transaction open for .* in backend \d+", page)
            assert "running" in text_of(site.act(f"/jobs/{job.id}/cancel"))
        finally:
            end.set()
        assert wait_until(lambda: client.get(job.id).state.final)  # type: ignore[union-attr]


@contextmanager
def running(client: Client, work: Any) -> Iterator[None]:
    pool = WorkerPool(client, {Thing: work})
    pool.start()
    try:
        yield
    finally:
        pool.stop()


def test_a_job_that_is_not_there_is_said_so(client: Client) -> None:
    site = Site(client)
    for path in ("/jobs/5", f"/jobs/{2**80}", "/jobs/-1"):
        assert site.get(path).status_code == 404
    assert site.get("/jobs/x").status_code == 404
    assert site.post("/jobs/5/retry").status_code == 404


# --- change one


def test_a_job_is_cancelled_retried_released_and_edited(client: Client) -> None:
    site = Site(client)
    job = client.enqueue(None, Thing(), pending=True)
    at = f"/jobs/{job.id}"
    assert "1 job released." in site.act(f"{at}/release")
    assert "1 job cancelled." in site.act(f"{at}/cancel")
    cancelled = client.get(job.id)
    assert cancelled is not None
    assert cancelled.state is JobState.CANCELLED
    assert cancelled.metadata["cancel_reason"] == "by local on the dashboard"
    assert "1 job made available again." in site.act(f"{at}/retry")
    edits = {"priority": "-3", "tags": "urgent", "tags_before": "", "scheduled_at": "+2h", "metadata": '{"note": 1}'}
    assert "1 job changed." in site.act(f"{at}/edit", edits)
    found = client.get(job.id)
    assert found is not None
    assert (found.priority, found.tags, found.state, found.metadata["note"]) == (-3, ("urgent",), "scheduled", 1)
    assert site.post(f"{at}/edit", {"priority": ""}).status_code == 400
    assert site.post(f"{at}/edit", {"priority": "x"}).status_code == 400
    assert site.post(f"{at}/edit", {"max_attempts": "0"}).status_code == 400
    assert [act for _, act, _, _ in audit(client)] == ["release-jobs", "cancel-jobs", "retry-jobs", "update-jobs"]


def test_what_cannot_be_done_is_said_and_leaves_no_trace_in_the_audit(client: Client) -> None:
    job = client.enqueue(None, Thing())
    response = Site(client).post(f"/jobs/{job.id}/retry", {"reset": "1"})
    assert response.status_code == 409
    assert "only a discarded one gets all its attempts again" in text_of(response.text)
    assert audit(client) == []


# --- change many


def hidden(page: str) -> dict[str, Any]:
    """The hidden fields of the form of a confirmation."""
    form = page[page.index('<form class="fields"') :]
    return {
        unescape(name): unescape(value)
        for name, value in re.findall(r'type="hidden" name="([^"]*)" value="([^"]*)"', form)
    }


def test_all_matching_jobs_are_changed_and_those_that_came_later_are_not(client: Client) -> None:
    client.enqueue_many(None, [NewJob(Thing(n), queue="a" if n < 70 else "b") for n in range(100)])
    site = Site(client)
    page = site.page("/jobs/confirm?do=cancel&queue=a")
    assert "70 jobs fit" in text_of(page)
    assert "Cancel 70 jobs" in text_of(page)
    late = client.enqueue(None, Thing(), queue="a")
    dry = site.post("/jobs/dry-run", hidden(page))
    assert "70 jobs would be changed, 0 left as they are" in text_of(dry.text)
    assert client.count(JobFilter(states=["cancelled"])).total == 0
    assert audit(client) == []
    assert "70 jobs cancelled." in site.act("/jobs/act", hidden(page))
    assert client.count(JobFilter(queues=["a"], states=["cancelled"])).total == 70
    assert late.id in {job.id for job in client.list_jobs(JobFilter(states=["available"])).jobs}
    assert client.count(JobFilter(states=["available"])).total == 31
    ((who, act, target, count),) = audit(client)
    assert (who, act, target["queue"], count, len(target["ids"])) == ("local", "cancel-jobs", "a", 70, 70)


def test_the_audit_quotes_no_args_until_it_is_asked(client: Client) -> None:
    client.enqueue(None, Thing(4711))
    site = Site(client)
    page = site.page('/jobs/confirm?do=cancel&args={"n": 4711}')
    assert "1 job cancelled." in site.act("/jobs/act", hidden(page))
    assert "4711" not in site.page("/audit")
    assert "4711" in site.page("/audit?show=args")


def test_many_jobs_are_changed_in_turns_each_of_which_asks_to_go_on(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgjobs.dashboard.pages.bulk._MOST", 40)
    monkeypatch.setattr("pgjobs.dashboard.pages.bulk._BATCH", 15)
    client.enqueue_many(None, [Thing(n) for n in range(100)])
    site = Site(client)
    page, turns = site.page("/jobs/confirm?do=delete&kind=thing"), 0
    while "delete 40" in text_of(page).lower() or "delete 20" in text_of(page).lower():
        page, turns = site.act("/jobs/act", hidden(page)), turns + 1
    assert turns == 3
    assert client.count().total == 0


def test_ticked_jobs_are_changed_and_no_others(client: Client) -> None:
    jobs = client.enqueue_many(None, [Thing(n) for n in range(5)])
    site, chosen = Site(client), [jobs[1].id, jobs[3].id]
    page = site.page(f"/jobs/confirm?ticked=1&do=delete&id={chosen[0]}&id={chosen[1]}")
    assert "Delete 2 jobs" in text_of(page)
    site.act("/jobs/act", {"do": "delete", "id": [str(id) for id in chosen], "newest": str(jobs[-1].id)})
    assert {job.id for job in client.list_jobs().jobs} == {job.id for job in jobs} - set(chosen)
    assert site.get("/jobs/confirm?ticked=1&do=delete").status_code == 400


@pytest.mark.parametrize("ended", ["completed", "available"])
@pytest.mark.parametrize("query", ["kind=thing", "kind=thing&state=available&state=running", ""])
def test_jobs_that_were_to_be_left_as_they_are_stay_when_their_state_changes(
    client: Client, sql: Rows, query: str, ended: str
) -> None:
    jobs = client.enqueue_many(None, [Thing(n) for n in range(10)])
    sql("UPDATE pgjobs.job SET state = 'running', attempt = 1, attempted_at = now() WHERE id > %s", jobs[2].id)
    site = Site(client)
    page = site.page(f"/jobs/confirm?do=delete&{query}")
    assert "7 running: left as they are" in text_of(page)
    assert "Delete 3 jobs" in text_of(page)
    times = "finalized_at = now()" if ended == "completed" else "attempt = 0"
    sql(f"UPDATE pgjobs.job SET state = '{ended}', {times} WHERE state = 'running'")
    states = {"state": ["available", "running"]} if "state" in query else {}
    site.post("/jobs/act", {**hidden(page), **states, "all": "1"})
    assert client.count().total == 7


def test_a_confirmation_for_no_job_has_no_button(client: Client, sql: Rows) -> None:
    client.enqueue(None, Thing())
    sql("UPDATE pgjobs.job SET state = 'running', attempt = 1, attempted_at = now()")
    page = text_of(Site(client).page("/jobs/confirm?do=delete&kind=thing"))
    assert "1 running: left as they are" in page
    assert "Delete 0 jobs" not in page


def test_the_audit_of_very_many_ids_is_short(client: Client) -> None:
    job = client.enqueue(None, Thing())
    ids = [str(job.id + n) for n in range(50_000)]
    assert "1 job deleted." in Site(client).act(
        "/jobs/act", {"do": "delete", "id": ids, "state": ["available"] * 50_000, "error": ""}
    )
    assert audit(client) == [("local", "delete-jobs", {"state": ["available"], "ids": [job.id]}, 1)]


def test_a_long_condition_is_cut_in_the_audit(client: Client) -> None:
    assert "0 jobs deleted." in Site(client).act("/jobs/act", {"do": "delete", "kind": "thing", "error": "x" * 5_000})
    ((_, _, target, _),) = audit(client)
    assert target["error"] == "x" * 1_000


def test_really_all_jobs_need_a_second_word(client: Client) -> None:
    client.enqueue_many(None, [Thing(n) for n in range(3)])
    site = Site(client)
    page = site.page("/jobs/confirm?do=delete")
    assert "I mean all jobs" in page
    assert site.post("/jobs/act", hidden(page)).status_code == 400
    assert client.count().total == 3
    assert "3 jobs deleted." in site.act("/jobs/act", {**hidden(page), "all": "1"})
    assert client.count().total == 0


def test_a_viewer_gets_no_form_that_changes_something(client: Client) -> None:
    job = client.enqueue(None, Thing())
    site = Site(client, auth=lambda environ: User("eve"))
    for path in ("/jobs", f"/jobs/{job.id}", "/failures"):
        assert 'method="post"' not in site.page(path)
    for path in ("/jobs/confirm?do=delete", "/enqueue?kind=thing"):
        assert site.get(path).status_code == 403
    for path in ("/jobs/act", "/jobs/dry-run", f"/jobs/{job.id}/cancel", f"/jobs/{job.id}/edit", "/enqueue"):
        assert site.post(path, {"do": "delete", "all": "1", "kind": "thing", "args": "{}"}).status_code == 403
    assert client.count(JobFilter(states=["available"])).total == 1


# --- failures


def test_failures_are_grouped_by_kind_and_error_and_retried_as_a_group(client: Client) -> None:
    def work(tx: Tx, job: Job[Thing]) -> None:
        if job.args.n == 0:
            raise Discard("not wanted")
        if job.args.n == 1:
            raise Cancel("no")
        try:
            raise KeyError("the cause: Traceback")
        except KeyError as error:
            raise ValueError(f"number {job.args.n}\nsecond line") from error

    client.enqueue_many(None, [NewJob(Thing(n), max_attempts=1 if n < 6 else 5) for n in range(8)])
    client.enqueue(None, {"a": 1}, kind="other", max_attempts=1)
    fail_all(client, {Thing: work, "other": lambda tx, job: dict[str, int]()["x"]})
    site = Site(client)
    page = text_of(site.page("/failures"))
    assert re.search(r"thing ValueError 4 2 ", page)
    assert re.search(r"other KeyError 1 0 ", page)
    assert re.search(r"thing pgjobs.errors.Discard 1 0 ", page)
    confirm = site.page("/jobs/confirm?do=retry&kind=thing&error=ValueError&state=discarded")
    assert "4 jobs fit" in text_of(confirm)
    assert "4 jobs made available again." in site.act("/jobs/act", hidden(confirm))
    assert client.count(JobFilter(states=["available"], kinds=["thing"])).total == 4
    assert len(ids_on(site.page("/jobs?kind=thing&error=ValueError&state=retryable"))) == 2


# --- enqueue


def test_a_job_is_enqueued_by_hand_with_the_fields_of_its_class(client: Client) -> None:
    site = Site(client, work_map={Login: login})
    assert "/enqueue?kind=login" in site.page("/enqueue")
    page = site.page("/enqueue?kind=login")
    assert '"tries": 3' in unescape(page)
    assert "password secret str required" in text_of(page)
    given = {"kind": "login", "args": json.dumps({"user": "ada", "password": "x", "tries": HUGE}), "queue": "mail",
             "when": "+1h", "tags": "abc def", "priority": "2"}  # fmt: skip
    assert "1 job enqueued." in site.act("/enqueue", given)
    (job,) = client.list_jobs().jobs
    assert (job.kind, job.queue, job.state, job.tags, job.priority) == ("login", "mail", "scheduled", ("abc", "def"), 2)
    assert json.loads(job.raw_args) == {"user": "ada", "password": "x", "tries": HUGE}
    for wrong in ('{"user": 5, "password": "hunter2"}', '{"user": "a", "password": "hunter2", "tires": 1}', "{", "[]"):
        response = site.post("/enqueue", {**given, "args": wrong})
        assert response.status_code == 400
        assert 'role="alert"' in response.text
        assert f">\n{wrong}</textarea>" in unescape(response.text)  # what was typed is still there
    assert site.post("/enqueue", {**given, "kind": "logim"}).status_code == 400
    assert client.count().total == 1
    assert audit(client) == [("local", "enqueue-jobs", {"kind": "login", "job": job.id}, 1)]


def test_a_job_like_another_keeps_its_secrets_unseen(client: Client) -> None:
    job = client.enqueue(None, Login("ada", "hunter2"), queue="mail")
    site = Site(client, work_map={Login: login})
    page = unescape(site.page(f"/enqueue?like={job.id}"))
    assert '"password": "[secret]"' in page
    assert "hunter2" not in page
    args = {"user": "eve", "password": "[secret]", "tries": 1}
    site.act("/enqueue", {"like": str(job.id), "kind": "login", "args": json.dumps(args)})
    site.act("/enqueue", {"like": str(job.id), "kind": "login", "args": ""})
    first, second = (json.loads(each.raw_args) for each in client.list_jobs().jobs[1:])
    assert first == {"user": "eve", "password": "hunter2", "tries": 1}
    assert second == json.loads(job.raw_args)


def test_a_job_of_another_kind_does_not_get_the_args_of_the_one_it_is_like(client: Client) -> None:
    job = client.enqueue(None, Login("ada", "hunter2"))
    site = Site(client, work_map={Login: login, "open": nothing})
    response = site.post("/enqueue", {"like": str(job.id), "kind": "open", "args": ""})
    assert response.status_code == 400
    assert "write the args: the kind differs" in text_of(response.text)
    assert "hunter2" not in response.text
    assert client.count().total == 1
    site.act("/enqueue", {"like": str(job.id), "kind": "open", "args": '{"password": "[secret]"}'})
    assert json.loads(client.list_jobs().jobs[-1].raw_args) == {"password": "[secret]"}


def test_args_are_rendered_by_the_application_whatever_that_does(client: Client) -> None:
    client.enqueue(None, Thing(5))

    def render(job: Job[Any]) -> str:
        return f"<b>thing</b> no. {json.loads(job.raw_args)['n']}"

    page = Site(client, show_args=True, render_args=render).page("/jobs")
    assert "&lt;b&gt;thing&lt;/b&gt; no. 5" in page
    assert '"n": 5' in unescape(Site(client, show_args=True, render_args=lambda job: 1 / 0).page("/jobs"))


def test_a_dashboard_of_a_worker_that_does_nothing_needs_no_worker(client: Client) -> None:
    client.enqueue(None, Thing())
    WorkerPool(client, {Thing: nothing}).work_one()
    assert "completed" in text_of(Site(client).page("/jobs?state=completed"))
