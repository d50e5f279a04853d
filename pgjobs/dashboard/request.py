"""What a page gets: the request, its user, transactions to read and to act in, and its answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode

import werkzeug
from werkzeug.datastructures import MultiDict
from werkzeug.routing import MapAdapter

from pgjobs.client import Client
from pgjobs.dashboard import static_files
from pgjobs.dashboard.access import ROLES, Role, User
from pgjobs.dashboard.acts import ACTS, done_text, done_value
from pgjobs.dashboard.checkup import Checkup
from pgjobs.dashboard.problem import Problem
from pgjobs.dashboard.queries import DashboardQueries
from pgjobs.dashboard.vacuums import Vacuums
from pgjobs.db.advice import advised
from pgjobs.db.cursors import AnyConnection
from pgjobs.job import Job
from pgjobs.work_map import WorkMap

Response = werkzeug.Response

UNIDENTIFIED = User("nobody", sees_args=False)  # until the user of a request is known
_LARGEST = 8 * 1024 * 1024  # bytes of a form: it may have the args of a job


@dataclass(frozen=True)
class Site:
    """What all requests share."""

    client: Client
    queries: DashboardQueries
    checkup: Checkup
    vacuums: Vacuums
    render: Callable[..., str]  # of a template: its name, then its values
    show_args: bool
    render_args: Callable[[Job[Any]], str | None] | None
    work_map: WorkMap | None


@dataclass
class Action:
    """An action of a user while it runs: its transaction, and what the audit will say of it."""

    tx: AnyConnection
    target: dict[str, Any]
    count: int = 1


class Request(werkzeug.Request):
    max_content_length = _LARGEST
    max_form_memory_size = _LARGEST

    def __init__(self, environ: dict[str, Any], site: Site, urls: MapAdapter) -> None:
        super().__init__(environ)
        self.site = site
        self.urls = urls
        self.page = ""  # the name of the page
        self.user = UNIDENTIFIED
        self.now = datetime.now(UTC)  # by the clock of the database, once `reading` or `acting` has asked it

    @property
    def client(self) -> Client:
        return self.site.client

    @property
    def queries(self) -> DashboardQueries:
        return self.site.queries

    @property
    def is_known(self) -> bool:
        """Whether it is known who sent the request. If not, an error page says nothing of the database."""
        return self.user is not UNIDENTIFIED

    @property
    def may_change(self) -> bool:
        """Whether pages offer actions to the user."""
        return self.user.may_change

    @property
    def is_live(self) -> bool:
        """Whether the page refreshes itself; the user may pause that."""
        return self.args.get("live") != "0"

    @property
    def shows_args(self) -> bool:
        """Whether args, output and metadata are shown: to users who may see them, where they ask for them."""
        return self.user.sees_args and (self.site.show_args or self.args.get("show") == "args")

    def text(self, name: str, default: str | None = None) -> str:
        """A value of the form (POST) or of the URL (GET). Raises Problem if it is missing, unless it has a default."""
        values: MultiDict[str, str] = self.form if self.method == "POST" else self.args
        value = values.get(name, default)
        if value is None:
            raise Problem(400, f"The request lacks the value {name!r}.", "Go back, and try again.")
        return value

    def address(self, page: str, **values: Any) -> str:
        """The address of a page. Values that are not part of its path become its query; those that are None are left
        out."""
        return self.urls.build(page, values)

    def here(self, **values: str | None) -> str:
        """The address of this page with its query, in which these values are replaced; None removes one. What was done
        is not said again."""
        query = self.args.copy()
        query.poplist("done")
        for name, value in values.items():
            query.poplist(name)
            if value is not None:
                query[name] = value
        return f"{quote(self.script_root + self.path)}?{urlencode(list(query.items(multi=True)))}".rstrip("?")

    def static(self, name: str) -> str:
        """The address of a static file."""
        return self.address("static", name=name, v=static_files.version(name))

    # --- transactions

    @contextmanager
    def reading(self) -> Iterator[AnyConnection]:
        """A READ ONLY transaction with one snapshot and a time limit, to be passed as `tx` to calls of the client."""
        with advised(self.client.schema), self.client.source.transaction() as conn:
            self.now = self.queries.begin_reading(conn)
            yield conn

    @contextmanager
    def acting(self, act: str, **target: Any) -> Iterator[Action]:
        """The transaction of an action. It commits what the block does through `action.tx` together with a row in the
        audit, which has the act, the target, `action.count` and the user."""
        if self.method != "POST" or not self.may_change or act not in ACTS:
            raise RuntimeError(f"{self.method} {self.page} cannot act as {act!r}")
        with advised(self.client.schema), self.client.source.transaction() as conn:
            self.now = self.queries.begin_acting(conn)
            action = Action(conn, target)
            yield action
            self.queries.write_audit(conn, self.user.name, act, action.target, action.count)

    # --- answers

    def render(self, template: str, *, status: int = 200, **values: Any) -> Response:
        """The page that a template makes of these values."""
        return Response(
            self.site.render(template, request=self, **values), status, content_type="text/html; charset=utf-8"
        )

    def done(
        self,
        page: str,
        act: str,
        changed: int = 1,
        skipped: int = 0,
        *,
        reasons: Mapping[str, int] | None = None,
        **values: Any,
    ) -> Response:
        """After an action: to a page, which says what was done, and how many were left for which reasons."""
        return self.go(page, done=done_value(act, changed, skipped, reasons or {}), **values)

    def go(self, page: str, **values: Any) -> Response:
        """A redirect to another page, after a POST."""
        return Response(status=303, headers={"Location": self.address(page, **values)})

    @property
    def done_text(self) -> str | None:
        """What was done by the action that led to this page."""
        return done_text(self.args.get("done", ""))


View = Callable[..., Response]


@dataclass(frozen=True, slots=True)
class Page:
    """A page: the pattern of its path, its name, and the function that answers, which gets the request and the values
    in the path as keywords. `role` is that of the users who reach it; one with the method POST is an action, which only
    operators reach."""

    path: str
    name: str
    view: View = field(repr=False)
    method: str = "GET"
    _: KW_ONLY
    role: Role

    def __post_init__(self) -> None:
        if self.role not in ROLES or (self.method == "POST" and self.role != "operator"):
            raise ValueError(f"{self.method} {self.path} cannot be a page for the role {self.role!r}")


def post_page(path: str, name: str, view: View) -> Page:
    """A page that changes something."""
    return Page(path, name, view, "POST", role="operator")
