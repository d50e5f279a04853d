"""The WSGI app: finds the page, checks who may see it, and makes every error a page."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from urllib.parse import quote

from werkzeug.routing import Map, MapAdapter, Rule

from pgjobs import checks
from pgjobs.client import Client
from pgjobs.dashboard import access, static_files
from pgjobs.dashboard.access import Auth, User
from pgjobs.dashboard.checkup import Checkup
from pgjobs.dashboard.pages import NAV, PAGES, SECTION_OF
from pgjobs.dashboard.problem import Problem, problem_for_stranger, problem_of
from pgjobs.dashboard.queries import DashboardQueries
from pgjobs.dashboard.rate_limit import RateLimit
from pgjobs.dashboard.render import Renderer
from pgjobs.dashboard.request import Page, Request, Response, Site
from pgjobs.dashboard.vacuums import Vacuums
from pgjobs.errors import InvalidSetting, shown
from pgjobs.job import Job
from pgjobs.work_map import Handler, HandlerFunction, WorkMap, as_work_map

Environ = dict[str, Any]

#: Requests that a user may send at once, and in the long run per second: of pages, which several people who share a
#: name may have open and refresh, and of actions.
PAGES_LIMIT = (300, 20.0)
ACTIONS_LIMIT = (30, 1.0)

_STATIC = "static"
_BY_NAME = {page.name: page for page in PAGES}
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; form-action 'self'; base-uri 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def _url_map() -> Map:
    rules = [Rule(page.path, endpoint=page.name, methods=[page.method]) for page in PAGES]
    rules.append(Rule("/static/<name>", endpoint=_STATIC, methods=["GET"]))
    return Map(rules, strict_slashes=False, merge_slashes=False, redirect_defaults=False)


class Dashboard:
    """The dashboard of a client: a WSGI app, to be mounted under any prefix.

    - `auth`: a function of the WSGI environ that returns the `User` who sent the request, or None to refuse it. It is
      needed: a dashboard cannot know by itself who sits behind a proxy. `pgjobs dashboard` has one of its own.
    - `read_only`: every user is a viewer, whatever `auth` says.
    - `show_args`: show args, output and metadata at once; by default a page shows them when it is asked for them. A
      User with `sees_args=False` never sees them.
    - `render_args`: a function of a Job that returns its args as a text for people, or None for the JSON.
    - `work_map`: the handlers, whose args classes the page for enqueuing shows; default: those of the client.
    - `allowed_hosts`: the names under which it is reached, such as `["jobs.example.com"]`; `.example.com` allows all
      names that end so, `*` allows any, where the application checks the Host itself. Default: those of this machine.

    Raises InvalidSetting.
    """

    def __init__(
        self,
        client: Client,
        *,
        auth: Auth | None = None,
        read_only: bool = False,
        show_args: bool = False,
        render_args: Callable[[Job[Any]], str | None] | None = None,
        work_map: dict[Any, Handler | HandlerFunction] | WorkMap | None = None,
        allowed_hosts: Sequence[str] | None = None,
    ) -> None:
        if not isinstance(client, Client):
            raise InvalidSetting(f"client is a pgjobs.Client, not {shown(client)}")
        auth = access.checked_auth(auth)
        checks.check_function("render_args", render_args, "a function of a Job that returns a text or None")
        checks.check_bool("read_only", read_only)
        checks.check_bool("show_args", show_args)
        queries = DashboardQueries(client.schema)
        self._auth = auth
        self._read_only = read_only
        self._hosts = access.checked_hosts(allowed_hosts)
        self._pages_limit = RateLimit(*PAGES_LIMIT)
        self._actions_limit = RateLimit(*ACTIONS_LIMIT)
        self._urls = _url_map()
        self._site = Site(
            client=client,
            queries=queries,
            checkup=Checkup(client),
            vacuums=Vacuums(client, queries),
            render=Renderer(NAV, SECTION_OF),
            show_args=show_args,
            render_args=render_args,
            work_map=client.work_map if work_map is None else as_work_map(work_map),
        )

    def __repr__(self) -> str:
        return f"Dashboard({self._site.client!r})"

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        response = self._respond(environ)
        return response(environ, start_response)

    def _respond(self, environ: Environ) -> Response:
        prefix = str(environ.get("SCRIPT_NAME", ""))
        if prefix.startswith("//"):  # addresses that begin so lead to another host
            environ = {**environ, "SCRIPT_NAME": f"/{prefix.lstrip('/')}"}
        request = Request(environ, self._site, self._bind(environ))
        try:
            response = self._answer(request)
        except Exception as error:
            response = _error_page(request, problem_of(error) if request.is_known else problem_for_stranger(error))
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    def _bind(self, environ: Environ) -> MapAdapter:
        """Without the Host of the request, so that all addresses are paths."""
        return self._urls.bind(
            "localhost",
            script_name=quote(_text(environ, "SCRIPT_NAME")) or "/",
            path_info=_text(environ, "PATH_INFO") or "/",
            default_method=environ.get("REQUEST_METHOD", "GET"),
        )

    def _answer(self, request: Request) -> Response:
        access.check_host(request.environ, self._hosts)
        access.check_not_embedded(request.environ)
        name, values = request.urls.match()
        if name == _STATIC:
            return _static_file(request, **values)
        request.user = self._user(request.environ)
        page = _BY_NAME[name]
        request.page = name
        access.check_role(request.user, page.role)
        if page.method == "POST":
            access.check_origin(request.environ)
        self._check_rate(request.user, page)
        response: Response = page.view(request, **values)
        return response

    def _check_rate(self, user: User, page: Page) -> None:
        limit = self._actions_limit if page.method == "POST" else self._pages_limit
        seconds = math.ceil(limit.wait(user.name))
        if seconds:
            raise Problem(
                429,
                f"{user.name} sends more requests than this dashboard answers.",
                f"{'Nothing was changed. ' if page.method == 'POST' else ''}Wait {seconds} s, then try again.",
                headers={"Retry-After": str(seconds)},
            )

    def _user(self, environ: Environ) -> User:
        user = access.user_of(environ, self._auth)
        return User(user.name, "viewer", user.sees_args) if self._read_only else user


def _text(environ: Environ, name: str) -> str:
    """A value of the environ, where a character is one byte of UTF-8."""
    return str(environ.get(name, "")).encode("latin-1", "replace").decode("utf-8", "replace")


def _static_file(request: Request, name: str) -> Response:
    response = Response(static_files.content(name), content_type=static_files.TYPES[name])
    if request.args.get("v") == static_files.version(name):
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
    return response


def _error_page(request: Request, problem: Problem) -> Response:
    response = request.render("problem.html", status=problem.status, problem=problem)
    response.headers.update(problem.headers)
    return response
