"""The frame of the dashboard: who may see it, what a request may change, and errors as pages."""

from __future__ import annotations

import logging
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgjobs import Client, InvalidSetting
from pgjobs.dashboard import Dashboard, User
from pgjobs.dashboard.access import local_operator
from pgjobs.dashboard.pages import PAGES
from pgjobs.dashboard.request import Page, Request, Response
from tests.acceptance.dashboard_site import LOCAL, Site
from tests.conftest import Connect
from tests.samples import Thing

READS = [
    "/",
    "/queues",
    "/queue?name=q",
    "/schedules",
    "/schedule?name=s",
    "/workers",
    "/maintenance",
    "/audit",
    "/health",
]
GETS = [page.path for page in PAGES if page.method == "GET" and "<" not in page.path and page.name != "metrics"]


def audit(client: Client) -> list[tuple[Any, ...]]:
    with client.pool.connection() as conn:
        table = sql.Identifier(client.schema, "audit")
        statement = sql.SQL("SELECT who, act, target, count FROM {} ORDER BY id").format(table)
        return list(conn.execute(statement).fetchall())


def test_an_action_and_its_audit_commit_together(client: Client) -> None:
    client.enqueue(None, Thing(1))
    site = Site(client, auth=lambda environ: User("ada", "operator"))
    assert "1 queue paused." in site.act("/queues/pause", {"name": "default"})
    assert client.queues.list()[0].paused_at is not None
    assert audit(client) == [("ada", "pause-queues", {"queue": "default"}, 1)]
    assert site.post("/queues/pause", {"name": "other"}).status_code == 404
    assert len(audit(client)) == 1
    page = site.page("/audit")
    assert "<bdi>ada</bdi>" in page
    assert "queue paused" in page


@pytest.mark.parametrize("environ", [{}, {"REMOTE_ADDR": "10.0.0.1"}, {**LOCAL, "HTTP_X_FORWARDED_FOR": "10.0.0.1"}])
def test_a_local_operator_sits_at_this_machine(client: Client, environ: dict[str, Any]) -> None:
    response = Site(client)._browser.get("/", environ_overrides=environ)
    assert response.status_code == 403
    assert client.schema not in response.text


def test_without_a_function_that_decides_it_is_refused(client: Client) -> None:
    """A dashboard cannot know by itself who sits behind a proxy that adds no header."""
    given: list[dict[str, Any]] = [{}, {"auth": None}, {"auth": User("ada", "operator")}, {"auth": "ada"}]
    for settings in given:
        with pytest.raises(InvalidSetting, match=r"auth must be a function .* run `pgjobs dashboard`"):
            Dashboard(client, **settings)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.0.1", "::1", "::ffff:127.0.0.1"])
def test_this_machine_has_several_addresses(client: Client, address: str) -> None:
    assert Site(client)._browser.get("/help", environ_overrides={"REMOTE_ADDR": address}).status_code == 200


def test_a_user_whom_auth_refuses_sees_nothing(client: Client) -> None:
    site = Site(client, auth=lambda environ: None)
    for path in GETS:
        response = site.get(path)
        assert response.status_code == 403, path
        assert client.schema not in response.text


def test_an_auth_function_that_returns_no_user_is_refused_and_logged(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    answer = Site(client, auth=lambda environ: {"token": "5ecret"}).get("/")
    assert answer.status_code == 500
    assert "cannot tell who you are" in answer.text
    assert "5ecret" not in answer.text
    assert any("set up wrongly" in line for line in caplog.messages)
    with pytest.raises(InvalidSetting, match="'viewer' or 'operator'"):
        User("ada", "admin")  # type: ignore[arg-type]
    with pytest.raises(InvalidSetting, match="allowed_hosts"):
        Dashboard(client, auth=local_operator, allowed_hosts="jobs.example.com")
    with pytest.raises(InvalidSetting, match="without a scheme and port"):
        Dashboard(client, auth=local_operator, allowed_hosts=["https://jobs.example.com"])


@pytest.mark.parametrize(
    ("error", "status"),
    [(psycopg.errors.UndefinedTable('relation "logins" does not exist'), 503),
     (psycopg.errors.InsufficientPrivilege("permission denied for table logins"), 500),
     (InvalidSetting("logins is 5"), 500), (LookupError("logins"), 500)],
)  # fmt: skip
def test_an_error_of_auth_tells_a_stranger_nothing(
    client: Client, caplog: pytest.LogCaptureFixture, error: Exception, status: int
) -> None:
    def auth(environ: dict[str, Any]) -> User:
        raise error

    answer = Site(client, auth=auth).get("/")
    assert answer.status_code == status
    assert "cannot tell who you are" in answer.text
    assert "logins" not in answer.text
    assert "logins" in caplog.text


def test_pages_say_whether_the_user_may_change_something(client: Client) -> None:
    client.enqueue(None, Thing(1))
    for site in (Site(client, auth=lambda environ: User("eve")), Site(client, read_only=True)):
        page = site.page("/queues")
        assert "Pause</button>" not in page
        assert "may look" in page
        assert site.post("/queues/pause", {"name": "default"}).status_code == 403
    assert audit(client) == []


def test_a_page_cannot_write(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page whose code writes by mistake is stopped by Postgres, whoever asks for it."""

    def writes(request: Request) -> Response:
        with request.reading() as conn:
            request.client.enqueue(conn, Thing(1))
        return request.render("empty.html")

    monkeypatch.setattr("pgjobs.dashboard.app._BY_NAME", {"overview": Page("/", "overview", writes, role="viewer")})
    assert Site(client).get("/").status_code == 500
    assert client.count().total == 0


def test_an_action_of_a_get_request_is_a_fault_of_the_program(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def acts(request: Request) -> Response:
        with request.acting("pause-queues"):
            return request.go("overview")

    monkeypatch.setattr("pgjobs.dashboard.app._BY_NAME", {"overview": Page("/", "overview", acts, role="viewer")})
    assert Site(client).get("/").status_code == 500


@pytest.mark.parametrize("path", GETS)
def test_every_page_below_a_prefix_links_only_below_it(client: Client, path: str) -> None:
    client.enqueue(None, Thing(1))
    response = Site(client)._browser.get(path, environ_overrides={**LOCAL, "SCRIPT_NAME": "/admin/jobs"})
    assert 'href="/admin/jobs/queues"' in response.text
    assert 'href="/queues"' not in response.text
    assert 'src="/static' not in response.text


@pytest.mark.parametrize("headers", [{}, {"Accept": "*/*"}, {"Accept": "image/png"}, {"Accept": ";;;"}])
def test_any_accept_header_gets_the_page(client: Client, headers: dict[str, str]) -> None:
    response = Site(client).get("/queues", headers=headers)
    assert response.status_code == 200
    assert response.content_type == "text/html; charset=utf-8"


def test_what_was_done_comes_from_known_words_alone(client: Client) -> None:
    site = Site(client)
    assert "12,345 jobs cancelled; 1 skipped." in site.page("/queues?done=cancel-jobs.12345.1")
    for done in ("cancel-jobs.1", "rob-banks.1.0", "<script>.1.0", "cancel-jobs.1.0.0", "cancel-jobs.-1.0"):
        assert 'role="status"' not in site.page(f"/queues?done={done}")


# --- errors as pages


@pytest.mark.conformance(291)
@pytest.mark.parametrize("path", READS)
def test_a_page_of_a_database_that_is_gone_is_an_error_page(path: str) -> None:
    with Client("postgresql://localhost:1/gone?connect_timeout=1", schema="private_name") as client:
        client.source.pool.timeout = 0.2
        response = Site(client).get(path)
    assert response.status_code == 503
    assert "The database does not answer." in response.text
    assert "private_name" not in response.text.partition("<footer>")[0]


@pytest.mark.conformance(291)
def test_an_unexpected_error_is_logged_and_shows_no_traceback(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*args: Any, **given: Any) -> Any:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr("pgjobs.dashboard.pages.overview.notes", fails)
    with caplog.at_level(logging.ERROR):
        response = Site(client).get("/")
    assert response.status_code == 500
    assert "a secret" not in response.text
    assert "Traceback" not in response.text
    assert "The log of its process says why" in response.text
    assert any(record.exc_text and "a secret" in record.exc_text for record in caplog.records)


def test_missing_tables_are_named_with_what_to_do(database: str, schema: str) -> None:
    with Client(database, schema=schema) as client:
        response = Site(client).get("/queues")
    assert response.status_code == 503
    assert "pgjobs migrate" in response.text


def test_a_page_that_takes_too_long_says_so(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page does not hold a thread of the server for as long as a statement takes."""

    def slow(request: Request) -> Response:
        with request.reading() as conn:
            conn.execute("SET LOCAL statement_timeout = '50ms'")  # in place of the 10 seconds
            conn.execute("SELECT pg_sleep(20)")
        return request.render("empty.html")

    monkeypatch.setattr("pgjobs.dashboard.app._BY_NAME", {"overview": Page("/", "overview", slow, role="viewer")})
    response = Site(client).get("/")
    assert response.status_code == 503
    assert "took too long" in response.text


def test_a_page_has_limits(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def limits(request: Request) -> Response:
        with request.reading() as conn:
            settings = ("statement_timeout", "lock_timeout", "transaction_read_only", "transaction_isolation")
            seen.extend(conn.execute(f"SHOW {name}".encode()).fetchone() for name in settings)
        return request.render("empty.html")

    monkeypatch.setattr("pgjobs.dashboard.app._BY_NAME", {"overview": Page("/", "overview", limits, role="viewer")})
    assert Site(client).get("/").status_code == 200
    assert seen == [("10s",), ("1s",), ("on",), ("repeatable read",)]


def test_a_lock_that_another_transaction_holds_is_a_conflict(client: Client, connect: Connect) -> None:
    client.enqueue(None, Thing(1))
    site = Site(client)
    site.act("/queues/pause", {"name": "default"})
    other = connect()
    other.execute(sql.SQL("SELECT FROM {} FOR UPDATE").format(sql.Identifier(client.schema, "queue")))
    response = site.post("/queues/resume", {"name": "default"})
    assert response.status_code == 409
    assert "Not done" in response.text
    other.rollback()
    assert len(audit(client)) == 1


def test_a_role_without_rights_gets_a_page_that_says_so(client: Client, database: str, connect: Connect) -> None:
    admin = connect(autocommit=True)
    role = f"{client.schema}_eve"
    admin.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))
    try:
        dsn = make_conninfo(database, options=f"-c role={role}")
        with Client(dsn, schema=client.schema) as eve:
            response = Site(eve).get("/queues")
    finally:
        admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))
    assert response.status_code == 403
    assert "permission denied" in response.text
    assert "pgjobs roles --sql" in response.text


def test_a_form_that_is_too_large_is_refused(client: Client) -> None:
    response = Site(client).post("/queues/pause", {"name": "x" * 9_000_000})
    assert response.status_code == 413
    assert "too large" in response.text


def test_a_name_that_cannot_be_stored_is_refused(client: Client) -> None:
    for path in ("/queue?name=%00", "/schedule?name=%00", "/queue?name=%ff%fe"):
        assert Site(client).get(path).status_code in (400, 404), path
    assert Site(client).get("/queue").status_code == 400


def test_the_pool_of_an_application_in_autocommit_reads_in_a_transaction_too(client: Client, database: str) -> None:
    from psycopg_pool import ConnectionPool

    with ConnectionPool[psycopg.Connection[Any]](database, kwargs={"autocommit": True}, min_size=1) as pool:
        site = Site(Client(pool, schema=client.schema))
        assert site.get("/").status_code == 200
        with pool.connection() as conn:
            assert conn.execute("SHOW transaction_read_only").fetchone() == ("off",)
            assert conn.execute("SHOW statement_timeout").fetchone() == ("0",)
