"""Actions of the dashboard for jobs that move, that share an id, or that a user may not see whole."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from psycopg import sql as composing

from pgjobs import Client, Job, JobFilter, NewJob, Unique
from pgjobs.dashboard import User, batches, scan
from pgjobs.dashboard.pages import bulk
from pgjobs.dashboard.queries import DashboardQueries
from pgjobs.dashboard.request import Request
from tests.acceptance.dashboard_site import Site
from tests.acceptance.test_dashboard import audit
from tests.acceptance.test_dashboard_jobs import hidden, ids_on, text_of
from tests.conformance.conftest import Rows
from tests.conformance.conftest import sql as sql_fixture
from tests.conftest import Connect
from tests.samples import Thing

sql = sql_fixture


def blind(client: Client) -> Site:
    return Site(client, auth=lambda environ: User("eve", "operator", sees_args=False))


# --- jobs that move between the count and the change


def test_what_was_counted_and_not_changed_is_said(client: Client, sql: Rows) -> None:
    jobs = client.enqueue_many(None, [Thing(n) for n in range(10)])
    site = Site(client)
    page = site.page("/jobs/confirm?do=delete&kind=thing")
    assert "Delete 10 jobs" in text_of(page)
    sql("UPDATE pgjobs.job SET state = 'running', attempt = 1, attempted_at = now() WHERE id < %s", jobs[3].id)
    sql("DELETE FROM pgjobs.job WHERE id = %s", jobs[9].id)
    dry = text_of(site.post("/jobs/dry-run", hidden(page)).text)
    assert "6 jobs would be changed, 4 left as they are" in dry
    assert "4 deleted or in another state since they were counted" in dry
    done = text_of(site.act("/jobs/act", hidden(page)))
    assert "6 jobs deleted; left as they were: 4 deleted or in another state since they were counted." in done
    ((_, _, target, count),) = audit(client)
    assert (count, target["left"]) == (6, {"moved": 4})
    assert client.count().total == 3


def test_a_job_that_moves_while_the_action_runs_is_told_from_those_that_were_changed(
    client: Client, sql: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = client.enqueue_many(None, [Thing(n) for n in range(5)])
    find = scan.find

    def then_claimed(*given: Any, **more: Any) -> Any:
        found = find(*given, **more)
        sql("UPDATE pgjobs.job SET state = 'running', attempt = 1, attempted_at = now() WHERE id = %s", jobs[0].id)
        return found

    site = Site(client)
    page = site.page("/jobs/confirm?do=delete&kind=thing")
    monkeypatch.setattr(bulk, "find", then_claimed)
    done = text_of(site.act("/jobs/act", hidden(page)))
    assert "4 jobs deleted; left as they were: 1 deleted or in another state since they were counted." in done
    assert [job.id for job in client.list_jobs().jobs] == [jobs[0].id]


def test_the_reasons_for_what_was_skipped_are_said(client: Client, sql: Rows) -> None:
    first = client.enqueue(None, Thing(1), unique=Unique())
    client.cancel(first.id)
    second = client.enqueue(None, Thing(1), unique=Unique())
    assert not second.duplicate
    done = text_of(Site(client).act("/jobs/act", {"do": "retry", "id": str(first.id)}))
    assert "0 jobs made available again; left as they were: 1 with a unique key that another job has now." in done


def test_a_length_of_time_is_that_of_the_count(client: Client, sql: Rows) -> None:
    """The hour goes on between the page and the button."""
    client.enqueue(None, Thing(1))
    sql("UPDATE pgjobs.job SET created_at = now() - interval '30 min'")
    page = Site(client).page("/jobs/confirm?do=cancel&time=created&after=1h&before=1min")
    form = hidden(page)
    for side, length in {"after": timedelta(hours=1), "before": timedelta(minutes=1)}.items():
        passed = datetime.now(UTC) - datetime.fromisoformat(form[side])
        assert abs(passed - length) < timedelta(minutes=1)
    assert "1 job cancelled." in text_of(Site(client).act("/jobs/act", form))


@pytest.mark.parametrize(
    ("path", "form"),
    [("/maintenance/prune", {"state": "completed", "days": "30"}), ("/queues/empty", {"name": "default"})],
    ids=["prune", "empty"],
)
def test_a_job_that_is_locked_keeps_none_of_the_others(
    *, client: Client, sql: Rows, connect: Connect, monkeypatch: pytest.MonkeyPatch, path: str, form: dict[str, str]
) -> None:
    monkeypatch.setattr(batches, "BATCH", 5)
    monkeypatch.setattr(batches, "_SECONDS", 60.0)
    monkeypatch.setattr("pgjobs.control.jobs.PATIENCE", 0.1)
    jobs = client.enqueue_many(None, [Thing(n) for n in range(12)])
    if "state" in form:
        sql("UPDATE pgjobs.job SET state = 'completed', finalized_at = now() - interval '40 days'")
    query = composing.SQL("SELECT FROM {}.job WHERE id = %s FOR KEY SHARE").format(composing.Identifier(client.schema))
    connect().execute(query, [jobs[0].id])
    page = text_of(Site(client).act(path, form))
    assert re.search(r"11 (finished )?jobs deleted; left as they were: 1 held by another transaction\.", page)
    assert [job.id for job in client.list_jobs().jobs] == [jobs[0].id]
    first, *_, last = audit(client)
    assert (first[3], last[3]) == (4, 3)
    assert last[2]["left"] == {"locked": 1}


def test_jobs_that_a_worker_takes_while_their_queue_is_emptied_keep_none_of_the_others(
    client: Client, sql: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "BATCH", 5)
    jobs = client.enqueue_many(None, [Thing(n) for n in range(12)])
    waiting_of_queue = DashboardQueries.waiting_of_queue

    def then_claimed(*given: Any) -> list[int]:
        ids = waiting_of_queue(*given)
        sql("UPDATE pgjobs.job SET state = 'running', attempt = 1, attempted_at = now() WHERE id = %s", jobs[0].id)
        return ids

    monkeypatch.setattr(DashboardQueries, "waiting_of_queue", then_claimed)
    assert "11 jobs deleted." in text_of(Site(client).act("/queues/empty", {"name": "default"}))
    assert [job.id for job in client.list_jobs().jobs] == [jobs[0].id]


def refer(sql: Rows, job: Job[Any]) -> None:
    """A row of the application that refers to the job."""
    sql("CREATE TABLE pgjobs.bill (id bigint, queue text, FOREIGN KEY (id, queue) REFERENCES pgjobs.job (id, queue))")
    sql("INSERT INTO pgjobs.bill VALUES (%s, %s)", job.id, job.queue)


def test_a_failure_in_the_middle_says_what_was_done_before(
    client: Client, sql: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "BATCH", 5)
    jobs = client.enqueue_many(None, [Thing(n) for n in range(12)])
    sql("UPDATE pgjobs.job SET state = 'completed', finalized_at = now() - interval '40 days'")
    refer(sql, jobs[7])
    answer = Site(client).post("/maintenance/prune", {"state": "completed", "days": "30"})
    assert answer.status_code == 409
    said = text_of(answer.text)
    assert 'on table "bill". Before that: 5 finished jobs deleted. The others are left as they are.' in said
    assert "Nothing was changed" not in said
    assert client.count().total == 7
    assert [count for *_, count in audit(client)] == [5]


def test_a_job_to_which_a_row_of_the_application_refers_is_a_conflict(client: Client, sql: Rows) -> None:
    refer(sql, client.enqueue_many(None, [Thing(n) for n in range(3)])[0])
    site = Site(client)
    answer = site.post("/jobs/act", hidden(site.page("/jobs/confirm?do=delete&kind=thing")))
    assert answer.status_code == 409
    assert "A foreign key of the application forbids this: " in text_of(answer.text)
    assert 'on table "bill". Nothing was changed.' in text_of(answer.text)
    assert client.count().total == 3
    assert audit(client) == []


# --- the same id in two queues


@pytest.fixture
def twins(client: Client, sql: Rows) -> list[Job[Any]]:
    """Two jobs with one id, as of distributed tables, and a third job."""
    job = client.enqueue(None, {"note": "find me"}, kind="aa", queue="one")
    sql(
        "INSERT INTO pgjobs.job (id, queue, kind, args) OVERRIDING SYSTEM VALUE VALUES (%s, 'two', 'aa', '{\"x\": 1}')",
        job.id,
    )
    client.enqueue(None, {"note": "find me"}, kind="aa", queue="two")
    return list(client.list_jobs().jobs)


def test_an_action_by_text_changes_the_job_that_was_found_and_not_its_twin(
    client: Client, twins: list[Job[Any]]
) -> None:
    site = Site(client)
    assert len(ids_on(site.page("/jobs?text=find+me"))) == 2
    page = site.page("/jobs/confirm?do=delete&text=find+me")
    assert "Delete 2 jobs" in text_of(page)
    assert "2 jobs deleted." in text_of(site.act("/jobs/act", hidden(page)))
    (left,) = client.list_jobs().jobs
    assert (left.queue, left.args) == ("two", {"x": 1})


# --- names that stand for more


def test_a_queue_whose_name_stands_for_all_pauses_no_other(client: Client, sql: Rows) -> None:
    client.enqueue(None, Thing(1))
    sql("INSERT INTO pgjobs.queue (name) VALUES ('*')")
    site = Site(client)
    for act in ("pause", "resume"):
        for back in ("", "queue"):
            answer = site.post(f"/queues/{act}", {"name": "*", "back": back})
            assert answer.status_code == 400
            assert "* stands for all queues" in answer.text
    assert not any(queue.paused_at for queue in client.queues.list())
    assert audit(client) == []
    assert "2 queues paused." in site.act("/queues/pause", {"all": "1"})


# --- users who may not see args


def failed(client: Client, sql: Rows, error: str, trace: str | None = None) -> None:
    job = client.enqueue(None, Thing(1))
    sql(
        "UPDATE pgjobs.job SET state = 'discarded', attempt = 1, finalized_at = now(), errors = jsonb_build_array("
        "jsonb_build_object('attempt', 1, 'at', now(), 'error', %s::text, 'trace', %s::text)) WHERE id = %s",
        error, trace, job.id,
    )  # fmt: skip


def test_the_words_of_an_error_are_neither_shown_nor_found(client: Client, sql: Rows) -> None:
    failed(client, sql, "hunter2 is not the password")
    failed(client, sql, "ValueError: hunter2", "Traceback (most recent call last):\n  File x\nValueError: hunter2")
    assert "hunter2 is not" in Site(client).page("/failures")
    site = blind(client)
    page = site.page("/failures")
    assert "hunter" not in page
    assert "without a traceback" in page
    assert ">ValueError<" in page
    assert len(ids_on(site.page("/jobs?error=ValueError"))) == 1
    for error in ("hunter", "hunter2 is not the password"):
        assert ids_on(site.page(f"/jobs?error={error}")) == [], "finding it would tell what it says"
        assert "No job fits" in site.page(f"/jobs/confirm?do=retry&error={error}")
    assert len(ids_on(Site(client).page("/jobs?error=hunter"))) == 1


def test_a_group_without_a_class_is_not_taken_for_all(client: Client, sql: Rows) -> None:
    failed(client, sql, "5 is odd")
    failed(client, sql, "ValueError: x", "Traceback (most recent call last):\n  File x\nValueError: x")
    page = Site(client).page("/failures")
    assert page.count("Retry these") == 1
    assert "not known" in page


def test_the_error_of_a_schedule_is_not_shown(client: Client, sql: Rows) -> None:
    from pgjobs import Schedule

    client.schedules.add(Schedule("nightly", "@daily", Thing(1)))
    sql("UPDATE pgjobs.schedule SET error = 'ValueError: hunter2'")
    for path in ("/", "/schedules", "/schedule?name=nightly"):
        assert "hunter2" in Site(client).page(path)
        page = blind(client).page(path)
        assert "hunter2" not in page
        assert "cannot tick" in page
    for site in (Site(client), blind(client)):
        health = site.page("/health")
        assert "Schedule 'nightly' cannot tick." in text_of(health)
        assert "hunter2" not in health


# --- the clock


def test_a_length_of_time_is_counted_from_the_clock_of_the_database(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = Request.__init__

    def years_behind(self: Request, *given: Any) -> None:
        begin(self, *given)
        self.now = datetime(2001, 1, 1, tzinfo=UTC)

    monkeypatch.setattr(Request, "__init__", years_behind)
    site = Site(client)
    site.act("/enqueue", {"kind": "thing", "args": "{}", "when": "+2h"})
    (job,) = client.list_jobs().jobs
    assert abs(job.scheduled_at - job.created_at - timedelta(hours=2)) < timedelta(minutes=1)
    site.act(f"/jobs/{job.id}/edit", {"scheduled_at": "+4h"})
    (job,) = client.list_jobs().jobs
    assert abs(job.scheduled_at - job.created_at - timedelta(hours=4)) < timedelta(minutes=1)
    assert "1 job cancelled." in text_of(site.act("/jobs/act", {"do": "cancel", "after": "1h"}))


# --- enqueue again


def form(page: str) -> dict[str, str]:
    """The values of the form for enqueuing."""
    from html import unescape

    part = page[page.index('<form class="fields"') : page.index("</form>")]
    found = dict(re.findall(r'<input[^>]* name="([^"]*)" value="([^"]*)"', part))
    found |= {name: text.removeprefix("\n") for name, text in re.findall(r'name="(\w+)"[^>]*>([^<]*)</textarea>', part)}
    return {name: unescape(value) for name, value in found.items()}


def test_a_job_like_another_has_its_tags_priority_context_and_metadata(client: Client) -> None:
    given: dict[str, Any] = {
        "queue": "mail", "priority": 7, "max_attempts": 3, "tags": ["big-order", "red"],
        "metadata": {"order": 2**70, "note": "ü"}, "context": {"tenant": 5},
    }  # fmt: skip
    job = client.enqueue(None, {"n": 1}, kind="aa", **given)
    client.cancel(job.id, reason="no")
    site = Site(client)
    site.act("/enqueue", form(site.page(f"/enqueue?like={job.id}")))
    like = client.list_jobs().jobs[-1]
    assert (like.queue, like.priority, like.max_attempts, like.tags) == ("mail", 7, 3, ("big-order", "red"))
    assert dict(like.metadata) == {"order": 2**70, "note": "ü", "context": {"tenant": 5}}, (
        "and not why it was cancelled"
    )
    assert like.context == {"tenant": 5}


def test_the_context_of_the_job_wins_over_that_of_the_operator(client: Client) -> None:
    with Client(client.pool, schema=client.schema, context=lambda: {"tenant": "of the operator"}) as own:
        job = own.enqueue(None, {"n": 1}, kind="aa", context={"tenant": 5})
        site = Site(own)
        site.act("/enqueue", form(site.page(f"/enqueue?like={job.id}")))
        assert own.list_jobs().jobs[-1].context == {"tenant": 5}


def test_a_user_without_args_takes_the_metadata_over_unseen(client: Client) -> None:
    job = client.enqueue(None, {"n": 1}, kind="aa", metadata={"token": "hunter2"}, tags=["red"])
    site = blind(client)
    page = site.page(f"/enqueue?like={job.id}")
    assert "hunter2" not in page
    site.act("/enqueue", form(page))
    assert [(each.metadata, each.tags) for each in client.list_jobs().jobs] == [({"token": "hunter2"}, ("red",))] * 2
    site.act("/enqueue", {**form(page), "kind": "bb", "args": "{}"})
    assert client.list_jobs().jobs[-1].metadata == {}, "another kind may show what this one hides"


def test_what_is_changed_in_the_form_is_changed(client: Client) -> None:
    job = client.enqueue(None, {"n": 1}, kind="aa", metadata={"x": 1}, tags=["big-order"])
    site = Site(client)
    values = form(site.page(f"/enqueue?like={job.id}"))
    site.act("/enqueue", {**values, "metadata": "", "tags": "blue"})
    like = client.list_jobs().jobs[-1]
    assert (like.metadata, like.tags) == ({}, ("blue",))


# --- the audit


def test_each_row_of_the_audit_has_the_ids(client: Client, sql: Rows) -> None:
    jobs = client.enqueue_many(None, [NewJob(Thing(n), queue="q") for n in range(3)])
    site = Site(client)
    site.act("/queues/empty", {"name": "q"})
    sql("INSERT INTO pgjobs.job (kind, state, finalized_at) VALUES ('aa', 'completed', now() - interval '9 days')")
    (old,) = client.list_jobs(JobFilter(kinds=["aa"])).jobs
    site.act("/maintenance/prune", {"state": "completed", "days": "1"})
    assert [target["ids"] for _, _, target, _ in audit(client)] == [[job.id for job in jobs], [old.id]]
    assert json.dumps(audit(client)[0][2]["states"])
