"""Claims jobs: one statement takes the next job of a queue, a second one locks it in the handler's transaction."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any, Literal, TypeVar
from uuid import UUID, SafeUUID

import psycopg

from pgjobs.clean_text import one_line
from pgjobs.db.checkout import NEVER, Checkout
from pgjobs.db.cursors import commit
from pgjobs.errors import AttemptLost, UniqueConflict
from pgjobs.execution.attempt import SERVER_GRACE
from pgjobs.execution.failed_claims import FailedClaims, claims_of
from pgjobs.execution.lost_claims import LostClaims
from pgjobs.execution.low_water_mark import LowWaterMarks
from pgjobs.execution.queries import ExecutionQueries, ServerFacts
from pgjobs.execution.requests import ClaimRequest, ClaimSettings, Mark
from pgjobs.execution.scripts import NextClaim
from pgjobs.execution.set_aside import SetAside, UnreadableRow, concerns_a_row
from pgjobs.execution.transport import WRONG_NAMES, Transport
from pgjobs.interval import MOST_MILLISECONDS, milliseconds
from pgjobs.job import Job, changed
from pgjobs.loggers import get_logger
from pgjobs.return_values import WarnOnce, checked_timeout
from pgjobs.work_map import Handler, WorkMap

log = get_logger("pgjobs.claim")

# For this long after a server start or a lost connection, claims commit synchronously: the count of an attempt must
# survive when its job crashes the server.
_SYNC_COMMIT_FOR = timedelta(minutes=5)
Found = TypeVar("Found")
_NOT_KNOWN = float("inf")
_ANSWER_WITHIN = 40.0  # seconds; the server cancels a claim after 30
_TOKENS_AT_ONCE = 32
_GRACE = milliseconds(SERVER_GRACE)
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
    _settings: tuple[ClaimSettings, ...] = ()
    _settings_version: int = -1
    unprepared_kinds: set[str] = field(default_factory=set)  # whose handlers deallocate what pgjobs has prepared
    marks: LowWaterMarks = field(default_factory=LowWaterMarks)
    sync_until: float = _NOT_KNOWN
    _facts_lock: threading.Lock = field(default_factory=threading.Lock)
    set_aside: SetAside = field(default_factory=SetAside)

    def __post_init__(self) -> None:
        self.failed_claims = FailedClaims(self.queries, self.set_aside, self.order)
        self.lost_claims = LostClaims(self.queries)

    def reset_for_process(self, worker: str) -> None:
        """Called in a forked child: forget the locks, the claims and the facts of the parent."""
        self.worker = worker
        self._facts, self._settings_version = None, -1
        self.sync_until = _NOT_KNOWN
        self.lost_claims = LostClaims(self.queries)  # the parent undoes its own
        self.marks = LowWaterMarks()
        self._facts_lock = threading.Lock()
        self.set_aside = SetAside()  # a thread of the parent may have held its lock
        self.failed_claims = FailedClaims(self.queries, self.set_aside, self.order)

    def claim(self, checkout: Checkout, queue: str) -> Job[Any] | None:
        """Claim the next job that can be claimed; those before it are discarded or set aside. It is locked in the
        transaction that is open then; None: there was no job, and no transaction is open."""
        until = time.monotonic() + _SKIP_FOR
        while True:
            try:
                job = self.behind_mark(checkout, queue, partial(self._claim_one, checkout))
            except (psycopg.Error, UnreadableRow) as error:
                if not concerns_a_row(error):
                    raise
                self.marks.forget(queue)  # the next claim looks where the one looks that is tried now
                with checkout.answered_within(_ANSWER_WITHIN):
                    self.failed_claims.deal_with(checkout.conn, self.request(queue, None, None), error)
                if time.monotonic() > until:
                    job = None
                    break
                continue
            self.marks.record_claim(queue, job)
            if job is not None or not self._pass_unchanged(checkout, queue) or time.monotonic() > until:
                break
        self.failed_claims.went_on(queue, job)
        return job

    def _pass_unchanged(self, checkout: Checkout, queue: str) -> bool:
        with checkout.answered_within(_ANSWER_WITHIN):
            return self.failed_claims.pass_unchanged(checkout.conn, queue, partial(self.request, queue, None, None))

    def claim_by_id(self, checkout: Checkout, queue: str, id: int) -> Job[Any] | None:
        """Claim the waiting job with this id. Raises UniqueConflict if another job has its unique key."""
        with checkout.answered_within(_ANSWER_WITHIN):
            self._prepare(checkout)
            try:
                return self._send(checkout, self.request(queue, id, None), partial(self._claim_one, checkout))
            except psycopg.errors.UniqueViolation as error:  # it was `retryable`
                raise UniqueConflict(f"job {id} cannot run now: another job has its unique key") from error

    def behind_mark(
        self, checkout: Checkout, queue: str, send: Callable[[ClaimRequest], Found | None], *, alone: bool = True
    ) -> Found | None:
        """Claim behind the low-water mark; if there is nothing, in the whole queue. `send` sends a claim, for one job
        `alone` or for a batch."""
        checkout.answer_due = time.monotonic() + _ANSWER_WITHIN
        try:
            self._prepare(checkout)
            mark = self.marks.start(queue)
            found = self._send(checkout, self.request(queue, None, mark), send, alone=alone)
            if found is None and mark is not None:  # there may be jobs before the mark
                self.marks.full_scan(queue)
                found = self._send(checkout, self.request(queue, None, None), send, alone=alone)
        except psycopg.OperationalError as error:
            if not concerns_a_row(error):
                self.require_sync_commit()
            raise
        finally:
            checkout.answer_due = NEVER
        return found

    def _prepare(self, checkout: Checkout) -> None:
        """Make a connection ready for claims, and undo the lost claims whose time has come."""
        if self._facts is None:
            self._read_facts(checkout)
        if checkout.transport is None:
            self.transport_of(checkout)
        self.lost_claims.unclaim_due(checkout.conn)

    def _send(
        self,
        checkout: Checkout,
        request: ClaimRequest,
        send: Callable[[ClaimRequest], Found | None],
        *,
        alone: bool = True,
    ) -> Found | None:
        """Send a claim. If it fails, undo it, because it may be committed; None if its jobs were taken away."""
        transport: Transport = checkout.transport
        for again in (True, False):
            try:
                return send(request)
            except (AttemptLost, psycopg.Error, MemoryError) as error:  # a lack of memory does not discard the job
                self.lost_claims.unclaim(checkout, request.queue, request.token, error)
                if isinstance(error, AttemptLost):
                    return None
                if not (isinstance(error, WRONG_NAMES) and again and transport.prepares):
                    raise
                transport.forget()
            except Exception as error:
                if alone:
                    self.failed_claims.discard_unreadable(checkout.conn, request.queue, request.token, error)
                else:
                    self.lost_claims.unclaim(checkout, request.queue, request.token, error)
                raise UnreadableRow(f"a job of queue {request.queue!r} cannot be read: {one_line(error)}") from error
        return None

    def _claim_one(self, checkout: Checkout, request: ClaimRequest) -> Job[Any] | None:
        pooled, ahead = self.queries.is_pooled(checkout.conn), checkout.savepoints_ahead > 0
        session = None if pooled else checkout.session  # a pooler may give another session each time
        job, session = self.queries.claim(checkout.transport, request, session, savepoint=ahead, by_tcp=checkout.by_tcp)
        if job is not None:
            checkout.session = session._replace(shared=pooled)
            checkout.begin(saved=ahead)
        return job

    # --- the claim in the message of a finish

    def next_claim(self, checkout: Checkout, queue: str, *, together: bool) -> NextClaim:
        """A claim to be sent with a finish on this connection. `together`: in the transaction of the finish."""
        request = self.request(queue, None, self.marks.start(queue))
        if request.settings.synchronous_commit and queue in self.async_commit:
            together = False  # the finish does not wait for the disk, but the claim must
        return NextClaim(request, checkout.savepoints_ahead > 0, together)

    def claimed_next(self, checkout: Checkout, claim: NextClaim, job: Job[Any] | None) -> Job[Any] | None:
        """Take the answer to a claim that was sent with a finish. None: no job was claimed, and no transaction is
        open."""
        queue, mark = claim.request.queue, claim.request.mark
        if job is None and mark is not None:
            self.marks.record_empty(mark)
            return None
        self.marks.record_claim(queue, job)
        if job is not None:
            checkout.begin(saved=claim.savepoint)
        return job

    def unclaim(self, checkout: Checkout, job: Job[Any]) -> None:
        """Undo the claim of a job that is locked in the transaction that is open, because it will not be started."""
        undone = False
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

    def request(self, queue: str, id: int | None, mark: Mark | None) -> ClaimRequest:
        """The values of the next claim of this queue, with a new token."""
        if self._settings_version != self.work_map.changes:
            self._settings_version, self._settings = self.work_map.changes, self._current_settings()
        after_crash = time.monotonic() < self.sync_until
        set_aside = self.set_aside.rows(claims_of(queue)) if self.set_aside.operations and id is None else ()
        which = self.order if id is None else "id"
        return ClaimRequest(self._settings[after_crash], queue, which, new_token(), id, mark, set_aside)

    def _current_settings(self) -> tuple[ClaimSettings, ClaimSettings]:
        """The values that all claims share until the WorkMap changes: with asynchronous commits, and without."""
        facts, kinds, bounds = self._facts, list(self.work_map), self._bounds_by_kind()
        assert facts is not None
        bound = _bound(self._transaction_bound(self.unknown_kinds))
        settings = ClaimSettings(
            worker=self.worker,
            kinds=kinds if self.unknown_kinds == "leave" else None,
            detached=[kind for kind in kinds if self.work_map[kind].detached],
            lease=self.lease,
            synchronous_commit=False,
            check_interval="500ms" if facts.can_check_connections else "0",
            bounded_by=None if bound == "0" and bounds is None else facts.transaction_bound,
            bound=bound,
            bounds=bounds,
        )
        return settings, replace(settings, synchronous_commit=True, scripts={})

    @property
    def settings(self) -> ClaimSettings:
        """What the last claims had in common."""
        return self._settings[0]

    def transport_of(self, checkout: Checkout) -> Transport:
        """The transport of this connection."""
        if checkout.transport is None:
            prepares = checkout.can_prepare and not self.queries.is_pooled(checkout.conn)
            if prepares:
                checkout.enable_prepare()
            checkout.transport = self.queries.transport(checkout.conn, prepares=prepares)
        transport: Transport = checkout.transport
        return transport

    def _bounds_by_kind(self) -> str | None:
        """How long a transaction may last by kind, in milliseconds, as JSON. A timeout that depends on the job is not
        known when the claim sets the bound."""
        bounds = {
            kind: _bound(self._transaction_bound(handler))
            for kind, handler in list(self.work_map.items())
            if handler.timeout != "inherit"
        }
        return json.dumps(bounds) if bounds else None

    def _transaction_bound(self, handler: Handler | str) -> timedelta | None:
        if not isinstance(handler, Handler) or handler.timeout == "inherit":
            return self.timeout
        return handler.timeout if isinstance(handler.timeout, timedelta) else None

    def _read_facts(self, checkout: Checkout) -> None:
        """Read the facts that claims depend on from the server, once for this process."""
        with self._facts_lock:
            facts = self._facts = self.queries.server_facts(checkout.conn)
            if self.sync_until == _NOT_KNOWN:
                self.sync_until = time.monotonic() + (_SYNC_COMMIT_FOR - facts.uptime).total_seconds()


_unused_tokens: list[bytes] = []
_set, _UNKNOWN = object.__setattr__, SafeUUID.unknown
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unused_tokens.clear)  # the parent uses them


def new_token() -> UUID:
    """Make a random UUID from random bytes that are read for many at once: each read releases the interpreter's lock,
    which takes as long as to send a message."""
    try:
        token = _unused_tokens.pop()
    except IndexError:
        random = os.urandom(16 * _TOKENS_AT_ONCE)
        token, *others = (random[start : start + 16] for start in range(0, len(random), 16))
        _unused_tokens.extend(others)
    made = object.__new__(UUID)  # a third of the time of UUID(bytes=token)
    _set(made, "int", int.from_bytes(token, "big"))
    _set(made, "is_safe", _UNKNOWN)
    return made


def _bound(timeout: timedelta | None) -> str:
    """The server's bound for the transaction of a job with this timeout; 0 for none."""
    if timeout is None:
        return "0"
    return str(min(MOST_MILLISECONDS, milliseconds(timeout) + _GRACE))
