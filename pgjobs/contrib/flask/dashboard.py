"""The dashboard as a Blueprint. Its pages are views of the app, so that the functions before and after each request are
called for them: the login too. Under a middleware such as DispatcherMiddleware they would not be."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any
from urllib.parse import urlencode

from flask import Blueprint, Response, current_app, request

from pgjobs.dashboard import Dashboard
from pgjobs.dashboard.mounting import environ_below

Make = Callable[[], Dashboard]


def dashboard_blueprint(name: str, make: Make) -> Blueprint:
    """`make` makes the dashboard of the current app; it is called at the first request."""
    blueprint = Blueprint(name, __name__)

    def answer(path: str) -> Response:
        made = current_app.extensions.setdefault("pgjobs.dashboards", {})
        key = request.blueprint
        if key not in made:
            made[key] = make()
        response: Response = current_app.response_class.from_app(made[key], _environ(path))  # type: ignore[assignment]
        return response

    blueprint.add_url_rule("/", "index", answer, defaults={"path": ""}, methods=["GET", "POST"])
    blueprint.add_url_rule("/<path:path>", "page", answer, methods=["GET", "POST"])
    return blueprint


def _environ(path: str) -> dict[str, Any]:
    environ = environ_below(request.environ, request.script_root + request.path, path)
    if "form" in request.__dict__:  # a function of the app has read the form: it cannot be read again
        body = urlencode(list(request.form.items(multi=True))).encode()
        environ |= {
            "wsgi.input": BytesIO(body),
            "CONTENT_LENGTH": str(len(body)),
            "CONTENT_TYPE": "application/x-www-form-urlencoded",
        }
    elif "stream" in request.__dict__:  # or its bytes, which Flask keeps
        environ["wsgi.input"] = BytesIO(request.get_data())
    return environ
