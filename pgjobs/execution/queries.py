"""The statements of one attempt, a method for each; those of batches are in batch_queries.py."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from secrets import token_hex
from typing import Any, NamedTuple, TypedDict, Unpack
from uuid import UUID

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from pgjobs.db import statements
from pgjobs.db.channel import channel
from pgjobs.db.cursors import AnyConnection, ClaimCursor, act, answers, job_cursor, literal_cursor, one, rollback
from pgjobs.db.rows import QUEUE, as_job, claimed_job, only, str_of
from pgjobs.errors import AttemptLost
from pgjobs.execution.outcome import NO_DATA, AttemptData, Outcome
from pgjobs.interval import instant
from pgjobs.job import Job, JobState

ATTEMPT_LOST = "PJ001"  # raised by the function attempt_lost() of the schema


@dataclass(frozen=True, slots=True)
class FinishResult:
    """The job after its outcome was written."""

    state: JobState
    microseconds: int  # since 1970, by the database's clock
    clean: bool  # whether the session is free of what the handler has prepared

    @property
    def at(self) -> datetime:
        return instant(self.microseconds)


class ClaimValues(TypedDict, total=False):
    """The parameters of a claim and its lock; CLAIM_DEFAULTS has those that are left out."""

    queue: str
    token: UUID
    worker: str
    id: int | None  # the job to claim
    aside: list[int]  # jobs to pass over
    kinds: list[str] | None  # kinds to claim; None: all
    detached: list[str]  # kinds that get a lease
    lease: timedelta
    mark_priority: int  # the place where the scan starts
    mark_time: str
    mark_id: int
    synchronous_commit: bool
    check_interval: str
    bounded_by: str
    bound: str
    bounds: str


class Mark(NamedTuple):
    """A place in the order of a queue: the claim starts its scan behind it."""

    priority: int
    scheduled_at: datetime
    id: int


class ClaimRequest(NamedTuple):
    """The values of one claim. `settings` are shared: claims with the same object have the same settings."""

    settings: ClaimValues
    queue: str
    token: UUID
    id: int | None = None
    mark: Mark | None = None
    aside: Sequence[int] = ()  # jobs that cannot be claimed now

    @property
    def values(self) -> ClaimValues:
        values: ClaimValues = {**self.settings, "queue": self.queue, "token": self.token, "id": self.id}
        if self.mark is not None:
            values["mark_priority"], time, values["mark_id"] = self.mark
            values["mark_time"] = time.isoformat()
        if self.aside:
            values["aside"] = list(self.aside)
        return values


CLAIM_DEFAULTS: ClaimValues = {
    "id": None,
    "kinds": None,
    "detached": [],
    "lease": timedelta(minutes=1),
    "mark_priority": -32768,
    "mark_time": "-infinity",
    "mark_id": -1,
    "synchronous_commit": True,
    "check_interval": "0",
    "bounded_by": "idle_in_transaction_session_timeout",
    "bound": "0",
    "bounds": "{}",
}


class Session(NamedTuple):
    """The user and the role that claimed the job. The handler may change the role; the outcome is written in this
    one."""

    user: str
    role: str
    shared_since: datetime | None = None  # behind a pooler: since when the job has the session


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What claims depend on."""

    uptime: timedelta
    can_check_connections: bool  # whether it can notice during a statement that the client is gone
    transaction_bound: str  # the setting that ends transactions that last too long
    pooled: bool  # whether there is a pooler between this process and the server


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
        self.claims, self.claims_around = (
            {order: work["claim"].replace(b"{next}", passing_over(sql, part)) for order, sql in orders.items()}
            for part in (b"", work["skip_set_aside"])
        )
        before = (work["begin"], work["set_claim_timeouts"])
        after = (work["commit"], work["begin"], work["lock"], work["savepoint"])
        self._claim_messages, self._claim_messages_around = (
            {order: b"\n".join((*before, claim, *after)) for order, claim in claims.items()}
            for claims in (self.claims, self.claims_around)
        )
        self._begin_trial = b"\n".join((*before, work["check_constraints_at_once"]))
        self._selects = {order: passing_over(sql, work["skip_set_aside"]) for order, sql in orders.items()}
        # parts of the messages that write an outcome
        self._release_savepoint = (work["release_savepoint"],)
        self._rollback_to_savepoint = (work["rollback_to_savepoint"],)
        self._begin_late, self._restore_claim = (work["begin_late_finish"],), (work["restore_claim"],)
        self._set_claim_role, self._set_session_role = (work["set_claim_role"],), (work["set_session_role"],)
        self._deallocate = (work["deallocate"],)
        self._drop_settings = (work["drop_statement_timeout"], work["drop_other_settings"])
        self._async_commit, self._complete = (work["commit_async"],), (work["complete"],)
        self._note_cancel = (work["cancel_if_requested"],)
        self._record = (work["finish"], *self._note_cancel)
        self._reset_session = (work["reset_session"],)
        self._ending = (work["commit"], *self._reset_session)

    # --- work

    def claim(
        self,
        conn: AnyConnection,
        *,
        which: str = "priority",
        on_role: Callable[[str, str], None] = lambda user, role: None,
        **values: Unpack[ClaimValues],
    ) -> Job[Any] | None:
        """Claim the next job, and lock it in the transaction that is open then, behind the savepoint.

        `which` is the order of the queue, or "id"; `on_role` is called with the session's user and role. None: there
        was no job, and no transaction is open. Raises AttemptLost when the claim was committed but another transaction
        changed the row before it could be locked.
        """
        with ClaimCursor(conn, row_factory=tuple_row) as cur:
            claims = self._claim_messages_around if values.get("aside") else self._claim_messages
            cur.execute(claims[which], {**CLAIM_DEFAULTS, **values})
            [bounds], claimed, locked = answers(cur)
        if claimed and locked:
            on_role(*map(str_of, bounds[-2:]))
            return claimed_job(claimed[0], values["queue"], values["token"])
        rollback(conn)
        if claimed:
            raise AttemptLost(f"job {claimed[0][0]} was claimed but taken away before it was locked")
        return None

    def begin_trial(self, conn: AnyConnection) -> None:
        """Begin a transaction in which claims are tried one by one, to find the job that a claim fails for."""
        with literal_cursor(conn) as cur:
            cur.execute(self._begin_trial)

    def select_next(self, conn: AnyConnection, which: str, values: ClaimValues) -> int | None:
        """Find and lock the job that a claim with these values would take."""
        aside = values.get("aside") or []
        (rows,) = act(conn, self._selects[which], {**CLAIM_DEFAULTS, **values, "aside": aside})
        return rows[0][0] if rows else None

    def sample_available(self, conn: AnyConnection, values: ClaimValues, most: int) -> list[int]:
        """Find some of the jobs that a claim with these values could take, without locking them."""
        aside = values.get("aside") or []
        given = {**CLAIM_DEFAULTS, **values, "aside": aside, "most": most}
        (rows,) = act(conn, self.work["sample_available"], given)
        return [id for (id,) in rows]

    def try_claim(self, conn: AnyConnection, id: int, values: ClaimValues) -> bool:
        """Claim this job in the transaction that is open, behind a savepoint. Raises the error of the claim."""
        (rows,) = act(conn, self.claims["id"], {**CLAIM_DEFAULTS, **values, "id": id})
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

    def complete(
        self,
        conn: AnyConnection,
        job: Job[Any],
        outcome: Outcome,
        data: AttemptData = NO_DATA,
        *,
        async_commit: bool = False,
        cancel_requested: bool = False,
        session: Session | None = None,
    ) -> FinishResult:
        """Commit the handler's writes together with the completion. `async_commit` does not wait for the disk.
        `cancel_requested`: the job's cancel request is noted in its metadata."""
        note_cancel = self._note_cancel if cancel_requested else ()
        steps = (
            *self._release_savepoint,
            *self._undo_settings(session, async_commit=async_commit),
            *self._complete,
            *note_cancel,
            *self._ending,
        )
        return self._finish(conn, steps, job, outcome, data, session=session)

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
        note_cancel = self._note_cancel if cancel_requested else ()
        return self._finish(conn, (self.work["finish"], *note_cancel), job, outcome, data, ends=False)

    @contextmanager
    def as_claimed(self, conn: AnyConnection, session: Session | None) -> Iterator[None]:
        """For the block, which must not end the transaction, return to the role that claimed the job, if the handler
        has changed it. A connection of another user keeps its role."""
        if session is None:
            yield
            return
        with literal_cursor(conn) as cur:
            cur.execute(self.work["read_role"])
            user, role = map(str_of, one(cur))
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
            cur.execute(*self._set_claim_role, session_values(session))

    def fail(
        self,
        conn: AnyConnection,
        job: Job[Any],
        outcome: Outcome,
        data: AttemptData = NO_DATA,
        *,
        async_commit: bool = False,
        session: Session | None = None,
    ) -> FinishResult:
        """Roll back the handler's writes, keep the row's lock, and commit the outcome."""
        undo = (*self._rollback_to_savepoint, *self._release_savepoint)
        steps = (*undo, *self._undo_settings(session, async_commit=async_commit), *self._record, *self._ending)
        return self._finish(conn, steps, job, outcome, data, session=session)

    def finish_late(
        self,
        conn: AnyConnection,
        job: Job[Any],
        outcome: Outcome,
        data: AttemptData = NO_DATA,
        *,
        after_loss: bool = False,
        async_commit: bool = False,
        session: Session | None = None,
    ) -> FinishResult:
        """Write the outcome in a new transaction, guarded by the token alone. `after_loss` of a connection, the server
        may have crashed and lost the claim, which did not wait for the disk: it is then restored."""
        role, async_part = self._set_claim_role if session else (), self._async_commit if async_commit else ()
        restore = self._restore_claim if after_loss else ()
        steps = (*self._begin_late, *role, *async_part, *restore, *self._record, *self._ending)
        return self._finish(conn, steps, job, outcome, data, session=session)

    def _undo_settings(self, session: Session | None, *, async_commit: bool) -> tuple[bytes, ...]:
        """The commands that undo the handler's settings of its transaction before the outcome is written."""
        role = self._set_claim_role if session else ()
        deallocate = self._deallocate if session and session.shared_since else ()
        return (*role, *self._drop_settings, *deallocate, *(self._async_commit if async_commit else ()))

    def _finish(
        self,
        conn: AnyConnection,
        steps: Sequence[bytes],
        job: Job[Any],
        outcome: Outcome,
        data: AttemptData,
        *,
        session: Session | None = None,
        ends: bool = True,
    ) -> FinishResult:
        with literal_cursor(conn) as cur:
            try:
                cur.execute(b"\n".join(steps), {**finish_values(job, outcome, data), **session_values(session)})
            except psycopg.Error as error:
                raise lost_or(error, job) from error
            rows, *others = answers(cur)
            if not rows:
                raise attempt_lost(job)
            state, now, *_ = rows[0]
            left = others.pop()[0][-1] if ends else 0  # statements that the handler has prepared
            for (answer, *_), *_ in filter(None, others):  # the state that a cancel request has changed
                state = answer
            return FinishResult(JobState(state), now, left == 0)

    def abandon(self, conn: AnyConnection, session: Session | None) -> None:
        """Roll back and reset the session, so that the outcome can be written in it. Behind a pooler the next client
        gets the session; and a role that the handler has committed may not write the outcome."""
        if session is None:  # no handler has used the connection
            rollback(conn)
            return
        pooled = session.shared_since is not None
        after = (*self._set_claim_role, *self._deallocate) if pooled else self._set_session_role
        with literal_cursor(conn) as cur:
            cur.execute(b"\n".join((b"ROLLBACK;", *self._reset_session, *after)), session_values(session))

    def server_facts(self, conn: AnyConnection) -> ServerFacts:
        with literal_cursor(conn) as cur:
            cur.execute(self.work["server_facts"])
            uptime, can_check, version, backend_pid = one(cur)
            bound = "transaction_timeout" if version >= 170000 else "idle_in_transaction_session_timeout"
            pooled = backend_pid != conn.pgconn.backend_pid  # a pooler sends the client another number
            return ServerFacts(timedelta(microseconds=uptime), can_check, bound, pooled)

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
            [rows] = act(conn, self._bare_write, values)
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
        [rows] = act(conn, self._discard_unworkable, values)
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


def session_values(session: Session | None) -> dict[str, Any]:
    """The parameters of the statements that restore the session of the claim."""
    if session is None:
        return {}
    return {"session_user": session.user, "role": session.role, "since": session.shared_since}


def passing_over(next: bytes, part: bytes) -> bytes:
    """Put the condition that passes over jobs, or nothing, into a statement that selects the next jobs."""
    condition = re.sub(rb"^--.*\n", b"", part, flags=re.MULTILINE).rstrip(b"; \n")
    return next.replace(b"{skip_set_aside}", condition).rstrip(b";")


def finish_values(job: Job[Any], outcome: Outcome, data: AttemptData) -> dict[str, Any]:
    """The parameters of the statement that writes the outcome of one attempt."""
    return {
        "id": job.id,
        "queue": job.queue,
        "token": job.token,
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
    return attempt_lost(job) if error.sqlstate == ATTEMPT_LOST else error


def attempt_lost(job: Job[Any]) -> AttemptLost:
    return AttemptLost(f"job {job.id} no longer runs under attempt {job.attempt}")
