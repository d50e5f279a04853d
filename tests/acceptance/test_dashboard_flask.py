"""The dashboard as a Blueprint of a Flask app: behind the app's login, and nowhere without one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask, Response, abort, g, request, session
from werkzeug.test import TestResponse

from pgjobs.dashboard import User
from pgjobs.errors import InvalidSetting
from tests.acceptance.dashboard_site import SAME_ORIGIN
from tests.acceptance.flask_shop import Shop, plain_shop, shop

ROLES = {"ada": User("ada", "operator"), "eve": User("eve", "viewer")}


def auth(environ: dict[str, Any]) -> User | None:
    return ROLES.get(session.get("user", ""))


def login(app: Flask) -> None:
    """What applications have: a login, and a function before each request that asks for it."""
    app.secret_key = "secret"

    @app.post("/login")
    def log_in() -> str:
        session["user"] = request.form["user"]
        return "welcome"

    @app.before_request
    def ask() -> Response | None:
        if "user" not in session and request.endpoint != "log_in":
            return Response(status=302, headers={"Location": "/login"})
        return None

    @app.after_request
    def mark(response: Response) -> Response:
        response.headers["X-Of-The-App"] = "yes"
        return response


class Browser:
    """A browser that is logged in to the app, or not."""

    def __init__(self, app: Flask, user: str | None = None) -> None:
        self._browser = app.test_client()
        if user is not None:
            self._browser.post("/login", data={"user": user})

    def get(self, path: str, **given: Any) -> TestResponse:
        return self._browser.get(path, **given)

    def post(self, path: str, data: dict[str, str], **given: Any) -> TestResponse:
        return self._browser.post(path, data=data, **{"headers": SAME_ORIGIN, **given})


@pytest.fixture
def made(fresh_database: str) -> Iterator[Shop]:
    with plain_shop(fresh_database) as made:
        login(made.app)
        made.app.register_blueprint(made.jobs.dashboard(auth=auth), url_prefix="/jobs")
        made.enqueue()
        yield made


def is_paused(made: Shop) -> bool:
    return made.client.queues.list()[0].paused_at is not None


def test_the_login_of_the_app_comes_first(made: Shop) -> None:
    for path in ("/jobs/", "/jobs/queues", "/jobs/static/pgjobs.css"):
        answer = Browser(made.app).get(path)
        assert (answer.status_code, answer.headers["Location"]) == (302, "/login")
    answer = Browser(made.app).post("/jobs/queues/pause", {"name": "default"})
    assert answer.status_code == 302
    assert not is_paused(made)


def test_auth_decides_by_the_session_of_the_app(made: Shop) -> None:
    pause = "/jobs/queues/pause", {"name": "default"}
    stranger = Browser(made.app, "mallory")
    assert (stranger.get("/jobs/").status_code, stranger.post(*pause).status_code) == (403, 403)
    viewer = Browser(made.app, "eve")
    assert (viewer.get("/jobs/").status_code, viewer.post(*pause).status_code) == (200, 403)
    assert not is_paused(made)
    operator = Browser(made.app, "ada")
    answer = operator.post(*pause)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/jobs/queues?done=pause-queues.1.0")
    assert is_paused(made)
    assert made.query("SELECT who, act FROM pgjobs.audit") == [("ada", "pause-queues")]


def test_its_addresses_have_the_prefix_and_its_headers_stay(made: Shop) -> None:
    below = {"SCRIPT_NAME": "/shöp".encode().decode("latin-1")}
    answer = Browser(made.app, "ada").get("/jobs/queues", environ_overrides=below)
    assert 'href="/sh%C3%B6p/jobs/queues"' in answer.text
    assert 'href="/sh%C3%B6p/jobs/static/pgjobs.css?v=' in answer.text
    assert answer.headers["X-Of-The-App"] == "yes"
    assert answer.headers["Cache-Control"] == "no-store"
    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
    assert Browser(made.app, "ada").get("/jobs").status_code == 308, "the slash is added"


def test_a_foreign_page_cannot_send_a_form(made: Shop) -> None:
    operator = Browser(made.app, "ada")
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}, {}):
        assert operator.post("/jobs/queues/pause", {"name": "default"}, headers=headers).status_code == 403
    assert not is_paused(made)


@pytest.mark.parametrize("read", ["form", "bytes"])
def test_a_function_of_the_app_may_have_read_the_form(made: Shop, read: str) -> None:
    @made.app.before_request
    def look() -> None:
        g.seen = request.form if read == "form" else request.get_data()

    name = "a/b+c[1]"
    made.client.enqueue(None, {"n": 1}, kind="by.name", queue=name)
    answer = Browser(made.app, "ada").post("/jobs/queues/pause", {"name": name})
    assert answer.status_code == 303, answer.text
    assert made.query("SELECT target ->> 'queue' FROM pgjobs.audit") == [(name,)]


def test_prometheus_gets_in_where_the_app_and_auth_let_it(fresh_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgjobs.metrics.WAIT", 20.0)  # on a busy machine a second may be too short

    def staff_or_prometheus(environ: dict[str, Any]) -> User | None:
        is_prometheus = environ["PATH_INFO"] == "/metrics" and environ.get("HTTP_AUTHORIZATION") == "Bearer 5ecret"
        return User("prometheus", sees_args=False) if is_prometheus else auth(environ)

    with plain_shop(fresh_database) as made:
        made.app.secret_key = "secret"
        made.app.register_blueprint(made.jobs.dashboard(auth=staff_or_prometheus), url_prefix="/jobs")
        browser, token = made.app.test_client(), {"Authorization": "Bearer 5ecret"}
        answer = browser.get("/jobs/metrics", headers=token)
        assert answer.content_type == "text/plain; version=0.0.4; charset=utf-8"
        assert "pgjobs_database_up 1\n" in answer.text
        assert browser.head("/jobs/metrics", headers=token).status_code == 200
        assert browser.get("/jobs/metrics").status_code == browser.get("/jobs/", headers=token).status_code == 403


def test_a_blueprint_may_have_a_login_of_its_own(fresh_database: str) -> None:
    with plain_shop(fresh_database) as made:
        blueprint = made.jobs.dashboard(auth=lambda environ: User("staff"))
        blueprint.before_request(lambda: abort(401))
        made.app.register_blueprint(blueprint, url_prefix="/jobs")
        assert made.app.test_client().get("/jobs/").status_code == 401


def test_two_dashboards_of_one_app_have_their_own_settings(made: Shop) -> None:
    blueprint = made.jobs.dashboard(auth=auth, read_only=True, name="wall")
    made.app.register_blueprint(blueprint, url_prefix="/wall")
    operator = Browser(made.app, "ada")
    assert "Pause</button>" in operator.get("/jobs/queues").text
    assert "Pause</button>" not in operator.get("/wall/queues").text


@pytest.mark.parametrize("auth", [None, User("ada", "operator"), "ada"])
def test_without_a_function_that_decides_it_is_refused(made: Shop, auth: Any) -> None:
    with pytest.raises(InvalidSetting, match="auth must be a function"):
        made.jobs.dashboard(auth=auth)
    with pytest.raises(TypeError, match="auth"):
        made.jobs.dashboard()  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("trusted", "host", "status"),
    [
        (None, "127.0.0.1:5000", 200),
        (None, "evil.example", 421),
        ([".example.com"], "shop.example.com", 200),
        ([".example.com"], "evil.example", 400),
    ],
)
def test_the_hosts_are_those_of_this_machine_or_the_trusted_ones_of_the_app(
    fresh_database: str, trusted: list[str] | None, host: str, status: int
) -> None:
    with plain_shop(fresh_database, TRUSTED_HOSTS=trusted) as made:
        blueprint = made.jobs.dashboard(auth=lambda environ: User("staff"))
        made.app.register_blueprint(blueprint, url_prefix="/jobs")
        assert made.app.test_client().get("/jobs/", headers={"Host": host}).status_code == status


def test_the_jobs_may_be_those_of_flask_sqlalchemy(fresh_database: str) -> None:
    with shop(fresh_database) as made:
        login(made.app)
        made.app.register_blueprint(made.jobs.dashboard(auth=auth), url_prefix="/jobs")
        made.enqueue()
        answer = Browser(made.app, "ada").post("/jobs/queues/pause", {"name": "default"})
        assert answer.status_code == 303, answer.text
        assert is_paused(made)
