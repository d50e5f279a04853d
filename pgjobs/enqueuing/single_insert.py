"""Sends the insert of one plain job: one message to the server, and one back, also where the transaction begins with
it.

The statement is that of `insert_plain_job`; this is a faster transport for it than a cursor. Like transport.py it calls
libpq by the documented `psycopg.pq`, but it waits as psycopg waits: Ctrl-C cancels it, and any code of the application
may call it.

| transaction | sent | prepared |
| --- | --- | --- |
| of its own | the insert alone, which the server commits | by the SingleInsert of the connection |
| of the caller, not begun | BEGIN and the insert, in one message | by psycopg, as for a cursor |
| of the caller, begun | the insert | by psycopg, as for a cursor |

A prepared statement may be gone, because other code has deallocated it. In a transaction of its own the insert is then
sent again. In one of the caller's the error would have aborted the transaction, so there psycopg keeps the books: it
knows what a rollback deallocates.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import psycopg
from psycopg._preparing import Prepare, PrepareManager
from psycopg.errors import InvalidSqlStatementName, error_from_result
from psycopg.pq import ConnStatus, DiagnosticField, ExecStatus, Format, PipelineStatus, TransactionStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.waiting import Ready, Wait

from pgjobs.db.connection import shared
from pgjobs.db.cursors import AnyAsyncConnection, AnyConnection
from pgjobs.enqueuing.copy_rows import instant
from pgjobs.execution.script import Statement

Row = Sequence[Any]
Results = Generator[Wait, Ready | int, PGresult | None]


class PreparedQuery(NamedTuple):
    """A statement as psycopg remembers it among those that it has prepared or counted."""

    query: bytes
    types: tuple[int, ...] = ()  # the server finds them out


_HAS_PIPELINE = psycopg.Pipeline.is_supported()
_BACKEND_PID = 10  # the column with the process id of the server
# After so many losses it prepares no more: each is an error in the log of the server, and where a pool resets its
# connections by DISCARD ALL, each checkout would have one.
_MOST_LOSSES = 10
_GOOD = (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK)


class SingleInsert:
    """What is known of the statement on one connection, for as long as the connection lives."""

    def __init__(self) -> None:
        self._direct = False  # whether the last row came from the server itself, with no pooler in between
        self._losses = 0  # how often the prepared statement was found deallocated
        self._name = b""  # of the prepared statement, if there is one
        self._names = 0  # no name is used twice: after an interrupt it is not known what was prepared

    def row(
        self, conn: AnyConnection, statement: Statement, values: Sequence[bytes], *, may_prepare: bool
    ) -> Row | None:
        """Send the statement, and return its row, if it gives one. From the second time on the statement is prepared,
        if it may be and the connection leads to the server itself."""
        with conn.lock:
            try:
                prepare = may_prepare and self._direct and self._losses < _MOST_LOSSES
                result = self._send(conn, statement, values, prepare)
            except InvalidSqlStatementName:  # other code has deallocated the statement; nothing was inserted
                self._name = b""
                self._losses += 1
                result = self._send(conn, statement, values, False)
        row = _row(result)
        self._direct = row is not None and row[_BACKEND_PID] == conn.pgconn.backend_pid
        return row

    def _send(self, conn: AnyConnection, statement: Statement, values: Sequence[bytes], prepare: bool) -> PGresult:
        pgconn = conn.pgconn
        if not prepare:
            return _wait(conn, partial(pgconn.send_query_params, statement.sql, values, result_format=Format.BINARY))
        if not self._name:
            self._names += 1
            name = b"%b_%d" % (statement.name, self._names)
            _wait(conn, partial(pgconn.send_prepare, name, statement.sql))
            self._name = name
        return _wait(conn, partial(pgconn.send_query_prepared, self._name, values, result_format=Format.BINARY))


def can_send(conn: AnyConnection | AnyAsyncConnection) -> bool:
    """Whether this transport can be used: on an open connection, outside a pipeline, in the encoding that it writes."""
    pgconn = conn.pgconn
    return (
        pgconn.status == ConnStatus.OK
        and pgconn.pipeline_status == PipelineStatus.OFF
        and pgconn.parameter_status(b"client_encoding") == b"UTF8"
    )


def send(conn: AnyConnection, may_prepare: bool, statement: Statement, values: Sequence[bytes]) -> Row | None:
    """Insert a job in a transaction of its own, on a connection that is in no transaction. Return its row, if there is
    one."""
    return _single_insert(conn, statement).row(conn, statement, values, may_prepare=may_prepare)


def send_within(conn: AnyConnection, statement: Statement, values: Sequence[bytes]) -> Row | None:
    """Insert a job in the caller's transaction, which begins with it if it has not begun yet."""
    with conn.lock:
        try:
            result = conn.wait(_within(conn, statement, values))
        except KeyboardInterrupt:
            if conn.pgconn.transaction_status == TransactionStatus.ACTIVE:
                # It came while the generator ran, and ended it: psycopg has cancelled the insert, but reads no more.
                conn.wait(_rest(conn.pgconn))
            raise
    return _row(_checked(conn, result))


async def send_within_async(conn: AnyAsyncConnection, statement: Statement, values: Sequence[bytes]) -> Row | None:
    """The same on an asynchronous connection. Where the task is cancelled, psycopg cancels the insert and reads on."""
    async with conn.lock:
        result = await conn.wait(_within(conn, statement, values))
    return _row(_checked(conn, result))


def _within(conn: AnyConnection | AnyAsyncConnection, statement: Statement, values: Sequence[bytes]) -> Results:
    """What a cursor of psycopg does to execute a statement, apart from the conversion of values."""
    pgconn, known = conn.pgconn, conn._prepared
    begins = pgconn.transaction_status == TransactionStatus.IDLE and not conn.autocommit
    begin = conn._get_tx_start_command() if begins else b""
    query: Any = PreparedQuery(statement.sql)
    prepare, name = known.get(query)
    if begin and (prepare is Prepare.SHOULD or not _HAS_PIPELINE):
        result = yield from _results(pgconn, partial(pgconn.send_query, begin))
        if result is None or result.status not in _GOOD:
            return result
        begin = b""
    if prepare is Prepare.SHOULD:
        result = yield from _results(pgconn, partial(pgconn.send_prepare, name, statement.sql))
        if result is None or result.status not in _GOOD:
            return result
    insert = (
        partial(pgconn.send_query_prepared, name, values, result_format=Format.BINARY)
        if name
        else partial(pgconn.send_query_params, statement.sql, values, result_format=Format.BINARY)
    )
    # psycopg's own method: the one in its place on our connections looks for a DEALLOCATE in each statement
    key = PrepareManager.maybe_add_to_cache(known, query, prepare, name)
    result = yield from _begin_and(pgconn, begin, insert) if begin else _results(pgconn, insert)
    if key is not None:
        known.validate(key, prepare, name, [] if result is None else [result])
    yield from known.maintain_gen(conn)
    return result


def _single_insert(conn: AnyConnection, statement: Statement) -> SingleInsert:
    """The SingleInsert of this connection, which all clients of the same schema share."""
    known: dict[bytes, SingleInsert] = shared(conn).setdefault("inserts", {})
    found = known.get(statement.name)
    if found is None:
        found = known[statement.name] = SingleInsert()
    return found


def _row(result: PGresult) -> Row | None:
    """The columns of `insert_plain_job` as psycopg would return them."""
    if not result.ntuples:
        return None
    value: Any = result.get_value
    integer = int.from_bytes
    scheduled, created = value(0, 4), value(0, 5)
    created_at = instant(integer(created))
    return (
        integer(value(0, 0), signed=True),
        value(0, 1).decode(),
        value(0, 2).decode(),
        value(0, 3).decode(),
        created_at if scheduled == created else instant(integer(scheduled, signed=True)),
        created_at,
        value(0, 6).decode(),
        value(0, 7).decode(),
        integer(value(0, 8), signed=True),
        integer(value(0, 9)),
        integer(value(0, _BACKEND_PID)),
    )


def _wait(conn: AnyConnection, send: Callable[[], None]) -> PGresult:
    return _checked(conn, conn.wait(_results(conn.pgconn, send)))


def _checked(conn: AnyConnection | AnyAsyncConnection, result: PGresult | None) -> PGresult:
    """The result; raises the error that it is."""
    if result is not None and result.status in _GOOD:
        return result
    if result is None or result.error_field(DiagnosticField.SQLSTATE) is None:  # an error of libpq, not of the server
        raise psycopg.OperationalError(conn.pgconn.get_error_message())
    raise error_from_result(result, encoding=conn.info.encoding)


def _results(pgconn: PGconn, send: Callable[[], None]) -> Results:
    """The result; or the error that follows it, since the server commits after it has sent the row. `Connection.wait`
    runs this, and cancels what was sent in here when Ctrl-C comes."""
    found = None
    send()
    while pgconn.flush():  # more than the socket takes at once
        yield Wait.RW
        pgconn.consume_input()  # it does not wait
    while True:
        while pgconn.is_busy():
            yield Wait.R
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:
            return found
        if found is None or found.status in _GOOD:
            found = result


def _begin_and(pgconn: PGconn, begin: bytes, insert: Callable[[], None]) -> Results:
    """The result of the insert, or the first error."""
    found = None
    pgconn.enter_pipeline_mode()
    try:
        pgconn.send_query_params(begin, None)
        insert()
        pgconn.pipeline_sync()
        while pgconn.flush():
            yield Wait.RW
            pgconn.consume_input()
        while True:
            while pgconn.is_busy():
                yield Wait.R
                pgconn.consume_input()
            result = pgconn.get_result()
            if result is not None:
                if result.status == ExecStatus.PIPELINE_SYNC:
                    return found
                if found is None or found.status in _GOOD:
                    found = result
            elif pgconn.status != ConnStatus.OK:
                return found
    finally:
        with suppress(psycopg.OperationalError):  # the connection is lost, or was left while it waits
            pgconn.exit_pipeline_mode()


def _rest(pgconn: PGconn) -> Generator[Wait, Ready | int, None]:
    """Read all results that are still to come, and leave the pipeline."""
    in_pipeline = pgconn.pipeline_status != PipelineStatus.OFF
    if in_pipeline:
        pgconn.pipeline_sync()  # the first one may not have been sent
    while True:
        while pgconn.is_busy():
            yield Wait.R
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None and (not in_pipeline or pgconn.status != ConnStatus.OK):
            return
        if result is not None and result.status == ExecStatus.PIPELINE_SYNC:
            with suppress(psycopg.OperationalError):  # another one follows
                pgconn.exit_pipeline_mode()
                return
