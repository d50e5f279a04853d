"""Inserts jobs on psycopg connections: the synchronous driver of builder.py, with middleware and hooks around it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import psycopg
from psycopg.pq import TransactionStatus
from psycopg_pool import ConnectionPool

from pgjobs.db.advice import advised
from pgjobs.db.borrow import Tx, borrow
from pgjobs.db.connection import allow_prepare, may_prepare
from pgjobs.db.cursors import AnyConnection
from pgjobs.db.own_pool import OwnPool, explain_lost_answer, take_live
from pgjobs.db.source import PoolSource, in_autocommit
from pgjobs.enqueuing import single_insert
from pgjobs.enqueuing.builder import InsertBuilder, is_one_statement, is_plain
from pgjobs.enqueuing.copy_buffer import CopyBuffer
from pgjobs.enqueuing.encoded_jobs import Encoded, EncodedJobs
from pgjobs.enqueuing.encoder import Encoder
from pgjobs.enqueuing.queries import EnqueueQueries, can_copy, no_copy, run, send
from pgjobs.errors import InvalidSetting, shown
from pgjobs.execution.queries import ExecutionQueries
from pgjobs.forking import PerProcess
from pgjobs.hooks import (
    AsyncEnqueueMiddleware,
    EnqueueMiddleware,
    HookCalls,
    check_middleware,
    insert_with_middleware,
)
from pgjobs.job import Job
from pgjobs.options import EncodedJob, JobOptions

Inserted = TypeVar("Inserted")


@dataclass(frozen=True, slots=True, kw_only=True)
class Enqueuer:
    """Enqueues the jobs of one client."""

    schema: str
    encoder: Encoder
    queries: EnqueueQueries
    builder: InsertBuilder
    source: PoolSource
    transaction: Callable[[Tx], AbstractContextManager[AnyConnection]]
    server: ExecutionQueries  # for `server_facts`
    hooks: HookCalls
    middleware: Sequence[EnqueueMiddleware | AsyncEnqueueMiddleware] = ()
    _direct: PerProcess[dict[str, bool]] = field(default_factory=lambda: PerProcess(dict))

    def enqueue(self, tx: Tx, new: object, *, notify: bool) -> Job[Any]:
        """Insert one job, a `NewJob` or args."""
        encoded = template, text, args = self.encoder.encode_parts(new)
        if template.unique is None and not self.middleware:
            inserted = None
            try:
                if tx is None or isinstance(tx, ConnectionPool):
                    inserted = self._alone(tx, partial(self._insert_one, encoded, notify))
                elif notify and is_plain(template):
                    inserted = self._insert_plain(borrow(tx), encoded)
            except psycopg.Error:
                with advised(self.schema):  # only after an error: around each insert it would cost more than the checks
                    raise
            if inserted is not None:
                return inserted
        with self._transaction(tx) as conn:
            self._enable_prepare(conn)
            return self._insert(conn, tx, [template.with_args(text, args)], notify, one=True)[0]

    def enqueue_many(self, tx: Tx, new: Iterable[object], call: JobOptions, *, notify: bool) -> list[Job[Any]]:
        """Insert many jobs; they come back in their order."""
        jobs = EncodedJobs(self.encoder.encode_all(new, call))
        if (tx is None or isinstance(tx, ConnectionPool)) and is_one_statement(jobs) and not self.middleware:
            with advised(self.schema):
                inserted = self._alone(tx, partial(self._insert_in_autocommit, jobs, notify))
            if inserted is not None:
                return inserted
        with self._transaction(tx) as conn:
            if is_one_statement(jobs):
                self._enable_prepare(conn)
            return self._insert(conn, tx, jobs, notify)

    def enqueue_counted(self, tx: Tx, new: Iterable[object], call: JobOptions, *, notify: bool) -> int:
        """Insert any number of jobs; return how many, without the duplicates. Memory is bounded where COPY is possible
        and neither hooks nor middleware get to see each job. The transaction begins when all jobs are checked: until
        then the caller's iterator may use it."""
        may_copy = tx is None or isinstance(tx, ConnectionPool) or can_copy(borrow(tx))
        with CopyBuffer() as buffer:
            jobs = EncodedJobs()
            fill(jobs, self.buffer_for(may_copy, buffer), self.encoder.encode_all(new, call))
            with self._transaction(tx) as conn:
                if buffer.jobs:
                    self._insert_buffer(conn, buffer, notify)
                inserted = self._insert(conn, tx, jobs, notify) if jobs else []
            return buffer.jobs + sum(not job.duplicate for job in inserted)

    def buffer_for(self, may_copy: bool, buffer: CopyBuffer) -> CopyBuffer | None:
        """The buffer, unless hooks or middleware get to see each job, or no COPY is possible."""
        return buffer if may_copy and not self.hooks and not self.middleware else None

    # --- in a transaction of its own

    def _alone(
        self, tx: ConnectionPool[Any] | None, insert: Callable[[AnyConnection, bool], Inserted]
    ) -> Inserted | None:
        """Insert by one statement, which is a transaction by itself; None where that is not possible. `insert` gets a
        connection, and whether it is pgjobs' own."""
        pool = self.source.pool if tx is None else tx
        if type(pool).connection is not ConnectionPool.connection:  # a subclass expects a call of its own method
            return None
        conn = take_live(pool)  # `pool.connection()` costs as much as the insert
        try:
            if conn.pgconn.transaction_status != TransactionStatus.IDLE:  # the pool's check has begun a transaction
                return None
            return insert(conn, isinstance(pool, OwnPool))
        except psycopg.OperationalError as error:
            if conn.closed:
                explain_lost_answer(error)
            raise
        finally:
            pool.putconn(conn)

    def _insert_one(self, encoded: Encoded, notify: bool, conn: AnyConnection, own: bool) -> Job[Any]:
        template, text, args = encoded
        if not (notify and is_plain(template) and single_insert.can_send(conn)):
            return self._insert_in_autocommit([template.with_args(text, args)], notify, conn, own)[0]
        may_prepare = own or conn.prepare_threshold is not None
        values = self.queries.plain_values(template, text)
        return self.plain_job(encoded, single_insert.send(conn, may_prepare, self.queries.plain, values))

    def _insert_in_autocommit(
        self, jobs: Sequence[EncodedJob], notify: bool, conn: AnyConnection, _own: bool
    ) -> list[Job[Any]]:
        with in_autocommit(conn):
            self._enable_prepare(conn)
            return self._insert(conn, None, jobs, notify)

    # --- in a transaction

    def _insert_plain(self, conn: AnyConnection, encoded: Encoded) -> Job[Any] | None:
        """Insert one plain job; None where `single_insert` cannot be used."""
        if not single_insert.can_send(conn):
            return None
        if conn.prepare_threshold is None:
            self._enable_prepare(conn)
        template, text, _ = encoded
        values = self.queries.plain_values(template, text)
        return self.plain_job(encoded, single_insert.send_within(conn, self.queries.plain, values))

    def plain_job(self, encoded: Encoded, row: single_insert.Row | None) -> Job[Any]:
        """The job that `single_insert` has inserted, of which the hooks are told."""
        template, _, args = encoded
        job = self.builder.plain_job(template, args, row)
        if self.hooks:
            self.hooks("on_enqueue", job)
        return job

    def _insert(
        self, conn: AnyConnection, tx: Tx, jobs: Sequence[EncodedJob], notify: bool, *, one: bool = False
    ) -> list[Job[Any]]:
        """Insert the jobs, with the middleware around it, which gets the caller's `tx`; `one` is that of `enqueue`."""

        def insert(jobs: Sequence[EncodedJob]) -> list[Job[Any]]:
            if not jobs:
                return []
            may_copy = len(jobs) > 1 and can_copy(conn)
            return run(self.builder.insert(jobs, notify=notify, may_copy=may_copy), partial(send, conn))

        if self.middleware:  # which may expect a list
            jobs = list(jobs)
        inserted: list[Job[Any]] = insert_with_middleware(self.middleware, conn if tx is None else tx, insert)(jobs)
        if self.middleware:
            check_inserted(inserted, one=one)
        self.call_hooks(inserted)
        return inserted

    def call_hooks(self, inserted: Sequence[Job[Any]]) -> None:
        for job in inserted if self.hooks else ():
            if not job.duplicate:
                self.hooks("on_enqueue", job)

    def _insert_buffer(self, conn: AnyConnection, buffer: CopyBuffer, notify: bool) -> None:
        if not can_copy(conn):
            raise no_copy()
        run(self.builder.insert_buffer(buffer, notify=notify), partial(send, conn))

    @contextmanager
    def _transaction(self, tx: Tx) -> Iterator[AnyConnection]:
        """The transaction of an enqueue. If the connection is lost during the COMMIT, the error says that the job may
        exist."""
        if self.middleware:
            check_middleware(self.middleware, is_async=False)
        all_sent = False
        try:
            with self.transaction(tx) as conn:
                yield conn
                all_sent = True
        except psycopg.OperationalError as error:
            if all_sent:
                explain_lost_answer(error)
            raise

    # --- prepared statements

    def _enable_prepare(self, conn: AnyConnection) -> None:
        """Let psycopg prepare frequent statements on a connection of our own pool that leads to the server itself,
        unless the application has decided otherwise on this connection."""
        wanted = self._is_ours(conn) and conn.prepare_threshold is None and not may_prepare(conn)
        if wanted and can_copy(conn) and self._is_direct(conn):
            allow_prepare(conn)

    def _is_ours(self, conn: AnyConnection) -> bool:
        """Whether it belongs to the pool that the client made."""
        return self.source.owned and getattr(conn, "_pool", None) is self.source.pool

    def _is_direct(self, conn: AnyConnection) -> bool:
        """Whether no pooler stands between this process and the server. Each process asks the server once."""
        known = self._direct.get()
        if "direct" not in known:
            known["direct"] = not self.server.server_facts(conn).pooled
        return known["direct"]


def fill(jobs: EncodedJobs, buffer: CopyBuffer | None, encoded: Iterable[Encoded]) -> int:
    """Add the jobs to `jobs`, or to the buffer, if there is one and they have no key. Return how many there were."""
    taken = 0
    for taken, (template, text, args) in enumerate(encoded, 1):  # noqa: B007
        if buffer is not None and template.unique is None:
            buffer.add(template, text)
        else:
            jobs.append(template, text, args)
    return taken


def check_inserted(inserted: Any, *, one: bool = False) -> None:
    """Refuse what middleware around an insert has returned, unless it is a list of jobs; `one` of `enqueue`."""
    if not isinstance(inserted, list | tuple) or not all(isinstance(job, Job) for job in inserted):
        raise InvalidSetting(
            "middleware around an insert must return the jobs that insert(jobs) has returned, "
            f"not {shown(inserted)}: end it with return insert(jobs)"
        )
    if one and len(inserted) != 1:
        raise InvalidSetting(
            f"middleware around the insert of enqueue must return one job, not {len(inserted)}: to refuse a job, "
            "raise an exception"
        )
