"""The cursors for all statements of pgjobs. They ignore the factories, loaders and dumpers that the application set."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from datetime import UTC, datetime, timedelta
from struct import Struct
from typing import Any

import psycopg
from psycopg import AsyncConnection, AsyncCursor, ClientCursor, Connection, Cursor, postgres
from psycopg.adapt import AdaptersMap, Dumper, Loader
from psycopg.pq import ExecStatus, Format, TransactionStatus
from psycopg.rows import TupleRow, tuple_row
from psycopg.types.string import TextLoader

from pgjobs.errors import InvalidTransaction
from pgjobs.interval import interval_text
from pgjobs.options import FIRST_INSTANT, LAST_INSTANT

AnyConnection = Connection[Any]
AnyAsyncConnection = AsyncConnection[Any]
_YEAR_2000 = datetime(2000, 1, 1, tzinfo=UTC)
_BIGINT = Struct(">q")


class _RawJson(TextLoader):
    """Leaves JSON as text, so that a row can be fetched however deep or long its JSON is."""


class _RawJsonBinary(_RawJson):
    format = Format.BINARY

    def load(self, data: Any) -> str | bytes:
        return super().load(memoryview(data)[1:])  # the first byte is the version of the format


class _IsoInstant(Loader):
    """Reads ISO, the DateStyle that statements with timestamps set for their transaction. psycopg's own loader would go
    by the session's DateStyle."""

    def load(self, data: Any) -> datetime:
        return datetime.fromisoformat(str(data, "ascii"))


class _JobInstant(Loader):
    """Reads an instant of a job, in ISO. An UPDATE by hand may have written one that Python cannot represent, such as
    infinity or the year 10000: the first or last instant of a job stands for it."""

    def load(self, data: Any) -> datetime:
        text = str(data, "ascii")
        try:
            return datetime.fromisoformat(text).astimezone(UTC)
        except (ValueError, OverflowError):
            return FIRST_INSTANT if text.startswith(("-", "0001-")) or text.endswith("BC") else LAST_INSTANT


class _JobInstantBinary(Loader):
    """The same in binary format: microseconds since the year 2000."""

    format = Format.BINARY

    def load(self, data: Any) -> datetime:
        (microseconds,) = _BIGINT.unpack(data)
        try:
            return _YEAR_2000 + timedelta(0, 0, microseconds)
        except OverflowError:
            return FIRST_INSTANT if microseconds < 0 else LAST_INSTANT


class _Interval(Dumper):
    oid = postgres.types["interval"].oid

    def dump(self, obj: timedelta) -> bytes:
        return interval_text(obj).encode()


# Without the loaders and dumpers that the application registered globally.
_ADAPTERS = AdaptersMap(psycopg.adapters)
postgres.register_default_adapters(_ADAPTERS)
_ADAPTERS.register_loader("jsonb", _RawJson)
_ADAPTERS.register_loader("jsonb", _RawJsonBinary)
_ADAPTERS.register_loader("timestamptz", _IsoInstant)
_ADAPTERS.register_dumper(timedelta, _Interval)


def _name_types_in_full(adapters: AdaptersMap) -> None:
    """A literal is sent with its type, as in '...'::uuid; without a schema the search_path could find another type."""
    for known in {info.oid: info for info in postgres.types}.values():
        in_full = copy(known)
        in_full.name = f"pg_catalog.{known.name}"
        adapters.types.add(in_full)


_name_types_in_full(_ADAPTERS)


class BoundCursor(Cursor[TupleRow]):
    adapters = _ADAPTERS


class AsyncBoundCursor(AsyncCursor[TupleRow]):
    adapters = _ADAPTERS


class LiteralCursor(ClientCursor[TupleRow]):
    adapters = _ADAPTERS


class ClaimCursor(LiteralCursor):
    """For the columns of a claim: loads as little as possible, for speed. uuid, JSON and instants stay text."""

    adapters = AdaptersMap(_ADAPTERS)
    adapters.register_loader("uuid", TextLoader)
    adapters.register_loader("jsonb", TextLoader)
    adapters.register_loader("json", TextLoader)
    adapters.register_loader("timestamptz", TextLoader)


_JOB_ADAPTERS = AdaptersMap(_ADAPTERS)
_JOB_ADAPTERS.register_loader("timestamptz", _JobInstant)
_JOB_ADAPTERS.register_loader("timestamptz", _JobInstantBinary)


class BoundJobCursor(BoundCursor):
    adapters = _JOB_ADAPTERS


class AsyncBoundJobCursor(AsyncBoundCursor):
    adapters = _JOB_ADAPTERS


class LiteralJobCursor(LiteralCursor):
    adapters = _JOB_ADAPTERS


def job_cursor(conn: AnyConnection) -> BoundJobCursor:
    """A bound_cursor for the columns of jobs, which reads any row."""
    _check_encoding(conn)
    cur = BoundJobCursor(conn, row_factory=tuple_row)
    cur.format = Format.BINARY
    return cur


def bound_cursor(conn: AnyConnection) -> BoundCursor:
    """A cursor whose parameters the server binds. Results come in binary format, which no setting of the session
    changes."""
    _check_encoding(conn)
    cur = BoundCursor(conn, row_factory=tuple_row)
    cur.format = Format.BINARY
    return cur


def async_job_cursor(conn: AnyAsyncConnection) -> AsyncBoundJobCursor:
    """A job_cursor on an asynchronous connection."""
    _check_encoding(conn)
    cur = AsyncBoundJobCursor(conn, row_factory=tuple_row)
    cur.format = Format.BINARY
    return cur


def async_bound_cursor(conn: AnyAsyncConnection) -> AsyncBoundCursor:
    """A bound_cursor on an asynchronous connection."""
    _check_encoding(conn)
    cur = AsyncBoundCursor(conn, row_factory=tuple_row)
    cur.format = Format.BINARY
    return cur


def _check_encoding(conn: AnyConnection | AnyAsyncConnection) -> None:
    """Refuses a connection without an encoding, on which psycopg returns names as bytes."""
    if conn.info.encoding == "ascii":
        raise InvalidTransaction(
            "client_encoding is SQL_ASCII, so nothing says which characters the bytes stand for: connect with UTF8"
        )


def literal_cursor(conn: AnyConnection) -> LiteralCursor:
    """A cursor that can send several statements in one message: the parameters are quoted into their text."""
    return LiteralCursor(conn, row_factory=tuple_row)


def answers(cur: Cursor[TupleRow]) -> list[list[TupleRow]]:
    """The rows of each statement of a message, without those that return none."""
    answers = []
    more: bool | None = True
    while more:
        if cur.pgresult is not None and cur.pgresult.status == ExecStatus.TUPLES_OK:
            answers.append(cur.fetchall())
        more = cur.nextset()
    return answers


def one(cur: Cursor[TupleRow]) -> TupleRow:
    row = cur.fetchone()
    if row is None:
        raise psycopg.DataError("the statement returned no row")
    return row


def run_guarded(conn: AnyConnection, statement: bytes, values: Mapping[str, Any]) -> list[list[Any]]:
    """Run a statement that may fail because of a row, and return its answers. In a transaction it runs behind a
    savepoint, so that the transaction can go on. Its instants are read as those of jobs."""
    within = conn.info.transaction_status == TransactionStatus.INTRANS
    if within:
        statement = b"SAVEPOINT pgjobs_guard;\n%b;\nRELEASE SAVEPOINT pgjobs_guard" % statement.rstrip(b"; \n")
    with LiteralJobCursor(conn, row_factory=tuple_row) as cur:
        try:
            cur.execute(statement, values)
        except psycopg.Error:
            if within and conn.info.transaction_status == TransactionStatus.INERROR:
                cur.execute(b"ROLLBACK TO SAVEPOINT pgjobs_guard;\nRELEASE SAVEPOINT pgjobs_guard")
            raise
        return answers(cur)


def commit(conn: AnyConnection) -> None:
    with literal_cursor(conn) as cur:
        cur.execute(b"COMMIT")


def rollback(conn: AnyConnection) -> None:
    with literal_cursor(conn) as cur:
        cur.execute(b"ROLLBACK")
