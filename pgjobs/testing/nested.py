"""Runs the scripts of an attempt inside a transaction that is open already: that of a test.

The statements are those that workers send. Only what would end the transaction or reset the session is another one:

    of a worker                     inside the transaction of a test
    ------------------------------  -----------------------------------------------------------------
    BEGIN                           SAVEPOINT
    COMMIT AND CHAIN                SAVEPOINT: what came before is kept
    COMMIT                          RELEASE SAVEPOINT
    before each COMMIT              SET CONSTRAINTS ALL IMMEDIATE, in a savepoint that is rolled back
    ROLLBACK                        ROLLBACK TO SAVEPOINT, or nothing if none of these has begun anything
    RESET ALL, UNLISTEN, DISCARD    nothing: the session is the test's
    the server's time limits        nothing: they would end the connection of the test

A deferred constraint fails there as it would at the COMMIT of a worker, and stays deferred, as the test has it. If what
the test itself has written violates one so far, then jobs cannot be checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg.pq.abc import PGresult

from pgjobs.client import Client
from pgjobs.db.borrow import Borrowable
from pgjobs.db.checkout import Checkout
from pgjobs.db.cursors import AnyConnection
from pgjobs.errors import InvalidTransaction, TransactionBroken
from pgjobs.execution.queries import ExecutionQueries
from pgjobs.execution.script import Script, without_comments
from pgjobs.execution.transport import Transport
from pgjobs.testing.queries import CHECK_CONSTRAINTS, TestingQueries

_NOTHING = b"SELECT 0"
_LEFT_OUT = frozenset(
    (
        *("reset_session", "release_advisory_locks", "count_prepared", "deallocate"),
        *("set_claim_timeout", "set_claim_timeout_used"),
    )
)
_NO_VALUES: Mapping[str, Any] = {}
_NO_UNQUOTED: Mapping[bytes, bytes] = {}


@contextmanager
def within(client: Client, tx: Borrowable) -> Iterator[Checkout]:
    """A checkout of the transaction `tx`, which is as open at the end of the block as before, with its settings."""
    queries = TestingQueries(client.schema)
    with client.source.checkout_within(tx) as checkout:
        if checkout.original.pgconn.pipeline_status != PipelineStatus.OFF:
            raise InvalidTransaction("tx is in a pipeline, in which no job can run: leave it first")
        settings = queries.begin(checkout)
        checks = queries.constraints_hold(checkout)
        checkout.transport = NestedTransport(checkout.conn, client.queries, checks_constraints=checks)
        try:
            yield checkout
        except BaseException:
            checkout.wait_for_cancels()
            queries.end(checkout, settings)
            raise
        checkout.wait_for_cancels()
        broken = queries.end(checkout, settings)
        if broken is not None:
            raise TransactionBroken(broken)


class NestedTransport(Transport):
    """Sends scripts in a transaction that is not theirs."""

    def __init__(self, conn: AnyConnection, queries: ExecutionQueries, *, checks_constraints: bool) -> None:
        super().__init__(conn, queries.tag, prepares=False)
        self._check = [("constraints", sql) for sql in CHECK_CONSTRAINTS] if checks_constraints else []
        self._commits = tuple(without_comments(queries.work[name]) for name in ("commit", "commit_and_begin"))
        savepoint = b"SAVEPOINT %s_within" % queries.tag.encode()
        work = {name: without_comments(queries.work[name]) for name in ("begin", "commit", "commit_and_begin")}
        self._begin = work["begin"]
        self._instead = {
            self._begin: savepoint,
            work["commit_and_begin"]: savepoint,
            work["commit"]: b"RELEASE " + savepoint,
        }
        self._opens = {work["begin"]: True, work["commit_and_begin"]: True, work["commit"]: False}
        self._rollback = without_comments(queries.work["rollback"])
        self._undo = b"ROLLBACK TO " + savepoint
        self._time_limit = without_comments(queries.work["job_bound"])
        self._open = False  # whether a worker would have a transaction open now
        self._scripts: dict[tuple[Script, bool], Script] = {}

    def run(
        self,
        script: Script,
        unquoted: Mapping[bytes, bytes] = _NO_UNQUOTED,
        quoted: Mapping[str, Any] = _NO_VALUES,
        *,
        unprepared: bool = False,
    ) -> tuple[list[PGresult], psycopg.Error | None]:
        if self._open and without_comments(script.steps[0][1]) == self._begin:
            # a worker would have lost the connection, and with it the transaction before
            super().run(Script([("rollback", self._undo)]), unprepared=True)
        undoes = self._open or self._pgconn.transaction_status == TransactionStatus.INERROR
        if (script, undoes) not in self._scripts:
            self._scripts[script, undoes] = Script(list(self._steps(script, undoes)), script.fixed)
        nested = self._scripts[script, undoes]
        found, error = super().run(nested, unquoted, quoted, unprepared=True)
        results = [result for step, result in zip(nested.steps, found, strict=False) if step not in self._check]
        for _, sql in script.steps[: len(results)]:
            command = without_comments(sql)
            self._open = command != self._rollback and self._opens.get(command, self._open)
        return results, error

    def _steps(self, script: Script, undoes: bool) -> Iterator[tuple[str, bytes]]:
        for label, sql in script.steps:
            if without_comments(sql) in self._commits:
                yield from self._check
            yield label, self._nested(label, sql, undoes)

    def _nested(self, label: str, sql: bytes, undoes: bool) -> bytes:
        """What is sent for one statement of a script."""
        if label in _LEFT_OUT:
            return _NOTHING
        if label == "lock":
            return sql.replace(self._time_limit, b"true")
        if label == "set_session_role":
            return sql.replace(b"SET ", b"SET LOCAL ", 1)
        command = without_comments(sql)
        if command == self._rollback:
            return self._undo if undoes else _NOTHING
        return self._instead.get(command, sql)
