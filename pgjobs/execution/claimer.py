"""Claims jobs: one statement takes the next job of a queue, a second one locks it in the handler's transaction."""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any, Literal
from uuid import UUID

import psycopg

from pgjobs.clean_text import one_line
from pgjobs.db.checkout import NEVER, Checkout
from pgjobs.db.cursors import commit
from pgjobs.errors import AttemptLost, JobStopped, UniqueConflict
from pgjobs.execution.attempt import SERVER_GRACE
from pgjobs.execution.failed_claims import FailedClaims, claims_of
from pgjobs.execution.lost_claims import LostClaims
from pgjobs.execution.low_water_mark import LowWaterMarks
from pgjobs.execution.outcome import COMPLETED, AttemptData
from pgjobs.execution.queries import (
    CLAIM_DEFAULTS,
    ClaimRequest,
    ClaimValues,
    ExecutionQueries,
    FinishResult,
    Mark,
    ServerFacts,
    Session,
)
from pgjobs.execution.set_aside import SetAside, UnreadableRow, concerns_a_row
from pgjobs.execution.transport import PreparedTransport, TransportStatements, transport_for
from pgjobs.job import Job, changed
from pgjobs.loggers import get_logger
from pgjobs.return_values import WarnOnce, checked_timeout
from pgjobs.work_map import Handler, WorkMap

log = get_logger("pgjobs.claim")

# For this long after a server start or a lost connection, claims commit synchronously: the count of an attempt must
# survive when its job crashes the server.
_SYNC_COMMIT_FOR = timedelta(minutes=5)
_NOT_KNOWN = float("inf")
_ANSWER_WITHIN = 40.0  # seconds; the server cancels a claim after 30
_TOKENS_AT_ONCE = 32
_LONGEST_BOUND = timedelta(milliseconds=2**31 - 1)
_GRACE = SERVER_GRACE // timedelta(milliseconds=1)
_SKIP_FOR = 3.0  # seconds that one claim spends on jobs that cannot be claimed; the next claim goes on from there


@dataclass
class Claimer:
    """Claims jobs for the threads of one process. `timeout` is for handlers that have none of their own;
    `unknown_kinds` says what to do with jobs whose kind has no handler."""

    queries: ExecutionQueries
    work_map: WorkMap
    worker: str
    order: str = "priority"
    timeout: timedelta | None = None
    unknown_kinds: Literal["error", "leave"] | Handler = "error"
    lease: timedelta = timedelta(minutes=1)
    complaints: WarnOnce = field(default_factory=WarnOnce)
    async_commit: set[str] = field(default_factory=set)  # queues with asynchronous commits
    _facts: ServerFacts | None = None
    _settings: tuple[ClaimValues, ClaimValues] = ({}, {})
    _settings_version: int = -1
    _simple_kinds: set[str] = field(default_factory=set)
    marks: LowWaterMarks = field(default_factory=LowWaterMarks)
    sync_until: float = _NOT_KNOWN
    _facts_lock: threading.Lock = field(default_factory=threading.Lock)
    aside: SetAside = field(default_factory=SetAside)

    def __post_init__(self) -> None:
        self._transport_statements = TransportStatements(self.queries)
        self.failed_claims = FailedClaims(self.queries, self.aside, self.order)
        self.lost_claims = LostClaims(self.queries)

    def begin_anew(self, worker: str) -> None:
        """Called in a forked child: forget the locks, the claims and the facts of the parent."""
        self.worker = worker
        self._facts, self._settings_version = None, -1
        self.sync_until = _NOT_KNOWN
        self.lost_claims = LostClaims(self.queries)  # the parent undoes its own
        self.marks = LowWaterMarks()
        self._facts_lock = threading.Lock()
        self.aside = SetAside()  # a thread of the parent may have held its lock
        self.failed_claims = FailedClaims(self.queries, self.aside, self.order)

    def claim(self, checkout: Checkout, queue: str, *, id: int | None = None) -> Job[Any] | None:
        """Claim the next job, or the one with this id. It is locked in the transaction that is open then; None: there
        was no job, and no transaction is open."""
        transport: PreparedTransport | None = checkout.transport
        if transport is not None and transport.next is not None:
            job, transport.next = transport.next, None  # claimed together with the last finish
        else:
            found = self._claim_within_limit(checkout, queue, id)
            if found is None:
                return None
            job = found
        handler = self.handler_of(job.kind)
        if handler is not None:
            vars(job)["decode"] = handler.decode  # the job is frozen, but has not been handed out yet
        return job

    def _claim_within_limit(self, checkout: Checkout, queue: str, id: int | None) -> Job[Any] | None:
        checkout.answer_due = time.monotonic() + _ANSWER_WITHIN
        try:
            return self._claim_next(checkout, queue, id)
        finally:
            checkout.answer_due = NEVER

    def _claim_next(self, checkout: Checkout, queue: str, id: int | None) -> Job[Any] | None:
        self.facts(checkout)
        self.lost_claims.unclaim_due(checkout.conn)
        mark = self.marks.start(queue) if id is None else None
        try:
            job = self._claim_workable(checkout, queue, id, mark)
        except psycopg.OperationalError as error:
            if not concerns_a_row(error):
                self.require_sync_commit()
            raise
        self.marks.record_claim(queue, job)
        return job

    def _claim_workable(self, checkout: Checkout, queue: str, id: int | None, mark: Mark | None) -> Job[Any] | None:
        """Claim the next job that can be claimed; those before it are discarded or set aside."""
        facts, until = self.facts(checkout), time.monotonic() + _SKIP_FOR
        transport = self.transport_of(checkout, facts)
        while True:
            checkout.answer_due = time.monotonic() + _ANSWER_WITHIN
            try:
                job = self._claim(checkout, transport, self.request(queue, id, mark, facts))
                if job is None and mark is not None:  # there may be jobs before the mark
                    self.marks.full_scan(queue)
                    mark = None
                    job = self._claim(checkout, transport, self.request(queue, id, None, facts))
                if job is None and id is None:
                    request = partial(self.request, queue, None, None, facts)
                    if self.failed_claims.pass_unchanged(checkout.conn, queue, request) and time.monotonic() < until:
                        continue
                self.failed_claims.went_on(queue, job)
                return job
            except (psycopg.Error, UnreadableRow) as error:
                if id is not None or not concerns_a_row(error):
                    raise
                self.failed_claims.deal_with(checkout.conn, self.request(queue, None, mark, facts), error)
                if time.monotonic() > until:
                    self.failed_claims.went_on(queue, None)
                    return None

    def complete(self, checkout: Checkout, job: Job[Any], data: AttemptData, *, go_on: bool) -> FinishResult:
        """Commit the handler's writes together with the completion. With `go_on`, the next job is claimed and locked in
        the same round trip where that is possible; the `claim` that follows returns it."""
        transport: PreparedTransport | None = checkout.transport
        if transport is None or job.kind in self._simple_kinds:
            return self.complete_simple(checkout, job, data)
        transport.used = checkout.used
        if transport.used and checkout.configures:
            go_on = False  # its owner must configure the session before the next job
        assert self._facts is not None
        next_claim = self.request(job.queue, None, self.marks.start(job.queue), self._facts) if go_on else None
        try:
            finished, problem = transport.complete(
                job, data, self.order, next_claim, async_commit=self.commits_async(job)
            )
        except psycopg.Error as error:
            self._finish_failed(job, next_claim, error)
            raise
        if problem is not None and next_claim is not None:  # the claim failed; the finish is committed
            try:
                self.lost_claims.unclaim(checkout, next_claim.queue, next_claim.token, problem)
            except psycopg.Error as error:
                log.debug("giving up the connection: %s", one_line(error))
                finished = replace(finished, clean=False)
        elif problem is None and next_claim is not None:
            if transport.next is not None or next_claim.mark is None:
                self.marks.record_claim(next_claim.queue, transport.next)
            else:
                self.marks.record_empty(next_claim.mark)
        return finished

    def complete_simple(
        self, checkout: Checkout, job: Job[Any], data: AttemptData, *, cancel_requested: bool = False
    ) -> FinishResult:
        """As `complete`, but without a claim and without prepared statements. `cancel_requested`: the job's cancel
        request is noted in its metadata."""
        async_commit, session = self.commits_async(job), checkout.session
        return self.queries.complete(
            checkout.conn,
            job,
            COMPLETED,
            data,
            async_commit=async_commit,
            cancel_requested=cancel_requested,
            session=session,
        )

    def _finish_failed(self, job: Job[Any], next_claim: ClaimRequest | None, error: psycopg.Error) -> None:
        if isinstance(error, psycopg.OperationalError) and next_claim is not None:
            self.lost_claims.add(next_claim.queue, next_claim.token)
        if isinstance(error, psycopg.errors.InvalidSqlStatementName) and self.queries.tag in str(error):
            self._simple_kinds.add(job.kind)  # its handler deallocates what pgjobs has prepared
            raise JobStopped(
                "the handler deallocated the prepared statements of pgjobs; it runs again without them"
            ) from error

    def unclaim_next(self, checkout: Checkout) -> None:
        """Undo the claim that was sent with the last finish, because its job will not be started."""
        transport: PreparedTransport | None = checkout.transport
        if transport is None or transport.next is None:
            return
        (job, transport.next), undone = (transport.next, None), False
        assert job.token is not None
        try:
            if not checkout.usable or checkout.spoiled:
                checkout.replace()
            # In the transaction that has the row's lock: another claim may wait for it, having seen the job available.
            found = self.queries.unclaim(checkout.conn, queue=job.queue, token=job.token)
            commit(checkout.conn)
            undone = found
        finally:
            if not undone:
                self.lost_claims.add(job.queue, job.token)

    def require_sync_commit(self) -> None:
        """A connection was lost, perhaps with the server: make claims commit synchronously for a while."""
        self.sync_until = time.monotonic() + _SYNC_COMMIT_FOR.total_seconds()

    def commits_async(self, job: Job[Any]) -> bool:
        return job.queue in self.async_commit

    def handler_of(self, kind: str) -> Handler | None:
        """The handler of a kind, or the handler for unknown kinds."""
        handler: Handler | None = dict.get(self.work_map, kind)  # WorkMap.get also takes classes, and is slower
        return self.unknown_kinds if handler is None and isinstance(self.unknown_kinds, Handler) else handler

    def timeout_of(self, job: Job[Any], handler: Handler | None) -> timedelta | None:
        """How long an attempt at the job may take; None for no limit."""
        if handler is None or handler.timeout == "inherit":
            return self.timeout
        if not callable(handler.timeout):
            return handler.timeout
        try:
            limit = checked_timeout(handler.timeout(changed(job, decode=handler.decode)))
        except BaseException as error:  # also sys.exit() in the user's function, and args that do not decode
            self.complaints(job.kind, "timeout of its handler", error, instead="using the worker pool's")
            return self.timeout
        return self.timeout if limit == "inherit" else limit

    def _claim(self, checkout: Checkout, transport: PreparedTransport | None, request: ClaimRequest) -> Job[Any] | None:
        which = self.order if request.id is None else "id"
        try:
            try:
                if transport is None:
                    return self._claim_simple(checkout, which, request)
                return self._claim_prepared(checkout, transport, which, request)
            except psycopg.errors.InvalidSqlStatementName as error:
                if transport is None:
                    raise
                transport.forget()
                # the claim was committed if only the lock was deallocated
                self.lost_claims.unclaim(checkout, request.queue, request.token, error)
                return self._claim_prepared(checkout, transport, which, request)
        except (AttemptLost, psycopg.Error, MemoryError) as error:  # a lack of memory does not discard the job
            self.lost_claims.unclaim(checkout, request.queue, request.token, error)
            if isinstance(error, AttemptLost):
                return None
            if isinstance(error, psycopg.errors.UniqueViolation) and request.id is not None:  # was `retryable`
                raise UniqueConflict(f"job {request.id} cannot run now: another job has its unique key") from error
            raise
        except Exception as error:
            self.failed_claims.discard_unreadable(checkout.conn, request.queue, request.token, error)
            raise UnreadableRow(f"a job of queue {request.queue!r} cannot be read: {one_line(error)}") from error

    def _claim_simple(self, checkout: Checkout, which: str, request: ClaimRequest) -> Job[Any] | None:
        found: list[Session] = []
        job = self.queries.claim(
            checkout.conn, which=which, on_role=lambda user, role: found.append(Session(user, role)), **request.values
        )
        if job is not None:
            pooled = self._facts is not None and self._facts.pooled
            checkout.session = found[0]._replace(shared_since=job.attempted_at if pooled else None)
        return job

    def _claim_prepared(
        self, checkout: Checkout, transport: PreparedTransport, which: str, request: ClaimRequest
    ) -> Job[Any] | None:
        job = transport.claim(which, request)
        checkout.session = transport.session
        return job

    def request(self, queue: str, id: int | None, mark: Mark | None, facts: ServerFacts) -> ClaimRequest:
        """The values of the next claim of this queue, with a new token."""
        if self._settings_version != self.work_map.changes:
            self._settings_version, self._settings = self.work_map.changes, self._current_settings(facts)
        after_crash = time.monotonic() < self.sync_until
        aside = self.aside.rows(claims_of(queue)) if self.aside and id is None else ()
        return ClaimRequest(self._settings[after_crash], queue, new_token(), id, mark, aside)

    def _current_settings(self, facts: ServerFacts) -> tuple[ClaimValues, ClaimValues]:
        """The values that all claims share until the WorkMap changes: with asynchronous commits, and without."""
        kinds = list(self.work_map)
        settings: ClaimValues = {
            **CLAIM_DEFAULTS,
            "worker": self.worker,
            "kinds": kinds if self.unknown_kinds == "leave" else None,
            "detached": [kind for kind in kinds if self.work_map[kind].detached],
            "lease": self.lease,
            "check_interval": "500ms" if facts.can_check_connections else "0",
            "bounded_by": facts.transaction_bound,
            "bound": _milliseconds(self._transaction_bound(self.unknown_kinds)),
            "bounds": self._bounds_by_kind(),
        }
        return {**settings, "synchronous_commit": False}, {**settings, "synchronous_commit": True}

    def facts(self, checkout: Checkout) -> ServerFacts:
        """The facts that claims depend on, read from the server once."""
        return self._facts or self._read_facts(checkout)

    def transport_of(self, checkout: Checkout, facts: ServerFacts) -> PreparedTransport | None:
        """The prepared transport of this connection; None where statements may not be prepared."""
        if checkout.transport is None and checkout.can_prepare and not facts.pooled:
            checkout.enable_prepare()
            checkout.transport = transport_for(checkout.conn, self._transport_statements)
        transport: PreparedTransport | None = checkout.transport
        return transport

    def _bounds_by_kind(self) -> str:
        """How long a transaction may last by kind, in milliseconds, as JSON. A timeout that depends on the job is not
        known when the claim sets the bound."""
        bounds = {
            kind: _milliseconds(self._transaction_bound(handler))
            for kind, handler in list(self.work_map.items())
            if handler.timeout != "inherit"
        }
        return json.dumps(bounds) if bounds else "{}"

    def _transaction_bound(self, handler: Handler | str) -> timedelta | None:
        if not isinstance(handler, Handler) or handler.timeout == "inherit":
            return self.timeout
        return handler.timeout if isinstance(handler.timeout, timedelta) else None

    def _read_facts(self, checkout: Checkout) -> ServerFacts:
        with self._facts_lock:
            facts = self._facts = self.queries.server_facts(checkout.conn)
            if self.sync_until == _NOT_KNOWN:
                self.sync_until = time.monotonic() + (_SYNC_COMMIT_FOR - facts.uptime).total_seconds()
            return facts


_unused_tokens: list[bytes] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unused_tokens.clear)  # the parent uses them


def new_token() -> UUID:
    """Make a random UUID as uuid4() does, from random bytes that are read for many at once: each read releases the
    interpreter's lock, which takes as long as to send a message."""
    try:
        token = _unused_tokens.pop()
    except IndexError:
        random = os.urandom(16 * _TOKENS_AT_ONCE)
        token, *others = (random[start : start + 16] for start in range(0, len(random), 16))
        _unused_tokens.extend(others)
    return UUID(bytes=token, version=4)


def _milliseconds(timeout: timedelta | None) -> str:
    """The server's bound for the transaction of a job with this timeout; 0 for none."""
    if timeout is None:
        return "0"
    return str(min(2**31 - 1, int(min(timeout, _LONGEST_BOUND) / timedelta(milliseconds=1)) + _GRACE))
