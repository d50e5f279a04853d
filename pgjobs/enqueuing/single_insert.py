"""Sends the insert of one job in a transaction of its own: one message to the server, and one back.

The statement is that of `insert_plain_job`; this is a faster transport for it, on a connection that no other code uses
at the moment. Like transport.py it speaks to libpq by the documented calls of `psycopg.pq`, but it waits as psycopg
waits: Ctrl-C cancels it, and any code of the application may call it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any

import psycopg
from psycopg.errors import InvalidSqlStatementName, error_from_result
from psycopg.pq import DiagnosticField, ExecStatus, Format
from psycopg.pq.abc import PGconn, PGresult
from psycopg.waiting import Ready, Wait

from pgjobs.db.connection import shared
from pgjobs.db.cursors import AnyConnection
from pgjobs.enqueuing.copy_rows import instant
from pgjobs.enqueuing.queries import Request, Rows, check_encoding
from pgjobs.execution.transport import Prepared

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

    def rows(
        self, conn: AnyConnection, statement: Prepared, values: Sequence[bytes], codec: str, *, may_prepare: bool
    ) -> Rows:
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
        if not result.ntuples:
            return ()
        row = _decoded(result, codec)
        self._direct = row[_BACKEND_PID] == conn.pgconn.backend_pid
        return (row,)

    def _send(self, conn: AnyConnection, statement: Prepared, values: Sequence[bytes], prepare: bool) -> PGresult:
        pgconn = conn.pgconn
        if not prepare:
            return _wait(conn, partial(pgconn.send_query_params, statement.sql, values, result_format=Format.BINARY))
        if not self._name:
            self._names += 1
            name = b"%b_%d" % (statement.name, self._names)
            _wait(conn, partial(pgconn.send_prepare, name, statement.sql))
            self._name = name
        return _wait(conn, partial(pgconn.send_query_prepared, self._name, values, result_format=Format.BINARY))


def send(conn: AnyConnection, may_prepare: bool, request: Request) -> Rows:
    """As `queries.send`, for a request that has a `prepared` form, on a connection that is in no transaction."""
    statement = request.prepared
    assert statement is not None
    codec = check_encoding(conn)
    values = [str(request.parameters[name]).encode(codec) for name in statement.parameters]
    return _single_insert(conn, statement).rows(conn, statement, values, codec, may_prepare=may_prepare)


def _single_insert(conn: AnyConnection, statement: Prepared) -> SingleInsert:
    """The SingleInsert of this connection, which all clients of the same schema share."""
    known: dict[bytes, SingleInsert] = shared(conn).setdefault("inserts", {})
    found = known.get(statement.name)
    if found is None:
        found = known[statement.name] = SingleInsert()
    return found


def _decoded(result: PGresult, codec: str) -> Sequence[Any]:
    """The columns of `insert_plain_job` as psycopg would return them."""
    values: list[Any] = [result.get_value(0, column) for column in range(_BACKEND_PID + 1)]
    id, state, args, metadata, scheduled_at, created_at, queue, kind, priority, max_attempts, pid = values
    integer = int.from_bytes
    return (
        integer(id, signed=True),
        state.decode(),
        args.decode(codec),
        metadata.decode(codec),
        instant(integer(scheduled_at, signed=True)),
        instant(integer(created_at, signed=True)),
        queue.decode(codec),
        kind.decode(codec),
        integer(priority, signed=True),
        integer(max_attempts),
        integer(pid),
    )


def _wait(conn: AnyConnection, send: Callable[[], None]) -> PGresult:
    result = conn.wait(_results(conn.pgconn, send))
    if result is not None and result.status in _GOOD:
        return result
    if result is None or result.error_field(DiagnosticField.SQLSTATE) is None:  # an error of libpq, not of the server
        raise psycopg.OperationalError(conn.pgconn.get_error_message())
    raise error_from_result(result, encoding=conn.info.encoding)


def _results(pgconn: PGconn, send: Callable[[], None]) -> Generator[Wait, Ready | int, PGresult | None]:
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
        if found is None or result.status not in _GOOD:
            found = result
