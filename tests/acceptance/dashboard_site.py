"""A dashboard in the tests: a browser without a window, on this machine."""

from __future__ import annotations

from typing import Any

from werkzeug.test import Client as Browser
from werkzeug.test import TestResponse

from pgjobs import Client
from pgjobs.dashboard import Dashboard
from pgjobs.dashboard.access import local_operator

SAME_ORIGIN = {"Sec-Fetch-Site": "same-origin"}
LOCAL = {"REMOTE_ADDR": "127.0.0.1"}


class Site:
    """The pages of a dashboard, to an operator unless `auth` says otherwise. `post` sends what a button sends."""

    def __init__(self, client: Client, **settings: Any) -> None:
        self.dashboard = Dashboard(client, **{"auth": local_operator, **settings})
        self._browser = Browser(self.dashboard)

    def get(self, path: str, **given: Any) -> TestResponse:
        return self._browser.get(path, environ_overrides=LOCAL, **given)

    def post(self, path: str, data: dict[str, Any] | None = None, **given: Any) -> TestResponse:
        given = {"headers": SAME_ORIGIN, **given}
        return self._browser.post(path, data=data, environ_overrides=LOCAL, **given)

    def page(self, path: str) -> str:
        """The text of a page that must be there."""
        response = self.get(path)
        assert response.status_code == 200, response.text
        return response.text

    def act(self, path: str, data: dict[str, Any] | None = None) -> str:
        """Press a button, and return the page that follows."""
        response = self.post(path, data)
        assert response.status_code == 303, response.text
        return self.page(response.headers["Location"])
