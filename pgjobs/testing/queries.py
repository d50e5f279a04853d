"""The statements for tests of applications, in one schema."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import psycopg
from psycopg.pq import TransactionStatus

from pgjobs.db import statements
from pgjobs.db.checkout import Checkout
from pgjobs.db.cursors import AnyConnection, bound_cursor, literal_cursor, one
from pgjobs.db.rows import str_of
from pgjobs.errors import InvalidTransaction
from pgjobs.job import Job
from pgjobs.job_filter import JobFilter
from pgjobs.observe.listing import Listing
from pgjobs.observe.queries import ObserveQueries

_PAGE = 1000
_SAVEPOINT = b"SAVEPOINT pgjobs_testing"
_CHECK = b"SAVEPOINT pgjobs_check"
#: Raise an error if a deferred constraint is violated. The constraints stay deferred, those that were.
CHECK_CONSTRAINTS = (_CHECK, b"SET CONSTRAINTS ALL IMMEDIATE", b"ROLLBACK TO " + _CHECK, b"RELEASE " + _CHECK)


class Settings(NamedTuple):
    """The settings of a session; those of the server as JSON."""

    session_user: str
    role: str
    settings: str


class TestingQueries:
    __test__ = False  # pytest takes it for tests by its name

    def __init__(self, schema: str) -> None:
        self._testing = statements.load("testing.sql", schema)
        self._observe = ObserveQueries(schema)

    # --- the transaction of the test

    def begin(self, checkout: Checkout) -> Settings:
        """Set the savepoint around what runs in the transaction of the test; a transaction begins here if the
        connection has none yet. Raises InvalidTransaction for a connection in autocommit mode without a transaction."""
        conn = checkout.original
        if conn.autocommit and conn.info.transaction_status == TransactionStatus.IDLE:
            raise InvalidTransaction(
                "tx is in autocommit mode and has no transaction open, so the jobs of the test could not be rolled "
                "back: open one, as in `with conn.transaction(force_rollback=True):`"
            )
        with literal_cursor(conn) as cur:
            cur.execute(_SAVEPOINT)
            cur.execute(self._testing["read_settings"])
            user, role, settings = one(cur)
            return Settings(str_of(user), str_of(role), settings)

    def constraints_hold(self, checkout: Checkout) -> bool:
        """Whether no deferred constraint is violated now. Errors are undone: it is called behind `begin`."""
        with literal_cursor(checkout.original) as cur:
            try:
                for sql in CHECK_CONSTRAINTS:
                    cur.execute(sql)
            except psycopg.Error:
                cur.execute(b"ROLLBACK TO " + _SAVEPOINT)
                return False
        return True

    def end(self, checkout: Checkout, before: Settings) -> str | None:
        """Release the savepoint of `begin`, and set back the settings. Returns what is wrong if the transaction of the
        test has ended meanwhile, or is aborted outside of the savepoints of the job."""
        conn = checkout.conn
        status = conn.info.transaction_status
        if status not in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
            return (
                "the transaction of the test is gone: a handler has sent COMMIT or ROLLBACK, or closed the connection"
            )
        with literal_cursor(conn) as cur:
            if status == TransactionStatus.INERROR:
                cur.execute(b"ROLLBACK TO " + _SAVEPOINT)
            cur.execute(b"RELEASE " + _SAVEPOINT)
            cur.execute(self._testing["restore_settings"], before._asdict())
        if status == TransactionStatus.INERROR:
            return "the outcome of the job could not be written: the log of pgjobs says why"
        return None

    # --- jobs

    def jobs(self, conn: AnyConnection, filter: JobFilter, *, after: int | None = None) -> list[Job[Any]]:
        """All jobs that fit, in the order of their ids, from behind the id `after` if there is one."""
        found: list[Job[Any]] = []
        while True:
            listing = Listing(order="id", descending=False, limit=_PAGE, after_id=after)
            page = self._observe.list_jobs(conn, filter, listing)
            found += page[:_PAGE]
            if len(page) <= _PAGE:
                return found
            after = found[-1].id

    def last_id(self, conn: AnyConnection) -> int | None:
        """The id of the newest job; None if there are no jobs."""
        page = self._observe.list_jobs(conn, JobFilter(), Listing(order="id", descending=True, limit=1))
        return page[0].id if page else None

    def waiting_jobs(
        self, conn: AnyConnection, queue: str | None, *, with_scheduled: bool
    ) -> Sequence[tuple[int, str]]:
        """The id and the queue of each job that waits, in the order in which workers claim them."""
        with bound_cursor(conn) as cur:
            cur.execute(self._testing["waiting_jobs"], {"queue": queue, "with_scheduled": with_scheduled})
            return [(id, queue) for id, queue in cur.fetchall()]

    def travel(self, conn: AnyConnection, by: timedelta) -> None:
        with literal_cursor(conn) as cur:
            cur.execute(self._testing["travel"], {"by": by})

    def clear(self, conn: AnyConnection) -> None:
        with literal_cursor(conn) as cur:
            cur.execute(self._testing["clear"])
