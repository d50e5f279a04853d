"""The dashboard in a Django project: in its admin, behind its login, with the permissions of its users."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance.django_project import Project, project
from tests.conftest import new_database

BOARD = "/admin/pgjobs/job/dashboard/"
PAUSE = {"name": "default"}


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory, server_dsn: str) -> Iterator[Project]:
    with new_database(server_dsn) as dsn, project(tmp_path_factory.mktemp("shop"), dsn) as shop:
        shop.write(
            "shop/jobs.py", "from pgjobs.contrib.django import handles\n@handles('mail')\ndef send(tx, job): ...\n"
        )
        shop.write(
            "shop/urls.py",
            """
            from django.contrib import admin
            from django.urls import include, path
            urlpatterns = [path("admin/", admin.site.urls), path("ops/jobs/", include("pgjobs.contrib.django.urls"))]
        """,
        )
        shop.set(LOGIN_URL="/login/", PGJOBS={"DASHBOARD": {"SHOW_ARGS": True}})
        done = shop.manage("migrate")
        assert done.code == 0, done.err
        shop.run("""
            from django.contrib.auth.models import Permission, User
            User.objects.create_superuser("root")
            for name, staff, rights in [
                ("operator", True, ["view_job", "change_job"]), ("viewer", True, ["view_job"]), ("stranger", True, []),
                ("customer", False, ["view_job"]),
            ]:
                user = User.objects.create_user(name, is_staff=staff)
                user.user_permissions.set(Permission.objects.filter(codename__in=rights))
            result = None
        """)
        yield shop


@pytest.fixture
def shop(migrated: Project) -> Project:
    migrated.query("TRUNCATE pgjobs.job, pgjobs.audit")
    migrated.query("UPDATE pgjobs.queue SET paused_at = NULL")
    migrated.query("INSERT INTO pgjobs.job (kind, args) VALUES ('mail', '{}')")
    return migrated


class Answer:
    def __init__(self, status: int, text: str, headers: dict[str, str]) -> None:
        self.status, self.text, self.headers = status, text, headers


def send(shop: Project, *requests: tuple[Any, ...], user: str | None = "operator", setup: str = "") -> list[Answer]:
    """The answers to requests, each a method, a path, the values of a form, and the headers."""
    found = shop.run(f"""
        from django.contrib.auth.models import User
        from django.test import Client
        {setup}
        browser = Client(enforce_csrf_checks=True)
        if {user!r}:
            browser.force_login(User.objects.get(username={user!r}))
        result = []
        for method, path, data, headers in {[(*r, *({}, {})[len(r) - 2 :]) for r in requests]!r}:
            page = getattr(browser, method)(path, data, headers=headers)
            result.append([page.status_code, page.content.decode(), dict(page.headers)])
    """)
    return [Answer(*each) for each in found]


def pause(at: str = BOARD, **headers: str) -> tuple[Any, ...]:
    return "post", f"{at}queues/pause", PAUSE, {"Sec-Fetch-Site": "same-origin", **headers}


def is_paused(shop: Project) -> bool:
    return shop.query("SELECT name FROM pgjobs.queue WHERE paused_at IS NOT NULL") != []


def test_the_admin_has_it_and_a_link_to_it(shop: Project) -> None:
    listing, overview, queues, style = send(
        shop,
        ("get", "/admin/pgjobs/job/"),
        ("get", BOARD),
        ("get", f"{BOARD}queues"),
        ("get", f"{BOARD}static/pgjobs.css"),
    )
    assert f'<a href="{BOARD}">Dashboard</a>' in listing.text
    assert (overview.status, style.status) == (200, 200)
    assert style.headers["Content-Type"].startswith("text/css")
    assert f'href="{BOARD}queues"' in queues.text
    assert f'action="{BOARD}queues/pause"' in queues.text
    for answer in (overview, queues):
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]


def test_a_user_with_the_right_to_change_jobs_acts_by_name(shop: Project) -> None:
    (answer,) = send(shop, pause())
    assert (answer.status, answer.headers["Location"]) == (303, f"{BOARD}queues?done=pause-queues.1.0")
    assert is_paused(shop)
    assert shop.query("SELECT who, act FROM pgjobs.audit") == [("operator", "pause-queues")]


def test_a_table_is_vacuumed_and_the_metrics_are_read(shop: Project) -> None:
    same_origin = {"Sec-Fetch-Site": "same-origin"}
    vacuum, metrics, head = send(
        shop,
        ("post", f"{BOARD}maintenance/vacuum", {"table": "job"}, same_origin),
        ("get", f"{BOARD}metrics"),
        ("head", f"{BOARD}metrics"),
    )
    assert (vacuum.status, vacuum.headers["Location"]) == (303, f"{BOARD}maintenance?done=vacuum-tables.1.0")
    assert (metrics.status, metrics.headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert "pgjobs_database_up 1\n" in metrics.text
    assert (head.status, head.text) == (200, "")
    (refused,) = send(shop, ("post", f"{BOARD}maintenance/vacuum", {"table": "job"}, same_origin), user="viewer")
    assert refused.status == 403


@pytest.mark.parametrize("at", [BOARD, "/ops/jobs/"])
def test_permissions_are_roles(shop: Project, at: str) -> None:
    assert [a.status for a in send(shop, ("get", at), pause(at), user="viewer")] == [200, 403]
    assert [a.status for a in send(shop, ("get", at), pause(at), user="stranger")] == [403, 403]
    assert not is_paused(shop)
    assert [a.status for a in send(shop, ("get", at), pause(at), user="root")] == [200, 303]


def test_nobody_sees_it_without_a_login(shop: Project) -> None:
    for answer in send(shop, ("get", BOARD), pause(), user=None):
        assert (answer.status, answer.headers["Location"].split("?")[0]) == (302, "/admin/login/")
    for answer in send(shop, ("get", "/ops/jobs/"), pause("/ops/jobs/"), user=None):
        assert (answer.status, answer.headers["Location"].split("?")[0]) == (302, "/login/")
    assert [a.status for a in send(shop, ("get", BOARD), ("get", "/ops/jobs/"), user="customer")] == [302, 200]
    assert not is_paused(shop)


def test_a_foreign_page_cannot_send_a_form(shop: Project) -> None:
    foreign: list[dict[str, str]] = [{"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}, {}]
    answers = send(shop, *[("post", f"{at}queues/pause", PAUSE, h) for h in foreign for at in (BOARD, "/ops/jobs/")])
    assert [answer.status for answer in answers] == [403] * 6
    assert not is_paused(shop)


def test_the_hosts_are_those_that_django_allows(shop: Project) -> None:
    only = "from django.conf import settings; settings.ALLOWED_HOSTS = ['shop.example']"
    good, bad, forwarded = send(
        shop,
        ("get", BOARD, {}, {"Host": "shop.example"}),
        ("get", BOARD, {}, {"Host": "evil.example"}),
        pause(Host="evil.example"),
        setup=only,
    )
    assert (good.status, bad.status, forwarded.status) == (200, 400, 400)


def test_a_project_that_cannot_tell_who_sends_a_request_is_refused(shop: Project) -> None:
    found = shop.run("""
        from django.conf import settings
        from django.core.exceptions import ImproperlyConfigured
        from django.test import RequestFactory
        from pgjobs.contrib.django.dashboard import dashboard
        try:
            result = dashboard(RequestFactory().get("/jobs/")).status_code
        except ImproperlyConfigured as error:
            result = str(error)
    """)
    assert "AuthenticationMiddleware" in found


def test_it_works_under_asgi(shop: Project) -> None:
    found = shop.run("""
        import asyncio
        from django.contrib.auth.models import User
        from django.test import AsyncClient
        browser = AsyncClient(enforce_csrf_checks=True)
        browser.force_login(User.objects.get(username="operator"))

        async def both():
            headers = {"Sec-Fetch-Site": "same-origin"}
            page = await browser.get("/ops/jobs/queues")
            done = await browser.post("/ops/jobs/queues/pause", {"name": "default"}, headers=headers)
            return [page.status_code, done.status_code]

        result = asyncio.run(both())
    """)
    assert found == [200, 303]
    assert is_paused(shop)


def test_wrong_settings_are_found_by_the_check(shop: Project) -> None:
    found = shop.run("""
        from django.core.checks import run_checks
        from django.test import override_settings
        result = []
        for board in ({"AUTH": "shop.jobs.auth"}, {"RENDER_ARGS": "shop.jobs.missing"}, "on", {"READ_ONLY": True}):
            with override_settings(PGJOBS={"DASHBOARD": board}):
                result.append([error.id for error in run_checks()])
    """)
    assert found == [["pgjobs.E002"]] * 3 + [[]]
