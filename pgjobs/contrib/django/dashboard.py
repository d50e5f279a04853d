"""The dashboard as a view, for users who may view jobs; those who may change jobs act in it.

The admin has it at `.../pgjobs/job/dashboard/`. To have it elsewhere, include `pgjobs.contrib.django.urls`.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse
from django.views.decorators.csrf import csrf_exempt
from werkzeug.wrappers import Response

from pgjobs.contrib.django import settings
from pgjobs.contrib.django.shortcuts import client, config
from pgjobs.dashboard import Dashboard, User
from pgjobs.dashboard.mounting import environ_below

_USER = "pgjobs.user"  # in the environ


def make_dashboard() -> Dashboard:
    """The dashboard of the project. Django has checked the host of each request."""
    return Dashboard(
        client(),
        auth=lambda environ: environ[_USER],
        work_map=config().work_map,
        allowed_hosts=["*"],
        **settings.dashboard_settings(),
    )


@csrf_exempt  # type: ignore[untyped-decorator]  # the dashboard checks by itself where a request comes from
def dashboard(request: HttpRequest, path: str = "") -> HttpResponse:
    """`path` is the part of the address that belongs to the dashboard."""
    response = Response.from_app(config().dashboard, _environ(request, path))
    return HttpResponse(response.get_data(), status=response.status_code, headers=dict(response.headers))


def _environ(request: HttpRequest, path: str) -> dict[str, Any]:
    """By META, which also the requests of ASGI have."""
    body = request.body
    return {
        **environ_below(request.META, request.path, path),
        "HTTP_HOST": request.get_host(),  # raises DisallowedHost
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": BytesIO(body),
        "wsgi.url_scheme": request.scheme,
        _USER: _user(request),
    }


def _user(request: HttpRequest) -> User | None:
    user = getattr(request, "user", None)
    if user is None:
        raise ImproperlyConfigured(
            "the dashboard of pgjobs needs to know who sends a request: add AuthenticationMiddleware to MIDDLEWARE"
        )
    if not user.has_perm("pgjobs.view_job"):
        return None
    return User(user.get_username(), "operator" if user.has_perm("pgjobs.change_job") else "viewer")
