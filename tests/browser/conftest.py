"""A dashboard on a database full of hostile texts, and a browser that looks at it.

The browser is the chromium of the system. Without it, or without playwright, these tests are skipped.

    make test-browser JOBS=1000000              the database has so many jobs
    PGJOBS_TEST_SCREENSHOTS=dir                 screenshots of all pages, to be looked at
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql
from werkzeug.serving import WSGIRequestHandler, make_server

from pgjobs import Client
from pgjobs.dashboard import Dashboard
from pgjobs.dashboard.access import local_operator
from tests.conftest import new_database
from tests.hostile_jobs import fill

JOBS = int(os.environ.get("PGJOBS_TEST_JOBS", "3000"))
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
#: What no page of ours has, so that only a text that became markup can have brought it.
_FOREIGN = """() => {
    const ours = (address) => new URL(address, location.href).origin === location.origin;
    const found = [...document.querySelectorAll(
        'iframe, object, embed, base, img, style, [style], meta[http-equiv], body *:is(script, link)')];
    for (const element of document.querySelectorAll('*')) {
        const on = [...element.attributes].some(({name}) => name.startsWith('on'));
        const address = element.href?.baseVal ?? element.href ?? element.getAttribute('action');
        if (on || (typeof address === 'string' && address !== '' && !ours(address))) found.push(element);
    }
    return found.map(element => element.outerHTML.slice(0, 200)).concat(window.pwned ? ['a script ran'] : []);
}"""
#: Whether a text sticks out of the page, so that it can be scrolled to the side.
_TOO_WIDE = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


class Watched:
    """A page in the browser. At the end of a test nothing may have come of the texts on it."""

    def __init__(self, page: Any, origin: str) -> None:
        self.page = page
        self.origin = origin
        self.problems: list[str] = []
        page.on("dialog", self._dialog)
        page.on("pageerror", lambda error: self.problems.append(f"an error of the script: {error}"))
        page.on("console", self._console)
        page.on("request", self._request)

    def _dialog(self, dialog: Any) -> None:
        self.problems.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(f"in the console: {message.text}")

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.origin, "data:")):
            self.problems.append(f"a request to {request.url}")

    def open(self, path: str) -> Any:
        """Go to a page, which must be there."""
        response = self.page.goto(self.origin + path)
        assert response.status == 200, f"{path}: {response.status}"
        self.check()
        return self.page

    def check(self) -> None:
        """Nothing foreign is on the page, and nothing sticks out of it."""
        self.page.wait_for_load_state()
        assert self.page.evaluate(_FOREIGN) == []
        assert self.page.evaluate(_TOO_WIDE) <= 0
        assert self.problems == []

    def pause_refresh(self) -> None:
        self.page.get_by_role("link", name="Pause refresh").click()


class Served:
    """A dashboard that is served on a port of its own."""

    def __init__(self, client: Client, origin: str, server: Any) -> None:
        self.client = client
        self.origin = origin
        self.server = server

    def query(self, text: LiteralString, *values: object) -> list[Any]:
        with self.client.pool.connection() as conn:
            statement = sql.SQL(text).format(schema=sql.Identifier(self.client.schema))
            cur = conn.execute(statement, values or None)
            return cur.fetchall() if cur.description else []


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: object) -> None:
        """Say nothing of each request."""


@contextmanager
def serve(client: Client, app: Any = None, **settings: Any) -> Iterator[Served]:
    app = app or Dashboard(client, **{"auth": local_operator, **settings})
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever, name="dashboard")
    thread.start()
    try:
        yield Served(client, f"http://127.0.0.1:{server.server_port}", server)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# not of the session: while it is open, asyncio.run() fails on this thread
@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=_FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def full(server_dsn: str) -> Iterator[Client]:
    """A database that is full of hostile texts. No test may need that it is as it was filled."""
    with new_database(server_dsn) as dsn, Client(dsn) as client:
        client.migrate()
        with psycopg.connect(dsn, autocommit=True) as conn:
            fill(conn, client.schema, JOBS)
        yield client


@pytest.fixture(scope="package")
def hostile(full: Client) -> Iterator[Served]:
    with serve(full, show_args=True) as served:
        yield served


@pytest.fixture
def served(client: Client) -> Iterator[Served]:
    """The dashboard of the test's own tables."""
    with serve(client) as served:
        yield served


@pytest.fixture
def open_page(browser: Any) -> Iterator[Any]:
    """Opens a page of a dashboard, in a browser context of its own; takes playwright's settings of a context."""
    contexts = []

    def open_page(served: Served, path: str | None = "/", **settings: Any) -> Watched:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings})
        context.set_default_timeout(20_000)
        contexts.append(context)
        watched = Watched(context.new_page(), served.origin)
        if path is not None:
            watched.open(path)
        return watched

    yield open_page
    for context in contexts:
        context.close()
