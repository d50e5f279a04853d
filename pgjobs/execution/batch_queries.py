"""The statements of batches, a method for each; those of single jobs are in queries.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Any
from uuid import UUID

import psycopg
from psycopg.pq.abc import PGresult
from psycopg.rows import TupleRow

from pgjobs.db import statements
from pgjobs.db.rows import CLAIMED, claimed_job, str_of
from pgjobs.errors import AttemptLost
from pgjobs.execution.outcome import AttemptData, Outcome
from pgjobs.execution.queries import (
    ATTEMPT_LOST,
    ExecutionQueries,
    FinishResult,
    finish_values,
    passing_over,
    unquoted_values,
)
from pgjobs.execution.requests import ClaimRequest, ClaimSettings, Session
from pgjobs.execution.script import Script, commands
from pgjobs.execution.scripts import job_values, lacking
from pgjobs.execution.transport import Run, Transport, integer
from pgjobs.interval import milliseconds
from pgjobs.job import Job, JobState

_NONE: Mapping[Any, Any] = {}

# In the order in which claims of one job would take them.
_ORDERS: dict[str, Callable[[Any], Any]] = {
    "priority": attrgetter("priority", "scheduled_at", "id"),
    "scheduled_at": attrgetter("scheduled_at", "id"),
}


@dataclass(slots=True)
class Claimed:
    """The jobs of a claim, locked in the transaction that is open."""

    jobs: list[Job[Any]]
    xid: str | None  # the id of the transaction
    session: Session
    bound: str  # of the transaction, in milliseconds
    missed: int  # jobs that were claimed but taken away before they were locked


@dataclass(slots=True)
class BatchOutcome:
    """The outcomes to be written at the end of a batch."""

    queue: str
    token: UUID
    async_commit: bool
    done: list[int] = field(default_factory=list)
    data: list[tuple[int, AttemptData]] = field(default_factory=list)  # of those in `done` that have any
    failed: list[tuple[Job[Any], Outcome, AttemptData]] = field(default_factory=list)
    rest: list[int] = field(default_factory=list)  # jobs that were not started
    cancel_requested: list[Job[Any]] = field(default_factory=list)  # of those in `done`

    @property
    def by_token(self) -> dict[bytes, bytes]:
        """The parameter of statements that find the jobs by their token alone."""
        return {b"token": self.token.hex.encode()}

    @property
    def unquoted(self) -> dict[bytes, bytes]:
        """The parameters that need no quoting."""
        started = [*self.done, *(job.id for job, _, _ in self.failed)]
        return {
            **self.by_token, b"ids": _ids(self.done), b"rest": _ids(self.rest),
            b"started": _ids(started), b"data_ids": _ids(id for id, _ in self.data),
        }  # fmt: skip

    @property
    def quoted(self) -> dict[str, Any]:
        """The other parameters."""
        metadata, output = [each.metadata or "" for _, each in self.data], [each.output or "" for _, each in self.data]
        return {"queue": self.queue, "metadata": metadata, "output": output}


@dataclass(frozen=True, slots=True)
class BatchResult:
    """The jobs of a batch after their outcomes were written."""

    completed: FinishResult
    failed: list[FinishResult]  # in the order of BatchOutcome.failed


class BatchQueries:
    """The statements of batches, in one schema."""

    def __init__(self, queries: ExecutionQueries) -> None:
        work, batch = queries.work, statements.load("execution_batch.sql", queries.schema)
        self._batch, self._work, self._queries = batch, work, queries
        orders = {"priority": batch["select_batch_by_priority"], "scheduled_at": batch["select_batch_by_time"]}
        # without and with the condition that passes over jobs
        self._claims = {
            (order, around): batch["claim_batch"].replace(b"{next}", passing_over(next, part))
            for order, next in orders.items()
            for around, part in ((False, b""), (True, work["skip_set_aside"]))
        }
        self._pieces: dict[str, Script] = {}

    # --- claim

    def claim(
        self, transport: Transport, request: ClaimRequest, limit: int, batch_time: timedelta, *, by_tcp: bool
    ) -> Claimed | None:
        """Claim up to `limit` jobs, and lock them in the transaction that is open then. None: there is no job, or the
        first one must run alone, and no transaction is open. Raises AttemptLost when other transactions changed all
        rows before they could be locked."""
        script, unquoted = self._claim_script(request, limit, batch_time), request.unquoted
        results, error = transport.run(script, unquoted)
        if error is not None:
            raise error
        taken = transport.rows(results[script.at["claim"]])
        if not results[script.at["lock"]].ntuples:
            transport.run(self._piece("rollback"))
            if not taken:
                return None
            raise AttemptLost(f"{len(taken)} jobs were claimed but taken away before they were locked")
        number, attempted_at, xid, bound, *_ = transport.row(results[script.at["lock"]])
        missed = len(taken) - number
        if missed:
            locked, error = transport.run(self._piece("select_locked_ids"), unquoted, {"queue": request.queue})
            if error is not None:
                raise error
            still = {id for (id,) in transport.rows(locked[0])}
            taken = [row for row in taken if row[0] in still]
        settings = request.settings
        jobs = _as_jobs(taken, request.queue, request.token, settings.worker, _instant(attempted_at))
        jobs.sort(key=_ORDERS[request.which])
        user, role, *found = map(str_of, transport.row(results[script.at["read_session"]]))
        session = Session(user, role, lacking(found, settings.check_interval, by_tcp=by_tcp))
        return Claimed(jobs, xid, session, bound, missed)

    def _claim_script(self, request: ClaimRequest, limit: int, batch_time: timedelta) -> Script:
        """The limit is written into the text: with a parameter, the planner would expect a tenth of the table."""
        around, settings = bool(request.set_aside), request.settings
        key = ("batch", request.queue, request.which, around, limit, batch_time)
        if key not in settings.scripts:
            work, batch = self._work, self._batch
            steps = [
                ("begin", work["begin"]),
                ("read_session", work["read_session"]),
                ("settings", batch["set_batch_settings"]),
                ("claim", self._claims[request.which, around]),
                ("claimed", work["commit"]),
                ("begin", work["begin"]),
                ("lock", batch["lock_batch"]),
            ]
            fixed = {
                "queue": request.queue, "worker": settings.worker, "kinds": settings.kinds, "limit": limit,
                "detached": settings.detached, "synchronous_commit": settings.synchronous_commit,
                "check_interval": settings.check_interval, "bounded_by": _bounded_by(settings),
                "bound": settings.bound, "bounds": settings.bounds, "batch_time": milliseconds(batch_time),
            }  # fmt: skip
            settings.scripts[key] = Script(steps, fixed)
        script: Script = settings.scripts[key]
        return script

    # --- between two jobs

    def between_jobs(
        self, transport: Transport, settings: ClaimSettings, session: Session, bound: str, *, since: datetime | None
    ) -> bytes:
        """Make the message that resets the session for the next handler, and restores what the claim has set. Advisory
        locks are kept until the commit: other sessions cannot see the writes that they guard before it."""
        names = ["reset_session", *self._queries.scripts.restoring(session)]
        steps = [(name, command) for name in names for command in commands(self._work[name])]
        if session.lacks:
            pieces = self._queries.scripts.job_settings(session.lacks)
            steps.append(("settings", self._batch["set_job_settings"].replace(b"{settings}", pieces)))
        if settings.bounded_by is not None:
            name = "set_transaction_timeout" if settings.bounded_by == "transaction_timeout" else "set_idle_timeout"
            steps.append((name, self._batch[name]))
        fixed = {
            "session_user": session.user, "role": session.role, "bound": bound, "since": since,
            **job_values(settings.check_interval),
        }  # fmt: skip
        return transport.text(Script(steps, fixed)) + b";"

    # --- finish

    def finish(
        self, transport: Transport, record: BatchOutcome, release: bytes, *, used: bool
    ) -> tuple[BatchResult, bool]:
        """Commit the writes of all handlers together with their outcomes. Also returns whether the session is clean.
        `release` is the message that ends the last savepoint; `used`: a handler has used the connection."""
        if release:  # by itself: it resets the encoding, which a handler may have set
            _, error = transport.send(release)
            if error is not None:
                raise error
        runs = [self._run("drop_statement_timeout")] if used else []
        runs += [self._run("commit_async")] if record.async_commit else []
        failed = len(runs)
        runs += [self._failure(*each) for each in record.failed]
        # before the completion, which may find the jobs by the token alone
        runs += [self._run("unclaim_batch", record.unquoted, record.quoted)] if record.rest else []
        complete = len(runs)
        simple = not used and not record.failed and not record.data
        if record.done and simple:
            runs += [self._run("complete_claim", record.by_token, record.quoted), self._run("select_time")]
        elif record.done:
            runs.append(self._run("complete_batch", record.unquoted, record.quoted))
        runs += [self._run("store_batch_data", record.unquoted, record.quoted)] if record.data else []
        runs += [self._cancellation(job) for job in record.cancel_requested]
        commit = len(runs)
        runs.append((self._ending(used=used), {}, {}))
        results, error = transport.run_many(runs)
        if not results[commit]:
            raise _lost_or(error or psycopg.OperationalError("the answer is lost"), record)
        if record.done and simple and results[complete][0].command_tuples != len(record.done):
            lost = results[complete][0].command_tuples
            raise AttemptLost(f"of {len(record.done)} jobs of a batch {lost} were still its own")
        clean = not used or (error is None and integer(results[commit][-1], 0) == 0)
        now = integer(results[complete + simple][0], 0) if record.done else 0
        written = [_finished(*each) for each in results[failed : failed + len(record.failed)]]
        return BatchResult(FinishResult(JobState.COMPLETED, now, True), written), clean

    def _failure(self, job: Job[Any], outcome: Outcome, data: AttemptData) -> Run:
        if "failure" not in self._pieces:
            steps = [(name, self._work[name]) for name in ("finish", "cancel_if_requested")]
            self._pieces["failure"] = Script(steps)
        return self._pieces["failure"], unquoted_values(job), finish_values(job, outcome, data)

    def _cancellation(self, job: Job[Any]) -> Run:
        return self._run("cancel_if_requested", unquoted_values(job), {"queue": job.queue})

    def _ending(self, *, used: bool) -> Script:
        name = "ending_used" if used else "commit"
        if used and name not in self._pieces:
            steps = [("commit", self._work["commit"])]
            steps += [("reset_session", command) for command in commands(self._work["reset_session"])]
            steps += [(name, self._work[name]) for name in ("release_advisory_locks", "count_prepared")]
            self._pieces[name] = Script(steps)
        return self._piece(name)

    # --- when the batch cannot be committed

    def undo(
        self, transport: Transport, record: BatchOutcome, error: str, *, restore_before: datetime | None
    ) -> tuple[dict[int, FinishResult], dict[int, FinishResult]]:
        """Undo the claims of the jobs that were not started, and make those available again whose writes are lost, in a
        new transaction, guarded by the token. Returns the latter, and the jobs that were completed after all: the
        answer to their COMMIT was lost. `restore_before`: after the loss of a connection, the server may have crashed
        and lost the claim of this time; it is then restored."""
        names = ["restore_batch"] if restore_before is not None else []
        names += ["unclaim_batch", "undo_batch", "select_completed"]
        quoted = {**record.quoted, "error": error, "attempted_at": restore_before}
        *_, undone, completed = self._write_late(transport, names, record, quoted)
        return _all(JobState.AVAILABLE, undone), _all(JobState.COMPLETED, completed)

    def complete_late(self, transport: Transport, record: BatchOutcome) -> dict[int, FinishResult]:
        """Complete the jobs whose writes were committed by a handler that ended the transaction."""
        names = ["store_batch_data"] if record.data else []
        *_, completed = self._write_late(transport, [*names, "complete_batch_late"], record, record.quoted)
        return _all(JobState.COMPLETED, completed)

    def _write_late(
        self, transport: Transport, names: Sequence[str], record: BatchOutcome, quoted: Mapping[str, Any]
    ) -> list[list[TupleRow]]:
        if "begin_late_finish" not in self._pieces:
            steps = [("begin_late_finish", command) for command in commands(self._work["begin_late_finish"])]
            self._pieces["begin_late_finish"] = Script(steps)
        before = ["begin_late_finish", *(["commit_async"] if record.async_commit else [])]
        runs = [*map(self._run, before), *(self._run(name, record.unquoted, quoted) for name in names)]
        runs.append(self._run("commit"))
        results, error = transport.run_many(runs, unprepared=True)
        if error is not None:
            raise error
        return [transport.rows(each[0]) for each in results[len(before) : -1]]

    def was_committed(self, transport: Transport, record: BatchOutcome, xid: str, *, lost: bool) -> bool:
        """Whether the transaction of the batch was committed. `lost`: its connection was lost."""
        unquoted = {**record.unquoted, b"xid": xid.encode()}
        quoted = {"queue": record.queue, "lost": lost}
        results, error = transport.run(self._piece("was_committed"), unquoted, quoted, unprepared=True)
        if isinstance(error, psycopg.errors.InvalidParameterValue | psycopg.errors.InternalError_):
            return False  # the server has crashed, and knows no such transaction
        if error is not None:
            raise error
        return results[0].get_value(0, 0) == b"t"

    # --- pieces of messages

    def _piece(self, name: str) -> Script:
        if name not in self._pieces:
            self._pieces[name] = Script([(name, self._batch.get(name) or self._work[name])])
        return self._pieces[name]

    def _run(self, name: str, unquoted: Mapping[bytes, bytes] = _NONE, quoted: Mapping[str, Any] = _NONE) -> Run:
        return self._piece(name), unquoted, quoted


def _bounded_by(settings: ClaimSettings) -> str:
    return settings.bounded_by or "idle_in_transaction_session_timeout"


def _finished(finish: PGresult, cancel: PGresult) -> FinishResult:
    changed = cancel if cancel.ntuples else finish  # a cancel request has changed the state
    state = JobState((changed.get_value(0, 0) or b"").decode())
    return FinishResult(state, integer(finish, 1), True)


def must_run_alone(job: Job[Any]) -> bool:
    """Whether a claimed job must not be in a batch; the claim of a batch has the same condition in SQL."""
    return job.attempt > 1 or job.max_attempts == 1 or job.leased_until is not None or "excused" in _metadata(job)


def _metadata(job: Job[Any]) -> Mapping[str, Any]:
    return {} if job.raw_metadata == "{}" else job.metadata


def _as_jobs(rows: Iterable[TupleRow], queue: str, token: UUID, worker: str, attempted_at: datetime) -> list[Job[Any]]:
    """Make the jobs of a claim from its rows, which have only the columns that may differ."""
    same = {**CLAIMED, "queue": queue, "attempted_at": attempted_at, "token": token, "attempted_by": (worker,)}
    instant = _Instants().__getitem__
    return [claimed_job(row, same.copy(), instant) for row in rows]


class _Instants(dict[str, datetime]):
    """Instants by their text: jobs that were enqueued together have the same."""

    def __missing__(self, text: str) -> datetime:
        made = self[text] = _instant(text)
        return made


def _instant(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    return at if at.tzinfo is UTC else at.astimezone(UTC)


def _ids(ids: Iterable[int]) -> bytes:
    return b"{%b}" % ",".join(map(str, ids)).encode()


def _all(state: JobState, rows: Iterable[TupleRow]) -> dict[int, FinishResult]:
    return {id: FinishResult(state, now, True) for id, now in rows}


def _lost_or(error: Exception, record: BatchOutcome) -> Exception:
    if isinstance(error, psycopg.Error) and error.sqlstate == ATTEMPT_LOST:
        return AttemptLost(f"a job of the batch of {len(record.done)} no longer runs under this attempt")
    return error
