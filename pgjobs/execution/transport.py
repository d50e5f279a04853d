"""Sends the statements of a claim or a finish, all in one message: one round trip.

The same statements go in one of two ways:

    on a connection                       the message is
    ------------------------------------  -----------------------------------------------------------------------------
    where statements may be prepared      one simple query of EXECUTE commands. A pipeline would take the client twice
                                          the time when its threads compete for the interpreter's lock, which is
                                          released and taken again for every statement.
    elsewhere, as behind a pooler         a pipeline of single statements with parameters of the protocol

It calls libpq through the documented `psycopg.pq`, because cursors take more time than the statements themselves.
"""

from __future__ import annotations

import select
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import psycopg
from psycopg.adapt import Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ConnStatus, Escaping, ExecStatus, PipelineStatus, TransactionStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.rows import TupleRow, tuple_row

from pgjobs.clean_text import connection_ended
from pgjobs.db.connection import shared
from pgjobs.db.cursors import AnyConnection, ClaimCursor
from pgjobs.execution.script import Script, Statement, Values, numbered, text_of

_MOST_ON_A_CONNECTION = 8  # transports, one for each client
_MOST_PREPARED = 100  # statements on a connection; each change of a WorkMap needs new ones
_MOST_TEMPLATES = 100  # each change of a WorkMap makes new scripts, also where the statements stay the same
_AT_ONCE = 8192  # bytes that every socket takes without waiting
# As numbers: libpq's own, which are compared for every result.
_GOOD = (int(ExecStatus.COMMAND_OK), int(ExecStatus.TUPLES_OK))
_BAD = int(ConnStatus.BAD)
_SYNC, _ABORTED = ExecStatus.PIPELINE_SYNC, ExecStatus.PIPELINE_ABORTED

_NO_VALUES: Mapping[str, Any] = {}
_NO_UNQUOTED: Mapping[bytes, bytes] = {}

# A prepared statement is not there, for a handler or the application has deallocated it; or it is there already: behind
# a pooler, another client has prepared it.
WRONG_NAMES = (psycopg.errors.InvalidSqlStatementName, psycopg.errors.DuplicatePreparedStatement)

Run = tuple[Script, Mapping[bytes, bytes], Values]  # with the values that need no quoting, and the others

# The parameters whose values are numbers, names in ASCII and lists of numbers: such a text needs no quoting.
_UNQUOTED = frozenset(
    (
        "id", "token", "new_token", "mark_priority", "mark_time", "mark_id", "set_aside", "since",
        "ids", "rest", "started", "data_ids", "xid",
    )
)  # fmt: skip


class Transport:
    """Runs scripts on one connection, and knows what is prepared on it."""

    def __init__(self, conn: AnyConnection, tag: str, *, prepares: bool) -> None:
        self.prepares = prepares
        self._conn = conn
        self._pgconn = conn.pgconn
        self._tag = tag
        self._names: dict[bytes, bytes] = {}  # of the prepared statements, by their text
        self._stale: list[bytes] = []  # names of prepared statements that are not used any more
        self._made = 0  # names so far
        self._templates: dict[object, bytes] = {}  # of messages; the operator `%` puts the values in
        self._encoding = conn.pgconn.parameter_status(b"client_encoding")  # of the transformer
        self._transformer = Transformer(ClaimCursor(conn, row_factory=tuple_row))
        self._escaping = Escaping(conn.pgconn)
        self._socket = select.poll()
        self._socket.register(conn.fileno(), select.POLLIN)

    def run(
        self,
        script: Script,
        unquoted: Mapping[bytes, bytes] = _NO_UNQUOTED,
        quoted: Values = _NO_VALUES,
        *,
        unprepared: bool = False,
    ) -> tuple[list[PGresult], psycopg.Error | None]:
        """Run a script. Returns the results up to the first error, and the error.

        `unquoted` are values in ASCII that need no quoting, by their names in bytes; `quoted` are all others.
        `unprepared`: nothing that is prepared is used; a handler may have deallocated it, and nothing can be prepared
        in an aborted transaction.
        """
        if unprepared or not self.prepares:
            return self._run_singles([(script, unquoted, quoted)])
        message = self._message(script, unquoted, quoted)
        with self._conn.lock:
            self._pgconn.send_query(message)
            return self._receive(len(message))

    def run_many(
        self, runs: Sequence[Run], *, unprepared: bool = False
    ) -> tuple[list[list[PGresult]], psycopg.Error | None]:
        """Run several scripts in one message. Returns the results of each, up to the first error, and the error.
        `unprepared`: as in `run`."""
        if self.prepares and not unprepared:
            message = b";".join([self._message(*run) for run in runs])
            with self._conn.lock:
                self._pgconn.send_query(message)
                results, error = self._receive(len(message))
        else:
            results, error = self._run_singles(runs)
        found, start = list[list[PGresult]](), 0
        for script, *_ in runs:
            found.append(results[start : start + len(script)])
            start += len(script)
        return found, error

    def send(self, message: bytes) -> tuple[list[PGresult], psycopg.Error | None]:
        """Send a message that was made before. Returns the results up to the first error, and the error."""
        with self._conn.lock:
            self._pgconn.send_query(message)
            return self._receive(len(message))

    def text(self, script: Script) -> bytes:
        """The statements of a script with all values in their text, to be sent by `send_inside`."""
        fixed = {name: self._literal(value) for name, value in script.fixed.items()}
        return b";".join(numbered("", sql, fixed).sql for _, sql in script.steps)

    def set_savepoint(self) -> None:
        """Set the savepoint of a job now, before the first statement of its handler."""
        self.send_inside(b"SAVEPOINT " + self._tag.encode())

    def send_inside(self, message: bytes) -> None:
        """Send commands without values and wait for their answers, inside a call of psycopg, which has the lock. Raises
        the errors of psycopg."""
        pgconn = self._pgconn
        if pgconn.pipeline_status == PipelineStatus.OFF:
            results = [pgconn.exec_(message)]
        else:  # the handler has opened a pipeline, and has sent nothing in it yet
            for statement in filter(None, map(bytes.strip, message.split(b";"))):
                pgconn.send_query_params(statement, None)
            pgconn.pipeline_sync()
            results = _results(pgconn)
        for result in results:
            if result.status not in _GOOD:
                if pgconn.status == _BAD:  # the message of the connection has the server's reason
                    raise connection_ended(pgconn.get_error_message())
                raise error_from_result(result, encoding="utf-8")

    def row(self, result: PGresult) -> TupleRow:
        """The first row of a result: numbers and text, and instants by the format of JSON."""
        self._show_transformer(result)
        return self._transformer.load_row(0, tuple)

    def rows(self, result: PGresult) -> list[TupleRow]:
        self._show_transformer(result)
        return self._transformer.load_rows(0, result.ntuples, tuple)

    def _show_transformer(self, result: PGresult) -> None:
        """Let the transformer see a result. It keeps the encoding that the session had when it was made."""
        encoding = self._pgconn.parameter_status(b"client_encoding")
        if encoding != self._encoding:
            self._encoding = encoding
            self._transformer = Transformer(ClaimCursor(self._conn, row_factory=tuple_row))
        self._transformer.set_pgresult(result)

    def forget(self) -> None:
        """The prepared statements were deallocated, or are too many: prepare them again, under new names."""
        self._names.clear()
        self._templates.clear()

    def rolled_back(self) -> None:
        """A handler's writes were rolled back: what psycopg has prepared may refer to tables that are gone."""
        self._conn._prepared.clear()

    # --- prepared

    def _message(self, script: Script, unquoted: Mapping[bytes, bytes], quoted: Values) -> bytes:
        key = script if script.ascii else script.key(self._conn)
        template = self._templates.get(key)
        if template is None:
            if len(self._templates) >= _MOST_TEMPLATES:
                self._templates.clear()
            template = self._templates[key] = self._make_template(script)
        if quoted:
            unquoted = {**unquoted, **{name.encode(): self._literal(value) for name, value in quoted.items()}}
        return template % unquoted

    def _make_template(self, script: Script) -> bytes:
        if len(self._names) + len(script) > _MOST_PREPARED:  # before the first name stands in the template
            self._stale += self._names.values()
            self.forget()
        self._deallocate_stale()
        parts, undo_role = [], script.undo_role
        for statement in script.statements(self._tag, self._literal):
            if statement.command:
                parts.append(statement.sql.replace(b"%", b"%%"))
                continue
            name = self._names.get(statement.sql)
            if name is None:
                if undo_role is not None:
                    self._undo_role(undo_role)
                    undo_role = None
                name = self._prepare(statement)
            given = b",".join([_placeholder(each) for each in statement.parameters])
            parts.append(b"EXECUTE %b(%b)" % (name, given) if given else b"EXECUTE " + name)
        return b";".join(parts)

    def _prepare(self, statement: Statement) -> bytes:
        name = b"%b_%d" % (statement.name, self._made)
        self._made += 1
        # without the connection's lock, which psycopg has taken when this goes before a handler's statement
        self._pgconn.send_prepare(name, statement.sql)
        _, error = self._receive(len(statement.sql))
        if error is not None:
            raise error
        self._names[statement.sql] = name
        return name

    def _undo_role(self, script: Script) -> None:
        self._pgconn.send_query(b";".join(each.sql for each in script.statements(self._tag, self._literal)))
        _, error = self._receive(0)
        if error is not None:
            raise error

    def _deallocate_stale(self) -> None:
        while self._stale and self._conn.info.transaction_status == TransactionStatus.IDLE:
            self._pgconn.exec_(b"DEALLOCATE " + self._stale.pop())  # fails if a handler has done the same

    # --- single statements

    def _run_singles(self, runs: Sequence[Run]) -> tuple[list[PGresult], psycopg.Error | None]:
        statements = [single for run in runs for single in self._singles(*run)]
        pgconn = self._pgconn
        with self._conn.lock:
            pgconn.enter_pipeline_mode()
            try:
                for sql, values in statements:
                    pgconn.send_query_params(sql, values or None)
                pgconn.pipeline_sync()
                return self._receive(_AT_ONCE + 1, synced=True)
            finally:
                if pgconn.status == ConnStatus.OK:
                    pgconn.exit_pipeline_mode()

    def _singles(
        self, script: Script, unquoted: Mapping[bytes, bytes], quoted: Values
    ) -> Iterator[tuple[bytes, list[bytes | None]]]:
        """The statements of a script with their parameters."""
        encoding = "ascii" if not quoted and script.key(self._conn) is script else self._conn.info.encoding
        given: dict[str, bytes | None] = {name.decode(): value for name, value in unquoted.items()}
        for name, value in (*script.fixed.items(), *quoted.items()):
            text = text_of(value)
            given[name] = None if text is None else text.encode(encoding)
        for sql, parameters in script.singles(self._literal):
            yield sql, [given[name] for name in parameters]

    # --- answers

    def _receive(self, sent: int, *, synced: bool = False) -> tuple[list[PGresult], psycopg.Error | None]:
        pgconn, results, errors = self._pgconn, list[PGresult](), list[psycopg.Error]()
        try:
            if sent > _AT_ONCE:
                self._flush()
            self._socket.poll()  # without the interpreter's lock
            pgconn.consume_input()
            if synced:
                self._collect_synced(results, errors)
            else:
                self._collect(results, errors)
        except psycopg.OperationalError as lost:  # the answer that was read before the error may say why
            if not errors and (result := pgconn.get_result()) is not None:
                errors.append(error_from_result(result, encoding="utf-8"))
            raise _connection_lost(errors, str(lost)) from lost
        if pgconn.status == _BAD:
            raise _connection_lost(errors, pgconn.get_error_message())
        return results, errors[0] if errors else None

    def _collect(self, results: list[PGresult], errors: list[psycopg.Error]) -> None:
        pgconn = self._pgconn
        while True:
            while pgconn.is_busy():  # else get_result() would wait while it has the interpreter's lock
                self._read()
            result = pgconn.get_result()
            if result is None:
                return
            if result.status in _GOOD and not errors:
                results.append(result)
            else:
                errors.append(error_from_result(result, encoding="utf-8"))

    def _collect_synced(self, results: list[PGresult], errors: list[psycopg.Error]) -> None:
        """Read up to the answer to the sync. Between the results of two statements there is a None."""
        pgconn = self._pgconn
        while True:
            while pgconn.is_busy():
                self._read()
            result = pgconn.get_result()
            if result is None:
                if pgconn.status == _BAD:
                    return
                continue
            if result.status == _SYNC:
                return
            if not errors and result.status in _GOOD:
                results.append(result)
            elif result.status != _ABORTED:
                errors.append(error_from_result(result, encoding="utf-8"))

    def _read(self) -> None:
        self._socket.poll()  # without the interpreter's lock
        self._pgconn.consume_input()

    def _flush(self) -> None:
        """Send a message that is too long for the socket's buffer, and read answers in between."""
        pgconn = self._pgconn
        if not pgconn.flush():
            return
        self._socket.modify(pgconn.socket, select.POLLIN | select.POLLOUT)
        while pgconn.flush():
            self._socket.poll()
            pgconn.consume_input()
        self._socket.modify(pgconn.socket, select.POLLIN)

    def _literal(self, value: Any) -> bytes:
        text = text_of(value)
        if text is None:
            return b"NULL"
        # in the encoding that the handler may have set: it is reset only by this message
        encoded = text.encode() if text.isascii() else text.encode(self._conn.info.encoding)
        return self._escaping.escape_literal(encoded)


def _placeholder(name: str) -> bytes:
    return b"'%%(%b)b'" % name.encode() if name in _UNQUOTED else b"%%(%b)b" % name.encode()


def _results(pgconn: PGconn) -> list[PGresult]:
    """Read all results up to the sync of the pipeline."""
    results: list[PGresult] = []
    while True:
        result = pgconn.get_result()
        if pgconn.status == _BAD:
            raise connection_ended(pgconn.get_error_message())
        if result is not None and result.status == _SYNC:
            return results
        if result is not None:  # None separates the results of two statements
            results.append(result)


def transport_for(conn: AnyConnection, tag: str, *, prepares: bool) -> Transport:
    """The transport of a connection, made at the first call. If the connection has prepared statements of too many
    other clients, it prepares nothing."""
    known: dict[tuple[str, bool], Transport] = shared(conn).setdefault("transports", {})
    prepares = prepares and ((tag, True) in known or len(known) < _MOST_ON_A_CONNECTION)
    if (tag, prepares) not in known:
        known[tag, prepares] = Transport(conn, tag, prepares=prepares)
    return known[tag, prepares]


def _connection_lost(errors: Sequence[psycopg.Error], message: str) -> psycopg.OperationalError:
    """The error of a connection that has ended, with the server's reason if it gave one. It is always an
    OperationalError: the callers catch this class."""
    said = next((error for error in errors if error.sqlstate), None)
    if said is None:
        return psycopg.OperationalError(message)
    if isinstance(said, psycopg.OperationalError):
        return said
    lost = psycopg.OperationalError(str(said))
    lost.sqlstate = said.sqlstate
    return lost


def integer(result: PGresult, column: int) -> int:
    return int(result.get_value(0, column) or b"")
