"""The statements of batches, as queries.py has those of one attempt; prepared where the hot path can be used."""

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
from pgjobs.execution.transport import HotPath, Prepared, prepared
from pgjobs.job import Job, JobState, job_owning

# Those that claims of one would take one after the other.
_ORDERS: dict[str, Callable[[Any], Any]] = {
    "priority": attrgetter("priority", "scheduled_at", "id"),
    "scheduled_at": attrgetter("scheduled_at", "id"),
}


# What all jobs of a claim have in common, or most; with a place for everything, which is not made job by job.
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
    """What a claim of many gave: jobs, locked in the transaction that is open now."""

    jobs: list[Job[Any]]
    xid: str | None  # the transaction
    session: Session
    bounds: dict[str, str]  # what it is bounded by, and by whose role
    missed: int  # that were claimed, and taken away before they were locked


@dataclass(slots=True)
class BatchOutcome:
    """What is to be written at the end of a batch."""

    queue: str
    token: UUID
    async_commit: bool
    done: list[int] = field(default_factory=list)
    kept: list[tuple[int, AttemptData]] = field(default_factory=list)  # of those of them that want something kept
    failed: list[tuple[Job[Any], Outcome, AttemptData]] = field(default_factory=list)
    rest: list[int] = field(default_factory=list)  # not started
    asked: list[Job[Any]] = field(default_factory=list)  # of those that are done, which somebody wanted cancelled

    def values(self) -> dict[str, Any]:
        return {
            **self.values_of_claim(),
            "ids": _ids(self.done),
            "kept_ids": _ids(id for id, _ in self.kept),
            "metadata": [each.metadata or "" for _, each in self.kept],
            "output": [each.output or "" for _, each in self.kept],
        }

    def values_of_claim(self) -> dict[str, Any]:
        """Where all were done that are not given back."""
        return {"queue": self.queue, "token": self.token, "rest": _ids(self.rest)}


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What became of the jobs of a batch."""

    completed: FinishResult
    failed: list[FinishResult]  # in the order of the record


class BatchQueries:
    """The statements of one schema that are for batches."""

    def __init__(self, queries: ExecutionQueries) -> None:
        work, tag = queries.work, queries.tag
        batch = self._batch = statements.load("execution_batch.sql", queries.schema)
        self._work = work
        orders = {"priority": batch["next_batch_by_priority"], "scheduled_at": batch["next_batch_by_time"]}
        self._takes, self._takes_around = (
            {order: batch["take_batch"].replace(b"{next}", passing_over(next, part)) for order, next in orders.items()}
            for part in (b"", work["passed_over"])
        )
        before, after = (work["begin"], batch["batch_bounds"]), (work["commit"], work["begin"], batch["lock_batch"])
        self._claims, self._claims_around = (
            {order: b"\n".join((*before, take, *after)) for order, take in takes.items()}
            for takes in (self._takes, self._takes_around)
        )

        def hot(name: str, sql: bytes) -> Prepared:
            return prepared(f"{tag}_batch_{name}", sql)

        def parts(name: str, sql: bytes) -> tuple[Prepared, ...]:
            return tuple(hot(f"{name}_{number}", part) for number, part in enumerate(sql.rstrip(b"; \n").split(b";\n")))

        begin, commit, lock = (
            hot("begin", work["begin"]),
            hot("commit", work["commit"]),
            hot("lock", batch["lock_batch"]),
        )
        self._around_take = (begin, hot("bounds", batch["batch_bounds"])), (commit, begin, lock)
        self._hot_takes: dict[tuple[str, int, bool], Prepared] = {}
        self._prepared = hot
        self._hot_between = parts("between", batch["between_jobs"])
        self._hot_relax = hot("relax", work["relax"])
        self._hot_release = hot("release", batch["release_batch"])
        self._hot_no_timeout = hot("no_statement_timeout", work["no_statement_timeout"])
        complete, at = hot("complete_claim", batch["complete_claim"]), hot("completed_at", batch["completed_at"])
        self._hot_untouched: tuple[Prepared, ...] = (complete, at, commit)
        self._hot_used = (hot("complete", batch["complete_batch"]), commit, *parts("reset", work["reset_session"]))
        self._hot_commit = commit

    # --- claim

    def claim(self, conn: AnyConnection, hot: HotPath | None, order: str, values: Mapping[str, Any]) -> Claimed | None:
        """Claim many jobs, and lock them in the transaction that is then open. None: there is nothing to claim, or the
        first job must run alone, and no transaction is open. Raises AttemptLost when all were taken away before they
        could be locked."""
        if hot is not None:
            limits, taken, locked = self._claim_hot(hot, order, values)
        else:
            with BatchCursor(conn, row_factory=tuple_row) as cur:
                claims = self._claims_around if values.get("aside") else self._claims
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

    def _claim_hot(self, hot: HotPath, order: str, values: Mapping[str, Any]) -> tuple[Any, list[Any], list[Any]]:
        literals = hot.literals(values)
        before, after = self._around_take
        steps = (*before, self._hot_take(order, values["limit"], around=bool(values.get("aside"))), *after)
        results, error = hot.send(hot.message([(step, literals) for step in steps]))
        if error is not None:
            raise error
        hot.used = False
        return hot.rows(results[1])[0], hot.rows(results[2]), hot.rows(results[5])

    def _locked_ids(self, conn: AnyConnection, values: Mapping[str, Any]) -> set[int]:
        with literal_cursor(conn) as cur:
            cur.execute(self._batch["ids_of_batch"], values)
            return {id for (id,) in cur.fetchall()}

    def _hot_take(self, order: str, limit: int, *, around: bool) -> Prepared:
        """The claim of so many. The limit stands in the text: a plan for any is one for a tenth of the table."""
        try:
            return self._hot_takes[order, limit, around]
        except KeyError:
            take = (self._takes_around if around else self._takes)[order].replace(b"%(limit)s", b"%d" % limit)
            name = f"take_{order}_{limit}{'_around' if around else ''}"
            made = self._hot_takes[order, limit, around] = self._prepared(name, take)
            return made

    # --- between two jobs

    def between_jobs(
        self, conn: AnyConnection, hot: HotPath | None, bounds: Mapping[str, str], session: Session | None
    ) -> bytes:
        """What makes the session clean for the next handler, as one message."""
        if hot is not None:
            literals = hot.literals(bounds)
            return hot.message([(step, literals) for step in self._hot_between]) + b";"
        with literal_cursor(conn) as cur:
            statements = re.sub(rb"^--.*\n", b"", self._batch["between_jobs"], flags=re.MULTILINE)
            between = [cur.mogrify(statements, bounds).encode(), *self._deallocating(cur, session)]
            return re.sub(rb"^--.*\n", b"", b"\n".join(between), flags=re.MULTILINE)

    # --- finish

    def finish(self, conn: AnyConnection, record: BatchOutcome, release: bytes) -> tuple[BatchResult, bool]:
        """Commit the writes of all handlers together with their outcomes; whether the session is clean then. `release`
        is the savepoint of the handler that was the last to use the connection, as a message."""
        with literal_cursor(conn) as cur:
            if release and conn.info.encoding != "utf-8":  # as a handler wants it: this undoes it first
                cur.execute(release)
                release = b""
            parts = [release, self._work["no_statement_timeout"], *self._recording(cur, record)]
            parts += [self._work["commit"], self._work["reset_session"]]
            written, others = self._execute(cur, record, parts)
            return written, others[-1][0][-1] == 0

    def finish_hot(self, hot: HotPath, record: BatchOutcome, release: bytes | None) -> tuple[BatchResult, bool]:
        """As `finish`, for a batch in which none failed or wants anything kept. Without a `release` its handlers have
        sent nothing."""
        before, after = list[Prepared](), self._hot_untouched
        if release is not None:
            before, after = [self._hot_no_timeout], self._hot_used
            _, error = hot.send(release)
            if error is not None:
                raise error
        before += [self._hot_relax] if record.async_commit else []
        before += [self._hot_release] if record.rest else []
        literals = hot.literals(record.values_of_claim() if release is None else record.values())
        results, error = hot.send(hot.message([(step, literals) for step in (*before, *after)]))
        results = results[len(before) :]
        if len(results) <= after.index(self._hot_commit):
            raise _lost_or(error or psycopg.OperationalError("the answer is lost"), record)
        if release is not None:
            clean = len(results) == len(after) and hot.rows(results[-1])[0][1] == 0
            return self._completed(hot.rows(results[0])), clean
        if results[0].command_tuples != len(record.done):
            raise AttemptLost(f"of {len(record.done)} jobs of a batch {results[0].command_tuples} were still its own")
        return self._completed(hot.rows(results[1])), True

    def _completed(self, rows: Sequence[TupleRow]) -> BatchResult:
        return BatchResult(FinishResult(JobState.COMPLETED, rows[0][0], True), [])

    def _recording(self, cur: psycopg.ClientCursor[Any], record: BatchOutcome) -> list[bytes]:
        """The statements that write all outcomes."""
        values = record.values()
        parts = [self._work["relax"]] if record.async_commit else []
        for job, outcome, kept in record.failed:
            each = finish_values(job, outcome, kept)
            both = (self._work["finish"], self._work["cancel_if_asked"])
            parts += [cur.mogrify(statement, each).encode() for statement in both]
        wanted = [self._batch["complete_batch"]] if record.done else []
        wanted += [self._batch["keep_of_batch"]] if values["metadata"] else []
        wanted += [self._batch["release_batch"]] if record.rest else []
        parts += [cur.mogrify(statement, values).encode() for statement in wanted]
        note = self._work["cancel_if_asked"]
        return parts + [cur.mogrify(note, finish_values(job, COMPLETED, NO_DATA)).encode() for job in record.asked]

    def _deallocating(self, cur: psycopg.ClientCursor[Any], session: Session | None) -> list[bytes]:
        """What handlers have prepared, where the session is that of others next."""
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
        rows = answers(cur)[
            -(2 * len(record.failed) + bool(record.done) + len(record.asked) + 1) :
        ]  # before them, what cleaned the session
        failed, rows = rows[: 2 * len(record.failed)], rows[2 * len(record.failed) :]
        finished = []
        for [(state, now, *_)], cancelled in zip(failed[::2], failed[1::2], strict=True):
            finished.append(FinishResult(JobState(cancelled[0][0] if cancelled else state), now, True))
        now = rows[0][0][0] if record.done else 0
        return BatchResult(FinishResult(JobState.COMPLETED, now, True), finished), rows

    # --- when that could not be

    def undo(
        self, conn: AnyConnection, record: BatchOutcome, error: str, *, restore_before: datetime | None
    ) -> tuple[dict[int, FinishResult], dict[int, FinishResult]]:
        """Give those back that were not started, and make those available again whose writes are lost; which they
        were, and which were completed after all. In a transaction of its own, guarded by the token. `restore_before`:
        after the loss of a connection the claim may be lost too, which was made then."""
        values = {
            **record.values(), "error": error, "attempted_at": restore_before,
            "started": _ids([*record.done, *(job.id for job, _, _ in record.failed)]),
        }  # fmt: skip
        parts = [self._work["begin_late_finish"]] + ([self._work["relax"]] if record.async_commit else [])
        parts += [self._batch["restore_batch"]] if restore_before is not None else []
        parts += [self._batch["release_batch"], self._batch["undo_batch"], self._batch["completed_of_batch"]]
        with literal_cursor(conn) as cur:
            cur.execute(b"\n".join((*parts, self._work["commit"])), values)
            undone, completed = answers(cur)
        return _all(JobState.AVAILABLE, undone), _all(JobState.COMPLETED, completed)

    def complete_late(self, conn: AnyConnection, record: BatchOutcome) -> dict[int, FinishResult]:
        """Complete those whose writes were committed by the handler that ended their transaction."""
        parts = [self._work["begin_late_finish"]] + ([self._work["relax"]] if record.async_commit else [])
        values = record.values()
        parts += [self._batch["keep_of_batch"]] if values["metadata"] else []
        parts += [self._batch["complete_batch_late"], self._work["commit"]]
        with literal_cursor(conn) as cur:
            cur.execute(b"\n".join(parts), values)
            (completed,) = answers(cur)
        return _all(JobState.COMPLETED, completed)

    def was_committed(self, conn: AnyConnection, record: BatchOutcome, xid: str, *, lost: bool) -> bool:
        """Whether the transaction of the batch was; `lost` says that this is not the connection it ran on."""
        with literal_cursor(conn) as cur:
            try:
                cur.execute(self._batch["was_committed"], {**record.values_of_claim(), "xid": xid, "lost": lost})
            except (psycopg.errors.InvalidParameterValue, psycopg.errors.InternalError_):
                return False  # the server has crashed, and knows of no such transaction
            return bool(one(cur)[0])


def must_run_alone(job: Job[Any]) -> bool:
    """Whether a claimed job is one that no batch may have."""
    return job.attempt > 1 or job.max_attempts == 1 or job.leased_until is not None or "given_back" in _metadata(job)


def _metadata(job: Job[Any]) -> Mapping[str, Any]:
    return {} if job.raw_metadata == "{}" else job.metadata


def _as_jobs(rows: Iterable[TupleRow], queue: str, token: UUID, worker: str, attempted_at: datetime) -> list[Job[Any]]:
    """The jobs of a claim, which says only what is not the same for all."""
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
    """By their text: jobs that were enqueued together have the same."""

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
