"""Claims the next job, with what its transaction is to be bounded by."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any, Literal
from uuid import UUID

import psycopg
from psycopg.pq import TransactionStatus

from pgjobs.clean_text import error_text, one_line
from pgjobs.db.checkout import NEVER, Checkout
from pgjobs.db.cursors import AnyConnection, commit, rollback
from pgjobs.errors import AttemptLost, JobStopped, UniqueConflict
from pgjobs.execution.attempt import SERVER_GRACE
from pgjobs.execution.lost_claims import Orphan
from pgjobs.execution.low_water_mark import LowWaterMark
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
from pgjobs.execution.set_aside import SetAside, UnchangedRow, UnreadableRow, concerns_a_row
from pgjobs.execution.transport import HotPath, HotStatements, hot_path
from pgjobs.execution.unworkable import CLAIM, MOST_TRIES, Unworkable
from pgjobs.job import Job, JobState, changed
from pgjobs.loggers import get_logger
from pgjobs.return_values import WarnOnce, checked_timeout
from pgjobs.work_map import Handler, WorkMap

log = get_logger("pgjobs.claim")

# After a lost connection or a server start, claims wait for the disk for so long: a job that crashes the server
# must not take the count of its attempt with it.
_CAUTIOUS = timedelta(minutes=5)
_NOT_ASKED = float("inf")
_ORPHANED_FOR = 30.0  # seconds: longer than a server takes to notice
_LONGEST_LOOK = 1.0
_ANSWER_WITHIN = 40.0  # seconds; the server gives a claim 30
# A better job that appears before the mark waits no longer than the first of these where a look at all costs little;
# where it costs much, it is done for no more than a part of the time, but no less often than the second says.
_FULL_SCAN_EVERY = 0.1  # seconds
_FULL_SCAN_AT_LEAST_EVERY = 1.0
_PAUSE_PER_SCAN = 10  # times as long as it took
_TOKENS_AT_ONCE = 32
_LONGEST_BOUND = timedelta(milliseconds=2**31 - 1)
_GRACE = SERVER_GRACE // timedelta(milliseconds=1)
_DEALS_FOR = 3.0  # seconds in which one claim deals with the jobs that it fails for; the next one goes on
# How often a queue in which nothing can be claimed is asked whether a trigger keeps the job that stands first in it.
_UNCHANGED_EVERY = 2.0  # seconds


@dataclass
class Claimer:
    """What the threads of one process share to claim jobs. `timeout` bounds the kinds that say nothing themselves;
    `unknown_kinds` says what becomes of those without a handler."""

    queries: ExecutionQueries
    work_map: WorkMap
    worker: str
    order: str = "priority"
    timeout: timedelta | None = None
    unknown_kinds: Literal["error", "leave"] | Handler = "error"
    lease: timedelta = timedelta(minutes=1)
    complaints: WarnOnce = field(default_factory=WarnOnce)
    async_commit: set[str] = field(default_factory=set)  # queues whose finishes do not wait for the disk
    _facts: ServerFacts | None = None
    _settings: tuple[ClaimValues, ClaimValues] = ({}, {})
    _settings_of: int = -1
    _plain_kinds: set[str] = field(default_factory=set)
    _marks: dict[str, LowWaterMark] = field(default_factory=dict)
    _next_unchanged: dict[str, float] = field(default_factory=dict)  # when to look for them, by queue
    _look: threading.local = field(default_factory=threading.local)  # the one that this thread does: when it began
    _orphans: list[Orphan] = field(default_factory=list)
    _cautious_until: float = _NOT_ASKED
    _asking: threading.Lock = field(default_factory=threading.Lock)
    aside: SetAside = field(default_factory=SetAside)

    def __post_init__(self) -> None:
        self._hot_statements = HotStatements(self.queries)
        self._unworkable = Unworkable(self.queries, self.aside)

    def begin_anew(self, worker: str) -> None:
        """Claim for another process, a forked child, which knows nothing of the server yet."""
        self.worker = worker
        self._facts, self._settings_of = None, -1
        self._cautious_until = _NOT_ASKED
        self._orphans = []  # the parent gives them back
        self._marks = {}
        self._asking = threading.Lock()
        self.aside = SetAside()  # whose lock a thread of the parent may have held
        self._unworkable = Unworkable(self.queries, self.aside)

    def claim(self, checkout: Checkout, queue: str, *, id: int | None = None) -> Job[Any] | None:
        """The next job, or the one with this id, locked in the transaction that is open now; None if there is none."""
        hot: HotPath | None = checkout.hot_path
        if hot is not None and hot.next is not None:
            job, hot.next = hot.next, None  # came with the finish of the one before
        else:
            found = self._claim_in_time(checkout, queue, id)
            if found is None:
                return None
            job = found
        handler = self.handler_of(job.kind)
        if handler is not None:
            vars(job)["decode"] = handler.decode  # nobody has seen it yet
        return job

    def _claim_in_time(self, checkout: Checkout, queue: str, id: int | None) -> Job[Any] | None:
        checkout.answer_due = time.monotonic() + _ANSWER_WITHIN
        try:
            return self._claim_next(checkout, queue, id)
        finally:
            checkout.answer_due = NEVER

    def _claim_next(self, checkout: Checkout, queue: str, id: int | None) -> Job[Any] | None:
        self.facts(checkout)
        self.take_back_orphans(checkout.conn)
        mark = self.mark(queue) if id is None else None
        try:
            job = self._claim_around(checkout, queue, id, mark)
        except psycopg.OperationalError as error:
            if not concerns_a_row(error):
                self.be_cautious()
            raise
        self.note(queue, job)
        return job

    def _claim_around(self, checkout: Checkout, queue: str, id: int | None, mark: Mark | None) -> Job[Any] | None:
        """Claim the next job that can be claimed: each that cannot is dealt with."""
        facts, until = self.facts(checkout), time.monotonic() + _DEALS_FOR
        hot = self.hot_path_of(checkout, facts)
        while True:
            checkout.answer_due = time.monotonic() + _ANSWER_WITHIN
            try:
                job = self._claim(checkout, hot, self.request(queue, id, mark, facts))
                if job is None and mark is not None:  # there may be some before the mark
                    self.look_at_all(queue)
                    mark = None
                    job = self._claim(checkout, hot, self.request(queue, id, None, facts))
                if (
                    job is None
                    and id is None
                    and self._has_unchanged(checkout, queue, facts)
                    and time.monotonic() < until
                ):
                    continue
                if self.aside:
                    self._note_what_works(claims_of(queue), job)
                return job
            except (psycopg.Error, UnreadableRow) as error:
                if id is not None or not concerns_a_row(error):
                    raise
                self._deal_with(checkout, self.request(queue, None, mark, facts), error)
                if time.monotonic() > until:
                    self._note_what_works(claims_of(queue), None)
                    return None

    def _note_what_works(self, act: str, job: Job[Any] | None) -> None:
        self.aside.say(act)
        if job is not None:
            self.aside.worked(act, job.id)

    def _deal_with(self, checkout: Checkout, request: ClaimRequest, error: psycopg.Error | UnreadableRow) -> None:
        """A claim has failed for the job that it would have taken: find out whether it is to be discarded, or passed
        over. Raises the error when it is no fault of that job, nor of any other."""
        if isinstance(error, UnreadableRow):
            return  # it is discarded
        act, conn = claims_of(request.queue), checkout.conn
        if self.aside.is_common(act, error):
            raise error
        with self._looking(conn):
            id = self.queries.next_job(conn, self.order, request.values)
            if id is None:
                return  # another thread deals with it
            try:
                self.queries.try_claim(conn, id, request.values)
            except psycopg.Error as failed:
                if not concerns_a_row(failed):
                    raise
                others = partial(self._others_work, conn, request)
                if self._unworkable.deal_with(conn, act, (id, request.queue), failed, CLAIM, others_work=others):
                    commit(conn)

    @contextmanager
    def _looking(self, conn: AnyConnection) -> Iterator[None]:
        """A transaction for a look at the jobs of a queue, which is rolled back."""
        self.queries.begin_look(conn)
        try:
            yield
        finally:
            if not conn.closed and conn.info.transaction_status != TransactionStatus.IDLE:
                rollback(conn)

    def _others_work(self, conn: AnyConnection, request: ClaimRequest) -> bool:
        """Whether one of some others of the queue can be claimed: those that cannot may stand before all of them."""
        for id in self.queries.some_in_line(conn, request.values, MOST_TRIES):
            try:
                if self.queries.try_claim(conn, id, request.values):
                    return True
            except psycopg.Error as error:
                if not concerns_a_row(error):
                    raise
        return False

    def _has_unchanged(self, checkout: Checkout, queue: str, facts: ServerFacts) -> bool:
        """Nothing was claimed: whether a trigger keeps the job that stands first as it is. That is then passed over, so
        it is worth while to claim again. Looked into now and then."""
        now = time.monotonic()
        if now < self._next_unchanged.setdefault(queue, now + _UNCHANGED_EVERY):
            return False
        self._next_unchanged[queue] = now + _UNCHANGED_EVERY
        request, conn = self.request(queue, None, None, facts), checkout.conn
        with self._looking(conn):
            id = self.queries.next_job(conn, self.order, request.values)
            if id is None:
                return False
            self._next_unchanged[queue] = 0.0  # there may be more
            try:
                if self.queries.try_claim(conn, id, request.values):
                    return True
                others = partial(self._others_work, conn, request)
                self._unworkable.deal_with(
                    conn, claims_of(queue), (id, queue), UnchangedRow(), CLAIM, others_work=others
                )
            except psycopg.Error as error:
                if not concerns_a_row(error):
                    raise
                self._next_unchanged[queue] = now + _UNCHANGED_EVERY
                return not isinstance(error, UnchangedRow)  # else the claim says what is wrong
            return True

    def complete(self, checkout: Checkout, job: Job[Any], kept: AttemptData, *, go_on: bool) -> FinishResult:
        """Commit the handler's writes together with the completion; and if there is work to go on with, have the next
        job claimed and locked in the same round trip, for the `claim` that follows."""
        hot: HotPath | None = checkout.hot_path
        if hot is None or job.kind in self._plain_kinds:
            return self.complete_alone(checkout, job, kept)
        if hot.used and checkout.configures:
            go_on = False  # its owner's settings come first
        assert self._facts is not None
        then = self.request(job.queue, None, self.mark(job.queue), self._facts) if go_on else None
        try:
            finished, problem = hot.complete(job, kept, self.order, then, async_commit=self.is_relaxed(job))
        except psycopg.Error as error:
            self._not_finished(job, then, error)
            raise
        if problem is not None and then is not None:  # with the next one; this one is finished
            try:
                self.take_back(checkout, then.queue, then.token, problem)
            except psycopg.Error as error:
                log.debug("the connection is given up: %s", one_line(error))
                finished = replace(finished, clean=False)
        elif problem is None and then is not None:
            self._note_next(then, hot.next)
        return finished

    def complete_alone(
        self, checkout: Checkout, job: Job[Any], kept: AttemptData, *, asked: bool = False
    ) -> FinishResult:
        """The same, and nothing with it; `asked` when somebody wanted the job cancelled, which is noted."""
        async_commit, session = self.is_relaxed(job), checkout.session
        return self.queries.complete(
            checkout.conn, job, COMPLETED, kept, async_commit=async_commit, asked=asked, session=session
        )

    def _not_finished(self, job: Job[Any], then: ClaimRequest | None, error: psycopg.Error) -> None:
        if isinstance(error, psycopg.OperationalError) and then is not None:
            self._orphan(then.queue, then.token)
        if isinstance(error, psycopg.errors.InvalidSqlStatementName) and self.queries.tag in str(error):
            self._plain_kinds.add(job.kind)  # its handler deallocates what others have prepared
            raise JobStopped("the handler deallocated what pgjobs had prepared; it runs again, without that") from error

    def leave(self, checkout: Checkout) -> None:
        """Nothing is claimed any more: give back what came with the last finish and is not to be started."""
        hot: HotPath | None = checkout.hot_path
        if hot is None or hot.next is None:
            return
        (job, hot.next), released = (hot.next, None), False
        assert job.token is not None
        try:
            if not checkout.usable or checkout.spoiled:
                checkout.replace()
            # In the transaction that holds the row: another claim, which saw the job as available, may wait to hold it.
            found = self.queries.release_claim(checkout.conn, queue=job.queue, token=job.token)
            commit(checkout.conn)
            released = found
        finally:
            if not released:
                self._orphan(job.queue, job.token)

    def be_cautious(self) -> None:
        """A connection was lost: let claims wait for the disk for a while."""
        self._cautious_until = time.monotonic() + _CAUTIOUS.total_seconds()

    def is_relaxed(self, job: Job[Any]) -> bool:
        return job.queue in self.async_commit

    def look_again(self, queue: str) -> None:
        """A job that stands before the mark is available again: let the next claim find it."""
        self._marks.pop(queue, None)

    def handler_of(self, kind: str) -> Handler | None:
        """The handler of a kind, or what stands in for it."""
        handler: Handler | None = dict.get(self.work_map, kind)  # the map's own takes classes too, and some time
        return self.unknown_kinds if handler is None and isinstance(self.unknown_kinds, Handler) else handler

    def timeout_of(self, job: Job[Any], handler: Handler | None) -> timedelta | None:
        """How long an attempt at the job may take."""
        if handler is None or handler.timeout == "inherit":
            return self.timeout
        if not callable(handler.timeout):
            return handler.timeout
        try:
            limit = checked_timeout(handler.timeout(changed(job, decode=handler.decode)))
        except BaseException as error:  # the user's code, whose sys.exit() must not cost the attempt; and args
            self.complaints(job.kind, "timeout of its handler", error, instead="the worker pool's holds")
            return self.timeout
        return self.timeout if limit == "inherit" else limit

    def _claim(self, checkout: Checkout, hot: HotPath | None, request: ClaimRequest) -> Job[Any] | None:
        which = self.order if request.id is None else "id"
        try:
            try:
                if hot is None:
                    return self._claim_plain(checkout, which, request)
                return self._claim_hot(checkout, hot, which, request)
            except psycopg.errors.InvalidSqlStatementName as error:
                if hot is None:
                    raise
                hot.forget()
                self.take_back(checkout, request.queue, request.token, error)  # if the lock alone was not there
                return self._claim_hot(checkout, hot, which, request)
        except (AttemptLost, psycopg.Error, MemoryError) as error:  # the memory is this process's, no fault of the row
            self.take_back(checkout, request.queue, request.token, error)
            if isinstance(error, AttemptLost):
                return None
            if (
                isinstance(error, psycopg.errors.UniqueViolation) and request.id is not None
            ):  # one that waits to be retried, claimed by its id
                raise UniqueConflict(f"job {request.id} cannot run now: another job has its unique key") from error
            raise
        except Exception as error:
            self._discard_unreadable(checkout, request, error)
            raise UnreadableRow(f"a job of queue {request.queue!r} cannot be read: {one_line(error)}") from error

    def _discard_unreadable(self, checkout: Checkout, request: ClaimRequest, error: Exception) -> None:
        """A claim is committed, and what it gave cannot be read: nor could it be the next time."""
        conn = checkout.conn
        rollback(conn)
        id = self.queries.claimed_id(conn, request.queue, request.token)
        if id is not None:
            reason = f"this job cannot be worked, for its row cannot be read: {error_text(error)}"
            row = (id, request.queue)
            self._unworkable.discard(conn, row, (JobState.RUNNING,), reason, token=request.token)

    def _claim_plain(self, checkout: Checkout, which: str, request: ClaimRequest) -> Job[Any] | None:
        found: list[Session] = []
        job = self.queries.claim(
            checkout.conn, which=which, claims_as=lambda user, role: found.append(Session(user, role)), **request.values
        )
        if job is not None:
            pooled = self._facts is not None and self._facts.pooled
            checkout.session = found[0]._replace(shared_since=job.attempted_at if pooled else None)
        return job

    def _claim_hot(self, checkout: Checkout, hot: HotPath, which: str, request: ClaimRequest) -> Job[Any] | None:
        job = hot.claim(which, request)
        checkout.session = hot.session
        return job

    def take_back(self, checkout: Checkout, queue: str, token: UUID, why: object) -> None:
        """After a claim that went wrong: if it was committed all the same, the attempt is given back, if need be on
        the next connection."""
        if not checkout.usable:
            self._orphan(queue, token)
            return
        try:
            rollback(checkout.conn)
            released = self.queries.release_claim(checkout.conn, queue=queue, token=token)
        except psycopg.Error as error:
            self._orphan(queue, token)
            if concerns_a_row(error):
                return
            raise
        if released:
            log.warning("a claimed job could not be locked, its attempt is given back: %s", one_line(why))

    def _orphan(self, queue: str, token: UUID) -> None:
        self._orphans.append(Orphan(queue, token, time.monotonic() + _ORPHANED_FOR))

    def take_back_orphans(self, conn: AnyConnection, *, at_once: bool = False) -> None:
        """Give back the attempts of claims whose answer never came. The server may still be at work on them, so each is
        looked for again, after a pause that grows, until it was found or it is too late for that. `at_once` looks for
        all, whatever pause is left."""
        for orphan in list(self._orphans):
            now = time.monotonic()
            if now < orphan.due and not at_once:
                continue
            orphan.due = now + orphan.pause
            orphan.pause = min(2 * orphan.pause, _LONGEST_LOOK)
            try:
                found = self.queries.release_claim(conn, queue=orphan.queue, token=orphan.token)
            except psycopg.Error as error:
                if not concerns_a_row(error):
                    raise
                found = False  # the application stops it; when it is too late, it is left to the rescue
                log.debug("a claim cannot be given back: %s", error)
            if found or now > orphan.until:
                with suppress(ValueError):  # another thread was faster
                    self._orphans.remove(orphan)
            if found:
                log.warning("a job was claimed on a connection that was lost, its attempt is given back")

    def request(self, queue: str, id: int | None, mark: Mark | None, facts: ServerFacts) -> ClaimRequest:
        """The next claim of this queue, by a token of its own."""
        if self._settings_of != self.work_map.changes:
            self._settings_of, self._settings = self.work_map.changes, self._current_settings(facts)
        after_crash = time.monotonic() < self._cautious_until
        aside = self.aside.rows(claims_of(queue)) if self.aside and id is None else ()
        return ClaimRequest(self._settings[after_crash], queue, new_token(), id, mark, aside)

    def _current_settings(self, facts: ServerFacts) -> tuple[ClaimValues, ClaimValues]:
        """What is the same for all claims, until the WorkMap changes: for usual times, and for cautious ones."""
        kinds = list(self.work_map)
        settings: ClaimValues = {
            **CLAIM_DEFAULTS,
            "worker": self.worker,
            "kinds": kinds if self.unknown_kinds == "leave" else None,
            "detached": [kind for kind in kinds if self.work_map[kind].detached],
            "lease": self.lease,
            "check_interval": "500ms" if facts.can_check_connections else "0",
            "bounded_by": facts.transaction_bound,
            "bound": _milliseconds(self._bound_of(self.unknown_kinds)),
            "bounds": self._bounds(),
        }
        return {**settings, "synchronous_commit": False}, {**settings, "synchronous_commit": True}

    def facts(self, checkout: Checkout) -> ServerFacts:
        """What the way to claim depends on; the server is asked once."""
        return self._facts or self._ask_server(checkout)

    def hot_path_of(self, checkout: Checkout, facts: ServerFacts) -> HotPath | None:
        """The hot path of this connection; None where it cannot be used."""
        if checkout.hot_path is None and checkout.can_prepare and not facts.pooled:
            checkout.enable_prepare()
            checkout.hot_path = hot_path(checkout.conn, self._hot_statements)
        hot: HotPath | None = checkout.hot_path
        return hot

    # --- the low-water mark

    def mark(self, queue: str) -> Mark | None:
        """Where to start looking: behind the job that was claimed last, or, now and then, at the beginning."""
        marked, look = self._marks.get(queue), vars(self._look)
        if marked is None or time.monotonic() >= marked.until or look.pop("nothing_behind", None) == marked.mark:
            self.look_at_all(queue)
            return None
        return marked.mark

    def look_at_all(self, queue: str) -> None:
        """This thread does, this time; the others meanwhile go by the mark."""
        now, marked = time.monotonic(), self._marks.get(queue)
        self._look.began = now
        if marked is not None:
            self._marks[queue] = LowWaterMark(marked.mark, now + _FULL_SCAN_AT_LEAST_EVERY)

    def note(self, queue: str, job: Job[Any] | None) -> None:
        """What this thread has claimed, with or without a look at all."""
        marked = self._marks.get(queue)
        began, self._look.began = getattr(self._look, "began", None), None
        if job is None:
            self._marks.pop(queue, None)
            return
        if began is not None or marked is None:
            now = time.monotonic()
            pause = _PAUSE_PER_SCAN * (now - (began or now))
            until = now + min(max(pause, _FULL_SCAN_EVERY), _FULL_SCAN_AT_LEAST_EVERY)
        else:
            until = marked.until
        self._marks[queue] = LowWaterMark(Mark(job.priority, job.scheduled_at, job.id), until)

    def _note_next(self, claim: ClaimRequest, job: Job[Any] | None) -> None:
        """What came of a claim that went with a finish. Where there was nothing behind the mark, the claim that follows
        need not look there again."""
        if job is not None or claim.mark is None:
            self.note(claim.queue, job)
        else:
            self._look.nothing_behind = claim.mark

    def _bounds(self) -> str:
        """How long the server lets a job hold its transaction, by kind, as JSON. A timeout that depends on the job is
        known too late for a bound."""
        own = {
            kind: _milliseconds(self._bound_of(handler))
            for kind, handler in list(self.work_map.items())
            if handler.timeout != "inherit"
        }
        return json.dumps(own) if own else "{}"

    def _bound_of(self, handler: Handler | str) -> timedelta | None:
        if not isinstance(handler, Handler) or handler.timeout == "inherit":
            return self.timeout
        return handler.timeout if isinstance(handler.timeout, timedelta) else None

    def _ask_server(self, checkout: Checkout) -> ServerFacts:
        with self._asking:
            facts = self._facts = self.queries.server_facts(checkout.conn)
            if self._cautious_until == _NOT_ASKED:
                self._cautious_until = time.monotonic() + (_CAUTIOUS - facts.uptime).total_seconds()
            return facts


def claims_of(queue: str) -> str:
    """What the claims of a queue are called where rows are set aside."""
    return f"claims of queue {queue!r}"


_unused_tokens: list[bytes] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unused_tokens.clear)  # they are the parent's


def new_token() -> UUID:
    """What uuid4() gives. To ask the system for each by itself takes as long as to send a message: it lets go of the
    interpreter's lock."""
    try:
        token = _unused_tokens.pop()
    except IndexError:
        random = os.urandom(16 * _TOKENS_AT_ONCE)
        token, *others = (random[start : start + 16] for start in range(0, len(random), 16))
        _unused_tokens.extend(others)
    return UUID(bytes=token, version=4)


def _milliseconds(timeout: timedelta | None) -> str:
    """The server's bound for a job with this timeout; 0 is none."""
    if timeout is None:
        return "0"
    return str(min(2**31 - 1, int(min(timeout, _LONGEST_BOUND) / timedelta(milliseconds=1)) + _GRACE))
