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
from psycopg.rows import tuple_row

from pgjobs.cursors import AnyConnection, ClaimCursor
from pgjobs.errors import AttemptLost
from pgjobs.job import Job, JobState
from pgjobs.outcome import Kept
from pgjobs.store import ClaimRequest, ClaimValues, Finished, Store, as_job, lost_or

_BINARY = 1
_MOST_ON_A_CONNECTION = 8  # clients


@dataclass(frozen=True, slots=True, eq=False)
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

        begin, commit, again = one("begin"), one("commit"), one("commit_and_begin")
        complete, release = one("complete"), one("release_savepoint")
        self.begin = begin
        self.bound = one("claim_bound")
        self.takes = {order: prepared(f"{tag}_take_{order}", sql) for order, sql in store.takes.items()}
        self.after_take = (again, one("lock"), one("savepoint"))
        self.commit, self.commit_and_begin = commit, again
        # by whether the handler has sent anything, and by whether it wants something kept
        self.complete: dict[tuple[bool, bool], tuple[Prepared, ...]] = {
            (False, False): (one("complete_untouched"),),
            (False, True): (complete,),
            (True, False): (release, one("no_statement_timeout"), complete),
        }
        self.complete[True, True] = self.complete[True, False]
        parts = work["reset_session"].rstrip(b"; ").split(b";\n")
        self.rollback = prepared(f"{tag}_rollback", b"ROLLBACK")
        self.reset = tuple(prepared(f"{tag}_reset_{number}", part) for number, part in enumerate(parts))


Step = tuple[Prepared, Mapping[str, bytes | None]]
_NO_VALUES: Mapping[str, bytes | None] = {}


class HotPath:
    """One connection, and what is prepared on it."""

    def __init__(self, conn: AnyConnection, statements: HotStatements) -> None:
        self._statements = statements
        self._conn = conn
        self._names: dict[Prepared, bytes] = {}  # of what is prepared
        self._generation = 0
        self._settings: ClaimValues | None = None
        self._encoded_settings: Mapping[str, bytes | None] = {}
        self._transformer = Transformer(ClaimCursor(conn, row_factory=tuple_row))
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

    def claim(self, which: str, claim: ClaimRequest) -> Job[Any] | None:
        """As `Store.claim`."""
        steps = [(self._statements.begin, _NO_VALUES), *self._claim_steps(which, claim)]
        results, error = self._send(steps)
        if error is not None:
            raise error
        return self._locked(results[1:], claim)

    def complete(
        self, job: Job[Any], kept: Kept, which: str, then: ClaimRequest | None
    ) -> tuple[Finished, Exception | None]:
        """As `Store.complete`; and with `then`, claim and lock the next job too, which stands in `next`. What went
        wrong with that is given back, what went wrong before is raised."""
        known, used = self._statements, self.used
        assert job.token is not None
        values = {
            "id": b"%d" % job.id,
            "queue": job.queue.encode(),
            "token": job.token.hex.encode(),
            "metadata": _encoded(kept.metadata),
            "output": _encoded(kept.output),
        }
        complete = known.complete[used, kept.metadata is not None or kept.output is not None]
        steps: list[Step] = [(statement, values) for statement in complete]
        if used:
            steps += [(statement, _NO_VALUES) for statement in (known.commit, *known.reset)]
            if then is not None:
                steps.append((known.begin, _NO_VALUES))
        else:
            steps.append((known.commit if then is None else known.commit_and_begin, _NO_VALUES))
        finish = len(steps)
        if then is not None:
            steps += self._claim_steps(which, then)
        results, error = self._send(steps)
        if len(results) <= len(complete):
            assert error is not None
            raise lost_or(error, job)
        answer = results[len(complete) - 1]
        if not answer.ntuples:
            raise AttemptLost(f"job {job.id} no longer runs under attempt {job.attempt}")
        clean = not used or (
            len(results) > len(complete) + len(known.reset)
            and _integer(results[len(complete) + len(known.reset)], 1) == 0
        )
        done = Finished(JobState.COMPLETED, _integer(answer, 1), clean)
        if error is None and then is not None:
            try:
                self.next = self._locked(results[finish:], then)
            except AttemptLost as lost:
                return done, lost
        return done, error

    def _claim_steps(self, which: str, claim: ClaimRequest) -> list[Step]:
        if claim.settings is not self._settings:
            self._encoded_settings = {name: _encoded(value) for name, value in claim.settings.items()}
            self._settings = claim.settings
        values = {**self._encoded_settings, **{name: _encoded(value) for name, value in claim.own.items()}}
        known = self._statements
        return [(step, values) for step in (known.bound, known.takes[which], *known.after_take)]

    def _locked(self, results: Sequence[PGresult], claim: ClaimRequest) -> Job[Any] | None:
        """The job that was claimed and locked; leaves no transaction open when there is none."""
        self.used = False
        taken, lock = results[1], results[-2]
        if taken.ntuples and lock.ntuples:
            self._transformer.set_pgresult(taken)
            job: Job[Any] = as_job(self._transformer.load_row(0, tuple))
            vars(job)["token"] = claim.own["token"]  # nobody has seen it yet
            return job
        self._send([(self._statements.rollback, _NO_VALUES)])
        if taken.ntuples:
            raise AttemptLost(f"job {_integer(taken, 0)} was claimed but taken away before it was locked")
        return None

    # --- the conversation

    def forget(self) -> None:
        """Somebody deallocated what was prepared here: prepare it again, under other names."""
        self._names.clear()
        self._generation += 1

    def _send(self, steps: Sequence[Step]) -> tuple[list[PGresult], psycopg.Error | None]:
        """Send all in one message, prepared where they are not yet. The results up to the first that failed, and why
        that did."""
        pgconn, names, new = self._conn.pgconn, self._names, dict[int, Prepared]()
        with self._conn.lock:
            pgconn.enter_pipeline_mode()
            try:
                sent = 0
                for statement, values in steps:
                    name = names.get(statement)
                    if name is None:
                        name = names[statement] = statement.name % self._generation
                        pgconn.send_prepare(name, statement.sql)
                        new[sent] = statement
                        sent += 1
                    parameters = [values[parameter] for parameter in statement.parameters]
                    pgconn.send_query_prepared(name, parameters, result_format=_BINARY)
                    sent += 1
                pgconn.pipeline_sync()
                results, error = self._receive()
            finally:
                with suppress(psycopg.Error):  # a connection that broke is found out by the next who asks
                    pgconn.exit_pipeline_mode()
        if not new:
            return results, error
        for place, statement in new.items():
            if place >= len(results):
                del names[statement]
        return [result for place, result in enumerate(results) if place not in new], error

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
            if result is not None:
                return result
            # None stands between the results of two statements, and for those that do not come any more
            if pgconn.status == ConnStatus.BAD:
                raise psycopg.OperationalError(pgconn.get_error_message())


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


def _integer(result: PGresult, column: int) -> int:
    return int.from_bytes(result.get_value(0, column) or b"", "big", signed=True)
