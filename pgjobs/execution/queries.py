"""The statements of one attempt, a method for each; those of batches are in batch_queries.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from secrets import token_hex
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.pq.abc import PGresult

from pgjobs.db import statements
from pgjobs.db.channel import channel
from pgjobs.db.connection import shared
from pgjobs.db.cursors import AnyConnection, answers, job_cursor, literal_cursor, one, run_guarded
from pgjobs.db.rows import CLAIMED, QUEUE, as_job, claimed_at, claimed_job, only, str_of
from pgjobs.errors import AttemptLost
from pgjobs.execution.outcome import NO_DATA, AttemptData, Outcome
from pgjobs.execution.requests import ClaimRequest, Session
from pgjobs.execution.script import Script, without_comments
from pgjobs.execution.scripts import FinishRequest, NextClaim, Scripts, lacking
from pgjobs.execution.set_aside import UnreadableRow, concerns_a_row, is_application_code
from pgjobs.execution.transport import Transport, integer, transport_for
from pgjobs.interval import instant
from pgjobs.job import Job, JobState

ATTEMPT_LOST = "PJ001"  # raised by the function attempt_lost() of the schema


class FinishResult(NamedTuple):
    """The job after its outcome was written."""

    state: JobState
    microseconds: int  # since 1970, by the database's clock
    clean: bool  # whether the session is free of what the handler has prepared

    @property
    def at(self) -> datetime:
        return instant(self.microseconds)


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What claims depend on."""

    uptime: timedelta
    can_check_connections: bool  # whether it can notice during a statement that the client is gone
    transaction_bound: str  # the setting that ends transactions that last too long
    pooled: bool  # whether there is a pooler between this process and the server


class Completion(NamedTuple):
    """A finish, and the claim that was sent with it."""

    result: FinishResult
    next: Job[Any] | None = None
    problem: Exception | None = None  # of the claim


class ExecutionQueries:
    """The statements of one attempt, in one schema."""

    def __init__(self, schema: str) -> None:
        self.schema = schema
        self.channel = channel(schema)
        maintain = statements.load("maintenance.sql", schema)
        self._bare_write, self._discard_unworkable = maintain["bare_write"], maintain["discard_unworkable"]
        self._observe = statements.load("observe.sql", schema)
        self.tag = f"pgjobs_{token_hex(4)}"  # in names that no handler may use by chance
        work = self.work = _named(statements.load("execution.sql", schema), self.tag, self.channel)
        orders = {
            "priority": work["select_by_priority"],
            "scheduled_at": work["select_by_time"],
            "id": work["select_by_id"],
        }
        # without and with the condition that passes over jobs: most claims have none to pass over
        claims, claims_around = (
            {order: work["claim"].replace(b"{next}", passing_over(sql, part)) for order, sql in orders.items()}
            for part in (b"", work["skip_set_aside"])
        )
        self.scripts = Scripts(work, claims, claims_around)
        self._try_claim = claims["id"].replace(b"{returning}", b"RETURNING id")
        self._begin_trial = b"\n".join(
            (work["begin"], work["set_claim_timeout"], work["set_lock_timeout"], work["check_constraints_at_once"])
        )
        self._selects = {order: passing_over(sql, work["skip_set_aside"]) for order, sql in orders.items()}

    # --- claim

    def transport(self, conn: AnyConnection, *, prepares: bool) -> Transport:
        """The transport of a connection, which is made once."""
        return transport_for(conn, self.tag, prepares=prepares)

    def claim(
        self, transport: Transport, request: ClaimRequest, session: Session | None, *, savepoint: bool, by_tcp: bool
    ) -> tuple[Job[Any] | None, Session]:
        """Claim the next job, and lock it in the transaction that is open then. Without a `session`, reads it. No job:
        there was none, and no transaction is open. Raises AttemptLost when the claim was committed but another
        transaction changed the row before it could be locked."""
        script = self.scripts.claim(request, session, savepoint=savepoint)
        results, error = transport.run(script, request.unquoted)
        if error is not None:
            if len(results) > script.at["claimed"] and concerns_a_row(error) and not is_application_code(error):
                raise UnreadableRow(str(error)) from error
            raise error
        if session is None:
            user, role, *found = map(str_of, transport.row(results[script.at["read_session"]]))
            session = Session(user, role, lacking(found, request.settings.check_interval, by_tcp=by_tcp))
        return self._locked(transport, script, results, request), session

    def _locked(
        self, transport: Transport, script: Script, results: Sequence[PGresult], request: ClaimRequest
    ) -> Job[Any] | None:
        """Read the job that was claimed and locked. None if there is none: then the transaction is rolled back."""
        lock = results[script.at["lock"]]
        if lock.ntuples:
            values = {**CLAIMED, "queue": request.queue, "token": request.token}
            values["attempted_by"] = request.settings.claimed_by
            return claimed_job(transport.row(lock), values, claimed_at)
        transport.run(self.scripts.roll_back())
        if results[script.at["claim"]].command_tuples:
            raise AttemptLost("a job was claimed but taken away before it was locked")
        return None

    def roll_back(self, transport: Transport) -> None:
        """Roll back the transaction that is open."""
        _, error = transport.run(self.scripts.roll_back())
        if error is not None:
            raise error

    def begin_trial(self, conn: AnyConnection) -> None:
        """Begin a transaction in which claims are tried one by one, to find the job that a claim fails for."""
        with literal_cursor(conn) as cur:
            cur.execute(self._begin_trial)

    def select_next(self, conn: AnyConnection, which: str, values: Mapping[str, Any]) -> int | None:
        """Find and lock the job that a claim with these values would take."""
        set_aside = values.get("set_aside") or []
        (rows,) = run_guarded(conn, self._selects[which], {**values, "set_aside": set_aside})
        return rows[0][0] if rows else None

    def sample_available(self, conn: AnyConnection, values: Mapping[str, Any], most: int) -> list[int]:
        """Find some of the jobs that a claim with these values could take, without locking them."""
        set_aside = values.get("set_aside") or []
        given = {**values, "set_aside": set_aside, "most": most}
        (rows,) = run_guarded(conn, self.work["sample_available"], given)
        return [id for (id,) in rows]

    def try_claim(self, conn: AnyConnection, id: int, values: Mapping[str, Any]) -> bool:
        """Claim this job in the transaction that is open, behind a savepoint. Raises the error of the claim."""
        (rows,) = run_guarded(conn, self._try_claim, {**values, "id": id})
        return bool(rows)

    def select_claimed_id(self, conn: AnyConnection, queue: str, token: UUID) -> int | None:
        """Find the job that runs under this token."""
        with literal_cursor(conn) as cur:
            cur.execute(self.work["select_claimed_id"], {"queue": queue, "token": token})
            row = cur.fetchone()
            return row[0] if row else None

    def unclaim(self, conn: AnyConnection, *, queue: str, token: UUID) -> bool:
        """Undo a claim whose handler has not started. Returns whether it was found."""
        with literal_cursor(conn) as cur:
            cur.execute(self.work["unclaim"], {"queue": queue, "token": token})
            return cur.rowcount > 0

    def extend_leases(self, conn: AnyConnection, tokens: Sequence[UUID], lease: timedelta) -> set[UUID]:
        """Extend the leases of the detached attempts with these tokens. Returns the tokens that are still running."""
        with literal_cursor(conn) as cur:
            cur.execute(self.work["extend_leases"], {"tokens": list(tokens), "lease": lease})
            return {token for (token,) in cur.fetchall()}

    # --- finish

    def complete(
        self,
        transport: Transport,
        job: Job[Any],
        finish: FinishRequest,
        data: AttemptData = NO_DATA,
        *,
        then: NextClaim | None = None,
        unprepared: bool = False,
    ) -> Completion:
        """Commit the handler's writes together with the completion. With `then`, also claim and lock the next job in
        the same round trip. Raises the error of the finish; returns the error of the claim. `unprepared`: nothing
        that is prepared is used."""
        script = self.scripts.complete(job.queue, finish, then)
        at, unquoted = script.at, unquoted_values(job, finish.session)
        if then is not None:
            unquoted |= then.request.unquoted
        quoted = {"metadata": data.metadata, "output": data.output} if finish.has_data else _NO_QUOTED
        results, error = transport.run(script, unquoted, quoted, unprepared=unprepared)
        if len(results) <= at["committed"]:
            assert error is not None
            if then is None or not then.together or len(results) <= at["complete"]:
                raise lost_or(error, job)
            # the claim has failed, and undone the finish with it
            again = self.scripts.complete_again(job.queue, finish)
            results, lost = transport.run(again, unquoted, quoted, unprepared=True)
            if lost is not None:
                raise lost_or(lost, job)
            script, at = again, again.at
        answer = results[at["complete"]]
        if not answer.ntuples:
            raise attempt_lost(job)
        clean = not finish.used or _left_clean(results, at)
        done = FinishResult(JobState.COMPLETED, integer(answer, 1), clean)
        if error is not None or then is None:
            return Completion(done, None, error)
        try:
            return Completion(done, self._locked(transport, script, results, then.request))
        except Exception as problem:  # AttemptLost, or an error in reading the row
            return Completion(done, None, problem)

    def fail(
        self,
        transport: Transport,
        job: Job[Any],
        outcome: Outcome,
        finish: FinishRequest,
        data: AttemptData = NO_DATA,
    ) -> FinishResult:
        """Roll back the handler's writes, keep the row's lock, and commit the outcome."""
        script = self.scripts.fail(finish)
        finished = self._write_outcome(transport, script, finish, job, finish_values(job, outcome, data))
        transport.rolled_back()
        return finished

    def finish_late(
        self,
        transport: Transport,
        job: Job[Any],
        outcome: Outcome,
        finish: FinishRequest,
        data: AttemptData = NO_DATA,
        *,
        after_loss: bool = False,
    ) -> FinishResult:
        """Write the outcome in a new transaction, guarded by the token alone. `after_loss` of a connection, the server
        may have crashed and lost the claim, which did not wait for the disk: it is then restored."""
        script = self.scripts.finish_late(finish, after_loss=after_loss)
        return self._write_outcome(transport, script, finish, job, finish_values(job, outcome, data))

    def _write_outcome(
        self, transport: Transport, script: Script, finish: FinishRequest, job: Job[Any], quoted: Mapping[str, Any]
    ) -> FinishResult:
        unquoted = unquoted_values(job, finish.session)
        results, error = transport.run(script, unquoted, quoted, unprepared=True)
        if len(results) <= script.at["committed"]:
            assert error is not None
            raise lost_or(error, job)
        state = _text(results[script.at["finish"]])
        cancelled = results[script.at["cancelled"]]
        if cancelled.ntuples:  # the state that a cancel request has changed
            state = _text(cancelled)
        now = integer(results[script.at["finish"]], 1)
        return FinishResult(JobState(state), now, not finish.used or _left_clean(results, script.at))

    def abandon(self, transport: Transport, session: Session | None, since: datetime | None) -> None:
        """Roll back and reset the session, so that the outcome can be written in it. `since` the handler has it."""
        unquoted = {b"since": since.isoformat().encode()} if since is not None else {}
        _, error = transport.run(self.scripts.abandon(session), unquoted, unprepared=True)
        if error is not None:
            raise error
        transport.rolled_back()

    def complete_within(
        self,
        conn: AnyConnection,
        job: Job[Any],
        outcome: Outcome,
        data: AttemptData = NO_DATA,
        *,
        cancel_requested: bool = False,
    ) -> FinishResult:
        """Write the outcome in the transaction that is open, and leave that open."""
        steps = (self.work["finish"], *((self.work["cancel_if_requested"],) if cancel_requested else ()))
        values = {**finish_values(job, outcome, data), "id": job.id, "token": job.token}
        with literal_cursor(conn) as cur:
            try:
                cur.execute(b"\n".join(steps), values)
            except psycopg.Error as error:
                raise lost_or(error, job) from error
            [(state, now, *_)], *cancelled = answers(cur)
            for (answer, *_), *_ in filter(None, cancelled):  # the state that a cancel request has changed
                state = answer
            return FinishResult(JobState(state), now, True)

    @contextmanager
    def as_claimed(self, conn: AnyConnection, session: Session | None) -> Iterator[None]:
        """For the block, which must not end the transaction, return to the role that claimed the job, if the handler
        has changed it. A connection of another user keeps its role."""
        if session is None:
            yield
            return
        with literal_cursor(conn) as cur:
            cur.execute(self.work["read_session"])
            user, role, *_ = map(str_of, one(cur))
        if user != session.user or role == session.role:
            yield
            return
        self._set_role(conn, session)
        try:
            yield
        finally:
            if conn.info.transaction_status == TransactionStatus.INTRANS:  # else the rollback restores the role
                self._set_role(conn, session._replace(role=role))

    def _set_role(self, conn: AnyConnection, session: Session) -> None:
        with literal_cursor(conn) as cur:
            cur.execute(self.work["set_claim_role"], {"session_user": session.user, "role": session.role})

    def server_facts(self, conn: AnyConnection) -> ServerFacts:
        with literal_cursor(conn) as cur:
            cur.execute(self.work["server_facts"])
            uptime, can_check, version, backend_pid = one(cur)
            bound = "transaction_timeout" if version >= 170000 else "idle_in_transaction_session_timeout"
            pooled = backend_pid != conn.pgconn.backend_pid  # a pooler sends the client another number
            shared(conn)["pooled"] = pooled
            return ServerFacts(timedelta(microseconds=uptime), can_check, bound, pooled)

    def is_pooled(self, conn: AnyConnection) -> bool:
        """Whether a pooler stands between this connection and the server. The server is asked once for each connection:
        a pooler may come or go while the process runs."""
        known = shared(conn)
        if "pooled" not in known:
            self.server_facts(conn)
        return bool(known["pooled"])

    def bare_write(
        self,
        conn: AnyConnection,
        id: int,
        queue: str,
        *,
        states: Sequence[JobState],
        to: JobState,
        counted: int,
        keep_key: bool,
    ) -> bool:
        """Whether the server accepts a change of the state that reads no other value of the row. It is rolled back."""
        values = {"id": id, "queue": queue, "states": list(states), "state": to, "counted": counted, "key": keep_key}
        with conn.transaction(force_rollback=True):
            [rows] = run_guarded(conn, self._bare_write, values)
        return bool(rows)

    def discard_unworkable(
        self,
        conn: AnyConnection,
        id: int,
        queue: str,
        *,
        states: Sequence[JobState],
        reason: str,
        fresh: bool,
        token: UUID | None = None,
    ) -> bool:
        """Discard a job that cannot be worked; `fresh` drops its errors, its unique key and its workers. A running job
        is discarded only if it has this token; without a token, only if it has no lease."""
        values = {"id": id, "queue": queue, "states": list(states), "reason": reason, "fresh": fresh, "token": token}
        [rows] = run_guarded(conn, self._discard_unworkable, values)
        return bool(rows)

    def cancelled_attempts(self, conn: AnyConnection, tokens: Sequence[UUID]) -> dict[tuple[int, UUID], str]:
        """Find the cancel requests for these attempts: the reason, by id and token of the job."""
        with literal_cursor(conn) as cur:
            cur.execute(statements.load("control.sql", self.schema)["cancelled_attempts"], {"tokens": list(tokens)})
            return {(id, token): reason for id, token, reason in cur.fetchall()}

    def get_job(self, conn: AnyConnection, id: int, queue: str | None = None) -> Job[Any] | None:
        """Find the job with this id. Raises AmbiguousJob when several queues have one and no queue is given."""
        with job_cursor(conn) as cur:
            cur.execute(self._observe["get_job"], {"id": id})
            rows = [row for row in cur.fetchall() if queue is None or row[QUEUE] == queue]
            row = only(id, rows)
            return as_job(row) if row else None


def _named(work: Mapping[str, bytes], savepoint: str, channel: str) -> dict[str, bytes]:
    """Put the names of the savepoint, which no handler uses by chance, and of the channel into the statements."""
    name, text = b"SAVEPOINT " + savepoint.encode(), f"'{channel}'".encode()
    return {key: sql.replace(b"SAVEPOINT pgjobs", name).replace(b"%(channel)s", text) for key, sql in work.items()}


def passing_over(next: bytes, part: bytes) -> bytes:
    """Put the condition that passes over jobs, or nothing, into a statement that selects the next jobs."""
    return next.replace(b"{skip_set_aside}", without_comments(part)).rstrip(b";")


def finish_values(job: Job[Any], outcome: Outcome, data: AttemptData) -> dict[str, Any]:
    """The parameters of the statement that writes the outcome of one attempt."""
    return {
        "queue": job.queue,
        "attempt": job.attempt,
        "attempted_at": job.attempted_at,
        "state": outcome.state,
        "final": outcome.state.final,
        "refund": int(outcome.refund),
        "snoozed": outcome.snoozed,
        "at": outcome.at,
        "delay": None if outcome.state.final else outcome.delay,
        "error": outcome.error_json(job.attempt),
        "metadata": data.metadata,
        "output": data.output,
    }


def lost_or(error: psycopg.Error, job: Job[Any]) -> Exception:
    """AttemptLost if the server has raised it in a finish, else the error itself."""
    if error.sqlstate != ATTEMPT_LOST:
        return error
    lost = attempt_lost(job)
    lost.__cause__ = error
    return lost


def attempt_lost(job: Job[Any]) -> AttemptLost:
    return AttemptLost(f"job {job.id} no longer runs under attempt {job.attempt}")


_NO_QUOTED: Mapping[str, Any] = {}


def unquoted_values(job: Job[Any], session: Session | None = None) -> dict[bytes, bytes]:
    """The parameters of a finish that need no quoting."""
    assert job.token is not None
    values = {b"id": b"%d" % job.id, b"token": b"%032x" % job.token.int}
    if session is not None and session.shared:
        assert job.attempted_at is not None
        values[b"since"] = job.attempted_at.isoformat().encode()
    return values


def _left_clean(results: Sequence[PGresult], at: Mapping[str, int]) -> bool:
    """Whether the session was reset and has no statements that the handler has prepared. Where they were not counted,
    there are none as far as is known."""
    if "count_prepared" not in at:
        return len(results) > at["reset_session"]
    return len(results) > at["count_prepared"] and integer(results[at["count_prepared"]], 0) == 0


def _text(result: PGresult) -> str:
    return (result.get_value(0, 0) or b"").decode()
