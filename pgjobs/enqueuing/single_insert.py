"""The insert of a single job on a connection that a pool has given us, where that is the whole transaction: one message
to the server, and one back.

As transport.py does, it speaks to libpq by what psycopg documents of `psycopg.pq`; but it waits as psycopg waits, so
that Ctrl-C cancels it, and it may be called from any code of the application.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import partial

import psycopg
from psycopg.errors import InvalidSqlStatementName, error_from_result
from psycopg.pq import DiagnosticField, ExecStatus, Format
from psycopg.pq.abc import PGconn, PGresult
from psycopg.waiting import Ready, Wait

from pgjobs.db.cursors import AnyConnection
from pgjobs.execution.transport import Prepared

_BACKEND_PID = 10  # the column that says who has answered
_MOST_LOSSES = 10  # then no more: a pool's reset may be DISCARD ALL, and each loss is an error in the server's log
_GOOD = (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK)


class HotInsert:
    """What is known of the statement on one connection, and lasts as long as that."""

    def __init__(self) -> None:
        self._direct = False  # whether no pooler stands between this process and the server, for all that is known
        self._losses = 0  # how often it was found deallocated
        self._name = b""  # under which it is prepared now
        self._names = 0  # never one twice: who is interrupted does not know what has become of it

    def row(
        self, conn: AnyConnection, statement: Prepared, values: Sequence[bytes], *, may_prepare: bool
    ) -> list[bytes] | None:
        """Send the values of its parameters; the row that comes back, in the binary form, if there is one. A null is
        an empty value. From the second time on it is prepared, if it may be and the connection leads to the server
        itself."""
        with conn.lock:
            try:
                result = self._send(
                    conn, statement, values, may_prepare and self._direct and self._losses < _MOST_LOSSES
                )
            except InvalidSqlStatementName:  # somebody has deallocated what others have prepared; nothing was done
                self._name = b""
                self._losses += 1
                result = self._send(conn, statement, values, False)
        if not result.ntuples:
            return None
        row = [result.get_value(0, column) or b"" for column in range(result.nfields)]
        self._direct = int.from_bytes(row[_BACKEND_PID]) == conn.pgconn.backend_pid
        return row

    def _send(self, conn: AnyConnection, statement: Prepared, values: Sequence[bytes], prepare: bool) -> PGresult:
        pgconn = conn.pgconn
        if not prepare:
            return _answer(conn, partial(pgconn.send_query_params, statement.sql, values, result_format=Format.BINARY))
        if not self._name:
            self._names += 1
            name = b"%b_%d" % (statement.name, self._names)
            _answer(conn, partial(pgconn.send_prepare, name, statement.sql))
            self._name = name
        return _answer(conn, partial(pgconn.send_query_prepared, self._name, values, result_format=Format.BINARY))


def _answer(conn: AnyConnection, send: Callable[[], None]) -> PGresult:
    result = conn.wait(_results(conn.pgconn, send))
    if result is not None and result.status in _GOOD:
        return result
    if result is None or result.error_field(DiagnosticField.SQLSTATE) is None:  # it is not the server that says so
        raise psycopg.OperationalError(conn.pgconn.get_error_message())
    raise error_from_result(result, encoding=conn.info.encoding)


def _results(pgconn: PGconn, send: Callable[[], None]) -> Generator[Wait, Ready | int, PGresult | None]:
    """What became of it: the result, unless a bad one follows, since it is committed behind its rows. To be given to
    `Connection.wait`, which cancels what was sent in here when Ctrl-C comes."""
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


def hot_insert(conn: AnyConnection, statement: Prepared) -> HotInsert:
    """That of the connection; those who enqueue into the same schema share it."""
    known: dict[bytes, HotInsert] = conn.__dict__.setdefault("_pgjobs_inserts", {})
    found = known.get(statement.name)
    if found is None:
        found = known[statement.name] = HotInsert()
    return found
