"""The statements of batches, a method for each; prepared where the connection has a prepared transport."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import TupleRow, tuple_row

from pgjobs.db import statements
from pgjobs.db.cursors import AnyConnection, BatchCursor, answers, literal_cursor, one
from pgjobs.db.rows import str_of
from pgjobs.errors import AttemptLost
from pgjobs.execution.outcome import COMPLETED, NO_DATA, AttemptData, Outcome
from pgjobs.execution.queries import (
    ATTEMPT_LOST,
    CLAIM_DEFAULTS,
    ExecutionQueries,
    FinishResult,
    Session,
    finish_values,
    passing_over,
    session_values,
)
from pgjobs.execution.transport import Prepared, PreparedTransport, prepared
from pgjobs.job import Job, JobState, job_owning

# In the order in which claims of one job would take them.
_ORDERS: dict[str, Callable[[Any], Any]] = {
    "priority": attrgetter("priority", "scheduled_at", "id"),
    "scheduled_at": attrgetter("scheduled_at", "id"),
}


# All fields of a job, with the values that all or most jobs of a claim have: to copy this is faster than to build it.
_SAME = dict.fromkeys(field.name for field in dataclasses.fields(Job)) | {
    "state": JobState.RUNNING,
    "attempt": 1,
    "raw_metadata": "{}",
    "raw_errors": "[]",
    "tags": (),
    "duplicate": False,
    "decode": json.loads,
}


@dataclass(frozen=True, slots=True)
class Claimed:
    """The jobs of a claim, locked in the transaction that is open."""

    jobs: list[Job[Any]]
    xid: str | None  # the id of the transaction
    session: Session
    bounds: dict[str, str]  # the settings of the transaction, set again after each handler
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

    def values(self) -> dict[str, Any]:
        return {
            **self.values_of_claim(),
            "ids": _ids(self.done),
            "data_ids": _ids(id for id, _ in self.data),
            "metadata": [each.metadata or "" for _, each in self.data],
            "output": [each.output or "" for _, each in self.data],
        }

    def values_of_claim(self) -> dict[str, Any]:
        """The values where all jobs but those in `rest` are done."""
        return {"queue": self.queue, "token": self.token, "rest": _ids(self.rest)}


@dataclass(frozen=True, slots=True)
class BatchResult:
    """The jobs of a batch after their outcomes were written."""

    completed: FinishResult
    failed: list[FinishResult]  # in the order of BatchOutcome.failed


class BatchQueries:
    """The statements of batches, in one schema."""

    def __init__(self, queries: ExecutionQueries) -> None:
        work, tag = queries.work, queries.tag
        batch = self._batch = statements.load("execution_batch.sql", queries.schema)
        self._work = work
        orders = {"priority": batch["select_batch_by_priority"], "scheduled_at": batch["select_batch_by_time"]}
        self._claims, self._claims_around = (
            {order: batch["claim_batch"].replace(b"{next}", passing_over(next, part)) for order, next in orders.items()}
            for part in (b"", work["skip_set_aside"])
        )
        before = (work["begin"], batch["set_batch_settings"])
        after = (work["commit"], work["begin"], batch["lock_batch"])
        self._claim_messages, self._claim_messages_around = (
            {order: b"\n".join((*before, claim, *after)) for order, claim in claims.items()}
            for claims in (self._claims, self._claims_around)
        )
        self._name = f"{tag}_batch_"
        self._prepared_claims: dict[tuple[str, int, bool], Prepared] = {}
        self._make_steps(work, batch)

    def _make_steps(self, work: Mapping[str, bytes], batch: Mapping[str, bytes]) -> None:
        """Make the steps of the messages of a prepared transport."""
        step, steps = self._step, self._steps
        begin, commit = step("begin", work["begin"]), step("commit", work["commit"])
        settings, lock = step("settings", batch["set_batch_settings"]), step("lock", batch["lock_batch"])
        self._around_claim = (begin, settings), (commit, begin, lock)
        self._clean_steps = steps("between", batch["between_jobs"])
        self._async_commit_step = step("async", work["commit_async"])
        self._unclaim_step = step("unclaim", batch["unclaim_batch"])
        self._timeout_step = step("timeout", work["drop_statement_timeout"])
        complete, time = step("complete_claim", batch["complete_claim"]), step("time", batch["select_time"])
        self._complete_untouched: tuple[Prepared, ...] = (complete, time, commit)
        complete = step("complete", batch["complete_batch"])
        self._complete_used = (complete, commit, *steps("reset", work["reset_session"]))
        self._commit_step = commit

    def _step(self, name: str, sql: bytes) -> Prepared:
        return prepared(self._name + name, sql)

    def _steps(self, name: str, sql: bytes) -> tuple[Prepared, ...]:
        """A step for each command."""
        commands = sql.rstrip(b"; \n").split(b";\n")
        return tuple(self._step(f"{name}_{number}", command) for number, command in enumerate(commands))

    # --- claim

    def claim(
        self, conn: AnyConnection, transport: PreparedTransport | None, order: str, values: Mapping[str, Any]
    ) -> Claimed | None:
        """Claim many jobs, and lock them in the transaction that is open then. None: there is no job, or the first one
        must run alone, and no transaction is open. Raises AttemptLost when other transactions changed all rows before
        they could be locked."""
        if transport is not None:
            limits, taken, locked = self._claim_prepared(transport, order, values)
        else:
            with BatchCursor(conn, row_factory=tuple_row) as cur:
                claims = self._claim_messages_around if values.get("aside") else self._claim_messages
                cur.execute(claims[order], {**CLAIM_DEFAULTS, **values})
                [limits], taken, locked = answers(cur)
        if not locked:
            with literal_cursor(conn) as cur:
                cur.execute(b"ROLLBACK")
            if not taken:
                return None
            raise AttemptLost(f"{len(taken)} jobs were claimed but taken away before they were locked")
        [(number, attempted_at, xid, bound, *_)] = locked
        missed = len(taken) - number
        if missed:
            still = self._locked_ids(conn, values)
            taken = [row for row in taken if row[0] in still]
        jobs = _as_jobs(taken, values["queue"], values["token"], values["worker"], _instant(attempted_at))
        jobs.sort(key=_ORDERS[order])
        session = Session(str_of(limits[-2]), str_of(limits[-1]))
        bounds = {"check_interval": values["check_interval"], "bounded_by": values["bounded_by"], "bound": bound}
        return Claimed(jobs, xid, session, {**bounds, "session_user": session.user, "role": session.role}, missed)

    def _claim_prepared(
        self, transport: PreparedTransport, order: str, values: Mapping[str, Any]
    ) -> tuple[Any, list[Any], list[Any]]:
        literals = transport.literals(values)
        before, after = self._around_claim
        steps = (*before, self._prepared_claim(order, values["limit"], around=bool(values.get("aside"))), *after)
        results, error = transport.send(transport.message([(step, literals) for step in steps]))
        if error is not None:
            raise error
        transport.used = False
        return transport.rows(results[1])[0], transport.rows(results[2]), transport.rows(results[5])

    def _locked_ids(self, conn: AnyConnection, values: Mapping[str, Any]) -> set[int]:
        with literal_cursor(conn) as cur:
            cur.execute(self._batch["select_locked_ids"], values)
            return {id for (id,) in cur.fetchall()}

    def _prepared_claim(self, order: str, limit: int, *, around: bool) -> Prepared:
        """The claim of so many jobs. The limit is written into the text: with a parameter, the planner would expect a
        tenth of the table."""
        try:
            return self._prepared_claims[order, limit, around]
        except KeyError:
            claim = (self._claims_around if around else self._claims)[order].replace(b"%(limit)s", b"%d" % limit)
            name = f"claim_{order}_{limit}{'_around' if around else ''}"
            made = self._prepared_claims[order, limit, around] = self._step(name, claim)
            return made

    # --- between two jobs

    def between_jobs(
        self,
        conn: AnyConnection,
        transport: PreparedTransport | None,
        bounds: Mapping[str, str],
        session: Session | None,
    ) -> bytes:
        """Make the message that resets the session for the next handler."""
        if transport is not None:
            literals = transport.literals(bounds)
            return transport.message([(step, literals) for step in self._clean_steps]) + b";"
        with literal_cursor(conn) as cur:
            statements = re.sub(rb"^--.*\n", b"", self._batch["between_jobs"], flags=re.MULTILINE)
            between = [cur.mogrify(statements, bounds).encode(), *self._deallocating(cur, session)]
            return re.sub(rb"^--.*\n", b"", b"\n".join(between), flags=re.MULTILINE)

    # --- finish

    def finish(self, conn: AnyConnection, record: BatchOutcome, release: bytes) -> tuple[BatchResult, bool]:
        """Commit the writes of all handlers together with their outcomes. Also returns whether the session is clean.
        `release` is the message that ends the last savepoint."""
        with literal_cursor(conn) as cur:
            if release and conn.info.encoding != "utf-8":  # set by a handler: this resets it before values are sent
                cur.execute(release)
                release = b""
            parts = [release, self._work["drop_statement_timeout"], *self._recording(cur, record)]
            parts += [self._work["commit"], self._work["reset_session"]]
            written, others = self._execute(cur, record, parts)
            return written, others[-1][0][-1] == 0

    def finish_prepared(
        self, transport: PreparedTransport, record: BatchOutcome, release: bytes | None
    ) -> tuple[BatchResult, bool]:
        """As `finish`, for a batch in which no job has failed or has metadata or output. Without `release`: its
        handlers have not used the connection."""
        before, after = list[Prepared](), self._complete_untouched
        if release is not None:
            before, after = [self._timeout_step], self._complete_used
            _, error = transport.send(release)
            if error is not None:
                raise error
        before += [self._async_commit_step] if record.async_commit else []
        before += [self._unclaim_step] if record.rest else []
        literals = transport.literals(record.values_of_claim() if release is None else record.values())
        results, error = transport.send(transport.message([(step, literals) for step in (*before, *after)]))
        results = results[len(before) :]
        if len(results) <= after.index(self._commit_step):
            raise _lost_or(error or psycopg.OperationalError("the answer is lost"), record)
        if release is not None:
            clean = len(results) == len(after) and transport.rows(results[-1])[0][1] == 0
            return self._completed(transport.rows(results[0])), clean
        if results[0].command_tuples != len(record.done):
            raise AttemptLost(f"of {len(record.done)} jobs of a batch {results[0].command_tuples} were still its own")
        return self._completed(transport.rows(results[1])), True

    def _completed(self, rows: Sequence[TupleRow]) -> BatchResult:
        return BatchResult(FinishResult(JobState.COMPLETED, rows[0][0], True), [])

    def _recording(self, cur: psycopg.ClientCursor[Any], record: BatchOutcome) -> list[bytes]:
        """Make the statements that write all outcomes."""
        values = record.values()
        parts = [self._work["commit_async"]] if record.async_commit else []
        for job, outcome, data in record.failed:
            each = finish_values(job, outcome, data)
            both = (self._work["finish"], self._work["cancel_if_requested"])
            parts += [cur.mogrify(statement, each).encode() for statement in both]
        wanted = [self._batch["complete_batch"]] if record.done else []
        wanted += [self._batch["store_batch_data"]] if values["metadata"] else []
        wanted += [self._batch["unclaim_batch"]] if record.rest else []
        parts += [cur.mogrify(statement, values).encode() for statement in wanted]
        note = self._work["cancel_if_requested"]
        return parts + [
            cur.mogrify(note, finish_values(job, COMPLETED, NO_DATA)).encode() for job in record.cancel_requested
        ]

    def _deallocating(self, cur: psycopg.ClientCursor[Any], session: Session | None) -> list[bytes]:
        """Make the statement that drops what handlers have prepared, where a pooler gives the session to other
        clients."""
        if session is None or session.shared_since is None:
            return []
        return [cur.mogrify(self._work["deallocate"], session_values(session)).encode()]

    def _execute(
        self, cur: psycopg.ClientCursor[Any], record: BatchOutcome, parts: Sequence[bytes]
    ) -> tuple[BatchResult, list[list[Any]]]:
        try:
            cur.execute(b"\n".join(parts))
        except psycopg.Error as error:
            raise _lost_or(error, record) from error
        number = 2 * len(record.failed) + bool(record.done) + len(record.cancel_requested) + 1
        rows = answers(cur)[-number:]  # without those of `release`
        failed, rows = rows[: 2 * len(record.failed)], rows[2 * len(record.failed) :]
        finished = []
        for [(state, now, *_)], cancelled in zip(failed[::2], failed[1::2], strict=True):
            finished.append(FinishResult(JobState(cancelled[0][0] if cancelled else state), now, True))
        now = rows[0][0][0] if record.done else 0
        return BatchResult(FinishResult(JobState.COMPLETED, now, True), finished), rows

    # --- when the batch cannot be committed

    def undo(
        self, conn: AnyConnection, record: BatchOutcome, error: str, *, restore_before: datetime | None
    ) -> tuple[dict[int, FinishResult], dict[int, FinishResult]]:
        """Undo the claims of the jobs that were not started, and make those available again whose writes are lost, in a
        new transaction, guarded by the token. Returns the latter, and the jobs that were completed after all: the
        answer to their COMMIT was lost. `restore_before`: after the loss of a connection, the server may have crashed
        and lost the claim of this time; it is then restored."""
        values = {
            **record.values(), "error": error, "attempted_at": restore_before,
            "started": _ids([*record.done, *(job.id for job, _, _ in record.failed)]),
        }  # fmt: skip
        parts = [self._work["begin_late_finish"]] + ([self._work["commit_async"]] if record.async_commit else [])
        parts += [self._batch["restore_batch"]] if restore_before is not None else []
        parts += [self._batch["unclaim_batch"], self._batch["undo_batch"], self._batch["select_completed"]]
        with literal_cursor(conn) as cur:
            cur.execute(b"\n".join((*parts, self._work["commit"])), values)
            undone, completed = answers(cur)
        return _all(JobState.AVAILABLE, undone), _all(JobState.COMPLETED, completed)

    def complete_late(self, conn: AnyConnection, record: BatchOutcome) -> dict[int, FinishResult]:
        """Complete the jobs whose writes were committed by a handler that ended the transaction."""
        parts = [self._work["begin_late_finish"]] + ([self._work["commit_async"]] if record.async_commit else [])
        values = record.values()
        parts += [self._batch["store_batch_data"]] if values["metadata"] else []
        parts += [self._batch["complete_batch_late"], self._work["commit"]]
        with literal_cursor(conn) as cur:
            cur.execute(b"\n".join(parts), values)
            (completed,) = answers(cur)
        return _all(JobState.COMPLETED, completed)

    def was_committed(self, conn: AnyConnection, record: BatchOutcome, xid: str, *, lost: bool) -> bool:
        """Whether the transaction of the batch was committed. `lost`: its connection was lost."""
        with literal_cursor(conn) as cur:
            try:
                cur.execute(self._batch["was_committed"], {**record.values_of_claim(), "xid": xid, "lost": lost})
            except (psycopg.errors.InvalidParameterValue, psycopg.errors.InternalError_):
                return False  # the server has crashed, and knows no such transaction
            return bool(one(cur)[0])


def must_run_alone(job: Job[Any]) -> bool:
    """Whether a claimed job must not be in a batch; the claim of a batch has the same condition in SQL."""
    return job.attempt > 1 or job.max_attempts == 1 or job.leased_until is not None or "excused" in _metadata(job)


def _metadata(job: Job[Any]) -> Mapping[str, Any]:
    return {} if job.raw_metadata == "{}" else job.metadata


def _as_jobs(rows: Iterable[TupleRow], queue: str, token: UUID, worker: str, attempted_at: datetime) -> list[Job[Any]]:
    """Make the jobs of a claim from its rows, which have only the columns that may differ."""
    same = {
        **_SAME, "queue": queue, "attempted_at": attempted_at, "token": token, "attempted_by": (worker,),
    }  # fmt: skip
    jobs, instants = list[Job[Any]](), _Instants()
    for id, kind, priority, most, args, scheduled_at, created_at, metadata, errors, tags, attempted_by in rows:
        values = same.copy()
        values["id"] = id
        values["kind"] = kind
        values["priority"] = priority
        values["max_attempts"] = most
        values["raw_args"] = args
        values["scheduled_at"] = values["created_at"] = instants[scheduled_at]
        if created_at is not None:
            values["created_at"] = instants[created_at]
        if metadata is not None:
            values["raw_metadata"] = metadata
        if errors is not None:
            values["raw_errors"] = errors
        if tags is not None:
            values["tags"] = tuple(tags)
        if attempted_by is not None:
            values["attempted_by"] = tuple(attempted_by)
        jobs.append(job_owning(values))
    return jobs


class _Instants(dict[str, datetime]):
    """Instants by their text: jobs that were enqueued together have the same."""

    def __missing__(self, text: str) -> datetime:
        made = self[text] = _instant(text)
        return made


def _instant(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    return at if at.tzinfo is UTC else at.astimezone(UTC)


def _ids(ids: Iterable[int]) -> str:
    return "{" + ",".join(map(str, ids)) + "}"


def _all(state: JobState, rows: Iterable[tuple[int, int]]) -> dict[int, FinishResult]:
    return {id: FinishResult(state, now, True) for id, now in rows}


def _lost_or(error: Exception, record: BatchOutcome) -> Exception:
    if isinstance(error, psycopg.Error) and error.sqlstate == ATTEMPT_LOST:
        return AttemptLost(f"a job of the batch of {len(record.done)} no longer runs under this attempt")
    return error


_LONGEST = timedelta(milliseconds=2**31 - 1)


def milliseconds(time: timedelta) -> int:
    return int(min(time, _LONGEST) / timedelta(milliseconds=1))
