"""The hot path: the statements of store.py, prepared once for each connection and sent several at a time, so that the
finish of one job and the claim and lock of the next cost one round trip.

It speaks to libpq itself, through what psycopg documents of `psycopg.pq`: the cursors of psycopg cost more than the
statements. Where a connection cannot be used like this, behind a pooler or under a framework, store.py does the same
with the same SQL, only slower.
"""

from __future__ import annotations

import re
import select
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

import psycopg
from psycopg.adapt import Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ConnStatus, ExecStatus
from psycopg.pq.abc import PGresult

from pgjobs.cursors import AnyConnection, bound_cursor
from pgjobs.errors import AttemptLost
from pgjobs.job import Job
from pgjobs.outcome import Kept
from pgjobs.store import Finished, Store, as_job, lost_or

_BINARY = 1
_MOST_ON_A_CONNECTION = 8  # clients


@dataclass(frozen=True, slots=True)
class Prepared:
    """A statement as libpq takes it, and the parameters it takes in their order."""

    name: bytes  # with a place for the generation
    sql: bytes
    parameters: tuple[str, ...]


def prepared(name: str, statement: bytes) -> Prepared:
    """A statement of the files, with the parameters that libpq knows."""
    parameters: list[str] = []

    def numbered(match: re.Match[str]) -> str:
        if match[1] not in parameters:
            parameters.append(match[1])
        return f"${parameters.index(match[1]) + 1}"

    text = re.sub(r"^ *--.*\n", "", statement.decode(), flags=re.MULTILINE).strip().rstrip(";")
    sql = re.sub(r"%\((\w+)\)s", numbered, text).replace("%%", "%")
    return Prepared(f"{name}_%d".encode(), sql.encode(), tuple(parameters))


class HotStatements:
    """The prepared statements of one schema."""

    def __init__(self, store: Store) -> None:
        work, tag = store.work, store.tag
        self.tag = tag

        def one(name: str) -> Prepared:
            return prepared(f"{tag}_{name}", work[name])

        begin, commit = one("begin"), one("commit")
        self.takes = {order: prepared(f"{tag}_take_{order}", sql) for order, sql in store.takes.items()}
        self.before_take = (begin, one("claim_bounds"))
        self.after_take = (commit, begin, one("lock"), one("savepoint"))
        self.finish: tuple[Prepared, ...] = (one("release_savepoint"), one("complete"), commit)
        self.finish_used: tuple[Prepared, ...] = (
            one("release_savepoint"),
            one("no_statement_timeout"),
            one("complete"),
            commit,
        )
        parts = work["reset_session"].rstrip(b"; ").split(b";\n")
        self.rollback = prepared(f"{tag}_rollback", b"ROLLBACK")
        self.reset: tuple[Prepared, ...] = tuple(
            prepared(f"{tag}_reset_{number}", part) for number, part in enumerate(parts)
        )


Step = tuple[Prepared, Mapping[str, Any]]


class HotPath:
    """One connection, and what is prepared on it."""

    def __init__(self, conn: AnyConnection, statements: HotStatements) -> None:
        self._statements = statements
        self._conn = conn
        self._prepared: set[bytes] = set()
        self._generation = 0
        self._transformer = Transformer(bound_cursor(conn))
        self._socket = select.poll()
        self._socket.register(conn.fileno(), select.POLLIN)
        self.next: Job[Any] | None = None  # claimed and locked together with the last finish
        self.used = False  # whether somebody else has sent anything since the last claim
        # all that psycopg sends goes through here
        conn.wait = partial(self._wait, conn.wait)  # type: ignore[method-assign]

    def _wait(self, wait: Callable[..., Any], *args: Any, **options: Any) -> Any:
        self.used = True
        return wait(*args, **options)

    # --- what the store does, in fewer round trips

    def claim(self, which: str, values: Mapping[str, Any]) -> Job[Any] | None:
        """As `Store.claim`."""
        steps = self._claim_steps(which, values)
        results, error = self._send(steps)
        if error is not None:
            raise error
        return self._locked(results)

    def complete(
        self, job: Job[Any], kept: Kept, which: str, then: Mapping[str, Any] | None
    ) -> tuple[Finished, Exception | None]:
        """As `Store.complete`; and with `then`, claim and lock the next job too, which stands in `next`. What went
        wrong with that is given back, what went wrong before is raised."""
        values = {
            "id": job.id,
            "queue": job.queue,
            "token": job.token,
            "metadata": kept.metadata,
            "output": kept.output,
        }
        finish, reset = self._statements.finish, self._statements.reset if self.used else ()
        if self.used:
            finish = self._statements.finish_used
        steps = [(statement, values) for statement in (*finish, *reset)]
        claim = [] if then is None else self._claim_steps(which, then)
        results, error = self._send([*steps, *claim])
        if len(results) < len(finish):
            assert error is not None
            raise lost_or(error, job)
        answer = results[len(finish) - 2]
        clean = not reset or (len(results) >= len(steps) and _integer(results[len(steps) - 1], 1) == 0)
        done = Finished.of(_text(answer, 0), _integer(answer, 1), clean)
        if error is None and claim:
            try:
                self.next = self._locked(results[len(steps) :])
            except AttemptLost as lost:
                return done, lost
        return done, error

    def _claim_steps(self, which: str, values: Mapping[str, Any]) -> list[Step]:
        known = self._statements
        return [(step, values) for step in (*known.before_take, known.takes[which], *known.after_take)]

    def _locked(self, results: Sequence[PGresult]) -> Job[Any] | None:
        """The job that was claimed and locked; leaves no transaction open when there is none."""
        self.used = False
        taken, lock = results[len(self._statements.before_take)], results[-2]
        if taken.ntuples and lock.ntuples:
            self._transformer.set_pgresult(taken)
            return as_job(self._transformer.load_row(0, tuple))
        self._send([(self._statements.rollback, {})])
        if taken.ntuples:
            raise AttemptLost(f"job {_integer(taken, 0)} was claimed but taken away before it was locked")
        return None

    # --- the conversation

    def forget(self) -> None:
        """Somebody deallocated what was prepared here: prepare it again, under other names."""
        self._prepared.clear()
        self._generation += 1

    def _send(self, steps: Sequence[Step]) -> tuple[list[PGresult], psycopg.Error | None]:
        """Send all in one message, prepared where they are not yet. The results up to the first that failed, and why
        that did."""
        pgconn, expected = self._conn.pgconn, list[bytes | None]()
        with self._conn.lock:
            pgconn.enter_pipeline_mode()
            try:
                for statement, values in steps:
                    name = statement.name % self._generation
                    if name not in self._prepared and name not in expected:
                        pgconn.send_prepare(name, statement.sql)
                        expected.append(name)
                    parameters = [_encoded(values[parameter]) for parameter in statement.parameters]
                    pgconn.send_query_prepared(name, parameters, result_format=_BINARY)
                    expected.append(None)
                pgconn.pipeline_sync()
                results, error = self._receive()
            finally:
                with suppress(psycopg.Error):  # a connection that broke is found out by the next who asks
                    pgconn.exit_pipeline_mode()
        self._prepared.update(name for name, _ in zip(expected, results, strict=False) if name is not None)
        return [result for name, result in zip(expected, results, strict=False) if name is None], error

    def _receive(self) -> tuple[list[PGresult], psycopg.Error | None]:
        results, error = list[PGresult](), None
        self._flush()
        while (result := self._next_result()).status != ExecStatus.PIPELINE_SYNC:
            if result.status == ExecStatus.FATAL_ERROR:
                error = error or error_from_result(result, encoding="utf-8")
            elif error is None:
                results.append(result)
        return results, error

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

    def _next_result(self) -> PGresult:
        pgconn = self._conn.pgconn
        while True:
            while pgconn.is_busy():
                self._socket.poll()  # without the interpreter's lock
                pgconn.consume_input()
            result = pgconn.get_result()
            if pgconn.status == ConnStatus.BAD:
                raise psycopg.OperationalError(pgconn.get_error_message())
            if result is not None:  # None stands between the results of two statements
                return result


def hot_path(conn: AnyConnection, statements: HotStatements) -> HotPath | None:
    """The hot path of a connection, which lasts as long as that; None when others have made too many on it: each is
    a layer around its `wait`, and a dozen statements that the server keeps."""
    known: dict[str, HotPath] = conn.__dict__.setdefault("_pgjobs_hot_paths", {})
    if statements.tag not in known:
        if len(known) >= _MOST_ON_A_CONNECTION:
            return None
        known[statements.tag] = HotPath(conn, statements)
    return known[statements.tag]


def _encoded(value: Any) -> bytes | None:
    """A parameter in the text form that Postgres reads."""
    match value:
        case None | bytes():
            return value
        case str():
            return value.encode()
        case UUID():
            return value.hex.encode()
        case timedelta():
            return f"{value.total_seconds()} seconds".encode()
        case list():
            return _array(value)
    return str(value).encode()


def _array(texts: list[str]) -> bytes:
    quoted = (text.replace("\\", "\\\\").replace('"', '\\"') for text in texts)
    return ("{" + ",".join(f'"{text}"' for text in quoted) + "}").encode()


def _text(result: PGresult, column: int) -> str:
    return (result.get_value(0, column) or b"").decode()


def _integer(result: PGresult, column: int) -> int:
    return int.from_bytes(result.get_value(0, column) or b"", "big", signed=True)
