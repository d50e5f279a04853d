"""Who may use the dashboard, from which hosts, and which requests may change something."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from pgjobs import checks
from pgjobs.clean_text import one_line
from pgjobs.dashboard.problem import Problem
from pgjobs.errors import InvalidSetting, shown

Role = Literal["viewer", "operator"]
ROLES: tuple[Role, ...] = ("viewer", "operator")

#: The names by which a browser on this machine reaches it.
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
_LONGEST_NAME = 200
# What proxies add: behind one of them each request seems to come from this machine.
_PROXY_HEADERS = ("HTTP_FORWARDED", "HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_HOST", "HTTP_X_REAL_IP", "HTTP_VIA")


@dataclass(frozen=True, slots=True)
class User:
    """Who sent a request. A viewer may look; an operator may also change. `name` stands in the audit of actions. With
    `sees_args=False` args, output, metadata and error texts are not shown."""

    name: str
    role: Role = "viewer"
    sees_args: bool = True

    def __post_init__(self) -> None:
        checks.check_text("name", self.name, is_cleaned=True)
        if self.role not in ROLES:
            raise InvalidSetting(f"role of a User is 'viewer' or 'operator', not {shown(self.role)}")
        checks.check_bool("sees_args", self.sees_args)
        object.__setattr__(self, "name", one_line(self.name, _LONGEST_NAME))

    @property
    def may_change(self) -> bool:
        return self.role == "operator"

    @property
    def may_search_args(self) -> bool:
        """Whether the user may find jobs by their args: that tells what their secret fields have."""
        return self.may_change and self.sees_args


#: Decides about a request from its WSGI environ: the user who sent it, or None to refuse it.
Auth = Callable[[dict[str, Any]], User | None]


def checked_auth(auth: Auth | None) -> Auth:
    """The function that decides about requests. Raises InvalidSetting without one."""
    if not callable(auth):
        raise InvalidSetting(
            "auth must be a function of the WSGI environ that returns a pgjobs.dashboard.User, or None to refuse the "
            f"request, not {shown(auth)}: without it everyone who reaches the dashboard could change the jobs. To look "
            "at it on your own machine, run `pgjobs dashboard`"
        )
    return auth


def user_of(environ: dict[str, Any], auth: Auth) -> User:
    """The user who sent the request. Raises Problem if the request may not see the dashboard."""
    user = auth(environ)
    if user is None:
        raise Problem(403, "You are not allowed to see this dashboard.", "Log in to the application, then try again.")
    if not isinstance(user, User):
        raise InvalidSetting(f"auth must return a pgjobs.dashboard.User or None, not {shown(user)}")
    return user


def local_operator(environ: dict[str, Any]) -> User:
    """The `auth` of `pgjobs dashboard`: every user of this machine may do everything. It is safe only for a server
    that listens on the loopback address alone. Raises Problem."""
    if any(name in environ for name in _PROXY_HEADERS) or not _is_loopback(environ.get("REMOTE_ADDR")):
        raise Problem(
            403,
            "This dashboard answers only browsers on its own machine, and none behind a proxy.",
            "To open it to others, mount it in your application, behind its login: `pgjobs guide dashboard` says how.",
        )
    return User("local", "operator")


def _is_loopback(address: object) -> bool:
    try:
        found = ipaddress.ip_address(str(address))
    except ValueError:
        return False
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback


# --- hosts


def checked_hosts(hosts: Sequence[str] | None) -> tuple[str, ...]:
    """The names under which the dashboard may be reached; those of this machine by default. Raises InvalidSetting."""
    if hosts is None:
        return LOOPBACK_HOSTS
    checks.check_list("allowed_hosts", hosts, "host names, as in ['jobs.example.com']")
    for host in hosts:
        checks.check_text("a name in allowed_hosts", host)
        if "/" in host or (host != "*" and host != _without_port(host)):
            raise InvalidSetting(f"allowed_hosts has names without a scheme and port, not {shown(host)}")
    return tuple(host.lower() for host in hosts)


def check_host(environ: Mapping[str, Any], allowed: Sequence[str]) -> None:
    """Raise Problem unless the Host of the request is allowed. Without this check a foreign page whose name resolves to
    this machine would count as the same origin."""
    host = _without_port(_host(environ))
    if not any(_fits(host, name) for name in allowed):
        raise Problem(
            421,
            f"This dashboard is not reached as {one_line(host, 100)!r}.",
            "Use a name of its allowed_hosts, or add this name to Dashboard(..., allowed_hosts=[...]).",
        )


def _fits(host: str, name: str) -> bool:
    if name == "*":
        return True
    return host.endswith(name) and len(host) > len(name) if name.startswith(".") else host == name


def _host(environ: Mapping[str, Any]) -> str:
    return str(environ.get("HTTP_HOST") or "").lower()


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() else host


# --- requests of other sites


def check_not_embedded(environ: Mapping[str, Any]) -> None:
    """Raise Problem if a page of another site asks in the background, as for an image or a frame: the time that an
    answer takes would tell it what the jobs contain. A link on another site may lead here."""
    if environ.get("HTTP_SEC_FETCH_SITE") in (None, "same-origin", "none"):
        return
    how = environ.get("HTTP_SEC_FETCH_MODE"), environ.get("HTTP_SEC_FETCH_DEST", "document")
    if how != ("navigate", "document"):
        raise Problem(403, "Another site asked for this page in the background.", "Open the page by its own address.")


# --- requests that change something


def check_role(user: User, role: Role) -> None:
    """Raise Problem unless the user may open a page for this role."""
    if role == "operator" and not user.may_change:
        raise Problem(403, "You may look, but not change anything.", "Ask an operator to do this.")


def check_origin(environ: Mapping[str, Any]) -> None:
    """Raise Problem unless this POST was sent by a page of the dashboard."""
    if not _is_same_origin(environ):
        raise Problem(
            403,
            "This request was not sent by a page of this dashboard, so nothing was changed.",
            "Open the page in the dashboard, and press the button there.",
        )


def _is_same_origin(environ: Mapping[str, Any]) -> bool:
    """By Sec-Fetch-Site; browsers leave it out on plain HTTP under a name, where Origin must equal Host."""
    site = environ.get("HTTP_SEC_FETCH_SITE")
    if site is not None:
        return bool(site == "same-origin")
    try:
        origin = urlsplit(str(environ.get("HTTP_ORIGIN") or "")).netloc.lower()
    except ValueError:
        return False
    return origin != "" and origin == _host(environ)
