"""What the pages of the dashboard show and do: overview, queues, schedules, workers, maintenance, audit and help."""

from __future__ import annotations

import html
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from pgjobs import Client, Job, JobFilter, Schedule, WorkerPool, backoff, guide
from pgjobs.dashboard import User, batches, checkup
from pgjobs.execution.attempt import GracePeriods
from tests.acceptance.dashboard_site import Site
from tests.acceptance.test_dashboard import audit
from tests.conformance.conftest import Rows
from tests.conftest import Connect
from tests.samples import HOUR, SECOND, Thing, nothing
from tests.waiting import wait_until

NAME = "night<b>/ly"
GRACE = GracePeriods(interrupted=0.2, severed=0.4, stuck=0.6)  # the same steps as by default, sooner


@pytest.fixture
def sql(client: Client, connect: Connect) -> Rows:
    """Runs SQL on the tables of the client, which it calls pgjobs; returns the rows."""
    conn = connect(autocommit=True)

    def run(query: str) -> list[tuple[Any, ...]]:
        cur = conn.execute(query.replace("pgjobs.", f'"{client.schema}".').encode())
        return cur.fetchall() if cur.description else []

    return run


@pytest.fixture
def site(client: Client) -> Site:
    return Site(client)


def row(page: str, id: str) -> str:
    """The text of the table row, list item or card with this id, without tags."""
    match = re.search(rf'<(tr|li|section|a|dd)[^>]* id="{re.escape(id)}"[^>]*>(.*?)</\1>', page, re.S)
    assert match is not None, f"no {id} in {page}"
    return " ".join(re.sub(r"<[^>]*>", " ", match[2]).split())


def worked(client: Client, handler: Any, *jobs: Any, **settings: Any) -> None:
    """Let a worker pool work until nothing waits."""
    for job in jobs:
        client.enqueue(None, job)
    with WorkerPool(client, {Thing: handler}, **settings):
        wait_until(lambda: client.count(JobFilter(states=["available", "running"])).total == 0)


# --- overview


def test_an_empty_system_needs_no_attention(site: Site) -> None:
    page = site.page("/")
    assert row(page, "note-fine") == "Nothing needs attention."
    assert row(page, "state-available") == "0 available"
    assert row(page, "at-none") == "No attempt ended in this time."


def test_the_overview_counts_the_states(client: Client, site: Site, sql: Rows) -> None:
    client.enqueue(None, Thing(1))
    client.enqueue(None, Thing(2), delay=HOUR)
    client.enqueue(None, Thing(3), pending=True)
    sql("INSERT INTO pgjobs.job (kind, state, finalized_at) SELECT 'thing', 'completed', now() "
        "FROM generate_series(1, 10001)")  # fmt: skip
    page = site.page("/")
    assert row(page, "state-available") == "1 available"
    assert row(page, "state-scheduled") == "1 scheduled"
    assert row(page, "state-pending") == "1 pending"
    assert row(page, "state-completed") == "10,000+ completed"
    assert row(page, "state-retryable") == "0 retryable"


def test_pending_jobs_of_a_large_table_are_estimated(
    client: Client, site: Site, sql: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgjobs.dashboard.queries._SMALL_TABLE", 0)
    sql("INSERT INTO pgjobs.job (kind, state) SELECT 'thing', CASE WHEN n % 4 = 0 THEN 'pending' ELSE 'available' END "
        "FROM generate_series(1, 400) AS n")  # fmt: skip
    assert row(site.page("/"), "state-pending") == "about 0 pending", "there are no statistics yet"
    sql("ANALYZE pgjobs.job")
    assert row(site.page("/"), "state-pending") == "about 100 pending"


def test_what_was_done_is_shown_by_minute_as_charts_and_numbers(client: Client, site: Site) -> None:
    def handler(tx: Any, job: Job[Thing]) -> None:
        if job.args.n == 0:
            raise ValueError("no")

    worked(client, handler, *[Thing(n) for n in range(3)], backoff=backoff.constant(HOUR))
    page = site.page("/")
    assert re.search(r"<title>[^<]*: 2 completed, 1 failed</title>", page)
    assert page.count('<rect class="done"') >= 1
    figures = re.search(r"<td>[0-9: -]+</td><td class=\"n\">2</td>\s*<td class=\"n\">1</td>", page)
    assert figures is not None
    assert "style=" not in page
    assert site.page("/?period=week") != page
    assert site.page("/?period=nonsense")


def test_what_needs_attention_is_said_in_words(client: Client, site: Site, sql: Rows) -> None:
    client.enqueue(None, Thing(1))
    client.enqueue(None, Thing(1), queue="held")
    client.queues.pause("held")
    client.schedules.add(Schedule(NAME, "@daily", Thing(1)))
    sql("UPDATE pgjobs.schedule SET error = 'its spec is nonsense'")
    sql("INSERT INTO pgjobs.figure (minute, queue, kind, completed, failed, discarded) "
        "VALUES (now(), 'default', 'thing', 20, 5, 2)")  # fmt: skip
    texts = "\n".join(row(site.page("/"), f"note-{nth}") for nth in range(1, 6))
    assert "No worker works queue default, which has 1 job waiting." in texts
    assert "Queue held has been paused for" in texts
    assert "waiting in it: 1 job." in texts
    assert "Schedule night&lt;b&gt;/ly cannot tick: its spec is nonsense" in texts
    assert "2 jobs were discarded in the last hour" in texts
    assert "20% of the attempts in queue default failed" in texts


def test_a_job_that_has_waited_for_long_and_a_late_schedule_need_attention(
    client: Client, site: Site, sql: Rows
) -> None:
    client.schedules.add(Schedule(NAME, "@daily", Thing(1)))
    with WorkerPool(client, {"other": nothing}, unknown_kinds="leave"):
        client.enqueue(None, Thing(1))
        sql("UPDATE pgjobs.job SET scheduled_at = now() - interval '20 minutes'")
        page = site.page("/")
    assert "The oldest job in queue default has waited for 20 min" in page
    sql("UPDATE pgjobs.schedule SET next_tick_at = now() - interval '1 hour'")
    assert "is late by 1 h: no worker ticks it" in site.page("/")


# --- queues


def test_the_queues_with_their_numbers(client: Client, site: Site) -> None:
    worked(client, nothing, *[Thing(n) for n in range(20)])
    for _ in range(3):
        client.enqueue(None, Thing(1))
    line = row(site.page("/queues"), "queue-default")
    assert line.startswith("default active 3 ")
    assert " 2 0 attempts that ended, by minute" in line, "20 jobs in 10 minutes"
    assert "1 min 30 s" in line, "until 3 jobs are done, at 2 a minute"
    page = site.page("/queue?name=default")
    assert row(page, "kind-thing").startswith("thing 20 0 0")
    assert "No worker works this queue." in page


def test_a_queue_is_paused_and_resumed_and_all_are(client: Client, site: Site) -> None:
    client.enqueue(None, Thing(1), queue="a/b")
    client.enqueue(None, Thing(1), queue="other")
    assert "Resume</button>" in site.act("/queues/pause", {"name": "a/b", "back": "queue"})
    assert [queue.paused_at is not None for queue in client.queues.list()] == [True, False]
    assert "2 queues paused." in site.act("/queues/pause", {"all": "1"})
    assert "2 queues resumed." in site.act("/queues/resume", {"all": "1"})
    assert [queue.paused_at for queue in client.queues.list()] == [None, None]
    assert [(act, count) for _, act, _, count in audit(client)] == [
        ("pause-queues", 1),
        ("pause-queues", 2),
        ("resume-queues", 2),
    ]


def test_a_queue_that_does_not_exist_is_an_error_page(site: Site) -> None:
    assert site.get("/queue?name=nowhere").status_code == 404


def test_emptying_a_queue_says_how_many_jobs_before_it_deletes_them(
    client: Client, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.enqueue_many(None, [Thing(n) for n in range(25)])
    client.enqueue(None, Thing(1), delay=HOUR)
    kept = [client.enqueue(None, Thing(1), queue="other"), client.enqueue(None, Thing(1), pending=True)]
    page = site.page("/queues/empty?name=default")
    assert "<strong>26</strong>" in page
    assert "Delete 26 jobs" in page
    (newest,) = re.findall(r'name="newest" value="(\d+)"', page)
    kept.extend(client.enqueue_many(None, [Thing(n) for n in range(5)]))
    monkeypatch.setattr(batches, "BATCH", 10)
    assert "26 jobs deleted." in site.act("/queues/empty", {"name": "default", "newest": newest})
    assert [job.id for job in client.list_jobs().jobs] == sorted(job.id for job in kept)
    assert [count for *_, count in audit(client)] == [10, 10, 6]
    assert "Delete 5 jobs" in site.page("/queues/empty?name=default")
    site.act("/queues/empty", {"name": "default"})
    assert "No job waits" in site.page("/queues/empty?name=default")


def test_very_many_jobs_take_more_than_one_click(client: Client, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    client.enqueue_many(None, [Thing(n) for n in range(25)])
    monkeypatch.setattr(batches, "BATCH", 10)
    monkeypatch.setattr(batches, "_SECONDS", -1.0)
    page = site.act("/queues/empty", {"name": "default"})
    assert "10 jobs deleted." in page
    assert "Delete 15 jobs" in page


# --- schedules


def test_the_schedules_and_what_can_be_done_with_them(client: Client, site: Site, sql: Rows) -> None:
    client.schedules.add(Schedule(NAME, "30 2 * * *", Thing(1), zone="Europe/Berlin"))
    client.schedules.add(Schedule("other", "@every 1h", Thing(1)))
    page = site.page("/schedules")
    assert "night&lt;b&gt;/ly active 30 2 * * * Europe/Berlin thing in " in row(page, "schedule-night%3Cb%3E/ly")
    both = {"name": [NAME, "other"]}
    assert "2 schedules paused." in site.act("/schedules/pause", both)
    assert all(each.paused_at for each in client.schedules.list())
    assert "2 schedules resumed." in site.act("/schedules/resume", both)
    assert not any(each.paused_at for each in client.schedules.list())
    assert "1 schedule told to run now." in site.act("/schedules/run", {"name": NAME, "back": "schedule"})
    assert client.schedules.list()[0].run_now_at is not None
    assert site.post("/schedules/pause", {"name": ["other", "nobody"]}).status_code == 404
    assert client.schedules.get("other").paused_at is None, "both or none"  # type: ignore[union-attr]
    assert "1 schedule removed." in site.act("/schedules/remove", {"name": NAME})
    assert [each.name for each in client.schedules.list()] == ["other"]
    assert site.post("/schedules/pause").status_code == 400


def test_a_schedule_with_its_ticks_and_its_jobs(client: Client, site: Site) -> None:
    client.schedules.add(Schedule(NAME, "30 2 * * *", Thing(1), zone="Europe/Berlin", run_on_start=True))
    with WorkerPool(client, {Thing: nothing}):
        wait_until(lambda: client.count(JobFilter(states=["completed"])).total == 1)
    page = site.page("/schedule?name=night%3Cb%3E/ly")
    (job,) = client.list_jobs().jobs
    assert row(page, f"j{job.id}").startswith(f"{job.id} completed")
    assert len(re.findall(r"02:30:00 CES?T", page)) == 10
    assert site.get("/schedule?name=nobody").status_code == 404


def test_a_schedule_that_sql_has_spoilt_is_shown(client: Client, site: Site, sql: Rows) -> None:
    client.schedules.add(Schedule(NAME, "@daily", Thing(1)))
    sql("UPDATE pgjobs.schedule SET spec = '<b>', zone = 'Nowhere', error = 'no such zone <b>'")
    page = site.page("/schedule?name=night%3Cb%3E/ly")
    assert row(page, "error") == "It cannot tick: no such zone &lt;b&gt;"
    assert "&lt;b&gt;" in site.page("/schedules")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("0-99999999 * * * *", "problem"),
        ("0 0 30 2 *", "problem"),
        ("<script>", "problem"),
        ("1," * 200, "at most 250 characters"),
        ("@daily", "00:00:00 UTC"),
    ],
)
def test_simulating_a_schedule_refuses_what_has_no_ticks(site: Site, spec: str, says: str) -> None:
    page = site.get("/schedules/simulate", query_string={"spec": spec}).text
    assert says in page
    assert "<script>" not in page


def test_simulating_shows_the_local_time_too(site: Site) -> None:
    page = site.page("/schedules/simulate?spec=30+2+*+*+*&zone=Europe/Berlin")
    assert len(re.findall(r"02:30:00 CES?T", page)) == 10
    assert "problem" in site.page("/schedules/simulate?spec=@daily&zone=Nowhere")


# --- workers


def test_the_workers_and_what_each_of_them_runs(client: Client, site: Site) -> None:
    ends = threading.Event()

    def handler(tx: Any, job: Job[Thing]) -> None:
        job.set_progress(3, total=10)
        assert ends.wait(20)

    job = client.enqueue(None, Thing(1))
    try:
        with WorkerPool(client, {Thing: handler}, queues={"default": 2}):
            wait_until(lambda: (found := client.get(job.id)) and found.progress)
            page = site.page("/workers")
            ends.set()
    finally:
        ends.set()
    (worker,) = re.findall(r'<section class="card" id="worker-([^"]*)"', page)
    assert worker == client.id
    assert "1 of 2 busy" in row(page, f"worker-{worker}")
    assert row(page, f"j{job.id}").startswith(f"{job.id} thing default 1 of 25 ")
    assert row(page, f"j{job.id}").endswith("3 of 10")
    assert "No worker process runs" in site.page("/workers")


def test_the_stack_of_a_stuck_thread_is_shown(
    client: Client, site: Site, sql: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = threading.Event()

    def hangs(tx: Any, job: Job[Thing]) -> None:
        while not ends.is_set():
            try:
                ends.wait(0.05)
            except BaseException:
                continue

    monkeypatch.setattr("pgjobs.workers.registration._REFRESH_EVERY", 0.2)
    monkeypatch.setattr("pgjobs.execution.attempt.AFTER_TIMEOUT", GRACE)
    client.enqueue(None, Thing(1))
    with WorkerPool(client, {Thing: hangs}, timeout=SECOND, backoff=backoff.constant(HOUR)):
        try:
            wait_until(lambda: client.workers()[0].stuck)
            page, overview = site.page("/workers"), site.page("/")
        finally:
            ends.set()
    assert "in hangs" in page
    assert "1 thread is stuck in a handler" in overview


def test_jobs_of_a_worker_that_is_gone_and_versions_side_by_side(client: Client, site: Site, sql: Rows) -> None:
    sql("INSERT INTO pgjobs.worker (id, host, pid, threads, version, code_version, seen_at) VALUES "
        "('old', 'h', 1, 4, '0.1', '<b>v1', now() - interval '1 minute'), "
        "('new', 'h', 2, 6, '0.1', 'v2', now())")  # fmt: skip
    job = client.enqueue(None, Thing(1))
    sql("UPDATE pgjobs.job SET state = 'running', attempt = 1, attempted_at = now(), attempted_by = '{gone}'")
    page = site.page("/workers")
    assert "&lt;b&gt;v1" in row(page, "version-0.1-%3Cb%3Ev1")
    assert "it may be dead" in row(page, "worker-old")
    assert "it may be dead" not in row(page, "worker-new")
    assert str(job.id) in row(page, "left-behind")


# --- health, maintenance, audit and help


def test_health_is_what_the_doctor_finds(client: Client, site: Site, sql: Rows) -> None:
    client.enqueue(None, Thing(1), queue="a<b>")
    sql("UPDATE pgjobs.job SET scheduled_at = now() - interval '1 day'")
    page = html.unescape(site.page("/health"))
    wrong = [finding for finding in client.doctor() if finding.severity != "ok"]
    assert wrong
    for finding in wrong:
        assert finding.check in page
        assert finding.advice[1:] in page
    assert "a<b>" not in site.page("/health")


def test_the_doctor_runs_once_for_many_who_look_at_health(
    client: Client, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, doctor = [], client.doctor

    def counted(**given: Any) -> Any:
        runs.append(given)
        return doctor(**given)

    monkeypatch.setattr(client, "doctor", counted)
    with ThreadPoolExecutor(8) as threads:
        pages = list(threads.map(lambda _: site.page("/health"), range(8)))
    assert len(pages) == 8
    assert len(runs) == 1
    monkeypatch.setattr(checkup, "_KEPT", 0.0)
    other = Site(client)
    assert [other.page("/health") and len(runs) for _ in range(2)] == [2, 3]


class CountingLock:
    """A lock that counts those who want it."""

    def __init__(self) -> None:
        self.wanted = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self.wanted += 1
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()


def test_those_who_wait_for_the_doctor_get_its_failure_too(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would wait one after the other for a database that does not answer."""
    health, lock, runs, go_on = checkup.Checkup(client), CountingLock(), list[int](), threading.Event()
    monkeypatch.setattr(health, "_lock", lock)

    def fails(*given: Any, **more: Any) -> Any:
        runs.append(1)
        assert go_on.wait(20)
        raise psycopg.OperationalError("no answer")

    def look(_: int) -> None:
        with pytest.raises(psycopg.OperationalError, match="no answer"):
            health.findings()

    with monkeypatch.context() as context, ThreadPoolExecutor(4) as threads:
        context.setattr(client, "doctor", fails)
        looks = threads.map(look, range(4))
        wait_until(lambda: lock.wanted == 4)
        go_on.set()
        assert list(looks) == [None] * 4
    assert len(runs) == 1
    assert health.findings(), "the next one looks again"


def test_the_sizes_of_tables_and_indexes_and_the_duties(client: Client, site: Site) -> None:
    client.enqueue(None, Thing(1))
    page = site.page("/maintenance")
    assert "job" in row(page, "t-job")
    assert row(page, "i-job_fetch").endswith("valid")
    assert "rescue" in row(page, "d-rescue")


def test_old_jobs_are_deleted_after_their_number_was_shown(client: Client, site: Site, sql: Rows) -> None:
    sql("INSERT INTO pgjobs.job (kind, state, finalized_at) "
        "SELECT 'thing', 'discarded', now() - n * interval '23 hours' FROM generate_series(0, 9) AS n")  # fmt: skip
    page = site.page("/maintenance/prune?state=discarded&days=4")
    assert "<strong>5</strong>" in page
    assert "5 finished jobs deleted." in site.act("/maintenance/prune", {"state": "discarded", "days": "4"})
    assert client.count().total == 5
    for state, days in (("running", "1"), ("discarded", "-1"), ("discarded", "1e3"), ("discarded", "9" * 30)):
        assert site.get(f"/maintenance/prune?state={state}&days={days}").status_code == 400
        assert site.post("/maintenance/prune", {"state": state, "days": days}).status_code == 400


def test_a_filter_that_quotes_args_is_shown_in_the_audit_to_those_who_may_see_args(client: Client, sql: Rows) -> None:
    sql("INSERT INTO pgjobs.audit (who, act, target, count) VALUES "
        "('ada', 'cancel-jobs', '{\"args\": \"hunter2\", \"queue\": \"mail\"}', 3)")  # fmt: skip
    site = Site(client)
    assert "hunter2" not in site.page("/audit")
    assert "hunter2" in site.page("/audit?show=args")
    blind = Site(client, auth=lambda environ: User("eve", "operator", sees_args=False))
    assert "hunter2" not in blind.page("/audit?show=args")


def test_the_audit_has_pages(client: Client, site: Site, sql: Rows) -> None:
    sql("INSERT INTO pgjobs.audit (who, act, target, count) SELECT '<b>ada', 'old-act', '{\"a\": \"<b>\"}', n "
        "FROM generate_series(1, 150) AS n")  # fmt: skip
    page = site.page("/audit")
    assert page.count("<bdi>&lt;b&gt;ada</bdi>") == 100
    (before,) = re.findall(r"before=(\d+)", page)
    assert site.page(f"/audit?before={before}").count("<bdi>&lt;b&gt;ada</bdi>") == 50
    assert site.get("/audit?before=x").status_code == 400


@pytest.mark.parametrize("topic", guide.TOPICS)
def test_the_help_is_the_guide_that_ships(site: Site, topic: str) -> None:
    page = site.page(f"/help/{topic}")
    body = page[page.index("<article") : page.index("</article>")]
    outside_code = re.sub(r"<(pre|code)>.*?</\1>", "", body, flags=re.S)
    for mark in ("](", "**", "```", "## ", "| "):
        assert mark not in outside_code
    for link in re.findall(r'href="(/help/[^"#]*)', body):
        site.page(link)
    assert f'href="/help/{topic}"' in site.page("/help")
    anchors = set(re.findall(r'id="([^"]*)"', body))
    assert set(re.findall(rf'href="/help/{topic}#([^"]*)"', body)) <= anchors


def test_a_page_that_the_guide_lacks(site: Site) -> None:
    assert site.get("/help/nothing").status_code == 404


def test_a_live_page_can_be_paused_and_stays_so(client: Client, site: Site) -> None:
    page = site.page("/?period=day")
    assert 'data-refresh="' in page
    assert 'href="/?period=day&amp;live=0"' in page
    paused = site.page("/?period=day&live=0")
    assert "data-refresh" not in paused
    assert 'href="/?period=week&amp;live=0"' in paused or 'href="/?live=0&amp;period=week"' in paused
