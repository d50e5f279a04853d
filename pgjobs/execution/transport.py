"""Sends the statements of queries.py prepared, many in one message: the finish of a job and the claim and lock of the
next cost one round trip.

It calls libpq through the documented `psycopg.pq`, because cursors take more time than the statements themselves. A
message is one simple query of EXECUTE commands. Pipeline mode would take the client twice the time when its threads
compete for the interpreter's lock, which is released and taken again for every statement.

Where statements may not be prepared, behind a pooler or in a framework, queries.py sends the same SQL more slowly.
"""

from __future__ import annotations

import re
import select
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
from psycopg.adapt import Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ConnStatus, Escaping, ExecStatus
from psycopg.pq.abc import PGresult
from psycopg.rows import tuple_row

from pgjobs.db.connection import shared
from pgjobs.db.cursors import AnyConnection, BatchCursor, ClaimCursor
from pgjobs.db.rows import claimed_job
from pgjobs.errors import AttemptLost
from pgjobs.execution.outcome import NO_DATA, AttemptData
from pgjobs.execution.queries import (
    ClaimRequest,
    ClaimValues,
    ExecutionQueries,
    FinishResult,
    Session,
    attempt_lost,
    lost_or,
)
from pgjobs.interval import interval_text
from pgjobs.job import Job, JobState

_MOST_ON_A_CONNECTION = 8  # transports, one for each client
_MOST_PREPARED = 100  # statements on a connection; each change of a WorkMap needs new ones
_AT_ONCE = 8192  # bytes that every socket takes without waiting
_GOOD = (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK)


Literals = Mapping[str, bytes]
_NO_VALUES: Literals = {}


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A statement to be prepared, with the names of its parameters in order; or a command such as COMMIT, which cannot
    be prepared and has no parameters."""

    name: bytes  # a number is added to it
    sql: bytes
    parameters: tuple[str, ...]
    command: bool


def prepared(name: str, statement: bytes, fixed: Literals = _NO_VALUES) -> Prepared:
    """Make a `Prepared` of a statement of the .sql files. The `fixed` values are written into its text: the server
    takes two or three microseconds for each parameter."""
    parameters: list[str] = []

    def numbered(match: re.Match[bytes]) -> bytes:
        if not match[1]:
            return b"%"
        parameter = match[1].decode()
        if parameter in fixed:
            return fixed[parameter]
        if parameter not in parameters:
            parameters.append(parameter)
        return b"$%d" % (parameters.index(parameter) + 1)

    text = re.sub(rb"^ *--.*\n", b"", statement, flags=re.MULTILINE).strip().rstrip(b";")
    sql = re.sub(rb"%%|%\((\w+)\)s", numbered, text)
    command = re.match(rb"SELECT|WITH|UPDATE|INSERT|DELETE", sql) is None
    return Prepared(name.encode(), sql, tuple(parameters), command)


class TransportStatements:
    """The statements of one schema, which serve all connections."""

    def __init__(self, queries: ExecutionQueries) -> None:
        work, tag = queries.work, queries.tag
        self.tag = tag

        def one(name: str) -> Prepared:
            return prepared(f"{tag}_{name}", work[name])

        complete, release = one("complete"), one("release_savepoint")
        self.begin, self.commit, self.commit_and_begin = one("begin"), one("commit"), one("commit_and_begin")
        self.set_timeout, self.savepoint = one("set_claim_timeout"), one("savepoint")
        self.claims, self.claims_around, self.lock = queries.claims, queries.claims_around, work["lock"]
        self.read_role, self.set_claim_role = one("read_role").sql, work["set_claim_role"]
        # by whether the handler has used the connection, and whether it has set metadata or output
        self.complete = {
            (False, False): one("complete_untouched"),
            (False, True): complete,
            (True, False): one("complete_used"),
            (True, True): complete,
        }
        self.release, self.commit_async = release, one("commit_async")
        self.drop_settings = (one("drop_statement_timeout"), *_commands(work["drop_other_settings"]))
        parts = work["reset_session"].rstrip(b"; ").split(b";\n")
        self.rollback = prepared(f"{tag}_rollback", b"ROLLBACK")
        self.reset = tuple(prepared(f"{tag}_reset_{number}", part) for number, part in enumerate(parts))


def _commands(statements: bytes, fixed: Literals = _NO_VALUES) -> tuple[Prepared, ...]:
    """Split a text into its commands: each gives a result of its own."""
    without_comments = re.sub(rb"^ *--.*\n", b"", statements, flags=re.MULTILINE)
    return tuple(prepared("", each, fixed) for each in without_comments.strip().rstrip(b";").split(b";"))


Step = tuple[Prepared, Literals]
# The parameters of a claim that change with each one; the other values are written into the statements.
_PER_CLAIM = ("queue", "token", "id", "mark_priority", "mark_time", "mark_id", "aside")
# Their placeholders in the templates of messages, and those of what a handler set; see `_template`.
_PLACEHOLDERS: Literals = {
    "token": b"'%(token)b'",
    "id": b"%(id)d",
    "aside": b"'{%(aside)b}'",
    "mark_priority": b"%(mark_priority)d",
    "mark_time": b"'%(mark_time)b'",
    "mark_id": b"%(mark_id)d",
    "metadata": b"%(metadata)b",
    "output": b"%(output)b",
}


class PreparedTransport:
    """Sends messages on one connection, and knows what is prepared on it."""

    def __init__(self, conn: AnyConnection, statements: TransportStatements) -> None:
        self._statements = statements
        self._conn = conn
        self._names: dict[bytes, bytes] = {}  # of the prepared statements, by their text
        self._stale: list[bytes] = []  # names of prepared statements that are not used any more
        self._made = 0  # names so far
        self.forgotten = 0  # how often `forget` was called
        self._messages: dict[Any, bytes] = {}  # templates of claims and finishes
        self._settings: ClaimValues | None = None  # of the claims among them
        self._transformer = Transformer(ClaimCursor(conn, row_factory=tuple_row))
        self._texts = Transformer(BatchCursor(conn, row_factory=tuple_row))
        self._escaping = Escaping(conn.pgconn)
        self._socket = select.poll()
        self._socket.register(conn.fileno(), select.POLLIN)
        self.next: Job[Any] | None = None  # claimed and locked together with the last finish
        self.used = False  # whether the handler has sent anything
        self._in_handlers_role = False  # whether the handler may have changed the role; undone before a PREPARE
        self.session: Session | None = None  # None: the next claim reads it
        self._finishes: dict[Any, tuple[Prepared, ...]] = {}
        self._finishes_for: Session | None = None  # the session whose role they restore
        self._named_in_ascii = True

    # --- claim and finish

    def claim(self, which: str, claim: ClaimRequest) -> Job[Any] | None:
        """As `ExecutionQueries.claim`."""
        while self._stale:
            self._conn.pgconn.exec_(b"DEALLOCATE " + self._stale.pop())  # fails if a handler has done the same
        begin = self._statements.begin.sql
        if self.session is None:
            begin += b";" + self._statements.read_role
        results, error = self.send(begin + b";" + self._claim_message(which, claim))
        if error is not None:
            raise error
        if self.session is None:
            self._learn_session(results[1])
        return self._locked(results, claim)

    def _learn_session(self, answer: PGresult) -> None:
        values = [answer.get_value(0, column) or b"" for column in range(2)]
        user, role = (value.decode(self._conn.info.encoding, "surrogateescape") for value in values)
        self.session = Session(user, role)
        if self.session != self._finishes_for:  # else its messages can be used again
            self._finishes_for = self.session
            self._named_in_ascii = (user + role).isascii()
            self._finishes.clear()
            self._messages.clear()

    def _complete_steps(self, *key: bool) -> tuple[Prepared, ...]:
        """The steps that complete a job, by the arguments of `_make_steps`. They name a role, whose bytes depend on the
        session's encoding."""
        place = (*key, None if self._named_in_ascii else self._conn.info.encoding)
        if place not in self._finishes:
            self._finishes[place] = self._make_steps(*key)
        return self._finishes[place]

    def _make_steps(self, used: bool, has_data: bool, async_commit: bool) -> tuple[Prepared, ...]:
        known = self._statements
        steps = [known.commit_async] if async_commit else []
        if used:
            steps = [known.release, *self._role_steps(), *known.drop_settings, *steps]
        return (*steps, known.complete[used, has_data])

    def _role_steps(self) -> tuple[Prepared, ...]:
        """The steps that return to the role of the claim, as parts of a template."""
        session = self.session
        if session is None:
            return ()
        names = {"session_user": session.user, "role": session.role}
        literals = {name: literal.replace(b"%", b"%%") for name, literal in self.literals(names).items()}
        return _commands(self._statements.set_claim_role, literals)

    def complete(
        self,
        job: Job[Any],
        data: AttemptData,
        which: str,
        next_claim: ClaimRequest | None,
        *,
        async_commit: bool = False,
    ) -> tuple[FinishResult, Exception | None]:
        """As `ExecutionQueries.complete`; with `next_claim`, also claim and lock the next job, and store it in `next`.
        Raises the error of the finish; returns the error of the claim."""
        known, used = self._statements, self.used
        complete = self._complete_steps(used, data is not NO_DATA, async_commit)
        self._in_handlers_role = used
        try:
            message = self._finish_message(complete, job, data, next_claim is not None)
            if next_claim is not None:
                message = b"%b;%b" % (message, self._claim_message(which, next_claim))
        finally:
            self._in_handlers_role = False
        results, error = self.send(message)
        if len(results) <= len(complete):  # the COMMIT behind it was not reached, or failed
            assert error is not None
            raise lost_or(error, job)
        answer = results[len(complete) - 1]
        if not answer.ntuples:
            raise attempt_lost(job)
        reset = len(complete) + len(known.reset)
        # the reset is committed before the claim, so an error of the claim does not undo it
        clean = not used or (len(results) > reset + 1 and _integer(results[reset], 1) == 0)
        done = FinishResult(JobState.COMPLETED, _integer(answer, 1), clean)
        if error is None and next_claim is not None:
            try:
                self.next = self._locked(results, next_claim)
            except Exception as lost:  # AttemptLost, or an error in reading the row
                return done, lost
        return done, error

    def _finish_message(self, complete: Sequence[Prepared], job: Job[Any], data: AttemptData, going_on: bool) -> bytes:
        """The finish and the reset of the session. With `going_on` it ends in a transaction for the next claim."""
        key = (complete, self._spelled(job.queue), self.used, going_on)
        template = self._messages.get(key)
        if template is None:
            template = self._messages[key] = self._finish_template(complete, job.queue, going_on)
        assert job.token is not None
        values: dict[bytes, Any] = {b"id": job.id, b"token": job.token.hex.encode()}
        if data is not NO_DATA:
            values |= {b"metadata": self._literal(data.metadata), b"output": self._literal(data.output)}
        return template % values

    def _finish_template(self, complete: Sequence[Prepared], queue: str, going_on: bool) -> bytes:
        known = self._statements
        after: tuple[Prepared, ...] = (known.commit_and_begin if going_on else known.commit,)
        if self.used:  # the reset is a transaction of its own, which the claim cannot roll back
            after = (known.commit_and_begin, *known.reset, *after)
        return self._template([*complete, *after], queue, _PLACEHOLDERS)

    def _claim_message(self, which: str, claim: ClaimRequest) -> bytes:
        settings, queue, token, id, mark, aside = claim
        if settings is not self._settings:
            self._settings = settings
            self._messages.clear()
        around = bool(aside)
        key = (which, self._spelled(queue), mark is None, around)
        template = self._messages.get(key)
        if template is None:
            template = self._claim_template(which, queue, marked=mark is not None, around=around)
            self._messages[key] = template
        values: dict[bytes, Any] = {b"token": token.hex.encode(), b"id": id}
        if mark is not None:
            values[b"mark_priority"], time, values[b"mark_id"] = mark
            values[b"mark_time"] = time.isoformat().encode()
        if around:
            values[b"aside"] = ",".join(map(str, aside)).encode()
        return template % values

    def _claim_template(self, which: str, queue: str, *, marked: bool, around: bool) -> bytes:
        known, settings = self._statements, self._settings or {}
        if len(self._names) >= _MOST_PREPARED:
            self._stale += self._names.values()
            self.forget()
        fixed = {name: self._literal(value) for name, value in settings.items() if name not in _PER_CLAIM}
        claims = known.claims_around if around else known.claims
        claim = prepared(f"{known.tag}_claim_{which}", claims[which], fixed)
        lock = prepared(f"{known.tag}_lock", known.lock, fixed)
        steps = [known.set_timeout, claim, known.commit_and_begin, lock, known.savepoint]
        placeholders = _PLACEHOLDERS if marked else {**_PLACEHOLDERS, **self._beginning(settings)}
        return self._template(steps, queue, placeholders)

    def _beginning(self, settings: ClaimValues) -> Literals:
        """The mark that lies before all jobs of a queue."""
        return {name: self._literal(settings.get(name)) for name in ("mark_priority", "mark_time", "mark_id")}

    def _spelled(self, queue: str) -> object:
        """The queue as a part of a key of `_messages`: the bytes of a name beyond ASCII depend on the session's
        encoding."""
        return queue if queue.isascii() else (queue, self._conn.info.encoding)

    def _template(self, steps: Iterable[Prepared], queue: str, placeholders: Literals) -> bytes:
        """Make a message with placeholders; the operator `%` puts the values in."""
        values = {**placeholders, "queue": self._literal(queue).replace(b"%", b"%%")}
        return self.message([(step, values) for step in steps])

    def _locked(self, results: Sequence[PGresult], claim: ClaimRequest) -> Job[Any] | None:
        """Read the job that was claimed and locked. None if there is none: then the transaction is rolled back."""
        self.used = False
        taken, lock = results[-4], results[-2]
        if taken.ntuples and lock.ntuples:
            self._transformer.set_pgresult(taken)
            return claimed_job(self._transformer.load_row(0, tuple), claim.queue, claim.token)
        self.send(self._statements.rollback.sql)
        if taken.ntuples:
            raise AttemptLost(f"job {_integer(taken, 0)} was claimed but taken away before it was locked")
        return None

    # --- messages

    def rows(self, result: PGresult) -> list[tuple[Any, ...]]:
        """The rows of a result, with instants as text."""
        self._texts.set_pgresult(result)
        return self._texts.load_rows(0, result.ntuples, tuple)

    def forget(self) -> None:
        """The prepared statements were deallocated, or are too many: prepare them again, under new names."""
        self.forgotten += 1
        self._names.clear()
        self._messages.clear()

    def message(self, steps: Iterable[Step]) -> bytes:
        """Make a message of statements with their values; statements that are not prepared yet are prepared first."""
        names, parts = self._names, []
        for statement, values in steps:
            if statement.command:
                parts.append(statement.sql)
                continue
            name = names.get(statement.sql) or self._prepare(statement)
            given = b",".join([values[each] for each in statement.parameters])
            parts.append(b"EXECUTE %b(%b)" % (name, given) if given else b"EXECUTE " + name)
        return b";".join(parts)

    def send(self, message: bytes) -> tuple[list[PGresult], psycopg.Error | None]:
        """Send a message. Returns the results up to the first error, and the error."""
        with self._conn.lock:
            self._conn.pgconn.send_query(message)
            return self._receive(len(message))

    def _prepare(self, statement: Prepared) -> bytes:
        name = b"%b_%d" % (statement.name, self._made)
        self._made += 1
        # without the connection's lock, which psycopg has taken when this goes before a handler's statement
        if self._in_handlers_role:
            self._in_handlers_role = False
            self._undo_role()
        self._conn.pgconn.send_prepare(name, statement.sql)
        _, error = self._receive(len(statement.sql))
        if error is not None:
            raise error
        self._names[statement.sql] = name
        return name

    def _undo_role(self) -> None:
        """Return to the role that claimed the job: the handler's role may lack the privileges to prepare statements."""
        message = b";".join(step.sql for step in self._role_steps()) % {}
        if not message:
            return
        self._conn.pgconn.send_query(message)
        _, error = self._receive(len(message))
        if error is not None:
            raise error

    def _receive(self, sent: int) -> tuple[list[PGresult], psycopg.Error | None]:
        pgconn, results, errors = self._conn.pgconn, list[PGresult](), list[psycopg.Error]()
        try:
            if sent > _AT_ONCE:
                self._flush()
            self._read()
            self._collect(results, errors)
        except psycopg.OperationalError as lost:  # the answer that was read before the error may say why
            if not errors and (result := pgconn.get_result()) is not None:
                errors.append(error_from_result(result, encoding="utf-8"))
            raise _connection_lost(errors, str(lost)) from lost
        if pgconn.status == ConnStatus.BAD:
            raise _connection_lost(errors, pgconn.get_error_message())
        return results, errors[0] if errors else None

    def _collect(self, results: list[PGresult], errors: list[psycopg.Error]) -> None:
        pgconn = self._conn.pgconn
        while True:
            while pgconn.is_busy():  # else get_result() would wait while it has the interpreter's lock
                self._read()
            result = pgconn.get_result()
            if result is None:
                return
            if not errors and result.status in _GOOD:
                results.append(result)
            else:
                errors.append(error_from_result(result, encoding="utf-8"))

    def _read(self) -> None:
        self._socket.poll()  # without the interpreter's lock
        self._conn.pgconn.consume_input()

    def _flush(self) -> None:
        """Send a message that is too long for the socket's buffer, and read answers in between."""
        pgconn = self._conn.pgconn
        if not pgconn.flush():
            return
        self._socket.modify(pgconn.socket, select.POLLIN | select.POLLOUT)
        while pgconn.flush():
            self._socket.poll()
            pgconn.consume_input()
        self._socket.modify(pgconn.socket, select.POLLIN)

    def literals(self, values: Mapping[str, Any]) -> dict[str, bytes]:
        """The values as they are written in a message."""
        return {name: self._literal(value) for name, value in values.items()}

    def _literal(self, value: Any) -> bytes:
        if isinstance(value, str):
            # in the encoding that the handler may have set: it is reset only by this message
            text = value.encode() if value.isascii() else value.encode(self._conn.info.encoding)
            return self._escaping.escape_literal(text)
        match value:
            case UUID():
                return b"'%b'" % value.hex.encode()
            case None:
                return b"NULL"
            case bool():
                return b"'true'" if value else b"'false'"
            case int():
                return b"%d" % value
            case timedelta():
                return b"'%b'" % interval_text(value).encode()
        return self._literal(_array(value))


def transport_for(conn: AnyConnection, statements: TransportStatements) -> PreparedTransport | None:
    """The transport of a connection, made at the first call. None if the connection has too many of other clients: each
    has a dozen statements in the server."""
    known: dict[str, PreparedTransport] = shared(conn).setdefault("transports", {})
    if statements.tag not in known:
        if len(known) >= _MOST_ON_A_CONNECTION:
            return None
        known[statements.tag] = PreparedTransport(conn, statements)
    known[statements.tag].session = None  # the owner may have changed it since
    return known[statements.tag]


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


def _array(texts: list[str]) -> str:
    quoted = (text.replace("\\", "\\\\").replace('"', '\\"') for text in texts)
    return "{" + ",".join(f'"{text}"' for text in quoted) + "}"


def _integer(result: PGresult, column: int) -> int:
    return int(result.get_value(0, column) or b"")
