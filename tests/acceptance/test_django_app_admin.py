"""The jobs in the admin of a Django project, as a browser sees them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from typing import Any

import pytest
from psycopg.types.json import Jsonb

from tests.acceptance.django_project import Project, project
from tests.conftest import new_database

LIST = "/admin/pgjobs/job/"


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory, server_dsn: str) -> Iterator[Project]:
    with new_database(server_dsn) as dsn, project(tmp_path_factory.mktemp("shop"), dsn) as shop:
        shop.write(
            "shop/jobs.py",
            """
            from pgjobs.contrib.django import handles

            @handles("mail.send")
            def send(tx, job): ...

            @handles("report.build")
            def build(tx, job): ...
        """,
        )
        shop.write(
            "shop/urls.py",
            """
            from django.contrib import admin
            from django.urls import path
            urlpatterns = [path("admin/", admin.site.urls)]
        """,
        )
        done = shop.manage("migrate")
        assert done.code == 0, done.err
        shop.run("""
            from django.contrib.auth.models import Permission, User
            User.objects.create_superuser("root")
            for name in ("viewer", "stranger"):
                User.objects.create_user(name, is_staff=True)
            User.objects.get(username="viewer").user_permissions.add(Permission.objects.get(codename="view_job"))
            result = None
        """)
        yield shop


@pytest.fixture
def shop(migrated: Project) -> Project:
    migrated.query("TRUNCATE pgjobs.job")
    return migrated


def add(shop: Project, kind: str = "mail.send", **columns: Any) -> int:
    """A row of the table; its id."""
    values = {"kind": kind, "args": Jsonb({}), **columns}
    names = ", ".join(values)
    marks = ", ".join("%s" for _ in values)
    ((id,),) = shop.query(f"INSERT INTO pgjobs.job ({names}) VALUES ({marks}) RETURNING id", *values.values())
    assert isinstance(id, int)
    return id


def pages(shop: Project, *paths: str, user: str = "root", method: str = "get") -> list[tuple[int, str, list[str]]]:
    """The status of each page, its text, and the statements on the table of jobs that it took."""
    found: list[tuple[int, str, list[str]]] = shop.run(f"""
        from django.contrib.auth.models import User
        from django.db import connection
        from django.test import Client
        from django.test.utils import CaptureQueriesContext

        browser = Client()
        browser.force_login(User.objects.get(username={user!r}))
        result = []
        for path in {paths!r}:
            with CaptureQueriesContext(connection) as queries:
                page = browser.{method}(path)
            sent = [query["sql"] for query in queries if '"pgjobs"."job"' in query["sql"]]
            result.append([page.status_code, page.content.decode(), sent])
    """)
    return found


def listed(page: str) -> list[int]:
    """The ids of the jobs in a list."""
    return [int(id) for id in re.findall(r'field-id"><a href="/admin/pgjobs/job/(\d+)/change/', page)]


def test_the_list_has_the_newest_first_with_the_last_error(shop: Project) -> None:
    failed = Jsonb([{"attempt": 1, "error": "first"}, {"attempt": 2, "error": "second\nof two lines"}])
    jobs = [add(shop), add(shop, state="retryable", attempt=2, errors=failed), add(shop, "report.build", queue="slow")]
    ((status, page, sent),) = pages(shop, LIST)
    assert status == 200
    assert listed(page) == jobs[::-1]
    assert re.search(r'field-last_error">second</td>', page)
    assert '"args"' not in "".join(sent), "what the list does not show is not read"


def test_the_filters_and_the_search_find_jobs(shop: Project) -> None:
    mail, report = add(shop), add(shop, "report.build", queue="slow")
    later = add(shop, state="scheduled")
    found = {
        "?state=scheduled": [later],
        "?queue=slow": [report],
        "?kind=mail.send": [later, mail],
        "?kind=mail.send&state=available": [mail],
        f"?q={report}": [report],
        "?q=report.build": [report],
        "?q=report": [],
        "?q=99999999999999999999": [],
        "?q=it's": [],
        "?o=0": [mail, report, later],
        "?o=1": [later, report, mail],  # by state, which no index has in order
    }
    for (status, page, _), ids in zip(pages(shop, *(LIST + query for query in found)), found.values(), strict=True):
        assert (status, listed(page)) == (200, ids)
    ((_, page, _),) = pages(shop, LIST)
    offered = unescape(page)
    assert all(
        f"?{name}" in offered for name in ("state=discarded", "queue=slow", "queue=default", "kind=report.build")
    )


def test_no_other_column_can_be_asked_for_its_value(shop: Project) -> None:
    """By `?args__password__startswith=h` a viewer could have read a secret field, a character at a time."""
    add(shop, args=Jsonb({"password": "hunter2"}))
    lookups = ("args__password__startswith=h", "metadata__a=1", "errors__0__error__contains=x", "output__a=1")
    assert [status for status, _, _ in pages(shop, *(f"{LIST}?{lookup}" for lookup in lookups))] == [400] * 4


def test_a_job_has_a_page_with_its_args_and_its_errors(shop: Project) -> None:
    errors = [
        {"attempt": 1, "at": "2026-11-30T12:00:00+00:00", "error": "ValueError: <no>", "trace": "Traceback ...\n"},
        "made by hand",
    ]
    job = add(
        shop,
        args=Jsonb({"name": "<b>Zoë</b>", "number": 2**70}),
        errors=Jsonb(errors),
        tags=["vip", "eu-west"],
        attempted_by=["worker-1", "worker-2"],
        output=Jsonb([1, 2]),
    )
    (status, page, _), (missing, _, _), (no_id, _, _) = pages(
        shop, f"{LIST}{job}/change/", f"{LIST}{job + 1}/change/", f"{LIST}eleven/change/"
    )
    assert (status, missing, no_id) == (200, 302, 302)
    assert "<b>" not in page.replace("<b>Zoë", "") or "<b>Zoë" not in page
    text = unescape(re.sub(r"<[^>]+>", "", page))
    for part in ('"name": "<b>Zoë</b>"', f'"number": {2**70}', "vip, eu-west", "worker-2", "made by hand"):
        assert part in text
    assert "attempt 1, 2026-11-30T12:00:00+00:00: ValueError: <no>\n\nTraceback ..." in text


def test_two_queues_may_have_a_job_with_the_same_id(shop: Project) -> None:
    """As after a restore from a dump."""
    job = add(shop)
    shop.query(
        "INSERT INTO pgjobs.job (id, kind, queue) OVERRIDING SYSTEM VALUE VALUES (%s, 'report.build', 'slow')", job
    )
    (listing, detail) = pages(shop, LIST, f"{LIST}{job}/change/")
    assert listed(listing[1]) == [job, job]
    assert (detail[0], "mail.send" in detail[1]) == (200, True)


def test_nothing_can_be_changed(shop: Project) -> None:
    job = add(shop)
    for path in (f"{LIST}add/", f"{LIST}{job}/delete/"):
        ((status, _, _),) = pages(shop, path)
        assert status == 403
    ((_, page, _),) = pages(shop, LIST)
    assert 'name="action"' not in page
    ((_, page, _),) = pages(shop, f"{LIST}{job}/change/")
    assert 'name="_save"' not in page
    for path in (f"{LIST}{job}/change/", f"{LIST}{job}/delete/", f"{LIST}add/"):
        ((status, _, _),) = pages(shop, path, method="post")
        assert status == 403
    assert shop.jobs == [("mail.send", "available", 0)]


def test_it_takes_the_right_to_view_jobs(shop: Project) -> None:
    job = add(shop)
    paths = (LIST, f"{LIST}{job}/change/")
    assert [status for status, _, _ in pages(shop, *paths, user="viewer")] == [200, 200]
    assert [status for status, _, _ in pages(shop, *paths, user="stranger")] == [403, 403]


def test_a_list_of_a_big_table_counts_and_reads_no_further_than_it_shows(shop: Project) -> None:
    shop.query("""
        INSERT INTO pgjobs.job (kind, state, finalized_at, attempt)
        SELECT 'mail.send', 'completed', now(), 1 FROM generate_series(1, 15000)
    """)
    shop.query("ANALYZE pgjobs.job")
    for path in (LIST, f"{LIST}?state=completed", f"{LIST}?p=100"):
        ((status, page, sent),) = pages(shop, path)
        assert status == 200
        assert len(listed(page)) == 100
        assert "10000 jobs" in page
        assert all("LIMIT 10000" in sql or "LIMIT 100" in sql for sql in sent), sent
    plan = "".join(line for (line,) in shop.query(f"EXPLAIN {sent[-1]}"))
    assert "Index Scan Backward" in plan
    assert "Sort" not in plan
