"""One method per statement, connection first: rows in, Jobs out. Nobody else touches a cursor but the
books of the migrations."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from secrets import token_hex
from typing import Any, NamedTuple, TypedDict, Unpack
from uuid import UUID

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow, tuple_row

from pgjobs.db import statements
from pgjobs.db.cursors import AnyConnection, ClaimCursor, answers, bound_cursor, literal_cursor, one
from pgjobs.errors import AmbiguousJob, AttemptLost
from pgjobs.execution.outcome import NOTHING_KEPT, Kept, Outcome
from pgjobs.job import Job, JobState, job_of

__all__ = ["AnyConnection", "Changes", "Finished", "Store", "Verdict"]

# what a notification says that is not the name of a queue
CANCEL_NOTICE = " cancel"  # see control.sql
DUE_NOTICE = " due"  # a job waits for a time that comes before the next promote; see enqueue.sql
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
ATTEMPT_LOST = "PJ001"  # raised by the function attempt_lost() of the schema


@dataclass(frozen=True, slots=True)
class Finished:
    """What became of the job when its outcome was written."""

    state: JobState
    microseconds: int  # since 1970, by the database's clock
    clean: bool  # whether nothing of the handler's is left in the session

    @property
    def at(self) -> datetime:
        return _EPOCH + timedelta(microseconds=self.microseconds)


class DutyMissing(LookupError):
    """The table of duties has no row of this one: somebody has emptied it."""


def span(microseconds: int | None) -> timedelta | None:
    """A duration, of which Postgres gave the microseconds."""
    return None if microseconds is None else timedelta(microseconds=microseconds)


def microseconds(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(microseconds=1)


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


class Selection(NamedTuple):
    """Which rows an act leaves out, by their ids, and which it is restricted to."""

    aside: Sequence[int] | None = None
    among: Sequence[int] | None = None

    @property
    def values(self) -> dict[str, Any]:
        return {
            "aside": list(self.aside) if self.aside else None,
            "among": None if self.among is None else list(self.among),
        }


ALL_ROWS = Selection()


class CleanPart(NamedTuple):
    """Which jobs that are over are looked at: those that ended in a state longer ago than `keep`, from a place in the
    index on; and which of them are deleted: those of a queue, or of all queues but some."""

    state: JobState
    keep: timedelta
    queue: str | None
    others: Sequence[str]
    after: datetime | None
    after_id: int

    def values(self, batch: int, rows: Selection) -> dict[str, Any]:
        return {**self._asdict(), "others": list(self.others), "batch": batch, **rows.values}


class Rescued(list[Job[Any]]):
    """The jobs that a rescue has finished."""

    more = False  # whether it has left some for the next time


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What one update changes, checked and encoded already; None leaves a thing as it is."""

    metadata: str | None
    output: str | None
    priority: int | None
    scheduled_at: datetime | None
    max_attempts: int | None
    tags: list[str] | None


#: A job as a control statement leaves it, and what the statement says it did; see sql/control.sql.
Verdict = tuple[Job[Any], str]


class Store:
    """The statements of one schema."""

    def __init__(self, schema: str) -> None:
        self.schema = schema
        self.channel = statements.channel(schema)
        self._control = statements.load("control.sql", schema)
        self._maintain = statements.load("maintain.sql", schema)
        self._observe = statements.load("observe.sql", schema)
        self.tag = f"pgjobs_{token_hex(4)}"  # of what has a name in a session, so that no handler hits it
        work = self.work = _named(statements.load("work.sql", schema), self.tag, self.channel)
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
        self.rollback(conn)
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
        (rows,) = self._act(conn, self._looks[which], {**CLAIM_DEFAULTS, **values, "aside": aside})
        return rows[0][0] if rows else None

    def some_in_line(self, conn: AnyConnection, values: ClaimValues, most: int) -> list[int]:
        """Some of the jobs that such a claim could take, and that others may take meanwhile."""
        aside = values.get("aside") or []
        given = {**CLAIM_DEFAULTS, **values, "aside": aside, "most": most}
        (rows,) = self._act(conn, self.work["some_in_line"], given)
        return [id for (id,) in rows]

    def try_claim(self, conn: AnyConnection, id: int, values: ClaimValues) -> bool:
        """Claim this job in the transaction that is open; raises what a claim fails with, and leaves that usable."""
        (rows,) = self._act(conn, self.takes["id"], {**CLAIM_DEFAULTS, **values, "id": id})
        return bool(rows)

    def claimed_id(self, conn: AnyConnection, queue: str, token: UUID) -> int | None:
        """Which job runs under this token."""
        with literal_cursor(conn) as cur:
            cur.execute(self.work["claimed_id"], {"queue": queue, "token": token})
            row = cur.fetchone()
            return row[0] if row else None

    def release_claim(self, conn: AnyConnection, *, queue: str, token: UUID) -> bool:
        """Give back the attempt of a claim whose handler never started. Says whether there was one."""
        with literal_cursor(conn) as cur:
            cur.execute(self.work["release_claim"], {"queue": queue, "token": token})
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
        kept: Kept = NOTHING_KEPT,
        *,
        relaxed: bool = False,
        asked: bool = False,
        session: Session | None = None,
    ) -> Finished:
        """Commit the handler's writes together with the outcome; `relaxed` does not wait for the disk. `asked` when
        somebody wanted it cancelled, which is noted."""
        asking = self._cancel_if_asked if asked else ()
        steps = (*self._keep_effects, *self._own(session, relaxed=relaxed), *self._complete, *asking, *self._ending)
        return self._finish(conn, steps, job, outcome, kept, session=session)

    def complete_within(
        self, conn: AnyConnection, job: Job[Any], outcome: Outcome, kept: Kept = NOTHING_KEPT, *, asked: bool = False
    ) -> Finished:
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
        kept: Kept = NOTHING_KEPT,
        *,
        relaxed: bool = False,
        session: Session | None = None,
    ) -> Finished:
        """Drop the handler's writes, keep the lock, commit the outcome."""
        before = (*self._drop_effects, *self._keep_effects, *self._own(session, relaxed=relaxed))
        steps = (*before, *self._record, *self._ending)
        return self._finish(conn, steps, job, outcome, kept, session=session)

    def finish_late(
        self,
        conn: AnyConnection,
        job: Job[Any],
        outcome: Outcome,
        kept: Kept = NOTHING_KEPT,
        *,
        after_loss: bool = False,
        relaxed: bool = False,
        session: Session | None = None,
    ) -> Finished:
        """Record the outcome in a transaction of its own, guarded by the token alone. `after_loss` of a connection the
        server may have lost the claim too; it is then made good."""
        role, relax = self._as_claimed if session else (), self._relax if relaxed else ()
        restore = self._restore_claim if after_loss else ()
        steps = (*self._begin_late, *role, *relax, *restore, *self._record, *self._ending)
        return self._finish(conn, steps, job, outcome, kept, session=session)

    def _own(self, session: Session | None, *, relaxed: bool) -> tuple[bytes, ...]:
        """What stands before an outcome where the handler may have changed what holds for its transaction."""
        role = self._as_claimed if session else ()
        deallocate = self._deallocate if session and session.shared_since else ()
        return (*role, *self._no_bounds, *deallocate, *(self._relax if relaxed else ()))

    def _finish(
        self,
        conn: AnyConnection,
        steps: Sequence[bytes],
        job: Job[Any],
        outcome: Outcome,
        kept: Kept,
        *,
        session: Session | None = None,
        ends: bool = True,
    ) -> Finished:
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
            return Finished(JobState(state), now, left == 0)

    def abandon(self, conn: AnyConnection, session: Session | None) -> None:
        """Roll back, and leave nothing in the session of what outlives that: behind a pooler it is that of others next,
        and what a handler has committed of its role must not stand in the way of what is recorded."""
        if session is None:  # no handler has had it
            self.rollback(conn)
            return
        pooled = session.shared_since is not None
        after = (*self._as_claimed, *self._deallocate) if pooled else self._stay_as_claimed
        with literal_cursor(conn) as cur:
            cur.execute(b"\n".join((b"ROLLBACK;", *self._reset_session, *after)), session_values(session))

    def commit(self, conn: AnyConnection) -> None:
        with literal_cursor(conn) as cur:
            cur.execute(b"COMMIT")

    def rollback(self, conn: AnyConnection) -> None:
        with literal_cursor(conn) as cur:
            cur.execute(b"ROLLBACK")

    def server_facts(self, conn: AnyConnection) -> ServerFacts:
        with literal_cursor(conn) as cur:
            cur.execute(self.work["server_facts"])
            uptime, can_check, version, backend_pid = one(cur)
            bound = "transaction_timeout" if version >= 170000 else "idle_in_transaction_session_timeout"
            pooled = backend_pid != conn.pgconn.backend_pid  # a pooler makes up numbers of its own
            return ServerFacts(timedelta(microseconds=uptime), can_check, bound, pooled)

    # --- maintain

    def begin_duty(self, conn: AnyConnection, duty: str, longest: timedelta = timedelta(hours=25)) -> timedelta | None:
        """Lock a duty in a transaction that stays open if the duty is due, also if it says to be for longer than
        `longest`.

        How long until it is due, zero or less for now; None: somebody else is at it. Raises DutyMissing when there is
        no row of the duty.
        """
        with literal_cursor(conn) as cur:
            cur.execute(self._maintain["begin_duty"], {"duty": duty, "longest": longest})
            (((microseconds, known),),) = answers(cur)
        remaining = span(microseconds)
        if remaining is None or remaining > timedelta(0):
            self.rollback(conn)
        if not known:
            raise DutyMissing(duty)
        return remaining

    def end_duty(self, conn: AnyConnection, duty: str, after: timedelta) -> None:
        """Move the duty's time on and commit."""
        with literal_cursor(conn) as cur:
            cur.execute(self._maintain["end_duty"], {"duty": duty, "after": after})

    def current_time(self, conn: AnyConnection) -> datetime:
        with literal_cursor(conn) as cur:
            cur.execute(self._maintain["current_time"])
            return _EPOCH + timedelta(microseconds=one(cur)[0])

    def postpone_duty(self, conn: AnyConnection, duty: str, after: timedelta) -> None:
        with literal_cursor(conn) as cur:
            cur.execute(self._maintain["postpone_duty"], {"duty": duty, "after": after})

    def glance(self, conn: AnyConnection, soon: timedelta) -> set[str]:
        """Whether `promote` and `rescue` would find anything."""
        with literal_cursor(conn) as cur:
            cur.execute(self._maintain["glance"], {"soon": soon})
            promote, rescue = one(cur)
            return {duty for duty, wanted in (("promote", promote), ("rescue", rescue)) if wanted}

    def hurry_promote(self, conn: AnyConnection) -> None:
        """Let the duty be done when the next job is due, if that is sooner than it was to be."""
        with literal_cursor(conn) as cur:
            cur.execute(self._maintain["hurry_promote"])

    def promote(
        self, conn: AnyConnection, batch: int, rows: Selection = ALL_ROWS
    ) -> tuple[dict[str, int], list[tuple[int, str]], timedelta | None]:
        """Make due jobs available; how many per queue, id and queue of those that a twin may be in the way of, and how
        long until the next waiting job is due."""
        values = {"batch": batch, "channel": self.channel, **rows.values}
        found, [(due,)] = self._act(conn, self._maintain["promote"], values)
        promoted = {queue: jobs for queue, jobs, id, *_ in found if id is None}
        return promoted, [(id, queue) for queue, _, id, *_ in found if id is not None], span(due)

    def settle_promotion(self, conn: AnyConnection, id: int, queue: str) -> JobState | None:
        """Make one available, or discard it if its twin has its key; raises when that cannot be told yet. None: there
        is nothing to settle any more."""
        values = {"id": id, "queue": queue, "channel": self.channel}
        (rows,) = self._act(conn, self._maintain["settle_promotion"], values)
        return JobState(rows[0][0]) if rows else None

    def postpone_promotion(self, conn: AnyConnection, id: int, queue: str) -> None:
        self._act(conn, self._maintain["postpone_promotion"], {"id": id, "queue": queue})

    def next_due(self, conn: AnyConnection, rows: Selection = ALL_ROWS) -> timedelta | None:
        """How long until the next waiting job is due."""
        [[(due,)]] = self._act(conn, self._maintain["next_due"], rows.values)
        return span(due)

    def rescue(
        self,
        conn: AnyConnection,
        batch: int,
        grace: timedelta,
        kinds: Iterable[str] | None = None,
        rows: Selection = ALL_ROWS,
    ) -> Rescued:
        """Finish the attempts of workers that vanished; the jobs as they are now, without a token where the attempt was
        given back, and without their args, metadata and earlier errors. Last attempts of other kinds than these are
        left to others; None is every kind."""
        values = self._rescue_values(batch, grace, kinds, rows)
        (found,) = self._act(conn, self._maintain["rescue"], values)
        rescued = Rescued(as_job(row) for row in found)
        rescued.more = bool(found) and bool(found[0][-1])
        return rescued

    def _rescue_values(
        self, batch: int, grace: timedelta, kinds: Iterable[str] | None, rows: Selection
    ) -> dict[str, Any]:
        return {"batch": batch, "grace": grace, "kinds": None if kinds is None else list(kinds), **rows.values}

    def rescued_job(self, conn: AnyConnection, id: int, queue: str) -> Job[Any] | None:
        """A job that was just rescued; without what of it is larger than a few megabytes."""
        with literal_cursor(conn) as cur:
            cur.execute(self._maintain["rescued_job"], {"id": id, "queue": queue})
            row = cur.fetchone()
            return as_job(row) if row else None

    def settle_requests(self, conn: AnyConnection, batch: int, rows: Selection = ALL_ROWS) -> tuple[int, int]:
        """Apply, pass on or drop requests to cancel attempts that are over: how many jobs are cancelled, requests dealt
        with."""
        [[(cancelled, settled)]] = self._act(conn, self._maintain["settle_requests"], {"batch": batch, **rows.values})
        return cancelled, settled

    def clean(
        self,
        conn: AnyConnection,
        state: JobState,
        keep: timedelta,
        batch: int,
        rows: Selection = ALL_ROWS,
        *,
        queue: str | None = None,
        others: Sequence[str] = (),
    ) -> int:
        """Delete jobs that ended in this state longer ago than `keep`, of a queue or of all but some; how many."""
        values = {"state": state, "keep": keep, "batch": batch, "queue": queue, "others": list(others), **rows.values}
        [[(deleted,)]] = self._act(conn, self._maintain["clean"], values)
        return deleted  # type: ignore[no-any-return]

    def clean_part(
        self, conn: AnyConnection, part: CleanPart, batch: int, rows: Selection = ALL_ROWS
    ) -> tuple[int, tuple[datetime, int] | None]:
        """Look at the next jobs that ended in a state longer ago than they are kept, and delete those of the queue, or
        of all but the others; how many were looked at, and when the last of them ended, with its id."""
        [[(seen, ended_at, id, _)]] = self._act(conn, self._maintain["clean_part"], part.values(batch, rows))
        return seen, None if ended_at is None else (ended_at, id)

    def rows_to_clean_part(
        self, conn: AnyConnection, part: CleanPart, batch: int, rows: Selection = ALL_ROWS
    ) -> list[tuple[int, str]]:
        return self._rows(conn, self._maintain["rows_to_clean_part"], part.values(batch, rows))

    def some_old_jobs(
        self,
        conn: AnyConnection,
        state: JobState,
        keep: timedelta,
        batch: int,
        *,
        queue: str | None = None,
        others: Sequence[str] = (),
    ) -> list[tuple[int, str]]:
        """Some jobs that may be deleted, of a queue or of all but some: id and queue."""
        values = {"state": state, "keep": keep, "batch": batch, "queue": queue, "others": list(others)}
        with literal_cursor(conn) as cur:
            cur.execute(self._maintain["some_old_jobs"], values)
            return [(id, queue) for id, queue in cur.fetchall()]

    # --- when an act has failed because of a row: what it would take, by id and queue

    def rows_to_promote(self, conn: AnyConnection, batch: int, rows: Selection = ALL_ROWS) -> list[tuple[int, str]]:
        return self._rows(conn, self._maintain["rows_to_promote"], {"batch": batch, **rows.values})

    def rows_to_rescue(
        self, conn: AnyConnection, batch: int, grace: timedelta, kinds: Iterable[str] | None, rows: Selection = ALL_ROWS
    ) -> list[tuple[int, str]]:
        return self._rows(conn, self._maintain["rows_to_rescue"], self._rescue_values(batch, grace, kinds, rows))

    def rows_to_settle(self, conn: AnyConnection, batch: int, rows: Selection = ALL_ROWS) -> list[tuple[int, str]]:
        return self._rows(conn, self._maintain["rows_to_settle"], {"batch": batch, **rows.values})

    def rows_to_clean(
        self, conn: AnyConnection, state: JobState, keep: timedelta, batch: int, rows: Selection = ALL_ROWS
    ) -> list[tuple[int, str]]:
        """Where no queue says anything itself."""
        values = {"state": state, "keep": keep, "batch": batch, "queue": None, "others": [], **rows.values}
        return self._rows(conn, self._maintain["rows_to_clean"], values)

    def _rows(self, conn: AnyConnection, statement: bytes, values: Mapping[str, Any]) -> list[tuple[int, str]]:
        (rows,) = self._act(conn, statement, values)
        return [(id, queue) for id, queue in rows]

    def _act(self, conn: AnyConnection, statement: bytes, values: Mapping[str, Any]) -> list[list[Any]]:
        """The answers of a statement that may fail because of a row; the transaction around it, if there is one, then
        goes on."""
        within = conn.info.transaction_status == TransactionStatus.INTRANS
        if within:
            statement = b"SAVEPOINT pgjobs_act;\n%b;\nRELEASE SAVEPOINT pgjobs_act" % statement.rstrip(b"; \n")
        with literal_cursor(conn) as cur:
            try:
                cur.execute(statement, values)
            except psycopg.Error:
                if within and conn.info.transaction_status == TransactionStatus.INERROR:
                    cur.execute(b"ROLLBACK TO SAVEPOINT pgjobs_act;\nRELEASE SAVEPOINT pgjobs_act")
                raise
            return answers(cur)

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
            [rows] = self._act(conn, self._maintain["bare_write"], values)
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
        [rows] = self._act(conn, self._maintain["discard_unworkable"], values)
        return bool(rows)

    # --- control: the job as it is now, and what became of the call; None when there is no such job

    def begin_control(self, conn: AnyConnection) -> None:
        with literal_cursor(conn) as cur:
            cur.execute(self._control["begin_control"])

    def cancel(self, conn: AnyConnection, id: int, *, reason: str) -> Verdict | None:
        return self._judged(conn, self._control["cancel"], {"id": id, "reason": reason})

    def release(self, conn: AnyConnection, id: int) -> Verdict | None:
        return self._judged(conn, self._control["release"], {"id": id})

    def retry(self, conn: AnyConnection, id: int, *, reset: bool = False) -> Verdict | None:
        return self._judged(conn, self._control["retry"], {"id": id, "reset": reset})

    def delete(self, conn: AnyConnection, id: int) -> Verdict | None:
        return self._judged(conn, self._control["delete"], {"id": id})

    def update(self, conn: AnyConnection, id: int, changes: Changes) -> Verdict | None:
        values = {name: getattr(changes, name) for name in Changes.__slots__}
        return self._judged(conn, self._control["update"], {"id": id, **values})

    def _judged(self, conn: AnyConnection, statement: bytes, parameters: dict[str, Any]) -> Verdict | None:
        with bound_cursor(conn) as cur:
            cur.execute(statement, {**parameters, "channel": self.channel})
            row = _only(parameters["id"], cur.fetchall())
            return (as_job(row), row[19]) if row else None

    def snapshot_is_kept(self, conn: AnyConnection) -> bool:
        """Whether the transaction that is open would see nothing new if it looked again."""
        with bound_cursor(conn) as cur:
            cur.execute(self._control["snapshot_is_kept"])
            return bool(one(cur)[0])

    def cancelled_attempts(self, conn: AnyConnection, tokens: Sequence[UUID]) -> dict[tuple[int, UUID], str]:
        """Of which jobs, by id and token, somebody wants the attempt cancelled, and why."""
        with literal_cursor(conn) as cur:
            cur.execute(self._control["cancelled_attempts"], {"tokens": list(tokens)})
            return {(id, token): reason for id, token, reason in cur.fetchall()}

    # --- observe

    def get_job(self, conn: AnyConnection, id: int, queue: str | None = None) -> Job[Any] | None:
        """The job with this id; AmbiguousJob when several queues have one, and it is not said which."""
        with bound_cursor(conn) as cur:
            cur.execute(self._observe["get_job"], {"id": id})
            rows = [row for row in cur.fetchall() if queue is None or row[_QUEUE] == queue]
            row = _only(id, rows)
            return as_job(row) if row else None

    def listen(self, conn: AnyConnection) -> None:
        with literal_cursor(conn) as cur:
            cur.execute(f'LISTEN "{self.channel}"'.encode())

    def probe(self, conn: AnyConnection) -> None:
        """Return when the server has answered."""
        with literal_cursor(conn) as cur:
            cur.execute(self._observe["probe"])


def _only(id: int, rows: Sequence[TupleRow]) -> TupleRow | None:
    """The row of the one job with this id."""
    if len(rows) > 1:
        raise AmbiguousJob(id, [row[_QUEUE] for row in rows])
    return rows[0] if rows else None


def _named(work: Mapping[str, bytes], savepoint: str, channel: str) -> dict[str, bytes]:
    """The statements with another name for the savepoint, so that no handler hits it with one of its own, and with that
    of the channel."""
    own, text = b"SAVEPOINT " + savepoint.encode(), f"'{channel}'".encode()
    return {key: sql.replace(b"SAVEPOINT pgjobs", own).replace(b"%(channel)s", text) for key, sql in work.items()}


def str_of(name: str | bytes) -> str:
    """A name that the server gave; psycopg leaves it as bytes where the session says of no text what it is."""
    return name if isinstance(name, str) else name.decode("utf-8", "surrogateescape")


def session_values(session: Session | None) -> dict[str, Any]:
    """What the statements need that make the session what it was."""
    if session is None:
        return {}
    return {"session_user": session.user, "role": session.role, "since": session.shared_since}


def passing_over(next: bytes, part: bytes) -> bytes:
    """The choice of the next job or jobs, with the part that passes over some of them, or nothing in its place."""
    condition = re.sub(rb"^--.*\n", b"", part, flags=re.MULTILINE).rstrip(b"; \n")
    return next.replace(b"{passed_over}", condition).rstrip(b";")


def finish_values(job: Job[Any], outcome: Outcome, kept: Kept) -> dict[str, Any]:
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


def as_job(row: Sequence[Any]) -> Job[Any]:
    """A Job from the columns that every statement lists in this order; instants in UTC."""
    values = dict(zip(_COLUMNS, row, strict=False))  # a statement may give more
    values["state"] = _STATES[values["state"]]
    return _job(values, _INSTANTS)


def claimed_job(row: Sequence[Any], queue: str, token: UUID) -> Job[Any]:
    """The Job of a claim, which gives only the columns that its claimer does not know."""
    values = dict(zip(_CLAIMED_COLUMNS, row, strict=False))
    values["state"] = JobState.RUNNING
    values["queue"] = queue
    values["token"] = token
    return _job(values, _CLAIMED_INSTANTS)


def _job(values: dict[str, Any], instants: Sequence[str]) -> Job[Any]:
    values["tags"] = tuple(values["tags"])
    values["attempted_by"] = tuple(values["attempted_by"])
    for name in instants:
        if values[name] is not None:
            values[name] = values[name].astimezone(UTC)
    return job_of(values)


_COLUMNS = (
    "id", "state", "queue", "kind", "priority", "attempt", "max_attempts", "raw_args", "raw_metadata", "raw_errors",
    "tags", "scheduled_at", "created_at", "attempted_at", "finalized_at", "attempted_by", "token", "leased_until",
    "raw_output",
)  # fmt: skip
_CLAIMED_COLUMNS = (
    "id", "kind", "priority", "attempt", "max_attempts", "raw_args", "raw_metadata", "raw_errors", "tags",
    "scheduled_at", "created_at", "attempted_at", "attempted_by", "leased_until",
)  # fmt: skip
_QUEUE = _COLUMNS.index("queue")
_INSTANTS = ("scheduled_at", "created_at", "attempted_at", "finalized_at", "leased_until")
_CLAIMED_INSTANTS = ("scheduled_at", "created_at", "attempted_at", "leased_until")
_STATES = {state.value: state for state in JobState}
