"""The hot path: the statements of queries.py, prepared once for each connection and sent all in one message, so that
the finish of one job and the claim and lock of the next cost one round trip.

It speaks to libpq itself, through what psycopg documents of `psycopg.pq`: the cursors of psycopg cost more than the
statements. The message is a simple query of EXECUTEs. In pipeline mode the same takes the client twice the time when
threads compete for the interpreter's lock, which libpq's functions for that let go of for every statement.

Where a connection cannot be used like this, behind a pooler or under a framework, queries.py does the same with the
same SQL, only slower.
"""

from __future__ import annotations

import re
import select
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

import psycopg
from psycopg.adapt import Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ConnStatus, Escaping, ExecStatus
from psycopg.pq.abc import PGresult
from psycopg.rows import tuple_row

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

_MOST_ON_A_CONNECTION = 8  # clients
_MOST_PREPARED = 100  # statements on a connection: each WorkMap that is changed needs its own
_AT_ONCE = 8192  # bytes, which every socket takes at once
_GOOD = (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK)


Literals = Mapping[str, bytes]
_NO_VALUES: Literals = {}


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A statement as it is prepared, and the parameters it takes in their order; or a command like COMMIT, which cannot
    be prepared and takes none."""

    name: bytes  # the first part of it
    sql: bytes
    parameters: tuple[str, ...]
    command: bool


def prepared(name: str, statement: bytes, fixed: Literals = _NO_VALUES) -> Prepared:
    """A statement of the files. The values that are `fixed` stand in it: each that is sent anew costs the server two or
    three microseconds."""
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


class HotStatements:
    """The statements of one schema, for any connection."""

    def __init__(self, queries: ExecutionQueries) -> None:
        work, tag = queries.work, queries.tag
        self.tag = tag

        def one(name: str) -> Prepared:
            return prepared(f"{tag}_{name}", work[name])

        complete, release = one("complete"), one("release_savepoint")
        self.begin, self.commit, self.commit_and_begin = one("begin"), one("commit"), one("commit_and_begin")
        self.bound, self.savepoint = one("claim_bound"), one("savepoint")
        self.takes, self.takes_around, self.lock = queries.takes, queries.takes_around, work["lock"]
        self.claims_as, self.as_claimed = one("claims_as").sql, work["as_claimed"]
        # by whether the handler has sent anything and wants something kept
        self.complete = {
            (False, False): one("complete_untouched"),
            (False, True): complete,
            (True, False): one("complete_used"),
            (True, True): complete,
        }
        self.release, self.relax = release, one("relax")
        self.no_bounds = (one("no_statement_timeout"), *_commands(work["no_other_bounds"]))
        parts = work["reset_session"].rstrip(b"; ").split(b";\n")
        self.rollback = prepared(f"{tag}_rollback", b"ROLLBACK")
        self.reset = tuple(prepared(f"{tag}_reset_{number}", part) for number, part in enumerate(parts))


def _commands(statements: bytes, fixed: Literals = _NO_VALUES) -> tuple[Prepared, ...]:
    """Several commands, which give a result each."""
    without_comments = re.sub(rb"^ *--.*\n", b"", statements, flags=re.MULTILINE)
    return tuple(prepared("", each, fixed) for each in without_comments.strip().rstrip(b";").split(b";"))


Step = tuple[Prepared, Literals]
# What is a claim's own; the other values are the same for so many that they stand in the statements.
_OWN = ("queue", "token", "id", "mark_priority", "mark_time", "mark_id", "aside")
# Where it stands in a message that is kept; see `_template`.
_PLACES: Literals = {
    "token": b"'%(token)b'",
    "id": b"%(id)d",
    "aside": b"'{%(aside)b}'",
    "mark_priority": b"%(mark_priority)d",
    "mark_time": b"'%(mark_time)b'",
    "mark_id": b"%(mark_id)d",
    "metadata": b"%(metadata)b",
    "output": b"%(output)b",
}


class HotPath:
    """One connection, and what is prepared on it."""

    def __init__(self, conn: AnyConnection, statements: HotStatements) -> None:
        self._statements = statements
        self._conn = conn
        self._names: dict[bytes, bytes] = {}  # of what is prepared, by its text
        self._stale: list[bytes] = []  # names of what is prepared and not used any more
        self._made = 0  # names
        self.forgotten = 0  # how often that was forgotten
        self._messages: dict[Any, bytes] = {}  # the messages of claims and finishes, with places for the values
        self._settings: ClaimValues | None = None  # those of the claims among them
        self._transformer = Transformer(ClaimCursor(conn, row_factory=tuple_row))
        self._texts = Transformer(BatchCursor(conn, row_factory=tuple_row))
        self._escaping = Escaping(conn.pgconn)
        self._socket = select.poll()
        self._socket.register(conn.fileno(), select.POLLIN)
        self.next: Job[Any] | None = None  # claimed and locked together with the last finish
        self.used = False  # whether somebody else has sent anything since the last claim
        self._in_handlers_role = False  # for all that is known, until what is to be prepared was
        self.session: Session | None = None  # as the claims find it; asked by the next one when it is not known
        self._finishes: dict[Any, tuple[Prepared, ...]] = {}
        self._finishes_for: Session | None = None  # the session that they name
        self._named_in_ascii = True
        # all that psycopg sends goes through here
        conn.wait = partial(self._wait, conn.wait)  # type: ignore[method-assign]
        conn._deallocate = partial(self._deallocate, conn._deallocate)  # type: ignore[method-assign]

    def _wait(self, wait: Callable[..., Any], *args: Any, **options: Any) -> Any:
        self.used = True
        return wait(*args, **options)

    def _deallocate(self, deallocate: Callable[..., Any], name: bytes | None) -> Any:
        """Psycopg deallocates: all that there is, behind a ROLLBACK or DROP, if it has prepared anything itself."""
        if name is None:
            self.forget()
        return deallocate(name)

    # --- what the store does, in fewer round trips

    def claim(self, which: str, claim: ClaimRequest) -> Job[Any] | None:
        """As `ExecutionQueries.claim`."""
        while self._stale:
            self._conn.pgconn.exec_(b"DEALLOCATE " + self._stale.pop())  # a handler may have done it before
        begin = self._statements.begin.sql
        if self.session is None:
            begin += b";" + self._statements.claims_as
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
        if self.session != self._finishes_for:  # else what was made for it serves again
            self._finishes_for = self.session
            self._named_in_ascii = (user + role).isascii()
            self._finishes.clear()
            self._messages.clear()

    def _complete_steps(self, *key: bool) -> tuple[Prepared, ...]:
        """What completes a job: by whether the handler has sent anything, wants something kept, and the commit is not
        to wait for the disk. What undoes a handler's role names one, which is written as the session's encoding is."""
        place = (*key, None if self._named_in_ascii else self._conn.info.encoding)
        if place not in self._finishes:
            self._finishes[place] = self._make_steps(*key)
        return self._finishes[place]

    def _make_steps(self, used: bool, kept: bool, async_commit: bool) -> tuple[Prepared, ...]:
        known = self._statements
        steps = [known.relax] if async_commit else []
        if used:
            steps = [known.release, *self._role_steps(), *known.no_bounds, *steps]
        return (*steps, known.complete[used, kept])

    def _role_steps(self) -> tuple[Prepared, ...]:
        """What undoes the role of a handler; a part of a template."""
        session = self.session
        if session is None:
            return ()
        names = {"session_user": session.user, "role": session.role}
        literals = {name: literal.replace(b"%", b"%%") for name, literal in self.literals(names).items()}
        return _commands(self._statements.as_claimed, literals)

    def complete(
        self, job: Job[Any], kept: AttemptData, which: str, then: ClaimRequest | None, *, async_commit: bool = False
    ) -> tuple[FinishResult, Exception | None]:
        """As `ExecutionQueries.complete`; and with `then`, claim and lock the next job too, which is in `next`.
        What went wrong with that is given back, what went wrong before is raised."""
        known, used = self._statements, self.used
        complete = self._complete_steps(used, kept is not NO_DATA, async_commit)
        self._in_handlers_role = used
        try:
            message = self._finish_message(complete, job, kept, then is not None)
            if then is not None:
                message = b"%b;%b" % (message, self._claim_message(which, then))
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
        # an error of the claim behind it does not undo the reset: that was committed by then
        clean = not used or (len(results) > reset + 1 and _integer(results[reset], 1) == 0)
        done = FinishResult(JobState.COMPLETED, _integer(answer, 1), clean)
        if error is None and then is not None:
            try:
                self.next = self._locked(results, then)
            except Exception as lost:  # or it cannot be read
                return done, lost
        return done, error

    def _finish_message(self, complete: Sequence[Prepared], job: Job[Any], kept: AttemptData, going_on: bool) -> bytes:
        """The finish, and what makes the session clean; `going_on` ends with a transaction for the next claim."""
        key = (complete, self._spelled(job.queue), self.used, going_on)
        template = self._messages.get(key)
        if template is None:
            template = self._messages[key] = self._finish_template(complete, job.queue, going_on)
        assert job.token is not None
        values: dict[bytes, Any] = {b"id": job.id, b"token": job.token.hex.encode()}
        if kept is not NO_DATA:
            values |= {b"metadata": self._literal(kept.metadata), b"output": self._literal(kept.output)}
        return template % values

    def _finish_template(self, complete: Sequence[Prepared], queue: str, going_on: bool) -> bytes:
        known = self._statements
        after: tuple[Prepared, ...] = (known.commit_and_begin if going_on else known.commit,)
        if self.used:  # a transaction of its own, which nothing behind it can roll back
            after = (known.commit_and_begin, *known.reset, *after)
        return self._template([*complete, *after], queue, _PLACES)

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
        fixed = {name: self._literal(value) for name, value in settings.items() if name not in _OWN}
        takes = known.takes_around if around else known.takes
        take = prepared(f"{known.tag}_take_{which}", takes[which], fixed)
        lock = prepared(f"{known.tag}_lock", known.lock, fixed)
        steps = [known.bound, take, known.commit_and_begin, lock, known.savepoint]
        places = _PLACES if marked else {**_PLACES, **self._beginning(settings)}
        return self._template(steps, queue, places)

    def _beginning(self, settings: ClaimValues) -> Literals:
        """In the place of a mark: nothing comes before this."""
        return {name: self._literal(settings.get(name)) for name in ("mark_priority", "mark_time", "mark_id")}

    def _spelled(self, queue: str) -> object:
        """What tells messages with this queue apart: how it is written hangs on the session's encoding, if it does."""
        return queue if queue.isascii() else (queue, self._conn.info.encoding)

    def _template(self, steps: Iterable[Prepared], queue: str, places: Literals) -> bytes:
        """A message to be filled by `%`."""
        values = {**places, "queue": self._literal(queue).replace(b"%", b"%%")}
        return self.message([(step, values) for step in steps])

    def _locked(self, results: Sequence[PGresult], claim: ClaimRequest) -> Job[Any] | None:
        """The job that was claimed and locked; leaves no transaction open when there is none."""
        self.used = False
        taken, lock = results[-4], results[-2]
        if taken.ntuples and lock.ntuples:
            self._transformer.set_pgresult(taken)
            return claimed_job(self._transformer.load_row(0, tuple), claim.queue, claim.token)
        self.send(self._statements.rollback.sql)
        if taken.ntuples:
            raise AttemptLost(f"job {_integer(taken, 0)} was claimed but taken away before it was locked")
        return None

    # --- the conversation

    def rows(self, result: PGresult) -> list[tuple[Any, ...]]:
        """With instants as text."""
        self._texts.set_pgresult(result)
        return self._texts.load_rows(0, result.ntuples, tuple)

    def forget(self) -> None:
        """Somebody deallocated what was prepared here: prepare it again, under other names."""
        self.forgotten += 1
        self._names.clear()
        self._messages.clear()

    def message(self, steps: Iterable[Step]) -> bytes:
        """Statements with their values, prepared where they are not yet."""
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
        """The results up to the first that failed, and why that did."""
        with self._conn.lock:
            self._conn.pgconn.send_query(message)
            return self._receive(len(message))

    def _prepare(self, statement: Prepared) -> bytes:
        name = b"%b_%d" % (statement.name, self._made)
        self._made += 1
        # without the connection's lock: that is held where a statement of a handler's is what this comes before
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
        """Be in the role that claimed: that of the handler need not even see the schema, without which nothing is
        prepared."""
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
        except psycopg.OperationalError as lost:  # to read fails; what was read before may say why
            if not errors and (result := pgconn.get_result()) is not None:
                errors.append(error_from_result(result, encoding="utf-8"))
            raise _connection_lost(errors, str(lost)) from lost
        if pgconn.status == ConnStatus.BAD:
            raise _connection_lost(errors, pgconn.get_error_message())
        return results, errors[0] if errors else None

    def _collect(self, results: list[PGresult], errors: list[psycopg.Error]) -> None:
        pgconn = self._conn.pgconn
        while True:
            while pgconn.is_busy():  # else to get the result would wait for it, and keep the interpreter's lock
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
        """Send what is too long for the socket's buffer bit by bit, reading what comes meanwhile."""
        pgconn = self._conn.pgconn
        if not pgconn.flush():
            return
        self._socket.modify(pgconn.socket, select.POLLIN | select.POLLOUT)
        while pgconn.flush():
            self._socket.poll()
            pgconn.consume_input()
        self._socket.modify(pgconn.socket, select.POLLIN)

    def literals(self, values: Mapping[str, Any]) -> dict[str, bytes]:
        """The values as they stand in a message."""
        return {name: self._literal(value) for name, value in values.items()}

    def _literal(self, value: Any) -> bytes:
        if isinstance(value, str):
            # what a handler may have changed of the session holds until the message is read
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


def hot_path(conn: AnyConnection, statements: HotStatements) -> HotPath | None:
    """The hot path of a connection, which lasts as long as that; None when others have made too many on it: each is
    a layer around its `wait`, and a dozen statements that the server keeps."""
    known: dict[str, HotPath] = conn.__dict__.setdefault("_pgjobs_hot_paths", {})
    if statements.tag not in known:
        if len(known) >= _MOST_ON_A_CONNECTION:
            return None
        known[statements.tag] = HotPath(conn, statements)
    known[statements.tag].session = None  # its owner may have changed it since
    return known[statements.tag]


def _connection_lost(errors: Sequence[psycopg.Error], message: str) -> psycopg.OperationalError:
    """What is raised for a connection that has ended: why the server says it ended it, if it says so. It is always an
    OperationalError, which others go by."""
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
