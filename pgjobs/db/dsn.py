"""Connection strings: read once, where they enter, so that no later error can show a password."""

from __future__ import annotations

import re
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from pgjobs.errors import InvalidSetting

# As libpq takes it apart: what is before the first @ is user and password, if no / comes before.
_URL = re.compile(r"postgres(?:ql)?://(?:[^@/]*@)?(?P<host_and_path>[^?]*)(?:\?(?P<query>.*))?", re.DOTALL)
# Of SQLAlchemy, with the driver that pgjobs needs.
_OF_SQLALCHEMY = re.compile(r"postgres(?:ql)?\+psycopg(?=://)")
_MAY_HAVE_AT = ("user", "password", "application_name", "options")
_FORMS = "write postgresql://user:password@host:port/database, or pairs as in: host=... dbname=..."
_ESCAPE = "in a password write %40 for @, %2F for / and %25 for %"


def for_libpq(dsn: str) -> str:
    """The string as libpq reads it: postgresql+psycopg:// of SQLAlchemy means the same database without its driver."""
    return _OF_SQLALCHEMY.sub("postgresql", dsn) if _OF_SQLALCHEMY.match(dsn) else dsn


def read_dsn(dsn: str) -> dict[str, Any]:
    """What it says; InvalidSetting, which repeats none of it, if it is no connection string."""
    text = for_libpq(dsn)
    check_url(text)
    try:
        said = conninfo_to_dict(text)
    except (psycopg.ProgrammingError, UnicodeError):  # its text may repeat the password
        raise InvalidSetting(f"the connection string cannot be read: {_FORMS}") from None
    if not re.fullmatch(r"[\d,]*", str(said.get("port") or "")):
        raise InvalidSetting(f"the port in the connection string is no number: {_FORMS}; {_ESCAPE}")
    return dict(said)


def check_url(dsn: str) -> None:
    """Refuse a URL in which a part of the password would be taken for the host, and shown with each failure."""
    url = _URL.fullmatch(dsn)
    if url is None:
        return
    parameters = [parameter.partition("=") for parameter in (url["query"] or "").split("&")]
    if "@" in url["host_and_path"] or any("@" in value and name not in _MAY_HAVE_AT for name, _, value in parameters):
        raise InvalidSetting(f"the connection string has an @ where none can be: {_ESCAPE}")
