"""Settings that the connections of our own pool get when they are opened, as startup options.

With these the server notices within half a minute that a client is gone, also in the middle of a statement. A claim
sets what the session does not have, for the job's transaction. As startup options they cost no job anything, and RESET
ALL keeps them.

PgBouncer refuses startup options, and other poolers may do worse. So a connection without them first finds out whether
it leads straight to a server. An application may use our pool too, so timeouts of statements and transactions are not
among the options.
"""

from __future__ import annotations

import os
import re

import psycopg
from psycopg.conninfo import conninfo_to_dict

from pgjobs.db import statements
from pgjobs.db.cursors import AnyConnection, literal_cursor, one

_CHECK = {"client_connection_check_interval": "500ms"}
# Not for a Unix socket, where they have no effect.
_TCP = {
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "25000",  # milliseconds, as SHOW writes it
}

# How servers and poolers say that they do not take these options. libpq keeps no SQLSTATE of a failed connection.
_REFUSED = re.compile(
    rf"startup parameter|startup option|command.line option|configuration parameter|{'|'.join((*_CHECK, *_TCP))}",
    re.IGNORECASE,
)


def startup_options(conn: AnyConnection, conninfo: str) -> str | None:
    """The `options` for further connections with this connection string, the application's own included. None if they
    should get none of ours. `conn` was opened with this string."""
    if _names_several_hosts(conn, conninfo):
        return None  # each may be another kind of server
    with literal_cursor(conn) as cur:
        cur.execute(statements.load("db.sql", "pgjobs")["connection_facts"])
        backend_pid, can_check, by_tcp = one(cur)
    if backend_pid != conn.pgconn.backend_pid:  # a pooler sends the client another number
        return None
    settings = {**(_CHECK if can_check else {}), **(_TCP if by_tcp else {})}
    if not settings:
        return None
    ours = " ".join(f"-c {name}={value}" for name, value in settings.items())
    theirs = conn.pgconn.options.decode()  # of the connection string, its service or PGOPTIONS
    return f"{ours} {theirs}".rstrip()  # of two options for one setting the last counts


def is_refusal_of_options(error: BaseException) -> bool:
    """Whether a server or a pooler may have refused the connection because of its startup options."""
    return isinstance(error, psycopg.OperationalError) and _REFUSED.search(str(error)) is not None


def _names_several_hosts(conn: AnyConnection, conninfo: str) -> bool:
    """Whether the string, its service or the environment names several servers. psycopg tries one after another, so
    `conn` may know the host of one alone."""
    given = conninfo_to_dict(conninfo)
    texts = [given.get(name) or os.environ.get(f"PG{name.upper()}") for name in ("host", "hostaddr")]
    of_service = [option.val.decode() for option in conn.pgconn.info if option.keyword == b"host" and option.val]
    return any("," in str(text or "") for text in (*texts, *of_service))
