"""The insert of a single job on a connection of ours, where that is the whole transaction: one message to the server,
and one back.

As hot_path.py does, it speaks to libpq by what psycopg documents of `psycopg.pq`; but it waits as psycopg waits, so
that Ctrl-C cancels it, and it may be called from any code of the application.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import psycopg
from psycopg.errors import InvalidSqlStatementName, error_from_result
from psycopg.pq import DiagnosticField, ExecStatus, Format
from psycopg.pq.abc import PGresult
from psycopg.waiting import Ready, Wait

from pgjobs.cursors import AnyConnection
from pgjobs.hot_path import Prepared

_BACKEND_PID = 6  # the column that says who has answered


class HotInsert:
    """What one connection knows of the statement."""

    def __init__(self, conn: AnyConnection, statement: Prepared) -> None:
        self._conn = conn
        self._statement = statement
        self._direct = False  # whether no pooler stands between this process and the server, for all that is known
        self._prepared = False

    def row(self, values: Sequence[bytes], *, may_prepare: bool) -> list[bytes] | None:
        """Send the values of its parameters; the row that comes back, in the binary form, if there is one. A null is
        an empty value. From the second time on it is prepared, if it may be and the connection leads to the server
        itself."""
        with self._conn.lock:
            try:
                result = self._send(values, may_prepare and self._direct)
            except InvalidSqlStatementName:  # somebody deallocated what others have prepared; nothing was done
                self._prepared = False
                result = self._send(values, False)
        if not result.ntuples:
            return None
        row = [result.get_value(0, column) or b"" for column in range(result.nfields)]
        self._direct = int.from_bytes(row[_BACKEND_PID]) == self._conn.pgconn.backend_pid
        return row

    def _send(self, values: Sequence[bytes], prepare: bool) -> PGresult:
        pgconn, statement = self._conn.pgconn, self._statement
        if prepare and not self._prepared:
            pgconn.send_prepare(statement.name, statement.sql)
            self._answer()
            self._prepared = True
        if prepare:
            pgconn.send_query_prepared(statement.name, values, result_format=Format.BINARY)
        else:
            pgconn.send_query_params(statement.sql, values, result_format=Format.BINARY)
        return self._answer()

    def _answer(self) -> PGresult:
        result = self._conn.wait(self._results())
        if result is not None and result.status in (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK):
            return result
        if result is None or result.error_field(DiagnosticField.SQLSTATE) is None:  # it is not the server that says so
            raise psycopg.OperationalError(self._conn.pgconn.get_error_message())
        raise error_from_result(result, encoding=self._conn.info.encoding)

    def _results(self) -> Generator[Wait, Ready | int, PGresult | None]:
        """The first of the results, when there are no more. To be given to `Connection.wait`."""
        pgconn, first = self._conn.pgconn, None
        while pgconn.flush():  # more than the socket takes at once
            if (yield Wait.RW) & Ready.R:
                pgconn.consume_input()
        while True:
            while pgconn.is_busy():
                yield Wait.R
                pgconn.consume_input()
            result = pgconn.get_result()
            if result is None:
                return first
            first = first or result


def hot_insert(conn: AnyConnection, statement: Prepared) -> HotInsert:
    """That of the connection, which lasts as long as that. Who enqueues into the same schema shares it."""
    known: dict[bytes, HotInsert] = conn.__dict__.setdefault("_pgjobs_inserts", {})
    found = known.get(statement.name)
    if found is None:
        found = known[statement.name] = HotInsert(conn, statement)
    return found
