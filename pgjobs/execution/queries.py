"""One method per statement of an attempt, connection first: rows in, Jobs out."""

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
from pgjobs.db.cursors import AnyConnection, ClaimCursor, act, answers, bound_cursor, literal_cursor, one, rollback
from pgjobs.db.rows import QUEUE, as_job, claimed_job, only, str_of
from pgjobs.errors import AttemptLost
from pgjobs.execution.outcome import NO_DATA, AttemptData, Outcome
from pgjobs.interval import instant
from pgjobs.job import Job, JobState

ATTEMPT_LOST = "PJ001"  # raised by the function attempt_lost() of the schema


@dataclass(frozen=True, slots=True)
class FinishResult:
    """What became of the job when its outcome was written."""

    state: JobState
    microseconds: int  # since 1970, by the database's clock
    clean: bool  # whether nothing of the handler's is left in the session

    @property
    def at(self) -> datetime:
        return instant(self.microseconds)


class ClaimValues(TypedDict, total=False):
    """What a claim and its lock need; what is left out is as in CLAIM_DEFAULTS."""

    queue: str
    token: UUID
    worker: str
    id: int | None  # the one to claim
    aside: list[int]  # those to pass over
    kinds: list[str] | None  # all others are passed over
    detached: list[str]  # kinds that get a lease
    lease: timedelta
    mark_priority: int  # where the scan starts
    mark_time: str
    mark_id: int
    synchronous_commit: bool
    check_interval: str
    bounded_by: str
    bound: str
    bounds: str


class Mark(NamedTuple):
    """A place in the order of a queue: the claim looks behind it."""

    priority: int
    scheduled_at: datetime
    id: int


class ClaimRequest(NamedTuple):
    """The values of one claim: what is the same for many, one object for all of them, and what is its own."""

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
    """What a claim found of the session on its connection. The handler may leave another; the outcome is written as the
    claim was."""

    user: str
    role: str
    shared_since: datetime | None = None  # behind a pooler: when it became that of the job, and is not for longer


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What the way to claim depends on."""

    uptime: timedelta
    can_check_connections: bool  # whether it can watch for clients that vanish while it works for them
    transaction_bound: str  # the setting that ends a transaction which lasts too long
    pooled: bool  # whether something stands between this process and the server


class ExecutionQueries:
    """The statements of one attempt, in one schema."""

    def __init__(self, schema: str) -> None:
        self.schema = schema
        self.channel = channel(schema)
        maintain = statements.load("maintenance.sql", schema)
        self._bare_write, self._discard_unworkable = maintain["bare_write"], maintain["discard_unworkable"]
        self._observe = statements.load("observe.sql", schema)
        self.tag = f"pgjobs_{token_hex(4)}"  # of what has a name in a session, so that no handler hits it
        work = self.work = _named(statements.load("execution.sql", schema), self.tag, self.channel)
        orders = {
            "priority": work["next_by_priority"],
            "scheduled_at": work["next_by_time"],
            "id": work["next_by_id"],
        }
        # as they are, and where there are jobs to be passed over, which costs the others nothing
        self.takes, self.takes_around = (
            {order: work["take"].replace(b"{next}", passing_over(sql, part)) for order, sql in orders.items()}
            for part in (b"", work["passed_over"])
        )
        before = (work["begin"], work["claim_bounds"])
        after = (work["commit"], work["begin"], work["lock"], work["savepoint"])
        self._claims, self._claims_around = (
            {order: b"\n".join((*before, take, *after)) for order, take in takes.items()}
            for takes in (self.takes, self.takes_around)
        )
        self._begin_look = b"\n".join((*before, work["at_once"]))
        self._looks = {order: passing_over(sql, work["passed_over"]) for order, sql in orders.items()}
        # what the messages that write an outcome are made of
        self._keep_effects, self._drop_effects = (work["release_savepoint"],), (work["drop_effects"],)
        self._begin_late, self._restore_claim = (work["begin_late_finish"],), (work["restore_claim"],)
        self._as_claimed, self._stay_as_claimed = (work["as_claimed"],), (work["stay_as_claimed"],)
        self._deallocate = (work["deallocate"],)
        self._no_bounds = (work["no_statement_timeout"], work["no_other_bounds"])
        self._relax, self._complete = (work["relax"],), (work["complete"],)
        self._cancel_if_asked = (work["cancel_if_asked"],)
        self._record = (work["finish"], *self._cancel_if_asked)
        self._reset_session = (work["reset_session"],)
        self._ending = (work["commit"], *self._reset_session)

    # --- work

    def claim(
        self,
        conn: AnyConnection,
        *,
        which: str = "priority",
        claims_as: Callable[[str, str], None] = lambda user, role: None,
        **values: Unpack[ClaimValues],
    ) -> Job[Any] | None:
        """Claim the next job, and lock it in the transaction that is then open, behind the savepoint.

        `which` is the order that makes it the next one, or "id"; `claims_as` is told the session's user and its role.
        None: nothing to claim, and no transaction open. Raises AttemptLost when the claim was committed but its row was
        taken away before it could be locked.
        """
        with ClaimCursor(conn, row_factory=tuple_row) as cur:
            claims = self._claims_around if values.get("aside") else self._claims
            cur.execute(claims[which], {**CLAIM_DEFAULTS, **values})
            [bounds], claimed, locked = answers(cur)
        if claimed and locked:
            claims_as(*map(str_of, bounds[-2:]))
            return claimed_job(claimed[0], values["queue"], values["token"])
        rollback(conn)
        if claimed:
            raise AttemptLost(f"job {claimed[0][0]} was claimed but taken away before it was locked")
        return None

    def begin_look(self, conn: AnyConnection) -> None:
        """Begin a transaction to find out which job a claim fails for."""
        with literal_cursor(conn) as cur:
            cur.execute(self._begin_look)

    def next_job(self, conn: AnyConnection, which: str, values: ClaimValues) -> int | None:
        """The job that such a claim would take, held to the end of the transaction."""
        aside = values.get("aside") or []
        (rows,) = act(conn, self._looks[which], {**CLAIM_DEFAULTS, **values, "aside": aside})
        return rows[0][0] if rows else None

    def some_in_line(self, conn: AnyConnection, values: ClaimValues, most: int) -> list[int]:
        """Some of the jobs that such a claim could take, and that others may take meanwhile."""
        aside = values.get("aside") or []
        given = {**CLAIM_DEFAULTS, **values, "aside": aside, "most": most}
        (rows,) = act(conn, self.work["some_in_line"], given)
        return [id for (id,) in rows]

    def try_claim(self, conn: AnyConnection, id: int, values: ClaimValues) -> bool:
        """Claim this job in the transaction that is open; raises what a claim fails with, and leaves that usable."""
        (rows,) = act(conn, self.takes["id"], {**CLAIM_DEFAULTS, **values, "id": id})
        return bool(rows)

    def claimed_id(self, conn: AnyConnection, queue: str, token: UUID) -> int | None:
        """Which job runs under this token."""
        with literal_cursor(conn) as cur:
            cur.execute(self.work["claimed_id"], {"queue": queue, "token": token})
            row = cur.fetchone()
            return row[0] if row else None

    def unclaim(self, conn: AnyConnection, *, queue: str, token: UUID) -> bool:
        """Give back the attempt of a claim whose handler never started. Says whether there was one."""
        with literal_cursor(conn) as cur:
            cur.execute(self.work["unclaim"], {"queue": queue, "token": token})
            return cur.rowcount > 0

    def extend_leases(self, conn: AnyConnection, tokens: Sequence[UUID], lease: timedelta) -> set[UUID]:
        """Let the detached attempts with these tokens run on; which of them still run, for all the table says."""
        with literal_cursor(conn) as cur:
            cur.execute(self.work["extend_leases"], {"tokens": list(tokens), "lease": lease})
            return {token for (token,) in cur.fetchall()}

    def complete(
        self,
        conn: AnyConnection,
        job: Job[Any],
        outcome: Outcome,
        kept: AttemptData = NO_DATA,
        *,
        async_commit: bool = False,
        asked: bool = False,
        session: Session | None = None,
    ) -> FinishResult:
        """Commit the handler's writes together with the outcome; `relaxed` does not wait for the disk. `asked` when
        somebody wanted it cancelled, which is noted."""
        asking = self._cancel_if_asked if asked else ()
        steps = (
            *self._keep_effects,
            *self._own(session, async_commit=async_commit),
            *self._complete,
            *asking,
            *self._ending,
        )
        return self._finish(conn, steps, job, outcome, kept, session=session)

    def complete_within(
        self, conn: AnyConnection, job: Job[Any], outcome: Outcome, kept: AttemptData = NO_DATA, *, asked: bool = False
    ) -> FinishResult:
        """Write the outcome in the transaction that is open, and leave that open."""
        asking = self._cancel_if_asked if asked else ()
        return self._finish(conn, (self.work["finish"], *asking), job, outcome, kept, ends=False)

    @contextmanager
    def as_claimed(self, conn: AnyConnection, session: Session | None) -> Iterator[None]:
        """For as long as the block, which must not end the transaction, be in the role that claimed, if the handler
        has taken another. A connection of another user is left as it is."""
        if session is None:
            yield
            return
        with literal_cursor(conn) as cur:
            cur.execute(self.work["claims_as"])
            user, role = map(str_of, one(cur))
        if user != session.user or role == session.role:
            yield
            return
        self._take_role(conn, session)
        try:
            yield
        finally:
            if conn.info.transaction_status == TransactionStatus.INTRANS:  # else a rollback brings the role back
                self._take_role(conn, session._replace(role=role))

    def _take_role(self, conn: AnyConnection, session: Session) -> None:
        with literal_cursor(conn) as cur:
            cur.execute(*self._as_claimed, session_values(session))

    def fail(
        self,
        conn: AnyConnection,
        job: Job[Any],
        outcome: Outcome,
        kept: AttemptData = NO_DATA,
        *,
        async_commit: bool = False,
        session: Session | None = None,
    ) -> FinishResult:
        """Drop the handler's writes, keep the lock, commit the outcome."""
        before = (*self._drop_effects, *self._keep_effects, *self._own(session, async_commit=async_commit))
        steps = (*before, *self._record, *self._ending)
        return self._finish(conn, steps, job, outcome, kept, session=session)

    def finish_late(
        self,
        conn: AnyConnection,
        job: Job[Any],
        outcome: Outcome,
        kept: AttemptData = NO_DATA,
        *,
        after_loss: bool = False,
        async_commit: bool = False,
        session: Session | None = None,
    ) -> FinishResult:
        """Record the outcome in a transaction of its own, guarded by the token alone. `after_loss` of a connection the
        server may have lost the claim too; it is then made good."""
        role, relax = self._as_claimed if session else (), self._relax if async_commit else ()
        restore = self._restore_claim if after_loss else ()
        steps = (*self._begin_late, *role, *relax, *restore, *self._record, *self._ending)
        return self._finish(conn, steps, job, outcome, kept, session=session)

    def _own(self, session: Session | None, *, async_commit: bool) -> tuple[bytes, ...]:
        """What stands before an outcome where the handler may have changed what holds for its transaction."""
        role = self._as_claimed if session else ()
        deallocate = self._deallocate if session and session.shared_since else ()
        return (*role, *self._no_bounds, *deallocate, *(self._relax if async_commit else ()))

    def _finish(
        self,
        conn: AnyConnection,
        steps: Sequence[bytes],
        job: Job[Any],
        outcome: Outcome,
        kept: AttemptData,
        *,
        session: Session | None = None,
        ends: bool = True,
    ) -> FinishResult:
        with literal_cursor(conn) as cur:
            try:
                cur.execute(b"\n".join(steps), {**finish_values(job, outcome, kept), **session_values(session)})
            except psycopg.Error as error:
                raise lost_or(error, job) from error
            rows, *others = answers(cur)
            if not rows:
                raise attempt_lost(job)
            state, now, *_ = rows[0]
            left = others.pop()[0][-1] if ends else 0  # in the session
            for (answer, *_), *_ in filter(None, others):  # what a request to cancel made of it
                state = answer
            return FinishResult(JobState(state), now, left == 0)

    def abandon(self, conn: AnyConnection, session: Session | None) -> None:
        """Roll back, and leave nothing in the session of what outlives that: behind a pooler it is that of others next,
        and what a handler has committed of its role must not stand in the way of what is recorded."""
        if session is None:  # no handler has had it
            rollback(conn)
            return
        pooled = session.shared_since is not None
        after = (*self._as_claimed, *self._deallocate) if pooled else self._stay_as_claimed
        with literal_cursor(conn) as cur:
            cur.execute(b"\n".join((b"ROLLBACK;", *self._reset_session, *after)), session_values(session))

    def server_facts(self, conn: AnyConnection) -> ServerFacts:
        with literal_cursor(conn) as cur:
            cur.execute(self.work["server_facts"])
            uptime, can_check, version, backend_pid = one(cur)
            bound = "transaction_timeout" if version >= 170000 else "idle_in_transaction_session_timeout"
            pooled = backend_pid != conn.pgconn.backend_pid  # a pooler makes up numbers of its own
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
        """Whether the row takes a change of its state that reads nothing of it. Leaves it as it is."""
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
        """Discard a job that cannot be worked; `fresh` gives up its errors, its unique key and its workers. One that
        runs is discarded only under this token, or without one where no lease keeps it."""
        values = {"id": id, "queue": queue, "states": list(states), "reason": reason, "fresh": fresh, "token": token}
        [rows] = act(conn, self._discard_unworkable, values)
        return bool(rows)

    def cancelled_attempts(self, conn: AnyConnection, tokens: Sequence[UUID]) -> dict[tuple[int, UUID], str]:
        """Of which jobs, by id and token, somebody wants the attempt cancelled, and why."""
        with literal_cursor(conn) as cur:
            cur.execute(statements.load("control.sql", self.schema)["cancelled_attempts"], {"tokens": list(tokens)})
            return {(id, token): reason for id, token, reason in cur.fetchall()}

    # --- observe

    def get_job(self, conn: AnyConnection, id: int, queue: str | None = None) -> Job[Any] | None:
        """The job with this id; AmbiguousJob when several queues have one, and it is not said which."""
        with bound_cursor(conn) as cur:
            cur.execute(self._observe["get_job"], {"id": id})
            rows = [row for row in cur.fetchall() if queue is None or row[QUEUE] == queue]
            row = only(id, rows)
            return as_job(row) if row else None


def _named(work: Mapping[str, bytes], savepoint: str, channel: str) -> dict[str, bytes]:
    """The statements with another name for the savepoint, so that no handler hits it with one of its own, and with that
    of the channel."""
    own, text = b"SAVEPOINT " + savepoint.encode(), f"'{channel}'".encode()
    return {key: sql.replace(b"SAVEPOINT pgjobs", own).replace(b"%(channel)s", text) for key, sql in work.items()}


def session_values(session: Session | None) -> dict[str, Any]:
    """What the statements need that make the session what it was."""
    if session is None:
        return {}
    return {"session_user": session.user, "role": session.role, "since": session.shared_since}


def passing_over(next: bytes, part: bytes) -> bytes:
    """The choice of the next job or jobs, with the part that passes over some of them, or nothing in its place."""
    condition = re.sub(rb"^--.*\n", b"", part, flags=re.MULTILINE).rstrip(b"; \n")
    return next.replace(b"{passed_over}", condition).rstrip(b";")


def finish_values(job: Job[Any], outcome: Outcome, kept: AttemptData) -> dict[str, Any]:
    """What the statement that writes the outcome of one attempt needs."""
    return {
        "id": job.id,
        "queue": job.queue,
        "token": job.token,
        "attempt": job.attempt,
        "attempted_at": job.attempted_at,
        "state": outcome.state,
        "final": outcome.state.final,
        "given_back": int(outcome.attempt_given_back),
        "snoozed": outcome.snoozed,
        "at": outcome.at,
        "delay": None if outcome.state.final else outcome.delay,
        "error": outcome.error_json(job.attempt),
        "metadata": kept.metadata,
        "output": kept.output,
    }


def lost_or(error: psycopg.Error, job: Job[Any]) -> Exception:
    """The error of a finish; AttemptLost if it says that the job was no longer the attempt's."""
    return attempt_lost(job) if error.sqlstate == ATTEMPT_LOST else error


def attempt_lost(job: Job[Any]) -> AttemptLost:
    return AttemptLost(f"job {job.id} no longer runs under attempt {job.attempt}")
