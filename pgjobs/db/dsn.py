"""Connection strings: checked as soon as they are given, so that no later error shows a password."""

from __future__ import annotations

import re
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from pgjobs.errors import InvalidSetting

# As libpq parses it: user and password end at the first @, unless a / comes before it.
_URL = re.compile(r"postgres(?:ql)?://(?:[^@/]*@)?(?P<host_and_path>[^?]*)(?:\?(?P<query>.*))?", re.DOTALL)
# A SQLAlchemy URL with a driver whose URLs libpq understands, once the driver is left out.
_SQLALCHEMY = re.compile(r"postgres(?:ql)?\+psycopg2?(?=://)")
_WITH_AT = ("user", "password", "application_name", "options")
_FORMS = "write postgresql://user:password@host:port/database, or pairs as in: host=... dbname=..."
_ESCAPE = "in a password write %40 for @, %2F for / and %25 for %"


def for_libpq(dsn: str) -> str:
    """The string for libpq: SQLAlchemy's postgresql+psycopg:// or +psycopg2:// without the driver."""
    return _SQLALCHEMY.sub("postgresql", dsn) if _SQLALCHEMY.match(dsn) else dsn


def read_dsn(dsn: str) -> dict[str, Any]:
    """The parameters of a connection string; an invalid one raises InvalidSetting, which shows no part of it."""
    text = for_libpq(dsn)
    check_url(text)
    try:
        given = conninfo_to_dict(text)
    except (psycopg.ProgrammingError, UnicodeError):  # the text of this error may contain the password
        raise InvalidSetting(f"the connection string cannot be read: {_FORMS}") from None
    if not re.fullmatch(r"[\d,]*", str(given.get("port") or "")):
        raise InvalidSetting(f"the port in the connection string is not a number: {_FORMS}; {_ESCAPE}")
    return dict(given)


def check_url(dsn: str) -> None:
    """Refuse a URL in which libpq would take a part of the password for the host, and show it in errors."""
    url = _URL.fullmatch(dsn)
    if url is None:
        return
    parameters = [parameter.partition("=") for parameter in (url["query"] or "").split("&")]
    if "@" in url["host_and_path"] or any("@" in value and name not in _WITH_AT for name, _, value in parameters):
        raise InvalidSetting(f"the connection string has an @ in the wrong place: {_ESCAPE}")
